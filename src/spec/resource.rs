//! Networks and volumes that a manager owns, and groups of runs that share them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::validate::check_labels;
use super::{InvalidSpec, Mount, RunId, RunSpec, Settings};

/// The kind of a resource of the engine that is not a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResourceKind {
    /// A network of containers.
    Network,
    /// A volume: files that outlive the containers that mount it.
    Volume,
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Volume => "volume",
        })
    }
}

/// What the specifications of a network and of a volume have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceSpec {
    pub(crate) kind: ResourceKind,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) expires_after: Option<Duration>,
    /// True if the containers of the network reach only each other.
    pub(crate) internal: bool,
}

impl ResourceSpec {
    fn new(kind: ResourceKind) -> Self {
        Self {
            kind,
            labels: BTreeMap::new(),
            expires_after: None,
            internal: false,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidSpec> {
        check_labels(&self.labels)
    }
}

/// The specification of a network: see [`Manager::network`](crate::manager::Manager::network).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkSpec(pub(crate) ResourceSpec);

impl Default for NetworkSpec {
    fn default() -> Self {
        Self(ResourceSpec::new(ResourceKind::Network))
    }
}

impl NetworkSpec {
    /// Creates the spec of a network that reaches the outside.
    pub fn new() -> Self {
        Self::default()
    }

    /// Isolates the network: its containers reach only each other. Default: false.
    ///
    /// The ports that they publish cannot be reached from the host either.
    pub fn internal(mut self, internal: bool) -> Self {
        self.0.internal = internal;
        self
    }

    /// Adds a label. Labels that begin with `moat.` are reserved.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.labels.insert(name.into(), value.into());
        self
    }

    /// Sets the time after which [`reap`](crate::manager::ReapOptions) of another root may remove
    /// the network. Default: never.
    ///
    /// Use this where a root may never be opened again. The network is not removed while a
    /// container uses it.
    pub fn expires_after(mut self, time: Duration) -> Self {
        self.0.expires_after = Some(time);
        self
    }
}

/// The specification of a volume: see [`Manager::volume`](crate::manager::Manager::volume).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VolumeSpec(pub(crate) ResourceSpec);

impl Default for VolumeSpec {
    fn default() -> Self {
        Self(ResourceSpec::new(ResourceKind::Volume))
    }
}

impl VolumeSpec {
    /// Creates the spec of an empty volume on the engine's disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a label. Labels that begin with `moat.` are reserved.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.labels.insert(name.into(), value.into());
        self
    }

    /// Sets the time after which [`reap`](crate::manager::ReapOptions) of another root may remove
    /// the volume, with its files. Default: never.
    ///
    /// Use this where a root may never be opened again. The volume is not removed while a container
    /// uses it.
    pub fn expires_after(mut self, time: Duration) -> Self {
        self.0.expires_after = Some(time);
        self
    }
}

/// The specification of a group: see [`Manager::group`](crate::manager::Manager::group).
///
/// ```
/// use moat::spec::{GroupSpec, NetworkSpec, VolumeSpec};
///
/// let spec = GroupSpec::new()
///     .network(NetworkSpec::new().internal(true))
///     .volume(VolumeSpec::new(), "/work");
/// # let _ = spec;
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupSpec {
    pub(crate) network: Option<NetworkSpec>,
    /// The volume, and the path at which each run mounts it.
    pub(crate) volume: Option<(VolumeSpec, String)>,
}

impl GroupSpec {
    /// Creates the spec of a group without a network and without a volume.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a network that all runs of the group join.
    pub fn network(mut self, spec: NetworkSpec) -> Self {
        self.network = Some(spec);
        self
    }

    /// Adds a volume that all runs of the group mount at `target`, an absolute path.
    pub fn volume(mut self, spec: VolumeSpec, target: impl Into<String>) -> Self {
        self.volume = Some((spec, target.into()));
        self
    }

    /// Returns the specs of the network and of the volume.
    pub(crate) fn resources(&self) -> Vec<ResourceSpec> {
        let network = self.network.as_ref().map(|network| &network.0);
        let volume = self.volume.as_ref().map(|(volume, _)| &volume.0);
        network.into_iter().chain(volume).cloned().collect()
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidSpec> {
        match &self.volume {
            Some((_, target)) if !target.starts_with('/') => {
                let reason = format!("{target:?} is not an absolute path in the containers");
                Err(InvalidSpec::new("volume", reason))
            }
            _ => Ok(()),
        }
    }
}

/// The generated id of a group, a network or a volume that a manager owns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(RunId);

impl GroupId {
    pub(crate) fn generate() -> Self {
        Self(RunId::generate())
    }

    /// Returns the id in the name of a file, or `None` if the name has another form.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        RunId::new(name).ok().map(Self)
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The id in the names of the engine's networks and volumes.
    pub(crate) fn as_run_id(&self) -> &RunId {
        &self.0
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of a run in a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Membership {
    /// The group.
    pub group: GroupId,
    /// True if the run is a service: it is stopped after the runs that are not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub service: bool,
}

impl Settings {
    /// Returns the names of the network and of the volumes that the run uses.
    pub(crate) fn resources(&self) -> impl Iterator<Item = (ResourceKind, &str)> {
        let network = self.network.as_deref();
        let volumes = self.mounts.iter().filter_map(|mount| match mount {
            Mount::Volume { name, .. } => Some((ResourceKind::Volume, name.as_str())),
            _ => None,
        });
        let network = network.map(|name| (ResourceKind::Network, name));
        network.into_iter().chain(volumes)
    }
}

impl RunSpec {
    /// Makes the run a member of a group.
    pub(crate) fn member_of(mut self, group: &GroupId) -> Self {
        self.membership = Some(Membership {
            group: group.clone(),
            service: false,
        });
        self
    }

    /// Makes the run a service of its group, if it is in one.
    pub(crate) fn for_service(mut self) -> Self {
        if let Some(membership) = &mut self.membership {
            membership.service = true;
        }
        self
    }

    pub(crate) fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }
}

//! Networks, volumes and groups whose calls block.

use crate::blocking::{Run, wait};
use crate::error::Result;
use crate::run::ready::Ready;
use crate::spec::{GroupId, RunSpec};

/// A [`crate::manager::Group`] whose calls block. Dropping it ends the group.
#[derive(Debug)]
#[must_use = "dropping a group ends it"]
pub struct Group(pub(super) crate::manager::Group);

impl Group {
    /// Returns the id of the group.
    pub fn id(&self) -> &GroupId {
        self.0.id()
    }

    /// Returns the name of the network on the engine, if the group has one.
    pub fn network(&self) -> Option<&str> {
        self.0.network()
    }

    /// Returns the name of the volume on the engine, if the group has one.
    pub fn volume(&self) -> Option<&str> {
        self.0.volume()
    }

    /// Makes a run a member of the group: see [`crate::manager::Group::join`].
    pub fn join(&self, spec: RunSpec) -> RunSpec {
        self.0.join(spec)
    }

    /// Starts a run of the group: see [`crate::manager::Group::start`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Group::start`].
    pub fn start(&self, spec: RunSpec) -> Result<Run> {
        wait(self.0.start(spec)).map(Run)
    }

    /// Starts a service of the group: see [`crate::manager::Group::service`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Group::service`].
    pub fn service(
        &self,
        name: impl Into<String>,
        spec: RunSpec,
        ready: impl IntoIterator<Item = Ready>,
    ) -> Result<Run> {
        wait(self.0.service(name, spec, ready)).map(Run)
    }

    /// Ends the group: see [`crate::manager::Group::end`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Group::end`].
    pub fn end(self) -> Result<()> {
        wait(self.0.end())
    }
}

/// A [`crate::manager::Network`] whose calls block. Dropping it removes the network.
#[derive(Debug)]
#[must_use = "dropping a network removes it"]
pub struct Network(pub(super) crate::manager::Network);

impl Network {
    /// Returns the name of the network on the engine.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Removes the network: see [`crate::manager::Network::remove`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Network::remove`].
    pub fn remove(self) -> Result<()> {
        wait(self.0.remove())
    }
}

impl From<&Network> for String {
    fn from(network: &Network) -> Self {
        network.name().to_owned()
    }
}

/// A [`crate::manager::Volume`] whose calls block. Dropping it removes the volume.
#[derive(Debug)]
#[must_use = "dropping a volume removes it"]
pub struct Volume(pub(super) crate::manager::Volume);

impl Volume {
    /// Returns the name of the volume on the engine.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Removes the volume: see [`crate::manager::Volume::remove`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Volume::remove`].
    pub fn remove(self) -> Result<()> {
        wait(self.0.remove())
    }
}

impl From<&Volume> for String {
    fn from(volume: &Volume) -> Self {
        volume.name().to_owned()
    }
}

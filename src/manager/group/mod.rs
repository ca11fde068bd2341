//! Networks and volumes that a manager owns, and groups of runs that share them.

mod handle;
mod resource;

pub use self::resource::{Network, Volume};

use crate::error::Result;
use crate::manager::Manager;
use crate::manager::group::handle::GroupHandle;
use crate::monitor::entry::lock;
use crate::run::Run;
use crate::run::ready::Ready;
use crate::spec::{GroupId, GroupSpec, RunSpec};

/// Runs that share a network and a volume, and end together.
///
/// Created by [`Manager::group`]. The end of a group stops its runs, each with the grace period of
/// its spec: first the runs that are not services, all at once, and then the services, the last one
/// first. Then it removes the network and the volume.
///
/// A group ends
///
/// - by [`end`](Self::end),
/// - when it is dropped, which blocks as the drop of a [`Service`](crate::manager::Service) does: for
///   at most 30 s beyond the longest grace period of the runs and those of all services,
/// - by [`Manager::shutdown`] with [`ShutdownMode::Stop`](crate::manager::ShutdownMode::Stop),
/// - when its root is opened next, if its process was killed, or left it with
///   [`ShutdownMode::Leave`](crate::manager::ShutdownMode::Leave).
///
/// A run whose policy keeps its container also keeps the volume: the end of the group then fails
/// with [`RuntimeError::Conflict`](crate::runtime::RuntimeError::Conflict), and
/// [`Manager::prune`], or the next opening of the root, removes the volume once the container is gone.
#[derive(Debug)]
#[must_use = "dropping a group ends it"]
pub struct Group {
    handle: GroupHandle,
    spec: GroupSpec,
}

impl Group {
    /// Returns the id of the group. The record of each of its runs has it.
    pub fn id(&self) -> &GroupId {
        &self.handle.group.record.group
    }

    /// Returns the name of the network on the engine, if the group has one.
    pub fn network(&self) -> Option<&str> {
        self.spec.network.is_some().then_some(&*self.handle.name)
    }

    /// Returns the name of the volume on the engine, if the group has one.
    pub fn volume(&self) -> Option<&str> {
        self.spec.volume.is_some().then_some(&*self.handle.name)
    }

    /// Makes a run a member of the group: it ends with the group, joins the network and mounts the
    /// volume.
    ///
    /// A network that the spec sets is replaced. [`start`](Self::start) and
    /// [`service`](Self::service) call this. Use it for other calls, such as
    /// [`Manager::start_attached`].
    pub fn join(&self, spec: RunSpec) -> RunSpec {
        lock(&self.handle.graces).add_run(spec.settings().stop_grace);
        let mut spec = spec.member_of(self.id());
        if let Some(network) = self.network() {
            spec = spec.network(network);
        }
        if let (Some(volume), Some((_, target))) = (self.volume(), &self.spec.volume) {
            spec = spec.volume(volume, target);
        }
        spec
    }

    /// Starts a run of the group: see [`Manager::start`].
    ///
    /// # Errors
    ///
    /// Those of [`Manager::start`].
    ///
    /// # Cancel safety
    ///
    /// That of [`Manager::start`].
    pub async fn start(&self, spec: RunSpec) -> Result<Run> {
        self.handle.manager.start(self.join(spec)).await
    }

    /// Starts a service of the group, and waits until it is ready: see [`Manager::service`].
    ///
    /// The other runs of the group reach it by `name`, if the group has a network. The service ends
    /// with the group, and not when the returned handle is dropped.
    ///
    /// # Errors
    ///
    /// Those of [`Manager::service`].
    ///
    /// # Cancel safety
    ///
    /// That of [`Manager::service`].
    pub async fn service(
        &self,
        name: impl Into<String>,
        spec: RunSpec,
        ready: impl IntoIterator<Item = Ready>,
    ) -> Result<Run> {
        lock(&self.handle.graces).add_service(spec.settings().stop_grace);
        let mut spec = self.join(spec).for_service();
        if self.network().is_some() {
            spec = spec.network_alias(name);
        }
        let service = self.handle.manager.service(spec, ready).await?;
        Ok(service.release())
    }

    /// Ends the group, and waits until its network and its volume are removed.
    ///
    /// # Errors
    ///
    /// - [`Error::Unanswered`](crate::error::Error::Unanswered) if the engine does not answer about
    ///   a run 30 s after its grace period. The other runs have ended.
    /// - [`Error::Runtime`](crate::error::Error::Runtime) if the network or the volume cannot be
    ///   removed.
    /// - [`Error::Storage`](crate::error::Error::Storage) if the file of the group cannot be removed.
    ///
    /// After an error, [`Manager::prune`], a shutdown or the next opening of the root tries again.
    ///
    /// # Cancel safety
    ///
    /// A dropped call ends the group as dropping it does.
    pub async fn end(mut self) -> Result<()> {
        self.handle.end().await
    }
}

impl Manager {
    /// Creates a group: runs that share a network and a volume, and end together.
    ///
    /// The group is recorded in the root before the engine is asked for anything.
    ///
    /// ```no_run
    /// # use moat::{Manager, Ready, RunSpec};
    /// # use moat::spec::{GroupSpec, NetworkSpec, VolumeSpec};
    /// # async fn job(manager: Manager) -> moat::Result<()> {
    /// let spec = GroupSpec::new().network(NetworkSpec::new()).volume(VolumeSpec::new(), "/work");
    /// let group = manager.group(spec).await?;
    /// group.service("db", RunSpec::new("postgres:17"), [Ready::line("ready to accept")]).await?;
    /// let test = group.start(RunSpec::new("tests").env("DB_HOST", "db")).await?;
    /// println!("{}", test.wait().await?);
    /// group.end().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidSpec`](crate::error::Error::InvalidSpec),
    ///   [`Error::Closed`](crate::error::Error::Closed) or
    ///   [`Error::Storage`](crate::error::Error::Storage). Nothing was created.
    /// - [`Error::Runtime`](crate::error::Error::Runtime) if the engine has no networks or volumes,
    ///   or refuses to create them. What it created is removed.
    ///
    /// # Cancel safety
    ///
    /// A dropped call removes what it has created.
    pub async fn group(&self, spec: GroupSpec) -> Result<Group> {
        spec.validate()?;
        let handle = GroupHandle::create(self, spec.resources(), true).await?;
        Ok(Group { handle, spec })
    }
}

//! Networks and volumes without a group.

use crate::error::Result;
use crate::manager::Manager;
use crate::manager::group::handle::GroupHandle;
use crate::spec::{NetworkSpec, VolumeSpec};

/// A network of the engine that a manager owns.
///
/// Created by [`Manager::network`]. Pass it to [`RunSpec::network`](crate::spec::RunSpec::network).
///
/// The network is removed
///
/// - by [`remove`](Self::remove),
/// - when it is dropped,
/// - by [`Manager::shutdown`] with [`ShutdownMode::Stop`](crate::manager::ShutdownMode::Stop),
/// - when its root is opened next, if its process was killed,
///
/// and in each case only after all runs that use it have ended. A drop does not stop those runs, and
/// does not block while there are any. Otherwise it blocks the thread until the network is removed,
/// for 30 s at most, unless the manager's tasks run on
/// [a runtime of the caller](crate::manager::ManagerBuilder::runtime_handle).
#[derive(Debug)]
#[must_use = "dropping a network removes it"]
pub struct Network(GroupHandle);

impl Network {
    /// Returns the name of the network on the engine.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Waits until all runs of this manager that use the network have ended, and removes it.
    ///
    /// A network that does not exist is not an error.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`](crate::error::Error::Runtime) if the engine does not remove the network,
    /// for example because a container of another program uses it, and
    /// [`Error::Storage`](crate::error::Error::Storage). The next opening of the root tries again.
    ///
    /// # Cancel safety
    ///
    /// A dropped call removes the network as dropping it does.
    pub async fn remove(mut self) -> Result<()> {
        self.0.end().await
    }
}

impl From<&Network> for String {
    fn from(network: &Network) -> Self {
        network.name().to_owned()
    }
}

/// A volume of the engine that a manager owns.
///
/// Created by [`Manager::volume`]. Pass it to [`RunSpec::volume`](crate::spec::RunSpec::volume). It is
/// removed as a [`Network`] is, with its files. A run whose policy keeps its container also keeps the
/// volume: the removal then fails with
/// [`RuntimeError::Conflict`](crate::runtime::RuntimeError::Conflict), and [`Manager::prune`], or the
/// next opening of the root, removes the volume once the container is gone.
#[derive(Debug)]
#[must_use = "dropping a volume removes it"]
pub struct Volume(GroupHandle);

impl Volume {
    /// Returns the name of the volume on the engine.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Waits until all runs of this manager that use the volume have ended, and removes it.
    ///
    /// A volume that does not exist is not an error.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`](crate::error::Error::Runtime) if the engine does not remove the volume, for
    /// example because a kept container uses it, and
    /// [`Error::Storage`](crate::error::Error::Storage). The next opening of the root tries again.
    ///
    /// # Cancel safety
    ///
    /// A dropped call removes the volume as dropping it does.
    pub async fn remove(mut self) -> Result<()> {
        self.0.end().await
    }
}

impl From<&Volume> for String {
    fn from(volume: &Volume) -> Self {
        volume.name().to_owned()
    }
}

impl Manager {
    /// Creates a network. Its containers reach each other by their
    /// [aliases](crate::spec::RunSpec::network_alias).
    ///
    /// The network is recorded in the root before the engine is asked for it.
    ///
    /// ```no_run
    /// # use moat::{Manager, Port, Ready, RunSpec};
    /// # use moat::spec::NetworkSpec;
    /// # async fn test(manager: Manager) -> moat::Result<()> {
    /// let network = manager.network(NetworkSpec::new()).await?;
    /// let redis = RunSpec::new("redis:7").network(&network).network_alias("redis");
    /// let redis = manager.service(redis, [Ready::port(6379)]).await?;
    /// let client = RunSpec::new("redis:7").network(&network).cmd(["redis-cli", "-h", "redis", "ping"]);
    /// println!("{}", manager.start(client).await?.wait().await?);
    /// redis.stop().await?;
    /// network.remove().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`group`](Self::group).
    ///
    /// # Cancel safety
    ///
    /// A dropped call removes what it has created.
    pub async fn network(&self, spec: NetworkSpec) -> Result<Network> {
        let created = GroupHandle::create(self, vec![spec.0], false);
        created.await.map(Network)
    }

    /// Creates an empty volume.
    ///
    /// The volume is recorded in the root before the engine is asked for it.
    ///
    /// # Errors
    ///
    /// Those of [`group`](Self::group).
    ///
    /// # Cancel safety
    ///
    /// A dropped call removes what it has created.
    pub async fn volume(&self, spec: VolumeSpec) -> Result<Volume> {
        let created = GroupHandle::create(self, vec![spec.0], false);
        created.await.map(Volume)
    }
}

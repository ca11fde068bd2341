//! The removal of the container of a run.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::monitor::policy::REMOVAL_PERIOD;
use crate::outcome::Seal;
use crate::run::Run;

/// The time between two inspections of a container that another process removes.
const REMOVAL_POLL_INTERVAL: Duration = Duration::from_millis(500);

impl Run {
    /// Waits until the run is sealed and its container is removed.
    ///
    /// After that, the networks and volumes that the container used can be removed. The wait has no
    /// limit: a full disk delays the seal. Returns false if
    /// the container still exists: the policy of the run keeps it
    /// ([`KeepContainer`](crate::spec::KeepContainer)), or its removal failed, which is a
    /// [`Warning`](crate::events::EventKind::Warning). If another process owns the run, the wait for
    /// its removal ends after 60 s.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait), and [`Error::Runtime`] if the engine does not say whether the
    /// container exists.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn wait_removed(&self) -> Result<bool> {
        let mut snapshot = self.entry.snapshot.clone();
        let sealed = snapshot.wait_for(|snapshot| snapshot.seal.is_some()).await;
        if sealed.map_or(true, |sealed| sealed.give_up_reason.is_some()) {
            return Err(self.monitor_error());
        }
        if !self.owned_elsewhere() {
            self.released().await;
        }
        let seal = self.entry.snapshot.borrow().seal.clone();
        let Some(container) = seal.and_then(|seal| seal.container) else {
            return Ok(true);
        };
        let deadline = Instant::now() + REMOVAL_PERIOD;
        loop {
            match self.context().runtime.inspect(&container).await {
                Err(error) if error.is_not_found() => return Ok(true),
                Err(error) => return Err(error.into()),
                Ok(_) if !self.owned_elsewhere() || Instant::now() >= deadline => return Ok(false),
                Ok(_) => sleep(REMOVAL_POLL_INTERVAL).await,
            }
        }
    }

    /// Removes the container of a sealed run, and keeps the audit file.
    ///
    /// Use this for a container that the policy of the run keeps
    /// ([`KeepContainer`](crate::spec::KeepContainer)) once it is no longer needed. A container that
    /// does not exist is not an error, so the call can be repeated.
    /// [`Manager::remove`](crate::manager::Manager::remove) removes the run as well.
    ///
    /// # Errors
    ///
    /// - [`Error::NotSealed`] while the run is active, or before its audit file is sealed.
    /// - [`Error::OtherRuntime`] or [`Error::OtherEngine`] if another runtime or engine has the
    ///   container.
    /// - [`Error::Runtime`] if the engine does not remove the container. It holds
    ///   [`RuntimeError::Conflict`](crate::runtime::RuntimeError::Conflict) if another program has
    ///   started the container again.
    /// - [`Error::Storage`] or [`Error::Damaged`] if the removal cannot be recorded.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call keeps the container or removes it. Call it again to complete the
    /// removal.
    pub async fn remove_container(&self) -> Result<()> {
        let seal = self.seal().await?;
        let Some(container) = seal.container.clone() else {
            return Ok(());
        };
        self.context().refuse_out_of_reach(self.id(), &seal).await?;
        match self.context().runtime.remove(&container, false).await {
            Ok(()) => {
                let removed = EventKind::ContainerRemoved { container };
                self.context().event_bus.emit(self.id(), removed);
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        // The monitor may still be removing the container.
        if !self.owned_elsewhere() {
            self.released().await;
        }
        self.record_removal().await
    }

    /// Records that the container of a sealed run is removed, so that no engine is asked for it.
    async fn record_removal(&self) -> Result<()> {
        let id = self.id().clone();
        let recorded = self
            .context()
            .on_disk("record the removal in", move |root| {
                let _lock = root.lock(&id)?;
                match root.read_run(&id)? {
                    Some(mut file) if !file.container_removed => {
                        file.container_removed = true;
                        root.write_run(&file)
                    }
                    _ => Ok(()),
                }
            });
        match recorded.await {
            // The other process finds no container.
            Err(Error::Owned { .. }) => Ok(()),
            recorded => recorded,
        }
    }

    /// Returns the seal from the snapshot of the run, or else from its file.
    pub(crate) async fn seal(&self) -> Result<Seal> {
        let known = self.entry.snapshot.borrow().seal.clone();
        if let Some(seal) = known {
            return Ok(seal);
        }
        // A new monitor may not have read the seal yet.
        let id = self.id().clone();
        let file = self
            .context()
            .on_disk("read", move |root| root.read_run(&id))
            .await?;
        file.and_then(|file| file.seal)
            .ok_or_else(|| Error::NotSealed {
                run: self.id().clone(),
            })
    }
}

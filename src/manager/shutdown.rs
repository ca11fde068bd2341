//! The shutdown of a manager, and the order in which it stops its runs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;
#[cfg(feature = "sign")]
use tokio::time::{Instant, timeout_at};

#[cfg(doc)]
use crate::error::Error;
use crate::manager::Manager;
#[cfg(feature = "sign")]
use crate::monitor::context::{Context, SHUTDOWN_GRACE};
use crate::monitor::entry::Role;
#[cfg(feature = "sign")]
use crate::monitor::signature::head::sign_last_head;
use crate::outcome::StopCause;

/// The longest time that a shutdown gives the groups to end, once all runs are stopped.
const GROUP_TIMEOUT: Duration = Duration::from_secs(30);

/// The time that the head of the ledger gets for its signature, even if the runs have used up the
/// grace period.
#[cfg(feature = "sign")]
const MIN_HEAD_TIME: Duration = Duration::from_millis(250);

/// The treatment of active runs during [`Manager::shutdown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownMode {
    /// Leaves them running, to be recovered by the next opening of the root.
    ///
    /// Runs of a [`process_bound`](crate::runtime::Capabilities::process_bound) runtime
    /// cannot be recovered, and are stopped.
    Leave,
    /// Stops them, with the grace period of their specs, and seals them.
    Stop,
}

impl Manager {
    /// Shuts the manager down, and waits until all its tasks have ended.
    ///
    /// Later calls on any clone fail with [`Error::Closed`], or return the state on disk.
    ///
    /// Actions before this call (stops, detachments, resizes) are recorded, unless the sink
    /// or the engine does not respond within 2 s.
    ///
    /// The services are stopped once all other runs have ended. After a recovery, a service counts as
    /// any other run: its role is not recorded.
    ///
    /// Networks, volumes and [groups](crate::manager::Group) are removed after the last run. If
    /// this fails, the next opening of the root tries again.
    ///
    /// Stopping takes the longest grace period of the runs, then that of the services, and longer if a
    /// container does not end.
    /// A run whose engine does not answer about it 30 s after its grace period is left to the
    /// next opening of the root, which completes the stop: see [`Error::Unanswered`]. Its audit
    /// file has a note.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call leaves the manager running. It can be shut down again.
    pub async fn shutdown(&self, mode: ShutdownMode) {
        let context = self.context();
        // Process-bound runs are always stopped: they would end anyway, without a seal.
        let stop = mode == ShutdownMode::Stop || context.runtime.capabilities().process_bound;
        // Refuses new runs until all are stopped.
        let _stopping = stop.then(|| StartsRefused::new(&context.stopping));
        if stop {
            self.stop_in_order().await;
            self.end_groups().await;
        }
        #[cfg(feature = "sign")]
        let deadline = Instant::now() + SHUTDOWN_GRACE;
        context.closing.cancel();
        context.tasks.wait().await;
        #[cfg(feature = "sign")]
        sign_last_head_until(context, deadline).await;
        // The next opening can then take over the groups that have not ended.
        let groups = std::mem::take(&mut *context.groups());
        groups.values().for_each(|group| group.release());
        context.event_bus.close();
    }

    /// Stops the runs that are not services, and then the services.
    async fn stop_in_order(&self) {
        self.stop_where(StopCause::Shutdown, None, |role| !role.is_service)
            .await;
        self.stop_where(StopCause::Shutdown, None, |role| role.is_service)
            .await;
    }

    /// Ends all groups, for at most [`GROUP_TIMEOUT`]. The next opening of the root ends the others.
    async fn end_groups(&self) {
        let context = self.context();
        let groups: Vec<_> = context.groups().values().cloned().collect();
        let ends = join_all(groups.iter().map(|group| group.end(context)));
        for (group, ended) in groups
            .iter()
            .zip(timeout(GROUP_TIMEOUT, ends).await.unwrap_or_default())
        {
            if let Err(error) = ended {
                let id = &group.record.group;
                tracing::warn!(group = %id, error = %error.chain(), "cannot end a group");
            }
        }
    }

    /// Stops the runs that neither clean up nor are services. Then waits until the manager is shut
    /// down, for at most `limit`.
    ///
    /// Until the returned guard is dropped, only runs that clean up can start.
    pub(super) async fn clean_up(&self, limit: Duration) -> StartsRefused<'_> {
        let context = self.context();
        let refused = StartsRefused::new(&context.cleaning);
        if !limit.is_zero() {
            let is_job = |role: Role| !role.is_service && !role.is_cleanup;
            self.stop_where(StopCause::Shutdown, None, is_job).await;
            let _ = timeout(limit, context.closing.cancelled()).await;
        }
        refused
    }

    /// Kills all runs.
    pub(super) async fn kill_all(&self) {
        self.stop_where(StopCause::Killed, Some(Duration::ZERO), |_| true)
            .await;
    }

    /// Stops the selected runs that this manager owns, and waits until they are sealed.
    async fn stop_where(
        &self,
        cause: StopCause,
        grace: Option<Duration>,
        is_selected: impl Fn(Role) -> bool,
    ) {
        let entries: Vec<_> = self.context().entries().values().cloned().collect();
        let selected = entries.into_iter().filter(|entry| is_selected(entry.role));
        let stops = selected.map(|entry| {
            let run = self.handle(entry);
            async move {
                if !run.owned_elsewhere() {
                    // Fails only for a run that cannot be recovered.
                    let _ = run.request(cause, grace).await;
                }
            }
        });
        join_all(stops).await;
    }
}

/// Signs the head of the ledger. The signatures of logs have the same deadline.
#[cfg(feature = "sign")]
async fn sign_last_head_until(context: &Context, deadline: Instant) {
    if context.sink.signing_key().is_some() {
        let deadline = deadline.max(Instant::now() + MIN_HEAD_TIME);
        let _ = timeout_at(deadline, sign_last_head(context)).await;
    }
}

/// A guard during whose life the manager refuses new runs.
pub(super) struct StartsRefused<'a>(&'a AtomicUsize);

impl<'a> StartsRefused<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for StartsRefused<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::runtime::scripted::Scripted;
    use crate::spec::RunId;

    #[tokio::test]
    async fn a_shutdown_refuses_a_start_in_progress() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let manager = Manager::open(root, Scripted::new()).await.unwrap();
        let register = |id: RunId| {
            let context = manager.context();
            let (entry, _) = context.monitor(context.place(&id), Role::default());
            manager.register(id, entry, None)
        };
        for count in [&manager.context().stopping, &manager.context().cleaning] {
            let stopping = StartsRefused::new(count);
            let refused = register(RunId::generate());
            assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
            drop(stopping);
            register(RunId::generate()).unwrap();
        }
    }
}

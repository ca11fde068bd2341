//! Runs that this manager does not watch yet: another process owns them, or their log is not open.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::sleep;

use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::monitor::Monitor;
use crate::monitor::calls::Calls;
use crate::monitor::entry::StopRequest;
use crate::monitor::recover::POLL_INTERVAL;
use crate::monitor::stop::{DEFAULT_SIGNAL, Stopper};
use crate::outcome::Seal;
use crate::root::{Lock, Root, RunFile};
use crate::spec::{ContainerId, RunId, RunRecord};
use crate::state::{RunStatus, Transition};

/// The owner of a run.
enum Ownership {
    /// This task acquired the lock.
    Acquired(Lock, Option<Box<RunFile>>),
    /// Another live process holds the lock.
    Foreign(Option<Box<RunFile>>, RunStatus),
    /// Another process may be creating the run.
    BeingCreated,
}

/// The next step of a task that waits for a run.
enum Wait {
    /// This task owns the run.
    Owned(Option<Unwatched>),
    /// The run is sealed, removed, or cannot be recovered.
    GiveUp,
    /// The run has another owner, or an error may be temporary.
    Retry(Option<Unwatched>),
}

/// A container that the run's record names, and that no task here watches.
pub(super) struct Unwatched {
    container: ContainerId,
    record: RunRecord,
}

impl Unwatched {
    fn new(record: RunRecord) -> Option<Self> {
        let container = record.container.clone()?;
        Some(Self { container, record })
    }
}

impl Ownership {
    /// Acquires the lock of a run, or reads the files of its owner.
    fn acquire(root: &Root, run: &RunId) -> Result<Self> {
        if !root.has(run) {
            return Err(root.no_such_run(run));
        }
        if root.is_being_created(run) {
            return Ok(Self::BeingCreated);
        }
        match root.lock(run) {
            Ok(lock) => {
                let file = root.read_run(run).ok().flatten();
                Ok(Self::Acquired(lock, file.map(Box::new)))
            }
            Err(Error::Owned { .. }) => {
                let info = root.info(run)?;
                let file = root.read_run(run)?;
                Ok(Self::Foreign(file.map(Box::new), info.status))
            }
            Err(error) => Err(error),
        }
    }
}

impl Monitor {
    /// Waits until this task owns the run, and holds one of the recovery `permits`.
    ///
    /// Returns `None` if another process seals the run, if the run is removed or cannot be
    /// recovered, or if the manager closes.
    ///
    /// Meanwhile stop requests go to the engine, and are left for the owner of the run to record.
    /// Once this task owns the run, it completes a stop that is still in progress.
    pub(super) async fn wait_for_ownership<'a>(
        &mut self,
        permits: &'a Semaphore,
    ) -> Option<(SemaphorePermit<'a>, Option<Unwatched>)> {
        let (context, calls) = (Arc::clone(&self.context), self.calls.clone());
        let mut unwatched = None;
        loop {
            // A closing manager ends the wait only here, because pending stops are sent first.
            let permit = self
                .stopper
                .forward_stops_while(
                    &calls,
                    unwatched.as_ref(),
                    &mut self.stops,
                    permits.acquire(),
                )
                .await?
                .ok()?;
            let run = self.place.run.clone();
            let ownership = context
                .on_disk("check the owner of a run in", move |root| {
                    Ownership::acquire(root, &run)
                })
                .await;
            match self.on_ownership(ownership) {
                Wait::Owned(unwatched) => return Some((permit, unwatched)),
                Wait::GiveUp => return None,
                Wait::Retry(container) => unwatched = container,
            }
            drop(permit);
            // While no container is known, a stop request waits in its channel.
            self.stopper
                .forward_stops_while(
                    &calls,
                    unwatched.as_ref(),
                    &mut self.stops,
                    sleep(POLL_INTERVAL),
                )
                .await?;
        }
    }

    fn on_ownership(&mut self, ownership: Result<Ownership>) -> Wait {
        match ownership {
            Ok(Ownership::Acquired(lock, file)) => {
                self.lock = Some(lock);
                self.snapshot
                    .send_modify(|snapshot| snapshot.owned_elsewhere = false);
                let file = file.filter(|file| self.verify_runtime(&file.record).is_ok());
                Wait::Owned(file.and_then(|file| Unwatched::new(file.record)))
            }
            Ok(Ownership::Foreign(file, status)) => self.on_foreign_owner(file, status),
            Ok(Ownership::BeingCreated) => Wait::Retry(None),
            Err(error) => {
                self.report_blocked(&error);
                self.mark_ownership_known();
                match self.give_up_if_permanent(&error) {
                    true => Wait::GiveUp,
                    false => Wait::Retry(None),
                }
            }
        }
    }

    /// Publishes the state of a run that another live process owns.
    fn on_foreign_owner(&mut self, file: Option<Box<RunFile>>, status: RunStatus) -> Wait {
        let mut unwatched = None;
        if let Some(file) = file {
            // The files of a run can be followed even if its runtime is another one.
            let is_reachable = self.verify_runtime(&file.record).is_ok()
                && !self.context.runtime.capabilities().process_bound;
            if let Some(seal) = &file.seal {
                self.publish_foreign_seal(&file.record, seal);
                return Wait::GiveUp;
            }
            self.publish_foreign_status(&file.record, status);
            self.publish_stop_grace(&file.record);
            if let Some(ending) = file.ending {
                self.publish(Transition::Ended(ending));
            }
            if is_reachable {
                unwatched = Unwatched::new(file.record);
            }
        }
        self.snapshot.send_modify(|snapshot| {
            snapshot.owned_elsewhere = true;
            snapshot.ownership_known = true;
        });
        Wait::Retry(unwatched)
    }

    fn publish_foreign_seal(&self, record: &RunRecord, seal: &Seal) {
        self.publish_foreign_status(record, RunStatus::Running);
        self.publish(Transition::Ended(seal.exit.clone()));
        self.snapshot.send_modify(|snapshot| {
            snapshot.seal = Some(seal.clone());
            snapshot.problem = None;
            snapshot.ownership_known = true;
        });
        self.emit(EventKind::from(seal));
    }

    fn publish_foreign_status(&self, record: &RunRecord, status: RunStatus) {
        if let Some(container) = &record.container {
            self.publish(Transition::Created(container.clone()));
        }
        if status == RunStatus::Running {
            self.publish(Transition::Started(None));
        }
    }
}

impl Stopper {
    /// Runs `work`, and meanwhile forwards stop requests to the engine.
    ///
    /// Each request is also left in the directory of the run, for its owner to record. While no
    /// container is known, requests stay in `stops`. Returns `None` if the manager closes, after
    /// the pending requests were forwarded.
    pub(super) async fn forward_stops_while<T>(
        &mut self,
        calls: &Calls,
        unwatched: Option<&Unwatched>,
        stops: &mut mpsc::UnboundedReceiver<StopRequest>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = calls.context().closing.cancelled() => break,
                () = self.proceed() => {}
                Some((request, unwatched)) = next_stop(stops, unwatched) => {
                    self.forward_stop(calls, unwatched, request).await;
                }
            }
        }
        while let Some(unwatched) = unwatched
            && let Ok(request) = stops.try_recv()
        {
            self.forward_stop(calls, unwatched, request).await;
        }
        self.proceed_until_signaled().await;
        None
    }

    async fn forward_stop(
        &mut self,
        calls: &Calls,
        Unwatched { container, record }: &Unwatched,
        request: StopRequest,
    ) {
        let context = calls.context();
        let signal = match &record.settings.stop_signal {
            Some(signal) => Some(signal.clone()),
            None => calls
                .inspect(container)
                .await
                .ok()
                .and_then(|inspection| inspection.stop_signal),
        };
        let signal = signal.unwrap_or_else(|| DEFAULT_SIGNAL.into());
        let grace = record.settings.stop_grace;
        let mut stop = self.request(calls, container, request, &signal, grace);
        stop.by_pid = Some(std::process::id());
        context.event_bus.emit(&record.run, EventKind::from(&stop));
        let run = record.run.clone();
        let written = context
            .on_disk("leave a stop request in", move |root| {
                root.leave_stop(&run, &stop)
            })
            .await;
        if let Err(error) = written {
            tracing::warn!(run = %record.run, error = %error.chain(), "cannot leave a stop request");
        }
    }
}

/// Receives the next stop request. Never resolves while no container is known.
async fn next_stop<'a>(
    stops: &mut mpsc::UnboundedReceiver<StopRequest>,
    unwatched: Option<&'a Unwatched>,
) -> Option<(StopRequest, &'a Unwatched)> {
    match unwatched {
        Some(unwatched) => Some((stops.recv().await?, unwatched)),
        None => pending().await,
    }
}

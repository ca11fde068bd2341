//! Recovery of runs whose owner has died. Recovery never starts a container.

mod audit;
mod engine;
mod foreign;
mod locate;
mod scan;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{SemaphorePermit, mpsc};
use tokio::time::sleep;
use tracing::Instrument;

use crate::audit::{Event, Stop};
use crate::error::{Error, Result};
use crate::monitor::context::Context;
use crate::monitor::entry::{Entry, GiveUpReason, Role};
use crate::monitor::policy::is_permanent;
use crate::monitor::recover::audit::{Audit, OpenAudit};
use crate::monitor::recover::foreign::Unwatched;
use crate::monitor::recover::locate::Located;
use crate::monitor::wait::Backoff;
use crate::monitor::{Monitor, exec};
use crate::root::RunFile;
use crate::spec::RunId;
use crate::state::Transition;

pub(crate) use crate::monitor::recover::engine::verify_engine_id;
pub(crate) use crate::monitor::recover::scan::{remove_orphans, scan};

/// The interval between checks of a foreign run, or of a disappearing container.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The time after which an attempt releases its recovery permit.
///
/// A log or an engine that does not answer must not delay the recovery of other runs.
const PERMIT_HOLD_LIMIT: Duration = Duration::from_secs(2);

/// The result of an attempt to recover a run.
enum Attempt {
    Sealed(Box<RunFile>),
    /// The log is open, and the container was located.
    Located(Located),
}

/// A run that this task has recovered.
enum Recovered {
    Sealed(Box<RunFile>),
    Open(Box<OpenAudit>, Located),
}

/// Returns the entry of an unsealed run.
///
/// If the run has no entry, this creates one, with a monitor that recovers the run.
pub(crate) fn take_over(context: &Arc<Context>, id: &RunId) -> Arc<Entry> {
    let mut entries = context.entries();
    if let Some(entry) = entries.get(id) {
        return Arc::clone(entry);
    }
    let (entry, monitor) = context.monitor(context.place(id), Role::default());
    entries.insert(id.clone(), Arc::clone(&entry));
    drop(entries);
    let span = monitor.span();
    context.tasks.spawn(monitor.recover().instrument(span));
    entry
}

impl Monitor {
    /// Takes over a run without a live owner, and watches it until it is sealed.
    async fn recover(mut self) {
        let context = Arc::clone(&self.context);
        let sealed = tokio::select! {
            biased;
            sealed = AssertUnwindSafe(self.recover_and_watch()).catch_unwind() => sealed,
            () = context.shutdown_grace_elapsed() => Ok(None),
        };
        let sealed = self.report_panic(sealed);
        self.release(sealed).await;
    }

    async fn recover_and_watch(&mut self) -> Option<RunFile> {
        let context = Arc::clone(&self.context);
        // A foreign owner that seals the run also removes its container.
        let (permit, unwatched) = self.wait_for_ownership(&context.recoveries).await?;
        match self.retry_take_over(permit, unwatched).await? {
            Recovered::Sealed(file) => Some(*file),
            Recovered::Open(open, located) => self.watch_recovered(*open, located).await,
        }
    }

    /// Retries until the log is open and the container is located.
    ///
    /// Returns `None` if the error is permanent, or if the manager closes.
    async fn retry_take_over(
        &mut self,
        permit: SemaphorePermit<'_>,
        unwatched: Option<Unwatched>,
    ) -> Option<Recovered> {
        let (context, calls) = (Arc::clone(&self.context), self.calls.clone());
        let unwatched = unwatched.as_ref();
        let mut permit = Some(permit);
        let mut backoff = Backoff::new();
        let mut opened = None;
        loop {
            // Stops are forwarded meanwhile: a log or an engine that does not answer must not
            // delay them.
            let mut stops = std::mem::replace(&mut self.stops, mpsc::unbounded_channel().1);
            let mut stopper = std::mem::take(&mut self.stopper);
            let attempt = self.try_with_permit(&mut opened, &mut permit);
            let attempt = stopper
                .forward_stops_while(&calls, unwatched, &mut stops, attempt)
                .await?;
            let retry = match &attempt {
                Ok(_) => false,
                Err(error) => !self.on_recovery_error(error),
            };
            if retry {
                drop(permit.take());
                let next = async {
                    backoff.pause().await;
                    context.recoveries.acquire().await.ok()
                };
                permit = stopper
                    .forward_stops_while(&calls, unwatched, &mut stops, next)
                    .await?;
            }
            (self.stops, self.stopper) = (stops, stopper);
            match attempt {
                Ok(Attempt::Sealed(file)) => return Some(Recovered::Sealed(file)),
                Ok(Attempt::Located(located)) => return Some(Recovered::Open(opened?, located)),
                Err(_) if retry => {}
                Err(_) => return None,
            }
        }
    }

    /// Tries to take the run over, and releases the permit if that takes too long.
    async fn try_with_permit(
        &mut self,
        opened: &mut Option<Box<OpenAudit>>,
        permit: &mut Option<SemaphorePermit<'_>>,
    ) -> Result<Attempt> {
        let attempt = self.try_to_take_over(opened);
        tokio::pin!(attempt);
        tokio::select! {
            biased;
            done = &mut attempt => return done,
            () = sleep(PERMIT_HOLD_LIMIT) => *permit = None,
        }
        attempt.await
    }

    /// Opens the log of the run, unless it is in `opened`, and locates the container.
    ///
    /// The log stays in `opened` for the next attempt, so that it is resumed only once. A log that
    /// failed is opened again.
    async fn try_to_take_over(&mut self, opened: &mut Option<Box<OpenAudit>>) -> Result<Attempt> {
        let run = self.place.run.clone();
        let exists = self.context.on_disk("find a run in", move |root| {
            let exists = root.has(&run).then_some(());
            exists.ok_or_else(|| root.no_such_run(&run))
        });
        exists.await?;
        if let Some(open) = opened {
            // The engine at this address may have been replaced since the last attempt.
            self.verify_run_engine(&open.file.record, open.capture.progress.started.as_ref())
                .await?;
        }
        let mut open = match opened.take() {
            Some(open) if !open.capture.needs_log() => open,
            previous => {
                // This unlocks the logs of its execs.
                drop(previous);
                match self.open_audit().await? {
                    Audit::Sealed(file) => return Ok(Attempt::Sealed(file)),
                    Audit::Open(mut open) => {
                        // The run was verified to belong to this runtime, and so were its execs.
                        let execs = exec::take_over_lost(&self.context, &self.place.run);
                        open.lost_execs = execs.await;
                        open
                    }
                }
            }
        };
        let located = self.locate(&mut open).await;
        if let Ok(located) = &located {
            let is_running = matches!(located, Located::Running(..));
            self.seal_lost_execs(&mut open, is_running).await;
        }
        *opened = Some(open);
        Ok(Attempt::Located(located?))
    }

    /// Seals the logs of execs that may have to be killed. They are killed if the container runs.
    async fn seal_lost_execs(&mut self, open: &mut OpenAudit, is_running: bool) {
        let execs = std::mem::take(&mut open.lost_execs);
        let running = open.file.record.container.as_ref().filter(|_| is_running);
        exec::seal_lost(&self.context, &self.place.run, execs, running).await;
    }

    /// Reports an error of an attempt. Returns true if the error is permanent.
    fn on_recovery_error(&self, error: &Error) -> bool {
        self.report_blocked(error);
        // An engine that does not answer may come back: whether this task can own the run is still
        // open.
        if !matches!(error, Error::Runtime(error) if !error.is_definitive()) {
            self.mark_ownership_known();
        }
        self.give_up_if_permanent(error)
    }

    /// Watches the container until it has exited, and seals the run.
    async fn watch_recovered(&mut self, mut open: OpenAudit, located: Located) -> Option<RunFile> {
        self.snapshot
            .send_modify(|snapshot| snapshot.problem = None);
        let watched = match located {
            Located::Ended(watched) => {
                self.publish(Transition::Ended(watched.ended.ending.clone()));
                *watched
            }
            Located::Running(source, started_at) => {
                let requested = self.requested_stops().await;
                self.publish(Transition::Started(started_at));
                self.mark_ownership_known();
                if let Some(concurrency) = &self.context.concurrency {
                    self.permit = Arc::clone(concurrency).try_acquire_owned().ok();
                }
                self.resume_stops(&open, &requested);
                let (file, capture) = (&mut open.file, &mut open.capture);
                self.watch(file, capture, source, started_at, None).await?
            }
        };
        self.finish(open.file, open.capture, watched).await
    }

    /// Resumes the stops that the dead owner recorded, and those that other processes requested.
    ///
    /// A process that requests a stop may die before it sends SIGKILL.
    fn resume_stops(&mut self, open: &OpenAudit, requested: &[Stop]) {
        let Some(container) = &open.file.record.container else {
            return;
        };
        for stop in open.capture.progress.stops.iter().chain(requested) {
            self.stopper.resume(&self.calls, container, stop);
        }
    }

    /// Reads the stops that other processes requested.
    async fn requested_stops(&mut self) -> Vec<Stop> {
        let run = self.place.run.clone();
        let requests = self
            .context
            .on_disk("read the requests in", move |root| {
                Ok(root.pending_requests(&run))
            })
            .await;
        let requests = requests.unwrap_or_else(|error| {
            self.report_blocked(&error);
            Vec::new()
        });
        let requests = requests.into_iter();
        requests
            .filter_map(|(_, record)| match record {
                Event::Stop(stop) => Some(stop),
                _ => None,
            })
            .collect()
    }

    /// Records that the owner of the run is known, or that the run cannot be recovered.
    fn mark_ownership_known(&self) {
        self.snapshot
            .send_modify(|snapshot| snapshot.ownership_known = true);
    }

    /// Gives the run up if no retry can succeed. Returns true if it did.
    fn give_up_if_permanent(&self, error: &Error) -> bool {
        let given_up = match error {
            Error::NoSuchRun { .. } => GiveUpReason::Removed,
            Error::OtherRuntime { .. } => GiveUpReason::OtherRuntime,
            Error::OtherEngine { engine, here, .. } => {
                let engines = Some((engine.clone(), here.clone()));
                self.snapshot
                    .send_modify(|snapshot| snapshot.other_engine = engines);
                GiveUpReason::OtherEngine
            }
            error if is_permanent(error) => GiveUpReason::Damaged,
            _ => return false,
        };
        self.snapshot
            .send_modify(|snapshot| snapshot.give_up_reason = Some(given_up));
        true
    }
}

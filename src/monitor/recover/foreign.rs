//! Runs that no task of this manager watches: another process owns them, or their log is not open.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::sleep;

use crate::error::Error;
use crate::events::EventKind;
use crate::monitor::Monitor;
use crate::monitor::context::Context;
use crate::monitor::entry::StopRequest;
use crate::monitor::stop::Stopper;
use crate::root::{Lock, RunFile};
use crate::spec::{ContainerId, RunRecord};
use crate::state::{RunStatus, Transition};

/// How often the files of a run that another process owns are looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// Whose a run is.
enum Ownership {
    Ours(Lock, Option<Box<RunFile>>),
    Theirs(Box<Option<RunFile>>, RunStatus),
    /// Perhaps of one who makes it at this moment.
    Unmade,
}

/// A container that is there, as the run's record says, and that no task here watches.
pub(crate) struct Unwatched {
    container: ContainerId,
    record: RunRecord,
}

impl Unwatched {
    fn of(record: RunRecord) -> Option<Self> {
        let container = record.container.clone()?;
        Some(Self { container, record })
    }
}

impl Monitor {
    /// Waits until this task owns the run, with one of the permits to take it over. `None`:
    /// another one has sealed it, or it is gone, or the manager closes.
    ///
    /// Meanwhile a stop goes to the engine, and is left for the owner to record. It goes on when
    /// this task has become the owner.
    pub(crate) async fn wait_for_ownership<'a>(
        &mut self,
        permits: &'a Semaphore,
    ) -> Option<(SemaphorePermit<'a>, Option<Unwatched>)> {
        let context = Arc::clone(&self.context);
        let mut unwatched = None;
        loop {
            let run = self.place.run.clone();
            // Where the manager closes, it is left by way of that alone: a stop is sent first.
            let permit = self
                .stopper
                .meanwhile(
                    &context,
                    unwatched.as_ref(),
                    &mut self.stops,
                    permits.acquire(),
                )
                .await?
                .ok()?;
            let looked = context
                .on_disk("look at", move |root| {
                    if !root.has(&run) {
                        return Err(root.no_such_run(&run));
                    }
                    if root.is_being_made(&run) {
                        return Ok(Ownership::Unmade);
                    }
                    match root.lock(&run) {
                        Ok(lock) => {
                            let file = root.read_run(&run).ok().flatten();
                            return Ok(Ownership::Ours(lock, file.map(Box::new)));
                        }
                        Err(Error::Owned { .. }) => {}
                        Err(error) => return Err(error),
                    }
                    let info = root.info(&run)?;
                    Ok(Ownership::Theirs(
                        Box::new(root.read_run(&run)?),
                        info.status,
                    ))
                })
                .await;
            let (mut record, mut in_reach) = (None, false);
            match looked {
                Ok(Ownership::Ours(lock, file)) => {
                    self.lock = Some(lock);
                    self.snapshot
                        .send_modify(|snapshot| snapshot.elsewhere = false);
                    let ours = file.filter(|file| self.is_ours(&file.record).is_ok());
                    return Some((permit, ours.and_then(|file| Unwatched::of(file.record))));
                }
                Ok(Ownership::Theirs(file, status)) => {
                    if let Some(file) = *file {
                        // Its owner's files can be followed all the same.
                        let ours = self.is_ours(&file.record).is_ok();
                        in_reach = ours && !context.runtime.capabilities().process_bound;
                        if let Some(seal) = &file.seal {
                            self.publish_foreign(&file.record, RunStatus::Running);
                            self.publish(Transition::Ended(seal.exit.clone()));
                            self.snapshot.send_modify(|snapshot| {
                                snapshot.seal = file.seal.clone();
                                snapshot.problem = None;
                                snapshot.ownership_known = true;
                            });
                            self.emit(EventKind::from(seal));
                            return None;
                        }
                        self.publish_foreign(&file.record, status);
                        if let Some(ending) = file.ending {
                            self.publish(Transition::Ended(ending));
                        }
                        record = Some(file.record);
                    }
                    self.snapshot.send_modify(|snapshot| {
                        snapshot.elsewhere = true;
                        snapshot.ownership_known = true;
                    });
                }
                Ok(Ownership::Unmade) => {}
                Err(error) => {
                    self.report_blocked(&error);
                    self.mark_ownership_known();
                    if self.give_up_if_permanent(&error) {
                        return None;
                    }
                }
            }
            drop(permit);
            // A request stays where it is until there is a container to stop, or the run is ours; and
            // where this runtime cannot reach it, whoever asks is told so.
            unwatched = record.filter(|_| in_reach).and_then(Unwatched::of);
            self.stopper
                .meanwhile(&context, unwatched.as_ref(), &mut self.stops, sleep(LOOK))
                .await?;
        }
    }

    fn publish_foreign(&self, record: &RunRecord, status: RunStatus) {
        if let Some(container) = &record.container {
            self.publish(Transition::Created(container.clone()));
        }
        if status == RunStatus::Running {
            self.publish(Transition::Started(None));
        }
    }
}

impl Stopper {
    /// Does `work`. Meanwhile stops go to the engine, and are left in the run's folder, for whoever
    /// writes its audit to record; while no container is known, they stay where they are. `None`:
    /// the manager closes, and what was asked for before is done.
    pub(crate) async fn meanwhile<T>(
        &mut self,
        context: &Context,
        unwatched: Option<&Unwatched>,
        stops: &mut mpsc::UnboundedReceiver<StopRequest>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = context.closing.cancelled() => {
                    while let Some(unwatched) = unwatched
                        && let Ok(request) = stops.try_recv()
                    {
                        self.stop_unwatched(context, unwatched, request).await;
                    }
                    self.proceed_until_signaled().await;
                    return None;
                }
                () = self.proceed() => {}
                Some((request, unwatched)) = async {
                    match unwatched {
                        Some(unwatched) => Some((stops.recv().await?, unwatched)),
                        None => pending().await,
                    }
                } => {
                    self.stop_unwatched(context, unwatched, request).await;
                }
            }
        }
    }

    async fn stop_unwatched(
        &mut self,
        context: &Context,
        Unwatched { container, record }: &Unwatched,
        request: StopRequest,
    ) {
        let runtime = &context.runtime;
        let signal = match &record.settings.stop_signal {
            Some(signal) => Some(signal.clone()),
            None => runtime
                .inspect(container)
                .await
                .ok()
                .and_then(|inspection| inspection.stop_signal),
        };
        let signal = signal.unwrap_or_else(|| "SIGTERM".into());
        let grace = record.settings.stop_grace;
        let mut stop = self.request(runtime, container, request, &signal, grace);
        stop.by_pid = Some(std::process::id());
        context.event_bus.emit(&record.run, EventKind::from(&stop));
        let run = record.run.clone();
        let left = context
            .on_disk("leave a request in", move |root| {
                root.leave_stop(&run, &stop)
            })
            .await;
        if let Err(error) = left {
            tracing::warn!(run = %record.run, error = %error.chain(), "no request was left");
        }
    }
}

//! Taking over runs whose owner has gone. Recovery starts nothing.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::sleep;

use super::Context;
use super::exit::{self, Backoff, Ended, another};
use super::finish::{may_remove, read, reading};
use super::monitor::{Monitor, Watched};
use super::root::RunFile;
use super::run::{Entry, StopRequest};
use super::sources::Source;
use super::stop::Stopper;
use crate::capture::Capture;
use crate::runtime::{Found, Inspection, Status as Phase};
use crate::sink::{Event as Record, Resume, ResumeCause, Resumed};
use crate::state::Event;
use crate::{Backstop, ContainerId, Ending, Error, Result, RunId, RunRecord, Settings, Timestamp};

/// How often the files of a run that another process owns are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Takes over every run that is not sealed, and sweeps up containers that sealed runs left.
pub(super) async fn scan(context: Arc<Context>) {
    let closing = context.closing.clone();
    tokio::select! {
        () = scan_all(&context) => {}
        () = closing.cancelled() => {}
    }
}

async fn scan_all(context: &Arc<Context>) {
    let listed = context
        .on_disk("list", |root| {
            root.sweep();
            let mut unsealed = Vec::new();
            for run in root.runs()? {
                // What cannot be read is for its monitor to say.
                if !matches!(root.read_run(&run), Ok(Some(file)) if file.seal.is_some()) {
                    unsealed.push(run);
                }
            }
            Ok(unsealed)
        })
        .await;
    let unsealed = listed.unwrap_or_else(|error| {
        tracing::error!(error = %error.chain(), "cannot list the runs to recover");
        Vec::new()
    });
    let entries = unsealed.iter().map(|run| take_over(context, run)).collect();
    context.scanned.send_replace(Some(entries));

    let mut backoff = Backoff::new();
    let found = loop {
        match context.runtime.find(context.root.id()).await {
            Ok(found) => break found,
            Err(error) if error.is_fact() => return,
            Err(error) => tracing::warn!(%error, "cannot look for containers that were left yet"),
        }
        backoff.pause().await;
    };
    for found in found {
        sweep(context, found).await;
    }
}

/// Removes a container that nobody owns any more: of a run that is sealed, by policy; and one
/// that was never started, of a run that is not there.
async fn sweep(context: &Arc<Context>, found: Found) {
    if context.entries().contains_key(&found.run) {
        return;
    }
    let run = found.run.clone();
    let known = context
        .on_disk("read", move |root| {
            if !root.folder(&run).is_dir() {
                return Ok(Some(None));
            }
            let _lock = root.lock(&run)?;
            Ok(root
                .read_run(&run)?
                .filter(|file| file.seal.is_some())
                .map(Some))
        })
        .await;
    let remove = match known {
        Ok(Some(None)) => found.status == Phase::Created,
        Ok(Some(Some(RunFile {
            record,
            seal: Some(seal),
            ..
        }))) => found.status == Phase::Created || may_remove(&seal, record.settings.keep),
        _ => false,
    };
    if remove {
        // Without force: what runs is not ours to end.
        let removed = context.runtime.remove(&found.container, false).await;
        tracing::info!(run = %found.run, container = %found.container, ?removed, "swept");
    }
}

/// The entry of a run that is not sealed; made, with a monitor that takes the run over, where
/// there is none.
pub(super) fn take_over(context: &Arc<Context>, id: &RunId) -> Arc<Entry> {
    let mut entries = context.entries();
    if let Some(entry) = entries.get(id) {
        return Arc::clone(entry);
    }
    let (entry, monitor) = context.monitor(context.place(id));
    entries.insert(id.clone(), Arc::clone(&entry));
    drop(entries);
    context.tasks.spawn(monitor.recover());
    entry
}

impl Monitor {
    /// Takes a run over, once no live process owns it, and sees it to its end.
    async fn recover(mut self) {
        let closing = self.context.closing.clone();
        let sealed = tokio::select! {
            biased;
            sealed = AssertUnwindSafe(self.take_over_and_watch()).catch_unwind() => sealed,
            () = closing.cancelled() => Ok(None),
        };
        let sealed = self.unless_it_panicked(sealed);
        self.leave(sealed).await;
    }

    async fn take_over_and_watch(&mut self) -> Option<RunFile> {
        let context = Arc::clone(&self.context);
        // Where its owner has sealed it, that removes what is to be removed.
        let permit = self.wait_for_ownership(&context.recoveries).await?;
        let mut backoff = Backoff::new();
        let (mut file, mut capture, taken) = loop {
            match self.take_over().await {
                Ok(TakenOver::Sealed(file)) => return Some(*file),
                Ok(TakenOver::Open(open)) => break *open,
                Err(error @ (Error::Damaged { .. } | Error::InvalidSpec { .. })) => {
                    self.stands_in_the_way(&error);
                    self.settle();
                    return None;
                }
                Err(error) => self.stands_in_the_way(&error),
            }
            backoff.pause().await;
        };
        drop(permit);
        self.status.send_modify(|status| status.problem = None);
        let watched = match taken {
            Taken::Ended(watched) => {
                self.publish(Event::Ended(watched.ended.ending.clone()));
                *watched
            }
            Taken::Running(source, started_at) => {
                self.publish(Event::Started(started_at));
                self.settle();
                self.watch(&mut file, &mut capture, source, started_at)
                    .await
            }
        };
        Some(self.finish(file, capture, watched).await)
    }

    fn settle(&self) {
        self.status.send_modify(|status| status.settled = true);
    }

    /// Waits until this task owns the run, with one of the permits to take it over. `None`:
    /// another one has sealed it, or it is gone.
    ///
    /// Meanwhile a stop goes to the engine, and is left for the owner to record.
    async fn wait_for_ownership<'a>(
        &mut self,
        permits: &'a Semaphore,
    ) -> Option<SemaphorePermit<'a>> {
        let context = Arc::clone(&self.context);
        let mut stopper = Stopper::default();
        loop {
            let run = self.place.run.clone();
            let permit = permits.acquire().await.ok()?;
            let looked = context
                .on_disk("look at", move |root| {
                    if !root.folder(&run).is_dir() {
                        return Err(root.no_such_run(&run));
                    }
                    match root.lock(&run) {
                        Ok(lock) => return Ok(Look::Ours(lock)),
                        Err(Error::Owned { .. }) => {}
                        Err(error) => return Err(error),
                    }
                    let info = root.info(&run)?;
                    Ok(Look::Theirs(Box::new(root.read_run(&run)?), info.state))
                })
                .await;
            let mut record = None;
            match looked {
                Ok(Look::Ours(lock)) => {
                    self.lock = Some(lock);
                    self.status.send_modify(|status| status.elsewhere = false);
                    return Some(permit);
                }
                Ok(Look::Theirs(file, state)) => {
                    if let Some(file) = *file {
                        if let Some(seal) = &file.seal {
                            self.publish_foreign(&file.record, "running");
                            self.publish(Event::Ended(seal.exit.clone()));
                            self.status.send_modify(|status| {
                                status.seal = file.seal.clone();
                                status.problem = None;
                                status.settled = true;
                            });
                            return None;
                        }
                        self.publish_foreign(&file.record, state);
                        if let Some(ending) = file.ending {
                            self.publish(Event::Ended(ending));
                        }
                        record = Some(file.record);
                    }
                    self.status.send_modify(|status| {
                        status.elsewhere = true;
                        status.settled = true;
                    });
                }
                Err(error @ Error::NoSuchRun { .. }) => {
                    self.stands_in_the_way(&error);
                    self.settle();
                    return None;
                }
                Err(error) => self.stands_in_the_way(&error),
            }
            drop(permit);
            let look_again = sleep(LOOK);
            tokio::pin!(look_again);
            loop {
                tokio::select! {
                    () = &mut look_again => break,
                    () = stopper.proceed() => {}
                    Some(request) = self.stops.recv() => {
                        self.stop_foreign(&mut stopper, record.as_ref(), request).await;
                    }
                }
            }
        }
    }

    fn publish_foreign(&self, record: &RunRecord, state: &str) {
        if let Some(container) = &record.container {
            self.publish(Event::Created(container.clone()));
        }
        if state == "running" {
            self.publish(Event::Started(None));
        }
    }

    async fn stop_foreign(
        &mut self,
        stopper: &mut Stopper,
        record: Option<&RunRecord>,
        request: StopRequest,
    ) {
        let Some((record, container)) =
            record.and_then(|record| Some((record, record.container.clone()?)))
        else {
            tracing::warn!(run = %self.place.run, "it has no container to stop yet");
            return;
        };
        let runtime = &self.context.runtime;
        let signal = match &record.settings.stop_signal {
            Some(signal) => Some(signal.clone()),
            None => runtime
                .inspect(&container)
                .await
                .ok()
                .and_then(|inspection| inspection.stop_signal),
        };
        let signal = signal.unwrap_or_else(|| "SIGTERM".into());
        let grace = record.settings.stop_grace;
        let mut stop = stopper.request(runtime, &container, request, &signal, grace);
        stop.by_pid = Some(std::process::id());
        let run = self.place.run.clone();
        let left = self
            .context
            .on_disk("leave a request in", move |root| {
                root.leave_stop(&run, &stop)
            })
            .await;
        if let Err(error) = left {
            tracing::warn!(run = %self.place.run, error = %error.chain(), "no request was left");
        }
    }

    /// Reads what there is of the run, opens its log, and finds out where its container is.
    async fn take_over(&mut self) -> Result<TakenOver> {
        let context = Arc::clone(&self.context);
        let run = self.place.run.clone();
        let file = context
            .on_disk("read", move |root| root.read_run(&run))
            .await;
        let (progress, visit) = reading();
        let resumed = context.sink.resume(&self.place, visit).await?;
        let progress = read(&progress);
        let mut file = match (file, progress.record.clone()) {
            (Ok(Some(file)), _) => file,
            // The audit has what `run.json` had when the run began.
            (_, Some(record)) => RunFile {
                v: 1,
                record,
                ending: None,
                seal: None,
            },
            (Ok(None), None) => self.unknown(),
            (Err(error), None) => return Err(error),
        };
        if let Some(started) = &progress.started {
            file.record
                .container
                .get_or_insert(started.container.clone());
        }
        let mut capture = match resumed {
            Resumed::Sealed(seal) => {
                if file.record.container.is_none() {
                    file.record.container = seal.container.clone();
                }
                self.publish(Event::Ended(seal.exit.clone()));
                file.seal = Some(seal);
                self.close(&file, progress.last_lines()).await;
                return Ok(TakenOver::Sealed(Box::new(file)));
            }
            Resumed::Open { log, torn } => {
                let mut capture = self.capture(&file, progress, log);
                let resume = Resume::new(ResumeCause::Reopened, torn);
                capture.write(vec![Record::Resume(resume)]).await?;
                capture
            }
            Resumed::Absent => {
                let (progress, log) = self.open_log(&file.record).await?;
                self.capture(&file, progress, log)
            }
        };
        let found = self.find_out(&mut file, &mut capture).await?;
        // What was written down of the end holds, whatever became of the container since.
        let taken = match (&file.ending, found) {
            (Some(ending), Taken::Ended(mut watched)) => {
                watched.ended.ending = ending.clone();
                Taken::Ended(watched)
            }
            (_, found) => found,
        };
        self.write_down(&mut file, &mut capture).await?;
        Ok(TakenOver::Open(Box::new((file, capture, taken))))
    }

    /// Writes `run.json` again where it has less than is known now.
    async fn write_down(&mut self, file: &mut RunFile, capture: &mut Capture) -> Result<()> {
        let started = capture.progress.started.as_ref();
        if let (None, Some(limit)) = (file.record.deadline, file.record.settings.time_limit) {
            let from = started.and_then(|started| started.started_at);
            let from = from.unwrap_or(file.record.created);
            file.record.deadline = Some(from.saturating_add(limit));
        }
        let known = file.clone();
        self.context
            .on_disk("record what is known in", move |root| {
                let run = &known.record.run;
                match root.read_run(run) {
                    Ok(Some(file)) if file == known => Ok(()),
                    _ => root.write_run(&known),
                }
            })
            .await
    }

    /// The record of a run whose process died before it was written.
    fn unknown(&self) -> RunFile {
        RunFile {
            v: 1,
            record: RunRecord {
                run: self.place.run.clone(),
                root: self.context.root.id().clone(),
                created: Timestamp::now(),
                runtime: self.context.runtime.name().to_owned(),
                settings: Settings::default(),
                env: Vec::new(),
                patched: false,
                container: None,
                deadline: None,
            },
            ending: None,
            seal: None,
        }
    }

    /// Where the container is: only facts decide.
    async fn find_out(&mut self, file: &mut RunFile, capture: &mut Capture) -> Result<Taken> {
        let runtime = Arc::clone(&self.context.runtime);
        let started_at = capture
            .progress
            .started
            .as_ref()
            .and_then(|started| started.started_at);
        if file.record.container.is_none() {
            let found = runtime.find(self.context.root.id()).await?;
            let mine = found.into_iter().find(|found| found.run == self.place.run);
            let Some(found) = mine else {
                return Ok(Taken::ended(Ending::NotCreated {
                    reason: "the process that started the run ended before its container was made"
                        .into(),
                    aborted: true,
                }));
            };
            file.record.container = Some(found.container);
        }
        let Some(container) = file.record.container.clone() else {
            return Ok(Taken::ended(Ending::Lost {
                reason: "its container is not known".into(),
            }));
        };
        self.publish(Event::Created(container.clone()));
        loop {
            let inspection = match runtime.inspect(&container).await {
                Ok(inspection) => inspection,
                Err(error) if error.is_not_found() => {
                    return Ok(Taken::ended(Ending::Removed { code: None }));
                }
                Err(error) => return Err(error.into()),
            };
            if another(started_at, &inspection) {
                return Ok(Taken::after_the_fact(Ended {
                    ending: Ending::Lost {
                        reason: "its container was started again by others".into(),
                    },
                    interrupted: true,
                    started_again: true,
                    inspection: Some(inspection),
                }));
            }
            match inspection.status {
                Phase::Created => match runtime.remove(&container, false).await {
                    // It did not run, and never will.
                    Ok(()) => {
                        return Ok(Taken::ended(Ending::FailedToStart {
                            reason: "the process that started the run ended before its container \
                                     was started"
                                .into(),
                        }));
                    }
                    Err(crate::RuntimeError::Conflict { .. }) => sleep(LOOK).await,
                    Err(error) if error.is_not_found() => sleep(LOOK).await,
                    Err(error) => return Err(error.into()),
                },
                Phase::Removing => sleep(LOOK).await,
                Phase::Running => {
                    let now = inspection.started_at;
                    self.record_started(capture, &container, inspection).await?;
                    let source = match file.record.settings.backstop {
                        Backstop::Engine => Source::Follow,
                        Backstop::None => Source::None,
                    };
                    return Ok(Taken::Running(source, started_at.or(now)));
                }
                Phase::Ended => {
                    let exit = exit::exit(&inspection, None);
                    self.record_started(capture, &container, inspection.clone())
                        .await?;
                    return Ok(Taken::after_the_fact(Ended {
                        ending: Ending::Exited(exit),
                        interrupted: true,
                        started_again: false,
                        inspection: Some(inspection),
                    }));
                }
            }
        }
    }

    /// Writes the `started` record that the process which died did not come to.
    async fn record_started(
        &mut self,
        capture: &mut Capture,
        container: &ContainerId,
        inspection: Inspection,
    ) -> Result<()> {
        self.image_signal = inspection.stop_signal.clone();
        if capture.progress.started.is_some() {
            return Ok(());
        }
        let started = self.started(container, Some(inspection), Vec::new()).await;
        capture
            .write(vec![Record::Started(Box::new(started))])
            .await
    }
}

/// Whose a run is.
enum Look {
    Ours(std::fs::File),
    Theirs(Box<Option<RunFile>>, &'static str),
}

/// A run that was taken over.
enum TakenOver {
    Sealed(Box<RunFile>),
    Open(Box<(RunFile, Capture, Taken)>),
}

/// Where its container was found.
enum Taken {
    Running(Source, Option<Timestamp>),
    Ended(Box<Watched>),
}

impl Taken {
    fn ended(ending: Ending) -> Self {
        Self::Ended(Box::new(Watched::never(ending)))
    }

    /// It ended while nobody watched.
    fn after_the_fact(ended: Ended) -> Self {
        Self::Ended(Box::new(Watched::untapped(ended)))
    }
}

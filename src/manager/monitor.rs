//! The one task per run: the only waiter on its container, the only writer of its state.

use std::any::Any;
use std::fs::File;
use std::future::pending;
use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::exit::{self, Backoff, Ended};
use super::root::RunFile;
use super::run::{Status, StopRequest};
use super::sources::{Pumped, Source, pump};
use super::stop::Stopper;
use crate::capture::{Capture, Hub, Progress, Signals, until};
use crate::runtime::{CreateRequest, Created, Inspection, RuntimeError, Status as Phase};
use crate::sink::{Event as Record, RecordRef, RunLog, RunPlace, Start, Started, Stop};
use crate::spec::Secrets;
use crate::state::Event;
use crate::{
    ContainerId, Ending, Error, LimitAction, Result, RunRecord, RunSpec, StopCause, Timestamp,
};

/// How long the start of a run waits for what the engine knows of it.
const INSPECT: Duration = Duration::from_secs(5);

/// Why a run did not come to run.
#[derive(Debug)]
pub(super) enum NoStart {
    /// Nothing was made, or nothing is left.
    Nothing(Error),
    /// Its audit file says why.
    Sealed(RuntimeError),
}

type Reply = oneshot::Sender<Result<(), NoStart>>;

/// The task of one run.
pub(super) struct Monitor {
    pub(super) context: Arc<Context>,
    pub(super) place: RunPlace,
    pub(super) status: watch::Sender<Status>,
    pub(super) stops: mpsc::UnboundedReceiver<StopRequest>,
    pub(super) hub: Arc<Hub>,
    /// When the engine was asked to start the container, and when it had answered.
    pub(super) launched: Option<Launch>,
    /// Held while this task owns the run.
    pub(super) lock: Option<File>,
    pub(super) stopper: Stopper,
    /// What must be taken out of what the engine says.
    pub(super) secrets: Secrets,
    /// What asks the container to stop, where the spec does not say.
    pub(super) image_signal: Option<String>,
}

/// When a container was started, by the clocks of this machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    pub(super) at: Instant,
    pub(super) asked: Timestamp,
    pub(super) answered: Timestamp,
}

/// What was seen of a run up to its end.
pub(super) struct Watched {
    pub(super) ended: Ended,
    pub(super) at: Instant,
    /// When the tap ended; `None`: there was none.
    pub(super) tap_ended: Option<Instant>,
    /// Whether that was a clean end.
    pub(super) eof: bool,
    /// Records that were not written yet.
    pub(super) left: Vec<Record>,
}

impl Monitor {
    pub(super) fn new(
        context: Arc<Context>,
        place: RunPlace,
        status: watch::Sender<Status>,
        stops: mpsc::UnboundedReceiver<StopRequest>,
        hub: Arc<Hub>,
    ) -> Self {
        Self {
            context,
            place,
            status,
            stops,
            hub,
            launched: None,
            lock: None,
            stopper: Stopper::default(),
            secrets: Secrets::default(),
            image_signal: None,
        }
    }

    /// Starts a new run and sees it to its end.
    pub(super) async fn run_new(mut self, spec: RunSpec, reply: Reply) {
        let closing = self.context.closing.clone();
        let file = tokio::select! {
            biased;
            file = AssertUnwindSafe(self.start_and_watch(spec, reply)).catch_unwind() => file,
            () = closing.cancelled() => Ok(None),
        };
        let file = self.unless_it_panicked(file);
        self.leave(file).await;
    }

    /// A sink or a runtime of the caller's own can panic. The run is then as if its owner had
    /// died: whoever asks for it next takes it over.
    pub(super) fn unless_it_panicked<T>(
        &self,
        result: Result<Option<T>, Box<dyn Any + Send>>,
    ) -> Option<T> {
        result.unwrap_or_else(|_| {
            tracing::error!(run = %self.place.run, "its monitor panicked");
            None
        })
    }

    /// Gives the run up: sealed, in which case its container is removed by policy, or not.
    pub(super) async fn leave(mut self, sealed: Option<RunFile>) {
        self.hub.close();
        if let Some(file) = sealed {
            self.remove_by_policy(&file).await;
        }
        self.lock = None;
        self.context.entries().remove(&self.place.run);
    }

    /// Tells everyone of a change.
    pub(super) fn publish(&self, event: Event) {
        self.status.send_modify(|status| {
            let state = std::mem::replace(&mut status.state, crate::State::Intended);
            status.state = state.after(event);
        });
    }

    async fn start_and_watch(&mut self, spec: RunSpec, reply: Reply) -> Option<RunFile> {
        self.secrets = spec.secrets();
        let (mut file, mut capture) = match self.begin(&spec).await {
            Ok(begun) => begun,
            Err(error) => {
                let _ = reply.send(Err(NoStart::Nothing(error)));
                return None;
            }
        };
        match self.launch(&spec, &mut file, &mut capture).await {
            Ok((source, started_at)) => {
                let _ = reply.send(Ok(()));
                drop(spec);
                let watched = self
                    .watch(&mut file, &mut capture, source, started_at)
                    .await;
                Some(self.finish(file, capture, watched).await)
            }
            Err((ending, error)) => {
                let error = error.map_reason(|reason| self.secrets.redact(reason));
                let ending = ending.redacted(|reason| self.secrets.redact(reason));
                self.publish(Event::Ended(ending.clone()));
                let _ = reply.send(Err(NoStart::Sealed(error)));
                Some(self.finish(file, capture, Watched::never(ending)).await)
            }
        }
    }

    /// Makes all that must be there before the engine is asked for anything (invariant 1).
    async fn begin(&mut self, spec: &RunSpec) -> Result<(RunFile, Capture)> {
        let context = Arc::clone(&self.context);
        let record = RunRecord::new(
            self.place.run.clone(),
            context.root.id().clone(),
            context.runtime.name(),
            spec,
        );
        let file = RunFile {
            v: 1,
            record,
            ending: None,
            seal: None,
        };
        let (place, intent) = (self.place.clone(), file.clone());
        let lock = context
            .on_disk("create a run in", move |root| {
                match crate::disk::create_folder(&place.folder) {
                    Err(error) if error.io_kind() == Some(ErrorKind::AlreadyExists) => {
                        return Err(Error::RunExists {
                            run: place.run,
                            path: place.folder,
                        });
                    }
                    other => other?,
                }
                let locked = root.lock(&place.run).and_then(|lock| {
                    root.write_run(&intent)?;
                    Ok(lock)
                });
                locked.inspect_err(|_| {
                    let _ = std::fs::remove_dir_all(&place.folder);
                })
            })
            .await?;
        self.lock = Some(lock);
        let (progress, log) = match self.open_log(&file.record).await {
            Ok(opened) => opened,
            Err(error) => {
                // Nothing was asked of the engine: there was no run.
                let folder = self.place.folder.clone();
                let _ = context
                    .on_disk("remove", move |_| {
                        std::fs::remove_dir_all(&folder)
                            .map_err(|error| Error::storage("remove", folder, error))
                    })
                    .await;
                return Err(error);
            }
        };
        let capture = self.capture(&file, progress, log);
        Ok((file, capture))
    }

    /// Makes the run's log, with its first record, and says how far it has come.
    pub(super) async fn open_log(
        &mut self,
        record: &RunRecord,
    ) -> Result<(Progress, Box<dyn RunLog>)> {
        let start = Start::new(record.clone());
        let log = self.context.sink.open(&self.place, &start).await?;
        let mut progress = Progress::default();
        progress.observe(RecordRef::Event(&Record::Start(Box::new(start))));
        Ok((progress, log))
    }

    /// The capture of the run, which goes on after `progress`.
    pub(super) fn capture(
        &self,
        file: &RunFile,
        progress: Progress,
        log: Box<dyn RunLog>,
    ) -> Capture {
        let limit = file.record.settings.output_limit.map(|limit| limit.bytes);
        Capture::new(progress, Arc::clone(&self.hub), log, limit)
    }

    /// From the image to a container that runs, and is tapped.
    async fn launch(
        &mut self,
        spec: &RunSpec,
        file: &mut RunFile,
        capture: &mut Capture,
    ) -> Result<(Source, Option<Timestamp>), (Ending, RuntimeError)> {
        let context = Arc::clone(&self.context);
        let runtime = &*context.runtime;
        let not_created = |error: RuntimeError| (Ending::not_created(&error), error);

        tokio::select! {
            prepared = runtime.prepare(spec) => prepared.map_err(not_created)?,
            error = self.stopped_early(capture) => return Err(not_created(error)),
        }
        let name = file.record.container_name();
        let request = CreateRequest::new(&name, &file.record.root, &self.place.run, spec);
        let Created {
            container,
            warnings,
        } = match runtime.create(request).await {
            Ok(created) => created,
            Err(error) => {
                if !error.is_fact() {
                    self.remove_late_create().await;
                }
                return Err(not_created(error));
            }
        };
        self.publish(Event::Created(container.clone()));
        file.record.container = Some(container.clone());
        let limit = file.record.settings.time_limit;
        file.record.deadline = limit.map(|limit| Timestamp::now().saturating_add(limit));
        let intent = file.clone();
        let recorded = context.on_disk("record the run in", move |root| root.write_run(&intent));
        if let Err(error) = recorded.await {
            let error = RuntimeError::Rejected {
                operation: "start the container",
                reason: format!("its id could not be recorded: {}", error.chain()),
            };
            return Err(self.abandon(&container, error).await);
        }

        let tty = file.record.settings.tty;
        let source = if runtime.capabilities().tap {
            match runtime.tap(&container, tty).await {
                Ok(stream) => Source::Tap(stream),
                Err(error) => return Err(self.abandon(&container, error).await),
            }
        } else {
            Source::Follow
        };
        if let Ok(request) = self.stops.try_recv() {
            let error = self.record_early_stop(request, capture).await;
            return Err(self.abandon(&container, error).await);
        }
        let asked = (Instant::now(), Timestamp::now());
        if let Err(error) = runtime.start(&container).await {
            self.did_it_start(&container, error).await?;
        }
        self.launched = Some(Launch {
            at: asked.0,
            asked: asked.1,
            answered: Timestamp::now(),
        });
        let inspection = timeout(INSPECT, runtime.inspect(&container)).await;
        let inspection = match inspection {
            Ok(Ok(inspection)) => Some(inspection),
            // The monitor finds out, in its own time.
            Ok(Err(error)) => {
                tracing::warn!(%container, %error, "cannot inspect the container");
                None
            }
            Err(_) => None,
        };
        let started = self.started(&container, inspection, warnings).await;
        let started_at = started.started_at;
        // A log that cannot take it is resumed after the exit.
        if let Err(error) = capture
            .write(vec![Record::Started(Box::new(started))])
            .await
        {
            self.stands_in_the_way(&error);
        }
        self.publish(Event::Started(started_at));
        Ok((source, started_at))
    }

    /// The `started` record.
    pub(super) async fn started(
        &mut self,
        container: &ContainerId,
        inspection: Option<Inspection>,
        warnings: Vec<String>,
    ) -> Started {
        let engine = self.context.engine().await;
        let mut started = Started {
            ts: Timestamp::now(),
            container: container.clone(),
            started_at: None,
            image_digest: None,
            log: Default::default(),
            engine: engine.name,
            engine_version: engine.version,
            warnings: warnings
                .iter()
                .map(|text| self.secrets.redact(text))
                .collect(),
        };
        if let Some(inspection) = inspection {
            started.started_at = inspection.started_at;
            started.image_digest = inspection.image_digest;
            started.log = inspection.log;
            self.image_signal = inspection.stop_signal;
        }
        started
    }

    /// Resolves when a stop is asked for before there is a container.
    async fn stopped_early(&mut self, capture: &mut Capture) -> RuntimeError {
        match self.stops.recv().await {
            Some(request) => self.record_early_stop(request, capture).await,
            None => pending().await,
        }
    }

    async fn record_early_stop(
        &mut self,
        request: StopRequest,
        capture: &mut Capture,
    ) -> RuntimeError {
        self.stopper.cause.get_or_insert(request.cause);
        let stop = Record::Stop(Stop::new(request.cause, "none", None));
        if let Err(error) = capture.write(vec![stop]).await {
            self.stands_in_the_way(&error);
        }
        RuntimeError::Rejected {
            operation: "start the container",
            reason: "the run was stopped before that".into(),
        }
    }

    /// Removes the container of a create that was not answered, if it is there. One that comes
    /// even later is an orphan that never starts; the next opening of the root removes it.
    async fn remove_late_create(&mut self) {
        let runtime = &self.context.runtime;
        match runtime.find(self.context.root.id()).await {
            Ok(found) => {
                for found in found.iter().filter(|found| found.run == self.place.run) {
                    let removed = runtime.remove(&found.container, false).await;
                    tracing::warn!(run = %self.place.run, ?removed, "a late container");
                }
            }
            Err(error) => tracing::warn!(run = %self.place.run, %error, "cannot look for it"),
        }
    }

    /// Removes a container that was not asked to start.
    async fn abandon(
        &mut self,
        container: &ContainerId,
        error: RuntimeError,
    ) -> (Ending, RuntimeError) {
        if let Err(error) = self.context.runtime.remove(container, false).await {
            tracing::warn!(%container, %error, "cannot remove a container that never started");
        }
        (Ending::failed_to_start(&error), error)
    }

    /// Finds out whether a container runs whose start failed. Only a fact decides: success of a
    /// removal without force means that it does not run, and never will.
    async fn did_it_start(
        &mut self,
        container: &ContainerId,
        error: RuntimeError,
    ) -> Result<(), (Ending, RuntimeError)> {
        let runtime = &self.context.runtime;
        let mut backoff = Backoff::new();
        loop {
            match runtime.inspect(container).await {
                Ok(inspection) if inspection.status != Phase::Created => return Ok(()),
                Ok(_) => match runtime.remove(container, false).await {
                    Ok(()) => return Err((Ending::failed_to_start(&error), error)),
                    Err(removal) if removal.is_not_found() => {
                        return Err((Ending::failed_to_start(&error), error));
                    }
                    // It runs by now.
                    Err(RuntimeError::Conflict { .. }) => {}
                    Err(removal) if error.is_fact() && removal.is_fact() => {
                        tracing::warn!(%container, error = %removal, "cannot remove it");
                        return Err((Ending::failed_to_start(&error), error));
                    }
                    Err(_) => {}
                },
                Err(missing) if missing.is_not_found() => {
                    return Err((Ending::Removed { code: None }, error));
                }
                Err(error) => tracing::warn!(%container, %error, "cannot inspect it yet"),
            }
            backoff.pause().await;
        }
    }

    /// Watches a container that has started, and captures what it prints, until it has ended.
    pub(super) async fn watch(
        &mut self,
        file: &mut RunFile,
        capture: &mut Capture,
        source: Source,
        started_at: Option<Timestamp>,
    ) -> Watched {
        let context = Arc::clone(&self.context);
        let Some(container) = file.record.container.clone() else {
            return Watched::never(Ending::Lost {
                reason: "its container is not known".into(),
            });
        };
        let settings = file.record.settings.clone();
        let stop_signal = settings.stop_signal.clone().or(self.image_signal.take());
        let signal = stop_signal.unwrap_or_else(|| "SIGTERM".into());
        let deadline = file.record.deadline.map(|deadline| {
            let left = deadline.since(Timestamp::now());
            Instant::now() + left
        });
        let (events, received) = mpsc::unbounded_channel();
        let (exited, limit) = (CancellationToken::new(), CancellationToken::new());
        let mut signals = Signals {
            events: received,
            exited: exited.clone(),
            limit: limit.clone(),
        };
        let exit = exit::wait(&*context.runtime, &container, started_at);
        let mut pump = Box::pin(pump(
            &context,
            capture,
            source,
            &container,
            &settings,
            &mut signals,
        ));
        tokio::pin!(exit);
        let stop_at_limit = settings
            .output_limit
            .is_some_and(|limit| limit.action == LimitAction::Stop);

        let mut ended: Option<(Ended, Instant)> = None;
        let mut pumped: Option<Pumped> = None;
        let (mut timed_out, mut limited) = (false, false);
        let ((ended, at), pumped) = loop {
            let mut request = None;
            tokio::select! {
                mut seen = &mut exit, if ended.is_none() => {
                    seen.ending = seen.ending.redacted(|reason| self.secrets.redact(reason));
                    self.publish(Event::Ended(seen.ending.clone()));
                    ended = Some((seen, Instant::now()));
                    exited.cancel();
                }
                end = &mut pump, if pumped.is_none() => pumped = Some(end),
                Some(asked) = self.stops.recv(), if ended.is_none() => request = Some(asked),
                () = self.stopper.proceed(), if ended.is_none() => {}
                () = until(deadline), if ended.is_none() && !timed_out => {
                    timed_out = true;
                    request = Some(StopRequest { cause: StopCause::TimeLimit, grace: None });
                }
                () = limit.cancelled(), if ended.is_none() && stop_at_limit && !limited => {
                    limited = true;
                    request = Some(StopRequest { cause: StopCause::OutputLimit, grace: None });
                }
            }
            if let Some(request) = request {
                let stop = self.stopper.request(
                    &context.runtime,
                    &container,
                    request,
                    &signal,
                    settings.stop_grace,
                );
                let _ = events.send(Record::Stop(stop));
            }
            match (ended.take(), pumped.take()) {
                (Some(ended), Some(pumped)) => break (ended, pumped),
                (not_yet, nor) => (ended, pumped) = (not_yet, nor),
            }
        };
        drop(pump);
        let mut left = Vec::new();
        while let Ok(event) = signals.events.try_recv() {
            left.push(event);
        }
        if let Some(error) = pumped.failed {
            self.stands_in_the_way(&error);
        }
        Watched {
            ended,
            at,
            tap_ended: pumped.tap_ended,
            eof: pumped.eof,
            left,
        }
    }

    /// Says what keeps the run from being sealed.
    pub(super) fn stands_in_the_way(&self, error: &Error) {
        let reason = error.chain();
        tracing::warn!(run = %self.place.run, "{reason}");
        self.status
            .send_modify(|status| status.problem = Some(reason));
    }
}

impl Watched {
    /// Of a container that never ran.
    pub(super) fn never(ending: Ending) -> Self {
        Self::untapped(Ended {
            ending,
            interrupted: false,
            started_again: false,
            inspection: None,
        })
    }

    /// Of a container that ended without a tap.
    pub(super) fn untapped(ended: Ended) -> Self {
        Self {
            ended,
            at: Instant::now(),
            tap_ended: None,
            eof: false,
            left: Vec::new(),
        }
    }
}

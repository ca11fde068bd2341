//! The start of a run: from its folder to a container that runs, and is tapped.

use std::future::pending;
use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::audit::{Event as Record, Started, Stop};
use crate::capture::Capture;
use crate::error::{Error, Result, RuntimeError, chain};
use crate::events::EventKind;
use crate::monitor::entry::{Pipe, StopRequest, lock};
use crate::monitor::output::Source;
use crate::monitor::wait::Backoff;
use crate::monitor::{Launch, Monitor, WatchOutcome};
use crate::outcome::Ending;
use crate::root::RunFile;
use crate::runtime::{CreateRequest, Created, InputWriter, Inspection, Status as Phase};
use crate::spec::{ContainerId, RunRecord, RunSpec};
use crate::state::Transition;
use crate::timestamp::Timestamp;

/// How long the start of a run waits for what the engine knows of it.
const INSPECT: Duration = Duration::from_secs(5);

/// How long after the time limit and the grace a container may be there while its owner lives: for
/// the calls of the engine in between.
const SLACK: Duration = Duration::from_secs(120);

/// Why a run did not come to run.
#[derive(Debug)]
pub(crate) enum StartError {
    /// Nothing was made, or nothing is left.
    Nothing(Error),
    /// Its audit file says why.
    Sealed(RuntimeError),
}

/// Whoever sits in front of a run from its start.
#[derive(Debug)]
pub(crate) struct InitialAttach {
    /// Whether the input is to be connected to.
    pub(crate) input: bool,
    /// What is recorded of it.
    pub(crate) note: Record,
}

type Reply = oneshot::Sender<Result<Option<InputWriter>, StartError>>;

/// What is to be done of a run that has started.
pub(crate) struct StartAck {
    /// What is to be recorded.
    pub(crate) started: Started,
    /// What whoever waits for the reply gets with it.
    pub(crate) input: Option<InputWriter>,
    pub(crate) reply: Reply,
}

impl Monitor {
    /// Starts a new run and sees it to its end.
    pub(crate) async fn run_new(
        mut self,
        spec: RunSpec,
        front: Option<InitialAttach>,
        reply: Reply,
    ) {
        let context = Arc::clone(&self.context);
        let file = tokio::select! {
            biased;
            file = AssertUnwindSafe(self.start_and_watch(spec, front, reply)).catch_unwind() => file,
            () = context.left() => Ok(None),
        };
        let file = self.unless_it_panicked(file);
        self.leave(file).await;
    }

    async fn start_and_watch(
        &mut self,
        spec: RunSpec,
        front: Option<InitialAttach>,
        reply: Reply,
    ) -> Option<RunFile> {
        self.secrets = spec.secrets();
        let spec = self.told_of_pulls(spec);
        let closing = self.context.closing.clone();
        // Boxed: what a run keeps until its end is to be small.
        let begun = closing
            .run_until_cancelled(Box::pin(self.begin(&spec)))
            .await?;
        let (mut file, mut capture) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                // Whoever asks for a run of this name from now on means another one.
                self.forget();
                let _ = reply.send(Err(StartError::Nothing(error)));
                return None;
            }
        };
        self.emit(EventKind::Intended {
            image: file.record.settings.image.clone(),
        });
        let launched = closing
            .run_until_cancelled(Box::pin(self.launch(&spec, front, &mut file, &mut capture)))
            .await;
        let Some(launched) = launched else {
            let mut stops = Vec::new();
            while let Ok(request) = self.stops.try_recv() {
                stops.push(self.stop_launched(&file, request));
            }
            let mut stopper = std::mem::take(&mut self.stopper);
            tokio::join!(stopper.asked(), self.flush_on_shutdown(&mut capture, stops));
            return None;
        };
        match launched {
            Ok((source, started, input)) => {
                drop(spec);
                for warning in &started.warnings {
                    self.emit(EventKind::Warning {
                        message: warning.clone(),
                    });
                }
                let started_at = started.started_at;
                let new = Some(StartAck {
                    started,
                    input,
                    reply,
                });
                let watched = self
                    .watch(&mut file, &mut capture, source, started_at, new)
                    .await?;
                Box::pin(self.finish(file, capture, watched)).await
            }
            Err((ending, error)) => {
                let error = error.map_reason(|reason| self.secrets.redact(reason));
                let ending = ending.redacted(|reason| self.secrets.redact(reason));
                self.publish(Transition::Ended(ending.clone()));
                self.permit = None;
                let _ = reply.send(Err(StartError::Sealed(error)));
                Box::pin(self.finish(file, capture, WatchOutcome::never(ending))).await
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
            ending_if_missing: None,
            seal: None,
        };
        let (place, intent) = (self.place.clone(), file.clone());
        let lock = context
            .on_disk("create a run in", move |root| {
                match crate::disk::create_dir(&place.dir) {
                    Err(error) if error.io_kind() == Some(ErrorKind::AlreadyExists) => {
                        return Err(Error::RunExists {
                            run: place.run,
                            path: place.dir,
                        });
                    }
                    other => other?,
                }
                let locked = root.lock(&place.run).and_then(|lock| {
                    root.write_run(&intent)?;
                    Ok(lock)
                });
                locked.inspect_err(|error| {
                    // What another one owns is not ours to remove.
                    if !matches!(error, Error::Owned { .. }) {
                        let _ = root.discard(&place.run);
                    }
                })
            })
            .await?;
        self.lock = Some(lock);
        let (progress, log) = match self.open_log(&file.record).await {
            Ok(opened) => opened,
            Err(error) => {
                // Nothing was asked of the engine: there was no run.
                let run = self.place.run.clone();
                let _ = context
                    .on_disk("remove", move |root| root.discard(&run))
                    .await;
                return Err(error);
            }
        };
        let capture = self.capture(&file, progress, log);
        Ok((file, capture))
    }

    /// From the image to a container that runs, and is tapped.
    async fn launch(
        &mut self,
        spec: &RunSpec,
        front: Option<InitialAttach>,
        file: &mut RunFile,
        capture: &mut Capture,
    ) -> Result<(Source, Started, Option<InputWriter>), (Ending, RuntimeError)> {
        let context = Arc::clone(&self.context);
        let runtime = &*context.runtime;
        let not_created = |error: RuntimeError| (Ending::not_created(chain(&error)), error);

        if let Some(places) = &context.concurrency {
            self.permit = Arc::clone(places).try_acquire_owned().ok();
            if self.permit.is_none() {
                self.emit(EventKind::Waiting);
                let turn = Arc::clone(places).acquire_owned();
                self.permit = tokio::select! {
                    turn = turn => turn.ok(),
                    error = self.stopped_early(capture) => return Err(not_created(error)),
                };
            }
        }
        let engine = async { Ok(runtime.engine().await.ok()) };
        let prepared = async { tokio::try_join!(runtime.prepare(spec), engine) };
        (_, self.engine) = tokio::select! {
            prepared = prepared => prepared.map_err(not_created)?,
            error = self.stopped_early(capture) => return Err(not_created(error)),
        };
        // From the next request on there may be a container that no other engine finds.
        file.record.engine_id = self.engine.as_ref().and_then(|engine| engine.id.clone());
        if file.record.engine_id.is_some() {
            let known = file.clone();
            let recorded = context.on_disk("record the run in", move |root| root.write_run(&known));
            if let Err(error) = recorded.await {
                return Err(not_created(RuntimeError::Rejected {
                    operation: "create the container",
                    reason: format!("its engine could not be recorded: {}", error.chain()),
                }));
            }
        }
        let name = file.record.container_name();
        let settings = &file.record.settings;
        let request = CreateRequest::new(&name, &file.record.root, &self.place.run, spec).deadline(
            settings
                .time_limit
                .map(|limit| Timestamp::now().saturating_add(limit + settings.stop_grace + SLACK)),
        );
        let Created {
            container,
            warnings,
        } = match runtime.create(request).await {
            Ok(created) => created,
            Err(error) => {
                if !error.is_definitive() {
                    self.remove_late_create().await;
                }
                return Err(not_created(error));
            }
        };
        self.publish(Transition::Created(container.clone()));
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
            return Err(self.abandon(file, &container, error).await);
        }

        let tty = file.record.settings.tty;
        let source = if runtime.capabilities().attach_before_start {
            match runtime.attach(&container, tty).await {
                Ok(stream) => Source::Tap(stream),
                Err(error) => return Err(self.abandon(file, &container, error).await),
            }
        } else {
            Source::Follow
        };
        let mut input = None;
        if let Some(front) = front {
            if let Err(error) = capture.write(vec![front.note]).await {
                self.report_blocked(&error);
            }
            if front.input {
                match runtime.stdin(&container).await {
                    Ok(writer) => input = Some(writer),
                    Err(error) => return Err(self.abandon(file, &container, error).await),
                }
                *lock(&self.pipe) = Pipe::Taken;
            }
        }
        if let Ok(request) = self.stops.try_recv() {
            let error = self.record_early_stop(request, capture).await;
            return Err(self.abandon(file, &container, error).await);
        }
        let asked = (Instant::now(), Timestamp::now());
        if let Err(error) = runtime.start(&container).await {
            self.did_it_start(file, &container, error).await?;
        }
        self.launched = Some(Launch {
            at: asked.0,
            asked: asked.1,
            answered: Timestamp::now(),
        });
        if let Some(size) = file.record.settings.window {
            // An engine that knew it when it made the container has done that: nothing changes.
            match timeout(INSPECT, runtime.resize(&container, size)).await {
                Ok(Err(error)) => tracing::warn!(%container, %error, "cannot set the size"),
                Err(_) => tracing::warn!(%container, "cannot set the size in time"),
                Ok(Ok(())) => {}
            }
        }
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
        let tapped = matches!(source, Source::Tap(_));
        self.status.send_modify(|status| status.tapped = tapped);
        self.publish(Transition::Started(started.started_at));
        // It is written with the output: from here on, nothing may wait for the sink.
        Ok((source, started, input))
    }

    /// The `started` record.
    pub(crate) async fn started(
        &mut self,
        container: &ContainerId,
        inspection: Option<Inspection>,
        warnings: Vec<String>,
    ) -> Started {
        if self.engine.is_none() {
            self.engine = self.context.runtime.engine().await.ok();
        }
        let engine = self.engine.clone().unwrap_or_default();
        let mut started = Started {
            ts: Timestamp::now(),
            container: container.clone(),
            started_at: None,
            image_digest: None,
            log: Default::default(),
            engine: engine.name,
            engine_version: engine.version,
            engine_id: engine.id,
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
        let stop = self.stop_nothing(request);
        if let Err(error) = capture.write(vec![stop]).await {
            self.report_blocked(&error);
        }
        RuntimeError::Rejected {
            operation: "start the container",
            reason: "the run was stopped before that".into(),
        }
    }

    /// Says what is to be recorded of a stop that comes before there is anything to stop.
    fn stop_nothing(&mut self, request: StopRequest) -> Record {
        self.stopper.cause.get_or_insert(request.cause);
        let stop = Stop::new(request.cause, "none", None);
        self.emit(EventKind::from(&stop));
        Record::Stop(stop)
    }

    /// Begins a stop of a run whose start was cut off: its container may run by now.
    fn stop_launched(&mut self, file: &RunFile, request: StopRequest) -> Record {
        let Some(container) = &file.record.container else {
            return self.stop_nothing(request);
        };
        let settings = &file.record.settings;
        let signal = settings.stop_signal.as_ref().or(self.image_signal.as_ref());
        let signal = signal.map_or("SIGTERM", String::as_str).to_owned();
        self.stop(container, request, &signal, settings)
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
        file: &mut RunFile,
        container: &ContainerId,
        error: RuntimeError,
    ) -> (Ending, RuntimeError) {
        let ending = self.failed_to_start(&error);
        if let Err(error) = self.remove_unstarted(file, container, ending.clone()).await {
            tracing::warn!(%container, %error, "cannot remove a container that never started");
        }
        (ending, error)
    }

    fn failed_to_start(&self, error: &RuntimeError) -> Ending {
        Ending::failed_to_start(chain(error)).redacted(|reason| self.secrets.redact(reason))
    }

    /// Removes a container that has not been started. Success says that it does not run, and never
    /// will.
    ///
    /// The ending is written down first: were this process to die in between, whoever takes the
    /// run over would find a container that is gone, and nothing that says why.
    pub(crate) async fn remove_unstarted(
        &mut self,
        file: &mut RunFile,
        container: &ContainerId,
        ending: Ending,
    ) -> Result<(), RuntimeError> {
        file.ending_if_missing = Some(ending);
        self.persist_run_file(file).await;
        let removed = self.context.runtime.remove(container, false).await;
        if matches!(removed, Err(RuntimeError::Conflict { .. })) {
            file.ending_if_missing = None;
            self.persist_run_file(file).await;
        }
        removed
    }

    /// Writes `run.json` again, if that can be done now.
    async fn persist_run_file(&mut self, file: &RunFile) {
        let (context, known) = (Arc::clone(&self.context), file.clone());
        let written = context
            .on_disk("record what is known in", move |root| {
                root.write_run(&known)
            })
            .await;
        if let Err(error) = written {
            tracing::warn!(run = %self.place.run, error = %error.chain(), "run.json is behind");
        }
    }

    /// Finds out whether a container runs whose start failed. Only a fact decides: success of a
    /// removal without force means that it does not run, and never will.
    async fn did_it_start(
        &mut self,
        file: &mut RunFile,
        container: &ContainerId,
        error: RuntimeError,
    ) -> Result<(), (Ending, RuntimeError)> {
        let runtime = Arc::clone(&self.context.runtime);
        let ending = self.failed_to_start(&error);
        let mut backoff = Backoff::new();
        loop {
            match runtime.inspect(container).await {
                Ok(inspection) if inspection.status != Phase::Created => {
                    if file.ending_if_missing.take().is_some() {
                        self.persist_run_file(file).await;
                    }
                    return Ok(());
                }
                Ok(_) => match self.remove_unstarted(file, container, ending.clone()).await {
                    Ok(()) => return Err((ending, error)),
                    Err(removal) if removal.is_not_found() => return Err((ending, error)),
                    // It runs by now.
                    Err(RuntimeError::Conflict { .. }) => {}
                    Err(removal) if error.is_definitive() && removal.is_definitive() => {
                        tracing::warn!(%container, error = %removal, "cannot remove it");
                        return Err((ending, error));
                    }
                    Err(_) => {}
                },
                Err(missing) if missing.is_not_found() => {
                    // The answer to its removal may have been lost.
                    let ending = file.ending_if_missing.clone();
                    return Err((ending.unwrap_or(Ending::Removed { code: None }), error));
                }
                Err(error) => tracing::warn!(%container, %error, "cannot inspect it yet"),
            }
            backoff.pause().await;
        }
    }

    /// The same spec, of whose pull the subscribers are told.
    fn told_of_pulls(&self, spec: RunSpec) -> RunSpec {
        let (context, run) = (Arc::downgrade(&self.context), self.place.run.clone());
        let secrets = self.secrets.clone();
        spec.also_on_pull(move |progress| {
            if let Some(context) = context.upgrade() {
                context.event_bus.emit(
                    &run,
                    EventKind::Pulling {
                        layer: progress.layer.clone(),
                        status: secrets.redact(&progress.status),
                        current: progress.current,
                        total: progress.total,
                    },
                );
            }
        })
    }
}

//! The one task per run: the only waiter on its container, the only writer of its state.

use std::any::Any;
use std::future::pending;
use std::io::ErrorKind;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::events::Happening;
use super::exit::{self, Backoff, Ended};
use super::finish::{UNSEALED, write_down_the_end};
use super::input::{Pipe, lock};
use super::root::{Lock, RunFile};
use super::run::{Entry, Status, StopRequest};
use super::sources::{Pumped, Source, pump};
use super::stop::Stopper;
use super::usage::sample;
use crate::capture::{Capture, Counts, Hub, Progress, Pulse, Signals, until};
use crate::runtime::{
    CreateRequest, Created, Engine, InputWriter, Inspection, RuntimeError, Status as Phase,
};
use crate::sink::{Event as Record, RecordRef, RunLog, RunPlace, Start, Started, Stop};
use crate::spec::Secrets;
use crate::state::Event;
use crate::{
    ContainerId, Ending, Error, LimitAction, Result, RunRecord, RunSpec, Settings, State,
    StopCause, Timestamp,
};

/// How long the start of a run waits for what the engine knows of it.
const INSPECT: Duration = Duration::from_secs(5);

/// How long after the time limit and the grace a container may be there while its owner lives: for
/// the calls of the engine in between.
const SLACK: Duration = Duration::from_secs(120);

/// How often the subscribers are told how much was printed.
const TELL: Duration = Duration::from_secs(1);

/// How long the start of a run waits until it is recorded, while the run goes on.
const RECORDED: Duration = Duration::from_secs(2);

/// Why a run did not come to run.
#[derive(Debug)]
pub(super) enum NoStart {
    /// Nothing was made, or nothing is left.
    Nothing(Error),
    /// Its audit file says why.
    Sealed(RuntimeError),
}

/// Whoever sits in front of a run from its start.
#[derive(Debug)]
pub(super) struct Front {
    /// Whether the input is to be connected to.
    pub(super) input: bool,
    /// What is recorded of it.
    pub(super) note: Record,
}

type Reply = oneshot::Sender<Result<Option<InputWriter>, NoStart>>;

/// What is to be done of a run that has started.
pub(super) struct New {
    /// What is to be recorded.
    started: Started,
    /// What whoever waits for the reply gets with it.
    input: Option<InputWriter>,
    reply: Reply,
}

/// What a run's handles send to its monitor.
pub(super) struct Inbox {
    pub(super) stops: mpsc::UnboundedReceiver<StopRequest>,
    pub(super) notes: mpsc::UnboundedReceiver<Record>,
    /// Records of input, until the watch takes it.
    pub(super) typed: Option<mpsc::Receiver<Record>>,
}

/// The task of one run.
pub(super) struct Monitor {
    pub(super) context: Arc<Context>,
    pub(super) place: RunPlace,
    pub(super) status: watch::Sender<Status>,
    pub(super) stops: mpsc::UnboundedReceiver<StopRequest>,
    pub(super) notes: mpsc::UnboundedReceiver<Record>,
    pub(super) typed: Option<mpsc::Receiver<Record>>,
    pub(super) pipe: Arc<Mutex<Pipe>>,
    pub(super) hub: Arc<Hub>,
    /// When the engine was asked to start the container, and when it had answered.
    pub(super) launched: Option<Launch>,
    /// Held while this task owns the run.
    pub(super) lock: Option<Lock>,
    pub(super) stopper: Stopper,
    /// What must be taken out of what the engine says.
    pub(super) secrets: Secrets,
    /// Who has the container.
    pub(super) engine: Option<Engine>,
    /// What asks the container to stop, where the spec does not say.
    pub(super) image_signal: Option<String>,
    /// Held while its container may run, where so many may be at once.
    pub(super) turn: Option<OwnedSemaphorePermit>,
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
        inbox: Inbox,
        pipe: Arc<Mutex<Pipe>>,
        hub: Arc<Hub>,
    ) -> Self {
        Self {
            context,
            place,
            status,
            stops: inbox.stops,
            notes: inbox.notes,
            typed: inbox.typed,
            pipe,
            hub,
            launched: None,
            lock: None,
            stopper: Stopper::default(),
            secrets: Secrets::default(),
            engine: None,
            image_signal: None,
            turn: None,
        }
    }

    /// What all that the run's task logs is in: its field `run` is the run's id, and `exec` the
    /// number of a further process.
    pub(super) fn span(&self) -> tracing::Span {
        tracing::error_span!("run", run = %self.place.run, exec = self.place.exec)
    }

    /// Starts a new run and sees it to its end.
    pub(super) async fn run_new(mut self, spec: RunSpec, front: Option<Front>, reply: Reply) {
        let context = Arc::clone(&self.context);
        let file = tokio::select! {
            biased;
            file = AssertUnwindSafe(self.start_and_watch(spec, front, reply)).catch_unwind() => file,
            () = context.left() => Ok(None),
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
        self.forget();
        // Who subscribes from here on sees that nothing more will come.
        self.stops.close();
        self.tell(Happening::Released);
    }

    /// Frees the run's name: what asks for it from here on finds what is on the disk.
    fn forget(&mut self) {
        self.lock = None;
        let mut entries = self.context.entries();
        let ours = |entry: &Arc<Entry>| Arc::ptr_eq(&entry.hub, &self.hub);
        if entries.get(&self.place.run).is_some_and(ours) {
            entries.remove(&self.place.run);
        }
    }

    /// Tells everyone of a change.
    pub(super) fn publish(&self, event: Event) {
        let mut told = None;
        self.status.send_modify(|status| {
            let state = std::mem::replace(&mut status.state, crate::State::Intended);
            let after = state.clone().after(event);
            told = (after != state).then(|| happening(&after)).flatten();
            status.state = after;
        });
        if let Some(told) = told {
            self.tell(told);
        }
    }

    /// Tells the subscribers, who are told of runs: the end of a further process is not the run's.
    pub(super) fn tell(&self, what: Happening) {
        if self.place.exec.is_none() {
            self.context.bulletin.tell(&self.place.run, what);
        }
    }

    /// Tells the subscribers of what was recorded as missing.
    pub(super) fn tell_gaps(&self, pulse: &Pulse) {
        for gap in pulse.take_gaps() {
            self.tell(Happening::Gap { gap });
        }
    }

    async fn start_and_watch(
        &mut self,
        spec: RunSpec,
        front: Option<Front>,
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
                let _ = reply.send(Err(NoStart::Nothing(error)));
                return None;
            }
        };
        self.tell(Happening::Intended {
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
            tokio::join!(stopper.asked(), self.last_words(&mut capture, stops));
            return None;
        };
        match launched {
            Ok((source, started, input)) => {
                drop(spec);
                for warning in &started.warnings {
                    self.tell(Happening::Warning {
                        message: warning.clone(),
                    });
                }
                let started_at = started.started_at;
                let new = Some(New {
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
                self.publish(Event::Ended(ending.clone()));
                self.turn = None;
                let _ = reply.send(Err(NoStart::Sealed(error)));
                Box::pin(self.finish(file, capture, Watched::never(ending))).await
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
            if_gone: None,
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
                locked.inspect_err(|error| {
                    // What another one owns is not ours to remove.
                    if !matches!(error, Error::Owned { .. }) {
                        let _ = root.unmake(&place.run);
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
                    .on_disk("remove", move |root| root.unmake(&run))
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
        front: Option<Front>,
        file: &mut RunFile,
        capture: &mut Capture,
    ) -> Result<(Source, Started, Option<InputWriter>), (Ending, RuntimeError)> {
        let context = Arc::clone(&self.context);
        let runtime = &*context.runtime;
        let not_created = |error: RuntimeError| (Ending::not_created(&error), error);

        if let Some(places) = &context.places {
            self.turn = Arc::clone(places).try_acquire_owned().ok();
            if self.turn.is_none() {
                self.tell(Happening::Waiting);
                let turn = Arc::clone(places).acquire_owned();
                self.turn = tokio::select! {
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
            return Err(self.abandon(file, &container, error).await);
        }

        let tty = file.record.settings.tty;
        let source = if runtime.capabilities().tap {
            match runtime.tap(&container, tty).await {
                Ok(stream) => Source::Tap(stream),
                Err(error) => return Err(self.abandon(file, &container, error).await),
            }
        } else {
            Source::Follow
        };
        let mut input = None;
        if let Some(front) = front {
            if let Err(error) = capture.write(vec![front.note]).await {
                self.stands_in_the_way(&error);
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
        self.publish(Event::Started(started.started_at));
        // It is written with the output: from here on, nothing may wait for the sink.
        Ok((source, started, input))
    }

    /// The `started` record.
    pub(super) async fn started(
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
            self.stands_in_the_way(&error);
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
        self.tell(Happening::from(&stop));
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
        Ending::failed_to_start(error).redacted(|reason| self.secrets.redact(reason))
    }

    /// Removes a container that has not been started. Success says that it does not run, and never
    /// will.
    ///
    /// The ending is written down first: were this process to die in between, whoever takes the
    /// run over would find a container that is gone, and nothing that says why.
    pub(super) async fn remove_unstarted(
        &mut self,
        file: &mut RunFile,
        container: &ContainerId,
        ending: Ending,
    ) -> Result<(), RuntimeError> {
        file.if_gone = Some(ending);
        self.write_down(file).await;
        let removed = self.context.runtime.remove(container, false).await;
        if matches!(removed, Err(RuntimeError::Conflict { .. })) {
            file.if_gone = None;
            self.write_down(file).await;
        }
        removed
    }

    /// Writes `run.json` again, if that can be done now.
    async fn write_down(&mut self, file: &RunFile) {
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
                    if file.if_gone.take().is_some() {
                        self.write_down(file).await;
                    }
                    return Ok(());
                }
                Ok(_) => match self.remove_unstarted(file, container, ending.clone()).await {
                    Ok(()) => return Err((ending, error)),
                    Err(removal) if removal.is_not_found() => return Err((ending, error)),
                    // It runs by now.
                    Err(RuntimeError::Conflict { .. }) => {}
                    Err(removal) if error.is_fact() && removal.is_fact() => {
                        tracing::warn!(%container, error = %removal, "cannot remove it");
                        return Err((ending, error));
                    }
                    Err(_) => {}
                },
                Err(missing) if missing.is_not_found() => {
                    // The answer to its removal may have been lost.
                    let ending = file.if_gone.clone();
                    return Err((ending.unwrap_or(Ending::Removed { code: None }), error));
                }
                Err(error) => tracing::warn!(%container, %error, "cannot inspect it yet"),
            }
            backoff.pause().await;
        }
    }

    /// Watches a container that has started, and captures what it prints, until it has ended.
    /// Of a `new` one the start is recorded first, and then replied to. `None`: the manager closes,
    /// and what was asked for before is done, and recorded.
    pub(super) async fn watch(
        &mut self,
        file: &mut RunFile,
        capture: &mut Capture,
        source: Source,
        started_at: Option<Timestamp>,
        new: Option<New>,
    ) -> Option<Watched> {
        let context = Arc::clone(&self.context);
        let Some(container) = file.record.container.clone() else {
            return Some(Watched::never(Ending::Lost {
                reason: "its container is not known".into(),
            }));
        };
        let settings = file.record.settings.clone();
        let stop_signal = settings.stop_signal.clone().or(self.image_signal.take());
        let signal = stop_signal.unwrap_or_else(|| "SIGTERM".into());
        let deadline = file.record.deadline.map(|deadline| {
            let left = deadline.since(Timestamp::now());
            Instant::now() + left
        });
        let (events, received) = mpsc::unbounded_channel();
        let mut reply = new.map(|new| {
            let _ = events.send(Record::Started(Box::new(new.started)));
            (new.reply, new.input)
        });
        let pulse = Arc::clone(capture.pulse());
        let recorded = CancellationToken::new();
        let (exited, limit) = (CancellationToken::new(), CancellationToken::new());
        let mut signals = Signals {
            events: received,
            typed: self.typed.take().unwrap_or_else(|| mpsc::channel(1).1),
            exited: exited.clone(),
            leaving: context.closing.clone(),
            limit: limit.clone(),
            recorded: recorded.clone(),
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
        let (mut timed_out, mut limited, mut silenced) = (false, false, false);
        let silence = settings.silence_limit;
        let mut silent_at = silence.map(|silence| Instant::now() + silence);
        let mut counted = Counts::default();
        let mut ticks = interval_at(Instant::now() + TELL, TELL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sampler = sample(
            Arc::clone(&context),
            self.place.run.clone(),
            container.clone(),
            settings.sample,
        );
        tokio::pin!(sampler);
        let mut unsealed = None;
        let unrecorded = sleep(RECORDED);
        tokio::pin!(unrecorded);
        let over = loop {
            let mut request = None;
            let mut replied = false;
            tokio::select! {
                () = context.closing.cancelled() => break None,
                () = recorded.cancelled(), if reply.is_some() => replied = true,
                () = &mut unrecorded, if reply.is_some() => replied = true,
                mut seen = &mut exit, if ended.is_none() => {
                    seen.ending = seen.ending.redacted(|reason| self.secrets.redact(reason));
                    self.publish(Event::Ended(seen.ending.clone()));
                    ended = Some((seen, Instant::now()));
                    unsealed = Some(Instant::now() + UNSEALED);
                    exited.cancel();
                }
                mut end = &mut pump, if pumped.is_none() => {
                    // A container may run for long yet: it is told now that its log waits.
                    if let Some(error) = end.failed.take() {
                        self.stands_in_the_way(&error);
                    }
                    pumped = Some(end);
                }
                // Its log is slow, or stalls.
                () = until(unsealed), if unsealed.is_some() => {
                    unsealed = None;
                    if let Some((ended, _)) = &ended {
                        write_down_the_end(&context, file, &ended.ending).await;
                    }
                }
                Some(asked) = self.stops.recv(), if ended.is_none() => request = Some(asked),
                Some(note) = self.notes.recv(), if ended.is_none() => {
                    let _ = events.send(note);
                }
                () = self.stopper.proceed(), if ended.is_none() => {}
                () = until(deadline), if ended.is_none() && !timed_out => {
                    timed_out = true;
                    request = Some(StopRequest { cause: StopCause::TimeLimit, grace: None });
                }
                () = until(silent_at), if ended.is_none() && pumped.is_none() && !silenced => {
                    let heard = pulse.heard().zip(silence).map(|(heard, limit)| heard + limit);
                    silent_at = silent_at.max(heard);
                    silenced = silent_at.is_some_and(|at| at <= Instant::now());
                    let cause = StopCause::SilenceLimit;
                    request = silenced.then_some(StopRequest { cause, grace: None });
                }
                usage = &mut sampler, if ended.is_none() => {
                    let most = self.status.borrow().usage.map_or(usage, |most| most.most(usage));
                    self.status.send_modify(|status| status.usage = Some(most));
                    self.tell(Happening::Usage { usage });
                    sampler.set(sample(Arc::clone(&context), self.place.run.clone(), container.clone(), settings.sample));
                }
                _ = ticks.tick() => {
                    self.tell_counts(&pulse, &mut counted);
                }
                () = limit.cancelled(), if ended.is_none() && stop_at_limit && !limited => {
                    limited = true;
                    request = Some(StopRequest { cause: StopCause::OutputLimit, grace: None });
                }
            }
            if let Some(request) = request {
                let _ = events.send(self.stop(&container, request, &signal, &settings));
            }
            if (replied || pumped.is_some())
                && let Some((reply, input)) = reply.take()
                && let Err(Ok(Some(_))) = reply.send(Ok(input))
            {
                // Nobody waits for it any more, and with it goes a pipe's input.
                *lock(&self.pipe) = Pipe::Ended;
                let _ = events.send(Record::note(
                    "the writer of the input has gone before the start",
                ));
            }
            match (ended.take(), pumped.take()) {
                (Some(ended), Some(pumped)) => break Some((ended, pumped)),
                (not_yet, nor) => (ended, pumped) = (not_yet, nor),
            }
        };
        let Some(((ended, at), pumped)) = over else {
            let mut stops = Vec::new();
            while ended.is_none()
                && let Ok(request) = self.stops.try_recv()
            {
                stops.push(self.stop(&container, request, &signal, &settings));
            }
            let pump = async {
                if pumped.is_none() {
                    pump.await;
                }
            };
            tokio::join!(pump, self.stopper.asked());
            let mut left = signals.queued();
            left.append(&mut stops);
            self.last_words(capture, left).await;
            return None;
        };
        drop(pump);
        self.tell_counts(&pulse, &mut counted);
        self.turn = None;
        Some(Watched {
            ended,
            at,
            tap_ended: pumped.tap_ended,
            eof: pumped.eof,
            left: signals.queued(),
        })
    }

    /// Begins a stop, and says what is to be recorded of it.
    fn stop(
        &mut self,
        container: &ContainerId,
        request: StopRequest,
        signal: &str,
        settings: &Settings,
    ) -> Record {
        let (runtime, grace) = (&self.context.runtime, settings.stop_grace);
        let stop = self
            .stopper
            .request(runtime, container, request, signal, grace);
        self.tell(Happening::from(&stop));
        Record::Stop(stop)
    }

    /// Records what was to be recorded when the manager closes, if there is a log.
    pub(super) async fn last_words(&mut self, capture: &mut Capture, mut records: Vec<Record>) {
        while let Ok(note) = self.notes.try_recv() {
            records.push(note);
        }
        if !capture.needs_log()
            && let Err(error) = capture.write(records).await
        {
            self.stands_in_the_way(&error);
        }
    }

    /// Tells the subscribers how much was printed, if that has changed, and what is missing.
    fn tell_counts(&self, pulse: &Pulse, counted: &mut Counts) {
        let counts = pulse.counts();
        if counts != *counted {
            let Counts { bytes, records } = counts;
            self.tell(Happening::Output { bytes, records });
            *counted = counts;
        }
        self.tell_gaps(pulse);
    }

    /// The same spec, of whose pull the subscribers are told.
    fn told_of_pulls(&self, spec: RunSpec) -> RunSpec {
        let (context, run) = (Arc::downgrade(&self.context), self.place.run.clone());
        let secrets = self.secrets.clone();
        spec.also_on_pull(move |progress| {
            if let Some(context) = context.upgrade() {
                context.bulletin.tell(
                    &run,
                    Happening::Pulling {
                        layer: progress.layer.clone(),
                        status: secrets.redact(&progress.status),
                        current: progress.current,
                        total: progress.total,
                    },
                );
            }
        })
    }

    /// Says what keeps the run from being sealed.
    pub(super) fn stands_in_the_way(&self, error: &Error) {
        let reason = error.chain();
        tracing::warn!(run = %self.place.run, "{reason}");
        let told = self.status.borrow().problem.as_ref() == Some(&reason);
        if !told {
            let message = reason.clone();
            self.tell(Happening::Warning { message });
        }
        self.status
            .send_modify(|status| status.problem = Some(reason));
    }
}

/// What is told of a run that has come to be in `state`.
fn happening(state: &State) -> Option<Happening> {
    Some(match state {
        State::Intended => return None,
        State::Created { container } => Happening::Created {
            container: container.clone(),
        },
        State::Running { started_at, .. } => Happening::Started {
            started_at: *started_at,
        },
        State::Ended { ending, .. } => Happening::Exited {
            ending: ending.clone(),
        },
    })
}

impl Watched {
    /// Of a container that never ran.
    pub(super) fn never(ending: Ending) -> Self {
        Self::untapped(Ended {
            ending,
            interrupted: false,
            engine_restarted: false,
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

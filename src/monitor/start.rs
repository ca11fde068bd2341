//! The start of a run: its directory and log, its launch, and the watch.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::oneshot;

use crate::audit::{Event, Started, Stop};
use crate::capture::{Capture, Masks};
use crate::error::{Error, Result, RuntimeError};
use crate::events::EventKind;
use crate::monitor::Monitor;
use crate::monitor::entry::{StopRequest, lock};
use crate::monitor::launch::{Running, StartCheck};
use crate::monitor::run_file::write;
use crate::monitor::stop::DEFAULT_SIGNAL;
use crate::monitor::watch::WatchOutcome;
use crate::outcome::Ending;
use crate::root::RunFile;
use crate::runtime::{InputWriter, Inspection};
use crate::spec::{ContainerId, InvalidSpec, RunRecord, RunSpec};
use crate::state::Transition;
use crate::timestamp::Timestamp;

/// The cause of a start that failed.
#[derive(Debug)]
pub(crate) enum StartError {
    /// No run exists: it was not created, or it was removed again.
    NoRun(Error),
    /// The run exists, and its audit file gets the cause.
    NotStarted(RuntimeError),
}

/// An attachment that exists from the start of the run.
#[derive(Debug)]
pub(crate) struct InitialAttach {
    /// The attachment writes to the input.
    pub(crate) input: bool,
    /// The record of the attachment.
    pub(crate) note: Event,
}

type Reply = oneshot::Sender<Result<Option<InputWriter>, StartError>>;

/// The acknowledgment of a start, sent once the start is recorded.
pub(super) struct StartAck {
    pub(super) started: Started,
    /// The input of the container, sent with the reply.
    pub(super) input: Option<InputWriter>,
    pub(super) reply: Reply,
    pub(super) check: StartCheck,
}

impl Monitor {
    /// Starts a new run, and watches it until it is sealed or the manager closes.
    pub(crate) async fn run_new(
        mut self,
        spec: RunSpec,
        attach: Option<InitialAttach>,
        reply: Reply,
    ) {
        let context = Arc::clone(&self.context);
        let watched = AssertUnwindSafe(self.start_and_watch(spec, attach, reply));
        let file = tokio::select! {
            biased;
            file = watched.catch_unwind() => file,
            () = context.shutdown_grace_elapsed() => Ok(None),
        };
        let file = self.report_panic(file);
        self.release(file).await;
    }

    /// Returns the sealed run, or `None` if there is no run or the manager closes.
    async fn start_and_watch(
        &mut self,
        spec: RunSpec,
        attach: Option<InitialAttach>,
        reply: Reply,
    ) -> Option<RunFile> {
        self.secrets = spec.secrets();
        let _ = self.masks.set(Masks::new(spec.masks().clone()));
        let spec = self.emit_placement_of(self.emit_pulls_of(spec));
        let closing = self.context.closing.clone();
        // Boxed, because the task of a run keeps its size until the run ends.
        let intended = Box::pin(self.intend(&spec));
        let (mut file, mut capture) = match closing.run_until_cancelled(intended).await? {
            Ok(intended) => intended,
            Err(error) => {
                // From now on, the id belongs to the next run that takes it.
                self.remove_entry();
                let _ = reply.send(Err(StartError::NoRun(error)));
                return None;
            }
        };
        self.emit(EventKind::Intended {
            image: file.record.settings.image.clone(),
        });
        let launch = Box::pin(self.launch(&spec, attach, &mut file, &mut capture));
        match closing.run_until_cancelled(launch).await {
            None => {
                self.leave_launch(&file, &mut capture).await;
                None
            }
            Some(Ok(running)) => {
                drop(spec);
                self.watch_new(file, capture, running, reply).await
            }
            Some(Err((ending, error))) => {
                self.seal_failed_start(file, capture, ending, error, reply)
                    .await
            }
        }
    }

    /// Watches a container that was just started, and seals the run.
    async fn watch_new(
        &mut self,
        mut file: RunFile,
        mut capture: Capture,
        running: Running,
        reply: Reply,
    ) -> Option<RunFile> {
        let Running {
            source,
            started,
            input,
            check,
        } = running;
        for message in &started.warnings {
            let message = message.clone();
            self.emit(EventKind::Warning { message });
        }
        let started_at = started.started_at;
        let ack = Some(StartAck {
            started,
            input,
            reply,
            check,
        });
        let watched = self
            .watch(&mut file, &mut capture, source, started_at, ack)
            .await?;
        Box::pin(self.finish(file, capture, watched)).await
    }

    /// Seals a run whose container was not created or not started.
    async fn seal_failed_start(
        &mut self,
        file: RunFile,
        capture: Capture,
        ending: Ending,
        error: RuntimeError,
        reply: Reply,
    ) -> Option<RunFile> {
        let error = error.map_reason(|reason| self.secrets.redact(reason));
        let ending = ending.redacted(|reason| self.secrets.redact(reason));
        self.publish(Transition::Ended(ending.clone()));
        self.permit = None;
        let _ = reply.send(Err(StartError::NotStarted(error)));
        // The only other way to lose a run here: its engine does not know whether it ran.
        let untracked = matches!(ending, Ending::Lost { .. });
        let watched = WatchOutcome::unobserved(ending, untracked);
        Box::pin(self.finish(file, capture, watched)).await
    }

    /// Sends and records pending stop requests when the manager closes during the
    /// launch.
    async fn leave_launch(&mut self, file: &RunFile, capture: &mut Capture) {
        let mut stops = Vec::new();
        while let Ok(request) = self.stops.try_recv() {
            stops.push(self.stop_launched(file, request));
        }
        let mut stopper = std::mem::take(&mut self.stopper);
        tokio::join!(
            stopper.proceed_until_signaled(),
            self.flush_on_shutdown(capture, stops)
        );
    }

    /// Creates everything that must exist before the first request to the engine
    /// (invariant 1): the directory, `run.json` and the log.
    async fn intend(&mut self, spec: &RunSpec) -> Result<(RunFile, Capture)> {
        if self.known_masks().is_missing() {
            let reason = "the values are too many or too long to search for";
            return Err(InvalidSpec::new("mask", reason).into());
        }
        let record = RunRecord::new(
            self.place.run.clone(),
            self.context.root.id().clone(),
            self.context.runtime.name(),
            spec,
        );
        self.publish_stop_grace(&record);
        self.create_run_dir().await?;
        let mut file = RunFile::new(record.clone());
        #[cfg(feature = "sign")]
        self.context.mark_to_sign(&mut file);
        file.record.engine_id = self.context.last_engine().and_then(|engine| engine.id);
        let context = Arc::clone(&self.context);
        let written = write(&context, &file);
        let opened = match context.sink.path(&self.place) {
            // At the same time, because both wait for syncs. Both end before the directory may be
            // removed.
            Some(_) => {
                let (written, opened) = tokio::join!(written, self.open_log(&record));
                written.and(opened)
            }
            // A log elsewhere is not removed with the directory.
            None => match written.await {
                Ok(()) => self.open_log(&record).await,
                Err(error) => Err(error),
            },
        };
        // The line is in the ledger only if the run exists.
        let opened = match opened {
            Ok(opened) => self.record_begun(&record).await.map(|()| opened),
            Err(error) => Err(error),
        };
        match opened {
            Ok((progress, log)) => {
                let capture = self.capture(&file, progress, log);
                Ok((file, capture))
            }
            Err(error) => {
                self.discard_run_dir().await;
                Err(error)
            }
        }
    }

    /// Returns the `started` record.
    pub(super) async fn started(
        &mut self,
        container: &ContainerId,
        inspection: Option<Inspection>,
        warnings: Vec<String>,
    ) -> Started {
        self.ask_engine().await;
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

    /// Returns the record of a stop that arrives before the container has started.
    pub(super) fn early_stop(&mut self, request: StopRequest) -> Event {
        self.stopper.cause.get_or_insert(request.cause);
        let stop = Stop::new(request.cause, "none", None);
        self.emit(EventKind::from(&stop));
        Event::Stop(stop)
    }

    /// Begins a stop of a run whose launch was canceled. Its container may run
    /// already.
    fn stop_launched(&mut self, file: &RunFile, request: StopRequest) -> Event {
        let Some(container) = &file.record.container else {
            return self.early_stop(request);
        };
        let settings = &file.record.settings;
        let signal = settings.stop_signal.as_ref().or(self.image_signal.as_ref());
        let signal = signal.map_or(DEFAULT_SIGNAL, String::as_str).to_owned();
        self.stop(container, request, &signal, settings)
    }

    /// Adds a listener to the spec that emits an event for each step of a pull.
    fn emit_pulls_of(&self, spec: RunSpec) -> RunSpec {
        let (context, run) = (Arc::downgrade(&self.context), self.place.run.clone());
        let secrets = self.secrets.clone();
        let warnings = Arc::clone(&self.pull_warnings);
        spec.also_on_pull(move |progress| {
            if progress.fallback {
                lock(&warnings).push(progress.status.clone());
            }
            let Some(context) = context.upgrade() else {
                return;
            };
            let event = EventKind::Pulling {
                layer: progress.layer.clone(),
                status: secrets.redact(&progress.status),
                current: progress.current,
                total: progress.total,
            };
            context.event_bus.emit(&run, event);
        })
    }

    /// Adds a listener to the spec that emits an event for each step of a placement.
    fn emit_placement_of(&self, spec: RunSpec) -> RunSpec {
        let (context, run) = (Arc::downgrade(&self.context), self.place.run.clone());
        let secrets = self.secrets.clone();
        spec.also_on_placement(move |progress| {
            let Some(context) = context.upgrade() else {
                return;
            };
            let event = EventKind::Placing {
                reason: secrets.redact(&progress.reason),
                message: secrets.redact(&progress.message),
            };
            context.event_bus.emit(&run, event);
        })
    }
}

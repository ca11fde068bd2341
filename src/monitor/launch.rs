//! The launch of a run: from its intent to a container that runs, with its output
//! and input connected.
//!
//! Each stage is a type that holds what is known by then, so that a step cannot
//! be taken too early. [`Monitor::launch`] runs the stages and handles every
//! failure in one place.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, timeout};

use crate::audit::Started;
use crate::capture::Capture;
use crate::error::{Error, RuntimeError, chain};
use crate::events::EventKind;
use crate::monitor::context::Context;
use crate::monitor::entry::{PipeState, StopRequest, lock};
use crate::monitor::output::Source;
use crate::monitor::run_file::write;
use crate::monitor::start::InitialAttach;
use crate::monitor::wait::LateAnswer;
use crate::monitor::{Monitor, StartTimes};
use crate::outcome::Ending;
use crate::root::RunFile;
use crate::runtime::{CreateRequest, EngineInfo, InputWriter, Inspection};
use crate::spec::{ContainerId, RunSpec};
use crate::state::Transition;
use crate::timestamp::Timestamp;

/// Timeout of an inspection, a resize or a question about the engine during the start.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time beyond the time limit and the grace period after which the container of a
/// live owner counts as expired. It covers the calls to the engine.
const DEADLINE_SLACK: Duration = Duration::from_secs(120);

/// The shortest time in placement by which the recorded deadline of the run is advanced.
///
/// Engines that place a container at its creation answer at once, so they pay for no second write.
const SLOW_PLACEMENT: Duration = Duration::from_secs(1);

/// A launch that failed.
pub(super) enum LaunchError {
    /// No container was created.
    NotCreated(RuntimeError),
    /// The container exists, and its start was not requested.
    NotStarted(RuntimeError),
    /// The start failed, and the ending of the run is known.
    Ended(Ending, RuntimeError),
}

/// The state that every stage works on.
///
/// The file and the capture are borrowed, because they outlive a canceled launch.
struct Launching<'a> {
    monitor: &'a mut Monitor,
    context: Arc<Context>,
    spec: &'a RunSpec,
    file: &'a mut RunFile,
    capture: &'a mut Capture,
}

/// A run that is recorded, before the first request to the engine.
struct Intended<'a>(Launching<'a>);

/// A run whose image is present and whose engine is recorded.
struct Prepared<'a>(Launching<'a>);

/// A run whose container exists.
struct Created<'a> {
    launching: Launching<'a>,
    container: ContainerId,
    warnings: Vec<String>,
}

/// A run whose container is recorded and placed, and whose output and input are connected.
struct Attached<'a> {
    created: Created<'a>,
    source: Source,
    input: Option<InputWriter>,
}

/// A run whose container has started.
pub(super) struct Running {
    pub(super) source: Source,
    /// The `started` record. The watch writes it with the output, because from
    /// the start on nothing may wait for the sink.
    pub(super) started: Started,
    pub(super) input: Option<InputWriter>,
    pub(super) check: StartCheck,
}

/// The outcome of the start request and of the inspection after it.
pub(super) enum StartCheck {
    /// The engine has answered both.
    Done,
    /// A call has failed. The engine may have been restarted since.
    Failed,
    /// The engine has not answered the inspection yet. The connection is not broken.
    Late(LateAnswer),
}

impl<'a> Intended<'a> {
    /// Waits for a permit and pulls the image. Records the engine's id meanwhile, if no run of this
    /// manager has asked for it yet.
    async fn prepare(mut self) -> Result<Prepared<'a>, LaunchError> {
        self.acquire_permit().await?;
        let Launching {
            monitor,
            context,
            spec,
            file,
            capture,
        } = &mut self.0;
        let engine = async {
            match context.last_engine() {
                Some(engine) if engine.id == file.record.engine_id => Ok(None),
                _ => record_engine(context, file).await,
            }
        };
        let prepared = async { tokio::try_join!(context.runtime.prepare(spec), engine) };
        (_, monitor.engine) = tokio::select! {
            prepared = prepared => prepared.map_err(LaunchError::NotCreated)?,
            stop = monitor.next_stop() => {
                let error = monitor.record_early_stop(stop, capture).await;
                return Err(LaunchError::NotCreated(error));
            }
        };
        Ok(Prepared(self.0))
    }

    /// Waits until the limit on concurrent runs admits this run.
    async fn acquire_permit(&mut self) -> Result<(), LaunchError> {
        let Launching {
            monitor,
            context,
            capture,
            ..
        } = &mut self.0;
        let Some(concurrency) = context.concurrency.as_ref().filter(|_| !monitor.is_service) else {
            return Ok(());
        };
        monitor.permit = Arc::clone(concurrency).try_acquire_owned().ok();
        if monitor.permit.is_some() {
            return Ok(());
        }
        monitor.emit(EventKind::Waiting);
        let permit = Arc::clone(concurrency).acquire_owned();
        monitor.permit = tokio::select! {
            permit = permit => permit.ok(),
            stop = monitor.next_stop() => {
                let error = monitor.record_early_stop(stop, capture).await;
                return Err(LaunchError::NotCreated(error));
            }
        };
        Ok(())
    }
}

impl<'a> Prepared<'a> {
    /// Creates the container. Asks the engine for its id meanwhile, if the recorded id is from an
    /// earlier run.
    async fn create(self) -> Result<Created<'a>, LaunchError> {
        let Self(mut launching) = self;
        let Launching {
            monitor,
            context,
            spec,
            file,
            ..
        } = &mut launching;
        let name = file.record.container_name();
        let settings = &file.record.settings;
        let limit = settings.time_limit;
        let expiry = limit.map(|limit| limit + settings.stop_grace + DEADLINE_SLACK);
        let run = monitor.place.run.clone();
        let request = CreateRequest::new(&name, &file.record.root, &run, spec)
            .deadline(expiry.map(|expiry| Timestamp::now().saturating_add(expiry)));
        let calls = monitor.calls.clone();
        let created = context.runtime.create(request);
        let created = calls.track("create the container", created);
        let asked = async {
            monitor.ask_engine().await;
            Ok(())
        };
        let created = match tokio::try_join!(created, asked) {
            Ok((created, ())) => created,
            Err(error) => {
                if !error.is_definitive() {
                    monitor.remove_late_create().await;
                }
                return Err(LaunchError::NotCreated(error));
            }
        };
        let container = created.container;
        monitor.publish(Transition::Created(container.clone()));
        file.record.container = Some(container.clone());
        if let Some(engine) = &monitor.engine {
            file.record.engine_id = engine.id.clone();
        }
        file.record.deadline = limit.map(|limit| Timestamp::now().saturating_add(limit));
        let mut warnings = std::mem::take(&mut *lock(&monitor.pull_warnings));
        warnings.extend(created.warnings);
        Ok(Created {
            launching,
            container,
            warnings,
        })
    }
}

impl<'a> Created<'a> {
    /// Waits until the engine has placed the container, and connects the output and the input of an
    /// initial attachment. Records the container's id meanwhile: it must be on the disk before the
    /// start.
    async fn attach(mut self, attach: Option<InitialAttach>) -> Result<Attached<'a>, LaunchError> {
        let Launching {
            monitor,
            context,
            spec,
            file,
            capture,
        } = &mut self.launching;
        let runtime = &context.runtime;
        let tty = file.record.settings.tty;
        let recorded = write(context, file);
        let connected = async {
            let called = Instant::now();
            tokio::select! {
                placed = runtime.place(&self.container, spec) => {
                    placed.map_err(LaunchError::NotStarted)?;
                }
                stop = monitor.next_stop() => {
                    let error = monitor.record_early_stop(stop, capture).await;
                    return Err(LaunchError::NotStarted(error));
                }
            }
            let placed_after = called.elapsed();
            if !runtime.capabilities().attach_before_start {
                return Ok((Source::Follow, placed_after));
            }
            let tap = runtime.attach(&self.container, tty);
            let tap = monitor.calls.track("attach to the container", tap);
            let tap = tap.await.map_err(LaunchError::NotStarted)?;
            Ok((Source::Tap(tap), placed_after))
        };
        let (source, placed_after) = record_and(recorded, connected).await?;
        if placed_after >= SLOW_PLACEMENT
            && let Some(limit) = file.record.settings.time_limit
        {
            // The time limit begins at the start, and a recovering manager reads the deadline.
            file.record.deadline = Some(Timestamp::now().saturating_add(limit));
            monitor.persist_run_file(file).await;
        }
        let mut input = None;
        if let Some(attach) = attach {
            if let Err(error) = capture.write(vec![attach.note]).await {
                monitor.report_blocked(&error);
            }
            if attach.input {
                let writer = runtime.stdin(&self.container).await;
                input = Some(writer.map_err(LaunchError::NotStarted)?);
                *lock(&monitor.pipe) = PipeState::Taken;
            }
        }
        Ok(Attached {
            created: self,
            source,
            input,
        })
    }
}

impl Attached<'_> {
    /// Starts the container.
    async fn start(self) -> Result<Running, LaunchError> {
        let Created {
            launching,
            container,
            warnings,
        } = self.created;
        let mut source = self.source;
        let Launching {
            monitor,
            context,
            file,
            capture,
            ..
        } = launching;
        if let Ok(request) = monitor.stops.try_recv() {
            let error = monitor.record_early_stop(request, capture).await;
            return Err(LaunchError::NotStarted(error));
        }
        let (at, requested) = (Instant::now(), Timestamp::now());
        let mut interrupted = false;
        let started = context.runtime.start(&container);
        if let Err(error) = monitor.calls.track("start the container", started).await {
            source = monitor
                .confirm_start(file, &container, source, error)
                .await?;
            interrupted = true;
        }
        monitor.start_times = Some(StartTimes {
            at,
            requested,
            answered: Timestamp::now(),
        });
        resize(&context, file, &container).await;
        let (inspection, mut check) = inspect_started(&context, &container).await;
        if interrupted {
            check = StartCheck::Failed;
        }
        let started = monitor.started(&container, inspection, warnings).await;
        let tapped = matches!(source, Source::Tap(_));
        monitor
            .snapshot
            .send_modify(|snapshot| snapshot.tapped = tapped);
        monitor.publish(Transition::Started(started.started_at));
        Ok(Running {
            source,
            started,
            input: self.input,
            check,
        })
    }
}

/// Asks the engine for its id, and records it.
///
/// The next request may create a container that no other engine finds.
async fn record_engine(
    context: &Context,
    file: &mut RunFile,
) -> Result<Option<EngineInfo>, RuntimeError> {
    let engine = context.ask_engine().await.ok();
    file.record.engine_id = engine.as_ref().and_then(|engine| engine.id.clone());
    if file.record.engine_id.is_some()
        && let Err(error) = write(context, file).await
    {
        return Err(RuntimeError::Rejected {
            operation: "create the container",
            reason: format!("cannot record the id of its engine: {}", error.chain()),
        });
    }
    Ok(engine)
}

/// Awaits the recording of the container's id, and `connected` at the same time.
///
/// An id that cannot be recorded ends the launch at once, because `connected` has no deadline.
/// Otherwise the recording completes, whatever the other result is.
async fn record_and<T>(
    recorded: impl Future<Output = Result<(), Error>>,
    connected: impl Future<Output = Result<T, LaunchError>>,
) -> Result<T, LaunchError> {
    let recorded = async {
        recorded.await.map_err(|error| {
            LaunchError::NotStarted(RuntimeError::Rejected {
                operation: "start the container",
                reason: format!("cannot record its id: {}", error.chain()),
            })
        })
    };
    let (mut recorded, mut connected) = (pin!(recorded), pin!(connected));
    tokio::select! {
        recorded = &mut recorded => {
            recorded?;
            connected.await
        }
        connected = &mut connected => {
            recorded.await?;
            connected
        }
    }
}

/// Sets the window size of a started container.
async fn resize(context: &Context, file: &RunFile, container: &ContainerId) {
    let Some(size) = file.record.settings.window else {
        return;
    };
    // Changes nothing if the engine set the size at the creation.
    match timeout(INSPECT_TIMEOUT, context.runtime.resize(container, size)).await {
        Ok(Err(error)) => tracing::warn!(%container, %error, "cannot set the window size"),
        Err(_) => tracing::warn!(%container, "cannot set the window size: timed out"),
        Ok(Ok(())) => {}
    }
}

/// Inspects a started container.
///
/// Returns none if the engine does not answer in time: the container's output must be read meanwhile.
async fn inspect_started(
    context: &Context,
    container: &ContainerId,
) -> (Option<Inspection>, StartCheck) {
    let (runtime, id) = (Arc::clone(&context.runtime), container.clone());
    let mut inspection = async move { runtime.inspect(&id).await }.boxed();
    match timeout(INSPECT_TIMEOUT, &mut inspection).await {
        Ok(Ok(inspection)) => (Some(inspection), StartCheck::Done),
        Ok(Err(error)) => {
            tracing::warn!(%container, %error, "cannot inspect the container");
            (None, StartCheck::Failed)
        }
        Err(_) => (None, StartCheck::Late(inspection)),
    }
}

impl Monitor {
    /// Launches the run. A container that was created and does not run is removed.
    pub(super) async fn launch(
        &mut self,
        spec: &RunSpec,
        attach: Option<InitialAttach>,
        file: &mut RunFile,
        capture: &mut Capture,
    ) -> Result<Running, (Ending, RuntimeError)> {
        let intended = Intended(Launching {
            context: Arc::clone(&self.context),
            monitor: self,
            spec,
            file,
            capture,
        });
        let stages = async {
            let prepared = intended.prepare().await?;
            let created = prepared.create().await?;
            let attached = created.attach(attach).await?;
            attached.start().await
        };
        match stages.await {
            Ok(running) => Ok(running),
            Err(LaunchError::NotCreated(error)) => Err((Ending::not_created(chain(&error)), error)),
            Err(LaunchError::NotStarted(error)) => Err(self.abandon(file, error).await),
            Err(LaunchError::Ended(ending, error)) => Err((ending, error)),
        }
    }

    /// Asks the engine for its version and id, unless it has told them for this run.
    pub(super) async fn ask_engine(&mut self) {
        if self.engine.is_none() {
            let answer = timeout(INSPECT_TIMEOUT, self.context.ask_engine()).await;
            self.engine = answer.ok().and_then(Result::ok);
        }
    }

    /// Waits for a stop request. Cancel-safe.
    async fn next_stop(&mut self) -> StopRequest {
        match self.stops.recv().await {
            Some(request) => request,
            None => pending().await,
        }
    }

    async fn record_early_stop(
        &mut self,
        request: StopRequest,
        capture: &mut Capture,
    ) -> RuntimeError {
        let stop = self.early_stop(request);
        if let Err(error) = capture.write(vec![stop]).await {
            self.report_blocked(&error);
        }
        RuntimeError::Rejected {
            operation: "start the container",
            reason: "the run was stopped before its start".into(),
        }
    }

    /// Removes the container of an unanswered create request, if it exists.
    ///
    /// A container that appears later is an orphan that never starts. The next
    /// opening of the root removes it.
    async fn remove_late_create(&mut self) {
        let (runtime, run) = (&self.context.runtime, &self.place.run);
        match runtime.find(self.context.root.id()).await {
            Ok(found) => {
                for found in found.iter().filter(|found| found.run == *run) {
                    let removed = runtime.remove(&found.container, false).await;
                    tracing::warn!(%run, ?removed, "tried to remove a container that was created late");
                }
            }
            Err(error) => {
                tracing::warn!(%run, %error, "cannot look for a container that was created late");
            }
        }
    }

    /// Removes a container whose start was not requested.
    async fn abandon(&mut self, file: &mut RunFile, error: RuntimeError) -> (Ending, RuntimeError) {
        let ending = self.failed_to_start(&error);
        if let Some(container) = file.record.container.clone()
            && let Err(error) = self
                .remove_unstarted(file, &container, ending.clone())
                .await
        {
            tracing::warn!(%container, %error, "cannot remove a container that never started");
        }
        (ending, error)
    }

    pub(super) fn failed_to_start(&self, error: &RuntimeError) -> Ending {
        Ending::failed_to_start(chain(error)).redacted(|reason| self.secrets.redact(reason))
    }

    /// Removes a container that has not started. Success means that the container
    /// does not run, and never will.
    ///
    /// The ending is persisted first. If this process died between the removal and
    /// the seal, the recovering manager would find no container, and no cause.
    pub(super) async fn remove_unstarted(
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
}

//! The monitor of an exec: one more command in a run's container, with its own log.

mod lost;
mod watch_end;

use std::future::pending;
use std::iter;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) use self::lost::{LostExec, seal_lost, seal_lost_of_ended, take_over_lost};
use self::watch_end::{ExecWatch, report_kill_failures};
use crate::audit::{Event, ExecCreated, Gap, GapReason, Resume, ResumeCause};
use crate::capture::{Capture, PumpEnd};
use crate::error::{Error, Result, RuntimeError, chain};
use crate::monitor::Monitor;
use crate::monitor::calls::ExecTarget;
use crate::monitor::context::Context;
use crate::monitor::entry::{PipeState, close_stdin, lock};
use crate::monitor::evidence::{EOF_TOLERANCE, late_drain, past_limit};
use crate::monitor::machine::{ExitReport, Limits, Machine, Setup};
use crate::monitor::output::{PumpOutcome, read_tap};
use crate::monitor::seal::{SealFacts, build_seal, reopen_log};
#[cfg(feature = "sign")]
use crate::monitor::signature::sign_exec;
use crate::monitor::start::StartError;
use crate::monitor::wait::Backoff;
use crate::monitor::watch::{Target, WatchEnd};
use crate::outcome::{Ending, Evidence, Exit, Seal};
use crate::runtime::{AttachedOutput, DrainLimit, ExecId, InputWriter, Runtime, StartedExec};
use crate::sink::{Resumed, RunPlace};
use crate::spec::{ContainerId, ExecSpec, LimitAction, Secrets, Settings, Stdin};
use crate::state::Transition;

/// Longest wait for the exit code after the output and the container have ended.
const EXIT_CODE_TIMEOUT: Duration = Duration::from_secs(5);

/// The standard input of an exec while no attachment has it.
///
/// Dropping the slot closes a pipe. Otherwise, a process that reads its input to the end would
/// wait for as long as its container runs.
pub(crate) struct StdinSlot {
    pub(crate) writer: Mutex<Option<InputWriter>>,
    mode: Stdin,
}

impl Drop for StdinSlot {
    fn drop(&mut self) {
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer
            && self.mode == Stdin::Pipe
        {
            close_stdin(writer);
        }
    }
}

/// A started exec.
pub(crate) struct ExecStarted {
    pub(crate) id: ExecId,
    pub(crate) input: Arc<StdinSlot>,
    /// The reason that the last attempt to kill the exec failed.
    pub(crate) kill_failure: watch::Receiver<Option<Arc<RuntimeError>>>,
}

type Reply = oneshot::Sender<Result<ExecStarted, StartError>>;

/// The ending of an exec, and the evidence for its capture.
struct ExecOutcome {
    ending: Ending,
    evidence: Evidence,
    gaps: Vec<Gap>,
}

impl ExitReport for ExecOutcome {
    fn ending(&self) -> &Ending {
        &self.ending
    }
}

impl Monitor {
    /// Starts an exec, and watches it until its log is sealed or the manager closes.
    pub(crate) async fn run_exec(
        mut self,
        container: ContainerId,
        spec: ExecSpec,
        capture: Capture,
        reply: Reply,
    ) {
        let context = Arc::clone(&self.context);
        let task = AssertUnwindSafe(self.start_and_watch_exec(container, spec, capture, reply));
        tokio::select! {
            biased;
            result = task.catch_unwind() => {
                let _ = self.report_panic(result);
            }
            () = context.shutdown_grace_elapsed() => {}
        }
        self.hub.close();
    }

    /// Starts an exec, and watches it until its log is sealed.
    ///
    /// Returns `None` if the manager closes first. The next opening then seals the log.
    async fn start_and_watch_exec(
        &mut self,
        container: ContainerId,
        spec: ExecSpec,
        mut capture: Capture,
        reply: Reply,
    ) -> Option<()> {
        self.secrets = spec.secrets().with_masks(&self.known_masks().values());
        self.publish(Transition::Created(container.clone()));
        let mode = spec.stdin();
        let started = self.start_exec(&container, spec, &mut capture).await?;
        let (
            StartedExec {
                id, output, input, ..
            },
            mut records,
        ) = match started {
            Ok(started) => started,
            Err(error) => {
                let error = error.map_reason(|reason| self.secrets.redact(reason));
                let ending = Ending::failed_to_start(chain(&error));
                self.publish(Transition::Ended(ending.clone()));
                let _ = reply.send(Err(StartError::NotStarted(error)));
                let outcome = ExecOutcome {
                    ending,
                    evidence: Evidence::NeverStarted,
                    gaps: Vec::new(),
                };
                return self.seal_exec(capture, outcome, Vec::new()).await;
            }
        };
        let started = self.started(&container, None, Vec::new()).await;
        records.push(Event::Started(Box::new(started)));
        self.publish(Transition::Started(None));
        let (failure, kill_failure) = watch::channel(None);
        self.calls.set_exec(ExecTarget {
            id: id.clone(),
            failure,
        });
        let exec = ExecStarted {
            kill_failure: kill_failure.clone(),
            id: id.clone(),
            input: Arc::new(StdinSlot {
                writer: Mutex::new(input),
                mode,
            }),
        };
        if reply.send(Ok(exec)).is_err() {
            // The caller is gone, and the input with it.
            *lock(&self.pipe) = PipeState::Ended;
        }
        let (outcome, unwritten) = self
            .capture_exec(&container, &id, output, records, &mut capture, kill_failure)
            .await?;
        self.seal_exec(capture, outcome, unwritten).await
    }

    /// Starts an exec, and returns it with the records of its start.
    ///
    /// The id of an exec that moat may have to kill is recorded before the engine starts the exec.
    /// If this process dies, the next owner can then kill it. A runtime that does not report the id
    /// before the start leaves a moment in which the exec runs and its id is not recorded.
    ///
    /// Returns `None` if the manager closes first.
    async fn start_exec(
        &mut self,
        container: &ContainerId,
        mut spec: ExecSpec,
        capture: &mut Capture,
    ) -> Option<Result<(StartedExec, Vec<Event>), RuntimeError>> {
        let (is_bounded, has_token) = (spec.has_stop(), spec.stop_token().is_some());
        let mut reported_ids = is_bounded.then(|| spec.reported_ids());
        let reported_id = async {
            match &mut reported_ids {
                Some(ids) => {
                    let id = ids.recv().await;
                    ids.close();
                    id
                }
                None => None,
            }
        };
        let context = Arc::clone(&self.context);
        let closing = &context.closing;
        let start = closing.run_until_cancelled(context.runtime.exec(container, &spec));
        let mut start = pin!(start);
        let mut is_recorded = false;
        let started = tokio::select! {
            biased;
            started = &mut start => started?,
            Some((id, recorded)) = reported_id => {
                let created = ExecCreated::new(id, has_token);
                match capture.write(vec![Event::ExecCreated(created)]).await {
                    Ok(()) => {
                        is_recorded = true;
                        let _ = recorded.send(());
                    }
                    // The runtime does not start the exec.
                    Err(error) => {
                        self.report_blocked(&error);
                        drop(recorded);
                    }
                }
                start.await?
            }
        };
        Some(started.map(|exec| {
            let created = ExecCreated::new(exec.id.as_str(), has_token);
            let created = (is_bounded && !is_recorded).then_some(Event::ExecCreated(created));
            (exec, created.into_iter().collect())
        }))
    }

    /// Watches a started exec with the machine of a run.
    ///
    /// Returns the records that are not written yet, or `None` if the manager closes.
    async fn capture_exec(
        &mut self,
        container: &ContainerId,
        id: &ExecId,
        output: AttachedOutput,
        records: Vec<Event>,
        capture: &mut Capture,
        kill_failure: watch::Receiver<Option<Arc<RuntimeError>>>,
    ) -> Option<(ExecOutcome, Vec<Event>)> {
        let record = capture.progress.record.as_ref();
        let settings = record
            .map(|record| record.settings.clone())
            .unwrap_or_default();
        let (mut target, mut signals) = Target::new(self, capture, container, &settings, None);
        // Written with the output: from here on, a slow sink must not delay the tap.
        records.into_iter().for_each(|record| target.record(record));
        let end_marker = output.end_marker;
        let (tap_ended, tap_end) = oneshot::channel();
        let runtime = Arc::clone(&self.context.runtime);
        let drain = runtime.capabilities().exec_drain;
        let watch = ExecWatch {
            runtime: &*runtime,
            container,
            id,
            stats: Arc::clone(capture.stats()),
            cut: CancellationToken::new(),
            engine_cuts: drain.is_some(),
            last_running: Mutex::new(Instant::now()),
        };
        let stream = output
            .stream
            .take_until(watch.cut.clone().cancelled_owned());
        let mut tap = Box::pin(async {
            let end = match capture.needs_log() {
                true => PumpEnd::Stalled,
                false => read_tap(capture, stream.boxed(), drain, &mut signals).await,
            };
            let _ = tap_ended.send(end);
            PumpOutcome::default()
        });
        let closing = self.context.closing.clone();
        let secrets = self.secrets.clone();
        let reports = report_kill_failures(kill_failure, target.recorder(), &secrets);
        let end = watch.end(tap_end, end_marker, &secrets, &closing);
        let exit = pin!(async {
            tokio::select! {
                exit = end => exit,
                () = reports => pending().await,
            }
        });
        let machine = Machine::new(Instant::now(), setup(&settings));
        let watched = self.drive(machine, &mut target, exit, tap.as_mut()).await;
        drop(tap);
        let mut unwritten = signals.drain();
        match watched {
            WatchEnd::Done { mut exit, .. } => {
                let is_end = exit.evidence != Evidence::None;
                if let Err(error) = capture.finish_masking(is_end).await {
                    self.report_blocked(&error);
                }
                exit.add_output_gaps(drain, capture);
                unwritten.extend(iter::from_fn(|| self.notes.try_recv().ok()));
                Some((exit, unwritten))
            }
            WatchEnd::Closing(stops) => {
                unwritten.extend(stops);
                self.flush_on_shutdown(capture, unwritten).await;
                None
            }
        }
    }

    /// Retries until the log is sealed. Returns `None` if the manager closes first.
    async fn seal_exec(
        &mut self,
        mut capture: Capture,
        mut outcome: ExecOutcome,
        mut unwritten: Vec<Event>,
    ) -> Option<()> {
        let mut backoff = Backoff::new();
        let seal = loop {
            match self
                .try_seal_exec(&mut capture, &mut outcome, &mut unwritten)
                .await
            {
                Ok(seal) => break seal,
                Err(error) => self.report_blocked(&error),
            }
            let closing = &self.context.closing;
            closing.run_until_cancelled(backoff.pause()).await?;
        };
        record_seal(&self.context, &self.place, &seal).await;
        let last_lines = capture.progress.last_lines();
        #[cfg(feature = "sign")]
        let sha256 = seal.sha256.clone();
        self.snapshot.send_modify(|snapshot| {
            snapshot.seal = Some(seal);
            snapshot.problem = None;
            snapshot.last_lines = last_lines;
            snapshot.ownership_known = true;
        });
        #[cfg(feature = "sign")]
        sign_exec(&self.context, &self.place, &sha256).await;
        Some(())
    }

    async fn try_seal_exec(
        &mut self,
        capture: &mut Capture,
        outcome: &mut ExecOutcome,
        unwritten: &mut Vec<Event>,
    ) -> Result<Seal> {
        if capture.needs_log() {
            let (resumed, progress) = reopen_log(&self.context, &self.place).await?;
            match resumed {
                Resumed::Sealed(seal) => return Ok(seal),
                Resumed::Open { log, torn } => {
                    capture.resume(progress, log);
                    let mut records = vec![Event::Resume(Resume::new(ResumeCause::Sink, torn))];
                    records.extend(capture.unwritten());
                    capture.write(records).await?;
                    outcome.add_sink_gap();
                }
                Resumed::Absent => {
                    self.restore_log(capture).await?;
                    if capture.has_lost() {
                        outcome.add_sink_gap();
                    }
                }
            }
        }
        write_seal(capture, outcome, unwritten).await
    }

    /// Creates the log of the exec again after it was removed externally.
    ///
    /// The engine keeps no log of an exec, so only records that the capture still has are restored.
    async fn restore_log(&mut self, capture: &mut Capture) -> Result<()> {
        let Some(record) = capture.progress.record.clone() else {
            return Err(Error::Damaged {
                path: self.place.dir.clone(),
                reason: "the log of the exec is missing".into(),
            });
        };
        let (run, container) = (record.run.clone(), record.container.clone());
        self.context
            .on_disk("read a run in", move |root| match root.read_run(&run)? {
                Some(file) if file.record.container == container => Ok(()),
                // The run was removed. Another run may have its id.
                _ => Err(root.no_such_run(&run)),
            })
            .await?;
        let (progress, log) = self.open_log(&record).await?;
        capture.resume(progress, log);
        capture.write(capture.unwritten()).await
    }
}

impl ExecOutcome {
    /// Adds the gap of a sink that lost records, unless another gap says that output is missing.
    fn add_sink_gap(&mut self) {
        self.evidence = Evidence::None;
        if self.gaps.is_empty() {
            self.gaps.push(Gap::new(GapReason::Sink));
        }
    }

    /// Adds the gaps of output that the engine or the output limit discarded.
    fn add_output_gaps(&mut self, drain: Option<DrainLimit>, capture: &Capture) {
        if let Some(drain) = drain {
            let cut_off = late_drain(drain, capture.lateness(), &capture.received());
            self.gaps.extend(cut_off.into_iter().map(Gap::from));
        }
        let past_limit = past_limit(&capture.dropped(), self.evidence);
        self.gaps.extend(past_limit.into_iter().map(Gap::from));
    }

    /// The outcome of an exec that can no longer be observed.
    fn lost(reason: String) -> Self {
        Self {
            ending: Ending::Lost { reason },
            evidence: Evidence::None,
            gaps: vec![Gap::new(GapReason::NoBackstop)],
        }
    }
}

/// Returns the outcome of an exec whose output did not end cleanly.
///
/// The engine keeps no log of an exec, so the output cannot be read again.
fn broken_exec(end: PumpEnd, secrets: &Secrets) -> Option<ExecOutcome> {
    let reason = match end {
        PumpEnd::Eof => return None,
        PumpEnd::Broken(error) => {
            let error = error.map_reason(|reason| secrets.redact(reason));
            format!("the connection was lost: {error}")
        }
        PumpEnd::Stalled | PumpEnd::Silent(_) | PumpEnd::Shutdown => {
            "the sink of its log stalled".into()
        }
        PumpEnd::Sink(error) => format!("its log failed: {}", error.chain()),
    };
    Some(ExecOutcome::lost(reason))
}

/// Returns the limits of an exec's settings.
fn setup(settings: &Settings) -> Setup {
    let output_limit = settings.output_limit;
    Setup {
        limits: Limits {
            time_limit_at: settings.time_limit.map(|limit| Instant::now() + limit),
            stop_at_output_limit: output_limit
                .is_some_and(|limit| limit.action == LimitAction::Stop),
        },
        silence_limit: settings.silence_limit,
        ..Setup::default()
    }
}

/// Waits for the end of an exec whose output has ended cleanly.
async fn wait_exec(
    runtime: &dyn Runtime,
    container: &ContainerId,
    id: &ExecId,
    end_marker: bool,
) -> ExecOutcome {
    let mut backoff = Backoff::new();
    let mut container_ended = None;
    let eof = Instant::now();
    let mut outlived_output = false;
    let code = loop {
        match runtime.exec_inspect(id).await {
            Ok(inspection) if !inspection.running => break inspection.code,
            // The process has closed its output and still runs, or the connection was cut.
            Ok(_) => outlived_output = eof.elapsed() > EOF_TOLERANCE,
            Err(error) if error.is_definitive() => break None,
            Err(error) => tracing::warn!(%container, %error, "cannot inspect the exec: retrying"),
        }
        let now = Instant::now();
        match runtime.inspect(container).await {
            Ok(inspection) if inspection.code.is_none() => container_ended = None,
            Err(error) if !error.is_definitive() => {}
            _ => {
                let ended_at = *container_ended.get_or_insert(now);
                if ended_at + EXIT_CODE_TIMEOUT < now {
                    break None;
                }
            }
        }
        backoff.pause().await;
    };
    match code {
        Some(code) if end_marker => ExecOutcome {
            ending: Ending::Exited(Exit::with_code(code)),
            evidence: Evidence::EndMarker,
            gaps: Vec::new(),
        },
        // A process may close its output long before it ends. A connection that was cut looks the
        // same, and there is no log to compare the capture with.
        Some(code) if outlived_output => ExecOutcome {
            ending: Ending::Exited(Exit::with_code(code)),
            evidence: Evidence::None,
            gaps: vec![Gap::possible(GapReason::NoBackstop)],
        },
        Some(code) => ExecOutcome {
            ending: Ending::Exited(Exit::with_code(code)),
            evidence: Evidence::Eof,
            gaps: Vec::new(),
        },
        None => ExecOutcome {
            gaps: vec![Gap::possible(GapReason::NoBackstop)],
            ..ExecOutcome::lost(
                "its container ended before the engine reported its exit code".into(),
            )
        },
    }
}

/// Writes the last records and the seal of an exec's log.
async fn write_seal(
    capture: &mut Capture,
    outcome: &mut ExecOutcome,
    unwritten: &mut Vec<Event>,
) -> Result<Seal> {
    let mut records = unwritten.clone();
    let gaps = outcome.gaps.iter();
    let gaps = gaps.filter(|gap| !capture.progress.has_gap(gap.reason, gap.stream));
    records.extend(gaps.cloned().map(Event::Gap));
    capture.finish_lines().await?;
    capture.write(records).await?;
    unwritten.clear();
    let record = capture.progress.record.as_ref();
    let facts = SealFacts {
        ending: outcome.ending.clone(),
        evidence: outcome.evidence,
        container: record.and_then(|record| record.container.clone()),
        stopped: capture.progress.stopped,
        usage: None,
        masked: capture.masking().count,
        captured: Duration::ZERO,
    };
    let seal = build_seal(&capture.progress, facts);
    capture.seal(seal).await
}

/// Writes the seal of an exec to the ledger.
///
/// If that fails, a verification of the root reports the seal as not recorded.
async fn record_seal(context: &Context, place: &RunPlace, seal: &Seal) {
    let (run, exec, seal) = (place.run.clone(), place.exec, seal.clone());
    let recorded = context
        .on_disk("record the seal of an exec in", move |root| match exec {
            // A sink may keep its files elsewhere.
            Some(exec) if root.exec_audit(&run, exec).exists() => {
                root.record_exec_seal(&run, exec, &seal)
            }
            _ => Ok(()),
        })
        .await;
    if let Err(error) = recorded {
        let (run, number) = (&place.run, place.exec);
        tracing::warn!(%run, number, error = %error.chain(), "the seal of an exec is not in the ledger");
    }
}

//! The monitor's part of a further process in a container.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::audit::{Event as Record, Gap, GapReason, Resume, ResumeCause};
use crate::capture::{Capture, Hub, PumpEnd, Signals};
use crate::error::{Error, Result, chain};
use crate::monitor::Monitor;
use crate::monitor::context::Context;
use crate::monitor::entry::{Pipe, close_stdin, lock};
use crate::monitor::seal::{EARLY, read, reading};
use crate::monitor::start::StartError;
use crate::monitor::wait::Backoff;
use crate::outcome::{Ending, Evidence, Exit, Seal, Verdict};
use crate::runtime::{ExecId, InputWriter, StartedExec};
use crate::sink::{Resumed, RunPlace};
use crate::spec::{ContainerId, ExecSpec, RunId, Stdin};
use crate::state::Transition;
use crate::timestamp::Timestamp;

/// How long the end of a process may be unknown after its output has come to its end, and its
/// container has ended, too.
const KNOWN_AFTER: Duration = Duration::from_secs(5);

/// The writing end of a further process's input while nobody has it.
///
/// Where nobody ever asks for a pipe, the process sees its end all the same: it would wait for it
/// for as long as its container runs.
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

/// What is known once it runs.
pub(crate) struct ExecStarted {
    pub(crate) id: ExecId,
    pub(crate) input: Arc<StdinSlot>,
}

pub(crate) type Reply = oneshot::Sender<Result<ExecStarted, StartError>>;

/// How a further process ended, and what was captured of it.
struct ExecOutcome {
    ending: Ending,
    evidence: Evidence,
    gap: Option<Gap>,
}

impl Monitor {
    pub(crate) async fn run_exec(
        mut self,
        container: ContainerId,
        spec: ExecSpec,
        capture: Capture,
        reply: Reply,
    ) {
        let context = Arc::clone(&self.context);
        let watched = AssertUnwindSafe(self.watch_exec(container, spec, capture, reply));
        tokio::select! {
            biased;
            result = watched.catch_unwind() => {
                let _ = self.unless_it_panicked(result);
            }
            () = context.left() => {}
        }
        self.hub.close();
    }

    /// Sees it to its seal. `None`: the manager closes, and the next opening seals it.
    async fn watch_exec(
        &mut self,
        container: ContainerId,
        spec: ExecSpec,
        mut capture: Capture,
        reply: Reply,
    ) -> Option<()> {
        self.publish(Transition::Created(container.clone()));
        let mode = spec.stdin();
        let context = Arc::clone(&self.context);
        let closing = &context.closing;
        let execed = closing.run_until_cancelled(context.runtime.exec(&container, &spec));
        let execed = execed.await?;
        drop(spec);
        let StartedExec {
            id, output, input, ..
        } = match execed {
            Ok(execed) => execed,
            Err(error) => {
                let error = error.map_reason(|reason| self.secrets.redact(reason));
                let ending = Ending::failed_to_start(chain(&error));
                self.publish(Transition::Ended(ending.clone()));
                let _ = reply.send(Err(StartError::Sealed(error)));
                let rest = ExecOutcome {
                    ending,
                    evidence: Evidence::NeverStarted,
                    gap: None,
                };
                return self.seal_exec(capture, rest, Vec::new()).await;
            }
        };
        let (events, received) = mpsc::unbounded_channel();
        let started = self.started(&container, None, Vec::new()).await;
        // It is written with the output: from here on, nothing may wait for the sink.
        let _ = events.send(Record::Started(Box::new(started)));
        self.publish(Transition::Started(None));
        let begun = ExecStarted {
            id: id.clone(),
            input: Arc::new(StdinSlot {
                writer: Mutex::new(input),
                mode,
            }),
        };
        if reply.send(Ok(begun)).is_err() {
            // Nobody waits for it any more, and its input has gone with it.
            *lock(&self.pipe) = Pipe::Ended;
        }

        let mut signals = Signals {
            events: received,
            typed: self.typed.take().unwrap_or_else(|| mpsc::channel(1).1),
            exited: CancellationToken::new(),
            leaving: closing.clone(),
            limit: CancellationToken::new(),
            recorded: CancellationToken::new(),
        };
        let end = match capture.needs_log() {
            true => PumpEnd::Stalled,
            false => {
                let tap = capture.tap(output, &mut signals);
                tokio::pin!(tap);
                loop {
                    tokio::select! {
                        end = &mut tap => break end,
                        Some(note) = self.notes.recv() => {
                            let _ = events.send(note);
                        }
                    }
                }
            }
        };
        let ended = self.how_it_ended(&container, &id, end);
        let Some(rest) = closing.run_until_cancelled(ended).await else {
            self.flush_on_shutdown(&mut capture, signals.queued()).await;
            return None;
        };
        self.publish(Transition::Ended(rest.ending.clone()));
        let mut left = signals.queued();
        while let Ok(note) = self.notes.try_recv() {
            left.push(note);
        }
        self.seal_exec(capture, rest, left).await
    }

    async fn how_it_ended(
        &mut self,
        container: &ContainerId,
        id: &ExecId,
        end: PumpEnd,
    ) -> ExecOutcome {
        let lost = |reason: String| ExecOutcome {
            ending: Ending::Lost { reason },
            evidence: Evidence::None,
            gap: Some(Gap::new(GapReason::NoBackstop)),
        };
        match end {
            PumpEnd::Eof => {}
            PumpEnd::Broken(error) => {
                let error = error.map_reason(|reason| self.secrets.redact(reason));
                return lost(format!("the connection was lost: {error}"));
            }
            PumpEnd::Stalled | PumpEnd::Silent(_) | PumpEnd::Left => {
                return lost("its log took nothing".into());
            }
            PumpEnd::Sink(error) => return lost(format!("its log failed: {}", error.chain())),
        }
        let runtime = Arc::clone(&self.context.runtime);
        let mut backoff = Backoff::new();
        let mut container_ended = None;
        let eof = tokio::time::Instant::now();
        let mut ran_on = false;
        let code = loop {
            match runtime.exec_inspect(id).await {
                Ok(inspection) if !inspection.running => break inspection.code,
                // It has closed its output, and goes on; or the connection was cut.
                Ok(_) => ran_on = eof.elapsed() > EARLY,
                Err(error) if error.is_definitive() => break None,
                Err(error) => tracing::warn!(%container, %error, "cannot inspect a process yet"),
            }
            let now = tokio::time::Instant::now();
            match runtime.inspect(container).await {
                Ok(inspection) if inspection.code.is_none() => container_ended = None,
                Err(error) if !error.is_definitive() => {}
                _ if *container_ended.get_or_insert(now) + KNOWN_AFTER < now => break None,
                _ => {}
            }
            backoff.pause().await;
        };
        match code {
            // A process may close its output long before it ends; but so ends, too, a connection
            // that was cut, and there is nothing to compare it with.
            Some(code) if ran_on => ExecOutcome {
                ending: Ending::Exited(Exit::with_code(code)),
                evidence: Evidence::None,
                gap: Some(Gap::possible(GapReason::NoBackstop)),
            },
            Some(code) => ExecOutcome {
                ending: Ending::Exited(Exit::with_code(code)),
                evidence: Evidence::Eof,
                gap: None,
            },
            None => ExecOutcome {
                gap: Some(Gap::possible(GapReason::NoBackstop)),
                ..lost("its container ended before the engine told its exit code".into())
            },
        }
    }

    /// Seals the log of a further process: tries until it succeeds, or the manager closes.
    async fn seal_exec(
        &mut self,
        mut capture: Capture,
        mut rest: ExecOutcome,
        mut left: Vec<Record>,
    ) -> Option<()> {
        let mut backoff = Backoff::new();
        let seal = loop {
            match self.try_seal_exec(&mut capture, &mut rest, &mut left).await {
                Ok(seal) => break seal,
                Err(error) => self.report_blocked(&error),
            }
            let closing = &self.context.closing;
            closing.run_until_cancelled(backoff.pause()).await?;
        };
        let last_lines = capture.progress.last_lines();
        self.status.send_modify(|status| {
            status.seal = Some(seal);
            status.problem = None;
            status.last_lines = last_lines;
            status.ownership_known = true;
        });
        Some(())
    }

    async fn try_seal_exec(
        &mut self,
        capture: &mut Capture,
        rest: &mut ExecOutcome,
        left: &mut Vec<Record>,
    ) -> Result<Seal> {
        if capture.needs_log() {
            let (progress, visit) = reading();
            match self.context.sink.resume(&self.place, visit).await? {
                Resumed::Sealed(seal) => return Ok(seal),
                Resumed::Open { log, torn } => {
                    capture.resume(read(&progress), log);
                    let mut records = vec![Record::Resume(Resume::new(ResumeCause::Sink, torn))];
                    records.extend(capture.unwritten());
                    capture.write(records).await?;
                    rest.evidence = Evidence::None;
                    rest.gap.get_or_insert(Gap::new(GapReason::Sink));
                }
                Resumed::Absent => {
                    return Err(Error::Damaged {
                        path: self.place.dir.clone(),
                        reason: "the log of a further process is not there any more".into(),
                    });
                }
            }
        }
        seal_exec(capture, rest, left).await
    }
}

async fn seal_exec(
    capture: &mut Capture,
    rest: &mut ExecOutcome,
    left: &mut Vec<Record>,
) -> Result<Seal> {
    let mut records = left.clone();
    if let Some(gap) = &rest.gap
        && !capture.progress.has_gap(gap.reason, None)
    {
        records.push(Record::Gap(gap.clone()));
    }
    capture.finish_lines().await?;
    capture.write(records).await?;
    left.clear();
    let progress = &capture.progress;
    let container = progress.record.as_ref();
    let container = container.and_then(|record| record.container.clone());
    let seal = Seal {
        ts: Timestamp::now(),
        exit: rest.ending.clone(),
        verdict: match progress.gaps {
            0 => Verdict::Complete,
            _ => Verdict::Gap,
        },
        evidence: rest.evidence,
        records: progress.records,
        bytes: progress.bytes(),
        gaps: progress.gaps,
        stopped: None,
        container,
        image_digest: None,
        usage: None,
        capture_seconds: 0.0,
        sha256: String::new(),
    };
    capture.seal(seal).await
}

/// Seals the logs of further processes whose owner has gone: what became of them nobody knows.
pub(crate) async fn seal_lost(context: &Context, run: &RunId) {
    let id = run.clone();
    let open = context
        .on_disk("look for further processes in", move |root| {
            Ok(root.open_execs(&id))
        })
        .await;
    for number in open.unwrap_or_default() {
        let place = context.place(run).of_exec(number);
        match seal_one(context, &place).await {
            // Its process lives: it is that one's to seal.
            Ok(()) | Err(Error::Owned { .. }) => {}
            Err(error) => {
                tracing::warn!(%run, number, error = %error.chain(), "cannot seal a log");
            }
        }
    }
}

async fn seal_one(context: &Context, place: &RunPlace) -> Result<()> {
    let (progress, visit) = reading();
    let Resumed::Open { log, torn } = context.sink.resume(place, visit).await? else {
        return Ok(());
    };
    let progress = read(&progress);
    let began = progress.started.is_some();
    let mut capture = Capture::new(progress, Arc::new(Hub::default()), log, None);
    let mut rest = ExecOutcome {
        ending: Ending::Lost {
            reason: "the process that ran it has gone, and its connection with it".into(),
        },
        evidence: Evidence::None,
        gap: Some(match began {
            true => Gap::new(GapReason::NoBackstop),
            // It may never have been started.
            false => Gap::possible(GapReason::NoBackstop),
        }),
    };
    let mut left = vec![Record::Resume(Resume::new(ResumeCause::Reopened, torn))];
    seal_exec(&mut capture, &mut rest, &mut left).await?;
    Ok(())
}

//! A further process in a run's container.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::capture::{Capture, Hub, PumpEnd, Signals};
use crate::error::{Error, Result};
use crate::manager::Context;
use crate::manager::attach::{AttachOptions, Attachment};
use crate::manager::exit::Backoff;
use crate::manager::finish::{EARLY, read, reading};
use crate::manager::input::{Input, Pipe, Session, hang_up, lock};
use crate::manager::monitor::Monitor;
use crate::manager::root::{Root, glance};
use crate::manager::run::Run;
use crate::manager::start::NoStart;
use crate::outcome::{Ending, Evidence, Exit, Outcome, Seal, Verdict};
use crate::runtime::{ExecId, Execed, InputWriter, RuntimeError};
use crate::sink::audit::{exec_file, exec_number};
use crate::sink::{
    Action, Event as Record, Gap, GapReason, RecordRef, Resume, ResumeCause, Resumed, RunPlace,
    Start,
};
use crate::spec::{ContainerId, ExecSpec, RunId, RunRecord, Stdin};
use crate::state::Event;
use crate::timestamp::Timestamp;

/// How often a number is tried for that another one was quicker to take.
const TRIES: u32 = 100;
/// How long the end of a process may be unknown after its output has come to its end, and its
/// container has ended, too.
const KNOWN_AFTER: Duration = Duration::from_secs(5);

/// A further process in a run's container, with a log of its own: `exec-1.jsonl` in the run's
/// folder, in the same format. Cheap to clone.
///
/// The engine keeps no log of it, so it is live only: what is lost with the connection is lost,
/// and the log says `gap`. When this process dies, so does the connection; the next opening of the
/// root seals the log, with a gap and an end that nobody knows. So does a process that leaves, by
/// detach keys or otherwise, while this one goes on: it takes the connection with it.
///
/// An input of [`Stdin::Pipe`] that nobody has asked for is at its end when the last clone of this
/// is dropped. Until then a process that reads to the end of its input does not end.
#[derive(Clone)]
pub struct Exec {
    run: Run,
    number: u32,
    id: ExecId,
    input: Arc<Idle>,
    stdin: Stdin,
    record_stdin: bool,
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec")
            .field("run", self.run.id())
            .field("number", &self.number)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The writing end of a further process's input while nobody has it.
///
/// Where nobody ever asks for a pipe, the process sees its end all the same: it would wait for it
/// for as long as its container runs.
pub(super) struct Idle {
    pub(super) writer: Mutex<Option<InputWriter>>,
    mode: Stdin,
}

impl Drop for Idle {
    fn drop(&mut self) {
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer
            && self.mode == Stdin::Pipe
        {
            hang_up(writer);
        }
    }
}

/// What is known once it runs.
struct Begun {
    id: ExecId,
    input: Arc<Idle>,
}

type Reply = oneshot::Sender<Result<Begun, NoStart>>;

impl Exec {
    /// Its number in the run, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its log; `None` where the sink writes no file.
    pub fn audit(&self) -> Option<PathBuf> {
        self.run.audit()
    }

    /// Sits in front of it, as [`Run::attach_with`] does. Input is asked for by one at a time:
    /// that of a terminal can be had again when the one before has dropped it.
    ///
    /// Cancel-safe: dropped in the middle, nobody is attached.
    ///
    /// # Errors
    ///
    /// [`Error::NoInput`], [`Error::Runtime`]. The input of a pipe is still to be had then.
    /// [`Error::Closed`] if input, or a size, was asked for of a manager that is shut down.
    pub async fn attach_with(&self, options: AttachOptions) -> Result<Attachment> {
        let session = Session::new(self.run.clone(), Some(self.id.clone()), true, true);
        if options.input && self.stdin == Stdin::None {
            return Err(self.run.no_input("the spec asks for none"));
        }
        // A pipe has one writer, which a call that fails must not use up.
        if let Some(size) = options.window {
            session.resize(size).await?;
        }
        let mut input = None;
        if options.input {
            if session.is_closed() {
                return Err(Error::Closed);
            }
            let Some(writer) = lock(&self.input.writer).take() else {
                return Err(self.run.no_input("it has its writer, or has ended"));
            };
            session.tell(Action::AttachInput, "attached, with the input");
            let mut connected = Input::new(writer, self.stdin, self.record_stdin, &session);
            if self.stdin == Stdin::Open {
                connected = connected.at_home_in(Arc::clone(&self.input));
            }
            input = Some(connected);
        } else {
            session.tell(Action::Attach, "attached, to look on");
        }
        Ok(Attachment::new(session, options, input))
    }

    /// Looks at its output, from the first byte. Cancel-safe.
    ///
    /// # Errors
    ///
    /// As for [`attach_with`](Self::attach_with).
    pub async fn attach(&self) -> Result<Attachment> {
        self.attach_with(AttachOptions::new()).await
    }

    /// Waits until it has ended and its log is sealed: see [`Run::wait`].
    ///
    /// An end of [`Ending::Lost`] is one that nobody knows: the connection was lost.
    ///
    /// # Errors
    ///
    /// As for [`Run::wait`].
    pub async fn wait(&self) -> Result<Outcome> {
        self.run.wait().await
    }
}

impl Run {
    /// Runs a further process in the container, which must run.
    ///
    /// Its log is there before the engine is asked for anything. It ends with the container at the
    /// latest. It may be called from any process. Dropping this future in the middle leaves a
    /// process that goes on, and a log that is sealed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSpec`]; [`Error::Ended`]; [`Error::NotStarted`], with the outcome of the
    /// further process, if the engine refuses it; [`Error::Storage`] if no log can be made;
    /// [`Error::RunExists`], as a rule, if the sink has one log for each run alone.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Exec> {
        let context = self.inner.context();
        if context.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        spec.validate()?;
        if !context.runtime.capabilities().exec {
            return Err(RuntimeError::Unsupported {
                runtime: context.runtime.name(),
                operation: "run a further process in a container",
            }
            .into());
        }
        self.is_placed().await;
        if self.is_over() {
            return Err(Error::Ended {
                run: self.id().clone(),
            });
        }
        let container = self.container()?;
        let id = self.id().clone();
        let (file, mut number) = context
            .on_disk("read", move |root| {
                Ok((root.read_run(&id)?, root.execs(&id).max().unwrap_or(0) + 1))
            })
            .await?;
        let (image, engine_id) = file
            .map(|file| (file.record.settings.image, file.record.engine_id))
            .unwrap_or_default();
        let settings = spec.settings(&image);
        let record = RunRecord {
            run: self.id().clone(),
            root: context.root.id().clone(),
            created: Timestamp::now(),
            runtime: context.runtime.name().to_owned(),
            engine_id,
            settings,
            env: spec.recorded_env(),
            patched: false,
            container: Some(container.clone()),
            deadline: None,
        };
        let mut start = Start::new(record);
        let last = number + TRIES;
        let (place, log) = loop {
            start.exec = Some(number);
            let place = self.entry.place.of_exec(number);
            match context.sink.open(&place, &start).await {
                Ok(log) => break (place, log),
                Err(Error::RunExists { .. }) if number < last => number += 1,
                Err(error) => return Err(error),
            }
        };
        let (entry, mut monitor) = context.monitor(place);
        let (mut progress, hub) = (crate::capture::Progress::default(), Arc::clone(&entry.hub));
        progress.observe(RecordRef::Event(&Record::Start(Box::new(start))));
        monitor.secrets = spec.secrets();
        let capture = Capture::new(progress, hub, log, None);
        let exec = Run {
            inner: Arc::clone(&self.inner),
            entry,
        };
        let (stdin, record_stdin) = (spec.stdin(), spec.settings("").record_stdin);
        let note = Session::new(self.clone(), None, false, false).record(
            Action::Exec,
            format!(
                "a further process, exec-{number}: {}",
                spec.command().join(" ")
            ),
        );
        self.tell(note);
        let (reply, begun) = oneshot::channel();
        let span = monitor.span();
        context.tasks.spawn(
            monitor
                .run_exec(container, spec, capture, reply)
                .instrument(span),
        );
        match begun.await {
            Ok(Ok(Begun { id, input })) => Ok(Exec {
                run: exec,
                number,
                id,
                input,
                stdin,
                record_stdin,
            }),
            Ok(Err(NoStart::Nothing(error))) => Err(error),
            Ok(Err(NoStart::Sealed(source))) => Err(Error::NotStarted {
                outcome: Box::new(exec.wait().await?),
                source,
            }),
            Err(_) => Err(Error::Closed),
        }
    }
}

/// How a further process ended, and what was captured of it.
struct Rest {
    ending: Ending,
    evidence: Evidence,
    gap: Option<Gap>,
}

impl Monitor {
    async fn run_exec(
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
        self.publish(Event::Created(container.clone()));
        let mode = spec.stdin();
        let context = Arc::clone(&self.context);
        let closing = &context.closing;
        let execed = closing.run_until_cancelled(context.runtime.exec(&container, &spec));
        let execed = execed.await?;
        drop(spec);
        let Execed {
            id, output, input, ..
        } = match execed {
            Ok(execed) => execed,
            Err(error) => {
                let error = error.map_reason(|reason| self.secrets.redact(reason));
                let ending = Ending::failed_to_start(&error);
                self.publish(Event::Ended(ending.clone()));
                let _ = reply.send(Err(NoStart::Sealed(error)));
                let rest = Rest {
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
        self.publish(Event::Started(None));
        let begun = Begun {
            id: id.clone(),
            input: Arc::new(Idle {
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
            self.last_words(&mut capture, signals.queued()).await;
            return None;
        };
        self.publish(Event::Ended(rest.ending.clone()));
        let mut left = signals.queued();
        while let Ok(note) = self.notes.try_recv() {
            left.push(note);
        }
        self.seal_exec(capture, rest, left).await
    }

    async fn how_it_ended(&mut self, container: &ContainerId, id: &ExecId, end: PumpEnd) -> Rest {
        let lost = |reason: String| Rest {
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
                Err(error) if error.is_fact() => break None,
                Err(error) => tracing::warn!(%container, %error, "cannot inspect a process yet"),
            }
            let now = tokio::time::Instant::now();
            match runtime.inspect(container).await {
                Ok(inspection) if inspection.code.is_none() => container_ended = None,
                Err(error) if !error.is_fact() => {}
                _ if *container_ended.get_or_insert(now) + KNOWN_AFTER < now => break None,
                _ => {}
            }
            backoff.pause().await;
        };
        match code {
            // A process may close its output long before it ends; but so ends, too, a connection
            // that was cut, and there is nothing to compare it with.
            Some(code) if ran_on => Rest {
                ending: Ending::Exited(Exit::with_code(code)),
                evidence: Evidence::None,
                gap: Some(Gap::possible(GapReason::NoBackstop)),
            },
            Some(code) => Rest {
                ending: Ending::Exited(Exit::with_code(code)),
                evidence: Evidence::Eof,
                gap: None,
            },
            None => Rest {
                gap: Some(Gap::possible(GapReason::NoBackstop)),
                ..lost("its container ended before the engine told its exit code".into())
            },
        }
    }

    /// Seals the log of a further process: tries until it succeeds, or the manager closes.
    async fn seal_exec(
        &mut self,
        mut capture: Capture,
        mut rest: Rest,
        mut left: Vec<Record>,
    ) -> Option<()> {
        let mut backoff = Backoff::new();
        let seal = loop {
            match self.try_seal_exec(&mut capture, &mut rest, &mut left).await {
                Ok(seal) => break seal,
                Err(error) => self.stands_in_the_way(&error),
            }
            let closing = &self.context.closing;
            closing.run_until_cancelled(backoff.pause()).await?;
        };
        let last_lines = capture.progress.last_lines();
        self.status.send_modify(|status| {
            status.seal = Some(seal);
            status.problem = None;
            status.last_lines = last_lines;
            status.settled = true;
        });
        Some(())
    }

    async fn try_seal_exec(
        &mut self,
        capture: &mut Capture,
        rest: &mut Rest,
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
                        path: self.place.folder.clone(),
                        reason: "the log of a further process is not there any more".into(),
                    });
                }
            }
        }
        seal_exec(capture, rest, left).await
    }
}

async fn seal_exec(capture: &mut Capture, rest: &mut Rest, left: &mut Vec<Record>) -> Result<Seal> {
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
pub(super) async fn seal_lost(context: &Context, run: &RunId) {
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
    let mut rest = Rest {
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

impl Root {
    /// The numbers of the further processes of a run that have a log.
    fn execs(&self, run: &RunId) -> impl Iterator<Item = u32> {
        std::fs::read_dir(self.folder(run))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| exec_number(entry.file_name().to_str()?))
    }

    /// Those whose log is not sealed.
    pub(super) fn open_execs(&self, run: &RunId) -> Vec<u32> {
        let sealed = |number: &u32| {
            let path = self.folder(run).join(exec_file(*number));
            matches!(glance(&path), Ok(Some(glance)) if glance.seal.is_some())
        };
        self.execs(run).filter(|number| !sealed(number)).collect()
    }
}

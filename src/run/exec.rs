//! Execs: additional processes in the container of a run.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::Instrument;

use crate::audit::{Action, Event, RecordRef, Start};
use crate::capture::{Capture, Progress};
use crate::error::{Error, Result, RuntimeError};
use crate::monitor::entry::lock;
use crate::monitor::exec::{ExecStarted, StdinSlot};
use crate::monitor::start::StartError;
use crate::outcome::Outcome;
use crate::run::Run;
use crate::run::attach::session::{NO_STDIN_IN_SPEC, Recording, Session};
use crate::run::attach::{AttachOptions, Attachment, Input};
use crate::runtime::ExecId;
use crate::sink::{RunLog, RunPlace};
use crate::spec::{ContainerId, ExecSpec, RunRecord, Stdin};
use crate::timestamp::Timestamp;

/// The most attempts to claim an unused exec number.
const MAX_NUMBER_ATTEMPTS: u32 = 100;

/// An exec: an additional process in the container of a run. Cheap to clone.
///
/// An exec has its own log, `exec-1.jsonl` in the run's directory, in the format of the
/// audit file.
///
/// Output is live only, because the engine keeps no log of an exec. Output that a lost
/// connection did not deliver is lost, and the log records a gap. If this process exits,
/// the connection is lost; the next opening of the root seals the log with a gap and an
/// unknown ending. Detaching before the exit does not prevent that.
///
/// If the input of a [`Stdin::Pipe`] exec was never taken, it is closed when the last
/// clone is dropped. Until then, a process that reads its input to the end does not exit.
#[derive(Clone)]
pub struct Exec {
    /// A handle to the exec in the form of a run: its log, state and outcome.
    run: Run,
    number: u32,
    id: ExecId,
    input: Arc<StdinSlot>,
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

impl Exec {
    /// Returns the number of the exec in the run, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns the path of the exec's log, or `None` if the sink writes no file.
    pub fn audit(&self) -> Option<PathBuf> {
        self.run.audit()
    }

    /// Attaches to the exec with options, as [`Run::attach_with`] does.
    ///
    /// One attachment at a time can have the input. The input of an exec with
    /// [`Stdin::Open`] is available again once the previous one is dropped.
    ///
    /// # Errors
    ///
    /// - [`Error::NoInput`] if the input is not available.
    /// - [`Error::Runtime`] if the engine refuses to resize the terminal. The input of a
    ///   pipe remains available.
    /// - [`Error::Closed`] if input or a size is requested and the manager is shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call leaves no attachment.
    pub async fn attach_with(&self, options: AttachOptions) -> Result<Attachment> {
        let session = Session::new(self.run.clone(), Some(self.id.clone()), Recording::Always);
        if options.input && self.stdin == Stdin::None {
            return Err(self.run.no_input(NO_STDIN_IN_SPEC));
        }
        // The size is set first: a pipe has one writer, which a failed call must not use up.
        if let Some(size) = options.window {
            session.resize(size).await?;
        }
        let mut input = None;
        if options.input {
            input = Some(self.take_input(&session)?);
        } else {
            session.record_note(Action::Attach, "attached without input");
        }
        Ok(Attachment::new(session, options, input))
    }

    fn take_input(&self, session: &Arc<Session>) -> Result<Input> {
        if session.is_closed() {
            return Err(Error::Closed);
        }
        let Some(writer) = lock(&self.input.writer).take() else {
            return Err(self.run.no_input("its stdin has a writer or is closed"));
        };
        session.record_note(Action::AttachInput, "attached with input");
        let input = Input::new(writer, self.stdin, self.record_stdin, session);
        Ok(match self.stdin {
            Stdin::Open => input.return_to(Arc::clone(&self.input)),
            _ => input,
        })
    }

    /// Attaches to the output of the exec, from the first byte.
    ///
    /// # Errors
    ///
    /// Those of [`attach_with`](Self::attach_with).
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn attach(&self) -> Result<Attachment> {
        self.attach_with(AttachOptions::new()).await
    }

    /// Waits until the exec has ended and its log is sealed: see [`Run::wait`].
    ///
    /// The ending is [`Ending::Lost`](crate::outcome::Ending::Lost) if the connection was
    /// lost, so that the exit is unknown.
    ///
    /// # Errors
    ///
    /// Those of [`Run::wait`].
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn wait(&self) -> Result<Outcome> {
        self.run.wait().await
    }
}

/// The log of an exec that has not started.
struct ExecLog {
    number: u32,
    place: RunPlace,
    writer: Box<dyn RunLog>,
    start: Start,
}

impl Run {
    /// Starts an exec in the container, which must be running.
    ///
    /// The log exists before the engine is asked to start the exec. The exec ends with
    /// the container at the latest. Any process may call this, not only the owner of the
    /// run.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidSpec`] if the spec is invalid.
    /// - [`Error::Ended`] if the run has ended.
    /// - [`Error::NotStarted`] if the engine refuses to start the exec. The error has the
    ///   outcome of the exec.
    /// - [`Error::Storage`] if the log cannot be created.
    /// - [`Error::RunExists`] if the sink supports one log per run only.
    /// - [`Error::Runtime`] if the runtime does not support execs.
    /// - [`Error::Closed`] if the manager is shut down.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, an exec that was started keeps running, and its log is
    /// sealed.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Exec> {
        let context = self.inner.context();
        self.check_exec(&spec)?;
        self.wait_ownership().await;
        if self.is_over() {
            return Err(Error::Ended {
                run: self.id().clone(),
            });
        }
        let container = self.container()?;
        let ExecLog {
            number,
            place,
            writer,
            start,
        } = self.open_exec_log(&spec, &container).await?;
        let (entry, monitor) = context.monitor(place);
        let (mut progress, hub) = (Progress::default(), Arc::clone(&entry.hub));
        progress.observe(RecordRef::Event(&Event::Start(Box::new(start))));
        let capture = Capture::new(progress, hub, writer, None);
        let run = Run {
            inner: Arc::clone(&self.inner),
            entry,
        };
        self.note_exec(number, &spec);
        let (stdin, record_stdin) = (spec.stdin(), spec.settings("").record_stdin);
        let (reply, started) = oneshot::channel();
        let span = monitor.span();
        context.tasks.spawn(
            monitor
                .run_exec(container, spec, capture, reply)
                .instrument(span),
        );
        match started.await {
            Ok(Ok(ExecStarted { id, input })) => Ok(Exec {
                run,
                number,
                id,
                input,
                stdin,
                record_stdin,
            }),
            Ok(Err(StartError::NoRun(error))) => Err(error),
            Ok(Err(StartError::NotStarted(source))) => Err(Error::NotStarted {
                outcome: Box::new(run.wait().await?),
                source,
            }),
            Err(_) => Err(Error::Closed),
        }
    }

    /// Fails if the exec is refused before any file is read.
    fn check_exec(&self, spec: &ExecSpec) -> Result<()> {
        let context = self.context();
        if context.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        spec.validate()?;
        if !context.runtime.capabilities().exec {
            return Err(RuntimeError::Unsupported {
                runtime: context.runtime.name(),
                operation: "start an exec in a container",
            }
            .into());
        }
        Ok(())
    }

    /// Creates the log of an exec, under the next unused number.
    async fn open_exec_log(&self, spec: &ExecSpec, container: &ContainerId) -> Result<ExecLog> {
        let context = self.context();
        let id = self.id().clone();
        let (file, mut number) = context
            .on_disk("read", move |root| {
                Ok((root.read_run(&id)?, root.execs(&id).max().unwrap_or(0) + 1))
            })
            .await?;
        let (image, engine_id) = file
            .map(|file| (file.record.settings.image, file.record.engine_id))
            .unwrap_or_default();
        let mut start = Start::new(RunRecord {
            run: self.id().clone(),
            root: context.root.id().clone(),
            created: Timestamp::now(),
            runtime: context.runtime.name().to_owned(),
            engine_id,
            settings: spec.settings(&image),
            env: spec.recorded_env(),
            patched: false,
            container: Some(container.clone()),
            deadline: None,
        });
        let last = number + MAX_NUMBER_ATTEMPTS;
        loop {
            start.exec = Some(number);
            let place = self.entry.place.of_exec(number);
            match context.sink.open(&place, &start).await {
                Ok(writer) => {
                    return Ok(ExecLog {
                        number,
                        place,
                        writer,
                        start,
                    });
                }
                // Another exec has claimed the number in the meantime.
                Err(Error::RunExists { .. }) if number < last => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Notes the exec in the audit of the run.
    fn note_exec(&self, number: u32, spec: &ExecSpec) {
        let session = Session::new(self.clone(), None, Recording::Never);
        let text = format!("exec-{number}: {}", spec.command().join(" "));
        self.record_note(session.record(Action::Exec, text));
    }
}

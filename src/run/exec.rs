//! Execs: additional processes in the container of a run.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tracing::Instrument;

use crate::audit::{Action, Event, RecordRef, Start};
use crate::capture::{Capture, Masks, Progress};
use crate::error::{Error, Result, RuntimeError, chain};
use crate::monitor::entry::{Role, lock};
use crate::monitor::exec::{ExecStarted, StdinSlot};
use crate::monitor::start::StartError;
use crate::outcome::{Outcome, StopCause};
use crate::run::Run;
use crate::run::attach::session::{NO_STDIN_IN_SPEC, Recording, Session};
use crate::run::attach::{AttachOptions, Attachment, Input};
use crate::runtime::ExecId;
use crate::sink::{RunLog, RunPlace};
use crate::spec::{ContainerId, ExecSpec, RunRecord, Settings, Stdin};
use crate::timestamp::Timestamp;

/// The most attempts to claim an unused exec number.
const MAX_NUMBER_ATTEMPTS: u32 = 100;

/// The operation that a runtime without `Capabilities::exec` does not support.
const START_EXEC: &str = "start an exec in a container";

/// The operation that a runtime without [`Capabilities::exec_kill`] does not support.
///
/// [`Capabilities::exec_kill`]: crate::runtime::Capabilities::exec_kill
const NO_KILL: &str = "kill an exec";

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
/// That opening also kills the exec if the container still runs and the exec has a
/// [time limit](ExecSpec::time_limit), a silence limit, an output limit that stops it or a
/// [stop token](ExecSpec::stop_when), because nothing enforces these any more. The log has a note on
/// the kill, or on the reason why it failed. An exec without them continues.
///
/// The exec ends with its main process. A background process that keeps the output open does not
/// delay the end. moat captures output until there was none for 2 s, for 30 s at most, and no longer
/// than the engine passes it on: Docker for 2 s, Podman not at all. Output after that is not
/// captured. If moat or Docker ended the output, the log has a possible gap that says so.
///
/// If the input of a [`Stdin::Pipe`] exec was never taken, it is closed when the last
/// clone is dropped. Until then, a process that reads its input to the end does not exit.
#[derive(Clone)]
pub struct Exec {
    /// A handle to the exec in the form of a run: its log, state and outcome.
    run: Run,
    number: u32,
    id: ExecId,
    kill_failure: watch::Receiver<Option<Arc<RuntimeError>>>,
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

    /// Kills the exec with SIGKILL, and the processes that it started, and waits as
    /// [`wait`](Self::wait) does. The container and its other execs are not affected.
    ///
    /// An engine has no call for this. On Docker and Podman, a second exec runs `/bin/sh` as the
    /// user of the exec. The shell kills every process that inherited the variable `MOAT_EXEC`,
    /// which moat adds to the environment of each exec, and every process in a session whose leader
    /// is such a process and still alive. It uses no other program, and needs no root, network or
    /// writable file. A process of another user is not killed, nor one that has cleared its
    /// environment and is in no such session.
    ///
    /// # Errors
    ///
    /// - [`Error::Runtime`] with [`RuntimeError::Unsupported`] if the runtime cannot kill an exec,
    ///   or the container has no `/bin/sh`. With [`RuntimeError::Conflict`] if the container is
    ///   paused. With [`RuntimeError::Rejected`] if a process of the exec is still alive, or the
    ///   shell cannot be started, for example at the container's limit of processes. The exec then
    ///   continues. Its log has the stop and the reason, and moat tries again every 10 s.
    /// - [`Error::Unanswered`] if the engine does not answer within 30 s.
    /// - Those of [`wait`](Self::wait).
    ///
    /// # Cancel safety
    ///
    /// Once polled, the kill proceeds even if the future is dropped.
    pub async fn kill(&self) -> Result<Outcome> {
        if !self.run.context().runtime.capabilities().exec_kill {
            return Err(self.run.context().unsupported(NO_KILL).into());
        }
        let mut failures = self.kill_failure.clone();
        failures.mark_unchanged();
        let failure = async {
            match failures.changed().await {
                Ok(()) => failures.borrow().clone(),
                Err(_) => None,
            }
        };
        let killed = self.run.request(StopCause::Killed, Some(Duration::ZERO));
        tokio::select! {
            biased;
            outcome = killed => outcome,
            Some(error) = failure => Err(copy_error(&error).into()),
        }
    }
}

/// Returns the error of a failed kill, for each of its callers.
fn copy_error(error: &RuntimeError) -> RuntimeError {
    match error {
        &RuntimeError::Unsupported { runtime, operation } => {
            RuntimeError::Unsupported { runtime, operation }
        }
        RuntimeError::Conflict { operation, reason } => RuntimeError::Conflict {
            operation,
            reason: reason.clone(),
        },
        RuntimeError::Rejected { operation, reason } => RuntimeError::Rejected {
            operation,
            reason: reason.clone(),
        },
        error => RuntimeError::Rejected {
            operation: NO_KILL,
            reason: chain(error),
        },
    }
}

/// The log of an exec that has not started.
struct ExecLog {
    number: u32,
    place: RunPlace,
    writer: Box<dyn RunLog>,
    start: Start,
    masks: Masks,
}

impl Run {
    /// Starts an exec in the container, which must be running.
    ///
    /// The log exists before the engine is asked to start the exec, and has the id of an exec that
    /// moat may have to kill. The exec ends with the container at the latest. Any process may call
    /// this, not only the owner of the run.
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidSpec`] if the spec is invalid.
    /// - [`Error::Ended`] if the run has ended.
    /// - [`Error::NotStarted`] if the engine refuses to start the exec. The error has the
    ///   outcome of the exec.
    /// - [`Error::Storage`] if the log cannot be created.
    /// - [`Error::RunExists`] if the sink supports one log per run only.
    /// - [`Error::Runtime`] if the runtime does not support execs, or if the spec has a limit that
    ///   stops the exec and the runtime cannot kill an exec.
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
            masks,
        } = self.open_exec_log(&spec, &container).await?;
        let settings = spec.settings("");
        let output_limit = settings.output_limit.map(|limit| limit.bytes);
        let (entry, monitor) = context.monitor(place, Role::default());
        let (mut progress, hub) = (Progress::default(), Arc::clone(&entry.hub));
        progress.observe(RecordRef::Event(&Event::Start(Box::new(start))));
        let _ = entry.masks.set(masks.clone());
        let capture = Capture::new(progress, hub, writer, output_limit).with_masks(masks);
        let run = Run {
            inner: Arc::clone(&self.inner),
            entry,
        };
        self.note_exec(number, &spec);
        let (reply, started) = oneshot::channel();
        let span = monitor.span();
        // The token also bounds an exec whose caller drops this call.
        if let Some(token) = spec.stop_token() {
            run.stop_when(token);
        }
        context.tasks.spawn(
            monitor
                .run_exec(container, spec, capture, reply)
                .instrument(span),
        );
        match started.await {
            Ok(Ok(ExecStarted {
                id,
                input,
                kill_failure,
            })) => Ok(Exec {
                run,
                number,
                id,
                kill_failure,
                input,
                stdin: settings.stdin,
                record_stdin: settings.record_stdin,
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
    pub(super) fn check_exec(&self, spec: &ExecSpec) -> Result<()> {
        let context = self.context();
        if context.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        spec.validate()?;
        let capabilities = context.runtime.capabilities();
        let operation = match capabilities {
            _ if !capabilities.exec => START_EXEC,
            _ if spec.has_stop() && !capabilities.exec_kill => NO_KILL,
            _ => return Ok(()),
        };
        Err(context.unsupported(operation).into())
    }

    /// Creates the log of an exec, under the next unused number.
    async fn open_exec_log(&self, spec: &ExecSpec, container: &ContainerId) -> Result<ExecLog> {
        let context = self.context();
        let masks = self.find_masks().await?;
        if masks.is_missing() {
            return Err(Error::Runtime(RuntimeError::Rejected {
                operation: START_EXEC,
                reason: "this manager does not know the values to mask in the output of the run: \
                         see ManagerBuilder::masks"
                    .into(),
            }));
        }
        let id = self.id().clone();
        let (file, mut number) = context
            .on_disk("read", move |root| {
                Ok((
                    root.read_run(&id)?,
                    root.exec_numbers(&id).max().unwrap_or(0) + 1,
                ))
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
            settings: Settings {
                masks: masks.values().len() as u32,
                ..spec.settings(&image)
            },
            env: spec.recorded_env(),
            secret_files: Vec::new(),
            patched: false,
            membership: None,
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
                        masks,
                    });
                }
                // Another exec has claimed the number in the meantime.
                Err(Error::RunExists { .. }) if number < last => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Finds the masks of the run. Another process may have started it.
    ///
    /// `run.json` and the audit file both have their number. If one of the two is damaged, no output
    /// may be unmasked for that.
    pub(super) async fn find_masks(&self) -> Result<Masks> {
        if let Some(masks) = self.entry.masks.get() {
            return Ok(masks.clone());
        }
        let (context, id) = (self.context(), self.id().clone());
        let has_audit = self.audit().is_some();
        let read = context.on_disk("read", move |root| {
            let record = root.read_run(&id)?.map(|file| file.record);
            let started = match has_audit {
                true => root.audit_summary(&id).record,
                false => record.clone(),
            };
            Ok(record.zip(started))
        });
        let Some((record, started)) = read.await? else {
            return Ok(Masks::Missing);
        };
        let count = record.settings.masks.max(started.settings.masks);
        Ok(Masks::of_run(&context.masks, &record, count))
    }

    /// Notes the exec in the audit of the run.
    fn note_exec(&self, number: u32, spec: &ExecSpec) {
        let session = Session::new(self.clone(), None, Recording::Never);
        let text = format!("exec-{number}: {}", spec.command().join(" "));
        self.record_note(session.record(Action::Exec, text));
    }
}

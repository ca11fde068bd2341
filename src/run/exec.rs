//! A further process in a run's container.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::Instrument;

use crate::audit::{Action, Event as Record, RecordRef, Start};
use crate::capture::Capture;
use crate::error::{Error, Result, RuntimeError};
use crate::monitor::entry::lock;
use crate::monitor::exec::{ExecStarted, StdinSlot};
use crate::monitor::start::StartError;
use crate::outcome::Outcome;
use crate::run::Run;
use crate::run::attach::session::Session;
use crate::run::attach::{AttachOptions, Attachment, Input};
use crate::runtime::ExecId;
use crate::spec::{ExecSpec, RunRecord, Stdin};
use crate::timestamp::Timestamp;

/// How often a number is tried for that another one was quicker to take.
const TRIES: u32 = 100;

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
            session.record_note(Action::AttachInput, "attached, with the input");
            let mut connected = Input::new(writer, self.stdin, self.record_stdin, &session);
            if self.stdin == Stdin::Open {
                connected = connected.return_to(Arc::clone(&self.input));
            }
            input = Some(connected);
        } else {
            session.record_note(Action::Attach, "attached, to look on");
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
    /// An end of [`Ending::Lost`](crate::outcome::Ending::Lost) is one that nobody knows: the connection was lost.
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
        self.wait_ownership().await;
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
        self.record_note(note);
        let (reply, begun) = oneshot::channel();
        let span = monitor.span();
        context.tasks.spawn(
            monitor
                .run_exec(container, spec, capture, reply)
                .instrument(span),
        );
        match begun.await {
            Ok(Ok(ExecStarted { id, input })) => Ok(Exec {
                run: exec,
                number,
                id,
                input,
                stdin,
                record_stdin,
            }),
            Ok(Err(StartError::Nothing(error))) => Err(error),
            Ok(Err(StartError::Sealed(source))) => Err(Error::NotStarted {
                outcome: Box::new(exec.wait().await?),
                source,
            }),
            Err(_) => Err(Error::Closed),
        }
    }
}

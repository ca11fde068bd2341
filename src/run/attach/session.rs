//! A session: one attachment to a run or an exec, and its notes in the audit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::audit::{Action, Event, Interaction};
use crate::error::{Error, Result};
use crate::monitor::entry::{PipeState, lock};
use crate::outcome::Outcome;
use crate::run::Run;
use crate::run::attach::input::Input;
use crate::runtime::ExecId;
use crate::spec::{Settings, Stdin, WindowSize};
use crate::timestamp::Timestamp;

/// The condition for recording a session in the audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recording {
    Never,
    /// For output-only sessions. Those of a run that another process owns only read files.
    UnlessOwnedElsewhere,
    Always,
}

/// One attachment. Its output, its input and its handles share the session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) run: Run,
    number: u64,
    /// The exec, if the session is attached to one.
    exec: Option<ExecId>,
    recording: Recording,
    /// The audit has a record of the start of the session, so it also gets one of the end.
    start_recorded: AtomicBool,
    window: Mutex<Option<WindowSize>>,
}

impl Session {
    pub(crate) fn new(run: Run, exec: Option<ExecId>, recording: Recording) -> Arc<Self> {
        Arc::new(Self {
            number: run.inner.context().next_attachment(),
            run,
            exec,
            recording,
            start_recorded: AtomicBool::new(false),
            window: Mutex::default(),
        })
    }

    /// Marks the session as attached from the start of the run.
    ///
    /// The start of the run records the session and sets the terminal size.
    pub(crate) fn starts_with(&self, size: Option<WindowSize>) {
        *lock(&self.window) = size;
        self.start_recorded.store(true, Ordering::Relaxed);
    }

    /// Returns the record of an action in this session.
    pub(crate) fn record(&self, action: Action, text: impl Into<String>) -> Event {
        Event::Note {
            ts: Timestamp::now(),
            text: text.into(),
            interaction: Some(Interaction::new(action, self.number)),
        }
    }

    pub(crate) fn record_note(&self, action: Action, text: impl Into<String>) {
        match self.recording {
            Recording::Never => return,
            Recording::UnlessOwnedElsewhere if self.run.owned_elsewhere() => return,
            Recording::UnlessOwnedElsewhere | Recording::Always => {}
        }
        if matches!(action, Action::Attach | Action::AttachInput) {
            self.start_recorded.store(true, Ordering::Relaxed);
        }
        self.run.record_note(self.record(action, text));
    }

    /// Returns true if the manager is shut down, so that no action can be recorded.
    pub(crate) fn is_closed(&self) -> bool {
        self.run.inner.context().closing.is_cancelled()
    }

    pub(crate) async fn resize(&self, size: WindowSize) -> Result<()> {
        if self.is_closed() {
            return Err(Error::Closed);
        }
        let runtime = &self.run.inner.context().runtime;
        match &self.exec {
            None => runtime.resize(&self.run.container()?, size).await?,
            Some(exec) => runtime.exec_resize(exec, size).await?,
        }
        if lock(&self.window).replace(size) != Some(size) {
            self.record_note(Action::Resize, format!("terminal resized to {size}"));
        }
        Ok(())
    }

    /// Reads the settings of the run from `run.json`.
    pub(super) async fn settings(&self) -> Result<Settings> {
        let id = self.run.id().clone();
        let context = self.run.inner.context();
        let read = context.on_disk("read", move |root| root.read_run(&id));
        let file = read.await?;
        Ok(file.map(|file| file.record.settings).unwrap_or_default())
    }

    /// Connects to the standard input of the run.
    pub(super) async fn connect_input(self: &Arc<Self>) -> Result<Input> {
        let run = &self.run;
        let context = run.inner.context();
        if run.is_over() {
            return Err(run.no_input("the run has ended"));
        }
        if self.is_closed() {
            return Err(Error::Closed);
        }
        let settings = self.settings().await?;
        let capable = context.runtime.capabilities().stdin;
        if let Some(reason) = refuse_input(&settings, capable, run.owned_elsewhere()) {
            return Err(run.no_input(reason));
        }
        if settings.stdin == Stdin::Pipe {
            let mut pipe = lock(&run.entry.pipe);
            match *pipe {
                PipeState::Free => *pipe = PipeState::Taken,
                PipeState::Taken => {
                    return Err(run.no_input("its stdin is a pipe that has a writer"));
                }
                PipeState::Ended => return Err(run.no_input("its stdin is closed")),
            }
        }
        // Recorded before the engine is asked. Otherwise, if this process died in between, the
        // container would have had a writer that is missing in the audit.
        self.record_note(Action::AttachInput, "attached with input");
        let reservation = PipeReservation(&run.entry.pipe);
        let writer = context.runtime.stdin(&run.container()?).await?;
        std::mem::forget(reservation);
        let record = settings.record_stdin;
        Ok(Input::new(writer, settings.stdin, record, self))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.start_recorded.load(Ordering::Relaxed) && !self.run.is_over() {
            self.record_note(Action::Detach, "detached from the running container");
        }
    }
}

/// Returns why a run has no input for this process, or `None` if it has one.
fn refuse_input(settings: &Settings, capable: bool, owned_elsewhere: bool) -> Option<&'static str> {
    match settings.stdin {
        Stdin::None => Some(NO_STDIN_IN_SPEC),
        _ if !capable => Some(NO_STDIN_IN_RUNTIME),
        _ if owned_elsewhere && settings.record_stdin => {
            Some("its stdin is recorded, which only the process that owns the run can do")
        }
        Stdin::Pipe if owned_elsewhere => {
            Some("its stdin is a pipe of the process that owns the run")
        }
        _ => None,
    }
}

/// The reason to refuse an input if the spec does not enable stdin.
pub(crate) const NO_STDIN_IN_SPEC: &str = "its spec does not enable stdin";
/// The reason to refuse an input if the runtime does not support stdin.
pub(crate) const NO_STDIN_IN_RUNTIME: &str = "the runtime does not support stdin";

/// Frees the writing end of a pipe unless it is forgotten.
struct PipeReservation<'a>(&'a Mutex<PipeState>);

impl Drop for PipeReservation<'_> {
    fn drop(&mut self) {
        let mut pipe = lock(self.0);
        if *pipe == PipeState::Taken {
            *pipe = PipeState::Free;
        }
    }
}

/// A handle for an attachment that another task reads.
///
/// Cheap to clone. The session counts as attached while a handle exists.
#[derive(Debug, Clone)]
pub struct AttachHandle(pub(super) Arc<Session>);

impl AttachHandle {
    /// Resizes the terminal.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`] if there is no terminal, or the container has ended;
    /// [`Error::Closed`] if the manager is shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. The engine may already have been asked to resize the terminal.
    pub async fn resize(&self, size: WindowSize) -> Result<()> {
        self.0.resize(size).await
    }

    /// Returns the size set by this session or by the start of the run.
    #[cfg(all(feature = "terminal", unix))]
    pub(crate) fn window(&self) -> Option<WindowSize> {
        *lock(&self.0.window)
    }

    /// Waits for the outcome of the run or exec: see [`Run::wait`].
    ///
    /// # Errors
    ///
    /// Those of [`Run::wait`].
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn outcome(&self) -> Result<Outcome> {
        self.0.run.wait().await
    }
}

impl Run {
    /// Sends a note to the audit of the run.
    ///
    /// The run's monitor records the note. If another process owns the run, the note is
    /// left in a file next to the audit, which that process reads.
    pub(crate) fn record_note(&self, note: Event) {
        if !self.owned_elsewhere() {
            // A monitor that has exited records nothing.
            let _ = self.entry.notes.send(note);
            return;
        }
        let context = Arc::clone(self.inner.context());
        let run = self.id().clone();
        self.inner.context().tasks.spawn(async move {
            let leave = context.on_disk("leave a note in", {
                let run = run.clone();
                move |root| root.leave_note(&run, &note)
            });
            let left = tokio::select! {
                biased;
                left = leave => left,
                () = context.shutdown_grace_elapsed() => Err(Error::Closed),
            };
            if let Err(error) = left {
                tracing::warn!(%run, error = %error.chain(), "cannot leave a note for the audit");
            }
        });
    }

    /// Returns the error for an input that cannot be connected.
    pub(crate) fn no_input(&self, reason: &'static str) -> Error {
        Error::NoInput {
            run: self.id().clone(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_is_refused_with_a_reason() {
        let modes = [Stdin::None, Stdin::Pipe, Stdin::Open];
        let flags = [false, true];
        for (stdin, record_stdin) in modes
            .into_iter()
            .flat_map(|mode| flags.map(|flag| (mode, flag)))
        {
            for (capable, elsewhere) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let settings = Settings {
                    stdin,
                    record_stdin,
                    ..Settings::default()
                };
                let expected = match (stdin, capable, elsewhere, record_stdin) {
                    (Stdin::None, ..) => Some("its spec does not enable stdin"),
                    (_, false, ..) => Some("the runtime does not support stdin"),
                    (_, true, true, true) => Some(
                        "its stdin is recorded, which only the process that owns the run can do",
                    ),
                    (Stdin::Pipe, true, true, false) => {
                        Some("its stdin is a pipe of the process that owns the run")
                    }
                    _ => None,
                };
                assert_eq!(
                    refuse_input(&settings, capable, elsewhere),
                    expected,
                    "{stdin:?} {record_stdin} {capable} {elsewhere}"
                );
            }
        }
    }
}

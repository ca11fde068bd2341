//! The state that the collector's threads share.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::Settings;
use super::spool::Positions;
use super::stdin::Stdin;
use crate::protocol::{Kind, frame};
use crate::tally::{Tally, summary};

/// The state, and the means to wait for its changes.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the capture thread.
    pub(super) wake: OwnedFd,
    pub(super) spool: File,
    /// Held for the time of a request to the wrapper, so that an answer belongs to one request.
    pub(super) signaling: Mutex<()>,
    pub(super) stdin_grace: Duration,
    /// Held while the message is written.
    pub(super) termination_log: Mutex<PathBuf>,
}

impl Shared {
    pub(super) fn new(spool: File, settings: &Settings) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State::new(settings)),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            spool,
            signaling: Mutex::new(()),
            stdin_grace: settings.stdin_grace,
            termination_log: Mutex::new(settings.termination_log.clone()),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, or until the timeout.
    pub(super) fn wait_for<'a>(
        &self,
        state: MutexGuard<'a, State>,
        timeout: Duration,
    ) -> MutexGuard<'a, State> {
        let result = self.changed.wait_timeout(state, timeout);
        result.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes all threads that wait for a change. The caller must have changed the state under its
    /// lock, or hold it now.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Wakes the capture thread.
    pub(super) fn wake_capture(&self) {
        // Fails only if the counter is full: then the thread wakes anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// The phase of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is no wrapper.
    Waiting,
    /// The wrapper waits for its release.
    Ready,
    /// The wrapper was released and has not reported yet.
    Releasing,
    Running,
    /// The command or the wrapper has ended. Output may follow.
    Exited,
    /// The last frame is in the spool.
    Ended,
}

/// The connection to the wrapper.
#[derive(Debug)]
pub(super) enum Gate {
    /// There was none yet.
    Awaited,
    Open(UnixStream),
    Closed,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) gate: Gate,
    /// The command is never released any more.
    pub(super) expired: bool,
    /// The environment of the command, in addition to the container's: encoded strings.
    pub(super) environment: Vec<u8>,
    /// The number of releases sent to the wrapper.
    pub(super) attempts: u64,
    /// The last failed release, and the payload of its `Failed` frame.
    pub(super) failure: Option<(u64, Vec<u8>)>,
    /// The wrapper's answer to a signal.
    pub(super) answer: Option<Kind>,
    pub(super) started_micros: Option<u64>,
    pub(super) exited_micros: Option<u64>,
    pub(super) exit_code: Option<i32>,
    /// The master of the command's terminal.
    pub(super) master: Option<Arc<OwnedFd>>,
    pub(super) stdin: Stdin,
    pub(super) positions: Positions,
    pub(super) tallies: Vec<Tally>,
    /// The last error of a write to the spool, until a write succeeds.
    pub(super) spool_error: Option<i32>,
}

impl State {
    fn new(settings: &Settings) -> Self {
        Self {
            phase: Phase::Waiting,
            gate: Gate::Awaited,
            expired: false,
            environment: Vec::new(),
            attempts: 0,
            failure: None,
            answer: None,
            started_micros: None,
            exited_micros: None,
            exit_code: None,
            master: None,
            stdin: Stdin::new(settings.stdin),
            positions: Positions::new(settings.limit, settings.discard),
            tallies: Vec::new(),
            spool_error: None,
        }
    }

    /// Returns true if the command may have run.
    pub(super) fn was_released(&self) -> bool {
        match self.phase {
            Phase::Waiting | Phase::Ready => false,
            Phase::Releasing | Phase::Running => true,
            Phase::Exited | Phase::Ended => self.may_have_started(),
        }
    }

    /// Forbids a release. Returns false if the command may run.
    pub(super) fn expire(&mut self) -> bool {
        let runs = match self.phase {
            Phase::Releasing | Phase::Running => true,
            Phase::Waiting | Phase::Ready | Phase::Exited | Phase::Ended => false,
        };
        self.expired |= !runs;
        !runs
    }

    /// Returns true if the wrapper reported a start, or ended without a report after a release.
    pub(super) fn may_have_started(&self) -> bool {
        let failed = self.failure.as_ref().map_or(0, |(attempt, _)| *attempt);
        self.started_micros.is_some() || self.attempts > failed
    }

    /// Returns true if the owner has acknowledged all the output.
    pub(super) fn is_delivered(&self) -> bool {
        self.phase == Phase::Ended && self.positions.is_all_acknowledged()
    }

    /// Sends a frame to the wrapper. Returns false if the connection is closed.
    pub(super) fn send_to_wrapper(&mut self, kind: Kind, payload: &[u8]) -> bool {
        match &mut self.gate {
            Gate::Open(gate) => gate.write_all(&frame(kind, 0, payload)).is_ok(),
            Gate::Awaited | Gate::Closed => false,
        }
    }

    /// The text of the `End` frame, or the present counts and `end no`; then the times.
    pub(super) fn summary(&self) -> String {
        let mut text = summary(&self.tallies, self.exit_code);
        if self.phase != Phase::Ended {
            text.push_str("end no\n");
        }
        self.push_times(&mut text);
        text
    }

    fn push_times(&self, text: &mut String) {
        for (key, micros) in [
            ("started_micros", self.started_micros),
            ("exited_micros", self.exited_micros),
        ] {
            if let Some(micros) = micros {
                text.push_str(&format!("{key} {micros}\n"));
            }
        }
    }

    /// The answer to `state`.
    pub(super) fn report(&self) -> String {
        let phase = match self.phase {
            Phase::Waiting => "waiting",
            Phase::Ready | Phase::Releasing => "ready",
            Phase::Running => "running",
            Phase::Exited => "exited",
            Phase::Ended => "ended",
        };
        let Positions {
            start, end, acked, ..
        } = &self.positions;
        let mut text = format!("phase {phase}\nstart {start}\nend {end}\nacked {acked}\n");
        self.push_times(&mut text);
        let mut known = |key, value: Option<i128>| {
            if let Some(value) = value {
                text.push_str(&format!("{key} {value}\n"));
            }
        };
        known("exit", self.exit_code.map(i128::from));
        known("released", self.was_released().then_some(1));
        known("spool_errno", self.spool_error.map(i128::from));
        text
    }
}

//! What the containers of the scripted runtime do.

use std::time::Duration;

use bytes::Bytes;

use crate::Stream;

/// What a container of [`Scripted`](super::Scripted) does.
#[derive(Debug, Clone, Default)]
pub struct Script {
    pub(super) prints: Vec<(Duration, Stream, Bytes)>,
    pub(super) length: Duration,
    pub(super) code: i64,
    pub(super) runs_on: bool,
    pub(super) ignores_term: bool,
    pub(super) start_fails: Option<String>,
    pub(super) tap_cut: Option<u64>,
    pub(super) tap_stays: bool,
    pub(super) log_cut: Option<u64>,
}

impl Script {
    /// A container that prints nothing, and ends at once with code 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prints on standard output.
    pub fn stdout(self, bytes: impl Into<Bytes>) -> Self {
        self.print(Stream::Stdout, bytes)
    }

    /// Prints on standard error.
    pub fn stderr(self, bytes: impl Into<Bytes>) -> Self {
        self.print(Stream::Stderr, bytes)
    }

    /// Prints on any stream.
    pub fn print(mut self, stream: Stream, bytes: impl Into<Bytes>) -> Self {
        self.prints.push((self.length, stream, bytes.into()));
        self
    }

    /// Does nothing for a while.
    pub fn pause(mut self, duration: Duration) -> Self {
        self.length += duration;
        self
    }

    /// Ends with this code, in place of 0.
    pub fn exit(mut self, code: i64) -> Self {
        self.code = code;
        self
    }

    /// Does not end by itself: it waits for a signal.
    pub fn until_stopped(mut self) -> Self {
        self.runs_on = true;
        self
    }

    /// Ends on SIGKILL alone.
    pub fn ignore_term(mut self) -> Self {
        self.ignores_term = true;
        self
    }

    /// Cannot be started.
    pub fn fail_to_start(mut self, reason: impl Into<String>) -> Self {
        self.start_fails = Some(reason.into());
        self
    }

    /// The tap comes to a clean end after so many bytes, as behind a proxy that cuts it.
    pub fn cut_tap_after(mut self, bytes: u64) -> Self {
        self.tap_cut = Some(bytes);
        self
    }

    /// The tap does not end with the container.
    pub fn tap_never_ends(mut self) -> Self {
        self.tap_stays = true;
        self
    }

    /// The engine's log has only so many bytes.
    pub fn cut_log_after(mut self, bytes: u64) -> Self {
        self.log_cut = Some(bytes);
        self
    }
}

//! What the containers of the scripted runtime do.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::outcome::Stream;
use crate::runtime::{Health, PublishedPort};
use crate::spec::Protocol;

/// What a container of [`Scripted`](super::Scripted) does.
#[derive(Debug, Clone, Default)]
pub struct Script {
    pub(super) prints: Vec<(Duration, Stream, Bytes)>,
    pub(super) length: Duration,
    pub(super) code: i64,
    pub(super) runs_on: bool,
    pub(super) ignores_term: bool,
    pub(super) start_fails: Option<String>,
    pub(super) echoes: bool,
    pub(super) on_term: Option<i64>,
    pub(super) tap: Option<(u64, Break)>,
    pub(super) log: Option<(u64, Break)>,
    pub(super) follow: Option<(u64, Break)>,
    pub(super) memory: u64,
    pub(super) cpus: f64,
    pub(super) ports: Vec<PublishedPort>,
    pub(super) health: Option<(Duration, Health)>,
}

/// Where output is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The tap.
    Tap,
    /// The engine's log, to its end.
    Log,
    /// The engine's log, and what comes.
    Follow,
}

/// How a stream breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Break {
    /// It comes to a clean end, and is short.
    End,
    /// It ends with an error.
    Error,
    /// Nothing comes any more, not even the end.
    Stall,
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

    /// Prints what is written to its input, and ends at the end of that, or by a signal.
    pub fn echo(mut self) -> Self {
        self.echoes = true;
        self.runs_on = true;
        self
    }

    /// Ends with this code on SIGTERM, in place of 143.
    pub fn exit_on_term(mut self, code: i64) -> Self {
        self.on_term = Some(code);
        self
    }

    /// Ends on SIGKILL alone.
    pub fn ignore_term(mut self) -> Self {
        self.ignores_term = true;
        self
    }

    /// Uses so many bytes of memory, and so many CPUs, while it runs. Default: 0.
    pub fn uses(mut self, memory: u64, cpus: f64) -> Self {
        self.memory = memory;
        self.cpus = cpus;
        self
    }

    /// Has its TCP port `container` offered at `at`, where nothing listens but what the test has
    /// there. Default: no port is offered.
    pub fn port(mut self, container: u16, at: SocketAddr) -> Self {
        self.ports.push(PublishedPort {
            container,
            protocol: Protocol::Tcp,
            at,
        });
        self
    }

    /// Has a health check, which says this from so long after the start on, and nothing before.
    /// Default: none.
    pub fn health(mut self, after: Duration, says: Health) -> Self {
        self.health = Some((after, says));
        self
    }

    /// Cannot be started.
    pub fn fail_to_start(mut self, reason: impl Into<String>) -> Self {
        self.start_fails = Some(reason.into());
        self
    }

    /// What is read from `source` breaks after so many bytes, each time that it is read.
    ///
    /// A log that comes to an early [`Break::End`] has no more bytes: its tail is that of what it
    /// has. A [`Break::Stall`] behind the last byte is a stream that does not end with its
    /// container.
    pub fn break_at(mut self, source: Source, bytes: u64, how: Break) -> Self {
        let place = match source {
            Source::Tap => &mut self.tap,
            Source::Log => &mut self.log,
            Source::Follow => &mut self.follow,
        };
        *place = Some((bytes, how));
        self
    }

    /// The tap comes to a clean end after so many bytes, as behind a proxy that cuts it.
    pub fn cut_tap_after(self, bytes: u64) -> Self {
        self.break_at(Source::Tap, bytes, Break::End)
    }

    /// The tap does not end with the container.
    pub fn tap_never_ends(self) -> Self {
        self.break_at(Source::Tap, u64::MAX, Break::Stall)
    }

    /// The engine's log has only so many bytes.
    pub fn cut_log_after(self, bytes: u64) -> Self {
        self.break_at(Source::Log, bytes, Break::End)
            .break_at(Source::Follow, bytes, Break::End)
    }
}

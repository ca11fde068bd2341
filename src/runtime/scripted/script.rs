//! The behavior of the scripted containers.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::fault::Break;
use crate::outcome::Stream;
use crate::runtime::{Health, PublishedPort};
use crate::spec::{PlacementProgress, Protocol};

/// The behavior of a container of [`Scripted`](super::Scripted).
#[derive(Debug, Clone, Default)]
pub struct Script {
    pub(super) prints: Vec<Print>,
    pub(super) length: Duration,
    pub(super) code: i64,
    pub(super) until_stopped: bool,
    pub(super) ignores_term: bool,
    pub(super) start_error: Option<String>,
    pub(super) echoes: bool,
    pub(super) code_on_term: Option<i64>,
    pub(super) attachment: Option<(u64, Break)>,
    pub(super) log: Option<(u64, Break)>,
    pub(super) follow: Option<(u64, Break)>,
    pub(super) memory: u64,
    pub(super) cpus: f64,
    pub(super) ports: Vec<PublishedPort>,
    pub(super) placement: Vec<Placing>,
    pub(super) listens_on: Vec<u16>,
    pub(super) health: Vec<(Duration, Health)>,
    pub(super) health_output: Option<String>,
}

/// One write of a container.
#[derive(Debug, Clone)]
pub(super) struct Print {
    /// The time since the container's start.
    pub(super) after: Duration,
    pub(super) stream: Stream,
    pub(super) bytes: Bytes,
}

/// One step of a placement.
#[derive(Debug, Clone)]
pub(super) struct Placing {
    pub(super) progress: PlacementProgress,
    pub(super) duration: Duration,
}

/// A source of a container's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The attachment that is made before the start, or the output of an exec.
    Attachment,
    /// The engine's log up to its end.
    Log,
    /// The engine's log, followed by live output.
    Follow,
}

impl Script {
    /// Creates a container that writes nothing and exits at once with code 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes to standard output.
    pub fn stdout(self, bytes: impl Into<Bytes>) -> Self {
        self.print(Stream::Stdout, bytes)
    }

    /// Writes to standard error.
    pub fn stderr(self, bytes: impl Into<Bytes>) -> Self {
        self.print(Stream::Stderr, bytes)
    }

    /// Writes to `stream`.
    pub fn print(mut self, stream: Stream, bytes: impl Into<Bytes>) -> Self {
        self.prints.push(Print {
            after: self.length,
            stream,
            bytes: bytes.into(),
        });
        self
    }

    /// Pauses for `duration`.
    pub fn pause(mut self, duration: Duration) -> Self {
        self.length += duration;
        self
    }

    /// Sets the exit code. Default: 0.
    pub fn exit(mut self, code: i64) -> Self {
        self.code = code;
        self
    }

    /// Runs until a signal ends the container.
    pub fn until_stopped(mut self) -> Self {
        self.until_stopped = true;
        self
    }

    /// Echoes the input to standard output until its end or a signal.
    pub fn echo(mut self) -> Self {
        self.echoes = true;
        self.until_stopped = true;
        self
    }

    /// Sets the exit code after SIGTERM. Default: 143.
    pub fn exit_on_term(mut self, code: i64) -> Self {
        self.code_on_term = Some(code);
        self
    }

    /// Ignores every signal except SIGKILL.
    pub fn ignore_term(mut self) -> Self {
        self.ignores_term = true;
        self
    }

    /// Sets the usage while the container runs: memory in bytes, and CPUs.
    ///
    /// Default: 0.
    pub fn uses(mut self, memory: u64, cpus: f64) -> Self {
        self.memory = memory;
        self.cpus = cpus;
        self
    }

    /// Publishes the TCP port `container` at `at`. Default: no port.
    ///
    /// The runtime does not listen there. A test listens itself if it needs a connection.
    pub fn port(mut self, container: u16, at: SocketAddr) -> Self {
        let port = PublishedPort::new(container, Protocol::Tcp, at);
        self.ports.push(port);
        self
    }

    /// Echoes what it receives at the TCP port `port`.
    ///
    /// It is for [`Runtime::connect`](crate::runtime::Runtime::connect), and needs no address.
    pub fn listen(mut self, port: u16) -> Self {
        self.listens_on.push(port);
        self
    }

    /// Reports `reason` and `message` when the container is placed, then waits for `duration`.
    ///
    /// Default: the container is placed at its creation. With a step of a placement, the engine
    /// refuses to attach to the container and to start it until it is placed.
    pub fn placing(
        mut self,
        reason: impl Into<String>,
        message: impl Into<String>,
        duration: Duration,
    ) -> Self {
        let progress = PlacementProgress::new(reason, message);
        self.placement.push(Placing { progress, duration });
        self
    }

    /// Adds a health check, which reports `result` from `after` the start on.
    ///
    /// Before, it reports [`Health::Starting`]. A later call adds a later change. Default: no
    /// health check.
    pub fn health(mut self, after: Duration, result: Health) -> Self {
        self.health.push((after, result));
        self
    }

    /// Sets the output of the health check. Default: none.
    pub fn health_output(mut self, output: impl Into<String>) -> Self {
        self.health_output = Some(output.into());
        self
    }

    /// Fails to start.
    pub fn fail_to_start(mut self, reason: impl Into<String>) -> Self {
        self.start_error = Some(reason.into());
        self
    }

    /// Breaks every stream from `source` after `bytes` bytes.
    ///
    /// A log that breaks with [`Break::End`] has no further bytes, and its tail is the tail of
    /// the bytes that it has. A [`Break::Stall`] after the last byte is a stream that does not end
    /// with its container.
    pub fn break_at(mut self, source: Source, bytes: u64, how: Break) -> Self {
        let cut = match source {
            Source::Attachment => &mut self.attachment,
            Source::Log => &mut self.log,
            Source::Follow => &mut self.follow,
        };
        *cut = Some((bytes, how));
        self
    }

    /// Ends the attachment cleanly after `bytes` bytes, as a proxy may do.
    pub fn cut_attachment_after(self, bytes: u64) -> Self {
        self.break_at(Source::Attachment, bytes, Break::End)
    }

    /// Keeps the attachment open after the container's end.
    pub fn attachment_never_ends(self) -> Self {
        self.break_at(Source::Attachment, u64::MAX, Break::Stall)
    }

    /// Truncates the engine's log to `bytes` bytes.
    pub fn cut_log_after(self, bytes: u64) -> Self {
        self.break_at(Source::Log, bytes, Break::End)
            .break_at(Source::Follow, bytes, Break::End)
    }
}

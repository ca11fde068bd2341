//! The optional features of an engine.

use std::time::Duration;

#[cfg(doc)]
use super::Runtime;

/// The optional features of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Capabilities {
    /// [`Runtime::attach`] connects to the output before the container starts.
    pub attach_before_start: bool,
    /// An attachment that delivers nothing ends, or is resumed, if its connection is dead.
    ///
    /// `false`: a connection may stay open and deliver nothing, for example through a proxy that
    /// stops forwarding. moat then compares the engine's log with a silent attachment.
    pub attach_keepalive: bool,
    /// The engine keeps the output, and the output can be read again.
    pub logs: bool,
    /// A container's standard input can be written.
    pub stdin: bool,
    /// An input of [`Stdin::Open`](crate::spec::Stdin::Open) outlives its writers.
    ///
    /// `false`: it ends with the first writer, unless the container has a terminal.
    pub stdin_reattach: bool,
    /// Execs can run in a container.
    pub exec: bool,
    /// [`Runtime::exec_kill`] kills an exec and what it started.
    ///
    /// `false`: an exec with a limit that stops it is refused.
    pub exec_kill: bool,
    /// The limit past which the engine discards output.
    ///
    /// `None`: the engine reads all output of a container.
    pub drain: Option<DrainLimit>,
    /// The limit past which the engine discards output of an exec.
    ///
    /// `None`: the engine reads all output of an exec.
    pub exec_drain: Option<DrainLimit>,
    /// The only source of output is a log that the engine rotates.
    ///
    /// Any output may be missing without a trace, so that each run has a possible gap.
    pub log_rotates: bool,
    /// Containers end with the process that created them.
    ///
    /// No other process finds them.
    pub process_bound: bool,
    /// [`Runtime::copy_out`] reads from a container that has ended.
    pub copy_ended: bool,
    /// A published port has an address on the engine's host.
    ///
    /// `false`: [`Runtime::validate`] refuses a spec that publishes a port.
    pub ports: bool,
    /// Networks can be created, and containers reach each other in them by name.
    pub networks: bool,
    /// Volumes can be created.
    pub volumes: bool,
    /// [`Runtime::connect`] connects to any TCP port of a running container.
    pub connect: bool,
    /// The images of the engine can be listed, described, pulled and removed.
    ///
    /// [`Runtime::prepare`] then returns once the engine has the image.
    pub images: bool,
}

impl Capabilities {
    /// An engine without optional features.
    pub const NONE: Self = Self {
        attach_before_start: false,
        attach_keepalive: false,
        logs: false,
        stdin: false,
        stdin_reattach: false,
        exec: false,
        exec_kill: false,
        drain: None,
        exec_drain: None,
        log_rotates: false,
        process_bound: false,
        copy_ended: false,
        ports: false,
        networks: false,
        volumes: false,
        connect: false,
        images: false,
    };

    /// Sets [`attach_before_start`](Self::attach_before_start).
    pub const fn with_attach_before_start(mut self) -> Self {
        self.attach_before_start = true;
        self
    }

    /// Sets [`attach_keepalive`](Self::attach_keepalive).
    pub const fn with_attach_keepalive(mut self) -> Self {
        self.attach_keepalive = true;
        self
    }

    /// Sets [`logs`](Self::logs).
    pub const fn with_logs(mut self) -> Self {
        self.logs = true;
        self
    }

    /// Sets [`stdin`](Self::stdin).
    pub const fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// Sets [`stdin_reattach`](Self::stdin_reattach).
    pub const fn with_stdin_reattach(mut self) -> Self {
        self.stdin_reattach = true;
        self
    }

    /// Sets [`exec`](Self::exec).
    pub const fn with_exec(mut self) -> Self {
        self.exec = true;
        self
    }

    /// Sets [`exec_kill`](Self::exec_kill).
    pub const fn with_exec_kill(mut self) -> Self {
        self.exec_kill = true;
        self
    }

    /// Sets [`drain`](Self::drain).
    pub const fn with_drain(mut self, drain: DrainLimit) -> Self {
        self.drain = Some(drain);
        self
    }

    /// Sets [`exec_drain`](Self::exec_drain).
    pub const fn with_exec_drain(mut self, drain: DrainLimit) -> Self {
        self.exec_drain = Some(drain);
        self
    }

    /// Sets [`log_rotates`](Self::log_rotates).
    pub const fn with_log_rotates(mut self) -> Self {
        self.log_rotates = true;
        self
    }

    /// Sets [`process_bound`](Self::process_bound).
    pub const fn with_process_bound(mut self) -> Self {
        self.process_bound = true;
        self
    }

    /// Sets [`copy_ended`](Self::copy_ended).
    pub const fn with_copy_ended(mut self) -> Self {
        self.copy_ended = true;
        self
    }

    /// Sets [`ports`](Self::ports).
    pub const fn with_ports(mut self) -> Self {
        self.ports = true;
        self
    }

    /// Sets [`networks`](Self::networks).
    pub const fn with_networks(mut self) -> Self {
        self.networks = true;
        self
    }

    /// Sets [`volumes`](Self::volumes).
    pub const fn with_volumes(mut self) -> Self {
        self.volumes = true;
        self
    }
    /// Sets [`connect`](Self::connect).
    pub const fn with_connect(mut self) -> Self {
        self.connect = true;
        self
    }

    /// Sets [`images`](Self::images).
    pub const fn with_images(mut self) -> Self {
        self.images = true;
        self
    }
}

/// The output that an engine reads after the end of a container or an exec.
///
/// Output past this limit is lost for the engine's log and for every client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainLimit {
    /// The time after the end during which the engine reads output.
    pub timeout: Duration,
    /// The bytes of each stream that the engine always reads.
    ///
    /// It reads them even if its log and its clients are slow. 0: it may lose the end of any output.
    pub buffer: u64,
}

impl DrainLimit {
    /// Creates a limit. `buffer` is in bytes per stream.
    pub const fn new(timeout: Duration, buffer: u64) -> Self {
        Self { timeout, buffer }
    }
}

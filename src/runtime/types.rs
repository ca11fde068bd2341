//! Arguments and results of the [`Runtime`] methods.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::AsyncWrite;

#[cfg(doc)]
use super::Runtime;
use super::log::LogConfig;
use crate::error::RuntimeError;
use crate::outcome::Stream;
use crate::spec::{ContainerId, Protocol, RootId, RunId, RunSpec, RuntimeView};
use crate::timestamp::Timestamp;

/// Output of a container on one stream, in the order of that stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The stream.
    pub stream: Stream,
    /// The bytes: never empty.
    ///
    /// A chunk may end in the middle of a line or a character.
    pub bytes: Bytes,
}

/// A container's output.
///
/// `None` is a clean end. An error is a broken connection or invalid framing.
pub type OutputStream = BoxStream<'static, Result<Chunk, RuntimeError>>;

/// The output of an attachment or an exec, from the first byte.
#[non_exhaustive]
pub struct AttachedOutput {
    /// The output.
    pub stream: OutputStream,
    /// True if the clean end of the stream proves that all streams were delivered to their end.
    ///
    /// The source then marks its end, after the last byte that it has read. A connection that
    /// breaks or is cut before the marker ends the stream with an error. Output that the engine
    /// did not read is a matter of [`Capabilities::drain`]. `false`: a clean end proves nothing.
    pub end_marker: bool,
}

impl AttachedOutput {
    /// Creates an output whose end proves nothing.
    pub fn new(stream: OutputStream) -> Self {
        Self {
            stream,
            end_marker: false,
        }
    }

    /// Sets [`end_marker`](Self::end_marker).
    pub fn with_end_marker(mut self) -> Self {
        self.end_marker = true;
        self
    }
}

impl fmt::Debug for AttachedOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedOutput")
            .field("end_marker", &self.end_marker)
            .finish_non_exhaustive()
    }
}

/// A writer to a process's standard input.
///
/// Shutdown ends the input if the input can end. Drop closes the connection. A write waits until
/// the engine accepts the bytes.
pub type InputWriter = std::pin::Pin<Box<dyn AsyncWrite + Send>>;

/// The bytes of a tar archive.
pub type Archive = BoxStream<'static, Result<Bytes, RuntimeError>>;

/// An exec that [`Runtime::exec`] started.
#[non_exhaustive]
pub struct StartedExec {
    /// The engine's id of the exec.
    pub id: ExecId,
    /// The output.
    pub output: AttachedOutput,
    /// The standard input, if the spec asks for one.
    pub input: Option<InputWriter>,
}

impl StartedExec {
    /// Creates an exec without input.
    pub fn new(id: ExecId, output: AttachedOutput) -> Self {
        Self {
            id,
            output,
            input: None,
        }
    }

    /// Sets the standard input.
    pub fn with_input(mut self, input: InputWriter) -> Self {
        self.input = Some(input);
        self
    }
}

impl fmt::Debug for StartedExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartedExec")
            .field("id", &self.id)
            .field("input", &self.input.is_some())
            .finish_non_exhaustive()
    }
}

/// The engine's id of an exec.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExecId(String);

impl ExecId {
    /// Wraps an id of the engine.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The state of an exec, as the engine reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecInspection {
    /// True while the process runs.
    pub running: bool,
    /// The exit code.
    ///
    /// `None` while the process runs, and if the engine does not know it.
    pub code: Option<i64>,
}

impl ExecInspection {
    /// The state of a running exec.
    pub const RUNNING: Self = Self {
        running: true,
        code: None,
    };

    /// Returns the state of an exec that ended.
    pub const fn ended(code: Option<i64>) -> Self {
        Self {
            running: false,
            code,
        }
    }
}

/// The optional features of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Capabilities {
    /// [`Runtime::attach`] connects to the output before the container starts.
    pub attach_before_start: bool,
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
    /// The limit past which the engine discards output.
    ///
    /// `None`: the engine reads all output of a container.
    pub drain: Option<DrainLimit>,
    /// The limit past which the engine discards output of an exec.
    ///
    /// `None`: the engine reads all output of an exec.
    pub exec_drain: Option<DrainLimit>,
    /// Containers end with the process that created them.
    ///
    /// No other process finds them.
    pub process_bound: bool,
}

impl Capabilities {
    /// An engine without optional features.
    pub const NONE: Self = Self {
        attach_before_start: false,
        logs: false,
        stdin: false,
        stdin_reattach: false,
        exec: false,
        drain: None,
        exec_drain: None,
        process_bound: false,
    };

    /// Sets [`attach_before_start`](Self::attach_before_start).
    pub const fn with_attach_before_start(mut self) -> Self {
        self.attach_before_start = true;
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

    /// Sets [`process_bound`](Self::process_bound).
    pub const fn with_process_bound(mut self) -> Self {
        self.process_bound = true;
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

/// The name, version and identity of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EngineInfo {
    /// The engine's name: `Docker Engine`.
    pub name: String,
    /// The engine's version.
    pub version: String,
    /// The version of the API in use.
    pub api: String,
    /// The id that distinguishes this engine from all others.
    ///
    /// `None`: the engine reports none.
    pub id: Option<String>,
}

impl EngineInfo {
    /// Creates the description of an engine without an id.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            api: String::new(),
            id: None,
        }
    }

    /// Sets the id.
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }
}

/// The arguments of [`Runtime::create`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CreateRequest<'a> {
    /// The container's name.
    pub name: &'a str,
    /// The root of the run. The runtime keeps it in a label of the container.
    pub root: &'a RootId,
    /// The run. The runtime keeps it in a label of the container.
    pub run: &'a RunId,
    /// The spec of the run.
    pub spec: &'a RunSpec,
    /// The latest time at which the manager ends the container.
    ///
    /// `None`: never. The runtime keeps it in a label of the container.
    pub deadline: Option<Timestamp>,
}

impl<'a> CreateRequest<'a> {
    /// Creates a request without a deadline.
    pub fn new(name: &'a str, root: &'a RootId, run: &'a RunId, spec: &'a RunSpec) -> Self {
        Self {
            name,
            root,
            run,
            spec,
            deadline: None,
        }
    }

    /// Sets the deadline.
    pub fn deadline(mut self, deadline: Option<Timestamp>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Returns the environment, the credentials and the patch of the spec.
    pub fn view(&self) -> RuntimeView<'a> {
        RuntimeView::new(self.spec)
    }
}

/// A container that [`Runtime::create`] created.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Created {
    /// The container.
    pub container: ContainerId,
    /// The engine's warnings.
    pub warnings: Vec<String>,
}

impl Created {
    /// Creates a result without warnings.
    pub fn new(container: ContainerId) -> Self {
        Self {
            container,
            warnings: Vec::new(),
        }
    }

    /// Sets the engine's warnings.
    pub fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }
}

/// The end of a container, as [`Runtime::wait`] reports it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WaitStatus {
    /// The exit code; `None`: the engine does not know it.
    pub code: Option<i64>,
    /// The engine's error, if it reports one.
    pub error: Option<String>,
}

impl WaitStatus {
    /// Creates a status without an error.
    pub fn new(code: Option<i64>) -> Self {
        Self { code, error: None }
    }

    /// Sets the engine's error.
    pub fn with_error(mut self, error: Option<String>) -> Self {
        self.error = error;
        self
    }
}

/// The phase of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContainerStatus {
    /// The container was created and never started, or its start failed.
    Created,
    /// The container runs, is paused, or restarts.
    Running,
    /// The container ran and ended.
    Ended,
    /// The engine is removing the container.
    Removing,
}

impl fmt::Display for ContainerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Removing => "removing",
        })
    }
}

/// The answer to [`Runtime::continuity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Continuity {
    /// The engine did not restart, or a restart of the engine loses no output.
    Unbroken,
    /// The engine restarted.
    Broken,
    /// The engine does not report restarts.
    Unknown,
}

/// The state of a container, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The phase of the container's life.
    pub status: ContainerStatus,
    /// The time of the last start; `None`: never started.
    pub started_at: Option<Timestamp>,
    /// The time of the last end; `None`: never ended.
    pub finished_at: Option<Timestamp>,
    /// The exit code.
    ///
    /// `None` while the container runs, and if the engine does not know it.
    pub code: Option<i64>,
    /// True if the kernel killed the container because it was out of memory.
    pub oom_killed: bool,
    /// The engine's error, if it reports one.
    pub error: Option<String>,
    /// The digest of the image.
    pub image_digest: Option<String>,
    /// The stop signal that the image sets.
    pub stop_signal: Option<String>,
    /// The configuration of the engine's log, including the engine's defaults.
    pub log: LogConfig,
    /// The ports of a running container, if the runtime reports them.
    pub ports: Vec<PublishedPort>,
    /// True if the container shares the network of the engine's host.
    pub on_host_network: bool,
    /// The addresses by network name, if the runtime reports them.
    pub addresses: BTreeMap<String, IpAddr>,
    /// The result of the health check.
    ///
    /// `None`: there is none, or the runtime does not report it.
    pub health: Option<Health>,
}

impl Inspection {
    /// Creates an inspection that has only a status.
    pub fn new(status: ContainerStatus) -> Self {
        Self {
            status,
            started_at: None,
            finished_at: None,
            code: None,
            oom_killed: false,
            error: None,
            image_digest: None,
            stop_signal: None,
            log: LogConfig::default(),
            ports: Vec::new(),
            on_host_network: false,
            addresses: BTreeMap::new(),
            health: None,
        }
    }
}

/// A port of a container, and its address on the engine's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishedPort {
    /// The port in the container.
    pub container: u16,
    /// The transport.
    pub protocol: Protocol,
    /// The address and port on the engine's host.
    ///
    /// An unspecified address stands for every address of that host, such as [`Runtime::host`].
    pub at: SocketAddr,
}

impl PublishedPort {
    /// Creates a published port.
    pub const fn new(container: u16, protocol: Protocol, at: SocketAddr) -> Self {
        Self {
            container,
            protocol,
            at,
        }
    }
}

/// The result of an engine's health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// No check has finished yet.
    Starting,
    /// The last check passed.
    Healthy,
    /// As many checks in a row failed as the container's limit allows.
    Unhealthy,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// A container of one root.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnedContainer {
    /// The container.
    pub container: ContainerId,
    /// The run that the container was created for.
    pub run: RunId,
    /// The phase of the container's life.
    pub status: ContainerStatus,
}

impl OwnedContainer {
    /// Creates an entry of [`Runtime::find`].
    pub fn new(container: ContainerId, run: RunId, status: ContainerStatus) -> Self {
        Self {
            container,
            run,
            status,
        }
    }
}

/// A container of any root, with the content of its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabeledContainer {
    /// The container.
    pub container: ContainerId,
    /// The root that the container was created for.
    pub root: RootId,
    /// The run that the container was created for.
    pub run: RunId,
    /// The phase of the container's life.
    pub status: ContainerStatus,
    /// The time at which the container's manager ends it; `None`: no deadline.
    pub deadline: Option<Timestamp>,
}

impl LabeledContainer {
    /// Creates an entry of [`Runtime::find_all`] without a deadline.
    pub fn new(container: ContainerId, root: RootId, run: RunId, status: ContainerStatus) -> Self {
        Self {
            container,
            root,
            run,
            status,
            deadline: None,
        }
    }
}

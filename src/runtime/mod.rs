//! The adapter to one engine: the [`Runtime`] trait, and those that come with moat.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::AsyncWrite;

use crate::outcome::{Stream, Usage};
use crate::spec::{
    ContainerId, ExecSpec, InvalidSpec, Protocol, RootId, RunId, RunSpec, WindowSize,
};
use crate::timestamp::Timestamp;

pub mod connect;
#[cfg(feature = "docker")]
pub mod docker;
#[cfg(feature = "process")]
pub mod process;
#[cfg(feature = "testing")]
pub mod scripted;
mod shared;

pub use crate::error::RuntimeError;

/// Bytes that a container printed on one stream, in the order of that stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The stream.
    pub stream: Stream,
    /// The bytes: never empty, cut anywhere.
    pub bytes: Bytes,
}

/// A container's output: `None` is a clean end, an error is a broken connection or broken framing.
pub type OutputStream = BoxStream<'static, Result<Chunk, RuntimeError>>;

/// A process's standard input. Shutting it down ends the input where it has an end; dropping it
/// closes the connection. A write waits until the engine takes the bytes.
pub type InputWriter = std::pin::Pin<Box<dyn AsyncWrite + Send>>;

/// The bytes of a tar archive.
pub type Archive = BoxStream<'static, Result<Bytes, RuntimeError>>;

/// The adapter to one engine. It knows nothing of runs, files or policy.
///
/// # The contract
///
/// Everything that moat promises stands on these clauses.
///
/// **Errors are facts or they are not.** [`RuntimeError::NotFound`], [`Conflict`], [`NoSuchImage`],
/// [`Rejected`] and [`Unsupported`] mean that the engine has answered, and that the answer holds.
/// [`Unavailable`], [`Timeout`] and [`Broken`] say nothing about the container: a request may have
/// been carried out all the same, even later. A runtime never turns one kind into the other.
///
/// **Every call is bounded in time**, by 30 s unless its own documentation says otherwise; `wait`,
/// and the streams, are not. Past its bound a call fails with [`Timeout`].
///
/// **Every future is cancel-safe** in that dropping it leaks nothing. A request that has been sent
/// may be carried out all the same.
///
/// **Order and completeness.** A stream gives each of the container's streams byte by byte, none
/// twice, none skipped before the point where it ends. Between streams the order is that of
/// receipt. Whether output comes as [`Stream::Tty`] follows from `tty` alone, never from the bytes.
///
/// **No secrets.** Values of the environment and credentials are in no error and no log.
///
/// `moat::conformance::runtime` has a trial for each of these clauses, and for those of the calls,
/// with the feature `conformance`.
///
/// [`Conflict`]: RuntimeError::Conflict
/// [`NoSuchImage`]: RuntimeError::NoSuchImage
/// [`Rejected`]: RuntimeError::Rejected
/// [`Unsupported`]: RuntimeError::Unsupported
/// [`Unavailable`]: RuntimeError::Unavailable
/// [`Timeout`]: RuntimeError::Timeout
/// [`Broken`]: RuntimeError::Broken
#[async_trait]
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// The runtime's name: `docker`. It is recorded with each run.
    fn name(&self) -> &'static str;

    /// What the engine can do. It does not change.
    fn capabilities(&self) -> Capabilities;

    /// The host, by name or address, at which this process reaches the ports that containers
    /// publish on all addresses of the engine's host. Default: `127.0.0.1`.
    fn host(&self) -> String {
        "127.0.0.1".into()
    }

    /// Asks the engine who it is. It changes nothing, and serves as a probe.
    ///
    /// An [`id`](EngineInfo::id) stays the same for as long as the engine has its containers, and no
    /// other engine has it: a run is taken over by no engine that has another one.
    async fn engine(&self) -> Result<EngineInfo, RuntimeError>;

    /// Checks what only this runtime can check of `spec`, without asking the engine.
    ///
    /// # Errors
    ///
    /// [`InvalidSpec`], which names the field: what this engine cannot do is
    /// refused, not ignored.
    fn validate(&self, spec: &RunSpec) -> Result<(), InvalidSpec>;

    /// Makes sure that the image is there, by the spec's pull policy, and reports progress through
    /// [`RunSpec::report_pull`]. Fails with [`RuntimeError::Timeout`] after 60 s without progress.
    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError>;

    /// Makes the container, and does not start it. A name that is taken is refused, as a fact.
    ///
    /// The engine must neither remove nor restart it by itself, and, unless
    /// [`Backstop::None`](crate::spec::Backstop::None) was asked for, must keep all of its output until
    /// it is removed. It can be found by [`find`](Self::find) from then on.
    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError>;

    /// Connects to the output of a container that has not started.
    ///
    /// It resolves only when the engine has answered, so that nothing that the container prints
    /// after a later [`start`](Self::start) is missed. It is only called where
    /// [`Capabilities::attach_before_start`] is set. The end of the stream proves nothing; it comes timeout 10 s of
    /// the container's end. A connection that breaks ends it too, where the protocol can tell with
    /// an error. Dropping it leaves the container alone. [`RuntimeError::Rejected`]: the engine has
    /// found out already that it could not start the container, which is [`Status::Created`] still.
    async fn attach(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError>;

    /// Connects to the output of a container that runs: to what it prints from now on, as it is
    /// printed. For those who look on alone: nothing says where in the output it begins.
    ///
    /// It resolves when the engine has answered. Default: [`RuntimeError::Unsupported`].
    async fn attach_running(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        let _ = (container, tty);
        Err(unsupported(self.name(), "look on at a container that runs"))
    }

    /// Starts the container. [`RuntimeError::Rejected`]: the engine could not, and it does not run:
    /// it is [`Status::Created`] still.
    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError>;

    /// Waits until a container that was started no longer runs.
    ///
    /// Unbounded in time; at once for one that has ended, and no longer than until the container
    /// is removed. Any exit code is an answer, and no error. An answer says that the engine spoke of an end; the caller confirms it
    /// by [`inspect`](Self::inspect). An error says nothing about the container, but for
    /// [`RuntimeError::NotFound`].
    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError>;

    /// What the engine knows of the container. [`RuntimeError::NotFound`]: it is gone, a fact.
    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError>;

    /// Whether the engine has run without a break since it started the container.
    ///
    /// What an engine has taken of a container's output and not passed on dies with it, and
    /// neither its log nor a tap shows that. It is asked when the engine was out of reach while
    /// the container ran, and when a run is taken over. Default: [`Continuity::Unknown`].
    async fn continuity(&self, container: &ContainerId) -> Result<Continuity, RuntimeError> {
        let _ = container;
        Ok(Continuity::Unknown)
    }

    /// What the container uses now, while it runs. Default: [`RuntimeError::Unsupported`].
    ///
    /// [`RuntimeError::Conflict`] or [`RuntimeError::NotFound`]: it does not run any more.
    async fn stats(&self, container: &ContainerId) -> Result<Usage, RuntimeError> {
        let _ = container;
        Err(RuntimeError::Unsupported {
            runtime: self.name(),
            operation: "tell what a container uses",
        })
    }

    /// Reads what the engine has kept of the container's output, from its start.
    ///
    /// It resolves when the engine has answered. Without `follow` it ends where the log ends, also
    /// while the container runs, and at once for one that has not started. It can be read again
    /// and again. Where there is no log, as without a backstop, the refusal is a fact.
    async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError>;

    /// Connects to the standard input of a container that was made, and may run.
    ///
    /// On a connection of its own: whatever becomes of it, output goes on. It resolves when the
    /// engine has answered. Of [`Stdin::Pipe`](crate::spec::Stdin::Pipe) the end of the input arrives in
    /// the container when the writer is shut down or dropped; of
    /// [`Stdin::Open`](crate::spec::Stdin::Open) nothing does. All bytes arrive as they are, those that
    /// an engine has a use of its own for with them. It is only called where
    /// [`Capabilities::stdin`] is set. Default: [`RuntimeError::Unsupported`].
    async fn stdin(&self, container: &ContainerId) -> Result<InputWriter, RuntimeError> {
        let _ = container;
        Err(unsupported(self.name(), "write to a container's input"))
    }

    /// Sets the size of the terminal of a container that runs. Default:
    /// [`RuntimeError::Unsupported`].
    async fn resize(&self, container: &ContainerId, size: WindowSize) -> Result<(), RuntimeError> {
        let _ = (container, size);
        Err(unsupported(self.name(), "resize a container's terminal"))
    }

    /// Runs a further process in a container that runs.
    ///
    /// It resolves when the engine has answered, with all of the process's output to come. It is
    /// only called where [`Capabilities::exec`] is set. [`RuntimeError::Rejected`]: it was not
    /// started. [`RuntimeError::Conflict`]: the container does not run. Default:
    /// [`RuntimeError::Unsupported`].
    async fn exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        let _ = (container, spec);
        Err(unsupported(
            self.name(),
            "run a further process in a container",
        ))
    }

    /// What the engine knows of a process that [`exec`](Self::exec) has started.
    /// [`RuntimeError::NotFound`]: it does not know it any more. Default:
    /// [`RuntimeError::Unsupported`].
    async fn exec_inspect(&self, exec: &ExecId) -> Result<ExecInspection, RuntimeError> {
        let _ = exec;
        Err(unsupported(
            self.name(),
            "run a further process in a container",
        ))
    }

    /// Sets the size of the terminal of a process that [`exec`](Self::exec) has started. Default:
    /// [`RuntimeError::Unsupported`].
    async fn exec_resize(&self, exec: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        let _ = (exec, size);
        Err(unsupported(self.name(), "resize a process's terminal"))
    }

    /// Sends a signal, by name (`SIGTERM`), to the container's first process.
    ///
    /// [`RuntimeError::Conflict`]: it does not run.
    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError>;

    /// Removes the container, with its anonymous volumes.
    ///
    /// Without `force`, [`RuntimeError::Conflict`] is the answer for a container that runs, as a
    /// fact: success means that it does not run, and never will. [`RuntimeError::NotFound`]: there
    /// is none.
    async fn remove(&self, container: &ContainerId, force: bool) -> Result<(), RuntimeError>;

    /// The containers, in every state, that were made for `root`.
    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError>;

    /// The containers, in every state, that were made for any root, with what their labels say.
    /// Default: [`RuntimeError::Unsupported`].
    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        Err(RuntimeError::Unsupported {
            runtime: self.name(),
            operation: "find the containers of all roots",
        })
    }

    /// A tar archive of the file or folder at `path` in the container, which may have ended.
    async fn copy_out(&self, container: &ContainerId, path: &str) -> Result<Archive, RuntimeError>;

    /// Unpacks a tar archive into the folder at `path` in the container. Unbounded in time.
    async fn copy_in(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError>;
}

fn unsupported(runtime: &'static str, operation: &'static str) -> RuntimeError {
    RuntimeError::Unsupported { runtime, operation }
}

/// What [`Runtime::exec`] has started.
#[non_exhaustive]
pub struct StartedExec {
    /// The engine's name for it.
    pub id: ExecId,
    /// What it prints, from its first byte. The end proves nothing.
    pub output: OutputStream,
    /// Its standard input, where the spec asks for one.
    pub input: Option<InputWriter>,
}

impl StartedExec {
    /// A process without input.
    pub fn new(id: ExecId, output: OutputStream) -> Self {
        Self {
            id,
            output,
            input: None,
        }
    }

    /// The same, with this input.
    pub fn with_input(mut self, input: InputWriter) -> Self {
        self.input = Some(input);
        self
    }
}

impl fmt::Debug for StartedExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execed")
            .field("id", &self.id)
            .field("input", &self.input.is_some())
            .finish_non_exhaustive()
    }
}

/// The engine's name for a process that [`Runtime::exec`] has started.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExecId(String);

impl ExecId {
    /// The name as the engine gave it.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an engine knows of a process that [`Runtime::exec`] has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecInspection {
    /// Whether it runs.
    pub running: bool,
    /// Its exit code; `None` while it runs, and where the engine does not know it.
    pub code: Option<i64>,
}

impl ExecInspection {
    /// One that runs.
    pub const RUNNING: Self = Self {
        running: true,
        code: None,
    };

    /// One that has ended, with this code if that is known.
    pub const fn ended(code: Option<i64>) -> Self {
        Self {
            running: false,
            code,
        }
    }
}

/// What an engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Capabilities {
    /// Output can be connected to before the container starts.
    pub attach_before_start: bool,
    /// The engine keeps the output, and it can be read again.
    pub logs: bool,
    /// A container's standard input can be written to.
    pub stdin: bool,
    /// A further process can be run in a container.
    pub exec: bool,
    /// Whether, and when, the engine gives up on output that it has not read; `None`: never.
    pub drain: Option<DrainLimit>,
    /// Containers end with the process that made them, and no other process finds them.
    pub process_bound: bool,
}

/// How an engine gives up on output: what it has not read some time after the end of a container
/// is lost, for its log as for everyone who is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainLimit {
    /// How long after the end it goes on reading.
    pub timeout: Duration,
    /// How many bytes of each stream it takes in any case, however slow its log and its clients
    /// are.
    pub buffer: u64,
}

impl DrainLimit {
    /// An engine that reads for so long, and has a buffer of so many bytes for each stream.
    pub const fn new(timeout: Duration, buffer: u64) -> Self {
        Self { timeout, buffer }
    }
}

impl Capabilities {
    /// An engine that can do nothing but run: for runtimes to build on.
    pub const NONE: Self = Self {
        attach_before_start: false,
        logs: false,
        stdin: false,
        exec: false,
        drain: None,
        process_bound: false,
    };

    /// With the tap.
    pub const fn with_tap(mut self) -> Self {
        self.attach_before_start = true;
        self
    }

    /// Of an engine that gives up on output.
    pub const fn with_drain(mut self, drain: DrainLimit) -> Self {
        self.drain = Some(drain);
        self
    }

    /// With input that can be written to.
    pub const fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// With further processes.
    pub const fn with_exec(mut self) -> Self {
        self.exec = true;
        self
    }

    /// Of containers that end with this process.
    pub const fn with_transience(mut self) -> Self {
        self.process_bound = true;
        self
    }

    /// With a log that can be read again.
    pub const fn with_logs(mut self) -> Self {
        self.logs = true;
        self
    }
}

/// Who an engine is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EngineInfo {
    /// Its name: `Docker Engine`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The version of the API that is spoken with it.
    pub api: String,
    /// What tells it from all other engines; `None`: it does not say.
    pub id: Option<String>,
}

impl EngineInfo {
    /// An engine of this name and version.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            api: String::new(),
            id: None,
        }
    }

    /// With what tells it from all other engines.
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }
}

/// What [`Runtime::create`] is asked for.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CreateRequest<'a> {
    /// The container's name.
    pub name: &'a str,
    /// The root that it is for; to be kept with it, in a label.
    pub root: &'a RootId,
    /// The run that it is for; to be kept with it, in a label.
    pub run: &'a RunId,
    /// What to run.
    pub spec: &'a RunSpec,
    /// When whoever made the container will have ended it, at the latest; to be kept with it, in
    /// a label. `None`: never.
    pub deadline: Option<Timestamp>,
}

impl<'a> CreateRequest<'a> {
    /// A request for the container of one run.
    pub fn new(name: &'a str, root: &'a RootId, run: &'a RunId, spec: &'a RunSpec) -> Self {
        Self {
            name,
            root,
            run,
            spec,
            deadline: None,
        }
    }

    /// With a deadline to be kept with the container.
    pub fn deadline(mut self, deadline: Option<Timestamp>) -> Self {
        self.deadline = deadline;
        self
    }
}

/// What [`Runtime::create`] has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The container.
    pub container: ContainerId,
    /// What the engine warned of.
    pub warnings: Vec<String>,
}

/// What [`Runtime::wait`] heard of the end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WaitStatus {
    /// The exit code; `None`: the engine went away, or does not know.
    pub code: Option<i64>,
    /// The engine's own error, if it has one.
    pub error: Option<String>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It was made, and never started; or a start failed.
    Created,
    /// It runs, is paused, or is being restarted.
    Running,
    /// It ran, and has ended.
    Ended,
    /// It is being removed, and will not be found any more.
    Removing,
}

/// Whether an engine has run without a break since it started a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Continuity {
    /// It has, or containers print to something that does not end with it.
    Unbroken,
    /// It was restarted.
    Broken,
    /// It does not tell.
    Unknown,
}

/// What an engine knows of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// Where it is in its life.
    pub status: Status,
    /// When it was last started; `None`: never.
    pub started_at: Option<Timestamp>,
    /// When it last ended; `None`: never.
    pub finished_at: Option<Timestamp>,
    /// The exit code; `None` while it runs, and where the engine does not know it.
    pub code: Option<i64>,
    /// Whether it was killed for want of memory.
    pub oom_killed: bool,
    /// The engine's own error, if it has one.
    pub error: Option<String>,
    /// The digest of the image.
    pub image_digest: Option<String>,
    /// The signal that the image asks to be stopped with.
    pub stop_signal: Option<String>,
    /// How the engine keeps its output, with the engine's defaults merged in.
    pub log: LogConfig,
    /// The ports that the engine's host offers for it while it runs, as far as the runtime tells.
    pub ports: Vec<PublishedPort>,
    /// Whether it has no network of its own: its ports are those of the engine's host.
    pub on_host_network: bool,
    /// Its own addresses, by the name of the network, as far as the runtime tells.
    pub addresses: BTreeMap<String, IpAddr>,
    /// What its health check says; `None`: it has none, or the runtime does not tell.
    pub health: Option<Health>,
}

/// A port of a container, and where the engine's host offers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedPort {
    /// The port in the container.
    pub container: u16,
    /// The transport.
    pub protocol: Protocol,
    /// The address and the port of the engine's host. An unspecified address is any of that host's:
    /// [`Runtime::host`] is one.
    pub at: SocketAddr,
}

/// What an engine's health check says of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Nothing yet.
    Starting,
    /// It is healthy.
    Healthy,
    /// It has failed as often as it may.
    Unhealthy,
}

impl Inspection {
    /// An inspection that knows the status alone.
    pub fn new(status: Status) -> Self {
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

/// How an engine keeps a container's output.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct LogConfig {
    /// The driver's name, in the engine's words: `json-file`.
    pub driver: String,
    /// Its options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// What the log does to the bytes; `None`: it cannot be read again.
    pub fidelity: Option<LogFidelity>,
}

/// What an engine's log does to the bytes that it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LogFidelity {
    /// Nothing.
    #[serde(rename = "exact")]
    Lossless,
    /// It cuts lines into pieces of 16,384 bytes, even in mid-character, and replaces each byte of
    /// a piece that is not part of valid UTF-8 by U+FFFD: Docker's `json-file`.
    #[serde(rename = "utf8")]
    Utf8Lossy,
}

/// What to read of an engine's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LogsRequest {
    /// Whether the container has a terminal.
    pub tty: bool,
    /// Whether to go on with what comes until the container ends. Such a stream may lose its end.
    pub follow: bool,
    /// Only the last records of the engine's log, so many; `None`: all.
    pub tail: Option<u32>,
}

impl LogsRequest {
    /// The whole log, to its end.
    pub fn all(tty: bool) -> Self {
        Self {
            tty,
            follow: false,
            tail: None,
        }
    }

    /// The whole log, and what comes.
    pub fn follow(tty: bool) -> Self {
        Self {
            follow: true,
            ..Self::all(tty)
        }
    }

    /// The last records.
    pub fn tail(tty: bool, records: u32) -> Self {
        Self {
            tail: Some(records),
            ..Self::all(tty)
        }
    }
}

/// A container that was made for a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedContainer {
    /// The container.
    pub container: ContainerId,
    /// The run that it was made for.
    pub run: RunId,
    /// Where it is in its life.
    pub status: Status,
}

/// A container that was made for some root, with what its labels say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LabeledContainer {
    /// The container.
    pub container: ContainerId,
    /// The root that it was made for.
    pub root: RootId,
    /// The run that it was made for.
    pub run: RunId,
    /// Where it is in its life.
    pub status: Status,
    /// When whoever made it will have ended it; `None`: it has no deadline.
    pub deadline: Option<Timestamp>,
}

impl LabeledContainer {
    /// A container without a deadline.
    pub fn new(container: ContainerId, root: RootId, run: RunId, status: Status) -> Self {
        Self {
            container,
            root,
            run,
            status,
            deadline: None,
        }
    }
}

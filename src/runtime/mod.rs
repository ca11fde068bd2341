//! The adapter to one engine: the [`Runtime`] trait, and those that come with moat.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{ContainerId, RootId, RunId, RunSpec, Stream, Timestamp};

#[cfg(feature = "docker")]
pub mod docker;
#[cfg(feature = "testing")]
pub mod scripted;

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

    /// Asks the engine who it is. It changes nothing, and serves as a probe.
    async fn engine(&self) -> Result<Engine, RuntimeError>;

    /// Checks what only this runtime can check of `spec`, without asking the engine.
    ///
    /// # Errors
    ///
    /// [`crate::Error::InvalidSpec`], which names the field: what this engine cannot do is
    /// refused, not ignored.
    fn validate(&self, spec: &RunSpec) -> crate::Result<()>;

    /// Makes sure that the image is there, by the spec's pull policy, and reports progress through
    /// [`RunSpec::report_pull`]. Fails with [`RuntimeError::Timeout`] after 60 s without progress.
    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError>;

    /// Makes the container, and does not start it.
    ///
    /// The engine must neither remove nor restart it by itself, and, unless
    /// [`Backstop::None`](crate::Backstop::None) was asked for, must keep all of its output until
    /// it is removed. It can be found by [`find`](Self::find) from then on.
    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError>;

    /// Connects to the output of a container that has not started.
    ///
    /// It resolves only when the engine has answered, so that nothing that the container prints
    /// after a later [`start`](Self::start) is missed. It is only called where
    /// [`Capabilities::tap`] is set. The end of the stream proves nothing.
    async fn tap(&self, container: &ContainerId, tty: bool) -> Result<OutputStream, RuntimeError>;

    /// Starts the container. [`RuntimeError::Rejected`]: the engine could not, and it does not run.
    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError>;

    /// Waits until a container that was started no longer runs.
    ///
    /// Unbounded in time. An answer says that the engine spoke of an end; the caller confirms it
    /// by [`inspect`](Self::inspect). An error says nothing about the container, but for
    /// [`RuntimeError::NotFound`].
    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError>;

    /// What the engine knows of the container. [`RuntimeError::NotFound`]: it is gone, a fact.
    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError>;

    /// Reads what the engine has kept of the container's output, from its start.
    ///
    /// It resolves when the engine has answered. Without `follow` it ends where the log ends.
    async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError>;

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
    async fn find(&self, root: &RootId) -> Result<Vec<Found>, RuntimeError>;

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

/// What an engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Capabilities {
    /// Output can be connected to before the container starts.
    pub tap: bool,
    /// The engine keeps the output, and it can be read again.
    pub logs: bool,
    /// A container's standard input can be written to.
    pub stdin: bool,
    /// A further process can be run in a container.
    pub exec: bool,
    /// Whether, and when, the engine gives up on output that it has not read; `None`: never.
    pub drain: Option<Drain>,
}

/// How an engine gives up on output: what it has not read some time after the end of a container
/// is lost, for its log as for everyone who is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drain {
    /// How long after the end it goes on reading.
    pub within: Duration,
    /// How many bytes of each stream it takes in any case, however slow its log and its clients
    /// are.
    pub buffer: u64,
}

impl Drain {
    /// An engine that reads for so long, and has a buffer of so many bytes for each stream.
    pub const fn new(within: Duration, buffer: u64) -> Self {
        Self { within, buffer }
    }
}

impl Capabilities {
    /// An engine that can do nothing but run: for runtimes to build on.
    pub const NONE: Self = Self {
        tap: false,
        logs: false,
        stdin: false,
        exec: false,
        drain: None,
    };

    /// With the tap.
    pub const fn with_tap(mut self) -> Self {
        self.tap = true;
        self
    }

    /// Of an engine that gives up on output.
    pub const fn with_drain(mut self, drain: Drain) -> Self {
        self.drain = Some(drain);
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
pub struct Engine {
    /// Its name: `Docker Engine`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The version of the API that is spoken with it.
    pub api: String,
}

impl Engine {
    /// An engine of this name and version.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            api: String::new(),
        }
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
}

impl<'a> CreateRequest<'a> {
    /// A request for the container of one run.
    pub fn new(name: &'a str, root: &'a RootId, run: &'a RunId, spec: &'a RunSpec) -> Self {
        Self {
            name,
            root,
            run,
            spec,
        }
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
    pub options: std::collections::BTreeMap<String, String>,
    /// What the log does to the bytes; `None`: it cannot be read again.
    pub fidelity: Option<Fidelity>,
}

/// What an engine's log does to the bytes that it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fidelity {
    /// Nothing.
    Exact,
    /// It cuts lines into pieces of 16,384 bytes, even in mid-character, and replaces each byte of
    /// a piece that is not part of valid UTF-8 by U+FFFD: Docker's `json-file`.
    Utf8,
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
pub struct Found {
    /// The container.
    pub container: ContainerId,
    /// The run that it was made for.
    pub run: RunId,
    /// Where it is in its life.
    pub status: Status,
}

/// What a runtime says of a call that failed. See [`Runtime`] for which of them are facts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The engine could not be reached.
    #[error("cannot reach the engine at {address}: {reason}")]
    Unavailable {
        /// The address that was tried.
        address: String,
        /// Why not, and what to do about it.
        reason: String,
    },

    /// The engine did not answer in time. The request may be carried out all the same.
    #[error("the engine did not {operation} within {} s", after.as_secs())]
    Timeout {
        /// What it was asked for, as a verb: `create the container`.
        operation: &'static str,
        /// The bound.
        after: Duration,
    },

    /// The connection broke, or what came over it made no sense.
    #[error("the connection to the engine broke while it was asked to {operation}: {reason}")]
    Broken {
        /// What it was asked for, as a verb.
        operation: &'static str,
        /// How it broke.
        reason: String,
    },

    /// There is no such container.
    #[error("the engine cannot {operation}: {reason}")]
    NotFound {
        /// What it was asked for, as a verb.
        operation: &'static str,
        /// The engine's words.
        reason: String,
    },

    /// The container is in a state that does not allow it.
    #[error("the engine cannot {operation}: {reason}")]
    Conflict {
        /// What it was asked for, as a verb.
        operation: &'static str,
        /// The engine's words.
        reason: String,
    },

    /// There is no such image, and none could be pulled.
    #[error("no image {image}: {reason}")]
    NoSuchImage {
        /// The image.
        image: String,
        /// Why it is not there, and what to do about it.
        reason: String,
    },

    /// The engine refused.
    #[error("the engine refused to {operation}: {reason}")]
    Rejected {
        /// What it was asked for, as a verb.
        operation: &'static str,
        /// The engine's words.
        reason: String,
    },

    /// The runtime cannot do that.
    #[error("the {runtime} runtime cannot {operation}")]
    Unsupported {
        /// The runtime's name.
        runtime: &'static str,
        /// What was asked for, as a verb.
        operation: &'static str,
    },
}

impl RuntimeError {
    /// Whether the engine has answered, and the answer holds.
    pub fn is_fact(&self) -> bool {
        !matches!(
            self,
            Self::Unavailable { .. } | Self::Timeout { .. } | Self::Broken { .. }
        )
    }

    /// Whether it says that there is no such container.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The same error, with its words changed: for taking out secrets.
    pub(crate) fn map_reason(mut self, map: impl FnOnce(&str) -> String) -> Self {
        match &mut self {
            Self::Unavailable { reason, .. }
            | Self::Broken { reason, .. }
            | Self::NotFound { reason, .. }
            | Self::Conflict { reason, .. }
            | Self::NoSuchImage { reason, .. }
            | Self::Rejected { reason, .. } => *reason = map(reason),
            Self::Timeout { .. } | Self::Unsupported { .. } => {}
        }
        self
    }
}

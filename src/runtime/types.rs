//! Arguments and results of the [`Runtime`] methods.

use std::fmt;

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::AsyncWrite;

use super::inspection::ContainerStatus;
#[cfg(doc)]
use super::{Capabilities, Runtime};
use crate::error::RuntimeError;
use crate::outcome::Stream;
use crate::spec::{ContainerId, RootId, RunId, RunSpec, RuntimeView};
use crate::timestamp::Timestamp;

/// Output of a container on one stream, in the order of that stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// The stream.
    pub stream: Stream,
    /// The bytes: never empty.
    ///
    /// A chunk may end in the middle of a line or a character.
    pub bytes: Bytes,
    /// The time of all these bytes in the engine's log.
    ///
    /// `None` for output that is not from the log, and without
    /// [`LogsRequest::timestamps`](super::LogsRequest::timestamps).
    pub logged_at: Option<Timestamp>,
}

impl Chunk {
    /// Creates a chunk without a time.
    pub fn new(stream: Stream, bytes: impl Into<Bytes>) -> Self {
        Self {
            stream,
            bytes: bytes.into(),
            logged_at: None,
        }
    }
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

//! The adapter to a container engine: the [`Runtime`] trait and its implementations.

use std::fmt;

use async_trait::async_trait;

use crate::outcome::Usage;
use crate::spec::{ContainerId, ExecSpec, InvalidSpec, ResourceKind, RootId, RunSpec, WindowSize};

mod capabilities;
pub mod connect;
mod connection;
#[cfg(feature = "docker")]
pub mod docker;
pub(crate) mod exclusive;
#[cfg(unix)]
pub(crate) mod ignored_signals;
mod inspection;
#[cfg(feature = "kube")]
pub mod kubernetes;
mod log;
mod objects;
#[cfg(all(feature = "process", unix))]
pub mod process;
#[cfg(feature = "testing")]
pub mod scripted;
mod shared;
#[cfg(any(feature = "docker", feature = "kube"))]
mod signal;
mod types;

pub use self::capabilities::{Capabilities, DrainLimit};
pub use self::connection::Connection;
pub use self::inspection::{ContainerStatus, Continuity, Health, Inspection, PublishedPort};
pub use self::log::{LogConfig, LogFidelity, LogsRequest};
pub use self::objects::{ImageInfo, LabeledResource, ResourceRequest};
pub use self::types::{
    Archive, AttachedOutput, Chunk, CreateRequest, Created, EngineInfo, ExecId, ExecInspection,
    InputWriter, LabeledContainer, OutputStream, OwnedContainer, StartedExec, WaitStatus,
};
pub use crate::error::RuntimeError;

/// The adapter to one engine. It has no knowledge of runs, files or policies.
///
/// # Contract
///
/// The guarantees of moat depend on these clauses.
///
/// **Errors are definitive or inconclusive.** [`RuntimeError::NotFound`], [`Conflict`],
/// [`NoSuchImage`], [`Rejected`] and [`Unsupported`] are definitive: the engine answered, and the
/// answer is final. [`Unavailable`], [`Timeout`] and [`Broken`] are inconclusive: the engine may
/// have carried out the request, or may do so later. A runtime never reports one kind as the other.
///
/// **Every call has a timeout**, 30 s unless its documentation states another. `wait`, `place` and
/// the streams have none. A call fails with [`Timeout`] when its timeout expires.
///
/// **Every future is cancel-safe**: dropping it leaks nothing. The engine may still carry out a
/// request that was sent.
///
/// **Output is ordered and complete.** A stream yields the bytes of each of the container's streams
/// in order, without duplicates, and without a gap before its end. Between streams, the order is
/// the order of receipt. Output is [`Stream::Tty`](crate::outcome::Stream::Tty) if and only if
/// `tty` is true, whatever the bytes are. An engine that cannot tell standard output from standard
/// error has only [`Stream::Merged`](crate::outcome::Stream::Merged).
///
/// **Secrets do not leak.** No error and no log contains a value of the environment or a
/// credential.
///
/// `moat::conformance::runtime` (feature `conformance`) has a test case for each clause and each
/// method.
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
    /// Returns the runtime's name, such as `docker`. Each run records it.
    fn name(&self) -> &'static str;

    /// Returns the optional features of the engine, which never change.
    fn capabilities(&self) -> Capabilities;

    /// Returns the host name or address of the engine's host.
    ///
    /// This process reaches the ports that containers publish on all addresses at this host.
    /// Default: `127.0.0.1`.
    fn host(&self) -> String {
        "127.0.0.1".into()
    }

    /// Queries the engine's version and identity.
    ///
    /// The call changes nothing and serves as a probe.
    ///
    /// An [`id`](EngineInfo::id) stays the same for as long as the engine has its containers, and
    /// is unique to the engine. A manager does not recover a run with an engine of another id.
    async fn engine(&self) -> Result<EngineInfo, RuntimeError>;

    /// Checks the parts of `spec` that depend on this runtime.
    ///
    /// The check makes no request to the engine.
    /// [`RuntimeView::new`](crate::spec::RuntimeView::new) gives access to the secrets of `spec`.
    ///
    /// # Errors
    ///
    /// [`InvalidSpec`], which names the field. A runtime refuses a setting that its engine does
    /// not support, and never ignores one.
    fn validate(&self, spec: &RunSpec) -> Result<(), InvalidSpec>;

    /// Provides the image according to the pull policy of `spec`.
    ///
    /// A pull reports its progress through
    /// [`RuntimeView::report_pull`](crate::spec::RuntimeView::report_pull).
    ///
    /// # Errors
    ///
    /// - [`RuntimeError::NoSuchImage`]: the engine does not have the image, and cannot or must not
    ///   pull it. An engine that pulls the image in [`place`](Self::place) reports this there.
    /// - [`RuntimeError::Timeout`]: a pull made no progress for
    ///   [`RunSpec::pull_stall_timeout`], also after the last of [`RunSpec::pull_retries`].
    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError>;

    /// Creates the container without starting it.
    ///
    /// [`find`](Self::find) returns the container from then on. The engine must neither remove nor
    /// restart the container by itself. It must keep all output until the removal, unless the spec
    /// has [`Backstop::None`](crate::spec::Backstop::None).
    ///
    /// # Errors
    ///
    /// A definitive error if the name is in use.
    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError>;

    /// Waits until the engine has placed the container.
    ///
    /// After success, [`attach`](Self::attach), [`stdin`](Self::stdin) and [`start`](Self::start)
    /// do not wait for a machine, an image or a volume. The container is still
    /// [`ContainerStatus::Created`], and its command does not run. moat calls `place` once after
    /// [`create`](Self::create) and before these calls. Another call for a placed container
    /// returns at once. A container that was placed or is being placed can be removed.
    ///
    /// Like [`wait`](Self::wait), the call has no timeout. It reports what it waits for through
    /// [`RuntimeView::report_placement`](crate::spec::RuntimeView::report_placement). A dropped
    /// call can be made again. A run that is stopped meanwhile drops the call, and its container
    /// is removed.
    ///
    /// The time limit of a run begins after the call. The runtime advances the
    /// [`deadline`](CreateRequest::deadline) of the container by the time that the call took.
    ///
    /// Default: returns at once, for an engine that places a container when it creates it.
    ///
    /// # Errors
    ///
    /// - [`RuntimeError::NoSuchImage`]: as for [`prepare`](Self::prepare).
    /// - [`RuntimeError::Rejected`]: the engine cannot place the container, which never starts.
    /// - [`RuntimeError::NotFound`]: the container does not exist. The default does not check this.
    async fn place(&self, container: &ContainerId, spec: &RunSpec) -> Result<(), RuntimeError> {
        let _ = (container, spec);
        Ok(())
    }

    /// Attaches to the output of a container that has not started.
    ///
    /// The call returns after the engine has attached, so that the stream has all output after a
    /// later [`start`](Self::start). moat calls it only with
    /// [`Capabilities::attach_before_start`].
    ///
    /// The stream ends within 10 s of the container's end. [`AttachedOutput::end_marker`] tells if
    /// its end is a proof. A broken connection also ends the stream, with an error if
    /// the protocol can detect the break, unless the runtime resumes the stream at the next byte.
    /// Dropping the stream does not affect the container.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Rejected`]: the engine already knows that it cannot start the container,
    /// which stays [`ContainerStatus::Created`].
    async fn attach(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<AttachedOutput, RuntimeError>;

    /// Attaches to the live output of a running container.
    ///
    /// The call returns after the engine has attached. The position of the first byte in the
    /// output is unknown, so moat never records this stream. Default:
    /// [`RuntimeError::Unsupported`].
    async fn attach_running(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        let _ = (container, tty);
        Err(unsupported(self.name(), "attach to a running container"))
    }

    /// Starts the container.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Rejected`]: the engine could not start the container, which stays
    /// [`ContainerStatus::Created`].
    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError>;

    /// Waits for the end of a container that was started.
    ///
    /// The call has no timeout. It returns at once for a container that ended, and at the latest
    /// when the container is removed. A broken connection ends the call with an inconclusive error,
    /// unless the runtime resumes it. Every exit code is a success of the call. The caller confirms
    /// the result with [`inspect`](Self::inspect).
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`]: the container does not exist. After any other error, the state of
    /// the container is unknown.
    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError>;

    /// Returns the state of the container.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`]: the container does not exist any more. This is definitive.
    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError>;

    /// Reports whether the engine restarted since it created the container.
    ///
    /// A restart loses the output that the engine has read but not written, and neither the log
    /// nor an attachment shows the loss. An engine that is killed during a start may lose the
    /// start as well. moat calls this on recovery, after the engine was unreachable while the
    /// container ran, and after a start without an answer. Default: [`Continuity::Unknown`].
    async fn continuity(&self, container: &ContainerId) -> Result<Continuity, RuntimeError> {
        let _ = container;
        Ok(Continuity::Unknown)
    }

    /// Samples the resource usage of a running container.
    ///
    /// Default: [`RuntimeError::Unsupported`].
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Conflict`] or [`RuntimeError::NotFound`]: the container does not run any
    /// more.
    async fn stats(&self, container: &ContainerId) -> Result<Usage, RuntimeError> {
        let _ = container;
        Err(unsupported(self.name(), "sample a container's usage"))
    }

    /// Reads the engine's log of the container from its start.
    ///
    /// The log can be read any number of times.
    ///
    /// The call returns after the engine has answered. Without
    /// [`follow`](LogsRequest::follow), the stream ends at the end of the log, even if the
    /// container runs. For a container that has not started, it ends at once.
    ///
    /// # Errors
    ///
    /// A definitive error if there is no log, for example without a backstop.
    async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError>;

    /// Returns true if the engine's log has exactly this number of records.
    ///
    /// A record is a line, or a part of one. `false` proves nothing: moat then reads the whole log.
    /// The call should be much faster than that. It proves that an attachment was not cut off
    /// between repetitions of the same output. Default: `false`.
    async fn log_has_exactly(
        &self,
        container: &ContainerId,
        tty: bool,
        records: u64,
    ) -> Result<bool, RuntimeError> {
        let _ = (container, tty, records);
        Ok(false)
    }

    /// Attaches to the standard input of a container that was created or runs.
    ///
    /// The call returns after the engine has attached. The input uses a separate connection, so
    /// that a failure does not affect the output. The container receives all bytes unchanged,
    /// including bytes that the engine would otherwise interpret.
    ///
    /// For [`Stdin::Pipe`](crate::spec::Stdin::Pipe), shutdown or drop of the writer ends the
    /// container's input. For [`Stdin::Open`](crate::spec::Stdin::Open), it does not, with
    /// [`Capabilities::stdin_reattach`].
    ///
    /// moat calls this only with [`Capabilities::stdin`]. Default: [`RuntimeError::Unsupported`].
    async fn stdin(&self, container: &ContainerId) -> Result<InputWriter, RuntimeError> {
        let _ = container;
        Err(unsupported(self.name(), "attach to a container's input"))
    }

    /// Resizes the terminal of a running container.
    ///
    /// Default: [`RuntimeError::Unsupported`].
    async fn resize(&self, container: &ContainerId, size: WindowSize) -> Result<(), RuntimeError> {
        let _ = (container, size);
        Err(unsupported(self.name(), "resize a container's terminal"))
    }

    /// Runs an exec in a running container.
    ///
    /// The call returns after the engine has answered, and the stream has all output of the
    /// process. moat calls this only with [`Capabilities::exec`]. Default:
    /// [`RuntimeError::Unsupported`].
    ///
    /// # Errors
    ///
    /// - [`RuntimeError::Rejected`]: the process did not start.
    /// - [`RuntimeError::Conflict`]: the container does not run.
    async fn exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        let _ = (container, spec);
        Err(unsupported(self.name(), "run an exec"))
    }

    /// Returns the state of an exec.
    ///
    /// Default: [`RuntimeError::Unsupported`].
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`]: the engine has no such exec any more.
    async fn exec_inspect(&self, exec: &ExecId) -> Result<ExecInspection, RuntimeError> {
        let _ = exec;
        Err(unsupported(self.name(), "inspect an exec"))
    }

    /// Kills an exec with SIGKILL, and the processes that it started.
    ///
    /// After success, the exec has ended or ends shortly, and so have the processes that it
    /// started. Success also if it had ended before. The container and its other execs are not
    /// affected. moat calls this only with [`Capabilities::exec_kill`]. Default:
    /// [`RuntimeError::Unsupported`].
    ///
    /// # Errors
    ///
    /// - [`RuntimeError::Unsupported`]: an exec in this container cannot be killed.
    /// - [`RuntimeError::Rejected`]: a process of the exec cannot be killed.
    async fn exec_kill(&self, container: &ContainerId, exec: &ExecId) -> Result<(), RuntimeError> {
        let _ = (container, exec);
        Err(unsupported(self.name(), "kill an exec"))
    }

    /// Resizes the terminal of an exec.
    ///
    /// Default: [`RuntimeError::Unsupported`].
    async fn exec_resize(&self, exec: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        let _ = (exec, size);
        Err(unsupported(self.name(), "resize an exec's terminal"))
    }

    /// Creates a network or a volume.
    ///
    /// [`find_resources`](Self::find_resources) returns the resource from then on. moat calls this
    /// only with [`Capabilities::networks`] or [`Capabilities::volumes`], and never twice for a
    /// name. Default: [`RuntimeError::Unsupported`].
    async fn create_resource(&self, request: ResourceRequest<'_>) -> Result<(), RuntimeError> {
        let operation = match request.kind {
            ResourceKind::Network => "create a network",
            ResourceKind::Volume => "create a volume",
        };
        Err(unsupported(self.name(), operation))
    }

    /// Removes a network or a volume by its name.
    ///
    /// Default: [`RuntimeError::Unsupported`].
    ///
    /// # Errors
    ///
    /// - [`RuntimeError::Conflict`]: a container uses it. A network may be in use only while the
    ///   container runs, a volume for as long as the container exists.
    /// - [`RuntimeError::NotFound`]: it does not exist.
    async fn remove_resource(&self, kind: ResourceKind, name: &str) -> Result<(), RuntimeError> {
        let _ = name;
        let operation = match kind {
            ResourceKind::Network => "remove a network",
            ResourceKind::Volume => "remove a volume",
        };
        Err(unsupported(self.name(), operation))
    }

    /// Returns the networks and volumes of all roots.
    ///
    /// Each entry has the content of the resource's labels. Default: none.
    async fn find_resources(&self) -> Result<Vec<LabeledResource>, RuntimeError> {
        Ok(Vec::new())
    }

    /// Sends a signal, such as `SIGTERM`, to the container's first process.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Conflict`]: the container does not run.
    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError>;

    /// Removes the container and its anonymous volumes.
    ///
    /// Success means that the container does not run and never will. The call may take as long as
    /// the engine gives the container to end. It fails with an inconclusive error if it cannot
    /// know, for example because the container's node does not answer.
    ///
    /// # Errors
    ///
    /// - [`RuntimeError::Conflict`]: the container runs, and `force` is false.
    /// - [`RuntimeError::NotFound`]: the container does not exist.
    async fn remove(&self, container: &ContainerId, force: bool) -> Result<(), RuntimeError>;

    /// Returns the containers of `root`, in every state.
    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError>;

    /// Returns the containers of all roots, in every state.
    ///
    /// Each entry has the content of the container's labels.
    /// Default: [`RuntimeError::Unsupported`].
    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        Err(unsupported(self.name(), "list the containers of all roots"))
    }

    /// Returns the images of the engine, without their platforms.
    ///
    /// moat calls this, [`image_inspect`](Self::image_inspect) and
    /// [`image_remove`](Self::image_remove) only for [`Manager::images`] and
    /// [`Manager::image`]. Default: [`RuntimeError::Unsupported`].
    ///
    /// [`Manager::image`]: crate::manager::Manager::image
    /// [`Manager::images`]: crate::manager::Manager::images
    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Err(unsupported(self.name(), "list the images"))
    }

    /// Returns the description of an image, by its name or id.
    ///
    /// Default: [`RuntimeError::Unsupported`].
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`], which names the image: the engine does not have it.
    async fn image_inspect(&self, image: &str) -> Result<ImageInfo, RuntimeError> {
        let _ = image;
        Err(unsupported(self.name(), "inspect an image"))
    }

    /// Removes an image, by its name or id.
    ///
    /// By a name, only that name is removed while the image has others. With `force`, the engine may
    /// also remove an image that has several names, or that a container uses. The call never affects
    /// a container. Default: [`RuntimeError::Unsupported`].
    ///
    /// # Errors
    ///
    /// - [`RuntimeError::Conflict`]: a container uses the image.
    /// - [`RuntimeError::NotFound`], which names the image: the engine does not have it.
    async fn image_remove(&self, image: &str, force: bool) -> Result<(), RuntimeError> {
        let _ = (image, force);
        Err(unsupported(self.name(), "remove an image"))
    }

    /// Returns a tar archive of the file or directory at `path`.
    ///
    /// With [`Capabilities::copy_ended`], the container may have ended.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::NotFound`]: the file or the container does not exist.
    async fn copy_out(&self, container: &ContainerId, path: &str) -> Result<Archive, RuntimeError>;

    /// Unpacks a tar archive into the directory at `path` in the container.
    ///
    /// After success, the container sees the files. This call has no timeout.
    async fn copy_in(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError>;

    /// Connects to a TCP port of a running container, which need not be published.
    ///
    /// moat calls this only with [`Capabilities::connect`], for a container without an address for
    /// the port on the engine's host. Default: [`RuntimeError::Unsupported`].
    ///
    /// # Errors
    ///
    /// - [`RuntimeError::Rejected`]: nothing accepts connections at the port. An engine that
    ///   notices this only later closes the connection.
    /// - [`RuntimeError::Conflict`]: the container does not run.
    async fn connect(
        &self,
        container: &ContainerId,
        port: u16,
    ) -> Result<Connection, RuntimeError> {
        let _ = (container, port);
        Err(unsupported(self.name(), "connect to a container's port"))
    }
}

fn unsupported(runtime: &'static str, operation: &'static str) -> RuntimeError {
    RuntimeError::Unsupported { runtime, operation }
}

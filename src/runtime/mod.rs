//! The adapter to one engine: the [`Runtime`] trait, and the runtimes that come with moat.

use std::fmt;

use async_trait::async_trait;

use crate::outcome::Usage;
use crate::spec::{ContainerId, ExecSpec, InvalidSpec, RootId, RunSpec, WindowSize};

pub mod connect;
#[cfg(feature = "docker")]
pub mod docker;
#[cfg(feature = "process")]
pub mod process;
#[cfg(feature = "testing")]
pub mod scripted;
mod shared;
mod types;

pub use self::types::{
    Archive, Capabilities, Chunk, ContainerStatus, Continuity, CreateRequest, Created, DrainLimit,
    EngineInfo, ExecId, ExecInspection, Health, InputWriter, Inspection, LabeledContainer,
    LogConfig, LogFidelity, LogsRequest, OutputStream, OwnedContainer, PublishedPort, StartedExec,
    WaitStatus,
};
pub use crate::error::RuntimeError;

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
    /// [`RuntimeView::report_pull`](crate::spec::RuntimeView::report_pull). Fails with [`RuntimeError::Timeout`] after 60 s without progress.
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
    /// found out already that it could not start the container, which is [`ContainerStatus::Created`] still.
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
    /// it is [`ContainerStatus::Created`] still.
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

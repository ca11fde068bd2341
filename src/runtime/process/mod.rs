//! Local child processes instead of containers, **without isolation**.
//!
//! There is no engine and no image. The command of a run is a child of this process. It has the
//! user, file system, network and privileges of this process, and can do everything that this
//! process can do. A run has the same states, audit file and outcome as with containers.
//!
//! ```
//! use moat::{LocalProcess, Manager, RunSpec, ShutdownMode, Verdict};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> moat::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! let manager = Manager::open(dir.path().join("runs"), LocalProcess::new()).await?;
//! let spec = RunSpec::command(["sh", "-c", "echo a; echo b >&2; exit 7"]);
//! let outcome = manager.start(spec).await?.wait().await?;
//! assert_eq!(outcome.code(), Some(7));
//! assert_eq!(outcome.sealed().map(|seal| seal.verdict), Some(Verdict::Complete));
//! manager.shutdown(ShutdownMode::Stop).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Environment of a process
//!
//! - **Command**: the entrypoint followed by the command, which must not both be empty. The program
//!   is started directly, without a shell. A name without a `/` is looked up in the `PATH` of the
//!   new process.
//! - **Environment**: the variables of the spec. `PATH` and `HOME` default to those of this
//!   process, and `TERM` to `xterm` with a terminal. Nothing else is inherited.
//! - **Working directory**: that of the spec, or else that of this process.
//! - **Standard input**: `/dev/null` with [`Stdin::None`](crate::spec::Stdin::None), or a pipe that
//!   stays open and empty with [`Stdin::Open`](crate::spec::Stdin::Open). With a terminal, it is the
//!   terminal. The input cannot be written, so [`Stdin::Pipe`](crate::spec::Stdin::Pipe) is rejected.
//!   A terminal cannot be resized.
//! - **Output**: a pipe for each stream, or a pseudo-terminal of 80 columns and 24 rows, which is
//!   the controlling terminal of a new session. Without a terminal, the process stays in the
//!   session of this process, in a new process group.
//! - **Signals**: an empty signal mask, and default dispositions with a
//!   [few exceptions](#signals-that-this-process-ignores), whatever this process blocks or ignores.
//!
//! A start rejects, by field name, every other setting that only a container supports. `exec` and copies
//! are not supported: the process has the files of this machine.
//!
//! # End of a process
//!
//! As in a container, the run ends with its first process. The remaining processes of its process
//! group are killed. A stop sends its signal to the first process, and SIGKILL to the whole group.
//! A process that is ended by a signal has the exit code 128 plus the signal's number, as with
//! engines. The error of the [`Exit`](crate::outcome::Exit) names the signal.
//!
//! A process leaves the group if it creates a session or another group. Daemons do so with
//! `setsid`, and shells with job control do so for their jobs. **A process outside the group is not
//! killed**. The exception is a process in the session of a terminal, on Linux. If a process outside
//! the group holds the output open, the capture ends 2 s after the run and records a gap. A process
//! that runs as another user, as with `sudo`, can be killed only if this process runs as root.
//!
//! # Lifetime
//!
//! A process never outlives the last clone of its [`LocalProcess`], which the manager holds: dropping
//! that clone kills the running processes. If this process is killed, even with SIGKILL, a
//! guardian kills the group. The guardian is a `/bin/sh` that leads the process group and reads
//! from a pipe that ends with this process. It finds the processes of a terminal in `/proc`. On
//! systems without a Linux `/proc`, the guardian learns the id of such a process a moment after the
//! start. Until then, only the hang-up of the terminal ends the process.
//!
//! For this reason, [`ShutdownMode::Leave`](crate::ShutdownMode) stops the runs of this runtime, and a
//! detached run is rejected. If this process dies, the next open of the root seals the run as lost,
//! with the captured output and a gap. Bytes that were still in a pipe are lost.
//!
//! # Signals that this process ignores
//!
//! A background job of a shell ignores SIGINT and SIGQUIT, and a process under `nohup` ignores
//! SIGHUP. A child inherits ignored signals, so a stop by such a signal would have no effect.
//! Before each start, this runtime installs a handler that does nothing for every signal that this
//! process ignores. `exec` resets the handler to the default in the child. The handler affects this
//! process:
//!
//! - The signal still has no effect, but a blocking system call may fail with `EINTR`.
//! - Other children of this process start with the default disposition, too.
//! - If this process ignored SIGCHLD, children that it never waits for stay as zombies.
//!
//! Nothing changes for a process that ignores only SIGPIPE, which the standard library resets in
//! each child. These ignored signals are still inherited:
//!
//! - SIGTTIN and SIGTTOU, because a handler would make terminal calls restart forever.
//! - SIGILL, SIGFPE and SIGSEGV, for which tokio installs no handlers.
//! - The two signals that the C library uses, 32 and 33.
//! - All signals on systems without a Linux `/proc`, which reports the ignored signals.
//!
//! # Evidence
//!
//! There is no log from which output can be read again. Unlike a connection to an engine, a pipe loses
//! nothing, and its end proves that every write end is closed. The evidence is `eof`. If a stalled
//! sink makes moat abandon the output, the rest is read and discarded, and the audit has a gap.

mod check;
mod child;
mod container;
mod dispositions;
mod guardian;
mod output;
mod signals;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::time::timeout;

use self::container::Container;
use super::{
    Archive, AttachedOutput, Capabilities, Continuity, CreateRequest, Created, EngineInfo,
    Inspection, LogsRequest, OutputStream, OwnedContainer, Runtime, WaitStatus, unsupported,
};
use crate::error::{Result, RuntimeError};
use crate::spec::{ContainerId, InvalidSpec, RootId, RunSpec};

/// Timeout of a start and of a forced removal.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The operation of both copies, as errors name it.
const NO_COPY: &str = "copy files, because a process uses the files of this machine";

/// A runtime of local child processes instead of containers, **without isolation**.
///
/// See the [module's documentation](self) for the environment, the end and the lifetime of a process.
///
/// All clones share one runtime. Dropping the last clone kills the running processes.
#[derive(Clone, Default)]
pub struct LocalProcess {
    shared: Arc<Shared>,
}

/// The state that all clones share.
#[derive(Default)]
struct Shared {
    containers: Mutex<HashMap<ContainerId, Arc<Container>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for container in self.containers().values() {
            container.kill();
        }
    }
}

impl Shared {
    fn containers(&self) -> MutexGuard<'_, HashMap<ContainerId, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LocalProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalProcess").finish_non_exhaustive()
    }
}

impl LocalProcess {
    /// Creates a runtime without processes.
    pub fn new() -> Self {
        Self::default()
    }

    fn container(&self, id: &ContainerId) -> Result<Arc<Container>, RuntimeError> {
        let container = self.shared.containers().get(id).cloned();
        container.ok_or_else(|| missing(id))
    }
}

fn missing(id: &ContainerId) -> RuntimeError {
    RuntimeError::NotFound {
        operation: "find the process",
        reason: format!("this runtime has no process {id}"),
    }
}

#[async_trait]
impl Runtime for LocalProcess {
    fn name(&self) -> &'static str {
        "process"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
            .with_attach_before_start()
            .with_attach_keepalive()
            .with_process_bound()
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        let system = rustix::system::uname();
        Ok(EngineInfo::new(
            system.sysname().to_string_lossy(),
            system.release().to_string_lossy(),
        ))
    }

    fn validate(&self, spec: &RunSpec) -> Result<(), InvalidSpec> {
        check::check(spec)
    }

    async fn prepare(&self, _spec: &RunSpec) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        let id = ulid::Ulid::generate().to_string().to_ascii_lowercase();
        let container = ContainerId::new(format!("process-{id}"));
        let mut containers = self.shared.containers();
        if containers.values().any(|other| other.name == request.name) {
            return Err(RuntimeError::Conflict {
                operation: "create the container",
                reason: format!("the name {} is in use", request.name),
            });
        }
        containers.insert(container.clone(), Arc::new(Container::new(&request)));
        Ok(Created::new(container))
    }

    async fn attach(
        &self,
        container: &ContainerId,
        _tty: bool,
    ) -> Result<AttachedOutput, RuntimeError> {
        // The kernel reports the end of a pipe once all of its bytes are read.
        let output = AttachedOutput::new(self.container(container)?.tap()?.boxed());
        Ok(output.with_end_marker())
    }

    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let container = self.container(container)?;
        dispositions::handle_ignored();
        let started = container.start()?;
        match timeout(CALL_TIMEOUT, started).await {
            Ok(Ok(started)) => started,
            Ok(Err(_)) => Err(RuntimeError::Broken {
                operation: "start the process",
                reason: "the thread that starts the process has ended".into(),
            }),
            Err(_) => Err(RuntimeError::Timeout {
                operation: "start the process",
                after: CALL_TIMEOUT,
            }),
        }
    }

    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        let end = self.container(container)?.wait_end().await;
        let end = end.ok_or_else(|| missing(container))?;
        Ok(WaitStatus::new(end.code).with_error(end.error))
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError> {
        Ok(self.container(container)?.inspect())
    }

    async fn continuity(&self, container: &ContainerId) -> Result<Continuity, RuntimeError> {
        self.container(container).map(|_| Continuity::Unbroken)
    }

    async fn logs(
        &self,
        container: &ContainerId,
        _request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        self.container(container)?;
        Err(unsupported(self.name(), "read earlier output"))
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        self.container(container)?.signal(signal)
    }

    async fn remove(&self, id: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if force {
            container.kill();
            if timeout(CALL_TIMEOUT, container.wait_stopped())
                .await
                .is_err()
            {
                return Err(RuntimeError::Timeout {
                    operation: "kill the process",
                    after: CALL_TIMEOUT,
                });
            }
        }
        container.remove()?;
        self.shared.containers().remove(id);
        Ok(())
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        let containers = self.shared.containers();
        let found = containers
            .iter()
            .filter(|(_, container)| container.root() == root)
            .map(|(id, container)| OwnedContainer {
                container: id.clone(),
                run: container.run().clone(),
                status: container.inspect().status,
            });
        Ok(found.collect())
    }

    async fn copy_out(
        &self,
        _container: &ContainerId,
        _path: &str,
    ) -> Result<Archive, RuntimeError> {
        Err(unsupported(self.name(), NO_COPY))
    }

    async fn copy_in(
        &self,
        _container: &ContainerId,
        _path: &str,
        _archive: Archive,
    ) -> Result<(), RuntimeError> {
        Err(unsupported(self.name(), NO_COPY))
    }
}

//! Local child processes in the place of containers: no engine, no image, and **no isolation**.
//!
//! A run's command is a child of this process, with this process's user, file system, network and
//! privileges. It can do all that this process can do. What moat does for it is the rest: the same
//! life, the same audit file, the same outcome as for a container.
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
//! # What a process gets
//!
//! - **Command**: entrypoint and command, one after the other, of which there must be something.
//!   It is started directly, without a shell. A name without a `/` is looked for in the `PATH`
//!   that the process gets.
//! - **Environment**: what the spec says, and from this process `PATH` and `HOME` alone, unless
//!   the spec sets them; with a terminal, `TERM=xterm`. It inherits nothing else.
//! - **Working directory**: the spec's, else that of this process.
//! - **Standard input**: nothing ([`Stdin::None`](crate::spec::Stdin::None): `/dev/null`), or a pipe that
//!   stays open and silent ([`Stdin::Open`](crate::spec::Stdin::Open)); with a terminal, the terminal.
//!   Nobody can write to it: there is no [`Stdin::Pipe`](crate::spec::Stdin::Pipe). Nor are there further
//!   processes, or other sizes of a terminal.
//! - **Output**: a pipe for each stream, or a real pseudo-terminal of 80 columns and 24 rows, the
//!   controlling terminal of a session of its own. A process without one stays in the session of
//!   this one, in a process group of its own.
//!
//! All else that a spec can say of a container is refused, by name, when a run is started.
//!
//! # How it ends
//!
//! As in a container, the end of the first process is the end of all: what is left of its process
//! group is killed. A stop sends its signal to the first process; SIGKILL goes to the whole group.
//! A process that a signal has ended has the code 128 and the signal's number, as with engines, and
//! the signal's name is the error of the [`Exit`](crate::outcome::Exit).
//!
//! A process leaves its group by making a session or a group of its own: with `setsid`, as daemons
//! do, or as the job of a shell with job control. **What has left the group is not killed**, but
//! for what is still in the session of a terminal, on Linux. Where it holds the output open, the
//! capture ends 2 s after the run, and that is a gap. Nor can be killed what has become another
//! user's, as with `sudo`, unless this process is root's.
//!
//! # How long it lives
//!
//! No process outlives the last clone of its [`LocalProcess`], which its manager holds: dropping it
//! kills what still runs. When this process is killed, even with SIGKILL, a guardian (`/bin/sh`,
//! the leader of the process group, which reads from a pipe that ends with this process) kills the
//! group. What has a terminal is found by that, where there is `/proc`; elsewhere there is a moment,
//! between the start of such a process and its guardian's knowing of it, when only the hang-up of
//! the terminal ends it.
//!
//! So [`ShutdownMode::Leave`](crate::manager::ShutdownMode) stops the runs of this runtime, too, and a detached run
//! is refused. A run whose process has died without that is sealed by the next opening of its root
//! as lost, with what was captured, and a gap: what was in a pipe then is gone with it.
//!
//! # What its audit stands on
//!
//! There is no log behind the tap. But unlike a connection to an engine, a pipe loses nothing, and
//! its end says that nobody can write to it any more: evidence `eof`. A tap that is given up,
//! because the sink stalls, is read on and thrown away, and leaves a gap.

mod check;
mod child;
mod container;
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
    Archive, Capabilities, Continuity, CreateRequest, Created, EngineInfo, Inspection, LogsRequest,
    OutputStream, OwnedContainer, Runtime, WaitStatus,
};
use crate::error::{Result, RuntimeError};
use crate::spec::{ContainerId, RootId, RunSpec};

/// The bound of each call that has one.
const BOUND: Duration = Duration::from_secs(30);

/// Local child processes in the place of containers. **It isolates nothing**: see the
/// [module's documentation](self).
///
/// A clone is the same runtime. Dropping the last one kills what it has started.
#[derive(Clone, Default)]
pub struct LocalProcess {
    local: Arc<Local>,
}

/// What dies with the last clone.
#[derive(Default)]
struct Local {
    containers: Mutex<HashMap<ContainerId, Arc<Container>>>,
}

impl Drop for Local {
    fn drop(&mut self) {
        for container in self.containers().values() {
            container.doom();
        }
    }
}

impl Local {
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
    /// A runtime that has started nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn container(&self, id: &ContainerId) -> Result<Arc<Container>, RuntimeError> {
        let container = self.local.containers().get(id).cloned();
        container.ok_or_else(|| missing(id))
    }
}

fn missing(id: &ContainerId) -> RuntimeError {
    RuntimeError::NotFound {
        operation: "find the process",
        reason: format!("this runtime has not started {id}"),
    }
}

fn unsupported<T>(operation: &'static str) -> Result<T, RuntimeError> {
    Err(RuntimeError::Unsupported {
        runtime: "process",
        operation,
    })
}

#[async_trait]
impl Runtime for LocalProcess {
    fn name(&self) -> &'static str {
        "process"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE.with_tap().with_transience()
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        let system = rustix::system::uname();
        Ok(EngineInfo::new(
            system.sysname().to_string_lossy(),
            system.release().to_string_lossy(),
        ))
    }

    fn validate(&self, spec: &RunSpec) -> Result<()> {
        check::check(spec)
    }

    async fn prepare(&self, _spec: &RunSpec) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        let id = ulid::Ulid::generate().to_string().to_ascii_lowercase();
        let container = ContainerId::new(format!("process-{id}"));
        let mut containers = self.local.containers();
        if containers.values().any(|other| other.name == request.name) {
            return Err(RuntimeError::Conflict {
                operation: "create the container",
                reason: format!("there is one called {}", request.name),
            });
        }
        containers.insert(container.clone(), Arc::new(Container::new(&request)));
        Ok(Created {
            container,
            warnings: Vec::new(),
        })
    }

    async fn attach(
        &self,
        container: &ContainerId,
        _tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        Ok(self.container(container)?.tap()?.boxed())
    }

    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let started = self.container(container)?.start()?;
        match timeout(BOUND, started).await {
            Ok(Ok(started)) => started,
            Ok(Err(_)) => Err(RuntimeError::Broken {
                operation: "start the process",
                reason: "the thread that was to start it is gone".into(),
            }),
            Err(_) => Err(RuntimeError::Timeout {
                operation: "start the process",
                after: BOUND,
            }),
        }
    }

    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        let end = self.container(container)?.ended().await;
        let end = end.ok_or_else(|| missing(container))?;
        Ok(WaitStatus {
            code: end.code,
            error: end.error,
        })
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
        unsupported("read output again")
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        self.container(container)?.signal(signal)
    }

    async fn remove(&self, id: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        let container = self.container(id)?;
        if force {
            container.doom();
            if timeout(BOUND, container.settled()).await.is_err() {
                return Err(RuntimeError::Timeout {
                    operation: "kill the process",
                    after: BOUND,
                });
            }
        }
        container.remove()?;
        self.local.containers().remove(id);
        Ok(())
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        let containers = self.local.containers();
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
        unsupported("copy files: it shares its own with this process")
    }

    async fn copy_in(
        &self,
        _container: &ContainerId,
        _path: &str,
        _archive: Archive,
    ) -> Result<(), RuntimeError> {
        unsupported("copy files: it shares its own with this process")
    }
}

//! Managers and runs for code that is not async, such as plain `#[test]`s.
//!
//! The calls are those of the async types of the same name, which say what they do; they block the
//! thread until that is done. One thread, shared by all of them, does the waiting.
//!
//! ```no_run
//! use moat::blocking::{Manager, connect};
//! use moat::{Fallback, Port, Ready, RunSpec};
//!
//! # fn main() -> moat::Result<()> {
//! let manager = Manager::open("target/moat", connect(Fallback::None)?.runtime)?;
//! let spec = RunSpec::new("redis:7").port(Port::tcp(6379));
//! let redis = manager.service(spec, [Ready::port(6379)])?;
//! let stream = std::net::TcpStream::connect(redis.port(6379)?);
//! # Ok(())
//! # } // redis is stopped, and its container gone
//! ```
//!
//! # Panics
//!
//! All calls that wait, in async code, which they would block: use [`crate::manager::Manager`] there.
//! Dropping is allowed anywhere.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime as Tokio};

use crate::error::Result;
use crate::manager::{ManagerBuilder, ShutdownMode};
use crate::outcome::Outcome;
use crate::run::ready::Ready;
use crate::runtime::Runtime;
use crate::runtime::connect::{Connected, Fallback};
use crate::spec::{RunId, RunSpec};
use crate::state::State;

/// Where the waiting is done. A manager's own tasks are on threads of their own.
static TOKIO: LazyLock<Tokio> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("moat-blocking")
        .enable_all()
        .build()
        .expect("a thread can be started")
});

#[track_caller]
fn wait<T>(future: impl Future<Output = T>) -> T {
    assert!(
        Handle::try_current().is_err(),
        "moat::blocking was called in async code, which it would block: use moat::Manager there"
    );
    TOKIO.block_on(future)
}

/// The runtime that is there: see [`moat::connect`](crate::runtime::connect::connect()).
///
/// # Errors
///
/// As for [`moat::connect`](crate::runtime::connect::connect()).
pub fn connect(fallback: Fallback) -> Result<Connected> {
    wait(crate::runtime::connect::connect(fallback))
}

/// A [`crate::manager::Manager`] whose calls block.
#[derive(Debug, Clone)]
pub struct Manager(crate::manager::Manager);

impl Manager {
    /// Opens a root: see [`crate::manager::Manager::open`].
    ///
    /// # Errors
    ///
    /// As for [`crate::manager::Manager::open`].
    pub fn open(root: impl Into<PathBuf>, runtime: impl Runtime) -> Result<Self> {
        Self::open_with(crate::manager::Manager::builder(root, runtime))
    }

    /// Opens a root with other settings: see [`ManagerBuilder::open`].
    ///
    /// # Errors
    ///
    /// As for [`ManagerBuilder::open`].
    pub fn open_with(builder: ManagerBuilder) -> Result<Self> {
        wait(builder.open()).map(Self)
    }

    /// Starts a run: see [`crate::manager::Manager::start`].
    ///
    /// # Errors
    ///
    /// As for [`crate::manager::Manager::start`].
    pub fn start(&self, spec: RunSpec) -> Result<Run> {
        wait(self.0.start(spec)).map(Run)
    }

    /// Starts a run for the length of a scope: see [`crate::manager::Manager::service`].
    ///
    /// # Errors
    ///
    /// As for [`crate::manager::Manager::service`].
    pub fn service(
        &self,
        spec: RunSpec,
        ready: impl IntoIterator<Item = Ready>,
    ) -> Result<Service> {
        let service = wait(self.0.service(spec, ready))?;
        let run = Run(service.clone());
        Ok(Service { service, run })
    }

    /// The handle of a run: see [`crate::manager::Manager::get`].
    ///
    /// # Errors
    ///
    /// As for [`crate::manager::Manager::get`].
    pub fn get(&self, id: &RunId) -> Result<Run> {
        wait(self.0.get(id)).map(Run)
    }

    /// The runs that an earlier process has left: see [`crate::manager::Manager::wait_recovery`].
    ///
    /// # Errors
    ///
    /// As for [`crate::manager::Manager::wait_recovery`].
    pub fn wait_recovery(&self) -> Result<Vec<Run>> {
        wait(self.0.wait_recovery()).map(|runs| runs.into_iter().map(Run).collect())
    }

    /// Ends the manager: see [`crate::manager::Manager::shutdown`].
    pub fn shutdown(&self, how: ShutdownMode) {
        wait(self.0.shutdown(how));
    }
}

/// A [`crate::run::Run`] whose calls block.
#[derive(Debug, Clone)]
pub struct Run(crate::run::Run);

impl Run {
    /// The run's id.
    pub fn id(&self) -> &RunId {
        self.0.id()
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        self.0.dir()
    }

    /// The audit file; `None` where the sink writes none.
    pub fn audit(&self) -> Option<PathBuf> {
        self.0.audit()
    }

    /// Where the run is in its life.
    pub fn state(&self) -> State {
        self.0.state()
    }

    /// Whether another live process owns the run.
    pub fn owned_elsewhere(&self) -> bool {
        self.0.owned_elsewhere()
    }

    /// Waits until it is ready: see [`crate::run::Run::wait_ready`].
    ///
    /// # Errors
    ///
    /// As for [`crate::run::Run::wait_ready`].
    pub fn wait_ready(&self, ready: Ready) -> Result<()> {
        wait(self.0.wait_ready(ready))
    }

    /// Where this process reaches a port: see [`crate::run::Run::port`].
    ///
    /// # Errors
    ///
    /// As for [`crate::run::Run::port`].
    pub fn port(&self, port: u16) -> Result<SocketAddr> {
        wait(self.0.port(port))
    }

    /// The container's own address: see [`crate::run::Run::port_on`].
    ///
    /// # Errors
    ///
    /// As for [`crate::run::Run::port_on`].
    pub fn port_on(&self, network: &str, port: u16) -> Result<SocketAddr> {
        wait(self.0.port_on(network, port))
    }

    /// The last lines of its output so far: see [`crate::run::Run::last_lines`].
    ///
    /// # Errors
    ///
    /// As for [`crate::run::Run::last_lines`].
    pub fn last_lines(&self, most: usize) -> Result<Vec<String>> {
        wait(self.0.last_lines(most))
    }

    /// Waits until it has ended and is sealed: see [`crate::run::Run::wait`].
    ///
    /// # Errors
    ///
    /// As for [`crate::run::Run::wait`].
    pub fn wait(&self) -> Result<Outcome> {
        wait(self.0.wait())
    }

    /// Stops it: see [`crate::run::Run::stop`].
    ///
    /// # Errors
    ///
    /// As for [`crate::run::Run::stop`].
    pub fn stop(&self, grace: Option<Duration>) -> Result<Outcome> {
        wait(self.0.stop(grace))
    }

    /// Kills it: see [`crate::run::Run::kill`].
    ///
    /// # Errors
    ///
    /// As for [`crate::run::Run::kill`].
    pub fn kill(&self) -> Result<Outcome> {
        wait(self.0.kill())
    }
}

/// A [`crate::manager::Service`] whose calls block: dropped, it is stopped.
#[derive(Debug)]
#[must_use = "it is stopped when it is dropped"]
pub struct Service {
    service: crate::manager::Service,
    run: Run,
}

impl Deref for Service {
    type Target = Run;

    fn deref(&self) -> &Run {
        &self.run
    }
}

impl Service {
    /// Stops it: see [`crate::manager::Service::stop`].
    ///
    /// # Errors
    ///
    /// As for [`crate::manager::Service::stop`].
    pub fn stop(self) -> Result<Outcome> {
        wait(self.service.stop())
    }
}

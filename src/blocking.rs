//! Managers and runs for code that is not async, such as plain `#[test]`s.
//!
//! The module has a part of the API: open a root, get and recover runs, start, wait, stop and kill
//! them, check readiness, look up ports, read the last lines, and services. Attach, exec, copy,
//! events, removal and pruning are async only. [`Root`](crate::root::Root) and
//! [`Follow`](crate::audit::Follow), which read runs and logs, are blocking anyway.
//!
//! Each call behaves like the async call of the same name, and blocks the calling thread until it
//! completes. One thread drives all waits.
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
//! # } // drop stops redis and removes its container
//! ```
//!
//! # Panics
//!
//! Calls that wait panic in async code, which they would block. There, use
//! [`crate::manager::Manager`]. Dropping is allowed anywhere.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::runtime::{self, Handle};

use crate::error::Result;
use crate::manager::{ManagerBuilder, ShutdownMode};
use crate::outcome::Outcome;
use crate::run::ready::Ready;
use crate::runtime::Runtime;
use crate::runtime::connect::{Connected, Fallback};
use crate::spec::{RunId, RunSpec};
use crate::state::State;

/// The runtime that drives the waits. The tasks of a manager have their own threads.
static TOKIO: LazyLock<runtime::Runtime> = LazyLock::new(|| {
    runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("moat-blocking")
        .enable_all()
        .build()
        .expect("cannot start a thread for moat::blocking")
});

#[track_caller]
fn wait<T>(future: impl Future<Output = T>) -> T {
    assert!(
        Handle::try_current().is_err(),
        "moat::blocking must not be called in async code, which it would block: use moat::Manager"
    );
    TOKIO.block_on(future)
}

/// Connects to a runtime.
///
/// See [`moat::connect`](crate::runtime::connect::connect()).
///
/// # Errors
///
/// Those of [`moat::connect`](crate::runtime::connect::connect()).
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
    /// Those of [`crate::manager::Manager::open`].
    pub fn open(root: impl Into<PathBuf>, runtime: impl Runtime) -> Result<Self> {
        Self::open_with(crate::manager::Manager::builder(root, runtime))
    }

    /// Opens a root with the settings of `builder`: see [`ManagerBuilder::open`].
    ///
    /// # Errors
    ///
    /// Those of [`ManagerBuilder::open`].
    pub fn open_with(builder: ManagerBuilder) -> Result<Self> {
        wait(builder.open()).map(Self)
    }

    /// Starts a run: see [`crate::manager::Manager::start`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::start`].
    pub fn start(&self, spec: RunSpec) -> Result<Run> {
        wait(self.0.start(spec)).map(Run)
    }

    /// Starts a service: see [`crate::manager::Manager::service`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::service`].
    pub fn service(
        &self,
        spec: RunSpec,
        ready: impl IntoIterator<Item = Ready>,
    ) -> Result<Service> {
        let service = wait(self.0.service(spec, ready))?;
        let run = Run(service.clone());
        Ok(Service { service, run })
    }

    /// Returns a handle to a run: see [`crate::manager::Manager::get`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::get`].
    pub fn get(&self, id: &RunId) -> Result<Run> {
        wait(self.0.get(id)).map(Run)
    }

    /// Waits for recovery: see [`crate::manager::Manager::wait_recovery`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::wait_recovery`].
    pub fn wait_recovery(&self) -> Result<Vec<Run>> {
        wait(self.0.wait_recovery()).map(|runs| runs.into_iter().map(Run).collect())
    }

    /// Shuts the manager down: see [`crate::manager::Manager::shutdown`].
    pub fn shutdown(&self, mode: ShutdownMode) {
        wait(self.0.shutdown(mode));
    }
}

/// A [`crate::run::Run`] whose calls block.
#[derive(Debug, Clone)]
pub struct Run(crate::run::Run);

impl Run {
    /// Returns the id of the run.
    pub fn id(&self) -> &RunId {
        self.0.id()
    }

    /// Returns the directory of the run.
    pub fn dir(&self) -> &Path {
        self.0.dir()
    }

    /// Returns the path of the audit file, or `None` if the sink writes no file.
    pub fn audit(&self) -> Option<PathBuf> {
        self.0.audit()
    }

    /// Returns the current state of the run.
    pub fn state(&self) -> State {
        self.0.state()
    }

    /// Returns true if another live process owns the run.
    pub fn owned_elsewhere(&self) -> bool {
        self.0.owned_elsewhere()
    }

    /// Waits until the run is ready: see [`crate::run::Run::wait_ready`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::wait_ready`].
    pub fn wait_ready(&self, ready: Ready) -> Result<()> {
        wait(self.0.wait_ready(ready))
    }

    /// Returns the address of a published port: see [`crate::run::Run::port`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::port`].
    pub fn port(&self, port: u16) -> Result<SocketAddr> {
        wait(self.0.port(port))
    }

    /// Returns the container's own address: see [`crate::run::Run::port_on`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::port_on`].
    pub fn port_on(&self, network: &str, port: u16) -> Result<SocketAddr> {
        wait(self.0.port_on(network, port))
    }

    /// Returns the last lines of output: see [`crate::run::Run::last_lines`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::last_lines`].
    pub fn last_lines(&self, max_lines: usize) -> Result<Vec<String>> {
        wait(self.0.last_lines(max_lines))
    }

    /// Waits until the run has ended and is sealed: see [`crate::run::Run::wait`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::wait`].
    pub fn wait(&self) -> Result<Outcome> {
        wait(self.0.wait())
    }

    /// Stops the run: see [`crate::run::Run::stop`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::stop`].
    pub fn stop(&self, grace: Option<Duration>) -> Result<Outcome> {
        wait(self.0.stop(grace))
    }

    /// Kills the run: see [`crate::run::Run::kill`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::kill`].
    pub fn kill(&self) -> Result<Outcome> {
        wait(self.0.kill())
    }
}

/// A [`crate::manager::Service`] whose calls block. Dropping it stops the run.
#[derive(Debug)]
#[must_use = "dropping a service stops its run"]
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
    /// Stops the run: see [`crate::manager::Service::stop`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Service::stop`].
    pub fn stop(self) -> Result<Outcome> {
        wait(self.service.stop())
    }
}

//! Managers, runs and services for code that is not async, such as plain `#[test]`s.
//!
//! Each call behaves like the async call of the same name, and blocks the calling thread until it
//! completes. One thread drives all waits. Streams are iterators, or implement [`Read`] and
//! [`Write`]. [`Root`](crate::root::Root) and [`Follow`](crate::audit::Follow), which read runs and
//! logs, are blocking anyway.
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
//! # Differences from the async API
//!
//! | async | here |
//! | --- | --- |
//! | `ManagerBuilder::open`, `Manager::builder` | [`Manager::open_with`] takes a builder |
//! | `Manager::stop_on_signals` | returns a function that waits, for a thread |
//! | `Docker::connect`, `Docker::connect_to`, `Docker::connect_with` | `connect_docker` |
//! | `Kubernetes::connect`, `Kubernetes::connect_with` | `connect_kubernetes` |
//! | `Terminal::attach` | `attach_terminal` |
//! | `ReapOptions::run` | [`reap`] |
//! | `Events::next` | the iterator [`Events`] |
//! | `Ready::from_fn` | [`ready_fn`] takes a closure that blocks |
//! | `Run::copy_in`, `Run::copy_out` | the archive is a [`Read`] |
//! | `SigningKey::sign` | async only: the manager signs the logs |
//! | `Case::run`, `Faulty::wait_fault` | async only: they test code that is async |
//!
//! A blocked call cannot be cancelled. An [`Attachment`] and the [`Events`] of one run end with the
//! run. The [`Events`] of all runs end when another thread shuts the manager down.
//!
//! # Panics
//!
//! Calls that wait panic in async code, which they would block, and in `spawn_blocking`, which they
//! cannot tell from async code. There, use [`crate::manager::Manager`]. Dropping is allowed anywhere.

mod attach;
mod group;
mod io;
mod manager;
mod run;

pub use self::attach::{AttachHandle, Attachment, Events, Input, OutputReader};
pub use self::group::{Group, Network, Volume};
pub use self::io::{Archive, Connection, ConnectionReader, ConnectionWriter};
pub use self::manager::{Image, Manager};
pub use self::run::{Exec, Run, Service, ready_fn};

#[cfg(doc)]
use std::io::{Read, Write};
use std::sync::LazyLock;

use tokio::runtime::{self, Handle};

use crate::error::{Result, RuntimeError};
use crate::manager::{ReapOptions, ReapReport};
use crate::runtime::Runtime;
use crate::runtime::connect::{Connected, Fallback};
#[cfg(feature = "docker")]
use crate::runtime::docker::{ConnectOptions, Docker};
#[cfg(feature = "kube")]
use crate::runtime::kubernetes::{ClusterOptions, Kubernetes};
use crate::spec::RootId;
#[cfg(all(feature = "terminal", unix))]
use crate::terminal::{SessionEnd, Terminal};

/// The runtime that drives the waits. The tasks of a manager have their own threads.
static TOKIO: LazyLock<runtime::Runtime> = LazyLock::new(|| {
    runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("moat-blocking")
        .enable_all()
        .build()
        .expect("cannot start a thread for moat::blocking")
});

/// Panics in async code.
#[track_caller]
fn refuse_async_code() {
    assert!(
        Handle::try_current().is_err(),
        "moat::blocking must not be called in async code, which it would block: use moat::Manager"
    );
}

#[track_caller]
fn wait<T>(future: impl Future<Output = T>) -> T {
    refuse_async_code();
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

/// Connects to Docker or Podman.
///
/// [`ConnectOptions::default`] is the engine of [`Docker::connect`], and
/// [`ConnectOptions::address`] that of [`Docker::connect_to`].
///
/// # Errors
///
/// Those of [`Docker::connect_with`].
#[cfg(feature = "docker")]
pub fn connect_docker(options: ConnectOptions) -> Result<Docker> {
    wait(Docker::connect_with(options))
}

/// Connects to a Kubernetes cluster: see [`Kubernetes::connect_with`].
///
/// [`ClusterOptions::default`] is the cluster of [`Kubernetes::connect`].
///
/// # Errors
///
/// Those of [`Kubernetes::connect_with`].
#[cfg(feature = "kube")]
pub fn connect_kubernetes(options: ClusterOptions) -> Result<Kubernetes> {
    wait(Kubernetes::connect_with(options))
}

/// Ends containers of a runtime that outlived their process: see [`ReapOptions::run`].
///
/// # Errors
///
/// Those of [`ReapOptions::run`].
pub fn reap(
    options: &ReapOptions,
    runtime: &dyn Runtime,
    root: Option<&RootId>,
) -> Result<ReapReport, RuntimeError> {
    wait(options.run(runtime, root))
}

/// Attaches the terminal of this process to a run: see [`Terminal::attach`].
///
/// # Errors
///
/// Those of [`Terminal::attach`].
#[cfg(all(feature = "terminal", unix))]
pub fn attach_terminal(terminal: &Terminal, attachment: Attachment) -> Result<SessionEnd> {
    wait(terminal.attach(attachment.0))
}

//! Run containers, and keep an audit file of every run.
//!
//! **Every run leaves an audit file. It holds each stream's bytes, once, in that stream's order, or
//! it says precisely what is missing and why.** That holds on every way out: the container ends by
//! itself, is stopped, killed or removed by others, never starts; this process is killed; the
//! engine restarts; the disk is full for a while.
//!
#![cfg_attr(feature = "docker", doc = "```no_run")]
#![cfg_attr(not(feature = "docker"), doc = "```ignore")]
//! use moat::{Docker, Manager, RunSpec, Shutdown};
//!
//! # #[tokio::main]
//! # async fn main() -> moat::Result<()> {
//! // A folder that holds runs. Opening it takes over what an earlier process left behind.
//! let manager = Manager::open("runs", Docker::connect().await?).await?;
//!
//! let run = manager.start(RunSpec::new("busybox").cmd(["echo", "hello"])).await?;
//! let outcome = run.wait().await?;
//!
//! println!("{outcome}"); // run 01k... exited with code 0; audit complete (1 records, 6 bytes)
//! println!("{}", run.folder().join("logs.jsonl").display());
//!
//! manager.shutdown(Shutdown::Leave).await;
//! # Ok(())
//! # }
//! ```
//!
//! # Where to go from here
//!
//! - [`RunSpec`]: what to run, and all that a container can be told.
//! - [`Manager`] and [`Run`]: start, wait, stop, kill, look on, recover. [`Root`]: what can be seen
//!   without an engine, also of runs that other processes own.
//! - [`Service`] and [`Ready`]: a container for the length of a test, which is waited for.
//! - [`Outcome`] and its [`Seal`]: how a run ended, and how sure moat is of what it captured.
//! - [`audit`]: reading and verifying audit files. [`LogSink`]: sending records elsewhere;
//!   [`sink::Fanout`], [`sink::Memory`], [`sink::Tracing`] and [`sink::Console`] do.
//! - [`Runtime`]: the contract with an engine. [`connect()`] gives the one that is there.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `docker` | yes | `runtime::docker`, also for Podman's Docker-compatible socket |
//! | `process` | yes | `runtime::process`: local child processes, without any isolation |
//! | `tls` | no | engines behind TLS |
//! | `blocking` | no | `blocking`: managers and runs for code that is not async, such as plain tests |
//! | `terminal` | no | `terminal`: the terminal of this process in front of a run |
//! | `testing` | no | `runtime::scripted` and `sink::Faulty`, for tests of code that embeds moat |
//! | `conformance` | no | `conformance`: trials of runtimes and sinks that you write |
//!
//! # Logs
//!
//! moat uses [`tracing`], and puts no secret there, and no output but by [`sink::Tracing`]. bollard, which speaks to the
//! engine, prints whole requests, the environment with them, at level `debug`: keep
//! `bollard=info` in your filter.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(any(test, fuzzing)), deny(clippy::unwrap_used))]

pub mod audit;
#[cfg(feature = "__bench")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "blocking")]
pub mod blocking;
mod capture;
#[cfg(feature = "conformance")]
pub mod conformance;
mod disk;
mod error;
pub mod events;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod manager;
mod monitor;
pub mod outcome;
pub mod root;
pub mod run;
pub mod runtime;
pub mod sink;
pub mod spec;
pub mod state;
#[cfg(feature = "terminal")]
pub mod terminal;
pub mod timestamp;

pub use async_trait::async_trait;

pub use error::{Error, Result};
pub use events::Events;
pub use manager::{Manager, ManagerBuilder, Service, ShutdownMode};
pub use outcome::{Ending, Exit, Outcome, Seal, Verdict};
pub use root::Root;
pub use run::{Ready, Run};
pub use runtime::Runtime;
pub use runtime::connect::{Fallback, connect};
#[cfg(feature = "docker")]
pub use runtime::docker::Docker;
#[cfg(feature = "process")]
pub use runtime::process::LocalProcess;
pub use sink::LogSink;
pub use spec::{Port, RunId, RunSpec};

/// The pages of `docs/` whose code is to compile.
#[cfg(all(
    doctest,
    feature = "docker",
    feature = "testing",
    feature = "conformance",
    feature = "blocking"
))]
mod pages {
    #[doc = include_str!("../docs/integrating.md")]
    struct Integrating;

    #[doc = include_str!("../docs/testing.md")]
    struct Testing;

    #[doc = include_str!("../README.md")]
    struct Readme;
}

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
//! - [`Outcome`] and its [`Seal`]: how a run ended, and how sure moat is of what it captured.
//! - [`sink::audit`]: reading and verifying audit files. [`LogSink`]: sending records elsewhere.
//! - [`Runtime`]: the contract with an engine.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `docker` | yes | `runtime::docker`, also for Podman's Docker-compatible socket |
//! | `tls` | no | engines behind TLS |
//! | `testing` | no | `runtime::scripted`, for tests of code that embeds moat |
//!
//! # Logs
//!
//! moat uses [`tracing`], and puts no secret and no output there. bollard, which speaks to the
//! engine, prints whole requests, the environment with them, at level `debug`: keep
//! `bollard=info` in your filter.

#![cfg_attr(not(test), deny(clippy::unwrap_used))]

mod capture;
mod disk;
mod error;
mod manager;
mod outcome;
pub mod runtime;
pub mod sink;
mod spec;
mod state;
mod timestamp;

pub use error::{Error, Result};
pub use manager::{
    Attached, Attachment, Manager, ManagerBuilder, Recovery, Root, Run, RunInfo, Shutdown,
};
pub use outcome::{
    Ending, Evidence, Exit, Outcome, PerStream, Seal, SealState, StopCause, Stream, Verdict,
};
#[cfg(feature = "docker")]
pub use runtime::docker::Docker;
pub use runtime::{Runtime, RuntimeError};
pub use sink::{Jsonl, LogSink};
pub use spec::{
    Backstop, ContainerId, Credentials, Device, Gpus, KeepContainer, LimitAction, Mount,
    OutputLimit, Port, Protocol, Pull, PullProgress, RootId, RunId, RunRecord, RunSpec, Settings,
    Stdin, Ulimit,
};
pub use state::State;
pub use timestamp::{ParseTimestampError, Timestamp};

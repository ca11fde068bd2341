//! Run containers from Rust, and keep a verifiable log of every run.
//!
//! Every byte a container writes is recorded exactly once, in order, per stream. If anything may be
//! missing, the file says what and why. This holds when a run is stopped, killed, removed
//! externally, or never starts. It holds when this process is killed, when the engine restarts, and
//! when the disk is full for a while.
//!
//! The [`guide`] has longer pages: integrating, testing, CI, engines, the audit format, and all
//! guarantees with their limits.
//!
//! # Start a run
//!
//! A [`Manager`] owns a root: a directory that holds runs. [`connect()`] picks the available engine
//! and reports why. [`Run::wait`] returns once the run has ended and its log is sealed.
//!
//! ```no_run
//! use moat::{Fallback, Manager, RunSpec};
//!
//! # #[tokio::main]
//! # async fn main() -> moat::Result<()> {
//! let engine = moat::connect(Fallback::None).await?;
//! println!("{engine}"); // Docker Engine 27.1.1 at unix:///var/run/docker.sock
//! let manager = Manager::open("runs", engine.runtime).await?;
//! let run = manager.start(RunSpec::new("busybox").cmd(["echo", "hello"])).await?;
//! let outcome = run.wait().await?;
//! println!("{outcome}"); // run 01k... exited with code 0; audit complete (1 record, 6 bytes)
//! println!("{}", run.dir().join("logs.jsonl").display());
//! # Ok(())
//! # }
//! ```
//!
//! # Read output
//!
//! An [`Attachment`](run::Attachment) yields all output so far, then live output, and ends after
//! the last byte. A slow reader never delays the container. It receives `Lagged`, or reads the
//! missed output from the log.
//!
#![cfg_attr(feature = "process", doc = "```")]
#![cfg_attr(not(feature = "process"), doc = "```ignore")]
//! use moat::futures::StreamExt;
//! use moat::run::Attached;
//! # use moat::{LocalProcess, Manager, RunSpec};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let manager = Manager::open(dir.path(), LocalProcess::new()).await?;
//! let run = manager.start(RunSpec::command(["sh", "-c", "echo out; echo err >&2"])).await?;
//! let mut output = run.attach().await?;
//! while let Some(item) = output.next().await {
//!     if let Attached::Chunk(chunk) = item? {
//!         println!("{}: {:?}", chunk.stream, chunk.bytes);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Stop and limit
//!
//! A stop sends the stop signal, then SIGKILL after the grace period. Limits on time, silence and
//! output stop a run in the same way, and the seal records the cause.
//!
#![cfg_attr(feature = "process", doc = "```")]
#![cfg_attr(not(feature = "process"), doc = "```ignore")]
//! use moat::outcome::StopCause;
//! use std::time::Duration;
//! # use moat::{LocalProcess, Manager, RunSpec};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let manager = Manager::open(dir.path(), LocalProcess::new()).await?;
//! let endless = || RunSpec::command(["sleep", "1000"]).stop_grace(Duration::from_secs(5));
//! let run = manager.start(endless()).await?;
//! let outcome = run.stop(None).await?; // `None`: the grace period of the spec
//! assert_eq!(outcome.stopped(), Some(StopCause::Requested));
//!
//! let limited = manager.start(endless().time_limit(Duration::from_millis(100))).await?;
//! assert_eq!(limited.wait().await?.stopped(), Some(StopCause::TimeLimit));
//! # Ok(())
//! # }
//! ```
//!
//! # Recover
//!
//! Opening a root recovers the runs that a previous process left: it resumes the log of a container
//! that still runs, and seals all others. Recovery never starts a container. [`Root`] reads a root
//! without an engine, while other processes own its runs. Its methods block.
//!
//! ```no_run
//! use moat::{Fallback, Manager, Root};
//!
//! # #[tokio::main]
//! # async fn main() -> moat::Result<()> {
//! let manager = Manager::open("runs", moat::connect(Fallback::None).await?.runtime).await?;
//! for run in manager.wait_recovery().await? {
//!     println!("{} {:?}", run.id(), run.state());
//! }
//! # Ok(())
//! # }
//!
//! fn list() -> moat::Result<()> {
//!     for info in Root::open("runs")?.list()? {
//!         println!("{} {} owned: {}", info.run, info.status, info.owned);
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Read and verify a log
//!
//! `logs.jsonl` has one JSON object per line, in the [published format](guide::audit_format). The last
//! line seals the file with the SHA-256 digest of all bytes before it. [`audit::verify`] and the
//! iterator of [`audit::Follow::records`] block; [`audit::Follow::into_stream`] does not.
//!
#![cfg_attr(feature = "process", doc = "```")]
#![cfg_attr(not(feature = "process"), doc = "```ignore")]
//! use moat::audit::{Follow, LogState, Record, verify};
//! use std::path::Path;
//! # use moat::{LocalProcess, Manager, RunSpec};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let manager = Manager::open(dir.path(), LocalProcess::new()).await?;
//! # let run = manager.start(RunSpec::command(["echo", "hello"])).await?;
//! # run.wait().await?;
//! # print(&run.dir().join("logs.jsonl"))?;
//! # Ok(())
//! # }
//!
//! fn print(log: &Path) -> moat::Result<()> {
//!     for record in Follow::new(log).records()? {
//!         if let Record::Output(output) = record? {
//!             println!("{} {:?}", output.ts, output.bytes);
//!         }
//!     }
//!     assert!(matches!(verify(log)?.state, LogState::Sealed(_)));
//!     Ok(())
//! }
//! ```
//!
//! # Test without an engine
//!
//! `Scripted` (feature `testing`) runs nothing: its containers follow a script, and any call or
//! stream can fail at a chosen point.
//!
#![cfg_attr(feature = "testing", doc = "```")]
#![cfg_attr(not(feature = "testing"), doc = "```ignore")]
//! use moat::runtime::scripted::{Break, Script, Scripted, Source};
//! use moat::{Manager, RunSpec, Verdict};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let engine = Scripted::new();
//! let script = Script::new().stdout("hello\n").exit(7);
//! engine.next(script.break_at(Source::Attachment, 3, Break::Error)); // the connection breaks after 3 bytes
//! let manager = Manager::open(dir.path(), engine).await?;
//! let outcome = manager.start(RunSpec::new("any")).await?.wait().await?;
//! assert_eq!(outcome.code(), Some(7));
//! assert_eq!(outcome.sealed().map(|seal| seal.verdict), Some(Verdict::Complete));
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | feature | default | adds |
//! | --- | --- | --- |
//! | `docker` | yes | `runtime::docker`: Docker, and Podman's Docker-compatible socket |
//! | `process` | yes | `runtime::process`: local child processes, without any isolation. Unix only |
//! | `kube` | no | `runtime::kubernetes`: pods of a Kubernetes cluster |
//! | `http` | with `docker`, `kube` | `Ready::http` |
//! | `tls` | no | engines and HTTP checks with TLS |
//! | `sign` | no | `sign`: signatures of audit files, which `ssh-keygen` verifies |
//! | `blocking` | no | `blocking`: the same API for code that is not async |
//! | `terminal` | no | `terminal`: your terminal attached to a run. Unix only |
//! | `testing` | no | `runtime::scripted` and `sink::Faulty`, for tests |
//! | `conformance` | no | `conformance`: contract tests for runtimes and sinks that you write |
//!
//! # Crates in signatures
//!
//! moat re-exports the crates that its public signatures name. These paths always have the version
//! that moat uses.
//!
//! | crate | for |
//! | --- | --- |
//! | [`async_trait`](macro@async_trait) | implementations of [`Runtime`] and [`LogSink`] |
//! | [`bytes`] | the bytes of a [`Chunk`](runtime::Chunk) |
//! | [`futures`] | [`Attachment`](run::Attachment), [`Events`] and other streams |
//! | [`serde`] | [`Timestamp`](timestamp::Timestamp) and records in a format other than JSON |
//! | [`serde_json`] | [`RunSpec::engine_patch`] |
//! | [`tokio`] | writes to an [`Input`](run::Input), and [`ManagerBuilder::runtime_handle`] |
//! | [`tokio_util`] | the token of [`RunSpec::stop_when`] |
//!
//! # Tracing
//!
//! moat emits [`tracing`] events. They contain no secret, and no output except through
//! [`sink::Tracing`]. bollard, the client of the Docker API, logs whole requests, including
//! environment values, at level `debug`: keep `bollard=info` in your filter.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(any(test, fuzzing)), deny(clippy::unwrap_used))]

#[cfg(all(any(feature = "process", feature = "terminal"), not(unix)))]
compile_error!(
    "moat's features `process`, which is a default feature, and `terminal` require Unix: depend on \
     moat with `default-features = false, features = [\"docker\"]`"
);

pub mod audit;
#[cfg(feature = "__bench")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "blocking")]
pub mod blocking;
pub mod bundle;
mod capture;
mod causes;
#[cfg(feature = "conformance")]
pub mod conformance;
mod disk;
mod error;
pub mod events;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod guide;
#[cfg(test)]
mod layers;
pub mod manager;
mod monitor;
pub mod outcome;
pub mod root;
pub mod run;
pub mod runtime;
#[cfg(feature = "sign")]
pub mod sign;
pub mod sink;
pub mod spec;
pub mod state;
#[cfg(all(feature = "terminal", unix))]
pub mod terminal;
pub mod timestamp;

pub use async_trait::async_trait;
#[doc(no_inline)]
pub use {bytes, futures, serde, serde_json, tokio, tokio_util};

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
#[cfg(feature = "kube")]
pub use runtime::kubernetes::Kubernetes;
#[cfg(all(feature = "process", unix))]
pub use runtime::process::LocalProcess;
pub use sink::LogSink;
pub use spec::{Port, RunId, RunSpec};

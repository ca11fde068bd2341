//! A runtime whose containers follow scripts, to test faults that an engine cannot produce.
//!
//! [`Scripted`] runs no process. Its containers write, pause and exit by the clock of tokio, so a
//! test with a paused clock is exact and takes no time. For a paused clock:
//!
//! - Enable tokio's feature `test-util`, and use `#[tokio::test(start_paused = true)]`.
//! - Give the manager the tokio runtime of the test:
//!   `Manager::builder(..).runtime_handle(tokio::runtime::Handle::current())`. By default, the
//!   tasks of a manager have their own threads, whose clock is not paused.
//!
//! ```
//! use moat::runtime::scripted::{Script, Scripted};
//! use moat::{Manager, RunSpec, Verdict};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let runtime = Scripted::new();
//! runtime.next(Script::new().stdout("hello\n").stderr("world\n").exit(7));
//!
//! let manager = Manager::open(dir.path().join("runs"), runtime).await?;
//! let outcome = manager.start(RunSpec::new("any")).await?.wait().await?;
//! assert_eq!(outcome.code(), Some(7));
//! assert_eq!(outcome.sealed().map(|seal| seal.verdict), Some(Verdict::Complete));
//! # Ok(())
//! # }
//! ```
//!
//! # Faults
//!
//! A test injects faults in one of three places:
//!
//! - A container: a [`Script`] can fail to start, and its attachment or log can
//!   [break](Script::break_at) at any byte, on every read.
//! - A call: with [`Scripted::fault`], the next call of a kind fails, loses its answer, hangs, or
//!   returns a stream that breaks.
//! - The engine: [`Scripted::link`] takes the engine down or makes it silent.
//!   [`Scripted::drop_connections`] breaks all open connections. [`Scripted::restart`] and
//!   [`Scripted::remove_externally`] act as the engine's operator and its other clients.
//!
//! In this test, the attachment breaks in the middle of a line. The log has the whole output.
//!
//! ```
//! use std::sync::Arc;
//! use moat::runtime::scripted::{Break, Call, Fault, Script, Scripted, Source};
//! use moat::sink::Memory;
//! use moat::outcome::Stream;
//! use moat::{Manager, RunSpec, ShutdownMode, Verdict};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let engine = Scripted::new();
//! // The behavior of each container of this image.
//! let script = Script::new().stdout("one\ntwo\n").break_at(Source::Attachment, 5, Break::Error);
//! engine.image("worker", script);
//! // The first inspection gets no answer.
//! engine.fault(Call::Inspect, Fault::AnswerLost);
//!
//! let memory = Memory::new();
//! let manager = Manager::builder(dir.path().join("runs"), engine.clone())
//!     .sink(memory.clone())
//!     .open()
//!     .await?;
//! let run = manager.start(RunSpec::new("worker")).await?;
//! let outcome = run.wait().await?;
//!
//! assert_eq!(outcome.sealed().map(|seal| seal.verdict), Some(Verdict::Complete));
//! assert_eq!(memory.output(run.id(), Stream::Stdout), b"one\ntwo\n");
//! // The manager removes a container shortly after its seal.
//! manager.shutdown(ShutdownMode::Stop).await;
//! assert_eq!(engine.containers(), 0);
//! # Ok(())
//! # }
//! ```

mod call;
mod connection;
mod container;
mod engine;
mod fault;
mod input;
mod output;
mod runtime;
mod script;
mod world;

pub use self::call::Call;
pub use self::connection::Link;
pub use self::engine::Scripted;
pub use self::fault::{Break, Fault};
pub use self::script::{Script, Source};

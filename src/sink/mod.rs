//! The destinations of records: the [`LogSink`] trait, and its implementations.

use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::audit::{Batch, RecordRef, Start, TruncatedTail};
use crate::error::Result;
use crate::outcome::Seal;
#[cfg(feature = "sign")]
use crate::sign::SigningKey;
use crate::spec::RunId;

mod console;
mod fanout;
#[cfg(feature = "testing")]
mod faulty;
pub(crate) mod jsonl;
mod memory;
mod printable;
mod tracing;

pub use self::tracing::Tracing;
pub use crate::error::SinkError;
pub use console::Console;
pub use fanout::Fanout;
#[cfg(feature = "testing")]
pub use faulty::{Faulty, SinkCall, SinkFault};
pub use jsonl::{Durability, Jsonl};
pub use memory::Memory;

/// The destination of the records of runs.
///
/// # The contract
///
/// **A log exists before its container.** When [`open`](Self::open) returns, the log exists, has
/// its `start` record, and survives a power loss.
///
/// **Appended records stay.** When [`RunLog::append`] returns, its records survive the death of
/// this process by any signal. After [`RunLog::sync`], they survive a power loss.
///
/// **A log is a prefix of the appended records.** No record is in the log twice, and none is
/// missing before another. When [`resume`](Self::resume) returns, no record is incomplete.
///
/// **One writer.** An open log cannot be resumed, by this or another process:
/// [`Error::Owned`](crate::Error::Owned). A log is open until its [`RunLog`] is dropped and all
/// operations on it have ended.
///
/// **At most one seal.** After [`RunLog::seal`], `resume` returns the seal and no log to write to.
///
/// **After an error, a log accepts no records.** Each later call on it fails. The caller drops the
/// log and resumes it later. Records that were not appended are then captured again from another
/// source.
///
/// **Each exec has its own log.** A [`RunPlace`] names a run, or an exec in its container if
/// [`RunPlace::exec`] is set. A sink that cannot store logs of execs must fail [`open`](Self::open)
/// for them. The exec is then not started.
///
/// A sink may be slow. It must not block the thread that polls its futures.
///
/// `moat::conformance::sink` (feature `conformance`) tests each of these clauses.
#[async_trait]
pub trait LogSink: fmt::Debug + Send + Sync + 'static {
    /// Creates the log of a run, with `start` as its first record.
    ///
    /// Not cancel-safe: after a dropped `open`, the log may exist.
    ///
    /// # Errors
    ///
    /// [`Error::RunExists`](crate::Error::RunExists) if the log exists, open or not.
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>>;

    /// Reads the log of a run, and reopens it for appending.
    ///
    /// Calls `visit` once for each record in the log, in order, from any thread, before it returns.
    /// Passing the seal to `visit` is optional. An incomplete record at the end is removed from
    /// the log.
    ///
    /// A sink that stores nothing, such as a display, returns [`Resumed::Absent`]. Use such a sink
    /// on the best-effort side of a [`Fanout`], which does not need its log for recovery.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`](crate::Error::Damaged) if a sealed log does not match its seal. The log
    /// is then left unchanged.
    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed>;

    /// The file that holds the log; `None` if the sink writes no files.
    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        let _ = place;
        None
    }

    /// The key that signs each sealed log; `None`, the default, if none does.
    ///
    /// The manager signs the file at [`path`](Self::path) after the seal, not the sink.
    #[cfg(feature = "sign")]
    fn signing_key(&self) -> Option<SigningKey> {
        None
    }
}

/// The callback for the records of a log that is resumed.
pub type RecordVisitor = Box<dyn FnMut(RecordRef<'_>) + Send>;

/// The result of [`LogSink::resume`].
#[derive(Debug)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "it is returned once for each log"
)]
pub enum Resumed {
    /// The log does not exist, or had no complete first record.
    Absent,
    /// The log has no seal, and is open for appending.
    Open {
        /// The open log.
        log: Box<dyn RunLog>,
        /// The incomplete end that was moved aside, if any.
        torn: Option<TruncatedTail>,
    },
    /// The log is sealed: nothing can be appended.
    Sealed(Seal),
}

/// The log of one run, open for appending.
#[async_trait]
pub trait RunLog: fmt::Debug + Send {
    /// Appends records. On an error, a prefix of them may have been appended.
    ///
    /// Not cancel-safe: after a dropped `append`, each later call fails.
    async fn append(&mut self, batch: Batch) -> Result<()>;

    /// Makes appended records survive a power loss.
    ///
    /// Not cancel-safe, as [`append`](Self::append).
    async fn sync(&mut self) -> Result<()>;

    /// Appends the seal, and makes the whole log survive a power loss.
    ///
    /// Ignores the `sha256` of `seal`. The returned seal has the digest, if the sink computes one.
    ///
    /// A sink may reject a seal that contradicts the appended records, as [`Jsonl`] does. The log is
    /// then not sealed.
    ///
    /// Not cancel-safe, as [`append`](Self::append). The seal may have been appended.
    async fn seal(&mut self, seal: Seal) -> Result<Seal>;
}

/// The id and the directory of a run, or of an exec in its container.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunPlace {
    /// The run.
    pub run: RunId,
    /// The directory of the run. It exists.
    pub dir: PathBuf,
    /// The number of the exec, from 1; `None` for the run itself.
    pub exec: Option<u32>,
}

impl RunPlace {
    /// Creates the place of `run` in the directory `dir`.
    pub fn new(run: RunId, dir: impl AsRef<Path>) -> Self {
        Self {
            run,
            dir: dir.as_ref().to_owned(),
            exec: None,
        }
    }

    /// Returns the place of exec `number`, from 1, in the run's container.
    pub fn of_exec(&self, number: u32) -> Self {
        Self {
            exec: Some(number),
            ..self.clone()
        }
    }
}

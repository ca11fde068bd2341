//! Where records go: the [`LogSink`] trait, the records, and the default sink, [`Jsonl`].

use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::audit::{Batch, RecordRef, Start, TruncatedTail};
use crate::error::Result;
use crate::outcome::Seal;
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

/// Where the records of runs go.
///
/// # The contract
///
/// **A log exists before its container.** When [`open`](Self::open) returns, the log is there, has
/// its `start` record, and will be there after the power fails.
///
/// **What was appended stays.** When [`RunLog::append`] returns, its records survive the death of
/// this process by any signal; after [`RunLog::sync`], they survive that of the machine.
///
/// **A log is a prefix of what was appended.** No record is in it twice, none is missing before
/// one that is there, and none is half there when [`resume`](Self::resume) returns.
///
/// **One writer.** A log that is open cannot be resumed, by this or another process:
/// [`Error::Owned`](crate::error::Error::Owned). It is open until its [`RunLog`] is dropped, and what that
/// has begun has come to its end.
///
/// **At most one seal.** After [`RunLog::seal`], `resume` gives the seal, and no log to write to.
///
/// **After an error a log takes nothing more.** Each later call on it fails. It is dropped, and
/// resumed when the fault may have passed: what was not appended comes again, from another source.
///
/// **A further process has a log of its own.** A place names a run, or, where its `exec` is set, a
/// further process in the run's container. A sink that knows one log for each run alone must fail
/// [`open`](Self::open) for those; then nothing is started.
///
/// `moat::conformance::sink` has a trial for each of these clauses, with the
/// feature `conformance`.
///
/// A sink may be slow. It must not block the thread that polls its futures.
#[async_trait]
pub trait LogSink: fmt::Debug + Send + Sync + 'static {
    /// Makes the log of a run, with `start` as its first record.
    ///
    /// # Errors
    ///
    /// [`Error::RunExists`](crate::error::Error::RunExists) if there is one, open or not.
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>>;

    /// Reads the log of a run back, and opens it to go on where it ends.
    ///
    /// `visit` is called once for each record that is in the log, in order, from any thread, before
    /// this returns; whether the seal is one of them is left to the sink. What is not whole at its end is taken out of the log.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`](crate::error::Error::Damaged) if the log is sealed, and not what was sealed:
    /// nothing is changed then.
    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed>;

    /// The file that holds the run's log, if it is one.
    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        let _ = place;
        None
    }
}

/// What is called for each record of a log that is read back.
pub type RecordVisitor = Box<dyn FnMut(RecordRef<'_>) + Send>;

/// What [`LogSink::resume`] has found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Resumed {
    /// There is no log, or not even a whole first record of one.
    Absent,
    /// It ended without a seal, and goes on.
    Open {
        /// The log, to append to.
        log: Box<dyn RunLog>,
        /// What was cut off at its end, and where it is now.
        torn: Option<TruncatedTail>,
    },
    /// It is sealed: nothing can be added.
    Sealed(Seal),
}

/// The log of one run, while it is written.
#[async_trait]
pub trait RunLog: fmt::Debug + Send {
    /// Appends records, all or, in the case of an error, some first part of them.
    ///
    /// Not cancel-safe: a log whose `append` was dropped takes nothing more.
    async fn append(&mut self, batch: Batch) -> Result<()>;

    /// Makes what was appended survive the machine's power failing.
    async fn sync(&mut self) -> Result<()>;

    /// Writes the last record, and makes it all survive the machine's power failing.
    ///
    /// The `sha256` of `seal` is ignored, and set in what is returned where the sink keeps one.
    async fn seal(&mut self, seal: Seal) -> Result<Seal>;
}

/// Where a run is kept: its name, and its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunPlace {
    /// The run.
    pub run: RunId,
    /// Its folder, which exists.
    pub dir: PathBuf,
    /// The number of a further process in the run's container, which has a log of its own; `None`:
    /// the run itself.
    pub exec: Option<u32>,
}

impl RunPlace {
    /// The place of `run`, in `folder`.
    pub fn new(run: RunId, dir: impl AsRef<Path>) -> Self {
        Self {
            run,
            dir: dir.as_ref().to_owned(),
            exec: None,
        }
    }

    /// The place of a further process in the run's container.
    pub fn of_exec(&self, number: u32) -> Self {
        Self {
            exec: Some(number),
            ..self.clone()
        }
    }
}

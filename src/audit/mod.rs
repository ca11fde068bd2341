//! Reading audit files: their records, and whether they are what was written.
//!
//! The format is described in `docs/audit-format.md`. [`Reader`] gives the records of a file, also
//! of one that is still being written; [`Follow`] waits for more; [`verify`] says whether a file is whole.
//!
//! ```no_run
//! use moat::audit::{LogState, Reader, Record, verify};
//!
//! for record in Reader::open("runs/nightly/logs.jsonl")? {
//!     if let Record::Output(output) = record? {
//!         println!("{}", String::from_utf8_lossy(&output.bytes));
//!     }
//! }
//!
//! let verification = verify("runs/nightly/logs.jsonl")?;
//! match verification.state {
//!     LogState::Sealed(seal) => println!("whole, and {}", seal.verdict),
//!     LogState::Unsealed { .. } => println!("still open, or its writer died"),
//!     LogState::Damaged(damage) => println!("damaged: {damage}"),
//!     _ => {}
//! }
//! # Ok::<(), moat::Error>(())
//! ```
//!
//! All of it is blocking file I/O: in async code, it wants a thread of its own.

use std::fmt;

use crate::audit::line::Line;
use crate::outcome::{PerStream, Seal};

mod batch;
mod digest;
mod fast_path;
mod follow;
pub(crate) mod line;
pub(crate) mod lines;
mod reader;
mod record;
pub(crate) mod scan;
mod verification;

pub use batch::{Batch, RecordRef};
pub use follow::{Follow, Records};
pub use reader::Reader;
pub use record::{
    Action, Event, Gap, GapReason, Interaction, Output, Resume, ResumeCause, Start, Started,
    StdinChunk, Stop, TruncatedTail,
};
pub use verification::{Verification, verify};

/// The name of the audit file in a run's folder: `logs.jsonl`.
pub const LOG_FILE: &str = "logs.jsonl";

/// The name of the log of a further process in a run's container, in the run's folder.
pub fn exec_file(number: u32) -> String {
    format!("exec-{number}.jsonl")
}

/// The number of the further process whose log has this name, if it is one.
pub(crate) fn exec_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix("exec-")?.strip_suffix(".jsonl")?;
    let number = number.parse().ok()?;
    (exec_file(number) == name).then_some(number)
}

/// A record of an audit file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// Output.
    Output(Output),
    /// Anything else that this version knows.
    Event(Event),
    /// A record of a later writer: the name of its type.
    Unknown(String),
}

impl From<Line<'_>> for Record {
    fn from(line: Line<'_>) -> Self {
        match line {
            Line::Output(output) => Self::Output(Output {
                ts: output.ts,
                stream: output.stream,
                bytes: output.bytes.into_owned(),
                partial: output.partial,
                lossy: output.lossy,
            }),
            Line::Event(event) => Self::Event(event),
            Line::Unknown(kind) => Self::Unknown(kind.into_owned()),
        }
    }
}

impl Record {
    /// It, borrowed; `None` for what this version does not know.
    pub fn as_ref(&self) -> Option<RecordRef<'_>> {
        match self {
            Self::Output(output) => Some(output.into()),
            Self::Event(event) => Some(RecordRef::Event(event)),
            Self::Unknown(_) => None,
        }
    }
}

impl From<Event> for Record {
    fn from(event: Event) -> Self {
        Self::Event(event)
    }
}

impl From<RecordRef<'_>> for Record {
    fn from(record: RecordRef<'_>) -> Self {
        match record {
            RecordRef::Output {
                ts,
                stream,
                bytes,
                partial,
                lossy,
            } => Self::Output(Output {
                ts,
                stream,
                bytes: bytes.to_owned(),
                partial,
                lossy,
            }),
            RecordRef::Event(event) => Self::Event(event.clone()),
        }
    }
}

/// What an audit file is found to be.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum LogState {
    /// It has its last record.
    Sealed(Box<Seal>),
    /// It has no last record: it is being written, or its writer died.
    Unsealed {
        /// How many bytes follow the last newline: the beginning of a record.
        torn: u64,
    },
    /// It is not what was written.
    Damaged(Damage),
}

/// Where an audit file is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The first line that is not, or may not be, what was written. The first line is 1.
    pub line: u64,
    /// Where that line starts in the file, in bytes.
    pub offset: u64,
    /// How it is known, in words.
    pub reason: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {} (offset {}): {}",
            self.line, self.offset, self.reason
        )
    }
}

/// What an `end` record counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) records: u64,
    pub(crate) bytes: PerStream<u64>,
    pub(crate) gaps: u64,
}

impl Tally {
    fn add(&mut self, line: &Line<'_>) {
        match line {
            Line::Output(output) => {
                self.add_output(output.stream, output.bytes.len(), output.partial);
            }
            Line::Event(Event::Gap(_)) => self.gaps += 1,
            Line::Unknown(kind) if kind == "gap" => self.gaps += 1,
            Line::Event(_) | Line::Unknown(_) => {}
        }
    }

    pub(crate) fn add_output(
        &mut self,
        stream: crate::outcome::Stream,
        length: usize,
        partial: bool,
    ) {
        self.records += 1;
        self.bytes[stream] += length as u64 + u64::from(!partial);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} records of output ({} bytes of stdout, {} of stderr, {} of tty) and {} gaps",
            self.records, self.bytes.stdout, self.bytes.stderr, self.bytes.tty, self.gaps
        )
    }
}

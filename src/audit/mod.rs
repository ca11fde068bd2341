//! The audit file: its records, and the readers that parse, follow and verify it.
//!
//! Every run leaves one file in a format that a second program can implement. The format is
//! specified in `docs/audit-format.md`, independently of this crate.
//!
//! - [`Reader`] returns the records of a file, even while the file is being written.
//! - [`Follow`] also waits for later records.
//! - [`verify`] checks the form, the counts and the digests of a whole file.
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
//!     LogState::Sealed(seal) => println!("sealed, verdict: {}", seal.verdict),
//!     LogState::Unsealed { .. } => println!("still being written, or its writer died"),
//!     LogState::Damaged(damage) => println!("damaged: {damage}"),
//!     _ => {}
//! }
//! # Ok::<(), moat::Error>(())
//! ```
//!
//! All of these functions block on file I/O. In async code, call them on a separate thread, or use
//! [`Follow::into_stream`].

use std::fmt;

use crate::audit::line::Line;
use crate::outcome::{PerStream, Seal, Stream};

mod batch;
pub(crate) mod consistency;
mod digest;
mod fast_path;
mod follow;
pub(crate) mod line;
pub(crate) mod line_reader;
mod reader;
mod record;
pub(crate) mod scan;
mod verify;

pub use batch::{Batch, RecordRef};
pub use follow::{Follow, Records};
pub use reader::Reader;
pub(crate) use record::OutputTime;
pub use record::{
    Action, Event, ExecCreated, Gap, GapReason, Interaction, Output, Resume, ResumeCause, Start,
    Started, StdinChunk, Stop, TruncatedTail,
};
pub use verify::{Verification, verify};

/// The name of the audit file in a run's directory: `logs.jsonl`.
pub const LOG_FILE: &str = "logs.jsonl";

/// The name of the audit file of exec `number`, in the run's directory.
pub fn exec_file(number: u32) -> String {
    format!("exec-{number}.jsonl")
}

/// The number of the exec whose audit file has this name.
pub(crate) fn exec_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix("exec-")?.strip_suffix(".jsonl")?;
    let number = number.parse().ok()?;
    (exec_file(number) == name).then_some(number)
}

/// A record of an audit file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// Output of the container.
    Output(Output),
    /// Any other record.
    Event(Event),
    /// A record of an unknown type, as later versions may write; contains the name of the type.
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
                engine_time: output.engine_time,
            }),
            Line::Event(event) => Self::Event(event),
            Line::Unknown(kind) => Self::Unknown(kind.into_owned()),
        }
    }
}

impl Record {
    /// Borrows the record. Returns `None` if its type is unknown.
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
                engine_time,
            } => Self::Output(Output {
                ts,
                stream,
                bytes: bytes.to_owned(),
                partial,
                lossy,
                engine_time,
            }),
            RecordRef::Event(event) => Self::Event(event.clone()),
        }
    }
}

/// The state of an audit file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum LogState {
    /// The file is sealed: it has an `end` record.
    Sealed(Box<Seal>),
    /// The file has no `end` record: it is being written, or its writer died.
    Unsealed {
        /// The number of bytes after the last newline: an incomplete record.
        torn: u64,
    },
    /// The file is damaged, or only another version of this library can read it.
    Damaged(Damage),
}

/// The position and reason of damage to an audit file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The number of the first line that is or may be damaged, counted from 1.
    pub line: u64,
    /// The offset of that line in the file, in bytes.
    pub offset: u64,
    /// The reason, as text.
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

/// The counts of an `end` record.
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

    /// Counts an output record of `length` bytes, without its newline.
    pub(crate) fn add_output(&mut self, stream: Stream, length: usize, partial: bool) {
        self.records += 1;
        self.bytes[stream] += length as u64 + u64::from(!partial);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} output records (", self.records)?;
        for (index, stream) in Stream::ALL.into_iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{} bytes of {stream}", self.bytes[stream])?;
        }
        write!(f, ") and {} gaps", self.gaps)
    }
}

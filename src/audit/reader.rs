//! The reader of a file that may still grow.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::audit::line_reader::{Advance, LineReader};
use crate::audit::{Damage, Event, LogState, Record, line};
use crate::disk;
use crate::error::{Error, Result};

/// The records of an audit file, in order.
///
/// The iterator ends after the last whole record, at the first damaged record, and after the `end`
/// record. [`state`](Self::state) distinguishes the three. To follow a file that is still being
/// written, call [`next`](Iterator::next) again after `None` while the state is
/// [`LogState::Unsealed`].
///
/// The reader checks no digests: [`verify`](super::verify()) does. A record of an unknown type is
/// [`Record::Unknown`], and unknown fields are ignored. The reader keeps one line in memory, of at
/// most 16 MiB.
///
/// An item is [`Error::Storage`] if the input cannot be read. The next call retries the read.
#[derive(Debug)]
pub struct Reader<R = File> {
    lines: LineReader<R>,
    path: PathBuf,
    /// Seeks the input back to the end of the last whole line.
    rewind: fn(&mut LineReader<R>) -> io::Result<Rewound>,
    state: LogState,
    /// Set if the input must be rewound before the next read.
    stale: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Rewound {
    Done,
    /// The file is shorter than the part that was already read.
    Truncated,
}

impl Reader<File> {
    /// Opens the file at `path`: a regular file, not a symbolic link.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the file cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = disk::open_to_read(path)?;
        Ok(Self {
            // A writer may replace an incomplete last line, so the reader keeps none of it.
            rewind: |lines| {
                if lines.input().metadata()?.len() < lines.end_offset() {
                    return Ok(Rewound::Truncated);
                }
                lines.rewind().map(|()| Rewound::Done)
            },
            ..Self::of(file, path.to_owned())
        })
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        self.lines.input()
    }
}

impl<R: Read> Reader<R> {
    /// Creates a reader of `input`.
    pub fn new(input: R) -> Self {
        Self::of(input, PathBuf::from("(input)"))
    }

    fn of(input: R, path: PathBuf) -> Self {
        Self {
            lines: LineReader::new(input),
            path,
            rewind: |_| Ok(Rewound::Done),
            state: LogState::Unsealed { torn: 0 },
            stale: false,
        }
    }

    /// The state of the file as far as it was read.
    pub fn state(&self) -> &LogState {
        &self.state
    }

    /// The offset at which the last returned record ends, in bytes.
    pub fn offset(&self) -> u64 {
        match &self.state {
            LogState::Damaged(damage) => damage.offset,
            _ => self.lines.end_offset(),
        }
    }

    /// The number of lines read.
    pub fn lines(&self) -> u64 {
        self.lines.number()
    }

    /// Reads the next record, and updates the state.
    fn advance(&mut self) -> io::Result<Option<Record>> {
        if self.stale {
            if (self.rewind)(&mut self.lines)? == Rewound::Truncated {
                self.damaged("the file was cut short before this line while it was read");
                return Ok(None);
            }
            self.stale = false;
        }
        let advance = self.lines.advance()?;
        if let LogState::Sealed(_) = self.state {
            if advance != Advance::End || !self.lines.tail().is_empty() {
                self.damaged("there is data after the end record");
            }
            self.stale = true;
            return Ok(None);
        }
        match advance {
            Advance::TooLong => {
                self.damaged("the line is too long");
                return Ok(None);
            }
            Advance::End => {
                self.state = LogState::Unsealed {
                    torn: self.lines.tail().len() as u64,
                };
                self.stale = true;
                return Ok(None);
            }
            Advance::Line => {}
        }
        let record = match line::parse(self.lines.line()) {
            Ok(record) => Record::from(record),
            Err(error) => {
                self.damaged(error.reason());
                return Ok(None);
            }
        };
        let is_first = self.lines.number() == 1;
        if is_first != matches!(record, Record::Event(Event::Start(_))) {
            self.damaged(if is_first {
                "the first record is not a start record"
            } else {
                "there is a second start record"
            });
            return Ok(None);
        }
        self.state = match &record {
            Record::Event(Event::End(seal)) => LogState::Sealed(seal.clone()),
            _ => LogState::Unsealed { torn: 0 },
        };
        Ok(Some(record))
    }

    fn damaged(&mut self, reason: impl Into<String>) {
        self.state = LogState::Damaged(Damage {
            line: self.lines.number_here(),
            offset: self.lines.offset(),
            reason: reason.into(),
        });
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if let LogState::Damaged(_) = self.state {
            return None;
        }
        self.advance()
            .map_err(|error| Error::storage("read", &self.path, error))
            .transpose()
    }
}

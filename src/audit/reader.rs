//! The records of a file, also of one that grows.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::audit::lines::{Advance, Lines};
use crate::audit::{Damage, Event, LogState, Record, line};
use crate::disk;
use crate::error::{Error, Result};

/// The records of an audit file, in order.
///
/// It ends (gives `None`) behind the last whole record, at the first that is damaged, and after
/// the `end` record; [`state`](Self::state) says which it was. A file that is still being written
/// can be followed: after `None`, while the state is [`LogState::Unsealed`], call
/// [`next`](Iterator::next) again when the file may have grown.
///
/// It checks no digests: [`verify`](super::verify) does. Records of types that this version does
/// not know are [`Record::Unknown`], and fields that it does not know are skipped. It keeps one
/// line in memory, of at most 16 MiB.
///
/// An item is an error if the input could not be read: [`Error::Storage`]. It can be tried again.
#[derive(Debug)]
pub struct Reader<R = File> {
    lines: Lines<R>,
    path: PathBuf,
    /// Makes the input give again what is behind the last whole line.
    rewind: fn(&mut Lines<R>) -> io::Result<Rewound>,
    state: LogState,
    /// Whether the input may stand behind bytes that `lines` has not kept.
    stale: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Rewound {
    Done,
    /// The file is shorter than what was read of it.
    CutShort,
}

impl Reader<File> {
    /// The records of the file at `path`: a regular file, of which no link is followed.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = disk::open_existing(path, false)?;
        Ok(Self {
            // A file may lose a torn tail, and get another one: nothing of it is kept.
            rewind: |lines| {
                if lines.input().metadata()?.len() < lines.end_offset() {
                    return Ok(Rewound::CutShort);
                }
                lines.rewind().map(|()| Rewound::Done)
            },
            ..Self::of(file, path.to_owned())
        })
    }
}

impl<R: Read> Reader<R> {
    /// The records that `input` gives.
    pub fn new(input: R) -> Self {
        Self::of(input, PathBuf::from("(input)"))
    }

    fn of(input: R, path: PathBuf) -> Self {
        Self {
            lines: Lines::new(input),
            path,
            rewind: |_| Ok(Rewound::Done),
            state: LogState::Unsealed { torn: 0 },
            stale: false,
        }
    }

    /// What is known of the file so far: its end, or why there are no more records for now.
    pub fn state(&self) -> &LogState {
        &self.state
    }

    /// Where the last record that was given ends in the file, in bytes.
    pub fn offset(&self) -> u64 {
        match &self.state {
            LogState::Damaged(damage) => damage.offset,
            _ => self.lines.end_offset(),
        }
    }

    /// The number of lines that were read.
    pub fn lines(&self) -> u64 {
        self.lines.number()
    }

    fn advance(&mut self) -> io::Result<Option<Record>> {
        if self.stale {
            if (self.rewind)(&mut self.lines)? == Rewound::CutShort {
                self.damaged("the file was cut short of here while it was read");
                return Ok(None);
            }
            self.stale = false;
        }
        let advance = self.lines.advance()?;
        if let LogState::Sealed(_) = self.state {
            if advance != Advance::End || !self.lines.tail().is_empty() {
                self.damaged("there is more after the end record");
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
            Err(bad) => {
                self.damaged(bad.reason());
                return Ok(None);
            }
        };
        let first = self.lines.number() == 1;
        if first != matches!(record, Record::Event(Event::Start(_))) {
            self.damaged(if first {
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

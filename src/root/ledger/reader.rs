//! The reader of a ledger, which follows the chain of its lines.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::PathBuf;

use crate::audit::line_reader::{Advance, LineReader};
use crate::disk;
use crate::error::{Error, Result};
use crate::root::Root;
use crate::root::ledger::end::{self, End};
use crate::root::ledger::line::{LedgerEntry, LedgerLine};
use crate::spec::{LEDGER_FILE, RootId};

/// The lines of a ledger, in order: see [`Root::ledger`].
///
/// The iterator ends after the last line that no lost bytes precede. An item is [`Error::Damaged`] if a line is not what
/// was written, or if a line before it is missing. Nothing follows such an item.
#[derive(Debug)]
pub struct LedgerReader {
    walk: Option<Walk<io::Take<File>>>,
    path: PathBuf,
}

impl Iterator for LedgerReader {
    type Item = Result<LedgerLine>;

    fn next(&mut self) -> Option<Result<LedgerLine>> {
        let step = match self.walk.as_mut()?.next() {
            Ok(step) => step?,
            Err(error) => {
                self.walk = None;
                return Some(Err(Error::storage("read", &self.path, error)));
            }
        };
        match (step.line, step.broken) {
            (Some(line), None) => Some(Ok(line)),
            (_, broken) => {
                self.walk = None;
                Some(Err(Error::Damaged {
                    path: self.path.clone(),
                    reason: broken.unwrap_or_default(),
                }))
            }
        }
    }
}

/// Reads the lines of a ledger and checks the chain, also after a line that breaks it.
#[derive(Debug)]
pub(super) struct Walk<R> {
    lines: LineReader<R>,
    root: RootId,
    /// The end of the line before.
    end: End,
    /// The number of physical lines read.
    position: u64,
}

/// A line of a ledger.
pub(super) struct Step {
    /// The position of the line in the file, from 1.
    pub(super) position: u64,
    /// `None` if the line cannot be parsed.
    pub(super) line: Option<LedgerLine>,
    /// The reason why the line does not continue the chain.
    pub(super) broken: Option<String>,
}

impl<R: Read> Walk<R> {
    pub(super) fn new(input: R, root: RootId) -> Self {
        Self {
            lines: LineReader::new(input),
            root,
            end: End::default(),
            position: 0,
        }
    }

    /// The end of the last line that was read.
    pub(super) fn end(&self) -> &End {
        &self.end
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Step>> {
        let advance = self.lines.advance()?;
        if advance == Advance::End {
            return Ok(None);
        }
        self.position += 1;
        let bytes = self.lines.line();
        let parsed = match advance {
            Advance::Line => LedgerLine::parse(bytes),
            _ => Err("it is too long".into()),
        };
        let position = self.position;
        let broken = match &parsed {
            Ok(line) => self.broken_link(line),
            Err(reason) => Some(reason.clone()),
        };
        let line = parsed.ok();
        let number = line
            .as_ref()
            .map_or(self.end.number + 1, |line| line.number);
        self.end = End::after(bytes, number, self.end.length);
        Ok(Some(Step {
            position,
            line,
            broken: broken.map(|reason| format!("line {position}: {reason}")),
        }))
    }

    /// Describes the reason why a line does not follow the line before it.
    fn broken_link(&self, line: &LedgerLine) -> Option<String> {
        let is_first = self.position == 1;
        match &line.entry {
            LedgerEntry::Created { root } if is_first && *root != self.root => {
                return Some(format!(
                    "it belongs to root {root}, but is in root {}",
                    self.root
                ));
            }
            LedgerEntry::Created { .. } if is_first => {}
            _ if is_first => return Some("the first line of the ledger is missing".into()),
            LedgerEntry::Created { .. } => return Some("another ledger begins here".into()),
            _ => {}
        }
        let expected = self.end.number + 1;
        if line.number != expected {
            return Some(format!(
                "it has the number {}, but follows number {}",
                line.number, self.end.number
            ));
        }
        (line.prev != self.end.digest).then(|| {
            format!(
                "the line before it, number {}, was changed",
                self.end.number
            )
        })
    }
}

impl Root {
    /// Reads the ledger: a line for each run that began, was sealed, or was removed.
    ///
    /// The ledger is the file `ledger.jsonl` in the root. Each line has the digest of the line
    /// before it, which the reader checks. A root that has never had a run has no lines.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the file cannot be opened.
    pub fn ledger(&self) -> Result<LedgerReader> {
        Ok(LedgerReader {
            walk: self.walk_ledger()?.map(|(walk, _)| walk),
            path: self.ledger_path(),
        })
    }

    /// Opens the ledger up to the last line that no lost bytes precede, and returns the number of
    /// bytes after that line. Returns `None` if the ledger does not exist.
    pub(super) fn walk_ledger(&self) -> Result<Option<(Walk<io::Take<File>>, u64)>> {
        let Some((file, length)) = self.open_ledger()? else {
            return Ok(None);
        };
        let end = end::find(&file, length).map_err(|error| self.ledger_error("read", error))?;
        let whole = end.map_or(0, |end| end.length);
        let walk = Walk::new(file.take(whole), self.id().clone());
        Ok(Some((walk, length - whole)))
    }

    /// Opens the ledger, and returns its length. Returns `None` if it does not exist.
    pub(super) fn open_ledger(&self) -> Result<Option<(File, u64)>> {
        let file = match disk::open_to_read(&self.ledger_path()) {
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => return Ok(None),
            opened => opened?,
        };
        let metadata = file.metadata();
        let length = metadata
            .map_err(|error| self.ledger_error("read", error))?
            .len();
        Ok(Some((file, length)))
    }

    pub(super) fn ledger_error(&self, operation: &'static str, error: io::Error) -> Error {
        Error::storage(operation, self.ledger_path(), error)
    }

    pub(super) fn ledger_path(&self) -> PathBuf {
        self.path().join(LEDGER_FILE)
    }
}

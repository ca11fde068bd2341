//! Whether a file is what was written.

use std::io::{self, Read};
use std::path::Path;

use crate::audit::LogState;
use crate::audit::scan::{OwnedContainer, scan};
use crate::disk;
use crate::error::{Error, Result};
use crate::outcome::PerStream;

/// What [`verify`] has found in an audit file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Verification {
    /// Whether it is sealed, open, or damaged.
    pub state: LogState,
    /// The number of output records, up to the first damage, as all that follows.
    pub records: u64,
    /// The bytes of output in them, newlines included, by stream.
    pub bytes: PerStream<u64>,
    /// The number of `gap` records.
    pub gaps: u64,
    /// The number of `check` records: each digest holds.
    pub checks: u64,
    /// Where the last of these ends: what is before it, in an unsealed file, is what was written.
    pub checked: u64,
    /// The number of whole lines.
    pub lines: u64,
}

/// Reads an audit file, and says whether it is what was written.
///
/// It checks that each line is a record, that the first is a `start` record of version 1, that an
/// `end` record is the last, and that its counts, its digest and that of each `check` record hold.
/// A sealed file in which any byte has changed is never found to be sealed. An unsealed file is
/// known to be what was written up to its last `check` record; behind it, that each line is a
/// record.
///
/// The file may be one that is being written. It blocks: the whole file is read. The digest of one
/// of more than 4 MiB is made on a thread of its own.
///
/// # Errors
///
/// [`Error::Storage`] if the file cannot be read. Damage is no error, but a finding.
pub fn verify(path: impl AsRef<Path>) -> Result<Verification> {
    let path = path.as_ref();
    let file = disk::open_existing(path, false)?;
    Verification::of(file).map_err(|error| Error::storage("read", path, error))
}

impl Verification {
    pub(crate) fn of(file: impl Read) -> io::Result<Self> {
        let scan = scan(file)?;
        let state = match scan.found {
            OwnedContainer::Sealed(seal) => LogState::Sealed(seal),
            OwnedContainer::Unsealed { torn } => LogState::Unsealed { torn },
            OwnedContainer::TruncatedTail(damage) | OwnedContainer::Damaged(damage) => {
                LogState::Damaged(damage)
            }
        };
        Ok(Self {
            state,
            records: scan.keep.tally.records,
            bytes: scan.keep.tally.bytes,
            gaps: scan.keep.tally.gaps,
            checks: scan.keep.checks,
            checked: scan.keep.checked,
            lines: scan.keep.lines,
        })
    }
}

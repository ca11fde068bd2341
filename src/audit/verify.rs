//! Verification of a whole file.

use std::io::{self, Read};
use std::path::Path;

use crate::audit::scan::{Finding, scan};
use crate::audit::{Damage, LogState, Start};
use crate::disk;
use crate::error::{Error, Result};
use crate::outcome::PerStream;

/// The result of [`verify`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Verification {
    /// The state of the file: sealed, unsealed or damaged.
    pub state: LogState,
    /// The first record, or `None` if the first line is no `start` record.
    ///
    /// It names the run and the root that the file belongs to.
    pub start: Option<Box<Start>>,
    /// The number of output records.
    ///
    /// This count and all others end at the first damage.
    pub records: u64,
    /// The bytes of output, including newlines, by stream.
    pub bytes: PerStream<u64>,
    /// The number of `gap` records.
    pub gaps: u64,
    /// The number of `check` records, all of which match.
    pub checks: u64,
    /// The offset at which the last `check` record ends.
    ///
    /// In an unsealed file, everything before this offset is proven unchanged.
    pub checked: u64,
    /// The number of whole lines.
    pub lines: u64,
}

/// Verifies an audit file.
///
/// `verify` checks that each line is a record, that the first is a `start` record of version 1,
/// that nothing follows an `end` record, and that all counts and digests match. An `end` record
/// must not contradict the other records, for example with the verdict `complete` in a file with a
/// gap. A sealed file is not reported as sealed if any byte has changed. An unsealed file is proven
/// unchanged up to its last `check` record. After that record, only the form of each line is
/// checked.
///
/// A file says which run it belongs to, and `verify` does not know which run is expected.
/// [`Root::verify`](crate::Root::verify) also compares that.
///
/// The call blocks and reads the whole file, which may still be written to. The digest of a file
/// over 4 MiB is computed on a separate thread.
///
/// # Errors
///
/// [`Error::Storage`] if the file cannot be read. Damage is reported in the result, not as an
/// error.
pub fn verify(path: impl AsRef<Path>) -> Result<Verification> {
    let path = path.as_ref();
    let file = disk::open_to_read(path)?;
    Verification::of(file).map_err(|error| Error::storage("read", path, error))
}

impl Verification {
    pub(crate) fn of(file: impl Read) -> io::Result<Self> {
        let scan = scan(file)?;
        let state = match scan.finding {
            Finding::Sealed(seal) => LogState::Sealed(seal),
            Finding::Unsealed { torn } => LogState::Unsealed { torn },
            Finding::Repairable(damage) | Finding::Damaged(damage) => LogState::Damaged(damage),
        };
        Ok(Self {
            state,
            start: scan.start,
            records: scan.keep.tally.records,
            bytes: scan.keep.tally.bytes,
            gaps: scan.keep.tally.gaps,
            checks: scan.keep.checks,
            checked: scan.keep.checked,
            lines: scan.keep.lines,
        })
    }

    /// The result for a file that does not belong in its place: its first line is damaged.
    pub(crate) fn misplaced(self, reason: String) -> Self {
        let damage = Damage {
            line: 1,
            offset: 0,
            reason,
        };
        Self {
            state: LogState::Damaged(damage),
            start: self.start,
            records: 0,
            bytes: PerStream::default(),
            gaps: 0,
            checks: 0,
            checked: 0,
            lines: 0,
        }
    }
}

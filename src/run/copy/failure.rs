//! The errors of a copy, and its limits.

use std::io;
use std::path::Path;

use super::options::{CopyOptions, CopyProgress};
use crate::error::{CopyError, Error};

/// The error of a copy, before its path is known.
#[derive(Debug)]
pub(super) enum Failure {
    Copy(CopyError),
    Disk(Error),
    /// The runtime no longer reads the archive, and has the reason.
    Closed,
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        Self::Copy(error)
    }
}

impl Failure {
    pub(super) fn disk(operation: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Disk(Error::storage(operation, path, error))
    }

    pub(super) fn refused(entry: &Path, reason: &'static str) -> Self {
        Self::Copy(CopyError::RefusedEntry {
            entry: entry.display().to_string(),
            reason,
        })
    }

    /// Creates the error of a copy of `path`.
    pub(super) fn at(self, path: &str) -> Error {
        match self {
            Self::Copy(source) => Error::Copy {
                path: path.to_owned(),
                source,
            },
            Self::Disk(error) => error,
            Self::Closed => Error::Closed,
        }
    }
}

/// Counts a copy, and enforces its limits.
pub(super) struct Counter<'a> {
    pub(super) options: &'a CopyOptions,
    pub(super) progress: CopyProgress,
}

impl<'a> Counter<'a> {
    pub(super) fn new(options: &'a CopyOptions) -> Self {
        Self {
            options,
            progress: CopyProgress::default(),
        }
    }

    /// Fails if another entry is beyond the limit.
    pub(super) fn begin_entry(&self) -> Result<(), CopyError> {
        let max_entries = self.options.entry_limit();
        match self.progress.entries + self.progress.skipped < max_entries {
            true => Ok(()),
            false => Err(CopyError::TooManyEntries { max_entries }),
        }
    }

    pub(super) fn end_entry(&mut self) {
        self.progress.entries += 1;
        self.options.report(self.progress);
    }

    pub(super) fn skip_entry(&mut self) {
        self.progress.skipped += 1;
        self.options.report(self.progress);
    }

    /// Counts bytes before they are stored.
    pub(super) fn add_bytes(&mut self, bytes: usize) -> Result<(), CopyError> {
        self.check_bytes(bytes as u64)?;
        self.progress.bytes += bytes as u64;
        self.options.report(self.progress);
        Ok(())
    }

    /// Fails if a file of this size is beyond the limit.
    pub(super) fn check_bytes(&self, bytes: u64) -> Result<(), CopyError> {
        let max_bytes = self.options.byte_limit();
        match self.progress.bytes.saturating_add(bytes) > max_bytes {
            true => Err(CopyError::TooManyBytes { max_bytes }),
            false => Ok(()),
        }
    }
}

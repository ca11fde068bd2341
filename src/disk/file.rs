//! A file open for writing.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

#[cfg(test)]
use crate::disk::journal::{self, Change, FileJournal};

/// A file open for writing.
///
/// All changes pass through this type, so that tests can record them.
#[derive(Debug)]
pub(crate) struct File {
    inner: fs::File,
    #[cfg(test)]
    journal: Option<FileJournal>,
}

impl File {
    /// Wraps the open file at `path`.
    pub(super) fn opened(inner: fs::File, path: &Path, created: bool) -> Self {
        #[cfg(not(test))]
        let _ = (path, created);
        Self {
            #[cfg(test)]
            journal: journal::record_open(&inner, path, created),
            inner,
        }
    }

    /// The file, for operations that do not change it: reads, seeks, locks.
    pub(crate) fn as_std(&self) -> &fs::File {
        &self.inner
    }

    pub(crate) fn into_std(self) -> fs::File {
        self.inner
    }

    pub(crate) fn set_len(&self, length: u64) -> io::Result<()> {
        self.inner.set_len(length)?;
        #[cfg(test)]
        self.record(|| Change::SetLen(length));
        Ok(())
    }

    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()?;
        #[cfg(test)]
        self.record(|| Change::Sync { all: false });
        Ok(())
    }

    pub(crate) fn sync_all(&self) -> io::Result<()> {
        self.inner.sync_all()?;
        #[cfg(test)]
        self.record(|| Change::Sync { all: true });
        Ok(())
    }

    #[cfg(test)]
    fn record(&self, change: impl FnOnce() -> Change) {
        if let Some(journal) = &self.journal {
            journal.record(change());
        }
    }
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (&self.inner).write(bytes)?;
        #[cfg(test)]
        self.record(|| Change::Write {
            end: io::Seek::stream_position(&mut &self.inner).unwrap(),
            bytes: bytes[..count].to_vec(),
        });
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&self.inner).flush()
    }
}

#[cfg(test)]
impl From<fs::File> for File {
    fn from(inner: fs::File) -> Self {
        Self {
            inner,
            journal: None,
        }
    }
}

//! The logs that this process has written, kept to detect external changes.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::disk::{self, FileTimes};

/// The size of a read.
const CHUNK_BYTES: usize = 256 << 10;

/// The length and the digest of a file after a write.
#[derive(Debug, Clone)]
pub(super) struct WrittenPrefix {
    pub(super) length: u64,
    pub(super) digest: Sha256,
}

impl WrittenPrefix {
    /// Returns true if `file` still begins with the written bytes.
    pub(super) fn matches(&self, file: &File) -> io::Result<bool> {
        let mut digest = Sha256::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut at = 0;
        while at < self.length {
            let wanted = (self.length - at).min(CHUNK_BYTES as u64) as usize;
            match disk::read_at(file, &mut buffer[..wanted], at) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    digest.update(&buffer[..count]);
                    at += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(digest.finalize() == self.digest.clone().finalize())
    }
}

/// The unsealed logs that this process has closed, by path.
///
/// When such a log is resumed, a mismatch shows an external change.
#[derive(Debug, Clone, Default)]
pub(super) struct WriteLedger {
    closed: Arc<Mutex<HashMap<PathBuf, WrittenPrefix>>>,
}

impl WriteLedger {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, WrittenPrefix>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record(&self, path: &Path, written: WrittenPrefix) {
        self.lock().insert(path.to_owned(), written);
    }

    pub(super) fn recall(&self, path: &Path) -> Option<WrittenPrefix> {
        self.lock().get(path).cloned()
    }

    /// Removes the entry of a file, which another writer continues or no writer will resume.
    pub(super) fn forget(&self, path: &Path) {
        self.lock().remove(path);
    }
}

/// The length and times of a file after a write.
///
/// A file is read again only if its stamp has changed. The stamp misses an external change that
/// keeps the length and falls into the clock tick of the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    pub(super) length: u64,
    times: FileTimes,
}

impl FileStamp {
    /// The stamp of `file` now; `None` if its metadata cannot be read.
    pub(super) fn of(file: &File) -> Option<Self> {
        let stamp = |metadata: Metadata| Self {
            length: metadata.len(),
            times: FileTimes::of(&metadata),
        };
        file.metadata().ok().map(stamp)
    }
}

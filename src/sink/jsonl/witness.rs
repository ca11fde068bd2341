//! What this process remembers of the logs that it has written: so that what others do to them
//! meanwhile is not taken for its own.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

/// How much of a file is read at once.
const CHUNK: usize = 256 << 10;

/// How long a file was after a write, and the digest of all of it.
#[derive(Debug, Clone)]
pub(super) struct StdinChunk {
    pub(super) length: u64,
    pub(super) digest: Sha256,
}

impl StdinChunk {
    /// Whether `file` still begins with what was written.
    pub(super) fn is_in(&self, file: &File) -> io::Result<bool> {
        let mut digest = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        while at < self.length {
            let wanted = (self.length - at).min(CHUNK as u64) as usize;
            match file.read_at(&mut buffer[..wanted], at) {
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

/// The logs that were given up without a seal, by their paths: the one who resumes one of them
/// finds what its writer has left, or knows that others have been at it.
#[derive(Debug, Clone, Default)]
pub(super) struct Witness {
    left: Arc<Mutex<HashMap<PathBuf, StdinChunk>>>,
}

impl Witness {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, StdinChunk>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn leave(&self, path: &Path, written: StdinChunk) {
        self.lock().insert(path.to_owned(), written);
    }

    pub(super) fn recall(&self, path: &Path) -> Option<StdinChunk> {
        self.lock().get(path).cloned()
    }

    /// Someone writes it again, or nobody will.
    pub(super) fn forget(&self, path: &Path) {
        self.lock().remove(path);
    }
}

/// What a write leaves of marks on a file. Another one's leave others: then, and only then, it is
/// worth the time to read the file again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Trace {
    /// That of `file` now; `None` where that cannot be told.
    pub(super) fn of(file: &File) -> Option<Self> {
        let of = |metadata: Metadata| Self {
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        };
        file.metadata().ok().map(of)
    }
}

//! A journal of the file operations below a directory, for crash tests.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A file operation.
///
/// Paths are relative to the journal's directory. `file` is the inode number of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    CreateDir(PathBuf),
    SyncDir(PathBuf),
    RemoveDir(PathBuf),
    Create { path: PathBuf, file: u64 },
    Open { path: PathBuf, file: u64 },
    Change { file: u64, change: Change },
    Rename { from: PathBuf, to: PathBuf },
    Link { from: PathBuf, to: PathBuf },
    Remove(PathBuf),
}

/// A change of an open file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A write of `bytes` that ends at the offset `end`.
    Write {
        end: u64,
        bytes: Vec<u8>,
    },
    SetLen(u64),
    Sync {
        all: bool,
    },
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    ops: Mutex<Vec<Op>>,
}

static JOURNALS: Mutex<Vec<Arc<Inner>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records the operations below a directory, by any thread, until it is dropped.
#[derive(Debug)]
pub(crate) struct Journal(Arc<Inner>);

impl Journal {
    pub(crate) fn of(dir: &Path) -> Self {
        let inner = Arc::new(Inner {
            dir: dir.to_owned(),
            ops: Mutex::default(),
        });
        lock(&JOURNALS).push(Arc::clone(&inner));
        Self(inner)
    }

    /// The operations so far.
    pub(crate) fn ops(&self) -> Vec<Op> {
        lock(&self.0.ops).clone()
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.0.ops).len()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        lock(&JOURNALS).retain(|inner| !Arc::ptr_eq(inner, &self.0));
    }
}

/// An open file below a journal's directory.
#[derive(Debug)]
pub(super) struct FileJournal {
    journal: Arc<Inner>,
    file: u64,
}

impl FileJournal {
    pub(super) fn record(&self, change: Change) {
        lock(&self.journal.ops).push(Op::Change {
            file: self.file,
            change,
        });
    }
}

/// The journal that records `path`, and the path relative to its directory.
fn journal_of(path: &Path) -> Option<(Arc<Inner>, PathBuf)> {
    let journals = lock(&JOURNALS);
    let found = journals.iter().find(|inner| path.starts_with(&inner.dir))?;
    let below = path.strip_prefix(&found.dir).ok()?.to_owned();
    Some((Arc::clone(found), below))
}

/// Records that a file was opened or created, and returns the journal for its changes.
pub(super) fn record_open(file: &fs::File, path: &Path, created: bool) -> Option<FileJournal> {
    let (journal, path) = journal_of(path)?;
    let file = file.metadata().unwrap().ino();
    lock(&journal.ops).push(if created {
        Op::Create { path, file }
    } else {
        Op::Open { path, file }
    });
    Some(FileJournal { journal, file })
}

/// Records an operation on one path.
pub(super) fn record(path: &Path, op: impl FnOnce(PathBuf) -> Op) {
    if let Some((journal, path)) = journal_of(path) {
        lock(&journal.ops).push(op(path));
    }
}

/// Records an operation on two paths in the same directory.
pub(super) fn record_pair(from: &Path, to: &Path, op: impl FnOnce(PathBuf, PathBuf) -> Op) {
    if let Some((journal, from)) = journal_of(from) {
        let to = to.strip_prefix(&journal.dir).unwrap().to_owned();
        lock(&journal.ops).push(op(from, to));
    }
}

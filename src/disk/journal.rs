//! What was done to the files in a folder, in order, for tests of what a crash leaves.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One thing that was done. Paths are below the journal's folder; a file is its inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    CreateFolder(PathBuf),
    SyncFolder(PathBuf),
    RemoveFolder(PathBuf),
    Create { path: PathBuf, file: u64 },
    Open { path: PathBuf, file: u64 },
    Change { file: u64, change: Change },
    Rename { from: PathBuf, to: PathBuf },
    Link { from: PathBuf, to: PathBuf },
    Remove(PathBuf),
}

/// What was done to an open file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Write { until: u64, bytes: Vec<u8> },
    SetLen(u64),
    Sync { all: bool },
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

/// Takes down what is done below a folder, by any thread, until it is dropped.
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

    /// What was done so far.
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

/// A file that a journal knows.
#[derive(Debug)]
pub(super) struct Entry {
    journal: Arc<Inner>,
    file: u64,
}

impl Entry {
    pub(super) fn note(&self, change: Change) {
        lock(&self.journal.ops).push(Op::Change {
            file: self.file,
            change,
        });
    }
}

fn journal_of(path: &Path) -> Option<(Arc<Inner>, PathBuf)> {
    let journals = lock(&JOURNALS);
    let found = journals.iter().find(|inner| path.starts_with(&inner.dir))?;
    let below = path.strip_prefix(&found.dir).ok()?.to_owned();
    Some((Arc::clone(found), below))
}

pub(super) fn enter(file: &fs::File, path: &Path, created: bool) -> Option<Entry> {
    let (journal, path) = journal_of(path)?;
    let file = file.metadata().unwrap().ino();
    lock(&journal.ops).push(if created {
        Op::Create { path, file }
    } else {
        Op::Open { path, file }
    });
    Some(Entry { journal, file })
}

pub(super) fn note(path: &Path, op: impl FnOnce(PathBuf) -> Op) {
    if let Some((journal, path)) = journal_of(path) {
        lock(&journal.ops).push(op(path));
    }
}

/// Notes what was done with two names, `to` in the same folder as `from`.
pub(super) fn note_two(from: &Path, to: &Path, op: impl FnOnce(PathBuf, PathBuf) -> Op) {
    if let Some((journal, from)) = journal_of(from) {
        let to = to.strip_prefix(&journal.dir).unwrap().to_owned();
        lock(&journal.ops).push(op(from, to));
    }
}

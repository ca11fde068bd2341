//! The ledger of a root: a chain of lines that names every run that the root has ever had.

mod check;
mod compare;
#[cfg(test)]
mod crash;
mod end;
mod find;
mod finding;
mod head;
mod history;
mod line;
mod reader;
mod record;
#[cfg(feature = "sign")]
mod signed_head;

use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use crate::disk::{self, File};
use crate::error::{Error, Result};
use crate::root::ledger::end::End;
use crate::root::ledger::history::Scan;
use crate::spec::{LEDGER_FILE, RootId};
use crate::timestamp::Timestamp;

pub(crate) use history::RunHistory;

pub use find::{FoundRun, RunQuery};
pub use finding::{Finding, FindingKind, RootVerification, VerifyOptions};
pub use head::Head;
pub use line::{LedgerEntry, LedgerLine, RemovalReason, Remover, RunBegun, RunSealed};
pub use reader::LedgerReader;

/// The prefix of the files with torn ends of the ledger. No run id begins with it.
const TORN_PREFIX: &str = ".ledger-torn-";
/// The time after which a writer gives up on the lock of the ledger.
///
/// A lock is held for the write of a few lines. Only a process that was stopped meanwhile, or a
/// file system that hangs, keeps it for longer.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const MIN_LOCK_PAUSE: Duration = Duration::from_micros(50);
const MAX_LOCK_PAUSE: Duration = Duration::from_millis(20);
/// The file that keeps space for lines on a full disk. No run id begins with a dot.
const RESERVE_FILE: &str = ".ledger-reserve";
/// The crash tests build an image for each of its sectors.
const RESERVED_BYTES: usize = if cfg!(test) { 64 } else { 64 << 10 };
/// The maximum number of bytes that are moved aside. A crash leaves far fewer.
const MAX_TORN_BYTES: u64 = 64 << 20;
/// The number of unsynced bytes at which lines are synced that need not be.
///
/// A power loss leaves holes among the unsynced lines only. [`end::find`] looks for holes in the
/// last 128 KiB, which suffices for eight concurrent processes.
const MAX_UNSYNCED_BYTES: u64 = 16 << 10;

/// The writer of a root's ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    root: RootId,
    open: Mutex<Option<OpenLedger>>,
    /// The lines that certainly survive a power loss.
    ///
    /// Locked during a sync, so that concurrent callers share one.
    synced: Mutex<Option<Appended>>,
    /// Notified after each append.
    #[cfg(feature = "sign")]
    changed: tokio::sync::Notify,
}

#[derive(Debug)]
struct OpenLedger {
    file: Arc<File>,
    /// The end of the file after the last write of this process.
    end: Option<End>,
    /// The number of bytes that this process has written since the last sync.
    unsynced: u64,
}

/// The lines up to the last one that an append has written or found.
#[derive(Debug, Clone)]
struct Appended {
    file: Arc<File>,
    /// The length of the file up to the end of the line.
    length: u64,
    /// The number of the line.
    number: u64,
}

impl Appended {
    fn new(file: &Arc<File>, end: &End) -> Self {
        Self {
            file: Arc::clone(file),
            length: end.length,
            number: end.number,
        }
    }
}

/// The state of a ledger while its lock is held.
struct Locked<'a> {
    file: &'a File,
    /// The length of the file before the new lines.
    length: u64,
}

impl Locked<'_> {
    /// Scans the lines, from the last to the first.
    fn scan(&self) -> Scan<'_> {
        Scan::new(self.file.as_std(), self.length)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    pub(super) fn new(root_path: &Path, root: RootId) -> Self {
        Self {
            path: root_path.join(LEDGER_FILE),
            root,
            open: Mutex::default(),
            synced: Mutex::default(),
            #[cfg(feature = "sign")]
            changed: tokio::sync::Notify::new(),
        }
    }

    fn fail(&self, operation: &'static str, error: io::Error) -> Error {
        Error::storage(operation, &self.path, error)
    }

    /// Appends the entries that `select` returns, and creates the ledger if it does not exist.
    ///
    /// `select` is called while the lock of the ledger is held. The lines survive the death of this
    /// process. They survive a power loss after [`sync`](Self::sync).
    ///
    /// # Errors
    ///
    /// [`Error::Storage`], or [`Error::Damaged`] if the ledger belongs to another root. The ledger
    /// then has none of the entries, unless the file system has failed twice.
    fn append(
        &self,
        select: impl FnOnce(&Locked<'_>) -> io::Result<Vec<LedgerEntry>>,
    ) -> Result<Appended> {
        // Callers that wait for each other share one timeout.
        let deadline = Instant::now() + LOCK_TIMEOUT;
        let mut open = self.lock_open(deadline)?;
        let mut ledger = self.open_and_lock(open.take(), deadline)?;
        let appended = self.append_locked(&mut ledger, select);
        // A forked child may keep the file open, but must not keep the lock.
        let _ = ledger.file.as_std().unlock();
        let sync = ledger.unsynced >= MAX_UNSYNCED_BYTES;
        if sync {
            ledger.unsynced = 0;
        }
        *open = Some(ledger);
        drop(open);
        let appended = appended?;
        #[cfg(feature = "sign")]
        self.changed.notify_one();
        if sync && let Err(error) = self.sync(&appended) {
            // The lines are written, and their callers need no sync.
            tracing::warn!(error = %error.chain(), "the ledger is not synced");
        }
        Ok(appended)
    }

    /// Locks the open file against other threads of this process.
    fn lock_open(&self, deadline: Instant) -> Result<MutexGuard<'_, Option<OpenLedger>>> {
        loop {
            match self.open.try_lock() {
                Ok(open) => return Ok(open),
                Err(TryLockError::Poisoned(open)) => return Ok(open.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(self.lock_timed_out());
                }
                Err(TryLockError::WouldBlock) => thread::sleep(MIN_LOCK_PAUSE),
            }
        }
    }

    fn lock_timed_out(&self) -> Error {
        let held =
            format!("another process has held its lock for {LOCK_TIMEOUT:?}; end that process");
        self.fail("lock", io::Error::new(ErrorKind::TimedOut, held))
    }

    /// Makes lines survive a power loss, and all lines before them.
    fn sync(&self, appended: &Appended) -> Result<()> {
        let mut synced = lock(&self.synced);
        let is_synced = synced.as_ref().is_some_and(|synced| {
            Arc::ptr_eq(&synced.file, &appended.file) && synced.length >= appended.length
        });
        if !is_synced {
            let synced_now = appended.file.sync_data();
            synced_now.map_err(|error| self.fail("sync", error))?;
            *synced = Some(appended.clone());
        }
        Ok(())
    }

    /// Creates the file that is removed when a line does not fit on the disk.
    ///
    /// Without it, no run could be removed from a full disk.
    fn reserve_space(&self) {
        let path = disk::parent_dir(&self.path).join(RESERVE_FILE);
        if path.symlink_metadata().is_err()
            && let Ok(file) = disk::open_new(&path)
            && (&file).write_all(&[b'.'; RESERVED_BYTES]).is_err()
        {
            let _ = disk::remove_file(&path);
        }
    }

    /// Removes the reserve. Returns false if there is none.
    fn release_space(&self) -> bool {
        disk::remove_file(&disk::parent_dir(&self.path).join(RESERVE_FILE)).is_ok()
    }

    /// Returns the locked ledger, which is at its path.
    fn open_and_lock(&self, known: Option<OpenLedger>, deadline: Instant) -> Result<OpenLedger> {
        let mut known = known;
        loop {
            let ledger = match known.take() {
                Some(ledger) => ledger,
                None => self.open_file()?,
            };
            self.lock_until(&ledger.file, deadline)?;
            let is_at = disk::is_at(ledger.file.as_std(), &self.path);
            match is_at.map_err(|error| self.fail("open", error)) {
                Ok(true) => return Ok(ledger),
                // The file was removed or replaced externally. Its successor does not continue it,
                // which a verification reports.
                is_at => {
                    let _ = ledger.file.as_std().unlock();
                    is_at?;
                }
            }
        }
    }

    fn open_file(&self) -> Result<OpenLedger> {
        let file = match disk::open_to_write(&self.path) {
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => {
                match disk::open_new(&self.path) {
                    // Another process was first.
                    Err(error) if error.io_kind() == Some(ErrorKind::AlreadyExists) => {
                        disk::open_to_write(&self.path)?
                    }
                    created => created?,
                }
            }
            opened => opened?,
        };
        Ok(OpenLedger {
            file: Arc::new(file),
            end: None,
            unsynced: 0,
        })
    }

    fn lock_until(&self, file: &File, deadline: Instant) -> Result<()> {
        let mut pause = MIN_LOCK_PAUSE;
        loop {
            match disk::lock_log(file.as_std()) {
                Ok(()) => return Ok(()),
                Err(std::fs::TryLockError::Error(error)) => return Err(self.fail("lock", error)),
                Err(std::fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(self.lock_timed_out());
                }
                Err(std::fs::TryLockError::WouldBlock) => {
                    thread::sleep(pause);
                    pause = (pause * 2).min(MAX_LOCK_PAUSE);
                }
            }
        }
    }

    fn append_locked(
        &self,
        ledger: &mut OpenLedger,
        select: impl FnOnce(&Locked<'_>) -> io::Result<Vec<LedgerEntry>>,
    ) -> Result<Appended> {
        let file = &ledger.file;
        let metadata = file.as_std().metadata();
        let length = metadata.map_err(|error| self.fail("read", error))?.len();
        // Otherwise another process has appended lines.
        let known = ledger.end.take().filter(|end| end.length == length);
        let mut entries = Vec::new();
        let mut end = match known {
            Some(end) => end,
            None => self.find_end(file, length, &mut entries)?,
        };
        let locked = Locked {
            file,
            length: end.length,
        };
        let selected = select(&locked).map_err(|error| self.fail("read", error))?;
        if selected.is_empty() && entries.is_empty() {
            let appended = Appended::new(file, &end);
            ledger.end = Some(end);
            return Ok(appended);
        }
        entries.extend(selected);
        let (start, mut bytes) = (end.length, Vec::new());
        for entry in entries {
            let line = LedgerLine {
                number: end.number + 1,
                ts: Timestamp::now(),
                entry,
                prev: end.digest,
            }
            .to_bytes();
            end = End::after(&line, end.number + 1, end.length);
            bytes.extend_from_slice(&line);
        }
        let mut written = write_at(file, start, &bytes);
        let is_full = |error: &io::Error| error.kind() == ErrorKind::StorageFull;
        if written.as_ref().is_err_and(is_full) && self.release_space() {
            written = write_at(file, start, &bytes);
        }
        written.map_err(|error| self.fail("append to", error))?;
        if start == 0 {
            // The name of the new file. Without it, a power loss takes the first lines, as it may
            // take all lines that are not synced.
            let _ = disk::sync_dir(disk::parent_dir(&self.path));
            self.reserve_space();
        }
        let appended = Appended::new(file, &end);
        ledger.end = Some(end);
        ledger.unsynced += bytes.len() as u64;
        Ok(appended)
    }

    /// Finds the end of a ledger of `length` bytes, and moves an incomplete end aside.
    ///
    /// Adds the entries that must precede all others.
    fn find_end(&self, file: &File, length: u64, entries: &mut Vec<LedgerEntry>) -> Result<End> {
        let found = end::find(file.as_std(), length).map_err(|error| self.fail("read", error))?;
        let damaged = |reason| Error::Damaged {
            path: self.path.clone(),
            reason,
        };
        let root = end::root(file.as_std()).map_err(|error| self.fail("read", error))?;
        if let Some(other) = root.map_err(damaged)?.filter(|root| *root != self.root) {
            return Err(damaged(format!(
                "it belongs to root {other}, but is in root {}",
                self.root
            )));
        }
        let keep = found.as_ref().map_or(0, |end| end.length);
        if length - keep > MAX_TORN_BYTES {
            let torn = length - keep;
            return Err(damaged(format!("{torn} bytes follow its last whole line")));
        }
        let torn = match keep < length {
            true => Some(self.move_aside(file, keep, length)?),
            false => None,
        };
        if found.is_none() {
            let root = self.root.clone();
            entries.push(LedgerEntry::Created { root });
        }
        entries.extend(torn);
        Ok(found.unwrap_or_default())
    }

    /// Moves the bytes after `keep` to a new file. They are cut off only once they are synced.
    fn move_aside(&self, file: &File, keep: u64, length: u64) -> Result<LedgerEntry> {
        let dir = disk::parent_dir(&self.path);
        let (name, path, aside) = create_aside(dir)?;
        let copied = end::copy(file.as_std(), keep, length, &aside)
            .and_then(|()| aside.sync_all())
            .map_err(|error| self.fail("move aside the end of", error))
            .and_then(|()| disk::sync_dir(dir));
        if let Err(error) = copied {
            let _ = disk::remove_file(&path);
            return Err(error);
        }
        file.set_len(keep)
            .and_then(|()| file.sync_all())
            .map_err(|error| self.fail("truncate", error))?;
        Ok(LedgerEntry::Resumed {
            bytes: length - keep,
            file: name,
        })
    }
}

/// Writes at an offset, or leaves the file as it was.
fn write_at(file: &File, start: u64, bytes: &[u8]) -> io::Result<()> {
    let mut out: &File = file;
    let written = file.as_std().seek(SeekFrom::Start(start));
    let written = written.and_then(|_| out.write_all(bytes));
    if written.is_err() {
        // Otherwise the next writer moves the incomplete line aside.
        let _ = file.set_len(start).and_then(|()| file.sync_all());
    }
    written
}

/// Creates the first missing file of those for torn ends.
fn create_aside(dir: &Path) -> Result<(String, PathBuf, File)> {
    let mut number = 1u64;
    loop {
        let name = format!("{TORN_PREFIX}{number}");
        let path = dir.join(&name);
        match disk::open_new(&path) {
            Ok(file) => return Ok((name, path, file)),
            Err(error) if error.io_kind() == Some(ErrorKind::AlreadyExists) => number += 1,
            Err(error) => return Err(error),
        }
    }
}

//! The ledger of a root: a chain of lines that names every run that the root has ever had.

mod check;
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
const MAX_LOCK_PAUSE: Duration = Duration::from_millis(20);
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
    /// The number of bytes that certainly survive a power loss.
    ///
    /// Locked during a sync, so that concurrent callers share one.
    synced: Mutex<u64>,
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

/// The state of a ledger while its lock is held.
struct Locked<'a> {
    file: &'a File,
    /// The length of the file before the new lines.
    length: u64,
}

impl Locked<'_> {
    /// Scans the lines from the byte `since` on, from the last to the first.
    fn scan(&self, since: u64) -> Scan<'_> {
        Scan::new(self.file.as_std(), since, self.length)
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

    /// Returns the number of bytes of the ledger; 0 if it does not exist.
    pub(super) fn length(&self) -> u64 {
        self.path.metadata().map_or(0, |file| file.len())
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
    ) -> Result<()> {
        let mut open = lock(&self.open);
        let mut ledger = self.open_and_lock(open.take())?;
        let appended = self.append_locked(&mut ledger, select);
        // A forked child may keep the file open, but must not keep the lock.
        let _ = ledger.file.as_std().unlock();
        let sync = ledger.unsynced >= MAX_UNSYNCED_BYTES;
        *open = Some(ledger);
        drop(open);
        appended?;
        #[cfg(feature = "sign")]
        self.changed.notify_one();
        if sync { self.sync() } else { Ok(()) }
    }

    /// Makes all lines survive a power loss.
    fn sync(&self) -> Result<()> {
        let (file, length) = match &mut *lock(&self.open) {
            Some(OpenLedger {
                file,
                end: Some(end),
                unsynced,
            }) => {
                *unsynced = 0;
                (Arc::clone(file), end.length)
            }
            _ => return Ok(()),
        };
        let mut synced = lock(&self.synced);
        if *synced < length {
            file.sync_data().map_err(|error| self.fail("sync", error))?;
            *synced = length;
        }
        Ok(())
    }

    /// Returns the locked ledger, which is at its path.
    fn open_and_lock(&self, known: Option<OpenLedger>) -> Result<OpenLedger> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
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
                    *lock(&self.synced) = 0;
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
        let mut pause = Duration::from_micros(50);
        loop {
            match disk::lock_log(file.as_std()) {
                Ok(()) => return Ok(()),
                Err(std::fs::TryLockError::Error(error)) => return Err(self.fail("lock", error)),
                Err(std::fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    let held = format!(
                        "another process has held its lock for {LOCK_TIMEOUT:?}; end that process"
                    );
                    let error = io::Error::new(ErrorKind::TimedOut, held);
                    return Err(self.fail("lock", error));
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
    ) -> Result<()> {
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
            ledger.end = Some(end);
            return Ok(());
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
        let mut out: &File = file;
        let written = file.as_std().seek(SeekFrom::Start(start));
        let written = written.and_then(|_| out.write_all(&bytes));
        if let Err(error) = written {
            // Otherwise the next writer moves the incomplete line aside.
            let _ = file.set_len(start).and_then(|()| file.sync_all());
            return Err(self.fail("append to", error));
        }
        if start == 0 {
            // The name of the new file.
            disk::sync_dir(disk::parent_dir(&self.path))?;
        }
        ledger.end = Some(end);
        ledger.unsynced += bytes.len() as u64;
        Ok(())
    }

    /// Finds the end of a ledger of `length` bytes, and moves an incomplete end aside.
    ///
    /// Adds the entries that must precede all others.
    fn find_end(&self, file: &File, length: u64, entries: &mut Vec<LedgerEntry>) -> Result<End> {
        let found = end::find(file.as_std(), length).map_err(|error| self.fail("read", error))?;
        let root = end::root(file.as_std()).map_err(|error| self.fail("read", error))?;
        if let Some(other) = root.filter(|root| *root != self.root) {
            let reason = format!("it belongs to root {other}, but is in root {}", self.root);
            return Err(Error::Damaged {
                path: self.path.clone(),
                reason,
            });
        }
        let keep = found.as_ref().map_or(0, |end| end.length);
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

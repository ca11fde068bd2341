//! The lock of a run: its holder owns the run.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::disk;
use crate::error::{Error, Result};
use crate::root::Root;
use crate::spec::RunId;

/// The minimum age of an empty run directory that a scan may claim.
///
/// In a younger directory, a process may still be creating the run.
const CREATION_GRACE: Duration = Duration::from_secs(2);

/// The number of retries for a lock that another process may only be checking.
const LOCK_RETRIES: u32 = 5;
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// The lock of a run, held until it is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Lock(fs::File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked meanwhile shares the open file, and with
        // it the lock.
        let _ = self.0.unlock();
    }
}

impl Lock {
    /// Locks an open file. Returns `None` if another process has the lock.
    pub(super) fn try_new(file: fs::File, path: &Path) -> Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(Error::storage("lock", path, error)),
        }
    }

    /// Returns true if `path` names the locked file.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        disk::is_at(&self.0, path).unwrap_or(false)
    }

    /// Reads the first `max_bytes` bytes of the locked file.
    pub(super) fn read(&self, max_bytes: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&self.0).take(max_bytes).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Root {
    /// Returns the path of the file whose lock the owner of a run holds.
    pub(crate) fn lock_path(&self, run: &RunId) -> PathBuf {
        self.dir(run).join("lock")
    }

    /// Acquires the lock of a run.
    pub(crate) fn lock(&self, run: &RunId) -> Result<Lock> {
        let path = self.lock_path(run);
        let file = match disk::open_new(&path) {
            Err(error) if error.io_kind() == Some(ErrorKind::AlreadyExists) => {
                match disk::open_to_write(&path) {
                    Err(error) if disk::is_in_use(&error) => {
                        let run = run.clone();
                        return Err(Error::Owned { run, path });
                    }
                    opened => opened?,
                }
            }
            created => created?,
        };
        let file = file.into_std();
        // `is_owned` holds a shared lock for less time than these retries take.
        let mut locked = file.try_lock();
        for _ in 0..LOCK_RETRIES {
            if !matches!(locked, Err(fs::TryLockError::WouldBlock)) {
                break;
            }
            thread::sleep(LOCK_RETRY_INTERVAL);
            locked = file.try_lock();
        }
        let is_current = disk::is_at(&file, &path);
        let is_current = is_current.map_err(|error| Error::storage("lock", &path, error))?;
        match locked {
            Ok(()) if is_current => Ok(Lock(file)),
            // If the lock is not current, the run was removed, and another run may have its name.
            Ok(()) | Err(fs::TryLockError::WouldBlock) => Err(Error::Owned {
                run: run.clone(),
                path,
            }),
            Err(fs::TryLockError::Error(error)) => Err(Error::storage("lock", path, error)),
        }
    }

    /// Returns true if a live process owns the run.
    pub(crate) fn is_owned(&self, run: &RunId) -> Result<bool> {
        let path = self.lock_path(run);
        match disk::open_to_read(&path) {
            Ok(file) => {
                let locked = file.try_lock_shared();
                if locked.is_ok() {
                    drop(Lock(file));
                }
                is_held(locked).map_err(|error| Error::storage("lock", path, error))
            }
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns true if another process may be creating the run.
    ///
    /// A run directory is created before its lock, so a concurrent scan must not claim it.
    pub(crate) fn is_being_created(&self, run: &RunId) -> bool {
        let dir = self.dir(run);
        let modified = fs::metadata(&dir).and_then(|dir| dir.modified());
        let age = modified.ok().and_then(|modified| modified.elapsed().ok());
        age.is_some_and(|age| age < CREATION_GRACE)
            && !dir.join("run.json").exists()
            && !self.audit(run).exists()
    }
}

/// Returns true if an attempt to lock shows that another process holds the lock.
///
/// Any other failure of the attempt shows neither.
fn is_held(locked: Result<(), fs::TryLockError>) -> io::Result<bool> {
    match locked {
        Ok(()) => Ok(false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_new_directory_is_unowned_for_a_grace_period() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        let run = RunId::generate();
        disk::create_dir(&root.dir(&run)).unwrap();
        let lock = root.lock(&run).unwrap();
        assert!(root.is_being_created(&run));
        drop(lock);
        let directory = fs::File::open(root.dir(&run)).unwrap();
        let now = SystemTime::now();
        directory.set_modified(now - CREATION_GRACE).unwrap();
        assert!(!root.is_being_created(&run), "its creator has died");
        directory.set_modified(now).unwrap();
        fs::write(root.dir(&run).join("run.json"), "").unwrap();
        assert!(!root.is_being_created(&run), "it has a record");
    }

    /// A file system without locks, or out of them, does not show that a run has no owner.
    #[test]
    fn a_lock_that_fails_shows_no_owner_and_no_absence() {
        assert!(!is_held(Ok(())).unwrap());
        assert!(is_held(Err(fs::TryLockError::WouldBlock)).unwrap());
        let failed = io::Error::from_raw_os_error(libc::ENOLCK);
        let error = is_held(Err(fs::TryLockError::Error(failed))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOLCK));
    }

    #[test]
    fn a_run_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        let run = RunId::generate();
        disk::create_dir(&root.dir(&run)).unwrap();
        let lock = root.lock(&run).unwrap();
        assert!(matches!(root.lock(&run), Err(Error::Owned { .. })));
        assert!(root.is_owned(&run).unwrap());
        drop(lock);
        assert!(!root.is_owned(&run).unwrap());
        let lock = root.lock(&run).unwrap();
        // A child between `fork` and `exec` shares the open file.
        let _forked = lock.0.try_clone().unwrap();
        drop(lock);
        root.lock(&run).unwrap();
    }

    /// A waiter never gets the lock of the next run of that name.
    #[test]
    fn the_lock_of_a_removed_run_cannot_be_acquired() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        let run = RunId::new("again").unwrap();
        thread::scope(|scope| {
            for _ in 0..200 {
                disk::create_dir(&root.dir(&run)).unwrap();
                let first = root.lock(&run).unwrap();
                let waiting = scope.spawn(|| root.lock(&run));
                thread::sleep(Duration::from_micros(500));
                root.remove(&run, crate::root::RemovalReason::Removed)
                    .unwrap();
                disk::create_dir(&root.dir(&run)).unwrap();
                let next = root.lock(&run);
                drop(first);
                // A late waiter may be the first to lock the next run. Then no other one does.
                let waited = waiting.join().unwrap();
                assert!(waited.is_err() || next.is_err(), "the run has two owners");
                drop((waited, next));
                root.remove(&run, crate::root::RemovalReason::Removed)
                    .unwrap();
            }
        });
    }
}

//! File I/O on threads of its own, and the few ways in which moat touches files.
//!
//! File I/O can hang, and what hangs cannot be cancelled. So it never runs on a thread of the
//! async runtime, whose shutdown would wait for it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::{Error, Result};

mod file;
#[cfg(test)]
pub(crate) mod image;
#[cfg(test)]
pub(crate) mod journal;

pub(crate) use file::File;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(5);

/// A small pool of threads for file I/O. A clone is the same pool.
///
/// Threads are started when there is work, and leave when there has been none for a while.
/// Nothing ever waits for them: a thread that hangs in a system call is left behind.
#[derive(Clone)]
pub(crate) struct Disk {
    pool: Arc<Pool>,
}

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    name: &'static str,
    most: usize,
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// A thread is alive whenever there is a job in it: a thread leaves only while it is empty.
#[derive(Default)]
struct Queue {
    ready: VecDeque<Job>,
    later: BTreeMap<(Instant, u64), Job>,
    /// Tells jobs that are due at the same time apart.
    serial: u64,
    threads: usize,
    /// How many of the threads wait for a job.
    idle: usize,
}

impl Disk {
    /// A pool of 4 threads.
    pub(crate) fn new() -> Self {
        Self::with_threads("moat-disk", 4)
    }

    /// A pool of at most `most` threads, called `name` with a number.
    pub(crate) fn with_threads(name: &'static str, most: usize) -> Self {
        Self {
            pool: Arc::new(Pool {
                name,
                most,
                queue: Mutex::default(),
                wake: Condvar::new(),
            }),
        }
    }

    /// Runs `job` on a thread of the pool.
    ///
    /// Dropped before its end, the job goes on, and what it returns is dropped on the thread.
    /// `operation` (a verb) and `path` are for the error that a panic of the job becomes.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        path: &Path,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, outcome) = oneshot::channel();
        self.pool
            .submit(
                None,
                Box::new(move || {
                    let _ = done.send(catch_unwind(AssertUnwindSafe(job)));
                }),
            )
            .map_err(|error| Error::storage(operation, path, error))?;
        match outcome.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Error::storage(
                operation,
                path,
                io::Error::other("the thread that did it panicked"),
            )),
        }
    }

    /// Runs `job` on a thread of the pool after `delay`, and lets nobody know.
    ///
    /// # Errors
    ///
    /// It will not run: there is no thread, and none can be started.
    pub(crate) fn later(
        &self,
        delay: Duration,
        job: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        match Instant::now().checked_add(delay) {
            Some(due) => self.pool.submit(Some(due), Box::new(job)),
            // Later than the clock can tell is never.
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.pool.name)
            .field("most", &self.pool.most)
            .finish_non_exhaustive()
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(self: &Arc<Self>, due: Option<Instant>, job: Job) -> io::Result<()> {
        let mut queue = self.lock();
        let wanted = queue.ready.len() + usize::from(due.is_some() || !queue.later.is_empty());
        if queue.idle < wanted + usize::from(due.is_none()) && queue.threads < self.most {
            let pool = Arc::clone(self);
            let started = std::thread::Builder::new()
                .name(format!("{}-{}", self.name, queue.threads + 1))
                .spawn(move || pool.work());
            match started {
                Ok(_) => queue.threads += 1,
                // The threads that there are will come to it.
                Err(_) if queue.threads > 0 => {}
                Err(error) => return Err(error),
            }
        }
        match due {
            None => queue.ready.push_back(job),
            Some(due) => {
                let serial = queue.serial;
                queue.serial += 1;
                queue.later.insert((due, serial), job);
            }
        }
        self.wake.notify_one();
        Ok(())
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            if let Some(job) = queue.take(now) {
                drop(queue);
                // `run` has caught the panics that someone waits for.
                let _ = catch_unwind(AssertUnwindSafe(job));
                queue = self.lock();
                continue;
            }
            let wait = match queue.later.first_key_value() {
                Some(((due, _), _)) => due.saturating_duration_since(now),
                None => IDLE,
            };
            queue.idle += 1;
            let (guard, timeout) = self
                .wake
                .wait_timeout(queue, wait)
                .unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.idle -= 1;
            if timeout.timed_out() && queue.ready.is_empty() && queue.later.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

impl Queue {
    fn take(&mut self, now: Instant) -> Option<Job> {
        // What is due goes first: it has waited longest.
        if let Some(entry) = self.later.first_entry()
            && entry.key().0 <= now
        {
            return Some(entry.remove());
        }
        self.ready.pop_front()
    }
}

/// Makes a file that is not there yet, for reading and writing, with mode 0600.
pub(crate) fn open_new(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
        .map(|file| File::opened(file, path, true))
        .map_err(|error| Error::storage("create", path, error))
}

/// Opens a file that is there, for reading and writing, as [`open_existing`] does.
pub(crate) fn open_to_write(path: &Path) -> Result<File> {
    open_existing(path, true).map(|file| File::opened(file, path, false))
}

/// Why something is not opened: what it is in place of a file.
#[derive(Debug, thiserror::Error)]
#[error("not a regular file: {0}")]
struct Irregular(&'static str);

/// Whether it was refused for not being a regular file: it stays one until someone replaces it.
pub(crate) fn is_irregular(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|cause| cause.is::<Irregular>())
}

/// Opens a file that is there, for reading, and with all rights to it if `write` is set.
///
/// Whatever is not a regular file is refused, and never waited for: a link, a folder, a FIFO.
pub(crate) fn open_existing(path: &Path, write: bool) -> Result<fs::File> {
    let fail = |error| Error::storage("open", path, error);
    let irregular = |what| io::Error::new(io::ErrorKind::InvalidInput, Irregular(what));
    // Without O_NONBLOCK the open of a FIFO would wait for a peer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => fail(irregular("a symbolic link")),
            Some(libc::EISDIR) => fail(irregular("a folder")),
            Some(libc::ENXIO) => fail(irregular("a socket, or a device")),
            _ => fail(error),
        })?;
    let kind = file.metadata().map_err(fail)?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(fail(irregular(if kind.is_dir() {
        "a folder"
    } else {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() { "a FIFO" } else { "a device" }
    })))
}

/// Whether `file` is what is at `path` now.
pub(crate) fn is_at(file: &fs::File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a folder that is not there yet, with mode 0700.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    create_folder_with(path, 0o700)
}

fn create_folder_with(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(|error| Error::storage("create", path, error))?;
    #[cfg(test)]
    journal::note(path, journal::Op::CreateFolder);
    Ok(())
}

/// Makes a folder where it is missing, with mode 0700, and those above it, as the umask says; and
/// makes their names survive the machine's power failing.
pub(crate) fn create_dirs(path: &Path) -> Result<()> {
    create_folders_with(path, 0o700)
}

fn create_folders_with(path: &Path, mode: u32) -> Result<()> {
    let parent = parent_dir(path);
    if path.is_dir() {
        // Whoever made it may have died before this. If it is not ours, it may not be allowed.
        let _ = sync_dir(parent);
        return Ok(());
    }
    create_folders_with(parent, 0o777)?;
    match create_folder_with(path, mode) {
        Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => {}
        created => created?,
    }
    match sync_dir(parent) {
        // A folder that may be written to, and not be read.
        Err(error) if error.io_kind() == Some(io::ErrorKind::PermissionDenied) => Ok(()),
        synced => synced,
    }
}

/// Makes the names in a folder survive the machine's power failing.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| Error::storage("sync", path, error))?;
    #[cfg(test)]
    journal::note(path, journal::Op::SyncFolder);
    Ok(())
}

/// Gives a file another name in the same folder; what has that name is gone.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    #[cfg(test)]
    journal::note_two(from, to, |from, to| journal::Op::Rename { from, to });
    Ok(())
}

/// Gives a file another name in the same folder, which nothing has yet.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    #[cfg(test)]
    journal::note_two(from, to, |from, to| journal::Op::Link { from, to });
    Ok(())
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    #[cfg(test)]
    journal::note(path, journal::Op::Remove);
    Ok(())
}

/// Removes a folder with all that is in it.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path)?;
    #[cfg(test)]
    journal::note(path, journal::Op::RemoveFolder);
    Ok(())
}

/// The folder that holds `path`.
pub(crate) fn parent_dir(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Writes a file whole, or not at all, and makes it survive the machine's power failing.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let (temporary, file) = open_temporary(path)?;
    let written = fill(&temporary, file, bytes).and_then(|()| {
        rename(&temporary, path).map_err(|error| Error::storage("replace", path, error))
    });
    if written.is_err() {
        let _ = remove_file(&temporary);
    }
    written?;
    sync_dir(parent_dir(path))
}

/// Removes what writes that were broken off have left for the files in `folder` whose names begin
/// with `name`. Only for whoever alone writes them.
pub(crate) fn remove_temporary(dir: &Path, name: &str) {
    let prefix = format!(".{name}");
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = remove_file(&entry.path());
        }
    }
}

fn open_temporary(path: &Path) -> Result<(PathBuf, File)> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}-{serial}", std::process::id()));
        let temporary = parent_dir(path).join(name);
        match open_new(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            // Left behind by a process of the same id, which died.
            Err(Error::Storage { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            }
            Err(error) => return Err(error),
        }
    }
}

fn fill(path: &Path, file: File, bytes: &[u8]) -> Result<()> {
    (&file)
        .write_all(bytes)
        .map_err(|error| Error::storage("write", path, error))?;
    file.sync_all()
        .map_err(|error| Error::storage("sync", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::mpsc;

    fn here() -> &'static Path {
        Path::new("here")
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_error_and_costs_no_thread() {
        let disk = Disk::new();
        for _ in 0..20 {
            let error = disk
                .run("test", here(), || -> Result<()> { panic!("on purpose") })
                .await
                .unwrap_err();
            assert_eq!(error.to_string(), "cannot test here");
        }
        let name = disk
            .run("test", here(), || {
                Ok(std::thread::current().name().map(str::to_owned))
            })
            .await
            .unwrap();
        assert!(name.unwrap().starts_with("moat-disk-"));
        assert!(disk.pool.lock().threads <= 4);
    }

    #[tokio::test]
    async fn jobs_that_hang_hold_up_neither_other_jobs_nor_the_drop_of_the_pool() {
        let disk = Disk::new();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let hung: Vec<_> = (0..3)
            .map(|_| {
                let (disk, gate) = (disk.clone(), gate.clone());
                async move {
                    disk.run("hang", here(), move || {
                        let _ = gate.lock().unwrap().recv();
                        Ok(())
                    })
                    .await
                }
            })
            .collect();
        let mut hung = Box::pin(futures::future::join_all(hung));
        assert!(futures::poll!(&mut hung).is_pending());
        for n in 0..100 {
            assert_eq!(disk.run("go", here(), move || Ok(n)).await.unwrap(), n);
        }
        drop((hung, disk));
        drop(release);
    }

    #[tokio::test]
    async fn more_jobs_than_threads_are_all_done() {
        let disk = Disk::with_threads("moat-test", 2);
        let jobs = (0..200).map(|n| {
            let disk = disk.clone();
            async move { disk.run("go", here(), move || Ok(n)).await.unwrap() }
        });
        let done = futures::future::join_all(jobs).await;
        assert_eq!(done, (0..200).collect::<Vec<_>>());
        assert!(disk.pool.lock().threads <= 2);
    }

    #[test]
    fn a_later_job_is_run_when_it_is_due_and_not_before() {
        let disk = Disk::with_threads("moat-test", 1);
        let (done, order) = mpsc::channel();
        let begin = Instant::now();
        for (name, delay) in [("second", 1200), ("first", 60)] {
            let done = done.clone();
            disk.later(Duration::from_millis(delay), move || {
                done.send((name, begin.elapsed())).unwrap();
            })
            .unwrap();
        }
        disk.later(Duration::MAX, || panic!("never")).unwrap();
        let (first, second) = (order.recv().unwrap(), order.recv().unwrap());
        assert_eq!((first.0, second.0), ("first", "second"));
        assert!(first.1 >= Duration::from_millis(60), "{first:?}");
        assert!(second.1 >= Duration::from_millis(1200), "{second:?}");
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.json");
        for text in ["one", "another"] {
            write_atomic(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(mode(&path), 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

        let missing = dir.path().join("missing/run.json");
        let error = write_atomic(&missing, b"x").unwrap_err();
        assert!(error.to_string().starts_with("cannot create "), "{error}");
    }

    #[test]
    fn a_link_in_place_of_a_file_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("run.json"), dir.path().join("victim"));
        std::fs::write(&victim, "precious").unwrap();
        symlink(&victim, &path).unwrap();
        write_atomic(&path, b"record").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert!(path.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name| dir.path().join(name);
        std::fs::write(at("file"), "x").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("missing", at("dangling")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(at("fifo"))
            .status();
        assert!(made.unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();

        for write in [false, true] {
            open_existing(&at("file"), write).unwrap();
            for name in ["folder", "link", "dangling", "fifo", "socket"] {
                let error = open_existing(&at(name), write).unwrap_err();
                assert!(
                    error.chain().contains("not a regular file"),
                    "{name}: {}",
                    error.chain()
                );
            }
            let error = open_existing(Path::new("/dev/null"), write).unwrap_err();
            assert!(error.chain().contains("not a regular file: a device"));
        }
        for name in ["file", "folder", "link", "dangling", "fifo"] {
            assert!(open_new(&at(name)).is_err(), "{name}");
        }
        assert!(!at("missing").exists());
    }

    #[test]
    fn what_is_made_is_for_its_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        create_dir(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        assert!(create_dir(&dir).is_err());
        open_new(&dir.join("file")).unwrap();
        assert_eq!(mode(&dir.join("file")), 0o600);
        sync_dir(&dir).unwrap();
        assert_eq!(parent_dir(Path::new("file")), Path::new("."));
    }
}

//! The default sink: one file of JSON lines for each run.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use crate::audit::scan::Mark;
use crate::audit::{Batch, LOG_FILE, Start, exec_file};
use crate::disk::{self, Disk, File};
use crate::error::{Error, Result};
use crate::outcome::Seal;
use crate::sink::jsonl::encoder::Encoder;
use crate::sink::jsonl::witness::Witness;
use crate::sink::jsonl::writer::{Syncer, Writer};
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use crate::spec::RunId;

#[cfg(test)]
mod crash;
mod encoder;
pub(crate) mod output;
mod recovery;
mod witness;
mod writer;

/// The default sink: `logs.jsonl` in each run's folder, in the format of `docs/audit-format.md`, and
/// beside it `exec-1.jsonl` and so on for further processes in its container.
///
/// What was appended is written before [`RunLog::append`] returns: it survives the death of this
/// process. When it survives that of the machine is [`Durability`]. The file has mode 0600, and
/// is locked while it is open. All I/O is on a few threads of its own, which a clone shares.
#[derive(Debug, Clone)]
pub struct Jsonl {
    durability: Durability,
    disk: Disk,
    /// For syncs that nobody waits for.
    background: Disk,
    witness: Witness,
}

/// When the records in a log survive the machine's power failing, beyond their being written.
///
/// What is written survives the death of this process at any time. A log is always synced when it
/// is opened, when it is resumed, when it is sealed, and by [`RunLog::sync`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// This long after they were appended, at the latest. The default is 1 second.
    ///
    /// [`Duration::MAX`] leaves it to the operating system.
    Interval(Duration),
    /// When [`RunLog::append`] returns.
    Always,
}

impl Default for Durability {
    fn default() -> Self {
        Self::Interval(Duration::from_secs(1))
    }
}

impl Jsonl {
    /// The sink, with the default [`Durability`].
    pub fn new() -> Self {
        Self::with_durability(Durability::default())
    }

    /// The sink, with this durability.
    pub fn with_durability(durability: Durability) -> Self {
        Self {
            durability,
            disk: Disk::new(),
            background: Disk::with_threads("moat-sync", 2),
            witness: Witness::default(),
        }
    }

    /// Takes the file at `path` for one that another process has written.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn forget(&self, path: &Path) {
        self.witness.forget(path);
    }

    fn syncer(&self, file: File, path: &Path) -> Syncer {
        Syncer::new(file, path, self.durability, self.background.clone())
    }

    fn log(&self, writer: Writer, path: PathBuf) -> Box<dyn RunLog> {
        Box::new(Log {
            writer: Some(Box::new(writer)),
            disk: self.disk.clone(),
            path,
        })
    }
}

impl Default for Jsonl {
    fn default() -> Self {
        Self::new()
    }
}

fn log_path(place: &RunPlace) -> PathBuf {
    match place.exec {
        None => place.dir.join(LOG_FILE),
        Some(number) => place.dir.join(exec_file(number)),
    }
}

#[async_trait]
impl LogSink for Jsonl {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let path = log_path(place);
        let (run, start, sink, file) =
            (place.run.clone(), start.clone(), self.clone(), path.clone());
        let writer = self
            .disk
            .run("create", &path, move || sink.create(&run, &file, &start))
            .await?;
        Ok(self.log(writer, path))
    }

    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed> {
        let path = log_path(place);
        let (run, sink, file) = (place.run.clone(), self.clone(), path.clone());
        self.disk
            .run("resume", &path, move || sink.recover(&run, file, visit))
            .await
    }

    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        Some(log_path(place))
    }
}

impl Jsonl {
    fn create(&self, run: &RunId, path: &Path, start: &Start) -> Result<Writer> {
        let file = disk::open_new(path).map_err(|error| match error {
            Error::Storage { source, path, .. }
                if source.kind() == io::ErrorKind::AlreadyExists =>
            {
                Error::RunExists {
                    run: run.clone(),
                    path,
                }
            }
            error => error,
        })?;
        lock(file.as_std(), run, path)?;
        let mut writer = Writer::new(
            self.syncer(file, path),
            Encoder::new(Mark::default()),
            self.witness.clone(),
        );
        writer.start(start)?;
        writer.sync()?;
        // The file's name is in the run's folder, and that one's in the root.
        let dir = disk::parent_dir(path);
        disk::sync_dir(dir)?;
        disk::sync_dir(disk::parent_dir(dir))?;
        Ok(writer)
    }
}

/// Takes the lock of the file at `path`, which `file` is.
fn lock(file: &std::fs::File, run: &RunId, path: &Path) -> Result<()> {
    let owned = || Error::Owned {
        run: run.clone(),
        path: path.to_owned(),
    };
    let fail = |error| Error::storage("lock", path, error);
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => owned(),
        TryLockError::Error(error) => fail(error),
    })?;
    // Between the open and the lock another owner may have moved the file away.
    match disk::is_at(file, path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(owned()),
        Err(error) => Err(fail(error)),
    }
}

/// A file that is open.
#[derive(Debug)]
struct Log {
    /// `None` while a job has it: also for ever, if nobody has waited for that job's end.
    writer: Option<Box<Writer>>,
    disk: Disk,
    path: PathBuf,
}

impl Log {
    async fn with<T: Send + 'static>(
        &mut self,
        operation: &'static str,
        job: impl FnOnce(&mut Writer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut writer = self.writer.take().ok_or_else(|| {
            let dropped = "an earlier call on this log was dropped before its end";
            Error::storage(operation, &self.path, io::Error::other(dropped))
        })?;
        let (writer, result) = self
            .disk
            .run(operation, &self.path, move || {
                let result = job(&mut writer);
                Ok((writer, result))
            })
            .await?;
        self.writer = Some(writer);
        result
    }
}

#[async_trait]
impl RunLog for Log {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.with("append to", move |writer| writer.append(&batch))
            .await
    }

    async fn sync(&mut self) -> Result<()> {
        self.with("sync", |writer| writer.sync()).await
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        self.with("seal", move |writer| writer.seal(seal)).await
    }
}

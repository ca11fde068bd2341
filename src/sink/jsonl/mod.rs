//! The default sink: one file of JSON lines per run.

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
#[cfg(feature = "sign")]
use crate::sign::SigningKey;
use crate::sink::jsonl::encoder::Encoder;
use crate::sink::jsonl::ledger::WriteLedger;
use crate::sink::jsonl::writer::{Syncer, Writer};
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use crate::spec::RunId;

#[cfg(test)]
mod crash;
mod encoder;
mod ledger;
pub(crate) mod output;
mod recovery;
mod writer;

/// The default sink: `logs.jsonl` in the directory of each run.
///
/// The format is that of `docs/audit-format.md`. Execs have files in the same directory:
/// `exec-1.jsonl` and so on.
///
/// Records are written before [`RunLog::append`] returns, so they survive the death of this
/// process. [`Durability`] sets when they survive a power loss. Files have mode 0600, and are
/// locked while they are open. I/O runs on dedicated threads, which clones share.
#[derive(Debug, Clone)]
pub struct Jsonl {
    durability: Durability,
    disk: Disk,
    /// Threads for periodic syncs, which no caller awaits.
    sync_threads: Disk,
    ledger: WriteLedger,
    #[cfg(feature = "sign")]
    key: Option<SigningKey>,
}

/// The time from which written records survive a power loss.
///
/// Written records survive the death of this process in any case. A log is always synced when it is
/// opened, resumed and sealed, and by [`RunLog::sync`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// At most this long after the records were appended. The default is 1 s. Fast output is synced
    /// more often, once 8 MiB are written.
    ///
    /// [`Duration::MAX`] leaves syncs to the operating system.
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
    /// Creates the sink with the default [`Durability`].
    pub fn new() -> Self {
        Self::with_durability(Durability::default())
    }

    /// Creates the sink with this durability.
    pub fn with_durability(durability: Durability) -> Self {
        Self {
            durability,
            disk: Disk::new(),
            sync_threads: Disk::with_threads("moat-sync", 2),
            ledger: WriteLedger::default(),
            #[cfg(feature = "sign")]
            key: None,
        }
    }

    /// Signs each sealed file with this key.
    ///
    /// The signature of `logs.jsonl` is in `logs.jsonl.sig`. It is written after the seal is
    /// published, so no caller waits for the signer: see [`sign`](crate::sign).
    ///
    /// Only the sink of the manager signs, or the required sink of a
    /// [`Fanout`](crate::sink::Fanout): a key of a best-effort sink signs nothing.
    #[cfg(feature = "sign")]
    #[must_use]
    pub fn signed_by(mut self, key: SigningKey) -> Self {
        self.key = Some(key);
        self
    }

    /// Treats the file at `path` as written by another process.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn forget(&self, path: &Path) {
        self.ledger.forget(path);
    }

    fn syncer(&self, file: File, path: &Path) -> Syncer {
        Syncer::new(file, path, self.durability, self.sync_threads.clone())
    }

    fn log(&self, writer: Writer, path: PathBuf) -> Box<dyn RunLog> {
        Box::new(JsonlLog {
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

    #[cfg(feature = "sign")]
    fn signing_key(&self) -> Option<SigningKey> {
        self.key.clone()
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
            self.ledger.clone(),
        );
        writer.start(start)?;
        writer.sync()?;
        // The name of the file is in the run's directory, whose name is in the root.
        let dir = disk::parent_dir(path);
        disk::sync_dir(dir)?;
        disk::sync_dir(disk::parent_dir(dir))?;
        Ok(writer)
    }
}

/// Locks `file`, which was opened from `path`.
fn lock(file: &std::fs::File, run: &RunId, path: &Path) -> Result<()> {
    let owned = || Error::Owned {
        run: run.clone(),
        path: path.to_owned(),
    };
    let fail = |error| Error::storage("lock", path, error);
    disk::lock_log(file).map_err(|error| match error {
        TryLockError::WouldBlock => owned(),
        TryLockError::Error(error) => fail(error),
    })?;
    // Another owner may have moved the file away between the open and the lock.
    match disk::is_at(file, path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(owned()),
        Err(error) => Err(fail(error)),
    }
}

/// An open file.
#[derive(Debug)]
struct JsonlLog {
    /// `None` while a job uses the writer, and after a job that did not return it.
    writer: Option<Box<Writer>>,
    disk: Disk,
    path: PathBuf,
}

impl JsonlLog {
    async fn with<T: Send + 'static>(
        &mut self,
        operation: &'static str,
        job: impl FnOnce(&mut Writer) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut writer = self.writer.take().ok_or_else(|| {
            let unfinished = "an earlier call on this log did not finish";
            Error::storage(operation, &self.path, io::Error::other(unfinished))
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
impl RunLog for JsonlLog {
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

//! The writer of a file, and its syncer.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::audit::{Batch, Start, Tally};
use crate::disk::{self, Disk, File};
use crate::error::{Error, Result};
use crate::outcome::{Seal, Verdict};
use crate::sink::jsonl::Durability;
use crate::sink::jsonl::encoder::Encoder;
use crate::sink::jsonl::ledger::{FileStamp, WriteLedger, WrittenPrefix};

/// The size of the buffer at which it is written before the end of the batch.
const FLUSH_BYTES: usize = 1 << 20;
/// The number of written bytes at which a sync does not wait for the end of its interval.
///
/// The seal waits for the sync of all bytes that are not synced yet.
const EARLY_SYNC_BYTES: usize = 8 << 20;

/// The only writer of a file. It holds the lock of the file.
///
/// A job on a disk thread owns the writer while it runs, so no two jobs write at once.
#[derive(Debug)]
pub(super) struct Writer {
    syncer: Arc<Syncer>,
    encoder: Encoder,
    sealed: bool,
    /// The content that is certainly in the file. A failed write may have added more.
    written: WrittenPrefix,
    /// The stamp of the file after the last write.
    stamp: Option<FileStamp>,
    /// Set once the stamp has changed between two writes: the file was changed externally.
    touched: bool,
    /// The number of bytes written since the last early sync.
    since_early_sync: usize,
    ledger: WriteLedger,
}

impl Writer {
    /// Creates a writer that appends the records of `encoder` to the locked file of `syncer`.
    pub(super) fn new(syncer: Syncer, encoder: Encoder, ledger: WriteLedger) -> Self {
        ledger.forget(&syncer.path);
        Self {
            written: encoder.written(),
            stamp: FileStamp::of(syncer.file.as_std()),
            touched: false,
            since_early_sync: 0,
            syncer: Arc::new(syncer),
            encoder,
            sealed: false,
            ledger,
        }
    }

    /// Writes the first record.
    pub(super) fn start(&mut self, start: &Start) -> Result<()> {
        self.encoder
            .start(start)
            .map_err(|error| self.syncer.fail("write", error))?;
        self.flush()
    }

    /// Writes the records of a batch.
    pub(super) fn append(&mut self, batch: &Batch) -> Result<()> {
        self.check("append to")?;
        for record in batch.iter() {
            self.encoder
                .record(record)
                .map_err(|error| self.syncer.fail("append to", error))?;
            if self.encoder.bytes().len() >= FLUSH_BYTES {
                self.flush()?;
            }
        }
        self.flush()?;
        match self.syncer.durability {
            Durability::Always => self.syncer.sync(),
            Durability::Interval(Duration::MAX) => Ok(()),
            Durability::Interval(interval) => {
                if self.since_early_sync >= EARLY_SYNC_BYTES && Syncer::sync_early(&self.syncer) {
                    self.since_early_sync = 0;
                }
                Syncer::sync_within(&self.syncer, interval)
            }
        }
    }

    /// Makes written records survive a power loss.
    pub(super) fn sync(&self) -> Result<()> {
        self.syncer.sync()
    }

    /// Writes the seal, and syncs the file.
    pub(super) fn seal(&mut self, mut seal: Seal) -> Result<Seal> {
        self.check("seal")?;
        let unknown_gaps = self.encoder.basis().unknown_gaps;
        if unknown_gaps > 0 {
            // A visitor gets no records that only a later version can read.
            seal.gaps += unknown_gaps;
            seal.verdict = Verdict::Gap;
        }
        if let Some(reason) = self.contradiction(&seal) {
            // Nothing is written: a wrong seal could not be undone.
            let error = io::Error::new(io::ErrorKind::InvalidInput, reason);
            return Err(self.syncer.fail("seal", error));
        }
        // A file that was removed, replaced or changed externally is not sealed.
        self.syncer.check_path()?;
        self.check_content()?;
        // The records are synced first: a seal that survives a power loss without its records would
        // be permanent damage.
        self.syncer.sync()?;
        let seal = self
            .encoder
            .seal(seal)
            .map_err(|error| self.syncer.fail("seal", error))?;
        self.flush()?;
        self.sealed = true;
        self.syncer.sync()?;
        self.syncer.check_path()?;
        Ok(seal)
    }

    /// Describes a contradiction between a seal and the records of the file.
    fn contradiction(&self, seal: &Seal) -> Option<String> {
        let sealed = Tally {
            records: seal.records,
            bytes: seal.bytes,
            gaps: seal.gaps,
        };
        let tally = self.encoder.tally();
        if sealed != tally {
            return Some(format!("the seal counts {sealed}, the file has {tally}"));
        }
        self.encoder.basis().contradiction(seal)
    }

    /// Fails if an earlier call has failed, or if the log is sealed.
    fn check(&self, operation: &'static str) -> Result<()> {
        self.syncer.check()?;
        if self.sealed {
            return Err(Error::storage(
                operation,
                &self.syncer.path,
                io::Error::new(io::ErrorKind::InvalidInput, "the log is sealed"),
            ));
        }
        Ok(())
    }

    /// Writes the buffer.
    fn flush(&mut self) -> Result<()> {
        if self.encoder.bytes().is_empty() {
            return Ok(());
        }
        self.check_stamp();
        (&self.syncer.file)
            .write_all(self.encoder.bytes())
            .map_err(|error| self.syncer.fail("write", error))?;
        self.stamp = FileStamp::of(self.syncer.file.as_std());
        self.since_early_sync += self.encoder.bytes().len();
        self.encoder.clear();
        self.written = self.encoder.written();
        Ok(())
    }

    /// Sets `touched` if the file was changed externally since the last write.
    fn check_stamp(&mut self) {
        let now = FileStamp::of(self.syncer.file.as_std());
        self.touched |= now.is_none() || now != self.stamp;
    }

    /// Checks the content of the file, if its stamp shows an external change.
    fn check_content(&mut self) -> Result<()> {
        self.check_stamp();
        if !self.touched {
            return Ok(());
        }
        let file = self.syncer.file.as_std();
        let same = self.written.matches(file).and_then(|same| {
            let length = file.metadata()?.len();
            Ok(same && length == self.written.length)
        });
        match same {
            Ok(true) => Ok(()),
            Ok(false) => {
                let changed = "the file was changed externally";
                Err(self.syncer.fail("seal", io::Error::other(changed)))
            }
            Err(error) => Err(self.syncer.fail("read back", error)),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.sealed {
            self.ledger.record(&self.syncer.path, self.written.clone());
        }
        // A running sync or a forked child may keep the file open, but must not keep the lock.
        let _ = self.syncer.file.as_std().unlock();
    }
}

/// The syncer of a file. It keeps the first error, with which all later calls fail.
#[derive(Debug)]
pub(super) struct Syncer {
    file: File,
    path: PathBuf,
    durability: Durability,
    /// The threads for periodic syncs. Appends have other threads, because they must not wait.
    threads: Disk,
    state: Mutex<SyncState>,
    /// Held during a sync: the kernel reports an error to one of two concurrent syncs only.
    syncing: Mutex<()>,
}

#[derive(Debug, Default)]
struct SyncState {
    /// True if a sync is planned.
    planned: bool,
    /// True until the last early sync is done.
    early: bool,
    failure: Option<Failure>,
}

/// The first error of a log.
#[derive(Debug)]
struct Failure {
    operation: &'static str,
    kind: io::ErrorKind,
    text: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Syncer {
    pub(super) fn new(file: File, path: &Path, durability: Durability, threads: Disk) -> Self {
        Self {
            file,
            path: path.to_owned(),
            durability,
            threads,
            state: Mutex::default(),
            syncing: Mutex::default(),
        }
    }

    /// Fails if an earlier call has failed.
    fn check(&self) -> Result<()> {
        match &lock(&self.state).failure {
            None => Ok(()),
            Some(failure) => Err(Error::storage(
                failure.operation,
                &self.path,
                io::Error::new(
                    failure.kind,
                    format!("an earlier call failed: {}", failure.text),
                ),
            )),
        }
    }

    /// Checks that the path still leads to the file.
    fn check_path(&self) -> Result<()> {
        match disk::is_at(self.file.as_std(), &self.path) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.fail(
                "seal",
                io::Error::new(
                    io::ErrorKind::NotFound,
                    "the file was removed or replaced externally",
                ),
            )),
            Err(error) => Err(self.fail("seal", error)),
        }
    }

    /// Records the error if it is the first, and returns it with its operation and path.
    fn fail(&self, operation: &'static str, error: io::Error) -> Error {
        lock(&self.state).failure.get_or_insert_with(|| Failure {
            operation,
            kind: error.kind(),
            text: error.to_string(),
        });
        Error::storage(operation, &self.path, error)
    }

    /// Makes written records survive a power loss.
    fn sync(&self) -> Result<()> {
        let _syncing = lock(&self.syncing);
        self.check()?;
        self.file
            .sync_data()
            .map_err(|error| self.fail("sync", error))
    }

    /// Starts a sync of all written records. Returns false if the last early sync is not done.
    fn sync_early(this: &Arc<Self>) -> bool {
        if std::mem::replace(&mut lock(&this.state).early, true) {
            return false;
        }
        let weak = Arc::downgrade(this);
        let started = this.threads.run_later(Duration::ZERO, move || {
            if let Some(this) = weak.upgrade() {
                // The next call on the log returns the error.
                let _ = this.sync();
                lock(&this.state).early = false;
            }
        });
        if started.is_err() {
            lock(&this.state).early = false;
        }
        started.is_ok()
    }

    /// Plans a sync of all written records within `interval`.
    fn sync_within(this: &Arc<Self>, interval: Duration) -> Result<()> {
        if std::mem::replace(&mut lock(&this.state).planned, true) {
            return Ok(());
        }
        // A planned sync must not keep a dropped log open. Resuming the log syncs it.
        let weak = Arc::downgrade(this);
        let planned = this.threads.run_later(interval, move || {
            if let Some(this) = weak.upgrade() {
                lock(&this.state).planned = false;
                // The next call on the log returns the error.
                let _ = this.sync();
            }
        });
        match planned {
            Ok(()) => Ok(()),
            Err(_) => {
                lock(&this.state).planned = false;
                this.sync()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Event;
    use crate::audit::scan::Mark;
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    fn writer(file: fs::File, durability: Durability) -> Writer {
        let threads = Disk::with_threads("moat-test", 1);
        let syncer = Syncer::new(file.into(), Path::new("log"), durability, threads);
        Writer::new(
            syncer,
            Encoder::new(Mark::default()),
            WriteLedger::default(),
        )
    }

    fn note() -> Batch {
        let mut batch = Batch::new();
        batch.push_event(Event::Note {
            interaction: None,
            ts: crate::timestamp::Timestamp::now(),
            text: "a note".into(),
        });
        batch
    }

    fn eventually(condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_idle_log_is_synced() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = writer(file, Durability::Interval(Duration::from_secs(1)));
        for _ in 0..2 {
            writer.append(&note()).unwrap();
            assert!(lock(&writer.syncer.state).planned);
            eventually(|| !lock(&writer.syncer.state).planned);
        }
        writer.append(&note()).unwrap();
    }

    /// A pipe accepts writes, but no syncs.
    #[test]
    fn a_failed_periodic_sync_fails_each_later_call() {
        let (_reader, pipe) = io::pipe().unwrap();
        let file = fs::File::from(OwnedFd::from(pipe));
        let mut writer = writer(file, Durability::Interval(Duration::from_millis(1)));
        writer.append(&note()).unwrap();
        eventually(|| lock(&writer.syncer.state).failure.is_some());
        for error in [
            writer.append(&note()).unwrap_err(),
            writer.sync().unwrap_err(),
        ] {
            let text = error.chain();
            assert!(
                text.starts_with("cannot sync log: an earlier call failed"),
                "{text}"
            );
        }
    }

    #[test]
    fn durability_always_reports_a_failed_sync_at_once() {
        let (_reader, pipe) = io::pipe().unwrap();
        let file = fs::File::from(OwnedFd::from(pipe));
        let mut writer = writer(file, Durability::Always);
        let error = writer.append(&note()).unwrap_err();
        assert!(error.to_string().starts_with("cannot sync log"), "{error}");
    }

    #[test]
    fn dropping_the_writer_releases_the_lock() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = named.reopen().unwrap();
        file.try_lock().unwrap();
        let inherited = file.try_clone().unwrap();
        let writer = writer(file, Durability::default());
        assert!(named.as_file().try_lock().is_err());
        let syncing = Arc::clone(&writer.syncer);
        drop(writer);
        named.as_file().try_lock().unwrap();
        drop((syncing, inherited));
    }
}

//! The one who writes a file, and the one who syncs it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::audit::{Batch, Start, Tally};
use crate::disk::{self, Disk, File};
use crate::error::{Error, Result};
use crate::outcome::Seal;
use crate::sink::jsonl::Durability;
use crate::sink::jsonl::encoder::Encoder;
use crate::sink::jsonl::witness::{StdinChunk, Trace, Witness};

/// A buffer that is this full is written before the batch is at its end.
const FULL: usize = 1 << 20;

/// The only holder of what it takes to write to a file, and of its lock.
///
/// A job on a disk thread has it while it runs, so whoever has it not cannot write.
#[derive(Debug)]
pub(super) struct Writer {
    syncer: Arc<Syncer>,
    encoder: Encoder,
    sealed: bool,
    /// What is in the file for certain; after a write that failed there may be more.
    written: StdinChunk,
    /// How the last write has left the file; and whether it was found otherwise since.
    trace: Option<Trace>,
    touched: bool,
    witness: Witness,
}

impl Writer {
    /// Writes to the end of `file`, whose lock is held, and where `encoder` goes on.
    pub(super) fn new(syncer: Syncer, encoder: Encoder, witness: Witness) -> Self {
        witness.forget(&syncer.path);
        Self {
            written: encoder.written(),
            trace: Trace::of(syncer.file.as_std()),
            touched: false,
            syncer: Arc::new(syncer),
            encoder,
            sealed: false,
            witness,
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
            if self.encoder.bytes().len() >= FULL {
                self.flush()?;
            }
        }
        self.flush()?;
        match self.syncer.durability {
            Durability::Always => self.syncer.sync(),
            Durability::Interval(interval) => Syncer::sync_within(&self.syncer, interval),
        }
    }

    /// Makes what was written survive the machine's power failing.
    pub(super) fn sync(&self) -> Result<()> {
        self.syncer.sync()
    }

    /// Writes the last record, and makes it stay.
    pub(super) fn seal(&mut self, seal: Seal) -> Result<Seal> {
        self.check("seal")?;
        let told = Tally {
            records: seal.records,
            bytes: seal.bytes,
            gaps: seal.gaps,
        };
        let tally = self.encoder.tally();
        if told != tally {
            // Nothing is written: a seal that does not hold could not be taken back.
            return Err(self.syncer.fail(
                "seal",
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("the seal counts {told}, the file has {tally}"),
                ),
            ));
        }
        // A file that someone has removed, or put another one in the place of, seals nothing; nor
        // does one that is not what was written.
        self.syncer.check_place()?;
        self.check_bytes()?;
        // Before the seal, so that no failure of the power leaves it without all that it seals:
        // that would be a damaged seal, which nothing may change.
        self.syncer.sync()?;
        let seal = self
            .encoder
            .seal(seal)
            .map_err(|error| self.syncer.fail("seal", error))?;
        self.flush()?;
        self.sealed = true;
        self.syncer.sync()?;
        self.syncer.check_place()?;
        Ok(seal)
    }

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

    fn flush(&mut self) -> Result<()> {
        if self.encoder.bytes().is_empty() {
            return Ok(());
        }
        self.look();
        (&self.syncer.file)
            .write_all(self.encoder.bytes())
            .map_err(|error| self.syncer.fail("write", error))?;
        self.trace = Trace::of(self.syncer.file.as_std());
        self.encoder.clear();
        self.written = self.encoder.written();
        Ok(())
    }

    /// Sees whether another one than this was at the file since the last write.
    fn look(&mut self) {
        let now = Trace::of(self.syncer.file.as_std());
        self.touched |= now.is_none() || now != self.trace;
    }

    /// Checks that the file is what was written. One that nobody was at is.
    fn check_bytes(&mut self) -> Result<()> {
        self.look();
        if !self.touched {
            return Ok(());
        }
        let file = self.syncer.file.as_std();
        let same = self.written.is_in(file).and_then(|same| {
            let length = file.metadata()?.len();
            Ok(same && length == self.written.length)
        });
        match same {
            Ok(true) => Ok(()),
            Ok(false) => {
                let changed = "someone has changed it: it is not what was written";
                Err(self.syncer.fail("seal", io::Error::other(changed)))
            }
            Err(error) => Err(self.syncer.fail("read back", error)),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.sealed {
            self.witness.leave(&self.syncer.path, self.written.clone());
        }
        // A sync may have the file in hand for a while yet, and a child that was forked even
        // longer: the lock must not last as long as they do.
        let _ = self.syncer.file.as_std().unlock();
    }
}

/// Syncs a file, beside the one who writes it, and keeps its first error for both.
#[derive(Debug)]
pub(super) struct Syncer {
    file: File,
    path: PathBuf,
    durability: Durability,
    /// The threads for syncs that nobody waits for: they must not keep appends waiting.
    threads: Disk,
    state: Mutex<State>,
    /// Held during a sync: the kernel tells an error once, so two at a time would share it.
    one: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a sync is to come.
    planned: bool,
    failure: Option<Failure>,
}

/// The first error of a log, which all later calls get.
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
            one: Mutex::default(),
        }
    }

    /// Fails if anything has failed before.
    fn check(&self) -> Result<()> {
        match &lock(&self.state).failure {
            None => Ok(()),
            Some(failure) => Err(Error::storage(
                failure.operation,
                &self.path,
                io::Error::new(
                    failure.kind,
                    format!("this log has failed before: {}", failure.text),
                ),
            )),
        }
    }

    /// Checks that the file is still what its path leads to.
    fn check_place(&self) -> Result<()> {
        match disk::is_at(self.file.as_std(), &self.path) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.fail(
                "seal",
                io::Error::new(
                    io::ErrorKind::NotFound,
                    "someone has removed or replaced it",
                ),
            )),
            Err(error) => Err(self.fail("seal", error)),
        }
    }

    /// Keeps the first error.
    fn fail(&self, operation: &'static str, error: io::Error) -> Error {
        lock(&self.state).failure.get_or_insert_with(|| Failure {
            operation,
            kind: error.kind(),
            text: error.to_string(),
        });
        Error::storage(operation, &self.path, error)
    }

    pub(super) fn sync(&self) -> Result<()> {
        let _one = lock(&self.one);
        self.check()?;
        self.file
            .sync_data()
            .map_err(|error| self.fail("sync", error))
    }

    /// Sees to it that what is written by now is synced within `interval`.
    fn sync_within(this: &Arc<Self>, interval: Duration) -> Result<()> {
        if std::mem::replace(&mut lock(&this.state).planned, true) {
            return Ok(());
        }
        // A log that is dropped is not kept open for its sync: the one who resumes it syncs it.
        let weak = Arc::downgrade(this);
        let planned = this.threads.later(interval, move || {
            if let Some(this) = weak.upgrade() {
                lock(&this.state).planned = false;
                // The next call on the log gets the error.
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
        Writer::new(syncer, Encoder::new(Mark::default()), Witness::default())
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

    fn eventually(what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_log_that_is_idle_is_synced_all_the_same() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = writer(file, Durability::Interval(Duration::from_secs(1)));
        for _ in 0..2 {
            writer.append(&note()).unwrap();
            assert!(lock(&writer.syncer.state).planned);
            eventually(|| !lock(&writer.syncer.state).planned);
        }
        writer.append(&note()).unwrap();
    }

    /// A pipe takes writes, and cannot be synced.
    #[test]
    fn a_sync_that_fails_behind_the_log_fails_each_later_call_on_it() {
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
            assert!(text.starts_with("cannot sync log: this log has"), "{text}");
        }
    }

    #[test]
    fn durability_always_tells_at_once_that_a_batch_could_not_be_synced() {
        let (_reader, pipe) = io::pipe().unwrap();
        let file = fs::File::from(OwnedFd::from(pipe));
        let mut writer = writer(file, Durability::Always);
        let error = writer.append(&note()).unwrap_err();
        assert!(error.to_string().starts_with("cannot sync log"), "{error}");
    }

    #[test]
    fn the_lock_is_gone_with_the_writer_whoever_else_has_the_file_open() {
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

//! A sink that keeps records in memory, for tests.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::audit::{Batch, Event, Record, Start};
use crate::error::{Error, Result, SinkError};
use crate::outcome::{Seal, Stream};
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use crate::spec::RunId;

/// A sink that keeps records in memory, for tests. Clones share the logs.
///
/// `Memory` fulfills the contract of [`LogSink`], except that logs live only as long as the last
/// clone. Memory use is unbounded.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    logs: Arc<Mutex<HashMap<Key, StoredLog>>>,
}

/// The id of a run, and the number of the exec if the log is an exec's.
type Key = (RunId, Option<u32>);

fn key(place: &RunPlace) -> Key {
    (place.run.clone(), place.exec)
}

#[derive(Debug, Default)]
struct StoredLog {
    records: Vec<Record>,
    seal: Option<Seal>,
    open: bool,
    /// Set to make the next call on the log fail.
    fail_next: bool,
}

impl Memory {
    /// Creates a sink without logs.
    pub fn new() -> Self {
        Self::default()
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<Key, StoredLog>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runs that have a log, sorted.
    pub fn runs(&self) -> Vec<RunId> {
        let mut runs: Vec<_> = self.logs().keys().map(|(run, _)| run.clone()).collect();
        runs.sort();
        runs.dedup();
        runs
    }

    /// The records of a run's log, without the seal. Empty if the run has no log.
    pub fn records(&self, run: &RunId) -> Vec<Record> {
        self.records_of(&(run.clone(), None))
    }

    /// The records of the log of exec `number`, from 1, without the seal.
    ///
    /// Empty if the exec has no log.
    pub fn exec_records(&self, run: &RunId, number: u32) -> Vec<Record> {
        self.records_of(&(run.clone(), Some(number)))
    }

    fn records_of(&self, key: &Key) -> Vec<Record> {
        let logs = self.logs();
        logs.get(key)
            .map(|stored| stored.records.clone())
            .unwrap_or_default()
    }

    /// The output of a run on one stream, with newlines.
    pub fn output(&self, run: &RunId, stream: Stream) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in self
            .logs()
            .get(&(run.clone(), None))
            .into_iter()
            .flat_map(|stored| &stored.records)
        {
            if let Record::Output(output) = record
                && output.stream == stream
            {
                bytes.extend_from_slice(&output.bytes);
                if !output.partial {
                    bytes.push(b'\n');
                }
            }
        }
        bytes
    }

    /// The seal of a run's log; `None` if it is not sealed.
    pub fn seal(&self, run: &RunId) -> Option<Seal> {
        self.logs().get(&(run.clone(), None))?.seal.clone()
    }

    /// Makes the next call on a run's open log fail.
    ///
    /// After the failure the log accepts no records, and can be resumed.
    pub fn fail(&self, run: &RunId) {
        if let Some(stored) = self.logs().get_mut(&(run.clone(), None)) {
            stored.fail_next = true;
        }
    }
}

#[async_trait]
impl LogSink for Memory {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let mut logs = self.logs();
        if logs.contains_key(&key(place)) {
            return Err(Error::RunExists {
                run: place.run.clone(),
                path: PathBuf::from("memory"),
            });
        }
        let stored = StoredLog {
            records: vec![Record::Event(Event::Start(Box::new(start.clone())))],
            open: true,
            ..StoredLog::default()
        };
        logs.insert(key(place), stored);
        Ok(self.log(place))
    }

    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed> {
        let (records, seal) = {
            let mut logs = self.logs();
            let Some(stored) = logs.get_mut(&key(place)) else {
                return Ok(Resumed::Absent);
            };
            if stored.open {
                return Err(Error::Owned {
                    run: place.run.clone(),
                    path: PathBuf::from("memory"),
                });
            }
            stored.open = stored.seal.is_none();
            stored.fail_next = false;
            (stored.records.clone(), stored.seal.clone())
        };
        // Unlocked first, because the visitor may call this sink.
        let log = seal.is_none().then(|| self.log(place));
        records.iter().filter_map(Record::as_ref).for_each(visit);
        Ok(match (seal, log) {
            (None, Some(log)) => Resumed::Open { log, torn: None },
            (seal, _) => seal.map_or(Resumed::Absent, Resumed::Sealed),
        })
    }
}

impl Memory {
    fn log(&self, place: &RunPlace) -> Box<dyn RunLog> {
        Box::new(MemoryLog {
            memory: self.clone(),
            key: key(place),
            failed: false,
        })
    }
}

/// An open log.
#[derive(Debug)]
struct MemoryLog {
    memory: Memory,
    key: Key,
    failed: bool,
}

impl MemoryLog {
    fn with<T>(
        &mut self,
        operation: &'static str,
        operate: impl FnOnce(&mut StoredLog) -> T,
    ) -> Result<T> {
        let fail = |reason: &str| {
            Err(SinkError::new(reason)
                .operation(operation)
                .run(&self.key.0)
                .into())
        };
        let mut logs = self.memory.logs();
        let stored = match logs.get_mut(&self.key) {
            Some(stored) if stored.seal.is_none() => stored,
            _ => return fail("the log is sealed"),
        };
        self.failed |= std::mem::take(&mut stored.fail_next);
        if self.failed {
            return fail("injected failure");
        }
        Ok(operate(stored))
    }
}

impl Drop for MemoryLog {
    fn drop(&mut self) {
        if let Some(stored) = self.memory.logs().get_mut(&self.key) {
            stored.open = false;
        }
    }
}

#[async_trait]
impl RunLog for MemoryLog {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.with("append to", |stored| {
            stored.records.extend(batch.iter().map(Record::from));
        })
    }

    async fn sync(&mut self) -> Result<()> {
        self.with("sync", |_| ())
    }

    async fn seal(&mut self, mut seal: Seal) -> Result<Seal> {
        self.with("seal", |stored| {
            seal.sha256 = String::new();
            stored.seal = Some(seal.clone());
            seal
        })
    }
}

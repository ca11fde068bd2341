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

/// A sink that keeps records in memory, for tests. A clone sees the same logs.
///
/// It keeps the contract, but for what it says of the death of the process and of the machine: its
/// logs live as long as its last clone. Nothing bounds what it takes.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    logs: Arc<Mutex<HashMap<Key, SkipReason>>>,
}

/// A run, and the number of the further process, if it is the log of one.
type Key = (RunId, Option<u32>);

fn key(place: &RunPlace) -> Key {
    (place.run.clone(), place.exec)
}

#[derive(Debug, Default)]
struct SkipReason {
    records: Vec<Record>,
    seal: Option<Seal>,
    open: bool,
    /// Whether the next call on the log is to fail.
    spoiled: bool,
}

impl Memory {
    /// A sink without logs.
    pub fn new() -> Self {
        Self::default()
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<Key, SkipReason>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runs that have a log, sorted.
    pub fn runs(&self) -> Vec<RunId> {
        let mut runs: Vec<_> = self.logs().keys().map(|(run, _)| run.clone()).collect();
        runs.sort();
        runs.dedup();
        runs
    }

    /// The records of a run's log, but for its seal; empty if there is none.
    pub fn records(&self, run: &RunId) -> Vec<Record> {
        self.records_of(&(run.clone(), None))
    }

    /// The same, of the log of a further process in the run's container, by its number from 1.
    pub fn exec_records(&self, run: &RunId, number: u32) -> Vec<Record> {
        self.records_of(&(run.clone(), Some(number)))
    }

    fn records_of(&self, key: &Key) -> Vec<Record> {
        let logs = self.logs();
        logs.get(key)
            .map(|kept| kept.records.clone())
            .unwrap_or_default()
    }

    /// What a run has printed on one stream, newlines included.
    pub fn output(&self, run: &RunId, stream: Stream) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in self
            .logs()
            .get(&(run.clone(), None))
            .into_iter()
            .flat_map(|kept| &kept.records)
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

    /// The seal of a run's log, if it has one.
    pub fn seal(&self, run: &RunId) -> Option<Seal> {
        self.logs().get(&(run.clone(), None))?.seal.clone()
    }

    /// Makes the next call on a run's log fail, if it is open: the log takes nothing more then,
    /// and can be resumed.
    pub fn fail(&self, run: &RunId) {
        if let Some(kept) = self.logs().get_mut(&(run.clone(), None)) {
            kept.spoiled = true;
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
        let kept = SkipReason {
            records: vec![Record::Event(Event::Start(Box::new(start.clone())))],
            open: true,
            ..SkipReason::default()
        };
        logs.insert(key(place), kept);
        Ok(self.log(place))
    }

    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed> {
        let (records, seal) = {
            let mut logs = self.logs();
            let Some(kept) = logs.get_mut(&key(place)) else {
                return Ok(Resumed::Absent);
            };
            if kept.open {
                return Err(Error::Owned {
                    run: place.run.clone(),
                    path: PathBuf::from("memory"),
                });
            }
            kept.open = kept.seal.is_none();
            kept.spoiled = false;
            (kept.records.clone(), kept.seal.clone())
        };
        // Nothing is locked meanwhile: the caller may ask this sink for something.
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
        Box::new(Log {
            memory: self.clone(),
            key: key(place),
            failed: false,
        })
    }
}

/// A log that is open.
#[derive(Debug)]
struct Log {
    memory: Memory,
    key: Key,
    failed: bool,
}

impl Log {
    fn with<T>(
        &mut self,
        operation: &'static str,
        act: impl FnOnce(&mut SkipReason) -> T,
    ) -> Result<T> {
        let fail = |reason: &str| {
            Err(SinkError::new(reason)
                .operation(operation)
                .run(&self.key.0)
                .into())
        };
        let mut logs = self.memory.logs();
        let kept = match logs.get_mut(&self.key) {
            Some(kept) if kept.seal.is_none() => kept,
            _ => return fail("it is sealed"),
        };
        self.failed |= std::mem::take(&mut kept.spoiled);
        if self.failed {
            return fail("it was made to fail");
        }
        Ok(act(kept))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(kept) = self.memory.logs().get_mut(&self.key) {
            kept.open = false;
        }
    }
}

#[async_trait]
impl RunLog for Log {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.with("append to", |kept| {
            kept.records.extend(batch.iter().map(Record::from));
        })
    }

    async fn sync(&mut self) -> Result<()> {
        self.with("sync", |_| ())
    }

    async fn seal(&mut self, mut seal: Seal) -> Result<Seal> {
        self.with("seal", |kept| {
            seal.sha256 = String::new();
            kept.seal = Some(seal.clone());
            seal
        })
    }
}

//! The fixture of a sink's case: the sink, its logs, and the records in them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::harness::SinkHarness;
use super::{Abort, fail};
use crate::audit::{Batch, Event, Output, Record, RecordRef, Start};
use crate::error::Error;
use crate::outcome::{Ending, Evidence, Exit, PerStream, Seal, Stream, Verdict};
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use crate::spec::{RootId, RunId, RunRecord, RunSpec};
use crate::timestamp::Timestamp;

/// A sink, and a directory for the logs of one case.
pub(super) struct SinkFixture {
    pub(super) harness: Arc<dyn SinkHarness>,
    pub(super) sink: Arc<dyn LogSink>,
    dir: PathBuf,
}

impl SinkFixture {
    pub(super) fn new(harness: Arc<dyn SinkHarness>) -> Result<Self, Abort> {
        let name = format!("moat-conformance-{}", RunId::generate());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).or_else(|error| {
            fail(format!(
                "cannot create directory {}: {error}",
                dir.display()
            ))
        })?;
        Ok(Self {
            sink: harness.sink(),
            harness,
            dir,
        })
    }

    pub(super) async fn clean_up(self) {
        // Best effort: the directory is in the system's temporary directory.
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// Creates a directory for a new run.
    pub(super) fn place(&self) -> Result<RunPlace, Abort> {
        let run = RunId::generate();
        let dir = self.dir.join(run.as_str());
        std::fs::create_dir(&dir).or_else(|error| {
            fail(format!(
                "cannot create directory {}: {error}",
                dir.display()
            ))
        })?;
        Ok(RunPlace::new(run, dir))
    }

    /// Opens the log of a run.
    pub(super) async fn open(&self, place: &RunPlace) -> Result<(Box<dyn RunLog>, Start), Abort> {
        let start = Start::new(run_record(place));
        let log = self.sink.open(place, &start).await?;
        Ok((log, start))
    }

    /// Writes a log with a start record and `records`, and closes it.
    ///
    /// Returns the place of the log and all of its records.
    pub(super) async fn filled(
        &self,
        records: &[Record],
    ) -> Result<(RunPlace, Vec<Record>), Abort> {
        let place = self.place()?;
        let (mut log, start) = self.open(&place).await?;
        log.append(batch(records)).await?;
        let mut all = vec![Record::Event(Event::Start(Box::new(start)))];
        all.extend_from_slice(records);
        Ok((place, all))
    }

    /// Resumes the log at `place` with a new sink.
    pub(super) async fn resume(&self, place: &RunPlace) -> Result<(Resumed, Vec<Record>), Error> {
        resume_with(&*self.harness.sink(), place).await
    }

    /// Resumes an unsealed log and returns it with its records.
    pub(super) async fn reopened(
        &self,
        place: &RunPlace,
    ) -> Result<(Box<dyn RunLog>, Vec<Record>), Abort> {
        match self.resume(place).await? {
            (Resumed::Open { log, .. }, records) => Ok((log, records)),
            (other, _) => fail(format!("the log cannot be resumed: {other:?}")),
        }
    }

    /// Fails unless the log at `place` has exactly the `expected` records.
    pub(super) async fn ensure_holds(
        &self,
        place: &RunPlace,
        expected: &[Record],
    ) -> Result<(), Abort> {
        let (_, records) = self.reopened(place).await?;
        ensure_same(&records, expected)
    }
}

/// Resumes with `sink`, and collects the records that it visits before it returns.
pub(super) async fn resume_with(
    sink: &dyn LogSink,
    place: &RunPlace,
) -> Result<(Resumed, Vec<Record>), Error> {
    let seen = Arc::new(Mutex::new(Some(Vec::new())));
    let visit: RecordVisitor = {
        let seen = Arc::clone(&seen);
        Box::new(move |record| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(records) = &mut *seen {
                // A sink adds check records by itself.
                if !matches!(record, RecordRef::Event(Event::Check { .. })) {
                    records.push(Record::from(record));
                }
            }
        })
    };
    let resumed = sink.resume(place, visit).await?;
    let records = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok((resumed, records.unwrap_or_default()))
}

/// Fails unless two lists of records are equal.
pub(super) fn ensure_same(got: &[Record], expected: &[Record]) -> Result<(), Abort> {
    if got == expected {
        return Ok(());
    }
    let at = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
    fail(format!(
        "the log has {} records instead of {}; record {at} is {:?} instead of {:?}",
        got.len(),
        expected.len(),
        got.get(at),
        expected.get(at)
    ))
}

pub(super) fn batch(records: &[Record]) -> Batch {
    let mut batch = Batch::new();
    for record in records {
        match record {
            Record::Output(output) => batch.push_output(output),
            Record::Event(event) => batch.push_event(event.clone()),
            Record::Unknown(_) => {}
        }
    }
    batch
}

pub(super) fn run_record(place: &RunPlace) -> RunRecord {
    let spec = RunSpec::new("conformance").cmd(["a case"]);
    RunRecord::new(place.run.clone(), RootId::generate(), "conformance", &spec)
}

pub(super) fn line(bytes: impl Into<Vec<u8>>) -> Record {
    Record::Output(Output::new(Timestamp::now(), Stream::Stdout, bytes))
}

pub(super) fn lines(numbers: std::ops::Range<u32>) -> Vec<Record> {
    numbers
        .map(|number| line(format!("line {number}")))
        .collect()
}

/// Returns a seal that agrees with `records`.
pub(super) fn seal_of(records: &[Record]) -> Seal {
    let mut bytes = PerStream::<u64>::default();
    let (mut outputs, mut gaps, mut lossy) = (0, 0, false);
    let mut started = None;
    for record in records {
        match record {
            Record::Output(output) => {
                outputs += 1;
                bytes[output.stream] += output.bytes.len() as u64 + u64::from(!output.partial);
                lossy |= output.lossy;
            }
            Record::Event(Event::Gap(_)) => gaps += 1,
            Record::Event(Event::Started(event)) => started = Some(event),
            Record::Event(_) | Record::Unknown(_) => {}
        }
    }
    let evidence = Evidence::Tail;
    Seal {
        ts: Timestamp::now(),
        exit: match started {
            Some(_) => Ending::Exited(Exit::with_code(0)),
            None => Ending::Lost {
                reason: "the case has no container".into(),
            },
        },
        verdict: Verdict::of(gaps, lossy, evidence),
        evidence,
        records: outputs,
        bytes,
        gaps,
        masked: None,
        stopped: None,
        container: started.map(|started| started.container.clone()),
        image_digest: started.and_then(|started| started.image_digest.clone()),
        usage: None,
        capture_seconds: 0.0,
        sha256: String::new(),
    }
}

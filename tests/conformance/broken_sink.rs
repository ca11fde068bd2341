//! A sink that violates one clause at a time, to show that each case can fail.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use async_trait::async_trait;
use moat::audit::{Batch, Event, Output, Record, RecordRef, Start};
use moat::conformance::{self, SinkHarness, Unsupported};
use moat::outcome::Stream;
use moat::sink::{Memory, RecordVisitor, Resumed, RunLog, RunPlace};
use moat::timestamp::Timestamp;
use moat::{Error, LogSink, Result, RunId, Seal};
use testkit::harness::Trial;

/// The in-memory sink, except for one clause.
#[derive(Debug, Clone)]
struct Broken {
    memory: Memory,
    clause: &'static str,
    torn: Arc<AtomicBool>,
}

impl Broken {
    fn log(&self, inner: Box<dyn RunLog>, resumed: bool) -> Box<dyn RunLog> {
        Box::new(Log {
            inner,
            clause: self.clause,
            resumed,
            sealed: None,
            synced: false,
            failed: false,
        })
    }
}

#[async_trait]
impl LogSink for Broken {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let is_mixed = self.clause == "open::separates_execs";
        if is_mixed && place.exec.is_some() {
            let run = RunPlace::new(place.run.clone(), &place.dir);
            return match self.resume(&run, Box::new(|_| {})).await? {
                Resumed::Open { log, .. } => Ok(log),
                other => panic!("{other:?}"),
            };
        }
        let opened = match self.memory.open(place, start).await {
            Err(Error::RunExists { .. }) if self.clause == "open::rejects_a_second_log" => {
                let other = RunPlace::new(RunId::generate(), &place.dir);
                self.memory.open(&other, start).await
            }
            opened => opened,
        };
        Ok(self.log(opened?, false))
    }

    async fn resume(&self, place: &RunPlace, mut visit: RecordVisitor) -> Result<Resumed> {
        let (clause, torn) = (self.clause, self.torn.load(SeqCst));
        if clause == "open::separates_runs" {
            for run in self.memory.runs() {
                for record in self.memory.records(&run) {
                    if let Record::Output(output) = &record {
                        visit(output.into());
                    }
                }
            }
        }
        let mut number = 0;
        let mut partial = torn.then(|| Output::new(Timestamp::now(), Stream::Stdout, "lin"));
        let visit_changed: RecordVisitor = Box::new(move |record| {
            number += 1;
            if let Some(partial) = partial.take() {
                visit((&partial).into());
            }
            match (clause, record) {
                ("open::writes_the_start_record", RecordRef::Event(Event::Start(_))) => {}
                ("resume::visits_each_record", _) if number % 2 == 0 => {}
                (
                    "append::preserves_every_record",
                    RecordRef::Output {
                        ts, stream, bytes, ..
                    },
                ) => {
                    let text = String::from_utf8_lossy(bytes).into_owned();
                    visit((&Output::new(ts, stream, text)).into());
                }
                (_, record) => visit(record),
            }
        });
        let resumed = match self.memory.resume(place, visit_changed).await {
            Err(Error::Owned { .. }) if clause == "resume::rejects_an_open_log" => {
                return Ok(Resumed::Absent);
            }
            resumed => resumed?,
        };
        Ok(match resumed {
            Resumed::Absent if clause == "resume::reports_a_missing_log" => {
                return Err(Error::NoSuchRun {
                    run: place.run.clone(),
                    root: place.dir.clone(),
                });
            }
            Resumed::Open { log, torn } => Resumed::Open {
                log: self.log(log, true),
                torn,
            },
            Resumed::Sealed(mut seal) if clause == "seal::is_returned_by_resume" => {
                seal.records += 1;
                Resumed::Sealed(seal)
            }
            resumed => resumed,
        })
    }

    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        let is_wrong = self.clause == "path::names_the_log_file";
        is_wrong.then(|| place.dir.join("nowhere"))
    }
}

#[derive(Debug)]
struct Log {
    inner: Box<dyn RunLog>,
    clause: &'static str,
    resumed: bool,
    sealed: Option<Seal>,
    synced: bool,
    failed: bool,
}

impl Log {
    /// Returns `result`, but hides the second error if the clause is `errors::are_permanent`.
    fn forget_error(&mut self, result: Result<()>) -> Result<()> {
        let is_forgotten = self.clause == "errors::are_permanent";
        match result {
            Err(_) if is_forgotten && std::mem::replace(&mut self.failed, true) => Ok(()),
            result => result,
        }
    }
}

fn note() -> Batch {
    let mut batch = Batch::new();
    batch.push_event(Event::note("an unrequested record"));
    batch
}

#[async_trait]
impl RunLog for Log {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.synced = false;
        match self.clause {
            "append::keeps_records" => return Ok(()),
            "append::keeps_the_order_across_batches" => {
                self.inner.append(batch.clone()).await?;
            }
            "append::ignores_an_empty_batch" if batch.is_empty() => {
                return self.inner.append(note()).await;
            }
            "append::drop_leaves_a_prefix" => {
                tokio::task::yield_now().await;
            }
            "resume::appends_at_the_end" if self.resumed => return Ok(()),
            "seal::rejects_later_appends" if self.sealed.is_some() => return Ok(()),
            _ => {}
        }
        let result = self.inner.append(batch).await;
        self.forget_error(result)
    }

    async fn sync(&mut self) -> Result<()> {
        if self.clause == "sync::can_be_repeated" && self.synced {
            return Err(Error::Stalled);
        }
        self.synced = true;
        let result = self.inner.sync().await;
        self.forget_error(result)
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        if self.clause == "seal::rejects_a_second_seal" && self.sealed.is_some() {
            return Ok(seal);
        }
        let mut sealed = self.inner.seal(seal.clone()).await?;
        if self.clause == "seal::ignores_the_callers_digest" {
            sealed.sha256 = seal.sha256;
        }
        self.sealed = Some(sealed.clone());
        Ok(sealed)
    }
}

struct BrokenHarness(Broken);

impl SinkHarness for BrokenHarness {
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self.0.clone())
    }

    /// Makes `resume` visit the partial record as a complete record.
    fn tear(&self, _: &RunPlace) -> Result<(), Unsupported> {
        self.0.torn.store(true, SeqCst);
        Ok(())
    }

    /// Changes nothing, so `resume` detects no damage.
    fn damage(&self, _: &RunPlace) -> Result<(), Unsupported> {
        Ok(())
    }

    fn spoil(&self, place: &RunPlace) -> Result<(), Unsupported> {
        self.0.memory.fail(&place.run);
        Ok(())
    }
}

pub fn trials() -> impl Iterator<Item = Trial> {
    crate::broken("sink", |clause| {
        conformance::sink(BrokenHarness(Broken {
            memory: Memory::new(),
            clause,
            torn: Arc::default(),
        }))
    })
}

//! A sink that breaks one clause at a time, so that each case is seen to fail.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use async_trait::async_trait;
use moat::audit::{Batch, Event, Output, Record, RecordRef, Start};
use moat::conformance::{self, SinkHarness};
use moat::outcome::Stream;
use moat::sink::{Memory, RecordVisitor, Resumed, RunLog, RunPlace};
use moat::timestamp::Timestamp;
use moat::{Error, LogSink, Result, RunId, Seal};
use testkit::harness::Trial;

/// The sink in memory, except for the named clause.
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
        let is_mixed = self.clause == "open::that_of_a_further_process_is_apart";
        if is_mixed && place.exec.is_some() {
            let around = RunPlace::new(place.run.clone(), &place.dir);
            return match self.resume(&around, Box::new(|_| {})).await? {
                Resumed::Open { log, .. } => Ok(log),
                other => panic!("{other:?}"),
            };
        }
        let opened = match self.memory.open(place, start).await {
            Err(Error::RunExists { .. }) if self.clause == "open::a_second_one_is_refused" => {
                let other = RunPlace::new(RunId::generate(), &place.dir);
                self.memory.open(&other, start).await
            }
            opened => opened,
        };
        Ok(self.log(opened?, false))
    }

    async fn resume(&self, place: &RunPlace, mut visit: RecordVisitor) -> Result<Resumed> {
        let (clause, torn) = (self.clause, self.torn.load(SeqCst));
        if clause == "open::logs_of_two_runs_are_apart" {
            for run in self.memory.runs() {
                for record in self.memory.records(&run) {
                    if let Record::Output(output) = &record {
                        visit(output.into());
                    }
                }
            }
        }
        let mut number = 0;
        let mut half = torn.then(|| Output::new(Timestamp::now(), Stream::Stdout, "lin"));
        let seen: RecordVisitor = Box::new(move |record| {
            number += 1;
            if let Some(half) = half.take() {
                visit((&half).into());
            }
            match (clause, record) {
                ("open::the_log_has_its_start_record", RecordRef::Event(Event::Start(_))) => {}
                ("resume::it_shows_each_record_before_it_returns", _) if number % 2 == 0 => {}
                (
                    "append::every_record_comes_back_as_it_was",
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
        let resumed = match self.memory.resume(place, seen).await {
            Err(Error::Owned { .. }) if clause == "resume::of_a_log_that_is_open_is_refused" => {
                return Ok(Resumed::Absent);
            }
            resumed => resumed?,
        };
        Ok(match resumed {
            Resumed::Absent if clause == "resume::of_no_log_is_absent" => {
                return Err(Error::NoSuchRun {
                    run: place.run.clone(),
                    root: place.dir.clone(),
                });
            }
            Resumed::Open { log, torn } => Resumed::Open {
                log: self.log(log, true),
                torn,
            },
            Resumed::Sealed(mut seal) if clause == "seal::it_is_what_resume_gives" => {
                seal.records += 1;
                Resumed::Sealed(seal)
            }
            resumed => resumed,
        })
    }

    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        let lies = self.clause == "open::its_path_leads_to_it";
        lies.then(|| place.dir.join("nowhere"))
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
    /// The error, unless the clause is that errors persist.
    fn after(&mut self, result: Result<()>) -> Result<()> {
        let forgets = self.clause == "errors::after_one_a_log_takes_nothing_more";
        match result {
            Err(_) if forgets && std::mem::replace(&mut self.failed, true) => Ok(()),
            result => result,
        }
    }
}

fn note() -> Batch {
    let mut batch = Batch::new();
    batch.push_event(Event::note("not appended by the caller"));
    batch
}

#[async_trait]
impl RunLog for Log {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.synced = false;
        match self.clause {
            "append::what_was_appended_stays" => return Ok(()),
            "append::order_is_kept_over_many_batches" => {
                self.inner.append(batch.clone()).await?;
            }
            "append::an_empty_batch_adds_nothing" if batch.is_empty() => {
                return self.inner.append(note()).await;
            }
            "append::one_that_was_dropped_is_all_or_a_first_part" => {
                tokio::task::yield_now().await;
            }
            "resume::it_goes_on_where_the_log_ends" if self.resumed => return Ok(()),
            "seal::nothing_is_added_behind_it" if self.sealed.is_some() => return Ok(()),
            _ => {}
        }
        let result = self.inner.append(batch).await;
        self.after(result)
    }

    async fn sync(&mut self) -> Result<()> {
        if self.clause == "sync::it_can_be_asked_for_at_any_time" && self.synced {
            return Err(Error::Stalled);
        }
        self.synced = true;
        let result = self.inner.sync().await;
        self.after(result)
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        if self.clause == "seal::there_is_one" && self.sealed.is_some() {
            return Ok(seal);
        }
        let mut sealed = self.inner.seal(seal.clone()).await?;
        if self.clause == "seal::a_digest_of_the_callers_is_ignored" {
            sealed.sha256 = seal.sha256;
        }
        self.sealed = Some(sealed.clone());
        Ok(sealed)
    }
}

struct Stage(Broken);

impl SinkHarness for Stage {
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self.0.clone())
    }

    /// The half record is shown as whole.
    fn tear(&self, _: &RunPlace) -> Result<(), String> {
        self.0.torn.store(true, SeqCst);
        Ok(())
    }

    /// The damage is not noticed.
    fn damage(&self, _: &RunPlace) -> Result<(), String> {
        Ok(())
    }

    fn spoil(&self, place: &RunPlace) -> Result<(), String> {
        self.0.memory.fail(&place.run);
        Ok(())
    }
}

pub fn row() -> impl Iterator<Item = Trial> {
    crate::red("sink", |clause| {
        conformance::sink(Stage(Broken {
            memory: Memory::new(),
            clause,
            torn: Arc::default(),
        }))
    })
}

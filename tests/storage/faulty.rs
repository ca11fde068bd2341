//! A sink that does what the default one does, and at times fails, stalls or panics.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use moat::audit::{Batch, Start};
use moat::sink::{Jsonl, LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use moat::{Error, Result, Seal};
use tokio::sync::watch;

/// What it does in place of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It gives an error, so many times.
    Error(u32),
    /// It does not answer.
    Stall,
    /// It panics, once.
    Panic,
}

/// In which calls, and what.
type Plan = Option<(&'static [&'static str], Fault)>;

/// The sink. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Faulty {
    inner: Jsonl,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct FaultyLog {
    inner: Box<dyn RunLog>,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct Faults {
    plan: watch::Sender<Plan>,
    /// How many times the sink has not done what it was asked for.
    count: watch::Sender<u32>,
}

impl Faulty {
    /// One that does all that it is asked for.
    pub fn new() -> Self {
        Self {
            inner: Jsonl::new(),
            faults: Arc::new(Faults {
                plan: watch::Sender::new(None),
                count: watch::Sender::new(0),
            }),
        }
    }

    /// Has this fault in these calls from here on.
    pub fn fault(&self, calls: &'static [&'static str], fault: Fault) {
        self.faults.plan.send_replace(Some((calls, fault)));
    }

    /// Is well from here on, and goes on with what it is at.
    pub fn recover(&self) {
        self.faults.plan.send_replace(None);
    }

    /// Waits until it has not done something that it was asked for.
    pub async fn has_failed(&self) {
        let mut count = self.faults.count.subscribe();
        count.wait_for(|count| *count > 0).await.unwrap();
    }

    fn log(&self, inner: Box<dyn RunLog>) -> Box<dyn RunLog> {
        let faults = Arc::clone(&self.faults);
        Box::new(FaultyLog { inner, faults })
    }
}

impl Faults {
    async fn pass(&self, call: &'static str) -> Result<()> {
        let mut due = None;
        self.plan.send_if_modified(|plan| {
            if let Some((calls, fault)) = *plan
                && calls.contains(&call)
            {
                due = Some(fault);
                match fault {
                    Fault::Error(0 | 1) | Fault::Panic => *plan = None,
                    Fault::Error(u32::MAX) | Fault::Stall => {}
                    Fault::Error(times) => *plan = Some((calls, Fault::Error(times - 1))),
                }
            }
            false
        });
        let Some(fault) = due else { return Ok(()) };
        self.count.send_modify(|count| *count += 1);
        match fault {
            Fault::Error(_) => Err(Error::Storage {
                operation: call,
                path: PathBuf::from("the faulty sink"),
                source: std::io::Error::other("made for the test"),
            }),
            Fault::Panic => panic!("made for the test"),
            Fault::Stall => {
                let _ = self.plan.subscribe().wait_for(Option::is_none).await;
                Ok(())
            }
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl LogSink for Faulty {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        self.faults.pass("open").await?;
        let log = self.inner.open(place, start).await?;
        Ok(self.log(log))
    }

    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed> {
        self.faults.pass("resume").await?;
        Ok(match self.inner.resume(place, visit).await? {
            Resumed::Open { log, torn } => Resumed::Open {
                log: self.log(log),
                torn,
            },
            other => other,
        })
    }

    fn path(&self, place: &RunPlace) -> Option<PathBuf> {
        self.inner.path(place)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl RunLog for FaultyLog {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        self.faults.pass("append").await?;
        self.inner.append(batch).await
    }

    async fn sync(&mut self) -> Result<()> {
        self.faults.pass("sync").await?;
        self.inner.sync().await
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        self.faults.pass("seal").await?;
        self.inner.seal(seal).await
    }
}

//! A sink that emits records through `tracing`.

use async_trait::async_trait;

use crate::audit::{Batch, Event, RecordRef, Start};
use crate::error::Result;
use crate::outcome::Seal;
use crate::sink::printable::{describe, printable};
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use crate::spec::RunId;

/// A sink that emits each record as an event of [`tracing`].
///
/// Output has the target `moat::output`, level `INFO` and the fields `run`, `stream` and `partial`.
/// All other records have the target `moat::run`. Records of an exec carry its number, from 1, in
/// the field `exec`. Control characters are escaped.
///
/// `Tracing` stores nothing: a resumed run starts with an empty log. Alone it leaves no audit file.
/// Use it in a [`Fanout::best_effort`](super::Fanout::best_effort).
#[derive(Debug, Clone, Copy, Default)]
pub struct Tracing;

impl Tracing {
    /// Creates the sink.
    pub fn new() -> Self {
        Self
    }
}

#[async_trait]
impl LogSink for Tracing {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let log = TracingLog::of(place);
        log.event(&Event::Start(Box::new(start.clone())));
        Ok(Box::new(log))
    }

    async fn resume(&self, place: &RunPlace, _visit: RecordVisitor) -> Result<Resumed> {
        Ok(Resumed::Open {
            log: Box::new(TracingLog::of(place)),
            torn: None,
        })
    }
}

#[derive(Debug)]
struct TracingLog {
    run: RunId,
    /// The number of the exec; `None` for the log of the run.
    exec: Option<u32>,
}

impl TracingLog {
    fn of(place: &RunPlace) -> Self {
        Self {
            run: place.run.clone(),
            exec: place.exec,
        }
    }

    fn event(&self, event: &Event) {
        let Self { run, exec } = self;
        match event {
            Event::Gap(_) => tracing::warn!(target: "moat::run", %run, exec, "{}", describe(event)),
            _ => tracing::info!(target: "moat::run", %run, exec, "{}", describe(event)),
        }
    }
}

#[async_trait]
impl RunLog for TracingLog {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        for record in batch.iter() {
            match record {
                RecordRef::Event(event) => self.event(event),
                RecordRef::Output {
                    stream,
                    bytes,
                    partial,
                    ..
                } => tracing::info!(
                    target: "moat::output",
                    run = %self.run,
                    exec = self.exec,
                    stream = stream.as_str(),
                    partial,
                    "{}",
                    printable(bytes)
                ),
            }
        }
        Ok(())
    }

    async fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        self.event(&Event::End(Box::new(seal.clone())));
        Ok(seal)
    }
}

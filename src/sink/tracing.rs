//! A sink that hands records to `tracing`.

use async_trait::async_trait;

use crate::audit::{Batch, Event, RecordRef, Start};
use crate::error::Result;
use crate::outcome::Seal;
use crate::sink::printable::{printable, said};
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use crate::spec::RunId;

/// Each record as an event of [`tracing`]: output with the target `moat::output`, at level `INFO`,
/// with the fields `run`, `stream` and `partial`; the rest with the target `moat::run`. What is of a
/// further process in a run's container has its number, from 1, in the field `exec`.
///
/// Bytes that could harm a terminal are spelled out.
///
/// It keeps nothing, so it is no full sink: a run that is resumed has an empty log here, and goes
/// on. Alone it leaves no audit; it is made for [`Fanout::best_effort`](super::Fanout).
#[derive(Debug, Clone, Copy, Default)]
pub struct Tracing;

impl Tracing {
    /// The sink.
    pub fn new() -> Self {
        Self
    }
}

#[async_trait]
impl LogSink for Tracing {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let log = Log::of(place);
        log.event(&Event::Start(Box::new(start.clone())));
        Ok(Box::new(log))
    }

    async fn resume(&self, place: &RunPlace, _visit: RecordVisitor) -> Result<Resumed> {
        Ok(Resumed::Open {
            log: Box::new(Log::of(place)),
            torn: None,
        })
    }
}

#[derive(Debug)]
struct Log {
    run: RunId,
    /// The number of the further process, if it is the log of one.
    exec: Option<u32>,
}

impl Log {
    fn of(place: &RunPlace) -> Self {
        Self {
            run: place.run.clone(),
            exec: place.exec,
        }
    }

    fn event(&self, event: &Event) {
        let Self { run, exec } = self;
        match event {
            Event::Gap(_) => tracing::warn!(target: "moat::run", %run, exec, "{}", said(event)),
            _ => tracing::info!(target: "moat::run", %run, exec, "{}", said(event)),
        }
    }
}

#[async_trait]
impl RunLog for Log {
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

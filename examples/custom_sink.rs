//! A custom sink that stores runs as rows of a database.
//!
//! The database is a table in memory. The sink runs the conformance suite on itself:
//! `cargo run --example custom_sink --features conformance`.

use moat::audit::{Batch, Event, Record, Start};
use moat::sink::{RecordVisitor, Resumed, RunLog, RunPlace};
use moat::{Error, LogSink, Result, RunId, Seal, conformance};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// The row of one run. A real sink stores it outside the process.
#[derive(Debug, Default)]
struct Row {
    records: Vec<Record>,
    seal: Option<Seal>,
    leased: bool, // a writer holds a lease
}

#[derive(Debug, Clone, Default)]
struct Table(Arc<Mutex<BTreeMap<RunId, Row>>>);

impl Table {
    fn rows(&self) -> MutexGuard<'_, BTreeMap<RunId, Row>> {
        self.0.lock().expect("no holder panics")
    }
}

#[async_trait::async_trait]
impl LogSink for Table {
    async fn open(&self, place: &RunPlace, start: &Start) -> Result<Box<dyn RunLog>> {
        let (run, path) = (place.run.clone(), place.dir.clone());
        let mut rows = self.rows();
        if rows.contains_key(&run) {
            return Err(Error::RunExists { run, path });
        }
        let row = rows.entry(run.clone()).or_default();
        row.records.push(Event::from(start.clone()).into());
        row.leased = true;
        Ok(Box::new(Lease(self.clone(), run)))
    }

    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> Result<Resumed> {
        let (run, path, mut rows) = (place.run.clone(), place.dir.clone(), self.rows());
        let row = match rows.get_mut(&run) {
            None => return Ok(Resumed::Absent),
            Some(row) if row.leased => return Err(Error::Owned { run, path }),
            Some(row) => row,
        };
        let records = row.records.iter().filter_map(Record::as_ref);
        records.for_each(visit);
        if let Some(seal) = &row.seal {
            return Ok(Resumed::Sealed(seal.clone()));
        }
        row.leased = true;
        let log = Box::new(Lease(self.clone(), run));
        Ok(Resumed::Open { log, torn: None })
    }
}

#[derive(Debug)]
struct Lease(Table, RunId);

impl Lease {
    fn change<T>(&self, operation: &'static str, act: impl FnOnce(&mut Row) -> T) -> Result<T> {
        let mut rows = self.0.rows();
        let row = rows.get_mut(&self.1).filter(|row| row.seal.is_none());
        let sealed = || {
            moat::Error::from(
                moat::sink::SinkError::new("the run is sealed")
                    .operation(operation)
                    .run(&self.1),
            )
        };
        row.map(act).ok_or_else(sealed)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.rows().entry(self.1.clone()).or_default().leased = false;
    }
}

#[async_trait::async_trait]
impl RunLog for Lease {
    async fn append(&mut self, batch: Batch) -> Result<()> {
        let records = batch.iter().map(Record::from);
        self.change("append to", |row| row.records.extend(records))
    }
    async fn sync(&mut self) -> Result<()> {
        self.change("sync", |_| ())
    }
    async fn seal(&mut self, mut seal: Seal) -> Result<Seal> {
        seal.sha256.clear(); // this sink keeps no digest
        self.change("seal", |row| row.seal.insert(seal).clone())
    }
}

#[tokio::main]
async fn main() -> Result<(), conformance::Failure> {
    let table = Table::default();
    for case in conformance::sink(move || table.clone()) {
        println!("{} {}", case.name(), case.run().await?);
    }
    Ok(())
}

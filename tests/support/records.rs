//! What an audit file has on record beside output.

use std::path::Path;

use moat::audit::{Action, Event, Reader, Record};

/// The records that are no output, in order.
pub fn events(path: &Path) -> Vec<Event> {
    let records = Reader::open(path).unwrap();
    let events = records.filter_map(|record| match record.unwrap() {
        Record::Event(event) => Some(event),
        _ => None,
    });
    events.collect()
}

/// What was done in front of the run, in order.
pub fn actions(path: &Path) -> Vec<Action> {
    let done = events(path).into_iter().filter_map(|event| match event {
        Event::Note {
            interaction: Some(done),
            ..
        } => Some(done.action),
        _ => None,
    });
    done.collect()
}

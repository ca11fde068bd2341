//! The records of audit files.

use std::path::Path;

use moat::Outcome;
use moat::audit::{Action, Event, GapReason, Output, Reader, Record};
use moat::events::{EventKind, Events};
use moat::outcome::Stream;
use moat::runtime::RuntimeError;
use moat::runtime::scripted::Fault;

/// The records that are not output, in order.
pub fn events(path: &Path) -> Vec<Event> {
    let records = Reader::open(path).unwrap();
    let events = records.filter_map(|record| match record.unwrap() {
        Record::Event(event) => Some(event),
        _ => None,
    });
    events.collect()
}

/// The actions of attachments, in order.
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

/// The bytes of standard input that the file has.
pub fn typed(path: &Path) -> Vec<u8> {
    let written = events(path).into_iter().filter_map(|event| match event {
        Event::Stdin(written) => Some(written.bytes),
        _ => None,
    });
    written.flatten().collect()
}

/// The warnings of a subscription, in order, up to its end.
pub async fn warnings(mut events: Events) -> Vec<String> {
    let mut warnings = Vec::new();
    while let Some(event) = events.next().await {
        if let EventKind::Warning { message } = event.kind {
            warnings.push(message);
        }
    }
    warnings
}

/// The number of stop requests in the file.
pub fn stops(path: &Path) -> usize {
    let is_stop = |event: &&Event| matches!(event, Event::Stop(_));
    events(path).iter().filter(is_stop).count()
}

pub fn gaps(outcome: &Outcome) -> Vec<GapReason> {
    events(outcome.audit.as_ref().unwrap())
        .into_iter()
        .filter_map(|event| match event {
            Event::Gap(gap) => Some(gap.reason),
            _ => None,
        })
        .collect()
}

/// The output of a run on one stream.
pub fn text(outcome: &Outcome, stream: Stream) -> String {
    text_in(outcome.audit.as_ref().unwrap(), stream)
}

/// The records of output, in order.
pub fn outputs(outcome: &Outcome) -> Vec<Output> {
    let records = Reader::open(outcome.audit.as_ref().unwrap()).unwrap();
    let outputs = records.filter_map(|record| match record.unwrap() {
        Record::Output(output) => Some(output),
        _ => None,
    });
    outputs.collect()
}

/// The output on one stream in an audit file.
pub fn text_in(audit: &Path, stream: Stream) -> String {
    let mut text = Vec::new();
    for record in Reader::open(audit).unwrap() {
        if let Record::Output(output) = record.unwrap()
            && output.stream == stream
        {
            text.extend(output.bytes);
            text.extend((!output.partial).then_some(b'\n'));
        }
    }
    String::from_utf8(text).unwrap()
}

pub fn numbered(lines: usize) -> String {
    (0..lines).map(|n| format!("line {n}\n")).collect()
}

pub fn broken(operation: &'static str) -> Fault {
    Fault::Error(RuntimeError::Broken {
        operation,
        reason: "injected fault".into(),
    })
}

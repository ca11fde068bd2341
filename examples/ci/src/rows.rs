//! The rows of an audit file: lines of output, and the events between them.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::Path;

use moat::Seal;
use moat::audit::{Event, Gap, Output, Reader, Record, ResumeCause, Stop};
use moat::outcome::{PerStream, Stream};
use moat::timestamp::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::mask::Mask;

/// Maximum number of bytes that are kept of a line.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// A line of output.
#[derive(Debug)]
pub struct Line {
    /// The time at which its first bytes were received.
    pub ts: Timestamp,
    pub stream: Stream,
    /// True if a newline ended the line.
    pub complete: bool,
    /// True if the engine's log replaced bytes of the line, or may have.
    pub lossy: bool,
    /// Length of the whole line, in bytes.
    pub length: u64,
    /// The first [`MAX_LINE_BYTES`] of the line.
    bytes: Vec<u8>,
}

impl Line {
    /// The masked line, and the number of bytes that are omitted at its end.
    ///
    /// The line has no escape codes if they hide a secret.
    ///
    /// A line longer than [`MAX_LINE_BYTES`] is shortened further, by the length of the longest
    /// secret. The limit may have cut a secret in two, which the mask does not find.
    pub fn masked(&self, mask: &Mask) -> (Cow<'_, [u8]>, u64) {
        let mut masked = mask.bytes(&self.bytes);
        if let Some(text) = mask.without_codes(&masked) {
            masked = Cow::Owned(text.into_bytes());
        }
        let omitted = self.length - self.bytes.len() as u64;
        if omitted == 0 {
            return (masked, 0);
        }
        let end = masked.len().saturating_sub(mask.longest());
        (
            Cow::Owned(masked[..end].to_vec()),
            omitted + mask.longest() as u64,
        )
    }
}

#[derive(Debug)]
pub enum Row {
    Line(Line),
    Event(Event),
}

/// Reads the rows of an audit file, in the order in which they were completed.
///
/// It keeps at most one line of each stream in memory.
#[derive(Debug)]
pub struct Rows {
    reader: Reader,
    /// Lines whose newline was not read yet.
    open: PerStream<Option<Line>>,
    ready: VecDeque<Row>,
}

impl Rows {
    /// Opens the audit file. Blocks, as [`Iterator::next`] does.
    pub fn open(path: &Path) -> moat::Result<Self> {
        Ok(Self {
            reader: Reader::open(path)?,
            open: PerStream::default(),
            ready: VecDeque::new(),
        })
    }

    fn add_output(&mut self, output: Output) {
        let line = self.open[output.stream].get_or_insert_with(|| Line {
            ts: output.ts,
            stream: output.stream,
            complete: false,
            lossy: false,
            length: 0,
            bytes: Vec::new(),
        });
        let room = MAX_LINE_BYTES - line.bytes.len();
        let length = output.bytes.len();
        line.bytes
            .extend_from_slice(&output.bytes[..length.min(room)]);
        line.length += length as u64;
        line.lossy |= output.lossy;
        line.complete = !output.partial;
        if line.complete {
            self.flush(output.stream);
        }
    }

    fn add_event(&mut self, event: Event) {
        for stream in Stream::ALL {
            if ends_line(&event, stream) {
                self.flush(stream);
            }
        }
        self.ready.push_back(Row::Event(event));
    }

    fn flush(&mut self, stream: Stream) {
        self.ready.extend(self.open[stream].take().map(Row::Line));
    }
}

/// Returns true if no line of the stream continues after the event.
fn ends_line(event: &Event, stream: Stream) -> bool {
    match event {
        Event::End(_) => true,
        // After a possible gap the line may continue. Its parts are joined, so that a secret across
        // the gap is masked.
        Event::Gap(gap) => !gap.possible && gap.stream.is_none_or(|other| other == stream),
        _ => false,
    }
}

impl Iterator for Rows {
    type Item = moat::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            match self.reader.next() {
                Some(Ok(Record::Output(output))) => self.add_output(output),
                Some(Ok(Record::Event(event))) => self.add_event(event),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    for stream in Stream::ALL {
                        self.flush(stream);
                    }
                    return self.ready.pop_front().map(Ok);
                }
            }
        }
        self.ready.pop_front().map(Ok)
    }
}

/// The time, kind and text of an event in the report.
///
/// `None` if the report does not show it.
///
/// The report never shows standard input: a secret that is typed is in one record for each
/// character, so the mask cannot find it.
pub fn describe(event: &Event) -> Option<(Timestamp, &'static str, String)> {
    Some(match event {
        Event::Started(started) => {
            let mut text = format!(
                "container {} started by {} {}",
                started.container, started.engine, started.engine_version
            );
            for warning in &started.warnings {
                text.push_str(&format!("; warning: {warning}"));
            }
            (started.ts, "note", text)
        }
        Event::Resume(resume) => {
            let mut text = String::from(match resume.cause {
                ResumeCause::Reopened => "another process resumed the audit",
                _ => "the audit resumed after a failure of the sink",
            });
            if let Some(torn) = &resume.torn {
                let bytes = count(torn.bytes, "byte");
                text.push_str(&format!("; {bytes} moved to {}", torn.file));
            }
            (resume.ts, "note", text)
        }
        Event::Gap(gap) => {
            let kind = if gap.possible { "possible" } else { "gap" };
            (gap.ts, kind, describe_gap(gap))
        }
        Event::Stop(stop) => (stop.ts, "stop", describe_stop(stop)),
        Event::Note { ts, text, .. } => (*ts, "note", text.clone()),
        Event::End(seal) => (seal.ts, "seal", describe_seal(seal)),
        _ => return None,
    })
}

fn describe_gap(gap: &Gap) -> String {
    let stream = gap.stream.map_or("output", |stream| stream.as_str());
    let amount = match gap.bytes {
        Some(bytes) => format!("{} of {stream}", count(bytes, "byte")),
        None => format!("some {stream}"),
    };
    let possibly = if gap.possible { "possibly " } else { "" };
    let mut text = format!("{possibly}missing: {amount}; {}", name(&gap.reason));
    if let Some(detail) = &gap.detail {
        text.push_str(&format!(" ({detail})"));
    }
    text
}

fn describe_stop(stop: &Stop) -> String {
    let mut text = format!("stopped by moat with {}: {}", stop.signal, stop.cause);
    if let Some(grace) = stop.grace_seconds {
        text.push_str(&format!("; grace period {grace} s"));
    }
    if let Some(pid) = stop.by_pid {
        text.push_str(&format!("; requested by process {pid}"));
    }
    text
}

/// One line about a seal.
pub fn describe_seal(seal: &Seal) -> String {
    format!(
        "sealed: {}; audit {}, evidence {}; {}, {}, {}; digest verified: {}",
        seal.exit,
        seal.verdict,
        name(&seal.evidence),
        count(seal.records, "record"),
        count(seal.bytes.total(), "byte"),
        count(seal.gaps, "gap"),
        seal.sha256,
    )
}

fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// The name of a value in the audit file.
fn name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => "unknown".into(),
    }
}

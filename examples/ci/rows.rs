//! The rows of an audit file: lines of output, joined from its records, and the events between them.

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

/// How many bytes of one line are kept.
pub(crate) const LINE_BYTES: usize = 64 << 10;

/// A line of output.
#[derive(Debug)]
pub(crate) struct Line {
    /// When its first bytes were received.
    pub(crate) ts: Timestamp,
    pub(crate) stream: Stream,
    /// Whether a newline ended it.
    pub(crate) whole: bool,
    /// Whether the engine's log has replaced bytes of it, or may have.
    pub(crate) lossy: bool,
    /// The length of the whole line.
    pub(crate) length: u64,
    /// The first [`LINE_BYTES`] of it.
    bytes: Vec<u8>,
}

impl Line {
    /// Its first [`LINE_BYTES`], masked, and how many bytes there are beyond.
    ///
    /// Of a line that is cut, as many bytes less as the longest secret has: the cut could go through
    /// one, which is not found then.
    pub(crate) fn shown(&self, mask: &Mask) -> (Cow<'_, [u8]>, u64) {
        let masked = mask.bytes(&self.bytes);
        let beyond = self.length - self.bytes.len() as u64;
        if beyond == 0 {
            return (masked, 0);
        }
        let end = masked.len().saturating_sub(mask.longest());
        (
            Cow::Owned(masked[..end].to_vec()),
            beyond + mask.longest() as u64,
        )
    }
}

#[derive(Debug)]
pub(crate) enum Row {
    Line(Line),
    Event(Event),
}

/// The rows of an audit file, in the order in which they were complete. It keeps one line of each
/// stream in memory, of a bounded length.
#[derive(Debug)]
pub(crate) struct Rows {
    reader: Reader,
    /// Records without a newline, until it comes.
    open: PerStream<Option<Line>>,
    ready: VecDeque<Row>,
}

impl Rows {
    /// It blocks, as [`Iterator::next`] does.
    pub(crate) fn open(path: &Path) -> moat::Result<Self> {
        Ok(Self {
            reader: Reader::open(path)?,
            open: PerStream::default(),
            ready: VecDeque::new(),
        })
    }

    fn add(&mut self, output: Output) {
        let line = self.open[output.stream].get_or_insert_with(|| Line {
            ts: output.ts,
            stream: output.stream,
            whole: false,
            lossy: false,
            length: 0,
            bytes: Vec::new(),
        });
        let room = LINE_BYTES - line.bytes.len();
        let length = output.bytes.len();
        line.bytes
            .extend_from_slice(&output.bytes[..length.min(room)]);
        line.length += length as u64;
        line.lossy |= output.lossy;
        line.whole = !output.partial;
        if line.whole {
            self.flush(output.stream);
        }
    }

    fn flush(&mut self, stream: Stream) {
        self.ready.extend(self.open[stream].take().map(Row::Line));
    }
}

impl Iterator for Rows {
    type Item = moat::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() {
            match self.reader.next() {
                Some(Ok(Record::Output(output))) => self.add(output),
                Some(Ok(Record::Event(event))) => {
                    for stream in Stream::ALL {
                        let ends = match &event {
                            Event::End(_) => true,
                            // What comes behind a hole is not the rest of the line before it.
                            // Where nothing may be missing, it can be: a secret too.
                            Event::Gap(gap) => {
                                !gap.possible && gap.stream.is_none_or(|other| other == stream)
                            }
                            _ => false,
                        };
                        if ends {
                            self.flush(stream);
                        }
                    }
                    self.ready.push_back(Row::Event(event));
                }
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

/// What a reader is told of an event; `None`: nothing. Of the standard input, nothing: a secret
/// that is typed is in as many records as it has letters.
pub(crate) fn told(event: &Event) -> Option<(Timestamp, &'static str, String)> {
    Some(match event {
        Event::Started(started) => {
            let mut text = format!(
                "started by {} {}: {}",
                started.engine, started.engine_version, started.container
            );
            for warning in &started.warnings {
                text.push_str(&format!("; warning: {warning}"));
            }
            (started.ts, "note", text)
        }
        Event::Resume(resume) => {
            let mut text = String::from(match resume.cause {
                ResumeCause::Reopened => "another process goes on with the audit",
                _ => "the audit goes on behind a fault",
            });
            if let Some(torn) = &resume.torn {
                text.push_str(&format!("; {} bytes moved to {}", torn.bytes, torn.file));
            }
            (resume.ts, "note", text)
        }
        Event::Gap(gap) => {
            let kind = if gap.possible { "possible" } else { "gap" };
            (gap.ts, kind, missing(gap))
        }
        Event::Stop(stop) => (stop.ts, "stop", stopped(stop)),
        Event::Note { ts, text, .. } => (*ts, "note", text.clone()),
        Event::End(seal) => (seal.ts, "seal", sealed(seal)),
        _ => return None,
    })
}

fn missing(gap: &Gap) -> String {
    let stream = gap.stream.map_or("output", |stream| stream.as_str());
    let what = match gap.bytes {
        Some(bytes) => format!("{bytes} bytes of {stream}"),
        None => format!("some {stream}"),
    };
    let possibly = if gap.possible { "possibly " } else { "" };
    let mut text = format!("{possibly}missing: {what}; {}", name(&gap.reason));
    if let Some(detail) = &gap.detail {
        text.push_str(&format!(" ({detail})"));
    }
    text
}

fn stopped(stop: &Stop) -> String {
    let mut text = format!("stopped by moat: {}, with {}", stop.cause, stop.signal);
    if let Some(grace) = stop.grace_seconds {
        text.push_str(&format!(" and {grace} s of grace"));
    }
    if let Some(pid) = stop.by_pid {
        text.push_str(&format!(", asked for by process {pid}"));
    }
    text
}

pub(crate) fn sealed(seal: &Seal) -> String {
    format!(
        "sealed: {}; audit {}, on the evidence of {}; records: {}, bytes: {}, gaps: {}; the digest holds: {}",
        seal.exit,
        seal.verdict,
        name(&seal.evidence),
        seal.records,
        seal.bytes.total(),
        seal.gaps,
        seal.sha256,
    )
}

/// The name of a value in the audit file.
fn name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => "unknown".into(),
    }
}

//! Records on their way to a sink: the bytes of many lines in one buffer.

use std::ops::Range;

use super::{Event, Output};
use crate::{Stream, Timestamp};

/// Records on their way to a sink, in order.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug)]
enum Entry {
    Output {
        ts: Timestamp,
        stream: Stream,
        range: Range<usize>,
        partial: bool,
        lossy: bool,
    },
    Event(Event),
}

/// One record, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RecordRef<'a> {
    /// Output.
    Output {
        /// When it was received.
        ts: Timestamp,
        /// The stream.
        stream: Stream,
        /// A line without its newline, or a part of one.
        bytes: &'a [u8],
        /// Whether no newline followed these bytes.
        partial: bool,
        /// Whether the engine's log has replaced bytes of it, or may have.
        lossy: bool,
    },
    /// Anything else.
    Event(&'a Event),
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event.
    pub fn push_event(&mut self, event: Event) {
        self.entries.push(Entry::Event(event));
    }

    /// Adds a line, or a part of one, whose bytes are `head` and then `tail`.
    pub(crate) fn push_parts(
        &mut self,
        ts: Timestamp,
        stream: Stream,
        head: &[u8],
        tail: &[u8],
        partial: bool,
        lossy: bool,
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(tail);
        self.entries.push(Entry::Output {
            ts,
            stream,
            range: start..self.bytes.len(),
            partial,
            lossy,
        });
    }

    /// Adds a record of output.
    pub fn push_output(&mut self, output: &Output) {
        self.push_parts(
            output.ts,
            output.stream,
            &output.bytes,
            &[],
            output.partial,
            output.lossy,
        );
    }

    /// Whether it holds no record.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The records, in order.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        self.entries.iter().map(|entry| match entry {
            Entry::Output {
                ts,
                stream,
                range,
                partial,
                lossy,
            } => RecordRef::Output {
                ts: *ts,
                stream: *stream,
                bytes: &self.bytes[range.clone()],
                partial: *partial,
                lossy: *lossy,
            },
            Entry::Event(event) => RecordRef::Event(event),
        })
    }
}

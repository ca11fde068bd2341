//! Batches of records: the bytes of many lines in one buffer.

use crate::audit::{Event, Output, OutputTime};
use crate::outcome::{PerStream, Stream};
use crate::timestamp::Timestamp;

/// A batch of records for a sink, in order.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    /// The bytes start at the end of the previous output.
    Output {
        ts: Timestamp,
        end: usize,
        stream: Stream,
        partial: bool,
        lossy: bool,
        engine_time: bool,
    },
    /// Boxed, because events are rare and larger than output.
    Event(Box<Event>),
}

/// A borrowed record.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RecordRef<'a> {
    /// Output of the container.
    #[non_exhaustive]
    Output {
        /// The time of the last byte, by the clock of `engine_time`.
        ts: Timestamp,
        /// The stream.
        stream: Stream,
        /// A line without its newline, or a part of a line.
        bytes: &'a [u8],
        /// True if no newline followed the bytes.
        partial: bool,
        /// True if the engine's log has replaced some of the bytes, or may have.
        lossy: bool,
        /// True if `ts` is the time in the engine's log. False: it is the time of receipt.
        engine_time: bool,
    },
    /// Any other record.
    Event(&'a Event),
}

impl<'a> RecordRef<'a> {
    /// Borrows a whole line of output, without its newline, that no log has changed.
    pub fn output(ts: Timestamp, stream: Stream, bytes: &'a [u8]) -> Self {
        Self::Output {
            ts,
            stream,
            bytes,
            partial: false,
            lossy: false,
            engine_time: false,
        }
    }
}

impl<'a> From<&'a Output> for RecordRef<'a> {
    fn from(output: &'a Output) -> Self {
        Self::Output {
            ts: output.ts,
            stream: output.stream,
            bytes: &output.bytes,
            partial: output.partial,
            lossy: output.lossy,
            engine_time: output.engine_time,
        }
    }
}

impl Batch {
    /// Creates an empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty batch with capacity for `bytes` bytes of output.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            entries: Vec::new(),
        }
    }

    /// Adds an event.
    pub fn push_event(&mut self, event: Event) {
        self.entries.push(Entry::Event(Box::new(event)));
    }

    /// Adds a record of output with these fields.
    pub(crate) fn push_bytes(
        &mut self,
        time: OutputTime,
        stream: Stream,
        bytes: &[u8],
        partial: bool,
        lossy: bool,
    ) {
        self.bytes.extend_from_slice(bytes);
        self.entries.push(Entry::Output {
            ts: time.ts,
            end: self.bytes.len(),
            stream,
            partial,
            lossy,
            engine_time: time.engine_time,
        });
    }

    /// Adds a record of output.
    pub fn push_output(&mut self, output: &Output) {
        self.push(output.into());
    }

    /// Returns true if the batch has no records.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a record.
    pub fn push(&mut self, record: RecordRef<'_>) {
        match record {
            RecordRef::Output {
                ts,
                stream,
                bytes,
                partial,
                lossy,
                engine_time,
            } => {
                let time = OutputTime { ts, engine_time };
                self.push_bytes(time, stream, bytes, partial, lossy);
            }
            RecordRef::Event(event) => self.push_event(event.clone()),
        }
    }

    /// The approximate memory use, in bytes.
    pub(crate) fn weight(&self) -> usize {
        self.bytes.len() + self.entries.len() * size_of::<Entry>()
    }

    /// The number of bytes of output in each stream, without newlines.
    pub(crate) fn output_bytes(&self) -> PerStream<usize> {
        let mut bytes = PerStream::default();
        let mut start = 0;
        for entry in &self.entries {
            if let Entry::Output { end, stream, .. } = entry {
                bytes[*stream] += end - std::mem::replace(&mut start, *end);
            }
        }
        bytes
    }

    /// The records, in order.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let mut start = 0;
        self.entries.iter().map(move |entry| match entry {
            Entry::Output {
                ts,
                end,
                stream,
                partial,
                lossy,
                engine_time,
            } => RecordRef::Output {
                ts: *ts,
                stream: *stream,
                bytes: &self.bytes[std::mem::replace(&mut start, *end)..*end],
                partial: *partial,
                lossy: *lossy,
                engine_time: *engine_time,
            },
            Entry::Event(event) => RecordRef::Event(event),
        })
    }
}

//! The hot loops, for `benches/` alone: no part of the public interface.

use bytes::Bytes;

use crate::audit::{Batch, RecordRef};
use crate::capture::{LineAssembler, Progress};
use crate::outcome::Stream;
use crate::runtime::docker::demux::Demux;
use crate::sink::jsonl::output::OutputText;
use crate::timestamp::Timestamp;

/// From an engine's bytes to the records of a batch.
#[derive(Debug)]
pub struct Intake {
    demux: Demux,
    lines: LineAssembler,
    ts: Timestamp,
}

impl Intake {
    /// Of a container without a terminal.
    #[allow(clippy::new_without_default, reason = "nobody needs it")]
    pub fn new() -> Self {
        Self {
            demux: Demux::new(false),
            lines: LineAssembler::default(),
            ts: Timestamp::now(),
        }
    }

    /// Takes the next bytes, and gives the lines that they end.
    pub fn push(&mut self, bytes: Bytes) -> Batch {
        let mut batch = Batch::with_room(bytes.len());
        self.demux.push(bytes);
        while let Some(chunk) = self.demux.pop() {
            let Ok(chunk) = chunk else { break };
            self.lines
                .push(self.ts, chunk.stream, &chunk.bytes, &mut batch);
        }
        batch
    }
}

/// A batch of the lines of `text`, all received at once.
pub fn lines(text: &[u8]) -> Batch {
    let mut batch = Batch::new();
    LineAssembler::default().push(Timestamp::now(), Stream::Stdout, text, &mut batch);
    batch
}

/// Encodes the output in `batch`, without a digest.
pub fn encode(batch: &Batch, out: &mut Vec<u8>) {
    let mut text = OutputText::default();
    for record in batch.iter() {
        if let RecordRef::Output {
            ts,
            stream,
            bytes,
            partial,
            lossy,
        } = record
        {
            text.write(ts, stream, bytes, partial, lossy, out);
            out.push(b'\n');
        }
    }
}

/// Counts what is in `batch`, as a capture does. Returns the number of records.
pub fn observe(batch: &Batch) -> u64 {
    let mut progress = Progress::default();
    progress.observe_batch(batch);
    progress.records
}

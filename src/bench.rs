//! The hot loops, for `benches/` only. This module is not part of the public API.

use bytes::Bytes;

use crate::audit::{Batch, RecordRef};
use crate::capture::{LineAssembler, Masks, OutputMasker, Progress};
use crate::outcome::Stream;
use crate::runtime::docker::output::demux::Demux;
use crate::runtime::{Chunk, LogFidelity};
use crate::sink::jsonl::output::OutputText;
use crate::spec::MaskValues;
use crate::timestamp::Timestamp;

/// The path from an engine's bytes to the records of a batch.
#[derive(Debug)]
pub struct Intake {
    demux: Demux,
    lines: LineAssembler,
    ts: Timestamp,
}

impl Intake {
    /// Creates the intake of a container without a terminal.
    #[allow(clippy::new_without_default, reason = "the benches do not use it")]
    pub fn new() -> Self {
        Self {
            demux: Demux::new(false),
            lines: LineAssembler::default(),
            ts: Timestamp::now(),
        }
    }

    /// Pushes the next bytes, and returns the completed lines.
    pub fn push(&mut self, bytes: Bytes) -> Batch {
        let mut batch = Batch::with_capacity(bytes.len());
        self.demux.push(bytes);
        while let Some(chunk) = self.demux.pop() {
            let Ok(chunk) = chunk else { break };
            self.lines
                .push(self.ts, chunk.stream, &chunk.bytes, &mut batch);
        }
        batch
    }
}

/// Assembles the lines of `text` into one batch.
pub fn lines(text: &[u8]) -> Batch {
    let mut batch = Batch::new();
    LineAssembler::default().push(Timestamp::now(), Stream::Stdout, text, &mut batch);
    batch
}

/// Masks `values` in chunks of output, and returns the masked output.
pub fn mask(chunks: impl Iterator<Item = Bytes>, values: &[&str]) -> Vec<u8> {
    let mut masks = MaskValues::default();
    masks.extend(values.iter().copied());
    let mut masker = OutputMasker::new(&Masks::new(masks), LogFidelity::Lossless);
    let mut out = Vec::new();
    for bytes in chunks {
        masker.push(&Chunk::new(Stream::Stdout, bytes), &mut out);
    }
    masker.finish(Stream::Stdout, &mut out);
    out
}

/// Encodes the output of `batch`, without a digest.
pub fn encode(batch: &Batch, out: &mut Vec<u8>) {
    let mut text = OutputText::default();
    for record in batch.iter() {
        if let RecordRef::Output {
            ts,
            stream,
            bytes,
            partial,
            lossy,
            ..
        } = record
        {
            text.write(ts.into(), stream, bytes, partial, lossy, out);
            out.push(b'\n');
        }
    }
}

/// Counts the records of `batch` as a capture does, and returns their number.
pub fn observe(batch: &Batch) -> u64 {
    let mut progress = Progress::default();
    progress.observe_batch(batch);
    progress.records
}

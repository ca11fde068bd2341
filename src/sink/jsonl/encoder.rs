//! The encoder of records, with the running digest.

use std::io;

use sha2::{Digest, Sha256};

use crate::audit::consistency::SealBasis;
use crate::audit::line::{SEAL_KEY, hex};
use crate::audit::line_reader::MAX_LINE_BYTES;
use crate::audit::scan::Mark;
use crate::audit::{Event, OutputTime, RecordRef, Start, Tally};
use crate::outcome::Seal;
use crate::sink::jsonl::ledger::WrittenPrefix;
use crate::sink::jsonl::output::OutputText;

/// The number of bytes between two `check` records. Crash tests have short files, so they use a
/// short interval.
const CHECK_INTERVAL_BYTES: u64 = if cfg!(any(test, fuzzing)) {
    1 << 10
} else {
    4 << 20
};

/// Encodes records into a buffer, which the owner writes and clears.
#[derive(Debug)]
pub(super) struct Encoder {
    buffer: Vec<u8>,
    /// The number of bytes of the buffer that `digest` covers.
    hashed: usize,
    digest: Sha256,
    /// The length of the file once the buffer is written.
    length: u64,
    /// The number of lines of the file once the buffer is written.
    lines: u64,
    /// The offset at which the last `check` record ends.
    checked: u64,
    tally: Tally,
    basis: SealBasis,
    output: OutputText,
}

impl Encoder {
    /// Creates an encoder that continues a file at `mark`.
    pub(super) fn new(mark: Mark) -> Self {
        Self {
            buffer: Vec::new(),
            hashed: 0,
            digest: mark.digest,
            length: mark.offset,
            lines: mark.lines,
            checked: mark.checked,
            tally: mark.tally,
            basis: mark.basis,
            output: OutputText::default(),
        }
    }

    /// The bytes to write.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Clears the buffer after a write.
    pub(super) fn clear(&mut self) {
        self.hash();
        self.buffer.clear();
        self.hashed = 0;
    }

    /// The content of the file once the buffer is written and cleared.
    pub(super) fn written(&self) -> WrittenPrefix {
        WrittenPrefix {
            length: self.length,
            digest: self.digest.clone(),
        }
    }

    /// The counts of all encoded records.
    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    /// The encoded records that the seal must agree with.
    pub(super) fn basis(&self) -> &SealBasis {
        &self.basis
    }

    fn hash(&mut self) {
        self.digest.update(&self.buffer[self.hashed..]);
        self.hashed = self.buffer.len();
    }

    /// Encodes the first record.
    pub(super) fn start(&mut self, start: &Start) -> io::Result<()> {
        let from = self.buffer.len();
        serde_json::to_writer(&mut self.buffer, &Event::Start(Box::new(start.clone())))?;
        self.end_line(from)
    }

    /// Encodes a record, and a `check` record if one is due.
    pub(super) fn record(&mut self, record: RecordRef<'_>) -> io::Result<()> {
        let from = self.buffer.len();
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
                self.output
                    .write(time, stream, bytes, partial, lossy, &mut self.buffer);
                self.tally.add_output(stream, bytes.len(), partial);
                if lossy {
                    self.basis.add_lossy(self.lines + 1);
                }
            }
            RecordRef::Event(Event::Start(_) | Event::Check { .. } | Event::End(_)) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "start, check and end records cannot be appended",
                ));
            }
            RecordRef::Event(event) => {
                serde_json::to_writer(&mut self.buffer, event)?;
                self.tally.gaps += u64::from(matches!(event, Event::Gap(_)));
                self.basis.add_event(self.lines + 1, event);
            }
        }
        self.end_line(from)?;
        if self.length - self.checked >= CHECK_INTERVAL_BYTES {
            self.check()?;
        }
        Ok(())
    }

    fn check(&mut self) -> io::Result<()> {
        self.hash();
        let sha256 = hex(&self.digest.clone().finalize());
        let from = self.buffer.len();
        serde_json::to_writer(&mut self.buffer, &Event::Check { sha256 })?;
        self.end_line(from)?;
        self.checked = self.length;
        Ok(())
    }

    /// Encodes the seal, and returns it with its digest.
    pub(super) fn seal(&mut self, mut seal: Seal) -> io::Result<Seal> {
        // JSON can only represent finite numbers.
        if let Some(usage) = &mut seal.usage
            && !usage.cpu_seconds.is_finite()
        {
            usage.cpu_seconds = 0.0;
        }
        if !seal.capture_seconds.is_finite() {
            seal.capture_seconds = 0.0;
        }
        seal.sha256.clear();
        let from = self.buffer.len();
        let end = Event::End(Box::new(seal.clone()));
        serde_json::to_writer(&mut self.buffer, &end)?;
        // The digest is the last field, and covers everything before it.
        let head = self.buffer.len() - SEAL_KEY.len() - "\"}".len();
        debug_assert!(self.buffer[head..].starts_with(SEAL_KEY.as_bytes()));
        self.buffer.truncate(head);
        self.hash();
        seal.sha256 = hex(&self.digest.clone().finalize());
        self.buffer.extend_from_slice(SEAL_KEY.as_bytes());
        self.buffer.extend_from_slice(seal.sha256.as_bytes());
        self.buffer.extend_from_slice(b"\"}");
        self.end_line(from)?;
        Ok(seal)
    }

    /// Ends the line that starts at `from`.
    fn end_line(&mut self, from: usize) -> io::Result<()> {
        self.buffer.push(b'\n');
        let length = self.buffer.len() - from;
        if length > MAX_LINE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a record of {length} bytes is longer than the format allows"),
            ));
        }
        self.length += length as u64;
        self.lines += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::line::{Line, parse};
    use crate::outcome::Stream;
    use crate::timestamp::Timestamp;
    use proptest::prelude::*;

    fn ts() -> Timestamp {
        "2026-11-22T18:23:25.491211661Z".parse().unwrap()
    }

    fn encoded(bytes: &[u8], partial: bool, lossy: bool, engine_time: bool) -> String {
        let mut encoder = Encoder::new(Mark::default());
        encoder
            .record(RecordRef::Output {
                ts: ts(),
                stream: Stream::Stdout,
                bytes,
                partial,
                lossy,
                engine_time,
            })
            .unwrap();
        String::from_utf8(encoder.bytes().to_vec()).unwrap()
    }

    #[test]
    fn output_has_only_the_flags_that_are_set() {
        assert_eq!(
            encoded(b"a\"b", false, false, false),
            "{\"ts\":\"2026-11-22T18:23:25.491211661Z\",\"stream\":\"stdout\",\"line\":\"a\\\"b\"}\n"
        );
        assert!(
            encoded(b"\xff", true, true, true)
                .ends_with("/w==\",\"partial\":true,\"lossy\":true,\"engine_time\":true}\n")
        );
    }

    #[test]
    fn a_record_over_the_length_limit_is_refused() {
        let bytes = vec![0; MAX_LINE_BYTES / 6];
        let mut encoder = Encoder::new(Mark::default());
        let record = RecordRef::Output {
            ts: ts(),
            stream: Stream::Stdout,
            bytes: &bytes,
            partial: false,
            lossy: false,
            engine_time: false,
        };
        let error = encoder.record(record).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    proptest! {
        #[test]
        fn any_bytes_survive_a_round_trip(
            bytes in prop_oneof![
                any::<Vec<u8>>(),
                any::<String>().prop_map(String::into_bytes),
                "[ -~\\t\\r\\n\"\\\\\u{1b}\u{7f}é]{0,200}".prop_map(String::into_bytes),
            ],
            partial: bool,
            lossy: bool,
            engine_time: bool,
        ) {
            let text = encoded(&bytes, partial, lossy, engine_time);
            prop_assert_eq!(text.matches('\n').count(), 1);
            let Ok(Line::Output(output)) = parse(text.as_bytes()) else {
                panic!("{text}");
            };
            prop_assert_eq!(&*output.bytes, &bytes[..]);
            prop_assert_eq!(output.ts, ts());
            prop_assert_eq!(
                (output.partial, output.lossy, output.engine_time),
                (partial, lossy, engine_time)
            );
        }
    }
}

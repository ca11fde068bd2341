//! The line assembler, which turns the bytes of each stream into records.
//!
//! The records do not depend on chunk boundaries.

use memchr::{memchr, memchr_iter, memmem};

use crate::audit::{Batch, OutputTime};
use crate::outcome::{PerStream, Stream};
use crate::timestamp::Timestamp;

/// The maximum size of a record. Longer lines become several partial records.
pub(crate) const MAX_RECORD_BYTES: usize = 16 * 1024;

/// The character that an engine's log stores in place of an invalid byte.
const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// Assembles the lines of a container's streams.
#[derive(Debug, Default)]
pub(crate) struct LineAssembler {
    /// The bytes of each stream's open line that are in no record yet: at most one record.
    open: PerStream<Vec<u8>>,
    /// The number of leading open bytes that no log has replaced.
    printed: PerStream<usize>,
    /// The time of the last open byte.
    time: PerStream<Option<OutputTime>>,
    /// Set while the bytes come from a log that replaces invalid UTF-8.
    replacing_log: bool,
}

impl LineAssembler {
    /// Sets whether the next bytes come from a log that replaces invalid UTF-8.
    ///
    /// Then records with U+FFFD are marked as lossy, because the original bytes are unknown.
    pub(crate) fn set_replacing_log(&mut self, replacing_log: bool) {
        self.replacing_log = replacing_log;
    }

    /// The unrecorded bytes of the open line: first as printed, then as logged.
    pub(super) fn open_parts(&self, stream: Stream) -> (&[u8], &[u8]) {
        self.open[stream].split_at(self.printed[stream])
    }

    /// The unrecorded bytes of the open line.
    pub(crate) fn open(&self, stream: Stream) -> &[u8] {
        &self.open[stream]
    }

    /// Removes and returns a possibly incomplete character at the end of the open line.
    pub(super) fn take_incomplete(&mut self, stream: Stream) -> Vec<u8> {
        let open = &mut self.open[stream];
        if self.printed[stream] < open.len() {
            return Vec::new();
        }
        let whole = boundary(open);
        self.printed[stream] = whole;
        open.split_off(whole)
    }

    /// Adds bytes of a stream, and appends the completed lines to `batch`.
    ///
    /// The time of a record is that of its last byte.
    pub(crate) fn push(
        &mut self,
        time: impl Into<OutputTime>,
        stream: Stream,
        bytes: &[u8],
        batch: &mut Batch,
    ) {
        let time = time.into();
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.open[stream].is_empty() {
                rest = self.push_whole_lines(time, stream, rest, batch);
            }
            match memchr(b'\n', rest) {
                Some(end) => {
                    self.extend_open(time, stream, &rest[..end], batch);
                    self.emit(time, stream, false, batch);
                    rest = &rest[end + 1..];
                }
                None => {
                    self.extend_open(time, stream, rest, batch);
                    rest = &[];
                }
            }
        }
    }

    /// Appends the leading whole lines of `bytes` to `batch`.
    ///
    /// Returns the rest. These lines are not copied to the open line first.
    fn push_whole_lines<'a>(
        &self,
        time: OutputTime,
        stream: Stream,
        bytes: &'a [u8],
        batch: &mut Batch,
    ) -> &'a [u8] {
        let mut from = 0;
        for end in memchr_iter(b'\n', bytes) {
            let line = &bytes[from..end];
            if line.len() > MAX_RECORD_BYTES {
                break;
            }
            let lossy = self.replacing_log && memmem::find(line, REPLACEMENT).is_some();
            batch.push_bytes(time, stream, line, false, lossy);
            from = end + 1;
        }
        &bytes[from..]
    }

    /// Ends every stream: an open line becomes a last, partial record.
    pub(crate) fn finish(&mut self, batch: &mut Batch) {
        for stream in Stream::ALL {
            if !self.open[stream].is_empty() {
                let time = self.time[stream].unwrap_or_else(|| Timestamp::now().into());
                self.emit(time, stream, true, batch);
            }
        }
    }

    /// Adds bytes without a newline to the open line.
    ///
    /// Splits the line if it is too long.
    fn extend_open(
        &mut self,
        time: OutputTime,
        stream: Stream,
        mut bytes: &[u8],
        batch: &mut Batch,
    ) {
        self.time[stream] = Some(time);
        while !bytes.is_empty() {
            let open = &mut self.open[stream];
            // One byte more than a record shows that the line does not fit into a record.
            let take = bytes.len().min(MAX_RECORD_BYTES + 1 - open.len());
            open.extend_from_slice(&bytes[..take]);
            if !self.replacing_log {
                self.printed[stream] = open.len();
            }
            bytes = &bytes[take..];
            if open.len() > MAX_RECORD_BYTES {
                let cut = boundary(&open[..MAX_RECORD_BYTES]);
                let rest = open.split_off(cut);
                let printed = self.printed[stream].saturating_sub(cut);
                self.emit(time, stream, true, batch);
                self.open[stream] = rest;
                self.printed[stream] = printed;
            }
        }
    }

    /// Appends the open line to `batch` as one record.
    fn emit(&mut self, time: OutputTime, stream: Stream, partial: bool, batch: &mut Batch) {
        let open = &mut self.open[stream];
        let from_log = self.replacing_log || self.printed[stream] < open.len();
        let lossy = from_log && memmem::find(open, REPLACEMENT).is_some();
        batch.push_bytes(time, stream, open, partial, lossy);
        open.clear();
        self.printed[stream] = 0;
    }
}

/// The length of `bytes` without a possibly incomplete character at the end.
fn boundary(bytes: &[u8]) -> usize {
    let end = bytes.len();
    for back in 1..=end.min(3) {
        let byte = bytes[end - back];
        if byte & 0b1100_0000 == 0b1000_0000 {
            continue;
        }
        let length = match byte {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => 1,
        };
        return if length > back { end - back } else { end };
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::RecordRef;
    use proptest::prelude::*;

    type Seen = Vec<(Stream, Vec<u8>, bool)>;

    fn records(batch: &Batch) -> Seen {
        batch
            .iter()
            .map(|record| match record {
                RecordRef::Output {
                    stream,
                    bytes,
                    partial,
                    ..
                } => (stream, bytes.to_vec(), partial),
                RecordRef::Event(event) => panic!("{event:?}"),
            })
            .collect()
    }

    fn assemble(bytes: &[u8], cuts: &[usize]) -> Seen {
        let mut lines = LineAssembler::default();
        let mut batch = Batch::new();
        let mut start = 0;
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        for cut in cuts {
            lines.push(
                Timestamp::now(),
                Stream::Stdout,
                &bytes[start..cut],
                &mut batch,
            );
            assert!(lines.open[Stream::Stdout].len() <= MAX_RECORD_BYTES);
            start = cut;
        }
        lines.finish(&mut batch);
        records(&batch)
    }

    fn bytes_of(records: &Seen) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (_, line, partial) in records {
            bytes.extend_from_slice(line);
            if !partial {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    /// Lines of lengths around the record size, with wide and invalid characters.
    fn output() -> impl Strategy<Value = Vec<u8>> {
        let line = (
            prop_oneof![Just("x"), Just("é"), Just("€"), Just("🦀")],
            prop_oneof![
                0usize..40,
                (MAX_RECORD_BYTES / 4 - 3)..(MAX_RECORD_BYTES / 4 + 3),
                (MAX_RECORD_BYTES - 5)..(MAX_RECORD_BYTES + 5),
                Just(2 * MAX_RECORD_BYTES + 1)
            ],
            prop::collection::vec(any::<u8>(), 0..4),
            any::<bool>(),
        )
            .prop_map(|(text, count, noise, newline)| {
                let mut line = text.repeat(count).into_bytes();
                line.extend(noise);
                if newline {
                    line.push(b'\n');
                }
                line
            });
        prop::collection::vec(line, 0..6).prop_map(|lines| lines.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn records_do_not_depend_on_chunk_boundaries(
            bytes in output(),
            cuts in prop::collection::vec(any::<usize>(), 0..20),
        ) {
            let whole = assemble(&bytes, &[]);
            prop_assert_eq!(&bytes_of(&whole), &bytes);
            prop_assert_eq!(&assemble(&bytes, &cuts), &whole);
            for (_, line, _) in &whole {
                prop_assert!(line.len() <= MAX_RECORD_BYTES);
            }
            if std::str::from_utf8(&bytes).is_ok() {
                for (_, line, _) in &whole {
                    prop_assert!(std::str::from_utf8(line).is_ok(), "a character was split");
                }
            }
        }
    }

    #[test]
    fn a_line_of_the_maximum_size_is_one_record() {
        let mut bytes = vec![b'x'; MAX_RECORD_BYTES];
        bytes.push(b'\n');
        assert_eq!(
            assemble(&bytes, &[1, MAX_RECORD_BYTES]),
            [(Stream::Stdout, vec![b'x'; MAX_RECORD_BYTES], false)]
        );
    }

    #[test]
    fn streams_do_not_mix() {
        let mut lines = LineAssembler::default();
        let mut batch = Batch::new();
        let now = Timestamp::now();
        lines.push(now, Stream::Stdout, b"o1", &mut batch);
        lines.push(now, Stream::Stderr, b"e1\ne2", &mut batch);
        lines.push(now, Stream::Stdout, b"!\n\n", &mut batch);
        lines.finish(&mut batch);
        assert_eq!(
            records(&batch),
            [
                (Stream::Stderr, b"e1".to_vec(), false),
                (Stream::Stdout, b"o1!".to_vec(), false),
                (Stream::Stdout, b"".to_vec(), false),
                (Stream::Stderr, b"e2".to_vec(), true),
            ]
        );
    }

    #[test]
    fn u_fffd_is_lossy_only_from_a_replacing_log() {
        let lossy = |replaced: bool| {
            let mut lines = LineAssembler::default();
            let mut batch = Batch::new();
            lines.set_replacing_log(replaced);
            lines.push(
                Timestamp::now(),
                Stream::Stdout,
                "a\n\u{FFFD}\n".as_bytes(),
                &mut batch,
            );
            batch
                .iter()
                .map(|record| matches!(record, RecordRef::Output { lossy: true, .. }))
                .collect::<Vec<_>>()
        };
        assert_eq!(lossy(true), [false, true]);
        assert_eq!(lossy(false), [false, false]);
    }
}

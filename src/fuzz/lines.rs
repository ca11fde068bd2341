//! The target of the line assembler.

use crate::audit::{Batch, RecordRef};
use crate::capture::{LineAssembler, MAX_RECORD_BYTES};
use crate::fuzz::Input;
use crate::outcome::Stream;
use crate::timestamp::Timestamp;

/// The number of bytes after which the rest of the input is ignored.
const MAX_BYTES: usize = 4 * MAX_RECORD_BYTES;

#[derive(Debug, PartialEq)]
struct OutputRecord {
    stream: Stream,
    line: Vec<u8>,
    partial: bool,
    lossy: bool,
}

/// Checks that records are a function of a stream's bytes.
///
/// The records must not depend on how the bytes are split, or mixed with another stream's. They
/// must rejoin to the bytes, and must not split a character.
///
/// The input is a sequence of chunks, each a byte of flags and its operands. Bits 0 and 1 are the
/// stream. Bits 2 and 3 are the kind: 0 is a newline; 1 is a unit of up to 4 bytes, whose number of
/// repetitions is in the next two bytes; others are bytes whose number is in the next byte.
pub fn lines(input: &[u8]) {
    let chunks = parse(input);
    let mixed = assemble(
        chunks.iter().map(|(stream, bytes)| (*stream, &bytes[..])),
        false,
    );
    for stream in Stream::ALL {
        let of_stream = chunks.iter().filter(|chunk| chunk.0 == stream);
        let bytes: Vec<u8> = of_stream.flat_map(|(_, bytes)| bytes.clone()).collect();
        let records: Vec<_> = mixed.iter().filter(|one| one.stream == stream).collect();
        assert_rejoins(&records, &bytes);

        let at_once = assemble([(stream, &bytes[..])].into_iter(), false);
        assert!(
            at_once.iter().eq(records),
            "records depend on other streams"
        );
        assert_independent_of_chunks(stream, &bytes, at_once);
    }
}

/// The chunks that the input describes.
fn parse(input: &[u8]) -> Vec<(Stream, Vec<u8>)> {
    let mut input = Input(input);
    let mut chunks = Vec::new();
    let mut total = 0;
    while !input.is_empty() && total < MAX_BYTES {
        let flags = input.byte();
        let stream = Stream::ALL[usize::from(flags & 3) % Stream::ALL.len()];
        let bytes = match flags >> 2 & 3 {
            0 => b"\n".to_vec(),
            1 => {
                let unit = usize::from(flags >> 4 & 3) + 1;
                let times = input.short() % (2 * MAX_RECORD_BYTES + 2);
                input.take(unit).repeat(times)
            }
            _ => {
                let length = usize::from(input.byte());
                input.take(length).to_vec()
            }
        };
        total += bytes.len();
        chunks.push((stream, bytes));
    }
    chunks
}

fn assemble<'a>(
    chunks: impl Iterator<Item = (Stream, &'a [u8])>,
    replacing_log: bool,
) -> Vec<OutputRecord> {
    let ts = Timestamp::now();
    let mut lines = LineAssembler::default();
    lines.set_replacing_log(replacing_log);
    let mut batch = Batch::new();
    for (stream, bytes) in chunks {
        lines.push(ts, stream, bytes, &mut batch);
        let open = lines.open(stream).len();
        assert!(open <= MAX_RECORD_BYTES, "{open} bytes held");
    }
    lines.finish(&mut batch);
    assert!(Stream::ALL.iter().all(|one| lines.open(*one).is_empty()));
    let records = batch.iter().map(|record| match record {
        RecordRef::Output {
            stream,
            bytes,
            partial,
            lossy,
            ..
        } => OutputRecord {
            stream,
            line: bytes.to_vec(),
            partial,
            lossy,
        },
        RecordRef::Event(event) => panic!("{event:?}"),
    });
    records.collect()
}

fn assert_rejoins(records: &[&OutputRecord], bytes: &[u8]) {
    let mut joined = Vec::new();
    for record in records {
        let line = &record.line;
        assert!(line.len() <= MAX_RECORD_BYTES && !line.contains(&b'\n'));
        assert!(!record.lossy, "unchanged bytes are marked as lossy");
        assert!(
            !(record.partial && line.is_empty()),
            "an empty partial record"
        );
        joined.extend_from_slice(line);
        joined.extend((!record.partial).then_some(b'\n'));
    }
    assert!(joined == bytes, "the records do not rejoin to the stream");
    if std::str::from_utf8(bytes).is_ok() {
        let is_text = |record: &&OutputRecord| std::str::from_utf8(&record.line).is_ok();
        assert!(records.iter().all(is_text), "a character is split");
    }
}

/// `at_once` are the records of `bytes` in one chunk.
fn assert_independent_of_chunks(stream: Stream, bytes: &[u8], at_once: Vec<OutputRecord>) {
    // A short input is split into single bytes.
    let size = 1 + bytes.len() / MAX_RECORD_BYTES * 97;
    let small = assemble(bytes.chunks(size).map(|chunk| (stream, chunk)), false);
    assert!(small == at_once, "records depend on the chunks");

    // A log that replaces bytes gives the same records, with the possibly changed ones marked.
    let mut replacing = assemble(bytes.chunks(7).map(|chunk| (stream, chunk)), true);
    for record in &mut replacing {
        let replaced = memchr::memmem::find(&record.line, "\u{fffd}".as_bytes()).is_some();
        assert_eq!(record.lossy, replaced);
        record.lossy = false;
    }
    assert!(replacing == at_once, "records depend on the source");
}

//! The target of the demultiplexer.

use crate::fuzz::Input;
use crate::outcome::Stream;
use crate::runtime::docker::output::FramingError;
use crate::runtime::docker::output::chunks::CHUNK_BYTES;
use crate::runtime::docker::output::demux::{Demux, HEADER_BYTES, MAX_ERROR_BYTES};

/// The output of the demultiplexer: sequences of bytes of one stream, then an error.
#[derive(Debug, Default, PartialEq)]
struct Demuxed {
    sequences: Vec<(Stream, Vec<u8>)>,
    error: Option<FramingError>,
}

impl Demuxed {
    fn add(&mut self, stream: Stream, bytes: &[u8]) {
        match self.sequences.last_mut() {
            _ if bytes.is_empty() => {}
            Some((last, all)) if *last == stream => all.extend_from_slice(bytes),
            _ => self.sequences.push((stream, bytes.to_vec())),
        }
    }

    /// Takes all output that `demux` has.
    fn drain(&mut self, demux: &mut Demux) {
        while let Some(item) = demux.pop() {
            assert_eq!(self.error, None, "{item:?} came after an error");
            match item {
                Ok(chunk) => {
                    assert!(!chunk.bytes.is_empty(), "an empty chunk");
                    self.add(chunk.stream, &chunk.bytes);
                }
                Err(error) => self.error = Some(error),
            }
        }
    }

    fn bytes(&self) -> usize {
        self.sequences.iter().map(|(_, bytes)| bytes.len()).sum()
    }
}

/// Checks the demultiplexer against a simple model, for any split of its input.
///
/// The output must be each frame's payload, complete, in order and on its stream, followed by the
/// error that ends the input. A terminal's bytes must be unchanged.
///
/// The input is a byte of flags, the number of splits, a byte for each split, and the bytes to
/// demultiplex. Bit 0 of the flags is set for a terminal. Bits 1 to 3 are n: the bytes are repeated
/// 2^n times.
pub fn demux(input: &[u8]) {
    let mut input = Input(input);
    let flags = input.byte();
    let tty = flags & 1 == 1;
    let count = usize::from(input.byte());
    let splits = input.take(count);
    let bytes = input.0.repeat(1 << (flags >> 1 & 7));

    let mut demux = Demux::new(tty);
    let mut actual = Demuxed::default();
    push_in_parts(&mut demux, &mut actual, splits, &bytes, tty);
    demux.finish();
    actual.drain(&mut demux);
    assert_eq!(actual, model(tty, &bytes));

    demux.push(b"\x01\0\0\0\0\0\0\x01x".as_slice().into());
    demux.finish();
    assert_eq!(demux.pop(), None, "output after the end");
}

fn push_in_parts(demux: &mut Demux, actual: &mut Demuxed, splits: &[u8], bytes: &[u8], tty: bool) {
    let (mut rest, mut pushed) = (Input(bytes), 0);
    for split in splits.iter().map(Some).chain([None]) {
        // Parts of single bytes and of thousands. Bit 6 requests a flush.
        let length = match split {
            Some(split) if split & 0x80 == 0 => usize::from(*split),
            Some(split) => usize::from(split & 0x3f) << 9,
            None => usize::MAX,
        };
        let part = rest.take(length);
        pushed += part.len();
        demux.push(part.to_vec().into());
        if split.is_some_and(|split| split & 0x40 != 0) {
            demux.flush();
        }
        actual.drain(demux);
        if tty {
            let held = pushed - actual.bytes();
            assert!(held < CHUNK_BYTES, "{held} bytes held");
        }
    }
}

/// The expected output for `bytes`.
fn model(tty: bool, bytes: &[u8]) -> Demuxed {
    let mut expected = Demuxed::default();
    if tty {
        expected.add(Stream::Tty, bytes);
        return expected;
    }
    let mut rest = Input(bytes);
    while !rest.is_empty() && expected.error.is_none() {
        expected.error = model_frame(&mut rest, &mut expected);
    }
    expected
}

/// Adds the payload of the next frame, and returns the error of an invalid frame.
fn model_frame(rest: &mut Input<'_>, expected: &mut Demuxed) -> Option<FramingError> {
    let Ok(header) = <[u8; HEADER_BYTES]>::try_from(rest.take(HEADER_BYTES)) else {
        return Some(FramingError::Dangling);
    };
    let [kind, 0, 0, 0, length @ ..] = header else {
        return Some(FramingError::Header(header));
    };
    let length = u32::from_be_bytes(length) as usize;
    let payload = rest.take(length);
    match kind {
        1 => expected.add(Stream::Stdout, payload),
        2 => expected.add(Stream::Stderr, payload),
        3 => {
            let text = String::from_utf8_lossy(&payload[..payload.len().min(MAX_ERROR_BYTES)]);
            return Some(FramingError::Engine(text.trim().to_owned()));
        }
        _ => return Some(FramingError::Header(header)),
    }
    (payload.len() < length).then_some(FramingError::Dangling)
}

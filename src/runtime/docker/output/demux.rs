//! Parses the engine's framing of output, without I/O: bytes in, chunks out.

use bytes::{Buf, Bytes};

use super::FramingError;
use super::chunks::Chunks;
use crate::outcome::Stream;
use crate::runtime::Chunk;
use crate::timestamp::Timestamp;

/// The length of a frame's header, in bytes.
///
/// A header is the type, three zeros, and the payload's length in big endian.
pub(crate) const HEADER_BYTES: usize = 8;
/// The maximum length of a record's time, in bytes.
const MAX_TIME_BYTES: usize = 40;
/// The maximum length of the engine's error message, in bytes. The rest is cut off.
pub(crate) const MAX_ERROR_BYTES: usize = 1 << 10;

/// The demultiplexer of an engine's output stream.
///
/// Without a terminal, the stream is a sequence of frames. With a terminal, it is raw bytes. The
/// container's settings decide between the two, never the bytes. Beyond the chunks that can be
/// popped, the demultiplexer holds at most 64 KiB, whatever length a frame claims to have.
#[derive(Debug)]
pub(crate) struct Demux {
    state: State,
    /// True if each payload begins with the time of its record, and a space.
    timestamps: bool,
    chunks: Chunks,
}

/// The kind of the next byte in the stream.
#[derive(Debug)]
enum State {
    Terminal,
    /// A header: its buffer, and the number of bytes in it.
    Header([u8; HEADER_BYTES], usize),
    /// The time in a payload: its text, the stream, and the number of remaining bytes.
    Time(Vec<u8>, Stream, u32),
    /// A payload: its stream and time, and the number of remaining bytes.
    Payload((Stream, Option<Timestamp>), u32),
    /// The engine's error: its text, and the number of remaining bytes.
    Error(Vec<u8>, u32),
    /// The end of the stream, possibly after an error.
    End,
}

const START: State = State::Header([0; HEADER_BYTES], 0);

impl Demux {
    pub(crate) fn new(tty: bool) -> Self {
        Self {
            state: if tty { State::Terminal } else { START },
            timestamps: false,
            chunks: Chunks::new(),
        }
    }

    /// Creates the demultiplexer of a log without a terminal, whose records begin with their times.
    pub(crate) fn with_timestamps() -> Self {
        Self {
            timestamps: true,
            ..Self::new(false)
        }
    }

    /// Parses the next bytes of the stream.
    pub(crate) fn push(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Terminal => {
                    let all = std::mem::take(&mut bytes);
                    self.chunks.push((Stream::Tty, None), all, 0);
                }
                State::Header(header, filled) => {
                    let count = bytes.len().min(HEADER_BYTES - *filled);
                    bytes.copy_to_slice(&mut header[*filled..*filled + count]);
                    *filled += count;
                    if *filled == HEADER_BYTES {
                        let header = *header;
                        self.enter(header);
                    }
                }
                State::Time(text, stream, remaining) => {
                    let searched = bytes.len().min(*remaining as usize);
                    let space = memchr::memchr(b' ', &bytes[..searched]);
                    let piece = bytes.split_to(space.map_or(searched, |at| at + 1));
                    *remaining -= piece.len() as u32;
                    text.extend_from_slice(&piece[..MAX_TIME_BYTES.min(piece.len())]);
                    let (stream, remaining) = (*stream, *remaining);
                    if space.is_some() {
                        let Some(time) = parse_time(text) else {
                            return self.fail(FramingError::Time);
                        };
                        self.state = payload((stream, Some(time)), remaining);
                    } else if remaining == 0 || text.len() >= MAX_TIME_BYTES {
                        return self.fail(FramingError::Time);
                    }
                }
                State::Payload(source, remaining) => {
                    let source = *source;
                    let piece = bytes.split_to(bytes.len().min(*remaining as usize));
                    *remaining -= piece.len() as u32;
                    if *remaining == 0 {
                        self.state = START;
                    }
                    self.chunks.push(source, piece, bytes.len());
                }
                State::Error(text, remaining) => {
                    let piece = bytes.split_to(bytes.len().min(*remaining as usize));
                    *remaining -= piece.len() as u32;
                    let room = MAX_ERROR_BYTES - text.len();
                    text.extend_from_slice(&piece[..piece.len().min(room)]);
                    if *remaining == 0 || text.len() == MAX_ERROR_BYTES {
                        self.finish();
                    }
                }
                State::End => return,
            }
        }
    }

    /// Makes the held bytes available to [`pop`](Self::pop).
    pub(crate) fn flush(&mut self) {
        self.chunks.flush();
    }

    /// Ends the stream. An end inside a frame is an error.
    pub(crate) fn finish(&mut self) {
        match std::mem::replace(&mut self.state, State::End) {
            State::Terminal | State::Header(_, 0) => self.flush(),
            State::Header(..) | State::Time(..) | State::Payload(..) => {
                self.fail(FramingError::Dangling);
            }
            State::Error(text, _) => {
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                self.fail(FramingError::Engine(text));
            }
            State::End => {}
        }
    }

    /// Returns the next chunk, or the error that ends the stream.
    pub(crate) fn pop(&mut self) -> Option<Result<Chunk, FramingError>> {
        self.chunks.pop()
    }

    fn enter(&mut self, header: [u8; HEADER_BYTES]) {
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let stream = match header[..4] {
            [1, 0, 0, 0] => Stream::Stdout,
            [2, 0, 0, 0] => Stream::Stderr,
            [3, 0, 0, 0] => {
                self.state = State::Error(Vec::new(), length);
                if length == 0 {
                    self.finish();
                }
                return;
            }
            // Type 0 is stdin, which engines do not send.
            _ => return self.fail(FramingError::Header(header)),
        };
        self.state = match length {
            0 if self.timestamps => return self.fail(FramingError::Time),
            length if self.timestamps => State::Time(Vec::new(), stream, length),
            length => payload((stream, None), length),
        };
    }

    fn fail(&mut self, error: FramingError) {
        self.state = State::End;
        self.chunks.fail(error);
    }
}

/// The state at the beginning of a payload.
fn payload(source: (Stream, Option<Timestamp>), length: u32) -> State {
    match length {
        0 => START,
        length => State::Payload(source, length),
    }
}

/// Parses the time of a record, with the space after it.
fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let text = text.strip_suffix(b" ")?;
    // Docker's form is the fixed one.
    Timestamp::parse_fixed(text).or_else(|| std::str::from_utf8(text).ok()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::docker::output::chunks::{CHUNK_BYTES, ZERO_COPY_BYTES};
    use proptest::prelude::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 0, 0];
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// The output, merged by stream, and the error.
    type Seen = (Vec<(Stream, Vec<u8>)>, Option<FramingError>);

    fn drain(demux: &mut Demux, seen: &mut Seen) {
        while let Some(item) = demux.pop() {
            assert!(seen.1.is_none(), "an item after an error: {item:?}");
            match item {
                Ok(chunk) => {
                    assert!(!chunk.bytes.is_empty(), "an empty chunk");
                    match seen.0.last_mut() {
                        Some((stream, bytes)) if *stream == chunk.stream => {
                            bytes.extend_from_slice(&chunk.bytes);
                        }
                        _ => seen.0.push((chunk.stream, chunk.bytes.to_vec())),
                    }
                }
                Err(error) => seen.1 = Some(error),
            }
        }
    }

    /// Parses `input` in pieces of `cuts` bytes, each with an optional flush.
    fn run(tty: bool, input: &[u8], cuts: &[(usize, bool)]) -> Seen {
        let mut demux = Demux::new(tty);
        let mut seen = Seen::default();
        let mut rest = input;
        for &(cut, flush) in cuts.iter().chain([&(usize::MAX, false)]) {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            demux.push(Bytes::copy_from_slice(piece));
            if flush {
                demux.flush();
            }
            drain(&mut demux, &mut seen);
            rest = after;
        }
        demux.finish();
        drain(&mut demux, &mut seen);
        demux.push(Bytes::from_static(b"more"));
        demux.finish();
        assert_eq!(demux.pop(), None, "not fused");
        seen
    }

    fn whole(input: &[u8]) -> Seen {
        run(false, input, &[])
    }

    #[test]
    fn frames_are_split_by_stream_in_order() {
        let input = [
            frame(1, b"a\n"),
            frame(1, b"b\n"),
            frame(2, b"c\n"),
            frame(1, b""),
            frame(1, b"d\n"),
        ]
        .concat();
        let (seen, error) = whole(&input);
        assert_eq!(
            seen,
            [
                (Stream::Stdout, b"a\nb\n".to_vec()),
                (Stream::Stderr, b"c\n".to_vec()),
                (Stream::Stdout, b"d\n".to_vec()),
            ]
        );
        assert_eq!(error, None);
    }

    /// Parses records that begin with their times, in pieces of `size` bytes.
    fn run_timed(input: &[u8], size: usize) -> Vec<Result<Chunk, FramingError>> {
        let mut demux = Demux::with_timestamps();
        input
            .chunks(size)
            .for_each(|piece| demux.push(Bytes::copy_from_slice(piece)));
        demux.finish();
        std::iter::from_fn(|| demux.pop()).collect()
    }

    #[test]
    fn each_record_has_its_time() {
        let times = [
            "2026-11-22T18:23:25.491211661Z",
            "2026-11-22T18:23:26.000000000Z",
        ];
        let input = [
            frame(1, format!("{} a b\n", times[0]).as_bytes()),
            frame(1, format!("{} ", times[1]).as_bytes()),
            frame(1, format!("{} \n", times[1]).as_bytes()),
            frame(2, format!("{} c", times[1]).as_bytes()),
        ]
        .concat();
        let chunk = |stream, bytes: &'static str, at: usize| Chunk {
            logged_at: Some(times[at].parse().unwrap()),
            ..Chunk::new(stream, bytes)
        };
        let expected = [
            Ok(chunk(Stream::Stdout, "a b\n", 0)),
            Ok(chunk(Stream::Stdout, "\n", 1)),
            Ok(chunk(Stream::Stderr, "c", 1)),
        ];
        for size in 1..=input.len() {
            assert_eq!(run_timed(&input, size), expected, "pieces of {size} bytes");
        }
    }

    #[test]
    fn a_record_without_a_time_is_an_error() {
        for record in [&b""[..], b"no time", b"no time at all\n", &[b'x'; 100]] {
            for size in [1, 7, 200] {
                let seen = run_timed(&frame(1, record), size);
                assert_eq!(seen, [Err(FramingError::Time)], "{record:?}");
            }
        }
        let cut = &frame(1, b"2026-11-22T18:23:25.491211661Z a")[..20];
        assert_eq!(run_timed(cut, 20), [Err(FramingError::Dangling)]);
    }

    #[test]
    fn a_terminal_has_no_frames() {
        let input = b"\x01\0\0\0\xff\xff\xff\xff x\nhidden\n\x03\0\0\0\0\0\0\x01";
        let (seen, error) = run(true, input, &[(3, false), (9, true)]);
        assert_eq!(seen, [(Stream::Tty, input.to_vec())]);
        assert_eq!(error, None);
    }

    #[test]
    fn many_small_frames_become_few_chunks() {
        let line = frame(1, &[b'x'; 80]);
        let mut demux = Demux::new(false);
        demux.push(Bytes::from(line.repeat(10_000)));
        demux.finish();
        let chunks = std::iter::from_fn(|| demux.pop()).count();
        assert!((10..20).contains(&chunks), "{chunks}");
    }

    #[test]
    fn large_pieces_are_not_copied() {
        let input = Bytes::from(frame(1, &[b'x'; ZERO_COPY_BYTES]));
        let mut demux = Demux::new(false);
        demux.push(input.clone());
        let chunk = demux.pop().unwrap().unwrap();
        assert_eq!(chunk.bytes.as_ptr(), input[HEADER_BYTES..].as_ptr());
    }

    #[test]
    fn a_frame_of_four_gigabytes_is_not_buffered() {
        let mut demux = Demux::new(false);
        demux.push(Bytes::from_static(b"\x01\0\0\0\xff\xff\xff\xff"));
        let mut bytes = 0;
        for _ in 0..100 {
            demux.push(Bytes::from(vec![b'x'; 10_000]));
            assert!(demux.chunks.held() < CHUNK_BYTES);
            while let Some(chunk) = demux.pop() {
                bytes += chunk.unwrap().bytes.len();
            }
        }
        demux.finish();
        bytes += demux.pop().unwrap().unwrap().bytes.len();
        assert_eq!(bytes, 1_000_000);
        assert_eq!(demux.pop(), Some(Err(FramingError::Dangling)));
    }

    #[test]
    fn an_end_inside_a_frame_is_an_error() {
        for cut in 1..HEADER_BYTES + 3 {
            let input = [frame(2, b"ok"), frame(1, b"abc")[..cut].to_vec()].concat();
            let (seen, error) = whole(&input);
            assert_eq!(error, Some(FramingError::Dangling), "{cut}");
            assert_eq!(seen[0], (Stream::Stderr, b"ok".to_vec()));
        }
    }

    #[test]
    fn an_invalid_header_is_an_error_after_the_output() {
        for header in [
            *b"\0\0\0\0\0\0\0\x01",
            *b"\x04\0\0\0\0\0\0\x01",
            *b"\x01\x01\0\0\0\0\0\x01",
            *b"\x01\0\0\x01\0\0\0\x01",
            *b"HTTP/1.1",
        ] {
            let (seen, error) = whole(&[frame(1, b"ok"), header.to_vec()].concat());
            assert_eq!(error, Some(FramingError::Header(header)));
            assert_eq!(seen, [(Stream::Stdout, b"ok".to_vec())]);
        }
    }

    #[test]
    fn the_engines_error_ends_the_stream() {
        let (seen, error) = whole(&[frame(1, b"ok"), frame(3, b"disk full\n")].concat());
        assert_eq!(error, Some(FramingError::Engine("disk full".into())));
        assert_eq!(seen, [(Stream::Stdout, b"ok".to_vec())]);
        assert_eq!(
            whole(&frame(3, b"")).1,
            Some(FramingError::Engine(String::new()))
        );
        let long = frame(3, &[b'x'; 5000]);
        assert_eq!(
            whole(&long).1,
            Some(FramingError::Engine("x".repeat(MAX_ERROR_BYTES)))
        );
        assert_eq!(
            whole(&frame(3, b"disk full")[..12]).1,
            Some(FramingError::Engine("disk".into()))
        );
    }

    fn cuts() -> impl Strategy<Value = Vec<(usize, bool)>> {
        prop::collection::vec((0..40usize, any::<bool>()), 0..60)
    }

    proptest! {
        #[test]
        fn the_output_does_not_depend_on_the_cuts(
            frames in prop::collection::vec(
                (1..=2u8, prop::collection::vec(any::<u8>(), 0..50)),
                0..20,
            ),
            end in prop::collection::vec(any::<u8>(), 0..20),
            cuts in cuts(),
        ) {
            let mut input: Vec<u8> = frames.iter().flat_map(|(k, p)| frame(*k, p)).collect();
            input.extend(end);
            prop_assert_eq!(run(false, &input, &cuts), whole(&input));
        }

        #[test]
        fn each_byte_appears_exactly_once(
            frames in prop::collection::vec(
                (1..=2u8, prop::collection::vec(any::<u8>(), 1..50)),
                0..20,
            ),
            cuts in cuts(),
        ) {
            let input: Vec<u8> = frames.iter().flat_map(|(k, p)| frame(*k, p)).collect();
            let (seen, error) = run(false, &input, &cuts);
            prop_assert_eq!(error, None);
            let of = |kind, stream| {
                let sent: Vec<u8> = frames
                    .iter()
                    .filter(|(k, _)| *k == kind)
                    .flat_map(|(_, p)| p.clone())
                    .collect();
                let got: Vec<u8> = seen
                    .iter()
                    .filter(|(s, _)| *s == stream)
                    .flat_map(|(_, p)| p.clone())
                    .collect();
                (sent, got)
            };
            let (sent, got) = of(1, Stream::Stdout);
            prop_assert_eq!(sent, got);
            let (sent, got) = of(2, Stream::Stderr);
            prop_assert_eq!(sent, got);
        }

        #[test]
        fn no_input_panics(
            tty in any::<bool>(),
            input in prop::collection::vec(any::<u8>(), 0..200),
            cuts in cuts(),
        ) {
            run(tty, &input, &cuts);
        }
    }
}

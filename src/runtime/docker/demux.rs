//! The engine's framing of a container's output: bytes in, chunks out. It knows no connection.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::outcome::Stream;
use crate::runtime::Chunk;

/// The length of a frame's header: type, three zeros, the payload's length in big endian.
pub(crate) const HEADER: usize = 8;
/// Shorter pieces are copied together: a chunk must not pin a read buffer many times its size.
const WHOLE: usize = 16 << 10;
/// Where pieces that are copied together are cut.
pub(crate) const CHUNK: usize = 64 << 10;
/// The most that is kept of the engine's own error.
pub(crate) const ERROR_TEXT: usize = 1 << 10;

/// Takes an engine's output stream apart.
///
/// Without a terminal it is a sequence of frames; with one it is the bytes themselves. Which of
/// them follows from how the container was made, never from the bytes. It holds at most 64 KiB of
/// output beyond what can be popped, however long a frame claims to be.
#[derive(Debug)]
pub(crate) struct Demux {
    place: Place,
    /// Pieces of one stream that are not yet worth a chunk.
    small: (Stream, Vec<u8>),
    ready: VecDeque<Result<Chunk, Fault>>,
}

/// What is wrong with the framing. Nothing comes after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0:02x?} is not the header of a frame")]
    Header([u8; HEADER]),
    #[error("dangling frame: the output ended in the middle of one")]
    Dangling,
    #[error("the engine's own error: {0}")]
    Engine(String),
}

/// Where in the stream the next byte stands.
#[derive(Debug)]
enum Place {
    Terminal,
    /// In a header, of which so many bytes are known.
    Header([u8; HEADER], usize),
    /// In a payload, of which so many bytes are to come.
    Payload(Stream, u32),
    /// In the engine's own error, of which so many bytes are to come.
    Error(Vec<u8>, u32),
    /// After the end or a fault.
    End,
}

const START: Place = Place::Header([0; HEADER], 0);

impl Demux {
    pub(crate) fn new(tty: bool) -> Self {
        Self {
            place: if tty { Place::Terminal } else { START },
            small: (Stream::Tty, Vec::new()),
            ready: VecDeque::new(),
        }
    }

    /// Takes the next bytes of the stream.
    pub(crate) fn push(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            match &mut self.place {
                Place::Terminal => {
                    let all = std::mem::take(&mut bytes);
                    self.emit(Stream::Tty, all, 0);
                }
                Place::Header(header, filled) => {
                    let count = bytes.len().min(HEADER - *filled);
                    bytes.copy_to_slice(&mut header[*filled..*filled + count]);
                    *filled += count;
                    if *filled == HEADER {
                        let header = *header;
                        self.enter(header);
                    }
                }
                Place::Payload(stream, left) => {
                    let stream = *stream;
                    let piece = bytes.split_to(bytes.len().min(*left as usize));
                    *left -= piece.len() as u32;
                    if *left == 0 {
                        self.place = START;
                    }
                    self.emit(stream, piece, bytes.len());
                }
                Place::Error(text, left) => {
                    let piece = bytes.split_to(bytes.len().min(*left as usize));
                    *left -= piece.len() as u32;
                    let room = ERROR_TEXT - text.len();
                    text.extend_from_slice(&piece[..piece.len().min(room)]);
                    if *left == 0 || text.len() == ERROR_TEXT {
                        self.finish();
                    }
                }
                Place::End => return,
            }
        }
    }

    /// Says that no more bytes come for now: what was held back can be popped.
    pub(crate) fn flush(&mut self) {
        let (stream, mut bytes) = (self.small.0, std::mem::take(&mut self.small.1));
        if !bytes.is_empty() {
            // Room that was made for what was another stream's must not wait with it.
            if bytes.capacity() > 2 * bytes.len() {
                bytes.shrink_to_fit();
            }
            let bytes = Bytes::from(bytes);
            self.ready.push_back(Ok(Chunk { stream, bytes }));
        }
    }

    /// Says that the stream has ended. Only between two frames is that a clean end.
    pub(crate) fn finish(&mut self) {
        match std::mem::replace(&mut self.place, Place::End) {
            Place::Terminal | Place::Header(_, 0) => self.flush(),
            Place::Header(..) | Place::Payload(..) => self.fail(Fault::Dangling),
            Place::Error(text, _) => {
                let text = String::from_utf8_lossy(&text).trim().to_owned();
                self.fail(Fault::Engine(text));
            }
            Place::End => {}
        }
    }

    /// The next chunk, or the fault, after which there is nothing.
    pub(crate) fn pop(&mut self) -> Option<Result<Chunk, Fault>> {
        self.ready.pop_front()
    }

    fn enter(&mut self, header: [u8; HEADER]) {
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let stream = match header[..4] {
            [1, 0, 0, 0] => Stream::Stdout,
            [2, 0, 0, 0] => Stream::Stderr,
            [3, 0, 0, 0] => {
                self.place = Place::Error(Vec::new(), length);
                if length == 0 {
                    self.finish();
                }
                return;
            }
            // Type 0 is standard input, which an engine has no reason to send.
            _ => return self.fail(Fault::Header(header)),
        };
        self.place = match length {
            0 => START,
            length => Place::Payload(stream, length),
        };
    }

    /// Passes a piece on, behind which so many bytes are here already, of whichever stream.
    fn emit(&mut self, stream: Stream, piece: Bytes, more: usize) {
        if self.small.0 != stream {
            self.flush();
            self.small.0 = stream;
        }
        if piece.len() >= WHOLE {
            self.flush();
            self.ready.push_back(Ok(Chunk {
                stream,
                bytes: piece,
            }));
            return;
        }
        if self.small.1.is_empty() {
            self.small.1.reserve((piece.len() + more).min(CHUNK));
        }
        self.small.1.extend_from_slice(&piece);
        if self.small.1.len() >= CHUNK {
            self.flush();
        }
    }

    fn fail(&mut self, fault: Fault) {
        self.flush();
        self.place = Place::End;
        self.ready.push_back(Err(fault));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 0, 0];
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// The runs of bytes of one stream, and the fault.
    type Seen = (Vec<(Stream, Vec<u8>)>, Option<Fault>);

    fn drain(demux: &mut Demux, seen: &mut Seen) {
        while let Some(item) = demux.pop() {
            assert!(seen.1.is_none(), "{item:?} came after a fault");
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
                Err(fault) => seen.1 = Some(fault),
            }
        }
    }

    /// What comes out of `input` when it is cut after each of `cuts` bytes, in turn.
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
    fn frames_come_out_as_the_bytes_of_their_streams_in_order() {
        let input = [
            frame(1, b"a\n"),
            frame(1, b"b\n"),
            frame(2, b"c\n"),
            frame(1, b""),
            frame(1, b"d\n"),
        ]
        .concat();
        let (seen, fault) = whole(&input);
        assert_eq!(
            seen,
            [
                (Stream::Stdout, b"a\nb\n".to_vec()),
                (Stream::Stderr, b"c\n".to_vec()),
                (Stream::Stdout, b"d\n".to_vec()),
            ]
        );
        assert_eq!(fault, None);
    }

    #[test]
    fn a_terminal_has_no_frames_whatever_its_bytes_look_like() {
        let input = b"\x01\0\0\0\xff\xff\xff\xff x\nhidden\n\x03\0\0\0\0\0\0\x01";
        let (seen, fault) = run(true, input, &[(3, false), (9, true)]);
        assert_eq!(seen, [(Stream::Tty, input.to_vec())]);
        assert_eq!(fault, None);
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
        let input = Bytes::from(frame(1, &[b'x'; WHOLE]));
        let mut demux = Demux::new(false);
        demux.push(input.clone());
        let chunk = demux.pop().unwrap().unwrap();
        assert_eq!(chunk.bytes.as_ptr(), input[HEADER..].as_ptr());
    }

    #[test]
    fn a_frame_that_claims_four_gigabytes_is_passed_on_piece_by_piece() {
        let mut demux = Demux::new(false);
        demux.push(Bytes::from_static(b"\x01\0\0\0\xff\xff\xff\xff"));
        let mut bytes = 0;
        for _ in 0..100 {
            demux.push(Bytes::from(vec![b'x'; 10_000]));
            assert!(demux.small.1.len() < CHUNK);
            while let Some(chunk) = demux.pop() {
                bytes += chunk.unwrap().bytes.len();
            }
        }
        demux.finish();
        bytes += demux.pop().unwrap().unwrap().bytes.len();
        assert_eq!(bytes, 1_000_000);
        assert_eq!(demux.pop(), Some(Err(Fault::Dangling)));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_dangling() {
        for cut in 1..HEADER + 3 {
            let input = [frame(2, b"ok"), frame(1, b"abc")[..cut].to_vec()].concat();
            let (seen, fault) = whole(&input);
            assert_eq!(fault, Some(Fault::Dangling), "{cut}");
            assert_eq!(seen[0], (Stream::Stderr, b"ok".to_vec()));
        }
    }

    #[test]
    fn anything_but_the_header_of_a_frame_is_a_fault_after_what_came_before_it() {
        for header in [
            *b"\0\0\0\0\0\0\0\x01",
            *b"\x04\0\0\0\0\0\0\x01",
            *b"\x01\x01\0\0\0\0\0\x01",
            *b"\x01\0\0\x01\0\0\0\x01",
            *b"HTTP/1.1",
        ] {
            let (seen, fault) = whole(&[frame(1, b"ok"), header.to_vec()].concat());
            assert_eq!(fault, Some(Fault::Header(header)));
            assert_eq!(seen, [(Stream::Stdout, b"ok".to_vec())]);
        }
    }

    #[test]
    fn the_engines_own_error_is_a_fault_and_no_output() {
        let (seen, fault) = whole(&[frame(1, b"ok"), frame(3, b"disk full\n")].concat());
        assert_eq!(fault, Some(Fault::Engine("disk full".into())));
        assert_eq!(seen, [(Stream::Stdout, b"ok".to_vec())]);
        assert_eq!(whole(&frame(3, b"")).1, Some(Fault::Engine(String::new())));
        let long = frame(3, &[b'x'; 5000]);
        assert_eq!(whole(&long).1, Some(Fault::Engine("x".repeat(ERROR_TEXT))));
        assert_eq!(
            whole(&frame(3, b"disk full")[..12]).1,
            Some(Fault::Engine("disk".into()))
        );
    }

    fn cuts() -> impl Strategy<Value = Vec<(usize, bool)>> {
        prop::collection::vec((0..40usize, any::<bool>()), 0..60)
    }

    proptest! {
        #[test]
        fn what_comes_out_does_not_depend_on_how_the_input_is_cut(
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
        fn no_byte_is_lost_or_doubled(
            frames in prop::collection::vec(
                (1..=2u8, prop::collection::vec(any::<u8>(), 1..50)),
                0..20,
            ),
            cuts in cuts(),
        ) {
            let input: Vec<u8> = frames.iter().flat_map(|(k, p)| frame(*k, p)).collect();
            let (seen, fault) = run(false, &input, &cuts);
            prop_assert_eq!(fault, None);
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
        fn no_input_makes_it_panic(
            tty in any::<bool>(),
            input in prop::collection::vec(any::<u8>(), 0..200),
            cuts in cuts(),
        ) {
            run(tty, &input, &cuts);
        }
    }
}

//! Parses the frames of a WebSocket that carries one stream of output (RFC 6455), without I/O.
//!
//! An engine ends this output with a Close frame of status 1000, after the last byte. A connection
//! that breaks, or that a proxy cuts, has no such frame.
//!
//! A library for WebSockets makes a message of each frame, that is, of each line: 48 ms for
//! 1,000,000 lines of 81 bytes with tungstenite 0.30, and 7 ms with this parser. Only the engine's
//! side of the protocol is here. Engines neither send pings nor use extensions.

use bytes::{Buf, Bytes};

use super::FramingError;
use super::chunks::Chunks;
use crate::outcome::Stream;
use crate::runtime::Chunk;

/// The longest header: two bytes, and the length in eight.
const MAX_HEADER_BYTES: usize = 10;
/// The largest payload of a control frame, in bytes.
const MAX_CONTROL_BYTES: usize = 125;
/// The status of a Close frame after the last byte.
const NORMAL_CLOSURE: u16 = 1000;

/// The parser of the frames of one stream.
///
/// Beyond the chunks that can be popped, it holds less than 64 KiB, whatever length a frame claims
/// to have.
#[derive(Debug)]
pub(crate) struct WebSocketFrames {
    stream: Stream,
    state: State,
    chunks: Chunks,
}

/// The kind of the next byte in the stream.
#[derive(Debug)]
enum State {
    /// A header: its buffer, and the number of bytes in it.
    Header([u8; MAX_HEADER_BYTES], usize),
    /// Output: the number of remaining bytes.
    Output(u64),
    /// The payload of a control frame: its kind, the bytes so far, and their total number.
    Control(Control, Vec<u8>, usize),
    /// The end of the stream, possibly after an error.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    Close,
    /// A ping or a pong. Neither carries output.
    Other,
}

/// A frame, as its header describes it.
enum Frame {
    Output(u64),
    Control(Control, usize),
}

const START: State = State::Header([0; MAX_HEADER_BYTES], 0);

impl WebSocketFrames {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            state: START,
            chunks: Chunks::new(),
        }
    }

    /// Parses the next bytes of the connection.
    pub(crate) fn push(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Header(header, filled) => {
                    header[*filled] = bytes.get_u8();
                    *filled += 1;
                    let header = &header[..*filled];
                    if header.len() >= 2 && header.len() == header_length(header[1]) {
                        match parse(header) {
                            Ok(frame) => self.enter(frame),
                            Err(reason) => self.fail(FramingError::WebSocket(reason)),
                        }
                    }
                }
                State::Output(remaining) => {
                    let length = usize::try_from(*remaining).unwrap_or(usize::MAX);
                    let piece = bytes.split_to(bytes.len().min(length));
                    *remaining -= piece.len() as u64;
                    if *remaining == 0 {
                        self.state = START;
                    }
                    self.chunks.push((self.stream, None), piece, bytes.len());
                }
                State::Control(control, payload, length) => {
                    let piece = bytes.split_to(bytes.len().min(*length - payload.len()));
                    payload.extend_from_slice(&piece);
                    if payload.len() == *length {
                        let (control, payload) = (*control, std::mem::take(payload));
                        self.end_control(control, &payload);
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

    /// Ends the connection. An end before the Close frame is an error.
    pub(crate) fn finish(&mut self) {
        match self.state {
            State::End => {}
            _ => self.fail(FramingError::NoCloseFrame),
        }
    }

    /// Returns the next chunk, or the error that ends the stream.
    pub(crate) fn pop(&mut self) -> Option<Result<Chunk, FramingError>> {
        self.chunks.pop()
    }

    /// Returns true once the Close frame or an error has ended the stream.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::End)
    }

    fn enter(&mut self, frame: Frame) {
        self.state = match frame {
            Frame::Output(0) => START,
            Frame::Output(length) => State::Output(length),
            Frame::Control(control, 0) => return self.end_control(control, &[]),
            Frame::Control(control, length) => State::Control(control, Vec::new(), length),
        };
    }

    fn end_control(&mut self, control: Control, payload: &[u8]) {
        if control == Control::Other {
            self.state = START;
            return;
        }
        match payload {
            [high, low, reason @ ..] => match u16::from_be_bytes([*high, *low]) {
                NORMAL_CLOSURE => {
                    self.state = State::End;
                    self.chunks.flush();
                }
                status => self.fail(FramingError::Closed {
                    status,
                    reason: String::from_utf8_lossy(reason).into_owned(),
                }),
            },
            _ => self.fail(FramingError::WebSocket("a Close frame has no status")),
        }
    }

    fn fail(&mut self, error: FramingError) {
        self.state = State::End;
        self.chunks.fail(error);
    }
}

/// Returns the length of a header, from its second byte.
fn header_length(second: u8) -> usize {
    match second & 0x7f {
        126 => 4,
        127 => MAX_HEADER_BYTES,
        _ => 2,
    }
}

/// Parses a complete header.
fn parse(header: &[u8]) -> Result<Frame, &'static str> {
    let length = match header[2..] {
        [] => u64::from(header[1] & 0x7f),
        ref length => length
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    };
    if header[0] & 0x70 != 0 {
        return Err("a frame has reserved bits");
    }
    if header[1] & 0x80 != 0 {
        return Err("a frame from the engine is masked");
    }
    let control = match header[0] & 0x0f {
        // Continuation, text and binary.
        0..=2 => return Ok(Frame::Output(length)),
        8 => Control::Close,
        9 | 10 => Control::Other,
        _ => return Err("a frame has an unknown type"),
    };
    match usize::try_from(length) {
        Ok(length @ ..=MAX_CONTROL_BYTES) if header[0] & 0x80 != 0 => {
            Ok(Frame::Control(control, length))
        }
        _ => Err("a control frame is too long or fragmented"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLOSE: [u8; 4] = [0x88, 2, 0x03, 0xe8];

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ ..126 => frame.push(length as u8),
            length @ ..=0xffff => {
                frame.push(126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        frame
    }

    /// Parses `input` in pieces of `cut` bytes. Returns the output, and the error at its end.
    fn run(input: &[u8], cut: usize) -> (Vec<u8>, Option<FramingError>) {
        let mut frames = WebSocketFrames::new(Stream::Stderr);
        let (mut output, mut error) = (Vec::new(), None);
        let mut drain = |frames: &mut WebSocketFrames| {
            while let Some(item) = frames.pop() {
                assert_eq!(error, None, "an item after an error");
                match item {
                    Ok(chunk) => {
                        assert_eq!(chunk.stream, Stream::Stderr);
                        assert!(!chunk.bytes.is_empty(), "an empty chunk");
                        output.extend_from_slice(&chunk.bytes);
                    }
                    Err(failed) => error = Some(failed),
                }
            }
        };
        for piece in input.chunks(cut) {
            frames.push(Bytes::copy_from_slice(piece));
            drain(&mut frames);
        }
        frames.finish();
        drain(&mut frames);
        (output, error)
    }

    proptest! {
        #[test]
        fn frames_yield_their_payloads_until_the_close(
            payloads in prop::collection::vec(
                (prop_oneof![0usize..4, 120usize..130, 65_530usize..65_540], 0u8..4), 0..12,
            ),
            cut in 1usize..70_000,
        ) {
            let (mut input, mut expected) = (Vec::new(), Vec::new());
            for (at, (length, kind)) in payloads.into_iter().enumerate() {
                let payload = vec![at as u8; length];
                match kind {
                    // A fragmented message, a ping.
                    0 => input.extend(frame(0x02, &payload)),
                    1 if length <= MAX_CONTROL_BYTES => {
                        input.extend(frame(0x89, &payload));
                        continue;
                    }
                    _ => input.extend(frame(0x82, &payload)),
                }
                expected.extend_from_slice(&payload);
            }
            let cut_off = run(&input, cut);
            prop_assert_eq!(&cut_off.0, &expected);
            prop_assert_eq!(cut_off.1, Some(FramingError::NoCloseFrame));
            input.extend(CLOSE);
            prop_assert_eq!(run(&input, cut), (expected, None));
        }

        #[test]
        fn random_bytes_break_nothing(
            input in prop::collection::vec(any::<u8>(), 0..300),
            cut in 1usize..40,
        ) {
            prop_assert_eq!(run(&input, cut), run(&input, 1));
        }
    }

    #[test]
    fn only_a_normal_closure_ends_the_output_cleanly() {
        let rows: [(&[u8], Option<FramingError>); 9] = [
            (&CLOSE, None),
            (&[0x88, 5, 0x03, 0xe8, b'b', b'y', b'e'], None),
            (
                &[0x88, 4, 0x03, 0xf3, b'n', b'o'],
                Some(FramingError::Closed {
                    status: 1011,
                    reason: "no".into(),
                }),
            ),
            (
                &[0x88, 0],
                Some(FramingError::WebSocket("a Close frame has no status")),
            ),
            (&CLOSE[..3], Some(FramingError::NoCloseFrame)),
            (&[], Some(FramingError::NoCloseFrame)),
            (
                &[0xc2, 0],
                Some(FramingError::WebSocket("a frame has reserved bits")),
            ),
            (
                &[0x82, 0x81, 0, 0, 0, 0, 0],
                Some(FramingError::WebSocket("a frame from the engine is masked")),
            ),
            (
                &[0x08, 2, 0x03, 0xe8],
                Some(FramingError::WebSocket(
                    "a control frame is too long or fragmented",
                )),
            ),
        ];
        for (input, error) in rows {
            assert_eq!(run(input, 64), (Vec::new(), error), "{input:02x?}");
        }
    }

    #[test]
    fn a_frame_without_its_end_yields_what_arrived() {
        let mut input = frame(0x82, &[7; 100]);
        input.truncate(50);
        let (output, error) = run(&input, 9);
        assert_eq!(output, [7; 48]);
        assert_eq!(error, Some(FramingError::NoCloseFrame));
    }
}

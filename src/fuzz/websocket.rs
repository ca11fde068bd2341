//! The target of the parser of WebSocket frames.

use crate::fuzz::Input;
use crate::outcome::Stream;
use crate::runtime::docker::output::FramingError;
use crate::runtime::docker::output::chunks::CHUNK_BYTES;
use crate::runtime::docker::output::websocket::WebSocketFrames;

/// The payloads of the output, and the end: `None` for a Close frame of status 1000, and a kind of
/// error otherwise.
type Received = (Vec<u8>, Option<&'static str>);

/// Checks the parser against a simple model, for any split of its input.
///
/// The output must be each data frame's payload up to a Close frame or an error, and only a Close
/// frame of status 1000 is a clean end.
///
/// The input is the number of splits, a byte for each split, and the bytes of the connection.
pub fn websocket(input: &[u8]) {
    let mut input = Input(input);
    let count = usize::from(input.byte());
    let splits = input.take(count);
    let bytes = input.0;

    let mut frames = WebSocketFrames::new(Stream::Stdout);
    let (mut received, mut rest) = (Received::default(), Input(bytes));
    for split in splits.iter().map(Some).chain([None]) {
        // Parts of single bytes and of hundreds. Bit 6 requests a flush.
        let part = rest.take(split.map_or(usize::MAX, |split| usize::from(split & 0x3f) << 3 | 1));
        frames.push(part.to_vec().into());
        if split.is_some_and(|split| split & 0x40 != 0) {
            frames.flush();
        }
        drain(&mut frames, &mut received);
        let consumed = bytes.len() - rest.0.len();
        assert!(consumed >= received.0.len(), "more output than bytes");
    }
    frames.finish();
    drain(&mut frames, &mut received);
    assert_eq!(received, model(bytes));

    frames.push(b"\x82\x01x".as_slice().into());
    frames.finish();
    assert_eq!(frames.pop(), None, "output after the end");
}

fn drain(frames: &mut WebSocketFrames, received: &mut Received) {
    while let Some(item) = frames.pop() {
        assert_eq!(received.1, None, "{item:?} came after an error");
        match item {
            Ok(chunk) => {
                assert_eq!(chunk.stream, Stream::Stdout);
                assert!(!chunk.bytes.is_empty(), "an empty chunk");
                assert!(chunk.bytes.len() < 2 * CHUNK_BYTES, "a chunk of any size");
                received.0.extend_from_slice(&chunk.bytes);
            }
            Err(error) => received.1 = Some(kind(&error)),
        }
    }
}

fn kind(error: &FramingError) -> &'static str {
    match error {
        FramingError::WebSocket(_) => "not a WebSocket",
        FramingError::NoCloseFrame => "no Close frame",
        FramingError::Closed { .. } => "another status",
        error => panic!("{error:?} is not an error of a WebSocket"),
    }
}

/// The expected output for `bytes`.
fn model(bytes: &[u8]) -> Received {
    let (mut output, mut rest) = (Vec::new(), Input(bytes));
    loop {
        if let Some(end) = model_frame(&mut rest, &mut output) {
            return (output, end);
        }
    }
}

/// Adds the payload of the next frame. Returns the end of the output, if this is the end.
fn model_frame(rest: &mut Input<'_>, output: &mut Vec<u8>) -> Option<Option<&'static str>> {
    let cut_off = Some(Some("no Close frame"));
    let [first, second] = *rest.take(2) else {
        return cut_off;
    };
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let length = rest.take(extended);
    if length.len() < extended {
        return cut_off;
    }
    let length = match extended {
        0 => u64::from(second & 0x7f),
        _ => length
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    };
    let is_control = first & 8 != 0;
    let is_valid = first & 0x70 == 0
        && second & 0x80 == 0
        && [0, 1, 2, 8, 9, 10].contains(&(first & 15))
        && !(is_control && (length > 125 || first & 0x80 == 0));
    if !is_valid {
        return Some(Some("not a WebSocket"));
    }
    let payload = rest.take(usize::try_from(length).unwrap_or(usize::MAX));
    if !is_control {
        output.extend_from_slice(payload);
    }
    if (payload.len() as u64) < length {
        return cut_off;
    }
    match (first & 15, payload) {
        (8, [0x03, 0xe8, ..]) => Some(None),
        (8, [_, _, ..]) => Some(Some("another status")),
        (8, _) => Some(Some("not a WebSocket")),
        _ => None,
    }
}

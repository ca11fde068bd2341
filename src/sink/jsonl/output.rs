//! The JSON form of an output record.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::audit::OutputTime;
use crate::audit::line::hex;
use crate::outcome::Stream;
use crate::timestamp::Timestamp;

/// The bytes between the stream and the text of a record.
const LINE_KEY: &[u8] = br#","line":""#;
/// The place of the nanoseconds in a record.
const NANOSECONDS: Range<usize> = {
    let start = r#"{"ts":"2026-11-22T18:23:25."#.len();
    start..start + 9
};

/// Encodes output records, without a newline at the end.
#[derive(Debug, Default)]
pub(crate) struct OutputText {
    /// The beginning of a text record, cached because all records of a chunk begin alike.
    head: Vec<u8>,
    /// The values in `head`.
    head_of: Option<(Timestamp, Stream)>,
}

impl OutputText {
    /// Appends a record to `out`.
    pub(crate) fn write(
        &mut self,
        time: OutputTime,
        stream: Stream,
        bytes: &[u8],
        partial: bool,
        lossy: bool,
        out: &mut Vec<u8>,
    ) {
        if self.head_of != Some((time.ts, stream)) {
            self.begin(time.ts, stream);
        }
        // Nearly all lines take this path, which only copies.
        if is_plain(bytes) {
            out.reserve(self.head.len() + bytes.len() + 3);
            out.extend_from_slice(&self.head);
            out.extend_from_slice(bytes);
        } else if let Ok(text) = std::str::from_utf8(bytes) {
            out.extend_from_slice(&self.head);
            escape(text, out);
        } else {
            out.extend_from_slice(&self.head[..self.head.len() - LINE_KEY.len()]);
            out.extend_from_slice(br#","b64":""#);
            base64(bytes, out);
        }
        out.extend_from_slice(closing(partial, lossy, time.engine_time));
    }

    fn begin(&mut self, ts: Timestamp, stream: Stream) {
        let previous = self.head_of.replace((ts, stream));
        let (second, nanosecond) = ts.parts();
        // Each line of a log has its own time, and most have the same second.
        if previous.is_some_and(|(ts, of)| of == stream && ts.parts().0 == second && second >= 0) {
            write_digits(nanosecond, &mut self.head[NANOSECONDS]);
            return;
        }
        let head = format!(r#"{{"ts":"{ts}","stream":"{stream}""#);
        self.head.clear();
        self.head.extend_from_slice(head.as_bytes());
        self.head.extend_from_slice(LINE_KEY);
    }
}

/// The end of a record, from the quote that ends its text or base64.
///
/// Each combination is one literal: with a copy for each flag, the encoding takes 6 % more instructions.
fn closing(partial: bool, lossy: bool, engine_time: bool) -> &'static [u8] {
    match (partial, lossy, engine_time) {
        (false, false, false) => br#""}"#,
        (true, false, false) => br#"","partial":true}"#,
        (false, true, false) => br#"","lossy":true}"#,
        (true, true, false) => br#"","partial":true,"lossy":true}"#,
        (false, false, true) => br#"","engine_time":true}"#,
        (true, false, true) => br#"","partial":true,"engine_time":true}"#,
        (false, true, true) => br#"","lossy":true,"engine_time":true}"#,
        (true, true, true) => br#"","partial":true,"lossy":true,"engine_time":true}"#,
    }
}

/// Writes a number with leading zeros.
fn write_digits(mut number: i32, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.resize(from + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[from..]);
    debug_assert_eq!(written.ok(), Some(out.len() - from));
}

/// The number of bytes that are checked at once.
const BLOCK_BYTES: usize = 16;

/// Returns true if all of `bytes` are ASCII that JSON does not escape.
fn is_plain(bytes: &[u8]) -> bool {
    let Some((blocks, last)) = blocks(bytes) else {
        return !bytes.iter().any(|byte| is_special(*byte) || *byte >= 0x80);
    };
    let plain = |block: &[u8; BLOCK_BYTES]| {
        // Not `any`: without an early exit, the loop is vectorized. As a signed number, a byte that
        // is not ASCII is also below 0x20.
        !block.iter().fold(false, |bad, &byte| {
            bad | ((byte as i8) < 0x20) | (byte == b'"') | (byte == b'\\')
        })
    };
    blocks.iter().all(plain) && plain(last)
}

/// All whole blocks, and the last block, which may overlap them.
///
/// Returns `None` if `bytes` is shorter than a block.
fn blocks(bytes: &[u8]) -> Option<(&[[u8; BLOCK_BYTES]], &[u8; BLOCK_BYTES])> {
    Some((bytes.as_chunks().0, bytes.last_chunk()?))
}

/// The escape of each byte: 0 for none, `u` for `\u00..`, or the letter after the backslash.
const ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = b'u';
        control += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

fn is_special(byte: u8) -> bool {
    ESCAPES[usize::from(byte)] != 0
}

/// Appends the content of a JSON string to `out`, escaped as `serde_json` does.
fn escape(text: &str, out: &mut Vec<u8>) {
    out.reserve(text.len());
    let (blocks, rest) = text.as_bytes().as_chunks::<BLOCK_BYTES>();
    for block in blocks {
        let special = block.iter().fold(false, |bad, &byte| {
            bad | (byte < 0x20) | (byte == b'"') | (byte == b'\\')
        });
        if special {
            escape_bytes(block, out);
        } else {
            out.extend_from_slice(block);
        }
    }
    escape_bytes(rest, out);
}

fn escape_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    let mut plain = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[usize::from(byte)];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[plain..at]);
        plain = at + 1;
        if escape == b'u' {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(hex(&[byte]).as_bytes());
        } else {
            out.extend_from_slice(&[b'\\', escape]);
        }
    }
    out.extend_from_slice(&bytes[plain..]);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_character_is_escaped_as_serde_json_does() {
        for character in (0..=0x2fff)
            .chain(0xfff0..=0x1_0010)
            .filter_map(char::from_u32)
        {
            let mut out = vec![b'"'];
            escape(&character.to_string(), &mut out);
            out.push(b'"');
            assert_eq!(out, serde_json::to_vec(&character.to_string()).unwrap());
        }
    }

    proptest! {
        /// A cached beginning of a record is as a new one.
        #[test]
        fn each_record_has_its_own_time(
            records in prop::collection::vec((-2i64..3, 0u32..1_000_000_000, any::<bool>()), 1..20),
        ) {
            let mut cached = OutputText::default();
            for (second, nanosecond, is_error) in records {
                let nanoseconds = Duration::from_nanos(nanosecond.into());
                let since_1970 = Duration::from_secs(second.unsigned_abs()) + nanoseconds;
                let ts = match second < 0 {
                    true => UNIX_EPOCH - since_1970,
                    false => UNIX_EPOCH + since_1970,
                };
                let stream = if is_error { Stream::Stderr } else { Stream::Stdout };
                let written = |mut text: OutputText| {
                    let mut out = Vec::new();
                    text.write(Timestamp::from(ts).into(), stream, b"x", false, false, &mut out);
                    (text, out)
                };
                let (text, out) = written(cached);
                cached = text;
                prop_assert_eq!(out, written(OutputText::default()).1);
            }
        }
    }

    /// Each special byte, at each position of texts of each length around the block size.
    #[test]
    fn a_special_byte_is_found_at_any_position() {
        for length in 1..3 * BLOCK_BYTES + 2 {
            for at in 0..length {
                for byte in [0, 0x1f, b'"', b'\\', 0x80, 0xff, 0x7f, b' '] {
                    let mut bytes = vec![b'x'; length];
                    bytes[at] = byte;
                    let plain = matches!(byte, 0x7f | b' ');
                    assert_eq!(is_plain(&bytes), plain, "{byte:#x} at {at} of {length}");
                }
            }
        }
        assert!(is_plain(b""));
    }

    proptest! {
        #[test]
        fn text_is_escaped_as_serde_json_does(text in any::<String>()) {
            let mut out = vec![b'"'];
            escape(&text, &mut out);
            out.push(b'"');
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }
    }
}

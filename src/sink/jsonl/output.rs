//! A record of output to its line.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::audit::line::hex;
use crate::outcome::Stream;
use crate::timestamp::Timestamp;

/// What is between the stream and the text.
const LINE: &[u8] = br#","line":""#;

/// Writes records of output, each without its newline.
#[derive(Debug, Default)]
pub(crate) struct OutputText {
    /// How a record of text begins, and what of: records that come together begin alike.
    head: Vec<u8>,
    of: Option<(Timestamp, Stream)>,
}

impl OutputText {
    pub(crate) fn write(
        &mut self,
        ts: Timestamp,
        stream: Stream,
        bytes: &[u8],
        partial: bool,
        lossy: bool,
        out: &mut Vec<u8>,
    ) {
        if self.of != Some((ts, stream)) {
            self.begin(ts, stream);
        }
        // Nearly all lines, and all that is left to do with them is to copy.
        if is_plain(bytes) {
            out.reserve(self.head.len() + bytes.len() + 3);
            out.extend_from_slice(&self.head);
            out.extend_from_slice(bytes);
        } else if let Ok(text) = std::str::from_utf8(bytes) {
            out.extend_from_slice(&self.head);
            escape(text, out);
        } else {
            out.extend_from_slice(&self.head[..self.head.len() - LINE.len()]);
            out.extend_from_slice(br#","b64":""#);
            base64(bytes, out);
        }
        out.extend_from_slice(match (partial, lossy) {
            (false, false) => br#""}"#.as_slice(),
            (true, false) => br#"","partial":true}"#,
            (false, true) => br#"","lossy":true}"#,
            (true, true) => br#"","partial":true,"lossy":true}"#,
        });
    }

    fn begin(&mut self, ts: Timestamp, stream: Stream) {
        self.of = Some((ts, stream));
        let head = format!(r#"{{"ts":"{ts}","stream":"{stream}""#);
        self.head.clear();
        self.head.extend_from_slice(head.as_bytes());
        self.head.extend_from_slice(LINE);
    }
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.resize(from + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[from..]);
    debug_assert_eq!(written.ok(), Some(out.len() - from));
}

/// How many bytes are looked at together.
const BLOCK: usize = 16;

/// Whether all of `bytes` are ASCII that a JSON string holds as it is.
fn is_plain(bytes: &[u8]) -> bool {
    let Some((blocks, last)) = blocks(bytes) else {
        return !bytes.iter().any(|byte| is_special(*byte) || *byte >= 0x80);
    };
    let plain = |block: &[u8; BLOCK]| {
        // Not `any`: without an early exit it is done many bytes at a time. As a signed number,
        // what is no ASCII is below 0x20 as well.
        !block.iter().fold(false, |bad, &byte| {
            bad | ((byte as i8) < 0x20) | (byte == b'"') | (byte == b'\\')
        })
    };
    blocks.iter().all(plain) && plain(last)
}

/// All whole blocks, and the last one of all bytes; `None` if there is none.
fn blocks(bytes: &[u8]) -> Option<(&[[u8; BLOCK]], &[u8; BLOCK])> {
    Some((bytes.as_chunks().0, bytes.last_chunk()?))
}

/// What a byte is written as: itself (0), `\u00..` (`u`), or a backslash and this letter.
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

/// Writes `text` as the inside of a JSON string, as `serde_json` does.
fn escape(text: &str, out: &mut Vec<u8>) {
    out.reserve(text.len());
    let (blocks, rest) = text.as_bytes().as_chunks::<BLOCK>();
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
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_character_is_escaped_as_serde_json_does() {
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

    /// Each byte that is not plain, at each place of texts of each length around the blocks.
    #[test]
    fn a_byte_that_is_not_plain_is_seen_wherever_it_is() {
        for length in 1..3 * BLOCK + 2 {
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

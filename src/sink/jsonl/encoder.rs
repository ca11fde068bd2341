//! Records to bytes, with the running digest.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::sink::audit::Tally;
use crate::sink::audit::line::{SEAL_KEY, hex};
use crate::sink::audit::lines::LONGEST_LINE;
use crate::sink::audit::scan::Mark;
use crate::sink::{Event, RecordRef, Start};
use crate::{Seal, Stream, Timestamp};

/// A `check` record follows the first record that ends so many bytes behind the last one.
pub(super) const CHECK_EVERY: u64 = 4 << 20;

/// Encodes records into one buffer, which its owner writes and clears.
#[derive(Debug)]
pub(super) struct Encoder {
    buffer: Vec<u8>,
    /// How much of the buffer `digest` has seen.
    hashed: usize,
    digest: Sha256,
    /// The length of the file once the buffer is written.
    length: u64,
    /// Where the last `check` record ends.
    checked: u64,
    tally: Tally,
    /// The last timestamp, as text: records that come together have the same one.
    ts: Option<(Timestamp, String)>,
}

impl Encoder {
    /// Goes on where `mark` is.
    pub(super) fn new(mark: Mark) -> Self {
        Self {
            buffer: Vec::new(),
            hashed: 0,
            digest: mark.digest,
            length: mark.offset,
            checked: mark.checked,
            tally: mark.tally,
            ts: None,
        }
    }

    /// What is to be written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Forgets what was written.
    pub(super) fn clear(&mut self) {
        self.hash();
        self.buffer.clear();
        self.hashed = 0;
    }

    /// What was encoded so far.
    pub(super) fn tally(&self) -> Tally {
        self.tally
    }

    fn hash(&mut self) {
        self.digest.update(&self.buffer[self.hashed..]);
        self.hashed = self.buffer.len();
    }

    /// Adds the first record.
    pub(super) fn start(&mut self, start: &Start) -> io::Result<()> {
        let from = self.buffer.len();
        serde_json::to_writer(&mut self.buffer, &Event::Start(Box::new(start.clone())))?;
        self.line(from)
    }

    /// Adds a record, and a `check` record where one is due.
    pub(super) fn record(&mut self, record: RecordRef<'_>) -> io::Result<()> {
        let from = self.buffer.len();
        match record {
            RecordRef::Output {
                ts,
                stream,
                bytes,
                partial,
                lossy,
            } => {
                self.output(ts, stream, bytes, partial, lossy);
                self.tally.add_output(stream, bytes.len(), partial);
            }
            RecordRef::Event(Event::Start(_) | Event::Check { .. } | Event::End(_)) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "start, check and end records are not appended",
                ));
            }
            RecordRef::Event(event) => {
                serde_json::to_writer(&mut self.buffer, event)?;
                self.tally.gaps += u64::from(matches!(event, Event::Gap(_)));
            }
        }
        self.line(from)?;
        if self.length - self.checked >= CHECK_EVERY {
            self.check()?;
        }
        Ok(())
    }

    fn check(&mut self) -> io::Result<()> {
        self.hash();
        let sha256 = hex(&self.digest.clone().finalize());
        let from = self.buffer.len();
        serde_json::to_writer(&mut self.buffer, &Event::Check { sha256 })?;
        self.line(from)?;
        self.checked = self.length;
        Ok(())
    }

    /// Adds the last record, and gives the seal as it is in there.
    pub(super) fn seal(&mut self, mut seal: Seal) -> io::Result<Seal> {
        // JSON has no other numbers, and a seal that cannot be read is none.
        if !seal.capture_seconds.is_finite() {
            seal.capture_seconds = 0.0;
        }
        seal.sha256.clear();
        let from = self.buffer.len();
        let end = Event::End(Box::new(seal.clone()));
        serde_json::to_writer(&mut self.buffer, &end)?;
        // The digest is the last field: everything before it is what it is the digest of.
        let head = self.buffer.len() - SEAL_KEY.len() - "\"}".len();
        debug_assert!(self.buffer[head..].starts_with(SEAL_KEY.as_bytes()));
        self.buffer.truncate(head);
        self.hash();
        seal.sha256 = hex(&self.digest.clone().finalize());
        self.buffer.extend_from_slice(SEAL_KEY.as_bytes());
        self.buffer.extend_from_slice(seal.sha256.as_bytes());
        self.buffer.extend_from_slice(b"\"}");
        self.line(from)?;
        Ok(seal)
    }

    /// Ends the line that began at `from`.
    fn line(&mut self, from: usize) -> io::Result<()> {
        self.buffer.push(b'\n');
        let length = self.buffer.len() - from;
        if length > LONGEST_LINE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a record of {length} bytes is longer than the format allows"),
            ));
        }
        self.length += length as u64;
        Ok(())
    }

    fn output(&mut self, ts: Timestamp, stream: Stream, bytes: &[u8], partial: bool, lossy: bool) {
        let text = match &mut self.ts {
            Some((last, text)) if *last == ts => text,
            cache => &mut cache.insert((ts, ts.to_string())).1,
        };
        let buffer = &mut self.buffer;
        buffer.extend_from_slice(br#"{"ts":""#);
        buffer.extend_from_slice(text.as_bytes());
        buffer.extend_from_slice(br#"","stream":""#);
        buffer.extend_from_slice(stream.as_str().as_bytes());
        match std::str::from_utf8(bytes) {
            Ok(line) => {
                buffer.extend_from_slice(br#"","line":""#);
                escape(line, buffer);
            }
            Err(_) => {
                buffer.extend_from_slice(br#"","b64":""#);
                base64(bytes, buffer);
            }
        }
        buffer.push(b'"');
        if partial {
            buffer.extend_from_slice(br#","partial":true"#);
        }
        if lossy {
            buffer.extend_from_slice(br#","lossy":true"#);
        }
        buffer.push(b'}');
    }
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.resize(from + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[from..]);
    debug_assert_eq!(written.ok(), Some(out.len() - from));
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

/// Writes `text` as the inside of a JSON string, as `serde_json` does.
fn escape(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
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
    use crate::sink::audit::line::{Line, parse};
    use proptest::prelude::*;

    fn ts() -> Timestamp {
        "2026-11-22T18:23:25.491211661Z".parse().unwrap()
    }

    fn encoded(bytes: &[u8], partial: bool, lossy: bool) -> String {
        let mut encoder = Encoder::new(Mark::default());
        encoder
            .record(RecordRef::Output {
                ts: ts(),
                stream: Stream::Stdout,
                bytes,
                partial,
                lossy,
            })
            .unwrap();
        String::from_utf8(encoder.bytes().to_vec()).unwrap()
    }

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

    #[test]
    fn output_is_a_line_with_its_flags_only_where_they_are_set() {
        assert_eq!(
            encoded(b"a\"b", false, false),
            "{\"ts\":\"2026-11-22T18:23:25.491211661Z\",\"stream\":\"stdout\",\"line\":\"a\\\"b\"}\n"
        );
        assert!(
            encoded(b"\xff", true, true)
                .ends_with("\"b64\":\"/w==\",\"partial\":true,\"lossy\":true}\n")
        );
    }

    #[test]
    fn a_record_that_is_longer_than_a_reader_takes_is_refused() {
        let bytes = vec![0; LONGEST_LINE / 6];
        let mut encoder = Encoder::new(Mark::default());
        let record = RecordRef::Output {
            ts: ts(),
            stream: Stream::Stdout,
            bytes: &bytes,
            partial: false,
            lossy: false,
        };
        let error = encoder.record(record).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    proptest! {
        #[test]
        fn text_is_escaped_as_serde_json_does(text in any::<String>()) {
            let mut out = vec![b'"'];
            escape(&text, &mut out);
            out.push(b'"');
            prop_assert_eq!(out, serde_json::to_vec(&text).unwrap());
        }

        #[test]
        fn bytes_come_back_as_they_went(
            bytes in prop_oneof![
                any::<Vec<u8>>(),
                any::<String>().prop_map(String::into_bytes),
                "[ -~\\t\\r\\n\"\\\\\u{1b}\u{7f}é]{0,200}".prop_map(String::into_bytes),
            ],
            partial: bool,
            lossy: bool,
        ) {
            let text = encoded(&bytes, partial, lossy);
            prop_assert_eq!(text.matches('\n').count(), 1);
            let Ok(Line::Output(output)) = parse(text.as_bytes()) else {
                panic!("{text}");
            };
            prop_assert_eq!(&*output.bytes, &bytes[..]);
            prop_assert_eq!(output.ts, ts());
            prop_assert_eq!((output.partial, output.lossy), (partial, lossy));
        }
    }
}

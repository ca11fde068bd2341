//! The fast parser of output records in the writer's own form.
//!
//! Nearly every line of a file is an output record in one fixed form. Lines of any other form, and
//! lines that may be invalid, go to the JSON parser: only that parser rejects a line.

use std::borrow::Cow;

use crate::audit::line::OutputLine;
use crate::outcome::Stream;
use crate::timestamp::Timestamp;

/// Parses a line with its newline. `None` leaves the line to the JSON parser.
pub(super) fn parse(line: &[u8]) -> Option<OutputLine<'_>> {
    let rest = line.strip_prefix(br#"{"ts":""#)?;
    let (ts, rest) = rest.split_at_checked(Timestamp::LENGTH)?;
    let rest = rest.strip_prefix(br#"","stream":"std"#)?;
    let (stream, rest) = match rest.split_at_checked(3)? {
        (b"out", rest) => (Stream::Stdout, rest),
        (b"err", rest) => (Stream::Stderr, rest),
        _ => return None,
    };
    let rest = rest.strip_prefix(br#"","line":""#)?;
    let (bytes, rest) = text(rest)?;
    let (partial, rest) = flag(rest, br#","partial":true"#);
    let (lossy, rest) = flag(rest, br#","lossy":true"#);
    let (engine_time, rest) = flag(rest, br#","engine_time":true"#);
    if rest != b"}\n" {
        return None;
    }
    Some(OutputLine {
        ts: Timestamp::parse_fixed(ts)?,
        stream,
        bytes,
        partial,
        lossy,
        engine_time,
    })
}

fn flag<'a>(rest: &'a [u8], flag: &[u8]) -> (bool, &'a [u8]) {
    match rest.strip_prefix(flag) {
        Some(rest) => (true, rest),
        None => (false, rest),
    }
}

/// Decodes the rest of a JSON string. Also returns the bytes after its quote.
fn text(rest: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let mut decoded = Vec::new();
    let mut from = 0;
    loop {
        let at = from + memchr::memchr2(b'"', b'\\', &rest[from..])?;
        let plain = &rest[from..at];
        // Not `any`: a loop without an early exit is vectorized.
        if plain.iter().fold(false, |bad, byte| bad | (*byte < 0x20)) {
            return None;
        }
        std::str::from_utf8(plain).ok()?;
        if rest[at] == b'"' {
            let tail = &rest[at + 1..];
            if from == 0 {
                return Some((Cow::Borrowed(plain), tail));
            }
            decoded.extend_from_slice(plain);
            return Some((Cow::Owned(decoded), tail));
        }
        if from == 0 {
            decoded.reserve(rest.len());
        }
        decoded.extend_from_slice(plain);
        let (byte, length) = escape(&rest[at + 1..])?;
        decoded.push(byte);
        from = at + 1 + length;
    }
}

/// The byte of an escape sequence, and the sequence's length after the backslash.
fn escape(rest: &[u8]) -> Option<(u8, usize)> {
    let byte = match rest.first()? {
        b'"' => b'"',
        b'\\' => b'\\',
        b'b' => 0x08,
        b't' => b'\t',
        b'n' => b'\n',
        b'f' => 0x0c,
        b'r' => b'\r',
        b'u' => {
            let [b'0', b'0', high @ b'0'..=b'1', low] = rest.get(1..5)? else {
                return None;
            };
            let low = char::from(*low).to_digit(16)? as u8;
            return Some(((high - b'0') << 4 | low, 5));
        }
        _ => return None,
    };
    Some((byte, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::line::{self, Line};
    use proptest::prelude::*;

    /// Asserts that a line parsed here is parsed alike by the JSON parser.
    fn assert_agrees(line: &[u8]) {
        if let Some(fast) = parse(line) {
            match line::parse_json(line) {
                Ok(Line::Output(slow)) => assert_eq!(fast, slow),
                other => panic!("{fast:?} or {other:?}"),
            }
        }
    }

    #[test]
    fn lines_of_the_writer_take_the_fast_path() {
        let ts = "2026-11-22T18:23:25.491211661Z";
        for (json, bytes) in [
            ("", ""),
            ("plain d\u{e9}j\u{e0}", "plain d\u{e9}j\u{e0}"),
            (
                r#"\"\\\b\t\n\f\r\u0000\u001b/"#,
                "\"\\\x08\t\n\x0c\r\0\x1b/",
            ),
        ] {
            for flags in [
                "",
                r#","partial":true"#,
                r#","partial":true,"lossy":true"#,
                r#","lossy":true,"engine_time":true"#,
            ] {
                let line = format!(
                    "{{\"ts\":\"{ts}\",\"stream\":\"stderr\",\"line\":\"{json}\"{flags}}}\n"
                );
                let output = parse(line.as_bytes()).unwrap();
                assert_eq!(&*output.bytes, bytes.as_bytes());
                assert_agrees(line.as_bytes());
            }
        }
    }

    proptest! {
        #[test]
        fn changed_lines_agree_with_the_json_parser(
            json in r#"([ -!#-\[\]-~]|\\["\\/bfnrtux]|\\u00[01][0-9a-fA-F]|é|\u{7f}){0,12}"#,
            flags in prop_oneof![
                Just(""),
                Just(r#","partial":true"#),
                Just(r#","lossy":true"#),
                Just(r#","engine_time":true"#),
            ],
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let line = format!(
                "{{\"ts\":\"2026-11-22T18:23:25.491211661Z\",\"stream\":\"stdout\",\
                 \"line\":\"{json}\"{flags}}}\n"
            );
            let mut line = line.into_bytes();
            assert_agrees(&line);
            for (at, byte) in changes {
                let at = at.index(line.len());
                line[at] = byte;
                assert_agrees(&line);
            }
        }
    }
}

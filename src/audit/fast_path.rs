//! The fast parser of output records in the writer's own form.
//!
//! Nearly every line of a file is an output record in one fixed form. Lines of any other form, and
//! lines that may be invalid, go to the JSON parser: only that parser rejects a line.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use crate::audit::line::OutputLine;
use crate::outcome::Stream;
use crate::timestamp::Timestamp;

const TS_LENGTH: usize = "2026-11-22T18:23:25.491211661Z".len();

/// Parses a line with its newline. `None` leaves the line to the JSON parser.
pub(super) fn parse(line: &[u8]) -> Option<OutputLine<'_>> {
    let rest = line.strip_prefix(br#"{"ts":""#)?;
    let (ts, rest) = rest.split_at_checked(TS_LENGTH)?;
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
    if rest != b"}\n" {
        return None;
    }
    Some(OutputLine {
        ts: timestamp(ts.try_into().ok()?)?,
        stream,
        bytes,
        partial,
        lossy,
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

/// Parses a time from 1970 on, in the writer's own form.
fn timestamp(text: &[u8; TS_LENGTH]) -> Option<Timestamp> {
    let number = |from: usize, length: usize| {
        text[from..from + length]
            .iter()
            .try_fold(0u64, |sum, byte| {
                byte.is_ascii_digit()
                    .then(|| sum * 10 + u64::from(byte - b'0'))
            })
    };
    let marks = [4, 7, 10, 13, 16, 19, 29].map(|at| text[at]);
    if &marks != b"--T::.Z" {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let nanosecond = u32::try_from(number(20, 9)?).ok()?;
    // Invalid times and leap seconds are left to the library.
    let valid = (1970..=9998).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !valid {
        return None;
    }
    let seconds = (days_since_1970(year, month, day) * 24 + hour) * 3600 + minute * 60 + second;
    Some((SystemTime::UNIX_EPOCH + Duration::new(seconds, nanosecond)).into())
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    /// The days of a common year before each month.
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let years = (year - 1970) * 365 + leaps(year - 1) - leaps(1969);
    let leap_day = u64::from(month > 2 && is_leap(year));
    years + BEFORE[month as usize - 1] + leap_day + day - 1
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
    fn times_agree_with_the_library() {
        let text = |seconds: u64, nanos| {
            Timestamp::from(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)).to_string()
        };
        let day = 24 * 3600;
        for days in (0..366 * 80).chain(47_000..48_500) {
            let text = text(days * day + days % day, (days * 5471) as u32);
            let fast = timestamp(text.as_bytes().try_into().unwrap());
            assert_eq!(fast, text.parse().ok(), "{text}");
        }
        for bad in [
            "2026-02-29T18:23:25.491211661Z",
            "2026-13-22T18:23:25.491211661Z",
            "2026-00-22T18:23:25.491211661Z",
            "2026-11-00T18:23:25.491211661Z",
            "2026-11-31T18:23:25.491211661Z",
            "2026-11-22T24:23:25.491211661Z",
            "2026-11-22T18:60:25.491211661Z",
            "2026-11-22T18:23:60.491211661Z",
            "2026-11-22T18:23:25.49121166 Z",
            "2026-11-22T18:23:25.491211661z",
            "2026-11-22 18:23:25.491211661Z",
            "1969-11-22T18:23:25.491211661Z",
        ] {
            assert_eq!(timestamp(bad.as_bytes().try_into().unwrap()), None, "{bad}");
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
            for flags in ["", r#","partial":true"#, r#","partial":true,"lossy":true"#] {
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
            flags in prop_oneof![Just(""), Just(r#","partial":true"#), Just(r#","lossy":true"#)],
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

//! What an engine's log makes of the bytes that it keeps.

use super::lines::boundary;
use crate::runtime::Fidelity;

/// The length of the pieces that [`Fidelity::Utf8`] cuts lines into.
const LOG_PIECE: usize = 16 * 1024;

/// Appends to `out` what a log makes of `bytes`, which begin `offset` bytes into a line and end
/// with a line, or with a whole character.
pub(super) fn logged(fidelity: Fidelity, offset: u64, bytes: &[u8], out: &mut Vec<u8>) {
    match fidelity {
        Fidelity::Exact => out.extend_from_slice(bytes),
        Fidelity::Utf8 => {
            let mut phase = (offset % LOG_PIECE as u64) as usize;
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                let mut rest = line;
                while !rest.is_empty() {
                    let end = rest.len().min(LOG_PIECE - phase);
                    replace(&rest[..end], out);
                    phase = (phase + end) % LOG_PIECE;
                    rest = &rest[end..];
                }
                if line.ends_with(b"\n") {
                    phase = 0;
                }
            }
        }
    }
}

/// The number of bytes that [`logged`] would append.
pub(super) fn logged_len(fidelity: Fidelity, offset: u64, bytes: &[u8]) -> u64 {
    match fidelity {
        Fidelity::Exact => bytes.len() as u64,
        Fidelity::Utf8 => {
            let mut out = Vec::with_capacity(bytes.len());
            logged(fidelity, offset, bytes, &mut out);
            out.len() as u64
        }
    }
}

/// Appends `bytes` with U+FFFD for each byte that is not part of valid UTF-8.
fn replace(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            out.extend_from_slice("\u{FFFD}".as_bytes());
        }
    }
}

/// What a log has made of `recent`, the last bytes of a stream of `total` bytes whose open line has
/// `open`; or of the longest end of it that can be taken by itself, since pieces begin with lines.
/// Also whether that is the whole stream.
pub(super) fn logged_recent(
    fidelity: Fidelity,
    open: u64,
    total: u64,
    recent: &[u8],
) -> (Vec<u8>, bool) {
    let length = recent.len() as u64;
    let (offset, start) = if length == total || fidelity == Fidelity::Exact {
        (0, Some(0))
    } else if open >= length {
        let offset = open - length;
        let start = offset.next_multiple_of(LOG_PIECE as u64) - offset;
        (offset, (start <= length).then_some(start as usize))
    } else {
        // The open line begins after a newline in `recent`, and so does the line before it.
        let start = memchr::memchr(b'\n', recent).map(|end| end + 1);
        (0, start)
    };
    let mut out = Vec::with_capacity(recent.len());
    if let Some(start) = start {
        let offset = if offset == 0 {
            0
        } else {
            offset + start as u64
        };
        logged(fidelity, offset, &recent[start..], &mut out);
    }
    (out, length == total)
}

/// The number of records that a log which cuts lines into pieces has of `bytes`.
pub(super) fn log_records(bytes: &[u8]) -> usize {
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| {
            let length = line.strip_suffix(b"\n").unwrap_or(line).len();
            length.div_ceil(LOG_PIECE).max(1)
        })
        .sum()
}

/// The part of `bytes` that [`logged`] takes: all but the first part of a character at its end.
pub(super) fn whole(bytes: &[u8]) -> &[u8] {
    &bytes[..boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf8(offset: u64, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        logged(Fidelity::Utf8, offset, bytes, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// As seen on a real engine: 20,002 bytes came back as 20,006, with two U+FFFD.
    #[test]
    fn a_character_across_a_piece_comes_back_as_replacements() {
        let line = format!("{}é{}\n", "x".repeat(LOG_PIECE - 1), "y".repeat(10));
        let expected = format!(
            "{}\u{FFFD}\u{FFFD}{}\n",
            "x".repeat(LOG_PIECE - 1),
            "y".repeat(10)
        );
        assert_eq!(utf8(0, line.as_bytes()), expected);
        // The same from the middle of the line.
        let offset = LOG_PIECE - 4;
        assert_eq!(
            utf8(offset as u64, &line.as_bytes()[offset..]),
            expected[offset..]
        );
    }

    #[test]
    fn each_bad_byte_is_replaced_by_itself() {
        assert_eq!(
            utf8(0, b"a\xff\xffb\xf0\x9fc\n"),
            "a\u{FFFD}\u{FFFD}b\u{FFFD}\u{FFFD}c\n"
        );
    }

    #[test]
    fn the_end_of_a_stream_can_be_taken_by_itself() {
        let stream = "é".repeat(LOG_PIECE) + "\nnext\n" + &"€".repeat(LOG_PIECE);
        let bytes = stream.as_bytes();
        let all = utf8(0, bytes);
        let open = "€".len() * LOG_PIECE;
        for length in [
            bytes.len(),
            bytes.len() - 1,
            open + 8,
            open + 1,
            open,
            open - 1,
            open - LOG_PIECE,
            LOG_PIECE + 2,
            7,
        ] {
            let recent = &bytes[bytes.len() - length..];
            let (taken, whole) =
                logged_recent(Fidelity::Utf8, open as u64, bytes.len() as u64, recent);
            assert!(all.as_bytes().ends_with(&taken), "{length} bytes");
            assert_eq!(whole, length == bytes.len());
            if length <= open {
                assert!(taken.len() + LOG_PIECE >= length, "{length} bytes");
            }
        }
    }
}

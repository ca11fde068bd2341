//! The changes that an engine's log makes to the bytes that it stores.

use crate::runtime::LogFidelity;

/// The size at which a log of [`LogFidelity::Utf8Lossy`] splits lines.
const LOG_RECORD_BYTES: usize = 16 * 1024;

/// Appends the logged form of `bytes` to `out`.
///
/// `bytes` begin `offset` bytes into a line. They end at the end of the stream, of a line or of a
/// character.
pub(super) fn logged(fidelity: LogFidelity, offset: u64, bytes: &[u8], out: &mut Vec<u8>) {
    match fidelity {
        LogFidelity::Lossless | LogFidelity::Rotated => out.extend_from_slice(bytes),
        LogFidelity::Utf8Lossy => {
            // The number of bytes in the log's current record.
            let mut filled = (offset % LOG_RECORD_BYTES as u64) as usize;
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                let mut rest = line;
                while !rest.is_empty() {
                    let end = rest.len().min(LOG_RECORD_BYTES - filled);
                    replace_invalid(&rest[..end], out);
                    filled = (filled + end) % LOG_RECORD_BYTES;
                    rest = &rest[end..];
                }
                if line.ends_with(b"\n") {
                    filled = 0;
                }
            }
        }
    }
}

/// Appends `bytes`, with U+FFFD in place of each invalid byte.
pub(super) fn replace_invalid(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            out.extend_from_slice("\u{FFFD}".as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf8(offset: u64, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        logged(LogFidelity::Utf8Lossy, offset, bytes, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Measured on a real engine: 20,002 bytes came back as 20,006, with two U+FFFD.
    #[test]
    fn a_character_split_by_the_log_is_replaced() {
        let line = format!("{}é{}\n", "x".repeat(LOG_RECORD_BYTES - 1), "y".repeat(10));
        let expected = format!(
            "{}\u{FFFD}\u{FFFD}{}\n",
            "x".repeat(LOG_RECORD_BYTES - 1),
            "y".repeat(10)
        );
        assert_eq!(utf8(0, line.as_bytes()), expected);
        // The same result from the middle of the line.
        let offset = LOG_RECORD_BYTES - 4;
        assert_eq!(
            utf8(offset as u64, &line.as_bytes()[offset..]),
            expected[offset..]
        );
    }

    #[test]
    fn each_invalid_byte_is_replaced_separately() {
        assert_eq!(
            utf8(0, b"a\xff\xffb\xf0\x9fc\n"),
            "a\u{FFFD}\u{FFFD}b\u{FFFD}\u{FFFD}c\n"
        );
    }
}

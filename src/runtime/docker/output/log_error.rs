//! Filters the engine's own error out of a terminal's log.
//!
//! A terminal's log has no frames. The engine appends its error as a line of text with a fixed
//! prefix, and without the carriage return that a terminal puts before a line feed.

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memmem};

const PREFIX: &[u8] = b"Error grabbing logs: ";
/// The maximum length of a line that is taken for an error, in bytes.
const MAX_LINE_BYTES: usize = 4 << 10;

/// Separates a trailing error line of the engine from the output.
#[derive(Debug, Default)]
pub(super) struct LogErrorFilter {
    /// Bytes that may be the start of an error line.
    held: BytesMut,
}

impl LogErrorFilter {
    /// Adds the next bytes, and returns those that are output.
    pub(super) fn push(&mut self, bytes: Bytes) -> Bytes {
        let mut all = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(&bytes);
            self.held.split().freeze()
        };
        let held = all.split_off(error_start(&all));
        self.held.extend_from_slice(&held);
        all
    }

    /// Ends the log: returns the held output, or an error line as `Err`.
    pub(super) fn finish(&mut self) -> Result<Bytes, String> {
        let held = self.held.split().freeze();
        match held.strip_prefix(PREFIX) {
            Some(error) if error.ends_with(b"\n") && !error.ends_with(b"\r\n") => {
                Err(String::from_utf8_lossy(error).trim().to_owned())
            }
            _ => Ok(held),
        }
    }
}

/// Returns the offset at which a possible error line starts, else the length of `all`.
fn error_start(all: &[u8]) -> usize {
    if let Some(at) = memmem::rfind(all, PREFIX) {
        let rest = &all[at + PREFIX.len()..];
        let end = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        if end == rest.len() && end < MAX_LINE_BYTES {
            return at;
        }
    }
    let part = (1..PREFIX.len()).rev();
    let part = part
        .into_iter()
        .find(|&part| all.ends_with(&PREFIX[..part]));
    all.len() - part.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Filters `log` in pieces of `piece` bytes: the output and the end.
    fn read(log: &[u8], piece: usize) -> (Vec<u8>, Result<Bytes, String>) {
        let mut filter = LogErrorFilter::default();
        let mut output = Vec::new();
        for piece in log.chunks(piece) {
            output.extend_from_slice(&filter.push(Bytes::copy_from_slice(piece)));
        }
        (output, filter.finish())
    }

    #[test]
    fn an_error_line_is_found_at_every_cut() {
        let log = b"one\r\nhalf Error grabbing logs: unexpected EOF\n";
        for piece in 1..log.len() {
            let (output, end) = read(log, piece);
            assert_eq!(output, b"one\r\nhalf ", "in pieces of {piece}");
            assert_eq!(end, Err("unexpected EOF".into()));
        }
    }

    #[test]
    fn output_with_the_same_prefix_is_kept() {
        let long = [PREFIX, &[b'x'; 2 * MAX_LINE_BYTES], b"\n"].concat();
        for log in [
            &b"Error grabbing logs: x\r\n"[..],
            b"Error grabbing logs: x\nmore",
            b"Error grabbing logs: Error grabbing logs: x\r\n",
            b"Error grabbing logs: x",
            b"Error grabb",
            b"",
            &long,
        ] {
            for piece in [1, 2, 7, 100, MAX_LINE_BYTES, 1 << 20] {
                let (mut output, end) = read(log, piece);
                output.extend_from_slice(&end.unwrap());
                assert_eq!(output, log);
            }
        }
    }
}

//! The engine's own error at the end of a terminal's log: a line like any other there, but for its
//! words, and for the carriage return that a terminal would have put before its end.

use bytes::{Bytes, BytesMut};
use memchr::{memchr, memmem};

const WORDS: &[u8] = b"Error grabbing logs: ";
/// The longest that is taken for one.
const LONGEST: usize = 4 << 10;

/// Holds back what may be the engine's last words.
#[derive(Debug, Default)]
pub(super) struct Complaint {
    held: BytesMut,
}

impl Complaint {
    /// Takes the next bytes, and gives those that are the container's.
    pub(super) fn push(&mut self, bytes: Bytes) -> Bytes {
        let mut all = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(&bytes);
            self.held.split().freeze()
        };
        let held = all.split_off(begin(&all));
        self.held.extend_from_slice(&held);
        all
    }

    /// What was held back, or the engine's error, if it was that.
    pub(super) fn finish(&mut self) -> Result<Bytes, String> {
        let held = self.held.split().freeze();
        match held.strip_prefix(WORDS) {
            Some(error) if error.ends_with(b"\n") && !error.ends_with(b"\r\n") => {
                Err(String::from_utf8_lossy(error).trim().to_owned())
            }
            _ => Ok(held),
        }
    }
}

/// Where in `all` the engine's last words begin, if they do.
fn begin(all: &[u8]) -> usize {
    if let Some(at) = memmem::rfind(all, WORDS) {
        let rest = &all[at + WORDS.len()..];
        let end = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
        if end == rest.len() && end < LONGEST {
            return at;
        }
    }
    let part = (1..WORDS.len()).rev();
    let part = part.into_iter().find(|&part| all.ends_with(&WORDS[..part]));
    all.len() - part.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a log comes to that arrives in pieces of this length.
    fn read(log: &[u8], piece: usize) -> (Vec<u8>, Result<Bytes, String>) {
        let mut complaint = Complaint::default();
        let mut output = Vec::new();
        for piece in log.chunks(piece) {
            output.extend_from_slice(&complaint.push(Bytes::copy_from_slice(piece)));
        }
        (output, complaint.finish())
    }

    #[test]
    fn the_engines_last_words_are_told_from_output_however_they_are_cut() {
        let log = b"one\r\nhalf Error grabbing logs: unexpected EOF\n";
        for piece in 1..log.len() {
            let (output, end) = read(log, piece);
            assert_eq!(output, b"one\r\nhalf ", "in pieces of {piece}");
            assert_eq!(end, Err("unexpected EOF".into()));
        }
    }

    #[test]
    fn output_with_the_same_words_is_output() {
        let long = [WORDS, &[b'x'; 2 * LONGEST], b"\n"].concat();
        for log in [
            &b"Error grabbing logs: x\r\n"[..],
            b"Error grabbing logs: x\nmore",
            b"Error grabbing logs: Error grabbing logs: x\r\n",
            b"Error grabbing logs: x",
            b"Error grabb",
            b"",
            &long,
        ] {
            for piece in [1, 2, 7, 100, LONGEST, 1 << 20] {
                let (mut output, end) = read(log, piece);
                output.extend_from_slice(&end.unwrap());
                assert_eq!(output, log);
            }
        }
    }
}

//! The masking of one stream.

use std::collections::VecDeque;

use aho_corasick::automaton::StateID;
use bytes::{Bytes, BytesMut};

use super::MASK;
use super::patterns::Patterns;

/// The masking of one stream.
///
/// It holds back only bytes that may still become an occurrence of a value, or a longer one, and the
/// bytes after them. Each byte is scanned once.
#[derive(Default, Clone)]
pub(super) struct StreamMasker {
    held: BytesMut,
    scan: Scan,
}

/// Output without the masked values.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Masked {
    pub(super) bytes: Bytes,
    /// The offsets of the replacements in `bytes`.
    pub(super) offsets: Vec<usize>,
}

impl StreamMasker {
    /// Masks the next bytes of the stream.
    pub(super) fn push(&mut self, patterns: &Patterns, bytes: Bytes) -> Masked {
        let mut output = Output::default();
        if self.held.is_empty() {
            let decided = self.scan.advance(patterns, &bytes, &mut output, false);
            self.held.extend_from_slice(&bytes[decided..]);
            return output.finish(bytes.slice(..decided));
        }
        self.held.extend_from_slice(&bytes);
        let decided = self.scan.advance(patterns, &self.held, &mut output, false);
        if decided == 0 {
            return Masked::default();
        }
        output.finish(self.held.split_to(decided).freeze())
    }

    /// Masks the bytes that are held back: the stream has no other bytes.
    pub(super) fn finish(&mut self, patterns: &Patterns) -> Masked {
        let Self { held, mut scan } = std::mem::take(self);
        let mut output = Output::default();
        scan.advance(patterns, &held, &mut output, true);
        output.finish(held.freeze())
    }

    /// The result of [`finish`](Self::finish) if the stream ended here.
    pub(super) fn end(&self, patterns: &Patterns) -> Masked {
        self.clone().finish(patterns)
    }

    /// The number of bytes that are held back.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Drops the bytes that are held back, and returns true if there were any.
    pub(super) fn discard(&mut self) -> bool {
        !std::mem::take(self).held.is_empty()
    }
}

/// The search for values in the bytes that are held back.
#[derive(Default, Clone)]
struct Scan {
    /// The identity of the patterns of the state. Others scan the held bytes again.
    patterns: u64,
    state: StateID,
    /// For each byte that is held back and scanned: the length of the longest occurrence that begins
    /// there, or 0.
    longest: VecDeque<u16>,
}

impl Scan {
    /// Scans `input`, which begins with the bytes that are held back.
    ///
    /// Returns the number of bytes that are decided: no occurrence that begins in them can become
    /// longer, and none can begin in them. At the end of the stream, these are all bytes.
    fn advance(
        &mut self,
        patterns: &Patterns,
        input: &[u8],
        output: &mut Output,
        is_end: bool,
    ) -> usize {
        if self.patterns != patterns.id() {
            *self = Self {
                patterns: patterns.id(),
                state: patterns.root(),
                longest: VecDeque::new(),
            };
        }
        let (mut decided, mut at) = (0, self.longest.len());
        while at < input.len() {
            if decided == at {
                // Occurrences that began earlier do not count.
                self.state = patterns.root();
                at = patterns.skip(input, at);
                decided = at;
                if at == input.len() {
                    break;
                }
            }
            self.state = patterns.next(self.state, input[at]);
            at += 1;
            self.longest.push_back(0);
            for length in patterns.matches(self.state) {
                // Others begin within a value that is replaced.
                if length <= self.longest.len() {
                    let start = self.longest.len() - length;
                    // No value is longer than `MaskValues::MAX_VALUE_BYTES`, twice: with carriage
                    // returns.
                    self.longest[start] = self.longest[start].max(length as u16);
                }
            }
            let pending = patterns.pending(self.state).min(at);
            decided = self.decide(input, decided, at - pending, output);
        }
        match is_end {
            true => self.decide(input, decided, at, output),
            false => decided,
        }
    }

    /// Decides on the bytes from `decided` up to `end`, and on an occurrence that extends past it.
    fn decide(
        &mut self,
        input: &[u8],
        mut decided: usize,
        end: usize,
        output: &mut Output,
    ) -> usize {
        while decided < end {
            let length = self
                .longest
                .front()
                .map_or(0, |length| usize::from(*length));
            if length > 0 {
                output.replace(input, decided, length);
            }
            let length = length.max(1);
            self.longest.drain(..length);
            decided += length;
        }
        decided
    }
}

/// The masked output of one chunk.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    offsets: Vec<usize>,
    /// The number of input bytes that are in `bytes`, as they are or replaced.
    copied: usize,
}

impl Output {
    /// Replaces `length` bytes of the input.
    fn replace(&mut self, input: &[u8], from: usize, length: usize) {
        self.bytes.extend_from_slice(&input[self.copied..from]);
        self.offsets.push(self.bytes.len());
        self.bytes.extend_from_slice(MASK);
        self.copied = from + length;
    }

    /// Returns the masked form of `input`, without a copy if nothing was replaced.
    fn finish(mut self, input: Bytes) -> Masked {
        let bytes = match self.offsets.is_empty() {
            true => input,
            false => {
                self.bytes.extend_from_slice(&input[self.copied..]);
                Bytes::from(self.bytes)
            }
        };
        Masked {
            bytes,
            offsets: self.offsets,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patterns(values: &[&[u8]]) -> Patterns {
        Patterns::new(&values.iter().map(|value| value.to_vec()).collect()).unwrap()
    }

    /// The definition: the first occurrence, and the longest of those that begin there.
    fn expected(values: &[Vec<u8>], mut bytes: &[u8]) -> (Vec<u8>, usize) {
        let (mut masked, mut count) = (Vec::new(), 0);
        while let Some(first) = bytes.first() {
            let found = values.iter().filter(|value| bytes.starts_with(value));
            match found.map(Vec::len).max() {
                Some(length) => {
                    masked.extend_from_slice(MASK);
                    count += 1;
                    bytes = &bytes[length..];
                }
                None => {
                    masked.push(*first);
                    bytes = &bytes[1..];
                }
            }
        }
        (masked, count)
    }

    /// Masks chunks that end at `cuts`.
    fn masked(patterns: &Patterns, bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, usize) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut stream = StreamMasker::default();
        let (mut all, mut count) = (Vec::new(), 0);
        let mut add = |masked: Masked| {
            for offset in &masked.offsets {
                assert!(masked.bytes[*offset..].starts_with(MASK));
            }
            all.extend_from_slice(&masked.bytes);
            count += masked.offsets.len();
        };
        for cut in cuts.windows(2) {
            let chunk = Bytes::copy_from_slice(&bytes[cut[0]..cut[1]]);
            add(stream.push(patterns, chunk));
        }
        add(stream.end(patterns));
        let end = stream.end(patterns);
        assert_eq!(stream.finish(patterns), end);
        assert!(!stream.discard());
        (all, count)
    }

    /// Values and output of few different bytes, so that values overlap and occur.
    fn values() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![Just(b'a'), Just(b'b'), Just(b'*'), Just(b'\n'), Just(0xff)];
        prop::collection::vec(prop::collection::vec(byte, 2..9), 1..6)
    }

    fn output() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(b'a'), Just(b'b'), Just(b'*'), Just(b'\n'), Just(0xff)];
        prop::collection::vec(byte, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_masked_output_does_not_depend_on_chunks(
            values in values(),
            output in output(),
            cuts in prop::collection::vec(any::<usize>(), 0..20),
        ) {
            let patterns = Patterns::new(&values.iter().cloned().collect()).unwrap();
            let expected = expected(&values, &output);
            prop_assert_eq!(masked(&patterns, &output, &[]), expected.clone());
            prop_assert_eq!(masked(&patterns, &output, &cuts), expected.clone());
            let each: Vec<_> = (0..output.len()).collect();
            prop_assert_eq!(masked(&patterns, &output, &each), expected);
        }
    }

    #[test]
    fn the_longest_of_the_first_occurrences_is_masked() {
        let key = b"-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n".as_slice();
        let binary = b"\x00\xff\xfe\x80".as_slice();
        for (values, output, expected) in [
            (vec![b"secret".as_slice()], b"a secret.".to_vec(), "a ***."),
            (vec![b"secret"], b"secretsecret".to_vec(), "******"),
            (vec![b"secret"], b"secre".to_vec(), "secre"),
            // A prefix of another value, also at the end.
            (
                vec![b"ab", b"abcd"],
                b"abcd abc ab".to_vec(),
                "*** ***c ***",
            ),
            // Overlaps: the first occurrence wins, although another one is longer.
            (vec![b"abc", b"bcdefg"], b"abcdefg".to_vec(), "***defg"),
            (vec![b"aab"], b"aaaab".to_vec(), "aa***"),
            // The replacement is not searched again.
            (vec![b"**", b"***"], b"a**** b".to_vec(), "a**** b"),
            (vec![key], [b"x\n", key, b"y"].concat(), "x\n***y"),
            (vec![binary], [binary, b"\n", binary].concat(), "***\n***"),
        ] {
            let patterns = patterns(&values);
            for cut in 0..=output.len() {
                let (masked, _) = masked(&patterns, &output, &[cut]);
                assert_eq!(String::from_utf8(masked).unwrap(), expected, "cut at {cut}");
            }
        }
    }

    #[test]
    fn only_the_beginning_of_a_value_is_held_back() {
        let patterns = patterns(&[b"secret", b"token"]);
        let mut stream = StreamMasker::default();
        for (chunk, bytes) in [
            ("plain", "plain"),
            ("a sec", "a "),
            ("o", "seco"),
            ("se", ""),
            ("cret", "***"),
            ("xsect", "xsec"),
            ("ok", ""),
        ] {
            let masked = stream.push(&patterns, Bytes::from_static(chunk.as_bytes()));
            assert_eq!(masked.bytes, bytes, "{chunk}");
        }
        assert_eq!(stream.held, b"tok".as_slice());
    }

    #[test]
    fn a_chunk_without_an_occurrence_is_not_copied() {
        let patterns = patterns(&[b"secret"]);
        let chunk = Bytes::from(vec![b'x'; 100]);
        let masked = StreamMasker::default().push(&patterns, chunk.clone());
        assert_eq!(masked.bytes.as_ptr(), chunk.as_ptr());
    }

    /// A value that may become longer for 16 KB, in output that never ends it.
    #[test]
    fn each_byte_is_scanned_once() {
        let long = "ab".repeat(8000);
        let key = "a".repeat(16_000);
        for (values, part, chunk) in [
            (["ab".to_owned(), format!("{long}c")], "ab", 60_000),
            (["zz".to_owned(), format!("{key}c")], "a", 1),
        ] {
            let patterns = patterns(&values.each_ref().map(String::as_bytes));
            let mut stream = StreamMasker::default();
            let output = part.repeat(300_000 / part.len());
            let start = std::time::Instant::now();
            let mut length = 0;
            for chunk in output.as_bytes().chunks(chunk) {
                length += stream
                    .push(&patterns, Bytes::copy_from_slice(chunk))
                    .bytes
                    .len();
            }
            length += stream.finish(&patterns).bytes.len();
            let expected = if part == "ab" { 450_000 } else { 300_000 };
            assert_eq!(length, expected);
            // A scan from each occurrence takes minutes.
            let elapsed = start.elapsed();
            assert!(elapsed.as_secs() < 20, "{elapsed:?}");
        }
    }

    #[test]
    fn other_patterns_scan_the_held_bytes_again() {
        let (exact, split) = (patterns(&[b"secret"]), patterns(&[b"secant", b"secret"]));
        let mut stream = StreamMasker::default();
        assert_eq!(
            stream.push(&exact, Bytes::from_static(b"a sec")).bytes,
            "a "
        );
        assert_eq!(
            stream.push(&split, Bytes::from_static(b"ant!")).bytes,
            "***!"
        );
        assert_eq!(stream.push(&split, Bytes::from_static(b"seca")).bytes, "");
        assert_eq!(stream.end(&exact).bytes, "seca");
        assert_eq!(stream.push(&exact, Bytes::new()).bytes, "seca");
    }
}

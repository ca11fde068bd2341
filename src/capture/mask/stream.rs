//! The masking of one stream.

use bytes::Bytes;

use super::MASK;
use super::patterns::Patterns;

/// The masking of one stream.
///
/// It holds back only bytes that may still become an occurrence of a value, or a longer one.
#[derive(Default)]
pub(super) struct StreamMasker {
    held: Vec<u8>,
}

/// Output without the masked values.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Masked {
    pub(super) bytes: Bytes,
    /// The offsets of the replacements in `bytes`.
    pub(super) marks: Vec<usize>,
}

impl StreamMasker {
    /// Masks the next bytes of the stream.
    pub(super) fn push(&mut self, patterns: &Patterns, bytes: Bytes) -> Masked {
        let input = match self.held.is_empty() {
            true => bytes,
            false => {
                self.held.extend_from_slice(&bytes);
                Bytes::from(std::mem::take(&mut self.held))
            }
        };
        let (masked, rest) = mask(patterns, &input, |rest| rest.len() - patterns.pending(rest));
        self.held.extend_from_slice(rest);
        masked
    }

    /// Masks the bytes that are held back: the stream has no other bytes.
    pub(super) fn finish(&mut self, patterns: &Patterns) -> Masked {
        let masked = self.end(patterns);
        self.held.clear();
        masked
    }

    /// The result of [`finish`](Self::finish) if the stream ended here.
    pub(super) fn end(&self, patterns: &Patterns) -> Masked {
        let input = Bytes::copy_from_slice(&self.held);
        mask(patterns, &input, <[u8]>::len).0
    }

    /// The number of bytes that are held back.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Drops the bytes that are held back, and returns true if there were any.
    pub(super) fn discard(&mut self) -> bool {
        !std::mem::take(&mut self.held).is_empty()
    }
}

/// Masks `input`, except for the rest that it returns.
///
/// `certain` returns the length of its argument up to which an occurrence that begins there is
/// certain: it cannot become longer, and none can begin earlier.
fn mask<'a>(
    patterns: &Patterns,
    input: &'a Bytes,
    certain: impl Fn(&[u8]) -> usize,
) -> (Masked, &'a [u8]) {
    let mut marks = Vec::new();
    let mut bytes = Vec::new();
    let mut from = 0;
    let mut end = certain(input);
    while let Some((start, after)) = patterns.find(input, from)
        && start < end
    {
        bytes.extend_from_slice(&input[from..start]);
        marks.push(bytes.len());
        bytes.extend_from_slice(MASK);
        from = after;
        if end < from {
            end = from + certain(&input[from..]);
        }
    }
    let bytes = match marks.is_empty() {
        // Without a copy.
        true => input.slice(..end),
        false => {
            bytes.extend_from_slice(&input[from..end]);
            Bytes::from(bytes)
        }
    };
    (Masked { bytes, marks }, &input[end..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patterns(values: &[&[u8]]) -> Patterns {
        Patterns::new(values.iter().map(|value| value.to_vec()))
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
            for mark in &masked.marks {
                assert!(masked.bytes[*mark..].starts_with(MASK));
            }
            all.extend_from_slice(&masked.bytes);
            count += masked.marks.len();
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
            let patterns = Patterns::new(values.clone());
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
        assert_eq!(stream.held, b"tok");
    }

    #[test]
    fn a_chunk_without_an_occurrence_is_not_copied() {
        let patterns = patterns(&[b"secret"]);
        let chunk = Bytes::from(vec![b'x'; 100]);
        let masked = StreamMasker::default().push(&patterns, chunk.clone());
        assert_eq!(masked.bytes.as_ptr(), chunk.as_ptr());
    }
}

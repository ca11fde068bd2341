//! The key sequence that detaches.

use std::fmt;
use std::str::FromStr;

/// A key sequence that detaches from a run. Default: `ctrl-p,ctrl-q`.
///
/// It is parsed from the format of Docker's client: keys separated by commas. A key is one
/// character, or `ctrl-` and a letter or one of `@[\]^_`. An empty text disables detaching
/// by keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// An error in the text of [`DetachKeys`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot parse {0:?} as a key: expected one character, or ctrl- and a letter or one of @[\\]^_"
)]
pub struct ParseKeysError(String);

impl Default for DetachKeys {
    fn default() -> Self {
        const CTRL_P: u8 = 0x10;
        const CTRL_Q: u8 = 0x11;
        Self(vec![CTRL_P, CTRL_Q])
    }
}

impl FromStr for DetachKeys {
    type Err = ParseKeysError;

    fn from_str(text: &str) -> Result<Self, ParseKeysError> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let keys = text.split(',').map(|key| {
            let byte = match (key.as_bytes(), key.strip_prefix("ctrl-")) {
                ([byte], _) if byte.is_ascii() => Some(*byte),
                (_, Some(key)) => match key.as_bytes() {
                    [
                        byte @ (b'a'..=b'z'
                        | b'A'..=b'Z'
                        | b'@'
                        | b'['
                        | b'\\'
                        | b']'
                        | b'^'
                        | b'_'),
                    ] => Some(byte.to_ascii_uppercase() - b'@'),
                    _ => None,
                },
                _ => None,
            };
            byte.ok_or_else(|| ParseKeysError(key.to_owned()))
        });
        keys.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for DetachKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match byte {
                0..32 => write!(f, "ctrl-{}", char::from(byte + b'@').to_ascii_lowercase())?,
                _ => write!(f, "{}", char::from(*byte))?,
            }
        }
        Ok(())
    }
}

/// Finds the detach keys in typed input, across reads.
#[derive(Debug)]
pub(super) struct KeyMatcher {
    keys: DetachKeys,
    /// The number of keys matched so far. Their bytes are held back.
    matched: usize,
}

impl KeyMatcher {
    pub(super) fn new(keys: DetachKeys) -> Self {
        Self { keys, matched: 0 }
    }

    /// Processes typed bytes, and appends the input for the run to `passed`.
    ///
    /// Returns true if the detach keys are complete. Bytes after them are dropped.
    pub(super) fn feed(&mut self, typed: &[u8], passed: &mut Vec<u8>) -> bool {
        let keys = &self.keys.0;
        if keys.is_empty() {
            passed.extend_from_slice(typed);
            return false;
        }
        for &byte in typed {
            while keys[self.matched] != byte && self.matched > 0 {
                // Keeps the longest suffix of the held keys that is a prefix of the keys.
                let held = &keys[..self.matched];
                let next = (0..self.matched)
                    .rev()
                    .find(|&length| held.ends_with(&keys[..length]))
                    .unwrap_or(0);
                passed.extend_from_slice(&held[..self.matched - next]);
                self.matched = next;
            }
            if keys[self.matched] == byte {
                self.matched += 1;
                if self.matched == keys.len() {
                    self.matched = 0;
                    return true;
                }
            } else {
                passed.push(byte);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_parsed_and_displayed_in_dockers_format() {
        for (text, bytes) in [
            ("ctrl-p,ctrl-q", &[0x10, 0x11][..]),
            ("ctrl-@,ctrl-_", &[0, 0x1f]),
            ("a,b,ctrl-c", b"ab\x03"),
            ("", b""),
        ] {
            let keys: DetachKeys = text.parse().unwrap();
            assert_eq!(keys.0, bytes);
            assert_eq!(keys.to_string(), text);
        }
        assert_eq!(DetachKeys::default().to_string(), "ctrl-p,ctrl-q");
        for text in ["ctrl-", "ctrl-1", "ctrl-pp", "é", "a,,b", "ab"] {
            assert!(text.parse::<DetachKeys>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_incomplete_match_is_passed_on_in_order() {
        let mut matcher = KeyMatcher::new("a,a,b".parse().unwrap());
        let mut passed = Vec::new();
        assert!(!matcher.feed(b"aa", &mut passed));
        assert_eq!(passed, b"");
        assert!(!matcher.feed(b"ac", &mut passed));
        assert_eq!(passed, b"aaac");
        assert!(!matcher.feed(b"aaa", &mut passed));
        assert_eq!(passed, b"aaaca");
        assert!(matcher.feed(b"bxyz", &mut passed));
        assert_eq!(passed, b"aaaca");
    }

    proptest! {
        #[test]
        fn input_before_the_keys_is_passed_on_across_reads(
            keys in prop::collection::vec(b'a'..=b'b', 1..4),
            typed in prop::collection::vec(b'a'..=b'c', 0..40),
            cut in 1..5_usize,
        ) {
            let mut matcher = KeyMatcher::new(DetachKeys(keys.clone()));
            let (mut passed, mut detached) = (Vec::new(), false);
            for piece in typed.chunks(cut) {
                detached = detached || matcher.feed(piece, &mut passed);
            }
            match typed.windows(keys.len()).position(|window| window == keys) {
                Some(at) => {
                    prop_assert!(detached);
                    prop_assert_eq!(passed, &typed[..at]);
                }
                None => {
                    prop_assert!(!detached);
                    let held = matcher.matched;
                    prop_assert_eq!(&passed, &typed[..typed.len() - held]);
                    prop_assert_eq!(&keys[..held], &typed[typed.len() - held..]);
                }
            }
        }
    }
}

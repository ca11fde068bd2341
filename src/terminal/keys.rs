//! The keys that leave a run alone.

use std::fmt;
use std::str::FromStr;

/// A sequence of keys that detaches from a run, in the words of Docker's client: `ctrl-p,ctrl-q`,
/// which is the default. Parsed from text: keys are one character, or `ctrl-` and a letter or one
/// of `@[\]^_`, with commas in between. Of nothing: there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// Text that names no keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no key: give one character, or ctrl- and a letter or one of @[\\]^_")]
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

/// Looks for the keys in what is typed, however it is cut.
#[derive(Debug)]
pub(super) struct Watch {
    keys: DetachKeys,
    /// How many of the keys were typed: they are held back.
    held: usize,
}

impl Watch {
    pub(super) fn new(keys: DetachKeys) -> Self {
        Self { keys, held: 0 }
    }

    /// Takes what was typed, and adds what is not for us to `on`. `true`: the keys were typed;
    /// what comes behind them is nobody's.
    pub(super) fn feed(&mut self, typed: &[u8], on: &mut Vec<u8>) -> bool {
        let keys = &self.keys.0;
        if keys.is_empty() {
            on.extend_from_slice(typed);
            return false;
        }
        for &byte in typed {
            while keys[self.held] != byte && self.held > 0 {
                // The longest end of what is held that is a beginning of the keys stays held.
                let held = &keys[..self.held];
                let next = (0..self.held)
                    .rev()
                    .find(|&length| held.ends_with(&keys[..length]))
                    .unwrap_or(0);
                on.extend_from_slice(&held[..self.held - next]);
                self.held = next;
            }
            if keys[self.held] == byte {
                self.held += 1;
                if self.held == keys.len() {
                    self.held = 0;
                    return true;
                }
            } else {
                on.push(byte);
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
    fn keys_are_parsed_from_dockers_words_and_shown_in_them() {
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
    fn keys_that_come_to_nothing_go_on_in_their_order() {
        let mut watch = Watch::new("a,a,b".parse().unwrap());
        let mut on = Vec::new();
        assert!(!watch.feed(b"aa", &mut on));
        assert_eq!(on, b"");
        assert!(!watch.feed(b"ac", &mut on));
        assert_eq!(on, b"aaac");
        assert!(!watch.feed(b"aaa", &mut on));
        assert_eq!(on, b"aaaca");
        assert!(watch.feed(b"bxyz", &mut on));
        assert_eq!(on, b"aaaca");
    }

    proptest! {
        #[test]
        fn what_goes_on_is_what_was_typed_before_the_keys_however_it_is_cut(
            keys in prop::collection::vec(b'a'..=b'b', 1..4),
            typed in prop::collection::vec(b'a'..=b'c', 0..40),
            cut in 1..5_usize,
        ) {
            let mut watch = Watch::new(DetachKeys(keys.clone()));
            let (mut on, mut left) = (Vec::new(), false);
            for piece in typed.chunks(cut) {
                left = left || watch.feed(piece, &mut on);
            }
            match typed.windows(keys.len()).position(|window| window == keys) {
                Some(at) => {
                    prop_assert!(left);
                    prop_assert_eq!(on, &typed[..at]);
                }
                None => {
                    prop_assert!(!left);
                    let held = watch.held;
                    prop_assert_eq!(&on, &typed[..typed.len() - held]);
                    prop_assert_eq!(&keys[..held], &typed[typed.len() - held..]);
                }
            }
        }
    }
}

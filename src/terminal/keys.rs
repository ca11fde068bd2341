//! The key sequence that detaches.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use super::key_events::{KeyEvent, Piece, first_piece};

/// A key sequence that detaches from a run. Default: `ctrl-p,ctrl-q`.
///
/// It is parsed from the format of Docker's client: keys separated by commas. A key is one
/// character, or `ctrl-` and a letter or one of `@[\]^_`. An empty text disables detaching
/// by keys.
///
/// The keys are also found while a program has switched the terminal to another keyboard protocol:
/// that of kitty, or xterm's `modifyOtherKeys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// An error in the text of [`DetachKeys`].
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot parse {0:?} as a key: expected one character, or ctrl- and a letter or one of @[\\]^_"
)]
pub struct ParseKeysError(String);

impl fmt::Debug for ParseKeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

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
    /// The keys matched so far. Their bytes are held back.
    matched: VecDeque<Vec<u8>>,
    /// The beginning of an escape sequence, which is held back too.
    incomplete: Vec<u8>,
}

impl KeyMatcher {
    pub(super) fn new(keys: DetachKeys) -> Self {
        Self {
            keys,
            matched: VecDeque::new(),
            incomplete: Vec::new(),
        }
    }

    /// Processes typed bytes, and appends the input for the run to `passed`.
    ///
    /// Returns true if the detach keys are complete. Bytes after them are dropped.
    pub(super) fn feed(&mut self, typed: &[u8], passed: &mut Vec<u8>) -> bool {
        if self.keys.0.is_empty() {
            passed.extend_from_slice(typed);
            return false;
        }
        let mut input = std::mem::take(&mut self.incomplete);
        input.extend_from_slice(typed);
        let mut rest = &input[..];
        while !rest.is_empty() {
            let Piece::Event(event, length) = first_piece(rest) else {
                self.incomplete = rest.to_vec();
                return false;
            };
            let (bytes, after) = rest.split_at(length);
            if self.press(event, bytes, passed) {
                self.matched.clear();
                return true;
            }
            rest = after;
        }
        false
    }

    /// Processes one key event. Returns true if the detach keys are complete.
    fn press(&mut self, event: KeyEvent, bytes: &[u8], passed: &mut Vec<u8>) -> bool {
        let keys = &self.keys.0;
        if event == KeyEvent::Silent {
            match self.matched.back_mut() {
                Some(held) => held.extend_from_slice(bytes),
                None => passed.extend_from_slice(bytes),
            }
            return false;
        }
        let is_next = |matched: usize| event == KeyEvent::Byte(keys[matched]);
        while !is_next(self.matched.len()) && !self.matched.is_empty() {
            // Keeps the longest suffix of the held keys that is a prefix of the keys.
            let held = &keys[..self.matched.len()];
            let kept = (0..held.len())
                .rev()
                .find(|&length| held.ends_with(&keys[..length]))
                .unwrap_or(0);
            passed.extend(self.matched.drain(..held.len() - kept).flatten());
        }
        if !is_next(self.matched.len()) {
            passed.extend_from_slice(bytes);
            return false;
        }
        self.matched.push_back(bytes.to_vec());
        self.matched.len() == keys.len()
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

    /// The program has switched to kitty's protocol, or to that of xterm.
    #[test]
    fn keys_of_another_protocol_detach() {
        for typed in [
            "\x1b[112;5u\x1b[113;5u",
            "\x1b[27;5;112~\x1b[27;5;113~",
            "\x1b[57442;5u\x1b[112;5u\x1b[112;5:3u\x1b[113;5:1u",
        ] {
            for cut in 3..typed.len() {
                let mut matcher = KeyMatcher::new(DetachKeys::default());
                let mut passed = Vec::new();
                let pieces: Vec<_> = typed.as_bytes().chunks(cut).collect();
                let detached = pieces.iter().any(|piece| matcher.feed(piece, &mut passed));
                // Where a read ends after `ESC` or `ESC [`, these are keys of their own.
                let is_split = pieces
                    .iter()
                    .any(|piece| piece.ends_with(b"\x1b") || piece.ends_with(b"\x1b["));
                assert!(detached || is_split, "{typed:?} in pieces of {cut}");
            }
        }
    }

    #[test]
    fn other_keys_of_another_protocol_are_passed_on_in_order() {
        let mut matcher = KeyMatcher::new(DetachKeys::default());
        let mut passed = Vec::new();
        let typed = b"\x1b[112;5u\x1b[112;5:3u\x1b[120;5u\x1b[1;5A\x1b";
        for piece in typed.chunks(7) {
            assert!(!matcher.feed(piece, &mut passed));
        }
        assert_eq!(passed, typed);
    }

    proptest! {
        #[test]
        fn no_input_is_lost(
            typed in prop::collection::vec(
                prop_oneof![
                    Just("\x1b[112;5u"), Just("\x1b[113;5u"), Just("\x1b[112;5:3u"), Just("\x10"),
                    Just("\x1b"), Just("\x1b["), Just("1"), Just(";"), Just("u"), Just("x"),
                ],
                0..20,
            ),
            cut in 1..9_usize,
        ) {
            let typed = typed.concat().into_bytes();
            let mut matcher = KeyMatcher::new(DetachKeys::default());
            let mut passed = Vec::new();
            let mut pieces = typed.chunks(cut);
            if !pieces.any(|piece| matcher.feed(piece, &mut passed)) {
                passed.extend(matcher.matched.iter().flatten());
                passed.extend(&matcher.incomplete);
                prop_assert_eq!(passed, typed);
            } else {
                prop_assert!(typed.starts_with(&passed));
            }
        }

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
                    let held = matcher.matched.len();
                    prop_assert_eq!(&passed, &typed[..typed.len() - held]);
                    prop_assert_eq!(&keys[..held], &typed[typed.len() - held..]);
                }
            }
        }
    }
}

//! Masking of secrets in everything that is shown. Audit files are not masked.

use std::borrow::Cow;

use aho_corasick::AhoCorasick;

use crate::codes;

/// Replacement for a secret.
const STARS: &str = "***";

/// Minimum number of characters in a masked line.
///
/// A shorter one would mask much of any text.
const MIN_CHARS: usize = 3;

/// The secrets of a pipeline.
///
/// Each line of a secret is a secret. Lines of fewer than three characters are not masked. Secrets
/// that overlap in a text are masked as one, so that no part of either remains. A secret that the
/// text contains in another form (encoded or cut off) is not found.
#[derive(Debug)]
pub struct Mask {
    /// `None` if there are no secrets.
    secrets: Option<AhoCorasick>,
    longest: usize,
}

impl Mask {
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let lines: Vec<String> = secrets
            .into_iter()
            .flat_map(|secret| secret.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line.chars().count() >= MIN_CHARS)
            .collect();
        let longest = lines.iter().map(String::len).max().unwrap_or(0);
        let secrets = (longest > 0).then(|| {
            AhoCorasick::new(lines).expect("the size of an environment is within the limits")
        });
        Self { secrets, longest }
    }

    /// Length of the longest line of a secret, in bytes.
    ///
    /// A caller that masks a truncated text must remove this many more bytes from its end. They may
    /// be the start of a secret.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Masks whole lines.
    pub fn line<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => {
                Cow::Owned(String::from_utf8(bytes).expect("secrets are whole characters"))
            }
        }
    }

    /// The text on one line, masked, without escape codes and control characters.
    pub fn plain(&self, text: &str) -> String {
        // The removal of an escape code can reveal a secret.
        self.line(&codes::plain(&self.line(text))).into_owned()
    }

    /// The masked line, with no escape codes but colors.
    ///
    /// It has no colors if they hide a secret.
    pub fn visible(&self, line: &str) -> String {
        let visible = codes::visible(&self.line(line));
        match (self.line(&visible.text), self.line(&visible.colored)) {
            (Cow::Borrowed(_), Cow::Borrowed(_)) => visible.colored,
            (text, _) => text.into_owned(),
        }
    }

    /// The masked line without escape codes, if they hide a secret.
    pub fn without_codes(&self, line: &[u8]) -> Option<String> {
        let is_plain = self.secrets.is_none() || !line.contains(&codes::ESC);
        if is_plain {
            return None;
        }
        let line = String::from_utf8_lossy(line);
        match self.line(&codes::strip(&line)) {
            Cow::Borrowed(_) => None,
            Cow::Owned(masked) => Some(masked),
        }
    }

    /// Masks whole lines of bytes. The pieces of a line must be joined first.
    pub fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(secrets) = self.secrets.as_ref().filter(|all| all.is_match(bytes)) else {
            return Cow::Borrowed(bytes);
        };
        let mut masked = Vec::with_capacity(bytes.len());
        let mut matches: Vec<_> = secrets
            .find_overlapping_iter(bytes)
            .map(|found| found.range())
            .collect();
        matches.sort_by_key(|found| found.start);
        let (mut copied, mut rest) = (0, matches.into_iter().peekable());
        while let Some(mut found) = rest.next() {
            while let Some(next) = rest.next_if(|next| next.start < found.end) {
                found.end = found.end.max(next.end);
            }
            masked.extend_from_slice(&bytes[copied..found.start]);
            masked.extend_from_slice(STARS.as_bytes());
            copied = found.end;
        }
        masked.extend_from_slice(&bytes[copied..]);
        Cow::Owned(masked)
    }
}

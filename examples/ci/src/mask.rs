//! Secrets out of what is shown. The audit files keep what was printed.

use std::borrow::Cow;

use aho_corasick::AhoCorasick;

/// What stands in the place of a secret.
const STARS: &str = "***";

/// A line of a secret with fewer characters than this would blacken half of any text.
const LEAST: usize = 3;

/// Secrets that no view and no report shows.
///
/// A secret of several lines is as many secrets, each of one line; lines of fewer than three
/// characters are shown. Overlapping secrets are masked as one, so that no rest of the shorter one
/// stays. What is not printed as it is (encoded, coloured in its middle, cut off) is not found.
#[derive(Debug)]
pub struct Mask {
    /// `None`: there are no secrets.
    secrets: Option<AhoCorasick>,
    longest: usize,
}

impl Mask {
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let lines: Vec<String> = secrets
            .into_iter()
            .flat_map(|secret| secret.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line.chars().count() >= LEAST)
            .collect();
        let longest = lines.iter().map(String::len).max().unwrap_or(0);
        let secrets = (longest > 0).then(|| {
            AhoCorasick::new(lines).expect("what an environment holds is within the limits")
        });
        Self { secrets, longest }
    }

    /// The length of the longest line of a secret, in bytes: who cuts a line has to mask this much
    /// more of it first.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// A whole line, or any number of them, without the secrets.
    pub fn line<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => {
                Cow::Owned(String::from_utf8(bytes).expect("secrets are whole characters"))
            }
        }
    }

    /// The same, of bytes. Pieces of one line are to be joined before.
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
        let (mut shown, mut rest) = (0, matches.into_iter().peekable());
        while let Some(mut found) = rest.next() {
            while let Some(next) = rest.next_if(|next| next.start < found.end) {
                found.end = found.end.max(next.end);
            }
            masked.extend_from_slice(&bytes[shown..found.start]);
            masked.extend_from_slice(STARS.as_bytes());
            shown = found.end;
        }
        masked.extend_from_slice(&bytes[shown..]);
        Cow::Owned(masked)
    }
}

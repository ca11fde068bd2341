//! The search for values in output.

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};
use memchr::memchr;

/// A set of values to find.
pub(super) struct Patterns {
    /// `None` if there is no value, or too many to search for. `RunSpec::validate` refuses both.
    search: Option<AhoCorasick>,
    values: Vec<Value>,
}

/// A value, for the search of its beginning at the end of the output.
struct Value {
    bytes: Box<[u8]>,
    /// For each prefix of the value: the length of its longest proper prefix that is also its suffix.
    borders: Box<[u16]>,
}

impl Patterns {
    pub(super) fn new(values: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let values: Vec<_> = values.into_iter().map(Value::new).collect();
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // Each run has its own. The memory of the default grows up to a hundred times as large.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(values.iter().map(|value| &value.bytes));
        Self {
            search: search.ok(),
            values,
        }
    }

    /// Returns the first occurrence at or after `from`, and the longest of those that begin there.
    pub(super) fn find(&self, bytes: &[u8], from: usize) -> Option<(usize, usize)> {
        let found = self
            .search
            .as_ref()?
            .find(Input::new(bytes).range(from..))?;
        Some((found.start(), found.end()))
    }

    /// The length of the longest end of `bytes` that may become an occurrence with more bytes.
    pub(super) fn pending(&self, bytes: &[u8]) -> usize {
        let pending = self.values.iter().map(|value| value.pending(bytes));
        pending.max().unwrap_or(0)
    }
}

impl Value {
    fn new(bytes: Vec<u8>) -> Self {
        let mut borders = vec![0_u16; bytes.len()];
        let mut length = 0;
        for at in 1..bytes.len() {
            length = next_length(&bytes, &borders, length, bytes[at]);
            // No value is longer than `MaskValues::MAX_VALUE_BYTES`, twice: with carriage returns.
            borders[at] = length as u16;
        }
        Self {
            bytes: bytes.into(),
            borders: borders.into(),
        }
    }

    /// The length of the longest end of `bytes` that is a proper prefix of the value.
    fn pending(&self, bytes: &[u8]) -> usize {
        let Some((first, rest)) = self.bytes.split_first() else {
            return 0;
        };
        let end = &bytes[bytes.len().saturating_sub(rest.len())..];
        let Some(start) = memchr(*first, end) else {
            return 0;
        };
        let mut length = 0;
        for byte in &end[start..] {
            length = next_length(&self.bytes, &self.borders, length, *byte);
        }
        length
    }
}

/// Returns the length of the longest prefix of `value` that ends in `byte`, after a prefix of
/// `length`.
fn next_length(value: &[u8], borders: &[u16], mut length: usize, byte: u8) -> usize {
    while length > 0 && value[length] != byte {
        length = usize::from(borders[length - 1]);
    }
    length + usize::from(value[length] == byte)
}

//! Masks: values that are replaced in the output before any other code sees it.
//!
//! Masking is a function of a stream's bytes alone, regardless of how the bytes are chunked. So a
//! replay of the engine's log from its start masks what the tap has masked.

mod masker;
mod patterns;
mod stream;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

pub(crate) use self::masker::OutputMasker;
pub(super) use self::masker::{CapturedPart, MaskOffsets, Masker};
use self::patterns::Patterns;
use self::stream::StreamMasker;
use super::fidelity::replace_invalid;
use crate::runtime::LogFidelity;
use crate::spec::{MaskSource, MaskValues, RunRecord};

/// The replacement of a masked value.
pub(crate) const MASK: &[u8] = b"***";

/// The longest value beyond ASCII that is found in a log that replaces bytes.
///
/// Such a log may split each character of the value, and each split is one more pattern.
const MAX_SPLIT_BYTES: usize = 512;

/// The maximum length of all such patterns. They take some 30 times as much memory.
const MAX_ALL_SPLIT_BYTES: usize = 1 << 20;

/// The values that are masked in the output of a run.
///
/// `Debug` shows no value.
pub(crate) struct MaskSet {
    /// The patterns of output as it was printed.
    exact: Patterns,
    /// The patterns of a log that replaces bytes.
    ///
    /// Created once such a log is read. Their length grows with the square of that of a value.
    lossy: OnceLock<LossyPatterns>,
    /// Set if a value contains a newline.
    spans_lines: bool,
    values: MaskValues,
}

enum LossyPatterns {
    /// The log does not change ASCII.
    Same,
    Split(Box<Patterns>),
    /// A value cannot be found in the log.
    Unknown,
}

impl fmt::Debug for MaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MaskSet").finish_non_exhaustive()
    }
}

impl MaskSet {
    /// Returns `None` if the values cannot be searched for.
    fn new(values: MaskValues) -> Option<Self> {
        let spans_lines = values.iter().any(|value| value.contains(&b'\n'));
        Some(Self {
            exact: Patterns::new(&printed(&values))?,
            lossy: OnceLock::new(),
            spans_lines,
            values,
        })
    }

    fn lossy(&self) -> &LossyPatterns {
        self.lossy.get_or_init(|| {
            if self.values.iter().all(<[u8]>::is_ascii) {
                return LossyPatterns::Same;
            }
            let patterns = split_patterns(&printed(&self.values));
            let patterns = patterns.and_then(|patterns| Patterns::new(&patterns));
            patterns.map_or(LossyPatterns::Unknown, |patterns| {
                LossyPatterns::Split(Box::new(patterns))
            })
        })
    }

    /// The patterns for a log of this fidelity. `None` if a value cannot be found in such a log.
    fn patterns(&self, fidelity: LogFidelity) -> Option<&Patterns> {
        match fidelity {
            LogFidelity::Lossless | LogFidelity::Rotated => Some(&self.exact),
            LogFidelity::Utf8Lossy => match self.lossy() {
                LossyPatterns::Same => Some(&self.exact),
                LossyPatterns::Split(patterns) => Some(patterns),
                LossyPatterns::Unknown => None,
            },
        }
    }
}

/// The masks of a run, as this process knows them.
#[derive(Debug, Clone, Default)]
pub(crate) enum Masks {
    /// The run has none.
    #[default]
    None,
    Known(Arc<MaskSet>),
    /// The run has masks, and this process does not know them. It must record no output.
    Missing,
}

impl Masks {
    /// The masks are missing if the values cannot be searched for.
    pub(crate) fn new(values: MaskValues) -> Self {
        if values.is_empty() {
            return Self::None;
        }
        // Without a search, no output may be recorded.
        MaskSet::new(values).map_or(Self::Missing, |set| Self::Known(Arc::new(set)))
    }

    /// The masks of a run that was started with `count` masks, by this or by another process.
    ///
    /// Another number of values is not that of the run, so the masks are missing.
    pub(crate) fn of_run(source: &MaskSource, record: &RunRecord, count: u32) -> Self {
        if count == 0 {
            return Self::None;
        }
        let values = source.values_of(record);
        if values.len() == count as usize && values.check().is_ok() {
            return Self::new(values);
        }
        let found = values.len();
        tracing::warn!(run = %record.run, found, count, "the values to mask are unknown");
        Self::Missing
    }

    /// The values; none if they are unknown.
    pub(crate) fn values(&self) -> MaskValues {
        self.known()
            .map(|set| set.values.clone())
            .unwrap_or_default()
    }

    /// Masks a text whose invalid UTF-8 was replaced. Returns `None` if the values cannot be found.
    ///
    /// The engine may have cut the text, so that it ends in the beginning of a value. That is
    /// replaced, too.
    pub(crate) fn mask_text(&self, text: &str) -> Option<String> {
        let set = match self {
            Self::None => return Some(text.to_owned()),
            Self::Known(set) => set,
            Self::Missing => return None,
        };
        let patterns = set.patterns(LogFidelity::Utf8Lossy)?;
        // Docker marks the cut by dots.
        let (text, cut) = match text.strip_suffix("...") {
            Some(text) => (text.trim_end_matches('\u{FFFD}'), "..."),
            None => (text, ""),
        };
        let mut stream = StreamMasker::default();
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let mut masked = stream.push(patterns, bytes).bytes.to_vec();
        if stream.discard() {
            masked.extend_from_slice(MASK);
        }
        masked.extend_from_slice(cut.as_bytes());
        Some(String::from_utf8_lossy(&masked).into_owned())
    }

    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }

    fn known(&self) -> Option<&Arc<MaskSet>> {
        match self {
            Self::Known(set) => Some(set),
            Self::None | Self::Missing => None,
        }
    }
}

/// Returns the values as they are printed, to a pipe or a terminal.
fn printed(values: &MaskValues) -> BTreeSet<Vec<u8>> {
    let values = values.iter();
    // A terminal prints a newline as two bytes.
    let forms = values.flat_map(|value| [value.to_vec(), with_carriage_returns(value)]);
    forms.collect()
}

/// Returns the value as a terminal prints it: with a carriage return before each newline.
fn with_carriage_returns(value: &[u8]) -> Vec<u8> {
    let mut printed = Vec::with_capacity(value.len());
    for byte in value {
        if *byte == b'\n' {
            printed.push(b'\r');
        }
        printed.push(*byte);
    }
    printed
}

/// Returns the patterns for a log that replaces invalid bytes, and splits lines within characters.
///
/// A value is shorter than a record of the log, so at most one of its characters is split.
fn split_patterns(values: &BTreeSet<Vec<u8>>) -> Option<BTreeSet<Vec<u8>>> {
    let mut patterns = BTreeSet::new();
    let mut bytes = 0;
    for value in values {
        patterns.insert(value.clone());
        if value.is_ascii() {
            continue;
        }
        let text = std::str::from_utf8(value).ok()?;
        if value.len() > MAX_SPLIT_BYTES {
            return None;
        }
        let splits = (1..value.len()).filter(|at| !text.is_char_boundary(*at));
        for (start, end) in splits.map(|at| value.split_at(at)) {
            let mut split = Vec::new();
            replace_invalid(start, &mut split);
            replace_invalid(end, &mut split);
            bytes += split.len();
            if bytes > MAX_ALL_SPLIT_BYTES {
                return None;
            }
            patterns.insert(split);
        }
    }
    Some(patterns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(values: &[&[u8]]) -> Masks {
        let mut all = MaskValues::default();
        all.extend(values.iter().map(|value| value.to_vec()));
        Masks::new(all)
    }

    #[test]
    fn a_cut_text_shows_no_beginning_of_a_value() {
        let known = masks(&[b"s3cr3t", "pässwörd".as_bytes()]);
        for (text, expected) in [
            ("no s3cr3t here\n", "no *** here\n"),
            ("a s3cr", "a ***"),
            ("a s3cr...", "a ***..."),
            ("a p\u{FFFD}...", "a ***..."),
            ("a p\u{FFFD}\u{FFFD}sswörd", "a ***"),
            ("a b...", "a b..."),
        ] {
            assert_eq!(known.mask_text(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(Masks::None.mask_text("s3cr3t").as_deref(), Some("s3cr3t"));
        assert_eq!(Masks::Missing.mask_text("s3cr3t"), None);
        assert_eq!(masks(&[b"\xff\xfe"]).mask_text("s3cr3t"), None);
    }

    #[test]
    fn splits_of_many_long_values_are_bounded() {
        for (count, can_read) in [(7, true), (500, false)] {
            let mut values = MaskValues::default();
            values.extend((0..count).map(|n| format!("{n:04}{}", "é".repeat(248))));
            let masks = Masks::new(values);
            let set = masks.known().unwrap();
            assert!(set.lossy.get().is_none(), "the splits are not needed yet");
            assert_eq!(set.patterns(LogFidelity::Utf8Lossy).is_some(), can_read);
            assert!(set.patterns(LogFidelity::Lossless).is_some());
        }
    }

    #[test]
    fn values_without_a_search_are_missing() {
        let too_long = vec![b'x'; 1 << 17];
        assert!(masks(&[b"s3cr3t", &too_long]).is_missing());
    }
}

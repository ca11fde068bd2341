//! The search for values in output.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::packed;
use aho_corasick::{Anchored, MatchKind};

/// The length of the beginnings of values that are searched for at once, in bytes.
///
/// A longer beginning would be compared again at each place of repetitive output.
const PREFIX_BYTES: usize = 8;

/// A set of values to find.
pub(super) struct Patterns {
    /// The identity of the set. The states of one set have no meaning in another.
    id: u64,
    automaton: NFA,
    root: StateID,
    /// For each state: the length of the longest end of the output that may become an occurrence
    /// with more bytes.
    pending: Vec<u16>,
    /// Finds the beginnings of values. `None` if they are too many, or the processor is too old.
    prefixes: Option<packed::Searcher>,
    /// The bytes with which values begin.
    first_bytes: Box<[bool; 256]>,
}

impl Patterns {
    /// Returns `None` if the values are too many or too long to search for.
    pub(super) fn new(values: &BTreeSet<Vec<u8>>) -> Option<Self> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let automaton = NFA::builder()
            // All occurrences, because the scan continues within an occurrence.
            .match_kind(MatchKind::Standard)
            .prefilter(false)
            .build(values)
            .ok()?;
        let mut first_bytes = Box::new([false; 256]);
        for first in values.iter().filter_map(|value| value.first()) {
            first_bytes[usize::from(*first)] = true;
        }
        let mut patterns = Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            root: automaton.start_state(Anchored::No).ok()?,
            automaton,
            pending: Vec::new(),
            prefixes: prefixes(values),
            first_bytes,
        };
        patterns.find_pending(values)?;
        Some(patterns)
    }

    /// Sets the pending length of each state.
    fn find_pending(&mut self, values: &BTreeSet<Vec<u8>>) -> Option<()> {
        self.set_pending(self.root, 0);
        let mut ends = Vec::new();
        for value in values {
            let mut state = self.root;
            for (byte, length) in value.iter().zip(1..) {
                state = self.next(state, *byte);
                if length < value.len() {
                    self.set_pending(state, u16::try_from(length).ok()?);
                }
            }
            ends.push((value.len(), state, value));
        }
        // A whole value may be the beginning of no other. Then a shorter end of it is pending.
        ends.sort_unstable_by_key(|(length, ..)| *length);
        for (_, end, value) in ends {
            if self
                .pending
                .get(end.as_usize())
                .is_none_or(|length| *length == 0)
            {
                let rest = value.iter().skip(1);
                let suffix = rest.fold(self.root, |state, byte| self.next(state, *byte));
                self.set_pending(end, self.pending(suffix) as u16);
            }
        }
        Some(())
    }

    fn set_pending(&mut self, state: StateID, length: u16) {
        let index = state.as_usize();
        if index >= self.pending.len() {
            self.pending.resize(index + 1, 0);
        }
        self.pending[index] = length;
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The state before the first byte.
    pub(super) fn root(&self) -> StateID {
        self.root
    }

    pub(super) fn next(&self, state: StateID, byte: u8) -> StateID {
        self.automaton.next_state(Anchored::No, state, byte)
    }

    /// The lengths of all occurrences that end in a state.
    pub(super) fn matches(&self, state: StateID) -> impl Iterator<Item = usize> {
        let count = match self.automaton.is_match(state) {
            true => self.automaton.match_len(state),
            false => 0,
        };
        let pattern = move |index| self.automaton.match_pattern(state, index);
        (0..count).map(move |index| self.automaton.pattern_len(pattern(index)))
    }

    /// The length of the longest end of the output that may become an occurrence with more bytes.
    pub(super) fn pending(&self, state: StateID) -> usize {
        usize::from(self.pending[state.as_usize()])
    }

    /// Returns the first position at or after `from` at which an occurrence may begin.
    pub(super) fn skip(&self, bytes: &[u8], from: usize) -> usize {
        let first = |from: usize| {
            let found = bytes[from..]
                .iter()
                .position(|byte| self.first_bytes[usize::from(*byte)]);
            found.map_or(bytes.len(), |skipped| from + skipped)
        };
        let Some(prefixes) = &self.prefixes else {
            return first(from);
        };
        // The last bytes may be the beginning of a prefix.
        let last = bytes.len().saturating_sub(PREFIX_BYTES - 1).max(from);
        let found = prefixes.find_in(bytes, (from..bytes.len()).into());
        match found.map(|found| found.start()) {
            Some(start) if start < last => start,
            _ => first(last),
        }
    }
}

/// Returns a search for the beginnings of values.
fn prefixes(values: &BTreeSet<Vec<u8>>) -> Option<packed::Searcher> {
    let prefixes = values
        .iter()
        .map(|value| &value[..value.len().min(PREFIX_BYTES)]);
    let prefixes: BTreeSet<_> = prefixes.collect();
    packed::Config::new().builder().extend(prefixes).build()
}

//! Signals that this process ignores, such as SIGHUP under `nohup`.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

/// A set of signals. Bit 0 is signal 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SignalSet(u64);

/// Ignored signals that got a handler that does nothing.
///
/// The kernel no longer reports these signals as ignored.
static HANDLED: AtomicU64 = AtomicU64::new(0);

impl SignalSet {
    /// Parses a mask of `/proc/PID/status`, such as `SigIgn:`.
    pub(super) fn parse(status: &str, name: &str) -> Option<Self> {
        let mask = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(mask.trim(), 16).ok().map(Self)
    }

    /// Returns the signals whose disposition is to be ignored.
    ///
    /// Only Linux reports them, in `/proc`. The set is empty on other systems.
    pub(super) fn ignored() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::parse(&status, "SigIgn:").unwrap_or(Self(0))
    }

    pub(crate) fn contains(self, number: i32) -> bool {
        self.0 & bit(number) != 0
    }

    #[cfg(feature = "process")]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[cfg(any(feature = "process", test))]
    pub(super) fn iter(self) -> impl Iterator<Item = i32> {
        (1..=64).filter(move |&number| self.contains(number))
    }
}

fn bit(number: i32) -> u64 {
    1 << (number - 1)
}

/// Returns true if a signal has no effect on this process.
pub(crate) fn is_ignored(number: i32) -> bool {
    SignalSet::ignored().contains(number)
        || SignalSet(HANDLED.load(Ordering::Relaxed)).contains(number)
}

/// Records that an ignored signal gets a handler that does nothing.
#[cfg(feature = "process")]
pub(super) fn mark_handled(number: i32) {
    HANDLED.fetch_or(bit(number), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::SignalSet;

    #[test]
    fn signals_are_read_from_the_status() {
        let status =
            "SigBlk:\t0000000000000000\nSigIgn:\t8000000000001006\nSigCgt:\t00000001000004c8\n";
        let read = |status, name| Some(SignalSet::parse(status, name)?.iter().collect::<Vec<_>>());
        assert_eq!(read(status, "SigIgn:"), Some(vec![2, 3, 13, 64]));
        assert_eq!(read(status, "SigBlk:"), Some(vec![]));
        for status in ["", "SigIgn:\tno mask\n"] {
            assert_eq!(read(status, "SigIgn:"), None, "{status:?}");
        }
    }
}

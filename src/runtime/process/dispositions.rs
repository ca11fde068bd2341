//! Signal dispositions and the signal mask that a child starts with.
//!
//! `exec` resets handled signals to their defaults, but keeps ignored signals and the mask. Under
//! `nohup` or as a background job of a shell, this process ignores signals. Its children would
//! inherit that, and a stop by such a signal would have no effect. Containers start with default
//! dispositions and an empty mask. Local processes do so too, except for a few signals that stay
//! ignored.

use std::io;
use std::ops::RangeInclusive;
use std::process::Command;

use process_wrap::std::{CommandWrap, CommandWrapper, ResetSigmask};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// Ignored signals that keep their disposition in this process.
///
/// The standard library resets SIGPIPE in each child. A background process that ignores SIGTTOU
/// may write to its terminal, and one that ignores SIGTTIN gets an error from a read. With a handler
/// instead, the call would be interrupted and restarted forever.
const KEPT: [Signal; 3] = [Signal::PIPE, Signal::TTIN, Signal::TTOU];

/// Signals that the C library uses. It refuses a handler for them.
const RESERVED: RangeInclusive<i32> = 32..=33;

/// Gives each signal that this process ignores a handler that does nothing.
///
/// `exec` resets the handler to the default in the child. Safe code cannot change a disposition
/// between `fork` and `exec`. The signal still has no effect on this process, except that a blocking
/// system call may fail with `EINTR`.
///
/// Only Linux reports ignored signals in `/proc`. On other systems, children inherit them. Each start
/// reads them, because the embedder may ignore further signals at any time. A read takes 15 µs.
pub(super) fn handle_ignored() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for number in ignored(&status) {
        if RESERVED.contains(&number) || KEPT.iter().any(|kept| kept.as_raw() == number) {
            continue;
        }
        // tokio keeps the handler after the listener is dropped.
        if let Err(error) = signal(SignalKind::from_raw(number)) {
            tracing::debug!(signal = number, %error, "cannot handle an ignored signal");
        }
    }
}

/// Returns the numbers of the ignored signals in `/proc/self/status`.
fn ignored(status: &str) -> impl Iterator<Item = i32> + use<> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default();
    (1..=64).filter(move |number| mask & (1 << (number - 1)) != 0)
}

/// Empties the signal mask between `fork` and `exec`.
///
/// The mask of the spawning thread cannot be emptied instead. A signal that all threads of this
/// process block, to read it from a `signalfd`, would then end the process.
pub(super) fn reset_mask(command: &mut Command) -> io::Result<()> {
    // The hook ignores its context.
    let context = CommandWrap::with_new("", |_| ());
    ResetSigmask.pre_spawn(command, &context)
}

#[cfg(test)]
mod tests {
    use super::ignored;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status =
            "SigBlk:\t0000000000000001\nSigIgn:\t8000000000001006\nSigCgt:\t00000001000004c8\n";
        assert_eq!(ignored(status).collect::<Vec<_>>(), [2, 3, 13, 64]);
        for status in ["", "SigIgn:\t0000000000000000\n", "SigIgn:\tno mask\n"] {
            assert_eq!(ignored(status).count(), 0, "{status:?}");
        }
    }
}

//! Signal dispositions and the signal mask that a child starts with.
//!
//! `exec` resets handled signals to their defaults, but keeps ignored signals and the mask. Under
//! `nohup` or as a background job of a shell, this process ignores signals. Its children would
//! inherit that, and a stop by such a signal would have no effect. Containers start with default
//! dispositions and an empty mask. Local processes do so too, except for a few signals that stay
//! ignored.

use std::ops::RangeInclusive;
use std::process::Command;
use std::{fs, io};

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
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for number in signals(&status, "SigIgn:").into_iter().flatten() {
        if RESERVED.contains(&number) || KEPT.iter().any(|kept| kept.as_raw() == number) {
            continue;
        }
        // tokio keeps the handler after the listener is dropped.
        if let Err(error) = signal(SignalKind::from_raw(number)) {
            tracing::debug!(signal = number, %error, "cannot handle an ignored signal");
        }
    }
}

/// Empties the signal mask between `fork` and `exec`, unless this thread blocks no signal.
///
/// The mask of the spawning thread cannot be emptied instead. A signal that all threads of this
/// process block, to read it from a `signalfd`, would then end the process.
///
/// With the hook, the standard library uses `fork` instead of `posix_spawn`. In a process with 1 GiB
/// of memory, that took 115 ms instead of 0.1 ms. The command must be spawned by this thread.
pub(super) fn reset_mask(command: &mut Command) -> io::Result<()> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    if signals(&status, "SigBlk:").is_some_and(|mut blocked| blocked.next().is_none()) {
        return Ok(());
    }
    // The hook ignores its context.
    let context = CommandWrap::with_new("", |_| ());
    ResetSigmask.pre_spawn(command, &context)
}

/// Returns the numbers of the signals in a mask of `/proc/PID/status`, or `None` if the mask cannot
/// be read.
fn signals(status: &str, name: &str) -> Option<impl Iterator<Item = i32> + use<>> {
    let mask = status.lines().find_map(|line| line.strip_prefix(name))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some((1..=64).filter(move |number| mask & (1 << (number - 1)) != 0))
}

#[cfg(test)]
mod tests {
    use super::signals;

    #[test]
    fn signals_are_read_from_the_status() {
        let status =
            "SigBlk:\t0000000000000000\nSigIgn:\t8000000000001006\nSigCgt:\t00000001000004c8\n";
        let read = |status, name| signals(status, name).map(Iterator::collect::<Vec<_>>);
        assert_eq!(read(status, "SigIgn:"), Some(vec![2, 3, 13, 64]));
        assert_eq!(read(status, "SigBlk:"), Some(vec![]));
        for status in ["", "SigIgn:\tno mask\n"] {
            assert_eq!(read(status, "SigIgn:"), None, "{status:?}");
        }
    }
}

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

use crate::runtime::ignored_signals::{self, SignalSet};

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
    for number in SignalSet::ignored().iter() {
        if RESERVED.contains(&number) || KEPT.iter().any(|kept| kept.as_raw() == number) {
            continue;
        }
        // Before the handler, so that the signal is ignored at any time for `is_ignored`.
        ignored_signals::mark_handled(number);
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
    let blocked = SignalSet::parse(&status, "SigBlk:");
    if blocked.is_some_and(|blocked| blocked.is_empty()) {
        return Ok(());
    }
    // The hook ignores its context.
    let context = CommandWrap::with_new("", |_| ());
    ResetSigmask.pre_spawn(command, &context)
}

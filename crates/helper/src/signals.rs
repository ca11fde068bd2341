//! Signals that this process receives.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::signal as name;
use signal_hook::{flag, low_level::pipe};

/// The signals that end a process that waits for its release.
pub(crate) const TERMINATING: [i32; 4] = [name::SIGTERM, name::SIGINT, name::SIGHUP, name::SIGQUIT];

/// The signals that a wrapper forwards to its command.
pub(crate) const FORWARDED: [i32; 17] = [
    name::SIGTERM,
    name::SIGINT,
    name::SIGHUP,
    name::SIGQUIT,
    name::SIGUSR1,
    name::SIGUSR2,
    name::SIGWINCH,
    name::SIGCONT,
    name::SIGALRM,
    name::SIGTSTP,
    name::SIGTTIN,
    name::SIGTTOU,
    name::SIGURG,
    name::SIGXCPU,
    name::SIGXFSZ,
    name::SIGVTALRM,
    name::SIGSYS,
];

/// A child has ended.
pub(crate) const CHILD: i32 = name::SIGCHLD;

/// The signals that were registered, as flags and a file descriptor for poll(2).
///
/// A registered signal has its default disposition in spawned processes, even if this process
/// inherited it as ignored.
#[derive(Debug)]
pub(crate) struct Signals {
    wake: UnixStream,
    flags: Vec<(i32, Arc<AtomicBool>)>,
}

impl Signals {
    /// Starts to catch `signals`.
    pub(crate) fn register(signals: impl IntoIterator<Item = i32>) -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let mut flags = Vec::new();
        for signal in signals {
            // The flag is set before the byte is written: actions run in this order.
            let flag = Arc::new(AtomicBool::new(false));
            flag::register(signal, Arc::clone(&flag))?;
            pipe::register(signal, write.try_clone()?)?;
            flags.push((signal, flag));
        }
        Ok(Self { wake, flags })
    }

    /// Returns the signals received since the last call.
    pub(crate) fn take(&self) -> Vec<i32> {
        let mut bytes = [0; 64];
        while matches!((&self.wake).read(&mut bytes), Ok(read) if read > 0) {}
        let raised = self
            .flags
            .iter()
            .filter(|(_, flag)| flag.swap(false, Ordering::SeqCst));
        raised.map(|(signal, _)| *signal).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

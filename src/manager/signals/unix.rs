//! SIGINT and SIGTERM.

use std::io;

use tokio::signal::unix::{self, SignalKind};

use super::Signal;

/// The signals that ask this process to terminate.
pub(super) struct Signals {
    interrupts: unix::Signal,
    terminations: unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupts: unix::signal(SignalKind::interrupt())?,
            terminations: unix::signal(SignalKind::terminate())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupts.recv() => Signal::Interrupt,
            _ = self.terminations.recv() => Signal::Terminate,
        }
    }
}

//! Ctrl-C and Ctrl-Break. Compiled, but not tested.

use std::io;

use tokio::signal::windows::{self, CtrlBreak, CtrlC};

use super::Signal;

/// The signals that ask this process to terminate.
pub(super) struct Signals {
    interrupts: CtrlC,
    terminations: CtrlBreak,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupts: windows::ctrl_c()?,
            terminations: windows::ctrl_break()?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupts.recv() => Signal::Interrupt,
            _ = self.terminations.recv() => Signal::Terminate,
        }
    }
}

//! The console events of Windows. Compiled, but not tested.

use std::io;

use tokio::signal::windows::{self, CtrlBreak, CtrlC, CtrlClose, CtrlShutdown};

use super::Signal;

/// The signals that ask this process to terminate.
pub(super) struct Signals {
    interrupts: CtrlC,
    breaks: CtrlBreak,
    closes: CtrlClose,
    shutdowns: CtrlShutdown,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupts: windows::ctrl_c()?,
            breaks: windows::ctrl_break()?,
            closes: windows::ctrl_close()?,
            shutdowns: windows::ctrl_shutdown()?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupts.recv() => Signal::Interrupt,
            _ = self.breaks.recv() => Signal::Terminate,
            _ = self.closes.recv() => Signal::Hangup,
            _ = self.shutdowns.recv() => Signal::Terminate,
        }
    }
}

//! SIGINT, SIGTERM and SIGHUP.

use std::future::pending;
use std::io;

use tokio::signal::unix::{self, SignalKind};

use super::Signal;
use crate::runtime::ignored_signals::is_ignored;

/// The signals that ask this process to terminate.
pub(super) struct Signals {
    interrupts: unix::Signal,
    terminations: unix::Signal,
    /// `None` if this process ignores SIGHUP.
    hangups: Option<unix::Signal>,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        let hangup = SignalKind::hangup();
        let hangups = match is_ignored(hangup.as_raw_value()) {
            true => None,
            false => Some(unix::signal(hangup)?),
        };
        Ok(Self {
            interrupts: unix::signal(SignalKind::interrupt())?,
            terminations: unix::signal(SignalKind::terminate())?,
            hangups,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        let hangup = async {
            match &mut self.hangups {
                Some(hangups) => hangups.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupts.recv() => Signal::Interrupt,
            _ = self.terminations.recv() => Signal::Terminate,
            _ = hangup => Signal::Hangup,
        }
    }
}

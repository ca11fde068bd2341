//! Stopping all runs on SIGINT and SIGTERM.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::manager::{Manager, ShutdownMode};
use crate::outcome::StopCause;

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
use self::unix as platform;
#[cfg(windows)]
use self::windows as platform;

/// A signal that asks this process to terminate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM. On Windows: Ctrl-Break.
    Terminate,
}

impl Signal {
    /// Returns the exit code of a shell for this signal: 130 or 143.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

impl Manager {
    /// Stops all runs and shuts down on Ctrl-C or SIGTERM, and returns the signal.
    ///
    /// Intended for binaries. The returned future waits for a signal, and then shuts down
    /// with [`ShutdownMode::Stop`]: all runs are stopped and sealed. A second signal kills
    /// the remaining runs. During the shutdown, starting a run fails with
    /// [`Error::Closed`].
    ///
    /// From this call on, neither signal terminates the process by default, even after the
    /// future is dropped. Poll the future to completion on a tokio runtime with the I/O
    /// driver enabled.
    ///
    /// ```no_run
    /// # use futures::FutureExt;
    /// # use moat::{Manager, ShutdownMode};
    /// # use std::pin::pin;
    /// # async fn work(manager: &Manager) -> moat::Result<()> { Ok(()) }
    /// # async fn example(manager: Manager) -> moat::Result<()> {
    /// let mut signals = pin!(manager.stop_on_signals()?);
    /// let done = tokio::select! {
    ///     signal = &mut signals => std::process::exit(signal.exit_code()),
    ///     done = work(&manager) => done,
    /// };
    /// // The work may have ended because its runs were stopped. Wait for the other runs.
    /// manager.shutdown(ShutdownMode::Stop).await;
    /// if let Some(signal) = signals.now_or_never() {
    ///     std::process::exit(signal.exit_code());
    /// }
    /// done
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the signal handlers cannot be installed.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the runs as they are.
    pub fn stop_on_signals(&self) -> Result<impl Future<Output = Signal> + Send + 'static> {
        let root = self.context().root.path();
        let mut signals = platform::Signals::listen()
            .map_err(|error| Error::storage("handle signals for", root, error))?;
        let manager = self.clone();
        Ok(async move {
            let first = signals.next().await;
            tracing::info!(signal = %first, "stopping all runs");
            let shutdown = manager.shutdown(ShutdownMode::Stop);
            tokio::pin!(shutdown);
            tokio::select! {
                () = &mut shutdown => return first,
                second = signals.next() => tracing::info!(signal = %second, "killing all runs"),
            }
            let kill = manager.stop_all(StopCause::Killed, Some(Duration::ZERO));
            tokio::join!(shutdown, kill);
            first
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_and_an_exit_code() {
        for (signal, name, code) in [
            (Signal::Interrupt, "SIGINT", 130),
            (Signal::Terminate, "SIGTERM", 143),
        ] {
            assert_eq!(signal.to_string(), name);
            assert_eq!(signal.exit_code(), code);
        }
    }
}

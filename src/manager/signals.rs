//! Stopping all runs on SIGINT, SIGTERM and SIGHUP.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::manager::{Manager, ShutdownMode};

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
    /// SIGTERM. On Windows: Ctrl-Break, or the system shuts down.
    Terminate,
    /// SIGHUP: the terminal was closed. On Windows: the console window was closed.
    Hangup,
}

impl Signal {
    /// Returns the exit code of a shell for this signal: 130, 143 or 129.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
            Self::Hangup => 129,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        })
    }
}

impl Manager {
    /// Stops all runs and shuts down on a signal, and returns the signal.
    ///
    /// Intended for binaries. The returned future waits for a signal, and then shuts down
    /// with [`ShutdownMode::Stop`]: all runs are stopped and sealed, the services last. A
    /// second signal kills the remaining runs, unless it is SIGHUP: a terminal that closes may
    /// send that one twice. During the shutdown, starting a run fails with [`Error::Closed`].
    ///
    /// The signals:
    ///
    /// - On Unix: SIGINT, SIGTERM and SIGHUP. If this process ignores SIGHUP, as under `nohup`, the
    ///   signal stays ignored. Only Linux reports ignored signals: on other systems, SIGHUP stops the
    ///   runs under `nohup` too.
    /// - On Windows: Ctrl-C, Ctrl-Break, and the events for a closed console and for a shutdown. The
    ///   system ends the process a few seconds after the last two, so use short grace periods. The
    ///   event for a logoff is not handled, because a service receives it for any user.
    ///
    /// From this call on, no such signal terminates the process by default, even after the
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
        self.stop_on_signals_with_cleanup(Duration::ZERO)
    }

    /// Stops all runs on a signal, as [`stop_on_signals`](Self::stop_on_signals) does, with time for
    /// runs that clean up.
    ///
    /// A signal first stops the runs that are neither services nor marked with
    /// [`RunSpec::cleanup`]. From then on, only runs with this mark can start, for at most `limit`.
    /// They find the services still running. All other starts fail with [`Error::Closed`].
    ///
    /// Call [`shutdown`](Self::shutdown) when the cleanup is done, or the future waits for the whole
    /// `limit`. Then the remaining runs are stopped, the services last. A second signal ends the
    /// cleanup, and kills the remaining runs.
    ///
    /// [`RunSpec::cleanup`]: crate::spec::RunSpec::cleanup
    ///
    /// # Errors
    ///
    /// Those of [`stop_on_signals`](Self::stop_on_signals).
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the runs as they are. New runs can start again.
    pub fn stop_on_signals_with_cleanup(
        &self,
        limit: Duration,
    ) -> Result<impl Future<Output = Signal> + Send + 'static> {
        let root = self.context().root.path();
        let mut signals = platform::Signals::listen()
            .map_err(|error| Error::storage("handle signals for", root, error))?;
        let manager = self.clone();
        Ok(async move {
            let first = signals.next().await;
            tracing::info!(signal = %first, "stopping all runs");
            let stop = async {
                let _refused = manager.clean_up(limit).await;
                manager.shutdown(ShutdownMode::Stop).await;
            };
            let second = async {
                loop {
                    match signals.next().await {
                        Signal::Hangup => {}
                        signal => return signal,
                    }
                }
            };
            tokio::select! {
                () = stop => return first,
                second = second => tracing::info!(signal = %second, "killing all runs"),
            }
            tokio::join!(manager.shutdown(ShutdownMode::Stop), manager.kill_all());
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
            (Signal::Hangup, "SIGHUP", 129),
        ] {
            assert_eq!(signal.to_string(), name);
            assert_eq!(signal.exit_code(), code);
        }
    }
}

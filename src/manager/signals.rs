//! Stopping all runs when this process is asked to end.

use std::sync::Arc;

use futures::future::join_all;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Result};
use crate::manager::{Manager, ShutdownMode};
use crate::outcome::StopCause;

/// A signal that asked this process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    /// The exit code by which a shell tells of this signal: 130 or 143.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl Manager {
    /// For binaries: waits for Ctrl-C or SIGTERM, then shuts down with all runs stopped and sealed
    /// ([`ShutdownMode::Stop`]), and says which it was. A second signal kills what still runs.
    ///
    /// From this call on, not from the first poll of what it gives, neither signal ends the process
    /// by itself; that stays so. What it gives has to be polled, on a runtime of tokio's with its
    /// I/O driver, and should be polled to its end; dropped in the middle, it leaves the runs as
    /// they are. While it stops them, no other run starts: [`Error::Closed`].
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
    /// // The work can be at its end, because its runs were stopped, before all runs are.
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
    /// [`Error::Storage`] if the signals cannot be listened to.
    ///
    /// # Panics
    ///
    /// Outside of a runtime of tokio's.
    pub fn stop_on_signals(&self) -> Result<impl Future<Output = Signal> + Send + 'static> {
        let listen = |kind| {
            let root = &self.context().root;
            signal(kind)
                .map_err(|error| Error::storage("listen to signals for", root.path(), error))
        };
        let mut interrupts = listen(SignalKind::interrupt())?;
        let mut terminations = listen(SignalKind::terminate())?;
        let manager = self.clone();
        Ok(async move {
            let mut next = async || {
                tokio::select! {
                    _ = interrupts.recv() => Signal::Interrupt,
                    _ = terminations.recv() => Signal::Terminate,
                }
            };
            let first = next().await;
            tracing::info!(?first, "all runs are stopped");
            let shutdown = manager.shutdown(ShutdownMode::Stop);
            tokio::pin!(shutdown);
            tokio::select! {
                () = &mut shutdown => return first,
                second = next() => tracing::info!(?second, "all runs are killed"),
            }
            tokio::join!(shutdown, manager.kill_all());
            first
        })
    }

    /// Kills all runs that this manager owns.
    async fn kill_all(&self) {
        let entries: Vec<_> = self.context().entries().values().cloned().collect();
        let kills = entries.into_iter().map(|entry| {
            let run = self.handle(Arc::clone(&entry));
            async move {
                if !run.owned_elsewhere() {
                    let grace = Some(std::time::Duration::ZERO);
                    // It fails only for a run that cannot be taken over.
                    let _ = run.request(StopCause::Killed, grace).await;
                }
            }
        });
        join_all(kills).await;
    }
}

//! Stopping a container: a signal, a grace period, then SIGKILL until the container has ended.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::audit::Stop;
use crate::monitor::calls::Calls;
use crate::monitor::entry::StopRequest;
use crate::outcome::StopCause;
use crate::spec::ContainerId;
use crate::timestamp::Timestamp;

/// Stop signal if neither the spec nor the image has one.
pub(super) const DEFAULT_SIGNAL: &str = "SIGTERM";
/// Pause before a signal is sent again that the engine may not have received.
const SIGNAL_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before SIGKILL is sent again to a container that still runs.
const KILL_INTERVAL: Duration = Duration::from_secs(10);
/// Time beyond the grace period for which a stop waits for an engine that does not answer.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest grace period, 30 years: a deadline this far away does not overflow the clock.
pub(crate) const MAX_GRACE: Duration = Duration::from_secs(86_400 * 365 * 30);

/// Carries out the requests to stop a container.
///
/// Its owner polls [`proceed`](Self::proceed) until the container has ended.
#[derive(Default)]
pub(super) struct Stopper {
    /// When SIGKILL is due, once a stop was requested.
    kill_at: Option<Instant>,
    /// The cause of the first request. Later requests do not change it.
    pub(super) cause: Option<StopCause>,
    sequence: Option<BoxFuture<'static, ()>>,
    /// Cancelled once the engine has answered the first signal of `sequence`.
    signaled: CancellationToken,
}

impl Stopper {
    /// Begins a stop and returns its record.
    pub(super) fn request(
        &mut self,
        calls: &Calls,
        container: &ContainerId,
        request: StopRequest,
        signal: &str,
        default_grace: Duration,
    ) -> Stop {
        self.cause.get_or_insert(request.cause);
        let killed = request.cause == StopCause::Killed || calls.is_of_exec();
        let grace = match killed {
            true => Duration::ZERO,
            false => request.grace.unwrap_or(default_grace).min(MAX_GRACE),
        };
        let first = (!killed).then(|| signal.to_owned());
        self.schedule(calls, container, first, grace);
        if killed {
            Stop::new(request.cause, "SIGKILL", None)
        } else {
            Stop::new(request.cause, signal, Some(grace.as_secs_f64()))
        }
    }

    /// Resumes a stop that an earlier owner of the run began.
    ///
    /// SIGKILL stays due at the same wall-clock time. The signal before SIGKILL was sent by the
    /// earlier owner and is not sent twice.
    pub(super) fn resume(&mut self, calls: &Calls, container: &ContainerId, stop: &Stop) {
        let grace = Duration::try_from_secs_f64(stop.grace_seconds.unwrap_or(0.0));
        let grace = grace.unwrap_or(MAX_GRACE).min(MAX_GRACE);
        // A clock that was set back does not extend the grace period.
        let remaining = stop.ts.saturating_add(grace).since(Timestamp::now());
        self.schedule(calls, container, None, remaining.min(grace));
    }

    /// Sends a signal now and SIGKILL after `grace`, unless SIGKILL is already due earlier.
    fn schedule(
        &mut self,
        calls: &Calls,
        container: &ContainerId,
        signal: Option<String>,
        grace: Duration,
    ) {
        let kill_at = Instant::now() + grace;
        if self.kill_at.is_none_or(|at| kill_at < at) {
            self.kill_at = Some(kill_at);
            self.signaled = CancellationToken::new();
            self.sequence = Some(Box::pin(sequence(
                calls.clone(),
                container.clone(),
                signal,
                kill_at,
                self.signaled.clone(),
            )));
        }
    }

    /// Carries the requested stop out. Never resolves. Cancel-safe.
    pub(super) async fn proceed(&mut self) {
        if let Some(sequence) = &mut self.sequence {
            sequence.await;
            self.sequence = None;
        }
        std::future::pending().await
    }

    /// Carries the requested stop out, if there is one, until the engine has answered the first
    /// signal.
    pub(super) async fn proceed_until_signaled(&mut self) {
        if self.sequence.is_some() {
            let signaled = self.signaled.clone();
            signaled.run_until_cancelled(self.proceed()).await;
        }
    }
}

/// Sends `signal`, if any, then SIGKILL from `kill_at` on. Never resolves.
async fn sequence(
    calls: Calls,
    container: ContainerId,
    signal: Option<String>,
    kill_at: Instant,
    signaled: CancellationToken,
) {
    let first = async {
        if let Some(signal) = signal {
            // A definitive error does not change on a retry: the container has ended, or SIGKILL
            // follows.
            while let Err(error) = calls.signal(&container, &signal).await
                && !error.is_definitive()
            {
                tracing::warn!(%container, %error, "cannot send {signal}: retrying");
                sleep(SIGNAL_RETRY_INTERVAL).await;
            }
            signaled.cancel();
        }
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = first => {}
        () = sleep_until(kill_at) => {}
    }
    loop {
        match calls.signal(&container, "SIGKILL").await {
            Err(error) if !error.is_definitive() => {
                tracing::warn!(%container, %error, "cannot send SIGKILL: retrying");
                sleep(SIGNAL_RETRY_INTERVAL).await;
            }
            _ => {
                signaled.cancel();
                sleep(KILL_INTERVAL).await;
            }
        }
    }
}

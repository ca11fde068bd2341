//! Stopping a container: a signal, a grace, and SIGKILL until it is gone.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::audit::Stop;
use crate::monitor::entry::StopRequest;
use crate::outcome::StopCause;
use crate::runtime::Runtime;
use crate::spec::ContainerId;
use crate::timestamp::Timestamp;

/// How long to wait before a signal that may not have arrived is sent again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long SIGKILL is given before it is sent again.
const KILL_AGAIN: Duration = Duration::from_secs(10);
/// So far away that no clock overflows.
const NEVER: Duration = Duration::from_secs(86_400 * 365 * 30);

/// Carries out requests to stop a container. Its owner polls it until the container has ended.
#[derive(Default)]
pub(crate) struct Stopper {
    kill_at: Option<Instant>,
    /// The first cause is the one that counts.
    pub(crate) cause: Option<StopCause>,
    sequence: Option<BoxFuture<'static, ()>>,
    /// Whether the engine has answered to its first signal.
    asked: CancellationToken,
}

impl Stopper {
    /// Takes a request, and says what is to be recorded of it.
    pub(crate) fn request(
        &mut self,
        runtime: &Arc<dyn Runtime>,
        container: &ContainerId,
        request: StopRequest,
        signal: &str,
        default_grace: Duration,
    ) -> Stop {
        self.cause.get_or_insert(request.cause);
        let grace = request.grace.unwrap_or(default_grace).min(NEVER);
        let killed = request.cause == StopCause::Killed;
        let first = (!killed).then(|| signal.to_owned());
        self.kill_at(runtime, container, first, grace);
        if killed {
            Stop::new(request.cause, "SIGKILL", None)
        } else {
            Stop::new(request.cause, signal, Some(grace.as_secs_f64()))
        }
    }

    /// Goes on with a stop that an owner before this one has begun: SIGKILL is due when it was, by
    /// the wall clock. The signal before it was sent then, and is not sent twice.
    pub(crate) fn carry_on(
        &mut self,
        runtime: &Arc<dyn Runtime>,
        container: &ContainerId,
        stop: &Stop,
    ) {
        let grace = Duration::try_from_secs_f64(stop.grace_seconds.unwrap_or(0.0));
        let grace = grace.unwrap_or(NEVER).min(NEVER);
        // A clock that was set back makes it no longer.
        let left = stop.ts.saturating_add(grace).since(Timestamp::now());
        self.kill_at(runtime, container, None, left.min(grace));
    }

    /// Sends a signal, and SIGKILL when the grace is over, unless that is due earlier already.
    fn kill_at(
        &mut self,
        runtime: &Arc<dyn Runtime>,
        container: &ContainerId,
        signal: Option<String>,
        grace: Duration,
    ) {
        let kill_at = Instant::now() + grace;
        if self.kill_at.is_none_or(|at| kill_at < at) {
            self.kill_at = Some(kill_at);
            self.asked = CancellationToken::new();
            self.sequence = Some(Box::pin(sequence(
                Arc::clone(runtime),
                container.clone(),
                signal,
                kill_at,
                self.asked.clone(),
            )));
        }
    }

    /// Goes on with what was requested. It never ends. Cancel-safe.
    pub(crate) async fn proceed(&mut self) {
        if let Some(sequence) = &mut self.sequence {
            sequence.await;
            self.sequence = None;
        }
        std::future::pending().await
    }

    /// Goes on with what was requested until the engine has been asked for it, if anything was.
    pub(crate) async fn asked(&mut self) {
        if self.sequence.is_some() {
            let asked = self.asked.clone();
            asked.run_until_cancelled(self.proceed()).await;
        }
    }
}

async fn sequence(
    runtime: Arc<dyn Runtime>,
    container: ContainerId,
    signal: Option<String>,
    kill_at: Instant,
    asked: CancellationToken,
) {
    let ask = async {
        if let Some(signal) = signal {
            // A fact, whatever it is, will not change by asking again: the exit is on its way, or
            // SIGKILL is.
            while let Err(error) = runtime.signal(&container, &signal).await
                && !error.is_definitive()
            {
                tracing::warn!(%container, %error, "cannot send {signal} yet");
                sleep(AGAIN).await;
            }
            asked.cancel();
        }
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = ask => {}
        () = sleep_until(kill_at) => {}
    }
    loop {
        match runtime.signal(&container, "SIGKILL").await {
            Err(error) if !error.is_definitive() => {
                tracing::warn!(%container, %error, "cannot send SIGKILL yet");
                sleep(AGAIN).await;
            }
            _ => {
                asked.cancel();
                sleep(KILL_AGAIN).await;
            }
        }
    }
}

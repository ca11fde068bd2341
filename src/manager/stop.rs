//! Stopping a container: a signal, a grace, and SIGKILL until it is gone.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};

use super::run::StopRequest;
use crate::runtime::Runtime;
use crate::sink::Stop;
use crate::{ContainerId, StopCause};

/// How long to wait before a signal that may not have arrived is sent again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long SIGKILL is given before it is sent again.
const KILL_AGAIN: Duration = Duration::from_secs(10);
/// So far away that no clock overflows.
const NEVER: Duration = Duration::from_secs(86_400 * 365 * 30);

/// Carries out requests to stop a container. Its owner polls it until the container has ended.
#[derive(Default)]
pub(super) struct Stopper {
    kill_at: Option<Instant>,
    /// The first cause is the one that counts.
    pub(super) cause: Option<StopCause>,
    sequence: Option<BoxFuture<'static, ()>>,
}

impl Stopper {
    /// Takes a request, and says what is to be recorded of it.
    pub(super) fn request(
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
        let kill_at = Instant::now() + grace;
        if self.kill_at.is_none_or(|at| kill_at < at) {
            self.kill_at = Some(kill_at);
            self.sequence = Some(Box::pin(sequence(
                Arc::clone(runtime),
                container.clone(),
                (!killed).then(|| signal.to_owned()),
                kill_at,
            )));
        }
        if killed {
            Stop::new(request.cause, "SIGKILL", None)
        } else {
            Stop::new(request.cause, signal, Some(grace.as_secs_f64()))
        }
    }

    /// Goes on with what was requested. It never ends. Cancel-safe.
    pub(super) async fn proceed(&mut self) {
        if let Some(sequence) = &mut self.sequence {
            sequence.await;
            self.sequence = None;
        }
        std::future::pending().await
    }
}

async fn sequence(
    runtime: Arc<dyn Runtime>,
    container: ContainerId,
    signal: Option<String>,
    kill_at: Instant,
) {
    if let Some(signal) = signal {
        let ask = async {
            // A fact, whatever it is, will not change by asking again: the exit is on its way, or
            // SIGKILL is.
            while let Err(error) = runtime.signal(&container, &signal).await
                && !error.is_fact()
            {
                tracing::warn!(%container, %error, "cannot send {signal} yet");
                sleep(AGAIN).await;
            }
            std::future::pending::<()>().await
        };
        tokio::select! {
            () = ask => {}
            () = sleep_until(kill_at) => {}
        }
    }
    loop {
        match runtime.signal(&container, "SIGKILL").await {
            Err(error) if !error.is_fact() => {
                tracing::warn!(%container, %error, "cannot send SIGKILL yet");
                sleep(AGAIN).await;
            }
            _ => sleep(KILL_AGAIN).await,
        }
    }
}

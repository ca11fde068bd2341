//! The one waiter on a container.

use std::time::Duration;

use tokio::time::{Instant, interval_at, sleep};

use crate::error::RuntimeError;
use crate::outcome::{Ending, Exit};
use crate::runtime::{ContainerStatus, Continuity, Inspection, Runtime, WaitStatus};
use crate::spec::ContainerId;
use crate::timestamp::Timestamp;

/// How often the engine is asked whether the container still runs, beside waiting.
const PROBE: Duration = Duration::from_secs(30);
/// Between tries, first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How a container ended, and how that was seen.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) ending: Ending,
    /// Whether the wait was broken off in between: then what the tap gave proves less.
    pub(crate) interrupted: bool,
    /// Whether the engine was, or may have been, restarted meanwhile.
    pub(crate) engine_restarted: bool,
    /// Whether someone has started the container again since.
    pub(crate) started_again: bool,
    pub(crate) inspection: Option<Inspection>,
}

/// Pauses that grow.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    pub(crate) async fn pause(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// Waits until a container that has started has ended. Only facts end it: an engine that does not
/// answer is asked again, for as long as it takes.
pub(crate) async fn wait(
    runtime: &dyn Runtime,
    container: &ContainerId,
    started_at: Option<Timestamp>,
) -> Ended {
    let mut interrupted = false;
    // The engine was out of reach, and may be another process since.
    let mut lost = false;
    let mut restarted = false;
    let mut told: Option<WaitStatus> = None;
    let mut backoff = Backoff::new();
    loop {
        match wait_or_probe(runtime, container).await {
            Ok(Heard::Waited(status)) => {
                // An engine that goes away answers without a code.
                lost |= status.code.is_none();
                told = Some(status);
            }
            Ok(Heard::Probed) => interrupted = true,
            Err(error) => {
                interrupted = true;
                lost |= !error.is_definitive() && !has_code(&told);
                if !error.is_not_found() {
                    tracing::warn!(%container, %error, "the wait was interrupted");
                    backoff.pause().await;
                }
            }
        }
        let code = told.as_ref().and_then(|status| status.code);
        let inspected = runtime.inspect(container).await;
        if lost
            && inspected.is_ok()
            && let Ok(continuity) = runtime.continuity(container).await
        {
            lost = false;
            restarted |= continuity != Continuity::Unbroken;
        }
        let ended = |ending, started_again, inspection| Ended {
            ending,
            interrupted,
            engine_restarted: lost || restarted,
            started_again,
            inspection,
        };
        match inspected {
            Ok(now) if another(started_at, &now) => {
                let exit = Exit {
                    code,
                    error: told.and_then(|status| status.error),
                    started_at,
                    ..Exit::default()
                };
                return ended(Ending::Exited(exit), true, Some(now));
            }
            Ok(now) if now.status == ContainerStatus::Ended => {
                let exit = exit(&now, told.as_ref());
                return ended(Ending::Exited(exit), false, Some(now));
            }
            // It is being removed; or the wait answered too early, or for another reason.
            Ok(_) => backoff.pause().await,
            Err(error) if error.is_not_found() => {
                return ended(Ending::Removed { code }, false, None);
            }
            Err(error) => {
                interrupted = true;
                lost |= !error.is_definitive() && !has_code(&told);
                tracing::warn!(%container, %error, "cannot inspect the container yet");
                backoff.pause().await;
            }
        }
    }
}

/// Whether the engine has told of an end that it has seen: by then it had all of the output.
fn has_code(told: &Option<WaitStatus>) -> bool {
    told.as_ref().is_some_and(|status| status.code.is_some())
}

/// Whether this is another execution of the container.
pub(crate) fn another(started_at: Option<Timestamp>, now: &Inspection) -> bool {
    matches!((started_at, now.started_at), (Some(then), Some(now)) if then != now)
}

/// The exit that an inspection tells.
pub(crate) fn exit(inspection: &Inspection, told: Option<&WaitStatus>) -> Exit {
    let told_error = || told.and_then(|status| status.error.clone());
    Exit {
        code: inspection.code.or(told.and_then(|status| status.code)),
        oom_killed: inspection.oom_killed,
        error: inspection.error.clone().or_else(told_error),
        started_at: inspection.started_at,
        finished_at: inspection.finished_at,
    }
}

enum Heard {
    Waited(WaitStatus),
    /// A probe saw what the wait did not tell.
    Probed,
}

async fn wait_or_probe(
    runtime: &dyn Runtime,
    container: &ContainerId,
) -> Result<Heard, RuntimeError> {
    let wait = runtime.wait(container);
    tokio::pin!(wait);
    let mut probes = interval_at(Instant::now() + PROBE, PROBE);
    loop {
        tokio::select! {
            status = &mut wait => return status.map(Heard::Waited),
            _ = probes.tick() => match runtime.inspect(container).await {
                Ok(inspection) if inspection.status == ContainerStatus::Ended => return Ok(Heard::Probed),
                Err(error) if error.is_not_found() => return Err(error),
                // It runs, or the engine does not answer: the wait goes on.
                _ => {}
            }
        }
    }
}

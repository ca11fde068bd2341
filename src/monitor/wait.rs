//! The wait for the end of a container. Each container has one waiter.

use std::pin::pin;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};

use crate::capture::CaptureStats;
use crate::error::RuntimeError;
use crate::monitor::calls::Calls;
use crate::monitor::launch::StartCheck;
use crate::monitor::unconfirmed::{UNTRACKED_TIMEOUT, lost_track};
use crate::outcome::{Ending, Exit};
use crate::runtime::{ContainerStatus, Continuity, Inspection, Runtime, WaitStatus};
use crate::spec::ContainerId;
use crate::timestamp::Timestamp;

/// Interval between inspections of a running container during the wait.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Time without output after which a container that wrote output is inspected.
const QUIET_PROBE_DELAY: Duration = Duration::from_secs(5);
/// Interval between checks whether an inspection is due.
const PROBE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait for a late answer once the container has ended.
const LATE_TIMEOUT: Duration = Duration::from_secs(5);
/// The time in which an engine must answer the wait once an inspection has shown the end.
const WAIT_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// First pause between attempts.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// Longest pause between attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

pub(super) type LateAnswer = BoxFuture<'static, Result<Inspection, RuntimeError>>;

/// The end of a container, as the wait observed it.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) ending: Ending,
    /// The wait was interrupted, so the output of the tap proves less.
    pub(super) interrupted: bool,
    /// The engine was, or may have been, restarted during the wait.
    pub(super) engine_restarted: bool,
    /// Another execution of the container has started since.
    pub(super) started_again: bool,
    /// The engine lost track of the container: the program may still run.
    pub(super) untracked: bool,
    pub(super) inspection: Option<Inspection>,
}

/// A pause that doubles with each attempt, up to a maximum.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(MIN_BACKOFF)
    }

    pub(super) async fn pause(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(MAX_BACKOFF);
    }
}

/// Waits until a container that has started has ended.
///
/// Only a definitive answer ends the wait. An engine that does not answer is asked
/// again, without a deadline. An engine that reports the container as created for
/// longer than [`UNTRACKED_TIMEOUT`] has lost track of it. A node that does not answer the engine is
/// waited for, too, until it answers or the engine reports the container as lost with it.
pub(super) async fn wait_for_end(
    calls: &Calls,
    container: &ContainerId,
    started_at: Option<Timestamp>,
    output: &CaptureStats,
    check: StartCheck,
) -> Ended {
    let mut seen = Observations::default();
    let mut late = seen.begin(check);
    let mut backoff = Backoff::new();
    let mut node_is_silent = false;
    loop {
        let wakeup = async {
            match node_is_silent {
                // The node may answer again long before the wait returns.
                true => Ok(Wakeup::Probe),
                false => wait_or_probe(calls, container, output).await,
            }
        };
        match seen.take_late(&mut late, wakeup).await {
            Ok(Wakeup::Answer(answer)) => {
                // An engine that shuts down answers without a code.
                seen.unreachable |= answer.code.is_none();
                seen.answer = Some(answer);
            }
            Ok(Wakeup::Probe) => seen.interrupted = true,
            Err(error) => {
                seen.on_failure(&error);
                if !error.is_not_found() {
                    tracing::warn!(%container, %error, "the wait was interrupted");
                    backoff.pause().await;
                }
            }
        }
        if let Some(late) = late.take() {
            seen.await_late(late).await;
        }
        let inspected = calls.inspect(container).await;
        node_is_silent = matches!(&inspected, Ok(now) if now.unreachable_since.is_some());
        match inspected {
            Ok(_) if node_is_silent => seen.on_silent_node(),
            Ok(now) if now.lost.is_some() => return seen.into_lost(now),
            Ok(now) => {
                seen.check_continuity(calls.runtime(), container).await;
                if let Some((ending, started_again)) = seen.ending(started_at, &now) {
                    return seen.into_ended(ending, started_again, Some(now));
                }
                if seen.is_untracked(&now) {
                    return seen.into_untracked(now);
                }
                // The container is being removed, or the wait returned early.
            }
            Err(error) if error.is_not_found() => {
                seen.check_continuity(calls.runtime(), container).await;
                let ending = Ending::Removed { code: seen.code() };
                return seen.into_ended(ending, false, None);
            }
            Err(error) => {
                seen.on_failure(&error);
                tracing::warn!(%container, %error, "cannot inspect the container yet");
            }
        }
        backoff.pause().await;
    }
}

/// The observations of a wait.
#[derive(Debug, Default)]
struct Observations {
    interrupted: bool,
    /// The engine was unreachable, and may have been restarted since.
    unreachable: bool,
    restarted: bool,
    /// The engine's last answer to the wait.
    answer: Option<WaitStatus>,
    /// Since when the engine reports the container as created.
    created_since: Option<Instant>,
}

impl Observations {
    /// Observes the outcome of the start, and returns an answer that is late.
    fn begin(&mut self, check: StartCheck) -> Option<LateAnswer> {
        match check {
            StartCheck::Done => None,
            StartCheck::Failed => {
                (self.interrupted, self.unreachable) = (true, true);
                None
            }
            StartCheck::Late(late) => Some(late),
        }
    }

    /// Waits for `wakeup`, and takes a late answer that arrives before it.
    async fn take_late<T>(
        &mut self,
        late: &mut Option<LateAnswer>,
        wakeup: impl Future<Output = T>,
    ) -> T {
        let mut wakeup = pin!(wakeup);
        if let Some(answer) = late {
            tokio::select! {
                wakeup = &mut wakeup => return wakeup,
                answer = answer => self.on_late(answer.is_ok()),
            }
            *late = None;
        }
        wakeup.await
    }

    /// Waits for a late answer. An engine that was only slow gives it by the end of the container.
    async fn await_late(&mut self, late: LateAnswer) {
        let answer = timeout(LATE_TIMEOUT, late).await;
        self.on_late(matches!(answer, Ok(Ok(_))));
    }

    fn on_late(&mut self, answered: bool) {
        if !answered {
            (self.interrupted, self.unreachable) = (true, true);
        }
    }

    /// The exit code that the engine answered with.
    fn code(&self) -> Option<i64> {
        self.answer.as_ref().and_then(|answer| answer.code)
    }

    /// Observes a request that failed.
    ///
    /// An engine that has reported an exit code had read all output by then, so a
    /// later restart loses none.
    fn on_failure(&mut self, error: &RuntimeError) {
        self.interrupted = true;
        self.unreachable |= !error.is_definitive() && self.code().is_none();
    }

    /// Observes a node that does not answer the engine. Its last known state decides nothing, but an
    /// exit code that the engine has reported does not change.
    fn on_silent_node(&mut self) {
        self.interrupted = true;
        self.answer.take_if(|answer| answer.code.is_none());
        self.unreachable |= self.code().is_none();
        self.created_since = None;
    }

    /// Asks an engine that is reachable again if it was restarted.
    async fn check_continuity(&mut self, runtime: &dyn Runtime, container: &ContainerId) {
        if self.unreachable
            && let Ok(continuity) = runtime.continuity(container).await
        {
            self.unreachable = false;
            self.restarted |= continuity != Continuity::Unbroken;
        }
    }

    /// Returns the ending that an inspection shows, and true if another execution
    /// has started since.
    fn ending(&self, started_at: Option<Timestamp>, now: &Inspection) -> Option<(Ending, bool)> {
        if is_other_execution(started_at, now) {
            // The inspection describes the other execution.
            let exit = Exit {
                code: self.code(),
                error: self.answer.as_ref().and_then(|answer| answer.error.clone()),
                started_at,
                ..Exit::default()
            };
            return Some((Ending::Exited(exit), true));
        }
        let ended = now.status == ContainerStatus::Ended;
        ended.then(|| (observed_ending(now, self.answer.as_ref()), false))
    }

    /// Returns true if the engine reports for too long that the container was not
    /// started.
    fn is_untracked(&mut self, now: &Inspection) -> bool {
        if now.status != ContainerStatus::Created {
            self.created_since = None;
            return false;
        }
        // An engine answers the wait for such a container at once, and with code 0.
        self.answer = None;
        self.interrupted = true;
        let since = *self.created_since.get_or_insert_with(Instant::now);
        since.elapsed() >= UNTRACKED_TIMEOUT
    }

    /// The end of a container that is lost with its node. Nothing was restarted.
    fn into_lost(self, now: Inspection) -> Ended {
        Ended {
            interrupted: true,
            engine_restarted: self.restarted,
            ..self.into_ended(observed_ending(&now, None), false, Some(now))
        }
    }

    fn into_untracked(self, now: Inspection) -> Ended {
        Ended {
            untracked: true,
            ..self.into_ended(lost_track(), false, Some(now))
        }
    }

    fn into_ended(
        self,
        ending: Ending,
        started_again: bool,
        inspection: Option<Inspection>,
    ) -> Ended {
        Ended {
            ending,
            interrupted: self.interrupted,
            engine_restarted: self.unreachable || self.restarted,
            started_again,
            untracked: false,
            inspection,
        }
    }
}

/// Returns true if an inspection shows another execution than the one that started
/// at `started_at`.
pub(super) fn is_other_execution(started_at: Option<Timestamp>, now: &Inspection) -> bool {
    matches!((started_at, now.started_at), (Some(then), Some(now)) if then != now)
}

/// Returns the ending that an inspection reports. `answer` fills what the inspection
/// does not report.
pub(super) fn observed_ending(inspection: &Inspection, answer: Option<&WaitStatus>) -> Ending {
    if let Some(reason) = inspection.lost.clone() {
        return Ending::Lost { reason };
    }
    let error = || answer.and_then(|answer| answer.error.clone());
    Ending::Exited(Exit {
        code: inspection.code.or(answer.and_then(|answer| answer.code)),
        oom_killed: inspection.oom_killed,
        error: inspection.error.clone().or_else(error),
        started_at: inspection.started_at,
        finished_at: inspection.finished_at,
    })
}

/// The event that ended one wait.
enum Wakeup {
    Answer(WaitStatus),
    /// A probe found that the container does not run, and the wait had not returned. Or its node
    /// does not answer.
    Probe,
}

async fn wait_or_probe(
    calls: &Calls,
    container: &ContainerId,
    output: &CaptureStats,
) -> Result<Wakeup, RuntimeError> {
    let wait = calls.runtime().wait(container);
    tokio::pin!(wait);
    let mut probed = Instant::now();
    loop {
        tokio::select! {
            answer = &mut wait => return answer.map(Wakeup::Answer),
            () = sleep(PROBE_CHECK_INTERVAL) => {}
        }
        if next_probe(probed, output.last_activity()) > Instant::now() {
            continue;
        }
        probed = Instant::now();
        match calls.inspect(container).await {
            Ok(inspection) if inspection.unreachable_since.is_some() => return Ok(Wakeup::Probe),
            Ok(inspection) if inspection.status != ContainerStatus::Running => {
                // A busy engine reports the end in its state before it answers the wait.
                return match timeout(WAIT_ANSWER_TIMEOUT, &mut wait).await {
                    Ok(answer) => answer.map(Wakeup::Answer),
                    Err(_) => Ok(Wakeup::Probe),
                };
            }
            Err(error) if error.is_not_found() => return Err(error),
            // The container runs, or the engine does not answer.
            _ => {}
        }
    }
}

/// Returns when a container is inspected next.
///
/// Output that stops is a reason to inspect it sooner: an engine that does not answer about the
/// container does not answer the wait either.
fn next_probe(probed: Instant, last_output: Option<Instant>) -> Instant {
    let regular = probed + PROBE_INTERVAL;
    match last_output {
        Some(at) if at > probed => regular.min(at + QUIET_PROBE_DELAY),
        _ => regular,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn timeout() -> RuntimeError {
        RuntimeError::Timeout {
            operation: "inspect",
            after: PROBE_INTERVAL,
        }
    }

    fn answer(code: Option<i64>) -> Option<WaitStatus> {
        Some(WaitStatus { code, error: None })
    }

    #[test]
    fn a_failure_after_an_exit_code_loses_no_output() {
        let rejected = RuntimeError::Rejected {
            operation: "inspect",
            reason: String::new(),
        };
        let rows = [
            (None, timeout(), true),
            (answer(None), timeout(), true),
            (answer(Some(0)), timeout(), false),
            (None, rejected, false),
        ];
        for (answer, error, unreachable) in rows {
            let mut seen = Observations {
                answer,
                ..Observations::default()
            };
            seen.on_failure(&error);
            assert!(seen.interrupted);
            assert_eq!(seen.unreachable, unreachable, "{seen:?}");
            let ended = seen.into_ended(Ending::Removed { code: None }, false, None);
            assert_eq!(ended.engine_restarted, unreachable);
        }
    }

    #[test]
    fn a_silent_node_does_not_hide_a_known_exit_code() {
        for code in [None, Some(3)] {
            let mut seen = Observations {
                answer: answer(code),
                ..Observations::default()
            };
            seen.on_silent_node();
            assert_eq!(seen.code(), code);
            assert_eq!(seen.answer.is_some(), code.is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_only_late_interrupts_nothing() {
        let answer = |after: u64, answer: Result<Inspection, RuntimeError>| {
            let later = async move {
                sleep(Duration::from_secs(after)).await;
                answer
            };
            later.boxed()
        };
        let inspection = || Ok(Inspection::new(ContainerStatus::Running));
        // The container ends after 10 s.
        for (late, interrupted) in [
            (answer(3, inspection()), false),
            (answer(14, inspection()), false),
            (answer(16, inspection()), true),
            (answer(3, Err(timeout())), true),
            (answer(14, Err(timeout())), true),
        ] {
            let mut seen = Observations::default();
            let mut late = seen.begin(StartCheck::Late(late));
            let end = sleep(Duration::from_secs(10));
            seen.take_late(&mut late, end).await;
            if let Some(late) = late {
                seen.await_late(late).await;
            }
            assert_eq!(
                (seen.interrupted, seen.unreachable),
                (interrupted, interrupted)
            );
        }
    }

    #[test]
    fn a_container_that_falls_silent_is_inspected_soon() {
        let probed = Instant::now();
        let after = |seconds| probed + Duration::from_secs(seconds);
        let rows = [
            (None, 30),
            // The probe was after the last output.
            (Some(probed), 30),
            (Some(after(1)), 6),
            (Some(after(20)), 25),
            (Some(after(28)), 30),
        ];
        for (last_output, expected) in rows {
            assert_eq!(next_probe(probed, last_output), after(expected));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn backoff_doubles_up_to_its_maximum() {
        let mut backoff = Backoff::new();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let before = Instant::now();
            backoff.pause().await;
            pauses.push(before.elapsed().as_millis());
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}

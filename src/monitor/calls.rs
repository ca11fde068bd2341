//! Calls to the engine about one run, and the report of calls without an answer.
//!
//! An engine can answer all calls but those about one container. Docker does so while it holds the
//! lock of a container whose output a client does not read. The engine of a cluster answers about
//! the container, but the node of the container may not answer the engine.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch::Sender;
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, RuntimeError};
use crate::events::EventKind;
use crate::monitor::context::Context;
use crate::monitor::entry::{RunSnapshot, lock};
use crate::runtime::{ExecId, Inspection, Runtime};
use crate::sink::RunPlace;
use crate::spec::ContainerId;
use crate::timestamp::Timestamp;

/// Time without an answer after which a call is reported.
const REPORT_AFTER: Duration = Duration::from_secs(5);

/// Shortest wait of a repeated call before it is reported.
const RETRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after which a call is not a repetition of an earlier call that failed.
const RETRY_WINDOW: Duration = Duration::from_secs(10);

/// The operation of an inspection, as reports name it.
const INSPECT: &str = "inspect the container";
/// The operation of a signal, as reports name it.
const SIGNAL: &str = "signal the container";

/// The operation of a kill of an exec, as reports name it.
const KILL_EXEC: &str = "kill the exec";

/// Calls to the engine about one run. Clones share the report.
#[derive(Clone)]
pub(super) struct Calls {
    context: Arc<Context>,
    place: RunPlace,
    snapshot: Sender<RunSnapshot>,
    unanswered: Arc<Mutex<Unanswered>>,
    /// The time since which the container's node does not answer the engine.
    node_silent_since: Arc<Mutex<Option<Timestamp>>>,
    /// The exec that signals are for; `None` if they are for the container.
    exec: Option<ExecTarget>,
}

/// The exec that stops kill, in place of its container.
#[derive(Clone)]
pub(super) struct ExecTarget {
    pub(super) id: ExecId,
    /// The reason that the last attempt failed.
    pub(super) failure: Sender<Option<Arc<RuntimeError>>>,
}

/// The end of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallEnd {
    /// The engine answered.
    Answered,
    /// An inconclusive error.
    Failed,
    /// The future was dropped.
    Dropped,
}

/// A kind of call that the engine has not answered.
#[derive(Debug, Clone, Copy)]
struct Pending {
    operation: &'static str,
    /// The time of the first call without an answer.
    since: Instant,
    since_wall: Timestamp,
    /// When and how the last call ended without an answer.
    ended: Option<(Instant, CallEnd)>,
    /// The number of calls that wait for an answer now.
    in_flight: usize,
}

/// The calls that the engine has not answered.
#[derive(Debug, Default)]
struct Unanswered(Vec<Pending>);

impl Unanswered {
    /// Begins a call, and returns when it is to be reported.
    ///
    /// A repeated call keeps the time of the first one, until the engine answers.
    fn begin(&mut self, operation: &'static str, now: Instant, wall: Timestamp) -> Instant {
        self.0
            .retain(|call| call.in_flight > 0 || !call.is_stale(now));
        let known = self.0.iter_mut().find(|call| call.operation == operation);
        if let Some(call) = known {
            call.in_flight += 1;
            return (call.since + REPORT_AFTER).max(now + RETRY_TIMEOUT);
        }
        self.0.push(Pending {
            operation,
            since: now,
            since_wall: wall,
            ended: None,
            in_flight: 1,
        });
        now + REPORT_AFTER
    }

    /// Ends a call.
    ///
    /// An answer also settles earlier calls of other kinds, unless they wait for an answer now.
    fn end(&mut self, operation: &'static str, end: CallEnd, now: Instant) {
        for call in &mut self.0 {
            if call.operation == operation {
                call.in_flight = call.in_flight.saturating_sub(1);
                call.ended = Some((now, end));
            }
        }
        if end == CallEnd::Answered {
            self.0.retain(|call| call.in_flight > 0);
        }
    }

    /// Returns the overdue call that has waited for the longest time.
    fn overdue(&self, now: Instant) -> Option<&Pending> {
        let overdue = self.0.iter().filter(|call| match call.ended {
            // A report that was published holds until the engine answers.
            Some((ended, CallEnd::Dropped)) if call.in_flight == 0 => call.is_overdue(ended),
            _ => call.is_overdue(now),
        });
        overdue.min_by_key(|call| call.since)
    }
}

impl Pending {
    fn is_overdue(&self, now: Instant) -> bool {
        now >= self.since + REPORT_AFTER
    }

    /// Returns true if a call that begins now is not a repetition of this one.
    fn is_stale(&self, now: Instant) -> bool {
        self.ended.is_some_and(|(ended, end)| match end {
            // For example, a signal that SIGKILL follows.
            CallEnd::Dropped if !self.is_overdue(ended) => now > ended + RETRY_TIMEOUT,
            _ => now > ended + RETRY_WINDOW,
        })
    }

    fn report(&self) -> String {
        let Self {
            operation,
            since_wall,
            ..
        } = self;
        format!("cannot {operation}: the engine has not answered since {since_wall}")
    }
}

/// An error that may be inconclusive.
pub(super) trait Inconclusive {
    fn is_inconclusive(&self) -> bool;
}

impl Inconclusive for RuntimeError {
    fn is_inconclusive(&self) -> bool {
        !self.is_definitive()
    }
}

impl Inconclusive for Error {
    fn is_inconclusive(&self) -> bool {
        matches!(self, Self::Runtime(error) if error.is_inconclusive())
    }
}

/// A call that has begun. Its drop ends it.
struct Begun<'a> {
    calls: &'a Calls,
    operation: &'static str,
    report_at: Instant,
    end: CallEnd,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        lock(&self.calls.unanswered).end(self.operation, self.end, Instant::now());
        self.calls.publish();
    }
}

impl Calls {
    pub(super) fn new(
        context: Arc<Context>,
        place: RunPlace,
        snapshot: Sender<RunSnapshot>,
    ) -> Self {
        Self {
            context,
            place,
            snapshot,
            unanswered: Arc::default(),
            node_silent_since: Arc::default(),
            exec: None,
        }
    }

    /// Makes signals kill an exec in place of the container.
    pub(super) fn set_exec(&mut self, exec: ExecTarget) {
        self.exec = Some(exec);
    }

    /// Returns true if signals are for an exec. The only signal is then SIGKILL.
    pub(super) fn is_of_exec(&self) -> bool {
        self.exec.is_some()
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn runtime(&self) -> &dyn Runtime {
        &*self.context.runtime
    }

    /// Inspects a container.
    pub(super) async fn inspect(
        &self,
        container: &ContainerId,
    ) -> Result<Inspection, RuntimeError> {
        let inspected = self.track(INSPECT, self.runtime().inspect(container)).await;
        let since = match &inspected {
            Ok(inspection) => inspection.unreachable_since,
            // An engine that does not answer has no news about the node.
            Err(error) if error.is_inconclusive() => return inspected,
            Err(_) => None,
        };
        *lock(&self.node_silent_since) = since;
        self.publish();
        inspected
    }

    /// Sends a signal to a container.
    pub(super) async fn signal(
        &self,
        container: &ContainerId,
        signal: &str,
    ) -> Result<(), RuntimeError> {
        let Some(exec) = &self.exec else {
            let signaled = self.runtime().signal(container, signal);
            return self.track(SIGNAL, signaled).await;
        };
        let killed = self.runtime().exec_kill(container, &exec.id);
        match self.track(KILL_EXEC, killed).await {
            Err(error) if error.is_definitive() => {
                exec.failure.send_replace(Some(Arc::new(error)));
                Ok(())
            }
            killed => killed,
        }
    }

    /// Awaits a call to the engine, and reports it while it gets no answer for [`REPORT_AFTER`].
    ///
    /// Cancel-safe.
    pub(super) async fn track<T, E: Inconclusive>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let mut begun = Begun {
            calls: self,
            operation,
            report_at: lock(&self.unanswered).begin(operation, now, wall),
            end: CallEnd::Dropped,
        };
        let mut call = pin!(call);
        let result = tokio::select! {
            biased;
            result = &mut call => result,
            () = sleep_until(begun.report_at) => {
                self.publish();
                call.await
            }
        };
        begun.end = match &result {
            Err(error) if error.is_inconclusive() => CallEnd::Failed,
            _ => CallEnd::Answered,
        };
        result
    }

    /// Returns the report of a node or a call without an answer, if there is one.
    pub(super) fn report(&self) -> Option<String> {
        if let Some(since) = *lock(&self.node_silent_since) {
            return Some(format!(
                "cannot observe the container: its node has not answered the engine since {since}"
            ));
        }
        let unanswered = lock(&self.unanswered);
        unanswered.overdue(Instant::now()).map(Pending::report)
    }

    /// Ends all reports: the run has ended.
    pub(super) fn settle(&self) {
        lock(&self.unanswered).0.clear();
        *lock(&self.node_silent_since) = None;
        self.publish();
    }

    /// Publishes the report, or that there is none.
    fn publish(&self) {
        let report = self.report();
        let mut is_new = false;
        self.snapshot.send_if_modified(|snapshot| {
            let changed = snapshot.unanswered != report;
            // The reports of calls replace each other while an engine does not answer.
            let is_first = snapshot.unanswered.is_none() || lock(&self.node_silent_since).is_some();
            is_new = changed && is_first && report.is_some();
            if changed {
                snapshot.unanswered.clone_from(&report);
            }
            changed
        });
        let run = &self.place.run;
        match report {
            Some(message) if is_new => {
                tracing::warn!(%run, "{message}");
                if self.place.exec.is_none() {
                    let warning = EventKind::Warning { message };
                    self.context.event_bus.emit(run, warning);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Begin(&'static str),
        End(&'static str, CallEnd),
    }

    #[test]
    fn a_report_holds_until_an_answer() {
        use CallEnd::{Answered, Dropped, Failed};
        use Step::{Begin, End};
        let (early, late) = (0, REPORT_AFTER.as_secs());
        // The steps with their times in seconds, the time of the question, and the report.
        type Row<'a> = (&'a [(u64, Step)], u64, Option<&'static str>);
        let rows: &[Row<'_>] = &[
            (&[], late, None),
            (&[(0, Begin("a"))], late - 1, None),
            (&[(0, Begin("a"))], late, Some("a")),
            (&[(1, Begin("a"))], late, None),
            (&[(0, Begin("a")), (1, End("a", Answered))], late, None),
            // An error is no answer, and a retry does not begin anew.
            (&[(0, Begin("a")), (1, End("a", Failed))], late, Some("a")),
            (
                &[(0, Begin("a")), (1, End("a", Failed)), (4, Begin("a"))],
                late,
                Some("a"),
            ),
            (
                &[
                    (0, Begin("a")),
                    (1, End("a", Failed)),
                    (4, Begin("a")),
                    (5, End("a", Answered)),
                ],
                late,
                None,
            ),
            // A later call is no repetition.
            (
                &[(0, Begin("a")), (1, End("a", Failed)), (12, Begin("a"))],
                16,
                None,
            ),
            // A dropped call is reported only if it was reported before.
            (&[(0, Begin("a")), (1, End("a", Dropped))], late, None),
            (
                &[(0, Begin("a")), (late, End("a", Dropped))],
                late,
                Some("a"),
            ),
            // A call that follows a dropped one at once is a repetition.
            (
                &[(0, Begin("a")), (2, End("a", Dropped)), (2, Begin("a"))],
                late,
                Some("a"),
            ),
            (
                &[(0, Begin("a")), (2, End("a", Dropped)), (4, Begin("a"))],
                late,
                None,
            ),
            // The answer to another call settles it, unless it still waits.
            (
                &[
                    (0, Begin("a")),
                    (late, End("a", Dropped)),
                    (late, Begin("b")),
                    (late, End("b", Answered)),
                ],
                late,
                None,
            ),
            (
                &[(0, Begin("a")), (1, Begin("b")), (2, End("b", Answered))],
                late,
                Some("a"),
            ),
            (
                &[(0, Begin("a")), (0, Begin("a")), (1, End("a", Answered))],
                late,
                Some("a"),
            ),
            // The longest wait is reported.
            (&[(1, Begin("b")), (0, Begin("a"))], late + 1, Some("a")),
            // An end without a beginning: the run has ended in between.
            (&[(early, End("a", Dropped))], late, None),
        ];
        let origin = Instant::now();
        let at = |seconds: u64| origin + Duration::from_secs(seconds);
        for (steps, now, expected) in rows {
            let mut unanswered = Unanswered::default();
            for (seconds, step) in *steps {
                match step {
                    Begin(operation) => {
                        unanswered.begin(operation, at(*seconds), Timestamp::now());
                    }
                    End(operation, end) => unanswered.end(operation, *end, at(*seconds)),
                }
            }
            let overdue = unanswered.overdue(at(*now));
            assert_eq!(overdue.map(|call| call.operation), *expected, "{steps:?}");
        }
    }

    #[test]
    fn a_repeated_call_is_overdue_when_the_first_one_is() {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let mut unanswered = Unanswered::default();
        let due = unanswered.begin("a", now, wall);
        assert_eq!(due, now + REPORT_AFTER);
        unanswered.end("a", CallEnd::Failed, now);
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(unanswered.begin("a", later(3), wall), due);
        unanswered.end("a", CallEnd::Failed, later(3));
        // An answer that takes some milliseconds is not reported as missing.
        let due = later(7) + RETRY_TIMEOUT;
        assert_eq!(unanswered.begin("a", later(7), wall), due);
    }
}

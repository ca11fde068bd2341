//! Events of runs, and the bus that delivers them to subscribers.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::stream::{self, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::audit::{Gap, Stop};
use crate::outcome::{Ending, Evidence, PerStream, Seal, StopCause, Usage, Verdict};
use crate::spec::{ContainerId, RunId};
use crate::timestamp::Timestamp;

/// The number of events that wait for a subscriber before it lags.
const CAPACITY: usize = 4096;

/// An event of a run.
///
/// The JSON form is one flat object: `{"ts":...,"run":...,"event":"started",...}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunEvent {
    /// The time of emission, by this machine's clock.
    pub ts: Timestamp,
    /// The run. `None` only for [`EventKind::Lagged`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The kind of event, with its data.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kind of a [`RunEvent`], with its data.
///
/// The events of one run are emitted in the order in which they happen. The final
/// [`Output`](Self::Output) count may follow the exit. No event contains output or secrets:
/// text from the engine is redacted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The run is on disk, with its audit file.
    Intended {
        /// The image.
        image: String,
    },
    /// The run waits because the limit of concurrent runs is reached.
    ///
    /// See [`ManagerBuilder::max_concurrent`](crate::manager::ManagerBuilder::max_concurrent).
    Waiting,
    /// The engine is pulling the image.
    Pulling {
        /// The id of the layer. `None` for the whole image.
        layer: Option<String>,
        /// The status text of the engine.
        status: String,
        /// The bytes done in this step.
        current: Option<u64>,
        /// The total bytes of this step.
        total: Option<u64>,
    },
    /// The engine has created the container.
    Created {
        /// The container.
        container: ContainerId,
    },
    /// The engine is placing the container, for example on a node of a cluster.
    Placing {
        /// The engine's word for what the container waits for.
        reason: String,
        /// The engine's explanation.
        message: String,
    },
    /// The container is running: it was started, or recovery found it running.
    Started {
        /// The start time, by the engine's clock.
        started_at: Option<Timestamp>,
    },
    /// The run has printed output since the last such event. At most once a second.
    Output {
        /// The bytes received so far within the output limit, by stream.
        bytes: PerStream<u64>,
        /// The output records sent to the sink so far: lines, or parts of long lines.
        records: u64,
    },
    /// The resource usage, if [`RunSpec::sample`](crate::spec::RunSpec::sample) is set.
    Usage {
        /// The sample.
        usage: Usage,
    },
    /// A stop was requested, by a caller or because of a limit.
    StopRequested {
        /// The cause of the stop.
        cause: StopCause,
        /// The signal.
        signal: String,
        /// The seconds until SIGKILL. `None` if the signal is SIGKILL.
        grace_seconds: Option<f64>,
    },
    /// Output is missing, or may be.
    Gap {
        /// The gap record.
        gap: Gap,
    },
    /// The run has ended.
    Exited {
        /// The ending.
        ending: Ending,
    },
    /// The audit file is sealed.
    Sealed {
        /// The verdict on the completeness of the file.
        verdict: Verdict,
        /// The evidence for the verdict.
        evidence: Evidence,
        /// The number of output records.
        records: u64,
        /// The bytes of output in the records, newlines included, by stream.
        bytes: PerStream<u64>,
        /// The number of `gap` records.
        gaps: u64,
        /// The cause of the stop, if moat stopped the run.
        stopped: Option<StopCause>,
    },
    /// The sealed file is signed: see `moat::sign` (feature `sign`).
    Signed {
        /// The number of the exec whose log is signed. `None` for the audit file of the run.
        exec: Option<u32>,
        /// The fingerprint of the key.
        fingerprint: String,
    },
    /// The sealed file is not signed although it should be.
    ///
    /// The next manager that opens the root with a key tries again.
    Unsigned {
        /// The number of the exec whose log is not signed. `None` for the audit file of the run.
        exec: Option<u32>,
        /// The reason.
        reason: String,
    },
    /// The container was removed, by policy.
    ContainerRemoved {
        /// The container.
        container: ContainerId,
    },
    /// The manager has released the run: it is sealed, was left, or was given up.
    Released,
    /// The run was removed from the root, with its audit file.
    Removed,
    /// A problem that may need an operator.
    Warning {
        /// The problem.
        message: String,
    },
    /// Events were dropped because the subscriber was too slow.
    ///
    /// The count includes events of other runs, even for the events of one run.
    /// [`Manager::list`](crate::manager::Manager::list) and
    /// [`Run::state`](crate::run::Run::state) return the current states.
    #[serde(rename = "missed")]
    Lagged {
        /// The number of dropped events.
        events: u64,
    },
}

/// A stream of the events of runs, from the subscription on.
///
/// Created by [`Manager::events`](crate::manager::Manager::events) and
/// [`Run::events`](crate::run::Run::events).
///
/// Up to 4,096 events wait for a subscriber. A slower subscriber gets
/// [`EventKind::Lagged`] and then the oldest remaining event. It never delays other
/// subscribers or the runs.
///
/// The stream ends when the manager is shut down or dropped. The stream of one run also ends
/// after [`EventKind::Released`].
pub struct Events {
    inner: Pin<Box<dyn Stream<Item = RunEvent> + Send + Sync>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Returns the next event, or `None` at the end.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call loses no event.
    pub async fn next(&mut self) -> Option<RunEvent> {
        self.inner.next().await
    }

    /// Creates a stream of the events of `run`, or of all runs. It is empty without a receiver.
    pub(crate) fn new(receiver: Option<broadcast::Receiver<RunEvent>>, run: Option<RunId>) -> Self {
        let subscription = receiver.map(|receiver| Subscription { receiver, run });
        let events = stream::unfold(subscription, |subscription| async {
            let mut subscription = subscription?;
            let event = subscription.next().await?;
            let rest = (!subscription.ends_with(&event)).then_some(subscription);
            Some((event, rest))
        });
        Self {
            inner: Box::pin(events),
        }
    }
}

/// A subscription to the events of all runs, or of one.
struct Subscription {
    receiver: broadcast::Receiver<RunEvent>,
    /// `None` for all runs.
    run: Option<RunId>,
}

impl Subscription {
    async fn next(&mut self) -> Option<RunEvent> {
        loop {
            match self.receiver.recv().await {
                Ok(event) if self.run.is_none() || event.run == self.run => return Some(event),
                Ok(_) => {}
                Err(RecvError::Lagged(events)) => {
                    return Some(RunEvent {
                        ts: Timestamp::now(),
                        run: None,
                        kind: EventKind::Lagged { events },
                    });
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn ends_with(&self, event: &RunEvent) -> bool {
        self.run.is_some() && event.kind == EventKind::Released
    }
}

impl Stream for Events {
    type Item = RunEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RunEvent>> {
        self.inner.poll_next_unpin(cx)
    }
}

/// Delivers events to all subscribers, and never waits for any of them.
#[derive(Debug)]
pub(crate) struct EventBus {
    /// `None` once the manager is shut down.
    sender: Mutex<Option<broadcast::Sender<RunEvent>>>,
}

impl EventBus {
    pub(crate) fn new() -> Self {
        Self {
            sender: Mutex::new(Some(broadcast::Sender::new(CAPACITY))),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&broadcast::Sender<RunEvent>) -> T) -> Option<T> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().map(f)
    }

    /// Emits an event to all subscribers.
    pub(crate) fn emit(&self, run: &RunId, kind: EventKind) {
        self.with(|sender| {
            // Sending fails if there is no subscriber.
            let _ = sender.send(RunEvent {
                ts: Timestamp::now(),
                run: Some(run.clone()),
                kind,
            });
        });
    }

    /// Ends the stream of every subscriber.
    pub(crate) fn close(&self) {
        *self.sender.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Subscribes to all later events. Returns `None` once the manager is shut down.
    pub(crate) fn subscribe(&self) -> Option<broadcast::Receiver<RunEvent>> {
        self.with(broadcast::Sender::subscribe)
    }
}

impl From<&Seal> for EventKind {
    fn from(seal: &Seal) -> Self {
        Self::Sealed {
            verdict: seal.verdict,
            evidence: seal.evidence,
            records: seal.records,
            bytes: seal.bytes,
            gaps: seal.gaps,
            stopped: seal.stopped,
        }
    }
}

impl From<&Stop> for EventKind {
    fn from(stop: &Stop) -> Self {
        Self::StopRequested {
            cause: stop.cause,
            signal: stop.signal.clone(),
            grace_seconds: stop.grace_seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_subscriber_lags_and_resumes() {
        let event_bus = EventBus::new();
        let (run, other) = (RunId::generate(), RunId::generate());
        let all = Events::new(event_bus.subscribe(), None);
        let one = Events::new(event_bus.subscribe(), Some(run.clone()));
        let emitted = 3 * CAPACITY as u64;
        for _ in 0..emitted {
            // Does not wait, although no subscriber reads.
            event_bus.emit(&other, EventKind::Waiting);
        }
        event_bus.emit(&run, EventKind::Released);
        event_bus.close();
        let all: Vec<_> = all.collect().await;
        let EventKind::Lagged { events } = all[0].kind else {
            panic!("{:?}", all[0]);
        };
        assert_eq!(events + all.len() as u64 - 1, emitted + 1);
        let one: Vec<_> = one.map(|event| event.kind).collect().await;
        assert_eq!(one, [EventKind::Lagged { events }, EventKind::Released]);
    }
}

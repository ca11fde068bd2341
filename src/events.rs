//! What happens to runs, told to whoever wants to know.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::stream::{self, BoxStream, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::audit::{Gap, Stop};
use crate::outcome::{Ending, Evidence, PerStream, Seal, StopCause, Usage, Verdict};
use crate::spec::{ContainerId, RunId};
use crate::timestamp::Timestamp;

/// How many events wait for a subscriber, at least, before it misses some.
const WAITING: usize = 4096;

/// Something that happened to a run. As JSON it is one flat object: `{"ts":...,"run":...,
/// "event":"started",...}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunEvent {
    /// When it was told, by this machine's clock.
    pub ts: Timestamp,
    /// The run; `None` for [`EventKind::Lagged`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen to a run, as a manager tells it.
///
/// For one run they come in the order of its life; what it had printed last may be counted only
/// after its end. No secret and no output is in any of them; the
/// engine's words are redacted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// It is written down, and its audit file is there.
    Intended {
        /// The image.
        image: String,
    },
    /// As many runs as may be at once are under way: it waits for its turn. See
    /// [`ManagerBuilder::max_concurrent`](crate::manager::ManagerBuilder::max_concurrent).
    Waiting,
    /// The engine pulls its image.
    Pulling {
        /// The layer's id; `None` where the report is of the whole image.
        layer: Option<String>,
        /// What is happening, in the engine's words.
        status: String,
        /// Bytes done of this step.
        current: Option<u64>,
        /// Bytes of this step in all.
        total: Option<u64>,
    },
    /// The engine has made its container.
    Created {
        /// The container.
        container: ContainerId,
    },
    /// Its container runs: it was started, or was found running by the manager that took it over.
    Started {
        /// When it started, by the engine's clock.
        started_at: Option<Timestamp>,
    },
    /// It has printed something since this was told last; at most once a second.
    Output {
        /// Bytes received so far, by stream, of what is not past the output limit.
        bytes: PerStream<u64>,
        /// Records of output, lines or parts of long ones, that went to the sink so far.
        records: u64,
    },
    /// What it uses, where its spec asks for that: see [`RunSpec::sample`](crate::spec::RunSpec::sample).
    Usage {
        /// What was sampled.
        usage: Usage,
    },
    /// moat was asked to stop it, or has to.
    StopRequested {
        /// Why.
        cause: StopCause,
        /// The signal.
        signal: String,
        /// Seconds until SIGKILL, where that is not the signal.
        grace_seconds: Option<f64>,
    },
    /// Something of its output is missing, or may be.
    Gap {
        /// The record.
        gap: Gap,
    },
    /// It has ended.
    Exited {
        /// How.
        ending: Ending,
    },
    /// Its audit file is sealed.
    Sealed {
        /// What the file says of its own completeness.
        verdict: Verdict,
        /// What that stands on.
        evidence: Evidence,
        /// The number of output records.
        records: u64,
        /// The bytes of output in them, newlines included, by stream.
        bytes: PerStream<u64>,
        /// The number of `gap` records.
        gaps: u64,
        /// Why moat stopped it, if it did.
        stopped: Option<StopCause>,
    },
    /// Its container was removed, by policy.
    ContainerRemoved {
        /// The container.
        container: ContainerId,
    },
    /// The manager has nothing more to do with it: it is sealed, or was left, or given up.
    Released,
    /// The run was removed, with its audit file.
    Removed,
    /// Something that an operator may have to look after.
    Warning {
        /// What, in words.
        message: String,
    },
    /// The subscriber did not keep up, and so many events are not told: of all runs, also where
    /// it listens to one. [`Manager::list`](crate::manager::Manager::list) and [`Run::state`](crate::run::Run::state) say what has become of them.
    #[serde(rename = "missed")]
    Lagged {
        /// How many.
        events: u64,
    },
}

/// What happens to runs, from the moment of the subscription on.
///
/// It is a [`Stream`], and [`next`](Self::next) is cancel-safe. Thousands of events may wait for a
/// subscriber; one that is slower than that is told how many it has missed
/// ([`EventKind::Lagged`]), and goes on with the oldest that is left: it holds up nobody.
///
/// It ends when the manager is shut down or gone, that of one run with [`EventKind::Released`].
pub struct Events {
    inner: BoxStream<'static, RunEvent>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// The next event; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<RunEvent> {
        self.inner.next().await
    }

    pub(crate) fn of(receiver: Option<broadcast::Receiver<RunEvent>>, only: Option<RunId>) -> Self {
        let Some(receiver) = receiver else {
            return Self {
                inner: stream::empty().boxed(),
            };
        };
        let state = Some((receiver, only));
        let inner = stream::unfold(state, |state| async move {
            let (mut receiver, only) = state?;
            loop {
                match receiver.recv().await {
                    Ok(event) if only.is_none() => return Some((event, Some((receiver, only)))),
                    Ok(event) if event.run != only => {}
                    Ok(event) => {
                        let last = event.kind == EventKind::Released;
                        return Some((event, (!last).then_some((receiver, only))));
                    }
                    Err(RecvError::Lagged(events)) => {
                        let missed = RunEvent {
                            ts: Timestamp::now(),
                            run: None,
                            kind: EventKind::Lagged { events },
                        };
                        return Some((missed, Some((receiver, only))));
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        Self {
            inner: inner.boxed(),
        }
    }
}

impl Stream for Events {
    type Item = RunEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RunEvent>> {
        self.inner.poll_next_unpin(cx)
    }
}

/// Where events go: to all subscribers, without ever waiting for one.
#[derive(Debug)]
pub(crate) struct EventBus {
    /// `None` once the manager is shut down.
    sender: Mutex<Option<broadcast::Sender<RunEvent>>>,
}

impl EventBus {
    pub(crate) fn new() -> Self {
        Self {
            sender: Mutex::new(Some(broadcast::Sender::new(WAITING))),
        }
    }

    fn with<T>(&self, look: impl FnOnce(&broadcast::Sender<RunEvent>) -> T) -> Option<T> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().map(look)
    }

    /// Tells everyone.
    pub(crate) fn emit(&self, run: &RunId, kind: EventKind) {
        self.with(|sender| {
            // Without a subscriber it fails, and nobody is told.
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
    async fn a_slow_subscriber_is_told_what_it_missed_and_goes_on_with_what_is_left() {
        let event_bus = EventBus::new();
        let (run, other) = (RunId::generate(), RunId::generate());
        let all = Events::of(event_bus.subscribe(), None);
        let one = Events::of(event_bus.subscribe(), Some(run.clone()));
        let told = 3 * WAITING as u64;
        for _ in 0..told {
            // Nobody reads, and it does not wait.
            event_bus.emit(&other, EventKind::Waiting);
        }
        event_bus.emit(&run, EventKind::Released);
        event_bus.close();
        let all: Vec<_> = all.collect().await;
        let EventKind::Lagged { events } = all[0].kind else {
            panic!("{:?}", all[0]);
        };
        assert_eq!(events + all.len() as u64 - 1, told + 1);
        let one: Vec<_> = one.map(|event| event.kind).collect().await;
        assert_eq!(one, [EventKind::Lagged { events }, EventKind::Released]);
    }
}

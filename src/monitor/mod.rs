//! The task of a run: the only waiter on its container, and the only writer of its state.

mod calls;
pub(crate) mod context;
pub(crate) mod entry;
mod evidence;
pub(crate) mod exec;
pub(crate) mod group;
mod launch;
mod machine;
mod output;
pub(crate) mod policy;
pub(crate) mod recover;
mod run_file;
mod seal;
#[cfg(feature = "sign")]
pub(crate) mod signature;
pub(crate) mod start;
mod stats;
pub(crate) mod stop;
pub(crate) mod tasks;
mod unconfirmed;
mod wait;
mod watch;

use std::any::Any;
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::watch::Sender;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::audit::{Event, RecordRef, Start};
use crate::capture::{Capture, CaptureStats, Hub, Masks, Progress};
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::monitor::calls::Calls;
use crate::monitor::context::Context;
use crate::monitor::entry::{Entry, PipeState, RunSnapshot, StopRequest};
use crate::monitor::stop::Stopper;
use crate::root::{Lock, RunFile};
use crate::runtime::EngineInfo;
use crate::sink::{RunLog, RunPlace};
use crate::spec::{ContainerId, RunRecord, Secrets, Settings};
use crate::state::{State, Transition};
use crate::timestamp::Timestamp;

/// Messages from the handles of a run to its monitor.
struct Inbox {
    stops: mpsc::UnboundedReceiver<StopRequest>,
    notes: mpsc::UnboundedReceiver<Event>,
    stdin_records: mpsc::Receiver<Event>,
}

/// The owner of one run, or of one exec.
pub(crate) struct Monitor {
    context: Arc<Context>,
    place: RunPlace,
    snapshot: Sender<RunSnapshot>,
    /// Calls to the engine about the run.
    calls: Calls,
    stops: mpsc::UnboundedReceiver<StopRequest>,
    notes: mpsc::UnboundedReceiver<Event>,
    /// Records of standard input; `None` once the watch has taken the receiver.
    stdin_records: Option<mpsc::Receiver<Event>>,
    pipe: Arc<Mutex<PipeState>>,
    hub: Arc<Hub>,
    /// The times of the start request; `None` if this monitor did not start the container.
    start_times: Option<StartTimes>,
    /// Held while this monitor owns the run.
    lock: Option<Lock>,
    stopper: Stopper,
    /// Secrets of the spec, redacted from the engine's messages.
    secrets: Secrets,
    /// The masks of the output, once they are known.
    masks: Arc<OnceLock<Masks>>,
    /// The engine that has the container.
    engine: Option<EngineInfo>,
    /// The image's stop signal, used if the spec has none.
    image_signal: Option<String>,
    /// Held while the container may run, if the number of running containers is limited.
    permit: Option<OwnedSemaphorePermit>,
    /// The run needs no permit.
    is_service: bool,
    /// True if this monitor has written the begin of the run to the ledger.
    begun_recorded: bool,
    /// The reasons for a local image in place of a pulled one.
    pull_warnings: Arc<Mutex<Vec<String>>>,
}

/// The times of a start request, by the clocks of this machine.
#[derive(Debug, Clone, Copy)]
struct StartTimes {
    /// The time of the request, by the monotonic clock.
    at: Instant,
    /// The time of the request, by the wall clock.
    requested: Timestamp,
    /// The time of the engine's answer.
    answered: Timestamp,
}

impl Monitor {
    fn new(
        context: Arc<Context>,
        place: RunPlace,
        snapshot: Sender<RunSnapshot>,
        inbox: Inbox,
        pipe: Arc<Mutex<PipeState>>,
        hub: Arc<Hub>,
    ) -> Self {
        let calls = Calls::new(Arc::clone(&context), place.clone(), snapshot.clone());
        Self {
            context,
            place,
            snapshot,
            calls,
            stops: inbox.stops,
            notes: inbox.notes,
            stdin_records: Some(inbox.stdin_records),
            pipe,
            hub,
            start_times: None,
            lock: None,
            stopper: Stopper::default(),
            secrets: Secrets::default(),
            masks: Arc::default(),
            engine: None,
            image_signal: None,
            permit: None,
            is_service: false,
            begun_recorded: false,
            pull_warnings: Arc::default(),
        }
    }

    /// Returns the tracing span of the monitor, with the id of the run and the number of the exec.
    pub(crate) fn span(&self) -> tracing::Span {
        tracing::error_span!("run", run = %self.place.run, exec = self.place.exec)
    }

    /// Returns the result of a task, or logs its panic.
    ///
    /// A custom sink or runtime can panic. The run is then left as if its owner had died, and the
    /// next manager that opens it recovers it.
    fn report_panic<T>(&self, result: Result<Option<T>, Box<dyn Any + Send>>) -> Option<T> {
        result.unwrap_or_else(|_| {
            tracing::error!(run = %self.place.run, "the monitor of the run panicked");
            None
        })
    }

    /// Releases the run. Before, the container of a `sealed` run is removed, if its policy says so,
    /// and the run is signed.
    async fn release(mut self, sealed: Option<RunFile>) {
        self.hub.close();
        if let Some(file) = sealed {
            self.remove_by_policy(&file).await;
            #[cfg(feature = "sign")]
            self.sign(&file).await;
        }
        self.remove_entry();
        // A later subscriber sees that no event follows.
        self.stops.close();
        self.emit(EventKind::Released);
    }

    /// Frees the run's id. Later calls find the run on disk.
    fn remove_entry(&mut self) {
        self.lock = None;
        let mut entries = self.context.entries();
        let ours = |entry: &Arc<Entry>| Arc::ptr_eq(&entry.hub, &self.hub);
        if entries.get(&self.place.run).is_some_and(ours) {
            entries.remove(&self.place.run);
        }
    }

    /// Applies a transition, and publishes the new state and its event.
    fn publish(&self, transition: Transition) {
        if matches!(transition, Transition::Ended(_)) {
            self.calls.settle();
        }
        let mut kind = None;
        self.snapshot.send_modify(|snapshot| {
            let state = std::mem::replace(&mut snapshot.state, State::Intended);
            let after = state.clone().after(transition);
            kind = (after != state).then(|| event_kind(&after)).flatten();
            snapshot.state = after;
        });
        if let Some(kind) = kind {
            self.emit(kind);
        }
    }

    /// Emits an event of the run. An exec emits none: its end is not the end of the run.
    fn emit(&self, kind: EventKind) {
        if self.place.exec.is_none() {
            self.context.event_bus.emit(&self.place.run, kind);
        }
    }

    /// Emits the gaps that were recorded since the last call.
    fn emit_gaps(&self, stats: &CaptureStats) {
        for gap in stats.take_gaps() {
            self.emit(EventKind::Gap { gap });
        }
    }

    /// Creates the log of the run, or of the exec, with its first record.
    async fn open_log(&mut self, record: &RunRecord) -> Result<(Progress, Box<dyn RunLog>)> {
        let mut start = Start::new(record.clone());
        start.exec = self.place.exec;
        let log = self.context.sink.open(&self.place, &start).await?;
        let mut progress = Progress::default();
        progress.observe(RecordRef::Event(&Event::Start(Box::new(start))));
        Ok((progress, log))
    }

    /// Returns a capture that continues a log after `progress`.
    fn capture(&self, file: &RunFile, progress: Progress, log: Box<dyn RunLog>) -> Capture {
        let limit = file.record.settings.output_limit.map(|limit| limit.bytes);
        let capture = Capture::new(progress, Arc::clone(&self.hub), log, limit);
        capture.with_masks(self.known_masks())
    }

    /// The masks of the output. They are set before there is a capture.
    fn known_masks(&self) -> Masks {
        self.masks.get().cloned().unwrap_or_default()
    }

    /// Begins a stop, and returns its record.
    fn stop(
        &mut self,
        container: &ContainerId,
        request: StopRequest,
        signal: &str,
        settings: &Settings,
    ) -> Event {
        let (calls, grace) = (&self.calls, settings.stop_grace);
        let stop = self
            .stopper
            .request(calls, container, request, signal, grace);
        self.emit(EventKind::from(&stop));
        Event::Stop(stop)
    }

    /// Writes pending records before the manager closes. A log that has failed is left as it is.
    async fn flush_on_shutdown(&mut self, capture: &mut Capture, mut records: Vec<Event>) {
        while let Ok(note) = self.notes.try_recv() {
            records.push(note);
        }
        if !capture.needs_log()
            && let Err(error) = capture.write(records).await
        {
            self.report_blocked(&error);
        }
    }

    /// Publishes the grace period of a stop that sets none.
    fn publish_stop_grace(&self, record: &RunRecord) {
        let grace = record.settings.stop_grace;
        self.snapshot
            .send_modify(|snapshot| snapshot.stop_grace = grace);
    }

    /// Reports why the run cannot be sealed or recovered now.
    fn report_blocked(&self, error: &Error) {
        let reason = error.chain();
        tracing::warn!(run = %self.place.run, "{reason}");
        let reported = self.snapshot.borrow().problem.as_ref() == Some(&reason);
        if !reported {
            let message = reason.clone();
            self.emit(EventKind::Warning { message });
        }
        self.snapshot
            .send_modify(|snapshot| snapshot.problem = Some(reason));
    }
}

/// Returns the event of a run that has entered `state`.
fn event_kind(state: &State) -> Option<EventKind> {
    Some(match state {
        State::Intended => return None,
        State::Created { container } => EventKind::Created {
            container: container.clone(),
        },
        State::Running { started_at, .. } => EventKind::Started {
            started_at: *started_at,
        },
        State::Ended { ending, .. } => EventKind::Exited {
            ending: ending.clone(),
        },
    })
}

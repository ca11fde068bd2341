//! The one task per run: the only waiter on its container, the only writer of its state.

pub(crate) mod context;
pub(crate) mod entry;
mod evidence;
pub(crate) mod exec;
mod launch;
mod machine;
pub(crate) mod output;
pub(crate) mod policy;
pub(crate) mod recover;
mod run_file;
pub(crate) mod seal;
pub(crate) mod start;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod tasks;
pub(crate) mod wait;
mod watch;

pub(crate) use watch::WatchOutcome;

use std::any::Any;
use std::sync::{Arc, Mutex};

use tokio::sync::watch::Sender;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::audit::{Event as Record, RecordRef, Start};
use crate::capture::{Capture, CaptureStats, Hub, Progress};
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::monitor::context::Context;
use crate::monitor::entry::{Entry, Pipe, RunSnapshot, StopRequest};
use crate::monitor::stop::Stopper;
use crate::root::{Lock, RunFile};
use crate::runtime::EngineInfo;
use crate::sink::{RunLog, RunPlace};
use crate::spec::{ContainerId, RunRecord, Secrets, Settings};
use crate::state::{State, Transition};
use crate::timestamp::Timestamp;

/// What a run's handles send to its monitor.
pub(crate) struct Inbox {
    pub(crate) stops: mpsc::UnboundedReceiver<StopRequest>,
    pub(crate) notes: mpsc::UnboundedReceiver<Record>,
    /// Records of input, until the watch takes it.
    pub(crate) typed: Option<mpsc::Receiver<Record>>,
}

/// The task of one run.
pub(crate) struct Monitor {
    pub(crate) context: Arc<Context>,
    pub(crate) place: RunPlace,
    pub(crate) snapshot: Sender<RunSnapshot>,
    pub(crate) stops: mpsc::UnboundedReceiver<StopRequest>,
    pub(crate) notes: mpsc::UnboundedReceiver<Record>,
    pub(crate) typed: Option<mpsc::Receiver<Record>>,
    pub(crate) pipe: Arc<Mutex<Pipe>>,
    pub(crate) hub: Arc<Hub>,
    /// When the engine was asked to start the container, and when it had answered.
    pub(crate) launched: Option<Launch>,
    /// Held while this task owns the run.
    pub(crate) lock: Option<Lock>,
    pub(crate) stopper: Stopper,
    /// What must be taken out of what the engine says.
    pub(crate) secrets: Secrets,
    /// Who has the container.
    pub(crate) engine: Option<EngineInfo>,
    /// What asks the container to stop, where the spec does not say.
    pub(crate) image_signal: Option<String>,
    /// Held while its container may run, where so many may be at once.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// When a container was started, by the clocks of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launch {
    pub(crate) at: Instant,
    pub(crate) asked: Timestamp,
    pub(crate) answered: Timestamp,
}

impl Monitor {
    pub(crate) fn new(
        context: Arc<Context>,
        place: RunPlace,
        snapshot: Sender<RunSnapshot>,
        inbox: Inbox,
        pipe: Arc<Mutex<Pipe>>,
        hub: Arc<Hub>,
    ) -> Self {
        Self {
            context,
            place,
            snapshot,
            stops: inbox.stops,
            notes: inbox.notes,
            typed: inbox.typed,
            pipe,
            hub,
            launched: None,
            lock: None,
            stopper: Stopper::default(),
            secrets: Secrets::default(),
            engine: None,
            image_signal: None,
            permit: None,
        }
    }

    /// What all that the run's task logs is in: its field `run` is the run's id, and `exec` the
    /// number of a further process.
    pub(crate) fn span(&self) -> tracing::Span {
        tracing::error_span!("run", run = %self.place.run, exec = self.place.exec)
    }

    /// A sink or a runtime of the caller's own can panic. The run is then as if its owner had
    /// died: whoever asks for it next takes it over.
    pub(crate) fn unless_it_panicked<T>(
        &self,
        result: Result<Option<T>, Box<dyn Any + Send>>,
    ) -> Option<T> {
        result.unwrap_or_else(|_| {
            tracing::error!(run = %self.place.run, "its monitor panicked");
            None
        })
    }

    /// Gives the run up: sealed, in which case its container is removed by policy, or not.
    pub(crate) async fn leave(mut self, sealed: Option<RunFile>) {
        self.hub.close();
        if let Some(file) = sealed {
            self.remove_by_policy(&file).await;
        }
        self.forget();
        // Who subscribes from here on sees that nothing more will come.
        self.stops.close();
        self.emit(EventKind::Released);
    }

    /// Frees the run's name: what asks for it from here on finds what is on the disk.
    pub(crate) fn forget(&mut self) {
        self.lock = None;
        let mut entries = self.context.entries();
        let ours = |entry: &Arc<Entry>| Arc::ptr_eq(&entry.hub, &self.hub);
        if entries.get(&self.place.run).is_some_and(ours) {
            entries.remove(&self.place.run);
        }
    }

    /// Tells everyone of a change.
    pub(crate) fn publish(&self, event: Transition) {
        let mut told = None;
        self.snapshot.send_modify(|snapshot| {
            let state = std::mem::replace(&mut snapshot.state, crate::state::State::Intended);
            let after = state.clone().after(event);
            told = (after != state).then(|| happening(&after)).flatten();
            snapshot.state = after;
        });
        if let Some(told) = told {
            self.emit(told);
        }
    }

    /// Tells the subscribers, who are told of runs: the end of a further process is not the run's.
    pub(crate) fn emit(&self, kind: EventKind) {
        if self.place.exec.is_none() {
            self.context.event_bus.emit(&self.place.run, kind);
        }
    }

    /// Tells the subscribers of what was recorded as missing.
    pub(crate) fn tell_gaps(&self, pulse: &CaptureStats) {
        for gap in pulse.take_gaps() {
            self.emit(EventKind::Gap { gap });
        }
    }

    /// Makes the run's log, with its first record, and says how far it has come.
    pub(crate) async fn open_log(
        &mut self,
        record: &RunRecord,
    ) -> Result<(Progress, Box<dyn RunLog>)> {
        let start = Start::new(record.clone());
        let log = self.context.sink.open(&self.place, &start).await?;
        let mut progress = Progress::default();
        progress.observe(RecordRef::Event(&Record::Start(Box::new(start))));
        Ok((progress, log))
    }

    /// The capture of the run, which goes on after `progress`.
    pub(crate) fn capture(
        &self,
        file: &RunFile,
        progress: Progress,
        log: Box<dyn RunLog>,
    ) -> Capture {
        let limit = file.record.settings.output_limit.map(|limit| limit.bytes);
        Capture::new(progress, Arc::clone(&self.hub), log, limit)
    }

    /// Begins a stop, and says what is to be recorded of it.
    pub(crate) fn stop(
        &mut self,
        container: &ContainerId,
        request: StopRequest,
        signal: &str,
        settings: &Settings,
    ) -> Record {
        let (runtime, grace) = (&self.context.runtime, settings.stop_grace);
        let stop = self
            .stopper
            .request(runtime, container, request, signal, grace);
        self.emit(EventKind::from(&stop));
        Record::Stop(stop)
    }

    /// Records what was to be recorded when the manager closes, if there is a log.
    pub(crate) async fn flush_on_shutdown(
        &mut self,
        capture: &mut Capture,
        mut records: Vec<Record>,
    ) {
        while let Ok(note) = self.notes.try_recv() {
            records.push(note);
        }
        if !capture.needs_log()
            && let Err(error) = capture.write(records).await
        {
            self.report_blocked(&error);
        }
    }

    /// Says what keeps the run from being sealed.
    pub(crate) fn report_blocked(&self, error: &Error) {
        let reason = error.chain();
        tracing::warn!(run = %self.place.run, "{reason}");
        let told = self.snapshot.borrow().problem.as_ref() == Some(&reason);
        if !told {
            let message = reason.clone();
            self.emit(EventKind::Warning { message });
        }
        self.snapshot
            .send_modify(|snapshot| snapshot.problem = Some(reason));
    }
}

/// What is told of a run that has come to be in `state`.
fn happening(state: &State) -> Option<EventKind> {
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

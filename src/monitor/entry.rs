//! State and channels that the handles of a run share with its monitor.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context as Poller, Waker};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::audit::{self, Event, Follow};
use crate::capture::{Hub, Masks};
use crate::error::Result;
use crate::monitor::context::Context;
use crate::monitor::stop::{MAX_GRACE, STOP_TIMEOUT};
use crate::outcome::{Ending, Outcome, Seal, SealState, StopCause, Usage};
use crate::root::RunInfo;
use crate::runtime::InputWriter;
use crate::sink::RunPlace;
use crate::spec::Settings;
use crate::state::State;

/// Capacity of the queue of input records.
pub(super) const STDIN_QUEUE_RECORDS: usize = 16;

/// The published state of a run. Only its monitor changes it.
#[derive(Debug, Clone)]
pub(crate) struct RunSnapshot {
    pub(crate) state: State,
    pub(crate) seal: Option<Seal>,
    /// Why the run cannot be sealed or recovered now.
    pub(crate) problem: Option<String>,
    /// Which call about the run the engine has not answered for some seconds.
    pub(crate) unanswered: Option<String>,
    /// The grace period of a stop that sets none.
    pub(crate) stop_grace: Duration,
    pub(crate) last_lines: Vec<String>,
    /// Peak of the sampled resource usage.
    pub(crate) usage: Option<Usage>,
    /// Why moat stopped the run. Set once the run has ended.
    pub(crate) stop_cause: Option<StopCause>,
    /// Set once this manager owns the run, another one does, or recovery has failed.
    pub(crate) ownership_known: bool,
    /// Set while another manager owns the run.
    pub(crate) owned_elsewhere: bool,
    /// Set if output comes from a live tap, and not from the engine's log.
    pub(crate) tapped: bool,
    /// Why this manager has given up the run.
    pub(crate) give_up_reason: Option<GiveUpReason>,
    /// Name of the run's runtime, if the manager has another one.
    pub(crate) other_runtime: Option<String>,
    /// Ids of the run's engine and of the manager's engine, if they differ.
    pub(crate) other_engine: Option<(String, String)>,
}

/// Why a manager has given up a run. A closing manager gives up none of its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GiveUpReason {
    /// Its files are damaged, and a retry cannot help.
    Damaged,
    /// Its directory was removed externally.
    Removed,
    /// It belongs to another runtime than the manager's.
    OtherRuntime,
    /// It belongs to another engine than the manager's.
    OtherEngine,
}

impl RunSnapshot {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Intended,
            seal: None,
            problem: None,
            unanswered: None,
            stop_grace: Settings::default().stop_grace,
            last_lines: Vec::new(),
            usage: None,
            stop_cause: None,
            ownership_known: false,
            owned_elsewhere: false,
            tapped: false,
            give_up_reason: None,
            other_runtime: None,
            other_engine: None,
        }
    }

    /// Returns why the run does not progress now.
    pub(crate) fn problem(&self) -> Option<&String> {
        self.problem.as_ref().or(self.unanswered.as_ref())
    }

    /// Updates `info`, which was read from the files, if this manager owns the run.
    pub(crate) fn add_to(&self, info: &mut RunInfo) {
        if self.owned_elsewhere || info.seal.is_some() {
            return;
        }
        match &self.state {
            State::Intended => {}
            State::Ended { ending, .. } => info.add_ending(ending),
            state => info.status = state.status(),
        }
        if let State::Running { started_at, .. } = &self.state {
            info.started_at = started_at.or(info.started_at);
        }
        info.stopped = self.stop_cause;
        if info.problem.is_none() {
            info.problem = self.problem().cloned();
        }
    }

    /// Creates the snapshot of a sealed run. A `problem` is damage to its files since the seal.
    pub(crate) fn sealed(seal: Seal, problem: Option<String>) -> Self {
        Self {
            state: State::Ended {
                container: seal.container.clone(),
                ending: seal.exit.clone(),
            },
            seal: Some(seal),
            give_up_reason: problem.is_some().then_some(GiveUpReason::Damaged),
            problem,
            ownership_known: true,
            ..Self::new()
        }
    }
}

/// A request to stop a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StopRequest {
    pub(crate) cause: StopCause,
    /// `None`: the grace period of the spec.
    pub(crate) grace: Option<Duration>,
}

/// The role of a run. It decides whether the run needs a permit, and when a shutdown stops the run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Role {
    /// Other runs depend on the run.
    pub(crate) is_service: bool,
    /// The run cleans up after others.
    pub(crate) is_cleanup: bool,
}

/// The handles' side of a run.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) place: RunPlace,
    pub(crate) role: Role,
    pub(crate) snapshot: watch::Receiver<RunSnapshot>,
    pub(crate) stops: mpsc::UnboundedSender<StopRequest>,
    /// Records of attachments.
    pub(crate) notes: mpsc::UnboundedSender<Event>,
    /// Records of standard input, if the spec asks for them.
    pub(crate) stdin_records: mpsc::Sender<Event>,
    pub(crate) pipe: Arc<Mutex<PipeState>>,
    pub(crate) hub: Arc<Hub>,
    /// The masks of the run, once its monitor knows them.
    pub(crate) masks: Arc<OnceLock<Masks>>,
}

impl Entry {
    /// Creates the entry of a sealed run, which has no monitor.
    pub(crate) fn sealed(place: RunPlace, snapshot: watch::Receiver<RunSnapshot>) -> Self {
        let hub = Arc::new(Hub::default());
        hub.close();
        Self {
            place,
            role: Role::default(),
            snapshot,
            stops: mpsc::unbounded_channel().0,
            notes: mpsc::unbounded_channel().0,
            stdin_records: mpsc::channel(1).0,
            pipe: Arc::default(),
            hub,
            masks: Arc::default(),
        }
    }

    /// Resolves if the engine does not answer about a run that is overdue to be stopped.
    ///
    /// An engine that answers is waited for: it reports the end of the container.
    pub(crate) async fn unanswered_after(&self, grace: Option<Duration>) -> String {
        let requested = Instant::now();
        let mut snapshot = self.snapshot.clone();
        let default = snapshot.borrow().stop_grace;
        let grace = grace.unwrap_or(default).min(MAX_GRACE);
        sleep_until(requested + grace + STOP_TIMEOUT).await;
        let unanswered = snapshot.wait_for(|snapshot| {
            snapshot.unanswered.is_some() && snapshot.state.ending().is_none()
        });
        let problem = match unanswered.await {
            Ok(snapshot) => snapshot.unanswered.clone(),
            Err(_) => None,
        };
        match problem {
            Some(problem) => problem,
            // The monitor has exited, and `wait` returns.
            None => std::future::pending().await,
        }
    }
}

/// State of the standard input of a run with [`Stdin::Pipe`](crate::spec::Stdin::Pipe).
///
/// It has one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum PipeState {
    #[default]
    Free,
    Taken,
    Ended,
}

/// Locks a mutex, poisoned or not.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes a container's standard input.
pub(crate) fn close_stdin(mut writer: InputWriter) {
    // Dropping one half of a connection that also carries output does not close it.
    let _ = writer
        .as_mut()
        .poll_shutdown(&mut Poller::from_waker(Waker::noop()));
}

/// Returns the last lines of output in an audit file, at most `limit`.
pub(crate) fn last_lines(audit: PathBuf, limit: usize) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for record in Follow::new(audit).last(limit).wait(false).records()? {
        if let audit::Record::Output(output) = record? {
            lines.push(String::from_utf8_lossy(&output.bytes).into_owned());
        }
    }
    Ok(lines)
}

/// Returns the outcome of a run, as far as it is known.
pub(crate) fn outcome(context: &Context, place: &RunPlace, snapshot: &RunSnapshot) -> Outcome {
    let ending = snapshot
        .state
        .ending()
        .cloned()
        .unwrap_or_else(|| Ending::Lost {
            reason: "the run has not ended".into(),
        });
    Outcome {
        run: place.run.clone(),
        ending,
        seal: match &snapshot.seal {
            Some(seal) => SealState::Sealed(Box::new(seal.clone())),
            None => SealState::Pending {
                reason: snapshot
                    .problem()
                    .cloned()
                    .unwrap_or_else(|| "the capture has not ended".into()),
            },
        },
        audit: context.sink.path(place),
        last_lines: snapshot.last_lines.clone(),
        usage: snapshot.usage.or(snapshot
            .seal
            .as_ref()
            .and_then(|seal| seal.usage.as_deref().copied())),
        stop_cause: snapshot.stop_cause,
    }
}

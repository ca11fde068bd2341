//! What the handles of a run and its monitor share.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Poller, Waker};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::audit::{self, Event as Record, Follow};
use crate::capture::Hub;
use crate::error::Result;
use crate::monitor::context::Context;
use crate::outcome::{Ending, Outcome, Seal, SealState, StopCause, Usage};
use crate::root::RunInfo;
use crate::runtime::InputWriter;
use crate::sink::RunPlace;
use crate::state::State;

/// How many records of input wait for the log.
pub(crate) const TYPED: usize = 16;

/// What everyone may know of a run. Only its monitor changes it.
#[derive(Debug, Clone)]
pub(crate) struct RunSnapshot {
    pub(crate) state: State,
    pub(crate) seal: Option<Seal>,
    /// What stands in the way of the seal, or of taking the run over.
    pub(crate) problem: Option<String>,
    pub(crate) last_lines: Vec<String>,
    /// What was sampled of it.
    pub(crate) usage: Option<Usage>,
    /// Whether the run was taken over, is owned elsewhere, or cannot be taken over.
    pub(crate) ownership_known: bool,
    /// Whether a live process other than this one owns it.
    pub(crate) elsewhere: bool,
    /// Whether its output comes live: else it comes by way of the engine's log.
    pub(crate) tapped: bool,
    /// Why nobody here can see it to its end.
    pub(crate) give_up_reason: Option<GiveUpReason>,
    /// The runtime that the run is of, where that is not the one of this manager.
    pub(crate) other_runtime: Option<String>,
    /// The engine that the run is of, and the one here, where these are two.
    pub(crate) other_engine: Option<(String, String)>,
}

/// Why a run was given up. A manager that closes gives up none: it leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GiveUpReason {
    /// There is a problem with its files that stays until a human has been at them.
    Damaged,
    /// Someone has removed it.
    Removed,
    /// It is one of another runtime than this manager has.
    OtherRuntime,
    /// It is one of another engine than this manager's runtime speaks with.
    OtherEngine,
}

impl RunSnapshot {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Intended,
            seal: None,
            problem: None,
            last_lines: Vec::new(),
            usage: None,
            ownership_known: false,
            elsewhere: false,
            tapped: false,
            give_up_reason: None,
            other_runtime: None,
            other_engine: None,
        }
    }

    /// Adds what this manager knows of a run that it owns to what its files say.
    pub(crate) fn add_to(&self, info: &mut RunInfo) {
        if self.elsewhere || info.seal.is_some() {
            return;
        }
        if self.state != State::Intended {
            info.status = self.state.status();
        }
        if info.problem.is_none() {
            info.problem = self.problem.clone();
        }
    }

    /// Of a run that is sealed, or was before something became of its files.
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
    /// `None`: that of the spec.
    pub(crate) grace: Option<Duration>,
}

/// What a run's handles and its monitor share.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) place: RunPlace,
    pub(crate) snapshot: watch::Receiver<RunSnapshot>,
    pub(crate) stops: mpsc::UnboundedSender<StopRequest>,
    /// What is to be recorded of those who sit in front of it.
    pub(crate) notes: mpsc::UnboundedSender<Record>,
    /// What they wrote to it, where that is recorded.
    pub(crate) typed: mpsc::Sender<Record>,
    pub(crate) pipe: Arc<Mutex<Pipe>>,
    pub(crate) hub: Arc<Hub>,
}

impl Entry {
    /// Of a run without a monitor.
    pub(crate) fn sealed(place: RunPlace, snapshot: watch::Receiver<RunSnapshot>) -> Self {
        let hub = Arc::new(Hub::default());
        hub.close();
        Self {
            place,
            snapshot,
            stops: mpsc::unbounded_channel().0,
            notes: mpsc::unbounded_channel().0,
            typed: mpsc::channel(1).0,
            pipe: Arc::default(),
            hub,
        }
    }
}

/// Who has the writing end of a pipe, which there is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Pipe {
    #[default]
    Free,
    Taken,
    Ended,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends an input that nobody writes to any more.
pub(crate) fn close_stdin(mut writer: InputWriter) {
    // A connection that carries output too is not closed by dropping one half of it.
    let _ = writer
        .as_mut()
        .poll_shutdown(&mut Poller::from_waker(Waker::noop()));
}

/// The last lines of output in an audit file.
pub(crate) fn last_lines(audit: PathBuf, most: usize) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for record in Follow::new(audit).last(most).wait(false).records()? {
        if let audit::Record::Output(output) = record? {
            lines.push(String::from_utf8_lossy(&output.bytes).into_owned());
        }
    }
    Ok(lines)
}

pub(crate) fn outcome(context: &Context, place: &RunPlace, snapshot: &RunSnapshot) -> Outcome {
    let ending = snapshot
        .state
        .ending()
        .cloned()
        .unwrap_or_else(|| Ending::Lost {
            reason: "it has not ended".into(),
        });
    Outcome {
        run: place.run.clone(),
        ending,
        seal: match &snapshot.seal {
            Some(seal) => SealState::Sealed(Box::new(seal.clone())),
            None => SealState::Pending {
                reason: snapshot
                    .problem
                    .clone()
                    .unwrap_or_else(|| "the capture is not at its end yet".into()),
            },
        },
        audit: context.sink.path(place),
        last_lines: snapshot.last_lines.clone(),
        usage: snapshot.usage.or(snapshot
            .seal
            .as_ref()
            .and_then(|seal| seal.usage.as_deref().copied())),
    }
}

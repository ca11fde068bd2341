//! The handle of one run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::attach::Attachment;
use super::{Context, Inner};
use crate::capture::Hub;
use crate::runtime::Archive;
use crate::sink::RunPlace;
use crate::{
    ContainerId, Ending, Error, Outcome, Result, RunId, Seal, SealState, State, StopCause,
};

/// What everyone may know of a run. Only its monitor changes it.
#[derive(Debug, Clone)]
pub(super) struct Status {
    pub(super) state: State,
    pub(super) seal: Option<Seal>,
    /// What stands in the way of the seal, or of taking the run over.
    pub(super) problem: Option<String>,
    pub(super) last_lines: Vec<String>,
    /// Whether the run was taken over, is owned elsewhere, or cannot be taken over.
    pub(super) settled: bool,
    /// Whether a live process other than this one owns it.
    pub(super) elsewhere: bool,
}

impl Status {
    pub(super) fn new() -> Self {
        Self {
            state: State::Intended,
            seal: None,
            problem: None,
            last_lines: Vec::new(),
            settled: false,
            elsewhere: false,
        }
    }

    /// Of a run that is sealed.
    pub(super) fn sealed(seal: Seal) -> Self {
        Self {
            state: State::Ended {
                container: seal.container.clone(),
                ending: seal.exit.clone(),
            },
            seal: Some(seal),
            settled: true,
            ..Self::new()
        }
    }
}

/// A request to stop a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct StopRequest {
    pub(super) cause: StopCause,
    /// `None`: that of the spec.
    pub(super) grace: Option<Duration>,
}

/// What a run's handles and its monitor share.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) place: RunPlace,
    pub(super) status: watch::Receiver<Status>,
    pub(super) stops: mpsc::UnboundedSender<StopRequest>,
    pub(super) hub: Arc<Hub>,
}

/// A run: a handle that is cheap to clone.
///
/// Any number of handles, in any number of tasks, see the same exit. While a handle lives, so does
/// the capture of its manager's runs.
#[derive(Debug, Clone)]
pub struct Run {
    pub(super) inner: Arc<Inner>,
    pub(super) entry: Arc<Entry>,
}

impl Run {
    fn context(&self) -> &Context {
        &self.inner.context
    }

    /// The run's id.
    pub fn id(&self) -> &RunId {
        &self.entry.place.run
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.entry.place.folder
    }

    /// The audit file; `None` where the sink writes none.
    pub fn audit(&self) -> Option<PathBuf> {
        self.context().sink.path(&self.entry.place)
    }

    /// Where the run is in its life.
    pub fn state(&self) -> State {
        self.entry.status.borrow().state.clone()
    }

    /// What stands in the way of the seal, or of taking the run over, if anything does.
    pub fn problem(&self) -> Option<String> {
        self.entry.status.borrow().problem.clone()
    }

    /// Whether another live process owns the run.
    pub fn owned_elsewhere(&self) -> bool {
        self.entry.status.borrow().elsewhere
    }

    /// Waits until the run has ended, and says how. It does not wait for the seal.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the manager is shut down before that.
    pub async fn ended(&self) -> Result<Ending> {
        let mut status = self.entry.status.clone();
        let ended = status
            .wait_for(|status| status.state.ending().is_some())
            .await
            .map_err(|_| self.gone())?;
        ended.state.ending().cloned().ok_or(Error::Closed)
    }

    /// Why the run's monitor has left without what was waited for.
    fn gone(&self) -> Error {
        match &*self.entry.status.borrow() {
            Status {
                problem: Some(reason),
                settled: true,
                ..
            } => Error::Damaged {
                path: self.folder().to_owned(),
                reason: reason.clone(),
            },
            _ => Error::Closed,
        }
    }

    /// Waits until the run has ended and its audit file is sealed.
    ///
    /// Where the file cannot be sealed within 15 s of the end (or what
    /// [`pending_after`](super::ManagerBuilder::pending_after) was set to), the outcome has a
    /// pending seal and its reason, and moat goes on trying; wait again to see it sealed.
    ///
    /// Cancel-safe. The container is removed, by policy, shortly after.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the manager is shut down before that. [`Error::Damaged`], if the run
    /// cannot be taken over.
    pub async fn wait(&self) -> Result<Outcome> {
        self.ended().await?;
        let deadline = Instant::now() + self.context().pending_after;
        let mut status = self.entry.status.clone();
        let sealed = timeout_at(deadline, status.wait_for(|status| status.seal.is_some())).await;
        match sealed {
            Ok(Ok(status)) => Ok(self.outcome(&status)),
            Err(_) => Ok(self.outcome(&self.entry.status.borrow())),
            Ok(Err(_)) => Err(self.gone()),
        }
    }

    fn outcome(&self, status: &Status) -> Outcome {
        outcome(self.context(), &self.entry.place, status)
    }

    /// Stops the run: its stop signal, then SIGKILL after `grace` (`None`: the spec's), and waits
    /// as [`wait`](Self::wait) does.
    ///
    /// A run that has ended, also while this is under way, keeps its real exit. A second stop may
    /// shorten the grace of the first. Cancel-safe: once it was polled, the stop goes on.
    ///
    /// # Errors
    ///
    /// As for `wait`.
    pub async fn stop(&self, grace: Option<Duration>) -> Result<Outcome> {
        self.request(StopCause::Requested, grace).await
    }

    /// Kills the run with SIGKILL, and waits as [`wait`](Self::wait) does.
    ///
    /// Cancel-safe: once it was polled, the kill goes on.
    ///
    /// # Errors
    ///
    /// As for `wait`.
    pub async fn kill(&self) -> Result<Outcome> {
        self.request(StopCause::Killed, Some(Duration::ZERO)).await
    }

    pub(super) async fn request(
        &self,
        cause: StopCause,
        grace: Option<Duration>,
    ) -> Result<Outcome> {
        // A monitor that has gone has nothing to stop any more; `wait` says which way.
        let _ = self.entry.stops.send(StopRequest { cause, grace });
        self.wait().await
    }

    /// Looks at the output: all that was printed so far, then what comes, and then the end.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the audit file cannot be read.
    pub async fn attach(&self) -> Result<Attachment> {
        Attachment::new(self.clone())
    }

    /// A tar archive of the file or folder at `path` in the container, which may run or have
    /// ended. A container that was removed has none: see [`KeepContainer`](crate::KeepContainer).
    ///
    /// Cancel-safe; the archive is read when it is polled.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`].
    pub async fn copy_out(&self, path: &str) -> Result<Archive> {
        let container = self.container()?;
        Ok(self.context().runtime.copy_out(&container, path).await?)
    }

    /// Unpacks a tar archive into the folder at `path` in the container.
    ///
    /// Not cancel-safe: dropped in the middle, it leaves a part of the archive there.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`].
    pub async fn copy_in(&self, path: &str, archive: Archive) -> Result<()> {
        let container = self.container()?;
        Ok(self
            .context()
            .runtime
            .copy_in(&container, path, archive)
            .await?)
    }

    pub(super) fn container(&self) -> Result<ContainerId> {
        let status = self.entry.status.borrow();
        status.state.container().cloned().ok_or_else(|| {
            crate::RuntimeError::NotFound {
                operation: "find the container",
                reason: format!("run {} has none", self.id()),
            }
            .into()
        })
    }
}

pub(super) fn outcome(context: &Context, place: &RunPlace, status: &Status) -> Outcome {
    let ending = status
        .state
        .ending()
        .cloned()
        .unwrap_or_else(|| Ending::Lost {
            reason: "it has not ended".into(),
        });
    Outcome {
        run: place.run.clone(),
        ending,
        seal: match &status.seal {
            Some(seal) => SealState::Sealed(Box::new(seal.clone())),
            None => SealState::Pending {
                reason: status
                    .problem
                    .clone()
                    .unwrap_or_else(|| "the capture is not at its end yet".into()),
            },
        },
        audit: context.sink.path(place),
        last_lines: status.last_lines.clone(),
    }
}

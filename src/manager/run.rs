//! The handle of one run.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::capture::Hub;
use crate::error::{Error, Result};
use crate::manager::attach::{AttachOptions, Attachment};
use crate::manager::input::Pipe;
use crate::manager::root::RunInfo;
use crate::manager::{Context, Inner};
use crate::outcome::{Ending, Outcome, Seal, SealState, StopCause};
use crate::runtime::{Archive, Usage};
use crate::sink::audit::Follow;
use crate::sink::{Event as Record, RunPlace, audit};
use crate::spec::{ContainerId, RunId};
use crate::state::State;

/// What everyone may know of a run. Only its monitor changes it.
#[derive(Debug, Clone)]
pub(super) struct Status {
    pub(super) state: State,
    pub(super) seal: Option<Seal>,
    /// What stands in the way of the seal, or of taking the run over.
    pub(super) problem: Option<String>,
    pub(super) last_lines: Vec<String>,
    /// What was sampled of it.
    pub(super) usage: Option<Usage>,
    /// Whether the run was taken over, is owned elsewhere, or cannot be taken over.
    pub(super) settled: bool,
    /// Whether a live process other than this one owns it.
    pub(super) elsewhere: bool,
    /// Whether its output comes live: else it comes by way of the engine's log.
    pub(super) tapped: bool,
    /// Why nobody here can see it to its end.
    pub(super) given_up: Option<GivenUp>,
    /// The runtime that the run is of, where that is not the one of this manager.
    pub(super) other_runtime: Option<String>,
    /// The engine that the run is of, and the one here, where these are two.
    pub(super) other_engine: Option<(String, String)>,
}

/// Why a run was given up. A manager that closes gives up none: it leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// There is a problem with its files that stays until a human has been at them.
    Damaged,
    /// Someone has removed it.
    Removed,
    /// It is one of another runtime than this manager has.
    OtherRuntime,
    /// It is one of another engine than this manager's runtime speaks with.
    OtherEngine,
}

impl Status {
    pub(super) fn new() -> Self {
        Self {
            state: State::Intended,
            seal: None,
            problem: None,
            last_lines: Vec::new(),
            usage: None,
            settled: false,
            elsewhere: false,
            tapped: false,
            given_up: None,
            other_runtime: None,
            other_engine: None,
        }
    }

    /// Adds what this manager knows of a run that it owns to what its files say.
    pub(super) fn add_to(&self, info: &mut RunInfo) {
        if self.elsewhere || info.seal.is_some() {
            return;
        }
        if self.state != State::Intended {
            info.state = self.state.word();
        }
        if info.problem.is_none() {
            info.problem = self.problem.clone();
        }
    }

    /// Of a run that is sealed, or was before something became of its files.
    pub(super) fn sealed(seal: Seal, problem: Option<String>) -> Self {
        Self {
            state: State::Ended {
                container: seal.container.clone(),
                ending: seal.exit.clone(),
            },
            seal: Some(seal),
            given_up: problem.is_some().then_some(GivenUp::Damaged),
            problem,
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
    /// What is to be recorded of those who sit in front of it.
    pub(super) notes: mpsc::UnboundedSender<Record>,
    /// What they wrote to it, where that is recorded.
    pub(super) typed: mpsc::Sender<Record>,
    pub(super) pipe: Arc<Mutex<Pipe>>,
    pub(super) hub: Arc<Hub>,
}

impl Entry {
    /// Of a run without a monitor.
    pub(super) fn sealed(place: RunPlace, status: watch::Receiver<Status>) -> Self {
        let hub = Arc::new(Hub::default());
        hub.close();
        Self {
            place,
            status,
            stops: mpsc::unbounded_channel().0,
            notes: mpsc::unbounded_channel().0,
            typed: mpsc::channel(1).0,
            pipe: Arc::default(),
            hub,
        }
    }
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
    pub(super) fn context(&self) -> &Context {
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
    /// As for [`wait`](Self::wait).
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
        let status = self.entry.status.borrow();
        match status.given_up {
            Some(GivenUp::OtherRuntime) => Error::OtherRuntime {
                run: self.id().clone(),
                runtime: status.other_runtime.clone().unwrap_or_default(),
            },
            Some(GivenUp::OtherEngine) => {
                let (engine, here) = status.other_engine.clone().unwrap_or_default();
                Error::OtherEngine {
                    run: self.id().clone(),
                    engine,
                    here,
                }
            }
            Some(GivenUp::Damaged) => Error::Damaged {
                path: self.folder().to_owned(),
                reason: status.problem.clone().unwrap_or_default(),
            },
            Some(GivenUp::Removed) => self.context().root.no_such_run(self.id()),
            None => Error::Closed,
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
    /// [`Error::Closed`] if the manager is shut down before that; [`Error::NoSuchRun`] if someone
    /// has removed the run. [`Error::OtherRuntime`] or [`Error::OtherEngine`], if it is one of
    /// another runtime or engine, and no live process owns it. [`Error::Damaged`], if it cannot be taken over, or its audit file does not
    /// end any more in the seal that it had:
    /// [`ended`](Self::ended) still says how the run ended.
    pub async fn wait(&self) -> Result<Outcome> {
        self.ended().await?;
        let deadline = Instant::now() + self.context().pending_after;
        let mut status = self.entry.status.clone();
        let sealed = timeout_at(deadline, status.wait_for(|status| status.seal.is_some())).await;
        match sealed {
            // It was sealed, and its files do not bear that out any more.
            Ok(Ok(status)) if status.given_up.is_some() => {
                drop(status);
                Err(self.gone())
            }
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
    /// As for `wait`; [`Error::Owned`] for a run of another live process that this one's runtime
    /// cannot reach: a local process, or one of another runtime.
    pub async fn stop(&self, grace: Option<Duration>) -> Result<Outcome> {
        self.request(StopCause::Requested, grace).await
    }

    /// Stops the run when `token` is cancelled, with the grace of its spec, and says
    /// [`StopCause::Cancelled`]. It returns at once; a manager that is shut down or gone stops
    /// nothing any more.
    ///
    /// A token stops any number of runs, and its children stop with it: one for a whole pipeline.
    /// See [`RunSpec::stop_when`](crate::spec::RunSpec::stop_when) for a run that has not started.
    pub fn stop_when(&self, token: CancellationToken) {
        let stops = self.entry.stops.clone();
        let closing = self.inner.context.closing.clone();
        self.inner.context.tasks.spawn(async move {
            tokio::select! {
                () = token.cancelled() => {
                    let cause = StopCause::Cancelled;
                    let _ = stops.send(StopRequest { cause, grace: None });
                }
                () = stops.closed() => {}
                () = closing.cancelled() => {}
            }
        });
    }

    /// Kills the run with SIGKILL, and waits as [`wait`](Self::wait) does.
    ///
    /// Cancel-safe: once it was polled, the kill goes on.
    ///
    /// # Errors
    ///
    /// As for [`stop`](Self::stop).
    pub async fn kill(&self) -> Result<Outcome> {
        self.request(StopCause::Killed, Some(Duration::ZERO)).await
    }

    /// Waits until this manager has nothing more to do with it: it is sealed, and its container is
    /// removed by policy, or it was left, or given up.
    pub(super) async fn released(&self) {
        self.entry.stops.closed().await;
    }

    pub(super) async fn request(
        &self,
        cause: StopCause,
        grace: Option<Duration>,
    ) -> Result<Outcome> {
        // A monitor that has gone has nothing to stop any more; `wait` says which way.
        let _ = self.entry.stops.send(StopRequest { cause, grace });
        let mut status = self.entry.status.clone();
        let transient = self.context().runtime.capabilities().transient;
        let out_of_reach = async {
            let found = status.wait_for(|status| {
                status.elsewhere && (transient || status.other_runtime.is_some())
            });
            if found.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            outcome = self.wait() => outcome,
            () = out_of_reach => Err(Error::Owned {
                run: self.id().clone(),
                path: self.folder().to_owned(),
            }),
        }
    }

    /// Looks at the output: all that was printed so far, then what comes, and then the end.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the audit file cannot be read.
    pub async fn attach(&self) -> Result<Attachment> {
        self.attach_with(AttachOptions::new()).await
    }

    /// Sits in front of the run, as `options` say.
    ///
    /// Any number may do so at once. That it was done, and when it ends before the run does, is
    /// recorded in the audit, with the id of this process. Who only looks on at a run that another
    /// process owns reads its files, and is not recorded.
    ///
    /// Cancel-safe: dropped in the middle, nobody is attached.
    ///
    /// # Errors
    ///
    /// [`Error::NoInput`] if input was asked for and cannot be had; [`Error::Runtime`] if the
    /// engine refuses it, or the size, which is asked for first: the input of a pipe is still to be
    /// had then; [`Error::Storage`] if the run's files cannot be read; [`Error::Closed`] if input, or
    /// a size, was asked for of a manager that is shut down.
    pub async fn attach_with(&self, options: AttachOptions) -> Result<Attachment> {
        Attachment::open(self.clone(), options).await
    }

    /// The records of its audit file, as they are written: see [`Follow`] for from where on and of
    /// which stream. [`attach`](Self::attach) shows output sooner, and nothing else. `None` where
    /// the sink writes no file.
    pub fn follow(&self) -> Option<Follow> {
        self.audit().map(Follow::new)
    }

    /// The last lines of its output so far, at most `most` (of a line over 16 KiB the last part),
    /// invalid UTF-8 replaced. A sink that writes no file has them only of a run that has ended.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] or [`Error::Damaged`] if the audit file cannot be read.
    pub async fn last_lines(&self, most: usize) -> Result<Vec<String>> {
        let Some(path) = self.audit() else {
            let lines = self.entry.status.borrow().last_lines.clone();
            let skip = lines.len().saturating_sub(most);
            return Ok(lines.into_iter().skip(skip).collect());
        };
        let disk = &self.context().disk;
        let audit = path.clone();
        disk.run("read", &path, move || last_lines(audit, most))
            .await
    }

    /// A tar archive of the file or folder at `path` in the container, which may run or have
    /// ended. A container that was removed has none: see [`KeepContainer`](crate::spec::KeepContainer).
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
            crate::runtime::RuntimeError::NotFound {
                operation: "find the container",
                reason: format!("run {} has none", self.id()),
            }
            .into()
        })
    }
}

/// The last lines of output in an audit file.
pub(super) fn last_lines(audit: PathBuf, most: usize) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for record in Follow::new(audit).last(most).wait(false).records()? {
        if let audit::Record::Output(output) = record? {
            lines.push(String::from_utf8_lossy(&output.bytes).into_owned());
        }
    }
    Ok(lines)
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
        usage: status.usage.or(status
            .seal
            .as_ref()
            .and_then(|seal| seal.usage.as_deref().copied())),
    }
}

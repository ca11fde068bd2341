//! The handle of one run.

pub(crate) mod attach;
pub(crate) mod exec;
pub(crate) mod ready;

pub use attach::{AttachHandle, AttachOptions, Attached, Attachment, Input};
pub use exec::Exec;
pub use ready::Ready;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::audit::Follow;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::monitor::context::{Context, ManagerInner};
use crate::monitor::entry::{Entry, GiveUpReason, RunSnapshot, StopRequest, last_lines, outcome};
use crate::outcome::{Ending, Outcome, StopCause};
use crate::runtime::Archive;
use crate::spec::{ContainerId, RunId};
use crate::state::State;

/// A run: a handle that is cheap to clone.
///
/// Any number of handles, in any number of tasks, see the same exit. While a handle lives, so does
/// the capture of its manager's runs.
#[derive(Debug, Clone)]
pub struct Run {
    pub(crate) inner: Arc<ManagerInner>,
    pub(crate) entry: Arc<Entry>,
}

impl Run {
    pub(crate) fn context(&self) -> &Context {
        &self.inner.context
    }

    /// The run's id.
    pub fn id(&self) -> &RunId {
        &self.entry.place.run
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        &self.entry.place.dir
    }

    /// The audit file; `None` where the sink writes none.
    pub fn audit(&self) -> Option<PathBuf> {
        self.context().sink.path(&self.entry.place)
    }

    /// Where the run is in its life.
    pub fn state(&self) -> State {
        self.entry.snapshot.borrow().state.clone()
    }

    /// What stands in the way of the seal, or of taking the run over, if anything does.
    pub fn problem(&self) -> Option<String> {
        self.entry.snapshot.borrow().problem.clone()
    }

    /// Whether another live process owns the run.
    pub fn owned_elsewhere(&self) -> bool {
        self.entry.snapshot.borrow().elsewhere
    }

    /// Waits until the run has ended, and says how. It does not wait for the seal.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub async fn wait_exit(&self) -> Result<Ending> {
        let mut snapshot = self.entry.snapshot.clone();
        let ended = snapshot
            .wait_for(|snapshot| snapshot.state.ending().is_some())
            .await
            .map_err(|_| self.gone())?;
        ended.state.ending().cloned().ok_or(Error::Closed)
    }

    /// Why the run's monitor has left without what was waited for.
    fn gone(&self) -> Error {
        let snapshot = self.entry.snapshot.borrow();
        match snapshot.give_up_reason {
            Some(GiveUpReason::OtherRuntime) => Error::OtherRuntime {
                run: self.id().clone(),
                runtime: snapshot.other_runtime.clone().unwrap_or_default(),
            },
            Some(GiveUpReason::OtherEngine) => {
                let (engine, here) = snapshot.other_engine.clone().unwrap_or_default();
                Error::OtherEngine {
                    run: self.id().clone(),
                    engine,
                    here,
                }
            }
            Some(GiveUpReason::Damaged) => Error::Damaged {
                path: self.dir().to_owned(),
                reason: snapshot.problem.clone().unwrap_or_default(),
            },
            Some(GiveUpReason::Removed) => self.context().root.no_such_run(self.id()),
            None => Error::Closed,
        }
    }

    /// Waits until the run has ended and its audit file is sealed.
    ///
    /// Where the file cannot be sealed within 15 s of the end (or what
    /// [`seal_timeout`](crate::manager::ManagerBuilder::seal_timeout) was set to), the outcome has a
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
    /// [`ended`](Self::wait_exit) still says how the run ended.
    pub async fn wait(&self) -> Result<Outcome> {
        self.wait_exit().await?;
        let deadline = Instant::now() + self.context().seal_timeout;
        let mut snapshot = self.entry.snapshot.clone();
        let sealed = timeout_at(
            deadline,
            snapshot.wait_for(|snapshot| snapshot.seal.is_some()),
        )
        .await;
        match sealed {
            // It was sealed, and its files do not bear that out any more.
            Ok(Ok(snapshot)) if snapshot.give_up_reason.is_some() => {
                drop(snapshot);
                Err(self.gone())
            }
            Ok(Ok(snapshot)) => Ok(self.outcome(&snapshot)),
            Err(_) => Ok(self.outcome(&self.entry.snapshot.borrow())),
            Ok(Err(_)) => Err(self.gone()),
        }
    }

    fn outcome(&self, snapshot: &RunSnapshot) -> Outcome {
        outcome(self.context(), &self.entry.place, snapshot)
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
    pub(crate) async fn released(&self) {
        self.entry.stops.closed().await;
    }

    pub(crate) async fn request(
        &self,
        cause: StopCause,
        grace: Option<Duration>,
    ) -> Result<Outcome> {
        // A monitor that has gone has nothing to stop any more; `wait` says which way.
        let _ = self.entry.stops.send(StopRequest { cause, grace });
        let mut snapshot = self.entry.snapshot.clone();
        let transient = self.context().runtime.capabilities().process_bound;
        let out_of_reach = async {
            let found = snapshot.wait_for(|snapshot| {
                snapshot.elsewhere && (transient || snapshot.other_runtime.is_some())
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
                path: self.context().root.lock_path(self.id()),
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
            let lines = self.entry.snapshot.borrow().last_lines.clone();
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

    pub(crate) fn container(&self) -> Result<ContainerId> {
        let snapshot = self.entry.snapshot.borrow();
        snapshot.state.container().cloned().ok_or_else(|| {
            crate::error::RuntimeError::NotFound {
                operation: "find the container",
                reason: format!("run {} has none", self.id()),
            }
            .into()
        })
    }
}

impl Run {
    /// What happens from now on to this run: see [`Events`]. [`state`](Self::state) says where it
    /// is, if it is asked after this. Of one that this manager has nothing more to do with, it
    /// ends at once.
    pub fn events(&self) -> Events {
        let receiver = self.inner.context.event_bus.subscribe();
        // In this order: a monitor is closed before its last event is told.
        let receiver = receiver.filter(|_| !self.entry.stops.is_closed());
        Events::of(receiver, Some(self.id().clone()))
    }
}

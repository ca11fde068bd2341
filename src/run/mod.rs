//! Runs: handles, attachments, execs and readiness.

pub(crate) mod attach;
mod copy;
pub(crate) mod exec;
mod output;
mod port;
pub(crate) mod ready;
mod removal;

pub use attach::{AttachHandle, AttachOptions, Attached, Attachment, Input};
pub use copy::{CopyOptions, CopyProgress};
pub use exec::Exec;
pub use output::{MAX_OUTPUT_BYTES, Output};
#[cfg(feature = "http")]
pub use ready::HttpCheck;
#[cfg(feature = "tls")]
pub use ready::HttpTls;
pub use ready::{LineMatch, Ready};

pub use crate::error::CopyError;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::audit::Follow;
use crate::error::{Error, Result, RuntimeError};
use crate::events::Events;
use crate::monitor::context::{Context, ManagerInner};
use crate::monitor::entry::{Entry, GiveUpReason, RunSnapshot, StopRequest, last_lines, outcome};
use crate::outcome::{Ending, Outcome, StopCause};
use crate::spec::{ContainerId, RunId};
use crate::state::State;

/// A handle to a run. Cheap to clone.
///
/// All handles of a run, in any task, see the same exit. The manager keeps capturing its
/// runs while any handle exists.
#[derive(Debug, Clone)]
pub struct Run {
    pub(crate) inner: Arc<ManagerInner>,
    pub(crate) entry: Arc<Entry>,
}

impl Run {
    pub(crate) fn context(&self) -> &Context {
        &self.inner.context
    }

    /// Returns the id of the run.
    pub fn id(&self) -> &RunId {
        &self.entry.place.run
    }

    /// Returns the directory of the run.
    pub fn dir(&self) -> &Path {
        &self.entry.place.dir
    }

    /// Returns the path of the audit file, or `None` if the sink writes no file.
    pub fn audit(&self) -> Option<PathBuf> {
        self.context().sink.path(&self.entry.place)
    }

    /// Returns the current state of the run.
    pub fn state(&self) -> State {
        self.entry.snapshot.borrow().state.clone()
    }

    /// Returns the problem that blocks the run, its seal or its recovery, if any.
    ///
    /// One of them is an engine that has not answered a call about the run for 5 s. The text names
    /// the call and when it was made. It is gone once the engine answers. Another is a node that
    /// does not answer its engine. A [`Warning`](crate::events::EventKind::Warning) has the same
    /// text.
    pub fn problem(&self) -> Option<String> {
        self.entry.snapshot.borrow().problem().cloned()
    }

    /// Returns true if another live process owns the run.
    pub fn owned_elsewhere(&self) -> bool {
        self.entry.snapshot.borrow().owned_elsewhere
    }

    /// Subscribes to the events of the run, from now on: see [`Events`].
    ///
    /// Call [`state`](Self::state) after this to see the current state and miss no
    /// change. The stream ends immediately if this manager has released the run.
    pub fn events(&self) -> Events {
        let receiver = self.inner.context.event_bus.subscribe();
        // In this order: a monitor closes `stops` before it emits its last event.
        let receiver = receiver.filter(|_| !self.entry.stops.is_closed());
        Events::new(receiver, Some(self.id().clone()))
    }

    /// Waits until the run has ended, and returns its ending. Does not wait for the seal.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait).
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn wait_exit(&self) -> Result<Ending> {
        let mut snapshot = self.entry.snapshot.clone();
        let ended = snapshot
            .wait_for(|snapshot| snapshot.state.ending().is_some())
            .await
            .map_err(|_| self.monitor_error())?;
        ended.state.ending().cloned().ok_or(Error::Closed)
    }

    /// Returns the error of a wait whose monitor has exited.
    fn monitor_error(&self) -> Error {
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
    /// If the file is not sealed within 15 s of the end, or of this call if that is later,
    /// the outcome has a pending seal with the reason. Sealing is retried, so wait again to
    /// see the seal. [`seal_timeout`](crate::manager::ManagerBuilder::seal_timeout) sets
    /// the timeout.
    ///
    /// The policy of the run may remove the container shortly after the seal.
    ///
    /// # Errors
    ///
    /// - [`Error::Closed`] if the manager is shut down first.
    /// - [`Error::NoSuchRun`] if the run was removed.
    /// - [`Error::OtherRuntime`] or [`Error::OtherEngine`] if the run belongs to another
    ///   runtime or engine and no live process owns it.
    /// - [`Error::Damaged`] if the run cannot be recovered, or its audit file no longer
    ///   ends in the seal that it had. [`wait_exit`](Self::wait_exit) still returns the
    ///   ending.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
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
            // The run was sealed, and its files no longer match the seal.
            Ok(Ok(sealed)) if sealed.give_up_reason.is_some() => {
                drop(sealed);
                Err(self.monitor_error())
            }
            Ok(Ok(sealed)) => Ok(self.outcome(&sealed)),
            Err(_) => Ok(self.outcome(&self.entry.snapshot.borrow())),
            Ok(Err(_)) => Err(self.monitor_error()),
        }
    }

    fn outcome(&self, snapshot: &RunSnapshot) -> Outcome {
        outcome(self.context(), &self.entry.place, snapshot)
    }

    /// Stops the run with its stop signal, then with SIGKILL after `grace`.
    ///
    /// `None` uses the grace period of the spec. Waits as [`wait`](Self::wait) does.
    ///
    /// A run that ends on its own keeps its exit, even if a stop is in progress. A second
    /// stop may shorten the grace period of the first.
    ///
    /// # Errors
    ///
    /// Those of [`wait`](Self::wait), and:
    ///
    /// - [`Error::Unanswered`] if 30 s after the grace period the run has not ended, and the
    ///   engine does not answer about it: see [`problem`](Self::problem). The stop proceeds
    ///   once the engine answers.
    /// - [`Error::Owned`] if another live process owns the run and this manager's runtime
    ///   cannot reach it. That is the case for local processes, and for runs of another
    ///   runtime.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the stop proceeds even if the future is dropped.
    pub async fn stop(&self, grace: Option<Duration>) -> Result<Outcome> {
        self.request(StopCause::Requested, grace).await
    }

    /// Stops the run when `token` is cancelled.
    ///
    /// Returns immediately. The stop uses the grace period of the spec, and is recorded as
    /// [`StopCause::Cancelled`]. It has no effect after the manager is shut down or
    /// dropped.
    ///
    /// One token can stop any number of runs, and cancelling it cancels its child tokens.
    /// For a run that has not started, use
    /// [`RunSpec::stop_when`](crate::spec::RunSpec::stop_when).
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
    /// # Errors
    ///
    /// Those of [`stop`](Self::stop).
    ///
    /// # Cancel safety
    ///
    /// Once polled, the kill proceeds even if the future is dropped.
    pub async fn kill(&self) -> Result<Outcome> {
        self.request(StopCause::Killed, Some(Duration::ZERO)).await
    }

    /// Waits until it is known which process owns the run.
    async fn wait_ownership(&self) {
        let mut snapshot = self.entry.snapshot.clone();
        let known = snapshot.wait_for(|snapshot| {
            snapshot.ownership_known
                || !matches!(snapshot.state, State::Intended | State::Created { .. })
        });
        // An error means that the monitor has exited, so the ownership no longer changes.
        let _ = known.await;
    }

    /// Returns true if the run has ended or is sealed, so that notes are no longer recorded.
    fn is_over(&self) -> bool {
        let snapshot = self.entry.snapshot.borrow();
        snapshot.state.ending().is_some() || snapshot.seal.is_some()
    }

    /// Waits until this manager has released the run.
    ///
    /// The manager releases a run that is sealed and whose policy has been applied to the
    /// container, a run that it gives up, and all runs when it closes.
    pub(crate) async fn released(&self) {
        self.entry.stops.closed().await;
    }

    /// Requests a stop, and waits for the outcome.
    pub(crate) async fn request(
        &self,
        cause: StopCause,
        grace: Option<Duration>,
    ) -> Result<Outcome> {
        // If the monitor has exited, `wait` returns the outcome or the error.
        let _ = self.entry.stops.send(StopRequest { cause, grace });
        let mut snapshot = self.entry.snapshot.clone();
        let process_bound = self.context().runtime.capabilities().process_bound;
        let unreachable = async {
            let found = snapshot.wait_for(|snapshot| {
                snapshot.owned_elsewhere && (process_bound || snapshot.other_runtime.is_some())
            });
            if found.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let overdue = self.entry.unanswered_after(grace);
        tokio::select! {
            biased;
            outcome = self.wait() => outcome,
            problem = overdue => Err(Error::Unanswered {
                run: self.id().clone(),
                problem,
            }),
            () = unreachable => Err(Error::Owned {
                run: self.id().clone(),
                path: self.dir().to_owned(),
            }),
        }
    }

    /// Attaches to the output: all output so far, and then live output to the end.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the audit file cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn attach(&self) -> Result<Attachment> {
        self.attach_with(AttachOptions::new()).await
    }

    /// Attaches to the run with options.
    ///
    /// Any number of attachments may exist at once. The audit records each attachment, and
    /// its detachment if the run is still active, with the id of this process. An
    /// output-only attachment to a run that another process owns only reads files, and is
    /// not recorded.
    ///
    /// # Errors
    ///
    /// - [`Error::NoInput`] if input is requested and not available.
    /// - [`Error::Runtime`] if the engine refuses the input or the terminal size. The size
    ///   is set first, so the input of a pipe remains available if the size is refused.
    /// - [`Error::Storage`] if the files of the run cannot be read.
    /// - [`Error::Closed`] if input or a size is requested and the manager is shut down.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call leaves no attachment.
    pub async fn attach_with(&self, options: AttachOptions) -> Result<Attachment> {
        Attachment::open(self.clone(), options).await
    }

    /// Follows the records of the audit file, if the sink writes one.
    ///
    /// [`Follow`] selects the first record and the streams. [`attach`](Self::attach)
    /// delivers output sooner, and only output.
    pub fn follow(&self) -> Option<Follow> {
        self.audit().map(Follow::new)
    }

    /// Returns the last lines of the output so far, at most `max_lines`.
    ///
    /// Invalid UTF-8 is replaced. Only the last part of a line longer than 16 KiB is
    /// returned. With a sink that writes no file, lines are available only after the run
    /// has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] or [`Error::Damaged`] if the audit file cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn last_lines(&self, max_lines: usize) -> Result<Vec<String>> {
        let Some(path) = self.audit() else {
            let lines = self.entry.snapshot.borrow().last_lines.clone();
            let skip = lines.len().saturating_sub(max_lines);
            return Ok(lines.into_iter().skip(skip).collect());
        };
        let disk = &self.context().disk;
        let audit = path.clone();
        disk.run("read", &path, move || last_lines(audit, max_lines))
            .await
    }

    fn container(&self) -> Result<ContainerId, RuntimeError> {
        let snapshot = self.entry.snapshot.borrow();
        let container = snapshot.state.container().cloned();
        container.ok_or_else(|| RuntimeError::NotFound {
            operation: "find the container",
            reason: format!("run {} has no container", self.id()),
        })
    }
}

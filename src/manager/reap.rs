//! Containers that nobody looks after: of this root, and of roots that never come back.

use std::time::Duration;

use crate::error::{Result, RuntimeError};
use crate::manager::Manager;
use crate::monitor::seal::may_remove;
use crate::runtime::{ContainerStatus, LabeledContainer, OwnedContainer, Runtime};
use crate::spec::{ContainerId, RootId, RunId};
use crate::timestamp::Timestamp;

/// A container that was made for this root, and that nothing in it will ever look after.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Orphan {
    /// The container.
    pub container: ContainerId,
    /// The run that it was made for.
    pub run: RunId,
    /// Where it is in its life.
    pub status: ContainerStatus,
    /// Why nothing looks after it.
    pub why: OrphanReason,
}

/// Why nothing looks after a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OrphanReason {
    /// Its run is not in the root: it was removed, or the root was made anew from a copy.
    NoRun,
    /// Its run is sealed, its policy would not have it stay, and its removal has failed.
    Left,
}

/// What [`Manager::reap`] is to look for: containers of any root, of whichever process on
/// whichever machine, that are past the deadline in their label.
///
/// The deadline is written when a container is made: that of the time limit, the grace of a stop,
/// and two minutes for the engine. Were its owner alive, it would have ended the container by
/// then. A container without a time limit has none, and is never touched, nor is one that moat
/// has not made, whose label cannot be read, or that belongs to the manager's own root, which
/// recovery looks after.
///
/// The deadline is by the clock of the machine that made the container, and compared with that of
/// the machine that reaps: the margins must be longer than those can be apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReapOptions {
    stop_after: Duration,
    remove_after: Duration,
    dry_run: bool,
}

impl Default for ReapOptions {
    fn default() -> Self {
        Self {
            stop_after: Duration::from_secs(600),
            remove_after: Duration::from_secs(86_400),
            dry_run: false,
        }
    }
}

impl ReapOptions {
    /// With the default margins.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long past its deadline a container that runs is killed. Default: ten minutes. At least
    /// one minute.
    pub fn stop_after(mut self, margin: Duration) -> Self {
        self.stop_after = margin.max(Duration::from_secs(60));
        self
    }

    /// How long past its deadline a container is removed, whatever its run's policy is. With it
    /// goes what the engine has kept of its output, which its root, if it is opened again, would
    /// read: it then seals the run as `removed`, with a gap. Default: a day. At least one minute.
    pub fn remove_after(mut self, margin: Duration) -> Self {
        self.remove_after = margin.max(Duration::from_secs(60));
        self
    }

    /// Whether to say only what would be done. Default: no.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Looks for what is past its deadline, and ends it; of `root`, nothing. For a process that
    /// has no manager; the others have [`Manager::reap`].
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`RuntimeError`] if the engine cannot list its containers.
    pub async fn run(
        &self,
        runtime: &dyn Runtime,
        root: Option<&RootId>,
    ) -> Result<Vec<ReapedContainer>, RuntimeError> {
        let now = Timestamp::now();
        let mut reaped = Vec::new();
        for marked in runtime.find_all().await? {
            if Some(&marked.root) == root {
                continue;
            }
            let Some(deadline) = marked.deadline else {
                continue;
            };
            // Zero where that is yet to come.
            let late = now.since(deadline);
            let remove = late > self.remove_after;
            let stop = marked.status == ContainerStatus::Running;
            let due = match marked.status {
                ContainerStatus::Running => late > self.stop_after,
                ContainerStatus::Removing => false,
                ContainerStatus::Created | ContainerStatus::Ended => remove,
            };
            if !due {
                continue;
            }
            let outcome = match self.dry_run {
                true => Ok(()),
                false => end(runtime, &marked, stop, remove).await,
            };
            reaped.push(ReapedContainer {
                deadline,
                what: match outcome {
                    Err(error) => ReapAction::Failed(error),
                    Ok(()) if remove => ReapAction::Removed,
                    Ok(()) => ReapAction::Stopped,
                },
                container: marked.container,
                root: marked.root,
                run: marked.run,
            });
        }
        Ok(reaped)
    }
}

/// A container that was past its deadline.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReapedContainer {
    /// The container.
    pub container: ContainerId,
    /// The root that it was made for.
    pub root: RootId,
    /// The run that it was made for.
    pub run: RunId,
    /// Its deadline.
    pub deadline: Timestamp,
    /// What was done, or would be.
    pub what: ReapAction,
}

/// What was done about a container.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReapAction {
    /// It ran, and was killed. It is there, with its output.
    Stopped,
    /// It was killed, if it ran, and removed.
    Removed,
    /// Neither, or not all of it.
    Failed(RuntimeError),
}

/// Kills a container, removes it, or both. One that is gone by now is no error.
async fn end(
    runtime: &dyn Runtime,
    marked: &LabeledContainer,
    stop: bool,
    remove: bool,
) -> Result<(), RuntimeError> {
    if remove {
        // With force only what was seen to run: one that was started since is somebody's.
        return match runtime.remove(&marked.container, stop).await {
            Err(error) if error.is_not_found() => Ok(()),
            removed => removed,
        };
    }
    match runtime.signal(&marked.container, "SIGKILL").await {
        Err(error) if error.is_not_found() => Ok(()),
        Err(RuntimeError::Conflict { .. }) => Ok(()),
        killed => killed,
    }
}

impl Manager {
    /// The containers that were made for this root, and that nothing in it will ever look after.
    /// Those that a run's policy keeps are none, nor are those of runs that are not sealed yet.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`](crate::error::Error::Runtime) if the engine cannot list its containers;
    /// [`Error::Storage`](crate::error::Error::Storage) if the root cannot be read.
    pub async fn orphans(&self) -> Result<Vec<Orphan>> {
        let context = self.context();
        // In this order: a run is in the root before its container is made.
        let found = context.runtime.find(context.root.id()).await?;
        context
            .on_disk("list", move |root| {
                let mut orphans = Vec::new();
                for found in found {
                    let OwnedContainer {
                        container,
                        run,
                        status,
                    } = found;
                    let why = match root.has(&run) {
                        false => OrphanReason::NoRun,
                        true => match root.read_run(&run) {
                            Ok(Some(file))
                                if !matches!(root.is_owned(&run), Ok(false))
                                    || status == ContainerStatus::Running
                                    || file.seal.as_ref().is_none_or(|seal| {
                                        !may_remove(seal, file.record.settings.keep)
                                    }) =>
                            {
                                continue;
                            }
                            Ok(Some(_)) => OrphanReason::Left,
                            // Its monitor, or a human, has to look after that.
                            _ => continue,
                        },
                    };
                    orphans.push(Orphan {
                        container,
                        run,
                        status,
                        why,
                    });
                }
                Ok(orphans)
            })
            .await
    }

    /// Removes an orphan: one of a run that is not there by force, also while it runs, one that
    /// was left only if it does not run. One that is gone is no error. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`](crate::error::Error::Runtime) if the engine does not remove it.
    pub async fn remove_orphan(&self, orphan: &Orphan) -> Result<()> {
        let force = orphan.why == OrphanReason::NoRun;
        let runtime = &self.context().runtime;
        match runtime.remove(&orphan.container, force).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Kills and removes containers of other roots that are past their deadline: for places where
    /// no next opening of their root comes, such as machines that live for one job on an engine
    /// that outlives them. See [`ReapOptions`] for what is certain enough.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`](crate::error::Error::Runtime) if the engine cannot list its containers.
    pub async fn reap(&self, what: ReapOptions) -> Result<Vec<ReapedContainer>> {
        let context = self.context();
        let own = Some(context.root.id());
        Ok(what.run(&*context.runtime, own).await?)
    }
}

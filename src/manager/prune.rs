//! Removing old runs.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::monitor::group::end_unused;
use crate::outcome::Seal;
use crate::root::{RemovalReason, Root, RunInfo};
use crate::spec::{GroupId, RunId};
use crate::timestamp::Timestamp;

/// Limits for [`Manager::prune`]. Runs beyond any of the limits are removed.
///
/// Without a limit, no run is removed. Runs that are not sealed, or that a live process
/// owns, are never removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PruneOptions {
    older_than: Option<Duration>,
    keep: Option<usize>,
    max_bytes: Option<u64>,
    dry_run: bool,
}

impl PruneOptions {
    /// Creates options without a limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes runs that were sealed longer ago than `age`.
    pub fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Keeps the `runs` runs that were sealed last, and removes the others.
    ///
    /// Runs that are not sealed do not count.
    pub fn keep(mut self, runs: usize) -> Self {
        self.keep = Some(runs);
        self
    }

    /// Removes the oldest runs until all files in the root have at most `bytes` bytes.
    ///
    /// Files of runs that are not sealed count.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Reports the runs that would be removed, and removes none. Default: false.
    ///
    /// Some failures cannot be predicted: for example, the engine may refuse to remove a
    /// container. The report assumes that such a removal succeeds.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }
}

/// The result of [`Manager::prune`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct PruneReport {
    /// The removed runs, oldest first, and the bytes of their files.
    ///
    /// In a dry run, the runs that would be removed.
    pub removed: Vec<(RunId, u64)>,
    /// The runs that were not removed, and why.
    pub kept: Vec<(RunId, SkipReason)>,
    /// The bytes of the files of the remaining runs.
    pub bytes_left: u64,
    /// The groups without a live owner whose networks and volumes were removed.
    ///
    /// These are groups whose end had failed before, for example because a kept container used the
    /// volume. In a dry run, the groups that no run uses, although their removal may fail again.
    pub ended_groups: Vec<GroupId>,
}

/// The reason that a run was not removed.
#[derive(Debug)]
#[non_exhaustive]
pub enum SkipReason {
    /// The run is within all limits.
    Recent,
    /// The audit file is not sealed: the run is active or waits for its recovery.
    NotSealed,
    /// The files of the run are damaged, and need an operator.
    Damaged(String),
    /// The removal failed, for example because the engine did not answer.
    Failed(Error),
}

/// A sealed run, and the bytes of its files.
struct SealedRun {
    run: RunId,
    seal: Seal,
    bytes: u64,
}

impl PruneOptions {
    /// Returns true if a run is beyond any of the limits.
    ///
    /// `runs` counts this run and all newer sealed runs. `bytes` is the size of all files that
    /// remain.
    fn selects(&self, age: Duration, runs: usize, bytes: u64) -> bool {
        self.older_than.is_some_and(|limit| age > limit)
            || self.keep.is_some_and(|limit| runs > limit)
            || self.max_bytes.is_some_and(|limit| bytes > limit)
    }
}

impl Manager {
    /// Removes old runs, as [`remove`](Self::remove) does.
    ///
    /// A run whose removal fails is kept, and the others are still removed. Then the networks and
    /// volumes of groups without a live owner are removed, unless a run uses them.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the root cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. A dropped call has removed some of the runs.
    pub async fn prune(&self, options: PruneOptions) -> Result<PruneReport> {
        let listed = self.context().on_disk("list", |root| {
            let sized = |info: RunInfo| (dir_bytes(&root.dir(&info.run)), info);
            Ok(root.list()?.into_iter().map(sized).collect::<Vec<_>>())
        });
        let mut report = PruneReport::default();
        let mut sealed = Vec::new();
        let mut unsealed = Vec::new();
        for (bytes, info) in listed.await? {
            report.bytes_left += bytes;
            if info.seal.is_none() {
                unsealed.extend(info.record);
            }
            match (info.problem, info.seal) {
                (Some(problem), _) => report.kept.push((info.run, SkipReason::Damaged(problem))),
                (None, None) => report.kept.push((info.run, SkipReason::NotSealed)),
                (None, Some(seal)) => sealed.push(SealedRun {
                    run: info.run,
                    seal,
                    bytes,
                }),
            }
        }
        sealed.sort_by(|a, b| (a.seal.ts, &a.run).cmp(&(b.seal.ts, &b.run)));
        let now = Timestamp::now();
        let total = sealed.len();
        for (index, run) in sealed.into_iter().enumerate() {
            let age = now.since(run.seal.ts);
            // An older run that was not removed does not count: it must not cost a newer run.
            let removed = match options.selects(age, total - index, report.bytes_left) {
                true => self.prune_one(&run, options.dry_run).await,
                false => Err(SkipReason::Recent),
            };
            match removed {
                Ok(()) => {
                    report.bytes_left = report.bytes_left.saturating_sub(run.bytes);
                    report.removed.push((run.run, run.bytes));
                }
                Err(reason) => report.kept.push((run.run, reason)),
            }
        }
        report.ended_groups = end_unused(self.context(), &unsealed, options.dry_run).await;
        Ok(report)
    }

    async fn prune_one(&self, run: &SealedRun, dry_run: bool) -> Result<(), SkipReason> {
        let removed = match dry_run {
            true => self.check_removable(run).await,
            false => self.remove_for(&run.run, RemovalReason::Pruned).await,
        };
        match removed {
            // Another process has removed the run.
            Err(Error::NoSuchRun { .. }) if !dry_run => Ok(()),
            removed => removed.map_err(SkipReason::Failed),
        }
    }

    /// Fails if it is known, without trying, that a removal would fail.
    async fn check_removable(&self, run: &SealedRun) -> Result<()> {
        let context = self.context();
        if run.seal.container.is_some() {
            context.refuse_out_of_reach(&run.run, &run.seal).await?;
        }
        // A removal waits for this manager's monitor, so its lock is no obstacle.
        if context.entries().contains_key(&run.run) {
            return Ok(());
        }
        let run = run.run.clone();
        let check = move |root: &Root| match root.is_owned(&run)? {
            true => Err(Error::Owned {
                path: root.lock_path(&run),
                run,
            }),
            false => Ok(()),
        };
        context.on_disk("check", check).await
    }
}

/// Returns the bytes of the files in a directory. Unreadable files count as 0.
fn dir_bytes(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // Symbolic links are not followed.
        bytes += match entry.metadata() {
            Ok(file) if file.is_dir() => dir_bytes(&entry.path()),
            Ok(file) => file.len(),
            Err(_) => 0,
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_beyond_any_limit_is_selected() {
        let hour = Duration::from_secs(3600);
        let none = PruneOptions::new();
        for (options, age, runs, bytes, selected) in [
            (none, hour, 9, 900, false),
            (none.older_than(hour), hour, 9, 900, false),
            (none.older_than(hour), hour + hour, 9, 900, true),
            (none.keep(3), hour, 3, 900, false),
            (none.keep(3), hour, 4, 900, true),
            (none.max_bytes(100), hour, 9, 100, false),
            (none.max_bytes(100), hour, 9, 101, true),
            (none.keep(3).max_bytes(100), hour, 4, 100, true),
            (none.keep(3).older_than(hour), hour + hour, 1, 0, true),
        ] {
            assert_eq!(
                options.selects(age, runs, bytes),
                selected,
                "{options:?} {age:?} {runs} {bytes}"
            );
        }
    }
}

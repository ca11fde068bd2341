//! Removing old runs.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::outcome::Seal;
use crate::root::RunInfo;
use crate::spec::RunId;
use crate::timestamp::Timestamp;

/// Which runs are old: those that are past any of the bounds. Without a bound, none.
///
/// Only sealed runs are ever removed, and none that a live process owns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PruneOptions {
    older_than: Option<Duration>,
    keep: Option<usize>,
    max_bytes: Option<u64>,
    dry_run: bool,
}

impl PruneOptions {
    /// Without a bound.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those that were sealed longer ago than this.
    pub fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Those beyond so many, the ones that were sealed last being kept. Runs that are not sealed do
    /// not count.
    pub fn keep(mut self, runs: usize) -> Self {
        self.keep = Some(runs);
        self
    }

    /// The oldest, until the files of all runs of the root, sealed or not, have at most so many
    /// bytes.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Whether to say only what would be removed. Default: no. What cannot be known without trying,
    /// as whether the engine removes a container, is taken to go well.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }
}

/// What a [`Manager::prune`] has done.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct PruneReport {
    /// The runs that were removed, or would be, oldest first, and the bytes that their files had.
    pub removed: Vec<(RunId, u64)>,
    /// The runs that were kept, and why.
    pub kept: Vec<(RunId, SkipReason)>,
    /// The bytes that the files of the runs that are left have.
    pub bytes_left: u64,
}

/// Why a run was not removed.
#[derive(Debug)]
#[non_exhaustive]
pub enum SkipReason {
    /// It is within all bounds.
    Recent,
    /// Its audit file is not sealed: it may still run, or wait for its recovery.
    NotSealed,
    /// There is a problem with its files, which a human has to look after.
    Damaged(String),
    /// Its removal failed: another process is at it, say, or the engine does not answer.
    Failed(Error),
}

/// A run that may be removed.
struct Old {
    run: RunId,
    seal: Seal,
    bytes: u64,
}

impl Manager {
    /// Removes old runs, as [`remove`](Self::remove) does it: the folder with the audit file, and
    /// the container, where that was kept. A run whose removal fails is kept, and the others are
    /// removed all the same.
    ///
    /// Cancel-safe: each run is there, or is gone.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the root cannot be read.
    pub async fn prune(&self, bounds: PruneOptions) -> Result<PruneReport> {
        let looked = self.context().on_disk("list", |root| {
            let sized = |info: RunInfo| (size(&root.dir(&info.run)), info);
            Ok(root.list()?.into_iter().map(sized).collect::<Vec<_>>())
        });
        let mut pruned = PruneReport::default();
        let mut sealed = Vec::new();
        for (bytes, info) in looked.await? {
            pruned.bytes_left += bytes;
            match (info.problem, info.seal) {
                (Some(problem), _) => pruned.kept.push((info.run, SkipReason::Damaged(problem))),
                (None, None) => pruned.kept.push((info.run, SkipReason::NotSealed)),
                (None, Some(seal)) => sealed.push(Old {
                    run: info.run,
                    seal,
                    bytes,
                }),
            }
        }
        sealed.sort_by(|a, b| (a.seal.ts, &a.run).cmp(&(b.seal.ts, &b.run)));
        let now = Timestamp::now();
        let mut left = sealed.len();
        for old in sealed {
            let aged = |age| now.since(old.seal.ts) > age;
            let is_old = bounds.older_than.is_some_and(aged)
                || bounds.keep.is_some_and(|keep| left > keep)
                || bounds
                    .max_bytes
                    .is_some_and(|most| pruned.bytes_left > most);
            let removed = match is_old {
                false => Err(SkipReason::Recent),
                true if bounds.dry_run => self.may_go(&old).await.map_err(SkipReason::Failed),
                true => match self.remove(&old.run).await {
                    // Someone else was faster.
                    Err(Error::NoSuchRun { .. }) => Ok(()),
                    removed => removed.map_err(SkipReason::Failed),
                },
            };
            match removed {
                Ok(()) => {
                    left -= 1;
                    pruned.bytes_left = pruned.bytes_left.saturating_sub(old.bytes);
                    pruned.removed.push((old.run, old.bytes));
                }
                Err(kept) => pruned.kept.push((old.run, kept)),
            }
        }
        Ok(pruned)
    }

    /// Whether a removal would be refused, as far as this can be told without one.
    async fn may_go(&self, old: &Old) -> Result<()> {
        let context = self.context();
        if old.seal.container.is_some() {
            self.refuse_out_of_reach(&old.run, &old.seal).await?;
        }
        // Its own monitor is waited for.
        if context.entries().contains_key(&old.run) {
            return Ok(());
        }
        let run = old.run.clone();
        let look = move |root: &crate::root::Root| match root.is_owned(&run)? {
            true => Err(Error::Owned {
                path: root.lock_path(&run),
                run,
            }),
            false => Ok(()),
        };
        context.on_disk("look at", look).await
    }
}

/// The bytes that the files in a run's folder have: what cannot be read counts for nothing.
fn size(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // Of a link, that is the link.
        bytes += match entry.metadata() {
            Ok(file) if file.is_dir() => size(&entry.path()),
            Ok(file) => file.len(),
            Err(_) => 0,
        };
    }
    bytes
}

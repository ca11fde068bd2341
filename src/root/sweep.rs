//! Removal of run directories, and of files that dead processes left.

use std::fs;
use std::io::ErrorKind;

use crate::audit::LOG_FILE;
use crate::disk;
use crate::error::{Error, Result};
use crate::root::{RemovalReason, Root};
use crate::spec::RunId;

/// The prefix of run directories that are being removed. No run id begins with it.
const REMOVED_PREFIX: &str = ".removed-";

impl Root {
    /// Removes the directory of a run that was not created.
    ///
    /// The known files are removed first, because that needs no free file descriptor. Listing the
    /// directory does.
    pub(crate) fn discard(&self, run: &RunId) -> Result<()> {
        let dir = self.dir(run);
        for name in ["run.json", "lock", LOG_FILE] {
            let _ = disk::remove_file(&dir.join(name));
        }
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(&dir),
            removed => removed,
        }
        .map_err(|error| Error::storage("remove", dir, error))
    }

    /// Removes the directory of a run.
    ///
    /// The ledger gets the removal first, and its completion last. The directory is renamed before
    /// it is removed, so no other process sees a partly removed run.
    pub(crate) fn remove(&self, run: &RunId, reason: RemovalReason) -> Result<()> {
        let file = self.read_run(run).ok().flatten();
        let created = file.map(|file| file.record.created);
        let number = self.announce_removal(run, created, reason)?;
        let unique = RunId::generate();
        let removed = self
            .path()
            .join(format!("{REMOVED_PREFIX}{run}-{number}-{unique}"));
        let dir = self.dir(run);
        disk::rename(&dir, &removed).map_err(|error| Error::storage("remove", dir, error))?;
        disk::sync_dir(self.path())?;
        match disk::remove_dir(&removed) {
            // Another process has swept the renamed directory.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.map_err(|error| Error::storage("remove", removed, error))?,
        }
        if let Err(error) = self.record_removal(run, number) {
            // The announcement explains the missing directory.
            tracing::warn!(%run, error = %error.chain(), "the end of a removal is not recorded");
        }
        Ok(())
    }

    /// Removes temporary files of dead processes from a run's directory.
    ///
    /// The run must be sealed, or about to be sealed. A stop request that another process is
    /// writing meanwhile is lost, because the run has ended.
    pub(crate) fn sweep_run(&self, run: &RunId) {
        disk::remove_temporary(
            &self.dir(run),
            &["run.json.", "stop-", "note-", "logs.jsonl.sig."],
        );
    }

    /// Removes temporary files and partly removed runs of dead processes.
    pub(crate) fn sweep(&self) {
        disk::remove_temporary(self.path(), &["root.json.", ".root.json."]);
        self.sweep_groups();
        for entry in fs::read_dir(self.path()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !name.starts_with(REMOVED_PREFIX) {
                continue;
            }
            let Some((run, number)) = announcement(&name) else {
                // The name was not given by this version.
                let _ = fs::remove_dir_all(entry.path());
                continue;
            };
            // Otherwise the directory was renamed by something else, and is evidence.
            if matches!(self.is_announced(&run, number), Ok(true))
                && fs::remove_dir_all(entry.path()).is_ok()
            {
                let _ = self.record_removal(&run, number);
            }
        }
    }
}

/// Returns the run of a directory that is being removed, and the number of the line that announces
/// the removal, from the directory's name.
fn announcement(name: &str) -> Option<(RunId, u64)> {
    let (rest, _) = name.strip_prefix(REMOVED_PREFIX)?.rsplit_once('-')?;
    let (run, number) = rest.rsplit_once('-')?;
    Some((RunId::new(run).ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    /// Every manager that opens the root sweeps it, while other processes remove runs.
    #[test]
    fn a_concurrent_sweep_does_not_fail_a_removal() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        let run = RunId::generate();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    root.sweep();
                }
            });
            let removed: Vec<_> = (0..100)
                .map(|_| {
                    disk::create_dir(&root.dir(&run)).unwrap();
                    fs::write(root.audit(&run), "").unwrap();
                    root.remove(&run, RemovalReason::Removed)
                })
                .collect();
            done.store(true, Ordering::Relaxed);
            for result in removed {
                result.unwrap();
            }
        });
    }
}

//! Persistence of a run's directory and its `run.json`.
//!
//! Methods take `&mut self` because a [`Monitor`] is not `Sync`, and their futures
//! must be `Send`.

use std::io::ErrorKind;

use crate::disk;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::monitor::context::Context;
use crate::outcome::Ending;
use crate::root::RunFile;
use crate::spec::RunRecord;

/// Records the ending of a run that cannot be sealed yet.
///
/// The container may be gone by the time of the seal, and other processes wait
/// for the ending.
pub(super) async fn persist_ending(context: &Context, file: &mut RunFile, ending: &Ending) {
    if file.ending.is_some() {
        return;
    }
    file.ending = Some(ending.clone());
    if write(context, file).await.is_err() {
        file.ending = None;
    }
}

/// Writes `run.json`.
pub(super) async fn write(context: &Context, file: &RunFile) -> Result<()> {
    let file = file.clone();
    context
        .on_disk("record a run in", move |root| root.write_run(&file))
        .await
}

impl Monitor {
    /// Creates the directory of a new run, and locks it.
    ///
    /// # Errors
    ///
    /// [`Error::RunExists`] if the directory exists. Otherwise no directory is
    /// left after an error, unless another process owns it.
    pub(super) async fn create_run_dir(&mut self) -> Result<()> {
        let place = self.place.clone();
        let lock = self
            .context
            .on_disk("create a run in", move |root| {
                match disk::create_dir(&place.dir) {
                    Err(error) if error.io_kind() == Some(ErrorKind::AlreadyExists) => {
                        return Err(Error::RunExists {
                            run: place.run,
                            path: place.dir,
                        });
                    }
                    other => other?,
                }
                root.lock(&place.run).inspect_err(|error| {
                    // A concurrent scan may have claimed the directory before
                    // the lock was taken.
                    if !matches!(error, Error::Owned { .. }) {
                        let _ = root.discard(&place.run);
                    }
                })
            })
            .await?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Removes the directory of a run that was never requested from the engine.
    pub(super) async fn discard_run_dir(&mut self) {
        let run = self.place.run.clone();
        let _ = self
            .context
            .on_disk("remove a run from", move |root| root.discard(&run))
            .await;
    }

    /// Creates the directory of the run again if it was removed externally.
    pub(super) async fn restore_run_dir(&mut self, file: &RunFile) -> Result<()> {
        let file = file.clone();
        let lock = self
            .context
            .on_disk("restore a run in", move |root| {
                let run = &file.record.run;
                if root.has(run) {
                    return Ok(None);
                }
                disk::create_dir(&root.dir(run))?;
                let lock = root.lock(run)?;
                root.write_run(&file)?;
                Ok(Some(lock))
            })
            .await?;
        if lock.is_some() {
            self.lock = lock;
        }
        Ok(())
    }

    /// Writes `run.json`.
    pub(super) async fn write_run_file(&mut self, file: &RunFile) -> Result<()> {
        write(&self.context, file).await
    }

    /// Writes `run.json`, or logs a warning if it cannot be written now.
    pub(super) async fn persist_run_file(&mut self, file: &RunFile) {
        let written = self.write_run_file(file).await;
        self.warn_if_stale(written);
    }

    /// Writes the begin of the run to the ledger.
    pub(super) async fn record_begun(&mut self, record: &RunRecord) -> Result<()> {
        let record = record.clone();
        let recorded = self
            .context
            .on_disk("record the begin of a run in", move |root| {
                root.record_begun(&record)
            })
            .await;
        self.begun_recorded = recorded.is_ok();
        recorded
    }

    /// Writes the seal to the ledger and to `run.json`, and removes temporary files and requests.
    ///
    /// The audit file holds the seal too, and takes precedence: after an error
    /// the next opening of the root writes `run.json` from it.
    pub(super) async fn persist_seal(&mut self, file: &RunFile) {
        let sealed = RunFile {
            ending_if_missing: None,
            ..file.clone()
        };
        let recovered = !self.begun_recorded;
        let path = self.context.sink.path(&self.place);
        let is_in_root = path == Some(self.context.root.audit(&self.place.run));
        let written = self
            .context
            .on_disk("record a seal in", move |root| {
                root.sweep_run(&sealed.record.run);
                if let Some(seal) = &sealed.seal {
                    let mut seal = seal.clone();
                    if !is_in_root {
                        // No file in the root has this digest.
                        seal.sha256.clear();
                    }
                    root.record_seal(&sealed.record, &seal, recovered)?;
                }
                root.write_run(&sealed)
            })
            .await;
        self.warn_if_stale(written);
    }

    fn warn_if_stale(&self, written: Result<()>) {
        if let Err(error) = written {
            tracing::warn!(run = %self.place.run, error = %error.chain(), "run.json is stale");
        }
    }
}

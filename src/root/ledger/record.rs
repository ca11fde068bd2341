//! The steps of runs that are recorded in the ledger.

use std::env;
use std::process;

use crate::disk;
use crate::error::Result;
use crate::outcome::Seal;
use crate::root::Root;
use crate::root::ledger::history::{Scan, missing_entries};
use crate::root::ledger::line::{LedgerEntry, RemovalReason, Remover};
use crate::spec::{RunId, RunRecord};
use crate::timestamp::Timestamp;

impl Remover {
    /// This process.
    fn this_process() -> Self {
        let program = env::current_exe().ok();
        let program = program.and_then(|path| Some(path.file_name()?.to_string_lossy().into()));
        Self {
            pid: process::id(),
            uid: disk::user_id(),
            program,
        }
    }
}

impl Root {
    /// Records the begin of a run.
    ///
    /// The line is in the ledger before the engine is asked for anything. It is not synced: a power
    /// loss can take it from a run that is not sealed, whose recovery then records it late.
    pub(crate) fn record_begun(&self, record: &RunRecord) -> Result<()> {
        let begun = LedgerEntry::begun(record, false);
        self.ledger.append(|_| Ok(vec![begun])).map(drop)
    }

    /// Records the seal of a run, and syncs the ledger.
    ///
    /// This precedes the copy of the seal in `run.json`, without which the next opening of the root
    /// recovers the run. `recovered` is true if another process may have recorded steps of the run.
    /// The digest of `seal` is empty if the audit file is not in the root.
    pub(crate) fn record_seal(
        &self,
        record: &RunRecord,
        seal: &Seal,
        recovered: bool,
    ) -> Result<()> {
        let execs = self.sealed_execs(&record.run);
        let appended = self.ledger.append(|ledger| {
            if !recovered && execs.is_empty() {
                return Ok(vec![LedgerEntry::sealed(&record.run, seal)]);
            }
            // The line of an exec is missing if it could not be written.
            let history = ledger.scan().history(&record.run, record.created)?;
            Ok(missing_entries(&history, record, seal, &execs))
        })?;
        self.ledger.sync(&appended)
    }

    /// Records the seal of an exec. The seal of its run syncs the ledger.
    pub(crate) fn record_exec_seal(&self, run: &RunId, exec: u32, seal: &Seal) -> Result<()> {
        let sealed = LedgerEntry::ExecSealed {
            run: run.clone(),
            exec,
            sha256: seal.sha256.clone(),
        };
        self.ledger.append(|_| Ok(vec![sealed])).map(drop)
    }

    /// Announces the removal of a run, and syncs the ledger. Returns the number of the line.
    pub(in crate::root) fn announce_removal(
        &self,
        run: &RunId,
        created: Option<Timestamp>,
        reason: RemovalReason,
    ) -> Result<u64> {
        let removing = LedgerEntry::Removing {
            run: run.clone(),
            created,
            reason,
            by: Remover::this_process(),
        };
        let appended = self.ledger.append(|_| Ok(vec![removing]))?;
        self.ledger.sync(&appended)?;
        Ok(appended.number)
    }

    /// Records that the removal which line `number` announced is complete.
    pub(in crate::root) fn record_removal(&self, run: &RunId, number: u64) -> Result<()> {
        let recorded = self.ledger.append(|ledger| {
            let pending = ledger.scan().pending_removal(run, number)?;
            // Another process that has swept the directory may have recorded it.
            let removed = |created| LedgerEntry::Removed {
                run: run.clone(),
                created,
            };
            Ok(pending.map(removed).into_iter().collect())
        });
        self.ledger.reserve_space();
        recorded.map(drop)
    }

    /// Returns true if line `number` announces the removal of the run.
    pub(in crate::root) fn is_announced(&self, run: &RunId, number: u64) -> Result<bool> {
        let Some((file, length)) = self.open_ledger()? else {
            return Ok(false);
        };
        let announced = Scan::new(&file, length).announces_removal(run, number);
        announced.map_err(|error| self.ledger_error("read", error))
    }

    /// Waits until this process has appended lines to the ledger since the last wait.
    #[cfg(feature = "sign")]
    pub(crate) async fn ledger_changed(&self) {
        self.ledger.changed.notified().await;
    }

    /// Returns the execs of a run with a sealed audit file, and the digests of their seals.
    fn sealed_execs(&self, run: &RunId) -> Vec<(u32, String)> {
        let execs = self.execs(run).unwrap_or_default();
        let sealed = execs.into_iter();
        sealed
            .filter_map(|exec| Some((exec.number, exec.seal?.sha256)))
            .collect()
    }
}

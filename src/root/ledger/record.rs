//! The steps of runs that are recorded in the ledger.

use std::env;
use std::process;

use crate::disk;
use crate::error::Result;
use crate::outcome::Seal;
use crate::root::Root;
use crate::root::ledger::history::recorded_late;
use crate::root::ledger::line::{LedgerEntry, RemovalReason, Remover};
use crate::spec::{RunId, RunRecord};

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
        self.ledger.append(|_| Ok(vec![begun]))
    }

    /// Records the seal of a run, and syncs the ledger.
    ///
    /// This precedes the copy of the seal in `run.json`, without which the next opening of the root
    /// recovers the run. `recovered` is true if another process may have recorded steps of the run.
    pub(crate) fn record_seal(
        &self,
        record: &RunRecord,
        seal: &Seal,
        recovered: bool,
    ) -> Result<()> {
        let execs = match recovered {
            true => self.sealed_execs(&record.run),
            false => Vec::new(),
        };
        self.ledger.append(|ledger| match recovered {
            true => recorded_late(ledger.scan(0), record, seal, &execs),
            false => Ok(vec![LedgerEntry::sealed(&record.run, seal)]),
        })?;
        self.ledger.sync()
    }

    /// Records the seal of an exec. The seal of its run syncs the ledger.
    pub(crate) fn record_exec_seal(&self, run: &RunId, exec: u32, seal: &Seal) -> Result<()> {
        let sealed = LedgerEntry::ExecSealed {
            run: run.clone(),
            exec,
            sha256: seal.sha256.clone(),
        };
        self.ledger.append(|_| Ok(vec![sealed]))
    }

    /// Records the removal of a run, whose directory has been renamed, and syncs the ledger.
    ///
    /// `since` is the length of the ledger before the rename. Another process that has seen the
    /// renamed directory may have recorded the removal since then.
    pub(in crate::root) fn record_removal(
        &self,
        run: &RunId,
        reason: RemovalReason,
        since: u64,
    ) -> Result<()> {
        let removed = LedgerEntry::Removed {
            run: run.clone(),
            reason,
            by: Remover::this_process(),
        };
        self.ledger.append(|ledger| {
            let recorded = ledger.scan(since).ends_in_removal(run)?;
            Ok(if recorded { Vec::new() } else { vec![removed] })
        })?;
        self.ledger.sync()
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

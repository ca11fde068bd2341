//! The lines of one run, read from the end of a ledger.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use memchr::memmem;

use crate::error::Result;
use crate::outcome::Seal;
use crate::root::Root;
use crate::root::ledger::end::Backward;
use crate::root::ledger::line::{LedgerEntry, LedgerLine};
use crate::spec::{RunId, RunRecord};

/// The lines of a ledger from some offset on, from the last to the first.
pub(super) struct Scan<'a> {
    lines: Backward<'a>,
}

/// The steps of a run that a ledger has, since the last begin of a run with this id.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RunHistory {
    begun: bool,
    /// The digest of the seal.
    pub(crate) sealed: Option<String>,
    /// The digests of the seals of execs.
    pub(crate) execs: BTreeMap<u32, String>,
    /// The lines, from the last to the first.
    lines: Vec<Vec<u8>>,
}

impl RunHistory {
    /// Returns the lines, in order.
    pub(crate) fn text(&self) -> Vec<u8> {
        self.lines.iter().rev().flatten().copied().collect()
    }
}

impl<'a> Scan<'a> {
    pub(super) fn new(file: &'a File, since: u64, length: u64) -> Self {
        Self {
            lines: Backward::new(file, since, length),
        }
    }

    /// Passes the entries of a run to `visit`, from the last on, until it returns false.
    fn entries_of(
        mut self,
        run: &RunId,
        mut visit: impl FnMut(LedgerEntry, &[u8]) -> bool,
    ) -> io::Result<()> {
        let key = format!("\"run\":\"{run}\"");
        let finder = memmem::Finder::new(&key);
        while let Some(line) = self.lines.next()? {
            if finder.find(line.bytes).is_none() {
                continue;
            }
            let Ok(parsed) = LedgerLine::parse(line.bytes) else {
                continue;
            };
            if parsed.entry.run() == Some(run) && !visit(parsed.entry, line.bytes) {
                break;
            }
        }
        Ok(())
    }

    /// Returns true if the last entry of a run is its removal.
    pub(super) fn ends_in_removal(self, run: &RunId) -> io::Result<bool> {
        let mut removed = false;
        self.entries_of(run, |entry, _| {
            removed = matches!(entry, LedgerEntry::Removed { .. });
            false
        })?;
        Ok(removed)
    }

    /// Returns the steps of a run since its last begin.
    pub(super) fn history(self, run: &RunId) -> io::Result<RunHistory> {
        let mut history = RunHistory::default();
        self.entries_of(run, |entry, line| {
            match entry {
                // An earlier run with this id.
                LedgerEntry::Removed { .. } => return false,
                LedgerEntry::Begun(_) => history.begun = true,
                LedgerEntry::Sealed(sealed) => {
                    history.sealed.get_or_insert(sealed.sha256);
                }
                LedgerEntry::ExecSealed { exec, sha256, .. } => {
                    history.execs.entry(exec).or_insert(sha256);
                }
                _ => {}
            }
            history.lines.push(line.to_vec());
            !history.begun
        })?;
        Ok(history)
    }
}

impl Root {
    /// Returns the steps of a run that the ledger has, since its last begin.
    pub(crate) fn run_history(&self, run: &RunId) -> Result<RunHistory> {
        let Some((file, length)) = self.open_ledger()? else {
            return Ok(RunHistory::default());
        };
        let history = Scan::new(&file, 0, length).history(run);
        history.map_err(|error| self.ledger_error("read", error))
    }
}

/// Returns the entries of a recovered run that the ledger lacks.
///
/// `execs` are the execs with a sealed audit file, and the digests of their seals.
pub(super) fn recorded_late(
    scan: Scan<'_>,
    record: &RunRecord,
    seal: &Seal,
    execs: &[(u32, String)],
) -> io::Result<Vec<LedgerEntry>> {
    let history = scan.history(&record.run)?;
    let mut entries = Vec::new();
    if !history.begun {
        entries.push(LedgerEntry::begun(record, true));
    }
    for (exec, sha256) in execs {
        if !history.execs.contains_key(exec) {
            entries.push(LedgerEntry::ExecSealed {
                run: record.run.clone(),
                exec: *exec,
                sha256: sha256.clone(),
            });
        }
    }
    // Another digest stays: the file was replaced, which a verification reports.
    if history.sealed.is_none() {
        entries.push(LedgerEntry::sealed(&record.run, seal));
    }
    Ok(entries)
}

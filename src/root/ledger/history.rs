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
use crate::timestamp::Timestamp;

/// The lines of a ledger, from the last to the first.
pub(super) struct Scan<'a> {
    lines: Backward<'a>,
}

/// The steps of a run that a ledger has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RunHistory {
    begun: bool,
    /// The digest of the seal.
    pub(crate) sealed: Option<String>,
    /// The digests of the seals of execs.
    pub(crate) execs: BTreeMap<u32, String>,
    /// True if the run was removed, or is about to be.
    removed: bool,
    /// The lines, from the last to the first.
    lines: Vec<Vec<u8>>,
}

impl RunHistory {
    /// Returns the lines, in order.
    pub(crate) fn text(&self) -> Vec<u8> {
        self.lines.iter().rev().flatten().copied().collect()
    }
}

/// Returns true if a removal concerns the run that was requested at `created`.
///
/// A removal without a time concerns the run that had the id then.
pub(super) fn is_same(removed: Option<Timestamp>, created: Option<Timestamp>) -> bool {
    removed.is_none() || created.is_none() || removed == created
}

impl<'a> Scan<'a> {
    pub(super) fn new(file: &'a File, length: u64) -> Self {
        Self {
            lines: Backward::new(file, 0, length),
        }
    }

    /// Passes the lines of a run to `visit`, from the last on, until it returns false.
    fn lines_of(
        mut self,
        run: &RunId,
        mut visit: impl FnMut(LedgerLine, &[u8]) -> bool,
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
            if parsed.entry.run() == Some(run) && !visit(parsed, line.bytes) {
                break;
            }
        }
        Ok(())
    }

    /// Returns true if line `number` announces the removal of the run.
    pub(super) fn announces_removal(self, run: &RunId, number: u64) -> io::Result<bool> {
        let mut announced = false;
        self.lines_of(run, |line, _| {
            let is_removing = matches!(line.entry, LedgerEntry::Removing { .. });
            announced |= line.number == number && is_removing;
            line.number > number
        })?;
        Ok(announced)
    }

    /// Returns the time of the run whose removal line `number` announces.
    ///
    /// Returns `None` if that line does not announce a removal of the run, or if a later line says
    /// that the run was removed.
    pub(super) fn pending_removal(
        self,
        run: &RunId,
        number: u64,
    ) -> io::Result<Option<Option<Timestamp>>> {
        let mut pending = None;
        let mut removed = Vec::new();
        self.lines_of(run, |line, _| {
            match line.entry {
                LedgerEntry::Removed { created, .. } => removed.push(created),
                LedgerEntry::Removing { created, .. } if line.number == number => {
                    pending = (!removed.contains(&created)).then_some(created);
                }
                _ => {}
            }
            line.number > number
        })?;
        Ok(pending)
    }

    /// Returns the steps of a run that was requested at `created`.
    pub(super) fn history(self, run: &RunId, created: Timestamp) -> io::Result<RunHistory> {
        let mut history = RunHistory::default();
        self.lines_of(run, |line, bytes| {
            match line.entry {
                LedgerEntry::Begun(begun) => {
                    history.begun = begun.created == created;
                    if !history.begun {
                        // The lines after it are those of another run with this id.
                        history = RunHistory::default();
                        return false;
                    }
                }
                LedgerEntry::Removing { created: of, .. }
                | LedgerEntry::Removed { created: of, .. } => {
                    history.removed |= is_same(of, Some(created));
                    return true;
                }
                LedgerEntry::Sealed(sealed) => {
                    // The first one counts.
                    history.sealed = Some(sealed.sha256);
                }
                LedgerEntry::ExecSealed { exec, sha256, .. } => {
                    history.execs.insert(exec, sha256);
                }
                _ => {}
            }
            history.lines.push(bytes.to_vec());
            !history.begun
        })?;
        Ok(history)
    }
}

impl Root {
    /// Returns the steps that the ledger has of a run that was requested at `created`.
    pub(crate) fn run_history(&self, run: &RunId, created: Timestamp) -> Result<RunHistory> {
        let Some((file, length)) = self.open_ledger()? else {
            return Ok(RunHistory::default());
        };
        let history = Scan::new(&file, length).history(run, created);
        history.map_err(|error| self.ledger_error("read", error))
    }
}

/// Returns the entries of a sealed run that the ledger lacks.
///
/// `execs` are the execs with a sealed audit file, and the digests of their seals.
pub(super) fn missing_entries(
    history: &RunHistory,
    record: &RunRecord,
    seal: &Seal,
    execs: &[(u32, String)],
) -> Vec<LedgerEntry> {
    let mut entries = Vec::new();
    if history.removed {
        // A backup of a removed run. A verification reports it.
        return entries;
    }
    if history.sealed.is_some() {
        // Another digest stays: the file was replaced, which a verification reports. An exec that
        // has no line by now may have been added.
        return entries;
    }
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
    entries.push(LedgerEntry::sealed(&record.run, seal));
    entries
}

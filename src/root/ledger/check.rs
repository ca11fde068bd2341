//! The comparison of a root with its ledger.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::root::Root;
use crate::root::ledger::compare::Compared;
use crate::root::ledger::finding::{Finding, FindingKind, RootVerification, VerifyOptions};
use crate::root::ledger::head::Head;
use crate::root::ledger::history::is_same;
use crate::root::ledger::line::{LedgerEntry, RunSealed};
#[cfg(feature = "sign")]
use crate::root::ledger::signed_head::VerifiedHead;
use crate::spec::RunId;
use crate::timestamp::Timestamp;

/// The number of times that a run in use is compared again.
const RECHECKS: usize = 5;

/// The steps of a run in the ledger, since its begin.
#[derive(Debug, Default, PartialEq)]
pub(super) struct RunSteps {
    pub(super) created: Option<Timestamp>,
    pub(super) late: bool,
    pub(super) sealed: Option<RunSealed>,
    pub(super) execs: BTreeMap<u32, String>,
    /// The removal of the run was announced.
    pub(super) removing: bool,
    pub(super) removed: bool,
}

/// The contents of a ledger.
#[derive(Default)]
pub(super) struct Contents {
    /// False if the file does not exist.
    pub(super) exists: bool,
    /// The last run of each id.
    pub(super) runs: BTreeMap<RunId, RunSteps>,
    lines: u64,
    torn: u64,
    findings: Vec<Finding>,
}

impl Contents {
    fn add(&mut self, entry: LedgerEntry) {
        match entry {
            LedgerEntry::Begun(begun) => {
                let steps = RunSteps {
                    created: Some(begun.created),
                    late: begun.late,
                    ..RunSteps::default()
                };
                let earlier = self.runs.insert(begun.run.clone(), steps);
                if let Some(earlier) = earlier.filter(|earlier| !earlier.removing) {
                    let created = earlier.created.map(|ts| format!(" of {ts}"));
                    let detail = format!(
                        "no removal is recorded of the run{}; a later run has its id",
                        created.unwrap_or_default()
                    );
                    let finding = Finding::of_run(&begun.run, FindingKind::Removed, detail);
                    self.findings.push(finding);
                }
            }
            LedgerEntry::Sealed(sealed) => {
                let steps = self.runs.entry(sealed.run.clone()).or_default();
                steps.sealed.get_or_insert(sealed);
            }
            LedgerEntry::ExecSealed { run, exec, sha256 } => {
                let execs = &mut self.runs.entry(run).or_default().execs;
                execs.entry(exec).or_insert(sha256);
            }
            LedgerEntry::Removing { run, created, .. } => {
                if let Some(steps) = self.removed_run(run, created) {
                    steps.removing = true;
                }
            }
            LedgerEntry::Removed { run, created } => {
                if let Some(steps) = self.removed_run(run, created) {
                    steps.removed = true;
                }
            }
            LedgerEntry::Created { .. } | LedgerEntry::Resumed { .. } | LedgerEntry::Unknown(_) => {
            }
        }
    }

    /// Returns the run that a removal concerns, or `None` if a later run has the id.
    fn removed_run(&mut self, run: RunId, created: Option<Timestamp>) -> Option<&mut RunSteps> {
        let steps = self.runs.entry(run).or_insert_with(|| RunSteps {
            created,
            ..RunSteps::default()
        });
        is_same(created, steps.created).then_some(steps)
    }
}

impl Root {
    /// Compares all runs of the root with the ledger, and verifies their audit files.
    ///
    /// Every run and exec whose files were removed, added, replaced, re-dated or damaged by
    /// anything but moat is a [`Finding`] that names it. So is each change of the ledger itself.
    /// `docs/trust.md` lists the exceptions, most of which a kept [`Head`] reveals. Pass such a head
    /// in the options.
    ///
    /// The root may be in use. Runs that a live process owns may be ahead of the ledger.
    ///
    /// The call blocks, and reads all audit files.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`](crate::Error::Storage) if the root or the ledger cannot be read. Damage is a
    /// finding, not an error.
    pub fn verify_all(&self, options: &VerifyOptions) -> Result<RootVerification> {
        let mut runs: BTreeSet<RunId> = self.runs()?.into_iter().collect();
        let present = runs.len();
        let contents = self.read_contents(options)?;
        let mut result = RootVerification {
            lines: contents.lines,
            torn: contents.torn,
            runs: present,
            sealed: 0,
            findings: Vec::new(),
        };
        runs.extend(contents.runs.keys().cloned());
        let mut suspects = Vec::new();
        for run in &runs {
            let compared = self.compare(run, &contents, options)?;
            if compared.findings.is_empty() {
                result.sealed += usize::from(compared.sealed);
            } else {
                suspects.push(run);
            }
        }
        result.findings.extend(contents.findings);
        self.compare_again(suspects, options, &mut result)?;
        // All runs of a root without a ledger have the same finding.
        result.findings.dedup();
        Ok(result)
    }

    /// Compares runs again that other processes may have begun, sealed or removed meanwhile.
    fn compare_again(
        &self,
        mut suspects: Vec<&RunId>,
        options: &VerifyOptions,
        result: &mut RootVerification,
    ) -> Result<()> {
        for _ in 0..RECHECKS {
            if suspects.is_empty() {
                break;
            }
            let before = self.read_contents(&VerifyOptions::new())?;
            let compare = |run| Ok((run, self.compare(run, &before, options)?));
            let compared: Vec<_> = suspects.drain(..).map(compare).collect::<Result<_>>()?;
            let after = self.read_contents(&VerifyOptions::new())?;
            for (run, compared) in compared {
                // Otherwise the files may be older or newer than the lines.
                if before.runs.get(run) == after.runs.get(run) {
                    result.sealed += usize::from(compared.sealed);
                    result.findings.extend(compared.findings);
                } else {
                    suspects.push(run);
                }
            }
        }
        Ok(())
    }

    fn read_contents(&self, options: &VerifyOptions) -> Result<Contents> {
        let mut contents = Contents::default();
        let mut digests = BTreeMap::new();
        // Read first: the ledger only grows.
        let heads = self.heads(options, &mut contents.findings)?;
        if let Some((mut walk, torn)) = self.walk_ledger()? {
            contents.exists = true;
            contents.torn = torn;
            let wanted: BTreeSet<_> = heads.iter().map(|head| head.number).collect();
            let failed = |error| self.ledger_error("read", error);
            while let Some(step) = walk.next().map_err(failed)? {
                contents.lines = step.position;
                if let Some(reason) = step.broken {
                    let finding = Finding::of_ledger(FindingKind::LedgerChanged, reason);
                    contents.findings.push(finding);
                }
                let end = walk.end();
                if wanted.contains(&end.number) {
                    digests.insert(end.number, end.digest.clone());
                }
                if let Some(line) = step.line {
                    contents.add(line.entry);
                }
            }
        }
        for head in &heads {
            contents.findings.extend(self.compare_head(head, &digests));
        }
        Ok(contents)
    }

    /// Returns the kept heads and the signed one.
    fn heads(&self, options: &VerifyOptions, findings: &mut Vec<Finding>) -> Result<Vec<Head>> {
        #[cfg_attr(not(feature = "sign"), expect(unused_mut))]
        let mut heads = options.heads.clone();
        #[cfg(feature = "sign")]
        if let Some(allowed) = &options.allowed {
            match self.verify_head(allowed)? {
                Some(VerifiedHead::Signed(head)) => heads.push(head),
                Some(VerifiedHead::Refused(finding)) => findings.push(finding),
                None => {}
            }
        }
        #[cfg(not(feature = "sign"))]
        let _ = findings;
        Ok(heads)
    }

    fn compare_head(&self, head: &Head, digests: &BTreeMap<u64, String>) -> Option<Finding> {
        let number = head.number;
        let (kind, detail) = match digests.get(&number) {
            _ if head.root != *self.id() => {
                let detail = format!("the kept head belongs to root {}", head.root);
                (FindingKind::LedgerChanged, detail)
            }
            Some(digest) if *digest == head.sha256 => return None,
            Some(_) => {
                let detail = format!(
                    "line {number} differs from the kept head: it or a line before it was changed"
                );
                (FindingKind::LedgerChanged, detail)
            }
            None => {
                let detail = format!("line {number}, which the kept head names, is missing");
                (FindingKind::LedgerCut, detail)
            }
        };
        Some(Finding::of_ledger(kind, detail))
    }

    /// Compares the files of a run with the ledger.
    fn compare(
        &self,
        run: &RunId,
        contents: &Contents,
        options: &VerifyOptions,
    ) -> Result<Compared> {
        let steps = contents.runs.get(run);
        if self.has(run) {
            return self.compare_files(run, steps, contents.exists, options);
        }
        if steps.is_none_or(|steps| steps.removing) {
            return Ok(Compared::default());
        }
        let detail = "its directory is missing, and no removal is recorded";
        Ok(Compared::from(Finding::of_run(
            run,
            FindingKind::Removed,
            detail,
        )))
    }
}

//! The comparison of a root with its ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use crate::audit::{LogState, Verification};
use crate::error::{Error, Result};
use crate::root::Root;
use crate::root::ledger::finding::{Finding, FindingKind, RootVerification, VerifyOptions};
use crate::root::ledger::head::Head;
use crate::root::ledger::line::{LedgerEntry, RunSealed};
use crate::root::ledger::reader::Walk;
use crate::root::sweep::is_removal_of;
use crate::spec::RunId;
use crate::timestamp::Timestamp;

/// The steps of a run in the ledger, since its last begin.
#[derive(Debug, Default)]
struct Recorded {
    created: Option<Timestamp>,
    late: bool,
    sealed: Option<RunSealed>,
    execs: BTreeMap<u32, String>,
    removed: bool,
}

/// The contents of a ledger.
#[derive(Default)]
struct Contents {
    /// False if the file does not exist.
    exists: bool,
    runs: BTreeMap<RunId, Recorded>,
    lines: u64,
    torn: u64,
    findings: Vec<Finding>,
}

impl Contents {
    fn add(&mut self, entry: LedgerEntry) {
        match entry {
            LedgerEntry::Begun(begun) => {
                let recorded = Recorded {
                    created: Some(begun.created),
                    late: begun.late,
                    ..Recorded::default()
                };
                let earlier = self.runs.insert(begun.run.clone(), recorded);
                if let Some(earlier) = earlier.filter(|earlier| !earlier.removed) {
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
                let recorded = self.runs.entry(sealed.run.clone()).or_default();
                recorded.sealed.get_or_insert(sealed);
            }
            LedgerEntry::ExecSealed { run, exec, sha256 } => {
                let execs = &mut self.runs.entry(run).or_default().execs;
                execs.entry(exec).or_insert(sha256);
            }
            LedgerEntry::Removed { run, .. } => {
                self.runs.entry(run).or_default().removed = true;
            }
            LedgerEntry::Created { .. } | LedgerEntry::Resumed { .. } | LedgerEntry::Unknown(_) => {
            }
        }
    }
}

impl Root {
    /// Compares all runs of the root with the ledger, and verifies their audit files.
    ///
    /// Every run and exec whose files were removed, added, replaced, re-dated or damaged by
    /// anything but moat is a [`Finding`] that names it. So is each change of the ledger itself,
    /// with two exceptions, which only a kept [`Head`] reveals: lines that were cut off its end
    /// together with the runs that they name, and a ledger that was recomputed from some line on. Pass such a head in the options.
    ///
    /// The root may be in use. Runs that a live process owns may be ahead of the ledger.
    ///
    /// The call blocks, and reads all audit files.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the root or the ledger cannot be read. Damage is a finding, not an
    /// error.
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
            result.sealed += usize::from(compared.sealed);
            if !compared.findings.is_empty() {
                suspects.push((run, compared.findings));
            }
        }
        result.findings.extend(contents.findings);
        if suspects.is_empty() {
            return Ok(result);
        }
        // Other processes may have begun, sealed or removed runs since the ledger was read.
        let contents = self.read_contents(&VerifyOptions::new())?;
        for (run, _) in suspects {
            let compared = self.compare(run, &contents, options)?;
            result.sealed += usize::from(compared.sealed && compared.findings.is_empty());
            result.findings.extend(compared.findings);
        }
        // All runs of a root without a ledger have the same finding.
        result.findings.dedup();
        Ok(result)
    }

    fn read_contents(&self, options: &VerifyOptions) -> Result<Contents> {
        let mut contents = Contents::default();
        let mut digests = BTreeMap::new();
        // Read first: the ledger only grows.
        let heads = self.heads(options, &mut contents.findings)?;
        if let Some((file, _)) = self.open_ledger()? {
            contents.exists = true;
            let wanted: BTreeSet<_> = heads.iter().map(|head| head.number).collect();
            let mut walk = Walk::new(file, self.id().clone());
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
            contents.torn = walk.torn();
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
        if let Some(allowed) = &options.allowed
            && self.head()?.is_some()
        {
            match self.verify_head(allowed)? {
                Ok(head) => heads.push(head),
                Err(finding) => findings.push(finding),
            }
        }
        #[cfg(not(feature = "sign"))]
        let _ = findings;
        Ok(heads)
    }

    fn compare_head(&self, head: &Head, digests: &BTreeMap<u64, String>) -> Option<Finding> {
        let number = head.number;
        let (kind, detail) = if head.root != *self.id() {
            let detail = format!("the kept head belongs to root {}", head.root);
            (FindingKind::LedgerChanged, detail)
        } else {
            match digests.get(&number) {
                Some(digest) if *digest == head.sha256 => return None,
                Some(_) => {
                    let detail = format!(
                        "line {number} differs from the kept head: it or a line before it was \
                         changed"
                    );
                    (FindingKind::LedgerChanged, detail)
                }
                None => {
                    let detail = format!("line {number}, which the kept head names, is missing");
                    (FindingKind::LedgerCut, detail)
                }
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
        let recorded = contents.runs.get(run);
        if self.has(run) {
            return self.compare_files(run, recorded, contents.exists, options);
        }
        let removed = recorded.is_none_or(|recorded| recorded.removed);
        if removed || self.is_being_removed(run)? {
            return Ok(Compared::default());
        }
        let detail = "its directory is missing, and no removal is recorded";
        Ok(Compared::from(Finding::of_run(
            run,
            FindingKind::Removed,
            detail,
        )))
    }

    /// Returns true if a process has begun to remove the run, and has not recorded it yet.
    fn is_being_removed(&self, run: &RunId) -> Result<bool> {
        let failed = |error| Error::storage("read", self.path(), error);
        for entry in std::fs::read_dir(self.path()).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if is_removal_of(&name.to_string_lossy(), run) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn compare_files(
        &self,
        run: &RunId,
        recorded: Option<&Recorded>,
        has_ledger: bool,
        options: &VerifyOptions,
    ) -> Result<Compared> {
        let owned = self.is_owned(run).unwrap_or(false);
        if recorded.is_some_and(|recorded| recorded.removed) && !owned {
            let detail = "the run exists, although its removal is recorded";
            return Ok(Compared::from(Finding::of_run(
                run,
                FindingKind::Restored,
                detail,
            )));
        }
        let verified = match self.verify(run) {
            Ok(verified) => Some(verified),
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => None,
            // The run was removed meanwhile.
            Err(Error::NoSuchRun { .. }) => return Ok(Compared::default()),
            Err(error) => {
                let finding = Finding::of_run(run, FindingKind::Damaged, error.chain());
                return Ok(Compared::from(finding));
            }
        };
        let comparison = RunComparison {
            root: self,
            run,
            recorded,
            has_ledger,
            owned,
            options,
        };
        comparison.all(verified.as_ref())
    }
}

/// The result of the comparison of one run.
#[derive(Default)]
struct Compared {
    /// The run is sealed, as the ledger says.
    sealed: bool,
    findings: Vec<Finding>,
}

impl From<Finding> for Compared {
    fn from(finding: Finding) -> Self {
        Self {
            sealed: false,
            findings: vec![finding],
        }
    }
}

/// An existing run, and the steps of the run in the ledger.
struct RunComparison<'a> {
    root: &'a Root,
    run: &'a RunId,
    recorded: Option<&'a Recorded>,
    has_ledger: bool,
    /// A live process owns the run.
    owned: bool,
    options: &'a VerifyOptions,
}

impl RunComparison<'_> {
    fn finding(&self, kind: FindingKind, detail: impl Into<String>) -> Finding {
        Finding::of_run(self.run, kind, detail)
    }

    fn all(&self, verified: Option<&Verification>) -> Result<Compared> {
        let mut compared = Compared::default();
        let finding = match verified.map(|verified| &verified.state) {
            Some(LogState::Damaged(damage)) => {
                Some(self.finding(FindingKind::Damaged, damage.to_string()))
            }
            Some(LogState::Sealed(seal)) => {
                let finding = self.compare_seal(&seal.sha256);
                compared.sealed = finding.is_none();
                finding.or_else(|| self.unsigned(None))
            }
            Some(_) => self.compare_unsealed(),
            None => self.compare_missing(),
        };
        compared.findings.extend(finding);
        compared.findings.extend(self.compare_run_file(verified));
        let Some(recorded) = self.recorded else {
            compared.findings.extend(self.unrecorded(verified));
            return Ok(compared);
        };
        if recorded.late {
            let detail = "a recovery recorded the begin of the run";
            let finding = self.finding(FindingKind::RecordedLate, detail);
            compared.findings.push(finding);
        }
        let start = verified.and_then(|verified| verified.start.as_ref());
        if let (Some(start), Some(created)) = (start, recorded.created)
            && start.record.created != created
        {
            let detail = format!(
                "the audit file says that the run was requested at {}, the ledger says {created}",
                start.record.created
            );
            compared
                .findings
                .push(self.finding(FindingKind::Redated, detail));
        }
        compared.findings.extend(self.compare_execs(recorded)?);
        Ok(compared)
    }

    /// Compares `run.json` with the audit file of a run that no process owns.
    fn compare_run_file(&self, verified: Option<&Verification>) -> Option<Finding> {
        if self.owned {
            return None;
        }
        let file = match self.root.read_run(self.run) {
            Ok(file) => file?,
            Err(error) => return Some(self.finding(FindingKind::Damaged, error.chain())),
        };
        let verified = verified?;
        let start = &verified.start.as_ref()?.record;
        let detail = match &verified.state {
            LogState::Sealed(seal)
                if file.seal.as_ref().is_some_and(|cached| cached != &**seal) =>
            {
                "the seal in run.json differs from the seal in the audit file"
            }
            _ if !file.has_record(start) => {
                "run.json differs from the start record of the audit file"
            }
            _ => return None,
        };
        Some(self.finding(FindingKind::Damaged, detail))
    }

    /// Compares the digest of a sealed file.
    fn compare_seal(&self, sha256: &str) -> Option<Finding> {
        let recorded = self.recorded?;
        match &recorded.sealed {
            Some(sealed) if sealed.sha256 == sha256 => None,
            Some(sealed) => Some(self.finding(
                FindingKind::Replaced,
                format!(
                    "the seal has the digest {sha256}, the ledger has {}",
                    sealed.sha256
                ),
            )),
            None if self.owned => None,
            None => Some(self.finding(FindingKind::Unrecorded, "the seal is not in the ledger")),
        }
    }

    /// A sealed file without a signature of an allowed signer.
    #[cfg(feature = "sign")]
    fn unsigned(&self, exec: Option<u32>) -> Option<Finding> {
        let allowed = self.options.allowed.as_ref().filter(|_| !self.owned)?;
        let verified = match exec {
            Some(number) => self.root.verify_exec_signature(self.run, number, allowed),
            None => self.root.verify_signature(self.run, allowed),
        };
        let reason = match verified {
            Ok(_) => return None,
            Err(Error::Signature { source, .. }) => source.to_string(),
            Err(error) => error.chain(),
        };
        Some(Finding {
            exec,
            ..self.finding(FindingKind::Unsigned, reason)
        })
    }

    #[cfg(not(feature = "sign"))]
    fn unsigned(&self, _: Option<u32>) -> Option<Finding> {
        let _ = self.options;
        None
    }

    fn compare_unsealed(&self) -> Option<Finding> {
        self.recorded?.sealed.as_ref()?;
        let detail = "the audit file is not sealed, although its seal is recorded";
        Some(self.finding(FindingKind::Replaced, detail))
    }

    /// A run without an audit file. Its sink may write none.
    fn compare_missing(&self) -> Option<Finding> {
        let sealed = self.recorded?.sealed.as_ref()?;
        let has_file = !sealed.sha256.is_empty();
        has_file.then(|| self.finding(FindingKind::Removed, "its audit file is missing"))
    }

    /// A run that no line of the ledger names.
    fn unrecorded(&self, verified: Option<&Verification>) -> Option<Finding> {
        if self.owned {
            return None;
        }
        let sealed = verified.is_some_and(|v| matches!(v.state, LogState::Sealed(_)));
        // The seal is written to `run.json` after it is in the ledger.
        let file = self.root.read_run(self.run).ok().flatten();
        let is_complete = sealed && file.is_some_and(|file| file.seal.is_some());
        Some(match (is_complete, self.has_ledger) {
            (true, true) => self.finding(FindingKind::Added, "no line of the ledger names the run"),
            (true, false) => Finding::of_ledger(
                FindingKind::LedgerMissing,
                "the root has runs, and no ledger.jsonl",
            ),
            (false, _) => self.finding(
                FindingKind::Unrecorded,
                "no line of the ledger names the run yet",
            ),
        })
    }

    fn compare_execs(&self, recorded: &Recorded) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut missing: BTreeSet<u32> = recorded.execs.keys().copied().collect();
        for number in self.root.exec_numbers(self.run) {
            missing.remove(&number);
            let verified = match self.root.verify_exec(self.run, number) {
                Ok(verified) => verified.state,
                Err(Error::NoSuchRun { .. }) => return Ok(Vec::new()),
                Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let known = recorded.execs.get(&number);
            let (kind, detail) = match (verified, known) {
                (LogState::Damaged(damage), _) => (FindingKind::Damaged, damage.to_string()),
                (LogState::Sealed(seal), Some(known)) if seal.sha256 == *known => {
                    findings.extend(self.unsigned(Some(number)));
                    continue;
                }
                (LogState::Sealed(seal), Some(known)) => {
                    let detail = format!(
                        "the seal has the digest {}, the ledger has {known}",
                        seal.sha256
                    );
                    (FindingKind::Replaced, detail)
                }
                (LogState::Sealed(_), None) if self.owned => continue,
                (LogState::Sealed(_), None) => {
                    let detail = "the seal is not in the ledger";
                    (FindingKind::Unrecorded, detail.to_owned())
                }
                (_, Some(_)) => {
                    let detail = "the audit file is not sealed, although its seal is recorded";
                    (FindingKind::Replaced, detail.to_owned())
                }
                (_, None) => continue,
            };
            findings.push(Finding {
                exec: Some(number),
                ..self.finding(kind, detail)
            });
        }
        findings.extend(missing.into_iter().map(|number| Finding {
            exec: Some(number),
            ..self.finding(FindingKind::Removed, "its audit file is missing")
        }));
        Ok(findings)
    }
}

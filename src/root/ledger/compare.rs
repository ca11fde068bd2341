//! The comparison of a run's files with its steps in the ledger.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use crate::audit::{LogState, Verification};
use crate::error::{Error, Result};
use crate::root::Root;
use crate::root::ledger::check::RunSteps;
use crate::root::ledger::finding::{Finding, FindingKind, VerifyOptions};
use crate::root::ledger::history::is_same;
use crate::spec::RunId;

impl Root {
    /// Compares the files of a run that exists with its steps in the ledger.
    pub(super) fn compare_files(
        &self,
        run: &RunId,
        steps: Option<&RunSteps>,
        has_ledger: bool,
        options: &VerifyOptions,
    ) -> Result<Compared> {
        let owned = self.is_owned(run).unwrap_or(false);
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
        if verified.is_none() && (owned || self.is_being_created(run)) {
            // Its audit file may not exist yet.
            return Ok(Compared::default());
        }
        let start = verified
            .as_ref()
            .and_then(|verified| verified.start.as_ref());
        let created = start.map(|start| start.record.created);
        let is_other = steps.is_some_and(|steps| !is_same(steps.created, created));
        if owned && is_other {
            // A new run, whose begin is not recorded yet.
            return Ok(Compared::default());
        }
        // The steps of a removed run are not those of a later run with its id.
        let steps = steps.filter(|steps| !(is_other && steps.removing));
        if !owned && steps.is_some_and(|steps| steps.removed) {
            let detail = "the run exists, although its removal is recorded";
            let finding = Finding::of_run(run, FindingKind::Restored, detail);
            return Ok(Compared::from(finding));
        }
        let comparison = RunComparison {
            root: self,
            run,
            steps,
            has_ledger,
            owned,
            options,
        };
        comparison.all(verified.as_ref())
    }
}

/// The result of the comparison of one run.
#[derive(Default)]
pub(super) struct Compared {
    /// The run is sealed, as the ledger says.
    pub(super) sealed: bool,
    pub(super) findings: Vec<Finding>,
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
    steps: Option<&'a RunSteps>,
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
        let Some(steps) = self.steps else {
            compared.findings.extend(self.unrecorded(verified));
            return Ok(compared);
        };
        if steps.late {
            let detail = "a recovery recorded the begin of the run";
            let finding = self.finding(FindingKind::RecordedLate, detail);
            compared.findings.push(finding);
        }
        let start = verified.and_then(|verified| verified.start.as_ref());
        if let (Some(start), Some(created)) = (start, steps.created)
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
        compared.findings.extend(self.compare_execs(steps)?);
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
        match &self.steps?.sealed {
            Some(sealed) if sealed.sha256 == sha256 => None,
            Some(sealed) => Some(self.finding(
                FindingKind::Replaced,
                format!(
                    "the seal has the digest {sha256}, the ledger has {}",
                    sealed.sha256
                ),
            )),
            None if self.owned => None,
            // The seal is written to `run.json` after it is in the ledger.
            None if self.has_cached_seal() => Some(self.finding(
                FindingKind::Added,
                "run.json has the seal, and the ledger does not",
            )),
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

    /// Returns true if `run.json` has a seal.
    fn has_cached_seal(&self) -> bool {
        let file = self.root.read_run(self.run).ok().flatten();
        file.is_some_and(|file| file.seal.is_some())
    }

    fn compare_unsealed(&self) -> Option<Finding> {
        self.steps.filter(|_| !self.owned)?.sealed.as_ref()?;
        let detail = "the audit file is not sealed, although its seal is recorded";
        Some(self.finding(FindingKind::Replaced, detail))
    }

    /// A run without an audit file. Its sink may write none.
    fn compare_missing(&self) -> Option<Finding> {
        let sealed = self.steps?.sealed.as_ref()?;
        let has_file = !sealed.sha256.is_empty();
        has_file.then(|| self.finding(FindingKind::Removed, "its audit file is missing"))
    }

    /// A run that no line of the ledger names.
    fn unrecorded(&self, verified: Option<&Verification>) -> Option<Finding> {
        if self.owned {
            return None;
        }
        let sealed = verified.is_some_and(|v| matches!(v.state, LogState::Sealed(_)));
        let is_complete = sealed && self.has_cached_seal();
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

    fn compare_execs(&self, steps: &RunSteps) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut missing: BTreeSet<u32> = steps.execs.keys().copied().collect();
        for number in self.root.exec_numbers(self.run) {
            missing.remove(&number);
            let verified = match self.root.verify_exec(self.run, number) {
                Ok(verified) => verified.state,
                Err(Error::NoSuchRun { .. }) => return Ok(Vec::new()),
                Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => continue,
                Err(error) => {
                    findings.push(Finding {
                        exec: Some(number),
                        ..self.finding(FindingKind::Damaged, error.chain())
                    });
                    continue;
                }
            };
            let known = steps.execs.get(&number);
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
                (_, Some(_)) if self.owned => continue,
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

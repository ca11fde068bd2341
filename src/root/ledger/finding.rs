//! The differences between a root and its ledger.

use std::fmt;

use serde::Serialize;

use crate::root::ledger::head::Head;
#[cfg(feature = "sign")]
use crate::sign::AllowedSigners;
use crate::spec::RunId;

/// Options for [`Root::verify_all`](crate::Root::verify_all).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct VerifyOptions {
    pub(super) heads: Vec<Head>,
    #[cfg(feature = "sign")]
    pub(super) allowed: Option<AllowedSigners>,
}

impl VerifyOptions {
    /// Creates options without a kept head and without signers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a head that was kept elsewhere. May be called several times.
    ///
    /// The line of the head must be in the ledger, unchanged.
    pub fn head(mut self, head: Head) -> Self {
        self.heads.push(head);
        self
    }

    /// Requires a signature of one of these signers for each sealed audit file, and for the head of
    /// the ledger.
    ///
    /// The signed head counts as a kept one.
    #[cfg(feature = "sign")]
    pub fn signed_by(mut self, allowed: AllowedSigners) -> Self {
        self.allowed = Some(allowed);
        self
    }
}

/// The result of [`Root::verify_all`](crate::Root::verify_all).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RootVerification {
    /// The number of lines of the ledger.
    pub lines: u64,
    /// The number of bytes after the last whole line of the ledger.
    ///
    /// A power loss or a full disk leaves them. The next writer moves them aside.
    pub torn: u64,
    /// The number of runs in the root.
    pub runs: usize,
    /// The number of these runs that are sealed, as the ledger says.
    pub sealed: usize,
    /// The differences between the root and its ledger, and all damage.
    pub findings: Vec<Finding>,
}

impl RootVerification {
    /// Returns true if a crash can explain every finding: see
    /// [`FindingKind::is_explained_by_crash`].
    pub fn is_intact(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.kind.is_explained_by_crash())
    }
}

/// A difference between a root and its ledger.
///
/// `Display` names the run, the kind and the details in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The kind of the difference.
    pub kind: FindingKind,
    /// The run, or `None` if the finding is about the ledger itself.
    pub run: Option<RunId>,
    /// The number of the exec, if the finding is about the file of an exec.
    pub exec: Option<u32>,
    /// The details, as text.
    pub detail: String,
}

/// The kind of a [`Finding`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FindingKind {
    /// The files are missing, and no removal is recorded.
    Removed,
    /// The seal of the run is in `run.json`, and not in the ledger, which has it first.
    Added,
    /// The audit file is not the one whose seal is recorded.
    Replaced,
    /// The audit file has another time of creation than the ledger.
    Redated,
    /// The run exists, although its removal is recorded.
    Restored,
    /// The audit file is damaged, or `run.json` contradicts it.
    Damaged,
    /// The audit file, or the head of the ledger, has no signature of an allowed signer.
    ///
    /// Reported only if [signers](VerifyOptions) were given. A signer that failed and a process that
    /// died leave it too, until the next opening of the root signs.
    Unsigned,
    /// A run, or its seal, is not in the ledger yet.
    ///
    /// The process that should have recorded it has died. The next opening of the root for recovery
    /// records a run. A person who adds a run without a seal in `run.json` to the root, or the file of
    /// an exec, leaves the same.
    Unrecorded,
    /// The begin of the run was recorded by its recovery, because the line of its start was missing.
    ///
    /// A process that died right at the start of the run leaves that, and so does a power loss. A
    /// person who adds a run without a seal in `run.json` does too.
    RecordedLate,
    /// The root has runs, and no ledger.
    LedgerMissing,
    /// A line of the ledger was changed, removed or added.
    LedgerChanged,
    /// The ledger ends before the line of a kept head.
    LedgerCut,
}

impl FindingKind {
    /// Returns true if a crash can leave such a difference: [`Unrecorded`](Self::Unrecorded) and
    /// [`RecordedLate`](Self::RecordedLate).
    pub fn is_explained_by_crash(self) -> bool {
        matches!(self, Self::Unrecorded | Self::RecordedLate)
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "removed",
            Self::Added => "added",
            Self::Replaced => "replaced",
            Self::Redated => "re-dated",
            Self::Restored => "restored",
            Self::Damaged => "damaged",
            Self::Unsigned => "not signed",
            Self::Unrecorded => "not recorded",
            Self::RecordedLate => "recorded late",
            Self::LedgerMissing => "missing",
            Self::LedgerChanged => "changed",
            Self::LedgerCut => "cut short",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.run, self.exec) {
            (Some(run), Some(exec)) => write!(f, "run {run}, exec {exec}")?,
            (Some(run), None) => write!(f, "run {run}")?,
            (None, _) => f.write_str("ledger")?,
        }
        write!(f, ": {}: {}", self.kind, self.detail)
    }
}

impl Finding {
    pub(super) fn of_ledger(kind: FindingKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            run: None,
            exec: None,
            detail: detail.into(),
        }
    }

    pub(super) fn of_run(run: &RunId, kind: FindingKind, detail: impl Into<String>) -> Self {
        Self {
            run: Some(run.clone()),
            ..Self::of_ledger(kind, detail)
        }
    }
}

//! The lines of a ledger.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::audit::line::hex;
use crate::outcome::{Seal, StopCause, Verdict};
use crate::spec::{RootId, RunId, RunRecord};
use crate::state::RunStatus;
use crate::timestamp::Timestamp;

/// The version of the format that this library reads and writes.
const VERSION: u32 = 1;
/// The size from which a line has neither the command nor the labels of a run.
const MAX_DETAIL_BYTES: usize = 8 << 10;
/// The size from which such a line does not have the image either.
const MAX_IMAGE_BYTES: usize = 1 << 10;
/// The `prev` of the first line.
pub(super) const NO_DIGEST: &str =
    "0000000000000000000000000000000000000000000000000000000000000000";

/// A line of a root's ledger: see [`Root::ledger`](crate::Root::ledger).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LedgerLine {
    /// The number of the line, from 1.
    pub number: u64,
    /// The time at which the line was written, by the clock of the writer's machine.
    pub ts: Timestamp,
    /// The recorded step.
    pub entry: LedgerEntry,
    /// The SHA-256 digest, in hexadecimal, of the line before, with its newline.
    ///
    /// It is 64 zeros in the first line.
    pub prev: String,
}

/// A step in the history of a root.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum LedgerEntry {
    /// The ledger was created: the first line.
    Created {
        /// The root of the ledger.
        root: RootId,
    },
    /// A run began. The engine had not been asked for anything.
    Begun(RunBegun),
    /// The audit file of a run was sealed.
    Sealed(RunSealed),
    /// The audit file of an exec was sealed.
    ExecSealed {
        /// The run of the exec.
        run: RunId,
        /// The number of the exec.
        exec: u32,
        /// The digest in the seal of the file.
        sha256: String,
    },
    /// The directory of a run is about to be removed.
    Removing {
        /// The run.
        run: RunId,
        /// The time at which the run was requested, or `None` if its files do not say.
        created: Option<Timestamp>,
        /// The reason of the removal.
        reason: RemovalReason,
        /// The process that removes the directory.
        by: Remover,
    },
    /// The directory of a run was removed. Another run may have the id already.
    Removed {
        /// The run.
        run: RunId,
        /// As in the [`Removing`](Self::Removing) of the run.
        created: Option<Timestamp>,
    },
    /// The end of the file was not a whole line, and was moved aside.
    ///
    /// A power loss or a full disk leaves such an end.
    Resumed {
        /// The number of bytes that were moved aside.
        bytes: u64,
        /// The name of the file in the root that contains these bytes.
        file: String,
    },
    /// A step that only a later version can read; contains the name of its type.
    Unknown(String),
}

/// The begin of a run, in a ledger.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RunBegun {
    /// The run.
    pub run: RunId,
    /// The time at which the run was requested.
    pub created: Timestamp,
    /// The runtime's name: `docker`.
    pub runtime: String,
    /// The image.
    pub image: String,
    /// The command. Empty if it is `omitted`.
    pub cmd: Vec<String>,
    /// The labels. Empty if they are `omitted`.
    pub labels: BTreeMap<String, String>,
    /// True if the command and the labels are too long for the ledger: over 8 KiB as JSON.
    pub omitted: bool,
    /// True if the line was written by a recovery, because the line of the start was missing.
    pub late: bool,
}

/// The seal of a run, in a ledger.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RunSealed {
    /// The run.
    pub run: RunId,
    /// The digest in the seal of the audit file. Empty if the sink writes no audit file.
    pub sha256: String,
    /// The status of the run.
    pub status: RunStatus,
    /// The exit code, if the run has one.
    pub code: Option<i64>,
    /// The completeness of the file.
    pub verdict: Verdict,
    /// The reason why moat stopped the run, if it did.
    pub stopped: Option<StopCause>,
}

/// The reason for the removal of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RemovalReason {
    /// A call of [`Manager::remove`](crate::Manager::remove).
    Removed,
    /// A call of [`Manager::prune`](crate::Manager::prune).
    Pruned,
    /// A reason that only a later version knows.
    #[serde(other)]
    Other,
}

/// The process that removed a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Remover {
    /// The id of the process.
    pub pid: u32,
    /// The id of its user; `None` where users have no numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The file name of its program, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

impl LedgerEntry {
    /// The begin of a run.
    pub(crate) fn begun(record: &RunRecord, late: bool) -> Self {
        let settings = &record.settings;
        let mut begun = RunBegun {
            run: record.run.clone(),
            created: record.created,
            runtime: record.runtime.clone(),
            image: settings.image.clone(),
            cmd: settings.cmd.clone(),
            labels: settings.labels.clone(),
            omitted: false,
            late,
        };
        // Escapes count: a control character takes six bytes.
        let details = serde_json::to_vec(&(&begun.image, &begun.cmd, &begun.labels));
        if details.is_ok_and(|details| details.len() > MAX_DETAIL_BYTES) {
            if begun.image.len() > MAX_IMAGE_BYTES {
                begun.image = String::new();
            }
            begun.cmd = Vec::new();
            begun.labels = BTreeMap::new();
            begun.omitted = true;
        }
        Self::Begun(begun)
    }

    /// The seal of a run.
    pub(crate) fn sealed(run: &RunId, seal: &Seal) -> Self {
        Self::Sealed(RunSealed {
            run: run.clone(),
            sha256: seal.sha256.clone(),
            status: RunStatus::from(&seal.exit),
            code: seal.exit.code(),
            verdict: seal.verdict,
            stopped: seal.stopped,
        })
    }

    /// Returns the run of the entry, if it is about a run.
    pub fn run(&self) -> Option<&RunId> {
        match self {
            Self::Begun(begun) => Some(&begun.run),
            Self::Sealed(sealed) => Some(&sealed.run),
            Self::ExecSealed { run, .. }
            | Self::Removing { run, .. }
            | Self::Removed { run, .. } => Some(run),
            Self::Created { .. } | Self::Resumed { .. } | Self::Unknown(_) => None,
        }
    }
}

/// The fields of all lines. The order is that of the file.
#[derive(Default, Serialize, Deserialize)]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    v: Option<u32>,
    n: u64,
    ts: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<RootId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    omitted: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    late: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<RunStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<StopCause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<RemovalReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<Remover>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(borrow)]
    prev: Cow<'a, str>,
}

impl LedgerLine {
    /// Serializes the line, with its newline.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let fields = Fields {
            n: self.number,
            ts: Some(self.ts),
            prev: Cow::Borrowed(&self.prev),
            ..self.entry.to_fields()
        };
        // Serialization fails only for maps with keys that are no strings.
        let mut bytes = serde_json::to_vec(&fields).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Parses a line, with its newline or without.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut fields: Fields<'_> =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let number = fields.n;
        let ts = fields.ts.ok_or("it has no ts")?;
        let prev = std::mem::take(&mut fields.prev).into_owned();
        Ok(Self {
            number,
            ts,
            entry: LedgerEntry::from_fields(fields)?,
            prev,
        })
    }
}

impl LedgerEntry {
    fn to_fields(&self) -> Fields<'_> {
        let of = |kind| Fields {
            kind: Cow::Borrowed(kind),
            run: self.run().cloned(),
            ..Fields::default()
        };
        match self {
            Self::Created { root } => Fields {
                v: Some(VERSION),
                root: Some(root.clone()),
                ..of("ledger")
            },
            Self::Begun(begun) => Fields {
                created: Some(begun.created),
                runtime: Some(begun.runtime.clone()),
                image: Some(begun.image.clone()),
                cmd: begun.cmd.clone(),
                labels: begun.labels.clone(),
                omitted: begun.omitted,
                late: begun.late,
                ..of("begun")
            },
            Self::Sealed(sealed) => Fields {
                sha256: Some(sealed.sha256.clone()),
                status: Some(sealed.status),
                code: sealed.code,
                verdict: Some(sealed.verdict),
                stopped: sealed.stopped,
                ..of("sealed")
            },
            Self::ExecSealed { exec, sha256, .. } => Fields {
                exec: Some(*exec),
                sha256: Some(sha256.clone()),
                ..of("exec_sealed")
            },
            Self::Removing {
                created,
                reason,
                by,
                ..
            } => Fields {
                created: *created,
                reason: Some(*reason),
                by: Some(by.clone()),
                ..of("removing")
            },
            Self::Removed { created, .. } => Fields {
                created: *created,
                ..of("removed")
            },
            Self::Resumed { bytes, file } => Fields {
                bytes: Some(*bytes),
                file: Some(file.clone()),
                ..of("resumed")
            },
            Self::Unknown(kind) => of(kind),
        }
    }

    fn from_fields(fields: Fields<'_>) -> Result<Self, String> {
        fn required<T>(field: Option<T>, name: &str) -> Result<T, String> {
            field.ok_or_else(|| format!("it has no {name}"))
        }
        Ok(match &*fields.kind {
            "ledger" if fields.v != Some(VERSION) => {
                return Err(format!(
                    "its version is not supported; this library reads version {VERSION}"
                ));
            }
            "ledger" => Self::Created {
                root: required(fields.root, "root")?,
            },
            "begun" => Self::Begun(RunBegun {
                run: required(fields.run, "run")?,
                created: required(fields.created, "created")?,
                runtime: required(fields.runtime, "runtime")?,
                image: fields.image.unwrap_or_default(),
                cmd: fields.cmd,
                labels: fields.labels,
                omitted: fields.omitted,
                late: fields.late,
            }),
            "sealed" => Self::Sealed(RunSealed {
                run: required(fields.run, "run")?,
                sha256: required(fields.sha256, "sha256")?,
                status: required(fields.status, "status")?,
                code: fields.code,
                verdict: required(fields.verdict, "verdict")?,
                stopped: fields.stopped,
            }),
            "exec_sealed" => Self::ExecSealed {
                run: required(fields.run, "run")?,
                exec: required(fields.exec, "exec")?,
                sha256: required(fields.sha256, "sha256")?,
            },
            "removing" => Self::Removing {
                run: required(fields.run, "run")?,
                created: fields.created,
                reason: required(fields.reason, "reason")?,
                by: required(fields.by, "by")?,
            },
            "removed" => Self::Removed {
                run: required(fields.run, "run")?,
                created: fields.created,
            },
            "resumed" => Self::Resumed {
                bytes: required(fields.bytes, "bytes")?,
                file: required(fields.file, "file")?,
            },
            unknown => Self::Unknown(unknown.to_owned()),
        })
    }
}

/// The SHA-256 digest of a line, in hexadecimal.
pub(super) fn digest(line: &[u8]) -> String {
    hex(&Sha256::digest(line))
}

//! The directory that holds runs, and the operations on it that need no engine.

#[cfg(test)]
mod crash;
mod execs;
mod group_file;
mod json_file;
mod ledger;
mod lock;
mod requests;
mod run_file;
#[cfg(feature = "sign")]
mod signature;
mod summary;
mod sweep;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit::{Follow, LOG_FILE, LogState, Verification, verify};
use crate::disk;
use crate::error::{Error, Result};
use crate::outcome::{Ending, Seal, StopCause};
use crate::root::json_file::{MAX_RECORD_BYTES, parse, read, to_json_line};
use crate::root::ledger::Ledger;
use crate::root::summary::AuditSummary;
use crate::spec::{ROOT_FILE, RootId, RunId, RunRecord};
use crate::state::RunStatus;
use crate::timestamp::Timestamp;

pub use crate::root::execs::ExecInfo;
pub(crate) use crate::root::group_file::GroupRecord;
pub(crate) use crate::root::ledger::RunHistory;
pub use crate::root::ledger::{
    Finding, FindingKind, FoundRun, Head, LedgerEntry, LedgerLine, LedgerReader, RemovalReason,
    Remover, RootVerification, RunBegun, RunQuery, RunSealed, VerifyOptions,
};
pub(crate) use crate::root::lock::Lock;
pub(crate) use crate::root::run_file::{RUN_FILE, RunFile};
#[cfg(feature = "sign")]
pub(crate) use crate::root::signature::{NOT_SIGNED_YET, sealed_digest};

/// A read-only view of the directory that holds runs.
///
/// A root needs no engine, so it works while other processes own the runs. Its methods block on
/// short file I/O. Async callers should call them on a blocking thread.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    id: RootId,
    ledger: Arc<Ledger>,
}

/// The contents of `root.json`.
#[derive(Serialize, Deserialize)]
struct RootFile {
    v: u32,
    root: RootId,
}

/// A summary of a run, read from its directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunInfo {
    /// The run.
    pub run: RunId,
    /// The status, as far as the files and the lock of the run show it.
    pub status: RunStatus,
    /// True if a live process owns the run.
    pub owned: bool,
    /// The start of the container, or `None` if no start is known.
    ///
    /// By the engine's clock, or by this machine's if the engine did not report it.
    pub started_at: Option<Timestamp>,
    /// The end of the run, or `None` if no end is known.
    ///
    /// This is the end of the container, by the engine's clock, or else the time of the seal.
    pub ended_at: Option<Timestamp>,
    /// The reason why moat stopped the run, if it did. `None` until the run has ended.
    pub stopped: Option<StopCause>,
    /// The seal of the audit file, or `None` if the run is not sealed.
    pub seal: Option<Seal>,
    /// The record of the run, or `None` if it cannot be read.
    pub record: Option<RunRecord>,
    /// The reason that a sealed run, or one of its execs, has no signature although it should.
    ///
    /// `None` for a run that is signed, not sealed, or was never to be signed. See
    /// `moat::sign` (feature `sign`).
    pub unsigned: Option<String>,
    /// The problem with the files of the run, or `None`.
    pub problem: Option<String>,
}

impl RunInfo {
    /// Adds the status and the times of an ending.
    pub(crate) fn add_ending(&mut self, ending: &Ending) {
        self.status = RunStatus::from(ending);
        if let Ending::Exited(exit) = ending {
            self.started_at = exit.started_at.or(self.started_at);
            self.ended_at = exit.finished_at;
        }
    }
}

/// Returns the error of a path that is not a root, or `None` if `root.json` exists.
fn not_a_root(path: &Path) -> Option<Error> {
    let missing = |error: &io::Error| error.kind() == ErrorKind::NotFound;
    let file = path.join(ROOT_FILE);
    let has_no_file = || file.symlink_metadata().is_err_and(|error| missing(&error));
    let (kind, reason) = match fs::metadata(path) {
        Err(error) if missing(&error) => (ErrorKind::NotFound, "it does not exist"),
        Ok(entry) if !entry.is_dir() => (ErrorKind::NotADirectory, "it is not a directory"),
        Ok(_) if has_no_file() => (
            ErrorKind::NotFound,
            "it is not a root, because it has no root.json",
        ),
        _ => return None,
    };
    let source = io::Error::new(kind, reason);
    Some(Error::storage("open the root", path, source))
}

/// Compares the seal in `run.json` with the audit file, as [`Root::verify_cached_seal`] does.
fn compare_seals(cached: Seal, audit: Result<Option<AuditSummary>>) -> (Seal, Option<String>) {
    let problem = match audit {
        // A seal without a digest was written by a sink that writes no audit file.
        Ok(None) if cached.sha256.is_empty() => return (cached, None),
        Err(error) => error.chain(),
        Ok(None) => "the audit file is missing".to_owned(),
        Ok(Some(summary)) => match (summary.problem, summary.seal) {
            (Some(problem), _) => problem,
            (None, None) => "the audit file is no longer sealed".to_owned(),
            (None, Some(seal)) => {
                let problem = "the seal in run.json differs from the seal in the audit file";
                let differs = seal != cached;
                return (seal, differs.then(|| problem.to_owned()));
            }
        },
    };
    (cached, Some(problem))
}

impl Root {
    /// Opens an existing root.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the directory is not a root or `root.json` cannot be read;
    /// [`Error::Damaged`] if `root.json` is malformed.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = path.join(ROOT_FILE);
        let bytes = match read(&file, MAX_RECORD_BYTES) {
            Err(error) => return Err(not_a_root(&path).unwrap_or(error)),
            Ok(bytes) => bytes,
        };
        let root: RootFile = parse(&file, &bytes)?;
        Ok(Self {
            ledger: Arc::new(Ledger::new(&path, root.root.clone())),
            path,
            id: root.root,
        })
    }

    /// Opens a root, and creates it if it does not exist.
    pub(crate) fn open_or_create(path: PathBuf) -> Result<Self> {
        let file = path.join(ROOT_FILE);
        // A dangling symbolic link also exists. It is refused, not replaced.
        if file.symlink_metadata().is_err() {
            disk::create_dirs(&path)?;
            let root = RootFile {
                v: 1,
                root: RootId::generate(),
            };
            // A hard link fails if another process was first, so the id is set exactly once.
            let temporary = path.join(format!(".root.json.{}", RunId::generate()));
            let created = disk::write_atomic(&temporary, &to_json_line(&root)).and_then(|()| {
                disk::link(&temporary, &file)
                    .map_err(|error| Error::storage("create", &file, error))
            });
            // The caller knows the root, and not the temporary file.
            let created = created.map_err(|error| match error {
                Error::Storage { source, .. } => Error::storage("create a root in", &path, source),
                error => error,
            });
            let _ = disk::remove_file(&temporary);
            // The process that was first may have swept the temporary files of this one, so only a
            // missing `root.json` is an error.
            if !file.exists() {
                created?;
            }
        }
        // The process that created the file may have died before it synced the directory.
        disk::sync_dir(&path)?;
        Self::open(path)
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the random id of the root, which never changes.
    pub fn id(&self) -> &RootId {
        &self.id
    }

    /// Returns the directory of a run, which may not exist.
    pub fn dir(&self, run: &RunId) -> PathBuf {
        self.path.join(run.as_str())
    }

    /// Returns true if the run exists.
    ///
    /// A symbolic link does not count, because it leads out of the root.
    pub(crate) fn has(&self, run: &RunId) -> bool {
        let dir = self.dir(run).symlink_metadata();
        dir.is_ok_and(|dir| dir.is_dir())
    }

    /// Returns the path of a run's audit file, as the default sink writes it.
    ///
    /// The file may not exist.
    pub fn audit(&self, run: &RunId) -> PathBuf {
        self.dir(run).join(LOG_FILE)
    }

    /// Reads the audit file of a run, live or sealed, and follows it while it grows.
    ///
    /// It does not matter which process owns the run. [`Follow`] selects the first record and the
    /// stream.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`].
    pub fn follow(&self, run: &RunId) -> Result<Follow> {
        if !self.has(run) {
            return Err(self.no_such_run(run));
        }
        Ok(Follow::new(self.audit(run)))
    }

    /// Verifies the audit file of a run, and that the file belongs to the run.
    ///
    /// This is [`audit::verify`](verify()), except that the file of another run, of another root or
    /// of an exec is damaged in its first line. The reason names both.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`], or [`Error::Storage`] if the file cannot be read.
    pub fn verify(&self, run: &RunId) -> Result<Verification> {
        if !self.has(run) {
            return Err(self.no_such_run(run));
        }
        let found = verify(self.audit(run))?;
        Ok(self.in_place(run, None, found))
    }

    /// Reports a file that belongs to another run, root or exec as damaged.
    fn in_place(&self, run: &RunId, exec: Option<u32>, found: Verification) -> Verification {
        let Some(start) = &found.start else {
            return found;
        };
        let name = |exec: Option<u32>| match exec {
            Some(number) => format!("exec {number}"),
            None => format!("run {run}"),
        };
        let reason = match self.misplacement(run, &start.record) {
            None if start.exec == exec => return found,
            None => format!(
                "it belongs to {}, but is the file of {}",
                name(start.exec),
                name(exec)
            ),
            Some(reason) => reason,
        };
        found.misplaced(reason)
    }

    /// Lists the ids of all runs, sorted.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the directory cannot be read.
    pub fn runs(&self) -> Result<Vec<RunId>> {
        let failed = |error| Error::storage("read", &self.path, error);
        let mut runs = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir
                && let Some(name) = entry.file_name().to_str()
                && let Ok(run) = RunId::new(name)
            {
                runs.push(run);
            }
        }
        runs.sort();
        Ok(runs)
    }

    /// Lists a summary of all runs, sorted by id.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the directory cannot be read. A problem with a single run is reported
    /// in its [`RunInfo::problem`].
    pub fn list(&self) -> Result<Vec<RunInfo>> {
        let runs = self.runs()?;
        let infos = runs.into_iter().map(|run| self.inspect(run));
        // A run that was removed during the listing is not a damaged run.
        Ok(infos
            .filter(|info| info.problem.is_none() || self.has(&info.run))
            .collect())
    }

    /// Returns the summary of a run.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`].
    pub fn info(&self, run: &RunId) -> Result<RunInfo> {
        if !self.has(run) {
            return Err(self.no_such_run(run));
        }
        Ok(self.inspect(run.clone()))
    }

    pub(crate) fn no_such_run(&self, run: &RunId) -> Error {
        Error::NoSuchRun {
            run: run.clone(),
            root: self.path.clone(),
        }
    }

    fn inspect(&self, run: RunId) -> RunInfo {
        let (file, problem) = match self.read_run(&run) {
            Ok(file) => (file, None),
            Err(error) => (None, Some(error.chain())),
        };
        let mut info = RunInfo {
            status: RunStatus::Intended,
            owned: false,
            started_at: None,
            ended_at: None,
            stopped: None,
            seal: None,
            record: None,
            unsigned: None,
            problem,
            run,
        };
        let mut ending = None;
        if let Some(file) = file {
            ending = file.ending;
            info.unsigned = file.unsigned;
            info.seal = file.seal;
            info.record = Some(file.record);
        }
        if let Some(seal) = info.seal.take() {
            let summary = AuditSummary::read(&self.audit(&info.run));
            if let Ok(Some(summary)) = &summary {
                info.started_at = summary.started_at;
            }
            let (seal, problem) = compare_seals(seal, summary);
            info.seal = Some(seal);
            info.problem = problem;
        } else if let Err(problem) = self.inspect_audit(&mut info) {
            info.problem.get_or_insert(problem);
        }
        // A run whose ending is recorded is not damaged: the seal is only late.
        let is_damaged = info.problem.is_some() && !info.owned && ending.is_none();
        let seal = info.seal.as_ref();
        if let Some(ending) = seal.map(|seal| seal.exit.clone()).or(ending) {
            info.add_ending(&ending);
        }
        info.unsigned = info.unsigned.filter(|_| info.seal.is_some());
        if let Some(seal) = &info.seal {
            info.ended_at.get_or_insert(seal.ts);
            info.stopped = seal.stopped;
        }
        if is_damaged {
            info.status = RunStatus::Damaged;
        }
        info
    }

    /// Completes the summary of a run from its audit file, if `run.json` has no seal.
    fn inspect_audit(&self, info: &mut RunInfo) -> Result<(), String> {
        let path = self.audit(&info.run);
        let owned = self.is_owned(&info.run);
        let is_owned = matches!(owned, Ok(true));
        info.owned = is_owned;
        let summary = AuditSummary::read(&path).map_err(|error| error.chain())?;
        owned.map_err(|error| error.chain())?;
        let Some(summary) = summary else {
            return Ok(());
        };
        if let Some(record) = &summary.record {
            self.check_place(&info.run, record, &path)
                .map_err(|error| error.chain())?;
        }
        info.started_at = summary.started_at;
        if info.started_at.is_some() {
            info.status = RunStatus::Running;
        } else if info.record.as_ref().is_some_and(|r| r.container.is_some()) {
            info.status = RunStatus::Created;
        }
        if info.record.is_none() {
            info.record = summary.record;
        }
        if let Some(problem) = summary.problem {
            return Err(problem);
        }
        info.seal = summary.seal;
        // The owner of a sealed run only tidies up.
        info.owned &= info.seal.is_none();
        // No owner has verified this seal: the owner died, or a manager refused the file.
        if info.seal.is_some()
            && !is_owned
            && let LogState::Damaged(damage) = verify(&path).map_err(|e| e.chain())?.state
        {
            return Err(damage.to_string());
        }
        Ok(())
    }

    /// Compares the seal that `run.json` caches with the audit file, which wins.
    ///
    /// Returns the valid seal, and the problem if there is one.
    pub(crate) fn verify_cached_seal(&self, run: &RunId, cached: Seal) -> (Seal, Option<String>) {
        compare_seals(cached, AuditSummary::read(&self.audit(run)))
    }

    /// Summarizes the audit file of a run.
    ///
    /// The summary of an unreadable file is empty.
    pub(crate) fn audit_summary(&self, run: &RunId) -> AuditSummary {
        let summary = AuditSummary::read(&self.audit(run));
        summary.ok().flatten().unwrap_or_default()
    }

    /// Checks that a record belongs to the run in whose directory it was found.
    pub(crate) fn check_place(&self, run: &RunId, record: &RunRecord, path: &Path) -> Result<()> {
        match self.misplacement(run, record) {
            None => Ok(()),
            Some(reason) => Err(Error::Damaged {
                path: path.to_owned(),
                reason,
            }),
        }
    }

    /// Describes a record that belongs to another run, or to another root.
    fn misplacement(&self, run: &RunId, record: &RunRecord) -> Option<String> {
        if record.run != *run {
            let owner = &record.run;
            return Some(format!(
                "it belongs to run {owner}, but is in the directory of run {run}"
            ));
        }
        if record.root != self.id {
            let (owner, root) = (&record.root, &self.id);
            return Some(format!("it belongs to root {owner}, but is in root {root}"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_creators_agree_on_the_root_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/root");
        let ids: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Root::open_or_create(path.clone()).unwrap().id))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]));
        assert_eq!(Root::open(&path).unwrap().id, ids[0]);
        let remaining: Vec<_> = fs::read_dir(&path).unwrap().collect();
        assert_eq!(remaining.len(), 1, "{remaining:?}");
    }

    /// The first creator may sweep the root while others still create it.
    #[test]
    fn a_concurrent_sweep_does_not_fail_a_creator() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("root");
            let opened: Vec<_> = std::thread::scope(|scope| {
                let open = || {
                    let root = Root::open_or_create(path.clone())?;
                    root.sweep();
                    Ok(root.id)
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let ids: Result<Vec<_>> = opened.into_iter().collect();
            let ids = ids.unwrap();
            assert!(ids.iter().all(|id| *id == ids[0]));
        }
    }

    #[test]
    fn the_error_for_a_directory_without_a_root_has_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| Root::open(path).unwrap_err().chain();
        let path = dir.path().display();
        assert_eq!(
            error(dir.path()),
            format!("cannot open the root {path}: it is not a root, because it has no root.json")
        );
        assert_eq!(
            error(&dir.path().join("missing")),
            format!("cannot open the root {path}/missing: it does not exist")
        );
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(
            error(&dir.path().join("file")),
            format!("cannot open the root {path}/file: it is not a directory")
        );
        let file = dir.path().join("file");
        assert_eq!(
            Root::open_or_create(file).unwrap_err().chain(),
            format!("cannot create {path}/file: this path exists and is not a directory")
        );
    }
}

//! The folder that holds runs, and what can be seen in it without an engine.

#[cfg(test)]
mod crash;
mod requests;

use std::fs;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::line::{self, Line};
use crate::audit::line_reader::MAX_LINE_BYTES;
use crate::audit::scan::{ends_as_seal, newline_lost};
use crate::audit::{Event, Follow, LOG_FILE, LogState, exec_file, exec_number, verify};
use crate::disk;
use crate::error::{Error, Result};
use crate::outcome::{Ending, Seal};
use crate::spec::{ROOT_FILE, RootId, RunId, RunRecord};
use crate::state::RunStatus;

/// How the folders begin of runs that are being removed: no run's id does.
const REMOVED: &str = ".removed-";
/// No file of ours is larger, but for the audit: its first record is not, either.
const LONGEST_RECORD: u64 = MAX_LINE_BYTES as u64;
/// How much of each end of an audit file is looked at to tell where a run is.
const GLANCE: u64 = 64 * 1024;
/// How long a folder without a file of a run's may be that of a run that is being made.
const MAKING: Duration = Duration::from_secs(2);

/// The folder that holds runs: a view that needs no engine and changes nothing, so it works while
/// other processes own the runs.
///
/// It blocks on file I/O, briefly; an async caller may want a thread for it.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    id: RootId,
}

/// What the file `root.json` holds.
#[derive(Serialize, Deserialize)]
struct RootFile {
    v: u32,
    root: RootId,
}

/// What the file `run.json` holds: a run's record, and at its end the seal. The audit file wins
/// over it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunFile {
    pub(crate) v: u32,
    #[serde(flatten)]
    pub(crate) record: RunRecord,
    /// How the run ended, while it cannot be sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ending: Option<Ending>,
    /// How the run ended if its container is gone: written before its owner removes one that was
    /// not started. No fact yet: it may turn out to run.
    #[serde(rename = "if_gone", default, skip_serializing_if = "Option::is_none")]
    pub(crate) ending_if_missing: Option<Ending>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seal: Option<Seal>,
}

/// What can be seen of a run from its folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunInfo {
    /// The run.
    pub run: RunId,
    /// The status, as far as the files of the run and its lock show it.
    pub status: RunStatus,
    /// Whether a live process owns it.
    pub owned: bool,
    /// The seal of its audit file; `None`: it is not sealed.
    pub seal: Option<Seal>,
    /// What was to be run; `None` where that cannot be read.
    pub record: Option<RunRecord>,
    /// What is wrong with its files.
    pub problem: Option<String>,
}

impl Root {
    /// Opens a root that is there.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if there is none, [`Error::Damaged`] if its `root.json` is not one.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = path.join(ROOT_FILE);
        let root: RootFile = parse(&file, &read(&file, LONGEST_RECORD)?)?;
        Ok(Self {
            path,
            id: root.root,
        })
    }

    /// Opens a root, and makes it where it is missing.
    pub(crate) fn open_or_create(path: PathBuf) -> Result<Self> {
        let file = path.join(ROOT_FILE);
        // Also a link that leads nowhere is there: it is refused, not replaced.
        if file.symlink_metadata().is_err() {
            disk::create_dirs(&path)?;
            let root = RootFile {
                v: 1,
                root: RootId::generate(),
            };
            // By a link, which fails where another process was first: the id is made once.
            let temporary = path.join(format!(".root.json.{}", RunId::generate()));
            disk::write_atomic(&temporary, &json(&root))?;
            let linked = disk::link(&temporary, &file);
            let _ = disk::remove_file(&temporary);
            match linked {
                // Another one was first, and may have removed what it found of this one's making.
                Err(error) if !file.exists() => {
                    return Err(Error::storage("create", &file, error));
                }
                _ => {}
            }
        }
        // Whoever made it may have died before this.
        disk::sync_dir(&path)?;
        Self::open(path)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root's random id, made once.
    pub fn id(&self) -> &RootId {
        &self.id
    }

    /// The folder of a run, which may not exist.
    pub fn dir(&self, run: &RunId) -> PathBuf {
        self.path.join(run.as_str())
    }

    /// Whether there is such a run. A link to a folder is none: it leads out of the root.
    pub(crate) fn has(&self, run: &RunId) -> bool {
        let dir = self.dir(run).symlink_metadata();
        dir.is_ok_and(|dir| dir.is_dir())
    }

    /// The audit file that the default sink writes for a run, which may not exist.
    pub fn audit(&self, run: &RunId) -> PathBuf {
        self.dir(run).join(LOG_FILE)
    }

    /// The records of a run's audit file, live or ended, whoever owns the run: see [`Follow`] for
    /// from where on and of which stream.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`].
    pub fn follow(&self, run: &RunId) -> Result<Follow> {
        match self.has(run) {
            true => Ok(Follow::new(self.audit(run))),
            false => Err(self.no_such_run(run)),
        }
    }

    /// The ids of all runs, sorted.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the folder cannot be read.
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

    /// What can be seen of all runs, sorted by their ids.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the folder cannot be read. What is wrong with one run is in its
    /// [`RunInfo::problem`].
    pub fn list(&self) -> Result<Vec<RunInfo>> {
        let runs = self.runs()?;
        let infos = runs.into_iter().map(|run| self.look(run));
        // One may be removed meanwhile.
        Ok(infos
            .filter(|info| info.problem.is_none() || self.has(&info.run))
            .collect())
    }

    /// What can be seen of one run.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`].
    pub fn info(&self, run: &RunId) -> Result<RunInfo> {
        if !self.has(run) {
            return Err(self.no_such_run(run));
        }
        Ok(self.look(run.clone()))
    }

    pub(crate) fn no_such_run(&self, run: &RunId) -> Error {
        Error::NoSuchRun {
            run: run.clone(),
            root: self.path.clone(),
        }
    }

    fn look(&self, run: RunId) -> RunInfo {
        let (file, problem) = match self.read_run(&run) {
            Ok(file) => (file, None),
            Err(error) => (None, Some(error.chain())),
        };
        let mut info = RunInfo {
            status: RunStatus::Intended,
            owned: false,
            seal: None,
            record: None,
            problem,
            run,
        };
        let mut ending = None;
        if let Some(file) = file {
            ending = file.ending;
            info.seal = file.seal;
            info.record = Some(file.record);
        }
        if let Some(seal) = info.seal.take() {
            let (seal, problem) = self.verify_cached_seal(&info.run, seal);
            info.seal = Some(seal);
            info.problem = problem;
        } else {
            if let Err(problem) = self.look_at_audit(&mut info) {
                info.problem.get_or_insert(problem);
            }
        }
        // One that has ended and cannot be sealed yet is not worse than that.
        if info.problem.is_some() && !info.owned && ending.is_none() {
            info.status = RunStatus::Damaged;
        } else if let Some(ending) = info
            .seal
            .as_ref()
            .map(|seal| &seal.exit)
            .or(ending.as_ref())
        {
            info.status = RunStatus::from(ending);
        }
        info
    }

    /// What can be seen of a run in its audit file, where `run.json` does not say how it ended.
    fn look_at_audit(&self, info: &mut RunInfo) -> Result<(), String> {
        let path = self.audit(&info.run);
        let owned = self.is_owned(&info.run);
        info.owned = matches!(owned, Ok(true));
        let summary = summary(&path).map_err(|error| error.chain())?;
        owned.map_err(|error| error.chain())?;
        let Some(summary) = summary else {
            return Ok(());
        };
        if let Some(record) = &summary.record {
            self.check_place(&info.run, record, &path)
                .map_err(|error| error.chain())?;
        }
        if summary.started {
            info.status = RunStatus::Running;
        } else if info.record.as_ref().is_some_and(|r| r.container.is_some()) {
            info.status = RunStatus::Created;
        }
        if info.record.is_none() {
            info.record = summary.record;
        }
        if let Some(reason) = summary.bad {
            return Err(reason);
        }
        info.seal = summary.seal;
        // Nobody has vouched for it yet: its owner died, or it was refused.
        if info.seal.is_some()
            && !info.owned
            && let LogState::Damaged(damage) = verify(&path).map_err(|e| e.chain())?.state
        {
            return Err(damage.to_string());
        }
        Ok(())
    }

    /// The seal of a run that `run.json` says to be sealed, and what is wrong with it: the audit
    /// file has it at its end, and wins.
    pub(crate) fn verify_cached_seal(&self, run: &RunId, seal: Seal) -> (Seal, Option<String>) {
        let problem = match summary(&self.audit(run)) {
            // Without a digest it is another sink's.
            Ok(None) if seal.sha256.is_empty() => return (seal, None),
            Err(error) => error.chain(),
            Ok(None) => "its audit file is gone".to_owned(),
            Ok(Some(AuditSummary { bad: Some(bad), .. })) => bad,
            Ok(Some(AuditSummary { seal: None, .. })) => {
                "its audit file is not sealed any more".to_owned()
            }
            Ok(Some(AuditSummary {
                seal: Some(held), ..
            })) => {
                let other = "run.json has another seal than the audit file";
                let problem = (held != seal).then(|| other.to_owned());
                return (held, problem);
            }
        };
        (seal, Some(problem))
    }

    /// What the audit file of a run says at its two ends, as far as that can be read.
    pub(crate) fn audited(&self, run: &RunId) -> AuditSummary {
        summary(&self.audit(run)).ok().flatten().unwrap_or_default()
    }

    /// Checks that a record is that of the run in whose folder it was found.
    pub(crate) fn check_place(&self, run: &RunId, record: &RunRecord, path: &Path) -> Result<()> {
        if record.run == *run && record.root == self.id {
            return Ok(());
        }
        let reason = match record.run == *run {
            true => format!("it is of root {}, in another place", record.root),
            false => format!("it is of run {}, in another place", record.run),
        };
        Err(Error::Damaged {
            path: path.to_owned(),
            reason,
        })
    }

    /// The run's `run.json`; `None` where there is none.
    pub(crate) fn read_run(&self, run: &RunId) -> Result<Option<RunFile>> {
        let path = self.dir(run).join("run.json");
        let bytes = match read(&path, LONGEST_RECORD) {
            Ok(bytes) => bytes,
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let file: RunFile = parse(&path, &bytes)?;
        self.check_place(run, &file.record, &path)?;
        Ok(Some(file))
    }

    /// Moves a `run.json` aside that cannot be believed, and says what it is called now.
    pub(crate) fn quarantine(&self, run: &RunId) -> Result<String> {
        let dir = self.dir(run);
        let free = (1u64..)
            .map(|number| format!("run.json.damaged-{number}"))
            .find(|name| dir.join(name).symlink_metadata().is_err())
            .unwrap_or_default();
        let path = dir.join("run.json");
        fs::rename(&path, dir.join(&free))
            .map_err(|error| Error::storage("move aside", path, error))?;
        disk::sync_dir(&dir)?;
        Ok(free)
    }

    pub(crate) fn write_run(&self, file: &RunFile) -> Result<()> {
        disk::write_atomic(&self.dir(&file.record.run).join("run.json"), &json(file))
    }

    /// The file whose lock is held by the owner of a run.
    pub(crate) fn lock_path(&self, run: &RunId) -> PathBuf {
        self.dir(run).join("lock")
    }

    /// Removes the folder of a run that came to nothing. A process without free descriptors can do
    /// it, too: only to list a folder takes one.
    pub(crate) fn discard(&self, run: &RunId) -> Result<()> {
        let dir = self.dir(run);
        for name in ["run.json", "lock", LOG_FILE] {
            let _ = disk::remove_file(&dir.join(name));
        }
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => fs::remove_dir_all(&dir),
            removed => removed,
        }
        .map_err(|error| Error::storage("remove", dir, error))
    }

    /// Removes the folder of a run, and is not seen half done: it goes by another name first.
    pub(crate) fn remove(&self, run: &RunId) -> Result<()> {
        let removed = self
            .path
            .join(format!("{REMOVED}{run}-{}", RunId::generate()));
        let dir = self.dir(run);
        disk::rename(&dir, &removed).map_err(|error| Error::storage("remove", dir, error))?;
        disk::sync_dir(&self.path)?;
        disk::remove_dir(&removed).map_err(|error| Error::storage("remove", removed, error))
    }

    /// Removes what processes that died have left of files in the folder of a run that is sealed,
    /// or about to be. A process that leaves a request to stop it meanwhile comes too late.
    pub(crate) fn sweep_run(&self, run: &RunId) {
        for name in ["run.json.", "stop-", "note-"] {
            disk::remove_temporary(&self.dir(run), name);
        }
    }

    /// Removes what processes that died have left of this root's making, and of runs that they
    /// were removing.
    pub(crate) fn sweep(&self) {
        disk::remove_temporary(&self.path, "root.json.");
        disk::remove_temporary(&self.path, ".root.json.");
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(REMOVED) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Takes the lock of a run, and holds it until that is dropped.
    pub(crate) fn lock(&self, run: &RunId) -> Result<Lock> {
        let path = self.lock_path(run);
        let file = match disk::open_new(&path).map(disk::File::into_std) {
            Err(error) if error.io_kind() == Some(ErrorKind::AlreadyExists) => {
                disk::open_existing(&path, true)?
            }
            other => other?,
        };
        // Someone who looks whether it is taken holds it for a moment.
        let mut locked = file.try_lock();
        for _ in 0..5 {
            if !matches!(locked, Err(fs::TryLockError::WouldBlock)) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
            locked = file.try_lock();
        }
        let is_held = disk::is_at(&file, &path);
        let is_held = is_held.map_err(|error| Error::storage("lock", &path, error))?;
        match locked {
            Ok(()) if is_held => Ok(Lock(file)),
            // Or the run was removed meanwhile, and another one of its name may be there by now.
            Ok(()) | Err(fs::TryLockError::WouldBlock) => Err(Error::Owned {
                run: run.clone(),
                path,
            }),
            Err(fs::TryLockError::Error(error)) => Err(Error::storage("lock", path, error)),
        }
    }

    /// Whether somebody may have made the folder of a run a moment ago, and be about to take its
    /// lock: who took that first would have a run of which there is nothing yet.
    pub(crate) fn is_being_made(&self, run: &RunId) -> bool {
        let dir = self.dir(run);
        let made = fs::metadata(&dir).and_then(|dir| dir.modified());
        let age = made.ok().and_then(|made| made.elapsed().ok());
        age.is_some_and(|age| age < MAKING)
            && !dir.join("run.json").exists()
            && !self.audit(run).exists()
    }

    pub(crate) fn is_owned(&self, run: &RunId) -> Result<bool> {
        match disk::open_existing(&self.lock_path(run), false) {
            Ok(file) => match file.try_lock_shared() {
                Ok(()) => {
                    drop(Lock(file));
                    Ok(false)
                }
                Err(error) => Ok(matches!(error, fs::TryLockError::WouldBlock)),
            },
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The lock of a run, which ends when it is dropped, or with this process.
#[derive(Debug)]
pub(crate) struct Lock(fs::File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closed alone, it would be held for as long as a child that was forked meanwhile has it.
        let _ = self.0.unlock();
    }
}

/// What an audit file says at its two ends.
#[derive(Default)]
pub(crate) struct AuditSummary {
    pub(crate) record: Option<RunRecord>,
    started: bool,
    /// What the engine calls itself that has started the container.
    pub(crate) engine_id: Option<String>,
    pub(crate) seal: Option<Seal>,
    /// What is wrong with it, as far as that is seen there.
    bad: Option<String>,
}

/// Looks at the two ends of an audit file; `None`: there is none.
pub(crate) fn summary(path: &Path) -> Result<Option<AuditSummary>> {
    let mut file = match disk::open_existing(path, false) {
        Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => return Ok(None),
        opened => opened?,
    };
    let mut summary = AuditSummary::default();
    let read = |error| Error::storage("read", path, error);
    let length = file.metadata().map_err(read)?.len();
    let mut bytes = Vec::new();
    file.by_ref()
        .take(GLANCE.min(length))
        .read_to_end(&mut bytes)
        .map_err(read)?;
    // What a failure of the power leaves of records that were not synced, where nothing is sealed.
    let mut zeros = None;
    for (at, text) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if !text.ends_with(b"\n") {
            break;
        }
        match line::parse(text) {
            Ok(Line::Event(Event::Start(start))) if at == 0 => summary.record = Some(start.record),
            Ok(Line::Event(Event::Started(started))) => {
                summary.started = true;
                summary.engine_id = started.engine_id;
            }
            Ok(_) if at > 0 => {}
            Ok(_) => summary.bad = Some("its audit file does not begin with a start record".into()),
            Err(bad) => {
                let reason = format!("line {} of its audit file: {}", at + 1, bad.reason());
                let found = match line::has_zeros(text) {
                    true => &mut zeros,
                    false => &mut summary.bad,
                };
                *found = Some(reason);
                break;
            }
        }
    }
    let last = last_line(&mut file, length).map_err(read)?;
    match line::parse(&last) {
        Ok(Line::Event(Event::End(seal))) if line::split_seal(&last).is_some() => {
            summary.seal = Some(*seal);
            summary.bad = summary.bad.or(zeros);
        }
        Ok(Line::Event(Event::End(_))) => {
            summary.bad = Some("the end record of its audit file has no digest".into());
        }
        Ok(Line::Unknown(_)) if ends_as_seal(&last) => {
            summary.bad = Some("the end record of its audit file is damaged".into());
        }
        Err(_) if newline_lost(&last) => {
            summary.bad = Some("the end record of its audit file has lost its newline".into());
        }
        Err(bad) if summary.bad.is_none() && last.ends_with(b"\n") && !line::has_zeros(&last) => {
            summary.bad = Some(format!("the end of its audit file: {}", bad.reason()));
        }
        _ => {}
    }
    Ok(Some(summary))
}

/// The last line, with its newline; what else is at the end where there is none.
fn last_line(file: &mut fs::File, length: u64) -> io::Result<Vec<u8>> {
    let mut wanted = GLANCE;
    loop {
        let from = length.saturating_sub(wanted);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.by_ref().take(length - from).read_to_end(&mut bytes)?;
        let whole = bytes.len() - usize::from(bytes.ends_with(b"\n"));
        match memchr::memrchr(b'\n', &bytes[..whole]) {
            Some(newline) => return Ok(bytes.split_off(newline + 1)),
            None if from == 0 || wanted > MAX_LINE_BYTES as u64 => return Ok(bytes),
            None => wanted *= 4,
        }
    }
}

/// The first bytes of a file, as many as a file of its kind can have.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    // Nearly all are smaller, and are read at once.
    let mut bytes = Vec::with_capacity(4 << 10);
    disk::open_existing(path, false)?
        .take(most)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::storage("read", path, error))?;
    Ok(bytes)
}

/// What a file of ours holds, if it is of the version that this library writes.
fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        v: u64,
    }
    let damaged = |error: serde_json::Error| Error::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    // As we write it; another `v` behind it is no file of ours for the second reading either.
    if bytes.starts_with(br#"{"v":1,"#) {
        return serde_json::from_slice(bytes).map_err(damaged);
    }
    let Version { v } = serde_json::from_slice(bytes).map_err(damaged)?;
    if v != 1 {
        let reason = format!("it has version {v}; this library reads version 1");
        let unsupported = io::Error::new(ErrorKind::Unsupported, reason);
        return Err(Error::storage("read", path, unsupported));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // These types have no map with keys that are not strings, which is all that could fail.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

impl Root {
    /// The numbers of the further processes of a run that have a log.
    pub(crate) fn execs(&self, run: &RunId) -> impl Iterator<Item = u32> {
        std::fs::read_dir(self.dir(run))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| exec_number(entry.file_name().to_str()?))
    }

    /// Those whose log is not sealed.
    pub(crate) fn open_execs(&self, run: &RunId) -> Vec<u32> {
        let sealed = |number: &u32| {
            let path = self.dir(run).join(exec_file(*number));
            matches!(summary(&path), Ok(Some(summary)) if summary.seal.is_some())
        };
        self.execs(run).filter(|number| !sealed(number)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_root_is_made_once_also_by_many_at_once() {
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
        let left: Vec<_> = fs::read_dir(&path).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_folder_that_is_no_root_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let error = Root::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_folder_is_nobodys_while_a_run_may_be_made_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        let run = RunId::generate();
        disk::create_dir(&root.dir(&run)).unwrap();
        let lock = root.lock(&run).unwrap();
        assert!(root.is_being_made(&run));
        drop(lock);
        let made = fs::File::open(root.dir(&run)).unwrap();
        let then = std::time::SystemTime::now();
        made.set_modified(then - MAKING).unwrap();
        assert!(!root.is_being_made(&run), "whoever made it has died");
        made.set_modified(then).unwrap();
        fs::write(root.dir(&run).join("run.json"), "").unwrap();
        assert!(!root.is_being_made(&run), "it is made");
    }

    #[test]
    fn a_run_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        let run = RunId::generate();
        disk::create_dir(&root.dir(&run)).unwrap();
        let lock = root.lock(&run).unwrap();
        assert!(matches!(root.lock(&run), Err(Error::Owned { .. })));
        assert!(root.is_owned(&run).unwrap());
        drop(lock);
        assert!(!root.is_owned(&run).unwrap());
        let lock = root.lock(&run).unwrap();
        // As a child has it that was forked, and is not itself yet.
        let _forked = lock.0.try_clone().unwrap();
        drop(lock);
        root.lock(&run).unwrap();
    }

    /// Whoever waits for the lock of a run that is removed does not get that of the next one.
    #[test]
    fn the_lock_of_a_run_that_was_removed_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        let run = RunId::new("again").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..200 {
                disk::create_dir(&root.dir(&run)).unwrap();
                let first = root.lock(&run).unwrap();
                let waiting = scope.spawn(|| root.lock(&run));
                std::thread::sleep(std::time::Duration::from_micros(500));
                root.remove(&run).unwrap();
                disk::create_dir(&root.dir(&run)).unwrap();
                let next = root.lock(&run);
                drop(first);
                // One that comes late may be the first to have the next one's: it, or nobody else.
                let waited = waiting.join().unwrap();
                assert!(waited.is_err() || next.is_err(), "it has two owners");
                drop((waited, next));
                root.remove(&run).unwrap();
            }
        });
    }
}

//! The folder that holds runs, and what can be seen in it without an engine.

use std::fs;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::sink::Event;
use crate::sink::audit::LOG_FILE;
use crate::{Ending, Error, Result, RootId, RunId, RunRecord, Seal};

/// How the folders begin of runs that are being removed: no run's id does.
const REMOVED: &str = ".removed-";
/// How much of each end of an audit file is looked at to tell where a run is.
const GLANCE: u64 = 64 * 1024;

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
pub(super) struct RunFile {
    pub(super) v: u32,
    #[serde(flatten)]
    pub(super) record: RunRecord,
    /// How the run ended, while it cannot be sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ending: Option<Ending>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seal: Option<Seal>,
}

/// What can be seen of a run from its folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunInfo {
    /// The run.
    pub run: RunId,
    /// A word for where it is: `intended`, `created`, `running`, `exited`, `failed to start`,
    /// `not created`, `removed`, `lost`; or `damaged`.
    pub state: &'static str,
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
        let file = path.join("root.json");
        let bytes = read(&file)?;
        let root: RootFile = serde_json::from_slice(&bytes).map_err(|error| Error::Damaged {
            path: file,
            reason: error.to_string(),
        })?;
        Ok(Self {
            path,
            id: root.root,
        })
    }

    /// Opens a root, and makes it where it is missing.
    pub(super) fn open_or_create(path: PathBuf) -> Result<Self> {
        let file = path.join("root.json");
        if !file.exists() {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|e| Error::storage("create", parent, e))?;
            }
            match disk::create_folder(&path) {
                Err(error) if error.io_kind() == Some(ErrorKind::AlreadyExists) => {}
                other => other?,
            }
            let root = RootFile {
                v: 1,
                root: RootId::generate(),
            };
            // By a link, which fails where another process was first: the id is made once.
            let temporary = path.join(format!(".root.json.{}", RunId::generate()));
            disk::write_atomic(&temporary, &json(&root))?;
            let linked = fs::hard_link(&temporary, &file);
            let _ = fs::remove_file(&temporary);
            match linked {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(Error::storage("create", &file, error));
                }
                _ => disk::sync_folder(&path)?,
            }
        }
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
    pub fn folder(&self, run: &RunId) -> PathBuf {
        self.path.join(run.as_str())
    }

    /// The audit file that the default sink writes for a run, which may not exist.
    pub fn audit(&self, run: &RunId) -> PathBuf {
        self.folder(run).join(LOG_FILE)
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
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder
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
        Ok(runs.into_iter().map(|run| self.look(run)).collect())
    }

    /// What can be seen of one run.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`].
    pub fn info(&self, run: &RunId) -> Result<RunInfo> {
        if !self.folder(run).is_dir() {
            return Err(self.no_such_run(run));
        }
        Ok(self.look(run.clone()))
    }

    pub(super) fn no_such_run(&self, run: &RunId) -> Error {
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
            state: "intended",
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
        if let Some(seal) = &info.seal {
            // A digest is of the default sink's file.
            if !seal.sha256.is_empty() && !self.audit(&info.run).exists() {
                info.problem = Some("its audit file is gone".into());
            }
        } else {
            info.owned = self.is_owned(&info.run);
            match glance(&self.audit(&info.run)) {
                Ok(glance) => {
                    info.seal = glance.seal;
                    if glance.started {
                        info.state = "running";
                    } else if info.record.as_ref().is_some_and(|r| r.container.is_some()) {
                        info.state = "created";
                    }
                    info.record = info.record.or(glance.record);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    info.problem.get_or_insert(error.to_string());
                }
            }
        }
        if info.problem.is_some() && !info.owned {
            info.state = "damaged";
        } else if let Some(ending) = info
            .seal
            .as_ref()
            .map(|seal| &seal.exit)
            .or(ending.as_ref())
        {
            info.state = word(ending);
        }
        info
    }

    /// The run's `run.json`; `None` where there is none.
    pub(super) fn read_run(&self, run: &RunId) -> Result<Option<RunFile>> {
        let path = self.folder(run).join("run.json");
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let file: RunFile = serde_json::from_slice(&bytes).map_err(|error| Error::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        if file.record.run != *run || file.record.root != self.id {
            return Err(Error::Damaged {
                path,
                reason: format!("it is of run {}, in another place", file.record.run),
            });
        }
        Ok(Some(file))
    }

    pub(super) fn write_run(&self, file: &RunFile) -> Result<()> {
        disk::write_atomic(&self.folder(&file.record.run).join("run.json"), &json(file))
    }

    /// The file whose lock is held by the owner of a run.
    pub(super) fn lock_path(&self, run: &RunId) -> PathBuf {
        self.folder(run).join("lock")
    }

    /// Removes the folder of a run, and is not seen half done: it goes by another name first.
    pub(super) fn remove(&self, run: &RunId) -> Result<()> {
        let removed = self
            .path
            .join(format!("{REMOVED}{run}-{}", RunId::generate()));
        let folder = self.folder(run);
        fs::rename(&folder, &removed).map_err(|error| Error::storage("remove", folder, error))?;
        disk::sync_folder(&self.path)?;
        fs::remove_dir_all(&removed).map_err(|error| Error::storage("remove", removed, error))
    }

    /// Removes what a process that died has left of runs that it was removing.
    pub(super) fn sweep(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(REMOVED) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Takes the lock of a run, and holds it until the file is dropped.
    pub(super) fn lock(&self, run: &RunId) -> Result<fs::File> {
        let path = self.lock_path(run);
        let file = match disk::open_new(&path) {
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
        match locked {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Owned {
                run: run.clone(),
                path,
            }),
            Err(fs::TryLockError::Error(error)) => Err(Error::storage("lock", path, error)),
        }
    }

    fn is_owned(&self, run: &RunId) -> bool {
        disk::open_existing(&self.lock_path(run), false)
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }
}

/// What an audit file says at its two ends.
#[derive(Default)]
struct Glance {
    record: Option<RunRecord>,
    started: bool,
    seal: Option<Seal>,
}

fn glance(path: &Path) -> io::Result<Glance> {
    let mut glance = Glance::default();
    let Ok(mut file) = disk::open_existing(path, false) else {
        return Err(ErrorKind::NotFound.into());
    };
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.by_ref().take(GLANCE).read_to_end(&mut bytes)?;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Event::Start(start)) => glance.record = Some(start.record),
            Ok(Event::Started(_)) => glance.started = true,
            _ => {}
        }
    }
    if length > GLANCE {
        file.seek(SeekFrom::Start(length - GLANCE))?;
        bytes.clear();
        file.take(GLANCE).read_to_end(&mut bytes)?;
    }
    if let Some(bytes) = bytes.strip_suffix(b"\n") {
        let last = bytes.rsplit(|byte| *byte == b'\n').next().unwrap_or(bytes);
        if let Ok(Event::End(seal)) = serde_json::from_slice(last) {
            glance.seal = Some(*seal);
        }
    }
    Ok(glance)
}

fn word(ending: &Ending) -> &'static str {
    crate::State::Ended {
        container: None,
        ending: ending.clone(),
    }
    .word()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    /// No file of ours is larger: a record with a command of the longest length that is allowed.
    const MOST: u64 = 64 << 20;
    let mut bytes = Vec::new();
    disk::open_existing(path, false)?
        .take(MOST)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::storage("read", path, error))?;
    Ok(bytes)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // These types have no map with keys that are not strings, which is all that could fail.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_root_is_made_once_also_by_many_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/root");
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
        let folder = tempfile::tempdir().unwrap();
        let error = Root::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_run_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(folder.path().join("root")).unwrap();
        let run = RunId::generate();
        disk::create_folder(&root.folder(&run)).unwrap();
        let lock = root.lock(&run).unwrap();
        assert!(matches!(root.lock(&run), Err(Error::Owned { .. })));
        assert!(root.is_owned(&run));
        drop(lock);
        assert!(!root.is_owned(&run));
        root.lock(&run).unwrap();
    }
}

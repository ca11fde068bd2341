//! A root with runs whose process has left, on the scripted runtime.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::join_all;
use moat::audit::{Reader, Record};
use moat::outcome::Stream;
use moat::runtime::scripted::{Script, Scripted};
use moat::{Manager, Outcome, Root, Run, RunId, RunSpec, ShutdownMode};

/// What every container here prints on standard output.
pub const TEXT: &str = "one\ntwo\nd\u{e9}j\u{e0} \u{fffd}\nno newline";

/// Longer than anything here takes.
pub const BOUND: Duration = Duration::from_secs(180);

pub struct Stage {
    pub runtime: Scripted,
    dir: tempfile::TempDir,
}

impl Stage {
    /// In memory where that is there: thousands of runs are synced here.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        Self {
            runtime: Scripted::new(),
            dir: dir.unwrap(),
        }
    }

    /// A place outside the root.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn path(&self) -> PathBuf {
        self.outside("root")
    }

    pub fn file(&self, run: &str, name: &str) -> PathBuf {
        self.path().join(run).join(name)
    }

    pub fn root(&self) -> Root {
        Root::open(self.path()).unwrap()
    }

    pub async fn open(&self) -> Manager {
        Manager::builder(self.path(), self.runtime.clone())
            .runtime_handle(tokio::runtime::Handle::current())
            .seal_timeout(BOUND)
            .open()
            .await
            .unwrap()
    }

    /// Starts runs whose containers print and go on; their process leaves when all is captured
    /// that ends in a newline.
    pub async fn leave_running(&self, names: &[String]) {
        let manager = self.open().await;
        for name in names {
            let script = Script::new().stdout(TEXT).until_stopped();
            self.runtime.next(script);
            manager.start(spec(name)).await.unwrap();
        }
        for name in names {
            let audit = self.file(name, "logs.jsonl");
            eventually(|| {
                fs::read_to_string(&audit)
                    .unwrap()
                    .contains("d\u{e9}j\u{e0}")
            })
            .await;
        }
        manager.shutdown(ShutdownMode::Leave).await;
    }

    /// Leaves a run that has ended, and is sealed.
    pub async fn leave_sealed(&self, name: &str) -> Outcome {
        self.runtime.next(Script::new().stdout(TEXT).exit(7));
        let manager = self.open().await;
        let outcome = manager.start(spec(name)).await.unwrap();
        let outcome = outcome.wait().await.unwrap();
        manager.shutdown(ShutdownMode::Leave).await;
        outcome
    }

    /// What the opening finds, which must not take for ever.
    pub async fn recovered(&self, manager: &Manager) -> Vec<Run> {
        let recovered = tokio::time::timeout(BOUND, manager.wait_recovery()).await;
        recovered
            .expect("a bad run keeps the opening from its end")
            .unwrap()
    }
}

pub fn spec(name: &str) -> RunSpec {
    RunSpec::new("any").id(RunId::new(name).unwrap())
}

pub fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n:05}")).collect()
}

/// Stops runs, and waits for their seals.
pub async fn stop(runs: &[Run]) -> Vec<Outcome> {
    let stops = runs.iter().map(|run| async {
        let stopped = tokio::time::timeout(BOUND, run.stop(None)).await;
        let hangs = |_| panic!("{} hangs: {:?}", run.id(), run.problem());
        stopped.unwrap_or_else(hangs).unwrap()
    });
    join_all(stops).await
}

pub async fn eventually(what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < BOUND);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What an audit file has of standard output.
pub fn text(audit: &Path) -> String {
    let mut text = Vec::new();
    for record in Reader::open(audit).unwrap() {
        if let Record::Output(output) = record.unwrap()
            && output.stream == Stream::Stdout
        {
            text.extend(output.bytes);
            text.extend((!output.partial).then_some(b'\n'));
        }
    }
    String::from_utf8(text).unwrap()
}

/// All files below a folder, and what is in them; links and the like by their kind.
pub fn contents(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut seen = std::collections::BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            seen.insert(path.clone(), b"a folder".to_vec());
            seen.extend(contents(&path));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            seen.insert(path, bytes);
        } else {
            seen.insert(path, format!("{kind:?}").into_bytes());
        }
    }
    seen
}

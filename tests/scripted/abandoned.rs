//! Roots with runs that their manager has left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::join_all;
use moat::outcome::Stream;
use moat::runtime::scripted::Script;
use moat::{Manager, Outcome, Run, ShutdownMode};

use crate::bench::{Bench, named};
use crate::records;

/// The standard output of every container here.
pub const TEXT: &str = "one\ntwo\nd\u{e9}j\u{e0} \u{fffd}\nno newline";

/// Longer than any operation here takes.
pub const BOUND: Duration = Duration::from_secs(180);

impl Bench {
    /// A manager that waits long for seals.
    pub async fn open_patiently(&self) -> Manager {
        self.builder_here()
            .seal_timeout(BOUND)
            .open()
            .await
            .unwrap()
    }

    /// Starts runs whose containers print and do not end. Their manager leaves once all lines that
    /// end in a newline are captured.
    pub async fn leave_running(&self, names: &[String]) {
        let manager = self.open_patiently().await;
        for name in names {
            let script = Script::new().stdout(TEXT).until_stopped();
            self.start(&manager, script, named(name)).await;
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

    /// Leaves a run that has ended and is sealed.
    pub async fn leave_sealed(&self, name: &str) -> Outcome {
        let manager = self.open_patiently().await;
        let script = Script::new().stdout(TEXT).exit(7);
        let run = self.start(&manager, script, named(name)).await;
        let outcome = run.wait().await.unwrap();
        manager.shutdown(ShutdownMode::Leave).await;
        outcome
    }

    /// The runs that the manager has recovered.
    pub async fn recovered(&self, manager: &Manager) -> Vec<Run> {
        let recovered = tokio::time::timeout(BOUND, manager.wait_recovery()).await;
        recovered.expect("the recovery ends").unwrap()
    }
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

pub async fn eventually(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < BOUND);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The standard output in an audit file.
pub fn text(audit: &Path) -> String {
    records::text_in(audit, Stream::Stdout)
}

/// All files under a directory with their content; links and special files with their type.
pub fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            seen.insert(path.clone(), b"a directory".to_vec());
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

//! The directory, root and containers of one trial.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use futures::StreamExt;
use moat::audit::{LogState, verify};
use moat::outcome::Stream;
use moat::run::{Attached, Attachment};
use moat::{Docker, Ending, Manager, Outcome, Run, RunSpec, Seal};
use serde_json::Value;
use tempfile::TempDir;
use testkit::audit::{Audit, contains};
pub use testkit::audit::{assert_bytes, assert_complete};
use testkit::deadline::{eventually, within};
use testkit::{engine, image};

/// The directory and engine of one trial. Dropped, it removes the containers of its roots, also
/// after a failure.
pub struct Stage {
    pub dir: TempDir,
    pub docker: bollard::Docker,
    pub image: String,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.dir.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            engine::sweep(&entry.path());
        }
    }
}

impl Stage {
    pub async fn new() -> Self {
        let docker = engine::connect().unwrap();
        let image = image::provide(&docker).await.unwrap();
        let dir = tempfile::Builder::new()
            .prefix("moat-test-")
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("gate")).unwrap();
        Self { dir, docker, image }
    }

    /// The root of the trial.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A manager of the trial's root.
    pub async fn manager(&self) -> Manager {
        let docker = Docker::connect().await.unwrap();
        Manager::open(self.root(), docker).await.unwrap()
    }

    /// A run of the workload with these steps, separated by spaces.
    pub fn spec(&self, steps: &str) -> RunSpec {
        RunSpec::new(&self.image)
            .cmd(steps.split(' '))
            .network("none")
    }

    /// The same with a gate that the run can wait at: `await /gate/NAME`.
    pub fn gated(&self, steps: &str) -> RunSpec {
        self.spec(steps).bind(self.dir.path().join("gate"), "/gate")
    }

    /// Lets a run pass this gate.
    pub fn open_gate(&self, name: &str) {
        fs::write(self.dir.path().join("gate").join(name), "").unwrap();
    }

    /// Closes these gates again, for the next run.
    pub fn close_gates(&self, names: &[&str]) {
        for name in names {
            fs::remove_file(self.dir.path().join("gate").join(name)).unwrap();
        }
    }

    /// Starts a run, waits for its end, and reads its audit.
    pub async fn run(&self, spec: RunSpec) -> (Outcome, Audit) {
        let manager = self.manager().await;
        let run = manager.start(spec).await.unwrap();
        let outcome = end(&run).await;
        let audit = read(&outcome);
        (outcome, audit)
    }

    /// The containers of the trial's root on the engine.
    pub async fn containers(&self) -> Vec<String> {
        let root = engine::root_id(&self.root()).expect("the root has an id");
        engine::containers(&engine::address(), &root).await.unwrap()
    }

    /// What the engine reports of a container.
    pub async fn inspect(&self, container: &str) -> Value {
        engine::inspect(&engine::address(), container)
            .await
            .unwrap()
    }

    /// True if the engine reports that the trial's only container was out of memory.
    pub async fn found_out_of_memory(&self) -> bool {
        let container = self.containers().await.remove(0);
        self.inspect(&container).await["State"]["OOMKilled"] == true
    }

    /// Waits until the engine reports that the trial's only container has ended.
    pub async fn container_ended(&self) {
        eventually(30, "the end of the container", async || {
            let container = self.containers().await.pop()?;
            let found = self.inspect(&container).await;
            (found["State"]["Running"] == false).then_some(())
        })
        .await;
    }

    /// Waits until the engine has no container of the trial's root.
    pub async fn is_clean(&self) {
        eventually(90, "the removal of the container", async || {
            self.containers().await.is_empty().then_some(())
        })
        .await;
    }
}

/// Waits until a run has ended and its audit is sealed.
pub async fn end(run: &Run) -> Outcome {
    within(180, "the seal of the run", async {
        loop {
            let outcome = run.wait().await.unwrap();
            if outcome.sealed().is_some() {
                return outcome;
            }
        }
    })
    .await
}

/// The seal of a sealed outcome.
pub fn seal(outcome: &Outcome) -> &Seal {
    outcome.sealed().unwrap_or_else(|| panic!("{outcome}"))
}

/// Reads the audit of a sealed run, and checks that all sources agree.
pub fn read(outcome: &Outcome) -> Audit {
    let seal = seal(outcome);
    let path = outcome.audit.as_ref().unwrap();
    let audit = Audit::read(path).unwrap();
    assert_eq!(audit.end["sha256"], seal.sha256.as_str());
    assert_eq!(audit.end["verdict"], seal.verdict.to_string());
    assert_eq!(seal.exit, outcome.ending);
    assert_eq!(seal.gaps, audit.all("gap").len() as u64);
    match verify(path).unwrap().state {
        LogState::Sealed(found) => assert_eq!(*found, *seal),
        other => panic!("{}: {other:?}", path.display()),
    }
    audit
}

/// Returns true if an ending can be that of a container that was removed externally.
///
/// The engine kills the container first. An inspection between the kill and the removal shows an
/// exit.
pub fn is_removed_or_killed(ending: &Ending) -> bool {
    match ending {
        Ending::Removed { .. } => true,
        Ending::Exited(exit) => exit.code == Some(137),
        _ => false,
    }
}

/// The output that a subscriber saw.
#[derive(Debug, Default)]
pub struct Watched {
    pub bytes: BTreeMap<Stream, Vec<u8>>,
    pub missed: u64,
}

impl Watched {
    /// Adds the next item; `false` at the end.
    pub async fn next(&mut self, output: &mut Attachment) -> bool {
        match within(60, "output", output.next()).await {
            None => return false,
            Some(item) => match item.unwrap() {
                Attached::Chunk(chunk) => {
                    let all = self.bytes.entry(chunk.stream).or_default();
                    all.extend_from_slice(&chunk.bytes);
                }
                Attached::Lagged { bytes, .. } => self.missed += bytes,
                other => panic!("{other:?}"),
            },
        }
        true
    }

    /// Reads until the end.
    pub async fn all(mut output: Attachment) -> Self {
        let mut watched = Self::default();
        while watched.next(&mut output).await {}
        watched
    }

    /// Reads until stdout has `text`.
    pub async fn until(&mut self, output: &mut Attachment, text: &str) {
        while !contains(self.stdout(), text.as_bytes()) {
            assert!(self.next(output).await, "the output ended before {text:?}");
        }
    }

    pub fn stdout(&self) -> &[u8] {
        self.bytes.get(&Stream::Stdout).map_or(&[], Vec::as_slice)
    }
}

/// Waits until the run has printed `text`.
pub async fn printed(run: &Run, text: &str) {
    let mut output = run.attach().await.unwrap();
    Watched::default().until(&mut output, text).await;
}

/// Asserts that the audit is complete, or that the engine cannot prove it. An engine drops large
/// output whose end is read late. It keeps 256 events, and other trials can push out the one that
/// shows that it was not restarted. Only a caller who knows the bytes can decide whether any are
/// missing.
#[track_caller]
pub fn assert_nothing_missed(audit: &Audit) {
    let gaps = audit.all("gap");
    let excused = gaps.iter().all(|gap| {
        let reason = gap["reason"].as_str();
        gap["possible"] == true && matches!(reason, Some("late_drain" | "engine_restarted"))
    });
    let verdict = if gaps.is_empty() { "complete" } else { "gap" };
    assert!(
        excused && audit.verdict() == verdict,
        "{}\n{:?}",
        audit.end,
        audit.events
    );
}

/// The recorded actions of attachments, in order.
pub fn actions(audit: &Audit) -> Vec<String> {
    audit
        .all("note")
        .iter()
        .filter_map(|note| note["action"].as_str().map(Into::into))
        .collect()
}

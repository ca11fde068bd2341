//! The directory, root and pods of one trial.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use moat::audit::{LogState, verify};
use moat::{Manager, Outcome, Run, RunSpec};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::audit::{Audit, contains};
pub use testkit::audit::{assert_bytes, assert_complete};
use testkit::deadline::{eventually, within};
use testkit::{engine, image, sequence};

use crate::cluster;

/// The directory of one trial. Dropped, it removes the pods of its root.
pub struct Stage {
    pub dir: TempDir,
    pub image: String,
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(root) = engine::root_id(&self.root()) {
            cluster::sweep(&root);
        }
    }
}

impl Stage {
    pub async fn new() -> Self {
        let image = match std::env::var("MOAT_TEST_IMAGE") {
            Ok(image) => image,
            Err(_) => image::provide(&engine::connect().unwrap()).await.unwrap(),
        };
        let dir = tempfile::Builder::new()
            .prefix("moat-kube-")
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("gate")).unwrap();
        Self { dir, image }
    }

    /// The root of the trial.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A manager of the trial's root.
    pub async fn manager(&self) -> Manager {
        let cluster = cluster::connect().await;
        Manager::open(self.root(), cluster).await.unwrap()
    }

    /// A run of the workload with these steps, separated by spaces.
    pub fn spec(&self, steps: &str) -> RunSpec {
        spec(&self.image, steps)
    }

    /// The same with a gate that the run can wait at: `await /gate/NAME`.
    pub fn gated(&self, steps: &str) -> RunSpec {
        gated(&self.image, &self.gate(), steps)
    }

    /// The directory of the gates.
    pub fn gate(&self) -> PathBuf {
        self.dir.path().join("gate")
    }

    /// Lets a run pass this gate.
    pub fn open_gate(&self, name: &str) {
        fs::write(self.gate().join(name), "").unwrap();
    }

    /// Starts a run, waits for its end, and reads its audit.
    pub async fn run(&self, spec: RunSpec) -> (Outcome, Audit) {
        let manager = self.manager().await;
        let run = manager.start(spec).await.unwrap();
        let outcome = end(&run).await;
        let audit = read(&outcome);
        (outcome, audit)
    }

    /// The id of the trial's root.
    pub fn root_id(&self) -> String {
        engine::root_id(&self.root()).expect("the root has an id")
    }

    /// The name of the trial's only pod.
    pub fn pod(&self) -> String {
        let pods = cluster::pods(&self.root_id());
        assert_eq!(pods.len(), 1, "{pods:?}");
        pods[0]["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// Waits until the cluster has no pod of the trial's root.
    pub async fn is_clean(&self) {
        let root = self.root_id();
        let deadline = Instant::now() + cluster::REMOVAL_TIMEOUT;
        loop {
            let pods = cluster::pods(&root);
            if pods.is_empty() {
                return;
            }
            let states: Vec<_> = pods.iter().map(state).collect();
            assert!(Instant::now() < deadline, "pods are left: {states:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the audit file of a run, unsealed or not, has `text`.
    pub async fn audited(&self, run: &str, text: &str) {
        let path = self.root().join(run).join("logs.jsonl");
        eventually(120, text, async || {
            let audit = fs::read(&path).unwrap_or_default();
            contains(&audit, text.as_bytes()).then_some(())
        })
        .await;
    }
}

/// What matters about a pod that is left.
fn state(pod: &Value) -> Value {
    json!({
        "name": pod["metadata"]["name"],
        "deleted": pod["metadata"]["deletionTimestamp"],
        "phase": pod["status"]["phase"],
        "containers": pod["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|container| json!([container["name"], container["state"]]))
            .collect::<Vec<_>>(),
    })
}

/// A run of the workload.
pub fn spec(image: &str, steps: &str) -> RunSpec {
    RunSpec::new(image)
        .entrypoint(["/workload"])
        .cmd(steps.split(' '))
        .network("host")
}

/// A run of the workload that sees a directory of this machine at `/gate`.
pub fn gated(image: &str, gate: &Path, steps: &str) -> RunSpec {
    let patch = json!({"spec": {
        "volumes": [{"name": "gate", "hostPath": {"path": gate}}],
        "containers": [{
            "name": "main",
            "volumeMounts": [{"name": "gate", "mountPath": "/gate"}],
        }],
    }});
    spec(image, steps).engine_patch(patch)
}

/// Waits until a run has ended and its audit is sealed.
pub async fn end(run: &Run) -> Outcome {
    within(300, "the seal of the run", async {
        loop {
            let outcome = run.wait().await.unwrap();
            if outcome.sealed().is_some() {
                return outcome;
            }
        }
    })
    .await
}

/// Reads the audit of a sealed run with two readers, and checks that they agree.
pub fn read(outcome: &Outcome) -> Audit {
    let seal = outcome.sealed().unwrap_or_else(|| panic!("{outcome}"));
    let path = outcome.audit.as_ref().unwrap();
    let audit = Audit::read(path).unwrap();
    assert_eq!(audit.end["sha256"], seal.sha256.as_str());
    match verify(path).unwrap().state {
        LogState::Sealed(found) => assert_eq!(*found, *seal),
        other => panic!("{}: {other:?}", path.display()),
    }
    audit
}

/// Asserts that both streams have these numbered lines, and that the audit is complete.
pub fn assert_both_streams(audit: &Audit, lines: u64) {
    sequence::check(audit.stream("stdout"), "out", lines, 64).unwrap();
    sequence::check(audit.stream("stderr"), "err", lines, 64).unwrap();
    assert_complete(audit);
}

/// Asserts that bytes are the beginning of others.
#[track_caller]
pub fn assert_prefix(found: &[u8], whole: &[u8]) {
    assert_bytes(found, &whole[..found.len().min(whole.len())]);
}

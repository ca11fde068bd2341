//! Pods that land, and calls that come, after what they belong to has ended.

use std::fs;
use std::process::Command;
use std::time::Duration;

use moat::runtime::{Runtime, RuntimeError};
use moat::spec::{KeepContainer, RootId};
use moat::timestamp::Timestamp;
use moat::{RunId, ShutdownMode};
use serde_json::Value;
use testkit::crash::Planned;
use testkit::deadline::{eventually, within};
use testkit::engine;

use crate::cluster::{self, kubectl, kubectl_as};
use crate::crash::child::Orders;
use crate::stage::{Stage, assert_complete, end, read};

testkit::trials! {
    crate::on_local_cluster:
        a_pod_of_a_dead_sender_never_runs,
        a_late_pod_of_a_sealed_run_never_runs,
        a_late_wait_for_a_deleted_pod_ends,
        a_collector_that_has_quit_is_no_obstacle,
}

/// The time for which a placed pod is watched. A command of the tests starts within milliseconds.
const IDLE: Duration = Duration::from_secs(5);

/// A label of the nodes. Dropped, it is removed from them.
struct NodeLabel(String);

impl NodeLabel {
    /// A label that no node has yet.
    fn new(stage: &Stage) -> Self {
        let name = stage.dir.path().file_name().unwrap();
        Self(format!("moat.test/{}", name.to_str().unwrap()))
    }

    fn set(&self) {
        kubectl_as(
            "admin",
            &["label", "nodes", "--all", &format!("{}=", self.0)],
        );
    }
}

impl Drop for NodeLabel {
    fn drop(&mut self) {
        let label = format!("{}-", self.0);
        let labeled = std::panic::catch_unwind(|| {
            kubectl_as("admin", &["label", "nodes", "--all", &label]);
        });
        drop(labeled);
    }
}

/// Kills a process whose request for a pod has arrived. Returns the pod, which waits for a node.
async fn send_and_die(stage: &Stage, run: &Planned, label: &NodeLabel) -> Value {
    let orders = Orders {
        node_label: Some(label.0.clone()),
        ..Orders::new(stage, std::slice::from_ref(run))
    };
    let process = orders.start();
    let pod = eventually(60, "the pod", async || {
        let root = engine::root_id(&stage.root())?;
        cluster::pods(&root).pop()
    })
    .await;
    assert!(process.kill(), "the sender has ended");
    assert!(pod["spec"]["nodeName"].is_null(), "{pod}");
    pod
}

/// Waits until the pod of the root has been placed, and asserts that its command does not start.
async fn stays_idle(stage: &Stage, run: &Planned) {
    let began = stage.gate().join(format!("began-{}", run.id));
    eventually(120, "a placed pod", async || {
        assert!(!began.exists(), "the command runs");
        let pod = cluster::pods(&stage.root_id()).pop()?;
        let containers = pod["status"]["containerStatuses"].as_array()?;
        let mut running = containers.iter().map(|container| {
            let since = container["state"]["running"]["startedAt"].as_str()?;
            since.parse::<Timestamp>().ok()
        });
        running
            .all(|since| since.is_some_and(|since| Timestamp::now().since(since) > IDLE))
            .then_some(())
    })
    .await;
    assert!(!began.exists(), "the command runs");
}

async fn a_pod_of_a_dead_sender_never_runs(stage: &Stage) {
    let (run, label) = (Planned::plain(), NodeLabel::new(stage));
    send_and_die(stage, &run, &label).await;
    label.set();
    stays_idle(stage, &run).await;
    never_ran(stage, &run).await;
}

/// A request can also arrive after the next manager has sealed its run. Here, the same pod is
/// requested again.
async fn a_late_pod_of_a_sealed_run_never_runs(stage: &Stage) {
    let (run, label) = (Planned::plain(), NodeLabel::new(stage));
    let mut pod = send_and_die(stage, &run, &label).await;
    let sealed = never_ran(stage, &run).await;
    let metadata = pod["metadata"].as_object_mut().unwrap();
    metadata
        .retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
    pod["status"].take();
    let path = stage.dir.path().join("pod.json");
    fs::write(&path, pod.to_string()).unwrap();
    kubectl(&["create", "-f", path.to_str().unwrap()]);
    label.set();
    stays_idle(stage, &run).await;
    assert_eq!(never_ran(stage, &run).await, sealed);
}

/// Recovers the root, asserts that the run never started, and returns the digest of its audit.
async fn never_ran(stage: &Stage, run: &Planned) -> Value {
    let manager = stage.manager().await;
    manager.wait_recovery().await.unwrap();
    let id = RunId::new(&run.id).unwrap();
    let outcome = end(&manager.get(&id).await.unwrap()).await;
    assert!(outcome.ending.never_started(), "{outcome}");
    let audit = read(&outcome);
    assert!(audit.streams.is_empty(), "{:?}", audit.streams);
    assert_complete(&audit);
    stage.is_clean().await;
    manager.shutdown(ShutdownMode::Leave).await;
    let began = stage.gate().join(format!("began-{}", run.id));
    assert!(!began.exists(), "the command ran");
    audit.end["sha256"].clone()
}

/// The watch reports a deletion once, also if nothing waits for that pod yet.
async fn a_late_wait_for_a_deleted_pod_ends(stage: &Stage) {
    let manager = stage.manager().await;
    for number in 0..2 {
        let id = RunId::new(format!("run-{number}")).unwrap();
        manager.start(stage.spec("hold").id(id)).await.unwrap();
    }
    let root = RootId::try_from(stage.root_id()).unwrap();
    let other = cluster::connect().await;
    let found = other.find(&root).await.unwrap();
    let [early, _] = found.as_slice() else {
        panic!("{found:?}");
    };
    let first = other.wait(&early.container);
    let delete = async {
        let name = early.container.as_str().split('/').nth(1).unwrap();
        kubectl(&["delete", "pod", name, "--grace-period=0", "--force"]);
    };
    let (first, ()) = within(120, "the end of a wait", async {
        tokio::join!(first, delete)
    })
    .await;
    println!("{first:?}");
    let late = within(30, "the end of a late wait", other.wait(&early.container)).await;
    assert!(
        matches!(late, Err(RuntimeError::NotFound { .. })),
        "{late:?}"
    );
    manager.shutdown(ShutdownMode::Stop).await;
    stage.is_clean().await;
}

/// The answer to a request to quit can be lost with the collector. The server reports its end later.
async fn a_collector_that_has_quit_is_no_obstacle(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage.spec("echo kept + exit 3").keep(KeepContainer::Always);
    let run = manager.start(spec).await.unwrap();
    assert_eq!(end(&run).await.code(), Some(3));
    manager.shutdown(ShutdownMode::Leave).await;
    let root = RootId::try_from(stage.root_id()).unwrap();
    let other = cluster::connect().await;
    let found = other.find(&root).await.unwrap().remove(0);
    // Another process, which does not know that the command has ended.
    let third = cluster::connect().await;
    let pod = stage.pod();
    let quit = [
        "exec",
        &pod,
        "-c",
        "moat",
        "--",
        "/.moat/bin/moat-helper",
        "ctl",
        "/.moat/spool/control",
        "quit",
    ];
    let quit = Command::new("kubectl")
        .args(["--context", &std::env::var("MOAT_KUBE").unwrap()])
        .args(quit)
        .output();
    println!("{:?}", quit.unwrap());
    let removed = third.remove(&found.container, false).await;
    assert!(removed.is_ok(), "{removed:?}");
    stage.is_clean().await;
}

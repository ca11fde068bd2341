//! Runs that the cluster ends: evictions, preemption, a namespace that is deleted.

use std::time::Duration;

use moat::{Ending, Manager, Run, RunId};
use serde_json::{Value, json};
use testkit::audit::Audit;
use testkit::sequence;

use crate::cluster::{self, Object, connect, connect_in, create, unique};
use crate::stage::{Stage, assert_bytes, assert_complete, assert_prefix, end, read};

testkit::trials! {
    crate::on_local_cluster:
        an_evicted_run_is_complete,
        an_evicted_stubborn_run_is_complete_or_a_gap,
        an_eviction_before_the_start_is_an_error,
        a_deleted_namespace_ends_its_runs,
        a_deleted_namespace_takes_the_rights_along;
    crate::on_broken_cluster:
        a_preempted_run_is_complete,
}

const LINES: u64 = 300;

/// Lines, and then a last word on SIGTERM.
const GRACEFUL: &str = "lines 300 --delay-ms 5 + trap --exit 3";

fn graceful_output() -> Vec<u8> {
    let mut expected = sequence::lines("out", LINES, 64);
    expected.extend(b"ready\ncaught SIGTERM\n");
    expected
}

/// Starts a run, and returns once its output has `text`.
async fn start(stage: &Stage, manager: &Manager, steps: &str, text: &str) -> Run {
    let spec = stage.gated(steps).id(RunId::new("ended").unwrap());
    let run = manager.start(spec).await.unwrap();
    stage.audited("ended", text).await;
    run
}

/// Evicts a pod.
fn evict(pod: &str, grace: Option<u64>) {
    let eviction = json!({
        "apiVersion": "policy/v1beta1", "kind": "Eviction",
        "metadata": {"name": pod, "namespace": "default"},
        "deleteOptions": {"gracePeriodSeconds": grace},
    });
    let path = format!("/api/v1/namespaces/default/pods/{pod}/eviction");
    create(&["--raw", &path], &eviction);
}

/// Asserts that the ending names what was done to the pod from outside.
#[track_caller]
fn assert_names_disruption(ending: &Ending) {
    match ending {
        Ending::Removed { .. } => {}
        Ending::Exited(exit) => assert!(exit.error.is_some(), "{ending:?}"),
        other => panic!("{other:?}"),
    }
}

/// Checks the seal of a command that had its grace period.
async fn check_graceful(run: &Run) -> Audit {
    let outcome = end(run).await;
    let audit = read(&outcome);
    println!("{}", audit.end);
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    assert_names_disruption(&outcome.ending);
    assert_bytes(audit.stream("stdout"), &graceful_output());
    assert_complete(&audit);
    assert_eq!(audit.evidence(), "end_marker");
    audit
}

async fn an_evicted_run_is_complete(stage: &Stage) {
    let manager = stage.manager().await;
    let run = start(stage, &manager, GRACEFUL, "\"ready\"").await;
    evict(&stage.pod(), None);
    check_graceful(&run).await;
    stage.is_clean().await;
}

async fn an_evicted_stubborn_run_is_complete_or_a_gap(stage: &Stage) {
    const LINES: u64 = 6000;
    let manager = stage.manager().await;
    let steps = format!("ignore-term + lines {LINES} --delay-ms 10 + write /gate/end x");
    let run = start(stage, &manager, &steps, "out 00000050 ").await;
    evict(&stage.pod(), Some(3));
    let outcome = end(&run).await;
    let audit = read(&outcome);
    println!("{}, {:?}", audit.end, audit.all("gap"));
    assert!(!stage.gate().join("end").exists(), "the command has ended");
    assert_names_disruption(&outcome.ending);
    // If the kubelet kills the collector first, the command ends by its broken pipe.
    assert_ne!(outcome.code(), Some(0), "{outcome}");
    let found = audit.stream("stdout");
    assert_prefix(found, &sequence::lines("out", LINES, 64));
    match audit.verdict() {
        "complete" => assert_eq!(audit.evidence(), "end_marker"),
        verdict => assert_eq!(verdict, "gap", "{}", audit.end),
    }
    for gap in audit.all("gap") {
        assert_eq!(gap["reason"], "removed", "{gap}");
    }
    stage.is_clean().await;
}

/// The eviction comes while the pod waits for a node.
async fn an_eviction_before_the_start_is_an_error(stage: &Stage) {
    let cluster = connect().await.node_selector("moat.dev/none", "none");
    let cluster = cluster.patience(Duration::from_secs(300));
    let manager = Manager::open(stage.root(), cluster).await.unwrap();
    let evicted = async {
        let pod = testkit::deadline::eventually(60, "the pod", async || {
            let pods = cluster::pods(&stage.root_id());
            Some(pods.first()?["metadata"]["name"].as_str()?.to_owned())
        })
        .await;
        evict(&pod, None);
    };
    let (started, ()) = tokio::join!(manager.start(stage.spec("echo never")), evicted);
    let Err(moat::Error::NotStarted { outcome, source }) = started else {
        panic!("{started:?}");
    };
    println!("{source}: {outcome}");
    let audit = read(&outcome);
    assert!(outcome.ending.never_started(), "{outcome}");
    assert_eq!(audit.evidence(), "never_started");
    stage.is_clean().await;
}

async fn a_preempted_run_is_complete(stage: &Stage) {
    let class = Object::create(
        "priorityclass",
        &json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": unique("class")}, "value": 1_000_000,
        }),
    );
    let requests = json!({"requests": {"cpu": "1100m"}});
    let cluster = connect().await.resources(requests.clone());
    let manager = Manager::open(stage.root(), cluster).await.unwrap();
    let run = start(stage, &manager, GRACEFUL, "\"ready\"").await;
    let important = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": unique("important"), "namespace": "default"},
        "spec": {
            "priorityClassName": class.name, "hostNetwork": true, "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "containers": [{
                "name": "main", "image": stage.image, "imagePullPolicy": "IfNotPresent",
                "command": ["/workload", "hold"], "resources": requests,
            }],
        },
    });
    let _important = Object::create("pod", &important);
    check_graceful(&run).await;
    stage.is_clean().await;
}

async fn delete_namespace(stage: &Stage, context: &str) {
    let namespace = Object::namespace();
    let cluster = connect_in(context, &namespace.name).await;
    let manager = Manager::open(stage.root(), cluster).await.unwrap();
    let run = start(stage, &manager, GRACEFUL, "\"ready\"").await;
    namespace.delete();
    check_graceful(&run).await;
    testkit::deadline::eventually(120, "the end of the pod", async || {
        let pods: Vec<Value> = cluster::pods_in(&namespace.name, &stage.root_id());
        pods.is_empty().then_some(())
    })
    .await;
}

async fn a_deleted_namespace_ends_its_runs(stage: &Stage) {
    delete_namespace(stage, "admin").await;
}

/// The namespace's Role ends before its pods.
async fn a_deleted_namespace_takes_the_rights_along(stage: &Stage) {
    delete_namespace(stage, "moat").await;
}

//! Nodes that are lost.

use moat::state::State;
use moat::{Ending, Manager, Run, RunId, Runtime};
use testkit::deadline::eventually;
use testkit::sequence;

use crate::cluster::{self, Down, admin, connect};
use crate::stage::{Stage, assert_both_streams, assert_prefix, end, read};

testkit::trials! {
    crate::on_broken_cluster:
        a_node_that_comes_back_loses_nothing,
        a_pod_whose_node_was_deleted_is_a_gap,
        a_pod_removed_from_a_lost_node_is_a_gap,
}

const LINES: u64 = 500;

async fn start(stage: &Stage, manager: &Manager, steps: &str) -> Run {
    let spec = stage.gated(steps).id(RunId::new("lost").unwrap());
    let run = manager.start(spec).await.unwrap();
    stage.audited("lost", "err 00000050 ").await;
    run
}

/// Waits until the node of a run counts as lost, and moat says so.
async fn is_lost(run: &Run) {
    let State::Running { container, .. } = run.state() else {
        panic!("{:?}", run.state());
    };
    let cluster = connect().await;
    eventually(120, "the loss of the node", async || {
        cluster.inspect(&container).await.ok()?.unreachable_since
    })
    .await;
    eventually(120, "the report of the loss", async || {
        run.problem().filter(|problem| problem.contains("node"))
    })
    .await;
}

/// Waits until the node accepts pods.
async fn node_is_ready() {
    let ready = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}";
    eventually(120, "the node", async || {
        let status = admin(&["get", "nodes", "-o", ready]);
        let taints = admin(&["get", "nodes", "-o", "jsonpath={.items[*].spec.taints}"]);
        (status == "True" && taints.is_empty()).then_some(())
    })
    .await;
}

async fn a_node_that_comes_back_loses_nothing(stage: &Stage) {
    let manager = stage.manager().await;
    let steps = format!(
        "lines {LINES} --stream both --delay-ms 5 + await /gate/go \
         + lines {LINES} --stream both --from {} + write /gate/end x + exit 4",
        LINES + 1
    );
    let run = start(stage, &manager, &steps).await;
    let kubelet = Down::stop("kubelet");
    is_lost(&run).await;
    stage.open_gate("go");
    let end_of_command = stage.gate().join("end");
    eventually(60, "the end of the command", async || {
        end_of_command.exists().then_some(())
    })
    .await;
    // The run is still the same, whatever the command did.
    is_lost(&run).await;
    assert!(
        matches!(run.state(), State::Running { .. }),
        "{:?}",
        run.state()
    );
    kubelet.start();
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(4), "{outcome}");
    let audit = read(&outcome);
    assert_both_streams(&audit, 2 * LINES);
    assert_eq!(run.problem(), None);
    stage.is_clean().await;
    node_is_ready().await;
}

/// Removes the pod of a run from the API while its node is lost, and checks what the seal says.
async fn remove(stage: &Stage, remove: impl FnOnce(&str)) {
    let manager = stage.manager().await;
    let steps =
        format!("lines {LINES} --stream both --delay-ms 5 + await /gate/go + write /gate/end x");
    let run = start(stage, &manager, &steps).await;
    let pods = cluster::pods(&stage.root_id());
    let pod = &pods[0];
    let containers: Vec<_> = pod["status"]["containerStatuses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|status| status["containerID"].as_str().unwrap().to_owned())
        .collect();
    let kubelet = Down::stop("kubelet");
    is_lost(&run).await;
    remove(pod["metadata"]["name"].as_str().unwrap());
    let outcome = end(&run).await;
    let audit = read(&outcome);
    println!("{}, {:?}", audit.end, audit.all("gap"));
    assert!(
        matches!(
            outcome.ending,
            Ending::Removed { code: None } | Ending::Lost { .. }
        ),
        "{outcome}"
    );
    assert_eq!(audit.verdict(), "gap", "{}", audit.end);
    for gap in audit.all("gap") {
        assert!(
            ["removed", "node_lost"].contains(&gap["reason"].as_str().unwrap()),
            "{gap}"
        );
    }
    assert_prefix(audit.stream("stdout"), &sequence::lines("out", LINES, 64));
    assert_prefix(audit.stream("stderr"), &sequence::lines("err", LINES, 64));
    assert!(audit.stream("stderr").len() >= 50 * 65);
    kubelet.start();
    node_is_ready().await;
    // The kubelet ends the containers of pods that it does not know.
    for container in containers {
        let id = container.strip_prefix("docker://").unwrap();
        eventually(120, "the end of a container", async || {
            let found = testkit::engine::inspect(cluster::DOCKER, id).await;
            let runs = found.is_ok_and(|found| found["State"]["Running"] == true);
            (!runs).then_some(())
        })
        .await;
        testkit::engine::remove(&cluster::docker(), id)
            .await
            .unwrap();
    }
    stage.open_gate("go");
    assert!(!stage.gate().join("end").exists(), "the command ran on");
    stage.is_clean().await;
}

async fn a_pod_whose_node_was_deleted_is_a_gap(stage: &Stage) {
    remove(stage, |_| {
        admin(&["delete", "nodes", "--all"]);
    })
    .await;
}

async fn a_pod_removed_from_a_lost_node_is_a_gap(stage: &Stage) {
    remove(stage, |pod| {
        admin(&["delete", "pod", pod, "--grace-period=0", "--force"]);
    })
    .await;
}

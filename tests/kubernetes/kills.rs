//! Containers of a pod that are killed.

use std::time::Duration;

use bollard::query_parameters::KillContainerOptionsBuilder;
use moat::spec::KeepContainer;
use moat::{Ending, Manager, Outcome, Run, RunId};
use serde_json::json;
use testkit::audit::Audit;
use testkit::deadline::within;
use testkit::sequence;

use crate::cluster;
use crate::embedder::Embedder;
use crate::stage::{Stage, assert_bytes, assert_complete, assert_prefix, end, read};

testkit::trials! {
    crate::on_cluster:
        a_command_out_of_memory_is_complete,
        a_collector_in_little_memory_keeps_everything;
    crate::on_local_cluster:
        a_killed_collector_is_a_gap,
        a_killed_collector_and_owner_are_a_gap,
        a_run_without_its_collector_can_be_stopped,
        a_run_without_its_collector_has_a_time_limit,
        a_killed_command_container_is_complete,
}

async fn a_command_out_of_memory_is_complete(stage: &Stage) {
    let spec = stage.spec("lines 500 --stream both + print last + alloc 300");
    let (outcome, audit) = stage.run(spec.memory(64 << 20)).await;
    let Ending::Exited(exit) = &outcome.ending else {
        panic!("{outcome}");
    };
    assert_eq!(exit.code, Some(137), "{outcome}");
    assert!(exit.oom_killed, "{outcome}");
    let mut expected = sequence::lines("out", 500, 64);
    expected.extend(b"last");
    assert_bytes(audit.stream("stdout"), &expected);
    assert_bytes(audit.stream("stderr"), &sequence::lines("err", 500, 64));
    assert_complete(&audit);
    assert_eq!(audit.evidence(), "end_marker");
    stage.is_clean().await;
}

/// The limit also counts the cached pages of the spool, which the kernel can drop.
async fn a_collector_in_little_memory_keeps_everything(stage: &Stage) {
    const BYTES: u64 = 80 << 20;
    let cluster = cluster::connect().await;
    let cluster = cluster.helper_resources(json!({"limits": {"memory": "32Mi"}}));
    let manager = Manager::open(stage.root(), cluster).await.unwrap();
    let spec = stage.spec(&format!("fill {BYTES} + exit 6"));
    let outcome = end(&manager.start(spec).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(6), "{outcome}");
    let audit = read(&outcome);
    let found = audit.stream("stdout");
    assert_eq!(found.len() as u64, BYTES);
    assert!(found.iter().all(|byte| *byte == b'x'));
    assert_complete(&audit);
    stage.is_clean().await;
}

/// Starts a run, and returns once its output has `text`.
async fn start(stage: &Stage, manager: &Manager, steps: &str, text: &str) -> Run {
    let spec = stage.gated(steps).id(RunId::new("killed").unwrap());
    let spec = spec.keep(KeepContainer::Never);
    let run = manager.start(spec).await.unwrap();
    stage.audited("killed", text).await;
    run
}

/// Kills the first process of a container of the trial's pod, as the kernel does when memory runs
/// out.
async fn kill(stage: &Stage, container: &str) {
    let pods = cluster::pods(&stage.root_id());
    let statuses = pods[0]["status"]["containerStatuses"].as_array().unwrap();
    let found = statuses.iter().find(|status| status["name"] == container);
    let id = found.unwrap()["containerID"].as_str().unwrap();
    let id = id.strip_prefix("docker://").expect("a container of Docker");
    let docker = cluster::docker();
    let options = KillContainerOptionsBuilder::new().signal("KILL").build();
    docker.kill_container(id, Some(options)).await.unwrap();
}

/// Checks the seal of a run whose collector was killed after `lines` were recorded.
fn check_gap(outcome: &Outcome, at_least: u64, printed: u64) -> Audit {
    let audit = read(outcome);
    println!("{}, {:?}", audit.end, audit.all("gap"));
    assert_eq!(audit.verdict(), "gap", "{}", audit.end);
    for gap in audit.all("gap") {
        assert!(
            ["log_unreadable", "removed"].contains(&gap["reason"].as_str().unwrap()),
            "{gap}"
        );
    }
    let found = audit.stream("stdout");
    assert_prefix(found, &sequence::lines("out", printed, 64));
    assert!(found.len() as u64 >= at_least * 65, "{} bytes", found.len());
    audit
}

async fn a_killed_collector_is_a_gap(stage: &Stage) {
    const LINES: u64 = 3000;
    let manager = stage.manager().await;
    let steps = format!("lines {LINES} --delay-ms 10");
    let run = start(stage, &manager, &steps, "out 00000050 ").await;
    kill(stage, "moat").await;
    let outcome = end(&run).await;
    // A write into the broken pipe ends the command.
    assert!(matches!(outcome.ending, Ending::Exited(_)), "{outcome}");
    assert_ne!(outcome.code(), Some(0), "{outcome}");
    let audit = check_gap(&outcome, 50, LINES);
    let detail = audit.all("gap")[0]["detail"].to_string();
    assert!(detail.contains("collector"), "{detail}");
    stage.is_clean().await;
}

/// The next process cannot ask the collector if the command has started.
async fn a_killed_collector_and_owner_are_a_gap(stage: &Stage) {
    let steps = "lines 20 + await /gate/go + exit 3";
    let embedder = Embedder::start(stage, "killed", steps);
    stage.audited("killed", "out 00000020 ").await;
    embedder.kill();
    kill(stage, "moat").await;
    stage.open_gate("go");
    let manager = stage.manager().await;
    manager.wait_recovery().await.unwrap();
    let run = manager.get(&RunId::new("killed").unwrap()).await.unwrap();
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    check_gap(&outcome, 20, 20);
    // By default, the container of a run with a gap is kept.
    assert_eq!(cluster::pods(&stage.root_id()).len(), 1);
}

async fn a_run_without_its_collector_can_be_stopped(stage: &Stage) {
    let manager = stage.manager().await;
    let steps = "ignore-term + lines 20 + hold";
    let run = start(stage, &manager, steps, "out 00000020 ").await;
    kill(stage, "moat").await;
    let stop = run.stop(Some(Duration::from_secs(2)));
    let outcome = within(120, "the stop", stop).await.unwrap();
    assert!([None, Some(137)].contains(&outcome.code()), "{outcome}");
    let outcome = end(&run).await;
    let audit = check_gap(&outcome, 20, 20);
    assert_eq!(audit.end["stopped"], "requested");
    stage.is_clean().await;
}

async fn a_run_without_its_collector_has_a_time_limit(stage: &Stage) {
    let manager = stage.manager().await;
    let id = RunId::new("killed").unwrap();
    let spec = stage.spec("lines 20 + hold").id(id);
    let spec = spec.keep(KeepContainer::Never);
    let spec = spec.time_limit(Duration::from_secs(15));
    let run = manager.start(spec).await.unwrap();
    stage.audited("killed", "out 00000020 ").await;
    kill(stage, "moat").await;
    let audit = check_gap(&end(&run).await, 20, 20);
    assert_eq!(audit.end["stopped"], "time_limit");
    stage.is_clean().await;
}

/// The wrapper dies with the command, and the collector has what was written.
async fn a_killed_command_container_is_complete(stage: &Stage) {
    let manager = stage.manager().await;
    let steps = "lines 300 --stream both + print end + hold";
    let run = start(stage, &manager, steps, "\"end\"").await;
    kill(stage, "main").await;
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(137), "{outcome}");
    let audit = read(&outcome);
    let mut expected = sequence::lines("out", 300, 64);
    expected.extend(b"end");
    assert_bytes(audit.stream("stdout"), &expected);
    assert_bytes(audit.stream("stderr"), &sequence::lines("err", 300, 64));
    assert_complete(&audit);
    stage.is_clean().await;
}

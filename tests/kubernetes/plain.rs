//! Pods without the helper, whose output comes from the kubelet's log.

use std::time::Duration;

use moat::audit::GapReason;
use moat::outcome::{Ending, Stream, Verdict};
use moat::runtime::kubernetes::PlainPods;
use moat::runtime::{ContainerStatus, CreateRequest, Runtime};
use moat::spec::RootId;
use moat::{Error, Manager, Outcome, Run, RunId, RunSpec, ShutdownMode};
use serde_json::{Value, json};
use testkit::audit::Audit;
use testkit::deadline::{eventually, within};
use testkit::sequence;
use tokio::task::JoinHandle;

use crate::cluster::{self, Down};
use crate::stage::{Stage, assert_bytes, end, read};

testkit::trials! {
    crate::on_local_cluster:
        the_output_is_merged_and_never_complete,
        a_command_waits_for_its_start,
        a_command_that_cannot_start_is_refused,
        a_missing_image_is_refused,
        a_stop_keeps_the_exit_code,
        a_kill_ends_the_command,
        a_command_that_is_deleted_is_removed,
        another_manager_continues,
        the_other_runtime_leaves_the_pod_alone,
        a_manager_that_leaves_during_the_start_hides_no_command,
        a_deletion_during_the_start_hides_no_command,
        a_patch_does_not_start_the_command,
        output_like_an_error_is_kept,
        a_kill_follows_a_stop;
    crate::on_broken_cluster:
        a_restarted_kubelet_loses_no_line,
}

async fn connect() -> PlainPods {
    cluster::connect_as("plain").await.without_helper()
}

async fn manager(stage: &Stage) -> Manager {
    Manager::open(stage.root(), connect().await).await.unwrap()
}

async fn run(stage: &Stage, spec: RunSpec) -> (Outcome, Audit) {
    let run = manager(stage).await.start(spec).await.unwrap();
    let outcome = end(&run).await;
    let audit = read(&outcome);
    stage.is_clean().await;
    (outcome, audit)
}

/// Asserts that nothing but the kubelet's log casts doubt on the output.
#[track_caller]
fn assert_only_rotated(outcome: &Outcome, audit: &Audit) {
    let seal = outcome.sealed().unwrap();
    assert_eq!(seal.verdict, Verdict::Gap);
    let gaps = audit.all("gap");
    let reasons: Vec<_> = gaps
        .iter()
        .map(|gap| (gap["reason"].as_str().unwrap(), &gap["possible"]))
        .collect();
    let expected = (GapReason::LogRotated.as_str(), &Value::Bool(true));
    assert_eq!(reasons, [expected], "{gaps:?}");
}

async fn the_output_is_merged_and_never_complete(stage: &Stage) {
    let steps = "lines 2000 --stream both + env SECRET + exit 7";
    let spec = stage.spec(steps).env("SECRET", "a value\nof two lines");
    let (outcome, audit) = run(stage, spec).await;
    assert_eq!(outcome.code(), Some(7));
    assert_eq!(audit.evidence(), "replay");
    assert_only_rotated(&outcome, &audit);
    assert!(audit.stream("stdout").is_empty() && audit.stream("stderr").is_empty());
    let merged = String::from_utf8_lossy(audit.stream("merged")).into_owned();
    for stream in ["out", "err"] {
        let lines = merged.lines().filter(|line| line.starts_with(stream));
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        sequence::check(lines.as_bytes(), stream, 2000, 64).unwrap();
    }
    assert!(merged.contains("a value\n") && merged.contains("of two lines\n"));
    assert_eq!(audit.all("started")[0]["log"]["fidelity"], "rotated");
    let bytes = &outcome.sealed().unwrap().bytes;
    assert_eq!(bytes[Stream::Merged], audit.stream("merged").len() as u64);
}

async fn a_command_waits_for_its_start(stage: &Stage) {
    let pods = connect().await;
    let root = RootId::try_from("00112233445566778899".to_owned()).unwrap();
    let run = RunId::new("waits").unwrap();
    let spec = stage.spec("echo ran");
    pods.prepare(&spec).await.unwrap();
    let request = CreateRequest::new("moat-plain-waits", &root, &run, &spec);
    let created = pods.create(request).await.unwrap();
    let placed = within(60, "the placement", pods.place(&created.container, &spec));
    placed.await.unwrap();
    let status = async || pods.inspect(&created.container).await.unwrap().status;
    assert_eq!(status().await, ContainerStatus::Created);
    // The kubelet tries again after 10 to 15 s.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(status().await, ContainerStatus::Created);
    pods.start(&created.container).await.unwrap();
    assert_ne!(status().await, ContainerStatus::Created);
    let ended = within(60, "the end", pods.wait(&created.container));
    assert_eq!(ended.await.unwrap().code, Some(0));
    pods.remove(&created.container, false).await.unwrap();
    assert!(pods.find(&root).await.unwrap().is_empty());
}

async fn a_command_that_cannot_start_is_refused(stage: &Stage) {
    let manager = manager(stage).await;
    let spec = stage.spec("echo").entrypoint(["/nope"]);
    let error = manager.start(spec).await.unwrap_err();
    assert!(matches!(error, Error::NotStarted { .. }), "{error:?}");
    let text = error.chain().to_string();
    assert!(text.contains("/nope"), "{text}");
    stage.is_clean().await;
}

async fn a_missing_image_is_refused(stage: &Stage) {
    let pods = cluster::connect_as("plain").await;
    let pods = pods.patience(Duration::from_secs(2)).without_helper();
    let manager = Manager::open(stage.root(), pods).await.unwrap();
    let spec = RunSpec::new("nope.invalid/nope:1").cmd(["x"]);
    let error = manager.start(spec).await.unwrap_err();
    let text = error.chain().to_string();
    assert!(text.contains("nope.invalid/nope:1"), "{text}");
    stage.is_clean().await;
}

/// Starts a run, and returns once its audit has `text`.
async fn start_until(stage: &Stage, spec: RunSpec, text: &str) -> (Manager, Run) {
    let manager = manager(stage).await;
    let run = manager.start(spec).await.unwrap();
    stage.audited(run.id().as_str(), text).await;
    (manager, run)
}

async fn a_stop_keeps_the_exit_code(stage: &Stage) {
    let spec = stage.spec("lines 100 + trap --exit 3");
    let (_manager, run) = start_until(stage, spec, "ready").await;
    let outcome = run.stop(None).await.unwrap();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    let outcome = end(&run).await;
    let audit = read(&outcome);
    let mut expected = sequence::lines("out", 100, 64);
    expected.extend(b"ready\ncaught SIGTERM\n");
    assert_bytes(audit.stream("merged"), &expected);
    assert_eq!(audit.verdict(), "gap");
    stage.is_clean().await;
}

async fn a_kill_ends_the_command(stage: &Stage) {
    let spec = stage.spec("echo up + hold");
    let (_manager, run) = start_until(stage, spec, "up").await;
    let outcome = run.kill().await.unwrap();
    assert_eq!(outcome.code(), Some(137), "{outcome}");
    let audit = read(&end(&run).await);
    assert_bytes(audit.stream("merged"), b"up\n");
    stage.is_clean().await;
}

async fn a_command_that_is_deleted_is_removed(stage: &Stage) {
    let spec = stage.spec("echo up + hold");
    let (_manager, run) = start_until(stage, spec, "up").await;
    cluster::admin(&[
        "delete",
        "pod",
        &stage.pod(),
        "--grace-period=1",
        "--wait=false",
    ]);
    let outcome = end(&run).await;
    let audit = read(&outcome);
    assert_bytes(audit.stream("merged"), b"up\n");
    assert_eq!(audit.verdict(), "gap");
    stage.is_clean().await;
}

async fn another_manager_continues(stage: &Stage) {
    let spec = stage.gated("lines 500 + await /gate/go + lines 500 --from 501 + exit 4");
    let (first, run) = start_until(stage, spec, "out 00000500 ").await;
    let id = run.id().clone();
    drop(run);
    first.shutdown(ShutdownMode::Leave).await;

    let second = manager(stage).await;
    let run = second.get(&id).await.unwrap();
    stage.open_gate("go");
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(4));
    let audit = read(&outcome);
    assert_bytes(audit.stream("merged"), &sequence::lines("out", 1000, 64));
    assert_only_rotated(&outcome, &audit);
    stage.is_clean().await;
}

async fn the_other_runtime_leaves_the_pod_alone(stage: &Stage) {
    let first = manager(stage).await;
    let run = first
        .start(stage.gated("await /gate/go + exit 4"))
        .await
        .unwrap();
    let id = run.id().clone();
    drop(run);
    first.shutdown(ShutdownMode::Leave).await;

    let other = stage.manager().await;
    let runs = other.wait_recovery().await.unwrap();
    let problem = runs[0].problem().unwrap();
    assert!(problem.contains("kubernetes-plain"), "{problem}");
    drop(runs);
    stage.pod();
    other.shutdown(ShutdownMode::Leave).await;

    let second = manager(stage).await;
    stage.open_gate("go");
    let outcome = end(&second.get(&id).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(4));
    stage.is_clean().await;
}

/// Starts a run, and returns its start once the command runs, which is before the kubelet reports
/// it.
async fn begin(stage: &Stage, manager: &Manager, id: &RunId) -> JoinHandle<moat::Result<Run>> {
    let steps = "write /gate/began x + echo output + sleep 1 + exit 5";
    let spec = stage.gated(steps).id(id.clone());
    let manager = manager.clone();
    let start = tokio::spawn(async move { manager.start(spec).await });
    let began = stage.gate().join("began");
    eventually(60, "the command", async || began.exists().then_some(())).await;
    start
}

#[track_caller]
fn assert_started(outcome: &Outcome) {
    let ending = &outcome.ending;
    assert!(!matches!(ending, Ending::FailedToStart { .. }), "{outcome}");
    assert_eq!(outcome.sealed().unwrap().verdict, Verdict::Gap);
}

async fn a_manager_that_leaves_during_the_start_hides_no_command(stage: &Stage) {
    let id = RunId::new("leaves").unwrap();
    let first = manager(stage).await;
    let start = begin(stage, &first, &id).await;
    first.shutdown(ShutdownMode::Leave).await;
    let _ = start.await.unwrap();
    let second = manager(stage).await;
    let outcome = end(&second.get(&id).await.unwrap()).await;
    assert_started(&outcome);
    assert_bytes(read(&outcome).stream("merged"), b"output\n");
    stage.is_clean().await;
}

async fn a_deletion_during_the_start_hides_no_command(stage: &Stage) {
    let id = RunId::new("deleted").unwrap();
    let manager = manager(stage).await;
    let start = begin(stage, &manager, &id).await;
    cluster::admin(&["delete", "pod", &stage.pod(), "--wait=false"]);
    let _ = start.await.unwrap();
    let outcome = end(&manager.get(&id).await.unwrap()).await;
    assert_eq!(outcome.sealed().unwrap().verdict, Verdict::Gap, "{outcome}");
    stage.is_clean().await;
}

async fn a_patch_does_not_start_the_command(stage: &Stage) {
    let manager = manager(stage).await;
    let sources = json!([{"configMapRef": {"name": "of-nobody", "optional": true}}]);
    let patch = json!({"spec": {"containers": [{"name": "main", "envFrom": sources}]}});
    let spec = stage.spec("env SECRET").env("SECRET", "value");
    let run = manager.start(spec.engine_patch(patch)).await.unwrap();
    let outcome = end(&run).await;
    assert_bytes(read(&outcome).stream("merged"), b"value\n");
    stage.is_clean().await;
}

async fn output_like_an_error_is_kept(stage: &Stage) {
    let text = "call failed: rpc error: code = Unavailable desc = refused";
    let command = ["echo", "first", "+", "print", text, "+", "exit", "1"];
    let (outcome, audit) = run(stage, stage.spec("").cmd(command)).await;
    assert_eq!(outcome.code(), Some(1));
    assert_bytes(audit.stream("merged"), format!("first\n{text}").as_bytes());
    assert_only_rotated(&outcome, &audit);
}

/// The kubelet can lose the exit code of a container that it kills.
async fn a_kill_follows_a_stop(stage: &Stage) {
    let spec = stage.spec("ignore-term + echo up + hold");
    let spec = spec.stop_grace(Duration::from_secs(5));
    let (_manager, run) = start_until(stage, spec, "up").await;
    run.stop(Some(Duration::from_secs(1))).await.unwrap();
    let outcome = end(&run).await;
    assert!(matches!(outcome.ending, Ending::Exited(_)), "{outcome}");
    assert!(matches!(outcome.code(), Some(137) | None), "{outcome}");
    stage.is_clean().await;
}

/// A kubelet that is restarted ends the log as if the container had ended.
async fn a_restarted_kubelet_loses_no_line(stage: &Stage) {
    let spec = stage.gated("lines 500 + await /gate/go + lines 500 --from 501 + exit 4");
    let (_manager, run) = start_until(stage, spec, "out 00000500 ").await;
    Down::stop("kubelet").start();
    stage.open_gate("go");
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(4));
    let audit = read(&outcome);
    assert_bytes(audit.stream("merged"), &sequence::lines("out", 1000, 64));
    assert_only_rotated(&outcome, &audit);
    stage.is_clean().await;
}

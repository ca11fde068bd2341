//! Runs whose process leaves or is killed.

use std::time::Duration;

use moat::audit::{Reader, Record};
use moat::manager::RecoveryMode;
use moat::outcome::StopCause;
use moat::timestamp::Timestamp;
use moat::{Docker, Error, Manager, Root, Run, RunId, ShutdownMode};
use testkit::deadline::{eventually, within};
use testkit::sequence;

use crate::embedder::Embedder;
use crate::stage::{Stage, Watched, assert_bytes, assert_nothing_missed, end, printed, read, seal};

testkit::trials! {
    crate::on_engine:
        a_killed_embedder_keeps_each_line_once,
        a_killed_embedder_keeps_equal_lines_once,
        repeated_kills_lose_nothing,
        an_exit_without_owner_is_sealed_later,
        a_terminal_run_of_a_killed_embedder_is_whole,
        recovered_lines_have_the_engines_time,
        shutdown_can_leave_runs_alone,
        shutdown_can_stop_and_seal_runs,
        a_passed_time_limit_is_enforced_at_open,
        a_stop_continues_after_its_owner_is_killed,
        another_process_cannot_take_over_an_owned_run,
        an_external_restart_is_another_execution,
        a_detached_run_outlives_its_manager,
}

const RUN: &str = "nightly";

fn id() -> RunId {
    RunId::new(RUN).unwrap()
}

/// Waits until the audit file of another process has `text`.
async fn audited(stage: &Stage, text: &str) {
    let path = stage.root().join(RUN).join("logs.jsonl");
    eventually(30, text, async || {
        let audit = std::fs::read_to_string(&path).unwrap_or_default();
        audit.contains(text).then_some(())
    })
    .await;
}

async fn recovered(manager: &Manager) -> Run {
    let found = within(60, "the recovery", manager.wait_recovery())
        .await
        .unwrap();
    assert!(!found.is_empty());
    manager.get(&id()).await.unwrap()
}

/// Invariant 4: the embedder is killed in the middle of the output, while the container prints.
async fn a_killed_embedder_keeps_each_line_once(stage: &Stage) {
    let steps = "lines 1500 --stream both --burst 10 --delay-ms 4 + await /gate/go \
                 + lines 1500 --from 1501 --stream both --burst 10 --delay-ms 4 + exit 7";
    let embedder = Embedder::start(stage, RUN, steps);
    audited(stage, "out 00000500 ").await;
    embedder.kill();
    stage.open_gate("go");
    let manager = stage.manager().await;
    let outcome = end(&recovered(&manager).await).await;
    assert_eq!(outcome.code(), Some(7));
    let audit = read(&outcome);
    sequence::check(audit.stream("stdout"), "out", 3000, 64).unwrap();
    sequence::check(audit.stream("stderr"), "err", 3000, 64).unwrap();
    assert_nothing_missed(&audit);
    assert_eq!(audit.evidence(), "replay");
    assert_eq!(audit.all("resume").len(), 1);
    stage.is_clean().await;
}

async fn a_killed_embedder_keeps_equal_lines_once(stage: &Stage) {
    let steps = "yes same 300 + await /gate/go + yes same 300";
    let embedder = Embedder::start(stage, RUN, steps);
    audited(stage, "same").await;
    embedder.kill();
    stage.open_gate("go");
    let manager = stage.manager().await;
    let audit = read(&end(&recovered(&manager).await).await);
    assert_bytes(audit.stream("stdout"), "same\n".repeat(600).as_bytes());
    assert_nothing_missed(&audit);
}

async fn repeated_kills_lose_nothing(stage: &Stage) {
    let steps = "lines 100 + await /gate/1 + lines 100 --from 101 + await /gate/2 \
                 + lines 100 --from 201 + await /gate/3 + lines 100 --from 301 + await /gate/end";
    Embedder::start(stage, RUN, steps).kill();
    for gate in ["1", "2", "3"] {
        let embedder = Embedder::take_over(stage, RUN);
        stage.open_gate(gate);
        embedder.kill();
    }
    stage.open_gate("end");
    let manager = stage.manager().await;
    let audit = read(&end(&recovered(&manager).await).await);
    sequence::check(audit.stream("stdout"), "out", 400, 64).unwrap();
    assert_nothing_missed(&audit);
    stage.is_clean().await;
}

async fn an_exit_without_owner_is_sealed_later(stage: &Stage) {
    let steps = "lines 100 + await /gate/go + lines 100 --from 101 + exit 3";
    Embedder::start(stage, RUN, steps).kill();
    stage.open_gate("go");
    stage.container_ended().await;
    let manager = stage.manager().await;
    let outcome = end(&recovered(&manager).await).await;
    assert_eq!(outcome.code(), Some(3));
    let audit = read(&outcome);
    sequence::check(audit.stream("stdout"), "out", 200, 64).unwrap();
    assert_nothing_missed(&audit);
    assert_eq!(audit.evidence(), "replay");
}

/// With time stamps, a replay of terminal output would have them inside lines.
async fn a_terminal_run_of_a_killed_embedder_is_whole(stage: &Stage) {
    let steps = "lines 100 + print half + await /gate/go + echo -whole";
    let embedder = Embedder::start_tty(stage, RUN, steps);
    audited(stage, "out 00000100 ").await;
    embedder.kill();
    stage.open_gate("go");
    let manager = stage.manager().await;
    let audit = read(&end(&recovered(&manager).await).await);
    let mut expected = String::from_utf8(sequence::lines("out", 100, 64)).unwrap();
    expected.push_str("half-whole\n");
    let expected = expected.replace('\n', "\r\n");
    assert_bytes(audit.stream("tty"), expected.as_bytes());
    assert_nothing_missed(&audit);
}

/// A manager that closes must not stop its runs.
async fn recovered_lines_have_the_engines_time(stage: &Stage) {
    let manager = stage.manager().await;
    let steps = "await /gate/go + echo one + sleep 1.5 + echo two";
    let spec = stage.gated(steps).id(id()).detached(true);
    manager.start(spec).await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
    stage.open_gate("go");
    stage.container_ended().await;
    let reopened = Timestamp::now();
    let manager = stage.manager().await;
    let outcome = end(&recovered(&manager).await).await;
    let records = Reader::open(outcome.audit.as_ref().unwrap()).unwrap();
    let outputs = records.filter_map(|record| match record.unwrap() {
        Record::Output(output) => Some(output),
        _ => None,
    });
    let lines: Vec<_> = outputs.collect();
    let texts: Vec<_> = lines.iter().map(|line| &line.bytes[..]).collect();
    assert_eq!(texts, [b"one", b"two"]);
    assert!(
        lines
            .iter()
            .all(|line| line.engine_time && line.ts < reopened)
    );
    let between = lines[1].ts.since(lines[0].ts);
    assert!(between > Duration::from_secs(1), "{between:?}");
}

async fn shutdown_can_leave_runs_alone(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .gated("lines 50 + await /gate/go + lines 50 --from 51")
        .id(id());
    let run = manager.start(spec).await.unwrap();
    printed(&run, "out 00000050 ").await;
    within(60, "the shutdown", manager.shutdown(ShutdownMode::Leave)).await;
    assert!(matches!(run.wait().await, Err(Error::Closed)));
    drop((run, manager));
    let container = stage.containers().await.remove(0);
    assert_eq!(stage.inspect(&container).await["State"]["Running"], true);
    stage.open_gate("go");
    let manager = stage.manager().await;
    let audit = read(&end(&recovered(&manager).await).await);
    sequence::check(audit.stream("stdout"), "out", 100, 64).unwrap();
    assert_nothing_missed(&audit);
}

async fn shutdown_can_stop_and_seal_runs(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager
        .start(stage.spec("trap --exit 2").id(id()))
        .await
        .unwrap();
    printed(&run, "ready\n").await;
    within(60, "the shutdown", manager.shutdown(ShutdownMode::Stop)).await;
    drop((run, manager));
    let info = Root::open(stage.root()).unwrap().info(&id()).unwrap();
    let seal = info.seal.unwrap();
    assert_eq!(seal.exit.code(), Some(2));
    assert_eq!(seal.stopped, Some(StopCause::Shutdown));
}

/// The limit is a recorded point in time, not a timer of the dead process.
async fn a_passed_time_limit_is_enforced_at_open(stage: &Stage) {
    Embedder::start_limited(stage, RUN, "trap --exit 2", 5.0).kill();
    tokio::time::sleep(Duration::from_millis(5200)).await;
    let manager = stage.manager().await;
    let outcome = end(&recovered(&manager).await).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::TimeLimit));
    assert_eq!(outcome.code(), Some(2));
}

/// A container that ignores the signal is still killed if its owner dies during the grace period.
async fn a_stop_continues_after_its_owner_is_killed(stage: &Stage) {
    let embedder =
        Embedder::start_and_stop(stage, RUN, "ignore-term + echo ready + sleep 600", 8.0);
    audited(stage, r#""type":"stop""#).await;
    embedder.kill();
    let manager = stage.manager().await;
    let outcome = end(&recovered(&manager).await).await;
    assert_eq!(outcome.code(), Some(137), "{outcome}");
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
    let audit = read(&outcome);
    assert_bytes(audit.stream("stdout"), b"ready\n");
    assert_nothing_missed(&audit);
    assert_eq!(audit.all("stop").len(), 1);
}

/// Invariant 5: only the owner waits for the container. All others watch the owner.
async fn another_process_cannot_take_over_an_owned_run(stage: &Stage) {
    let embedder = Embedder::start(stage, RUN, "lines 100 + trap --exit 2");
    audited(stage, "ready").await;
    let root = Root::open(stage.root()).unwrap();
    assert!(root.info(&id()).unwrap().owned);
    let docker = Docker::connect().await.unwrap();
    let manager = Manager::builder(stage.root(), docker)
        .recovery(RecoveryMode::OnDemand)
        .open()
        .await
        .unwrap();
    let run = manager.get(&id()).await.unwrap();
    let taken = manager.remove(&id()).await;
    assert!(taken.is_err(), "a run that lives was removed");
    let (watched, waited, stopped) = tokio::join!(
        async { Watched::all(run.attach().await.unwrap()).await },
        async { end(&run).await },
        async { run.stop(None).await.unwrap() },
    );
    assert_eq!(waited.code(), Some(2));
    assert_eq!(stopped.code(), Some(2));
    let mut expected = sequence::lines("out", 100, 64);
    expected.extend_from_slice(b"ready\ncaught SIGTERM\n");
    assert_bytes(watched.stdout(), &expected);
    let audit = read(&waited);
    assert_bytes(audit.stream("stdout"), &expected);
    assert!(audit.all("resume").is_empty(), "the owner never changed");
    assert_eq!(seal(&waited).stopped, Some(StopCause::Requested));
    embedder.kill();
}

/// Output after an external restart belongs to another execution.
async fn an_external_restart_is_another_execution(stage: &Stage) {
    let embedder = Embedder::start(stage, RUN, "lines 100 + await /gate/go");
    // The start time distinguishes the executions.
    audited(stage, r#""type":"started""#).await;
    embedder.kill();
    stage.open_gate("go");
    stage.container_ended().await;
    let container = stage.containers().await.remove(0);
    stage
        .docker
        .start_container(&container, None)
        .await
        .unwrap();
    stage.container_ended().await;
    let manager = stage.manager().await;
    let audit = read(&end(&recovered(&manager).await).await);
    assert_eq!(audit.verdict(), "gap");
    assert!(
        audit
            .all("gap")
            .iter()
            .any(|gap| gap["reason"] == "started_again")
    );
    let twice = sequence::lines("out", 100, 64).repeat(2);
    assert!(twice.starts_with(audit.stream("stdout")));
}

async fn a_detached_run_outlives_its_manager(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage
        .gated("lines 100 + await /gate/go + lines 100 --from 101 + exit 2")
        .detached(true);
    let run = manager.start(spec).await.unwrap();
    let id = run.id().clone();
    drop(run);
    manager.shutdown(ShutdownMode::Leave).await;
    stage.open_gate("go");
    let manager = stage.manager().await;
    let outcome = end(&manager.get(&id).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(2));
    let audit = read(&outcome);
    sequence::check(audit.stream("stdout"), "out", 200, 64).unwrap();
    assert_nothing_missed(&audit);
}

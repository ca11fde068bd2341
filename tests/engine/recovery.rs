//! Runs whose process leaves or is killed.

use std::time::Duration;

use moat::manager::RecoveryMode;
use moat::outcome::StopCause;
use moat::{Docker, Error, Manager, Root, Run, RunId, ShutdownMode};
use testkit::deadline::{eventually, within};
use testkit::sequence;

use crate::embedder::Embedder;
use crate::stage::{Stage, Watched, assert_bytes, assert_complete, end, printed, read, seal};

testkit::trials! {
    crate::on_engine:
        a_killed_embedder_loses_and_doubles_no_line,
        a_killed_embedder_loses_and_doubles_no_identical_line,
        embedders_killed_one_after_the_other_lose_nothing,
        a_run_that_ends_while_nobody_looks_is_sealed_by_the_next_manager,
        a_terminal_run_of_a_killed_embedder_is_whole,
        a_manager_that_leaves_does_not_touch_its_runs,
        a_manager_that_stops_its_runs_seals_them,
        a_time_limit_that_passed_while_nobody_looked_is_enforced_at_open,
        a_stop_is_carried_on_when_its_owner_is_killed_before_the_grace_is_over,
        another_process_can_wait_read_and_stop_but_not_take_over,
        a_container_started_again_by_others_is_another_execution,
        a_detached_run_goes_on_and_is_sealed_by_the_next_manager,
}

const RUN: &str = "nightly";

fn id() -> RunId {
    RunId::new(RUN).unwrap()
}

/// Waits until the audit, which another process writes, holds `text`.
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

/// Waits until the engine says that the run's container has ended.
async fn container_ended(stage: &Stage) {
    eventually(30, "the end of the container", async || {
        let container = stage.containers().await.pop()?;
        let found = stage
            .docker
            .inspect_container(&container, None)
            .await
            .ok()?;
        (!found.state?.running?).then_some(())
    })
    .await;
}

/// Invariant 4: killed in the middle of the output, with the container printing all the while.
async fn a_killed_embedder_loses_and_doubles_no_line(stage: &Stage) {
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
    assert_complete(&audit);
    assert_eq!(audit.evidence(), "replay");
    assert_eq!(audit.all("resume").len(), 1);
    stage.is_clean().await;
}

async fn a_killed_embedder_loses_and_doubles_no_identical_line(stage: &Stage) {
    let steps = "yes same 300 + await /gate/go + yes same 300";
    let embedder = Embedder::start(stage, RUN, steps);
    audited(stage, "same").await;
    embedder.kill();
    stage.open_gate("go");
    let manager = stage.manager().await;
    let audit = read(&end(&recovered(&manager).await).await);
    assert_bytes(audit.stream("stdout"), "same\n".repeat(600).as_bytes());
    assert_complete(&audit);
}

async fn embedders_killed_one_after_the_other_lose_nothing(stage: &Stage) {
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
    assert_complete(&audit);
    stage.is_clean().await;
}

async fn a_run_that_ends_while_nobody_looks_is_sealed_by_the_next_manager(stage: &Stage) {
    let steps = "lines 100 + await /gate/go + lines 100 --from 101 + exit 3";
    Embedder::start(stage, RUN, steps).kill();
    stage.open_gate("go");
    container_ended(stage).await;
    let manager = stage.manager().await;
    let outcome = end(&recovered(&manager).await).await;
    assert_eq!(outcome.code(), Some(3));
    let audit = read(&outcome);
    sequence::check(audit.stream("stdout"), "out", 200, 64).unwrap();
    assert_complete(&audit);
    assert_eq!(audit.evidence(), "replay");
}

/// Replayed with time stamps, a terminal's output would have them in the middle of its lines.
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
    assert_complete(&audit);
}

/// A manager that closes must not take its runs down with it.
async fn a_manager_that_leaves_does_not_touch_its_runs(stage: &Stage) {
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
    let found = stage
        .docker
        .inspect_container(&container, None)
        .await
        .unwrap();
    assert_eq!(found.state.unwrap().running, Some(true));
    stage.open_gate("go");
    let manager = stage.manager().await;
    let audit = read(&end(&recovered(&manager).await).await);
    sequence::check(audit.stream("stdout"), "out", 100, 64).unwrap();
    assert_complete(&audit);
}

async fn a_manager_that_stops_its_runs_seals_them(stage: &Stage) {
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

/// The limit is a point in time that is written down, not a timer of the process that died.
async fn a_time_limit_that_passed_while_nobody_looked_is_enforced_at_open(stage: &Stage) {
    Embedder::start_limited(stage, RUN, "trap --exit 2", 5.0).kill();
    tokio::time::sleep(Duration::from_millis(5200)).await;
    let manager = stage.manager().await;
    let outcome = end(&recovered(&manager).await).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::TimeLimit));
    assert_eq!(outcome.code(), Some(2));
}

/// A container that ignores the signal does not run on because who was asked to stop it died.
async fn a_stop_is_carried_on_when_its_owner_is_killed_before_the_grace_is_over(stage: &Stage) {
    let embedder = Embedder::start_and_stop(stage, RUN, "deaf + echo ready + sleep 600", 8.0);
    audited(stage, r#""type":"stop""#).await;
    embedder.kill();
    let manager = stage.manager().await;
    let outcome = end(&recovered(&manager).await).await;
    assert_eq!(outcome.code(), Some(137), "{outcome}");
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
    let audit = read(&outcome);
    assert_bytes(audit.stream("stdout"), b"ready\n");
    assert_complete(&audit);
    assert_eq!(audit.all("stop").len(), 1);
}

/// Invariant 5: the owner alone waits for the container; everyone else watches the owner.
async fn another_process_can_wait_read_and_stop_but_not_take_over(stage: &Stage) {
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

/// What a container prints when it is started again belongs to another execution.
async fn a_container_started_again_by_others_is_another_execution(stage: &Stage) {
    let embedder = Embedder::start(stage, RUN, "lines 100 + await /gate/go");
    // By which the next execution is told from it.
    audited(stage, r#""type":"started""#).await;
    embedder.kill();
    stage.open_gate("go");
    container_ended(stage).await;
    let container = stage.containers().await.remove(0);
    stage
        .docker
        .start_container(&container, None)
        .await
        .unwrap();
    eventually(30, "the second end", async || {
        let found = stage
            .docker
            .inspect_container(&container, None)
            .await
            .ok()?;
        (!found.state?.running?).then_some(())
    })
    .await;
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

async fn a_detached_run_goes_on_and_is_sealed_by_the_next_manager(stage: &Stage) {
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
    assert_complete(&audit);
}

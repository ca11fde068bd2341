//! External changes to containers: stops, kills, removals, pauses, restarts.

use std::time::Duration;

use bollard::query_parameters::{
    KillContainerOptionsBuilder, RenameContainerOptionsBuilder, StopContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use futures::TryStreamExt;
use moat::spec::KeepContainer;
use moat::state::RunStatus;
use moat::{Docker, Ending, Error, Manager, Root, RunId, ShutdownMode};
use testkit::proxy::Proxy;
use testkit::{engine, sequence};

use super::check::{assert_all_lines, assert_whole, sealed, show};
use super::daemon::{Daemon, kill};
use crate::stage::{assert_bytes, assert_complete, end, is_removed_or_killed, printed, read};

testkit::trials! {
    crate::daemon::on_daemon:
        a_killed_shim_ends_the_run_with_all_output,
        an_external_stop_is_a_normal_exit,
        an_external_kill_is_code_137_and_complete,
        an_external_removal_is_recorded,
        an_external_pause_loses_nothing,
        a_stop_ends_an_externally_paused_container,
        a_renamed_container_is_recovered_and_removed,
        a_restart_of_a_kept_container_changes_nothing,
        an_external_restart_before_replay_is_a_gap,
        a_run_of_another_daemon_is_left_alone,
}

/// The container ends with its shim. The engine invents an exit code, but the output until then is
/// known.
async fn a_killed_shim_ends_the_run_with_all_output() {
    let daemon = Daemon::new().await;
    let (_manager, run) = daemon
        .start_until("lines 300 + sleep 600", "out 00000300 ")
        .await;
    for shim in daemon.shims() {
        kill("KILL", shim);
    }
    let (outcome, audit) = sealed(&run).await;
    assert!(matches!(outcome.ending, Ending::Exited(_)), "{outcome}");
    assert_ne!(outcome.code(), Some(0), "{outcome}");
    assert_all_lines(&audit, 300);
}

async fn an_external_stop_is_a_normal_exit() {
    let daemon = Daemon::new().await;
    let (_manager, run) = daemon
        .start_until("lines 100 + trap --exit 3", "ready\n")
        .await;
    let options = StopContainerOptionsBuilder::new().t(30).build();
    let container = daemon.container().await;
    let stopped = daemon.docker.stop_container(&container, Some(options));
    stopped.await.unwrap();
    let (outcome, audit) = sealed(&run).await;
    assert_eq!(outcome.code(), Some(3));
    assert_complete(&audit);
    assert!(audit.all("stop").is_empty(), "moat did not ask for it");
    let mut expected = sequence::lines("out", 100, 64);
    expected.extend_from_slice(b"ready\ncaught SIGTERM\n");
    assert_bytes(audit.stream("stdout"), &expected);
}

async fn an_external_kill_is_code_137_and_complete() {
    let daemon = Daemon::new().await;
    let (_manager, run) = daemon
        .start_until("lines 100 + sleep 600", "out 00000100 ")
        .await;
    let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
    let container = daemon.container().await;
    let killed = daemon.docker.kill_container(&container, Some(options));
    killed.await.unwrap();
    assert_whole(&run, 137, 100).await;
    daemon.is_clean().await;
}

/// The stream is read to its end, but the log that would confirm it is gone.
async fn an_external_removal_is_recorded() {
    let daemon = Daemon::new().await;
    let (_manager, run) = daemon
        .start_until("lines 100000 --burst 10 --delay-ms 5", "out 00000500 ")
        .await;
    let container = daemon.container().await;
    engine::remove(&daemon.docker, &container).await.unwrap();
    let (outcome, audit) = sealed(&run).await;
    assert!(is_removed_or_killed(&outcome.ending), "{outcome}");
    assert!(["end_marker", "eof", "none"].contains(&audit.evidence()));
    let all = sequence::lines("out", 100_000, 64);
    assert!(all.starts_with(audit.stream("stdout")));
}

async fn an_external_pause_loses_nothing() {
    let daemon = Daemon::new().await;
    let (_manager, run) = daemon
        .start_until(
            "lines 200 --burst 10 --delay-ms 10 + await /gate/go + lines 200 --from 201 + exit 5",
            "out 00000100 ",
        )
        .await;
    let container = daemon.container().await;
    daemon.docker.pause_container(&container).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(run.state().ending().is_none(), "{:?}", run.state());
    daemon.open_gate("go");
    daemon.docker.unpause_container(&container).await.unwrap();
    assert_whole(&run, 5, 400).await;
}

/// Only SIGKILL reaches a paused container.
async fn a_stop_ends_an_externally_paused_container() {
    let daemon = Daemon::new().await;
    let (_manager, run) = daemon
        .start_until("lines 100 + sleep 600", "out 00000100 ")
        .await;
    let container = daemon.container().await;
    daemon.docker.pause_container(&container).await.unwrap();
    let outcome = run.stop(Some(Duration::from_secs(1))).await.unwrap();
    assert!(outcome.sealed().is_some(), "{outcome}");
    let audit = read(&outcome);
    show(&outcome, &audit);
    assert_eq!(outcome.code(), Some(137));
    assert_complete(&audit);
    assert_all_lines(&audit, 100);
}

/// Any client of the engine can rename a container.
async fn a_renamed_container_is_recovered_and_removed() {
    let daemon = Daemon::new().await;
    let manager = daemon.manager().await;
    let id = RunId::new("one").unwrap();
    let steps = "lines 100 + await /gate/go + lines 100 --from 101 + exit 5";
    let run = manager
        .start(daemon.spec(steps).id(id.clone()))
        .await
        .unwrap();
    printed(&run, "out 00000100 ").await;
    let container = daemon.container().await;
    let options = RenameContainerOptionsBuilder::new().name("mine").build();
    let renamed = daemon.docker.rename_container(&container, options);
    renamed.await.unwrap();
    drop(run);
    manager.shutdown(ShutdownMode::Leave).await;
    // Not even the container's id is recorded.
    let run_json = daemon.root().join("one/run.json");
    let text = std::fs::read_to_string(&run_json).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let had = json.as_object_mut().unwrap().remove("container");
    assert_eq!(had.unwrap(), container.as_str());
    std::fs::write(&run_json, json.to_string()).unwrap();
    let manager = daemon.manager().await;
    let run = manager.get(&id).await.unwrap();
    manager.wait_recovery().await.unwrap();
    daemon.open_gate("go");
    assert_whole(&run, 5, 200).await;
    daemon.is_clean().await;
}

/// The audit is sealed. Later output belongs to no run.
async fn a_restart_of_a_kept_container_changes_nothing() {
    let daemon = Daemon::new().await;
    let manager = daemon.manager().await;
    let spec = daemon
        .spec("lines 100 + write /gate/printed x")
        .keep(KeepContainer::Always);
    let run = manager.start(spec).await.unwrap();
    let outcome = end(&run).await;
    let before = std::fs::read(outcome.audit.as_ref().unwrap()).unwrap();
    std::fs::remove_file(daemon.path().join("gate/printed")).unwrap();
    let container = daemon.container().await;
    let started = daemon.docker.start_container(&container, None);
    started.await.unwrap();
    daemon.gate_opens("printed").await;
    daemon.container_ended(&container).await;
    drop(run);
    manager.shutdown(ShutdownMode::Leave).await;
    let manager = daemon.manager().await;
    manager.wait_recovery().await.unwrap();
    let again = end(&manager.get(&outcome.run).await.unwrap()).await;
    let audit = read(&again);
    show(&again, &audit);
    assert_eq!(
        std::fs::read(again.audit.as_ref().unwrap()).unwrap(),
        before
    );
    assert_complete(&audit);
}

/// Between the exit of the container and the replay of its log, which then has two executions.
async fn an_external_restart_before_replay_is_a_gap() {
    let daemon = Daemon::new().await;
    let proxy = Proxy::for_socket(daemon.socket(), daemon.path()).unwrap();
    let manager = daemon.manager_at(&proxy.address()).await;
    let spec = daemon.spec("lines 100 + await /gate/go + lines 100 --from 101");
    let run = manager.start(spec).await.unwrap();
    printed(&run, "out 00000100 ").await;
    // The only evidence is the whole log.
    proxy.cut();
    let container = daemon.container().await;
    let address = daemon.address();
    let mut again = false;
    proxy.before("logs", move || {
        let (address, container) = (address.clone(), container.clone());
        again = again || engine::block_on(start_if_ended(address, container));
    });
    daemon.open_gate("go");
    let (outcome, audit) = sealed(&run).await;
    assert_eq!(outcome.code(), Some(0));
    // If the end of the tap is taken for the exit, the tap may have had the whole first execution.
    let gaps = audit.all("gap");
    assert!(gaps.iter().any(|gap| gap["reason"] == "started_again"));
    let twice = sequence::lines("out", 200, 64).repeat(2);
    assert!(twice.starts_with(audit.stream("stdout")));
}

/// Restarts a container that has ended, and waits for its second exit.
async fn start_if_ended(address: String, container: String) -> bool {
    let version = bollard::API_DEFAULT_VERSION;
    let docker = bollard::Docker::connect_with_unix(&address, 60, version).unwrap();
    let found = docker.inspect_container(&container, None).await.unwrap();
    if found.state.unwrap().running == Some(true) {
        return false;
    }
    docker.start_container(&container, None).await.unwrap();
    let options = WaitContainerOptionsBuilder::new().build();
    let wait = docker.wait_container(&container, Some(options));
    wait.try_collect::<Vec<_>>().await.unwrap();
    true
}

/// A container that one daemon does not have may be on another daemon.
async fn a_run_of_another_daemon_is_left_alone() {
    let (daemon, other) = (Daemon::new().await, Daemon::new().await);
    let manager = daemon.manager().await;
    let id = RunId::new("one").unwrap();
    let steps = "lines 100 + await /gate/go + lines 100 --from 101 + exit 5";
    let spec = daemon.spec(steps).id(id.clone());
    let run = manager.start(spec).await.unwrap();
    printed(&run, "out 00000100 ").await;
    drop(run);
    manager.shutdown(ShutdownMode::Leave).await;

    let docker = Docker::connect_to(&other.address()).await.unwrap();
    let elsewhere = Manager::open(daemon.root(), docker).await.unwrap();
    let run = elsewhere.wait_recovery().await.unwrap().remove(0);
    let refused = run.wait().await;
    assert!(
        matches!(refused, Err(Error::OtherEngine { .. })),
        "{refused:?}"
    );
    elsewhere.shutdown(ShutdownMode::Leave).await;
    let info = Root::open(daemon.root()).unwrap().info(&id).unwrap();
    assert_eq!(
        (info.status, &info.seal),
        (RunStatus::Running, &None),
        "{info:?}"
    );

    let manager = daemon.manager().await;
    let run = manager.get(&id).await.unwrap();
    daemon.open_gate("go");
    let outcome = end(&run).await;
    let audit = read(&outcome);
    show(&outcome, &audit);
    assert_eq!(outcome.code(), Some(5));
    assert_complete(&audit);
    assert_all_lines(&audit, 200);
    assert_eq!(
        audit.all("resume").len(),
        1,
        "it was resumed elsewhere, too"
    );
}

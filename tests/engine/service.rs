//! Services of tests: waiting until they are ready, and the end of their scope.

use std::path::Path;
use std::time::Duration;

use moat::audit::{LogState, verify};
use moat::outcome::StopCause;
use moat::{Error, Port, Ready, RunSpec};
use serde_json::json;
use testkit::deadline::within;
use testkit::engine::{self, block_on};
use testkit::harness::Trial;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::embedder::Embedder;
use crate::stage::Stage;

testkit::trials! {
    crate::on_engine:
        readiness_by_printed_line,
        a_service_ends_with_its_scope,
        a_manager_outlives_runtimes_of_tests,
        a_service_of_a_killed_test_is_ended_later;
    on_network: readiness_by_listening_port;
    on_health_checks: readiness_by_health_check,
}

/// A trial on an engine whose containers have a network.
fn on_network(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    crate::on_engine(name, trial).needs(engine::network())
}

/// A trial on an engine that runs health checks. Podman leaves that to systemd.
fn on_health_checks(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    let need = match Path::new("/run/systemd/system").exists() {
        true => engine::need().clone(),
        false => engine::unless_podman("Podman runs health checks by systemd, which is not here"),
    };
    crate::on_engine(name, trial).needs(&need)
}

const SOON: Duration = Duration::from_secs(3);

fn why(error: Error) -> String {
    assert!(matches!(error, Error::NotReady { .. }), "{}", error.chain());
    error.to_string()
}

/// A run with a network.
fn connected(stage: &Stage, steps: &str) -> RunSpec {
    stage.gated(steps).network("bridge")
}

async fn readiness_by_listening_port(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = connected(stage, "on-term 0 + await /gate/go + listen 80");
    let spec = spec.port(Port::tcp(80).address("127.0.0.1"));
    let service = manager.service(spec, []).await.unwrap();
    // The port is closed, or only the engine listens. Neither is the service.
    let mut late = service.wait_ready(Ready::port(80).within(SOON)).await;
    for _ in 0..4 {
        // The engine's listener had no time to close the connection.
        if late.is_ok() {
            late = service.wait_ready(Ready::port(80).within(SOON)).await;
        }
    }
    let why = why(late.unwrap_err());
    assert!(
        why.contains("closed immediately") || why.contains("refused"),
        "{why}"
    );
    stage.open_gate("go");
    service.wait_ready(Ready::port(80)).await.unwrap();
    service
        .wait_ready(Ready::port_on("bridge", 80))
        .await
        .unwrap();
    for at in [service.port(80).await, service.port_on("bridge", 80).await] {
        let mut stream = TcpStream::connect(at.unwrap()).await.unwrap();
        let mut hello = [0; 6];
        within(20, "the greeting", stream.read_exact(&mut hello))
            .await
            .unwrap();
        assert_eq!(&hello, b"hello\n");
    }
    assert!(service.port(81).await.is_err(), "it is not published");
    service.stop().await.unwrap();
    assert!(stage.containers().await.is_empty());
}

async fn readiness_by_printed_line(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage.gated("on-term 0 + echo begun + await /gate/go + print listening + hold");
    let service = manager.service(spec, [Ready::line("begun")]).await.unwrap();
    let late = service
        .wait_ready(Ready::line("listening").within(SOON))
        .await;
    let why = why(late.unwrap_err());
    assert!(why.ends_with("; its last lines:\n  begun"), "{why}");
    stage.open_gate("go");
    service.wait_ready(Ready::line("listening")).await.unwrap();
    drop(service);

    let spec = stage.spec("echo begun + warn broken + exit 3");
    let start = manager.service(spec, [Ready::line("listening")]);
    let error = within(60, "its end", start).await.unwrap_err();
    let words = error.to_string();
    let Error::NotReady { outcome, .. } = error else {
        panic!("{words}");
    };
    assert_eq!(outcome.unwrap().code(), Some(3));
    assert!(words.contains("\n  broken"), "{words}");
    stage.is_clean().await;
}

async fn readiness_by_health_check(stage: &Stage) {
    let manager = stage.manager().await;
    let checked = |retries: u32| {
        let check = json!({"Healthcheck": {"Test": ["CMD", "/workload", "read", "/gate/well"],
            "Interval": 100_000_000, "Retries": retries}});
        stage.gated("on-term 0 + hold").engine_patch(check)
    };
    let service = manager.service(checked(1000), []).await.unwrap();
    let late = service.wait_ready(Ready::healthy().within(SOON)).await;
    let why_late = why(late.unwrap_err());
    assert!(
        why_late.contains("before its health check passed"),
        "{why_late}"
    );
    // A failed health check is definitive, also for a late caller.
    let ill = manager.service(checked(1), [Ready::healthy()]);
    let ill = within(30, "its health", ill).await;
    let why_ill = why(ill.unwrap_err());
    assert!(why_ill.contains("its health check failed"), "{why_ill}");
    stage.open_gate("well");
    service.wait_ready(Ready::healthy()).await.unwrap();
    let unchecked = manager
        .service(stage.spec("on-term 0 + hold"), [Ready::healthy()])
        .await;
    let why_none = why(unchecked.unwrap_err());
    assert!(why_none.contains("it has no health check"), "{why_none}");
    service.stop().await.unwrap();
    assert!(stage.containers().await.is_empty());
}

async fn a_service_ends_with_its_scope(stage: &Stage) {
    let manager = stage.manager().await;
    let start = || {
        manager.service(
            stage.spec("on-term 0 + echo up + hold"),
            [Ready::line("up")],
        )
    };
    let service = start().await.unwrap();
    let audit = service.audit().unwrap();
    drop(service);
    // The removal must not be delayed: a test process may end here.
    assert!(stage.containers().await.is_empty());
    let LogState::Sealed(seal) = verify(audit).unwrap().state else {
        panic!("it is not sealed");
    };
    assert_eq!(seal.stopped, Some(StopCause::Requested));
    assert_eq!(seal.exit.code(), Some(0), "it was asked to end");

    let service = start().await.unwrap();
    let test = tokio::spawn(async move {
        let _service = service;
        panic!("as a test that fails");
    });
    test.await.unwrap_err();
    assert!(stage.containers().await.is_empty());
}

async fn a_manager_outlives_runtimes_of_tests(stage: &Stage) {
    // As each `#[tokio::test]`, on a separate thread and runtime.
    let up = || stage.gated("on-term 0 + echo up + await /gate/go + echo late + hold");
    let manager = block_on(async {
        let manager = stage.manager().await;
        let spec = up().id("kept".parse().unwrap());
        manager
            .service(spec, [Ready::line("up")])
            .await
            .unwrap()
            .release();
        manager
    });
    stage.open_gate("go");
    let manager = block_on(async move {
        let kept = manager.get(&"kept".parse().unwrap()).await.unwrap();
        kept.wait_ready(Ready::line("late")).await.unwrap();
        kept.stop(None).await.unwrap();
        let own = manager.service(up(), [Ready::line("late")]).await.unwrap();
        assert!(own.stop().await.unwrap().sealed().is_some());
        manager
    });
    drop(manager);
    stage.is_clean().await;
}

async fn a_service_of_a_killed_test_is_ended_later(stage: &Stage) {
    let test = Embedder::start(stage, "left", "echo up + hold");
    test.kill();
    assert_eq!(stage.containers().await.len(), 1, "its owner was gone");
    let manager = stage.manager().await;
    let left = manager.wait_recovery().await.unwrap();
    assert_eq!(left.len(), 1);
    for run in left {
        if !run.owned_elsewhere() {
            let outcome = run.kill().await.unwrap();
            assert!(outcome.sealed().is_some());
        }
    }
    stage.is_clean().await;
}

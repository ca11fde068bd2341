//! Services of tests: waiting until they are ready, and the end of their scope.

use std::path::Path;
use std::time::Duration;

use moat::audit::{LogState, verify};
use moat::outcome::{StopCause, Stream};
use moat::run::{HttpCheck, LineMatch};
use moat::runtime::Health;
use moat::spec::{ExecSpec, HealthCheck};
use moat::{Error, Port, Ready, RunSpec, Service};
use serde_json::json;
use testkit::deadline::{eventually, within};
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
    on_busybox_with_network: readiness_by_http_response;
    crate::on_busybox: readiness_by_command_and_lines;
    on_health_checks: readiness_by_health_check;
    crate::on_engine: a_health_check_of_the_spec_is_run,
}

/// A trial on an engine whose containers have a network.
fn on_network(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    crate::on_engine(name, trial).needs(engine::network())
}

/// The same, with an image that has a shell and an HTTP server.
fn on_busybox_with_network(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    crate::on_busybox(name, trial).needs(engine::network())
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

/// Asserts that `ready` is late, for a reason with `part`. A busy engine needs more time to find it.
async fn assert_late(service: &Service, ready: Ready, part: &str) {
    let mut reason = String::new();
    for limit in [SOON, 10 * SOON] {
        let late = service.wait_ready(ready.clone().within(limit)).await;
        reason = why(late.unwrap_err());
        if reason.contains(part) {
            return;
        }
    }
    panic!("{reason}");
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

/// The words of the health check reach the engine. Without systemd, Podman runs none.
async fn a_health_check_of_the_spec_is_run(stage: &Stage) {
    let manager = stage.manager().await;
    let check = HealthCheck::new(["/workload", "read", "/gate/so well"])
        .interval(Duration::from_millis(100))
        .retries(1000);
    let spec = stage.gated("on-term 0 + hold").health_check(check);
    let service = manager.service(spec, []).await.unwrap();
    let container = stage.containers().await.remove(0);
    let found = stage.inspect(&container).await["Config"]["Healthcheck"].take();
    let test = json!(["CMD", "/workload", "read", "/gate/so well"]);
    assert_eq!(found["Test"], test, "{found}");
    assert_eq!(found["Interval"], 100_000_000);
    if !engine::is_podman() {
        let late = service.wait_ready(Ready::healthy().within(SOON)).await;
        let late = why(late.unwrap_err());
        assert!(late.contains("before its health check passed"), "{late}");
        stage.open_gate("so well");
        service.wait_ready(Ready::healthy()).await.unwrap();
    }
    service.stop().await.unwrap();
    let spec = stage
        .spec("on-term 0 + hold")
        .health_check(HealthCheck::none());
    let unchecked = manager.service(spec, []).await.unwrap();
    let error = unchecked.wait_ready(Ready::healthy()).await.unwrap_err();
    assert!(why(error).contains("it has no health check"));
    unchecked.stop().await.unwrap();
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
    // An unhealthy service may become healthy later.
    let ill = manager.service(checked(1), []).await.unwrap();
    eventually(60, "a failed check", async || {
        let health = ill.inspect().await.unwrap().health;
        (health == Some(Health::Unhealthy)).then_some(())
    })
    .await;
    let output = "(it is unhealthy: workload: read /gate/well: No such file or directory";
    assert_late(&ill, Ready::healthy(), output).await;
    stage.open_gate("well");
    service.wait_ready(Ready::healthy()).await.unwrap();
    ill.wait_ready(Ready::healthy()).await.unwrap();
    ill.stop().await.unwrap();
    let unchecked = manager
        .service(stage.spec("on-term 0 + hold"), [Ready::healthy()])
        .await;
    let why_none = why(unchecked.unwrap_err());
    assert!(why_none.contains("it has no health check"), "{why_none}");
    service.stop().await.unwrap();
    assert!(stage.containers().await.is_empty());
}

/// A run of a shell script.
fn shell(stage: &Stage, script: &str) -> RunSpec {
    let spec = RunSpec::new(&stage.image).cmd(["sh", "-c", script]);
    spec.init(true).stop_grace(Duration::from_secs(1))
}

async fn readiness_by_http_response(stage: &Stage) {
    let manager = stage.manager().await;
    let server = "mkdir /tmp/www; echo starting > /tmp/www/health; httpd -f -p 80 -h /tmp/www";
    let spec = shell(stage, server).network("bridge");
    let spec = spec.port(Port::tcp(80).address("127.0.0.1"));
    let web = manager.service(spec, [Ready::http(80, "/health")]).await;
    let web = web.unwrap();
    assert_late(&web, Ready::http(80, "/"), "the status is 404").await;
    let missing = HttpCheck::new(80, "/").status(404);
    web.wait_ready(Ready::http_with(missing)).await.unwrap();

    let up = || HttpCheck::new(80, "/health").body_contains("up");
    let is_down = "does not contain \"up\"";
    assert_late(&web, Ready::http_with(up()), is_down).await;
    let write = ExecSpec::new(["sh", "-c", "echo up > /tmp/www/health"]);
    web.exec(write).await.unwrap().wait().await.unwrap();
    let both = [
        Ready::http_with(up()),
        Ready::http_with(up().on_network("bridge")),
    ];
    web.wait_ready(Ready::all(both)).await.unwrap();
    web.stop().await.unwrap();
    stage.is_clean().await;
}

async fn readiness_by_command_and_lines(stage: &Stage) {
    let manager = stage.manager().await;
    let server = "echo port 80; echo port 81 >&2; sleep 1; echo port 82; touch /tmp/up; sleep 600";
    let line = LineMatch::regex(r"^port \d+$").unwrap();
    let ready = [
        Ready::exec(["test", "-e", "/tmp/up"]),
        Ready::line_with(line.clone().times(3)),
        Ready::line_with(line.clone().on(Stream::Stderr)),
    ];
    let spec = shell(stage, server).network("none");
    let service = manager.service(spec, ready).await.unwrap();
    let twice = Ready::line_with(line.on(Stream::Stderr).times(2));
    assert_late(&service, twice, "(found 1 of 2)").await;

    for (command, failure) in [
        (
            vec!["sh", "-c", "echo no room >&2; exit 7"],
            "(it exited with code 7: no room)",
        ),
        (vec!["no-such-program"], "no-such-program"),
    ] {
        assert_late(&service, Ready::exec(command), failure).await;
    }
    // A failed alternative does not hide the other.
    let alternatives = [Ready::healthy(), Ready::exec(["true"])];
    service.wait_ready(Ready::any(alternatives)).await.unwrap();
    let names = std::fs::read_dir(service.dir()).unwrap().flatten();
    let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().starts_with("exec-")),
        "{names:?}"
    );
    service.stop().await.unwrap();
    stage.is_clean().await;
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

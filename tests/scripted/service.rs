//! Services of tests: runs that end with their scope.

use std::process::{Command, Output};

use moat::audit::{LogState, verify};
use moat::outcome::StopCause;
use moat::runtime::scripted::{Script, Scripted};
use moat::{Manager, Ready, RunId, RunSpec, ShutdownMode, blocking};
use testkit::deadline::within;
use tokio::sync::OnceCell;

use crate::bench::{Bench, named};
use crate::ready::{SECOND, endless, proxy, start_service};

#[tokio::test]
async fn a_service_ends_with_its_scope() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let service = start_service(&bench, &manager, endless()).await;
    let run = service.release();
    assert_eq!(bench.runtime.containers(), 1, "it was released");
    run.kill().await.unwrap();
    manager.remove(run.id()).await.unwrap();

    let service = start_service(&bench, &manager, endless()).await;
    let audit = service.audit().unwrap();
    drop(service);
    assert_eq!(bench.runtime.containers(), 0);
    let LogState::Sealed(seal) = verify(&audit).unwrap().state else {
        panic!("it is not sealed");
    };
    assert_eq!(seal.stopped, Some(StopCause::Requested));
}

#[tokio::test]
async fn a_service_ends_with_a_panic() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let service = start_service(&bench, &manager, endless()).await;
    let test = tokio::spawn(async move {
        let _service = service;
        panic!("as a test that fails");
    });
    test.await.unwrap_err();
    assert_eq!(bench.runtime.containers(), 0);
}

#[tokio::test]
async fn drop_does_not_deadlock_on_its_own_thread() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let service = start_service(&bench, &manager, endless()).await;
    let run = manager.get(service.id()).await.unwrap();
    let begun = std::time::Instant::now();
    drop(service);
    assert!(begun.elapsed() < 10 * SECOND);
    let outcome = within(20, "the end", run.wait()).await.unwrap();
    assert_eq!(outcome.stopped(), Some(StopCause::Requested));
}

#[tokio::test]
async fn services_take_no_place_of_other_runs() {
    let bench = Bench::new();
    let manager = bench.builder().max_concurrent(1).open().await.unwrap();
    // Each cell has a service, and its step waits for the only place.
    let cells = (0..3).map(|cell| {
        let (manager, runtime) = (manager.clone(), bench.runtime.clone());
        tokio::spawn(async move {
            let service = RunId::new(format!("service-{cell}")).unwrap();
            runtime.script(&service, endless());
            let spec = RunSpec::new("any").id(service);
            let service = manager.service(spec, []).await.unwrap();
            let step = manager.start(RunSpec::new("any")).await.unwrap();
            assert!(step.wait().await.unwrap().success());
            service.stop().await.unwrap();
        })
    });
    let cells = futures::future::join_all(cells.collect::<Vec<_>>());
    for cell in within(60, "the steps", cells).await {
        cell.unwrap();
    }
}

/// Set in a child that runs an ignored test.
const IN_CHILD: &str = "MOAT_TEST_SERVICE_CHILD";

/// Runs an ignored test of this binary, in a child.
fn run_ignored_test(test: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--include-ignored", test])
        .env(IN_CHILD, "1")
        .output()
        .unwrap()
}

#[test]
fn only_a_failed_test_shows_output() {
    let output = run_ignored_test("service::child_fails_with_a_service");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{shown}");
    let expected = "moat: run db exited with code 143, stopped because a stop was requested; its \
                    last lines:\n  listening on 80\n  broken\nmoat: audit file: /";
    assert!(shown.contains(expected), "{shown}");
    assert!(!shown.contains("listening on 81"), "{shown}");
    let output = run_ignored_test("service::child_passes_with_a_service");
    assert!(output.status.success());
}

#[test]
#[ignore = "fails: another test runs it, and checks its output"]
fn child_fails_with_a_service() {
    if std::env::var_os(IN_CHILD).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = blocking::Manager::open(dir.path(), engine.clone()).unwrap();
    engine.next(Script::new().stdout("listening on 81\n").until_stopped());
    let fine = manager
        .service(named("fine"), [Ready::line("listening")])
        .unwrap();
    drop(fine);
    engine.next(
        Script::new()
            .stdout("listening on 80\nbroken\n")
            .until_stopped(),
    );
    let _service = manager
        .service(named("db"), [Ready::line("broken")])
        .unwrap();
    panic!("the assertion of a test");
}

#[test]
#[ignore = "another test runs it"]
fn child_passes_with_a_service() {
    if std::env::var_os(IN_CHILD).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = blocking::Manager::open(dir.path(), engine.clone()).unwrap();
    engine.next(endless());
    manager.service(named("db"), []).unwrap().stop().unwrap();
}

#[test]
fn a_manager_outlives_its_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let manager = Manager::open(dir.path(), engine.clone()).await.unwrap();
        engine.next(endless());
        drop(manager.service(named("first"), []).await.unwrap());
        engine.next(
            Script::new()
                .pause(SECOND / 2)
                .stdout("late\n")
                .until_stopped(),
        );
        manager.start(named("between")).await.unwrap();
        manager
    });
    // The runtime is gone, and with it all of its tasks.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let between = manager.get(&RunId::new("between").unwrap()).await.unwrap();
            within(20, "its output", between.wait_ready(Ready::line("late")))
                .await
                .unwrap();
            between.kill().await.unwrap();
            engine.next(endless());
            let second = manager.service(named("second"), []).await.unwrap();
            let outcome = within(20, "its end", second.stop()).await.unwrap();
            assert!(outcome.sealed().is_some());
            manager.shutdown(ShutdownMode::Stop).await;
        });
    assert_eq!(engine.containers(), 0);
}

/// One manager for all tests of this process.
async fn shared() -> &'static Manager {
    static SHARED: OnceCell<Manager> = OnceCell::const_new();
    let open = async || {
        let root = concat!(env!("CARGO_TARGET_TMPDIR"), "/shared-root");
        let engine = Scripted::new();
        engine.image("any", Script::new().stdout("up\n").until_stopped());
        Manager::open(root, engine).await.unwrap()
    };
    SHARED.get_or_init(open).await
}

async fn uses_the_shared_manager() {
    let manager = shared().await;
    // Without an id: a killed test would leave it taken.
    let service = manager
        .service(RunSpec::new("any"), [Ready::line("up")])
        .await
        .unwrap();
    let outcome = within(20, "its end", service.stop()).await.unwrap();
    assert_eq!(outcome.last_lines, ["up"]);
    manager.remove(&outcome.run).await.unwrap();
}

#[tokio::test]
async fn one_test_shares_a_manager() {
    uses_the_shared_manager().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_test_shares_the_manager() {
    uses_the_shared_manager().await;
}

#[cfg(feature = "process")]
#[tokio::test]
async fn a_local_process_has_its_own_port() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::open(dir.path(), moat::LocalProcess::new())
        .await
        .unwrap();
    let at = proxy(0).await;
    let spec = RunSpec::command(["sleep", "1000"]);
    // The test listens in place of the process.
    let service = manager
        .service(spec, [Ready::port(at.port())])
        .await
        .unwrap();
    assert_eq!(service.port(at.port()).await.unwrap(), at);
    let outcome = within(20, "its end", service.stop()).await.unwrap();
    assert!(outcome.sealed().is_some());
}

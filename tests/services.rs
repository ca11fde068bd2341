//! Services of tests, on the scripted runtime: waiting until they are ready, and the end of their
//! scope.
#![cfg(all(feature = "testing", feature = "blocking"))]
#![allow(unreachable_pub, clippy::disallowed_methods)]

#[path = "support/deadline.rs"]
mod deadline;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::time::Duration;

use moat::audit::{LogState, verify};
use moat::outcome::StopCause;
use moat::runtime::scripted::{Script, Scripted};
use moat::runtime::{Health, RuntimeError};
use moat::sink::Memory;
use moat::state::State;
use moat::{Error, Manager, Ready, Run, RunId, RunSpec, Service, ShutdownMode, blocking};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::OnceCell;

use deadline::{eventually, within};

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    engine: Scripted,
    manager: Manager,
    _folder: tempfile::TempDir,
}

impl Bench {
    /// With the manager's tasks on threads of their own, as they are outside of tests.
    async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(settings: impl FnOnce(moat::ManagerBuilder) -> moat::ManagerBuilder) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Scripted::new();
        let builder = Manager::builder(dir.path().join("root"), engine.clone());
        Self {
            engine,
            manager: settings(builder).open().await.unwrap(),
            _folder: dir,
        }
    }

    async fn start(&self, script: Script) -> Run {
        self.engine.next(script);
        self.manager.start(named("db")).await.unwrap()
    }

    async fn service(&self, script: Script) -> Service {
        self.engine.next(script);
        self.manager.service(named("db"), []).await.unwrap()
    }
}

fn named(id: &str) -> RunSpec {
    RunSpec::new("any").id(RunId::new(id).unwrap())
}

fn endless() -> Script {
    Script::new().until_stopped()
}

fn not_ready(error: Error) -> (String, Option<i64>, Vec<String>) {
    let words = error.to_string();
    match error {
        Error::NotReady {
            outcome,
            last_lines,
            audit,
            ..
        } => {
            assert!(audit.is_some());
            (
                words,
                outcome.and_then(|outcome| outcome.code()),
                last_lines,
            )
        }
        error => panic!("{}", error.chain()),
    }
}

#[tokio::test]
async fn a_line_is_waited_for_in_what_was_printed_and_in_what_comes() {
    let bench = Bench::new().await;
    let pause = Duration::from_millis(50);
    let script = Script::new()
        .stdout("first\nlisten")
        .stderr("other\n")
        .pause(pause)
        .stdout("ing on 80")
        .pause(pause)
        .stderr("end\n")
        .until_stopped();
    let run = bench.start(script).await;
    for text in ["listening on", "end", "first", "listening on 80"] {
        within(20, text, run.wait_ready(Ready::line(text)))
            .await
            .unwrap();
    }
    run.kill().await.unwrap();
    // What it has printed stays printed.
    run.wait_ready(Ready::line("listening on")).await.unwrap();
}

#[tokio::test]
async fn a_sink_without_a_file_hides_no_line() {
    let bench = Bench::with(|builder| builder.sink(Memory::new())).await;
    let script = Script::new()
        .pause(3 * SECOND)
        .stdout("up\n")
        .until_stopped();
    let run = bench.start(script).await;
    let ready = run.wait_ready(Ready::line("up"));
    within(20, "the line", ready).await.unwrap();
    run.kill().await.unwrap();
}

#[tokio::test]
async fn a_run_that_ends_before_it_is_ready_is_an_error_at_once_with_its_last_lines() {
    let bench = Bench::new().await;
    for ready in [Ready::line("up"), Ready::port(80), Ready::healthy()] {
        let script = Script::new()
            .health(Duration::ZERO, Health::Starting)
            .port(80, "127.0.0.1:1".parse().unwrap())
            .pause(SECOND / 10)
            .stderr("no \x1b[31mroom\n")
            .exit(3);
        bench.engine.next(script);
        let run = bench.manager.start(RunSpec::new("any")).await.unwrap();
        let error = within(20, "the end", run.wait_ready(ready))
            .await
            .unwrap_err();
        let (words, code, lines) = not_ready(error);
        assert_eq!((code, lines.len()), (Some(3), 1));
        assert!(
            words.contains("is not ready: it exited with code 3 before it"),
            "{words}"
        );
        assert!(
            words.ends_with("; its last lines:\n  no \\u{1b}[31mroom"),
            "{words}"
        );
    }
}

#[tokio::test]
async fn who_waits_too_long_is_told_what_the_run_has_printed() {
    let bench = Bench::new().await;
    let script = Script::new().stdout("one\ntwo\n").until_stopped();
    let run = bench.start(script).await;
    eventually(20, "both lines", async || {
        let lines = run.last_lines(9).await.unwrap();
        (lines == ["one", "two"]).then_some(())
    })
    .await;
    assert_eq!(run.last_lines(1).await.unwrap(), ["two"]);
    let begun = std::time::Instant::now();
    let late = run
        .wait_ready(Ready::line("three").within(SECOND / 5))
        .await;
    assert!(begun.elapsed() >= SECOND / 5);
    let (words, code, lines) = not_ready(late.unwrap_err());
    assert_eq!((code, lines.len()), (None, 2));
    assert_eq!(
        words,
        "run db is not ready: timed out after 0.2 s, before it printed \"three\"; its last lines:\n  \
         one\n  two"
    );
    assert!(
        matches!(run.state(), State::Running { .. }),
        "nobody has stopped it"
    );
    run.kill().await.unwrap();
}

/// Listens, and closes what comes at once, as a proxy does in front of nothing, so many times.
async fn proxy(closes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        for n in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            if n >= closes {
                stream.write_all(b"hello").await.unwrap();
                open.push(stream);
            }
        }
    });
    at
}

#[tokio::test]
async fn a_port_is_ready_when_its_connections_stand() {
    let bench = Bench::new().await;
    let at = proxy(2).await;
    let any = SocketAddr::from(([0, 0, 0, 0], at.port()));
    let run = bench.start(endless().port(80, any)).await;
    assert_eq!(
        run.port(80).await.unwrap(),
        at,
        "the engine is on this machine"
    );
    within(20, "the port", run.wait_ready(Ready::port(80)))
        .await
        .unwrap();

    let never = proxy(usize::MAX).await;
    bench.engine.next(endless().port(80, never));
    let other = bench.manager.start(RunSpec::new("any")).await.unwrap();
    let late = other.wait_ready(Ready::port(80).within(3 * SECOND)).await;
    let (words, ..) = not_ready(late.unwrap_err());
    assert!(
        words.contains("the connection was closed immediately"),
        "{words}"
    );

    for missing in [
        run.port(81).await.map(drop),
        run.wait_ready(Ready::port(81)).await,
    ] {
        let error = missing.unwrap_err();
        assert!(
            matches!(&error, Error::Runtime(RuntimeError::NotFound { .. })),
            "{}",
            error.chain()
        );
    }
    assert!(run.port_on("bridge", 80).await.is_err());
    run.kill().await.unwrap();
    other.kill().await.unwrap();
}

#[tokio::test]
async fn a_health_check_is_waited_for_and_one_that_failed_or_is_not_there_is_told_at_once() {
    let bench = Bench::new().await;
    let healthy = endless().health(SECOND / 5, Health::Healthy);
    let service = bench.service(healthy).await;
    within(20, "its health", service.wait_ready(Ready::healthy()))
        .await
        .unwrap();
    service.stop().await.unwrap();
    for (script, why) in [
        (
            endless().health(SECOND / 5, Health::Unhealthy),
            "its health check failed",
        ),
        (endless(), "it has no health check"),
    ] {
        bench.engine.next(script);
        let start = bench
            .manager
            .service(RunSpec::new("any"), [Ready::healthy()]);
        let error = within(20, why, start).await.unwrap_err();
        let (words, ..) = not_ready(error);
        assert!(words.ends_with(why), "{words}");
        assert_eq!(bench.engine.containers(), 0, "it was stopped");
    }
}

#[tokio::test]
async fn a_service_is_stopped_and_sealed_and_its_container_gone_when_its_scope_ends() {
    let bench = Bench::new().await;
    let service = bench.service(endless()).await;
    let run = service.release();
    assert_eq!(bench.engine.containers(), 1, "it was let go");
    run.kill().await.unwrap();
    bench.manager.remove(run.id()).await.unwrap();

    let service = bench.service(endless()).await;
    let audit = service.audit().unwrap();
    drop(service);
    assert_eq!(bench.engine.containers(), 0);
    let LogState::Sealed(seal) = verify(&audit).unwrap().state else {
        panic!("it is not sealed");
    };
    assert_eq!(seal.stopped, Some(StopCause::Requested));
}

#[tokio::test]
async fn a_service_is_stopped_when_a_panic_leaves_its_scope() {
    let bench = Bench::new().await;
    let service = bench.service(endless()).await;
    let test = tokio::spawn(async move {
        let _service = service;
        panic!("as a test that fails");
    });
    test.await.unwrap_err();
    assert_eq!(bench.engine.containers(), 0);
}

#[tokio::test]
async fn a_service_whose_tasks_are_on_the_thread_of_its_scope_does_not_wait_for_itself() {
    let bench =
        Bench::with(|builder| builder.runtime_handle(tokio::runtime::Handle::current())).await;
    let service = bench.service(endless()).await;
    let run = bench.manager.get(service.id()).await.unwrap();
    let begun = std::time::Instant::now();
    drop(service);
    assert!(begun.elapsed() < 10 * SECOND);
    let outcome = within(20, "the end", run.wait()).await.unwrap();
    assert_eq!(outcome.stopped(), Some(StopCause::Requested));
}

/// Set where a test is to do what it is ignored for.
const AS_CARGO_DOES: &str = "MOAT_TEST_AS_CARGO_DOES";

/// Runs a test of this binary that is ignored otherwise.
fn as_cargo_does(test: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--include-ignored", test])
        .env(AS_CARGO_DOES, "1")
        .output()
        .unwrap()
}

#[test]
fn the_output_of_a_service_is_shown_with_the_failure_of_its_test_alone() {
    let output = as_cargo_does("fails_with_a_service");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{shown}");
    let expected = "moat: run db exited with code 143, stopped by moat: a stop was requested; its \
                    last lines:\n  listening on 80\n  broken\nmoat: audit file: /";
    assert!(shown.contains(expected), "{shown}");
    assert!(!shown.contains("listening on 81"), "{shown}");
    let output = as_cargo_does("passes_with_a_service");
    assert!(output.status.success());
}

#[test]
#[ignore = "fails, for the one that looks at how"]
fn fails_with_a_service() {
    if std::env::var_os(AS_CARGO_DOES).is_none() {
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
#[ignore = "prints, for the one that looks at what"]
fn passes_with_a_service() {
    if std::env::var_os(AS_CARGO_DOES).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = blocking::Manager::open(dir.path(), engine.clone()).unwrap();
    engine.next(endless());
    manager.service(named("db"), []).unwrap().stop().unwrap();
}

#[test]
fn a_manager_outlives_the_runtime_that_it_was_opened_on() {
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
    // The runtime is gone, and with it all that was spawned on it.
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

/// One manager for all tests of a process, whichever of them comes first.
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
    // Without a name, which one that was killed in the middle would have left taken.
    let service = manager
        .service(RunSpec::new("any"), [Ready::line("up")])
        .await
        .unwrap();
    let outcome = within(20, "its end", service.stop()).await.unwrap();
    assert_eq!(outcome.last_lines, ["up"]);
    manager.remove(&outcome.run).await.unwrap();
}

#[tokio::test]
async fn one_test_uses_the_manager_that_the_other_may_have_opened() {
    uses_the_shared_manager().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_test_uses_the_manager_that_the_one_may_have_opened() {
    uses_the_shared_manager().await;
}

#[test]
fn a_plain_test_does_without_async() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = blocking::Manager::open(dir.path(), engine.clone()).unwrap();
    assert!(manager.wait_recovery().unwrap().is_empty());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    engine.next(Script::new().stdout("up\n").port(80, at).until_stopped());
    let ready = [Ready::line("up"), Ready::port(80)];
    let service = manager.service(named("db"), ready).unwrap();
    assert_eq!(service.port(80).unwrap(), at);
    assert_eq!(service.id().as_str(), "db");
    assert!(matches!(service.state(), State::Running { .. }));
    drop(service);
    assert_eq!(engine.containers(), 0);
    let run = manager.get(&RunId::new("db").unwrap()).unwrap();
    assert_eq!(run.last_lines(1).unwrap(), ["up"]);
    assert!(run.wait().unwrap().sealed().is_some());
    engine.next(endless());
    let run = manager.start(named("other")).unwrap();
    run.wait_ready(Ready::line("up").within(SECOND / 10))
        .unwrap_err();
    assert_eq!(run.stop(None).unwrap().code(), Some(143));
    assert_eq!(run.kill().unwrap().code(), Some(143));
    assert!(run.audit().unwrap().starts_with(run.dir()));
    assert!(!run.owned_elsewhere());
    manager.shutdown(ShutdownMode::Stop);
    assert!(matches!(manager.start(named("late")), Err(Error::Closed)));
}

#[test]
fn a_call_that_would_block_async_code_is_refused_and_a_drop_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let manager = blocking::Manager::open(dir.path(), engine.clone()).unwrap();
    engine.next(endless());
    let service = manager.service(named("db"), []).unwrap();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    tokio.block_on(async {
        let refused = catch_unwind(AssertUnwindSafe(|| manager.start(named("other"))));
        let why = refused.unwrap_err();
        let why = why.downcast_ref::<&str>().unwrap();
        assert!(why.contains("use moat::Manager"), "{why}");
        drop(service);
        drop(manager);
    });
    assert_eq!(engine.containers(), 0);
}

#[cfg(feature = "process")]
#[tokio::test]
async fn the_port_of_a_local_process_is_the_port_itself() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::open(dir.path(), moat::LocalProcess::new())
        .await
        .unwrap();
    let at = proxy(0).await;
    let spec = RunSpec::command(["sleep", "1000"]);
    // It stands for the process that listens.
    let service = manager
        .service(spec, [Ready::port(at.port())])
        .await
        .unwrap();
    assert_eq!(service.port(at.port()).await.unwrap(), at);
    let outcome = within(20, "its end", service.stop()).await.unwrap();
    assert!(outcome.sealed().is_some());
}

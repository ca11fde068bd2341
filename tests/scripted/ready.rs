//! Waiting until a run is ready.

use std::net::SocketAddr;
use std::time::Duration;

use moat::runtime::scripted::Script;
use moat::runtime::{Health, RuntimeError};
use moat::sink::{Faulty, Jsonl, Memory, SinkCall, SinkFault};
use moat::state::State;
use moat::{Error, Manager, Ready, RunSpec, Service};
use testkit::deadline::{eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::bench::{Bench, named};

pub const SECOND: Duration = Duration::from_secs(1);

pub fn endless() -> Script {
    Script::new().until_stopped()
}

/// A service with this script.
pub async fn start_service(bench: &Bench, manager: &Manager, script: Script) -> Service {
    bench.runtime.next(script);
    manager.service(named("db"), []).await.unwrap()
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
async fn a_line_is_found_in_past_and_new_output() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let pause = Duration::from_millis(50);
    let script = Script::new()
        .stdout("first\nlisten")
        .stderr("other\n")
        .pause(pause)
        .stdout("ing on 80")
        .pause(pause)
        .stderr("end\n")
        .until_stopped();
    let run = bench.start(&manager, script, named("db")).await;
    for text in ["listening on", "end", "first", "listening on 80"] {
        within(20, text, run.wait_ready(Ready::line(text)))
            .await
            .unwrap();
    }
    run.kill().await.unwrap();
    // Past output counts.
    run.wait_ready(Ready::line("listening on")).await.unwrap();
}

#[tokio::test]
async fn a_sink_without_a_file_hides_no_line() {
    let bench = Bench::new();
    let manager = bench.builder().sink(Memory::new()).open().await.unwrap();
    let script = Script::new()
        .pause(3 * SECOND)
        .stdout("up\n")
        .until_stopped();
    let run = bench.start(&manager, script, named("db")).await;
    let ready = run.wait_ready(Ready::line("up"));
    within(20, "the line", ready).await.unwrap();
    run.kill().await.unwrap();
}

#[tokio::test]
async fn an_exit_before_readiness_is_an_error() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    for ready in [Ready::line("up"), Ready::port(80), Ready::healthy()] {
        let script = Script::new()
            .health(Duration::ZERO, Health::Starting)
            .port(80, "127.0.0.1:1".parse().unwrap())
            .pause(SECOND / 10)
            .stderr("no \x1b[31mroom\n")
            .exit(3);
        bench.runtime.next(script);
        let run = manager.start(RunSpec::new("any")).await.unwrap();
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
async fn a_stop_before_the_readiness_has_its_reason() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let run = bench.start(&manager, endless(), named("db")).await;
    let both = async { tokio::join!(run.wait_ready(Ready::line("up")), run.stop(None)) };
    let (ready, stopped) = within(20, "the stop", both).await;
    stopped.unwrap();
    let (words, ..) = not_ready(ready.unwrap_err());
    let expected = "before it printed \"up\", stopped because a stop was requested";
    assert!(words.ends_with(expected), "{words}");
}

#[tokio::test]
async fn an_overdue_seal_is_an_error_with_the_last_lines() {
    let bench = Bench::new();
    let sink = Faulty::new(Jsonl::new());
    sink.fault(SinkFault::error().on([SinkCall::Seal]));
    let manager = bench.builder().sink(sink.clone());
    let manager = manager.seal_timeout(SECOND / 5).open().await.unwrap();
    let script = Script::new().stderr("no room\n").exit(3);
    let run = bench.start(&manager, script, named("db")).await;
    let ready = run.wait_ready(Ready::line("up"));
    let error = within(20, "the error", ready).await.unwrap_err();
    let (words, code, _) = not_ready(error);
    assert_eq!(code, Some(3));
    assert!(
        words.contains(
            "it exited with code 3 before it printed \"up\", and its log is not sealed yet"
        ),
        "{words}"
    );
    assert!(words.ends_with("\n  no room"), "{words}");
    sink.clear_faults();
}

#[tokio::test]
async fn a_timeout_reports_the_last_lines() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let script = Script::new().stdout("one\ntwo\n").until_stopped();
    let run = bench.start(&manager, script, named("db")).await;
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
        "it still runs"
    );
    run.kill().await.unwrap();
}

/// Listens, and closes the first connections at once, as a proxy without a backend does.
pub async fn proxy(closes: usize) -> SocketAddr {
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
async fn a_port_is_ready_when_connections_stay_open() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let at = proxy(2).await;
    let any = SocketAddr::from(([0, 0, 0, 0], at.port()));
    let run = bench
        .start(&manager, endless().port(80, any), named("db"))
        .await;
    assert_eq!(
        run.port(80).await.unwrap(),
        at,
        "the engine is on this machine"
    );
    within(20, "the port", run.wait_ready(Ready::port(80)))
        .await
        .unwrap();

    let never = proxy(usize::MAX).await;
    bench.runtime.next(endless().port(80, never));
    let other = manager.start(RunSpec::new("any")).await.unwrap();
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
        assert!(error.to_string().contains("does not publish port 81"));
    }
    assert!(run.port_on("bridge", 80).await.is_err());
    run.kill().await.unwrap();
    other.kill().await.unwrap();
}

#[tokio::test]
async fn a_missing_health_check_is_an_error_at_once() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let healthy = endless().health(SECOND / 5, Health::Healthy);
    let service = start_service(&bench, &manager, healthy).await;
    within(20, "its health", service.wait_ready(Ready::healthy()))
        .await
        .unwrap();
    service.stop().await.unwrap();
    bench.runtime.next(endless());
    let start = manager.service(RunSpec::new("any"), [Ready::healthy()]);
    let error = within(20, "the error", start).await.unwrap_err();
    let (words, ..) = not_ready(error);
    assert!(words.ends_with("it has no health check"), "{words}");
    assert_eq!(bench.runtime.containers(), 0, "it was stopped");
}

#[tokio::test]
async fn a_port_without_an_address_is_reached_through_the_engine() {
    let mut bench = Bench::new();
    bench.runtime = bench.runtime.with_connect();
    let manager = bench.open_on_threads().await;
    let at = proxy(0).await;
    let script = endless().listen(80).port(81, at);
    let run = bench.start(&manager, script, named("db")).await;
    for port in [80, 81] {
        let ready = run.wait_ready(Ready::port(port));
        within(20, "the port", ready).await.unwrap();
    }
    let mut connection = run.connect(80).await.unwrap();
    connection.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    connection.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    // A port with an address is reached there.
    let mut connection = run.connect(81).await.unwrap();
    let mut greeting = [0; 5];
    connection.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");

    let closed = run.connect(82).await;
    assert!(
        matches!(closed, Err(Error::Runtime(RuntimeError::Rejected { .. }))),
        "{closed:?}"
    );
    let late = run.wait_ready(Ready::port(82).within(SECOND / 5)).await;
    let (words, ..) = not_ready(late.unwrap_err());
    assert!(words.contains("nothing listens on port 82"), "{words}");
    run.kill().await.unwrap();
}

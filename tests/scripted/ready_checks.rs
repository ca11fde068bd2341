//! Readiness by a match of lines, a command, an HTTP response, a function, and combinations.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use moat::audit::Event;
use moat::outcome::Stream;
use moat::run::{HttpCheck, LineMatch};
use moat::runtime::scripted::{Call, Script};
use moat::runtime::{Health, RuntimeError};
use moat::sink::Memory;
use moat::spec::ExecSpec;
use moat::{Error, Manager, Ready, Run, RunSpec};
use testkit::deadline::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::bench::{Bench, named};
use crate::ready::{SECOND, endless};
use crate::records::events;

const SOON: Duration = SECOND;

/// A manager for a paused clock, which runs ahead while a thread writes a file.
async fn open_paused(bench: &Bench) -> Manager {
    let builder = bench.builder_here().sink(Memory::new());
    builder.open().await.unwrap()
}

async fn ready(run: &Run, ready: Ready) {
    within(20, "readiness", run.wait_ready(ready))
        .await
        .unwrap();
}

/// Returns the text of the error, without the last lines.
async fn reason(run: &Run, ready: Ready) -> String {
    let waited = within(20, "the error", run.wait_ready(ready)).await;
    match waited.unwrap_err() {
        Error::NotReady { reason, .. } => reason,
        error => panic!("{}", error.chain()),
    }
}

/// Answers each request with the next response, and repeats the last. Returns the requests.
async fn server(responses: &'static [&'static str]) -> (SocketAddr, Arc<std::sync::Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let requests = Arc::new(std::sync::Mutex::new(String::new()));
    let received = Arc::clone(&requests);
    tokio::spawn(async move {
        for n in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            *received.lock().unwrap() = String::from_utf8(request).unwrap();
            let response = responses[n.min(responses.len() - 1)];
            stream.write_all(response.as_bytes()).await.unwrap();
        }
    });
    (at, requests)
}

#[tokio::test]
async fn lines_are_matched_on_a_stream_and_counted() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let script = Script::new()
        .stdout("listening on port 80\n")
        .stderr("ready\n")
        .pause(SECOND / 10)
        .stdout("ready\nlistening on port 8")
        .pause(SECOND / 10)
        .stdout("1\n")
        .until_stopped();
    let run = bench.start(&manager, script, named("db")).await;
    ready(&run, Ready::line_with(LineMatch::text("ready").times(2))).await;
    let port = || LineMatch::regex(r"port \d+$").unwrap();
    ready(&run, Ready::line_with(port().times(2).on(Stream::Stdout))).await;
    let line = Ready::line_with(port().on(Stream::Stderr)).within(SOON);
    let expected = r"timed out after 1 s, before it printed a line matching `port \d+$` on stderr";
    assert_eq!(reason(&run, line).await, expected);
    let line = Ready::line_with(LineMatch::text("ready").times(3)).within(SOON);
    let expected = "timed out after 1 s, before it printed \"ready\" 3 times (found 2 of 3)";
    assert_eq!(reason(&run, line).await, expected);
    run.kill().await.unwrap();
}

#[tokio::test]
async fn the_last_line_of_a_run_needs_no_newline() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let script = Script::new().stdout("done").exit(0);
    let run = bench.start(&manager, script, named("job")).await;
    ready(&run, Ready::line_with(LineMatch::regex("^done$").unwrap())).await;
    let line = Ready::line_with(LineMatch::regex("^do$").unwrap());
    let reason = reason(&run, line).await;
    assert!(
        reason.starts_with("it exited with code 0 before"),
        "{reason}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_unhealthy_for_a_time_is_ready_later() {
    let bench = Bench::new();
    let manager = open_paused(&bench).await;
    let script = endless()
        .health(Duration::ZERO, Health::Unhealthy)
        .health(3 * SECOND, Health::Healthy);
    let run = bench.start(&manager, script, named("db")).await;
    let early = reason(&run, Ready::healthy().within(SOON)).await;
    let expected = "timed out after 1 s, before its health check passed (it is unhealthy)";
    assert_eq!(early, expected);
    ready(&run, Ready::healthy()).await;
    run.kill().await.unwrap();
}

#[tokio::test]
async fn a_command_is_tried_until_it_succeeds() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let run = bench.start(&manager, endless(), named("db")).await;
    bench
        .runtime
        .next_exec(Script::new().fail_to_start("no such file"));
    bench
        .runtime
        .next_exec(Script::new().stderr("no \x1b[31mroom\n").exit(2));
    bench
        .runtime
        .next_exec(Script::new().stdout("up\n").exit(0));
    let spec = ExecSpec::new(["pg_isready", "-q"]).env("TOKEN", "s3cr3t");
    ready(&run, Ready::exec_with(spec.clone())).await;

    for _ in 0..50 {
        bench.runtime.next_exec(
            Script::new()
                .stderr("s3cr3t\nno \x1b[31mroom s3cr3t\n")
                .exit(2),
        );
    }
    let late = reason(&run, Ready::exec_with(spec).within(SOON)).await;
    let expected = "timed out after 1 s, before the command \"pg_isready -q\" exited with code 0 \
                    (it exited with code 2: no \\u{1b}[31mroom ***)";
    assert_eq!(late, expected);
    run.kill().await.unwrap();
    // One note for each wait, and no log of an exec.
    let notes = events(&run.audit().unwrap()).into_iter();
    let notes = notes.filter_map(|event| match event {
        Event::Note { text, .. } => Some(text),
        _ => None,
    });
    let expected = "readiness check, without a log: pg_isready -q";
    assert_eq!(notes.collect::<Vec<_>>(), [expected, expected]);
    let files = std::fs::read_dir(run.dir()).unwrap();
    let mut execs = files.filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("exec-")
    });
    assert!(execs.next().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_command_that_hangs_is_given_up() {
    let bench = Bench::new();
    let manager = open_paused(&bench).await;
    let run = bench.start(&manager, endless(), named("db")).await;
    bench.runtime.next_exec(endless());
    bench.runtime.next_exec(Script::new().exit(0));
    let begun = tokio::time::Instant::now();
    run.wait_ready(Ready::exec(["check"])).await.unwrap();
    assert!(begun.elapsed() >= 30 * SECOND, "{:?}", begun.elapsed());
    bench.runtime.next_exec(endless());
    let late = reason(&run, Ready::exec(["check"]).within(5 * SECOND)).await;
    assert!(late.ends_with("(it has not exited yet)"), "{late}");
    assert_eq!(bench.runtime.calls(Call::Exec), 3);
    run.kill().await.unwrap();
}

#[tokio::test]
async fn a_response_must_have_a_good_status() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let (at, requests) = server(&[
        "",
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ])
    .await;
    let run = bench
        .start(&manager, endless().port(80, at), named("web"))
        .await;
    ready(&run, Ready::http(80, "/health?full=1")).await;
    let expected = "GET /health?full=1 HTTP/1.1\r\nhost: localhost:80\r\nconnection: close\r\n\r\n";
    assert_eq!(*requests.lock().unwrap(), expected);
    let check = HttpCheck::new(80, "/").status(200).header("Host", "s3cr3t");
    assert!(!format!("{check:?}").contains("s3cr3t"));
    let late = reason(&run, Ready::http_with(check).within(SOON)).await;
    let expected = format!(
        "timed out after 1 s, before GET / on port 80 returned status 200 ({at}: the status is \
         204 No Content)"
    );
    assert_eq!(late, expected);
    assert!(requests.lock().unwrap().contains("host: s3cr3t\r\n"));
    run.kill().await.unwrap();
}

#[tokio::test]
async fn a_response_must_have_the_text() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let (at, _) = server(&[
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nyellow",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ngr\r\n3\r\neen\r\n0\r\n\r\n",
    ])
    .await;
    let run = bench
        .start(&manager, endless().port(80, at), named("web"))
        .await;
    let check = || HttpCheck::new(80, "/").body_contains("green");
    ready(&run, Ready::http_with(check())).await;
    let late = check().body_contains("red");
    let late = reason(&run, Ready::http_with(late).within(SOON)).await;
    assert!(
        late.ends_with("the body, 5 bytes, does not contain \"red\")"),
        "{late}"
    );
    let closed = bench.start(&manager, endless(), named("closed")).await;
    let error = closed.wait_ready(Ready::http(80, "/")).await.unwrap_err();
    assert!(matches!(
        error,
        Error::Runtime(RuntimeError::NotFound { .. })
    ));
    run.kill().await.unwrap();
    closed.kill().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_function_is_called_until_it_succeeds() {
    let bench = Bench::new();
    let manager = open_paused(&bench).await;
    let run = bench.start(&manager, endless(), named("db")).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let custom = Ready::from_fn("it has a leader", move |run| {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            assert_eq!(run.id().as_str(), "db");
            match call {
                0 | 3.. => Err("no leader".into()),
                1 => Err(Box::new(Error::Closed).into()),
                2 => Ok(()),
            }
        }
    });
    ready(&run, custom.clone()).await;
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    let late = reason(&run, custom.within(SOON)).await;
    assert_eq!(
        late,
        "timed out after 1 s, before it has a leader (no leader)"
    );
    run.kill().await.unwrap();
}

#[tokio::test]
async fn all_conditions_are_awaited_side_by_side() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let script = Script::new()
        .stdout("up\n")
        .health(4 * SECOND, Health::Healthy)
        .until_stopped();
    let run = bench.start(&manager, script, named("db")).await;
    ready(&run, Ready::all([])).await;
    let up = || Ready::line("up");
    let never = |text: &str| Ready::line(text);
    // The timeout of a part ends the wait, and all that is missing is named.
    let late = Ready::all([up(), never("a"), Ready::healthy().within(SOON)]);
    let expected = "timed out after 1 s, before it printed \"a\" and its health check passed";
    assert_eq!(reason(&run, late).await, expected);
    ready(&run, Ready::all([up(), Ready::healthy()])).await;
    let nested = Ready::any([Ready::all([up(), never("a"), never("b")]), never("c")]);
    let expected = "timed out after 1 s, before (it printed \"a\" and it printed \"b\") or it \
                    printed \"c\"";
    assert_eq!(reason(&run, nested.within(SOON)).await, expected);
    run.kill().await.unwrap();
}

#[tokio::test]
async fn one_of_many_conditions_is_enough() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let script = Script::new()
        .pause(2 * SECOND)
        .stdout("up\n")
        .until_stopped();
    let run = bench.start(&manager, script, named("db")).await;
    // Some conditions fail first, for good.
    let failing = || [Ready::healthy(), Ready::line("a").within(SOON)];
    ready(
        &run,
        Ready::any(failing().into_iter().chain([Ready::line("up")])),
    )
    .await;
    let expected = "timed out after 1 s, before its health check passed (it has no health check) \
                    or it printed \"a\" (timed out after 1 s)";
    assert_eq!(reason(&run, Ready::any(failing())).await, expected);
    let hopeless = Ready::all([Ready::any([Ready::healthy()]), Ready::line("a")]);
    let expected = "no condition can be met; missing: its health check passed (it has no health \
                    check) and it printed \"a\"";
    assert_eq!(reason(&run, hopeless).await, expected);
    // The end of the run ends all.
    run.kill().await.unwrap();
    let expected = "it exited with code 137 before it printed \"a\" or it printed \"b\", stopped \
                    because a kill was requested";
    let last = Ready::any([Ready::line("a"), Ready::line("b")]);
    assert_eq!(reason(&run, last).await, expected);
}

#[tokio::test]
async fn an_invalid_condition_starts_nothing() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    for (invalid, field) in [
        (Ready::http(80, "health"), "path"),
        (Ready::http(80, "/a b"), "path"),
        (
            Ready::http_with(HttpCheck::new(80, "/").header("a b", "c")),
            "header",
        ),
        (Ready::any([]), "any"),
        (Ready::exec([""; 0]), "cmd"),
    ] {
        let started = manager.service(RunSpec::new("any"), [Ready::line("up"), invalid]);
        let error = within(20, "the error", started).await.unwrap_err();
        let Error::InvalidSpec(invalid) = &error else {
            panic!("{}", error.chain());
        };
        assert_eq!(invalid.field, field);
    }
    assert_eq!(bench.runtime.calls(Call::Create), 0);
}

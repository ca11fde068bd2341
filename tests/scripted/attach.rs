//! Attachments: what a subscriber sees.

use std::path::PathBuf;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use moat::audit::{LogState, verify};
use moat::outcome::Stream;
use moat::run::{AttachOptions, Attached, Attachment};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Break, Call, Fault, Script};
use moat::sink::Memory;
use moat::spec::{ExecSpec, Stdin, WindowSize};
use moat::{Error, Outcome, Run, RunSpec, ShutdownMode};
use testkit::deadline::{eventually, within};
use tokio::io::AsyncWriteExt;
use tokio::task::unconstrained;

use crate::bench::{Bench, spec};
use crate::records::{numbered, text};

pub fn with_input() -> AttachOptions {
    AttachOptions::new().with_input()
}

pub async fn all(mut output: Attachment) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(item) = output.next().await {
        match item.unwrap() {
            Attached::Chunk(chunk) => bytes.extend_from_slice(&chunk.bytes),
            other => panic!("{other:?}"),
        }
    }
    bytes
}

pub async fn printed(output: &mut Attachment, text: &[u8]) {
    let mut bytes = Vec::new();
    while !bytes.ends_with(text) {
        match output.next().await.unwrap().unwrap() {
            Attached::Chunk(chunk) => bytes.extend_from_slice(&chunk.bytes),
            other => panic!("{other:?}"),
        }
    }
}

/// Waits for the seal of a run; returns its audit file, which is intact.
pub async fn audited(run: &Run) -> (Outcome, PathBuf) {
    let outcome = run.wait().await.unwrap();
    let path = run.audit().unwrap();
    assert!(matches!(verify(&path).unwrap().state, LogState::Sealed(_)));
    (outcome, path)
}

async fn watch(mut attachment: moat::run::Attachment) -> (String, u64) {
    let (mut seen, mut missed) = (String::new(), 0);
    while let Some(item) = attachment.next().await {
        match item.unwrap() {
            Attached::Chunk(chunk) => seen.push_str(std::str::from_utf8(&chunk.bytes).unwrap()),
            Attached::Lagged { bytes, .. } => missed += bytes,
            _ => {}
        }
    }
    (seen, missed)
}

#[tokio::test]
async fn each_subscriber_sees_each_byte_once() {
    let bench = Bench::new();
    let mut script = Script::new();
    for n in 0..200 {
        script = script
            .stdout(format!("line {n}"))
            .pause(Duration::from_millis(1))
            .stdout("\n");
    }
    bench.runtime.next(script);
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    let mut viewers = Vec::new();
    for n in 0..8 {
        let attachment = run.attach().await.unwrap();
        viewers.push(async move {
            tokio::time::sleep(Duration::from_millis(40 * n)).await;
            watch(attachment).await
        });
    }
    for seen in futures::future::join_all(viewers).await {
        assert_eq!(seen, (numbered(200), 0));
    }
    let late = manager.attach(run.id()).await.unwrap();
    assert_eq!(watch(late).await, (numbered(200), 0));
}

#[tokio::test]
async fn a_lagged_subscriber_learns_what_it_missed() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    let manager = bench.open().await;
    let run = manager.start(spec().stdin(Stdin::Open)).await.unwrap();
    let front = run.attach_with(AttachOptions::new().with_input()).await;
    let mut input = front.unwrap().input().unwrap();
    let mut all = String::from("line 0\nline 1\nline 2");
    input.write_all(all.as_bytes()).await.unwrap();

    let mut attachment = run.attach().await.unwrap();
    let mut patient = run.attach().await.unwrap().lossless();
    // Both see the start and then stop reading. The file has no whole line yet, so they read live
    // output.
    let mut seen = String::new();
    let mut seen_patiently = String::new();
    for (attachment, seen) in [
        (&mut attachment, &mut seen),
        (&mut patient, &mut seen_patiently),
    ] {
        let start = async {
            while *seen != all {
                see(seen, attachment.next().await);
            }
        };
        within(60, "the first output", start).await;
    }
    for n in 2..100 {
        let flood = match n {
            2 => "\n".to_owned(),
            _ => format!("line {n}{}\n", "x".repeat(160_000)),
        };
        input.write_all(flood.as_bytes()).await.unwrap();
        all.push_str(&flood);
    }
    let audit = run.audit().unwrap();
    eventually(300, "the flood's last line", async || {
        let text = std::fs::read_to_string(&audit).unwrap();
        text.contains("line 99x").then_some(())
    })
    .await;
    // A lagged subscriber learns of the gap with the next item, for which there must be room.
    while let Some(item) = unconstrained(attachment.next()).now_or_never() {
        see(&mut seen, item);
    }
    let end = "the end\n";
    input.write_all(end.as_bytes()).await.unwrap();
    all.push_str(end);
    let ((rest, missed), patiently, outcome) =
        tokio::join!(watch(attachment), watch(patient), run.kill());
    assert_eq!(
        (seen_patiently + &patiently.0, patiently.1),
        (all.clone(), 0)
    );
    assert!(missed > 0);
    assert_eq!((seen.len() + rest.len()) as u64 + missed, all.len() as u64);
    assert_eq!(text(&outcome.unwrap(), Stream::Stdout), all);
}

fn see(seen: &mut String, item: Option<moat::Result<Attached>>) {
    match item.unwrap().unwrap() {
        Attached::Chunk(chunk) => seen.push_str(std::str::from_utf8(&chunk.bytes).unwrap()),
        other => panic!("{other:?}"),
    }
}

/// The terminal output of a recovered run comes through a separate connection.
#[tokio::test]
async fn a_live_subscriber_sees_a_broken_connection() {
    for how in [Some(Break::Error), Some(Break::End), None] {
        let bench = Bench::new();
        bench.runtime.next(Script::new().stdout("past\n").echo());
        let first = bench.open_on_threads().await;
        let spec = RunSpec::new("any").tty(true).stdin(Stdin::Open);
        let id = first.start(spec).await.unwrap().id().clone();
        first.shutdown(ShutdownMode::Leave).await;
        let second = bench.open_on_threads().await;
        second.wait_recovery().await.unwrap();
        let run = second.get(&id).await.unwrap();

        if let Some(how) = how {
            bench
                .runtime
                .fault(Call::AttachRunning, Fault::Stream(6, how));
        }
        let options = with_input().live_only();
        let mut output = run.attach_with(options).await.unwrap();
        assert_eq!(bench.runtime.calls(Call::AttachRunning), 1);
        let mut input = output.input().unwrap();
        input.write_all(b"hello, world").await.unwrap();
        let shown: &[u8] = if how.is_some() {
            b"hello,"
        } else {
            b"hello, world"
        };
        printed(&mut output, shown).await;
        if how.is_none() {
            run.kill().await.unwrap();
        }
        match (how, output.next().await) {
            (None, None) => {}
            (Some(_), Some(Err(Error::Runtime(RuntimeError::Broken { .. })))) => {
                assert!(output.next().await.is_none());
            }
            (how, item) => panic!("{how:?}: {item:?}"),
        }
    }
}

/// No output follows that could carry the notice.
#[tokio::test]
async fn a_live_subscriber_learns_what_it_missed() {
    const PIECE: usize = 256 << 10;
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    let first = bench.open_on_threads().await;
    let spec = RunSpec::new("any").tty(true).stdin(Stdin::Open);
    let id = first.start(spec).await.unwrap().id().clone();
    first.shutdown(ShutdownMode::Leave).await;
    let second = bench.open_on_threads().await;
    second.wait_recovery().await.unwrap();
    let run = second.get(&id).await.unwrap();

    let options = with_input().live_only();
    let mut output = run.attach_with(options).await.unwrap();
    let mut input = output.input().unwrap();
    for _ in 0..48 {
        input.write_all(&[b'x'; PIECE]).await.unwrap();
    }
    run.kill().await.unwrap();
    let (mut seen, mut missed) = (0, 0);
    while let Some(item) = output.next().await {
        match item.unwrap() {
            Attached::Chunk(chunk) => {
                assert!(!chunk.bytes.is_empty());
                seen += chunk.bytes.len() as u64;
            }
            Attached::Lagged { bytes, .. } => missed += bytes,
            other => panic!("{other:?}"),
        }
    }
    assert!(missed > 0, "{seen} bytes seen");
    assert_eq!(seen + missed, 48 * PIECE as u64);
}

/// The run ends before the attachment reads anything, and no file has its output.
#[tokio::test]
async fn output_that_no_file_has_is_reported_as_missed() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("out\n").stderr("error\n"));
    let manager = bench.builder().sink(Memory::new()).open().await.unwrap();
    let started = manager.start_attached(RunSpec::new("any"), AttachOptions::new());
    let (run, attachment) = started.await.unwrap();
    run.wait().await.unwrap();
    assert_eq!(watch(attachment).await, (String::new(), 10));
}

#[tokio::test]
async fn live_only_shows_nothing_of_a_sealed_run() {
    let bench = Bench::new();
    let first = bench.open().await;
    let run = bench
        .start(&first, Script::new().stdout("past\n"), spec())
        .await;
    run.wait().await.unwrap();
    first.shutdown(ShutdownMode::Leave).await;
    let second = bench.open().await;
    let run = second.get(run.id()).await.unwrap();
    let options = AttachOptions::new();
    let output = run.attach_with(options.live_only()).await.unwrap();
    assert_eq!(all(output).await, b"");
    assert_eq!(all(run.attach().await.unwrap()).await, b"past\n");
}

/// A closed manager records nothing more.
#[tokio::test]
async fn a_closed_manager_refuses_attachments() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    bench.runtime.next_exec(Script::new().echo());
    let manager = bench.open_on_threads().await;
    let spec = RunSpec::new("any").tty(true).stdin(Stdin::Open);
    let (run, mut output) = manager.start_attached(spec, with_input()).await.unwrap();
    let mut input = output.input().unwrap();
    let exec = run.exec(ExecSpec::new(["any"]).interactive(true));
    let exec = exec.await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;

    let error = input.write_all(b"typed\n").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    let size = WindowSize::new(80, 24);
    let error = output.resize(size).await.unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
    for options in [with_input(), AttachOptions::new().window(size)] {
        let error = run.attach_with(options).await.unwrap_err();
        assert!(matches!(error, Error::Closed), "{error}");
        let error = exec.attach_with(options).await.unwrap_err();
        assert!(matches!(error, Error::Closed), "{error}");
    }
    assert_eq!(bench.runtime.calls(Call::Stdin), 1);
    assert!(bench.runtime.sizes().is_empty());
}

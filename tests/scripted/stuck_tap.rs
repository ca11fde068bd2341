//! Attachments that deliver nothing, and do not end, while the container writes.

use std::time::Duration;

use futures::StreamExt;

use moat::outcome::{Evidence, StopCause, Stream};
use moat::run::{AttachOptions, Attached};
use moat::runtime::scripted::{Break, Call, Fault, Script, Source};
use moat::sink::Memory;
use moat::spec::LimitAction;
use moat::{Manager, RunSpec, Verdict};
use testkit::deadline::within;
use tokio::time::Instant;

use crate::bench::{Bench, seal, sealed};

const TICK: Duration = Duration::from_secs(5);

/// The log is in memory: a paused clock runs ahead while a thread writes a file.
async fn open(bench: &Bench) -> (Manager, Memory) {
    let memory = Memory::new();
    let builder = bench.builder_here().sink(memory.clone());
    (builder.open().await.unwrap(), memory)
}

fn any() -> RunSpec {
    RunSpec::new("any")
}

/// Prints `lines` lines, one for each tick. The attachment delivers only the first `bytes` bytes.
fn ticking(lines: usize, bytes: u64) -> (Script, String) {
    let mut script = Script::new().break_at(Source::Attachment, bytes, Break::Stall);
    let mut printed = String::new();
    for number in 0..lines {
        let line = format!("{number}\n");
        script = script.stdout(line.clone()).pause(TICK);
        printed.push_str(&line);
    }
    (script, printed)
}

#[tokio::test(start_paused = true)]
async fn a_viewer_gets_output_of_a_stuck_attachment() {
    let bench = Bench::new();
    let (manager, memory) = open(&bench).await;
    for bytes in [0, 2] {
        let (script, printed) = ticking(100, bytes);
        bench.runtime.next(script);
        let options = AttachOptions::new().lossless();
        let (run, mut output) = manager.start_attached(any(), options).await.unwrap();
        let begun = Instant::now();
        let mut seen = Vec::new();
        while seen.len() < 10 {
            match output.next().await {
                Some(Ok(Attached::Chunk(chunk))) => seen.extend_from_slice(&chunk.bytes),
                other => panic!("{other:?}"),
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(40));
        let outcome = sealed(&run).await;
        assert!(outcome.success() && seal(&outcome).verdict == Verdict::Complete);
        assert_eq!(memory.output(run.id(), Stream::Stdout), printed.as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn a_silence_limit_does_not_stop_a_healthy_run() {
    let bench = Bench::new();
    let (manager, _) = open(&bench).await;
    for limit in [7, 8, 20, 60] {
        let (script, printed) = ticking(50, 4);
        let spec = any().silence_limit(Duration::from_secs(limit));
        let run = bench.start(&manager, script, spec).await;
        let outcome = sealed(&run).await;
        assert_eq!(outcome.stopped(), None, "limit {limit}");
        assert_eq!(seal(&outcome).bytes.stdout, printed.len() as u64);
    }
    // A run that prints nothing is still stopped.
    let limited = any().silence_limit(Duration::from_secs(20));
    let script = Script::new().stdout("last\n").until_stopped();
    let run = bench.start(&manager, script, limited).await;
    let outcome = sealed(&run).await;
    assert_eq!(outcome.stopped(), Some(StopCause::SilenceLimit));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_attachment_with_a_long_log_is_found() {
    let bench = Bench::new();
    let (manager, _) = open(&bench).await;
    let many = "a line\n".repeat(20_000);
    let mut script = Script::new().stdout(many.clone()).break_at(
        Source::Attachment,
        many.len() as u64,
        Break::Stall,
    );
    for number in 0..20 {
        script = script.pause(4 * TICK).stdout(format!("{number}\n"));
    }
    bench.runtime.next(script);
    let options = AttachOptions::new().lossless();
    let (run, mut output) = manager.start_attached(any(), options).await.unwrap();
    let mut seen = 0;
    while seen <= many.len() {
        match within(600, "new output", output.next()).await {
            Some(Ok(Attached::Chunk(chunk))) => seen += chunk.bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert!(run.state().ending().is_none());
    assert!(sealed(&run).await.success());
}

/// Each line arrives at the time of a check.
#[tokio::test(start_paused = true)]
async fn a_line_during_a_check_is_not_missing() {
    let bench = Bench::new();
    let (manager, _) = open(&bench).await;
    // The proof then needs no log, whose reads may hang.
    bench.runtime.set_end_markers(true);
    for (millis, hung) in [
        (9_999, 0),
        (10_000, 0),
        (10_001, 0),
        (12_000, 30),
        (40_000, 30),
    ] {
        // A call that is not answered ends with the timeout of the check.
        for _ in 0..hung {
            bench.runtime.fault(Call::Logs, Fault::Hang);
        }
        let mut script = Script::new();
        for number in 0..50 {
            let stream = [Stream::Stdout, Stream::Stderr][number % 2];
            script = script.print(stream, format!("{number}\n"));
            script = script.pause(Duration::from_millis(millis));
        }
        let run = bench.start(&manager, script, any()).await;
        let outcome = sealed(&run).await;
        bench.runtime.clear_faults();
        assert_eq!(seal(&outcome).evidence, Evidence::EndMarker, "{millis} ms");
    }
}

/// The log of a healthy run is read, and its attachment is kept.
#[tokio::test(start_paused = true)]
async fn a_silent_attachment_is_left_alone() {
    let bench = Bench::new();
    let (manager, _) = open(&bench).await;
    let hours = Duration::from_secs(3 * 3600);
    let lines = |count| "a line\n".repeat(count);
    for (script, spec) in [
        (Script::new().pause(hours), any()),
        (Script::new().stdout("a line\n").pause(hours), any()),
        (
            Script::new().stdout("a prompt: ").pause(hours).stdout("\n"),
            any(),
        ),
        (
            Script::new().stdout(&b"\xff\xfe\n\x00\n"[..]).pause(hours),
            any(),
        ),
        (
            Script::new()
                .stdout("x".repeat(100_000) + "\n")
                .pause(hours),
            any(),
        ),
        (Script::new().stdout(lines(20_000)).pause(hours), any()),
        (
            Script::new().stdout(lines(100)).pause(hours),
            any().output_limit(70, LimitAction::Drop),
        ),
    ] {
        let reads = bench.runtime.calls(Call::Logs);
        let run = bench.start(&manager, script, spec).await;
        let outcome = sealed(&run).await;
        assert_ne!(seal(&outcome).evidence, Evidence::Replay);
        let reads = bench.runtime.calls(Call::Logs) - reads;
        let is_limited = seal(&outcome).verdict == Verdict::Gap;
        assert!((1..60).contains(&reads) || is_limited, "{reads}");
    }
}

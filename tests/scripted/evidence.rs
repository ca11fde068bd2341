//! Evidence of a complete audit, and gaps.

use std::time::Duration;

use futures::StreamExt;
use moat::audit::GapReason;
use moat::outcome::{Evidence, Stream};
use moat::run::Attached;
use moat::runtime::scripted::{Call, Fault, Script, Scripted};
use moat::spec::Backstop;
use moat::{Manager, RunSpec, ShutdownMode, Verdict};

use crate::bench::{Bench, check, seal, sealed, spec};
use crate::records::{broken, gaps, numbered, text};

/// Invariant 7: by content, also where lines repeat.
#[tokio::test]
async fn an_early_end_is_completed_from_the_log() {
    for output in [numbered(500), "y\n".repeat(5000)] {
        for cut in [0, 1, 1000, output.len() as u64 - 1] {
            let bench = Bench::new();
            let script = Script::new()
                .stdout(output.clone())
                .cut_attachment_after(cut);
            let outcome = bench.run(script, spec()).await;
            assert_eq!(text(&outcome, Stream::Stdout), output);
            assert_eq!(seal(&outcome).verdict, Verdict::Complete);
            assert_eq!(seal(&outcome).evidence, Evidence::Replay);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_tap_is_abandoned() {
    let bench = Bench::new();
    let script = Script::new().stdout(numbered(500)).attachment_never_ends();
    let outcome = bench.run(script, spec()).await;
    assert_eq!(text(&outcome, Stream::Stdout), numbered(500));
    assert_eq!(seal(&outcome).evidence, Evidence::Replay);
}

#[tokio::test]
async fn a_shorter_log_is_a_gap() {
    let bench = Bench::new();
    let script = Script::new().stdout(numbered(500)).cut_log_after(700);
    let outcome = bench.run(script, spec()).await;
    assert_eq!(text(&outcome, Stream::Stdout), numbered(500));
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(gaps(&outcome), [GapReason::LogShorter]);
    assert_eq!(bench.runtime.containers(), 1, "the container is kept");
}

/// A tap that a proxy cut looks the same as a whole one.
#[tokio::test]
async fn an_end_without_a_log_or_marker_is_unproven() {
    let whole = Script::new().stdout("all\n");
    let cut = Script::new().stdout("all\nlost\n").cut_attachment_after(4);
    for script in [whole, cut] {
        let bench = Bench::new();
        let outcome = bench.run(script, spec().backstop(Backstop::None)).await;
        assert_eq!(text(&outcome, Stream::Stdout), "all\n");
        assert_eq!(seal(&outcome).evidence, Evidence::Eof);
        assert_eq!(seal(&outcome).verdict, Verdict::Unproven);
        assert_eq!(gaps(&outcome), []);
    }
}

#[tokio::test]
async fn an_end_marker_needs_no_log() {
    for backstop in [Backstop::None, Backstop::Engine] {
        let bench = Bench::new();
        bench.runtime.set_end_markers(true);
        let script = Script::new().stdout("y\n".repeat(50_000));
        let outcome = bench.run(script, spec().backstop(backstop)).await;
        assert_eq!(text(&outcome, Stream::Stdout), "y\n".repeat(50_000));
        assert_eq!(seal(&outcome).evidence, Evidence::EndMarker);
        assert_eq!(seal(&outcome).verdict, Verdict::Complete);
        assert_eq!(bench.runtime.calls(Call::Logs), 0);
    }
}

#[tokio::test]
async fn an_attachment_that_misses_its_marker_is_replayed() {
    let output = numbered(20).repeat(3);
    for cut in [0, numbered(20).len(), output.len() - 1, output.len()] {
        for backstop in [Backstop::None, Backstop::Engine] {
            let bench = Bench::new();
            bench.runtime.set_end_markers(true);
            let script = Script::new()
                .stdout(output.clone())
                .cut_attachment_after(cut as u64);
            let outcome = bench.run(script, spec().backstop(backstop)).await;
            if backstop == Backstop::Engine {
                assert_eq!(text(&outcome, Stream::Stdout), output);
                assert_eq!(seal(&outcome).evidence, Evidence::Replay);
            } else {
                assert_eq!(text(&outcome, Stream::Stdout), output[..cut]);
                assert_eq!(gaps(&outcome), [GapReason::NoBackstop]);
            }
        }
    }
}

/// A command that is retried and fails with the same lines.
#[tokio::test]
async fn a_cut_between_equal_blocks_is_never_complete() {
    for lines in [1, 64, 100, 4096, 65_536] {
        let block = numbered(lines);
        let retried = Script::new()
            .stdout(block.repeat(2))
            .cut_attachment_after(block.len() as u64);
        let bench = Bench::new();
        let outcome = bench.run(retried.clone(), spec()).await;
        assert_eq!(text(&outcome, Stream::Stdout), block.repeat(2), "{lines}");
        assert_eq!(seal(&outcome).evidence, Evidence::Replay);

        let bare = spec().backstop(Backstop::None);
        let outcome = bench.run(retried, bare).await;
        assert_eq!(seal(&outcome).verdict, Verdict::Unproven, "{lines}");
    }
}

/// The tail and the number of records prove a long capture without a replay.
#[tokio::test]
async fn a_flood_of_equal_lines_is_not_replayed() {
    let bench = Bench::new();
    let output = "y\n".repeat(100_000);
    let script = Script::new().stdout(output.clone());
    let outcome = bench.run(script, spec()).await;
    assert_eq!(text(&outcome, Stream::Stdout), output);
    assert_eq!(seal(&outcome).evidence, Evidence::Tail);
    assert_eq!(bench.runtime.calls(Call::LogHasExactly), 1);

    // An engine that cannot tell makes moat read its log.
    bench.runtime.fault(Call::LogHasExactly, broken("count"));
    let outcome = bench.run(Script::new().stdout(output), spec()).await;
    assert_eq!(seal(&outcome).evidence, Evidence::Replay);
}

/// Invariant 10.
#[tokio::test(start_paused = true)]
async fn an_unreachable_engine_changes_nothing() {
    let bench = Bench::new();
    for _ in 0..5 {
        bench.runtime.fault(Call::Wait, broken("wait"));
        bench.runtime.fault(Call::Logs, broken("read the log"));
    }
    let script = Script::new()
        .stdout(numbered(100))
        .pause(Duration::from_secs(9))
        .exit(4);
    let outcome = bench.run(script, spec()).await;
    assert_eq!(outcome.code(), Some(4));
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).evidence, Evidence::Replay);
}

/// Invariant 7: output that is lost in the engine's memory is in no log and no tap.
#[tokio::test(start_paused = true)]
async fn a_restart_during_a_run_is_a_possible_gap() {
    let bench = Bench::new();
    // The first waits may come before the start returns.
    for _ in 0..20 {
        bench.runtime.fault(Call::Wait, broken("wait"));
    }
    let script = Script::new().stdout("x\n");
    bench.runtime.next(script.pause(Duration::from_secs(9)));
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    bench.runtime.restart();
    let outcome = sealed(&run).await;
    check(&outcome);
    assert_eq!(gaps(&outcome), [GapReason::EngineRestarted]);
    drop(run);

    // An engine that does not say whether it was restarted may have been.
    bench.runtime.fault(Call::Wait, broken("wait"));
    bench
        .runtime
        .fault(Call::Continuity, broken("tell its events"));
    bench.runtime.next(Script::new().pause(Duration::ZERO));
    let outcome = sealed(&manager.start(spec()).await.unwrap()).await;
    check(&outcome);
    assert_eq!(gaps(&outcome), [GapReason::EngineRestarted]);
}

/// The engine had all output when it reported the exit.
#[tokio::test(start_paused = true)]
async fn a_restart_after_the_exit_is_not_a_gap() {
    let bench = Bench::new();
    let script = Script::new().stdout("x\n");
    bench.runtime.next(script.pause(Duration::from_secs(1)));
    let run = bench.open().await.start(spec()).await.unwrap();
    for _ in 0..5 {
        bench.runtime.fault(Call::Inspect, broken("inspect"));
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    bench.runtime.restart();
    let outcome = sealed(&run).await;
    check(&outcome);
    assert_eq!(gaps(&outcome), []);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

/// The same without a manager.
#[tokio::test(start_paused = true)]
async fn a_restart_without_owner_is_a_possible_gap() {
    // Long enough that the paused clock does not pass the end while the start is recorded.
    for length in [4, 60] {
        let bench = Bench::new();
        let script = Script::new().stdout("x\n");
        bench
            .runtime
            .next(script.pause(Duration::from_secs(length)));
        let manager = bench.open().await;
        let id = manager.start(spec()).await.unwrap().id().clone();
        manager.shutdown(ShutdownMode::Leave).await;
        bench.runtime.restart();
        tokio::time::sleep(Duration::from_secs(5)).await;
        for _ in 0..2 {
            let manager = bench.open().await;
            manager.wait_recovery().await.unwrap();
            manager.shutdown(ShutdownMode::Leave).await;
        }
        let manager = bench.open().await;
        let outcome = sealed(&manager.get(&id).await.unwrap()).await;
        check(&outcome);
        assert_eq!(gaps(&outcome), [GapReason::EngineRestarted]);
    }
}

/// After the tap ends, output is still visible before the exit.
#[tokio::test(start_paused = true)]
async fn output_after_the_tap_is_seen_live() {
    let bench = Bench::new();
    let script = Script::new()
        .stdout("one\n")
        .pause(Duration::from_secs(5))
        .stdout("two\n");
    bench
        .runtime
        .next(script.until_stopped().cut_attachment_after(4));
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    let mut attachment = run.attach().await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"two\n") {
        match attachment.next().await.unwrap().unwrap() {
            Attached::Chunk(chunk) => seen.extend_from_slice(&chunk.bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, b"one\ntwo\n");
    run.kill().await.unwrap();
    let outcome = sealed(&run).await;
    check(&outcome);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

const TEXT: &[u8] = b"one\ntwo\nthree\n";

/// Whichever answer is lost, the run is sealed with its output once.
#[tokio::test]
async fn a_lost_answer_to_any_call_loses_nothing() {
    for call in [
        Call::Attach,
        Call::Wait,
        Call::Inspect,
        Call::Logs,
        Call::Remove,
        Call::Continuity,
    ] {
        let engine = Scripted::new();
        let memory = moat::sink::Memory::new();
        let dir = tempfile::tempdir().unwrap();
        engine.image("any", Script::new().stdout(TEXT));
        engine.fault(call, Fault::AnswerLost);
        let builder = Manager::builder(dir.path(), engine.clone()).sink(memory.clone());
        let manager = builder.open().await.unwrap();
        let outcome = match manager.start(RunSpec::new("any")).await {
            Ok(run) => run.wait().await.unwrap(),
            Err(moat::Error::NotStarted { .. }) if call == Call::Attach => continue,
            Err(error) => panic!("{call:?}: {error:?}"),
        };
        let verdict = outcome.sealed().map(|seal| seal.verdict);
        assert_eq!(verdict, Some(Verdict::Complete), "{call:?}");
        let output = memory.output(&outcome.run, moat::outcome::Stream::Stdout);
        assert_eq!(output, TEXT, "{call:?}");
    }
}

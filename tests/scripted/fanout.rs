//! A fan-out to several sinks: no best-effort sink harms the others.

use std::time::{Duration, Instant};

use moat::audit::Record;
use moat::outcome::Stream;
use moat::runtime::scripted::{Script, Scripted};
use moat::sink::{Fanout, Faulty, Jsonl, Memory, SinkCall, SinkFault};
use moat::spec::ExecSpec;
use moat::{Error, Manager, RunId, RunSpec, Verdict};

use crate::bench::run_into;
use crate::console::{becomes_true, shown};

/// A sink with this fault.
fn bad(fault: SinkFault) -> Faulty {
    let sink = Faulty::new(Memory::new());
    sink.fault(fault);
    sink
}

#[tokio::test]
async fn a_faulty_best_effort_sink_harms_no_other() {
    for fault in [
        SinkFault::error().on([SinkCall::Open]),
        SinkFault::error().on([SinkCall::Append]),
        SinkFault::error().on([SinkCall::Seal]),
        SinkFault::stall().on([SinkCall::Append]),
        SinkFault::block().on([SinkCall::Append]),
        SinkFault::panic().on([SinkCall::Append]),
    ] {
        let shown = format!("{fault:?}");
        let (required, other) = (Memory::new(), Memory::new());
        let sink = Fanout::new(required.clone())
            .best_effort(bad(fault))
            .best_effort(other.clone());
        let begin = Instant::now();
        let outcome = run_into(sink, "run", Script::new().stdout("a\nb\n").exit(3)).await;
        assert!(begin.elapsed() < Duration::from_secs(60), "{shown}");
        let seal = outcome.sealed().unwrap();
        assert_eq!(seal.verdict, Verdict::Complete, "{shown}");
        // The seal waits at most 1 s for the faulty sink.
        eventually(|| other.seal(&outcome.run).is_some());
        for memory in [&required, &other] {
            let output = memory.output(&outcome.run, Stream::Stdout);
            assert_eq!(output, b"a\nb\n", "{shown}");
            assert_eq!(memory.seal(&outcome.run).as_ref(), Some(seal), "{shown}");
        }
    }
}

#[tokio::test]
async fn a_stuck_sink_delays_only_one_seal() {
    let sink =
        Fanout::new(Memory::new()).best_effort(bad(SinkFault::stall().on([SinkCall::Append])));
    let script = || Script::new().stdout("a\n");
    run_into(sink.clone(), "first", script()).await;
    let begin = Instant::now();
    // Waiting for the sink each time would take 12 s.
    for n in 0..12 {
        run_into(sink.clone(), &format!("later-{n}"), script()).await;
    }
    assert!(
        begin.elapsed() < Duration::from_secs(9),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn an_error_of_the_required_sink_is_returned() {
    let sink = Fanout::new(bad(SinkFault::error().on([SinkCall::Open]))).best_effort(Memory::new());
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::builder(dir.path(), Scripted::new()).sink(sink);
    let manager = manager.open().await.unwrap();
    let error = manager.start(RunSpec::new("any")).await.unwrap_err();
    assert!(matches!(error, Error::Sink(_)), "{error:?}");
}

/// Also a sink that is new, and a sink that has the first part of the log.
#[tokio::test]
async fn a_best_effort_sink_catches_up_on_resume() {
    // The fan-out abandons a sink that does not answer within 1 s.
    assert!(catches_up().await || catches_up().await);
}

/// `false` if a sink was abandoned.
async fn catches_up() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let (late, new) = (Memory::new(), Memory::new());
    let (shown, text) = shown();
    let id = RunId::new("run").unwrap();

    engine.next(Script::new().stdout("one\n").until_stopped());
    let sink = Fanout::new(Jsonl::new()).best_effort(late.clone());
    let builder = Manager::builder(dir.path(), engine.clone()).sink(sink);
    let manager = builder.open().await.unwrap();
    let run = manager
        .start(RunSpec::new("any").id(id.clone()))
        .await
        .unwrap();
    eventually(|| !late.output(&id, Stream::Stdout).is_empty());
    drop(run);
    manager.shutdown(moat::ShutdownMode::Leave).await;

    let sink = Fanout::new(Jsonl::new())
        .best_effort(late.clone())
        .best_effort(new.clone())
        .best_effort(shown);
    let builder = Manager::builder(dir.path(), engine.clone()).sink(sink);
    let manager = builder.open().await.unwrap();
    let run = manager.get(&id).await.unwrap();
    let outcome = run.kill().await.unwrap();
    let mut lines = String::new();
    let all_have_the_end = becomes_true(|| {
        lines.push_str(&String::from_utf8(text.try_iter().flatten().collect()).unwrap());
        lines.contains("exited") && late.seal(&id).is_some() && new.seal(&id).is_some()
    });
    if !all_have_the_end {
        return false;
    }
    // Only a file has a digest.
    let mut seal = outcome.sealed().unwrap().clone();
    seal.sha256.clear();
    for memory in [&late, &new] {
        assert_eq!(memory.output(&id, Stream::Stdout), b"one\n");
        assert_eq!(memory.seal(&id).as_ref(), Some(&seal));
    }
    // Both sinks have the same records from the start.
    assert_eq!(late.records(&id), new.records(&id));
    // A sink that keeps nothing is shown new records only.
    assert!(!lines.contains("one"), "{lines}");
    true
}

fn eventually(condition: impl FnMut() -> bool) {
    assert!(becomes_true(condition));
}

#[tokio::test]
async fn an_exec_has_its_own_log_in_each_sink() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, (console, text)) = (Memory::new(), shown());
    let sink = Fanout::new(memory.clone()).best_effort(console);
    let engine = Scripted::new();
    engine.next(Script::new().stdout("around\n").until_stopped());
    engine.next_exec(Script::new().stdout("inside\n").exit(4));
    let manager = Manager::builder(dir.path().join("runs"), engine)
        .sink(sink)
        .open()
        .await
        .unwrap();
    let name: RunId = "r".parse().unwrap();
    let run = manager
        .start(RunSpec::new("any").id(name.clone()))
        .await
        .unwrap();
    let exec = run.exec(ExecSpec::new(["ls"])).await.unwrap();
    let inner = exec.wait().await.unwrap();
    assert_eq!(inner.sealed().map(|seal| seal.exit.code()), Some(Some(4)));
    run.stop(None).await.unwrap();
    let printed = |records: Vec<Record>| -> Vec<Vec<u8>> {
        let output = records.into_iter().filter_map(|record| match record {
            Record::Output(output) => Some(output.bytes),
            _ => None,
        });
        output.collect()
    };
    assert_eq!(printed(memory.records(&name)), [b"around"]);
    assert_eq!(printed(memory.exec_records(&name, 1)), [b"inside"]);
    assert_eq!(memory.runs(), [name]);
    let mut lines = String::new();
    eventually(|| {
        lines.push_str(&String::from_utf8(text.try_iter().flatten().collect()).unwrap());
        lines.contains("r exec-1 * exited") && lines.contains("r        * exited")
    });
    let is_shown = |line: &str| lines.lines().any(|shown| shown == line);
    assert!(is_shown("r exec-1 | inside"), "{lines}");
    assert!(!is_shown("r        | inside"), "{lines}");
}

//! The sinks beside the audit file: a fan-out that nobody can harm, a console, and events of
//! `tracing`.

#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use moat::audit::{Batch, Record, Start};
use moat::outcome::Stream;
use moat::runtime::scripted::{Script, Scripted};
use moat::sink::{
    Console, Fanout, Jsonl, Memory, RecordVisitor, Resumed, RunLog, RunPlace, Tracing,
};
use moat::spec::ExecSpec;
use moat::{Error, LogSink, Manager, Outcome, Result, RunId, RunSpec, Seal, Verdict};
use tracing::field::{Field, Visit as VisitFields};
use tracing::span;

/// How a best-effort sink is a nuisance.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Nuisance {
    FailsToOpen,
    FailsToAppend,
    FailsToSeal,
    Hangs,
    BlocksItsThread,
    Panics,
}

#[derive(Debug)]
struct Bad(Nuisance);

#[async_trait]
impl LogSink for Bad {
    async fn open(&self, place: &RunPlace, _: &Start) -> Result<Box<dyn RunLog>> {
        match self.0 {
            Nuisance::FailsToOpen => Err(broken(&place.run)),
            _ => Ok(Box::new(BadLog(self.0, place.run.clone()))),
        }
    }

    async fn resume(&self, place: &RunPlace, _: RecordVisitor) -> Result<Resumed> {
        Err(broken(&place.run))
    }
}

fn broken(run: &RunId) -> Error {
    Error::from(
        moat::sink::SinkError::new(io::Error::other("it is broken"))
            .operation("keep")
            .run(run),
    )
}

#[derive(Debug)]
struct BadLog(Nuisance, RunId);

#[async_trait]
impl RunLog for BadLog {
    async fn append(&mut self, _: Batch) -> Result<()> {
        match self.0 {
            Nuisance::FailsToAppend => Err(broken(&self.1)),
            Nuisance::Hangs => std::future::pending().await,
            // For ever: its thread cannot be had back.
            Nuisance::BlocksItsThread => loop {
                std::thread::park();
            },
            Nuisance::Panics => panic!("as it was asked to"),
            _ => Ok(()),
        }
    }

    async fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    async fn seal(&mut self, seal: Seal) -> Result<Seal> {
        match self.0 {
            Nuisance::FailsToSeal => Err(broken(&self.1)),
            _ => Ok(seal),
        }
    }
}

async fn run(sink: impl LogSink, name: &str, script: Script) -> Outcome {
    // In memory where that is there: all is synced.
    let memory = Path::new("/dev/shm");
    let dir = match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    };
    let engine = Scripted::new();
    engine.next(script);
    let builder = Manager::builder(dir.path(), engine).sink(sink);
    let manager = builder.open().await.unwrap();
    let spec = RunSpec::new("any").id(RunId::new(name).unwrap());
    manager.start(spec).await.unwrap().wait().await.unwrap()
}

#[tokio::test]
async fn a_best_effort_sink_that_fails_hangs_blocks_or_panics_harms_nobody() {
    for nuisance in [
        Nuisance::FailsToOpen,
        Nuisance::FailsToAppend,
        Nuisance::FailsToSeal,
        Nuisance::Hangs,
        Nuisance::BlocksItsThread,
        Nuisance::Panics,
    ] {
        let (required, other) = (Memory::new(), Memory::new());
        let sink = Fanout::new(required.clone())
            .best_effort(Bad(nuisance))
            .best_effort(other.clone());
        let begin = Instant::now();
        let outcome = run(sink, "run", Script::new().stdout("a\nb\n").exit(3)).await;
        assert!(begin.elapsed() < Duration::from_secs(60), "{nuisance:?}");
        let seal = outcome.sealed().unwrap();
        assert_eq!(seal.verdict, Verdict::Complete, "{nuisance:?}");
        // The seal waits for it no longer than 1 s.
        eventually(|| other.seal(&outcome.run).is_some());
        for memory in [&required, &other] {
            let output = memory.output(&outcome.run, Stream::Stdout);
            assert_eq!(output, b"a\nb\n", "{nuisance:?}");
            assert_eq!(
                memory.seal(&outcome.run).as_ref(),
                Some(seal),
                "{nuisance:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_sink_that_hangs_is_waited_for_once_and_not_at_each_seal() {
    let sink = Fanout::new(Memory::new()).best_effort(Bad(Nuisance::Hangs));
    let script = || Script::new().stdout("a\n");
    run(sink.clone(), "first", script()).await;
    let begin = Instant::now();
    // 1 s for each, were it waited for.
    for n in 0..12 {
        run(sink.clone(), &format!("later-{n}"), script()).await;
    }
    assert!(
        begin.elapsed() < Duration::from_secs(9),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test]
async fn an_error_of_the_required_sink_is_the_fan_outs() {
    let sink = Fanout::new(Bad(Nuisance::FailsToOpen)).best_effort(Memory::new());
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::builder(dir.path(), Scripted::new()).sink(sink);
    let manager = manager.open().await.unwrap();
    let error = manager.start(RunSpec::new("any")).await.unwrap_err();
    assert!(matches!(error, Error::Sink(_)), "{error:?}");
}

/// Also one that was not there before, and one that has a first part.
#[tokio::test]
async fn a_best_effort_sink_catches_up_when_a_run_is_resumed() {
    // One that does not say within 1 s what it has is given up for the run.
    assert!(lossless().await || lossless().await);
}

/// `false`: a sink was given up.
async fn lossless() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let engine = Scripted::new();
    let (behind, new) = (Memory::new(), Memory::new());
    let (shown, text) = shown();
    let id = RunId::new("run").unwrap();

    engine.next(Script::new().stdout("one\n").until_stopped());
    let sink = Fanout::new(Jsonl::new()).best_effort(behind.clone());
    let builder = Manager::builder(dir.path(), engine.clone()).sink(sink);
    let manager = builder.open().await.unwrap();
    let run = manager
        .start(RunSpec::new("any").id(id.clone()))
        .await
        .unwrap();
    eventually(|| !behind.output(&id, Stream::Stdout).is_empty());
    drop(run);
    manager.shutdown(moat::ShutdownMode::Leave).await;

    let sink = Fanout::new(Jsonl::new())
        .best_effort(behind.clone())
        .best_effort(new.clone())
        .best_effort(shown);
    let builder = Manager::builder(dir.path(), engine.clone()).sink(sink);
    let manager = builder.open().await.unwrap();
    let run = manager.get(&id).await.unwrap();
    let outcome = run.kill().await.unwrap();
    let mut lines = String::new();
    let all_have_the_end = is_so_in_time(|| {
        lines.push_str(&String::from_utf8(text.try_iter().flatten().collect()).unwrap());
        lines.contains("exited") && behind.seal(&id).is_some() && new.seal(&id).is_some()
    });
    if !all_have_the_end {
        return false;
    }
    // The digest is the file's own.
    let mut seal = outcome.sealed().unwrap().clone();
    seal.sha256.clear();
    for memory in [&behind, &new] {
        assert_eq!(memory.output(&id, Stream::Stdout), b"one\n");
        assert_eq!(memory.seal(&id).as_ref(), Some(&seal));
    }
    // Both have the same, from the first record on.
    assert_eq!(behind.records(&id), new.records(&id));
    // What keeps nothing is not shown again what was.
    assert!(!lines.contains("one"), "{lines}");
    true
}

fn is_so_in_time(mut what: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !what() {
        if begin.elapsed() > Duration::from_secs(20) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn eventually(what: impl FnMut() -> bool) {
    assert!(is_so_in_time(what));
}

struct Shown(Sender<Vec<u8>>);

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A console, and what it writes.
fn shown() -> (Console, Receiver<Vec<u8>>) {
    let (out, text) = mpsc::channel();
    (Console::to(Shown(out)), text)
}

#[tokio::test]
async fn the_console_shows_whole_lines_behind_names_and_spells_out_what_could_harm() {
    let (console, text) = shown();
    let long = "x".repeat(16 << 10);
    let script = Script::new()
        .stdout("plain\n")
        .stderr("\x1b[2Jhidden\r\n")
        .stdout(format!("{long}y\n"))
        .exit(7);
    run(console.clone(), "build", script).await;
    run(
        console,
        "t",
        Script::new().stdout("last, without a newline"),
    )
    .await;
    let text = String::from_utf8(text.try_iter().flatten().collect()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "build * is to run any");
    assert!(
        lines[1].starts_with("build * started as scripted-"),
        "{text}"
    );
    assert!(lines.contains(&"build | plain"), "{text}");
    assert!(lines.contains(&"build ! \\x1b[2Jhidden\\r"), "{text}");
    assert!(lines.contains(&format!("build | {long}\u{2026}").as_str()));
    assert!(lines.contains(&"build | y"));
    assert!(
        lines.contains(&"build * exited with code 7; audit complete"),
        "{text}"
    );
    assert!(
        lines.contains(&"t     | last, without a newline\u{2026}"),
        "{text}"
    );
    assert!(!text.contains('\x1b'));
}

#[tokio::test]
async fn a_further_process_has_a_log_of_its_own_in_each_sink() {
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

#[tokio::test]
async fn colours_are_around_the_name_alone() {
    let (console, text) = shown();
    run(
        console.colours(true),
        "build",
        Script::new().stdout("\x1b[31mred\n"),
    )
    .await;
    let text = String::from_utf8(text.try_iter().flatten().collect()).unwrap();
    for line in text.lines() {
        let colours = line.split_once("\x1b[0m ").map(|(name, rest)| {
            (
                name.starts_with("\x1b[3"),
                name.matches('\x1b').count(),
                rest.contains('\x1b'),
            )
        });
        assert_eq!(colours, Some((true, 1, false)), "{line:?}");
    }
    assert!(text.contains("\\x1b[31mred"), "{text}");
}

/// Keeps the events of one target.
struct Collector(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl VisitFields for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

impl tracing::Subscriber for Collector {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "moat::output"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn each_line_is_an_event_of_tracing_with_its_run_and_stream() {
    let events = Arc::<Mutex<Vec<String>>>::default();
    tracing::subscriber::set_global_default(Collector(Arc::clone(&events))).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let script = Script::new().stdout("fine\n").stderr("\x1b[2Jnot\n");
    runtime.block_on(run(Tracing::new(), "traced", script));
    let mut events = events.lock().unwrap().clone();
    events.retain(|event| event.contains("run=traced"));
    events.sort();
    assert_eq!(
        events,
        [
            "message=\\x1b[2Jnot run=traced stream=\"stderr\" partial=false ",
            "message=fine run=traced stream=\"stdout\" partial=false ",
        ]
    );
}

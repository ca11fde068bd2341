//! Sitting in front of runs of the scripted runtime: what an engine cannot be made to do.
#![cfg(feature = "testing")]
#![allow(clippy::disallowed_methods, reason = "tests spawn as their users do")]
#![allow(unreachable_pub)]

#[path = "support/deadline.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod deadline;
#[path = "support/records.rs"]
mod records;

use std::path::PathBuf;

use futures::StreamExt;
use moat::audit::{Action, Event, LogState, verify};
use moat::outcome::Evidence;
use moat::run::{AttachOptions, Attached, Attachment};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Break, Call, Fault, Script, Scripted};
use moat::spec::{ExecSpec, Stdin, WindowSize};
use moat::{Ending, Error, Manager, Outcome, Run, RunSpec, Seal, ShutdownMode, Verdict};
use tokio::io::AsyncWriteExt;

use deadline::eventually;
use records::{actions, events};

struct Bench {
    runtime: Scripted,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            runtime: Scripted::new(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    async fn open(&self) -> Manager {
        Manager::open(self.root(), self.runtime.clone())
            .await
            .unwrap()
    }
}

fn pipe() -> RunSpec {
    RunSpec::new("any").stdin(Stdin::Pipe)
}

fn with_input() -> AttachOptions {
    AttachOptions::new().with_input()
}

async fn all(mut output: Attachment) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(item) = output.next().await {
        match item.unwrap() {
            Attached::Chunk(chunk) => bytes.extend_from_slice(&chunk.bytes),
            other => panic!("{other:?}"),
        }
    }
    bytes
}

async fn printed(output: &mut Attachment, text: &[u8]) {
    let mut bytes = Vec::new();
    while !bytes.ends_with(text) {
        match output.next().await.unwrap().unwrap() {
            Attached::Chunk(chunk) => bytes.extend_from_slice(&chunk.bytes),
            other => panic!("{other:?}"),
        }
    }
}

async fn sealed(run: &Run) -> (Outcome, PathBuf) {
    let outcome = run.wait().await.unwrap();
    let path = run.audit().unwrap();
    assert!(matches!(verify(&path).unwrap().state, LogState::Sealed(_)));
    (outcome, path)
}

fn seal(outcome: &Outcome) -> &Seal {
    outcome.sealed().unwrap_or_else(|| panic!("{outcome}"))
}

#[tokio::test]
async fn what_is_written_comes_back_and_the_end_of_the_input_is_the_containers() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("first\n").echo().exit(4));
    let manager = bench.open().await;
    let (run, mut output) = manager.start_attached(pipe(), with_input()).await.unwrap();
    let mut input = output.input().unwrap();
    input.write_all(b"second\n").await.unwrap();
    input.shutdown().await.unwrap();
    input.shutdown().await.unwrap();
    assert_eq!(all(output).await, b"first\nsecond\n");
    let (outcome, path) = sealed(&run).await;
    assert_eq!(outcome.code(), Some(4));
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(actions(&path), [Action::AttachInput, Action::InputEnd]);
}

/// The record is there before the container starts, and before a writer is.
#[tokio::test]
async fn an_input_that_cannot_be_connected_to_fails_the_start_and_leaves_a_sealed_audit() {
    let bench = Bench::new();
    let refused = RuntimeError::Rejected {
        operation: "attach to the container's input",
        reason: "it does not want to".into(),
    };
    bench.runtime.fault(Call::Stdin, Fault::Error(refused));
    let manager = bench.open().await;
    let error = manager
        .start_attached(pipe(), with_input())
        .await
        .unwrap_err();
    let Error::NotStarted { outcome, .. } = error else {
        panic!("{error}");
    };
    assert!(matches!(outcome.ending, Ending::FailedToStart { .. }));
    assert_eq!(bench.runtime.calls(Call::Start), 0);
    assert_eq!(bench.runtime.containers(), 0);
    assert_eq!(
        actions(outcome.audit.as_ref().unwrap()),
        [Action::AttachInput]
    );
}

#[tokio::test]
async fn input_that_the_spec_does_not_ask_for_makes_nothing() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let started = manager
        .start_attached(RunSpec::new("any"), with_input())
        .await;
    assert!(matches!(started, Err(Error::NoInput { .. })));
    assert_eq!(bench.runtime.calls(Call::Create), 0);
    assert!(manager.list().await.unwrap().is_empty());
}

/// H33: whoever takes the run over knows that the end which the container saw was none.
#[tokio::test]
async fn a_writer_that_died_with_its_process_is_recorded_by_the_next() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    let first = bench.open().await;
    let (run, mut output) = first.start_attached(pipe(), with_input()).await.unwrap();
    let mut input = output.input().unwrap();
    input.write_all(b"half\n").await.unwrap();
    printed(&mut output, b"half\n").await;
    let id = run.id().clone();
    // As if the process had died: nothing more is told.
    first.shutdown(ShutdownMode::Leave).await;
    drop((run, output));

    let second = bench.open().await;
    second.wait_recovery().await.unwrap();
    let run = second.get(&id).await.unwrap();
    let error = run.attach_with(with_input()).await.unwrap_err();
    assert!(matches!(error, Error::NoInput { .. }), "{error}");
    drop(input);
    let (outcome, path) = sealed(&run).await;
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(actions(&path), [Action::AttachInput, Action::InputLost]);
}

#[tokio::test]
async fn a_terminal_is_given_its_size_and_each_change_is_recorded_once() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().until_stopped());
    let manager = bench.open().await;
    let spec = RunSpec::new("any").tty(true).stdin(Stdin::Open);
    let size = WindowSize::new(80, 24);
    let (run, output) = manager
        .start_attached(spec, with_input().window(size))
        .await
        .unwrap();
    let other = WindowSize::new(100, 30);
    for size in [size, other, other] {
        output.resize(size).await.unwrap();
    }
    output.detach();
    run.kill().await.unwrap();
    let (_, path) = sealed(&run).await;
    assert_eq!(bench.runtime.sizes(), [size, size, other, other]);
    assert_eq!(
        actions(&path),
        [Action::AttachInput, Action::Resize, Action::Detach]
    );
}

#[tokio::test]
async fn a_container_without_a_terminal_has_no_size() {
    let error = RunSpec::new("any").window(WindowSize::new(1, 1)).validate();
    assert!(error.is_err());
    let error = pipe().tty(true).validate();
    assert!(error.is_err());
}

/// Of a run that was taken over, what a terminal shows comes by a connection of its own.
#[tokio::test]
async fn who_looks_on_live_is_told_that_the_connection_broke() {
    for how in [Some(Break::Error), Some(Break::End), None] {
        let bench = Bench::new();
        bench.runtime.next(Script::new().stdout("past\n").echo());
        let first = bench.open().await;
        let spec = RunSpec::new("any").tty(true).stdin(Stdin::Open);
        let id = first.start(spec).await.unwrap().id().clone();
        first.shutdown(ShutdownMode::Leave).await;
        let second = bench.open().await;
        second.wait_recovery().await.unwrap();
        let run = second.get(&id).await.unwrap();

        if let Some(how) = how {
            bench.runtime.fault(Call::Watch, Fault::Stream(6, how));
        }
        let options = with_input().live_only();
        let mut output = run.attach_with(options).await.unwrap();
        assert_eq!(bench.runtime.calls(Call::Watch), 1);
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

/// Nothing comes after the last of it that could tell.
#[tokio::test]
async fn who_looks_on_live_is_told_what_was_missed_at_the_end() {
    const PIECE: usize = 64 << 10;
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    let first = bench.open().await;
    let spec = RunSpec::new("any").tty(true).stdin(Stdin::Open);
    let id = first.start(spec).await.unwrap().id().clone();
    first.shutdown(ShutdownMode::Leave).await;
    let second = bench.open().await;
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

/// A pipe has one writer, which a call that fails does not use up.
#[tokio::test]
async fn a_size_that_is_refused_leaves_the_input_to_be_had() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    bench.runtime.next_exec(Script::new().echo());
    let manager = bench.open().await;
    let run = manager.start(pipe()).await.unwrap();
    let spec = ExecSpec::new(["any"]).interactive(true);
    let exec = run.exec(spec).await.unwrap();
    let refuse = || {
        let refused = RuntimeError::Rejected {
            operation: "resize the terminal",
            reason: "there is none".into(),
        };
        bench.runtime.fault(Call::Resize, Fault::Error(refused));
    };
    let with_size = with_input().window(WindowSize::new(80, 24));

    refuse();
    let error = exec.attach_with(with_size).await.unwrap_err();
    assert!(matches!(error, Error::Runtime(_)), "{error}");
    let mut output = exec.attach_with(with_input()).await.unwrap();
    write_and_end(&mut output).await;
    assert_eq!(all(output).await, b"typed\n");

    refuse();
    let error = run.attach_with(with_size).await.unwrap_err();
    assert!(matches!(error, Error::Runtime(_)), "{error}");
    let mut output = run.attach_with(with_input()).await.unwrap();
    write_and_end(&mut output).await;
    assert_eq!(all(output).await, b"typed\n");
    let (_, path) = sealed(&run).await;
    assert_eq!(
        actions(&path),
        [Action::Exec, Action::AttachInput, Action::InputEnd]
    );
}

async fn write_and_end(output: &mut Attachment) {
    let mut input = output.input().unwrap();
    input.write_all(b"typed\n").await.unwrap();
    input.shutdown().await.unwrap();
}

async fn with_exec(bench: &Bench, script: Script) -> (Manager, Run) {
    bench.runtime.next(Script::new().until_stopped());
    bench.runtime.next_exec(script);
    let manager = bench.open().await;
    let run = manager.start(RunSpec::new("any")).await.unwrap();
    (manager, run)
}

#[tokio::test]
async fn a_further_process_has_an_audit_that_verifies_and_its_runs_audit_names_it() {
    let bench = Bench::new();
    let (_manager, run) = with_exec(
        &bench,
        Script::new().stdout("out\n").stderr("err\n").exit(7),
    )
    .await;
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    assert_eq!(all(exec.attach().await.unwrap()).await, b"out\nerr\n");
    let outcome = exec.wait().await.unwrap();
    assert_eq!(outcome.code(), Some(7));
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).evidence, Evidence::Eof);
    let path = exec.audit().unwrap();
    assert!(matches!(verify(&path).unwrap().state, LogState::Sealed(_)));
    match &events(&path)[0] {
        Event::Start(start) => assert_eq!(start.exec, Some(1)),
        other => panic!("{other:?}"),
    }
    run.kill().await.unwrap();
    let (_, path) = sealed(&run).await;
    assert_eq!(actions(&path), [Action::Exec]);
}

/// It is live only: what a cut connection did not bring, nothing can bring back.
#[tokio::test]
async fn a_further_process_whose_connection_ends_before_it_is_a_gap() {
    let bench = Bench::new();
    let script = Script::new().stdout("seen\n").echo().cut_tap_after(5);
    let (_manager, run) = with_exec(&bench, script).await;
    let spec = ExecSpec::new(["any"]).interactive(true);
    let exec = run.exec(spec).await.unwrap();
    let mut input = exec.attach_with(with_input()).await.unwrap().input();
    // By the real clock: a paused one runs ahead while a thread writes a file. When it is looked at
    // for the seventh time it has been seen to go on for more than a second.
    eventually(60, "a look at what goes on", async || {
        (bench.runtime.calls(Call::ExecInspect) >= 7).then_some(())
    })
    .await;
    input.as_mut().unwrap().shutdown().await.unwrap();
    let outcome = exec.wait().await.unwrap();
    assert_eq!(outcome.code(), Some(0));
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(seal(&outcome).evidence, Evidence::None);
}

#[tokio::test]
async fn a_further_process_that_the_engine_does_not_know_any_more_has_an_unknown_end() {
    let bench = Bench::new();
    let (_manager, run) = with_exec(&bench, Script::new().stdout("out\n")).await;
    let gone = RuntimeError::NotFound {
        operation: "inspect a process",
        reason: "no such exec".into(),
    };
    bench.runtime.fault(Call::ExecInspect, Fault::Error(gone));
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    let outcome = exec.wait().await.unwrap();
    assert!(matches!(outcome.ending, Ending::Lost { .. }), "{outcome}");
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
}

#[tokio::test]
async fn a_further_process_that_is_refused_says_so_in_its_audit_without_secrets() {
    let bench = Bench::new();
    let (_manager, run) = with_exec(&bench, Script::new().fail_to_start("bad: s3cr3t")).await;
    let spec = ExecSpec::new(["any"]).env("TOKEN", "s3cr3t");
    let error = run.exec(spec).await.unwrap_err();
    assert!(!error.chain().contains("s3cr3t"), "{}", error.chain());
    let Error::NotStarted { outcome, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(seal(&outcome).evidence, Evidence::NeverStarted);
    let file = std::fs::read_to_string(outcome.audit.unwrap()).unwrap();
    assert!(!file.contains("s3cr3t") && file.contains("***"), "{file}");
}

/// What is recorded of the input is what the engine has taken.
#[tokio::test]
async fn input_is_in_the_audit_only_where_it_was_asked_for() {
    for record in [false, true] {
        let bench = Bench::new();
        bench.runtime.next(Script::new().echo());
        let manager = bench.open().await;
        let spec = pipe().record_stdin(record);
        let (run, mut output) = manager.start_attached(spec, with_input()).await.unwrap();
        let mut input = output.input().unwrap();
        for _ in 0..100 {
            input.write_all(b"typed\n").await.unwrap();
        }
        input.shutdown().await.unwrap();
        assert_eq!(all(output).await.len(), 600);
        let (_, path) = sealed(&run).await;
        let typed: Vec<u8> = events(&path)
            .into_iter()
            .filter_map(|event| match event {
                Event::Stdin(written) => Some(written.bytes),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(
            typed,
            if record {
                b"typed\n".repeat(100)
            } else {
                Vec::new()
            }
        );
    }
}

/// There is nobody any more who would record it.
#[tokio::test]
async fn nothing_is_done_to_a_run_by_way_of_a_manager_that_has_closed() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().echo());
    bench.runtime.next_exec(Script::new().echo());
    let manager = bench.open().await;
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

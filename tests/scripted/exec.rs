//! Exec: more processes in the container of a run.

use std::time::Duration;

use moat::audit::{Action, Event, GapReason, LogState, verify};
use moat::outcome::{Evidence, SealState};
use moat::run::Exec;
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::spec::ExecSpec;
use moat::{Ending, Error, Manager, Outcome, Run, RunSpec, Verdict};
use testkit::deadline::{eventually, within};
use tokio::io::AsyncWriteExt;

use crate::attach::{all, audited, with_input};
use crate::bench::{Bench, check, named, seal, spec};
use crate::events::names;
use crate::records::{actions, events, gaps};

async fn sealed(exec: &Exec) -> Outcome {
    loop {
        let outcome = exec.wait().await.unwrap();
        if outcome.sealed().is_some() {
            return outcome;
        }
    }
}

async fn with_exec(bench: &Bench, script: Script) -> (Manager, Run) {
    bench.runtime.next(Script::new().until_stopped());
    bench.runtime.next_exec(script);
    let manager = bench.open_on_threads().await;
    let run = manager.start(RunSpec::new("any")).await.unwrap();
    (manager, run)
}

#[tokio::test]
async fn an_exec_has_an_audit_that_verifies() {
    for end_markers in [false, true] {
        check_exec(end_markers).await;
    }
}

async fn check_exec(end_markers: bool) {
    let bench = Bench::new();
    bench.runtime.set_end_markers(end_markers);
    let (_manager, run) = with_exec(
        &bench,
        Script::new().stdout("out\n").stderr("err\n").exit(7),
    )
    .await;
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    assert_eq!(all(exec.attach().await.unwrap()).await, b"out\nerr\n");
    let outcome = exec.wait().await.unwrap();
    assert_eq!(outcome.code(), Some(7));
    let proof = match end_markers {
        true => (Verdict::Complete, Evidence::EndMarker),
        false => (Verdict::Unproven, Evidence::Eof),
    };
    assert_eq!((seal(&outcome).verdict, seal(&outcome).evidence), proof);
    let path = exec.audit().unwrap();
    assert!(matches!(verify(&path).unwrap().state, LogState::Sealed(_)));
    match &events(&path)[0] {
        Event::Start(start) => assert_eq!(start.exec, Some(1)),
        other => panic!("{other:?}"),
    }
    run.kill().await.unwrap();
    let (_, path) = audited(&run).await;
    assert_eq!(actions(&path), [Action::Exec]);
}

/// The output of an exec is live only. What a cut connection loses is lost.
#[tokio::test]
async fn an_exec_with_a_cut_connection_is_a_gap() {
    let bench = Bench::new();
    let script = Script::new()
        .stdout("seen\n")
        .echo()
        .cut_attachment_after(5);
    let (_manager, run) = with_exec(&bench, script).await;
    let spec = ExecSpec::new(["any"]).interactive(true);
    let exec = run.exec(spec).await.unwrap();
    let mut input = exec.attach_with(with_input()).await.unwrap().input();
    // The real clock: a paused clock runs ahead while a thread writes a file. At the seventh
    // inspection, the exec has outlived its connection by more than a second.
    eventually(60, "an inspection", async || {
        (bench.runtime.calls(Call::ExecInspect) >= 7).then_some(())
    })
    .await;
    input.as_mut().unwrap().shutdown().await.unwrap();
    let outcome = exec.wait().await.unwrap();
    assert_eq!(outcome.code(), Some(0));
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(seal(&outcome).evidence, Evidence::None);
}

/// The log is created again, with a gap for the output that only the removed file had.
#[tokio::test]
async fn a_removed_log_of_an_exec_is_restored() {
    for printed in [true, false] {
        let bench = Bench::new();
        let script = match printed {
            true => Script::new().stdout("one\n").echo().exit(7),
            false => Script::new().echo().exit(7),
        };
        let (_manager, run) = with_exec(&bench, script).await;
        let spec = ExecSpec::new(["any"]).interactive(true);
        let exec = run.exec(spec).await.unwrap();
        let mut input = exec.attach_with(with_input()).await.unwrap().input();
        let path = exec.audit().unwrap();
        let has = |text: &str| std::fs::read_to_string(&path).is_ok_and(|log| log.contains(text));
        eventually(60, "the start of the exec", async || {
            (has("\"started\"") && (!printed || has("one"))).then_some(())
        })
        .await;
        std::fs::remove_file(&path).unwrap();
        input.as_mut().unwrap().shutdown().await.unwrap();
        let outcome = within(60, "the seal", sealed(&exec)).await;
        assert_eq!(outcome.code(), Some(7), "{outcome}");
        check(&outcome);
        let restored = events(&path);
        match &restored[0] {
            Event::Start(start) => assert_eq!(start.exec, Some(1)),
            other => panic!("{other:?}"),
        }
        let is_started = |event: &&Event| matches!(event, Event::Started(_));
        assert_eq!(restored.iter().filter(is_started).count(), 1);
        let expected: &[GapReason] = if printed { &[GapReason::Sink] } else { &[] };
        assert_eq!(gaps(&outcome), expected);
    }
}

/// The run was removed, and another run has its id.
#[tokio::test]
async fn a_removed_log_of_an_exec_is_not_restored_into_another_run() {
    let bench = Bench::new();
    let builder = bench.builder().seal_timeout(Duration::from_millis(100));
    let manager = builder.open().await.unwrap();
    let run = bench
        .start(&manager, Script::new().until_stopped(), named("run"))
        .await;
    bench.runtime.next_exec(Script::new().echo());
    let spec = ExecSpec::new(["any"]).interactive(true);
    let exec = run.exec(spec).await.unwrap();
    let mut input = exec.attach_with(with_input()).await.unwrap().input();
    std::fs::remove_file(exec.audit().unwrap()).unwrap();
    run.kill().await.unwrap();
    crate::bench::sealed(&run).await;
    manager.remove(run.id()).await.unwrap();
    let next = bench
        .start(&manager, Script::new().until_stopped(), named("run"))
        .await;
    let _ = input.as_mut().unwrap().shutdown().await;
    eventually(60, "the refusal", async || {
        let SealState::Pending { reason } = exec.wait().await.unwrap().seal else {
            panic!("the log is sealed");
        };
        reason.contains("cannot find run run").then_some(())
    })
    .await;
    assert!(!next.dir().join("exec-1.jsonl").exists());
}

#[tokio::test]
async fn an_exec_unknown_to_the_engine_is_lost() {
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
async fn a_refused_exec_is_recorded_without_secrets() {
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

#[tokio::test]
async fn events_of_an_exec_are_not_those_of_its_run() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let run = bench
        .start(&manager, Script::new().until_stopped(), spec())
        .await;
    bench.runtime.next_exec(Script::new().exit(7));
    let events = run.events();
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    assert_eq!(exec.wait().await.unwrap().code(), Some(7));
    run.kill().await.unwrap();
    let received = crate::events::all(events).await;
    assert_eq!(
        names(&received),
        [
            "stop_requested",
            "exited",
            "sealed",
            "container_removed",
            "released"
        ],
        "{received:?}"
    );
}

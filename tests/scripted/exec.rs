//! Exec: more processes in the container of a run.

use std::time::Duration;

use moat::audit::{Action, Event, GapReason, LogState, verify};
use moat::outcome::{Evidence, SealState, StopCause};
use moat::run::{Exec, MAX_OUTPUT_BYTES};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::spec::{ExecSpec, LimitAction};
use moat::{Ending, Error, Manager, Outcome, Run, RunSpec, Verdict};
use testkit::deadline::{eventually, within};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

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
        let spec = spec.time_limit(Duration::from_secs(3600));
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
        assert!(
            matches!(restored[1..3], [Event::ExecCreated(_), Event::Started(_)]),
            "{restored:?}"
        );
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

/// Returns the texts of the notes in a log.
fn notes(events: &[Event]) -> Vec<&str> {
    let notes = events.iter().filter_map(|event| match event {
        Event::Note { text, .. } => Some(text.as_str()),
        _ => None,
    });
    notes.collect()
}

#[tokio::test]
async fn limits_kill_an_exec_and_are_sealed() {
    let endless = || Script::new().stdout("12345678").until_stopped();
    let time = ExecSpec::new(["any"]).time_limit(Duration::from_millis(100));
    let silence = ExecSpec::new(["any"]).silence_limit(Duration::from_secs(1));
    let output = ExecSpec::new(["any"]).output_limit(4, LimitAction::Stop);
    for (spec, cause) in [
        (time, StopCause::TimeLimit),
        (silence, StopCause::SilenceLimit),
        (output, StopCause::OutputLimit),
    ] {
        let bench = Bench::new();
        let (_manager, run) = with_exec(&bench, endless()).await;
        let exec = run.exec(spec).await.unwrap();
        let outcome = within(60, "the seal", sealed(&exec)).await;
        assert_eq!(outcome.code(), Some(137));
        assert_eq!(seal(&outcome).stopped, Some(cause));
        let expected: &[GapReason] = match cause {
            StopCause::OutputLimit => &[GapReason::OutputLimit],
            _ => &[],
        };
        assert_eq!(gaps(&outcome), expected);
        let events = events(&exec.audit().unwrap());
        assert!(events.iter().any(
            |event| matches!(event, Event::Stop(stop) if stop.cause == cause && stop.signal == "SIGKILL")
        ));
        assert!(run.state().ending().is_none());
        run.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_token_or_a_handle_kills_an_exec() {
    let bench = Bench::new();
    let (_manager, run) = with_exec(&bench, Script::new().until_stopped()).await;
    let token = CancellationToken::new();
    let spec = ExecSpec::new(["any"]).stop_when(token.clone());
    let exec = run.exec(spec).await.unwrap();
    token.cancel();
    let outcome = within(60, "the seal", sealed(&exec)).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Cancelled));
    // A token that was cancelled before the start.
    bench.runtime.next_exec(Script::new().until_stopped());
    let spec = ExecSpec::new(["any"]).stop_when(token);
    let exec = run.exec(spec).await.unwrap();
    let outcome = within(60, "the seal", sealed(&exec)).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Cancelled));
    bench.runtime.next_exec(Script::new().until_stopped());
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    let outcome = within(60, "the kill", exec.kill()).await.unwrap();
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Killed));
    assert_eq!(outcome.code(), Some(137));
    run.kill().await.unwrap();
}

#[tokio::test]
async fn an_exec_that_cannot_be_killed_continues_and_says_so() {
    let bench = Bench::new();
    let (_manager, run) = with_exec(&bench, Script::new().echo().exit(3)).await;
    let unsupported = RuntimeError::Unsupported {
        runtime: "scripted",
        operation: "kill an exec without a shell",
    };
    bench
        .runtime
        .fault(Call::ExecKill, Fault::Error(unsupported));
    let spec = ExecSpec::new(["any"]).interactive(true);
    let exec = run.exec(spec).await.unwrap();
    let mut input = exec.attach_with(with_input()).await.unwrap().input();
    let error = within(60, "the error", exec.kill()).await.unwrap_err();
    assert!(error.to_string().contains("without a shell"), "{error}");
    input.as_mut().unwrap().shutdown().await.unwrap();
    let outcome = within(60, "the seal", sealed(&exec)).await;
    assert_eq!(outcome.code(), Some(3));
    let events = events(&exec.audit().unwrap());
    let notes = notes(&events);
    let is_reported = |note: &&str| note.contains("the exec continues: ");
    assert!(notes.iter().any(is_reported), "{notes:?}");
    run.kill().await.unwrap();
}

/// The output stays open after the end, as with a background process.
#[tokio::test]
async fn a_background_process_does_not_delay_the_end_of_an_exec() {
    let bench = Bench::new();
    let script = Script::new()
        .stdout("out\n")
        .exit(5)
        .attachment_never_ends();
    let (_manager, run) = with_exec(&bench, script).await;
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    let outcome = within(20, "the seal", sealed(&exec)).await;
    assert_eq!(outcome.code(), Some(5));
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(seal(&outcome).evidence, Evidence::None);
    assert_eq!(seal(&outcome).bytes.stdout, 4);
    run.kill().await.unwrap();
}

#[tokio::test]
async fn output_returns_both_streams_up_to_its_limit() {
    let bench = Bench::new();
    let script = Script::new().stdout("out\n").stderr("err\n").exit(7);
    let (_manager, run) = with_exec(&bench, script).await;
    let output = run.output(["any"]).await.unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (&*output.stdout, &*output.stderr),
        (&b"out\n"[..], &b"err\n"[..])
    );
    let long = vec![b'x'; MAX_OUTPUT_BYTES + 1];
    bench.runtime.next_exec(Script::new().stdout(long));
    let error = within(120, "the error", run.output(["any"])).await;
    match error.unwrap_err() {
        Error::OutputTooLong { audit, .. } => {
            let log = verify(audit.unwrap()).unwrap();
            let LogState::Sealed(seal) = log.state else {
                panic!("not sealed");
            };
            assert_eq!(seal.bytes.stdout, MAX_OUTPUT_BYTES as u64 + 1);
        }
        error => panic!("{error}"),
    }
    run.kill().await.unwrap();
}

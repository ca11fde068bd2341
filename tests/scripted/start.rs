//! Starts of runs, and failed starts.

use std::time::Duration;

use moat::audit::Event;
use moat::events::{EventKind, RunEvent};
use moat::outcome::{Evidence, Stream};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::{Ending, Error, Root, RunId, Verdict};
use testkit::deadline::within;

use crate::bench::{Bench, check, named, seal, sealed, spec};
use crate::records::{events, text};
use crate::recovery::start_up_to;

#[tokio::test]
async fn a_run_leaves_a_sealed_file() {
    let bench = Bench::new();
    let script = Script::new().stdout("out\n").stderr("err").exit(7);
    let outcome = bench.run(script, spec()).await;
    assert_eq!(outcome.code(), Some(7));
    assert_eq!(text(&outcome, Stream::Stdout), "out\n");
    assert_eq!(text(&outcome, Stream::Stderr), "err");
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).evidence, Evidence::Tail);
    assert_eq!(outcome.last_lines, ["out", "err"]);
    assert_eq!(bench.runtime.containers(), 0);
}

/// Invariant 1.
#[tokio::test]
async fn the_audit_file_comes_before_the_container() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let id = RunId::new("early").unwrap();
    start_up_to(Call::Create, &bench, &manager, spec().id(id.clone())).await;
    let audit = Root::open(bench.root()).unwrap().audit(&id);
    assert!(matches!(events(&audit)[..], [Event::Start(_)]));
}

#[tokio::test]
async fn a_failed_start_is_sealed_with_its_reason() {
    let bench = Bench::new();
    let outcome = bench
        .run(Script::new().fail_to_start("no such command"), spec())
        .await;
    assert!(matches!(&outcome.ending, Ending::FailedToStart { reason }
        if reason.contains("no such command")));
    assert_eq!(seal(&outcome).evidence, Evidence::NeverStarted);
    assert_eq!(bench.runtime.containers(), 0);

    bench.runtime.fault(
        Call::Create,
        Fault::Error(RuntimeError::Rejected {
            operation: "create the container",
            reason: "bad env TOKEN=s3cr3t-value".into(),
        }),
    );
    let outcome = bench
        .run(Script::new(), spec().env("TOKEN", "s3cr3t-value"))
        .await;
    let text = std::fs::read_to_string(outcome.audit.as_ref().unwrap()).unwrap();
    assert!(matches!(
        outcome.ending,
        Ending::NotCreated { aborted: false, .. }
    ));
    assert!(
        text.contains("bad env ***") && !text.contains("s3cr3t"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_leaves_no_orphan() {
    let bench = Bench::new();
    bench.runtime.fault(Call::Create, Fault::AnswerLost);
    let outcome = bench.run(Script::new(), spec()).await;
    assert!(matches!(outcome.ending, Ending::NotCreated { .. }));
    assert_eq!(bench.runtime.containers(), 0);

    bench.runtime.fault(Call::Start, Fault::AnswerLost);
    let outcome = bench
        .run(Script::new().stdout("ran\n").exit(2), spec())
        .await;
    assert_eq!(
        outcome.code(),
        Some(2),
        "it runs, whatever became of the answer"
    );
    assert_eq!(text(&outcome, Stream::Stdout), "ran\n");
}

/// Invariant 6: what another process has seen and what is sealed are the same.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_remove_keeps_the_ending() {
    let bench = Bench::new();
    bench.runtime.fault(Call::Remove, Fault::AnswerLost);
    let script = Script::new().fail_to_start("no such command");
    let outcome = bench.run(script, spec()).await;
    assert!(
        matches!(outcome.ending, Ending::FailedToStart { .. }),
        "{outcome}"
    );
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(bench.runtime.containers(), 0);
}

#[tokio::test]
async fn a_dropped_start_still_captures_the_run() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().stdout("x\n").exit(6));
    let manager = bench.open().await;
    let id = RunId::new("dropped").unwrap();
    {
        let start = manager.start(spec().id(id.clone()));
        tokio::pin!(start);
        // After one poll, the start continues without its future.
        let _ = futures::poll!(start.as_mut());
    }
    let outcome = loop {
        match manager.wait(&id).await {
            Ok(outcome) => break outcome,
            Err(Error::NoSuchRun { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{}", error.chain()),
        }
    };
    assert_eq!(outcome.code(), Some(6));
    check(&outcome);
}

#[tokio::test]
async fn a_run_id_is_unique_until_removed() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let id = RunId::new("twice").unwrap();
    let run = manager.start(spec().id(id.clone())).await.unwrap();
    run.wait().await.unwrap();
    assert!(matches!(
        manager.start(spec().id(id.clone())).await,
        Err(Error::RunExists { .. })
    ));
    let dir = run.dir().to_owned();
    // The monitor may still be removing the container.
    while let Err(error) = manager.remove(&id).await {
        assert!(matches!(error, Error::Owned { .. }), "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!dir.exists());
    assert!(matches!(
        manager.wait(&id).await,
        Err(Error::NoSuchRun { .. })
    ));
}

#[tokio::test]
async fn waiting_starts_can_be_stopped() {
    let bench = Bench::new();
    let manager = bench.builder_here().max_concurrent(1).open().await.unwrap();
    let mut events = manager.events();
    let first = bench
        .start(&manager, Script::new().until_stopped(), named("a"))
        .await;
    let start = |name: &'static str| {
        let manager = manager.clone();
        tokio::spawn(async move { manager.start(named(name)).await })
    };
    let mut waits = async |name: &str| {
        let is_it = |event: &RunEvent| {
            event.kind == EventKind::Waiting && event.run.as_ref().unwrap().as_str() == name
        };
        let emitted = async { while !is_it(&events.next().await.unwrap()) {} };
        within(60, "the wait for a permit", emitted).await;
    };
    let second = start("b");
    waits("b").await;
    let third = start("c");
    waits("c").await;
    assert_eq!(bench.runtime.calls(Call::Prepare), 1);
    let stopped = manager.stop(&RunId::new("b").unwrap(), None).await.unwrap();
    assert!(matches!(stopped.ending, Ending::NotCreated { .. }));
    assert!(matches!(
        second.await.unwrap(),
        Err(Error::NotStarted { .. })
    ));
    assert!(!third.is_finished());
    first.stop(None).await.unwrap();
    let third = third.await.unwrap().unwrap();
    assert_eq!(sealed(&third).await.code(), Some(0));
    let verified = moat::audit::verify(bench.file("b", "logs.jsonl"));
    assert!(matches!(
        verified.unwrap().state,
        moat::audit::LogState::Sealed(_)
    ));
}

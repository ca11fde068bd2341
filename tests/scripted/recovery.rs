//! Runs that one manager leaves and the next one takes over.

use std::path::Path;
use std::time::Duration;

use moat::audit::Event;
use moat::manager::RecoveryMode;
use moat::outcome::Stream;
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::sink::{SinkCall, SinkFault};
use moat::state::RunStatus;
use moat::{Ending, Error, Manager, Root, RunId, RunSpec, Runtime, ShutdownMode, Verdict};
use serde_json::Value;
use testkit::deadline::{eventually, within};

use crate::bench::{Bench, check, named, seal, sealed, spec};
use crate::records::{events, numbered, outputs, text};
use crate::sink_faults::sound;

/// Starts a run up to a call that hangs.
pub async fn start_up_to(call: Call, bench: &Bench, manager: &Manager, spec: RunSpec) {
    bench.runtime.fault(call, Fault::Hang);
    let called = async || (bench.runtime.calls(call) > 0).then_some(());
    tokio::select! {
        started = manager.start(spec) => panic!("{started:?}"),
        () = eventually(60, "the call", called) => {}
    }
}

/// Waits until a manager that left neither writes to the log nor holds its lock.
///
/// A paused clock must not tick meanwhile: it would pass all deadlines.
pub fn wait_until_unlocked(audit: &Path) {
    let begun = std::time::Instant::now();
    while std::fs::File::open(audit).unwrap().try_lock().is_err() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "the log is still locked"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Invariant 4: recovery continues where the file ends.
#[tokio::test(start_paused = true)]
async fn successive_managers_keep_each_line_once() {
    let bench = Bench::new();
    let mut script = Script::new();
    for n in 0..120 {
        script = script
            .stdout(format!("line {n}\n"))
            .stderr(format!("part {n}"))
            .pause(Duration::from_secs(1));
    }
    // A paused clock passes any planned end while a thread writes the file.
    bench.runtime.next(script.until_stopped().exit_on_term(5));
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    let (id, audit) = (run.id().clone(), run.audit().unwrap());
    drop(run);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(7)).await;
        manager.shutdown(ShutdownMode::Leave).await;
        wait_until_unlocked(&audit);
        let next = bench.open().await;
        let runs = next.wait_recovery().await.unwrap();
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].state().status(), RunStatus::Running);
        tokio::time::sleep(Duration::from_secs(2)).await;
        next.shutdown(ShutdownMode::Leave).await;
        wait_until_unlocked(&audit);
    }
    let last = bench.open().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    bench.terminate_externally(&last).await;
    let outcome = sealed(&last.get(&id).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(5));
    assert_eq!(text(&outcome, Stream::Stdout), numbered(120));
    let parts: String = (0..120).map(|n| format!("part {n}")).collect();
    assert_eq!(text(&outcome, Stream::Stderr), parts);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    check(&outcome);
    // The clock may pass the deadline of a shutdown, too.
    let removed = async || (bench.runtime.containers() == 0).then_some(());
    eventually(60, "the removal of the container", removed).await;
    last.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn recovered_lines_have_the_engines_time() {
    let bench = Bench::new();
    let script = Script::new()
        .stdout("seen\n")
        .pause(Duration::from_secs(5))
        .stdout("missed\n")
        .pause(Duration::from_millis(700))
        .stdout("also missed\nopen");
    let manager = bench.open().await;
    let run = bench.start(&manager, script, spec()).await;
    let (id, audit) = (run.id().clone(), run.audit().unwrap());
    drop(run);
    let is_seen = async || {
        let text = std::fs::read_to_string(&audit).unwrap();
        text.contains("seen").then_some(())
    };
    eventually(60, "the first line", is_seen).await;
    manager.shutdown(ShutdownMode::Leave).await;
    let container = bench.runtime.find(manager.root().id()).await.unwrap();
    let ended = bench.runtime.wait(&container[0].container);
    within(60, "the end", ended).await.unwrap();
    let next = bench.open().await;
    let outcome = sealed(&next.get(&id).await.unwrap()).await;
    let lines = outputs(&outcome);
    let texts: Vec<_> = lines.iter().map(|line| &line.bytes[..]).collect();
    assert_eq!(texts, [&b"seen"[..], b"missed", b"also missed", b"open"]);
    let by_engine: Vec<_> = lines.iter().map(|line| line.engine_time).collect();
    assert_eq!(by_engine, [false, true, true, true]);
    let between = |at: usize| lines[at].ts.since(lines[at - 1].ts);
    assert_eq!(between(2), Duration::from_millis(700));
    assert_eq!(between(3), Duration::ZERO);
    check(&outcome);
    next.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn an_exit_without_owner_is_sealed_later() {
    let bench = Bench::new();
    bench.runtime.next(
        Script::new()
            .pause(Duration::from_millis(30))
            .stdout("late\n")
            .exit(9),
    );
    let manager = bench.open().await;
    let id = manager.start(spec()).await.unwrap().id().clone();
    drop(manager);
    tokio::time::sleep(Duration::from_millis(60)).await;
    let next = bench.open().await;
    let outcome = next.wait(&id).await.unwrap();
    assert_eq!(outcome.code(), Some(9));
    assert_eq!(text(&outcome, Stream::Stdout), "late\n");
    check(&outcome);
}

#[tokio::test]
async fn a_run_without_a_container_is_aborted() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let id = RunId::new("cut").unwrap();
    start_up_to(Call::Create, &bench, &manager, spec().id(id.clone())).await;
    manager.shutdown(ShutdownMode::Leave).await;

    // And a run that has only its directory.
    let bare = RunId::new("bare").unwrap();
    std::fs::create_dir(bench.root().join(bare.as_str())).unwrap();

    let next = bench.open().await;
    for id in [id, bare] {
        let outcome = next.wait(&id).await.unwrap();
        assert!(
            matches!(outcome.ending, Ending::NotCreated { aborted: true, .. }),
            "{outcome}"
        );
        check(&outcome);
    }
}

/// Recovery starts nothing: a container that was created but not started is removed.
#[tokio::test]
async fn an_unstarted_container_is_removed() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let id = RunId::new("made").unwrap();
    start_up_to(Call::Start, &bench, &manager, spec().id(id.clone())).await;
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(bench.runtime.containers(), 1);

    let next = bench.open().await;
    let outcome = next.wait(&id).await.unwrap();
    assert!(matches!(outcome.ending, Ending::FailedToStart { .. }));
    assert_eq!(bench.runtime.containers(), 0);
    check(&outcome);
}

/// The owner died before it recorded the id, so it did not ask for the start either.
#[tokio::test]
async fn an_unrecorded_container_never_ran() {
    let bench = Bench::new();
    let on_demand = bench.builder_here().recovery(RecoveryMode::OnDemand);
    let manager = on_demand.open().await.unwrap();
    let id = RunId::new("unrecorded").unwrap();
    bench.runtime.fault(Call::Create, Fault::AnswerLost);
    start_up_to(Call::Find, &bench, &manager, spec().id(id.clone())).await;
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(bench.runtime.containers(), 1);

    // The first attempt of the recovery finds the container by its label, and fails.
    for _ in 0..20 {
        let broken = RuntimeError::Broken {
            operation: "inspect the container",
            reason: "reset".into(),
        };
        bench.runtime.fault(Call::Inspect, Fault::Error(broken));
    }
    let next = bench.open().await;
    let inspected = async || (bench.runtime.calls(Call::Inspect) > 0).then_some(());
    eventually(60, "an inspection", inspected).await;
    bench.runtime.remove_externally(&id);
    bench.runtime.clear_faults();
    let outcome = next.wait(&id).await.unwrap();
    assert!(
        matches!(outcome.ending, Ending::NotCreated { aborted: true, .. }),
        "{outcome}"
    );
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    check(&outcome);
}

/// The owner persists the exit, and dies before it can write that the container started.
#[tokio::test]
async fn a_persisted_exit_proves_the_start() {
    for has_id in [true, false] {
        let bench = Bench::new();
        let sink = sound();
        sink.fault(SinkFault::error().on([SinkCall::Append]));
        let manager = bench.builder().sink(sink).open().await.unwrap();
        let run = bench
            .start(&manager, Script::new().stdout("x\n").exit(3), named("full"))
            .await;
        let record = bench.file("full", "run.json");
        let persisted = eventually(60, "the ending in run.json", async || {
            let file: Value = serde_json::from_slice(&std::fs::read(&record).ok()?).ok()?;
            (file["ending"]["code"] == 3).then_some(file)
        });
        let mut file = persisted.await;
        manager.shutdown(ShutdownMode::Leave).await;
        bench.runtime.remove_externally(run.id());
        if !has_id {
            file.as_object_mut().unwrap().remove("container");
            std::fs::write(&record, file.to_string()).unwrap();
        }

        let next = bench.open().await;
        let recovered = next.get(run.id()).await.unwrap();
        let outcome = within(60, "the seal", sealed(&recovered)).await;
        check(&outcome);
        let started = |event: &Event| matches!(event, Event::Started(_));
        let starts = events(outcome.audit.as_ref().unwrap());
        let starts = starts.iter().filter(|event| started(event)).count();
        assert_eq!(seal(&outcome).verdict, Verdict::Gap, "{outcome}");
        if has_id {
            assert_eq!((outcome.code(), starts), (Some(3), 1), "{outcome}");
        } else {
            assert!(matches!(outcome.ending, Ending::Lost { .. }), "{outcome}");
        }
    }
}

#[tokio::test]
async fn each_run_has_one_owner() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("x\n").until_stopped());
    let first = bench.open().await;
    let run = first.start(spec()).await.unwrap();

    let second = bench.open().await;
    let seen = second.wait_recovery().await.unwrap();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].owned_elsewhere());
    assert!(matches!(
        second.remove(run.id()).await,
        Err(Error::NotSealed { .. })
    ));

    // A stop by another manager goes to the engine, and the owner records it.
    let stopped = seen[0].stop(None).await.unwrap();
    let outcome = run.wait().await.unwrap();
    assert_eq!(stopped.ending, outcome.ending);
    let stops: Vec<_> = events(outcome.audit.as_ref().unwrap())
        .into_iter()
        .filter_map(|event| match event {
            Event::Stop(stop) => Some(stop.by_pid),
            _ => None,
        })
        .collect();
    assert_eq!(stops, [Some(std::process::id())]);
    check(&outcome);
}

#[tokio::test]
async fn a_second_manager_takes_over_on_shutdown() {
    let bench = Bench::new();
    bench.runtime.next(
        Script::new()
            .stdout("a\n")
            .pause(Duration::from_millis(200))
            .stdout("b\n"),
    );
    let first = bench.open().await;
    let id = first.start(spec()).await.unwrap().id().clone();
    let second = bench.open().await;
    let waiting = second.get(&id).await.unwrap();
    first.shutdown(ShutdownMode::Leave).await;
    let outcome = waiting.wait().await.unwrap();
    assert_eq!(text(&outcome, Stream::Stdout), "a\nb\n");
    check(&outcome);
}

#[tokio::test]
async fn recovery_on_demand_works() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().until_stopped());
    let manager = bench.open().await;
    manager.wait_recovery().await.unwrap();
    let (running, ended) = (RunId::new("a").unwrap(), RunId::new("b").unwrap());
    manager.start(spec().id(running.clone())).await.unwrap();
    bench.runtime.next(Script::new().exit(1));
    sealed(&manager.start(spec().id(ended)).await.unwrap()).await;
    let root = Root::open(bench.root()).unwrap();
    let list = root.list().unwrap();
    let states: Vec<_> = list.iter().map(|info| (info.status, info.owned)).collect();
    assert_eq!(
        states,
        [(RunStatus::Running, true), (RunStatus::Exited, false)]
    );
    manager.shutdown(ShutdownMode::Leave).await;
    assert!(!root.info(&running).unwrap().owned);

    let next = bench
        .builder()
        .recovery(RecoveryMode::OnDemand)
        .open()
        .await
        .unwrap();
    assert_eq!(
        bench.runtime.calls(Call::Find),
        1,
        "only at the first opening"
    );
    let outcome = next.get(&running).await.unwrap().kill().await.unwrap();
    assert_eq!(outcome.code(), Some(137));
}

#[tokio::test]
async fn a_bad_run_does_not_block_others() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().stdout("x\n").until_stopped());
    let manager = bench.open().await;
    let id = manager.start(spec()).await.unwrap().id().clone();
    manager.shutdown(ShutdownMode::Leave).await;
    std::fs::write(bench.file(id.as_str(), "run.json"), "").unwrap();
    let bad = bench.root().join("bad");
    std::fs::create_dir(&bad).unwrap();
    std::fs::write(bad.join("run.json"), "garbage").unwrap();
    // And the rest of a run whose removal was interrupted.
    let half = bench.root().join(".removed-half");
    std::fs::create_dir(&half).unwrap();

    let next = bench.open().await;
    let runs = next.wait_recovery().await.unwrap();
    assert_eq!(runs.len(), 2);
    assert!(!half.exists());
    assert!(
        runs.iter()
            .any(|run| run.id().as_str() == "bad" && run.problem().is_some())
    );
    let outcome = next.stop(&id, None).await.unwrap();
    assert_eq!(outcome.code(), Some(143));
    check(&outcome);
}

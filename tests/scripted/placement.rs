//! Runs on an engine that places a container after its creation.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use moat::audit::Event;
use moat::events::EventKind;
use moat::outcome::{Evidence, StopCause};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::state::{RunStatus, State};
use moat::{Ending, Error, Manager, RunId, RunSpec, ShutdownMode, Verdict};
use testkit::deadline::eventually;
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, check, named, seal, sealed};
use crate::records::{broken, events};

const HOUR: Duration = Duration::from_secs(3600);

fn id() -> RunId {
    RunId::new("placed").unwrap()
}

fn script() -> Script {
    Script::new()
        .stdout("a line\n")
        .placing("Unschedulable", "0/3 nodes have enough memory", HOUR)
}

/// Starts a run, and returns once it waits to be placed. Dropping the start does not end it.
async fn start_up_to_place(bench: &Bench, manager: &Manager, spec: RunSpec) {
    bench.runtime.next(script());
    let placing = async || (bench.runtime.calls(Call::Place) > 0).then_some(());
    tokio::select! {
        started = manager.start(spec) => panic!("{started:?}"),
        () = eventually(60, "the placement", placing) => {}
    }
}

/// Asserts that the command has never run.
fn assert_never_started(bench: &Bench) {
    assert_eq!(bench.runtime.calls(Call::Attach), 0);
    assert_eq!(bench.runtime.calls(Call::Start), 0);
}

#[tokio::test]
async fn a_run_starts_once_it_is_placed() {
    let bench = Bench::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reported = Arc::clone(&seen);
    let manager = bench.open_on_threads().await;
    let mut all = manager.events();
    let placed_after = Duration::from_millis(1200);
    let script = Script::new()
        .placing("Unschedulable", "0/3 nodes have memory", placed_after / 2)
        .placing("Pulling", "image any with s3cr3t-value", placed_after / 2);
    bench
        .runtime
        .next(script.stdout("a line\n").until_stopped());
    let limit = Duration::from_secs(1);
    let spec = named("placed")
        .env("TOKEN", "s3cr3t-value")
        .time_limit(limit)
        .on_placement(move |progress| reported.lock().unwrap().push(progress.reason));
    let begun = Instant::now();
    let run = manager.start(spec).await.unwrap();
    let outcome = sealed(&run).await;
    // The time limit begins after the placement.
    assert!(
        begun.elapsed() >= placed_after + limit,
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(outcome.stopped(), Some(StopCause::TimeLimit));
    check(&outcome);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(*seen.lock().unwrap(), ["Unschedulable", "Pulling"]);
    manager.shutdown(ShutdownMode::Leave).await;
    let mut order = Vec::new();
    while let Some(event) = all.next().await {
        match event.kind {
            EventKind::Created { .. } => order.push("created".to_owned()),
            EventKind::Started { .. } => order.push("started".to_owned()),
            EventKind::Placing { reason, message } => {
                assert!(!message.contains("s3cr3t"), "{message}");
                order.push(reason);
            }
            _ => {}
        }
    }
    assert_eq!(order, ["created", "Unschedulable", "Pulling", "started"]);
}

#[tokio::test]
async fn a_stop_ends_the_placement() {
    for cancelled in [false, true] {
        let bench = Bench::new();
        let manager = bench.open_on_threads().await;
        let token = CancellationToken::new();
        start_up_to_place(&bench, &manager, named("placed").stop_when(token.clone())).await;
        let run = manager.get(&id()).await.unwrap();
        assert!(
            matches!(run.state(), State::Created { .. }),
            "{:?}",
            run.state()
        );
        let outcome = match cancelled {
            true => {
                token.cancel();
                sealed(&run).await
            }
            false => run.stop(None).await.unwrap(),
        };
        check(&outcome);
        assert!(
            matches!(outcome.ending, Ending::FailedToStart { .. }),
            "{outcome}"
        );
        let cause = match cancelled {
            true => StopCause::Cancelled,
            false => StopCause::Requested,
        };
        assert_eq!(seal(&outcome).stopped, Some(cause));
        assert_eq!(seal(&outcome).evidence, Evidence::NeverStarted);
        let audit = outcome.audit.clone().unwrap();
        let stops = events(&audit).into_iter();
        let stops = stops.filter(|event| matches!(event, Event::Stop(_)));
        assert_eq!(stops.count(), 1);
        assert_eq!(bench.runtime.containers(), 0);
        assert_never_started(&bench);
    }
}

#[tokio::test]
async fn a_kill_and_a_shutdown_end_the_placement() {
    for shutdown in [false, true] {
        let bench = Bench::new();
        let manager = bench.open_on_threads().await;
        start_up_to_place(&bench, &manager, named("placed")).await;
        let run = manager.get(&id()).await.unwrap();
        let outcome = match shutdown {
            true => {
                manager.shutdown(ShutdownMode::Stop).await;
                run.wait().await.unwrap()
            }
            false => run.kill().await.unwrap(),
        };
        check(&outcome);
        assert!(
            matches!(outcome.ending, Ending::FailedToStart { .. }),
            "{outcome}"
        );
        assert_eq!(bench.runtime.containers(), 0);
        assert_never_started(&bench);
    }
}

/// The next manager removes the container, as it does between a create and a start.
#[tokio::test]
async fn a_placement_that_was_left_never_starts() {
    for dropped in [false, true] {
        let bench = Bench::new();
        let manager = bench.open_on_threads().await;
        start_up_to_place(&bench, &manager, named("placed")).await;
        match dropped {
            true => drop(manager),
            false => manager.shutdown(ShutdownMode::Leave).await,
        }
        assert_eq!(bench.runtime.containers(), 1);
        let info = bench.view().info(&id()).unwrap();
        assert!(info.seal.is_none(), "{info:?}");

        let next = bench.open_on_threads().await;
        let outcome = sealed(&next.get(&id()).await.unwrap()).await;
        check(&outcome);
        assert_eq!(RunStatus::from(&outcome.ending), RunStatus::FailedToStart);
        assert_eq!(seal(&outcome).evidence, Evidence::NeverStarted);
        assert_eq!(bench.runtime.containers(), 0);
        assert_never_started(&bench);
    }
}

#[tokio::test]
async fn a_container_that_cannot_be_placed_is_removed() {
    let no_image = RuntimeError::NoSuchImage {
        image: "any".into(),
        reason: "the registry does not have it".into(),
    };
    for fault in [Fault::Error(no_image), broken("place"), Fault::AnswerLost] {
        let expected = format!("{fault:?}");
        let has_no_image = matches!(fault, Fault::Error(RuntimeError::NoSuchImage { .. }));
        let bench = Bench::new();
        bench.runtime.fault(Call::Place, fault);
        let manager = bench.open_on_threads().await;
        let Err(Error::NotStarted { outcome, source }) = manager.start(named("placed")).await
        else {
            panic!("the run has started: {expected}");
        };
        assert_eq!(
            matches!(source, RuntimeError::NoSuchImage { .. }),
            has_no_image,
            "{expected}"
        );
        assert!(
            matches!(outcome.ending, Ending::FailedToStart { .. }),
            "{outcome}"
        );
        let outcome = sealed(&manager.get(&id()).await.unwrap()).await;
        check(&outcome);
        assert_eq!(bench.runtime.containers(), 0);
        assert_never_started(&bench);
    }
}

/// The container's id is on the disk while the run waits.
#[tokio::test]
async fn a_run_in_placement_is_recorded_and_holds_its_permit() {
    let bench = Bench::new();
    let manager = bench.builder().max_concurrent(1).open().await.unwrap();
    start_up_to_place(&bench, &manager, named("placed")).await;
    let recorded = async || {
        let info = bench.view().info(&id()).ok()?;
        info.record?.container.map(drop)
    };
    eventually(60, "the id of the container", recorded).await;
    let mut waiting = manager.events();
    tokio::select! {
        started = manager.start(named("next")) => panic!("{started:?}"),
        () = async { while waiting.next().await.unwrap().kind != EventKind::Waiting {} } => {}
    }
    let stopped = manager.get(&id()).await.unwrap().stop(None).await.unwrap();
    assert!(
        matches!(stopped.ending, Ending::FailedToStart { .. }),
        "{stopped}"
    );
    sealed(&manager.get(&RunId::new("next").unwrap()).await.unwrap()).await;
}

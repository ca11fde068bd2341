//! Stopping and killing runs.

use std::time::Duration;

use moat::audit::Event;
use moat::outcome::StopCause;
use moat::runtime::scripted::{Call, Script};
use moat::sink::{Faulty, Jsonl, SinkCall, SinkFault};
use moat::state::State;
use moat::{Ending, Error, Root, ShutdownMode};
use testkit::deadline::{eventually, within};
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, check, named, seal, sealed, spec};
use crate::records::{broken, events};

/// The process that was asked to stop the run dies during the grace period.
#[tokio::test]
async fn a_stop_outlives_its_manager() {
    // In the second round, the first manager still lives when the grace period ends, and kills.
    for (grace, closed) in [(5.0, Duration::ZERO), (2.0, Duration::from_millis(2100))] {
        let bench = Bench::new();
        let script = Script::new().stdout("a\n").ignore_term().until_stopped();
        bench.runtime.next(script);
        let manager = bench.open().await;
        let run = manager.start(spec()).await.unwrap();
        let (id, audit) = (run.id().clone(), run.audit().unwrap());
        let asked = std::time::Instant::now();
        let stops = || {
            let is_stop = |event: &Event| matches!(event, Event::Stop(_));
            events(&audit).into_iter().filter(is_stop).count()
        };
        let recorded = async {
            while bench.runtime.calls(Call::Signal) == 0 || stops() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            stopped = run.stop(Some(Duration::from_secs_f64(grace))) => panic!("{stopped:?}"),
            () = recorded => {}
        }
        manager.shutdown(ShutdownMode::Leave).await;
        assert_eq!(bench.runtime.calls(Call::Signal), 1);
        tokio::time::sleep(closed).await;

        let manager = bench.open().await;
        let run = manager.get(&id).await.unwrap();
        let outcome = tokio::time::timeout(Duration::from_secs(60), run.wait());
        let outcome = outcome.await.unwrap().unwrap();
        assert!(asked.elapsed().as_secs_f64() >= grace);
        check(&outcome);
        assert_eq!(outcome.code(), Some(137));
        assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
        assert_eq!(
            bench.runtime.calls(Call::Signal),
            2,
            "a signal was sent twice"
        );
        assert_eq!(stops(), 1);
    }
}

/// The process that requests a stop and the owner of the run die in the grace period.
#[tokio::test]
async fn a_requested_stop_outlives_both_processes() {
    let bench = Bench::new();
    let script = Script::new().stdout("a\n").ignore_term().until_stopped();
    bench.runtime.next(script);
    let owner = bench.open().await;
    let id = owner.start(spec()).await.unwrap().id().clone();
    let other = bench.open().await;
    other.wait_recovery().await.unwrap();
    let run = other.get(&id).await.unwrap();
    let asked = std::time::Instant::now();
    let requests = || {
        let entries = std::fs::read_dir(run.dir()).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let names = names.filter(|name| name.starts_with("stop-") && name.ends_with(".json"));
        names.count()
    };
    let left = async {
        while bench.runtime.calls(Call::Signal) == 0 || requests() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        stopped = run.stop(Some(Duration::from_secs(2))) => panic!("{stopped:?}"),
        () = left => {}
    }
    other.shutdown(ShutdownMode::Leave).await;
    owner.shutdown(ShutdownMode::Leave).await;
    assert_eq!(requests(), 1, "the owner has recorded the stop");

    let next = bench.open().await;
    let run = next.get(&id).await.unwrap();
    let outcome = within(60, "the end of the run", sealed(&run)).await;
    assert!(asked.elapsed() >= Duration::from_secs(2));
    check(&outcome);
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
    assert_eq!(bench.runtime.calls(Call::Signal), 2);
    assert_eq!(requests(), 0);
}

/// Invariant 6: concurrent calls agree on the exit.
#[tokio::test]
async fn stop_wait_and_exit_agree_in_a_race() {
    for _ in 0..50 {
        let bench = Bench::new();
        bench.runtime.next(
            Script::new()
                .stdout("x\n")
                .pause(Duration::from_millis(2))
                .exit(3),
        );
        let manager = bench.open().await;
        let run = manager.start(spec()).await.unwrap();
        let waiters: Vec<_> = (0..8).map(|_| run.wait()).collect();
        let (waited, stopped, killed) = tokio::join!(
            futures::future::join_all(waiters),
            run.stop(Some(Duration::ZERO)),
            run.kill()
        );
        let stopped = stopped.unwrap();
        assert_eq!(killed.unwrap().ending, stopped.ending);
        for outcome in waited {
            assert_eq!(outcome.unwrap().ending, stopped.ending);
        }
        assert!([3, 137, 143].contains(&stopped.code().unwrap()));
        check(&stopped);
    }
}

#[tokio::test(start_paused = true)]
async fn the_grace_period_ends_in_a_kill() {
    let bench = Bench::new();
    bench
        .runtime
        .next(Script::new().until_stopped().ignore_term());
    let manager = bench.open().await;
    let run = manager.start(spec()).await.unwrap();
    let begun = tokio::time::Instant::now();
    let stop = run.stop(Some(Duration::from_secs(130)));
    let (_, after) = tokio::join!(stop, async {
        run.wait_exit().await.unwrap();
        begun.elapsed()
    });
    let outcome = sealed(&run).await;
    assert_eq!(after.as_secs(), 130);
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
}

#[tokio::test(start_paused = true)]
async fn a_kill_continues_after_a_takeover() {
    let bench = Bench::new();
    bench.runtime.next(Script::new().until_stopped());
    let first = bench.open().await;
    let id = first.start(spec()).await.unwrap().id().clone();
    let second = bench.open().await;
    let run = second.get(&id).await.unwrap();
    second.wait_recovery().await.unwrap();
    assert!(run.owned_elsewhere());
    for _ in 0..100_000 {
        bench.runtime.fault(Call::Signal, broken("send a signal"));
    }
    let (outcome, ()) = tokio::join!(run.kill(), async {
        while bench.runtime.calls(Call::Signal) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        first.shutdown(ShutdownMode::Leave).await;
        while run.owned_elsewhere() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bench.runtime.clear_faults();
    });
    drop(outcome);
    assert_eq!(sealed(&run).await.code(), Some(137));
}

#[tokio::test]
async fn a_token_stops_started_and_later_runs() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let token = CancellationToken::new();
    let run = bench
        .start(
            &manager,
            Script::new().until_stopped(),
            spec().stop_when(token.child_token()),
        )
        .await;
    let other = bench
        .start(&manager, Script::new().until_stopped(), spec())
        .await;
    token.cancel();
    let stopped = within(60, "the stop", sealed(&run)).await;
    assert_eq!(stopped.stopped(), Some(StopCause::Cancelled));
    let late = manager.start(spec().stop_when(token.clone())).await;
    // The stop comes before the start or right after it.
    let outcome = match late {
        Ok(run) => sealed(&run).await,
        Err(Error::NotStarted { outcome, .. }) => *outcome,
        Err(error) => panic!("{}", error.chain()),
    };
    assert_eq!(outcome.stopped(), Some(StopCause::Cancelled));
    assert!(matches!(other.state(), State::Running { .. }));
    other.stop_when(token);
    assert_eq!(sealed(&other).await.stopped(), Some(StopCause::Cancelled));
}

#[tokio::test]
async fn a_list_has_the_times_and_the_stop_of_a_run() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let script = Script::new().stdout("up\n").until_stopped();
    let run = bench.start(&manager, script, named("first")).await;
    let root = Root::open(bench.root()).unwrap();
    let info = || root.info(run.id()).unwrap();
    eventually(20, "the start", async || info().started_at).await;
    assert_eq!((info().ended_at, info().stopped), (None, None));
    let outcome = within(20, "the end", run.stop(None)).await.unwrap();
    let Ending::Exited(exit) = &outcome.ending else {
        panic!("{outcome}")
    };
    assert!(exit.started_at.is_some() && exit.finished_at.is_some());
    for info in [info(), manager.list().await.unwrap().remove(0)] {
        assert_eq!(info.started_at, exit.started_at);
        assert_eq!(info.ended_at, exit.finished_at);
        assert_eq!(info.stopped, Some(StopCause::Requested));
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn a_run_that_never_started_has_only_an_end() {
    let bench = Bench::new();
    bench.runtime.remove_image("any");
    let manager = bench.open().await;
    manager.start(named("first")).await.unwrap_err();
    let info = manager.list().await.unwrap().remove(0);
    assert_eq!(info.started_at, None);
    assert_eq!(info.ended_at, info.seal.map(|seal| seal.ts));
    assert!(info.ended_at.is_some());
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn an_overdue_seal_does_not_hide_the_stop() {
    let bench = Bench::new();
    let sink = Faulty::new(Jsonl::new());
    sink.fault(SinkFault::error().on([SinkCall::Seal]));
    let manager = bench.builder().sink(sink.clone());
    let manager = manager.seal_timeout(Duration::from_millis(100));
    let manager = manager.open().await.unwrap();
    let script = Script::new().until_stopped();
    let run = bench.start(&manager, script, named("first")).await;
    let outcome = within(20, "the end", run.stop(None)).await.unwrap();
    assert!(outcome.sealed().is_none(), "{outcome}");
    assert_eq!(outcome.stopped(), Some(StopCause::Requested));
    let listed = manager.list().await.unwrap().remove(0);
    assert_eq!(listed.stopped, Some(StopCause::Requested));
    let shown = outcome.to_string();
    let expected =
        "run first exited with code 143, stopped because a stop was requested; not sealed";
    assert!(shown.starts_with(expected), "{shown}");
    sink.clear_faults();
    assert_eq!(sealed(&run).await.stopped(), Some(StopCause::Requested));
    manager.shutdown(ShutdownMode::Leave).await;
}

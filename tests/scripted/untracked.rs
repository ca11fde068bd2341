//! Containers that the engine reports as created although their program runs: the engine was killed
//! while it started them.

use std::time::Duration;

use moat::audit::{Event, Gap, GapReason};
use moat::outcome::{Evidence, Stream};
use moat::runtime::scripted::{Call, Fault, Script};
use moat::sink::{SinkCall, SinkFault};
use moat::spec::KeepContainer;
use moat::{Ending, Error, Manager, Outcome, Run, RunId, ShutdownMode, Verdict};
use serde_json::Value;

use testkit::deadline::eventually;

use crate::bench::{Bench, check, named, seal, sealed, spec};
use crate::records::{broken, events, gaps, text, text_in};
use crate::recovery::start_up_to;
use crate::sink_faults::sound;

const LIMIT: Duration = Duration::from_secs(20);

fn id() -> RunId {
    RunId::new("lost").unwrap()
}

/// Starts a run whose engine is killed during the start and restarted.
async fn start(bench: &Bench, manager: &Manager, script: Script) -> Result<Run, Error> {
    bench.runtime.next(script);
    bench.runtime.fault(Call::Start, Fault::AnswerLost);
    for _ in 0..1000 {
        bench.runtime.fault(Call::Inspect, broken("inspect"));
    }
    let lost = async {
        while bench.runtime.calls(Call::Inspect) == 0 {
            tokio::task::yield_now().await;
        }
        bench.runtime.lose_track(&id());
        bench.runtime.clear_faults();
    };
    tokio::join!(manager.start(named("lost")), lost).0
}

/// Waits until the audit file has the first line.
async fn recorded(run: &Run) {
    let audit = run.audit().unwrap();
    let line = async || (text_in(&audit, Stream::Stdout) == "one\n").then_some(());
    eventually(60, "the first line", line).await;
}

/// Asserts that the run is lost, and that output may be missing because of the restart.
#[track_caller]
fn assert_possible_gap(outcome: &Outcome) {
    assert!(matches!(outcome.ending, Ending::Lost { .. }), "{outcome}");
    assert_eq!(seal(outcome).evidence, Evidence::None);
    assert_eq!(seal(outcome).verdict, Verdict::Gap);
    let gaps = events(outcome.audit.as_ref().unwrap()).into_iter();
    let gaps: Vec<Gap> = gaps
        .filter_map(|event| match event {
            Event::Gap(gap) => Some(gap),
            _ => None,
        })
        .collect();
    let [gap] = &gaps[..] else {
        panic!("{gaps:?}");
    };
    assert!(gap.possible && gap.reason == GapReason::EngineRestarted);
    check(outcome);
}

#[tokio::test(start_paused = true)]
async fn output_proves_that_an_unanswered_start_ran() {
    for only_in_log in [true, false] {
        let script = Script::new().stdout("one\n").until_stopped();
        let script = match only_in_log {
            true => script.cut_attachment_after(0),
            false => script.cut_log_after(0),
        };
        let bench = Bench::new();
        let manager = bench.open().await;
        let run = start(&bench, &manager, script).await.unwrap();
        let begun = tokio::time::Instant::now();
        run.wait_exit().await.unwrap();
        assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
        let outcome = sealed(&run).await;
        assert_eq!(text(&outcome, Stream::Stdout), "one\n");
        // A log that lacks output of the tap is another gap.
        assert_eq!(seal(&outcome).gaps, if only_in_log { 1 } else { 2 });
        if only_in_log {
            assert_possible_gap(&outcome);
        }
        assert_eq!(bench.runtime.calls(Call::Start), 1);
        assert_eq!(bench.runtime.calls(Call::Remove), 0);
    }
}

/// The program has ended, and the tap has delivered all its output before the engine was killed.
#[tokio::test(start_paused = true)]
async fn an_end_marker_proves_the_output_of_a_forgotten_run() {
    let bench = Bench::new();
    bench.runtime.set_end_markers(true);
    let manager = bench.open().await;
    let run = start(&bench, &manager, Script::new().stdout("one\n")).await;
    let outcome = sealed(&run.unwrap()).await;
    assert!(matches!(outcome.ending, Ending::Lost { .. }), "{outcome}");
    assert_eq!(seal(&outcome).evidence, Evidence::EndMarker);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(text(&outcome, Stream::Stdout), "one\n");
    check(&outcome);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_start_without_output_may_have_run() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let started = start(&bench, &manager, Script::new().until_stopped()).await;
    let Err(Error::NotStarted { .. }) = started else {
        panic!("{started:?}");
    };
    let outcome = sealed(&manager.get(&id()).await.unwrap()).await;
    assert_possible_gap(&outcome);
    assert!(!outcome.ending.never_started());
    assert_eq!(bench.runtime.containers(), 0);
}

/// The engine was not restarted, so its report is a proof.
#[tokio::test(start_paused = true)]
async fn an_unanswered_start_on_a_sound_engine_never_ran() {
    let bench = Bench::new();
    bench.runtime.restart();
    bench.runtime.fault(Call::Start, broken("start"));
    let outcome = bench.run(Script::new(), spec()).await;
    assert!(matches!(outcome.ending, Ending::FailedToStart { .. }));
    assert_eq!(seal(&outcome).evidence, Evidence::NeverStarted);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(bench.runtime.containers(), 0);
}

/// The engine keeps track of the container, so only the lost answers show the restart.
#[tokio::test(start_paused = true)]
async fn a_restart_during_a_start_is_a_possible_gap() {
    for answered in [false, true] {
        let bench = Bench::new();
        let manager = bench.open().await;
        let script = Script::new().stdout("one\n");
        bench.runtime.next(script.pause(Duration::from_secs(5)));
        if !answered {
            bench.runtime.fault(Call::Start, Fault::AnswerLost);
        }
        bench.runtime.fault(Call::Inspect, broken("inspect"));
        let restart = async {
            while bench.runtime.calls(Call::Inspect) == 0 {
                tokio::task::yield_now().await;
            }
            bench.runtime.restart();
        };
        let (run, ()) = tokio::join!(manager.start(spec()), restart);
        let outcome = sealed(&run.unwrap()).await;
        assert_eq!(outcome.code(), Some(0));
        assert_eq!(gaps(&outcome), [GapReason::EngineRestarted], "{answered}");
        assert_eq!(text(&outcome, Stream::Stdout), "one\n");
        check(&outcome);
    }
}

/// The start was answered, and the killed engine had not saved it.
#[tokio::test(start_paused = true)]
async fn a_forgotten_run_ends_and_can_be_stopped() {
    for stop in [false, true] {
        let bench = Bench::new();
        let manager = bench.open().await;
        let script = Script::new().stdout("one\n").until_stopped();
        let run = bench.start(&manager, script, named("lost")).await;
        bench.runtime.lose_track(&id());
        bench.runtime.drop_connections();
        let begun = tokio::time::Instant::now();
        let stop = async {
            if stop {
                run.stop(None).await.unwrap();
            }
        };
        let exit = async {
            run.wait_exit().await.unwrap();
            begun.elapsed()
        };
        let (after, ()) = tokio::join!(exit, stop);
        assert!(after < LIMIT, "{after:?}");
        let outcome = sealed(&run).await;
        assert_possible_gap(&outcome);
        assert_eq!(text(&outcome, Stream::Stdout), "one\n");
    }
}

/// The records prove that it ran, also without a log.
#[tokio::test(start_paused = true)]
async fn recovery_keeps_the_output_of_a_forgotten_run() {
    for has_log in [true, false] {
        let bench = Bench::new();
        let manager = bench.open().await;
        let mut script = Script::new().stdout("one\n").until_stopped();
        if !has_log {
            script = script.cut_log_after(0);
        }
        let run = bench.start(&manager, script, named("lost")).await;
        recorded(&run).await;
        drop(run);
        manager.shutdown(ShutdownMode::Leave).await;
        bench.runtime.lose_track(&id());

        let next = bench.open().await;
        let outcome = sealed(&next.get(&id()).await.unwrap()).await;
        assert_eq!(text(&outcome, Stream::Stdout), "one\n");
        assert_eq!(seal(&outcome).gaps, if has_log { 1 } else { 2 });
        if has_log {
            assert_possible_gap(&outcome);
        }
        assert_eq!(bench.runtime.calls(Call::Remove), 0);
    }
}

/// The owner died after its request, before the answer.
#[tokio::test(start_paused = true)]
async fn recovery_reads_the_log_of_an_unrecorded_start() {
    let bench = Bench::new();
    let manager = bench.open().await;
    bench
        .runtime
        .next(Script::new().stdout("one\n").until_stopped());
    bench.runtime.fault(Call::Start, Fault::AnswerLost);
    start_up_to(Call::Inspect, &bench, &manager, named("lost")).await;
    manager.shutdown(ShutdownMode::Leave).await;
    bench.runtime.lose_track(&id());

    let next = bench.open().await;
    let outcome = sealed(&next.get(&id()).await.unwrap()).await;
    assert_possible_gap(&outcome);
    assert_eq!(text(&outcome, Stream::Stdout), "one\n");
}

/// The owner persisted the exit, and died before the seal.
#[tokio::test]
async fn a_persisted_exit_of_a_forgotten_run_holds() {
    let bench = Bench::new();
    let sink = sound();
    sink.fault(SinkFault::error().on([SinkCall::Append]));
    let manager = bench.builder().sink(sink).open().await.unwrap();
    let script = Script::new().stdout("one\n").exit(3);
    drop(bench.start(&manager, script, named("lost")).await);
    let record = bench.file("lost", "run.json");
    let persisted = eventually(60, "the ending in run.json", async || {
        let file: Value = serde_json::from_slice(&std::fs::read(&record).ok()?).ok()?;
        (file["ending"]["code"] == 3).then_some(())
    });
    persisted.await;
    manager.shutdown(ShutdownMode::Leave).await;
    bench.runtime.lose_track(&id());

    let next = bench.open().await;
    let outcome = sealed(&next.get(&id()).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    // The log may lack output that the killed engine had read.
    assert_eq!(seal(&outcome).evidence, Evidence::None);
    assert_eq!(gaps(&outcome), [GapReason::EngineRestarted]);
    assert_eq!(text(&outcome, Stream::Stdout), "one\n");
    check(&outcome);
}

#[tokio::test(start_paused = true)]
async fn recovery_after_a_restart_proves_no_failed_start() {
    // The answer to the removal is lost in the second round: the next attempt finds no container.
    for fault in [None, Some(Fault::AnswerLost)] {
        let bench = Bench::new();
        let manager = bench.open().await;
        start_up_to(Call::Start, &bench, &manager, named("lost")).await;
        manager.shutdown(ShutdownMode::Leave).await;
        bench.runtime.restart();
        if let Some(fault) = fault {
            bench.runtime.fault(Call::Remove, fault);
        }

        let next = bench.open().await;
        let outcome = sealed(&next.get(&id()).await.unwrap()).await;
        assert_possible_gap(&outcome);
        assert_eq!(bench.runtime.containers(), 0);
    }
}

/// Its policy decides, although the engine reports that it was not started.
#[tokio::test(start_paused = true)]
async fn the_container_of_a_forgotten_run_is_kept() {
    for (keep, kept) in [(KeepContainer::OnGap, 1), (KeepContainer::Never, 0)] {
        let bench = Bench::new();
        let manager = bench.open().await;
        let script = Script::new().stdout("one\n").until_stopped();
        let run = bench.start(&manager, script, named("lost").keep(keep));
        let run = run.await;
        bench.runtime.lose_track(&id());
        sealed(&run).await;
        manager.shutdown(ShutdownMode::Leave).await;
        let next = bench.open().await;
        next.wait_recovery().await.unwrap();
        assert_eq!(bench.runtime.containers(), kept, "{keep:?}");
    }
}

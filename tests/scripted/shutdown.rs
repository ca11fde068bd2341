//! Shutdown: records that are flushed, and stops that survive it.

use std::time::{Duration, Instant};

use futures::FutureExt;
use moat::audit::Action;
use moat::outcome::StopCause;
use moat::run::{AttachOptions, Attachment};
use moat::runtime::scripted::{Call, Fault, Link, Script};
use moat::sink::Faulty;
use moat::spec::{ExecSpec, Stdin, WindowSize};
use moat::{Error, Manager, RunSpec, ShutdownMode};
use testkit::deadline::{eventually, within};
use tokio::io::AsyncWriteExt;

use crate::bench::Bench;
use crate::records::{actions, stops};
use crate::sink_faults::{id, open, sealed_soon, sound, stalls};

/// The time that a closing manager has to flush its records.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Repeats a round while the machine was too slow for it.
async fn in_time(round: impl AsyncFn() -> bool) {
    for _ in 0..5 {
        if round().await {
            return;
        }
    }
    panic!("each of five rounds took too long");
}

/// The sink stalls, and recovers during the shutdown. `false` if that was too late.
async fn shut_down_while_the_sink_stalls(manager: &Manager, sink: &Faulty) -> bool {
    let begin = Instant::now();
    let recover = async {
        sink.clear_faults();
    };
    // The sink recovers after the shutdown has begun.
    let closed = async { tokio::join!(manager.shutdown(ShutdownMode::Leave), recover) };
    within(20, "the shutdown", closed).await;
    begin.elapsed() < SHUTDOWN_GRACE
}

/// Resizes the terminal and detaches.
async fn visit(attachment: Attachment) {
    attachment.resize(WindowSize::new(100, 30)).await.unwrap();
}

#[tokio::test]
async fn shutdown_flushes_actions_on_a_run() {
    for recovered in [false, true] {
        in_time(async || {
            let bench = Bench::new();
            let held = id("held");
            let script = Script::new().stdout("a line\n").until_stopped();
            bench.runtime.script(&held, script);
            let sink = sound();
            let mut manager = open(&bench, &sink).await;
            let spec = RunSpec::new("any").id(held.clone()).tty(true);
            let mut run = manager.start(spec.stdin(Stdin::Open)).await.unwrap();
            if recovered {
                manager.shutdown(ShutdownMode::Leave).await;
                manager = open(&bench, &sink).await;
                manager.wait_recovery().await.unwrap();
                run = manager.get(&held).await.unwrap();
            }
            sink.fault(stalls());
            let options = AttachOptions::new().with_input();
            visit(run.attach_with(options).await.unwrap()).await;
            // Once polled, the stop continues without its future.
            assert!(run.stop(None).now_or_never().is_none());
            if !shut_down_while_the_sink_stalls(&manager, &sink).await {
                return false;
            }

            assert_eq!(bench.runtime.calls(Call::Signal), 1, "{recovered}");
            let audit = run.audit().unwrap();
            let done = [Action::AttachInput, Action::Resize, Action::Detach];
            assert_eq!(actions(&audit), done, "{recovered}");
            assert_eq!(stops(&audit), 1, "{recovered}");
            let next = open(&bench, &sound()).await;
            let run = next.get(&held).await.unwrap();
            let outcome = within(20, "the seal", sealed_soon(&run)).await;
            assert_eq!(outcome.code(), Some(143), "{outcome}");
            let stopped = outcome.sealed().unwrap().stopped;
            assert_eq!(stopped, Some(StopCause::Requested));
            assert_eq!(stops(&audit), 1);
            true
        })
        .await;
    }
}

#[tokio::test]
async fn shutdown_flushes_actions_on_an_exec() {
    in_time(async || {
        let bench = Bench::new();
        let held = id("held");
        bench.runtime.script(&held, Script::new().until_stopped());
        bench.runtime.next_exec(Script::new().until_stopped());
        let sink = sound();
        let manager = open(&bench, &sink).await;
        let run = manager.start(RunSpec::new("any").id(held.clone()));
        let run = run.await.unwrap();
        let spec = ExecSpec::new(["any"]).interactive(true);
        let exec = run.exec(spec).await.unwrap();
        sink.fault(stalls());
        let options = AttachOptions::new().with_input();
        let mut attachment = exec.attach_with(options).await.unwrap();
        let mut input = attachment.input().unwrap();
        input.shutdown().await.unwrap();
        drop((input, attachment));
        if !shut_down_while_the_sink_stalls(&manager, &sink).await {
            return false;
        }

        let done = [Action::AttachInput, Action::InputEnd, Action::Detach];
        assert_eq!(actions(&exec.audit().unwrap()), done);
        assert_eq!(actions(&run.audit().unwrap()), [Action::Exec]);
        true
    })
    .await;
}

#[tokio::test]
async fn a_stalled_sink_does_not_delay_shutdown() {
    let bench = Bench::new();
    let held = id("held");
    bench.runtime.script(&held, Script::new().until_stopped());
    let sink = sound();
    let manager = open(&bench, &sink).await;
    let run = manager.start(RunSpec::new("any").id(held.clone()));
    let run = run.await.unwrap();
    sink.fault(stalls());
    run.attach().await.unwrap().detach();
    within(10, "the shutdown", manager.shutdown(ShutdownMode::Leave)).await;
    assert!(actions(&run.audit().unwrap()).is_empty());
}

#[tokio::test]
async fn a_stop_of_a_foreign_run_survives_shutdown() {
    for overtaken in [false, true] {
        in_time(async || {
            let bench = Bench::new();
            let well = id("well");
            bench.runtime.script(&well, Script::new().until_stopped());
            let owner = open(&bench, &sound()).await;
            let run = owner.start(RunSpec::new("any").id(well.clone()));
            let run = run.await.unwrap();
            let other = open(&bench, &sound()).await;
            other.wait_recovery().await.unwrap();
            let theirs = other.get(&well).await.unwrap();
            assert!(theirs.owned_elsewhere());
            let before = bench.runtime.calls(Call::Inspect);
            if overtaken {
                // The image defines the stop signal, so moat has to ask.
                bench.runtime.link(Link::Silent);
            }
            assert!(theirs.stop(None).now_or_never().is_none());
            if overtaken {
                eventually(20, "the request for the signal", async || {
                    (bench.runtime.calls(Call::Inspect) > before).then_some(())
                })
                .await;
                // The next look at the run's files is due before the answer.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let answer = async { bench.runtime.link(Link::Up) };
            let closed = async { tokio::join!(other.shutdown(ShutdownMode::Leave), answer) };
            let begin = Instant::now();
            within(20, "the shutdown", closed).await;
            if begin.elapsed() >= SHUTDOWN_GRACE {
                return false;
            }
            let outcome = within(20, "the seal", sealed_soon(&run)).await;
            assert_eq!(outcome.code(), Some(143), "{outcome}");
            assert_eq!(stops(&run.audit().unwrap()), 1, "{overtaken}");
            true
        })
        .await;
    }
}

/// A stop during a start sends the signal and waits before it kills, as any stop does.
#[tokio::test]
async fn a_stop_of_an_aborted_start_has_its_grace() {
    in_time(async || {
        let bench = Bench::new();
        let well = id("well");
        bench.runtime.script(&well, Script::new().until_stopped());
        // The container runs, but the engine does not answer about it.
        bench.runtime.fault(Call::Inspect, Fault::Hang);
        let manager = open(&bench, &sound()).await;
        let start = manager.start(RunSpec::new("any").id(well.clone()));
        let stop = async {
            eventually(20, "the start", async || {
                (bench.runtime.calls(Call::Inspect) > 0).then_some(())
            })
            .await;
            let run = manager.get(&well).await.unwrap();
            assert!(run.stop(None).now_or_never().is_none());
            let begin = Instant::now();
            manager.shutdown(ShutdownMode::Leave).await;
            begin.elapsed() < SHUTDOWN_GRACE
        };
        let both = async { tokio::join!(start, stop) };
        let (started, in_time) = within(20, "the shutdown", both).await;
        // A start waits 5 s for that answer.
        if started.is_ok() || !in_time {
            return false;
        }
        assert!(matches!(started, Err(Error::Closed)));

        let next = open(&bench, &sound()).await;
        let run = next.get(&well).await.unwrap();
        let outcome = within(20, "the seal", sealed_soon(&run)).await;
        assert_eq!(outcome.code(), Some(143), "{outcome}");
        let stopped = outcome.sealed().unwrap().stopped;
        assert_eq!(stopped, Some(StopCause::Requested));
        assert_eq!(stops(&run.audit().unwrap()), 1);
        true
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_before_the_recovery_ends_the_wait_for_it() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let both = async {
        tokio::join!(
            manager.wait_recovery(),
            manager.shutdown(ShutdownMode::Leave)
        )
    };
    let (recovered, _) = within(20, "the end of the wait", both).await;
    assert!(matches!(recovered, Err(Error::Closed)), "{recovered:?}");
}

//! Stopping processes, and shutting down their manager.

use std::time::{Duration, Instant};

use moat::outcome::{StopCause, Stream};
use moat::{Root, ShutdownMode, Verdict};
use testkit::deadline::within;

use crate::place::{Place, audited, check, dies, exit, line, lives, seal, sh, text};

#[tokio::test]
async fn a_stop_signals_the_first_process() {
    for tty in [false, true] {
        let place = Place::new();
        let manager = place.open().await;
        let script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done";
        let spec = sh(script).stop_signal("SIGINT").tty(tty);
        let run = manager.start(spec).await.unwrap();
        audited(&run, "ready").await;
        let outcome = within(20, "the stop", run.stop(None)).await.unwrap();
        assert_eq!(outcome.code(), Some(5));
        assert_eq!(seal(&outcome).stopped, Some(StopCause::Requested));
        assert_eq!(seal(&outcome).verdict, Verdict::Complete);
        let stream = if tty { Stream::Tty } else { Stream::Stdout };
        assert!(text(&outcome, stream).contains("caught"));
    }
}

#[tokio::test]
async fn the_grace_period_ends_in_a_kill_of_all() {
    for tty in [false, true] {
        let place = Place::new();
        let manager = place.open().await;
        let script = format!(
            "trap '' TERM HUP; (trap '' TERM HUP; sh -c 'echo $$ >{0}; while :; do sleep 60; done' & wait) & \
             echo ready; while :; do sleep 0.05; done",
            place.file("grandchild")
        );
        let run = manager.start(sh(&script).tty(tty)).await.unwrap();
        audited(&run, "ready").await;
        let grandchild = line(&place.file("grandchild")).await;
        assert!(lives(&grandchild));
        let begin = Instant::now();
        let grace = Duration::from_millis(300);
        let outcome = within(20, "the stop", run.stop(Some(grace))).await.unwrap();
        assert!(begin.elapsed() >= grace);
        assert_eq!(outcome.code(), Some(137));
        assert_eq!(exit(&outcome).error.as_deref(), Some("ended by SIGKILL"));
        assert_eq!(seal(&outcome).verdict, Verdict::Complete, "tty: {tty}");
        dies(&grandchild).await;
    }
}

#[tokio::test]
async fn stop_wait_and_exit_agree_in_a_race() {
    let place = Place::new();
    let manager = place.open().await;
    for _ in 0..50 {
        let run = manager.start(sh("exit 3")).await.unwrap();
        let (stopped, waited) = tokio::join!(run.stop(None), run.wait());
        let (stopped, waited) = (stopped.unwrap(), waited.unwrap());
        assert_eq!(stopped.ending, waited.ending);
        assert!([Some(3), Some(143)].contains(&waited.code()), "{waited}");
        check(&waited);
    }
}

#[tokio::test]
async fn shutdown_stops_and_seals_processes() {
    let place = Place::new();
    let manager = place.open().await;
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let run = manager.start(sh(script)).await.unwrap();
    audited(&run, "ready").await;
    let id = run.id().clone();
    within(20, "the shutdown", manager.shutdown(ShutdownMode::Leave)).await;
    let info = Root::open(place.root()).unwrap().info(&id).unwrap();
    let seal = info.seal.unwrap();
    assert_eq!(seal.exit.code(), Some(5));
    assert_eq!(seal.stopped, Some(StopCause::Shutdown));
    assert_eq!(seal.verdict, Verdict::Complete);
}

/// The only test of its process that sends the process a signal.
#[cfg(feature = "blocking")]
#[test]
fn a_signal_stops_runs_of_a_blocking_manager() {
    let place = Place::new();
    let runtime = moat::LocalProcess::new();
    let manager = moat::blocking::Manager::open(place.root(), runtime).unwrap();
    let run = manager.start(sh("sleep 600")).unwrap();
    let wait_signal = manager.stop_on_signals().unwrap();
    let signal = std::thread::spawn(wait_signal);
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(signal.join().unwrap(), moat::manager::Signal::Terminate);
    assert_eq!(run.wait().unwrap().stopped(), Some(StopCause::Shutdown));
}

//! Signals: the order in which runs are stopped, and runs that clean up.

use std::time::Duration;

use moat::events::EventKind;
use moat::manager::Signal;
use moat::outcome::StopCause;
use moat::runtime::scripted::Script;
use moat::{Error, RunSpec, ShutdownMode};
use rustix::process::{getpid, kill_process};
use testkit::deadline::within;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::bench::{Bench, named, sealed};

/// Held by a test that sends signals to this process. All listeners of the process get them.
static SIGNALS: Mutex<()> = Mutex::const_new(());

fn raise(signal: rustix::process::Signal) {
    kill_process(getpid(), signal).unwrap();
}

fn endless() -> Script {
    Script::new().until_stopped()
}

#[tokio::test]
async fn a_second_signal_kills_the_runs() {
    let _guard = SIGNALS.lock().await;
    let bench = Bench::new();
    let manager = bench.open().await;
    let stubborn = Script::new().until_stopped().ignore_term();
    let patient = RunSpec::new("any").stop_grace(Duration::from_secs(3600));
    let run = bench.start(&manager, stubborn, patient).await;
    let quick = bench
        .start(&manager, Script::new().until_stopped(), RunSpec::new("any"))
        .await;
    let mut events = run.events();
    let signals = tokio::spawn(manager.stop_on_signals().unwrap());
    raise(rustix::process::Signal::INT);
    let first = events.next().await.unwrap().kind;
    assert!(
        matches!(
            first,
            EventKind::StopRequested {
                cause: StopCause::Shutdown,
                ..
            }
        ),
        "{first:?}"
    );
    assert_eq!(sealed(&quick).await.stopped(), Some(StopCause::Shutdown));
    assert!(matches!(
        manager.start(RunSpec::new("any")).await,
        Err(Error::Closed)
    ));
    // A terminal that closes sends it twice.
    raise(rustix::process::Signal::HUP);
    let overdue = timeout(Duration::from_millis(300), run.wait()).await;
    assert!(overdue.is_err() && !signals.is_finished());
    raise(rustix::process::Signal::TERM);
    let signal = within(60, "the kill", signals).await.unwrap();
    assert_eq!((signal, signal.exit_code()), (Signal::Interrupt, 130));
    let outcome = run.wait().await.unwrap();
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(outcome.stopped(), Some(StopCause::Shutdown));
}

#[tokio::test]
async fn services_stop_after_other_runs() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    bench.runtime.next(endless());
    let service = manager.service(named("db"), []).await.unwrap();
    let mut jobs = Vec::new();
    for name in ["a", "b"] {
        jobs.push(bench.start(&manager, endless(), named(name)).await);
    }
    let mut events = manager.events();
    manager.shutdown(ShutdownMode::Stop).await;
    let mut order = Vec::new();
    while let Some(event) = events.next().await {
        let run = event.run.map(|run| run.to_string()).unwrap_or_default();
        match event.kind {
            EventKind::StopRequested { .. } if run == "db" => order.push("stop of db".to_owned()),
            EventKind::Exited { .. } => order.push(run),
            _ => {}
        }
    }
    order[..2].sort();
    assert_eq!(order, ["a", "b", "stop of db", "db"]);
    assert_eq!(sealed(&service).await.stopped(), Some(StopCause::Shutdown));
    let _ = service.release();
}

#[tokio::test]
async fn cleanup_runs_start_after_a_signal() {
    let _guard = SIGNALS.lock().await;
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    bench.runtime.next(endless());
    let service = manager.service(named("db"), []).await.unwrap();
    let job = bench.start(&manager, endless(), named("job")).await;
    let cleanup = named("early").cleanup(true);
    let early = bench.start(&manager, endless(), cleanup).await;
    let limit = Duration::from_secs(3600);
    let signals = manager.stop_on_signals_with_cleanup(limit).unwrap();
    let signals = tokio::spawn(signals);
    raise(rustix::process::Signal::INT);
    assert_eq!(sealed(&job).await.stopped(), Some(StopCause::Shutdown));
    assert!(early.state().ending().is_none());
    let refused = manager.start(named("other")).await;
    assert!(matches!(refused, Err(Error::Closed)));
    bench.runtime.next(Script::new().stdout("cleaned\n"));
    let cleanup = manager.start(named("late").cleanup(true)).await.unwrap();
    assert!(sealed(&cleanup).await.success());
    assert!(service.state().ending().is_none());
    assert!(!signals.is_finished());
    // The cleanup is done.
    within(60, "the shutdown", manager.shutdown(ShutdownMode::Stop)).await;
    let signal = within(60, "the end", signals).await.unwrap();
    assert_eq!(signal, Signal::Interrupt);
    for run in [&early, &*service] {
        assert_eq!(sealed(run).await.stopped(), Some(StopCause::Shutdown));
    }
    let _ = service.release();
}

#[tokio::test]
async fn a_cleanup_has_a_limit() {
    let _guard = SIGNALS.lock().await;
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let cleanup = named("stuck").cleanup(true);
    let stuck = bench.start(&manager, endless(), cleanup).await;
    let limit = Duration::from_millis(300);
    let signals = manager.stop_on_signals_with_cleanup(limit).unwrap();
    let signals = tokio::spawn(signals);
    raise(rustix::process::Signal::TERM);
    let signal = within(60, "the end", signals).await.unwrap();
    assert_eq!(signal, Signal::Terminate);
    assert_eq!(sealed(&stuck).await.stopped(), Some(StopCause::Shutdown));
}

#[tokio::test]
async fn a_second_signal_ends_the_cleanup() {
    let _guard = SIGNALS.lock().await;
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let job = bench.start(&manager, endless(), named("job")).await;
    let spec = named("stuck")
        .cleanup(true)
        .stop_grace(Duration::from_secs(3600));
    let stuck = bench.start(&manager, endless().ignore_term(), spec).await;
    let limit = Duration::from_secs(3600);
    let signals = manager.stop_on_signals_with_cleanup(limit).unwrap();
    let signals = tokio::spawn(signals);
    raise(rustix::process::Signal::INT);
    sealed(&job).await;
    raise(rustix::process::Signal::INT);
    within(60, "the end", signals).await.unwrap();
    assert_eq!(sealed(&stuck).await.code(), Some(137));
}

//! Engines that do not answer about a run.

use std::time::Duration;

use moat::audit::{Event, Record};
use moat::outcome::{StopCause, Stream};
use moat::runtime::scripted::{Call, Fault, Link, Script};
use moat::sink::Memory;
use moat::state::State;
use moat::{Error, Manager, Run, RunId, ShutdownMode, Verdict};
use tokio::time::{Instant, sleep, timeout};

use crate::bench::{Bench, named, seal, sealed};
use crate::records::warnings;

const GRACE: Duration = Duration::from_secs(2);
/// The documented time beyond the grace period.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// What the clock may run ahead, or a shutdown may take.
const SLACK: Duration = Duration::from_secs(10);

fn id() -> RunId {
    RunId::new("silent").unwrap()
}

/// An engine, and a log in memory: a paused clock runs ahead while a thread writes a file.
struct Stage {
    bench: Bench,
    log: Memory,
}

impl Stage {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            log: Memory::new(),
        }
    }

    async fn open(&self) -> Manager {
        let builder = self.bench.builder_here().sink(self.log.clone());
        builder.open().await.unwrap()
    }

    fn link(&self, link: Link) {
        self.bench.runtime.link(link);
    }

    /// Starts a run that prints a line after this time, and does not end.
    async fn start(&self, manager: &Manager, after: Duration) -> Run {
        let script = Script::new().pause(after).stdout("one\n").until_stopped();
        let spec = named("silent").stop_grace(GRACE);
        self.bench.start(manager, script, spec).await
    }
}

/// Bounds a call that must not wait for the engine. The clock passes the time while nothing else
/// happens.
async fn bounded<T>(call: impl Future<Output = T>) -> T {
    let hour = Duration::from_secs(3600);
    timeout(hour, call).await.expect("the call is bounded")
}

/// Waits until the run has a problem or has none.
async fn wait_problem(run: &Run, has_problem: bool) -> String {
    let begun = std::time::Instant::now();
    while run.problem().is_some() != has_problem {
        assert!(begun.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(100)).await;
    }
    run.problem().unwrap_or_default()
}

#[track_caller]
fn assert_unanswered<T: std::fmt::Debug>(stopped: Result<T, Error>, call: &str) {
    let Err(error @ Error::Unanswered { .. }) = stopped else {
        panic!("{stopped:?}");
    };
    let text = error.to_string();
    assert!(text.contains("silent") && text.contains(call), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_engine_bounds_a_stop_and_loses_nothing() {
    let stage = Stage::new();
    let manager = stage.open().await;
    let run = stage.start(&manager, Duration::ZERO).await;
    let seen = run.events();
    stage.link(Link::Silent);
    let begun = Instant::now();
    let reported = async { (wait_problem(&run, true).await, begun.elapsed()) };
    let (stopped, (problem, after)) = tokio::join!(bounded(run.stop(None)), reported);
    assert!(problem.contains("signal the container"), "{problem}");
    let expected = Duration::from_secs(5)..Duration::from_secs(6);
    assert!(expected.contains(&after), "{after:?}");
    assert_unanswered(stopped, "signal the container");
    assert_eq!(begun.elapsed(), GRACE + STOP_TIMEOUT);
    assert!(matches!(run.state(), State::Running { .. }));

    stage.link(Link::Up);
    let outcome = sealed(&run).await;
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(outcome.stopped(), Some(StopCause::Requested));
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(run.problem(), None);
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(warnings(seen).await, [problem]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_engine_bounds_a_shutdown() {
    let stage = Stage::new();
    let manager = stage.open().await;
    let run = stage.start(&manager, Duration::ZERO).await;
    for call in [Call::Signal, Call::Inspect] {
        for _ in 0..100 {
            stage.bench.runtime.fault(call, Fault::Hang);
        }
    }
    let begun = Instant::now();
    bounded(manager.shutdown(ShutdownMode::Stop)).await;
    let bound = GRACE + STOP_TIMEOUT;
    let elapsed = begun.elapsed();
    assert!((bound..bound + SLACK).contains(&elapsed), "{elapsed:?}");
    let notes = stage.log.records(&id()).into_iter();
    let notes: Vec<_> = notes
        .filter_map(|record| match record {
            Record::Event(Event::Note { text, .. }) => Some(text),
            _ => None,
        })
        .collect();
    assert!(
        matches!(&notes[..], [text] if text.contains("signal the container")),
        "{notes:?}"
    );
    drop((run, manager));

    stage.bench.runtime.clear_faults();
    let next = stage.open().await;
    let outcome = sealed(&next.get(&id()).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(outcome.stopped(), Some(StopCause::Shutdown));
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

/// The container ends on its own while the engine does not answer the signal.
#[tokio::test(start_paused = true)]
async fn an_exit_ends_the_report() {
    let stage = Stage::new();
    let manager = stage.open().await;
    let script = Script::new().pause(Duration::from_secs(20)).exit(3);
    let run = stage.bench.start(&manager, script, named("silent")).await;
    for _ in 0..100 {
        stage.bench.runtime.fault(Call::Signal, Fault::Hang);
    }
    let (stopped, problem) = tokio::join!(bounded(run.stop(None)), wait_problem(&run, true));
    assert!(problem.contains("signal the container"), "{problem}");
    assert_eq!(stopped.unwrap().code(), Some(3));
    assert_eq!(run.problem(), None);
}

/// Only the wait is pending, and a wait may be pending for long.
#[tokio::test(start_paused = true)]
async fn a_run_that_falls_silent_is_asked_about() {
    let stage = Stage::new();
    let manager = stage.open().await;
    let run = stage.start(&manager, Duration::from_secs(7)).await;
    while stage.log.output(&id(), Stream::Stdout).is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    stage.link(Link::Silent);
    let begun = Instant::now();
    let problem = wait_problem(&run, true).await;
    assert!(problem.contains("inspect the container"), "{problem}");
    assert!(begun.elapsed() < Duration::from_secs(12));
    stage.link(Link::Up);
    wait_problem(&run, false).await;
    assert!(matches!(run.state(), State::Running { .. }));
    run.kill().await.unwrap();
    assert_eq!(seal(&sealed(&run).await).verdict, Verdict::Complete);
}

#[tokio::test(start_paused = true)]
async fn a_silent_engine_bounds_the_stop_of_a_recovered_run() {
    let stage = Stage::new();
    let manager = stage.open().await;
    stage.start(&manager, Duration::ZERO).await;
    manager.shutdown(ShutdownMode::Leave).await;
    stage.link(Link::Silent);

    let next = stage.open().await;
    let run = next.get(&id()).await.unwrap();
    wait_problem(&run, true).await;
    let begun = Instant::now();
    let stopped = bounded(run.stop(Some(GRACE))).await;
    assert_unanswered(stopped, "the engine has not answered");
    let (bound, elapsed) = (GRACE + STOP_TIMEOUT, begun.elapsed());
    assert!((bound..bound + SLACK).contains(&elapsed), "{elapsed:?}");
    stage.link(Link::Up);
    let outcome = sealed(&run).await;
    assert_eq!(outcome.stopped(), Some(StopCause::Requested));
    assert_eq!(run.problem(), None);
}

#[tokio::test(start_paused = true)]
async fn a_silent_engine_bounds_the_stop_of_a_start() {
    for (call, operation) in [
        (Call::Create, "create the container"),
        (Call::Attach, "attach to the container"),
        (Call::Start, "start the container"),
    ] {
        let bench = Bench::new();
        let manager = bench.open().await;
        bench.runtime.fault(call, Fault::Hang);
        let stop = async {
            while bench.runtime.calls(call) == 0 {
                tokio::task::yield_now().await;
            }
            let run = manager.get(&id()).await.unwrap();
            let begun = Instant::now();
            let stopped = bounded(run.kill()).await;
            (stopped, begun.elapsed())
        };
        let (stopped, elapsed) = tokio::select! {
            started = manager.start(named("silent")) => panic!("{started:?}"),
            stopped = stop => stopped,
        };
        assert_unanswered(stopped, operation);
        let bound = STOP_TIMEOUT..STOP_TIMEOUT + SLACK;
        assert!(bound.contains(&elapsed), "{elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_engine_bounds_the_stop_of_a_service() {
    let stage = Stage::new();
    let manager = stage.open().await;
    stage.bench.runtime.next(Script::new().until_stopped());
    let spec = named("silent").stop_grace(GRACE);
    let service = manager.service(spec, []).await.unwrap();
    stage.link(Link::Silent);
    let begun = Instant::now();
    let stopped = bounded(service.stop()).await;
    assert_unanswered(stopped, "signal the container");
    assert_eq!(begun.elapsed(), GRACE + STOP_TIMEOUT);
}

//! Containers whose node does not answer the engine, or is gone.

use std::time::Duration;

use moat::audit::GapReason;
use moat::outcome::{Evidence, Stream};
use moat::runtime::scripted::{Call, Script};
use moat::sink::Memory;
use moat::state::{RunStatus, State};
use moat::{Ending, Error, Manager, Run, RunId, ShutdownMode, Verdict};
use tokio::time::{Instant, sleep};

use crate::bench::{Bench, check, named, seal, sealed};
use crate::records::{gaps, warnings};

const HOUR: Duration = Duration::from_secs(3600);

fn id() -> RunId {
    RunId::new("node").unwrap()
}

/// A manager with its logs in memory: a paused clock runs ahead while a thread writes a file.
async fn open(bench: &Bench, log: &Memory) -> Manager {
    let builder = bench.builder_here().sink(log.clone());
    builder.open().await.unwrap()
}

/// Waits until the run has a problem or has none, and returns how long that took.
async fn wait_problem(run: &Run, has_problem: bool) -> Duration {
    let begun = Instant::now();
    while run.problem().is_some() != has_problem {
        assert!(begun.elapsed() < HOUR, "{:?}", run.problem());
        sleep(Duration::from_millis(100)).await;
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_reported_and_ends_nothing() {
    let (bench, log) = (Bench::new(), Memory::new());
    bench.runtime.set_end_markers(true);
    let manager = open(&bench, &log).await;
    let script = Script::new()
        .stdout("one\n")
        .pause(HOUR)
        .stdout("two\n")
        .exit(3);
    let run = bench.start(&manager, script, named("node")).await;
    let seen = run.events();
    bench.runtime.silence_node(&id());
    assert!(wait_problem(&run, true).await <= Duration::from_secs(40));
    let problem = run.problem().unwrap();
    assert!(
        problem.contains("its node has not answered the engine since"),
        "{problem}"
    );
    let inspected = bench.runtime.calls(Call::Inspect);
    // The container ends meanwhile.
    sleep(2 * HOUR).await;
    assert!(
        matches!(run.state(), State::Running { .. }),
        "{:?}",
        run.state()
    );
    assert_eq!(run.problem().as_ref(), Some(&problem));
    let asked = bench.runtime.calls(Call::Inspect) - inspected;
    assert!((100..2000).contains(&asked), "{asked} inspections in 2 h");

    bench.runtime.restore_node(&id());
    assert!(wait_problem(&run, false).await <= Duration::from_secs(10));
    let outcome = sealed(&run).await;
    assert_eq!(outcome.code(), Some(3));
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(log.output(run.id(), Stream::Stdout), b"one\ntwo\n");
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(warnings(seen).await, [problem]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_on_a_silent_node_is_bounded() {
    let (bench, log) = (Bench::new(), Memory::new());
    let manager = open(&bench, &log).await;
    let script = Script::new().until_stopped();
    let run = bench.start(&manager, script, named("node")).await;
    bench.runtime.silence_node(&id());
    let stopped = run.stop(Some(Duration::from_secs(2))).await;
    assert!(
        matches!(stopped, Err(Error::Unanswered { .. })),
        "{stopped:?}"
    );
    bench.runtime.restore_node(&id());
    let outcome = sealed(&run).await;
    assert!(outcome.code().is_some(), "{outcome}");
}

/// Also in a manager that opens the root while the node is silent.
#[tokio::test(start_paused = true)]
async fn a_container_lost_with_its_node_is_a_gap() {
    for recovered in [false, true] {
        let bench = Bench::new();
        let mut manager = bench.open().await;
        let script = Script::new().stdout("one\n").pause(HOUR).stdout("two\n");
        let mut run = bench
            .start(&manager, script.until_stopped(), named("node"))
            .await;
        bench.runtime.silence_node(&id());
        if recovered {
            manager.shutdown(ShutdownMode::Leave).await;
            manager = bench.open().await;
            run = manager.get(&id()).await.unwrap();
        }
        wait_problem(&run, true).await;
        bench.runtime.lose_node(&id(), "node a1 was deleted");
        let outcome = sealed(&run).await;
        assert_eq!(RunStatus::from(&outcome.ending), RunStatus::Lost);
        let Ending::Lost { reason } = &outcome.ending else {
            panic!("{outcome}");
        };
        assert_eq!(reason, "node a1 was deleted");
        assert_eq!(seal(&outcome).evidence, Evidence::None);
        assert_eq!(seal(&outcome).verdict, Verdict::Gap);
        assert_eq!(gaps(&outcome), [GapReason::NodeLost]);
        check(&outcome);
        assert_eq!(run.problem(), None);
        manager.shutdown(ShutdownMode::Leave).await;
    }
}

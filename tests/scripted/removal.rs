//! The removal of containers whose run is sealed.

use std::time::Duration;

use moat::events::{EventKind, Events};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault, Script};
use moat::sink::Memory;
use moat::spec::KeepContainer;
use moat::{Error, Manager, Run, ShutdownMode, Verdict};
use tokio::time::{Instant, sleep};

use crate::bench::{Bench, named, seal, sealed, spec};

fn unreachable() -> Fault {
    Fault::Error(RuntimeError::Unavailable {
        address: "the engine".into(),
        reason: "it restarts".into(),
    })
}

/// A sealed run whose removals fail. The log is in memory: a paused clock runs ahead while a thread
/// writes a file.
async fn fail_removals(bench: &Bench, times: usize) -> (Manager, Run, Events) {
    let manager = bench
        .builder_here()
        .sink(Memory::new())
        .open()
        .await
        .unwrap();
    for _ in 0..times {
        bench.runtime.fault(Call::Remove, unreachable());
    }
    let run = bench.start(&manager, Script::new(), named("one")).await;
    let events = run.events();
    let outcome = sealed(&run).await;
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    (manager, run, events)
}

/// Returns the first event about the removal, and the time until then.
async fn told(events: &mut Events) -> (EventKind, Duration) {
    let begun = Instant::now();
    loop {
        let event = events.next().await.expect("an event about the removal");
        if matches!(
            event.kind,
            EventKind::ContainerRemoved { .. } | EventKind::Warning { .. } | EventKind::Released
        ) {
            return (event.kind, begun.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_removal_waits_for_the_engine() {
    let bench = Bench::new();
    let (manager, _run, mut events) = fail_removals(&bench, 10).await;
    let (event, after) = told(&mut events).await;
    assert!(
        matches!(event, EventKind::ContainerRemoved { .. }),
        "{event:?}"
    );
    assert!(after >= Duration::from_secs(20), "{after:?}");
    assert_eq!(bench.runtime.containers(), 0);
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test(start_paused = true)]
async fn a_removal_can_be_awaited() {
    let bench = Bench::new();
    let (manager, run, _) = fail_removals(&bench, 10).await;
    assert_eq!(bench.runtime.containers(), 1);
    assert!(run.wait_removed().await.unwrap());
    assert_eq!(bench.runtime.containers(), 0);
    // A handle to the run on disk agrees.
    let run = manager.get(run.id()).await.unwrap();
    assert!(run.wait_removed().await.unwrap());
    let kept = named("kept").keep(KeepContainer::Always);
    let kept = bench.start(&manager, Script::new(), kept).await;
    assert!(!kept.wait_removed().await.unwrap());
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_stays_is_reported_and_removed_later() {
    let bench = Bench::new();
    let (manager, run, mut events) = fail_removals(&bench, 100).await;
    let (event, after) = told(&mut events).await;
    let EventKind::Warning { message } = event else {
        panic!("{event:?}");
    };
    assert!(message.contains("was not removed: "), "{message}");
    assert!(message.contains("it restarts"), "{message}");
    assert!((60..70).contains(&after.as_secs()), "{after:?}");
    assert_eq!(bench.runtime.containers(), 1);
    drop(run);
    manager.shutdown(ShutdownMode::Leave).await;

    bench.runtime.clear_faults();
    let manager = bench.open().await;
    manager.wait_recovery().await.unwrap();
    assert_eq!(bench.runtime.containers(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_the_engine() {
    let bench = Bench::new();
    let (manager, _run, _) = fail_removals(&bench, 100).await;
    sleep(Duration::from_millis(60)).await;
    let begun = Instant::now();
    manager.shutdown(ShutdownMode::Leave).await;
    assert!(
        begun.elapsed() <= Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_kept_container_can_be_given_up() {
    let bench = Bench::new();
    bench.runtime.set_engine_id("A");
    let manager = bench.open().await;
    let spec = spec().keep(KeepContainer::Always);
    let run = bench
        .start(&manager, Script::new().stdout("a\n").until_stopped(), spec)
        .await;
    let early = run.remove_container().await;
    assert!(matches!(early, Err(Error::NotSealed { .. })), "{early:?}");
    run.stop(None).await.unwrap();
    assert!(!run.wait_removed().await.unwrap());
    bench.runtime.fault(Call::Remove, unreachable());
    let failed = run.remove_container().await;
    assert!(matches!(failed, Err(Error::Runtime(_))), "{failed:?}");
    let mut events = manager.events();
    for _ in 0..2 {
        run.remove_container().await.unwrap();
        assert!(run.wait_removed().await.unwrap());
    }
    assert!(matches!(
        told(&mut events).await.0,
        EventKind::ContainerRemoved { .. }
    ));
    assert!(run.audit().unwrap().exists());
    manager.shutdown(ShutdownMode::Stop).await;

    // Another engine need not be asked for a container that is gone.
    bench.runtime.set_engine_id("B");
    let manager = bench.open().await;
    let reopened = manager.get(run.id()).await.unwrap();
    reopened.remove_container().await.unwrap();
    manager.remove(run.id()).await.unwrap();
    assert!(!run.audit().unwrap().exists());
}

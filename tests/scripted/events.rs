//! Events of runs and of a manager.

use moat::events::{EventKind, RunEvent};
use moat::outcome::StopCause;
use moat::runtime::scripted::Script;
use moat::{Events, ShutdownMode};

use crate::bench::{Bench, sealed, spec};

/// Receives events until the end.
pub async fn all(mut events: Events) -> Vec<RunEvent> {
    let mut received = Vec::new();
    while let Some(event) = events.next().await {
        received.push(event);
    }
    received
}

/// The names of the events in JSON.
pub fn names(events: &[RunEvent]) -> Vec<String> {
    let name = |event| serde_json::to_value(event).unwrap()["event"].clone();
    let names = events.iter().map(name);
    names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn events_of_a_run_are_in_order_and_json() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let events = manager.events();
    let run = bench
        .start(&manager, Script::new().stdout("hello\n"), spec())
        .await;
    sealed(&run).await;
    manager.shutdown(ShutdownMode::Leave).await;
    let received = all(events).await;
    let output = |event: &&RunEvent| matches!(event.kind, EventKind::Output { .. });
    let counts = &received.iter().rfind(output).unwrap().kind;
    let EventKind::Output { bytes, records } = counts else {
        unreachable!()
    };
    assert_eq!((bytes.total(), *records), (6, 1));
    let others: Vec<_> = received
        .iter()
        .filter(|event| !output(event))
        .cloned()
        .collect();
    assert_eq!(
        names(&others),
        [
            "intended",
            "created",
            "started",
            "exited",
            "sealed",
            "container_removed",
            "released"
        ]
        .map(String::from)
        .into_iter()
        .collect::<Vec<_>>()
    );
    for event in received {
        assert_eq!(event.run.as_ref(), Some(run.id()));
        let line = serde_json::to_string(&event).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<RunEvent>(&line).unwrap(), event);
    }
}

#[tokio::test]
async fn events_of_a_run_end_with_it() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let run = bench
        .start(&manager, Script::new().until_stopped(), spec())
        .await;
    let events = run.events();
    sealed(&bench.start(&manager, Script::new(), spec()).await).await;
    let stopped = run.stop(None).await.unwrap();
    assert_eq!(stopped.stopped(), Some(StopCause::Requested));
    let received = all(events).await;
    assert_eq!(
        names(&received),
        [
            "stop_requested",
            "exited",
            "sealed",
            "container_removed",
            "released"
        ]
    );
    assert!(
        received
            .iter()
            .all(|event| event.run.as_ref() == Some(run.id()))
    );
    assert_eq!(run.events().next().await, None, "the run has ended");
}

//! Events of runs and of a manager.

use moat::events::{EventKind, RunEvent};
use moat::outcome::StopCause;
use moat::runtime::scripted::Script;
use moat::{Events, ShutdownMode};

use crate::bench::{Bench, sealed, spec};

pub async fn all(mut events: Events) -> Vec<RunEvent> {
    let mut told = Vec::new();
    while let Some(event) = events.next().await {
        told.push(event);
    }
    told
}

/// The names of the events in JSON.
pub fn words(events: &[RunEvent]) -> Vec<String> {
    let word = |event| serde_json::to_value(event).unwrap()["event"].clone();
    let words = events.iter().map(word);
    words
        .map(|word| word.as_str().unwrap().to_owned())
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
    let told = all(events).await;
    let output = |event: &&RunEvent| matches!(event.kind, EventKind::Output { .. });
    let counts = &told.iter().rfind(output).unwrap().kind;
    let EventKind::Output { bytes, records } = counts else {
        unreachable!()
    };
    assert_eq!((bytes.total(), *records), (6, 1));
    let others: Vec<_> = told
        .iter()
        .filter(|event| !output(event))
        .cloned()
        .collect();
    assert_eq!(
        words(&others),
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
    for event in told {
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
    let told = all(events).await;
    assert_eq!(
        words(&told),
        [
            "stop_requested",
            "exited",
            "sealed",
            "container_removed",
            "released"
        ]
    );
    assert!(
        told.iter()
            .all(|event| event.run.as_ref() == Some(run.id()))
    );
    assert_eq!(run.events().next().await, None, "it is over");
}

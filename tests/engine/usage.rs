//! Samples of what a run uses.

use std::time::Duration;

use moat::events::EventKind;
use testkit::deadline::within;

use crate::stage::{Stage, end, read};

testkit::trials! {
    crate::on_engine:
        usage_is_sampled_and_sealed,
}

async fn usage_is_sampled_and_sealed(stage: &Stage) {
    let manager = stage.manager().await;
    let mut events = manager.events();
    let spec = stage.gated("await /gate/go");
    let spec = spec.sample(Duration::from_millis(200));
    let run = manager.start(spec).await.unwrap();
    let sampled = within(60, "a sample", async {
        loop {
            if let EventKind::Usage { usage } = events.next().await.unwrap().kind {
                return usage;
            }
        }
    })
    .await;
    assert!(sampled.memory > 0 && sampled.pids > 0, "{sampled:?}");
    stage.open_gate("go");
    let outcome = end(&run).await;
    let usage = outcome.usage.unwrap();
    assert!(usage.memory >= sampled.memory && usage.cpu_seconds >= sampled.cpu_seconds);
    let audit = read(&outcome);
    assert_eq!(audit.end["usage"]["memory"], usage.memory);
    let container = outcome.sealed().unwrap().container.clone().unwrap();
    stage.is_clean().await;
    let gone = manager.runtime().stats(&container).await.unwrap_err();
    assert!(gone.is_definitive(), "{gone}");
}

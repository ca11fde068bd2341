//! Samples of what a run uses.

use std::time::Duration;

use moat::ShutdownMode;
use moat::runtime::scripted::{Call, Script};

use crate::bench::{Bench, sealed, spec};
use crate::events::{all, names};

#[tokio::test(start_paused = true)]
async fn usage_is_sampled_and_sealed() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let script = Script::new()
        .uses(1 << 20, 0.5)
        .pause(Duration::from_secs(60));
    let events = manager.events();
    let sampled = spec().sample(Duration::from_secs(10));
    let outcome = sealed(&bench.start(&manager, script, sampled).await).await;
    let usage = outcome.usage.unwrap();
    assert_eq!(outcome.sealed().unwrap().usage.as_deref(), Some(&usage));
    assert_eq!(usage.memory, 1 << 20);
    assert!(usage.samples >= 5, "{usage:?}");
    assert!((20.0..=30.0).contains(&usage.cpu_seconds), "{usage:?}");
    manager.shutdown(ShutdownMode::Leave).await;
    let received = names(&all(events).await);
    let samples = received.iter().filter(|name| *name == "usage").count();
    assert_eq!(samples as u64, usage.samples);
    // Without `sample`, nothing is sampled.
    let bench = Bench::new();
    let manager = bench.open().await;
    let run = bench.start(
        &manager,
        Script::new().pause(Duration::from_secs(60)),
        spec(),
    );
    assert_eq!(sealed(&run.await).await.usage, None);
    assert_eq!(bench.runtime.calls(Call::Stats), 0);
}

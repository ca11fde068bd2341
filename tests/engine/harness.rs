//! What only an engine can show of what a harness needs: samples, labels, and what is left behind.

use std::time::Duration;

use moat::Docker;
use moat::events::EventKind;
use moat::manager::OrphanReason;
use moat::runtime::Runtime;
use moat::timestamp::Timestamp;

use crate::stage::{Stage, end, read};
use crate::support::deadline::within;

pub async fn what_a_run_uses_is_sampled_and_in_its_seal(stage: &Stage) {
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

pub async fn a_container_carries_its_deadline_and_any_moat_can_see_it(stage: &Stage) {
    let manager = stage.manager().await;
    let limit = Duration::from_secs(3600);
    let before = Timestamp::now();
    let limited = manager
        .start(stage.gated("await /gate/go").time_limit(limit))
        .await
        .unwrap();
    let endless = manager.start(stage.gated("await /gate/go")).await.unwrap();
    let other = Docker::connect().await.unwrap();
    let all = other.find_all().await.unwrap();
    let of = |id| all.iter().find(|marked| marked.run == id).unwrap();
    let marked = of(limited.id().clone());
    assert_eq!(&marked.root, manager.root().id());
    assert!(marked.deadline.unwrap().since(before) > limit);
    assert!(marked.deadline.unwrap().since(before) < limit + Duration::from_secs(300));
    assert_eq!(of(endless.id().clone()).deadline, None);
    stage.open_gate("go");
    end(&limited).await;
    end(&endless).await;
}

pub async fn a_container_whose_run_is_gone_is_found_and_removed(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager.start(stage.gated("await /gate/go")).await.unwrap();
    assert!(manager.orphans().await.unwrap().is_empty());
    let dir = run.dir().to_owned();
    drop(run);
    manager.shutdown(moat::ShutdownMode::Leave).await;
    std::fs::remove_dir_all(dir).unwrap();
    let manager = stage.manager().await;
    manager.wait_recovery().await.unwrap();
    let orphans = manager.orphans().await.unwrap();
    assert_eq!(orphans.len(), 1);
    assert_eq!(orphans[0].why, OrphanReason::NoRun);
    manager.remove_orphan(&orphans[0]).await.unwrap();
    stage.is_clean().await;
}

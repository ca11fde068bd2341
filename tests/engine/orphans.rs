//! Containers whose run is gone, and the labels that identify them.

use std::time::Duration;

use moat::Docker;
use moat::manager::{Orphan, OrphanReason};
use moat::runtime::Runtime;
use moat::timestamp::Timestamp;

use crate::stage::{Stage, end};

testkit::trials! {
    crate::on_engine:
        a_container_has_its_deadline_in_a_label,
        an_orphan_is_found_and_removed,
}

async fn a_container_has_its_deadline_in_a_label(stage: &Stage) {
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
    let of = |id| all.iter().find(|found| found.run == id).unwrap();
    let found = of(limited.id().clone());
    assert_eq!(&found.root, manager.root().id());
    assert!(found.deadline.unwrap().since(before) > limit);
    assert!(found.deadline.unwrap().since(before) < limit + Duration::from_secs(300));
    assert_eq!(of(endless.id().clone()).deadline, None);
    stage.open_gate("go");
    end(&limited).await;
    end(&endless).await;
}

async fn an_orphan_is_found_and_removed(stage: &Stage) {
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
    let [Orphan::Container(orphan)] = &orphans[..] else {
        panic!("{orphans:?}");
    };
    assert_eq!(orphan.reason, OrphanReason::NoRun);
    manager.remove_orphan(&orphans[0]).await.unwrap();
    stage.is_clean().await;
}

//! Pods that others delete.

use moat::Ending;
use testkit::sequence;

use crate::cluster::kubectl;
use crate::stage::{Stage, end, read};

testkit::trials! {
    crate::on_local_cluster:
        a_deleted_pod_loses_nothing_in_silence,
        a_stubborn_command_is_killed_with_its_pod,
        a_pod_removed_by_force_is_a_gap,
}

/// Deletes the pod of a run that prints, and checks what the seal says about it.
async fn delete(stage: &Stage, stubborn: bool, arguments: &[&str]) {
    const LINES: u64 = 3000;
    let before = if stubborn { "ignore-term + " } else { "" };
    let steps = format!("{before}lines {LINES} --delay-ms 10 + write /gate/end x");
    let manager = stage.manager().await;
    let id = moat::RunId::new("deleted").unwrap();
    let run = manager.start(stage.gated(&steps).id(id)).await.unwrap();
    stage.audited("deleted", "out 00000050 ").await;
    let pod = stage.pod();
    kubectl(&[&["delete", "pod", &pod], arguments].concat());
    let outcome = end(&run).await;
    let audit = read(&outcome);
    println!("{arguments:?}: {}, {:?}", audit.end, audit.all("gap"));
    assert!(!stage.gate().join("end").exists(), "the command has ended");
    // Whole lines in order, except for the last one.
    let found = audit.stream("stdout");
    let whole = found.iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let count = found.iter().filter(|byte| **byte == b'\n').count() as u64;
    assert!((50..LINES).contains(&count), "{count} lines");
    sequence::check(&found[..whole], "out", count, 64).unwrap();
    match &outcome.ending {
        Ending::Exited(exit) => {
            // A write of a stubborn command fails if the collector was killed first.
            let write_failed = stubborn && exit.code == Some(101);
            // A kubelet may report the end of a deleted pod without those of its containers.
            assert!(
                write_failed || [None, Some(137), Some(143)].contains(&exit.code),
                "{outcome}"
            );
        }
        Ending::Removed { .. } => {}
        other => panic!("{other:?}"),
    }
    // The end of the output is proven, or there is a gap.
    match audit.verdict() {
        "complete" => assert_eq!(audit.evidence(), "end_marker"),
        verdict => assert_eq!(verdict, "gap", "{}", audit.end),
    }
    for gap in audit.all("gap") {
        let reason = gap["reason"].as_str().unwrap();
        let lost_collector = stubborn && reason == "log_unreadable";
        assert!(
            lost_collector || ["removed", "node_lost"].contains(&reason),
            "{gap}"
        );
    }
    stage.is_clean().await;
}

async fn a_deleted_pod_loses_nothing_in_silence(stage: &Stage) {
    delete(stage, false, &["--grace-period=2"]).await;
}

async fn a_stubborn_command_is_killed_with_its_pod(stage: &Stage) {
    delete(stage, true, &["--grace-period=2"]).await;
}

async fn a_pod_removed_by_force_is_a_gap(stage: &Stage) {
    delete(stage, false, &["--grace-period=0", "--force"]).await;
}

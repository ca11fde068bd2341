//! Limits of time and output.

use std::time::Duration;

use moat::outcome::StopCause;
use moat::spec::LimitAction;
use testkit::sequence;

use crate::stage::{Stage, assert_bytes, seal};

testkit::trials! {
    crate::on_engine:
        the_time_limit_stops_a_run,
        output_past_the_limit_can_stop_the_run,
        output_past_the_limit_can_be_dropped,
}

async fn the_time_limit_stops_a_run(stage: &Stage) {
    let spec = stage
        .spec("ignore-term + echo ready + sleep 600")
        // The limit counts from the creation.
        .time_limit(Duration::from_secs(5))
        .stop_grace(Duration::from_millis(500));
    let (outcome, audit) = stage.run(spec).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::TimeLimit));
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(audit.all("stop")[0]["cause"], "time_limit");
    assert_bytes(audit.stream("stdout"), b"ready\n");
}

async fn output_past_the_limit_can_stop_the_run(stage: &Stage) {
    let spec = stage
        .spec("lines 1000 + sleep 600")
        .output_limit(6500, LimitAction::Stop)
        .stop_grace(Duration::from_millis(500));
    let (outcome, audit) = stage.run(spec).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::OutputLimit));
    let all = sequence::lines("out", 1000, 64);
    let found = audit.stream("stdout");
    assert!(all.starts_with(found), "what is there is the beginning");
    assert!(found.len() <= 6500, "{} bytes", found.len());
    assert_eq!(audit.verdict(), "gap");
    assert!(
        audit
            .all("gap")
            .iter()
            .any(|gap| gap["reason"] == "output_limit")
    );
}

async fn output_past_the_limit_can_be_dropped(stage: &Stage) {
    let spec = stage
        .spec("lines 1000 + exit 8")
        .output_limit(6500, LimitAction::Drop);
    let (outcome, audit) = stage.run(spec).await;
    assert_eq!(outcome.code(), Some(8));
    assert_eq!(seal(&outcome).stopped, None);
    let all = sequence::lines("out", 1000, 64);
    let found = audit.stream("stdout");
    assert!(all.starts_with(found), "what is there is the beginning");
    assert!(
        found.len() <= 6500 && found.len() > 6000,
        "{} bytes",
        found.len()
    );
    assert_eq!(audit.verdict(), "gap");
    let gaps = audit.all("gap");
    assert_eq!(gaps[0]["reason"], "output_limit");
    if let Some(bytes) = gaps[0]["bytes"].as_u64() {
        assert_eq!(bytes as usize + found.len(), all.len());
    }
}

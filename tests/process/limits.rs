//! Limits of time, silence and output.

use std::time::Duration;

use moat::RunSpec;
use moat::audit::GapReason;
use moat::outcome::StopCause;
use moat::spec::LimitAction;

use crate::place::{Place, exit, gaps, seal};

#[tokio::test]
async fn the_time_limit_stops_a_process() {
    let spec = RunSpec::command(["sleep", "600"]).time_limit(Duration::from_millis(200));
    let place = Place::new();
    let outcome = place.run(spec).await;
    assert_eq!(outcome.code(), Some(143));
    assert_eq!(exit(&outcome).error.as_deref(), Some("ended by SIGTERM"));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::TimeLimit));
}

#[tokio::test]
async fn the_silence_limit_stops_a_silent_process() {
    let spec = RunSpec::command(["sh", "-c", "echo once; exec sleep 600"])
        .silence_limit(Duration::from_secs(1));
    let place = Place::new();
    let outcome = place.run(spec).await;
    assert_eq!(outcome.code(), Some(143));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::SilenceLimit));
}

#[tokio::test]
async fn the_output_limit_stops_a_process() {
    let spec = RunSpec::command(["yes"]).output_limit(10_000, LimitAction::Stop);
    let place = Place::new();
    let outcome = place.run(spec).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::OutputLimit));
    assert_eq!(
        gaps(&outcome).first().map(|gap| gap.0),
        Some(GapReason::OutputLimit)
    );
}

//! Limits of time, silence and output.

use std::time::Duration;

use moat::Verdict;
use moat::audit::GapReason;
use moat::outcome::{StopCause, Stream};
use moat::runtime::scripted::Script;
use moat::spec::LimitAction;

use crate::bench::{Bench, seal, sealed, spec};
use crate::records::{gaps, numbered, text};

#[tokio::test(start_paused = true)]
async fn the_time_limit_stops_a_run() {
    let bench = Bench::new();
    let limited = spec().time_limit(Duration::from_secs(5));
    let outcome = bench.run(Script::new().until_stopped(), limited).await;
    assert_eq!(outcome.code(), Some(143));
    assert_eq!(seal(&outcome).stopped, Some(StopCause::TimeLimit));
}

#[tokio::test(start_paused = true)]
async fn the_output_limit_drops_or_stops() {
    for (action, code) in [(LimitAction::Drop, 0), (LimitAction::Stop, 143)] {
        let bench = Bench::new();
        let script = Script::new()
            .stdout(numbered(100))
            .pause(Duration::from_secs(60));
        let outcome = bench.run(script, spec().output_limit(100, action)).await;
        assert_eq!(outcome.code(), Some(code));
        assert_eq!(seal(&outcome).bytes.stdout, 100);
        assert_eq!(text(&outcome, Stream::Stdout), numbered(100)[..100]);
        assert_eq!(gaps(&outcome), [GapReason::OutputLimit]);
    }
}

/// The tap is cut, and only the replay reaches the limit.
#[tokio::test]
async fn a_replay_past_the_output_limit_is_a_gap() {
    let bench = Bench::new();
    let script = Script::new()
        .stdout("0123456789\n")
        .stdout("x".repeat(54))
        .cut_attachment_after(11);
    let limited = spec().output_limit(20, LimitAction::Drop);
    let outcome = bench.run(script, limited).await;
    assert_eq!(seal(&outcome).bytes.stdout, 20);
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(gaps(&outcome), [GapReason::OutputLimit]);
}

#[tokio::test(start_paused = true)]
async fn the_silence_limit_stops_a_run() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let tick = Duration::from_secs(4);
    let script = Script::new()
        .pause(tick)
        .stdout("a\n")
        .pause(tick)
        .stderr("b\n")
        .until_stopped();
    let limit = Duration::from_secs(5);
    let run = bench
        .start(&manager, script, spec().silence_limit(limit))
        .await;
    let begun = tokio::time::Instant::now();
    let outcome = sealed(&run).await;
    assert_eq!(outcome.stopped(), Some(StopCause::SilenceLimit));
    assert!(begun.elapsed() >= 2 * tick + limit, "{:?}", begun.elapsed());
    assert_eq!(outcome.sealed().unwrap().records, 2);
}

#[tokio::test(start_paused = true)]
async fn a_printing_run_is_not_silent() {
    let bench = Bench::new();
    let manager = bench.open().await;
    let mut script = Script::new();
    for _ in 0..20 {
        script = script.stdout(".").pause(Duration::from_secs(4));
    }
    let limited = spec().silence_limit(Duration::from_secs(5));
    let outcome = sealed(&bench.start(&manager, script, limited).await).await;
    assert_eq!((outcome.code(), outcome.stopped()), (Some(0), None));
}

//! Attachments: what a subscriber sees.

use std::time::{Duration, Instant};

use futures::StreamExt;
use moat::outcome::Stream;
use moat::run::{AttachOptions, Attached, Attachment};
use moat::spec::Stdin;
use moat::{Docker, Manager, RunSpec};
use testkit::deadline::eventually;
use testkit::sequence;
use tokio::io::AsyncWriteExt;

use crate::load::is_soak;
use crate::output::assert_all_or_cut;
use crate::stage::{
    Stage, Watched, assert_bytes, assert_complete, assert_nothing_missed, end, printed, read,
};
use crate::stdin::{sh, with_input};

testkit::trials! {
    crate::on_engine:
        a_late_subscriber_sees_each_byte_once,
        subscribers_at_any_time_see_the_same_bytes,
        an_attachment_after_the_end_sees_all_output,
        a_stuck_subscriber_harms_no_container_or_audit;
    crate::on_busybox:
        live_only_shows_no_past_output,
        an_attachment_ends_with_the_outcome,
        a_stuck_subscriber_does_not_slow_others,
}

/// If an engine is asked for past and live output at once, output between the two can be lost.
async fn a_late_subscriber_sees_each_byte_once(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage.gated("lines 500 + await /gate/go + lines 500 --from 501");
    let run = manager.start(spec).await.unwrap();
    let first = tokio::spawn(Watched::all(run.attach().await.unwrap()));
    printed(&run, "out 00000500 ").await;
    let late = tokio::spawn(Watched::all(run.attach().await.unwrap()));
    stage.open_gate("go");
    for watched in [first.await.unwrap(), late.await.unwrap()] {
        sequence::check(watched.stdout(), "out", 1000, 64).unwrap();
        assert_eq!(watched.missed, 0);
    }
    sequence::check(read(&end(&run).await).stream("stdout"), "out", 1000, 64).unwrap();
}

async fn subscribers_at_any_time_see_the_same_bytes(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage.spec("lines 2000 --burst 10 --delay-ms 2");
    let run = manager.start(spec).await.unwrap();
    let readers: Vec<_> = (0..20)
        .map(|at| {
            let run = run.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(at * 25)).await;
                Watched::all(run.attach().await.unwrap()).await
            })
        })
        .collect();
    for reader in readers {
        let watched = reader.await.unwrap();
        sequence::check(watched.stdout(), "out", 2000, 64).unwrap();
    }
    assert_complete(&read(&end(&run).await));
}

async fn an_attachment_after_the_end_sees_all_output(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager
        .start(stage.spec("lines 3000 + warn end"))
        .await
        .unwrap();
    end(&run).await;
    let watched = Watched::all(run.attach().await.unwrap()).await;
    sequence::check(watched.stdout(), "out", 3000, 64).unwrap();
    assert_eq!(watched.bytes[&Stream::Stderr], b"end\n");
}

/// If an attached client of the engine stops reading, the container and all requests block.
async fn a_stuck_subscriber_harms_no_container_or_audit(stage: &Stage) {
    const LINES: u64 = 200_000;
    let manager = stage.manager().await;
    let run = manager
        .start(stage.spec(&format!("lines {LINES} --burst 50")))
        .await
        .unwrap();
    let mut idle = run.attach().await.unwrap();
    let mut watched = Watched::default();
    assert!(watched.next(&mut idle).await);
    let outcome = end(&run).await;
    let audit = read(&outcome);
    assert_all_or_cut(&audit, &sequence::lines("out", LINES, 64));
    // In the end, the subscriber knows how much it missed.
    while watched.next(&mut idle).await {}
    let seen = watched.stdout().len() as u64;
    assert_eq!(seen + watched.missed, audit.stream("stdout").len() as u64);
}

async fn live_only_shows_no_past_output(stage: &Stage) {
    let manager = stage.manager().await;
    let script = "seq 1 1000; echo first >&2; read line; seq 1001 2000";
    let (run, mut output) = manager
        .start_attached(sh(stage, script).stdin(Stdin::Open), with_input())
        .await
        .unwrap();
    let mut watched = Watched::default();
    watched.until(&mut output, "1000\n").await;
    eventually(60, "the output in the file", async || {
        let file = std::fs::read_to_string(run.audit().unwrap()).unwrap();
        file.contains(r#""line":"first""#).then_some(())
    })
    .await;
    let mut live = run
        .attach_with(AttachOptions::new().live_only())
        .await
        .unwrap();
    // Live output starts at the first poll.
    assert!(futures::poll!(live.next()).is_pending());
    output.input().unwrap().write_all(b"\n").await.unwrap();
    let live = Watched::all(live).await;
    let expected: String = (1001..=2000).map(|n| format!("{n}\n")).collect();
    assert_bytes(live.stdout(), expected.as_bytes());
    assert_eq!((live.missed, live.bytes.len()), (0, 1));
    assert_complete(&read(&end(&run).await));
}

async fn an_attachment_ends_with_the_outcome(stage: &Stage) {
    let manager = stage.manager().await;
    let (_run, mut output) = manager
        .start_attached(
            sh(stage, "seq 1 50000; exit 9"),
            AttachOptions::new().lossless(),
        )
        .await
        .unwrap();
    let mut watched = Watched::default();
    while watched.next(&mut output).await {}
    let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
    assert_bytes(watched.stdout(), expected.as_bytes());
    assert_eq!(output.outcome().await.unwrap().code(), Some(9));
}

const SUBSCRIBERS: usize = 20;

/// Lines of 100 bytes, newline included.
const LINES: u64 = 300_000;

/// A run that prints `LINES` equal lines.
fn verbose(stage: &Stage) -> RunSpec {
    let script = format!("yes {} | head -n {LINES}", "x".repeat(99));
    RunSpec::new(&stage.image)
        .cmd(["sh", "-c", &script])
        .network("none")
}

/// The number of bytes that a subscriber saw and missed.
async fn watch(mut output: Attachment) -> (u64, u64) {
    let (mut seen, mut missed) = (0, 0);
    while let Some(item) = output.next().await {
        match item.unwrap() {
            Attached::Chunk(chunk) => {
                assert_eq!(chunk.stream, Stream::Stdout);
                seen += chunk.bytes.len() as u64;
            }
            Attached::Lagged { bytes, .. } => missed += bytes,
            other => panic!("{other:?}"),
        }
    }
    (seen, missed)
}

/// The time that the container takes with this many subscribers, one of which never reads.
async fn run_time(stage: &Stage, subscribers: usize) -> Duration {
    // Equal lines are no evidence, so the whole log is read again at the end. Subscribers wait for
    // that.
    let manager = Manager::builder(stage.root(), Docker::connect().await.unwrap())
        .seal_timeout(Duration::from_secs(120))
        .open()
        .await
        .unwrap();
    let (run, first) = manager
        .start_attached(verbose(stage), AttachOptions::new())
        .await
        .unwrap();
    let mut stuck = None;
    let mut watching = Vec::new();
    if subscribers > 0 {
        stuck = Some(first);
        for _ in 1..subscribers {
            watching.push(tokio::spawn(watch(run.attach().await.unwrap())));
        }
    } else {
        drop(first);
    }
    let outcome = end(&run).await;
    let audit = read(&outcome);
    assert_nothing_missed(&audit);
    let total = audit.stream("stdout").len() as u64;
    assert_eq!(audit.end["records"].as_u64(), Some(LINES));
    for subscriber in watching {
        let (seen, missed) = subscriber.await.unwrap();
        assert_eq!(seen + missed, total);
    }
    drop(stuck);
    let exit = outcome.ending;
    let moat::Ending::Exited(exit) = exit else {
        panic!("{exit}");
    };
    exit.finished_at.unwrap().since(exit.started_at.unwrap())
}

/// Only the long form asserts a ratio: one try on a busy machine proves nothing.
async fn a_stuck_subscriber_does_not_slow_others(stage: &Stage) {
    let rounds = if is_soak() { 7 } else { 1 };
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for _ in 0..rounds {
        alone.push(run_time(stage, 0).await);
        watched.push(run_time(stage, SUBSCRIBERS).await);
        eprintln!(
            "{:?} alone, {:?} with {SUBSCRIBERS} subscribers",
            alone.last(),
            watched.last()
        );
    }
    alone.sort();
    watched.sort();
    let (without, with) = (alone[rounds / 2], watched[rounds / 2]);
    eprintln!(
        "{LINES} lines, median of {rounds}: {without:?} alone, {with:?} with {SUBSCRIBERS} \
         subscribers; alone {alone:?}, watched {watched:?}; {:?} in all",
        begin.elapsed()
    );
    if is_soak() {
        assert!(with.as_secs_f64() < without.as_secs_f64() * 1.1);
    }
}

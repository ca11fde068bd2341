//! Many eyes on one run.

use std::time::{Duration, Instant};

use moat::outcome::Stream;
use moat::run::{AttachOptions, Attached, Attachment};
use moat::{Docker, Manager, RunSpec};

use crate::assert_nothing_missed;
use crate::stage::{Stage, end, read};

const EYES: usize = 20;
/// Of 100 bytes each, with their newlines.
const LINES: u64 = 300_000;

fn chatty(stage: &Stage) -> RunSpec {
    let script = format!("yes {} | head -n {LINES}", "x".repeat(99));
    RunSpec::new(&stage.image)
        .cmd(["sh", "-c", &script])
        .network("none")
}

/// How many bytes one saw, and was told that it missed.
async fn watch(mut output: Attachment) -> (u64, u64) {
    use futures::StreamExt;
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

/// One run with so many eyes on it, of which one never reads: how long the container took.
async fn once(stage: &Stage, eyes: usize) -> Duration {
    // Equal lines are no evidence, so all of them are read again at the end: eyes are to wait.
    let manager = Manager::builder(stage.root(), Docker::connect().await.unwrap())
        .seal_timeout(Duration::from_secs(120))
        .open()
        .await
        .unwrap();
    let (run, first) = manager
        .start_attached(chatty(stage), AttachOptions::new())
        .await
        .unwrap();
    let mut blind = None;
    let mut watching = Vec::new();
    if eyes > 0 {
        blind = Some(first);
        for _ in 1..eyes {
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
    for eye in watching {
        let (seen, missed) = eye.await.unwrap();
        assert_eq!(seen + missed, total);
    }
    drop(blind);
    let exit = outcome.ending;
    let moat::Ending::Exited(exit) = exit else {
        panic!("{exit}");
    };
    exit.finished_at.unwrap().since(exit.started_at.unwrap())
}

/// The figure is asserted in the long form alone: a machine that does other things as well says
/// nothing in one try.
pub async fn twenty_eyes_of_which_one_is_blind_slow_nothing_down(stage: &Stage) {
    let soak = std::env::var_os("MOAT_SOAK").is_some();
    let rounds = if soak { 7 } else { 1 };
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for _ in 0..rounds {
        alone.push(once(stage, 0).await);
        watched.push(once(stage, EYES).await);
        eprintln!(
            "{:?} alone, {:?} with {EYES} eyes",
            alone.last(),
            watched.last()
        );
    }
    alone.sort();
    watched.sort();
    let (without, with) = (alone[rounds / 2], watched[rounds / 2]);
    eprintln!(
        "{LINES} lines, median of {rounds}: {without:?} alone, {with:?} with {EYES} eyes; alone \
         {alone:?}, watched {watched:?}; {:?} in all",
        begin.elapsed()
    );
    if soak {
        assert!(with.as_secs_f64() < without.as_secs_f64() * 1.1);
    }
}

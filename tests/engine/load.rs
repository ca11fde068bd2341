//! Many runs at once. `MOAT_SOAK=1` selects the long forms.

use std::sync::Arc;

use futures::StreamExt;
use moat::spec::KeepContainer;
use moat::{Manager, RunSpec};
use testkit::audit::Audit;
use testkit::sequence;

use crate::stage::{Stage, end, read};

testkit::trials! {
    crate::on_engine:
        fifty_runs_at_once_are_complete,
        short_runs_lose_nothing,
        many_runs_keep_each_line_once,
        each_stream_keeps_its_order_in_every_run,
}

/// True if the long forms are selected.
pub fn is_soak() -> bool {
    std::env::var("MOAT_SOAK").is_ok_and(|value| value == "1")
}

/// Returns the number for the selected form.
pub fn quick_or_soak(quick: u64, soak: u64) -> u64 {
    if is_soak() { soak } else { quick }
}

/// Runs `spec` `count` times, `width` at a time, and checks the streams of each audit. A failure
/// does not end the other runs.
async fn many(
    manager: &Manager,
    count: u64,
    width: usize,
    spec: impl Fn() -> RunSpec,
    check: impl Fn(&Audit) -> Result<(), String> + Send + Sync + 'static,
) {
    let check = Arc::new(check);
    let failures: Vec<String> = futures::stream::iter(0..count)
        .map(|_| {
            let (manager, spec, check) = (manager.clone(), spec(), check.clone());
            tokio::spawn(async move {
                let run = manager.start(spec).await.unwrap();
                let outcome = end(&run).await;
                // Not on a thread that captures other runs.
                let checked = tokio::task::spawn_blocking(move || {
                    let audit = read(&outcome);
                    let checked = check(&audit);
                    let complete = audit.verdict() == "complete";
                    // The audit records output that the engine dropped. moat did not lose it.
                    let gaps = audit.all("gap");
                    let cut = !gaps.is_empty()
                        && gaps.iter().all(|gap| gap["reason"] == "late_drain")
                        && is_soak();
                    let fine = outcome.success() && (complete && checked.is_ok() || cut);
                    if cut {
                        println!("possibly cut off; whole: {}", checked.is_ok());
                    }
                    (!fine).then(|| format!("{checked:?}\n{}\n{:?}", audit.end, audit.all("gap")))
                });
                checked.await.unwrap()
            })
        })
        .buffer_unordered(width)
        .filter_map(async |run| run.unwrap_or_else(|error| Some(error.to_string())))
        .collect()
        .await;
    assert!(
        failures.is_empty(),
        "{} of {count}:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

async fn fifty_runs_at_once_are_complete(stage: &Stage) {
    let manager = stage.manager().await;
    many(
        &manager,
        50,
        50,
        || stage.spec("lines 100 --stream both"),
        |audit| {
            sequence::check(audit.stream("stdout"), "out", 100, 64)?;
            sequence::check(audit.stream("stderr"), "err", 100, 64)
        },
    )
    .await;
    assert_eq!(manager.list().await.unwrap().len(), 50);
    stage.is_clean().await;
}

/// A run that ends before anything attaches has no live output.
async fn short_runs_lose_nothing(stage: &Stage) {
    let manager = stage.manager().await;
    let count = quick_or_soak(50, 1000);
    many(
        &manager,
        count,
        8,
        || stage.spec("echo x"),
        |audit| equal(audit.stream("stdout"), b"x\n"),
    )
    .await;
    stage.is_clean().await;
}

/// A loaded engine loses the end of a followed log. It also drops the end of a burst that it cannot
/// deliver within 2 s. The long form has such bursts: its captures are then prefixes, and a gap
/// says so.
async fn many_runs_keep_each_line_once(stage: &Stage) {
    let manager = stage.manager().await;
    let (count, lines) = (quick_or_soak(16, 160), quick_or_soak(2000, 20_000));
    let steps = format!("lines {lines}");
    many(
        &manager,
        count,
        16,
        || stage.spec(&steps).keep(KeepContainer::Never),
        move |audit| {
            let (all, found) = (sequence::lines("out", lines, 64), audit.stream("stdout"));
            assert!(
                all.starts_with(found),
                "a line is missing, doubled or changed"
            );
            sequence::check(found, "out", lines, 64)
        },
    )
    .await;
    stage.is_clean().await;
}

/// One line on each stream: the order between streams is not defined.
async fn each_stream_keeps_its_order_in_every_run(stage: &Stage) {
    let manager = stage.manager().await;
    let count = quick_or_soak(12, 60);
    let steps = "echo one + warn eins + echo two + warn zwei";
    many(
        &manager,
        count,
        4,
        || stage.spec(steps),
        |audit| {
            equal(audit.stream("stdout"), b"one\ntwo\n")?;
            equal(audit.stream("stderr"), b"eins\nzwei\n")
        },
    )
    .await;
}

fn equal(found: &[u8], expected: &[u8]) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{:?}", String::from_utf8_lossy(found)))
}

//! What a container may print, and who may read it meanwhile.

use std::time::Duration;

use moat::outcome::StopCause;
use moat::spec::LimitAction;

use crate::stage::{Stage, Watched, assert_bytes, assert_complete, end, printed, read, seal};
use crate::support::audit::Audit;
use crate::support::sequence;

fn with_newline(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.push(b'\n');
    bytes
}

/// Asserts that stdout has all of it. An engine gives up 2 s after the exit on what nobody has
/// taken from it yet: on a machine that stands still for so long, the beginning, and that it is so.
#[track_caller]
fn assert_all_or_cut(audit: &Audit, expected: &[u8]) {
    let gaps = audit.all("gap");
    if !gaps.is_empty() && gaps.iter().all(|gap| gap["reason"] == "late_drain") {
        assert!(expected.starts_with(audit.stream("stdout")));
        return;
    }
    assert_bytes(audit.stream("stdout"), expected);
    assert_complete(audit);
}

/// Invariant 8: lines longer than any buffer are cut into parts, and lose nothing.
pub async fn a_line_of_ten_megabytes_is_audited_byte_for_byte(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("long 10000000 + echo after")).await;
    let mut expected = with_newline(sequence::long(10_000_000, false));
    expected.extend_from_slice(b"after\n");
    assert_all_or_cut(&audit, &expected);
}

/// The engine's log cuts such a line in mid-character and replaces the halves: the tap does not.
pub async fn a_long_line_of_multibyte_characters_is_audited_byte_for_byte(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("long 200001 --utf8")).await;
    assert_bytes(
        audit.stream("stdout"),
        &with_newline(sequence::long(200_001, true)),
    );
    assert_complete(&audit);
}

/// The engine's log makes three bytes of each bad one: the tap does not.
pub async fn random_bytes_are_audited_byte_for_byte(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("bytes 3000000 --seed 42")).await;
    assert_all_or_cut(&audit, &sequence::noise(42, 3_000_000));
}

pub async fn a_progress_bar_is_audited_byte_for_byte(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("progress 2000")).await;
    assert_bytes(audit.stream("stdout"), &sequence::progress(2000));
    assert_complete(&audit);
}

pub async fn a_character_in_two_halves_is_whole_in_the_audit(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("split")).await;
    assert_bytes(audit.stream("stdout"), sequence::SPLIT.as_bytes());
    assert_eq!(seal(&outcome).records, 1);
    assert_eq!(outcome.last_lines, ["a €uro"]);
}

pub async fn output_without_a_last_newline_is_whole(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("echo one + print two")).await;
    assert_bytes(audit.stream("stdout"), b"one\ntwo");
    assert_complete(&audit);
}

/// Invariant 8. A decoder that guesses takes the first bytes for a header, and hides what follows.
pub async fn hostile_bytes_on_a_terminal_hide_nothing(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("tty-hostile").tty(true)).await;
    let expected = String::from_utf8_lossy(sequence::TTY_HOSTILE);
    assert!(expected.ends_with("hidden\n"));
    let expected: Vec<u8> = sequence::TTY_HOSTILE
        .iter()
        .flat_map(|&byte| match byte {
            b'\n' => vec![b'\r', b'\n'],
            other => vec![other],
        })
        .collect();
    assert_bytes(audit.stream("tty"), &expected);
    assert_complete(&audit);
}

pub async fn hostile_bytes_without_a_terminal_hide_nothing(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("tty-hostile")).await;
    assert_bytes(audit.stream("stdout"), sequence::TTY_HOSTILE);
    assert_complete(&audit);
}

/// Between the streams there is no order that an engine could tell: none is promised.
pub async fn each_stream_is_in_its_own_order(stage: &Stage) {
    let (_, audit) = stage
        .run(stage.spec("lines 3000 --stream both --burst 7"))
        .await;
    sequence::check(audit.stream("stdout"), "out", 3000, 64).unwrap();
    sequence::check(audit.stream("stderr"), "err", 3000, 64).unwrap();
    assert_complete(&audit);
}

/// An engine that is asked for the past and the rest at once loses what falls between them.
pub async fn a_late_reader_gets_the_past_and_the_rest_without_loss_or_doubles(stage: &Stage) {
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

pub async fn readers_that_come_at_any_time_see_the_same_bytes(stage: &Stage) {
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

pub async fn a_reader_after_the_end_gets_all_of_it(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager
        .start(stage.spec("lines 3000 + warn end"))
        .await
        .unwrap();
    end(&run).await;
    let watched = Watched::all(run.attach().await.unwrap()).await;
    sequence::check(watched.stdout(), "out", 3000, 64).unwrap();
    assert_eq!(watched.bytes[&moat::outcome::Stream::Stderr], b"end\n");
}

/// An engine whose attached client stops reading blocks the container, and everyone who asks.
pub async fn a_reader_that_does_not_read_harms_neither_container_nor_audit(stage: &Stage) {
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
    // Whatever it is given in the end, it knows how much it has not seen.
    while watched.next(&mut idle).await {}
    let seen = watched.stdout().len() as u64;
    assert_eq!(seen + watched.missed, audit.stream("stdout").len() as u64);
}

pub async fn output_past_the_limit_stops_the_run_and_is_a_gap(stage: &Stage) {
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

pub async fn output_past_the_limit_is_dropped_as_a_gap_and_the_run_goes_on(stage: &Stage) {
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

//! Output of all kinds, byte for byte.

use testkit::audit::Audit;
use testkit::sequence;

use crate::stage::{Stage, assert_bytes, assert_complete, seal};

testkit::trials! {
    crate::on_engine:
        a_line_of_ten_megabytes_is_whole,
        a_long_line_of_wide_characters_is_whole,
        random_bytes_are_whole,
        a_progress_bar_is_whole,
        a_split_character_is_whole,
        output_without_a_last_newline_is_whole,
        hostile_terminal_output_hides_nothing,
        hostile_output_hides_nothing,
        each_stream_keeps_its_order,
        a_terminal_is_one_stream,
}

fn with_newline(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.push(b'\n');
    bytes
}

/// Asserts that stdout is complete. An engine drops output that is not read within 2 s of the exit.
/// On a machine that stalls for 2 s, the output is a prefix, and a gap says so.
#[track_caller]
pub fn assert_all_or_cut(audit: &Audit, expected: &[u8]) {
    let gaps = audit.all("gap");
    if !gaps.is_empty() && gaps.iter().all(|gap| gap["reason"] == "late_drain") {
        assert!(expected.starts_with(audit.stream("stdout")));
        return;
    }
    assert_bytes(audit.stream("stdout"), expected);
    assert_complete(audit);
}

/// Invariant 8: lines longer than any buffer are cut into parts and lose nothing.
async fn a_line_of_ten_megabytes_is_whole(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("long 10000000 + echo after")).await;
    let mut expected = with_newline(sequence::long(10_000_000, false));
    expected.extend_from_slice(b"after\n");
    assert_all_or_cut(&audit, &expected);
}

/// The engine's log cuts such a line inside a character and replaces the halves. The tap does not.
async fn a_long_line_of_wide_characters_is_whole(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("long 200001 --utf8")).await;
    assert_bytes(
        audit.stream("stdout"),
        &with_newline(sequence::long(200_001, true)),
    );
    assert_complete(&audit);
}

/// The engine's log replaces each invalid byte by three bytes. The tap does not.
async fn random_bytes_are_whole(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("bytes 3000000 --seed 42")).await;
    assert_all_or_cut(&audit, &sequence::noise(42, 3_000_000));
}

async fn a_progress_bar_is_whole(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("progress 2000")).await;
    assert_bytes(audit.stream("stdout"), &sequence::progress(2000));
    assert_complete(&audit);
}

async fn a_split_character_is_whole(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("split")).await;
    assert_bytes(audit.stream("stdout"), sequence::SPLIT.as_bytes());
    assert_eq!(seal(&outcome).records, 1);
    assert_eq!(outcome.last_lines, ["a €uro"]);
}

async fn output_without_a_last_newline_is_whole(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("echo one + print two")).await;
    assert_bytes(audit.stream("stdout"), b"one\ntwo");
    assert_complete(&audit);
}

/// Invariant 8: a decoder that guesses takes the first bytes for a header and hides the rest.
async fn hostile_terminal_output_hides_nothing(stage: &Stage) {
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

async fn hostile_output_hides_nothing(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("tty-hostile")).await;
    assert_bytes(audit.stream("stdout"), sequence::TTY_HOSTILE);
    assert_complete(&audit);
}

/// An engine does not know the order between streams, so none is promised.
async fn each_stream_keeps_its_order(stage: &Stage) {
    let (_, audit) = stage
        .run(stage.spec("lines 3000 --stream both --burst 7"))
        .await;
    sequence::check(audit.stream("stdout"), "out", 3000, 64).unwrap();
    sequence::check(audit.stream("stderr"), "err", 3000, 64).unwrap();
    assert_complete(&audit);
}

async fn a_terminal_is_one_stream(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("lines 50 + warn end").tty(true)).await;
    assert!(outcome.success());
    // The terminal's line discipline turns LF into CR LF.
    let mut expected = Vec::new();
    for number in 1..=50 {
        expected.extend_from_slice(sequence::line("out", number, 64).as_bytes());
        expected.extend_from_slice(b"\r\n");
    }
    expected.extend_from_slice(b"end\r\n");
    assert_bytes(audit.stream("tty"), &expected);
    assert_eq!(audit.streams.len(), 1);
    assert_complete(&audit);
}

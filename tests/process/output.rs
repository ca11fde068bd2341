//! Output of processes.

use std::path::Path;

use moat::outcome::{Evidence, Stream};
use moat::{Root, RunSpec, Verdict};

use crate::place::{Place, bytes, exit, seal, sh, text};

#[tokio::test]
async fn both_streams_and_the_code_are_recorded() {
    let place = Place::new();
    let outcome = place.run(sh("echo a; echo b >&2; exit 7")).await;
    assert_eq!(outcome.code(), Some(7));
    assert_eq!(text(&outcome, Stream::Stdout), "a\n");
    assert_eq!(text(&outcome, Stream::Stderr), "b\n");
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).evidence, Evidence::EndMarker);
    let exit = exit(&outcome);
    assert!(exit.started_at.unwrap() <= exit.finished_at.unwrap());
    assert_eq!(exit.error, None);
    let info = Root::open(place.root())
        .unwrap()
        .info(&outcome.run)
        .unwrap();
    assert_eq!(info.record.unwrap().runtime, "process");
}

#[tokio::test]
async fn each_stream_keeps_its_order() {
    let place = Place::new();
    let out = "i=0; while [ $i -lt 20000 ]; do echo out $i; i=$((i+1)); done";
    let err = "i=0; while [ $i -lt 20000 ]; do echo err $i >&2; i=$((i+1)); done";
    let raw = r"printf '\000\377\001 open'";
    let outcome = place
        .run(sh(&format!("({out}) & ({err}); wait; {raw}")))
        .await;
    let numbered = |name| -> String { (0..20_000).map(|n| format!("{name} {n}\n")).collect() };
    assert_eq!(text(&outcome, Stream::Stderr), numbered("err"));
    let mut expected = numbered("out").into_bytes();
    expected.extend_from_slice(b"\0\xff\x01 open");
    assert!(bytes(&outcome, Stream::Stdout) == expected);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

#[tokio::test]
async fn a_process_without_output_is_complete() {
    let place = Place::new();
    let outcome = place.run(RunSpec::command(["true"])).await;
    assert!(outcome.success());
    assert_eq!(seal(&outcome).records, 0);
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

/// The end of the output proves completeness, however early it comes.
#[tokio::test]
async fn output_closed_early_is_complete() {
    let place = Place::new();
    let outcome = place.run(sh("echo a; exec >&- 2>&-; sleep 1.5")).await;
    assert_eq!(text(&outcome, Stream::Stdout), "a\n");
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert_eq!(seal(&outcome).evidence, Evidence::EndMarker);
}

#[tokio::test]
async fn the_last_terminal_output_is_captured() {
    let place = Place::new();
    for _ in 0..20 {
        let outcome = place.run(RunSpec::command(["seq", "5000"]).tty(true)).await;
        let expected: String = (1..=5000).map(|n| format!("{n}\r\n")).collect();
        assert_eq!(text(&outcome, Stream::Tty), expected);
        assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    }
}

#[tokio::test]
async fn a_hundred_megabytes_are_whole() {
    let spec = sh("head -c 100000000 /dev/zero | tr '\\0' 'x' | fold -w 99");
    // In memory where possible: a disk that stalls for 2 s is rightly a gap.
    let memory = Path::new("/dev/shm");
    let place = match rustix::fs::statvfs(memory) {
        Ok(at) if at.f_bavail * at.f_frsize > 1 << 29 => Place {
            dir: tempfile::tempdir_in(memory).unwrap(),
        },
        _ => Place::new(),
    };
    let outcome = place.run(spec).await;
    assert!(outcome.success());
    let seal = seal(&outcome);
    // A newline after each 99 characters except the last.
    assert_eq!(seal.bytes.stdout, 100_000_000 + (100_000_000 - 1) / 99);
    assert_eq!(seal.verdict, Verdict::Complete);
}

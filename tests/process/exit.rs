//! The end of processes, and of the processes that they started.

use std::process::Command;
use std::time::{Duration, Instant};

use moat::Verdict;
use moat::audit::GapReason;
use moat::outcome::Stream;

use crate::place::{Place, dies, exit, gaps, line, lives, seal, sh, text};

#[tokio::test]
async fn a_signal_has_its_code_and_name() {
    for (name, code) in [("KILL", 137), ("SEGV", 139), ("HUP", 129)] {
        let place = Place::new();
        let outcome = place.run(sh(&format!("kill -s {name} $$"))).await;
        assert_eq!(outcome.code(), Some(code), "{name}");
        let error = exit(&outcome).error.as_deref();
        assert_eq!(error, Some(&*format!("ended by SIG{name}")));
    }
}

#[tokio::test]
async fn the_group_ends_with_its_first_process() {
    for tty in [false, true] {
        let place = Place::new();
        // The background process holds the output open.
        let script = format!(
            "trap '' HUP; sleep 600 & echo $! >{}; echo done; exit 4",
            place.file("left")
        );
        let begin = Instant::now();
        let outcome = place.run(sh(&script).tty(tty)).await;
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "it was waited for"
        );
        assert_eq!(outcome.code(), Some(4));
        assert_eq!(seal(&outcome).verdict, Verdict::Complete, "tty: {tty}");
        dies(&line(&place.file("left")).await).await;
    }
}

/// The jobs are in separate groups, in the session of the terminal.
#[tokio::test]
async fn shell_jobs_end_with_their_terminal() {
    let place = Place::new();
    let script = format!(
        "set -m; trap '' HUP; sleep 600 & echo $! >{}; exit 0",
        place.file("job")
    );
    let outcome = place.run(sh(&script).tty(true)).await;
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    dies(&line(&place.file("job")).await).await;
}

/// As documented.
#[tokio::test]
async fn setsid_escapes_the_kill() {
    let place = Place::new();
    let script = format!(
        "echo before; setsid sh -c 'echo $$ >{0}; while :; do echo late; sleep 0.1; done' & \
         while ! [ -s {0} ]; do sleep 0.01; done",
        place.file("escaped")
    );
    let outcome = place.run(sh(&script)).await;
    let escaped = line(&place.file("escaped")).await;
    assert_eq!(outcome.code(), Some(0));
    assert!(text(&outcome, Stream::Stdout).starts_with("before\n"));
    assert_eq!(gaps(&outcome), [(GapReason::NoBackstop, false)]);
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    // Its output was closed, so its next line ended it.
    dies(&escaped).await;

    let place = Place::new();
    let script = format!(
        "setsid sh -c 'echo $$ >{0}; exec sleep 600' >/dev/null 2>&1 & \
         while ! [ -s {0} ]; do sleep 0.01; done",
        place.file("escaped")
    );
    let outcome = place.run(sh(&script)).await;
    let escaped = line(&place.file("escaped")).await;
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    assert!(
        lives(&escaped),
        "it was killed, contrary to the documentation"
    );
    Command::new("kill")
        .args(["-9", &escaped])
        .status()
        .unwrap();
}

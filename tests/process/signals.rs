//! Signals that an embedder ignores or blocks.

use std::fs;
use std::process::Command;

use moat::Verdict;
use moat::outcome::StopCause;

use crate::embedder::{Embedder, ignoring};
use crate::place::{Place, line};

/// Signals that a background job or `nohup` ignores, and others. 40 is a real-time signal.
const IGNORED: &str = "HUP INT QUIT USR1 USR2 ALRM TERM CHLD TSTP WINCH 40";

/// Prints the ignored and blocked signals. A shell in between would unblock them.
const PRINT_SIGNALS: [&str; 4] = ["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"];

/// SIGTTIN and SIGTTOU, which the process runtime does not reset.
const TERMINAL_SIGNALS: u64 = 0x30_0000;

/// Returns the ignored signals in the output of `PRINT_SIGNALS`. None may be blocked.
fn ignored_signals(output: &str) -> u64 {
    let mask = |name: &str| {
        let mask = output.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0);
    // glibc ignores its two internal signals in a spawned process.
    mask("SigIgn:") & !0x1_8000_0000
}

#[tokio::test]
async fn ignored_signals_have_their_default_in_a_process() {
    for tty in [false, true] {
        let place = Place::new();
        let embedder = Embedder::ignoring(IGNORED, &place.root(), &PRINT_SIGNALS, tty);
        let (seal, output) = embedder.end(&place.root()).await;
        let ignored = ignored_signals(&output) & !TERMINAL_SIGNALS;
        assert_eq!(ignored, 0, "{ignored:x}");
        // With SIGCHLD ignored, the kernel would reap the process and discard its exit code.
        assert_eq!(seal.exit.code(), Some(0));
        assert_eq!(seal.verdict, Verdict::Complete);
    }
}

/// The documentation of the module gives the reason.
#[tokio::test]
async fn ignored_signals_of_terminals_stay_ignored() {
    for tty in [false, true] {
        let place = Place::new();
        let ignored = "TTIN TTOU PIPE";
        let embedder = Embedder::ignoring(ignored, &place.root(), &PRINT_SIGNALS, tty);
        let (_, output) = embedder.end(&place.root()).await;
        assert_eq!(ignored_signals(&output), TERMINAL_SIGNALS);
    }
}

#[tokio::test]
async fn blocked_signals_are_not_blocked_in_a_process() {
    for tty in [false, true] {
        let place = Place::new();
        let embedder = Embedder::blocking(&place.root(), &PRINT_SIGNALS, tty);
        let (seal, output) = embedder.end(&place.root()).await;
        assert_eq!(ignored_signals(&output) & !TERMINAL_SIGNALS, 0);
        assert_eq!(seal.exit.code(), Some(0));
    }
}

/// A background job ignores SIGINT and SIGQUIT, and `nohup` ignores SIGHUP.
#[tokio::test]
async fn a_stop_works_where_its_signal_is_ignored() {
    let mut command = ignoring("HUP INT QUIT TERM");
    command.args(["--exact", "stop::a_stop_signals_the_first_process"]);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[tokio::test]
async fn an_embedder_still_ignores_its_signals() {
    let place = Place::new();
    let script = format!(
        "echo started >{}; while ! [ -e {} ]; do sleep 0.02; done; exit 6",
        place.file("started"),
        place.file("go")
    );
    let embedder = Embedder::ignoring(IGNORED, &place.root(), &["sh", "-c", &script], false);
    line(&place.file("started")).await;
    let id = embedder.0.id().to_string();
    for signal in IGNORED.split(' ') {
        let sent = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(sent.unwrap().success(), "{signal}");
    }
    fs::write(place.file("go"), "").unwrap();
    let (seal, _) = embedder.end(&place.root()).await;
    assert_eq!(seal.exit.code(), Some(6));
}

/// Sends signals to an embedder that ignores `ignored`. They must stop it as `expected`.
async fn stop_embedder(ignored: &str, sent: &[&str], expected: &str) {
    let place = Place::new();
    let mut command = ignoring(ignored);
    command.env("MOAT_TEST_SIGNAL", expected);
    command.env("MOAT_TEST_LISTENING", place.file("listening"));
    let script = ["sh", "-c", "while :; do sleep 0.02; done"];
    let embedder = Embedder::spawn(command, &place.root(), &script, false);
    line(&place.file("listening")).await;
    let id = embedder.0.id().to_string();
    for signal in sent {
        let sent = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(sent.unwrap().success(), "{signal}");
    }
    let (seal, _) = embedder.end(&place.root()).await;
    assert_eq!(seal.stopped, Some(StopCause::Shutdown));
}

#[tokio::test]
async fn a_hangup_stops_the_runs() {
    stop_embedder("USR1", &["HUP"], "SIGHUP").await;
}

/// The start of a local process gives an ignored signal a handler.
#[tokio::test]
async fn an_ignored_hangup_stays_ignored() {
    stop_embedder("HUP", &["HUP", "TERM"], "SIGTERM").await;
}

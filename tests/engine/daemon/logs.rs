//! Damage to the log of the daemon.

use std::fs::{self, File};
use std::io::Write;

use moat::outcome::Stream;
use moat::{RunId, ShutdownMode};
use testkit::audit::Audit;
use testkit::sequence;

use super::check::{assert_gap, assert_lines_in_order, sealed};
use super::daemon::{Daemon, Kind};
use crate::stage::{Watched, assert_bytes, assert_complete, printed};

testkit::trials! {
    crate::daemon::on_daemon:
        a_deleted_log_is_a_possible_gap,
        a_log_deleted_without_owner_is_a_gap,
        a_truncated_log_is_a_possible_gap,
        a_log_truncated_without_owner_is_a_gap,
        a_torn_log_is_a_possible_gap,
        a_log_torn_without_owner_is_a_gap,
        a_full_daemon_disk_is_a_possible_gap,
        a_full_daemon_disk_without_owner_is_a_gap,
        an_engine_error_is_not_terminal_output,
}

const STEPS: &str = "lines 200 + await /gate/go + lines 200 --from 201 + exit 5";

/// The damage to the log file between the halves of the output.
type Damage = fn(&Daemon, &str);

/// With a tap, which the damage does not affect.
async fn watched(kind: Kind, damage: Damage) -> Audit {
    let daemon = Daemon::of(kind).await;
    let manager = daemon.manager().await;
    let run = manager.start(daemon.spec(STEPS)).await.unwrap();
    printed(&run, "out 00000200 ").await;
    damage(&daemon, &daemon.container().await);
    daemon.open_gate("go");
    let (outcome, audit) = sealed(&run).await;
    assert_eq!(outcome.code(), Some(5), "{}", audit.end);
    // The received output is complete, whatever the log contains.
    assert_bytes(audit.stream("stdout"), &sequence::lines("out", 400, 64));
    audit
}

/// Without a tap: only the log has the second half. `None`: the daemon lost records, and does not show
/// it, because the rest of the disk had room for whole records, or because it is Docker 28.
async fn unwatched(kind: Kind, damage: Damage) -> Option<Audit> {
    let daemon = Daemon::of(kind).await;
    let manager = daemon.manager().await;
    let id = RunId::new("one").unwrap();
    let run = manager
        .start(daemon.spec(STEPS).id(id.clone()))
        .await
        .unwrap();
    printed(&run, "out 00000200 ").await;
    drop(run);
    manager.shutdown(ShutdownMode::Leave).await;
    let container = daemon.container().await;
    damage(&daemon, &container);
    daemon.open_gate("go");
    daemon.container_ended(&container).await;
    if kind.disk.is_some() && !shows_torn_end(&daemon, &container).await {
        return None;
    }
    let manager = daemon.manager().await;
    let run = manager.get(&id).await.unwrap();
    let (outcome, audit) = sealed(&run).await;
    assert_eq!(outcome.code(), Some(5), "{}", audit.end);
    assert_lines_in_order(&audit, 400);
    assert_eq!(audit.verdict(), "gap", "{}", audit.end);
    Some(audit)
}

/// True if the log ends within a record, and the daemon reports that. Docker 28 does not.
async fn shows_torn_end(daemon: &Daemon, container: &str) -> bool {
    let version = daemon.docker.version().await.unwrap().version.unwrap();
    let is_whole = fs::read(daemon.log_of(container)).unwrap().ends_with(b"\n");
    version.starts_with("20.") && !is_whole
}

fn delete(daemon: &Daemon, container: &str) {
    fs::remove_file(daemon.log_of(container)).unwrap();
}

fn truncate(daemon: &Daemon, container: &str) {
    let log = File::options().write(true).open(daemon.log_of(container));
    log.unwrap().set_len(0).unwrap();
}

/// In the middle of a record, as a full disk leaves it.
fn tear(daemon: &Daemon, container: &str) {
    let log = File::options().write(true).open(daemon.log_of(container));
    let log = log.unwrap();
    let length = log.metadata().unwrap().len();
    log.set_len(length - 30).unwrap();
}

/// Fills the disk to the last byte.
fn fill(daemon: &Daemon, _: &str) {
    let mut file = File::create(daemon.data().join("full")).unwrap();
    let full = (0..64 << 8).any(|_| file.write_all(&[b'x'; 4096]).is_err());
    assert!(full, "this is not the small disk");
}

const SMALL: Kind = Kind {
    live_restore: false,
    disk: Some("32m"),
};

async fn a_deleted_log_is_a_possible_gap() {
    assert_possible_gap(&watched(Kind::default(), delete).await, "log_shorter");
}

async fn a_log_deleted_without_owner_is_a_gap() {
    unwatched(Kind::default(), delete).await.unwrap();
}

/// A damaged log proves nothing. An end marker needs no log.
fn assert_possible_gap(audit: &Audit, reason: &str) {
    match audit.evidence() {
        "end_marker" => assert_complete(audit),
        _ => assert_gap(audit, reason, true),
    }
}

async fn a_truncated_log_is_a_possible_gap() {
    assert_possible_gap(&watched(Kind::default(), truncate).await, "log_shorter");
}

async fn a_log_truncated_without_owner_is_a_gap() {
    unwatched(Kind::default(), truncate).await.unwrap();
}

async fn a_torn_log_is_a_possible_gap() {
    assert_possible_gap(&watched(Kind::default(), tear).await, "log_shorter");
}

async fn a_log_torn_without_owner_is_a_gap() {
    unwatched(Kind::default(), tear).await.unwrap();
}

async fn a_full_daemon_disk_is_a_possible_gap() {
    let audit = watched(SMALL, fill).await;
    if audit.evidence() == "end_marker" {
        return assert_complete(&audit);
    }
    // Torn, or short if the disk ended with a whole record.
    let gaps = audit.all("gap");
    let reason = gaps[0]["reason"].as_str().unwrap();
    assert!(
        ["log_unreadable", "log_shorter"].contains(&reason),
        "{gaps:?}"
    );
    assert_gap(&audit, reason, true);
}

async fn a_full_daemon_disk_without_owner_is_a_gap() {
    // Docker 28 never shows it, and 20.10 nearly always.
    for _ in 0..3 {
        if let Some(audit) = unwatched(SMALL, fill).await {
            assert_gap(&audit, "log_unreadable", false);
            return;
        }
    }
}

/// On a terminal, the daemon's error arrives like output of the container.
async fn an_engine_error_is_not_terminal_output() {
    let daemon = Daemon::of(SMALL).await;
    let manager = daemon.manager().await;
    let id = RunId::new("one").unwrap();
    let spec = daemon.spec(STEPS).id(id.clone()).tty(true);
    let run = manager.start(spec).await.unwrap();
    let mut output = run.attach().await.unwrap();
    let mut watched = Watched::default();
    let tty = |watched: &Watched| {
        let bytes = watched.bytes.get(&Stream::Tty).cloned();
        String::from_utf8(bytes.unwrap_or_default()).unwrap()
    };
    while !tty(&watched).contains("out 00000200 ") {
        assert!(watched.next(&mut output).await);
    }
    drop((output, run));
    manager.shutdown(ShutdownMode::Leave).await;
    let container = daemon.container().await;
    fill(&daemon, &container);
    daemon.open_gate("go");
    daemon.container_ended(&container).await;
    let torn = shows_torn_end(&daemon, &container).await;
    let manager = daemon.manager().await;
    let (_, audit) = sealed(&manager.get(&id).await.unwrap()).await;
    if torn {
        assert_gap(&audit, "log_unreadable", false);
    }
    let all = String::from_utf8(sequence::lines("out", 400, 64)).unwrap();
    let all = all.replace('\n', "\r\n").into_bytes();
    assert!(all.starts_with(audit.stream("tty")));
}

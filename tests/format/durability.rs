//! Appended records stay, when their process dies and when the disk is full.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use moat::audit::{LogState, verify};
use moat::outcome::Stream;
use moat::sink::{Durability, Jsonl, Resumed, RunPlace};
use moat::{Error, LogSink, RunId};
use serde_json::json;

use crate::golden::{Place, batch, open, out, poll_and_drop, seal, start};

/// The directory of the run, for the part of a test that is a child process.
const DIRECTORY: &str = "MOAT_TEST_DIRECTORY";

fn place_of_child() -> Option<RunPlace> {
    let dir = PathBuf::from(std::env::var_os(DIRECTORY)?);
    Some(RunPlace::new(RunId::new("run").unwrap(), dir))
}

/// This test binary as a child that runs one test, after the commands in `shell`.
fn child(test: &str, dir: &Path, shell: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{shell} exec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .stdout(Stdio::piped());
    command
}

#[tokio::test]
async fn appended_records_survive_sigkill() {
    if let Some(place) = place_of_child() {
        let mut log = Jsonl::new()
            .open(&place, &start("run", json!({})))
            .await
            .unwrap();
        for n in 0u64.. {
            let line = out(Stream::Stdout, format!("line {n}").as_bytes());
            log.append(batch([&line])).await.unwrap();
            println!("appended {}", n + 1);
        }
    }
    let place = Place::new();
    let test = "durability::appended_records_survive_sigkill";
    let mut child = child(test, &place.place.dir, "").spawn().unwrap();
    let mut appended = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some((_, count)) = line.unwrap().split_once("appended ") {
            appended = count.parse().unwrap();
        }
        if appended == 500 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(appended >= 500);
    let found = verify(place.log()).unwrap();
    assert!(found.records >= appended, "{found:?}");
    assert!(matches!(found.state, LogState::Unsealed { .. }));
    let resumed = Jsonl::new().resume(&place.place, Box::new(|_| {})).await;
    assert!(matches!(resumed, Ok(Resumed::Open { .. })), "{resumed:?}");
}

/// A limit on the file size stands for a full disk: the kernel writes a part and then refuses.
#[tokio::test]
async fn a_failed_write_latches_the_log() {
    let line = out(Stream::Stdout, "0123456789".repeat(100).as_bytes());
    if let Some(place) = place_of_child() {
        let mut log = Jsonl::new()
            .open(&place, &start("run", json!({})))
            .await
            .unwrap();
        let mut appended = 0u64;
        let error = loop {
            match log.append(batch([&line])).await {
                Ok(()) => appended += 1,
                Err(error) => break error,
            }
        };
        let text = error.chain();
        assert!(text.starts_with("cannot write "), "{text}");
        assert!(text.contains("logs.jsonl: File too large"), "{text}");
        let length = place.dir.join("logs.jsonl").metadata().unwrap().len();
        for error in [
            log.append(batch([&line])).await.unwrap_err(),
            log.sync().await.unwrap_err(),
            log.seal(seal(&[], json!({}))).await.unwrap_err(),
        ] {
            let text = error.chain();
            assert!(matches!(error, Error::Storage { .. }), "{text}");
            assert!(
                text.contains("an earlier call failed: File too large"),
                "{text}"
            );
        }
        let after = place.dir.join("logs.jsonl").metadata().unwrap().len();
        assert_eq!(length, after);
        println!("appended {appended}");
        return;
    }
    let place = Place::new();
    let test = "durability::a_failed_write_latches_the_log";
    let limit = "trap '' XFSZ; ulimit -f 100;";
    let shown = child(test, &place.place.dir, limit).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let appended: usize = shown
        .lines()
        .find_map(|line| line.split_once("appended "))
        .unwrap_or_else(|| panic!("{shown}"))
        .1
        .parse()
        .unwrap();
    assert!(appended > 10);
    let found = verify(place.log()).unwrap();
    assert_eq!(found.records, appended as u64);
    assert!(matches!(found.state, LogState::Unsealed { torn: 1.. }));

    let resumed = Jsonl::new().resume(&place.place, Box::new(|_| {})).await;
    let Ok(Resumed::Open { mut log, torn }) = resumed else {
        panic!("{resumed:?}");
    };
    assert!(torn.is_some());
    log.append(batch([&line])).await.unwrap();
    let lines = vec![line; appended + 1];
    log.seal(seal(&lines, json!({}))).await.unwrap();
    let state = verify(place.log()).unwrap().state;
    assert!(matches!(state, LogState::Sealed(_)), "{state:?}");
}

#[test]
#[ignore = "mounts a file system: needs root"]
fn a_full_disk_never_loses_a_torn_tail() {
    let root = tempfile::tempdir().unwrap();
    let sh = |script: &str| {
        let done = Command::new("sh")
            .args(["-ec", script, "sh"])
            .arg(root.path())
            .status();
        assert!(done.unwrap().success(), "{script}");
    };
    sh("mount -t tmpfs -o size=64k moat-test \"$1\" && mkdir \"$1/run\"");
    let result = std::panic::catch_unwind(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(on_full_disk(root.path()));
    });
    sh("umount \"$1\"");
    result.unwrap();
}

async fn on_full_disk(root: &Path) {
    let place = RunPlace::new(RunId::new("run").unwrap(), root.join("run"));
    let file = place.dir.join("logs.jsonl");
    let sink = Jsonl::new();
    let mut log = sink.open(&place, &start("run", json!({}))).await.unwrap();
    let line = out(Stream::Stdout, "0123456789".repeat(100).as_bytes());
    let error = loop {
        if let Err(error) = log.append(batch([&line])).await {
            break error;
        }
    };
    assert!(error.chain().contains("No space left"), "{}", error.chain());
    drop(log);

    let before = std::fs::read(&file).unwrap();
    let resumed = sink.resume(&place, Box::new(|_| {})).await;
    let error = resumed.unwrap_err();
    assert!(error.chain().contains("No space left"), "{}", error.chain());
    assert!(std::fs::read(&file).unwrap() == before);
    assert!(!place.dir.join("torn-1").exists());

    // Room for the torn tail, but hardly more.
    let cut = before.len() - 8192;
    std::fs::write(&file, &before[..cut]).unwrap();
    let resumed = sink.resume(&place, Box::new(|_| {})).await;
    assert!(matches!(resumed, Ok(Resumed::Open { .. })), "{resumed:?}");
}

#[tokio::test]
async fn a_dropped_append_latches_the_log() {
    let place = Place::new();
    let sink = Jsonl::new();
    let mut log = open(&sink, &place, &start("run", json!({}))).await;
    let line = out(Stream::Stdout, b"line");
    // The disk may be faster than the poll.
    let mut records = 1;
    while let Some(appended) = poll_and_drop(log.append(batch([&line]))) {
        appended.unwrap();
        records += 1;
    }
    for error in [
        log.append(batch([&line])).await.unwrap_err(),
        log.sync().await.unwrap_err(),
        log.seal(seal(&[], json!({}))).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Storage { .. }), "{error}");
        assert!(
            error.chain().contains("did not finish"),
            "{}",
            error.chain()
        );
    }
    drop(log);
    // The disk job continues, and holds the lock until it ends.
    let resumed = loop {
        match sink.resume(&place.place, Box::new(|_| {})).await {
            Err(Error::Owned { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            resumed => break resumed.unwrap(),
        }
    };
    assert!(matches!(resumed, Resumed::Open { torn: None, .. }));
    assert_eq!(verify(place.log()).unwrap().records, records);
}

#[tokio::test]
async fn a_dropped_log_can_be_resumed_at_once() {
    for durability in [
        Durability::default(),
        Durability::Always,
        Durability::Interval(Duration::ZERO),
        Durability::Interval(Duration::MAX),
    ] {
        let place = Place::new();
        let sink = Jsonl::with_durability(durability);
        let mut log = open(&sink, &place, &start("run", json!({}))).await;
        for n in 0..100u64 {
            let line = out(Stream::Stderr, format!("{n}").as_bytes());
            log.append(batch([&line])).await.unwrap();
            drop(log);
            let resumed = sink.resume(&place.place, Box::new(|_| {})).await;
            let Ok(Resumed::Open { log: next, .. }) = resumed else {
                panic!("{durability:?}: {resumed:?}");
            };
            log = next;
        }
        log.sync().await.unwrap();
        assert_eq!(verify(place.log()).unwrap().records, 100);
    }
}

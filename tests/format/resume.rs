//! Resuming a file whose writer is gone.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::{Arc, Mutex};

use moat::audit::{Event, LogState, Output, Reader, Record, RecordRef, TruncatedTail, verify};
use moat::outcome::Stream;
use moat::sink::{Jsonl, Resumed, RunLog};
use moat::{Error, LogSink, Seal};
use serde_json::json;

use crate::golden::{Golden, Place, all, at, batch, event, open, out, seal, start};

async fn resume(sink: &Jsonl, place: &Place) -> (Result<Resumed, Error>, Vec<Record>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let records = seen.clone();
    let visit = Box::new(move |record: RecordRef<'_>| {
        records.lock().unwrap().push(match record {
            RecordRef::Output {
                ts,
                stream,
                bytes,
                partial,
                lossy,
                ..
            } => {
                let mut output = Output::new(ts, stream, bytes);
                output.partial = partial;
                output.lossy = lossy;
                Record::Output(output)
            }
            RecordRef::Event(event) => Record::Event(event.clone()),
            other => panic!("{other:?}"),
        });
    });
    let resumed = sink.resume(&place.place, visit).await;
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (resumed, seen)
}

pub async fn reopened(place: &Place) -> (Box<dyn RunLog>, Option<TruncatedTail>, Vec<Record>) {
    match resume(&Jsonl::new(), place).await {
        (Ok(Resumed::Open { log, torn }), seen) => (log, torn, seen),
        (other, _) => panic!("{other:?}"),
    }
}

pub fn golden(name: &str) -> Golden {
    all()
        .into_iter()
        .find(|golden| golden.name == name)
        .unwrap()
}

fn sealed(place: &Place) -> Box<Seal> {
    match verify(place.log()).unwrap().state {
        LogState::Sealed(seal) => seal,
        other => panic!("{other:?}"),
    }
}

fn damage(place: &Place) -> moat::audit::Damage {
    match verify(place.log()).unwrap().state {
        LogState::Damaged(damage) => damage,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_torn_tail_is_quarantined() {
    let golden = golden("unsealed-torn");
    let place = Place::holding(&golden.bytes());
    std::fs::write(place.file("torn-1"), "of an earlier crash").unwrap();

    let (log, torn, seen) = reopened(&place).await;
    let torn = torn.unwrap();
    assert_eq!(torn.file, "torn-2");
    assert_eq!(torn.bytes, golden.tail.len() as u64);
    let aside = place.file("torn-2");
    assert_eq!(std::fs::read_to_string(&aside).unwrap(), golden.tail);
    assert_eq!(
        aside.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(seen[0], Record::Event(Event::Start(Box::new(golden.start))));
    assert_eq!(seen[1..], golden.records);
    drop(log);

    let (_log, torn, again) = reopened(&place).await;
    assert_eq!((torn, again), (None, seen));
}

#[tokio::test]
async fn a_log_has_one_owner() {
    let place = Place::new();
    let sink = Jsonl::new();
    let start = start("run", json!({}));
    let log = open(&sink, &place, &start).await;
    let mode = place.log().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for other in [&sink, &Jsonl::new()] {
        let (resumed, seen) = resume(other, &place).await;
        assert!(matches!(resumed, Err(Error::Owned { .. })), "{resumed:?}");
        assert!(seen.is_empty());
        let error = other.open(&place.place, &start).await.unwrap_err();
        assert!(matches!(error, Error::RunExists { .. }), "{error}");
        assert!(error.to_string().contains("logs.jsonl"), "{error}");
    }
    drop(log);
    for _ in 0..3 {
        drop(reopened(&place).await);
    }
}

#[tokio::test]
async fn a_sealed_log_is_read_only() {
    let place = Place::new();
    let golden = golden("complete");
    let mut log = open(&Jsonl::new(), &place, &golden.start).await;
    log.append(batch(&golden.records)).await.unwrap();
    let made = log.seal(golden.seal.clone().unwrap()).await.unwrap();
    let error = log.append(batch(&golden.records)).await.unwrap_err();
    assert!(
        error.chain().contains("the log is sealed"),
        "{}",
        error.chain()
    );
    let error = log.seal(made.clone()).await.unwrap_err();
    assert!(
        error.chain().contains("the log is sealed"),
        "{}",
        error.chain()
    );
    drop(log);

    let (resumed, seen) = resume(&Jsonl::new(), &place).await;
    let Ok(Resumed::Sealed(seal)) = resumed else {
        panic!("{resumed:?}");
    };
    assert_eq!((&seal, &seal), (&made, &*sealed(&place)));
    assert_eq!(
        seen.last(),
        Some(&Record::Event(Event::End(Box::new(seal))))
    );
    assert_eq!(std::fs::read(place.log()).unwrap(), golden.bytes());
}

#[tokio::test]
async fn a_seal_with_wrong_counts_is_refused() {
    let place = Place::new();
    let golden = golden("complete");
    let mut log = open(&Jsonl::new(), &place, &golden.start).await;
    let error = log.seal(golden.seal.unwrap()).await.unwrap_err();
    assert!(error.chain().contains("counts"), "{}", error.chain());
    let state = verify(place.log()).unwrap().state;
    assert_eq!(state, LogState::Unsealed { torn: 0 });
}

#[tokio::test]
async fn a_log_without_a_first_record_is_made_again() {
    let start = start("run", json!({}));
    for stub in ["", "{\"type\":\"sta", "garbage\n", "garbage\nand more"] {
        let place = Place::holding(stub.as_bytes());
        let (resumed, seen) = resume(&Jsonl::new(), &place).await;
        assert!(matches!(resumed, Ok(Resumed::Absent)), "{resumed:?}");
        assert!(seen.is_empty() && !place.log().exists());
        if !stub.is_empty() {
            assert_eq!(std::fs::read_to_string(place.file("torn-1")).unwrap(), stub);
        }
        let (resumed, _) = resume(&Jsonl::new(), &place).await;
        assert!(matches!(resumed, Ok(Resumed::Absent)));
        open(&Jsonl::new(), &place, &start).await;
    }
}

#[tokio::test]
async fn a_bad_line_and_the_rest_are_quarantined() {
    let golden = golden("unsealed-torn");
    let text = String::from_utf8(golden.bytes()).unwrap();
    let bad = text.replacen("\"line\":\"whole\"", "\"line\":\"who\0e\"", 1);
    let place = Place::holding(bad.as_bytes());
    let at = bad.find("{\"ts\"").unwrap();
    let found = damage(&place);
    assert_eq!((found.line, found.offset), (3, at as u64), "{found}");

    let (mut log, torn, seen) = reopened(&place).await;
    assert_eq!(torn.unwrap().bytes, (bad.len() - at) as u64);
    assert_eq!(
        std::fs::read(place.file("torn-1")).unwrap(),
        &bad.as_bytes()[at..]
    );
    assert_eq!(seen[1..], golden.records[..1]);
    let rest = &golden.records[1..];
    log.append(batch(rest)).await.unwrap();
    log.seal(seal(&golden.records, json!({}))).await.unwrap();
    sealed(&place);
}

/// Enough lines for several `check` records.
fn many() -> Vec<Record> {
    let line = "0123456789".repeat(100);
    (0..11_000)
        .map(|n| out(Stream::Stdout, format!("{n} {line}").as_bytes()))
        .collect()
}

#[tokio::test]
async fn a_resumed_log_equals_an_uninterrupted_one() {
    let records = many();
    let start = start("run", json!({}));
    let whole = Place::new();
    let mut log = open(&Jsonl::new(), &whole, &start).await;
    log.append(batch(&records)).await.unwrap();
    let made = log.seal(seal(&records, json!({}))).await.unwrap();
    let found = verify(whole.log()).unwrap();
    assert_eq!((found.checks, found.records), (2, 11_000));
    assert!(found.checked > 8 << 20, "{found:?}");

    let place = Place::new();
    drop(open(&Jsonl::new(), &place, &start).await);
    for part in records.chunks(999) {
        let (mut log, torn, _) = reopened(&place).await;
        assert_eq!(torn, None);
        log.append(batch(part)).await.unwrap();
    }
    let (mut log, _, _) = reopened(&place).await;
    let again = log.seal(seal(&records, json!({}))).await.unwrap();
    assert_eq!(again, made);
    assert!(std::fs::read(place.log()).unwrap() == std::fs::read(whole.log()).unwrap());
}

/// Only the next `check` finds a changed byte that leaves each line valid.
#[tokio::test]
async fn records_after_a_failed_check_are_quarantined() {
    let records = many();
    let place = Place::new();
    let mut log = open(&Jsonl::new(), &place, &start("run", json!({}))).await;
    log.append(batch(&records)).await.unwrap();
    drop(log);
    let good = std::fs::read(place.log()).unwrap();
    let checked: Vec<usize> = memchr::memmem::find_iter(&good, "{\"type\":\"check\"")
        .map(|at| at + 93)
        .collect();
    assert_eq!(checked.len(), 2);
    let flip = |place: &Place, at: usize| {
        let mut bytes = good.clone();
        bytes[at] = if bytes[at] == b'4' { b'5' } else { b'4' };
        std::fs::write(place.log(), &bytes).unwrap();
        bytes
    };
    let digit = |from: usize| from + memchr::memmem::find(&good[from..], b"0123456789").unwrap();

    // After the last check, only the shape of the lines is known.
    flip(&place, digit(checked[1]));
    assert_eq!(
        verify(place.log()).unwrap().state,
        LogState::Unsealed { torn: 0 }
    );

    let bad = flip(&place, digit(checked[0]));
    let found = damage(&place);
    assert_eq!(found.offset, checked[0] as u64);
    assert!(found.reason.contains("digest"), "{found}");
    let (mut log, torn, seen) = reopened(&place).await;
    assert_eq!(torn.unwrap().bytes, (bad.len() - checked[0]) as u64);
    assert!(std::fs::read(place.file("torn-1")).unwrap() == bad[checked[0]..]);
    let kept = seen.len() - 2;
    assert!(seen[1..=kept] == records[..kept]);
    log.append(batch(&records[kept..])).await.unwrap();
    log.seal(seal(&records, json!({}))).await.unwrap();
    drop(log);
    sealed(&place);

    // Without a valid check, even the first record cannot be trusted.
    let bad = flip(&place, digit(0));
    let (resumed, seen) = resume(&Jsonl::new(), &place).await;
    assert!(matches!(resumed, Ok(Resumed::Absent)), "{resumed:?}");
    assert!(seen.is_empty());
    assert!(std::fs::read(place.file("torn-2")).unwrap() == bad);
}

/// A sink knows what it wrote, and detects whole records that were written externally.
#[tokio::test]
async fn a_sink_quarantines_external_changes() {
    let records = many();
    let place = Place::new();
    let sink = Jsonl::new();
    let mut log = open(&sink, &place, &start("run", json!({}))).await;
    log.append(batch(&records)).await.unwrap();
    drop(log);
    let good = std::fs::read(place.log()).unwrap();
    let check = memchr::memmem::rfind(&good, b"{\"type\":\"check\"").unwrap() + 93;
    let newline = check + memchr::memchr(b'\n', &good[check..]).unwrap() + 1;
    let digit = check + memchr::memmem::find(&good[check..], b"0123456789").unwrap();
    let mut flipped = good.clone();
    flipped[digit] = b'7';
    let without = [&good[..check], &good[newline..]].concat();
    let shorter = good[..newline].to_vec();
    for (number, bad) in [flipped, without, shorter].into_iter().enumerate() {
        std::fs::write(place.log(), &bad).unwrap();
        let (resumed, seen) = resume(&sink, &place).await;
        let Ok(Resumed::Open { mut log, torn }) = resumed else {
            panic!("{resumed:?}");
        };
        assert_eq!(torn.unwrap().bytes, (bad.len() - check) as u64);
        let aside = place.file(&format!("torn-{}", number + 1));
        assert!(std::fs::read(aside).unwrap() == bad[check..]);
        let kept = seen.len() - 3;
        log.append(batch(&records[kept..])).await.unwrap();
        drop(log);
        assert!(std::fs::read(place.log()).unwrap() == good);
    }
    // The prefix of a record, as a failed write leaves it, is not an external change.
    std::fs::write(place.log(), [&good[..], b"{\"ts\""].concat()).unwrap();
    let (resumed, seen) = resume(&sink, &place).await;
    assert_eq!(seen.len(), records.len() + 3);
    let Ok(Resumed::Open { mut log, torn }) = resumed else {
        panic!("{resumed:?}");
    };
    assert_eq!(torn.unwrap().bytes, 5);

    // An edit while the log is open is never sealed.
    let file = std::fs::File::options()
        .write(true)
        .open(place.log())
        .unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"7", digit as u64).unwrap();
    let error = log.seal(seal(&records, json!({}))).await.unwrap_err();
    assert!(
        error.chain().contains("the file was changed externally"),
        "{}",
        error.chain()
    );
    drop(log);

    // A sealed log is never changed, even if it belongs to another run.
    let other = Place::new();
    let mut log = open(&Jsonl::new(), &other, &start("run", json!({}))).await;
    log.seal(seal(&[], json!({}))).await.unwrap();
    std::fs::copy(other.log(), place.log()).unwrap();
    let (resumed, _) = resume(&sink, &place).await;
    assert!(matches!(resumed, Err(Error::Damaged { .. })), "{resumed:?}");
    let (resumed, _) = resume(&Jsonl::new(), &place).await;
    assert!(matches!(resumed, Ok(Resumed::Sealed(_))), "{resumed:?}");
}

#[tokio::test]
async fn an_irregular_file_is_refused_at_once() {
    let sink = Jsonl::new();
    let start = start("run", json!({}));
    for kind in ["fifo", "directory", "link", "dangling"] {
        let place = Place::new();
        let (log, other) = (place.log(), place.file("other"));
        match kind {
            "fifo" => {
                let made = std::process::Command::new("mkfifo").arg(&log).status();
                assert!(made.unwrap().success());
            }
            "directory" => std::fs::create_dir(&log).unwrap(),
            "link" => {
                std::fs::write(&other, golden("unsealed-torn").bytes()).unwrap();
                symlink(&other, &log).unwrap();
            }
            _ => symlink(&other, &log).unwrap(),
        }
        let (resumed, _) = resume(&sink, &place).await;
        for error in [
            resumed.unwrap_err(),
            verify(&log).unwrap_err(),
            Reader::open(&log).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Storage { .. }), "{error}");
            let text = error.chain();
            assert!(text.contains("not a regular file"), "{kind}: {text}");
            assert!(text.contains("logs.jsonl"), "{text}");
        }
        let error = sink.open(&place.place, &start).await.unwrap_err();
        assert!(matches!(error, Error::RunExists { .. }), "{error}");
        assert_eq!(other.exists(), kind == "link");
    }
}

#[tokio::test]
async fn a_missing_log_or_directory_is_absent() {
    let place = Place::new();
    let (resumed, _) = resume(&Jsonl::new(), &place).await;
    assert!(matches!(resumed, Ok(Resumed::Absent)));
    std::fs::remove_dir(&place.place.dir).unwrap();
    let (resumed, _) = resume(&Jsonl::new(), &place).await;
    assert!(matches!(resumed, Ok(Resumed::Absent)));
}

#[tokio::test]
async fn start_and_end_records_are_not_accepted() {
    let golden = golden("complete");
    let end = Event::End(Box::new(golden.seal.unwrap()));
    for record in [
        Record::Event(end),
        event(json!({"type": "check", "sha256": "00"})),
        Record::Event(Event::Start(Box::new(golden.start.clone()))),
    ] {
        let place = Place::new();
        let mut log = open(&Jsonl::new(), &place, &golden.start).await;
        log.append(batch([&record])).await.unwrap_err();
        assert_eq!(verify(place.log()).unwrap().lines, 1);
        let note = event(json!({"type": "note", "ts": at(1), "text": "after an error"}));
        let error = log.append(batch([&note])).await.unwrap_err();
        assert!(
            error.chain().contains("an earlier call failed"),
            "{}",
            error.chain()
        );
    }
}

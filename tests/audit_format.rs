//! The audit file is what `docs/audit-format.md` says, byte by byte.

// What helps a test is as free as the test.
#![allow(clippy::unwrap_used)]

mod audit;

use std::process::Command;

use audit::golden::{Golden, Place, all, at, batch, open, out, path, seal, start};
use moat::audit::{Event, LogState, Reader, Record, verify};
use moat::outcome::Stream;
use moat::sink::{Jsonl, Resumed};
use moat::{LogSink, Verdict};
use serde_json::json;
use sha2::{Digest, Sha256};

async fn written(golden: &Golden) -> Vec<u8> {
    let place = Place::new();
    let mut log = open(&Jsonl::new(), &place, &golden.start).await;
    log.append(batch(&golden.records)).await.unwrap();
    if let Some(seal) = &golden.seal {
        let sealed = log.seal(seal.clone()).await.unwrap();
        assert_eq!(sealed.sha256.len(), 64);
    }
    let mut bytes = std::fs::read(place.log()).unwrap();
    bytes.extend_from_slice(golden.tail.as_bytes());
    bytes
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seals text as a writer of any version does.
fn sealed_text(head: &str) -> String {
    let digest = hex(&Sha256::digest(head));
    format!("{head},\"sha256\":\"{digest}\"}}\n")
}

#[tokio::test]
async fn the_same_records_are_the_same_bytes_for_ever() {
    for golden in all() {
        let bytes = written(&golden).await;
        if std::env::var_os("MOAT_BLESS").is_some() {
            std::fs::write(golden.path(), &bytes).unwrap();
        }
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            String::from_utf8(golden.bytes()).unwrap(),
            "{}",
            golden.name
        );
    }
}

#[test]
fn a_golden_file_is_verified_as_what_it_is() {
    for golden in all() {
        let found = verify(golden.path()).unwrap();
        match (&golden.seal, &found.state) {
            (Some(made), LogState::Sealed(seal)) => {
                assert_eq!((found.records, found.bytes), (made.records, made.bytes));
                assert_eq!(found.gaps, made.gaps);
                let mut made = made.clone();
                made.sha256.clone_from(&seal.sha256);
                assert_eq!(**seal, made);
            }
            (None, LogState::Unsealed { torn }) => {
                assert_eq!(*torn, golden.tail.len() as u64);
            }
            (_, state) => panic!("{}: {state:?}", golden.name),
        }
        let lines = golden.bytes().iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(found.lines, lines as u64);
    }
}

#[test]
fn a_reader_gives_what_was_written() {
    for golden in all() {
        let mut reader = Reader::open(golden.path()).unwrap();
        let mut records: Vec<Record> = reader.by_ref().map(|record| record.unwrap()).collect();
        if golden.seal.is_some() {
            assert!(matches!(reader.state(), LogState::Sealed(_)));
            assert!(matches!(records.pop(), Some(Record::Event(Event::End(_)))));
        }
        let start = records.remove(0);
        assert_eq!(start, Record::Event(Event::Start(Box::new(golden.start))));
        assert_eq!(records, golden.records, "{}", golden.name);
        let whole = std::fs::metadata(path(golden.name)).unwrap().len() - golden.tail.len() as u64;
        assert_eq!(reader.offset(), whole);
    }
}

#[test]
fn the_seal_can_be_checked_with_coreutils() {
    for golden in all() {
        let Some(_) = golden.seal else { continue };
        let path = golden.path();
        let shown = Command::new("sh")
            .args(["-c", "head -c -78 \"$1\" | sha256sum", "sh"])
            .arg(&path)
            .output()
            .unwrap();
        let LogState::Sealed(seal) = verify(&path).unwrap().state else {
            panic!("{}", golden.name);
        };
        assert_eq!(
            String::from_utf8(shown.stdout).unwrap(),
            format!("{}  -\n", seal.sha256)
        );
    }
}

/// What a later writer of version 1 may add is skipped, and covered by the digest.
#[test]
fn a_record_or_field_that_this_version_does_not_know_is_skipped() {
    let path = path("later-writer");
    let start = serde_json::to_string(&Event::Start(Box::new(start("later", json!({}))))).unwrap();
    let start = start.strip_suffix('}').unwrap();
    let end = Event::End(Box::new(seal(
        &[out(Stream::Stdout, b"known")],
        json!({"gaps": 1}),
    )));
    let end = serde_json::to_string(&end).unwrap();
    let end = end.split_once(",\"sha256\"").unwrap().0;
    let ts = at(30);
    let text = sealed_text(&format!(
        "{start},\"host\":{{\"name\":\"ci-7\"}}}}\n\
         {{\"type\":\"usage\",\"ts\":\"{ts}\",\"cpu_seconds\":1.5,\"line\":7}}\n\
         {{\"ts\":\"{ts}\",\"stream\":\"stdout\",\"line\":\"known\",\"seq\":[1,2]}}\n\
         {{\"ts\":\"{ts}\",\"type\":\"usage\",\"stream\":\"stdout\",\"line\":\"not output\"}}\n\
         {{\"type\":\"gap\",\"ts\":\"{ts}\",\"reason\":\"solar_flare\",\"possible\":true}}\n\
         {end},\"weather\":\"sunny\""
    ));
    if std::env::var_os("MOAT_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

    let found = verify(&path).unwrap();
    assert!(matches!(found.state, LogState::Sealed(_)), "{found:?}");
    assert_eq!((found.records, found.bytes.stdout, found.gaps), (1, 6, 1));
    let records: Vec<_> = Reader::open(&path).unwrap().map(|r| r.unwrap()).collect();
    let unknown = |kind: &str| Record::Unknown(kind.to_owned());
    assert_eq!(records[1], unknown("usage"));
    assert!(matches!(&records[2], Record::Output(output) if output.bytes == b"known"));
    assert_eq!(records[3..5], [unknown("usage"), unknown("gap")]);
    assert!(matches!(&records[5], Record::Event(Event::End(_))));
}

#[tokio::test]
async fn another_version_is_named_refused_and_not_touched() {
    let text = String::from_utf8(all()[0].bytes()).unwrap();
    let text = text.replacen("\"v\":1", "\"v\":2", 1);
    let place = Place::holding(text.as_bytes());
    let LogState::Damaged(damage) = verify(place.log()).unwrap().state else {
        panic!();
    };
    assert_eq!((damage.line, damage.offset), (1, 0));
    assert!(damage.reason.contains("version 2"), "{damage}");
    for length in [text.len(), text.find('\n').unwrap() + 1] {
        let text = &text.as_bytes()[..length];
        std::fs::write(place.log(), text).unwrap();
        let result = Jsonl::new().resume(&place.place, Box::new(|_| {})).await;
        assert!(matches!(result, Err(moat::Error::Damaged { .. })));
        assert_eq!(std::fs::read(place.log()).unwrap(), text);
    }
}

/// Every byte of a sealed file, in several ways: also the exit code, the digest, the newlines.
#[tokio::test]
async fn a_changed_byte_anywhere_in_a_sealed_file_is_found_and_nothing_is_changed() {
    let sink = Jsonl::new();
    for golden in all().into_iter().chain([later()]) {
        if golden.seal.is_none() {
            continue;
        }
        let whole = golden.bytes();
        let place = Place::holding(&whole);
        // The first lines are much the same: those of one file will do.
        let first = match golden.name {
            "complete" => 0,
            _ => whole.iter().position(|byte| *byte == b'\n').unwrap(),
        };
        for at in first..whole.len() {
            for change in [|byte| byte ^ 1, |byte| byte ^ 0x20, |_| b'\n', |_| b'"'] {
                let mut bytes = whole.clone();
                bytes[at] = change(bytes[at]);
                if bytes[at] == whole[at] {
                    continue;
                }
                std::fs::write(place.log(), &bytes).unwrap();
                let what = format!("{} at {at}: {:?}", golden.name, bytes[at] as char);
                let LogState::Damaged(damage) = verify(place.log()).unwrap().state else {
                    panic!("{what}");
                };
                assert!(damage.offset <= at as u64, "{what}: {damage}");
                if bytes[at] == whole[at] ^ 0x20 {
                    continue;
                }
                let error = sink
                    .resume(&place.place, Box::new(|_| {}))
                    .await
                    .unwrap_err();
                assert!(
                    matches!(error, moat::Error::Damaged { .. }),
                    "{what}: {error}"
                );
                assert_eq!(std::fs::read(place.log()).unwrap(), bytes);
            }
        }
        assert_eq!(std::fs::read_dir(&place.place.dir).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn a_damaged_seal_with_damage_behind_it_is_refused_and_not_cut_to_where_it_would_be_refused()
{
    let whole = String::from_utf8(all()[0].bytes()).unwrap();
    let renamed = whole.replace(r#"{"type":"end""#, r#"{"type":"enD""#);
    for behind in ["\0\0\0\n", "x\n", &whole] {
        let bytes = format!("{renamed}{behind}");
        let place = Place::holding(bytes.as_bytes());
        let LogState::Damaged(damage) = verify(place.log()).unwrap().state else {
            panic!("{behind:?}");
        };
        assert_eq!(damage.reason, "the end record is damaged", "{behind:?}");
        let resumed = Jsonl::new().resume(&place.place, Box::new(|_| {})).await;
        assert!(matches!(resumed, Err(moat::Error::Damaged { .. })));
        assert!(std::fs::read(place.log()).unwrap() == bytes.as_bytes());
    }
}

fn later() -> Golden {
    Golden {
        name: "later-writer",
        start: start("later", json!({})),
        records: Vec::new(),
        seal: Some(seal(&[], json!({}))),
        tail: "",
    }
}

#[test]
fn bytes_behind_a_seal_are_damage() {
    let whole = all()[0].bytes();
    for more in ["\n", "x", "{\"type\":\"note\"", "{\"type\":\"note\"}\n"] {
        let place = Place::holding(&[&whole, more.as_bytes()].concat());
        let LogState::Damaged(damage) = verify(place.log()).unwrap().state else {
            panic!("{more:?}");
        };
        assert_eq!(damage.offset, whole.len() as u64);
        let mut reader = Reader::open(place.log()).unwrap();
        assert!(reader.by_ref().all(|record| record.is_ok()));
        assert!(matches!(reader.state(), LogState::Damaged(_)), "{more:?}");
    }
}

#[test]
fn a_seal_whose_counts_are_not_those_of_the_file_is_damage() {
    let text = String::from_utf8(all()[0].bytes()).unwrap();
    let head = &text[..text.len() - 78];
    for (from, to) in [
        ("\"records\":10", "\"records\":11"),
        ("\"stderr\":61", "\"stderr\":62"),
        ("\"gaps\":0", "\"gaps\":1"),
    ] {
        assert!(head.contains(from), "{from}");
        let place = Place::holding(sealed_text(&head.replace(from, to)).as_bytes());
        let LogState::Damaged(damage) = verify(place.log()).unwrap().state else {
            panic!("{to}");
        };
        assert!(damage.reason.contains("counts"), "{damage}");
    }
}

/// What a crash can leave: the beginning of what was to be written.
#[tokio::test]
async fn a_file_cut_anywhere_is_never_sealed_and_goes_on_to_the_same_records() {
    let sink = Jsonl::new();
    for golden in all() {
        let Some(seal) = &golden.seal else { continue };
        let whole = golden.bytes();
        for length in 0..whole.len() {
            let place = Place::holding(&whole[..length]);
            let kept = whole[..length]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            let torn = &whole[kept..length];
            let state = verify(place.log()).unwrap().state;
            let expected = LogState::Unsealed {
                torn: torn.len() as u64,
            };
            assert_eq!(state, expected, "{} cut at {length}", golden.name);

            let (seen, visit) = golden_count();
            let (mut log, aside) = match sink.resume(&place.place, visit).await.unwrap() {
                Resumed::Open { log, torn } => (log, torn.map(|torn| torn.file)),
                Resumed::Absent => {
                    assert_eq!(kept, 0);
                    let log = open(&sink, &place, &golden.start).await;
                    (log, (length > 0).then(|| "torn-1".to_owned()))
                }
                other => panic!("{other:?}"),
            };
            let aside = aside.map(|file| std::fs::read(place.file(&file)).unwrap());
            assert_eq!(aside.unwrap_or_default(), torn);
            let seen = seen.load(std::sync::atomic::Ordering::Relaxed);
            let rest = &golden.records[seen.saturating_sub(1)..];
            log.append(batch(rest)).await.unwrap();
            log.seal(seal.clone()).await.unwrap();
            assert!(std::fs::read(place.log()).unwrap() == whole);
        }
    }
}

fn golden_count() -> (
    std::sync::Arc<std::sync::atomic::AtomicUsize>,
    moat::sink::RecordVisitor,
) {
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = count.clone();
    let visit = move |_: moat::audit::RecordRef<'_>| {
        seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    (count, Box::new(visit))
}

#[test]
fn a_verdict_is_in_the_file_as_it_was_given() {
    let verdicts: Vec<_> = all()
        .iter()
        .filter_map(|golden| golden.seal.as_ref().map(|seal| seal.verdict))
        .collect();
    use Verdict::{Complete, Gap, Lossy};
    assert_eq!(verdicts, [Complete, Lossy, Gap, Complete]);
}

//! The audit file is what `docs/audit-format.md` says, byte by byte.

use std::process::Command;

use moat::audit::{Event, LogState, Reader, Record, verify};
use moat::outcome::Stream;
use moat::sink::Jsonl;
use moat::{LogSink, Verdict};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::golden::{Golden, Place, all, at, batch, open, out, path, seal, start, started};

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
pub fn sealed_text(head: &str) -> String {
    let digest = hex(&Sha256::digest(head));
    format!("{head},\"sha256\":\"{digest}\"}}\n")
}

#[tokio::test]
async fn equal_records_are_equal_bytes() {
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
fn golden_files_verify() {
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
fn a_reader_returns_the_written_records() {
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
fn coreutils_can_check_the_seal() {
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

/// Additions by a later writer of version 1 are skipped, and covered by the digest.
#[test]
fn unknown_records_and_fields_are_skipped() {
    let path = path("later-writer");
    let start = serde_json::to_string(&Event::Start(Box::new(start("later", json!({}))))).unwrap();
    let start = start.strip_suffix('}').unwrap();
    let started = started();
    let end = Event::End(Box::new(seal(
        &[started.clone(), out(Stream::Stdout, b"known")],
        json!({"gaps": 1, "verdict": "gap"}),
    )));
    let Record::Event(started) = started else {
        panic!("{started:?}");
    };
    let started = serde_json::to_string(&started).unwrap();
    let started = started.replace("\"utf8\"", "\"quantum\"");
    let end = serde_json::to_string(&end).unwrap();
    let end = end.split_once(",\"sha256\"").unwrap().0;
    let ts = at(30);
    let text = sealed_text(&format!(
        "{start},\"host\":{{\"name\":\"ci-7\"}}}}\n\
         {started}\n\
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
    assert_eq!(records[1..3], [unknown("started"), unknown("usage")]);
    assert!(matches!(&records[3], Record::Output(output) if output.bytes == b"known"));
    assert_eq!(records[4..6], [unknown("usage"), unknown("gap")]);
    assert!(matches!(&records[6], Record::Event(Event::End(_))));
}

#[tokio::test]
async fn another_version_is_refused_unchanged() {
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

#[test]
fn golden_files_have_each_verdict() {
    let verdicts: Vec<_> = all()
        .iter()
        .filter_map(|golden| golden.seal.as_ref().map(|seal| seal.verdict))
        .collect();
    use Verdict::{Complete, Gap, Lossy};
    assert_eq!(verdicts, [Complete, Lossy, Gap, Gap, Complete]);
}

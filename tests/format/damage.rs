//! Damage to an audit file: changed bytes, added bytes, and cuts.

use moat::LogSink;
use moat::audit::{LogState, Reader, verify};
use moat::sink::{Jsonl, Resumed};
use serde_json::json;

use crate::bytes::sealed_text;
use crate::golden::{Golden, Place, all, batch, open, seal, start};

fn later() -> Golden {
    Golden {
        name: "later-writer",
        start: start("later", json!({})),
        records: Vec::new(),
        seal: Some(seal(&[], json!({}))),
        tail: "",
    }
}

/// Every byte of a sealed file in several ways, including exit code, digest and newlines.
#[tokio::test]
async fn any_changed_byte_in_a_sealed_file_is_found() {
    let sink = Jsonl::new();
    for golden in all().into_iter().chain([later()]) {
        if golden.seal.is_none() {
            continue;
        }
        let whole = golden.bytes();
        let place = Place::holding(&whole);
        // The first lines are similar in all files, so one file is enough.
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
async fn a_damaged_seal_is_never_cut_off() {
    let whole = String::from_utf8(all()[0].bytes()).unwrap();
    let renamed = whole.replace(r#"{"type":"end""#, r#"{"type":"enD""#);
    for rest in ["\0\0\0\n", "x\n", &whole] {
        let bytes = format!("{renamed}{rest}");
        let place = Place::holding(bytes.as_bytes());
        let LogState::Damaged(damage) = verify(place.log()).unwrap().state else {
            panic!("{rest:?}");
        };
        assert_eq!(damage.reason, "the end record is damaged", "{rest:?}");
        let resumed = Jsonl::new().resume(&place.place, Box::new(|_| {})).await;
        assert!(matches!(resumed, Err(moat::Error::Damaged { .. })));
        assert!(std::fs::read(place.log()).unwrap() == bytes.as_bytes());
    }
}

#[test]
fn bytes_after_a_seal_are_damage() {
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
fn wrong_counts_in_a_seal_are_damage() {
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

/// A crash leaves a prefix of what was to be written.
#[tokio::test]
async fn a_file_cut_anywhere_can_be_resumed() {
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

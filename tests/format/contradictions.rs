//! A seal whose digest and counts hold, and that contradicts the other records.

use moat::audit::{Event, LogState, Record, Start, verify};
use moat::outcome::Stream;
use moat::sink::{Jsonl, Resumed};
use moat::{LogSink, Verdict};
use serde_json::{Value, json};
use testkit::audit::Audit;

use crate::bytes::sealed_text;
use crate::golden::{Place, at, batch, event, open, out, seal, start, started};

/// A run of another image, in another container.
fn started_elsewhere(field: &str) -> Record {
    let Record::Event(Event::Started(mut record)) = started() else {
        panic!("no started record");
    };
    match field {
        "container" => record.container = moat::spec::ContainerId::new("0b2e4f66ad9a"),
        _ => record.image_digest = None,
    }
    Record::Event(Event::Started(record))
}

fn gap() -> Record {
    event(json!({"type": "gap", "ts": at(44), "reason": "removed", "possible": true}))
}

fn lossy() -> Record {
    let Record::Output(mut output) = out(Stream::Stderr, b"changed") else {
        panic!("no output");
    };
    output.lossy = true;
    Record::Output(output)
}

fn line() -> Record {
    out(Stream::Stdout, b"line")
}

/// A sealed file with these records and a seal that agrees with them, changed by `more`.
async fn sealed(start: &Start, records: &[Record], more: Value) -> Place {
    let place = Place::new();
    let mut log = open(&Jsonl::new(), &place, start).await;
    log.append(batch(records)).await.unwrap();
    drop(log);
    let head = std::fs::read_to_string(place.log()).unwrap();
    let end = serde_json::to_string(&Event::End(Box::new(seal(records, more)))).unwrap();
    let end = end.split_once(",\"sha256\"").unwrap().0;
    std::fs::write(place.log(), sealed_text(&format!("{head}{end}"))).unwrap();
    place
}

fn not_created() -> Value {
    json!({"state": "not_created", "reason": "no such image", "aborted": false})
}

#[tokio::test]
async fn a_seal_that_contradicts_its_file_is_damage() {
    let exited = json!({"state": "exited", "code": 0});
    let removed = json!({"state": "removed", "code": 137});
    let failed = json!({"state": "failed_to_start", "reason": "no such command"});
    let cases = [
        // The verdict.
        (
            vec![started(), line(), gap()],
            json!({"verdict": "complete"}),
            "has the verdict complete, but line 4 is a gap, so the verdict is gap",
        ),
        (
            vec![started(), gap(), lossy(), gap()],
            json!({"verdict": "lossy"}),
            "has the verdict lossy, but line 3 is a gap, so the verdict is gap",
        ),
        (
            vec![started(), line(), lossy(), line()],
            json!({"verdict": "complete"}),
            "has the verdict complete, but line 4 is lossy, so the verdict is lossy",
        ),
        (
            vec![started(), line()],
            json!({"evidence": "eof"}),
            "has the verdict complete, but its evidence is the end of the attachment, so the \
             verdict is unproven",
        ),
        (
            vec![started(), lossy()],
            json!({"evidence": "none"}),
            "has the verdict lossy, but its evidence is none, so the verdict is unproven",
        ),
        (
            vec![started(), line()],
            json!({"verdict": "gap"}),
            "has the verdict gap, but no other line supports that, so the verdict is complete",
        ),
        // The start.
        (
            vec![line()],
            json!({"exit": exited}),
            "the container exited, but no line says that the container started",
        ),
        (
            vec![],
            json!({"exit": removed}),
            "the container was removed, but no line says that the container started",
        ),
        (
            vec![started()],
            json!({"evidence": "never_started"}),
            "the container exited, but its evidence is never started",
        ),
        (
            vec![],
            json!({"evidence": "never_started"}),
            "the container was lost, but its evidence is never started",
        ),
        (
            vec![],
            json!({"exit": failed}),
            "the container failed to start, but its evidence is the tail of the engine's log",
        ),
        (
            vec![line()],
            json!({"exit": not_created(), "evidence": "never_started"}),
            "the container was not created, but the file has output",
        ),
        (
            vec![started()],
            json!({"exit": failed, "evidence": "never_started"}),
            "the container failed to start, but line 2 says that the container started",
        ),
        // The container and its image.
        (
            vec![started()],
            json!({"container": "0b2e4f66ad9a"}),
            "has the container 0b2e4f66ad9a, but line 2 has 4f66ad9a0b2e",
        ),
        (
            vec![started()],
            json!({"container": null}),
            "has the container none, but line 2 has 4f66ad9a0b2e",
        ),
        (
            vec![started(), started_elsewhere("container")],
            json!({"container": "4f66ad9a0b2e"}),
            "has the container 4f66ad9a0b2e, but line 3 has 0b2e4f66ad9a",
        ),
        (
            vec![started()],
            json!({"image_digest": "sha256:0"}),
            "has the image sha256:0, but line 2 has sha256:9ae9",
        ),
        (
            vec![started_elsewhere("image_digest")],
            json!({"image_digest": "sha256:0"}),
            "has the image sha256:0, but line 2 has none",
        ),
        (
            vec![],
            json!({"image_digest": "sha256:0"}),
            "has the image sha256:0, but no line says that the container started",
        ),
    ];
    for (records, more, reason) in cases {
        let place = sealed(&start("run", json!({})), &records, more).await;
        let bytes = std::fs::read(place.log()).unwrap();
        let found = verify(place.log()).unwrap();
        let LogState::Damaged(damage) = found.state else {
            panic!("{reason}");
        };
        assert!(damage.reason.contains(reason), "{reason}: {damage}");
        // The line is the end record, and nothing before it is in doubt.
        let end = bytes[..bytes.len() - 1].iter().rposition(|b| *b == b'\n');
        assert_eq!(damage.line, records.len() as u64 + 2, "{reason}");
        assert_eq!(damage.offset, end.unwrap() as u64 + 1, "{reason}");
        assert_eq!(found.lines, records.len() as u64 + 1, "{reason}");

        let resumed = Jsonl::new().resume(&place.place, Box::new(|_| {})).await;
        let error = resumed.unwrap_err();
        assert!(matches!(error, moat::Error::Damaged { .. }), "{error}");
        assert!(std::fs::read(place.log()).unwrap() == bytes, "{reason}");
        assert!(Audit::read(&place.log()).is_err(), "{reason}");
    }
}

#[tokio::test]
async fn a_seal_that_agrees_with_its_file_is_accepted() {
    let cases = [
        (vec![], json!({})),
        (vec![], json!({"exit": {"state": "removed", "code": null}})),
        (
            vec![started()],
            json!({"exit": {"state": "removed", "code": 1}}),
        ),
        (
            vec![started()],
            json!({"exit": {"state": "lost", "reason": "it is gone"}}),
        ),
        (
            vec![],
            json!({"exit": not_created(), "evidence": "never_started"}),
        ),
        // The start failed, and the log of the exec did too.
        (
            vec![gap()],
            json!({"exit": not_created(), "evidence": "none"}),
        ),
        // The container exists, and never started.
        (
            vec![],
            json!({"exit": not_created(), "evidence": "never_started", "container": "4f66ad9a0b2e"}),
        ),
        (vec![started(), lossy(), gap()], json!({"evidence": "none"})),
        (vec![started(), lossy()], json!({"evidence": "replay"})),
        (
            vec![started(), lossy()],
            json!({"evidence": "eof", "verdict": "unproven"}),
        ),
        (vec![started(), line()], json!({"evidence": "end_marker"})),
        (
            vec![started(), line(), started_elsewhere("container")],
            json!({}),
        ),
    ];
    for (records, more) in cases {
        let place = sealed(&start("run", json!({})), &records, more.clone()).await;
        let found = verify(place.log()).unwrap();
        assert!(
            matches!(found.state, LogState::Sealed(_)),
            "{more}: {found:?}"
        );
        Audit::read(&place.log()).unwrap();
    }
}

/// A wrong seal could not be undone.
#[tokio::test]
async fn a_writer_refuses_a_contradictory_seal() {
    let records = [started(), line(), lossy()];
    for more in [
        json!({"verdict": "complete"}),
        json!({"container": null}),
        json!({"evidence": "never_started", "verdict": "lossy"}),
        json!({"exit": not_created()}),
    ] {
        // The first two records are from another writer.
        let place = Place::new();
        let mut log = open(&Jsonl::new(), &place, &start("run", json!({}))).await;
        log.append(batch(&records[..2])).await.unwrap();
        drop(log);
        let resumed = Jsonl::new().resume(&place.place, Box::new(|_| {})).await;
        let Ok(Resumed::Open { mut log, .. }) = resumed else {
            panic!("{resumed:?}");
        };
        log.append(batch(&records[2..])).await.unwrap();
        let before = std::fs::read(place.log()).unwrap();
        let error = log.seal(seal(&records, more.clone())).await.unwrap_err();
        assert!(
            error.chain().contains("the end record"),
            "{}",
            error.chain()
        );
        drop(log);
        assert!(std::fs::read(place.log()).unwrap() == before, "{more}");
        let found = verify(place.log()).unwrap();
        assert_eq!(found.state, LogState::Unsealed { torn: 0 });
    }
}

/// A later version wrote the gap, so the run that continues the file does not know it.
#[tokio::test]
async fn a_gap_of_a_later_version_is_in_the_seal() {
    let records = [started(), line()];
    let place = Place::new();
    let mut log = open(&Jsonl::new(), &place, &start("run", json!({}))).await;
    log.append(batch(&records)).await.unwrap();
    drop(log);
    let text = std::fs::read_to_string(place.log()).unwrap();
    let gap = r#"{"type":"gap","ts":"2026-11-22T18:23:44.000000000Z","reason":"solar_flare"}"#;
    std::fs::write(place.log(), format!("{text}{gap}\n")).unwrap();

    let resumed = Jsonl::new().resume(&place.place, Box::new(|_| {})).await;
    let Ok(Resumed::Open { mut log, .. }) = resumed else {
        panic!("{resumed:?}");
    };
    let sealed = log.seal(seal(&records, json!({}))).await.unwrap();
    assert_eq!((sealed.gaps, sealed.verdict), (1, Verdict::Gap));
    let found = verify(place.log()).unwrap();
    assert_eq!(found.state, LogState::Sealed(Box::new(sealed)));
}

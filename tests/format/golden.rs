//! The golden files and their records.

use std::path::{Path, PathBuf};

use futures::FutureExt;
use moat::audit::{Batch, Event, Output, Record, Start};
use moat::outcome::Stream;
use moat::sink::{Jsonl, RunLog, RunPlace};
use moat::timestamp::Timestamp;
use moat::{LogSink, RunId, Seal};
use serde_json::{Value, json};

/// A golden file and its content.
pub struct Golden {
    pub name: &'static str,
    pub start: Start,
    pub records: Vec<Record>,
    /// `None` if the file is not sealed.
    pub seal: Option<Seal>,
    /// Bytes that a dying writer left after the last record.
    pub tail: &'static str,
}

/// A time in the minute of all golden files.
pub fn at(seconds: u64) -> Timestamp {
    format!("2026-11-22T18:23:{seconds:02}.491211661Z")
        .parse()
        .unwrap()
}

pub fn start(run: &str, settings: Value) -> Start {
    let mut record = json!({
        "run": run,
        "root": "00c0ffee00c0ffee00c0",
        "created": at(20),
        "runtime": "docker",
        "image": "busybox:1.36",
        "stop_grace": 10.0,
        "env": ["GREETING"],
    });
    merge(&mut record, settings);
    let mut start = Start::new(serde_json::from_value(record).unwrap());
    start.ts = at(21);
    start
}

fn merge(into: &mut Value, from: Value) {
    let (Value::Object(into), Value::Object(from)) = (into, from) else {
        panic!("two objects");
    };
    into.extend(from);
}

pub fn event(value: Value) -> Record {
    Record::Event(serde_json::from_value(value).unwrap())
}

pub fn started() -> Record {
    event(json!({
        "type": "started",
        "ts": at(23),
        "container": "4f66ad9a0b2e",
        "started_at": "2026-11-22T18:23:22.999999999Z",
        "image_digest": "sha256:9ae97d36d26566ff84e8893c64a6dc4fe8ca6d1144bf5b87b2b85a32def253c7",
        "log": {
            "driver": "json-file",
            "options": {"max-file": "1", "max-size": "1000000g", "mode": "blocking"},
            "fidelity": "utf8",
        },
        "engine": "docker",
        "engine_version": "26.1.5",
        "warnings": [],
    }))
}

pub fn out(stream: Stream, bytes: &[u8]) -> Record {
    Record::Output(Output::new(at(24), stream, bytes))
}

fn flagged(stream: Stream, bytes: &[u8], partial: bool, lossy: bool) -> Record {
    let mut output = Output::new(at(25), stream, bytes);
    output.partial = partial;
    output.lossy = lossy;
    // Only a log replaces bytes.
    output.engine_time = lossy;
    Record::Output(output)
}

/// A seal that agrees with `records`, changed by `more`.
pub fn seal(records: &[Record], more: Value) -> Seal {
    let mut bytes = json!({"stdout": 0, "stderr": 0, "tty": 0});
    let (mut count, mut gaps, mut lossy, mut started) = (0, 0_u64, false, None);
    for record in records {
        match record {
            Record::Output(output) => {
                let length = output.bytes.len() as u64 + u64::from(!output.partial);
                let sum = &mut bytes[output.stream.as_str()];
                *sum = json!(sum.as_u64().unwrap() + length);
                count += 1;
                lossy |= output.lossy;
            }
            Record::Event(Event::Gap(_)) => gaps += 1,
            Record::Event(Event::Started(record)) => started = Some(record),
            _ => {}
        }
    }
    let exited = json!({
        "state": "exited",
        "code": 0,
        "started_at": "2026-11-22T18:23:22.999999999Z",
        "finished_at": "2026-11-22T18:23:58.000000001Z",
    });
    let lost = json!({"state": "lost", "reason": "the process that started it has died"});
    let mut seal = json!({
        "ts": at(59),
        "exit": if started.is_some() { exited } else { lost },
        "verdict": match (gaps, lossy) {
            (1.., _) => "gap",
            (0, true) => "lossy",
            (0, false) => "complete",
        },
        "evidence": "tail",
        "records": count,
        "bytes": bytes,
        "gaps": gaps,
        "container": started.map(|started| &started.container),
        "image_digest": started.map(|started| &started.image_digest),
        "capture_seconds": 0.25,
    });
    merge(&mut seal, more);
    serde_json::from_value(seal).unwrap()
}

/// All golden files that this library writes.
pub fn all() -> Vec<Golden> {
    vec![
        complete(),
        lossy(),
        gap(),
        exec(),
        not_created(),
        unsealed(),
    ]
}

fn complete() -> Golden {
    use Stream::{Stderr, Stdout};
    let records = vec![
        started(),
        out(Stdout, b"hello"),
        out(Stderr, b"a warning"),
        out(Stdout, b""),
        out(
            Stdout,
            "d\u{e9}j\u{e0} vu, \u{65e5}\u{672c}\u{8a9e}, \u{1f6df}, \u{fffd}".as_bytes(),
        ),
        out(Stdout, b"\"quotes\" and \\ and / and \ttab\r"),
        out(Stderr, b"\x1b[31mred\x1b[0m \x00\x01\x08\x0c\x1f\x7f"),
        out(Stdout, b"{\"type\":\"end\",\"sha256\":\"no\"}"),
        out(Stdout, b"not UTF-8: \xff\xfe\x80"),
        flagged(Stderr, b"no newline at the end of stderr", true, false),
        flagged(Stdout, b"\xf0\x9f", true, false),
    ];
    Golden {
        name: "complete",
        start: start(
            "complete",
            json!({"cmd": ["sh", "-c", "echo \"$GREETING\""], "labels": {"ci": "1"}, "cpus": 1.5}),
        ),
        seal: Some(seal(&records, json!({}))),
        records,
        tail: "",
    }
}

fn lossy() -> Golden {
    use Stream::Stdout;
    let records = vec![
        started(),
        out(Stdout, b"before the crash"),
        event(json!({
            "type": "resume",
            "ts": at(40),
            "cause": "reopened",
            "torn": {"bytes": 17, "file": "torn-1"},
        })),
        event(json!({"type": "note", "ts": at(41), "text": "the engine's log was read"})),
        flagged(Stdout, "bad byte: \u{fffd}".as_bytes(), false, true),
        flagged(Stdout, "\u{fffd}".as_bytes(), true, true),
    ];
    Golden {
        name: "lossy",
        start: start("lossy", json!({"detached": true, "time_limit": 60.0})),
        seal: Some(seal(&records, json!({"evidence": "replay"}))),
        records,
        tail: "",
    }
}

fn gap() -> Golden {
    let records = vec![
        started(),
        out(Stream::Tty, b"$ make\r"),
        event(json!({
            "type": "gap",
            "ts": at(44),
            "stream": "tty",
            "reason": "log_shorter",
            "possible": false,
            "bytes": 1234,
            "detail": "the engine's log has 12 bytes",
        })),
        event(json!({"type": "gap", "ts": at(45), "reason": "removed", "possible": true})),
        event(json!({
            "type": "stop",
            "ts": at(46),
            "cause": "time_limit",
            "signal": "SIGTERM",
            "grace_seconds": 10.0,
            "by_pid": 4711,
        })),
    ];
    Golden {
        name: "gap",
        start: start("gap", json!({"tty": true})),
        seal: Some(seal(
            &records,
            json!({
                "exit": {"state": "removed", "code": 137},
                "evidence": "none",
                "stopped": "time_limit",
            }),
        )),
        records,
        tail: "",
    }
}

/// The log of an exec that was killed after the death of its owner.
fn exec() -> Golden {
    let records = vec![
        event(json!({
            "type": "exec_created",
            "ts": at(22),
            "id": "1f77c8a3f1ab.01kb1yq2v3w4x5y6z7",
            "stop_token": true,
        })),
        started(),
        out(Stream::Stdout, b"begun"),
        event(json!({"type": "resume", "ts": at(40), "cause": "reopened"})),
        event(json!({"type": "note", "ts": at(41), "text": "the exec was killed"})),
        event(json!({"type": "gap", "ts": at(42), "reason": "no_backstop", "possible": false})),
    ];
    let mut start = start("exec", json!({"container": "4f66ad9a0b2e"}));
    start.exec = Some(1);
    Golden {
        name: "exec",
        start,
        seal: Some(seal(
            &records,
            json!({
                "exit": {"state": "lost", "reason": "its owner died"},
                "evidence": "none",
            }),
        )),
        records,
        tail: "",
    }
}

fn not_created() -> Golden {
    Golden {
        name: "not-created",
        start: start("not-created", json!({"image": "no/such:image"})),
        seal: Some(seal(
            &[],
            json!({
                "exit": {"state": "not_created", "reason": "no such image", "aborted": false},
                "evidence": "never_started",
                "capture_seconds": 0.0,
            }),
        )),
        records: Vec::new(),
        tail: "",
    }
}

fn unsealed() -> Golden {
    Golden {
        name: "unsealed-torn",
        start: start("unsealed-torn", json!({})),
        records: vec![
            started(),
            out(Stream::Stdout, b"whole"),
            out(Stream::Stderr, b"whole too"),
        ],
        seal: None,
        tail: "{\"ts\":\"2026-11-22T18:23:24.491211661Z\",\"stream\":\"stdout\",\"line\":\"hal",
    }
}

impl Golden {
    /// The path of the file.
    pub fn path(&self) -> PathBuf {
        path(self.name)
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }
}

pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{name}.jsonl"))
}

/// A run's directory in a root, in memory where possible.
pub struct Place {
    _root: tempfile::TempDir,
    pub place: RunPlace,
}

impl Place {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        }
        .unwrap();
        let dir = root.path().join("run");
        std::fs::create_dir(&dir).unwrap();
        Self {
            place: RunPlace::new(RunId::new("run").unwrap(), dir),
            _root: root,
        }
    }

    pub fn log(&self) -> PathBuf {
        self.file("logs.jsonl")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.place.dir.join(name)
    }

    pub fn holding(bytes: &[u8]) -> Self {
        let place = Self::new();
        std::fs::write(place.log(), bytes).unwrap();
        place
    }
}

pub fn batch<'a>(records: impl IntoIterator<Item = &'a Record>) -> Batch {
    let mut batch = Batch::new();
    for record in records {
        match record {
            Record::Output(output) => batch.push_output(output),
            Record::Event(event) => batch.push_event(event.clone()),
            other => panic!("{other:?}"),
        }
    }
    batch
}

/// Opens the log, or fails the test.
pub async fn open(sink: &Jsonl, place: &Place, start: &Start) -> Box<dyn RunLog> {
    sink.open(&place.place, start).await.unwrap()
}

/// Polls once and drops, as a cancelled caller does. `None` if it was pending.
pub fn poll_and_drop<T>(future: impl Future<Output = T>) -> Option<T> {
    Box::pin(future).now_or_never()
}

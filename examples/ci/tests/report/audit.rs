//! Audit files with known records and times.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use moat::RunId;
use moat::timestamp::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use moat_ci::report::Attempt;

/// An audit file that is being written.
pub(crate) struct Audit {
    run: String,
    text: String,
    at: Duration,
    records: u64,
    gaps: u64,
    started: bool,
}

impl Audit {
    pub(crate) fn new(run: &str, after_ms: u64) -> Self {
        let mut audit = Self {
            run: run.into(),
            text: String::new(),
            at: Duration::from_millis(after_ms),
            records: 0,
            gaps: 0,
            started: false,
        };
        let golden = include_str!("../../../../tests/golden/complete.jsonl")
            .lines()
            .next();
        let mut start: Value = serde_json::from_str(golden.unwrap()).unwrap();
        for (key, value) in [
            ("ts", audit.ts()),
            ("created", audit.ts()),
            ("run", run.into()),
        ] {
            start[key] = value.into();
        }
        audit.add(&start);
        audit
    }

    fn ts(&self) -> String {
        let origin = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_514_400_000);
        Timestamp::from(origin + self.at).to_string()
    }

    fn add(&mut self, record: &Value) {
        writeln!(self.text, "{record}").unwrap();
    }

    pub(crate) fn later(mut self, ms: u64) -> Self {
        self.at += Duration::from_millis(ms);
        self
    }

    pub(crate) fn started(mut self) -> Self {
        let record = json!({"type": "started", "ts": self.ts(), "container": "4f66ad9a0b2e", "started_at": self.ts(),
            "image_digest": null, "log": {"driver": "json-file", "options": {}, "fidelity": "utf8"},
            "engine": "docker", "engine_version": "26.1.5", "warnings": []});
        self.add(&record);
        self.started = true;
        self
    }

    /// Adds the start in a form that only a later version can read, and that no report shows.
    fn started_unseen(&mut self) {
        let record = json!({"type": "started", "ts": self.ts(), "log": "in a later form"});
        self.add(&record);
    }

    /// Adds a piece of a line, or the end of a line if it ends with a newline.
    pub(crate) fn print(mut self, stream: &str, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let line = bytes.strip_suffix(b"\n");
        let piece = line.unwrap_or(bytes);
        let mut record = json!({"ts": self.ts(), "stream": stream});
        match std::str::from_utf8(piece) {
            Ok(text) => record["line"] = text.into(),
            Err(_) => record["b64"] = STANDARD.encode(piece).into(),
        }
        if line.is_none() {
            record["partial"] = true.into();
        }
        self.records += 1;
        self.add(&record);
        self
    }

    pub(crate) fn out(self, line: &str) -> Self {
        self.print("stdout", format!("{line}\n"))
    }

    pub(crate) fn err(self, line: &str) -> Self {
        self.print("stderr", format!("{line}\n"))
    }

    pub(crate) fn lines(self, lines: impl Iterator<Item = String>) -> Self {
        lines.fold(self, |audit, line| audit.out(&line))
    }

    /// Adds any other record.
    pub(crate) fn event(mut self, kind: &str, mut record: Value) -> Self {
        record["type"] = kind.into();
        record["ts"] = self.ts().into();
        self.gaps += u64::from(kind == "gap");
        self.add(&record);
        self
    }

    /// Writes the file without a seal.
    pub(crate) fn unsealed(self, dir: &Path) -> Attempt {
        let audit = dir.join(format!("{}.jsonl", self.run));
        std::fs::write(&audit, &self.text).unwrap();
        Attempt {
            run: RunId::new(&self.run).unwrap(),
            image: Some("busybox:1.36".into()),
            command: "sh -c 'echo hello'".into(),
            audit,
            outcome: None,
        }
    }

    pub(crate) fn sealed(self, dir: &Path, code: i64) -> Attempt {
        self.ended(dir, json!({"state": "exited", "code": code}), json!({}))
    }

    pub(crate) fn ended(mut self, dir: &Path, exit: Value, more: Value) -> Attempt {
        if !self.started {
            self.started_unseen();
        }
        let verdict = if self.gaps > 0 { "gap" } else { "complete" };
        let mut seal = json!({"ts": self.ts(), "exit": exit, "verdict": verdict, "evidence": "tail",
            "records": self.records, "bytes": self.by_stream(), "gaps": self.gaps, "capture_seconds": 0.01,
            "container": "4f66ad9a0b2e"});
        for (key, value) in more.as_object().unwrap() {
            seal[key] = value.clone();
        }
        let seal = seal.to_string();
        // The reader recognizes a seal by its first key.
        write!(self.text, r#"{{"type":"end",{}"#, &seal[1..seal.len() - 1]).unwrap();
        let mut hex = String::new();
        for byte in Sha256::digest(&self.text) {
            write!(hex, "{byte:02x}").unwrap();
        }
        writeln!(self.text, r#","sha256":"{hex}"}}"#).unwrap();
        self.unsealed(dir)
    }

    fn by_stream(&self) -> Value {
        let mut bytes = json!({"stdout": 0, "stderr": 0, "tty": 0});
        for line in self.text.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let length = match (&record["line"], &record["b64"]) {
                (Value::String(line), _) => line.len(),
                (_, Value::String(b64)) => STANDARD.decode(b64).unwrap().len(),
                _ => continue,
            };
            let all = &mut bytes[record["stream"].as_str().unwrap()];
            *all = (all.as_u64().unwrap() + length as u64 + u64::from(record["partial"].is_null()))
                .into();
        }
        bytes
    }
}

/// An attempt with an existing audit file.
pub(crate) fn attempt(run: &str, audit: PathBuf) -> Attempt {
    Attempt {
        run: RunId::new(run).unwrap(),
        image: None,
        command: "true".into(),
        audit,
        outcome: None,
    }
}

//! A second reader of the audit file, written from `docs/audit-format.md` without moat's code.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Length of `,"sha256":"<64 hex>"}` and the newline that end a sealed file.
const SEAL_TAIL: usize = 78;

/// A sealed audit file whose counts and digest are correct.
#[derive(Debug)]
pub struct Audit {
    /// The bytes of each stream, as they were printed.
    pub streams: BTreeMap<String, Vec<u8>>,
    /// The records that are not output, in order.
    pub events: Vec<Value>,
    /// True if an output record is marked as changed by the engine's log.
    pub lossy: bool,
    /// The last record.
    pub end: Value,
}

impl Audit {
    /// Reads a sealed file and checks everything that its format promises.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is not sealed, or breaks its format.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Self::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.last() != Some(&b'\n') {
            return Err("its last byte is not a newline".into());
        }
        let mut audit = Self {
            streams: BTreeMap::new(),
            events: Vec::new(),
            lossy: false,
            end: Value::Null,
        };
        let mut records = 0_u64;
        for (at, line) in bytes[..bytes.len() - 1]
            .split(|&byte| byte == b'\n')
            .enumerate()
        {
            let record: Value = serde_json::from_slice(line)
                .map_err(|error| format!("line {} is not JSON: {error}", at + 1))?;
            if !audit.end.is_null() {
                return Err(format!("line {} is after `end`", at + 1));
            }
            let kind = record.get("type").and_then(Value::as_str);
            if (at == 0) != (kind == Some("start")) {
                return Err(format!("line {} has the type {kind:?}", at + 1));
            }
            match kind {
                None => {
                    audit
                        .output(&record)
                        .ok_or(format!("line {} is not an output record", at + 1))?;
                    records += 1;
                }
                Some("end") => audit.end = record,
                Some(_) => audit.events.push(record),
            }
        }
        if audit.end.is_null() {
            return Err("it is not sealed".into());
        }
        audit.compare("records", records)?;
        for stream in ["stdout", "stderr", "tty", "merged"] {
            let counted = audit.end["bytes"][stream].as_u64();
            // Only a run with a merged stream counts its bytes.
            let counted = counted.or((stream == "merged").then_some(0));
            let found = audit.stream(stream).len() as u64;
            if counted != Some(found) {
                return Err(format!(
                    "`end` counts {counted:?} bytes of {stream}, but there are {found}"
                ));
            }
        }
        let digest = Sha256::digest(&bytes[..bytes.len() - SEAL_TAIL]);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if audit.end["sha256"] != digest {
            return Err(format!(
                "`end` has the digest {}, but it is {digest}",
                audit.end["sha256"]
            ));
        }
        audit.compare("gaps", audit.all("gap").len() as u64)?;
        audit.agrees(records)?;
        Ok(audit)
    }

    /// Checks that the `end` agrees with the other records.
    fn agrees(&self, records: u64) -> Result<(), String> {
        let text = |field: &str| self.end[field].as_str().unwrap_or_default();
        let verdict = match (self.evidence(), self.lossy) {
            _ if !self.all("gap").is_empty() => "gap",
            ("eof" | "none", _) => "unproven",
            (_, true) => "lossy",
            _ => "complete",
        };
        if self.verdict() != verdict {
            return Err(format!(
                "`end` has the verdict {}, not {verdict}",
                self.verdict()
            ));
        }
        let exit = &self.end["exit"];
        let state = exit["state"].as_str().unwrap_or_default();
        let never_started = matches!(state, "failed_to_start" | "not_created");
        let evidence_fits = match self.evidence() {
            "none" => true,
            evidence => never_started == (evidence == "never_started"),
        };
        let all_started = self.all("started");
        let started = all_started.last();
        let has_started = started.is_some();
        let proves_start = state == "exited" || (state == "removed" && exit["code"].is_i64());
        if !evidence_fits
            || (never_started && (records > 0 || has_started))
            || (proves_start && !has_started)
        {
            return Err(format!(
                "`end` has the ending {state} and the evidence {}, but {records} output records \
                 and the start {started:?}",
                self.evidence()
            ));
        }
        let of_started = |field: &str| started.and_then(|record| record[field].as_str());
        if has_started && Some(text("container")) != of_started("container") {
            return Err(format!("`end` has the container {}", text("container")));
        }
        if self.end["image_digest"].as_str() != of_started("image_digest") {
            return Err(format!("`end` has the image {}", text("image_digest")));
        }
        Ok(())
    }

    fn output(&mut self, record: &Value) -> Option<()> {
        record.get("ts")?.as_str()?;
        let bytes = match (record.get("line"), record.get("b64")) {
            (Some(line), None) => line.as_str()?.as_bytes().to_vec(),
            (None, Some(b64)) => BASE64_STANDARD.decode(b64.as_str()?).ok()?,
            _ => return None,
        };
        let stream = record.get("stream")?.as_str()?;
        let all = self.streams.entry(stream.to_owned()).or_default();
        all.extend_from_slice(&bytes);
        if record.get("partial").and_then(Value::as_bool) != Some(true) {
            all.push(b'\n');
        }
        self.lossy |= record.get("lossy").and_then(Value::as_bool) == Some(true);
        Some(())
    }

    fn compare(&self, field: &str, found: u64) -> Result<(), String> {
        match self.end[field].as_u64() {
            Some(counted) if counted == found => Ok(()),
            counted => Err(format!(
                "`end` counts {counted:?} {field}, but there are {found}"
            )),
        }
    }

    /// The bytes of a stream; empty if it has none.
    pub fn stream(&self, name: &str) -> &[u8] {
        self.streams.get(name).map_or(&[], Vec::as_slice)
    }

    /// All records of a type.
    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.events
            .iter()
            .filter(|event| event["type"] == kind)
            .collect()
    }

    /// The verdict in the seal: `complete`, `lossy`, `unproven` or `gap`.
    pub fn verdict(&self) -> &str {
        self.end["verdict"].as_str().unwrap_or_default()
    }

    /// The evidence in the seal.
    pub fn evidence(&self) -> &str {
        self.end["evidence"].as_str().unwrap_or_default()
    }
}

/// Asserts that the audit is complete by its own verdict.
///
/// # Panics
///
/// If it is not.
#[track_caller]
pub fn assert_complete(audit: &Audit) {
    assert_eq!(
        audit.verdict(),
        "complete",
        "{}\n{:?}",
        audit.end,
        audit.events
    );
    assert!(audit.all("gap").is_empty(), "{:?}", audit.events);
}

/// Asserts that bytes are equal, or shows the first difference.
///
/// # Panics
///
/// If they differ.
#[track_caller]
pub fn assert_bytes(found: &[u8], expected: &[u8]) {
    let pairs = found.iter().zip(expected);
    let at = pairs.take_while(|(a, b)| a == b).count();
    let show = |bytes: &[u8]| {
        let part = &bytes[at.min(bytes.len())..(at + 60).min(bytes.len())];
        String::from_utf8_lossy(part).into_owned()
    };
    assert!(
        found == expected,
        "{} bytes instead of {}; from byte {at} on {:?} instead of {:?}",
        found.len(),
        expected.len(),
        show(found),
        show(expected)
    );
}

/// Returns true if `bytes` contain `part`. Searches from the end, where the text is expected.
pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).rev().any(|window| window == part)
}

//! The parser of one line, and the form of a seal.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::audit::{Event, RecordRef, Start, fast_path};
use crate::outcome::Stream;
use crate::timestamp::Timestamp;

/// The prefix of a seal. No other record has it.
const SEAL_HEAD: &[u8] = br#"{"type":"end""#;

/// The text between the digested bytes of a sealed file and the digest.
pub(crate) const SEAL_KEY: &str = r#","sha256":""#;

/// The number of bytes after the digested bytes of a sealed file.
pub(crate) const SEAL_TAIL: usize = SEAL_KEY.len() + 64 + "\"}\n".len();

/// A parsed record, borrowed from its line where possible.
#[derive(Debug)]
pub(crate) enum Line<'a> {
    Output(OutputLine<'a>),
    Event(Event),
    /// A record of an unknown type; contains the name of the type.
    Unknown(Cow<'a, str>),
}

#[derive(Debug, PartialEq)]
pub(crate) struct OutputLine<'a> {
    pub(crate) ts: Timestamp,
    pub(crate) stream: Stream,
    pub(crate) bytes: Cow<'a, [u8]>,
    pub(crate) partial: bool,
    pub(crate) lossy: bool,
    pub(crate) engine_time: bool,
}

impl OutputLine<'_> {
    pub(crate) fn as_record(&self) -> RecordRef<'_> {
        RecordRef::Output {
            ts: self.ts,
            stream: self.stream,
            bytes: &self.bytes,
            partial: self.partial,
            lossy: self.lossy,
            engine_time: self.engine_time,
        }
    }
}

/// The reason why a line is not a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LineError {
    /// The line is damaged or incomplete.
    Corrupt(String),
    /// The line is well-formed, but only another version can read it.
    Unsupported(String),
}

impl LineError {
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Corrupt(reason) | Self::Unsupported(reason) => reason,
        }
    }
}

/// Text that is borrowed if its JSON has no escapes.
///
/// (serde never borrows an `Option<Cow<str>>`.)
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Wire<'a> {
    ts: Timestamp,
    stream: Stream,
    #[serde(borrow, default)]
    line: Option<Text<'a>>,
    #[serde(borrow, default)]
    b64: Option<Text<'a>>,
    #[serde(default)]
    partial: bool,
    #[serde(default)]
    lossy: bool,
    #[serde(default)]
    engine_time: bool,
    /// Absent in output.
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
}

/// The version of a `start` record. Every version of the format has this field.
#[derive(Deserialize)]
struct Version {
    v: u64,
}

/// Parses a line with its newline.
pub(crate) fn parse(line: &[u8]) -> Result<Line<'_>, LineError> {
    match fast_path::parse(line) {
        Some(output) => Ok(Line::Output(output)),
        None => parse_json(line),
    }
}

pub(super) fn parse_json(line: &[u8]) -> Result<Line<'_>, LineError> {
    let corrupt = |error: &dyn std::fmt::Display| LineError::Corrupt(error.to_string());
    let Some((b'\n', json)) = line.split_last() else {
        return Err(LineError::Corrupt("it has no newline".into()));
    };
    let text = std::str::from_utf8(json).map_err(|error| corrupt(&error))?;
    if !text.starts_with(r#"{"type""#)
        && let Ok(wire) = serde_json::from_str::<Wire<'_>>(text)
        && wire.kind.is_none()
    {
        return output(wire);
    }
    let Kind { kind } = serde_json::from_str(text).map_err(|error| corrupt(&error))?;
    match kind {
        Some(Text(kind)) => event(text, kind),
        None => match serde_json::from_str::<Wire<'_>>(text) {
            Ok(wire) => output(wire),
            Err(error) => Err(corrupt(&error)),
        },
    }
}

fn output(wire: Wire<'_>) -> Result<Line<'_>, LineError> {
    let bytes = match (wire.line, wire.b64) {
        (Some(Text(Cow::Borrowed(line))), None) => Cow::Borrowed(line.as_bytes()),
        (Some(Text(Cow::Owned(line))), None) => Cow::Owned(line.into_bytes()),
        (None, Some(Text(text))) => Cow::Owned(
            STANDARD
                .decode(text.as_bytes())
                .map_err(|error| LineError::Corrupt(format!("b64: {error}")))?,
        ),
        _ => {
            return Err(LineError::Corrupt(
                "output must have either line or b64".into(),
            ));
        }
    };
    Ok(Line::Output(OutputLine {
        ts: wire.ts,
        stream: wire.stream,
        bytes,
        partial: wire.partial,
        lossy: wire.lossy,
        engine_time: wire.engine_time,
    }))
}

fn event<'a>(text: &str, kind: Cow<'a, str>) -> Result<Line<'a>, LineError> {
    if kind == "start" {
        let version: Version =
            serde_json::from_str(text).map_err(|error| LineError::Corrupt(error.to_string()))?;
        if version.v != u64::from(Start::VERSION) {
            return Err(LineError::Unsupported(format!(
                "it has version {} of the format; this library reads version {}",
                version.v,
                Start::VERSION
            )));
        }
    }
    match serde_json::from_str::<Event>(text) {
        Ok(event) => Ok(Line::Event(event)),
        Err(error) => match &*kind {
            // A reader that cannot parse one of these two cannot judge the file.
            "start" | "end" => Err(LineError::Unsupported(error.to_string())),
            "check" => Err(LineError::Corrupt(error.to_string())),
            // A later version may have added the value. The record counts as of unknown type.
            _ => Ok(Line::Unknown(kind)),
        },
    }
}

/// Splits a seal into its digested part and its digest.
///
/// Returns `None` unless the line ends in exactly `,"sha256":"<64 hex>"}` and a newline.
pub(crate) fn split_seal(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, tail) = line.split_at_checked(line.len().checked_sub(SEAL_TAIL)?)?;
    let digest = tail
        .strip_prefix(SEAL_KEY.as_bytes())?
        .strip_suffix(b"\"}\n")?;
    let hex = digest
        .iter()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    hex.then_some((head, digest))
}

/// Returns true if a whole line is a seal, or was a seal before it was damaged.
pub(super) fn begins_as_seal(line: &[u8]) -> bool {
    line.starts_with(SEAL_HEAD)
}

/// Returns true if a line has zero bytes.
///
/// No record has any. A power loss leaves zeros in place of lost data.
pub(crate) fn has_zeros(line: &[u8]) -> bool {
    memchr::memchr(0, line).is_some()
}

/// Formats a digest in lowercase hexadecimal.
pub(crate) fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(digest.len() * 2);
    for byte in digest {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

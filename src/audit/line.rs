//! One line of a file: what it says, and how it is written.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::audit::{Event, RecordRef, Start, fast_path};
use crate::outcome::Stream;
use crate::timestamp::Timestamp;

/// What a seal begins with, and nothing else.
const END_HEAD: &[u8] = br#"{"type":"end""#;

/// What is between the digested bytes of a sealed file and its digest.
pub(crate) const SEAL_KEY: &str = r#","sha256":""#;

/// The length of what follows the digested bytes of a sealed file.
pub(crate) const SEAL_TAIL: usize = SEAL_KEY.len() + 64 + "\"}\n".len();

/// One record, as far as it can be borrowed from its line.
#[derive(Debug)]
pub(crate) enum Line<'a> {
    Output(OutputLine<'a>),
    Event(Event),
    /// A record that this version does not know, by the name of its type.
    Unknown(Cow<'a, str>),
}

#[derive(Debug, PartialEq)]
pub(crate) struct OutputLine<'a> {
    pub(crate) ts: Timestamp,
    pub(crate) stream: Stream,
    pub(crate) bytes: Cow<'a, [u8]>,
    pub(crate) partial: bool,
    pub(crate) lossy: bool,
}

impl OutputLine<'_> {
    pub(crate) fn as_record(&self) -> RecordRef<'_> {
        RecordRef::Output {
            ts: self.ts,
            stream: self.stream,
            bytes: &self.bytes,
            partial: self.partial,
            lossy: self.lossy,
        }
    }
}

/// Why a line is not a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bad {
    /// It is damaged, or only a part of itself.
    TruncatedTail(String),
    /// It is well-formed, and this version cannot read it: another one must.
    Foreign(String),
}

impl Bad {
    pub(crate) fn reason(self) -> String {
        match self {
            Self::TruncatedTail(reason) | Self::Foreign(reason) => reason,
        }
    }
}

/// Text that is borrowed where its JSON has no escapes. (In an `Option<Cow<str>>` it never is.)
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
    /// Output has none.
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
}

/// The version alone, of a `start` record of any version.
#[derive(Deserialize)]
struct Version {
    v: u64,
}

/// Reads a line, with its newline.
pub(crate) fn parse(line: &[u8]) -> Result<Line<'_>, Bad> {
    match fast_path::parse(line) {
        Some(output) => Ok(Line::Output(output)),
        None => parse_json(line),
    }
}

pub(super) fn parse_json(line: &[u8]) -> Result<Line<'_>, Bad> {
    let torn = |error: &dyn std::fmt::Display| Bad::TruncatedTail(error.to_string());
    let Some((b'\n', json)) = line.split_last() else {
        return Err(Bad::TruncatedTail("it has no newline".into()));
    };
    let text = std::str::from_utf8(json).map_err(|error| torn(&error))?;
    if !text.starts_with(r#"{"type""#)
        && let Ok(wire) = serde_json::from_str::<Wire<'_>>(text)
        && wire.kind.is_none()
    {
        return output(wire);
    }
    let Kind { kind } = serde_json::from_str(text).map_err(|error| torn(&error))?;
    match kind {
        Some(Text(kind)) => event(text, kind),
        None => match serde_json::from_str::<Wire<'_>>(text) {
            Ok(wire) => output(wire),
            Err(error) => Err(torn(&error)),
        },
    }
}

fn output(wire: Wire<'_>) -> Result<Line<'_>, Bad> {
    let bytes = match (wire.line, wire.b64) {
        (Some(Text(Cow::Borrowed(line))), None) => Cow::Borrowed(line.as_bytes()),
        (Some(Text(Cow::Owned(line))), None) => Cow::Owned(line.into_bytes()),
        (None, Some(Text(text))) => Cow::Owned(
            STANDARD
                .decode(text.as_bytes())
                .map_err(|error| Bad::TruncatedTail(format!("b64: {error}")))?,
        ),
        _ => return Err(Bad::TruncatedTail("output has one of line and b64".into())),
    };
    Ok(Line::Output(OutputLine {
        ts: wire.ts,
        stream: wire.stream,
        bytes,
        partial: wire.partial,
        lossy: wire.lossy,
    }))
}

fn event<'a>(text: &str, kind: Cow<'a, str>) -> Result<Line<'a>, Bad> {
    if kind == "start" {
        let version: Version =
            serde_json::from_str(text).map_err(|error| Bad::TruncatedTail(error.to_string()))?;
        if version.v != u64::from(Start::VERSION) {
            return Err(Bad::Foreign(format!(
                "it has version {} of the format; this library reads version {}",
                version.v,
                Start::VERSION
            )));
        }
    }
    match serde_json::from_str::<Event>(text) {
        Ok(event) => Ok(Line::Event(event)),
        Err(error) => match &*kind {
            // These two carry the file: who cannot read them cannot read it.
            "start" | "end" => Err(Bad::Foreign(error.to_string())),
            "check" => Err(Bad::TruncatedTail(error.to_string())),
            // A value that a later writer has added: as good as a type that it has added.
            _ => Ok(Line::Unknown(kind)),
        },
    }
}

/// The digested part of a sealing line, and the digest that it states.
///
/// `None` if the line does not end in exactly `,"sha256":"<64 hex>"}` and a newline.
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

/// Whether a whole line was a seal before something damaged it.
pub(crate) fn begins_as_seal(line: &[u8]) -> bool {
    line.starts_with(END_HEAD)
}

/// Whether a line has zeros: no record does, but a file has them where a failure of the power lost
/// what was written.
pub(crate) fn has_zeros(line: &[u8]) -> bool {
    memchr::memchr(0, line).is_some()
}

/// A digest in hexadecimal, as the file has it.
pub(crate) fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(digest.len() * 2);
    for byte in digest {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

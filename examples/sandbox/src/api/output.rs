//! Output as events: text where it is UTF-8, else base64.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use moat::outcome::Outcome;
use moat::state::RunStatus;
use moat::{Verdict, outcome};
use serde::Serialize;
use utoipa::ToSchema;

/// Output of a command.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// The output, if it is UTF-8.
    Text(String),
    /// The output in base64, if it is not.
    Base64(String),
}

/// Converts one stream, and keeps a character that is cut until its rest arrives.
#[derive(Debug, Default)]
pub struct Decoder {
    cut: Vec<u8>,
}

impl Decoder {
    pub fn decode(&mut self, bytes: &[u8]) -> Option<Output> {
        self.cut.extend_from_slice(bytes);
        let mut bytes = std::mem::take(&mut self.cut);
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
        {
            self.cut = bytes.split_off(error.valid_up_to());
        }
        output(bytes)
    }

    /// Returns the cut character at the end of the stream.
    pub fn finish(&mut self) -> Option<Output> {
        output(std::mem::take(&mut self.cut))
    }
}

fn output(bytes: Vec<u8>) -> Option<Output> {
    if bytes.is_empty() {
        return None;
    }
    Some(match String::from_utf8(bytes) {
        Ok(text) => Output::Text(text),
        Err(error) => Output::Base64(BASE64_STANDARD.encode(error.as_bytes())),
    })
}

/// The end of a command.
#[derive(Debug, Serialize, ToSchema)]
pub struct End {
    /// The command.
    pub exec: String,
    /// The exit code.
    code: Option<i64>,
    /// Its ending: `exited`, or `failed to start`, `removed`, `lost`.
    #[schema(value_type = String)]
    ending: RunStatus,
    /// Why the server killed it: `time_limit`, `silence_limit`, `output_limit`, `cancelled`.
    #[schema(value_type = Option<String>)]
    stopped: Option<outcome::StopCause>,
    /// The verdict of its audit file: `complete`, `unproven`, `gap`. Null: it is not sealed yet.
    #[schema(value_type = Option<String>)]
    verdict: Option<Verdict>,
}

impl End {
    pub fn new(exec: String, outcome: &Outcome) -> Self {
        Self {
            exec,
            code: outcome.code(),
            ending: RunStatus::from(&outcome.ending),
            stopped: outcome.stopped(),
            verdict: outcome.sealed().map(|seal| seal.verdict),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(chunks: &[&[u8]]) -> Vec<Option<Output>> {
        let mut decoder = Decoder::default();
        let mut all: Vec<_> = chunks.iter().map(|chunk| decoder.decode(chunk)).collect();
        all.push(decoder.finish());
        all
    }

    fn text(text: &str) -> Option<Output> {
        Some(Output::Text(text.into()))
    }

    #[test]
    fn a_character_in_two_chunks_stays_whole() {
        let bytes = "a€b".as_bytes();
        assert_eq!(
            decoded(&[&bytes[..2], &bytes[2..]]),
            [text("a"), text("€b"), None]
        );
        assert_eq!(
            decoded(&[&bytes[1..2], &bytes[2..3]]),
            [None, None, base64(&bytes[1..3])]
        );
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_base64() {
        assert_eq!(
            decoded(&[b"\xff\x00", b"ok"]),
            [base64(b"\xff\x00"), text("ok"), None]
        );
    }

    fn base64(bytes: &[u8]) -> Option<Output> {
        Some(Output::Base64(BASE64_STANDARD.encode(bytes)))
    }
}

//! The records of an audit log.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::outcome::{Seal, StopCause, Stream};
use crate::runtime::LogConfig;
use crate::spec::{ContainerId, RunRecord};
use crate::timestamp::Timestamp;

/// A record that is not output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The first record: what is to be run.
    Start(Box<Start>),
    /// The container has started.
    Started(Box<Started>),
    /// Another process, or the same one after a fault, goes on with the file.
    Resume(Resume),
    /// Something is missing, or may be.
    Gap(Gap),
    /// moat was asked to stop the run, or had to.
    Stop(Stop),
    /// Something that a reader may want to know.
    Note {
        /// When.
        ts: Timestamp,
        /// What, in words.
        text: String,
        /// What someone did who sat in front of the run, if that is what it is about.
        #[serde(flatten)]
        interaction: Option<Interaction>,
    },
    /// What was written to the standard input: only where the spec asked for that.
    Stdin(StdinChunk),
    /// SHA-256, in hexadecimal, of every byte of the file before this line. Only files have it.
    Check {
        /// The digest.
        sha256: String,
    },
    /// The last record.
    End(Box<Seal>),
}

impl Event {
    /// A note, now.
    pub fn note(text: impl Into<String>) -> Self {
        Self::Note {
            ts: Timestamp::now(),
            text: text.into(),
            interaction: None,
        }
    }
}

/// What someone did who sat in front of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Interaction {
    /// What.
    pub action: Action,
    /// The id of the process that did it.
    pub pid: u32,
    /// Which of that process's attachments it was, counted from 1.
    pub attachment: u64,
}

impl Interaction {
    /// An action of this process.
    pub fn new(action: Action, attachment: u64) -> Self {
        Self {
            action,
            pid: std::process::id(),
            attachment,
        }
    }
}

/// What someone can do who sits in front of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// Look on.
    Attach,
    /// Look on, and write to the standard input.
    AttachInput,
    /// Leave, while the run goes on.
    Detach,
    /// Change the size of the terminal.
    Resize,
    /// End the standard input.
    InputEnd,
    /// Go without ending the standard input, which the container sees as its end all the same.
    InputLost,
    /// Run a further process in the container.
    Exec,
}

/// Bytes that were written to the standard input, in the order of the records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenText", into = "WrittenText")]
#[non_exhaustive]
pub struct StdinChunk {
    /// When the engine had taken them.
    pub ts: Timestamp,
    /// The bytes, cut anywhere.
    pub bytes: Vec<u8>,
}

impl StdinChunk {
    /// Bytes that the engine has taken now.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            ts: Timestamp::now(),
            bytes: bytes.into(),
        }
    }
}

/// The same, as a file has it.
#[derive(Serialize, Deserialize)]
struct WrittenText {
    ts: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b64: Option<String>,
}

impl From<StdinChunk> for WrittenText {
    fn from(written: StdinChunk) -> Self {
        let (text, b64) = match String::from_utf8(written.bytes) {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
        };
        Self {
            ts: written.ts,
            text,
            b64,
        }
    }
}

impl TryFrom<WrittenText> for StdinChunk {
    type Error = &'static str;

    fn try_from(written: WrittenText) -> Result<Self, Self::Error> {
        let bytes = match (written.text, written.b64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(b64)) => STANDARD.decode(b64).map_err(|_| "b64 is not base64")?,
            _ => return Err("input has one of text and b64"),
        };
        Ok(Self {
            ts: written.ts,
            bytes,
        })
    }
}

/// The first record of a log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Start {
    /// The version of the format: 1.
    pub v: u32,
    /// When it was written.
    pub ts: Timestamp,
    /// The number of the further process in the run's container that the log is of; `None`: it is
    /// of the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<u32>,
    /// What is to be run.
    #[serde(flatten)]
    pub record: RunRecord,
}

impl From<Start> for Event {
    fn from(start: Start) -> Self {
        Self::Start(Box::new(start))
    }
}

impl Start {
    /// The version of the format that this library writes.
    pub const VERSION: u32 = 1;

    /// The first record of the log of this run.
    pub fn new(record: RunRecord) -> Self {
        Self {
            v: Self::VERSION,
            ts: Timestamp::now(),
            exec: None,
            record,
        }
    }
}

/// The container has started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Started {
    /// When it was written.
    pub ts: Timestamp,
    /// The container.
    pub container: ContainerId,
    /// When it started, by the engine's clock. Another time later is another execution.
    pub started_at: Option<Timestamp>,
    /// The digest of the image, as the engine resolved it.
    pub image_digest: Option<String>,
    /// How the engine keeps the output, with the engine's defaults merged in.
    pub log: LogConfig,
    /// The engine's name.
    pub engine: String,
    /// The engine's version.
    pub engine_version: String,
    /// What tells the engine from all others, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_id: Option<String>,
    /// What the engine warned of when it made the container.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Another process, or the same one after a fault, goes on with the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Resume {
    /// When.
    pub ts: Timestamp,
    /// Why.
    pub cause: ResumeCause,
    /// What was cut off at the end of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torn: Option<TruncatedTail>,
}

impl Resume {
    /// A file is gone on with, now.
    pub fn new(cause: ResumeCause, torn: Option<TruncatedTail>) -> Self {
        Self {
            ts: Timestamp::now(),
            cause,
            torn,
        }
    }
}

/// What was not whole at the end of a log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TruncatedTail {
    /// How many bytes were moved aside.
    pub bytes: u64,
    /// The name of the file, beside the log, that they are in now.
    pub file: String,
}

/// Why a file was gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResumeCause {
    /// The process that owned the run has gone.
    Reopened,
    /// The sink had failed.
    Sink,
}

/// Something is missing, or may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Gap {
    /// When it was found.
    pub ts: Timestamp,
    /// The stream; `None`: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// Why.
    pub reason: GapReason,
    /// Whether it is only possible that something is missing.
    #[serde(default)]
    pub possible: bool,
    /// How many bytes, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How many lines, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
    /// More, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Gap {
    /// Something is missing for `reason`; how much is not known.
    pub fn new(reason: GapReason) -> Self {
        Self {
            ts: Timestamp::now(),
            stream: None,
            reason,
            possible: false,
            bytes: None,
            lines: None,
            detail: None,
        }
    }

    /// Something may be missing for `reason`.
    pub fn possible(reason: GapReason) -> Self {
        Self {
            possible: true,
            ..Self::new(reason)
        }
    }
}

/// Why something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GapReason {
    /// The tap was lost, and nothing stood behind it.
    NoBackstop,
    /// The engine's log has less than what was captured already.
    LogShorter,
    /// The engine's log differs from what was captured already.
    LogDiffers,
    /// The engine's log could not be read.
    LogUnreadable,
    /// The container was removed by others before its log could be read.
    Removed,
    /// The container was started again by others: what it prints then is another execution's.
    StartedAgain,
    /// The engine gives up on output that it has not read for some time after the end, and the
    /// output was not at its end by then.
    LateDrain,
    /// The engine was, or may have been, restarted since it started the container: what it had
    /// taken of the output and not passed on yet is lost.
    EngineRestarted,
    /// The run's output limit was reached.
    OutputLimit,
    /// A sink lost records that nothing could bring back.
    Sink,
}

/// moat was asked to stop the run, or had to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stop {
    /// When.
    pub ts: Timestamp,
    /// Why.
    pub cause: StopCause,
    /// The signal.
    pub signal: String,
    /// Seconds until SIGKILL, where that was not the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<f64>,
    /// The id of the process that asked for it, where that was not the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_pid: Option<u32>,
}

impl Stop {
    /// A stop, now.
    pub fn new(cause: StopCause, signal: impl Into<String>, grace_seconds: Option<f64>) -> Self {
        Self {
            ts: Timestamp::now(),
            cause,
            signal: signal.into(),
            grace_seconds,
            by_pid: None,
        }
    }
}

/// A record of output, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// When it was received; on a replay, by the reader of the engine's log.
    pub ts: Timestamp,
    /// The stream.
    pub stream: Stream,
    /// A line without its newline, or a part of one.
    pub bytes: Vec<u8>,
    /// Whether no newline followed these bytes.
    pub partial: bool,
    /// Whether the engine's log has replaced bytes of it, or may have.
    pub lossy: bool,
}

impl Output {
    /// A whole line, without its newline, whose bytes are as they were printed.
    pub fn new(ts: Timestamp, stream: Stream, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            ts,
            stream,
            bytes: bytes.into(),
            partial: false,
            lossy: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_comes_back_from_its_record_whatever_its_bytes_are() {
        for bytes in [&b"ls -l\r"[..], b"", b"\xff\x00\xfe"] {
            let event = Event::Stdin(StdinChunk::new(bytes));
            let json = serde_json::to_string(&event).unwrap();
            assert!(json.starts_with(r#"{"type":"stdin","ts":"#), "{json}");
            assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        }
    }

    #[test]
    fn a_note_is_read_with_and_without_what_someone_did() {
        let interaction = Interaction::new(Action::Resize, 3);
        for interaction in [None, Some(interaction)] {
            let event = Event::Note {
                ts: Timestamp::now(),
                text: "words".into(),
                interaction,
            };
            let json = serde_json::to_string(&event).unwrap();
            assert_eq!(json.contains("action"), interaction.is_some(), "{json}");
            assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        }
        let later = r#"{"type":"note","ts":"2026-11-22T18:23:25.491211661Z","text":"words","action":"sing","pid":1,"attachment":1}"#;
        assert!(matches!(
            serde_json::from_str(later),
            Ok(Event::Note {
                interaction: None,
                ..
            })
        ));
    }
}

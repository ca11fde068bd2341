//! The records of an audit file.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::outcome::{Seal, StopCause, Stream};
use crate::runtime::LogConfig;
use crate::spec::{ContainerId, RunRecord};
use crate::timestamp::Timestamp;

/// A record other than output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The first record: the run's settings.
    Start(Box<Start>),
    /// The engine has created an exec, which moat may have to kill, and has not started it.
    ExecCreated(ExecCreated),
    /// The container has started.
    Started(Box<Started>),
    /// A process continues the file after its writer died, or after a fault.
    Resume(Resume),
    /// Data is missing, or may be.
    Gap(Gap),
    /// moat stops the run, on request or at a limit.
    Stop(Stop),
    /// Information for a reader.
    Note {
        /// The time of the note.
        ts: Timestamp,
        /// The text.
        text: String,
        /// The action of an attachment, if the note is about one.
        #[serde(flatten)]
        interaction: Option<Interaction>,
    },
    /// Standard input, recorded only if the spec requests it.
    Stdin(StdinChunk),
    /// The digest of the file so far. Only files have this record.
    Check {
        /// The SHA-256 of every byte before this line, in hexadecimal.
        sha256: String,
    },
    /// The last record: the seal.
    End(Box<Seal>),
}

impl Event {
    /// Creates a note with the current time.
    pub fn note(text: impl Into<String>) -> Self {
        Self::Note {
            ts: Timestamp::now(),
            text: text.into(),
            interaction: None,
        }
    }
}

/// An action of an attachment to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Interaction {
    /// The action.
    pub action: Action,
    /// The id of the process that acted, or that detected the action of a dead process.
    pub pid: u32,
    /// The number of the attachment in that process, counted from 1.
    ///
    /// It is 0 if the process only detected the action.
    pub attachment: u64,
}

impl Interaction {
    /// Creates an interaction of this process.
    pub fn new(action: Action, attachment: u64) -> Self {
        Self {
            action,
            pid: std::process::id(),
            attachment,
        }
    }
}

/// The kind of an action of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// Attach to the output.
    Attach,
    /// Attach to the output and the standard input.
    AttachInput,
    /// Detach while the run continues.
    Detach,
    /// Resize the terminal.
    Resize,
    /// End the standard input.
    InputEnd,
    /// Disconnect without ending the standard input.
    ///
    /// The container still sees the end of its input.
    InputLost,
    /// Start an exec in the container.
    Exec,
}

/// A chunk of the bytes that were written to the standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StdinWire", into = "StdinWire")]
#[non_exhaustive]
pub struct StdinChunk {
    /// The time at which the engine had accepted the bytes.
    pub ts: Timestamp,
    /// The bytes, split at arbitrary positions.
    pub bytes: Vec<u8>,
}

impl StdinChunk {
    /// Creates a chunk of bytes that the engine has just accepted.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            ts: Timestamp::now(),
            bytes: bytes.into(),
        }
    }
}

/// The form of a [`StdinChunk`] in the file.
#[derive(Serialize, Deserialize)]
struct StdinWire {
    ts: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b64: Option<String>,
}

impl From<StdinChunk> for StdinWire {
    fn from(chunk: StdinChunk) -> Self {
        let (text, b64) = match String::from_utf8(chunk.bytes) {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
        };
        Self {
            ts: chunk.ts,
            text,
            b64,
        }
    }
}

impl TryFrom<StdinWire> for StdinChunk {
    type Error = &'static str;

    fn try_from(wire: StdinWire) -> Result<Self, Self::Error> {
        let bytes = match (wire.text, wire.b64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(b64)) => STANDARD.decode(b64).map_err(|_| "b64 is not base64")?,
            _ => return Err("input must have either text or b64"),
        };
        Ok(Self { ts: wire.ts, bytes })
    }
}

/// The first record of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Start {
    /// The version of the format: 1.
    pub v: u32,
    /// The time of the record.
    pub ts: Timestamp,
    /// The number of the exec that the file records; `None` for the run itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<u32>,
    /// The settings of the run.
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

    /// Creates the first record of a run's file.
    pub fn new(record: RunRecord) -> Self {
        Self {
            v: Self::VERSION,
            ts: Timestamp::now(),
            exec: None,
            record,
        }
    }
}

/// The record of an exec that the engine has created.
///
/// Only an exec that moat may have to kill has it: one with a limit that stops it, or with a stop
/// token. It is written before the engine starts the exec, so that a later owner can kill the exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExecCreated {
    /// The time of the record.
    pub ts: Timestamp,
    /// The runtime's id of the exec.
    pub id: String,
    /// True if the exec is stopped when a token of its owner is cancelled.
    pub stop_token: bool,
}

impl ExecCreated {
    /// Creates a record with the current time.
    pub fn new(id: impl Into<String>, stop_token: bool) -> Self {
        Self {
            ts: Timestamp::now(),
            id: id.into(),
            stop_token,
        }
    }
}

/// The record of a started container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Started {
    /// The time of the record.
    pub ts: Timestamp,
    /// The engine's id of the container.
    pub container: ContainerId,
    /// The start time by the engine's clock.
    ///
    /// If the engine reports a different time later, the container was started again.
    pub started_at: Option<Timestamp>,
    /// The digest of the image, as the engine resolved it.
    pub image_digest: Option<String>,
    /// The engine's log configuration, with the engine's defaults merged in.
    pub log: LogConfig,
    /// The engine's name.
    pub engine: String,
    /// The engine's version.
    pub engine_version: String,
    /// The engine's unique id, if it reports one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_id: Option<String>,
    /// The engine's warnings when it created the container, after the reason for a local image.
    ///
    /// With [`Pull::Newer`](crate::spec::Pull::Newer), a failed pull leads to the local image.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The record of a writer that continues a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Resume {
    /// The time of the record.
    pub ts: Timestamp,
    /// The reason.
    pub cause: ResumeCause,
    /// The bytes at the end of the file that were moved aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torn: Option<TruncatedTail>,
}

impl Resume {
    /// Creates a record with the current time.
    pub fn new(cause: ResumeCause, torn: Option<TruncatedTail>) -> Self {
        Self {
            ts: Timestamp::now(),
            cause,
            torn,
        }
    }
}

/// The end of a file that was moved aside, because it was incomplete or damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TruncatedTail {
    /// The number of bytes moved aside.
    pub bytes: u64,
    /// The name of the file that now contains these bytes, in the same directory.
    pub file: String,
}

impl TruncatedTail {
    /// Creates the description of `bytes` bytes that were moved to `file`.
    pub fn new(bytes: u64, file: impl Into<String>) -> Self {
        Self {
            bytes,
            file: file.into(),
        }
    }
}

/// The reason why a writer continues a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResumeCause {
    /// The process that owned the run is gone.
    Reopened,
    /// The sink failed.
    Sink,
}

/// The record of missing or possibly missing data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Gap {
    /// The time at which the gap was detected.
    pub ts: Timestamp,
    /// The stream. `None` means that any stream may be affected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Stream>,
    /// The reason.
    pub reason: GapReason,
    /// True if data may be missing; false if it is certainly missing.
    #[serde(default)]
    pub possible: bool,
    /// The number of missing bytes, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Details, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Gap {
    /// Creates a gap of unknown size.
    pub fn new(reason: GapReason) -> Self {
        Self {
            ts: Timestamp::now(),
            stream: None,
            reason,
            possible: false,
            bytes: None,
            detail: None,
        }
    }

    /// Creates a gap of unknown size whose data may be missing.
    pub fn possible(reason: GapReason) -> Self {
        Self {
            possible: true,
            ..Self::new(reason)
        }
    }
}

/// The reason of a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GapReason {
    /// The tap was lost, and there is no engine log to replay.
    NoBackstop,
    /// The engine's log is shorter than the captured output.
    LogShorter,
    /// The engine's log differs from the captured output.
    LogDiffers,
    /// The engine's log could not be read.
    LogUnreadable,
    /// The container was removed externally before its log could be read.
    Removed,
    /// The container was started again externally.
    ///
    /// Later output belongs to another execution.
    StartedAgain,
    /// The engine stopped reading the output before its end.
    ///
    /// An engine reads output only for a limited time after the exit.
    LateDrain,
    /// The output comes from a log that the engine rotates, so that any of it may be missing.
    LogRotated,
    /// The engine was, or may have been, restarted since it created the container.
    ///
    /// Output that the engine had read but not delivered is lost. An engine that was killed
    /// while it started the container may not know whether it ran.
    EngineRestarted,
    /// The container is gone with its node before its output was read.
    NodeLost,
    /// The run's output limit was reached.
    OutputLimit,
    /// The sink lost records that could not be recovered.
    Sink,
    /// The process that recovered the run did not know the values to mask, so it recorded no
    /// output.
    MasksMissing,
}

impl GapReason {
    /// The name of the reason in the audit file: `no_backstop`, for example.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoBackstop => "no_backstop",
            Self::LogShorter => "log_shorter",
            Self::LogDiffers => "log_differs",
            Self::LogUnreadable => "log_unreadable",
            Self::Removed => "removed",
            Self::StartedAgain => "started_again",
            Self::LateDrain => "late_drain",
            Self::LogRotated => "log_rotated",
            Self::EngineRestarted => "engine_restarted",
            Self::NodeLost => "node_lost",
            Self::OutputLimit => "output_limit",
            Self::Sink => "sink",
            Self::MasksMissing => "masks_missing",
        }
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The record of a stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stop {
    /// The time at which the stop began.
    pub ts: Timestamp,
    /// The reason.
    pub cause: StopCause,
    /// The signal.
    pub signal: String,
    /// The seconds until SIGKILL, unless SIGKILL was the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<f64>,
    /// The id of the process that requested the stop, unless it was the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_pid: Option<u32>,
}

impl Stop {
    /// Creates a stop with the current time.
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

/// An owned record of output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// The time of the last byte, by the clock of [`engine_time`](Self::engine_time).
    pub ts: Timestamp,
    /// The stream.
    pub stream: Stream,
    /// A line without its newline, or a part of a line.
    pub bytes: Vec<u8>,
    /// True if no newline followed the bytes.
    pub partial: bool,
    /// True if the engine's log has replaced some of the bytes, or may have.
    pub lossy: bool,
    /// True if `ts` is the time in the engine's log.
    ///
    /// False: it is the time at which moat received the bytes.
    pub engine_time: bool,
}

impl Output {
    /// Creates a record of a whole line, without its newline, that no log has changed.
    pub fn new(ts: Timestamp, stream: Stream, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            ts,
            stream,
            bytes: bytes.into(),
            partial: false,
            lossy: false,
            engine_time: false,
        }
    }
}

/// The time of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutputTime {
    pub(crate) ts: Timestamp,
    /// True if the time is from the engine's log.
    pub(crate) engine_time: bool,
}

impl From<Timestamp> for OutputTime {
    /// The time of receipt.
    fn from(ts: Timestamp) -> Self {
        Self {
            ts,
            engine_time: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_of_any_bytes_round_trips() {
        for bytes in [&b"ls -l\r"[..], b"", b"\xff\x00\xfe"] {
            let event = Event::Stdin(StdinChunk::new(bytes));
            let json = serde_json::to_string(&event).unwrap();
            assert!(json.starts_with(r#"{"type":"stdin","ts":"#), "{json}");
            assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
        }
    }

    #[test]
    fn a_note_parses_with_and_without_an_action() {
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

    #[test]
    fn a_gap_reason_is_displayed_as_it_is_written() {
        for reason in [
            GapReason::NoBackstop,
            GapReason::LogShorter,
            GapReason::LogDiffers,
            GapReason::LogUnreadable,
            GapReason::Removed,
            GapReason::StartedAgain,
            GapReason::LateDrain,
            GapReason::LogRotated,
            GapReason::EngineRestarted,
            GapReason::NodeLost,
            GapReason::OutputLimit,
            GapReason::Sink,
            GapReason::MasksMissing,
        ] {
            let json = serde_json::to_value(reason).unwrap();
            assert_eq!(json, reason.to_string());
        }
    }

    #[test]
    fn a_gap_with_unknown_fields_parses() {
        let json =
            r#"{"type":"gap","ts":"2026-11-22T18:23:25.491211661Z","reason":"sink","lines":3}"#;
        let event = serde_json::from_str::<Event>(json).unwrap();
        assert!(matches!(event, Event::Gap(gap) if gap.reason == GapReason::Sink));
    }
}

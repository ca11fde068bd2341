//! The engine's log of a container.

use std::collections::BTreeMap;

#[cfg(doc)]
use super::Runtime;

/// The configuration of an engine's log of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct LogConfig {
    /// The driver's name, as the engine spells it: `json-file`.
    pub driver: String,
    /// The driver's options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The log's effect on the bytes; `None`: the log cannot be read again.
    pub fidelity: Option<LogFidelity>,
}

/// The effect of an engine's log on the bytes that it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LogFidelity {
    /// The log keeps every byte.
    #[serde(rename = "exact")]
    Lossless,
    /// The log replaces invalid UTF-8, as Docker's `json-file` does.
    ///
    /// It cuts lines into pieces of 16,384 bytes, even within a character. It replaces each byte
    /// of a piece that is not valid UTF-8 by U+FFFD.
    #[serde(rename = "utf8")]
    Utf8Lossy,
    /// The log loses output when it is rotated, and may change bytes. It is the only source.
    #[serde(rename = "rotated")]
    Rotated,
}

/// The part of an engine's log that [`Runtime::logs`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LogsRequest {
    /// True if the container has a terminal.
    pub tty: bool,
    /// True to continue with live output until the container ends.
    ///
    /// Such a stream may lose its end.
    pub follow: bool,
    /// The number of records at the end of the log to read; `None`: all.
    pub tail: Option<u32>,
    /// True to set [`Chunk::logged_at`](super::Chunk::logged_at).
    ///
    /// An engine that does not send exact times with unchanged bytes leaves them out.
    pub timestamps: bool,
}

impl LogsRequest {
    /// Reads the whole log.
    pub fn all(tty: bool) -> Self {
        Self {
            tty,
            follow: false,
            tail: None,
            timestamps: false,
        }
    }

    /// Reads the whole log, then live output.
    pub fn follow(tty: bool) -> Self {
        Self {
            follow: true,
            ..Self::all(tty)
        }
    }

    /// Reads the last `records` records.
    pub fn tail(tty: bool, records: u32) -> Self {
        Self {
            tail: Some(records),
            ..Self::all(tty)
        }
    }

    /// Sets [`timestamps`](Self::timestamps).
    pub fn with_timestamps(mut self, timestamps: bool) -> Self {
        self.timestamps = timestamps;
        self
    }
}

//! How a run ended, and how sure moat is of what it captured.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::{ContainerId, RunId};
use crate::timestamp::Timestamp;

/// One of a container's streams of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The terminal: both, as one.
    Tty,
}

impl Stream {
    /// All streams.
    pub const ALL: [Self; 3] = [Self::Stdout, Self::Stderr, Self::Tty];

    /// The stream's name in the audit file: `stdout`, `stderr` or `tty`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Tty => "tty",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value for each stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PerStream<T> {
    /// That of standard output.
    pub stdout: T,
    /// That of standard error.
    pub stderr: T,
    /// That of the terminal.
    pub tty: T,
}

impl<T> std::ops::Index<Stream> for PerStream<T> {
    type Output = T;

    fn index(&self, stream: Stream) -> &T {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
            Stream::Tty => &self.tty,
        }
    }
}

impl<T> std::ops::IndexMut<Stream> for PerStream<T> {
    fn index_mut(&mut self, stream: Stream) -> &mut T {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
            Stream::Tty => &mut self.tty,
        }
    }
}

impl PerStream<u64> {
    /// The sum over the streams.
    pub fn total(&self) -> u64 {
        self.stdout + self.stderr + self.tty
    }
}

/// How a run ended. It is immutable: the first one that is known stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ending {
    /// The container ran, and ended.
    Exited(Exit),
    /// The container was made, but the engine could not start it.
    FailedToStart {
        /// Why, in the engine's words, without secrets.
        reason: String,
    },
    /// The container was never made.
    NotCreated {
        /// Why, without secrets.
        reason: String,
        /// Whether the process that should have made it died.
        aborted: bool,
    },
    /// Someone else removed the container.
    Removed {
        /// The exit code, if the engine still told it.
        code: Option<i64>,
    },
    /// What became of the container cannot be known any more.
    Lost {
        /// Why.
        reason: String,
    },
}

impl Ending {
    pub(crate) fn not_created(reason: String) -> Self {
        Self::NotCreated {
            reason,
            aborted: false,
        }
    }

    pub(crate) fn failed_to_start(reason: String) -> Self {
        Self::FailedToStart { reason }
    }

    /// The same ending, with its words changed: for taking out secrets.
    pub(crate) fn redacted(mut self, redact: impl Fn(&str) -> String) -> Self {
        match &mut self {
            Self::FailedToStart { reason }
            | Self::NotCreated { reason, .. }
            | Self::Lost { reason } => *reason = redact(reason),
            Self::Exited(exit) => exit.error = exit.error.as_deref().map(redact),
            Self::Removed { .. } => {}
        }
        self
    }

    /// The exit code, where there is one.
    pub fn code(&self) -> Option<i64> {
        match self {
            Self::Exited(exit) => exit.code,
            Self::Removed { code } => *code,
            _ => None,
        }
    }

    /// Whether the container ran, ended by itself or by a signal, with code 0.
    pub fn success(&self) -> bool {
        matches!(self, Self::Exited(Exit { code: Some(0), .. }))
    }

    /// Whether the container was never started.
    pub fn never_started(&self) -> bool {
        matches!(self, Self::FailedToStart { .. } | Self::NotCreated { .. })
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(exit) => exit.fmt(f),
            Self::FailedToStart { reason } => write!(f, "failed to start: {reason}"),
            Self::NotCreated { reason, .. } => write!(f, "not created: {reason}"),
            Self::Removed { code: Some(code) } => write!(f, "removed by others, exit code {code}"),
            Self::Removed { code: None } => f.write_str("removed by others"),
            Self::Lost { reason } => write!(f, "lost: {reason}"),
        }
    }
}

/// How a container ended, as its engine tells it. Nothing is inferred from the code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Exit {
    /// The exit code; `None` where the engine does not know it.
    pub code: Option<i64>,
    /// Whether the engine says that the container was killed for want of memory.
    pub oom_killed: bool,
    /// The engine's own error, if it has one.
    pub error: Option<String>,
    /// When it started, by the engine's clock.
    pub started_at: Option<Timestamp>,
    /// When it ended, by the engine's clock.
    pub finished_at: Option<Timestamp>,
}

impl Exit {
    /// An exit with this code.
    pub fn with_code(code: i64) -> Self {
        Self {
            code: Some(code),
            ..Self::default()
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "exited with code {code}")?,
            None => f.write_str("exited with a code that the engine does not know")?,
        }
        if self.oom_killed {
            f.write_str(", out of memory")?;
        }
        if let Some(error) = &self.error {
            write!(f, ": {error}")?;
        }
        Ok(())
    }
}

/// Why moat stopped a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopCause {
    /// The caller asked for it.
    Requested,
    /// The caller asked for a kill.
    Killed,
    /// The time limit was reached.
    TimeLimit,
    /// The output limit was reached.
    OutputLimit,
    /// Nothing was printed for longer than the silence limit.
    SilenceLimit,
    /// A token that was to stop it was cancelled.
    Cancelled,
    /// The manager was shut down with the runs stopped.
    ShutdownMode,
}

/// What the audit file says of its own completeness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// Every byte of every stream is there.
    Complete,
    /// Every line is there; in some, marked `lossy`, the engine's log has replaced bytes.
    Lossy,
    /// Something is missing, or may be: the `gap` records say what, and why.
    Gap,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Lossy => "lossy",
            Self::Gap => "gap",
        })
    }
}

/// What a verdict stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Evidence {
    /// The container never ran: there was nothing to capture.
    NeverStarted,
    /// The tap came to its end, and the tail of the engine's log agrees with it.
    Tail,
    /// The engine's log was read from its start to its end, after the exit.
    Replay,
    /// The tap came to its end, and nothing stood behind it.
    Eof,
    /// None: what was captured could not be checked against anything.
    None,
}

/// The seal: what the last record of a sealed audit file says of the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Seal {
    /// When the file was sealed.
    pub ts: Timestamp,
    /// How the run ended.
    pub exit: Ending,
    /// What the file says of its own completeness.
    pub verdict: Verdict,
    /// What that stands on.
    pub evidence: Evidence,
    /// The number of output records.
    pub records: u64,
    /// The bytes of output in them, newlines included, by stream.
    pub bytes: PerStream<u64>,
    /// The number of `gap` records.
    #[serde(default)]
    pub gaps: u64,
    /// Why moat stopped the run, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StopCause>,
    /// The engine's id of the container, where one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
    /// The digest of the image, as the engine resolved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Seconds from the engine's answer that the container had ended until all was captured.
    #[serde(default)]
    pub capture_seconds: f64,
    /// What was sampled of it while it ran: the most of each, as far as this was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Box<Usage>>,
    /// SHA-256, in hexadecimal, of every byte of the file before this field.
    #[serde(default)]
    pub sha256: String,
}

/// What is known of a run that has ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// The run.
    pub run: RunId,
    /// How it ended.
    pub ending: Ending,
    /// The seal of its audit file.
    pub seal: SealState,
    /// The audit file; `None` where the sink writes none.
    pub audit: Option<PathBuf>,
    /// The last lines of its output, at most 20 and 4 KiB, invalid UTF-8 replaced; empty where
    /// this manager did not capture them.
    pub last_lines: Vec<String>,
    /// What was sampled of it while it ran: the most of each. `None`: its spec did not ask for
    /// that, or nothing was seen.
    pub usage: Option<Usage>,
}

/// Whether the audit file is sealed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum SealState {
    /// It is, and this is its last record.
    Sealed(Box<Seal>),
    /// Not yet: the exit is known, and moat goes on trying.
    Pending {
        /// What stands in the way.
        reason: String,
    },
}

impl Outcome {
    /// The exit code, where there is one.
    pub fn code(&self) -> Option<i64> {
        self.ending.code()
    }

    /// Whether the container ran and ended with code 0.
    pub fn success(&self) -> bool {
        self.ending.success()
    }

    /// Why moat stopped the run, if it did, as far as that is sealed.
    pub fn stopped(&self) -> Option<StopCause> {
        self.sealed().and_then(|seal| seal.stopped)
    }

    /// How a run failed: its ending, why it was stopped, and its last lines, escaped.
    pub(crate) fn failure(&self) -> Failure<'_> {
        Failure(self)
    }

    /// The seal, if the file is sealed.
    pub fn sealed(&self) -> Option<&Seal> {
        match &self.seal {
            SealState::Sealed(seal) => Some(seal),
            SealState::Pending { .. } => None,
        }
    }

    /// How long the container ran, by the engine's clock.
    pub fn duration(&self) -> Option<Duration> {
        match &self.ending {
            Ending::Exited(Exit {
                started_at: Some(start),
                finished_at: Some(end),
                ..
            }) => Some(end.since(*start)),
            _ => None,
        }
    }
}

/// How a run failed, over several lines where it has printed something.
pub(crate) struct Failure<'a>(&'a Outcome);

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.0;
        write!(f, "run {} {}", outcome.run, outcome.ending)?;
        if let Some(cause) = outcome.stopped() {
            write!(f, ", stopped by moat: {cause}")?;
        }
        LastLines(&outcome.last_lines).fmt(f)
    }
}

/// The end of an error's message: the last lines of a run's output, escaped, if there are any.
pub(crate) struct LastLines<'a>(pub(crate) &'a [String]);

impl fmt::Display for LastLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() {
            f.write_str("; its last lines:")?;
        }
        for line in self.0 {
            f.write_str("\n  ")?;
            for character in line.chars() {
                // What a container prints does not steer the terminal that an error is shown on.
                match character.is_control() && character != '\t' {
                    true => write!(f, "{}", character.escape_default())?,
                    false => write!(f, "{character}")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requested => "a stop was requested",
            Self::Killed => "a kill was requested",
            Self::TimeLimit => "its time limit was reached",
            Self::OutputLimit => "its output limit was reached",
            Self::SilenceLimit => "it printed nothing for too long",
            Self::Cancelled => "it was cancelled",
            Self::ShutdownMode => "its manager was shut down",
        })
    }
}

/// The ending of a noun with this count.
fn plural(count: u64) -> &'static str {
    match count {
        1 => "",
        _ => "s",
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {} {}", self.run, self.ending)?;
        match &self.seal {
            SealState::Sealed(seal) => {
                let (records, bytes) = (seal.records, seal.bytes.total());
                write!(
                    f,
                    "; audit {} ({records} record{}, {bytes} byte{})",
                    seal.verdict,
                    plural(records),
                    plural(bytes)
                )
            }
            SealState::Pending { reason } => write!(f, "; not sealed yet: {reason}"),
        }
    }
}

/// What a container uses, or the most of each that was seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// Memory, in bytes, without the file cache that could be taken back at once.
    pub memory: u64,
    /// CPU time since its start, in seconds over all CPUs.
    pub cpu_seconds: f64,
    /// Processes and threads.
    pub pids: u64,
    /// How many samples this is of.
    pub samples: u64,
}

impl Usage {
    /// One sample.
    pub fn new(memory: u64, cpu: Duration, pids: u64) -> Self {
        Self {
            memory,
            // Of so few digits that it reads back as it was written.
            cpu_seconds: cpu.as_micros() as f64 / 1e6,
            pids,
            samples: 1,
        }
    }

    /// The most of each.
    #[must_use]
    pub(crate) fn most(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            cpu_seconds: self.cpu_seconds.max(other.cpu_seconds),
            pids: self.pids.max(other.pids),
            samples: self.samples + other.samples,
        }
    }
}

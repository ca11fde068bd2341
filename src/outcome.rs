//! The ending of a run, and the completeness of its log.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::{ContainerId, RunId};
use crate::timestamp::Timestamp;

/// An output stream of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The terminal, which merges both streams.
    Tty,
    /// Standard output and standard error, from an engine that cannot tell them apart.
    ///
    /// Only a Kubernetes cluster whose pods run without moat's helper has it.
    Merged,
}

impl Stream {
    /// All streams.
    pub const ALL: [Self; 4] = [Self::Stdout, Self::Stderr, Self::Tty, Self::Merged];

    /// Returns the name in the audit file: `stdout`, `stderr`, `tty` or `merged`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Tty => "tty",
            Self::Merged => "merged",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value per stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, bound(serialize = "T: Serialize + Default + PartialEq"))]
pub struct PerStream<T> {
    /// The value of standard output.
    pub stdout: T,
    /// The value of standard error.
    pub stderr: T,
    /// The value of the terminal.
    pub tty: T,
    /// The value of the merged stream.
    #[serde(skip_serializing_if = "is_default")]
    pub merged: T,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl<T> std::ops::Index<Stream> for PerStream<T> {
    type Output = T;

    fn index(&self, stream: Stream) -> &T {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
            Stream::Tty => &self.tty,
            Stream::Merged => &self.merged,
        }
    }
}

impl<T> std::ops::IndexMut<Stream> for PerStream<T> {
    fn index_mut(&mut self, stream: Stream) -> &mut T {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
            Stream::Tty => &mut self.tty,
            Stream::Merged => &mut self.merged,
        }
    }
}

impl PerStream<u64> {
    /// Returns the sum over all streams.
    pub fn total(&self) -> u64 {
        self.stdout + self.stderr + self.tty + self.merged
    }
}

/// The ending of a run. It never changes once it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ending {
    /// The container ran and ended.
    Exited(Exit),
    /// The container was created, but the engine could not start it.
    FailedToStart {
        /// The engine's message, without secrets.
        reason: String,
    },
    /// The container was never created.
    NotCreated {
        /// The reason, without secrets.
        reason: String,
        /// True if the process died before it created the container.
        aborted: bool,
    },
    /// The container was removed externally.
    Removed {
        /// The exit code, if the engine reported it before the removal.
        code: Option<i64>,
    },
    /// The ending of the container can no longer be determined.
    Lost {
        /// The reason.
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

    /// Redacts the engine's messages.
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

    /// Returns the exit code, if there is one.
    pub fn code(&self) -> Option<i64> {
        match self {
            Self::Exited(exit) => exit.code,
            Self::Removed { code } => *code,
            _ => None,
        }
    }

    /// Returns true if the container ran and exited with code 0.
    pub fn success(&self) -> bool {
        matches!(self, Self::Exited(Exit { code: Some(0), .. }))
    }

    /// Returns true if the container never started.
    pub fn never_started(&self) -> bool {
        matches!(self, Self::FailedToStart { .. } | Self::NotCreated { .. })
    }

    /// Returns true if the container certainly started.
    pub(crate) fn proves_start(&self) -> bool {
        matches!(self, Self::Exited(_) | Self::Removed { code: Some(_) })
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(exit) => exit.fmt(f),
            Self::FailedToStart { reason } => write!(f, "failed to start: {reason}"),
            Self::NotCreated { reason, .. } => write!(f, "not created: {reason}"),
            Self::Removed { code: Some(code) } => write!(f, "removed externally, exit code {code}"),
            Self::Removed { code: None } => f.write_str("removed externally"),
            Self::Lost { reason } => write!(f, "lost: {reason}"),
        }
    }
}

/// The exit of a container, as the engine reports it.
///
/// moat infers nothing from the exit code.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Exit {
    /// The exit code; `None` if the engine does not know it.
    pub code: Option<i64>,
    /// True if the container was killed because it was out of memory.
    pub oom_killed: bool,
    /// The engine's error, if it reports one.
    pub error: Option<String>,
    /// The start time, by the engine's clock.
    pub started_at: Option<Timestamp>,
    /// The end time, by the engine's clock.
    pub finished_at: Option<Timestamp>,
}

impl Exit {
    /// Creates an exit that has only a code.
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
            None => f.write_str("exited with an unknown code")?,
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

/// The reason why moat stopped a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopCause {
    /// The caller requested a stop.
    Requested,
    /// The caller requested a kill.
    Killed,
    /// The run reached its time limit.
    TimeLimit,
    /// The run reached its output limit.
    OutputLimit,
    /// The run wrote no output for longer than its silence limit.
    SilenceLimit,
    /// A cancellation token of the run was cancelled.
    Cancelled,
    /// The manager was shut down, which stopped its runs.
    Shutdown,
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
            Self::Shutdown => "its manager was shut down",
        })
    }
}

/// The completeness of an audit file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// The file has every byte of every stream.
    Complete,
    /// The file has every line.
    ///
    /// In lines marked `lossy`, the engine's log replaced bytes.
    Lossy,
    /// Nothing shows that output is missing, and nothing proves that it is not.
    ///
    /// The capture ended normally, but the engine gives no proof of its end. See
    /// [`Evidence::Eof`].
    Unproven,
    /// Output is or may be missing.
    ///
    /// The `gap` records name the range and the reason.
    Gap,
}

impl Verdict {
    /// Returns the verdict of a file, from the number of its gaps, its lossy records, and the
    /// evidence in its seal.
    ///
    /// The most severe finding wins: a reader must learn first that bytes may be missing.
    pub(crate) fn of(gaps: u64, lossy: bool, evidence: Evidence) -> Self {
        match evidence {
            _ if gaps > 0 => Self::Gap,
            Evidence::Eof | Evidence::None => Self::Unproven,
            _ if lossy => Self::Lossy,
            Evidence::NeverStarted | Evidence::EndMarker | Evidence::Tail | Evidence::Replay => {
                Self::Complete
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Lossy => "lossy",
            Self::Unproven => "unproven",
            Self::Gap => "gap",
        })
    }
}

/// The evidence for a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Evidence {
    /// The container never ran, so there was no output.
    NeverStarted,
    /// The source of the output marked its end, after the last byte.
    ///
    /// A connection that breaks or is cut has no such marker.
    EndMarker,
    /// The engine's log has as many records as the capture, and its tail matches.
    Tail,
    /// The engine's log was read from start to end after the exit.
    Replay,
    /// The attachment ended without an error, and nothing else shows that it was complete.
    ///
    /// A connection that a proxy closes early ends in the same way.
    Eof,
    /// The captured output could not be checked.
    None,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverStarted => "never started",
            Self::EndMarker => "the end marker of the output",
            Self::Tail => "the tail of the engine's log",
            Self::Replay => "the whole log of the engine",
            Self::Eof => "the end of the attachment",
            Self::None => "none",
        })
    }
}

/// The last record of a sealed audit file, which summarizes the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Seal {
    /// The time of the seal.
    pub ts: Timestamp,
    /// The ending of the run.
    pub exit: Ending,
    /// The completeness of the file.
    pub verdict: Verdict,
    /// The evidence for the verdict.
    pub evidence: Evidence,
    /// The number of output records.
    pub records: u64,
    /// The bytes of output in these records, per stream, newlines included.
    pub bytes: PerStream<u64>,
    /// The number of `gap` records.
    #[serde(default)]
    pub gaps: u64,
    /// The number of replacements by [`mask`](crate::spec::RunSpec::mask) in the output. `None`: the
    /// run has no masks, or a process died and the engine's log was not read again after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked: Option<u64>,
    /// The reason why moat stopped the run, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StopCause>,
    /// The engine's id of the container, if one was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
    /// The digest of the image that the engine used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Seconds from the engine's report of the end to the end of the capture.
    #[serde(default)]
    pub capture_seconds: f64,
    /// The maximum of the samples of resource usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Box<Usage>>,
    /// The SHA-256 digest, in hexadecimal, of the file before this field.
    #[serde(default)]
    pub sha256: String,
}

/// The result of a run that ended.
///
/// `Display` has the ending, the reason of a stop, and the completeness of the audit file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// The run.
    pub run: RunId,
    /// The ending of the run.
    pub ending: Ending,
    /// The seal of the audit file.
    pub seal: SealState,
    /// The audit file; `None` if the sink writes none.
    pub audit: Option<PathBuf>,
    /// The last lines of the output, with invalid UTF-8 replaced.
    ///
    /// At most 20 lines and 4 KiB. Empty if this manager did not capture them.
    pub last_lines: Vec<String>,
    /// The maximum of the samples of resource usage.
    ///
    /// `None` if the spec does not sample, or if there is no sample.
    pub usage: Option<Usage>,
    /// The reason of a stop, for a file that is not sealed yet.
    pub(crate) stop_cause: Option<StopCause>,
}

/// The state of the seal of an audit file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum SealState {
    /// The file is sealed. This is its last record.
    Sealed(Box<Seal>),
    /// The file is not sealed yet. After the end of the run, moat retries the seal.
    Pending {
        /// The reason why the file is not sealed.
        reason: String,
    },
}

impl Outcome {
    /// Returns the exit code, if there is one.
    pub fn code(&self) -> Option<i64> {
        self.ending.code()
    }

    /// Returns true if the container ran and exited with code 0.
    pub fn success(&self) -> bool {
        self.ending.success()
    }

    /// Returns the reason why moat stopped the run, if it did.
    pub fn stopped(&self) -> Option<StopCause> {
        self.sealed().map_or(self.stop_cause, |seal| seal.stopped)
    }

    /// Returns a display of the reason of a stop.
    pub(crate) fn stop_reason(&self) -> StoppedBecause {
        StoppedBecause(self.stopped())
    }

    /// Returns a display of the ending, the stop cause and the last lines.
    pub(crate) fn failure(&self) -> Failure<'_> {
        Failure(self)
    }

    /// Returns the seal, if the file is sealed.
    pub fn sealed(&self) -> Option<&Seal> {
        match &self.seal {
            SealState::Sealed(seal) => Some(seal),
            SealState::Pending { .. } => None,
        }
    }

    /// Returns the running time of the container, by the engine's clock.
    ///
    /// `None` unless the engine reported the start and the end.
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

/// The message of a failed run. It has several lines if the run has output.
pub(crate) struct Failure<'a>(&'a Outcome);

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.0;
        let stopped = outcome.stop_reason();
        write!(f, "run {} {}{stopped}", outcome.run, outcome.ending)?;
        LastLines(&outcome.last_lines).fmt(f)
    }
}

/// The reason why moat stopped a run, as the end of a clause. Empty if it did not.
pub(crate) struct StoppedBecause(pub(crate) Option<StopCause>);

impl fmt::Display for StoppedBecause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(cause) => write!(f, ", stopped because {cause}"),
            None => Ok(()),
        }
    }
}

/// The last lines of a run's output, escaped, as the end of an error message.
pub(crate) struct LastLines<'a>(pub(crate) &'a [String]);

impl fmt::Display for LastLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() {
            f.write_str("; its last lines:")?;
        }
        for line in self.0 {
            f.write_str("\n  ")?;
            for character in line.chars() {
                // Escape sequences in the output must not reach the terminal that shows an error.
                match character.is_control() && character != '\t' {
                    true => write!(f, "{}", character.escape_default())?,
                    false => write!(f, "{character}")?,
                }
            }
        }
        Ok(())
    }
}

/// Returns the plural suffix of a noun with this count.
fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stopped = self.stop_reason();
        write!(f, "run {} {}{stopped}", self.run, self.ending)?;
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

/// The resource usage of a container: one sample, or the maximum of several.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Usage {
    /// Memory in bytes, without the reclaimable file cache.
    pub memory: u64,
    /// CPU time since the start, in seconds over all CPUs.
    pub cpu_seconds: f64,
    /// The number of processes and threads.
    pub pids: u64,
    /// The number of samples.
    pub samples: u64,
}

impl Usage {
    /// Creates a sample.
    pub fn new(memory: u64, cpu: Duration, pids: u64) -> Self {
        Self {
            memory,
            // Whole microseconds, so that the number parses back to the same value.
            cpu_seconds: cpu.as_micros() as f64 / 1e6,
            pids,
            samples: 1,
        }
    }

    /// Returns the maximum of each value, over the samples of both.
    #[must_use]
    pub(crate) fn merge(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            cpu_seconds: self.cpu_seconds.max(other.cpu_seconds),
            pids: self.pids.max(other.pids),
            samples: self.samples + other.samples,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_causes_have_their_names_in_the_file_format() {
        for (cause, name) in [
            (StopCause::Requested, "requested"),
            (StopCause::Killed, "killed"),
            (StopCause::TimeLimit, "time_limit"),
            (StopCause::OutputLimit, "output_limit"),
            (StopCause::SilenceLimit, "silence_limit"),
            (StopCause::Cancelled, "cancelled"),
            (StopCause::Shutdown, "shutdown"),
        ] {
            assert_eq!(serde_json::to_value(cause).unwrap(), name);
        }
    }

    fn stopped(cause: Option<StopCause>) -> Outcome {
        let ending = Ending::Exited(Exit::with_code(137));
        Outcome {
            run: RunId::new("x").unwrap(),
            ending: ending.clone(),
            seal: SealState::Sealed(Box::new(Seal {
                ts: Timestamp::now(),
                exit: ending,
                verdict: Verdict::Complete,
                evidence: Evidence::EndMarker,
                records: 1,
                bytes: PerStream::default(),
                gaps: 0,
                masked: None,
                stopped: cause,
                container: None,
                image_digest: None,
                capture_seconds: 0.0,
                usage: None,
                sha256: String::new(),
            })),
            audit: None,
            last_lines: vec!["bye".into()],
            usage: None,
            stop_cause: None,
        }
    }

    #[test]
    fn an_outcome_has_the_reason_of_the_stop() {
        let audit = "; audit complete (1 record, 0 bytes)";
        for (cause, text) in [
            (None, ""),
            (
                Some(StopCause::Requested),
                ", stopped because a stop was requested",
            ),
            (
                Some(StopCause::Killed),
                ", stopped because a kill was requested",
            ),
            (
                Some(StopCause::TimeLimit),
                ", stopped because its time limit was reached",
            ),
            (
                Some(StopCause::OutputLimit),
                ", stopped because its output limit was reached",
            ),
            (
                Some(StopCause::SilenceLimit),
                ", stopped because it printed nothing for too long",
            ),
            (
                Some(StopCause::Cancelled),
                ", stopped because it was cancelled",
            ),
            (
                Some(StopCause::Shutdown),
                ", stopped because its manager was shut down",
            ),
        ] {
            let outcome = stopped(cause);
            let ending = format!("run x exited with code 137{text}");
            assert_eq!(outcome.to_string(), format!("{ending}{audit}"));
            let failure = format!("{ending}; its last lines:\n  bye");
            assert_eq!(outcome.failure().to_string(), failure);
        }
    }
}

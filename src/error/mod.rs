//! The errors of moat.

mod copy;
mod runtime;
#[cfg(feature = "sign")]
mod sign;
mod sink;

pub use copy::CopyError;
pub use runtime::RuntimeError;
#[cfg(feature = "sign")]
pub use sign::{SignError, SignatureError};
pub use sink::SinkError;

pub(crate) use crate::causes::chain;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::causes;
use crate::outcome::{LastLines, Outcome};
use crate::spec::{InvalidSpec, RunId};

/// A [`std::result::Result`] with moat's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The errors of moat, grouped by the remedy.
///
/// The message names the operation and its object. [`source`](std::error::Error::source) is the
/// cause. Neither contains a secret of a [`RunSpec`](crate::spec::RunSpec).
///
/// `Debug` is the text for a person, which a `main` that returns the error and a panic of `unwrap`
/// print: the message, each cause on its own line, and the audit file of the run that failed.
/// [`chain`](Self::chain) is the message and its causes in one line.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The spec is invalid. Correct the field.
    #[error(transparent)]
    InvalidSpec(#[from] InvalidSpec),

    /// The root has a run of this id. Use another id.
    #[error("cannot create run {run}: {} already exists; use another id", path.display())]
    RunExists {
        /// The run.
        run: RunId,
        /// The directory of the run.
        path: PathBuf,
    },

    /// The root has no run of this id.
    #[error("cannot find run {run} in {}", root.display())]
    NoSuchRun {
        /// The run.
        run: RunId,
        /// The root.
        root: PathBuf,
    },

    /// Another process, or another manager of this process, owns the run.
    #[error("cannot lock {}: another live process owns run {run}", path.display())]
    Owned {
        /// The run.
        run: RunId,
        /// The file that the owner has locked.
        path: PathBuf,
    },

    /// The run's audit file has no final seal yet.
    ///
    /// Stop the run, or wait for its end.
    #[error("run {run} is not sealed yet; stop it, or wait for its end")]
    NotSealed {
        /// The run.
        run: RunId,
    },

    /// The run belongs to another runtime. Open the root with that runtime.
    #[error("cannot open run {run}: it belongs to the runtime {runtime}; use that runtime")]
    OtherRuntime {
        /// The run.
        run: RunId,
        /// The name of the runtime that started the run.
        runtime: String,
    },

    /// The run belongs to another engine, which has its container.
    ///
    /// Open the root with that engine. If that engine no longer exists, for example after a new
    /// installation, the end of the run cannot be determined. Save the audit file if you need it,
    /// and remove the run's directory.
    #[error(
        "cannot open run {run} with the engine {here}: it belongs to the engine {engine}; open \
         its root with that engine, or remove the run's directory if that engine no longer exists"
    )]
    OtherEngine {
        /// The run.
        run: RunId,
        /// The id of the engine that started the run.
        engine: String,
        /// The id of the connected engine.
        here: String,
    },

    /// The engine did not answer about the run, so it could not be stopped in time.
    ///
    /// The stop is recorded and proceeds once the engine answers. Until then the run is watched, and
    /// nothing is lost. Check the engine, and clients that are attached to the container and do not
    /// read its output. Then wait for the run.
    #[error(
        "cannot stop run {run} in time: {problem}; the stop proceeds once the engine answers: check \
         the engine, and clients that do not read the output of the container"
    )]
    Unanswered {
        /// The run.
        run: RunId,
        /// The call to the engine, and when it was made.
        problem: String,
    },

    /// The run has ended.
    #[error("run {run} has ended")]
    Ended {
        /// The run.
        run: RunId,
    },

    /// The output of an exec does not fit in memory. Attach to the exec, or read its log.
    #[error(
        "cannot return the output of exec {exec} of run {run}: it is longer than {limit} bytes"
    )]
    OutputTooLong {
        /// The run.
        run: RunId,
        /// The number of the exec.
        exec: u32,
        /// The largest number of bytes, over all streams.
        limit: usize,
        /// The exec's log, which has all of the output; `None` if the sink writes none.
        audit: Option<PathBuf>,
    },

    /// The standard input of the run cannot be written. Attach without input.
    #[error("cannot write to the input of run {run}: {reason}")]
    NoInput {
        /// The run.
        run: RunId,
        /// The reason.
        reason: &'static str,
    },

    /// The run did not start. Its audit file exists and records the reason.
    ///
    /// The container may have run unless
    /// [`Ending::never_started`](crate::outcome::Ending::never_started) is true: an engine that was
    /// restarted during the start cannot tell.
    #[error("cannot start run {}", outcome.run)]
    NotStarted {
        /// The outcome of the run.
        outcome: Box<Outcome>,
        /// The cause.
        source: RuntimeError,
    },

    /// The run did not exit with code 0: see [`Outcome::into_result`].
    ///
    /// The message ends with the last lines of the output, each on its own line.
    #[error("{}", outcome.failure())]
    Failed {
        /// The outcome of the run.
        outcome: Box<Outcome>,
    },

    /// The run did not become ready.
    ///
    /// See [`Run::wait_ready`](crate::run::Run::wait_ready). The message ends with the last lines
    /// of the output, each on its own line.
    #[error("run {run} is not ready: {reason}{}", LastLines(last_lines))]
    NotReady {
        /// The run.
        run: RunId,
        /// The condition that was not met, and why.
        reason: String,
        /// The outcome of the run, if the run ended first.
        outcome: Option<Box<Outcome>>,
        /// The last lines of the output so far: see [`Outcome::last_lines`].
        last_lines: Vec<String>,
        /// The audit file; `None` if the sink writes none.
        audit: Option<PathBuf>,
    },

    /// Files were not copied to or from a container.
    #[error("cannot copy {path}")]
    Copy {
        /// The path in the container.
        path: String,
        /// The reason.
        source: CopyError,
    },

    /// The engine refused the operation or is unreachable.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),

    /// A file operation failed. Check the disk and the permissions.
    #[error("cannot {operation} {}", path.display())]
    Storage {
        /// The operation, as a verb: `write`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },

    /// A sealed audit file or the record of a run is damaged.
    ///
    /// moat never changes such a file.
    #[error("cannot read {}: the file is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The position and kind of the damage.
        reason: String,
    },

    /// A custom sink failed.
    #[error(transparent)]
    Sink(#[from] SinkError),

    /// A signing key cannot be used.
    #[cfg(feature = "sign")]
    #[error(transparent)]
    Sign(#[from] SignError),

    /// The signature of a file is missing, or is not accepted.
    #[cfg(feature = "sign")]
    #[error("cannot verify the signature of {}", path.display())]
    Signature {
        /// The signed file.
        path: PathBuf,
        /// The reason.
        source: SignatureError,
    },

    /// The sink accepted no record for 2 s.
    ///
    /// moat reads the missed output from the engine's log later.
    #[error("cannot write the log: the sink accepted no record for 2 s")]
    Stalled,

    /// The manager is shut down.
    #[error("the manager is shut down")]
    Closed,
}

impl Error {
    /// Creates an error of a file operation.
    ///
    /// `operation` is a verb, such as `write`.
    pub(crate) fn storage(
        operation: &'static str,
        path: impl AsRef<Path>,
        source: io::Error,
    ) -> Self {
        Self::Storage {
            operation,
            path: path.as_ref().to_owned(),
            source,
        }
    }

    /// Returns the kind of a failed file operation.
    pub(crate) fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Storage { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// Returns the messages of the error and of all its causes, joined by `: `.
    ///
    /// The text is one line, except for [`Failed`](Self::Failed) and
    /// [`NotReady`](Self::NotReady), which add the last lines of the output.
    pub fn chain(&self) -> String {
        chain(self)
    }

    /// Returns the audit file of the run that failed.
    fn audit(&self) -> Option<&Path> {
        match self {
            Self::NotStarted { outcome, .. } | Self::Failed { outcome } => outcome.audit.as_deref(),
            Self::NotReady { audit, .. } => audit.as_deref(),
            _ => None,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        causes::fmt_debug(self, f)?;
        match self.audit() {
            Some(audit) => write!(f, "\n\nAudit file: {}", audit.display()),
            None => Ok(()),
        }
    }
}

impl Outcome {
    /// Converts an outcome other than exit code 0 into an error.
    ///
    /// The message of the error has the ending of the run and its last lines. A gap in the audit
    /// file is not an error: see [`Seal::verdict`](crate::outcome::Seal). A pending seal is not an
    /// error either: see [`Outcome::sealed`].
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] unless the container ran and exited with code 0.
    pub fn into_result(self) -> Result<Self> {
        match self.success() {
            true => Ok(self),
            false => Err(Error::Failed {
                outcome: Box::new(self),
            }),
        }
    }
}

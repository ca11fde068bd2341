//! What can go wrong, by what a caller can do about it.

mod runtime;
mod sink;

pub use runtime::RuntimeError;
pub use sink::SinkError;

use std::io;
use std::path::{Path, PathBuf};

use crate::disk;
use crate::outcome::{LastLines, Outcome};
use crate::spec::{InvalidSpec, RunId};

/// `std::result::Result` with moat's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by what a caller can do about it.
///
/// The message names the operation and what it was about; the cause is in `source`. No secret of
/// a [`RunSpec`](crate::spec::RunSpec) is in either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The spec is wrong: correct the field.
    #[error(transparent)]
    InvalidSpec(#[from] InvalidSpec),

    /// There is a run of that name already: choose another one.
    #[error("run {run} exists already: {}", path.display())]
    RunExists {
        /// The run.
        run: RunId,
        /// Its folder.
        path: PathBuf,
    },

    /// There is no such run in the root.
    #[error("there is no run {run} in {}", root.display())]
    NoSuchRun {
        /// The run.
        run: RunId,
        /// The root.
        root: PathBuf,
    },

    /// Another process, or another manager of this one, owns the run.
    #[error("run {run} is owned by another live process ({})", path.display())]
    Owned {
        /// The run.
        run: RunId,
        /// The file that the owner has locked.
        path: PathBuf,
    },

    /// The run's audit file has no final seal yet: wait for it.
    #[error("run {run} is not sealed yet; wait for it, or stop it first")]
    NotSealed {
        /// The run.
        run: RunId,
    },

    /// The run is one of another runtime, which alone can look after it: open the root with that.
    #[error("run {run} is one of the runtime {runtime}: open its root with that")]
    OtherRuntime {
        /// The run.
        run: RunId,
        /// The runtime that it was started with, by its name.
        runtime: String,
    },

    /// The run is one of another engine, which alone has its container: open the root against that
    /// one. If that one is gone for good, as after it was installed anew, nobody can say any more
    /// how the run ended: keep its audit file elsewhere if you like, and remove its folder.
    #[error(
        "run {run} is one of the engine {engine}, and this is the engine {here}: open its root \
         against that one, or remove the folder of the run if that one is gone for good"
    )]
    OtherEngine {
        /// The run.
        run: RunId,
        /// What the engine that the run was started on calls itself.
        engine: String,
        /// What the engine that was asked calls itself.
        here: String,
    },

    /// The run has ended.
    #[error("run {run} has ended")]
    Ended {
        /// The run.
        run: RunId,
    },

    /// The standard input cannot be written to, or not by this one: look on without it.
    #[error("the input of run {run} cannot be written to: {reason}")]
    NoInput {
        /// The run.
        run: RunId,
        /// Why not.
        reason: &'static str,
    },

    /// The run did not come to run. Its audit file is there all the same, and says why.
    #[error("run {} did not start", outcome.run)]
    NotStarted {
        /// What is known of it.
        outcome: Box<Outcome>,
        /// Why.
        source: RuntimeError,
    },

    /// The run did not end with code 0: see [`Outcome::into_result`].
    ///
    /// The message has the last lines of its output, each on a line of its own.
    #[error("{}", outcome.failure())]
    Failed {
        /// What is known of it.
        outcome: Box<Outcome>,
    },

    /// The run did not become ready: see [`Run::wait_ready`](crate::run::Run::wait_ready).
    ///
    /// The message has the last lines of its output, each on a line of its own.
    #[error("run {run} is not ready: {reason}{}", LastLines(last_lines))]
    NotReady {
        /// The run.
        run: RunId,
        /// What was waited for, and why it did not come.
        reason: String,
        /// How the run ended, where that is why.
        outcome: Option<Box<Outcome>>,
        /// The last lines of its output so far, at most 20, invalid UTF-8 replaced.
        last_lines: Vec<String>,
        /// Its audit file; `None` where the sink writes none.
        audit: Option<PathBuf>,
    },

    /// The engine refused, or could not be reached.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),

    /// A file could not be read or written: look after the disk, or the permissions.
    #[error("cannot {operation} {}", path.display())]
    Storage {
        /// What was to be done, as a verb: `write`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A sealed audit file, or a run's record, is damaged. moat never changes it.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, and how.
        reason: String,
    },

    /// A sink of the caller failed.
    #[error(transparent)]
    Sink(#[from] SinkError),

    /// The sink took nothing for too long. What it missed is read from the engine's log later.
    #[error("the sink took nothing for 2 s")]
    Stalled,

    /// The manager was shut down.
    #[error("the manager is shut down")]
    Closed,
}

impl Error {
    /// An error of file I/O: `operation` is a verb, such as `write`.
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

    /// The kind of an error of file I/O.
    pub(crate) fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Storage { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// Whether it stays until a human has been at the files.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::InvalidSpec(_)
            | Self::NoSuchRun { .. }
            | Self::OtherRuntime { .. }
            | Self::OtherEngine { .. } => true,
            Self::Storage { source, .. } => {
                disk::is_irregular(source) || source.kind() == io::ErrorKind::Unsupported
            }
            _ => false,
        }
    }

    /// The message, and those of all causes, on one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

impl Outcome {
    /// Returns the outcome of a run that exited with code 0, and an error for any other.
    ///
    /// The message of the error shows how the run ended, in the engine's words, and its last
    /// lines. Gaps in the audit file are no error: see [`Seal::verdict`](crate::outcome::Seal).
    ///
    /// # Errors
    ///
    /// [`Error::Failed`].
    pub fn into_result(self) -> Result<Self> {
        match self.success() {
            true => Ok(self),
            false => Err(Error::Failed {
                outcome: Box::new(self),
            }),
        }
    }
}

/// The message of `error`, and those of all its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Some libraries repeat their cause in their own message.
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

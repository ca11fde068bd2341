//! The errors of a sink.

use std::error::Error;
use std::fmt;
use std::io;

use crate::causes;
use crate::spec::RunId;

/// The error of a [`LogSink`](crate::sink::LogSink) that does not write files.
///
/// `?` converts a `SinkError` into [`Error::Sink`](crate::Error::Sink).
///
/// ```
/// use moat::RunId;
/// use moat::sink::SinkError;
///
/// let run = RunId::new("nightly")?;
/// let error = SinkError::new("connection refused").operation("append to").run(&run);
/// assert_eq!(error.to_string(), "cannot append to the log of run nightly");
/// # Ok::<(), moat::Error>(())
/// ```
pub struct SinkError {
    operation: &'static str,
    run: Option<RunId>,
    source: Box<dyn Error + Send + Sync>,
}

impl SinkError {
    /// Creates an error from its cause.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            operation: "write",
            run: None,
            source: source.into(),
        }
    }

    /// Sets the failed operation, as a verb. Default: `write`.
    #[must_use]
    pub fn operation(mut self, operation: &'static str) -> Self {
        self.operation = operation;
        self
    }

    /// Sets the run of the log.
    #[must_use]
    pub fn run(mut self, run: &RunId) -> Self {
        self.run = Some(run.clone());
        self
    }
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.run {
            Some(run) => write!(f, "cannot {} the log of run {run}", self.operation),
            None => write!(f, "cannot {} a log", self.operation),
        }
    }
}

impl fmt::Debug for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        causes::fmt_debug(self, f)
    }
}

impl Error for SinkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

impl From<io::Error> for SinkError {
    fn from(error: io::Error) -> Self {
        Self::new(error)
    }
}

//! What can go wrong with an engine.

use std::time::Duration;

/// What a runtime says of a call that failed. See [`Runtime`](crate::runtime::Runtime) for which of them are facts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The engine could not be reached.
    #[error("cannot reach the engine at {address}: {reason}")]
    Unavailable {
        /// The address that was tried.
        address: String,
        /// Why not, and what to do about it.
        reason: String,
    },

    /// The engine did not answer in time. The request may be carried out all the same.
    #[error("the engine did not {operation} within {} s", after.as_secs())]
    Timeout {
        /// What it was asked for, as a verb: `create the container`.
        operation: &'static str,
        /// The bound.
        after: Duration,
    },

    /// The connection broke, or what came over it made no sense.
    #[error("the connection to the engine broke while it was asked to {operation}: {reason}")]
    Broken {
        /// What it was asked for, as a verb.
        operation: &'static str,
        /// How it broke.
        reason: String,
    },

    /// There is no such container.
    #[error("the engine cannot {operation}: {reason}")]
    NotFound {
        /// What it was asked for, as a verb.
        operation: &'static str,
        /// The engine's words.
        reason: String,
    },

    /// The container is in a state that does not allow it.
    #[error("the engine cannot {operation}: {reason}")]
    Conflict {
        /// What it was asked for, as a verb.
        operation: &'static str,
        /// The engine's words.
        reason: String,
    },

    /// There is no such image, and none could be pulled.
    #[error("no image {image}: {reason}")]
    NoSuchImage {
        /// The image.
        image: String,
        /// Why it is not there, and what to do about it.
        reason: String,
    },

    /// The engine refused.
    #[error("the engine refused to {operation}: {reason}")]
    Rejected {
        /// What it was asked for, as a verb.
        operation: &'static str,
        /// The engine's words.
        reason: String,
    },

    /// The runtime cannot do that.
    #[error("the {runtime} runtime cannot {operation}")]
    Unsupported {
        /// The runtime's name.
        runtime: &'static str,
        /// What was asked for, as a verb.
        operation: &'static str,
    },
}

impl RuntimeError {
    /// Whether the engine has answered, and the answer holds.
    pub fn is_definitive(&self) -> bool {
        !matches!(
            self,
            Self::Unavailable { .. } | Self::Timeout { .. } | Self::Broken { .. }
        )
    }

    /// Whether it says that there is no such container.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The same error, with its words changed: for taking out secrets.
    pub(crate) fn map_reason(mut self, map: impl FnOnce(&str) -> String) -> Self {
        match &mut self {
            Self::Unavailable { reason, .. }
            | Self::Broken { reason, .. }
            | Self::NotFound { reason, .. }
            | Self::Conflict { reason, .. }
            | Self::NoSuchImage { reason, .. }
            | Self::Rejected { reason, .. } => *reason = map(reason),
            Self::Timeout { .. } | Self::Unsupported { .. } => {}
        }
        self
    }
}

//! The errors of an engine.

use std::fmt;
use std::time::Duration;

use crate::causes;

/// The error of a failed call to an engine.
///
/// The contract of [`Runtime`](crate::runtime::Runtime) defines which variants are definitive.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The engine is unreachable.
    #[error("cannot reach the engine at {address}: {reason}")]
    Unavailable {
        /// The address of the engine, and its source if that is a variable.
        address: String,
        /// The reason, and a remedy if one is known.
        reason: String,
    },

    /// The engine did not answer in time. It may still carry out the request.
    #[error("cannot {operation}: the engine did not answer within {} s", after.as_secs())]
    Timeout {
        /// The operation, as a verb phrase: `create the container`.
        operation: &'static str,
        /// The timeout.
        after: Duration,
    },

    /// The connection broke, or the answer was invalid.
    ///
    /// The engine may have carried out the request.
    #[error("cannot {operation}: the connection to the engine broke: {reason}")]
    Broken {
        /// The operation, as a verb phrase.
        operation: &'static str,
        /// The reason.
        reason: String,
    },

    /// The container, the exec or file in it, or the image does not exist.
    #[error("cannot {operation}: {reason}")]
    NotFound {
        /// The operation, as a verb phrase.
        operation: &'static str,
        /// The engine's message.
        reason: String,
    },

    /// The state of the container does not allow the operation, or a container uses the image.
    #[error("cannot {operation}: {reason}")]
    Conflict {
        /// The operation, as a verb phrase.
        operation: &'static str,
        /// The engine's message.
        reason: String,
    },

    /// The image does not exist, and the engine cannot pull it.
    #[error("cannot find image {image}: {reason}")]
    NoSuchImage {
        /// The image.
        image: String,
        /// The reason, and a remedy if one is known.
        reason: String,
    },

    /// The engine refused the operation.
    #[error("cannot {operation}: {reason}")]
    Rejected {
        /// The operation, as a verb phrase.
        operation: &'static str,
        /// The engine's message.
        reason: String,
    },

    /// The runtime does not support the operation.
    #[error("cannot {operation}: the {runtime} runtime does not support this")]
    Unsupported {
        /// The runtime's name.
        runtime: &'static str,
        /// The operation, as a verb phrase.
        operation: &'static str,
    },
}

impl RuntimeError {
    /// Returns true if the engine answered and the answer is final.
    pub fn is_definitive(&self) -> bool {
        !matches!(
            self,
            Self::Unavailable { .. } | Self::Timeout { .. } | Self::Broken { .. }
        )
    }

    /// Returns true if the object of the operation does not exist: a container, an exec, a file or
    /// an image.
    ///
    /// An image that a container needs is [`NoSuchImage`](Self::NoSuchImage) instead.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Maps the reason. The caller uses this to redact secrets.
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

impl fmt::Debug for RuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        causes::fmt_debug(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_operation_then_the_cause() {
        let operation = "start the container";
        let after = Duration::from_secs(30);
        let reason = || "no space".to_owned();
        for (error, message) in [
            (
                RuntimeError::Timeout { operation, after },
                "cannot start the container: the engine did not answer within 30 s",
            ),
            (
                RuntimeError::Broken {
                    operation,
                    reason: reason(),
                },
                "cannot start the container: the connection to the engine broke: no space",
            ),
            (
                RuntimeError::Rejected {
                    operation,
                    reason: reason(),
                },
                "cannot start the container: no space",
            ),
            (
                RuntimeError::Unsupported {
                    runtime: "scripted",
                    operation,
                },
                "cannot start the container: the scripted runtime does not support this",
            ),
        ] {
            assert_eq!(error.to_string(), message);
        }
    }
}

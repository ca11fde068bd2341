//! The credentials for an image registry, and the progress before the start of a container.

use std::fmt;

use super::secrets::Secret;

/// The progress of an image pull, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullProgress {
    /// The id of the layer; `None` for a report about the whole image.
    pub layer: Option<String>,
    /// The engine's status message.
    pub status: String,
    /// The completed bytes of this step.
    pub current: Option<u64>,
    /// The total bytes of this step.
    pub total: Option<u64>,
}

impl PullProgress {
    /// Creates a report that has only a status.
    pub fn new(status: impl Into<String>) -> Self {
        Self {
            layer: None,
            status: status.into(),
            current: None,
            total: None,
        }
    }
}

/// The progress of the placement of a container, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlacementProgress {
    /// The engine's word for what the container waits for, such as `Unschedulable`.
    pub reason: String,
    /// The engine's explanation. It may be empty.
    pub message: String,
}

impl PlacementProgress {
    /// Creates a report.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Credentials for an image registry. The `Debug` output omits the password.
#[derive(Clone)]
pub struct Credentials {
    username: String,
    pub(super) password: Secret,
}

impl Credentials {
    /// Creates credentials from a user name and a password or token.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            username: username.into(),
            password: Secret(password.into()),
        }
    }

    /// Returns the user name.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// Returns the password or token, which is a secret.
    pub fn password(&self) -> &str {
        &self.password.0
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &self.password)
            .finish()
    }
}

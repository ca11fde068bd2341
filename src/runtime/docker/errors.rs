//! Errors of a call to an engine, and what they prove about the container.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use crate::error::{RuntimeError, chain};
use crate::spec::ContainerId;

/// The maximum size of an engine's error message, in bytes. The rest is cut off.
const MAX_MESSAGE_BYTES: usize = 4 << 10;

/// The cause of a failed call. [`Failure::error`] adds the operation.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no connection. The text has the cause, and what to do about it.
    Unreachable(String),
    /// The timeout expired.
    Timeout(Duration),
    /// The connection broke, or the response is malformed.
    Broken(String),
    /// The engine responded with an error.
    Refused(Refusal),
}

/// An error response of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: String,
}

/// The cause of a failed connection, as a source of hyper's and bollard's errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreachable(pub(crate) String);

impl Refusal {
    pub(super) fn new(status: u16, message: &str) -> Self {
        let mut message = message.trim();
        if message.len() > MAX_MESSAGE_BYTES {
            let cut = (0..=MAX_MESSAGE_BYTES)
                .rev()
                .find(|&at| message.is_char_boundary(at));
            message = &message[..cut.unwrap_or(0)];
        }
        Self {
            status,
            message: message.to_owned(),
        }
    }

    /// Reads an error from a response body: JSON with `message`, or plain text.
    pub(super) fn from_body(status: u16, body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Body {
            message: String,
        }
        match serde_json::from_slice::<Body>(body) {
            Ok(body) => Self::new(status, &body.message),
            Err(_) => Self::new(status, &String::from_utf8_lossy(body)),
        }
    }

    /// Returns true if the message contains `text`, ignoring its ASCII case.
    pub(super) fn message_contains(&self, text: &str) -> bool {
        self.message.to_ascii_lowercase().contains(text)
    }

    /// Returns true if the container does not exist.
    ///
    /// Status 404 alone is not enough. Engines also use it for an unknown path, a missing file and,
    /// in some versions, a missing executable.
    pub(super) fn is_no_such_container(&self) -> bool {
        self.status == 404
            && self.message_contains("no such container")
            && !self.message_contains("no such container:path")
    }

    /// Returns true if a file or directory in a container does not exist.
    ///
    /// Docker reports a path below a file as status 500.
    pub(super) fn is_no_such_file(&self) -> bool {
        let texts = [
            "could not find the file",
            "no such container:path",
            "no such file or directory",
            "could not be found on container",
            "not a directory",
        ];
        matches!(self.status, 404 | 500) && texts.iter().any(|text| self.message_contains(text))
    }

    /// Creates the refusal for a container that is known not to exist.
    pub(super) fn no_such_container(container: &ContainerId) -> Self {
        Self::new(404, &format!("No such container: {container}"))
    }

    /// Returns true if another removal of the container is in progress.
    pub(super) fn is_being_removed(&self) -> bool {
        self.status == 409 && self.message_contains("already in progress")
    }

    /// Returns true if the log is refused due to a removal in progress.
    pub(super) fn is_marked_for_removal(&self) -> bool {
        self.status == 409 && self.message_contains("marked for removal")
    }

    pub(super) fn is_no_such_image(&self) -> bool {
        self.status == 404
            && (self.message_contains("no such image") || self.message_contains("image not known"))
    }

    /// Returns the engine's message, or the status if there is none.
    pub(super) fn text(&self) -> String {
        match self.message.as_str() {
            "" => format!("HTTP status {}", self.status),
            message => message.to_owned(),
        }
    }

    fn error(self, operation: &'static str, address: &str) -> RuntimeError {
        let reason = self.text();
        match self.status {
            404 if self.is_no_such_container() || self.message_contains("no such exec") => {
                RuntimeError::NotFound { operation, reason }
            }
            409 => RuntimeError::Conflict { operation, reason },
            // Podman's message for a container in the wrong state.
            _ if self.message_contains("container state improper") => {
                RuntimeError::Conflict { operation, reason }
            }
            // Inconclusive: sent by a proxy, or by an engine that is not ready.
            502..=504 => RuntimeError::Unavailable {
                address: address.to_owned(),
                reason: format!("HTTP status {}: {reason}", self.status),
            },
            _ => RuntimeError::Rejected { operation, reason },
        }
    }
}

impl Failure {
    pub(super) fn error(self, operation: &'static str, address: &str) -> RuntimeError {
        match self {
            Self::Unreachable(reason) => RuntimeError::Unavailable {
                address: address.to_owned(),
                reason,
            },
            Self::Timeout(after) => RuntimeError::Timeout { operation, after },
            Self::Broken(reason) => RuntimeError::Broken { operation, reason },
            Self::Refused(refusal) => refusal.error(operation, address),
        }
    }

    /// Creates the failure for a response that is not the expected JSON.
    ///
    /// It leaves out serde's message, which can quote the response and thus the container's
    /// environment.
    pub(super) fn malformed(error: &serde_json::Error) -> Self {
        Self::Broken(format!(
            "the response is malformed at line {} column {}",
            error.line(),
            error.column()
        ))
    }

    /// Creates the failure for a call without a response.
    fn no_response(error: &(dyn StdError + 'static)) -> Self {
        match unreachable(error) {
            Some(reason) => Self::Unreachable(reason),
            None => Self::Broken(chain(error)),
        }
    }

    /// Returns the engine's refusal if `test` holds for it.
    pub(super) fn refusal(&self, test: impl FnOnce(&Refusal) -> bool) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) if test(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl From<Unreachable> for Failure {
    fn from(Unreachable(reason): Unreachable) -> Self {
        Self::Unreachable(reason)
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        Self::no_response(&error)
    }
}

impl From<bollard::errors::Error> for Failure {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error;
        match error {
            Error::DockerResponseServerError {
                status_code,
                message,
            } => Self::Refused(Refusal::new(status_code, &message)),
            Error::DockerStreamError { error } => Self::Refused(Refusal::new(500, &error)),
            // `source` of the outer error skips `err` itself.
            Error::IOError { err } => Self::no_response(&err),
            error => Self::no_response(&error),
        }
    }
}

/// Returns the reason if the error's chain contains a failed connection.
fn unreachable(error: &(dyn StdError + 'static)) -> Option<String> {
    use hyper_util::client::legacy;
    let mut next = Some(error);
    let mut found = None;
    while let Some(error) = next {
        if let Some(Unreachable(reason)) = error.downcast_ref() {
            return Some(reason.clone());
        }
        if error
            .downcast_ref::<legacy::Error>()
            .is_some_and(legacy::Error::is_connect)
        {
            found = Some(chain(error));
        }
        // `io::Error::source` skips the error that it wraps.
        next = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    found
}

/// The variants of the errors that the tests expect.
#[cfg(test)]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Conflict,
    NotFound,
    Rejected,
    Unavailable,
    Other,
}

#[cfg(test)]
impl Kind {
    pub(super) fn of(error: &RuntimeError) -> Self {
        match error {
            RuntimeError::Conflict { .. } => Self::Conflict,
            RuntimeError::NotFound { .. } => Self::NotFound,
            RuntimeError::Rejected { .. } => Self::Rejected,
            RuntimeError::Unavailable { .. } => Self::Unavailable,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, message: &str) -> RuntimeError {
        Failure::Refused(Refusal::new(status, message)).error("test", "unix:///x")
    }

    #[test]
    fn each_refusal_has_its_error_kind() {
        for (status, message, kind) in [
            (404, "No such container: abc", Kind::NotFound),
            (
                404,
                "no container with name or ID \"abc\" found: no such container",
                Kind::NotFound,
            ),
            (404, "page not found", Kind::Rejected),
            (404, "", Kind::Rejected),
            (
                404,
                "Could not find the file /x in container abc",
                Kind::Rejected,
            ),
            (404, "exec: \"/nonexistent\": no such file", Kind::Rejected),
            (409, "Container abc is not running", Kind::Conflict),
            (
                500,
                "abc is running: container state improper",
                Kind::Conflict,
            ),
            (400, "invalid reference format", Kind::Rejected),
            (500, "No such container: abc", Kind::Rejected),
            (502, "Bad gateway", Kind::Unavailable),
            (503, "", Kind::Unavailable),
        ] {
            let error = error(status, message);
            assert_eq!(Kind::of(&error), kind, "{status} {message}");
            assert!(error.to_string().contains(message));
        }
    }

    #[test]
    fn a_message_is_read_from_any_body() {
        for (body, message) in [
            (&b"{\"message\":\"no\"}"[..], "no"),
            (
                b"{\"cause\":\"x\",\"message\":\"no\",\"response\":404}",
                "no",
            ),
            (b"404 page not found\n", "404 page not found"),
            (b"{\"message\":7}", "{\"message\":7}"),
            (b"", ""),
        ] {
            assert_eq!(Refusal::from_body(404, body).message, message);
        }
        let long = "é".repeat(MAX_MESSAGE_BYTES);
        assert_eq!(Refusal::new(500, &long).message.len(), MAX_MESSAGE_BYTES);
    }

    #[test]
    fn a_failed_connection_is_inconclusive() {
        let inner = io::Error::other(Unreachable("no socket".into()));
        let error = bollard::errors::Error::from(inner);
        let error = Failure::from(error).error("test", "unix:///x");
        assert!(!error.is_definitive());
        assert_eq!(
            error.to_string(),
            "cannot reach the engine at unix:///x: no socket"
        );
        let error = bollard::errors::Error::from(io::Error::other("reset"));
        let error = Failure::from(error).error("test", "unix:///x");
        assert!(matches!(error, RuntimeError::Broken { .. }), "{error}");
        assert!(!error.is_definitive());
    }
}

//! What went wrong with a call, and what it says of the container.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use crate::error::{RuntimeError, chain};
use crate::spec::ContainerId;

/// The most bytes that are kept of what an engine says of an error.
const LONGEST: usize = 4 << 10;

/// Why a call failed, before it is known what was called.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection came about: why, and what to do about it.
    Unreachable(String),
    /// The bound passed.
    Timeout(Duration),
    /// The connection broke, or the answer made no sense.
    Broken(String),
    /// The engine answered with an error.
    Refused(Refusal),
}

/// An answer of the engine that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: String,
}

/// A connection that did not come about: carried through the client's own errors.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unreachable(pub(super) String);

impl Refusal {
    pub(super) fn new(status: u16, message: &str) -> Self {
        let mut message = message.trim();
        if message.len() > LONGEST {
            let cut = (0..=LONGEST).rev().find(|&at| message.is_char_boundary(at));
            message = &message[..cut.unwrap_or(0)];
        }
        Self {
            status,
            message: message.to_owned(),
        }
    }

    /// The refusal in an answer's body: JSON with a `message`, or plain text.
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

    pub(super) fn says(&self, text: &str) -> bool {
        self.message.to_ascii_lowercase().contains(text)
    }

    /// Whether it says that there is no such container. A 404 alone does not: an unknown path, a
    /// missing file and, from some versions, a missing executable are answered with it too.
    pub(super) fn is_no_container(&self) -> bool {
        self.status == 404 && self.says("no such container") && !self.says("no such container:path")
    }

    /// The refusal that there is no such container, for when that is known by other means.
    pub(super) fn no_container(container: &ContainerId) -> Self {
        Self::new(404, &format!("No such container: {container}"))
    }

    /// Whether a removal is refused since another one is under way.
    pub(super) fn is_being_removed(&self) -> bool {
        self.status == 409 && self.says("already in progress")
    }

    /// Whether the log is refused since the container is being removed.
    pub(super) fn is_marked_for_removal(&self) -> bool {
        self.status == 409 && self.says("marked for removal")
    }

    pub(super) fn is_no_image(&self) -> bool {
        self.status == 404 && (self.says("no such image") || self.says("image not known"))
    }

    fn text(&self) -> String {
        match self.message.as_str() {
            "" => format!("HTTP status {}", self.status),
            message => message.to_owned(),
        }
    }

    fn error(self, operation: &'static str, address: &str) -> RuntimeError {
        let reason = self.text();
        match self.status {
            404 if self.is_no_container() || self.says("no such exec") => {
                RuntimeError::NotFound { operation, reason }
            }
            409 => RuntimeError::Conflict { operation, reason },
            // Podman's words for a container that is in another state than it has to be in.
            _ if self.says("container state improper") => {
                RuntimeError::Conflict { operation, reason }
            }
            // Not the engine's own answer, but that of a proxy in front of it, or of an engine
            // that is not ready: no fact.
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

    /// A call that did not come to an answer.
    fn of(error: &(dyn StdError + 'static)) -> Self {
        match unreachable(error) {
            Some(reason) => Self::Unreachable(reason),
            None => Self::Broken(chain(error)),
        }
    }

    /// The refusal, if it is one that `test` holds for.
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
        Self::Broken(chain(&error))
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
            // Its source is that of the error in it, which would be passed over.
            Error::IOError { err } => Self::of(&err),
            error => Self::of(&error),
        }
    }
}

/// Why no connection came about, if that is what `error` is about.
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
        // The source of an I/O error is that of the error in it: that one would be passed over.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, message: &str) -> RuntimeError {
        Failure::Refused(Refusal::new(status, message)).error("test", "unix:///x")
    }

    #[test]
    fn an_answer_becomes_the_fact_that_it_states() {
        for (status, message, kind) in [
            (404, "No such container: abc", "NotFound"),
            (
                404,
                "no container with name or ID \"abc\" found: no such container",
                "NotFound",
            ),
            (404, "page not found", "Rejected"),
            (404, "", "Rejected"),
            (
                404,
                "Could not find the file /x in container abc",
                "Rejected",
            ),
            (404, "exec: \"/nonexistent\": no such file", "Rejected"),
            (409, "Container abc is not running", "Conflict"),
            (500, "abc is running: container state improper", "Conflict"),
            (400, "invalid reference format", "Rejected"),
            (500, "No such container: abc", "Rejected"),
            (502, "Bad gateway", "Unavailable"),
            (503, "", "Unavailable"),
        ] {
            let error = error(status, message);
            let debug = format!("{error:?}");
            assert!(debug.starts_with(kind), "{status} {message}: {debug}");
            assert!(error.to_string().contains(message));
        }
    }

    #[test]
    fn the_message_is_taken_out_of_a_body_of_any_kind() {
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
        let long = "é".repeat(LONGEST);
        assert_eq!(Refusal::new(500, &long).message.len(), LONGEST);
    }

    #[test]
    fn a_failed_connection_is_found_in_the_clients_error_and_is_no_fact() {
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

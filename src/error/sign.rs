//! The errors of signatures.

use std::error::Error;
use std::fmt;
use std::io;

use crate::causes;
use crate::timestamp::Timestamp;

/// The error of a key or of a signer.
///
/// It contains no part of a private key.
///
/// ```
/// use moat::sign::SignError;
///
/// let error = SignError::new("the module is locked");
/// assert_eq!(error.to_string(), "cannot sign");
/// ```
pub struct SignError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl SignError {
    /// Creates the error of a signer from its cause.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::caused("cannot sign", source)
    }

    /// Creates an error without a cause.
    pub(crate) fn message(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn caused(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            message: message.into(),
            source: Some(source.into()),
        }
    }
}

impl fmt::Display for SignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for SignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        causes::fmt_debug(self, f)
    }
}

impl Error for SignError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}

/// The reason that a signature is not accepted.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The file has no signature.
    #[error("no signature file")]
    Missing,

    /// The signature is no SSHSIG, or has a form that moat does not verify.
    #[error("the signature is malformed: {0}")]
    Malformed(String),

    /// The signature was made for another purpose.
    #[error("the signature is for the namespace {found:?}, not for {expected:?}")]
    OtherNamespace {
        /// The namespace of the signature.
        found: String,
        /// The expected namespace.
        expected: String,
    },

    /// No line of the allowed signers has the key, or none has it for the expected identity.
    #[error("the key {fingerprint} is not an allowed signer{details}")]
    UnknownKey {
        /// The fingerprint of the key, as `ssh-keygen -l` prints it.
        fingerprint: String,
        /// The lines that could not be used, as text. It may be empty.
        details: String,
    },

    /// The line of the key allows other namespaces only.
    #[error(
        "line {line} of the allowed signers does not allow the key in the namespace {namespace:?}"
    )]
    NamespaceNotAllowed {
        /// The number of the line, from 1.
        line: usize,
        /// The expected namespace.
        namespace: String,
    },

    /// The key was not valid yet.
    #[error("line {line} of the allowed signers: the key is not valid before {valid_after}")]
    NotYetValid {
        /// The number of the line, from 1.
        line: usize,
        /// The first second at which the key is valid.
        valid_after: Timestamp,
    },

    /// The key was no longer valid.
    #[error(
        "line {line} of the allowed signers: the key has expired: it was valid until {valid_before}"
    )]
    Expired {
        /// The number of the line, from 1.
        line: usize,
        /// The last second at which the key was valid.
        valid_before: Timestamp,
    },

    /// The signature does not match the file: one of them has changed.
    #[error("the signature does not match the file")]
    Mismatch,

    /// The signed file cannot be read.
    #[error("the file cannot be read")]
    Unreadable(#[source] io::Error),
}

impl fmt::Debug for SignatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        causes::fmt_debug(self, f)
    }
}

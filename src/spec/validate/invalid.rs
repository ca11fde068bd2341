//! The error of an invalid spec.

use std::fmt;

/// The error of a spec that moat or a runtime refuses.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field}: {reason}")]
#[non_exhaustive]
pub struct InvalidSpec {
    /// The field, named after the builder method that sets it.
    pub field: String,
    /// The reason, and a remedy if one is known.
    pub reason: String,
}

impl fmt::Debug for InvalidSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl InvalidSpec {
    /// Creates an error for `field`.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

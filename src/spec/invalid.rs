//! The error of a spec that is refused.

/// A field of a spec that moat or a runtime refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field}: {reason}")]
#[non_exhaustive]
pub struct InvalidSpec {
    /// The field, named after the builder method that sets it.
    pub field: String,
    /// What is wrong with its value, and what to do about it.
    pub reason: String,
}

impl InvalidSpec {
    /// A refusal of `field`.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

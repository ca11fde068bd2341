//! Decisions that follow from an error or a seal alone.

use std::io::ErrorKind;

use crate::disk;
use crate::error::Error;

/// Returns true if retrying cannot resolve `error`: the files or the setup must change first.
pub(crate) fn is_permanent(error: &Error) -> bool {
    match error {
        Error::Damaged { .. }
        | Error::InvalidSpec(_)
        | Error::NoSuchRun { .. }
        | Error::OtherRuntime { .. }
        | Error::OtherEngine { .. } => true,
        Error::Storage { source, .. } => {
            disk::is_irregular(source) || source.kind() == ErrorKind::Unsupported
        }
        _ => false,
    }
}

//! The reasons that files are not copied.

use std::fmt;

use crate::causes;

/// The reason that files are not copied to or from a container.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The path in the container is not usable.
    #[error("the path {0}")]
    InvalidPath(&'static str),

    /// The files have more bytes than the limit.
    #[error("it has more than {max_bytes} bytes; CopyOptions::max_bytes sets the limit")]
    TooManyBytes {
        /// The limit.
        max_bytes: u64,
    },

    /// The copy has more files, directories and links than the limit.
    #[error("it has more than {max_entries} entries; CopyOptions::max_entries sets the limit")]
    TooManyEntries {
        /// The limit.
        max_entries: u64,
    },

    /// The file to read is a directory or a special file.
    #[error("it is not a regular file")]
    NotAFile,

    /// The target of the copy exists, and a copy does not replace it.
    #[error("{} exists; choose another name, or remove it first", path.display())]
    TargetExists {
        /// The target.
        path: std::path::PathBuf,
    },

    /// A file that a copy does not create, or does not read.
    ///
    /// [`CopyOptions::skip_special`](crate::run::CopyOptions::skip_special) leaves out special files
    /// and links that lead out of the copy. The other causes are always errors.
    #[error("{entry:?} {reason}")]
    RefusedEntry {
        /// The name of the file.
        entry: String,
        /// The reason.
        reason: &'static str,
    },

    /// The archive from the container is cut off or invalid.
    #[error("the archive is invalid: {0}")]
    InvalidArchive(String),
}

impl fmt::Debug for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        causes::fmt_debug(self, f)
    }
}

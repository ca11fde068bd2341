//! Unix: modes, flags, inodes, and directories that can be synced.

use std::fs::{self, DirBuilder, File, FileType, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Returns options for a new file with mode 0600.
pub(crate) fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

/// Returns options that open a file without following a link or waiting.
pub(crate) fn existing_file(_write: bool) -> OpenOptions {
    // Without O_NONBLOCK, opening a FIFO waits for a peer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let mut options = OpenOptions::new();
    options.custom_flags(flags);
    options
}

/// Returns the kind of file that made an open fail, if it is not a regular file.
pub(crate) fn irregular_error(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::ELOOP => Some("a symbolic link"),
        libc::EISDIR => Some("a directory"),
        libc::ENXIO => Some("a socket or a device"),
        _ => None,
    }
}

/// Returns the error of an open as the rest of moat knows it.
pub(crate) fn open_error(error: io::Error) -> io::Error {
    error
}

/// Returns the kind of a file that is neither a regular file nor a directory.
pub(crate) fn irregular_kind(kind: FileType) -> &'static str {
    if kind.is_fifo() { "a FIFO" } else { "a device" }
}

/// Returns a builder of directories with this mode.
pub(crate) fn dir_builder(mode: u32) -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(mode);
    builder
}

/// Syncs a directory.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(path)
        .and_then(|dir| dir.sync_all())
}

/// The device and inode of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        Ok(Self::in_metadata(&file.metadata()?))
    }

    /// The file at `path`, which is not followed if it is a link.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::in_metadata(&fs::symlink_metadata(path)?))
    }

    fn in_metadata(file: &Metadata) -> Self {
        Self(file.dev(), file.ino())
    }
}

/// The times of the last change of a file's content, and of its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileTimes {
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileTimes {
    pub(crate) fn of(file: &Metadata) -> Self {
        Self {
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// Reads at an offset. The position of the file stays as it is.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(buffer, offset)
}

/// Locks a log that is open for writing, without waiting.
pub(crate) fn lock_log(file: &File) -> Result<(), TryLockError> {
    file.try_lock()
}

/// Returns the id of the user of this process.
pub(crate) fn user_id() -> Option<u32> {
    Some(rustix::process::getuid().as_raw())
}

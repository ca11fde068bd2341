//! Windows: share modes and file indexes. Compiled, but not tested.

use std::fs::{DirBuilder, File, FileType, Metadata, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::windows::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

const FILE_SHARE_READ: u32 = 0x1;
const FILE_SHARE_DELETE: u32 = 0x4;
/// Another handle excludes this access.
const ERROR_SHARING_VIOLATION: i32 = 32;
/// Opens a link, and not its target.
const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;

/// Returns options for a new file, with the access rights of its directory.
///
/// While the file is open, it cannot be opened for writing.
pub(crate) fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.share_mode(FILE_SHARE_READ | FILE_SHARE_DELETE);
    options
}

/// Returns options that open a file without following a link.
///
/// A file that is opened for writing cannot be opened for writing a second time.
pub(crate) fn existing_file(write: bool) -> OpenOptions {
    let mut options = match write {
        true => new_file(),
        false => OpenOptions::new(),
    };
    options.custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    options
}

/// Returns the kind of file that made an open fail, if it is not a regular file.
pub(crate) fn irregular_error(_: &io::Error) -> Option<&'static str> {
    None
}

/// Returns the error of an open as the rest of moat knows it: [`io::ErrorKind::WouldBlock`] if the
/// file is open for writing.
pub(crate) fn open_error(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(ERROR_SHARING_VIOLATION) => io::Error::new(io::ErrorKind::WouldBlock, error),
        _ => error,
    }
}

/// Returns the kind of a file that is neither a regular file nor a directory.
pub(crate) fn irregular_kind(kind: FileType) -> &'static str {
    match kind.is_symlink() {
        true => "a symbolic link",
        false => "a device",
    }
}

/// Returns a builder of directories, with the access rights of their parent.
pub(crate) fn dir_builder(_: u32) -> DirBuilder {
    DirBuilder::new()
}

/// Does nothing: a program cannot sync a directory. NTFS journals its names, without a promise about
/// when they are on the disk.
pub(crate) fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}

/// The volume and index of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId(u64, u64);

impl FileId {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let file = winapi_util::file::information(file)?;
        Ok(Self(file.volume_serial_number(), file.file_index()))
    }

    /// The file at `path`, which is not followed if it is a link.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Self::of(&existing_file(false).read(true).open(path)?)
    }
}

/// The time of the last change of a file's content.
///
/// The file cannot be opened for writing meanwhile: see [`new_file`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileTimes(u64);

impl FileTimes {
    pub(crate) fn of(file: &Metadata) -> Self {
        Self(file.last_write_time())
    }
}

/// Reads at an offset. The position of the file stays as it is.
pub(crate) fn read_at(mut file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let position = file.stream_position()?;
    let read = file.seek_read(buffer, offset);
    file.seek(SeekFrom::Start(position))?;
    read
}

/// Does nothing. A lock would also refuse all readers, and the file cannot be opened for writing a
/// second time: see [`new_file`].
pub(crate) fn lock_log(_: &File) -> Result<(), TryLockError> {
    Ok(())
}

/// Returns the id of the user of this process. Users have no numbers.
pub(crate) fn user_id() -> Option<u32> {
    None
}

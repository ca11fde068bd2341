//! The file operations that differ between platforms.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub(crate) use self::unix::{
    FileId, FileTimes, dir_builder, existing_file, irregular_error, irregular_kind, lock_log,
    new_file, open_error, read_at, sync_dir, user_id,
};
#[cfg(windows)]
pub(crate) use self::windows::{
    FileId, FileTimes, dir_builder, existing_file, irregular_error, irregular_kind, lock_log,
    new_file, open_error, read_at, sync_dir, user_id,
};

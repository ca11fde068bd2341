//! File I/O on dedicated threads, and the few file operations that moat uses.
//!
//! File I/O can hang, and a hung system call cannot be cancelled. So it never runs on a thread of
//! the async runtime, whose shutdown would wait for it.

mod file;
mod files;
#[cfg(test)]
pub(crate) mod image;
#[cfg(test)]
pub(crate) mod journal;
mod platform;
mod pool;

pub(crate) use file::File;
pub(crate) use files::{
    create_atomic, create_dir, create_dirs, is_at, is_in_use, is_irregular, link, open_new,
    open_to_read, open_to_write, parent_dir, remove_dir, remove_file, remove_temporary, rename,
    sync_dir, write_atomic,
};
pub(crate) use platform::{FileId, FileTimes, lock_log, read_at, user_id};
pub(crate) use pool::Disk;

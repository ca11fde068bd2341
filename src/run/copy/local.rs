//! Modes, owners and links of the files on this machine.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::path::Path;

#[cfg(unix)]
use std::os::unix::fs::{
    DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink as symlink_unix,
};

/// Returns the permission bits of a file.
#[cfg(unix)]
pub(super) fn mode_of(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o777
}

#[cfg(not(unix))]
pub(super) fn mode_of(metadata: &Metadata) -> u32 {
    if metadata.is_dir() { 0o755 } else { 0o644 }
}

/// Creates a file. The umask applies to its mode.
pub(super) fn create_file(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    options.mode(mode);
    #[cfg(not(unix))]
    let _ = mode;
    options.open(path)
}

/// Creates a directory. The umask applies to its mode.
pub(super) fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    builder.mode(mode);
    #[cfg(not(unix))]
    let _ = mode;
    builder.create(path)
}

/// Sets a mode, without the umask.
#[cfg(unix)]
pub(super) fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
pub(super) fn set_mode(_path: &Path, _mode: u32) -> io::Result<()> {
    Ok(())
}

/// Sets an owner. A link itself gets the owner.
#[cfg(unix)]
pub(super) fn set_owner(path: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    lchown(path, Some(user), Some(group))
}

#[cfg(not(unix))]
pub(super) fn set_owner(_path: &Path, _owner: (u32, u32)) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
pub(super) fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    symlink_unix(target, path)
}

#[cfg(not(unix))]
pub(super) fn symlink(_target: &Path, _path: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Opens a file to read. A FIFO that takes its place does not block.
#[cfg(unix)]
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    options.open(path)
}

#[cfg(not(unix))]
pub(super) fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

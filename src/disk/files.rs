//! The file operations: private modes, no links followed, durable names.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::File;
#[cfg(test)]
use crate::disk::journal;
use crate::disk::platform::{self, FileId};
use crate::error::{Error, Result};

/// Creates a file for reading and writing, with mode 0600.
///
/// An existing file is an error.
pub(crate) fn open_new(path: &Path) -> Result<File> {
    platform::new_file()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map(|file| File::opened(file, path, true))
        .map_err(|error| Error::storage("create", path, error))
}

/// Opens an existing file for reading.
///
/// Fails without blocking if the path is not a regular file: a link, a directory, a FIFO.
pub(crate) fn open_to_read(path: &Path) -> Result<fs::File> {
    open_regular(path, false)
}

/// Opens an existing file for reading and writing, as [`open_to_read`] does.
pub(crate) fn open_to_write(path: &Path) -> Result<File> {
    open_regular(path, true).map(|file| File::opened(file, path, false))
}

/// The error for a path that is not a regular file, with the kind of file that it is.
#[derive(Debug, thiserror::Error)]
#[error("not a regular file: {0}")]
struct NotRegular(&'static str);

/// Returns true if a file could not be opened because it is not a regular file.
///
/// A retry fails until the file is replaced.
pub(crate) fn is_irregular(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|cause| cause.is::<NotRegular>())
}

/// Returns true if a file could not be opened because another process has it open for writing.
///
/// Only Windows refuses such an open. Elsewhere, a lock shows the other process.
pub(crate) fn is_in_use(error: &Error) -> bool {
    error.io_kind() == Some(io::ErrorKind::WouldBlock)
}

fn open_regular(path: &Path, write: bool) -> Result<fs::File> {
    let fail = |error| Error::storage("open", path, error);
    let irregular = |what| io::Error::new(io::ErrorKind::InvalidInput, NotRegular(what));
    let file = platform::existing_file(write)
        .read(true)
        .write(write)
        .open(path)
        .map_err(|error| match platform::irregular_error(&error) {
            Some(what) => fail(irregular(what)),
            None => fail(platform::open_error(error)),
        })?;
    let kind = file.metadata().map_err(fail)?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(fail(irregular(match kind.is_dir() {
        true => "a directory",
        false => platform::irregular_kind(kind),
    })))
}

/// Returns true if `path` currently names the open `file`.
pub(crate) fn is_at(file: &fs::File, path: &Path) -> io::Result<bool> {
    let ours = FileId::of(file)?;
    match FileId::at(path) {
        Ok(there) => Ok(there == ours),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates a directory with mode 0700. An existing directory is an error.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    create_dir_with(path, 0o700)
}

fn create_dir_with(path: &Path, mode: u32) -> Result<()> {
    platform::dir_builder(mode)
        .create(path)
        .map_err(|error| Error::storage("create", path, error))?;
    #[cfg(test)]
    journal::record(path, journal::Op::CreateDir);
    Ok(())
}

/// Creates a directory with mode 0700, and missing parents with the default mode.
///
/// An existing directory is left unchanged. The new names survive a power loss.
pub(crate) fn create_dirs(path: &Path) -> Result<()> {
    create_dirs_with(path, 0o700)
}

fn create_dirs_with(path: &Path, mode: u32) -> Result<()> {
    let parent = parent_dir(path);
    if path.is_dir() {
        // The creator may have died before this sync. The sync fails if the parent is not readable.
        let _ = sync_dir(parent);
        return Ok(());
    }
    // An empty path has no parent.
    if parent != path {
        create_dirs_with(parent, 0o777)?;
    }
    match create_dir_with(path, mode) {
        Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => {
            if !path.is_dir() {
                let source = io::Error::new(
                    io::ErrorKind::NotADirectory,
                    "this path exists and is not a directory",
                );
                return Err(Error::storage("create", path, source));
            }
        }
        created => created?,
    }
    match sync_dir(parent) {
        // The parent is writable but not readable, so it cannot be synced.
        Err(error) if error.io_kind() == Some(io::ErrorKind::PermissionDenied) => Ok(()),
        synced => synced,
    }
}

/// Syncs a directory, so that the names in it survive a power loss. Has no effect on Windows.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    platform::sync_dir(path).map_err(|error| Error::storage("sync", path, error))?;
    #[cfg(test)]
    journal::record(path, journal::Op::SyncDir);
    Ok(())
}

/// Renames a file within its directory. An existing file at `to` is replaced.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    #[cfg(test)]
    journal::record_pair(from, to, |from, to| journal::Op::Rename { from, to });
    Ok(())
}

/// Adds a second name to a file, in the same directory. An existing file at `to` is an error.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    #[cfg(test)]
    journal::record_pair(from, to, |from, to| journal::Op::Link { from, to });
    Ok(())
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    #[cfg(test)]
    journal::record(path, journal::Op::Remove);
    Ok(())
}

/// Removes a directory with everything in it.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path)?;
    #[cfg(test)]
    journal::record(path, journal::Op::RemoveDir);
    Ok(())
}

/// The directory that contains `path`.
pub(crate) fn parent_dir(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Replaces a file atomically. The new content survives a power loss.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let (temporary, file) = open_temporary(path)?;
    let written = write_and_sync(&temporary, file, bytes).and_then(|()| {
        rename(&temporary, path).map_err(|error| Error::storage("replace", path, error))
    });
    if written.is_err() {
        let _ = remove_file(&temporary);
    }
    written?;
    sync_dir(parent_dir(path))
}

/// Creates a file whose content `write` writes. An existing file at `path` is an error.
///
/// The file has its name only once it is complete and survives a power loss.
pub(crate) fn create_atomic(path: &Path, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let (temporary, file) = open_temporary(path)?;
    let created = write(&file)
        .and_then(|()| {
            let synced = file.sync_all();
            synced.map_err(|error| Error::storage("sync", &temporary, error))
        })
        .and_then(|()| {
            // A rename would replace an existing file.
            link(&temporary, path).map_err(|error| Error::storage("create", path, error))
        });
    let _ = remove_file(&temporary);
    created?;
    sync_dir(parent_dir(path))
}

/// Removes the temporary files of interrupted writes.
///
/// These are the temporary files in `dir` of targets whose names begin with one of the prefixes. A
/// write of such a target that is in progress fails.
pub(crate) fn remove_temporary(dir: &Path, target_prefixes: &[&str]) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let target = name.strip_prefix('.');
        if target.is_some_and(|target| target_prefixes.iter().any(|p| target.starts_with(p))) {
            let _ = remove_file(&entry.path());
        }
    }
}

fn open_temporary(path: &Path) -> Result<(PathBuf, File)> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}-{serial}", std::process::id()));
        let temporary = parent_dir(path).join(name);
        match open_new(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            // A leftover of a dead process with the same id.
            Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => {}
            Err(error) => return Err(error),
        }
    }
}

fn write_and_sync(path: &Path, file: File, bytes: &[u8]) -> Result<()> {
    (&file)
        .write_all(bytes)
        .map_err(|error| Error::storage("write", path, error))?;
    file.sync_all()
        .map_err(|error| Error::storage("sync", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_atomic_write_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.json");
        for text in ["one", "another"] {
            write_atomic(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let missing = dir.path().join("missing/run.json");
        let error = write_atomic(&missing, b"x").unwrap_err();
        assert!(error.to_string().starts_with("cannot create "), "{error}");
    }

    #[test]
    fn an_atomic_write_replaces_a_link_unfollowed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("run.json"), dir.path().join("victim"));
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &path).unwrap();
        write_atomic(&path, b"record").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert!(path.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn irregular_files_are_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name| dir.path().join(name);
        fs::write(at("file"), "x").unwrap();
        fs::create_dir(at("dir")).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("missing", at("dangling")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(at("fifo"))
            .status();
        assert!(made.unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();

        for write in [false, true] {
            open_regular(&at("file"), write).unwrap();
            for name in ["dir", "link", "dangling", "fifo", "socket"] {
                let error = open_regular(&at(name), write).unwrap_err();
                assert!(
                    error.chain().contains("not a regular file"),
                    "{name}: {}",
                    error.chain()
                );
            }
            let error = open_regular(Path::new("/dev/null"), write).unwrap_err();
            assert!(error.chain().contains("not a regular file: a device"));
        }
        for name in ["file", "dir", "link", "dangling", "fifo"] {
            assert!(open_new(&at(name)).is_err(), "{name}");
        }
        assert!(!at("missing").exists());
    }

    #[test]
    fn an_empty_path_cannot_be_created() {
        let error = create_dirs(Path::new("")).unwrap_err();
        assert_eq!(error.io_kind(), Some(io::ErrorKind::NotFound));
    }

    #[test]
    fn new_files_and_directories_are_private() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        create_dir(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        assert!(create_dir(&dir).is_err());
        open_new(&dir.join("file")).unwrap();
        assert_eq!(mode(&dir.join("file")), 0o600);
        sync_dir(&dir).unwrap();
        assert_eq!(parent_dir(Path::new("file")), Path::new("."));
    }
}

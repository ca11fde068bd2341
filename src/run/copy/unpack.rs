//! Unpacks an archive from a container, whose names, links and sizes may be hostile.
//!
//! Files are created in a new directory with mode 0700, next to the target, and renamed to the
//! target once all are complete. Every parent of a file is a directory that this unpacking has
//! created, so no link is ever followed.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use tar::{Entry, EntryType};
use tokio::sync::mpsc;
use ulid::Ulid;

use super::failure::{Counter, Failure};
use super::local;
use super::options::{CopyOptions, CopyProgress};
use super::pipe::{Meter, PART_BYTES, Part, PartReader};
use crate::error::CopyError;

/// The most bytes of the headers of one entry, and of the bytes after the last one.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// The result of reading an archive.
#[derive(Debug)]
pub(super) enum Unpacked<T> {
    Copied(T, CopyProgress),
    /// The path is a link to this target.
    Link(PathBuf),
}

/// Unpacks the one file or directory of an archive, and renames it to `into`.
pub(super) fn unpack(
    parts: mpsc::Receiver<Part>,
    into: &Path,
    options: &CopyOptions,
) -> Result<Unpacked<()>, Failure> {
    // Known before anything is copied.
    refuse_existing(into, false)?;
    let staging = Staging::create(into)?;
    let mut unpacker = Unpacker {
        content: staging.path.join("content"),
        root: None,
        dirs: HashSet::new(),
        counter: Counter::new(options),
    };
    if let Some(target) = read_archive(parts, |entry| unpacker.entry(entry))? {
        return Ok(Unpacked::Link(target));
    }
    if unpacker.root.is_none() {
        return Err(invalid("it has no file"));
    }
    refuse_existing(into, !unpacker.dirs.is_empty())?;
    fs::rename(&unpacker.content, into).map_err(|error| Failure::disk("create", into, error))?;
    Ok(Unpacked::Copied((), unpacker.counter.progress))
}

/// Returns the content of the one file of an archive.
pub(super) fn read_file(
    parts: mpsc::Receiver<Part>,
    options: &CopyOptions,
) -> Result<Unpacked<Vec<u8>>, Failure> {
    let mut counter = Counter::new(options);
    let mut content = None;
    let link = read_archive(parts, |entry| {
        if content.is_some() {
            return Err(invalid("it has more than one file"));
        }
        match kind(entry) {
            Kind::File => {
                let mut bytes = Vec::new();
                copy_content(entry, &mut counter, |part| {
                    bytes.extend_from_slice(part);
                    Ok(())
                })?;
                counter.end_entry();
                content = Some(bytes);
                Ok(None)
            }
            Kind::Symlink => link_target(entry).map(Some),
            _ => Err(CopyError::NotAFile.into()),
        }
    })?;
    match (link, content) {
        (Some(target), _) => Ok(Unpacked::Link(target)),
        (None, Some(content)) => Ok(Unpacked::Copied(content, counter.progress)),
        (None, None) => Err(invalid("it has no file")),
    }
}

/// Passes each entry of an archive to `each`, until it returns the target of a link.
fn read_archive(
    parts: mpsc::Receiver<Part>,
    mut each: impl FnMut(&mut Entry<'_, PartReader>) -> Result<Option<PathBuf>, Failure>,
) -> Result<Option<PathBuf>, Failure> {
    let meter = Rc::new(Meter::default());
    meter.begin_header(MAX_HEADER_BYTES);
    let mut archive = tar::Archive::new(PartReader::new(parts, Rc::clone(&meter)));
    for entry in archive.entries().map_err(invalid)? {
        let mut entry = entry.map_err(invalid)?;
        meter.begin_content();
        if let Some(target) = each(&mut entry)? {
            return Ok(Some(target));
        }
        io::copy(&mut entry.by_ref().take(MAX_HEADER_BYTES), &mut io::sink()).map_err(invalid)?;
        meter.begin_header(MAX_HEADER_BYTES);
    }
    archive.into_inner().finish().map_err(invalid)?;
    Ok(None)
}

fn invalid(reason: impl ToString) -> Failure {
    CopyError::InvalidArchive(reason.to_string()).into()
}

/// Fails if a copy must not replace `into`.
fn refuse_existing(into: &Path, is_dir: bool) -> Result<(), Failure> {
    match fs::symlink_metadata(into) {
        Ok(found) if is_dir || found.is_dir() => Err(CopyError::TargetExists {
            path: into.to_owned(),
        }
        .into()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::disk("create", into, error))
        }
        _ => Ok(()),
    }
}

/// The directory of an incomplete copy. Drop removes it.
struct Staging {
    path: PathBuf,
}

impl Staging {
    fn create(into: &Path) -> Result<Self, Failure> {
        let path = into.with_file_name(format!(".moat-copy-{}", Ulid::generate()));
        let created = local::create_dir(&path, 0o700);
        created.map_err(|error| Failure::disk("create", &path, error))?;
        Ok(Self { path })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Links are not followed.
        if let Err(error) = fs::remove_dir_all(&self.path) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "cannot remove the directory of an incomplete copy");
        }
    }
}

struct Unpacker<'a> {
    /// The path of the file or directory that is renamed to the target.
    content: PathBuf,
    /// The name of that file or directory in the archive.
    root: Option<OsString>,
    /// The directories so far, relative to `content`.
    dirs: HashSet<PathBuf>,
    counter: Counter<'a>,
}

impl Unpacker<'_> {
    /// Unpacks an entry. Returns its target if the archive is one link.
    fn entry(&mut self, entry: &mut Entry<'_, PartReader>) -> Result<Option<PathBuf>, Failure> {
        let full = entry_name(entry)?;
        self.counter.begin_entry()?;
        let Some(name) = self.below_root(&full) else {
            return Err(Failure::refused(&full, "is outside the copied directory"));
        };
        let kind = kind(entry);
        let is_root = name.as_os_str().is_empty();
        if is_root && matches!(kind, Kind::Symlink) {
            return link_target(entry).map(Some);
        }
        if is_root && matches!(kind, Kind::HardLink | Kind::Special(_)) {
            return Err(CopyError::NotAFile.into());
        }
        if !is_root {
            self.create_parents(&full, &name)?;
        }
        let path = match is_root {
            true => self.content.clone(),
            false => self.content.join(&name),
        };
        match kind {
            Kind::Dir => self.dir(entry, &full, name, &path)?,
            Kind::File => self.file(entry, &full, &path)?,
            Kind::Symlink => {
                let target = link_target(entry)?;
                if !stays_inside(&name, &target) {
                    return self.skip(
                        entry,
                        &full,
                        "is a link that leads out of the copied directory",
                    );
                }
                created(&full, &path, local::symlink(&target, &path))?;
                self.own(&path)?;
            }
            Kind::HardLink => {
                let Some(original) = self.original(entry)? else {
                    return self.skip(entry, &full, "is a link to a file that is not in the copy");
                };
                created(&full, &path, fs::hard_link(original, &path))?;
            }
            Kind::Special(reason) => return self.skip(entry, &full, reason),
        }
        self.counter.end_entry();
        Ok(None)
    }

    /// Returns the name relative to the copied directory, which the first entry names.
    fn below_root(&mut self, full: &Path) -> Option<PathBuf> {
        let mut components = full.components();
        let first = components.next()?.as_os_str().to_owned();
        let rest = components.as_path();
        match &self.root {
            None if rest.as_os_str().is_empty() => self.root = Some(first),
            Some(root) if *root == first => {}
            _ => return None,
        }
        Some(rest.to_owned())
    }

    /// Creates the missing parents of an entry.
    fn create_parents(&mut self, full: &Path, name: &Path) -> Result<(), Failure> {
        let mut parents: Vec<_> = name.ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents {
            if self.dirs.contains(parent) {
                continue;
            }
            if parent.as_os_str().is_empty() {
                return Err(Failure::refused(full, "is below a file"));
            }
            self.counter.begin_entry()?;
            let path = self.content.join(parent);
            let mode = self.counter.options.mode.map(CopyOptions::dir_mode);
            self.create_dir(full, &path, mode.unwrap_or(0o755))?;
            self.dirs.insert(parent.to_owned());
            self.counter.end_entry();
        }
        Ok(())
    }

    fn dir(
        &mut self,
        entry: &Entry<'_, PartReader>,
        full: &Path,
        name: PathBuf,
        path: &Path,
    ) -> Result<(), Failure> {
        let asked = self.counter.options.mode.map(CopyOptions::dir_mode);
        let mode = asked.map_or_else(|| mode(entry), Ok)?;
        self.create_dir(full, path, mode)?;
        self.dirs.insert(name);
        Ok(())
    }

    /// Creates a directory that its owner can write to.
    fn create_dir(&self, full: &Path, path: &Path, mode: u32) -> Result<(), Failure> {
        let mode = mode | 0o700;
        created(full, path, local::create_dir(path, mode))?;
        if self.counter.options.mode.is_some() {
            let set = local::set_mode(path, mode);
            set.map_err(|error| Failure::disk("set the mode of", path, error))?;
        }
        self.own(path)
    }

    fn file(
        &mut self,
        entry: &mut Entry<'_, PartReader>,
        full: &Path,
        path: &Path,
    ) -> Result<(), Failure> {
        let asked = self.counter.options.mode;
        let mode = asked.map_or_else(|| mode(entry), Ok)?;
        let mut file = created(full, path, local::create_file(path, mode))?;
        copy_content(entry, &mut self.counter, |part| {
            let written = file.write_all(part);
            written.map_err(|error| Failure::disk("write", path, error))
        })?;
        self.own(path)?;
        if let Some(mode) = asked {
            let set = local::set_mode(path, mode);
            set.map_err(|error| Failure::disk("set the mode of", path, error))?;
        }
        Ok(())
    }

    fn own(&self, path: &Path) -> Result<(), Failure> {
        let Some(owner) = self.counter.options.owner else {
            return Ok(());
        };
        let set = local::set_owner(path, owner);
        set.map_err(|error| Failure::disk("set the owner of", path, error))
    }

    /// Returns the path of the file that a hard link names, if it is a file of this copy.
    fn original(&mut self, entry: &Entry<'_, PartReader>) -> Result<Option<PathBuf>, Failure> {
        let target = link_target(entry)?;
        let Some(name) = plain_name(&target).and_then(|name| self.below_root(&name)) else {
            return Ok(None);
        };
        let is_inside = name
            .parent()
            .is_some_and(|parent| self.dirs.contains(parent));
        let path = self.content.join(&name);
        let is_file = || fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        Ok((is_inside && is_file()).then_some(path))
    }

    fn skip(
        &mut self,
        entry: &mut Entry<'_, PartReader>,
        full: &Path,
        reason: &'static str,
    ) -> Result<Option<PathBuf>, Failure> {
        if !self.counter.options.skip_special {
            return Err(Failure::refused(full, reason));
        }
        self.counter.check_bytes(entry.size())?;
        io::copy(entry, &mut io::sink()).map_err(invalid)?;
        self.counter.skip_entry();
        Ok(None)
    }
}

enum Kind {
    File,
    Dir,
    Symlink,
    HardLink,
    Special(&'static str),
}

fn kind(entry: &Entry<'_, PartReader>) -> Kind {
    match entry.header().entry_type() {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Dir,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char | EntryType::Block => Kind::Special("is a device"),
        EntryType::Fifo => Kind::Special("is a FIFO"),
        EntryType::GNUSparse => Kind::Special("is a sparse file"),
        _ => Kind::Special("is a file of an unknown kind"),
    }
}

/// Returns the permission bits of an entry.
fn mode(entry: &Entry<'_, PartReader>) -> Result<u32, Failure> {
    Ok(entry.header().mode().map_err(invalid)? & 0o777)
}

/// Returns the name of an entry, without `.` parts.
fn entry_name(entry: &Entry<'_, PartReader>) -> Result<PathBuf, Failure> {
    let name = entry.path().map_err(invalid)?;
    plain_name(&name)
        .ok_or_else(|| Failure::refused(&name, "is not a name in the copied directory"))
}

/// Returns a relative name that stays below its start, without `.` parts.
fn plain_name(name: &Path) -> Option<PathBuf> {
    let bytes = name.as_os_str().as_encoded_bytes();
    // On Windows, a colon begins the name of a stream.
    if bytes.contains(&0) || cfg!(windows) && bytes.contains(&b':') {
        return None;
    }
    let mut plain = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!plain.as_os_str().is_empty()).then_some(plain)
}

fn link_target(entry: &Entry<'_, PartReader>) -> Result<PathBuf, Failure> {
    let target = entry.link_name().map_err(invalid)?;
    let target = target.ok_or_else(|| invalid("a link has no target"))?;
    Ok(target.into_owned())
}

/// Returns true if a link at `name` leads to a file in the copied directory.
///
/// Only `..` parts at the front are allowed. There they name real directories. After a name, which
/// may be a link, they may lead anywhere.
fn stays_inside(name: &Path, target: &Path) -> bool {
    let mut depth = name.components().count().saturating_sub(1);
    let mut has_name = false;
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => has_name = true,
            Component::ParentDir if !has_name && depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

/// Names the entry in the error of a file that exists: two entries have its name.
fn created<T>(full: &Path, path: &Path, result: io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::refused(full, "is in the archive twice"),
        _ => Failure::disk("create", path, error),
    })
}

/// Passes the content of an entry to `write`, in parts, within the limit.
fn copy_content(
    entry: &mut Entry<'_, PartReader>,
    counter: &mut Counter<'_>,
    mut write: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // A file that is too large fails before anything is read.
    let size = entry.size();
    counter.check_bytes(size)?;
    let mut buffer = vec![0; PART_BYTES];
    let mut read_bytes = 0;
    loop {
        let length = match entry.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(invalid(error)),
        };
        read_bytes += length as u64;
        counter.add_bytes(length)?;
        write(&buffer[..length])?;
    }
    match read_bytes == size {
        true => Ok(()),
        false => Err(invalid("a file is cut off")),
    }
}

#[cfg(all(test, unix))]
mod tests;

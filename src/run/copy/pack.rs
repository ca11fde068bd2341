//! Packs files of this machine into an archive.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::failure::{Counter, Failure};
use super::local;
use super::options::{CopyOptions, CopyProgress};
use super::pipe::{PART_BYTES, Part, PartWriter};

/// The mode of a file that `Run::write_file` creates.
const NEW_FILE_MODE: u32 = 0o644;

/// The files to pack.
pub(super) enum Source {
    Path(PathBuf),
    Content(Bytes),
}

/// Packs `source` under the name `name`.
pub(super) fn pack(
    source: &Source,
    name: &str,
    parts: mpsc::Sender<Part>,
    options: &CopyOptions,
) -> Result<CopyProgress, Failure> {
    let mut packer = Packer {
        builder: Builder::new(PartWriter::new(parts)),
        counter: Counter::new(options),
    };
    match source {
        Source::Path(path) => packer.tree(path, Path::new(name))?,
        Source::Content(bytes) => packer.content(bytes, Path::new(name))?,
    }
    let progress = packer.counter.progress;
    let writer = packer.builder.into_inner().map_err(|_| Failure::Closed)?;
    writer.finish();
    Ok(progress)
}

struct Packer<'a> {
    builder: Builder<PartWriter>,
    counter: Counter<'a>,
}

impl Packer<'_> {
    /// Packs a file or directory. A link at `path` is followed, and a link below it is packed.
    fn tree(&mut self, path: &Path, name: &Path) -> Result<(), Failure> {
        let found = fs::metadata(path).map_err(|error| Failure::disk("read", path, error))?;
        let mut pending = vec![(path.to_owned(), name.to_owned(), found)];
        while let Some((path, name, found)) = pending.pop() {
            self.counter.begin_entry()?;
            let kind = found.file_type();
            if kind.is_dir() {
                self.dir(&name, &found)?;
                pending.extend(children(&path, &name)?);
            } else if kind.is_file() {
                self.file(&path, &name, &found)?;
            } else if kind.is_symlink() {
                self.link(&path, &name, &found)?;
            } else if self.counter.options.skip_special {
                self.counter.skip_entry();
            } else {
                return Err(Failure::refused(&path, "is a special file"));
            }
        }
        Ok(())
    }

    fn header(&self, kind: EntryType, mode: u32, modified: io::Result<SystemTime>) -> Header {
        let modified = modified
            .ok()
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let (user, group) = self.counter.options.owner.unwrap_or((0, 0));
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(modified.map_or(0, |since| since.as_secs()));
        header.set_uid(user.into());
        header.set_gid(group.into());
        header.set_size(0);
        header
    }

    fn dir(&mut self, name: &Path, found: &Metadata) -> Result<(), Failure> {
        let asked = self.counter.options.mode.map(CopyOptions::dir_mode);
        let mode = asked.unwrap_or_else(|| local::mode_of(found));
        let mut header = self.header(EntryType::Directory, mode, found.modified());
        let added = self.builder.append_data(&mut header, name, io::empty());
        added.map_err(|error| write_failure(name, error))?;
        self.counter.end_entry();
        Ok(())
    }

    fn link(&mut self, path: &Path, name: &Path, found: &Metadata) -> Result<(), Failure> {
        let target = fs::read_link(path).map_err(|error| Failure::disk("read", path, error))?;
        let mut header = self.header(EntryType::Symlink, 0o777, found.modified());
        let added = self.builder.append_link(&mut header, name, target);
        added.map_err(|error| write_failure(name, error))?;
        self.counter.end_entry();
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &Path, found: &Metadata) -> Result<(), Failure> {
        let failed = |error| Failure::disk("read", path, error);
        let mode = self.counter.options.mode;
        let mode = mode.unwrap_or_else(|| local::mode_of(found));
        let header = self.header(EntryType::Regular, mode, found.modified());
        let file = local::open(path).map_err(failed)?;
        let opened = file.metadata().map_err(failed)?;
        if !opened.is_file() {
            return Err(Failure::refused(path, "changed while it was read"));
        }
        self.regular(header, name, opened.len(), file, failed)
    }

    fn content(&mut self, bytes: &Bytes, name: &Path) -> Result<(), Failure> {
        self.counter.begin_entry()?;
        let mode = self.counter.options.mode.unwrap_or(NEW_FILE_MODE);
        let header = self.header(EntryType::Regular, mode, Ok(SystemTime::now()));
        let failed = |error| Failure::disk("read", name, error);
        self.regular(header, name, bytes.len() as u64, bytes.as_ref(), failed)
    }

    /// Packs a file of this size. A file that grows meanwhile is cut there.
    fn regular(
        &mut self,
        mut header: Header,
        name: &Path,
        size: u64,
        reader: impl Read,
        failed: impl Fn(io::Error) -> Failure,
    ) -> Result<(), Failure> {
        self.counter.check_bytes(size)?;
        header.set_size(size);
        let mut content = Content {
            reader: reader.take(size),
            counter: &mut self.counter,
            failure: None,
            left: size,
        };
        let added = self.builder.append_data(&mut header, name, &mut content);
        if let Some(error) = content.failure {
            return Err(failed(error));
        }
        added.map_err(|error| write_failure(name, error))?;
        self.counter.end_entry();
        Ok(())
    }
}

/// Returns the files in a directory, in the reverse order of their names.
fn children(path: &Path, name: &Path) -> Result<Vec<(PathBuf, PathBuf, Metadata)>, Failure> {
    let failed = |error| Failure::disk("read", path, error);
    let mut children = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let child = entry.path();
        match entry.metadata() {
            Ok(found) => children.push((child, name.join(entry.file_name()), found)),
            // The file was removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::disk("read", &child, error)),
        }
    }
    children.sort_by(|a, b| b.1.cmp(&a.1));
    Ok(children)
}

/// Returns the error of a write to the archive: the pipe is closed, or the name does not fit.
fn write_failure(name: &Path, error: io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::disk("pack", name, error),
    }
}

/// The content of a file. A file that is shorter than its header says is an error.
struct Content<'a, 'b, R> {
    reader: io::Take<R>,
    counter: &'a mut Counter<'b>,
    failure: Option<io::Error>,
    left: u64,
}

impl<R: Read> Read for Content<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(PART_BYTES);
        let read = match self.reader.read(&mut buffer[..room]) {
            Ok(0) if self.left > 0 => Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            )),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            read => read,
        };
        match read {
            Ok(length) => {
                self.left -= length as u64;
                // The limit was checked for the whole file.
                let _ = self.counter.add_bytes(length);
                Ok(length)
            }
            Err(error) => {
                let text = error.to_string();
                self.failure = Some(error);
                Err(io::Error::other(text))
            }
        }
    }
}

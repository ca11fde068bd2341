//! Archives of files in the container, in frames.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, major, minor, utimensat};
use tar::{Archive, Builder, EntryType, Header};

use crate::frames;
use crate::protocol::Kind;

/// The length of the payload of a frame with a part of an archive.
const PART_LEN: usize = 256 << 10;

/// Copies this program into a directory. Returns the exit code.
pub(crate) fn install(directory: &Path) -> i32 {
    let copied = std::env::current_exe()
        .and_then(|program| fs::copy(program, directory.join("moat-helper")));
    match copied {
        Ok(_) => 0,
        Err(error) => {
            eprintln!(
                "moat-helper: cannot install into {}: {error}",
                directory.display()
            );
            1
        }
    }
}

/// Writes an archive of a file or directory. Returns the exit code.
pub(crate) fn pack(path: &Path) -> i32 {
    let result = fs::symlink_metadata(path)
        .map_err(|error| (path.to_owned(), error))
        .and_then(|metadata| {
            let mut packer = Packer {
                builder: Builder::new(Parts::default()),
                links: HashMap::new(),
            };
            let name = path.file_name().map_or(Path::new("."), Path::new);
            packer.add(path, name, &metadata)?;
            let finished = packer.builder.into_inner().and_then(Parts::finish);
            finished.map_err(|error| (PathBuf::new(), error))
        });
    match result {
        Ok(()) => 0,
        Err((path, error)) => {
            let operation = format!("read {}", path.display());
            let _ = frames::write(
                &mut io::stdout(),
                Kind::Failed,
                &frames::failure(&operation, &error),
            );
            1
        }
    }
}

/// Collects bytes to frames.
#[derive(Default)]
struct Parts(Vec<u8>);

impl Parts {
    fn send(&mut self) -> io::Result<()> {
        frames::write(&mut io::stdout().lock(), Kind::Data, &self.0)?;
        self.0.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.send()?;
        let mut stdout = io::stdout().lock();
        frames::write(&mut stdout, Kind::Close, &[])?;
        stdout.flush()
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(PART_LEN - self.0.len());
        self.0.extend_from_slice(&bytes[..len]);
        if self.0.len() == PART_LEN {
            self.send()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type PackResult = Result<(), (PathBuf, io::Error)>;

struct Packer {
    builder: Builder<Parts>,
    /// The names of files with several links, by device and number.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Packer {
    /// Adds a file, or a directory with all that is in it. Sockets are left out, as by tar(1).
    fn add(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> PackResult {
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        self.add_entry(path, name, metadata)
            .map_err(|error| (path.to_owned(), error))?;
        if !kind.is_dir() {
            return Ok(());
        }
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = entries.map_err(|error| (path.to_owned(), error))?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = entry.path();
            match fs::symlink_metadata(&path) {
                Ok(metadata) => self.add(&path, &name.join(entry.file_name()), &metadata)?,
                // Removed since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err((path, error)),
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> io::Result<()> {
        let kind = metadata.file_type();
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        if kind.is_symlink() {
            return self
                .builder
                .append_link(&mut header, name, fs::read_link(path)?);
        }
        if kind.is_file() && metadata.nlink() > 1 {
            let id = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&id) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.builder.append_link(&mut header, name, first);
            }
            self.links.insert(id, name.to_owned());
        }
        if kind.is_file() {
            let content = Content {
                file: match File::open(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    file => file?,
                },
                left: metadata.len(),
            };
            return self.builder.append_data(&mut header, name, content);
        }
        header.set_size(0);
        if kind.is_char_device() || kind.is_block_device() {
            header.set_device_major(major(metadata.rdev()))?;
            header.set_device_minor(minor(metadata.rdev()))?;
        }
        // Names of directories end in a slash.
        let name = if kind.is_dir() {
            name.join("")
        } else {
            name.to_owned()
        };
        self.builder.append_data(&mut header, name, io::empty())
    }
}

/// Exactly as many bytes of a file as its header says: a file may grow or shrink meanwhile. Missing
/// bytes are zero.
struct Content {
    file: File,
    left: u64,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..len];
        let mut read = self.file.read(buffer)?;
        if read == 0 {
            buffer.fill(0);
            read = len;
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Unpacks an archive from the standard input into a directory. Returns the exit code.
pub(crate) fn unpack(directory: &Path) -> i32 {
    let mut input = Input::default();
    let result = unpack_from(&mut input, directory);
    // The client may not read the answer before it has sent all.
    let drained = io::copy(&mut input, &mut io::sink());
    let result = result.and(drained.map(|_| ()));
    let (kind, payload) = match &result {
        Ok(()) => (Kind::Done, Vec::new()),
        Err(error) => {
            let operation = format!("unpack to {}", directory.display());
            (Kind::Failed, frames::failure(&operation, error))
        }
    };
    let _ = frames::write(&mut io::stdout().lock(), kind, &payload);
    i32::from(result.is_err())
}

fn unpack_from(input: &mut Input, directory: &Path) -> io::Result<()> {
    if !fs::metadata(directory)?.is_dir() {
        return Err(rustix::io::Errno::NOTDIR.into());
    }
    let mut archive = Archive::new(input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(rustix::process::geteuid().is_root());
    archive.set_preserve_mtime(true);
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(cause)? {
        let mut entry = entry.map_err(cause)?;
        if entry.header().entry_type() == EntryType::Directory {
            directories.push(entry);
        } else {
            entry.unpack_in(directory).map_err(cause)?;
        }
    }
    // After their content, the deepest ones first: content needs the right to write, and changes
    // the times.
    directories.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for mut entry in directories {
        if entry.unpack_in(directory).map_err(cause)? {
            let path = directory.join(entry.path()?);
            set_modified(&path, entry.header().mtime()?);
        }
    }
    Ok(())
}

fn set_modified(path: &Path, seconds: u64) {
    let time = Timespec {
        tv_sec: seconds as i64,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    // As the archive's own files: without the right, the time is not kept.
    let _ = utimensat(CWD, path, &times, AtFlags::empty());
}

/// The error of the system call below the errors of the archive.
fn cause(error: io::Error) -> io::Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut code = None;
    while let Some(error) = source {
        let inner = error.downcast_ref::<io::Error>();
        code = code.or(inner.and_then(io::Error::raw_os_error));
        source = error.source();
    }
    code.map_or(error, io::Error::from_raw_os_error)
}

/// The payloads of the `Data` frames on the standard input up to `Close`.
#[derive(Default)]
struct Input {
    part: Vec<u8>,
    read: usize,
    closed: bool,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.part.len() && !self.closed {
            match frames::read(&mut io::stdin().lock())? {
                Some(frame) if frame.kind == Kind::Data => {
                    self.part = frame.payload;
                    self.read = 0;
                }
                Some(frame) if frame.kind == Kind::Close => self.closed = true,
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let mut rest = &self.part[self.read..];
        let len = rest.read(buffer)?;
        self.read += len;
        Ok(len)
    }
}

//! The recovery of a file whose writer has ended.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::audit::line::{self, Line};
use crate::audit::line_reader::{Advance, LineReader};
use crate::audit::scan::{Finding, Scan, scan};
use crate::audit::{Damage, RecordRef, TruncatedTail};
use crate::disk::{self, File, open_new, open_to_write, parent_dir, sync_dir};
use crate::error::{Error, Result};
use crate::sink::jsonl::encoder::Encoder;
use crate::sink::jsonl::writer::Writer;
use crate::sink::jsonl::{Jsonl, lock};
use crate::sink::{RecordVisitor, Resumed};
use crate::spec::RunId;

impl Jsonl {
    /// Scans the file at `path`, and reopens it for appending if it is not sealed.
    pub(super) fn recover(
        &self,
        run: &RunId,
        path: PathBuf,
        visit: RecordVisitor,
    ) -> Result<Resumed> {
        let file = match open_to_write(&path) {
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {
                return Ok(Resumed::Absent);
            }
            Err(error) if disk::is_in_use(&error) => {
                return Err(Error::Owned {
                    run: run.clone(),
                    path,
                });
            }
            opened => opened?,
        };
        lock(file.as_std(), run, &path)?;
        let lock_file = file.as_std().try_clone();
        let lock_file = lock_file.map_err(|error| Error::storage("lock", &path, error))?;
        let resumed = self.recover_locked(file, path, visit);
        if !matches!(resumed, Ok(Resumed::Open { .. })) {
            // Otherwise a forked child that inherited the file would keep the lock.
            let _ = lock_file.unlock();
        }
        resumed
    }

    fn recover_locked(
        &self,
        file: File,
        path: PathBuf,
        mut visit: RecordVisitor,
    ) -> Result<Resumed> {
        let recovery = Recovery {
            file: &file,
            path: &path,
        };
        let length = recovery.attempt("read", file.as_std().metadata())?.len();
        let mut scan = recovery.attempt("read", scan(file.as_std()))?;
        if let Some(written) = self.ledger.recall(&path)
            && !recovery.attempt("read", written.matches(file.as_std()))?
        {
            recovery.attempt("read", recovery.distrust(&mut scan))?;
        }
        let keep = scan.keep;
        match scan.finding {
            Finding::Damaged(damage) => Err(Error::Damaged {
                path,
                reason: damage.to_string(),
            }),
            Finding::Sealed(seal) => {
                recovery.visit(keep.offset, &mut visit)?;
                recovery.sync_all()?;
                Ok(Resumed::Sealed(*seal))
            }
            Finding::Unsealed { .. } | Finding::Repairable(_) if keep.offset == 0 => {
                recovery.move_file_aside(length)?;
                Ok(Resumed::Absent)
            }
            Finding::Unsealed { .. } | Finding::Repairable(_) => {
                let torn = recovery.move_tail_aside(keep.offset, length)?;
                recovery.visit(keep.offset, &mut visit)?;
                recovery.sync_all()?;
                recovery.attempt("seek in", file.as_std().seek(SeekFrom::Start(keep.offset)))?;
                let writer = Writer::new(
                    self.syncer(file, &path),
                    Encoder::new(keep),
                    self.ledger.clone(),
                );
                Ok(Resumed::Open {
                    log: self.log(writer, path),
                    torn,
                })
            }
        }
    }
}

struct Recovery<'a> {
    file: &'a File,
    path: &'a Path,
}

impl Recovery<'_> {
    fn attempt<T>(&self, operation: &'static str, result: io::Result<T>) -> Result<T> {
        result.map_err(|error| Error::storage(operation, self.path, error))
    }

    /// Corrects the scan of a file that was changed externally since this process wrote it.
    ///
    /// Records after the last `check` record cannot be trusted, and neither can a seal.
    fn distrust(&self, result: &mut Scan) -> io::Result<()> {
        let checked = result.keep.checked;
        let mut input = self.file.as_std();
        input.rewind()?;
        let keep = scan(input.take(checked))?.keep;
        let damage = Damage {
            line: keep.lines + 1,
            offset: keep.offset,
            reason: "the file was changed externally from here on".into(),
        };
        result.finding = match result.finding {
            Finding::Unsealed { .. } | Finding::Repairable(_) => Finding::Repairable(damage),
            Finding::Sealed(_) | Finding::Damaged(_) => Finding::Damaged(damage),
        };
        result.keep = keep;
        Ok(())
    }

    /// Passes the records of the first `length` bytes, which the scan accepted, to `visit`.
    fn visit(&self, length: u64, visit: &mut RecordVisitor) -> Result<()> {
        let mut input = self.file.as_std();
        self.attempt("seek in", input.rewind())?;
        let mut lines = LineReader::new(input.take(length));
        while self.attempt("read", lines.advance())? == Advance::Line {
            match line::parse(lines.line()) {
                Ok(Line::Output(output)) => visit(output.as_record()),
                Ok(Line::Event(event)) => visit(RecordRef::Event(&event)),
                Ok(Line::Unknown(_)) => {}
                Err(bad) => {
                    let changed = format!("the file changed while it was read: {}", bad.reason());
                    return self.attempt("read", Err(io::Error::other(changed)));
                }
            }
        }
        Ok(())
    }

    /// Syncs the file and its directory entries, which the previous writer may not have synced.
    fn sync_all(&self) -> Result<()> {
        self.attempt("sync", self.file.sync_all())?;
        self.sync_names()
    }

    /// Syncs the directories with the names of the file and of the run's directory.
    fn sync_names(&self) -> Result<()> {
        let dir = parent_dir(self.path);
        sync_dir(dir)?;
        sync_dir(parent_dir(dir))
    }

    /// Moves the bytes after `keep` to a new file.
    ///
    /// The log is truncated only once these bytes are synced.
    fn move_tail_aside(&self, keep: u64, length: u64) -> Result<Option<TruncatedTail>> {
        if keep == length {
            return Ok(None);
        }
        let (name, path, aside) = self.create_aside()?;
        let copied = self.copy(keep, length, &aside).and_then(|()| {
            aside
                .sync_all()
                .map_err(|error| Error::storage("write", &path, error))?;
            sync_dir(parent_dir(&path))
        });
        if let Err(error) = copied {
            let _ = disk::remove_file(&path);
            return Err(error);
        }
        self.attempt("truncate", self.file.set_len(keep))?;
        Ok(Some(TruncatedTail::new(length - keep, name)))
    }

    fn copy(&self, keep: u64, length: u64, mut aside: &File) -> Result<()> {
        let mut input = self.file.as_std();
        self.attempt("seek in", input.seek(SeekFrom::Start(keep)))?;
        let copied = io::copy(&mut input.take(length - keep), &mut aside);
        // It is not known which of the two files failed. The error names the file that was read.
        let copied = self.attempt("move aside the end of", copied)?;
        if copied != length - keep {
            let short = io::Error::from(io::ErrorKind::UnexpectedEof);
            return self.attempt("read", Err(short));
        }
        Ok(())
    }

    /// Moves a file without a complete first record aside, so that the log can be created.
    fn move_file_aside(&self, length: u64) -> Result<()> {
        if length == 0 {
            self.attempt("remove", disk::remove_file(self.path))?;
        } else {
            self.attempt("sync", self.file.sync_all())?;
            // The empty file reserves the name: a rename alone could replace another file.
            let (_, path, _) = self.create_aside()?;
            let renamed = disk::rename(self.path, &path);
            if renamed.is_err() {
                let _ = disk::remove_file(&path);
            }
            self.attempt("move aside", renamed)?;
        }
        self.sync_names()
    }

    /// Creates the first missing file of `torn-1`, `torn-2` and so on.
    fn create_aside(&self) -> Result<(String, PathBuf, File)> {
        for number in 1u64.. {
            let name = format!("torn-{number}");
            let path = parent_dir(self.path).join(&name);
            match open_new(&path) {
                Ok(file) => return Ok((name, path, file)),
                Err(error) if error.io_kind() == Some(io::ErrorKind::AlreadyExists) => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("all numbers are taken")
    }
}

//! The export of a run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::audit::line::hex;
use crate::audit::{LOG_FILE, LogState, exec_file, exec_number};
use crate::bundle::{README, README_FILE, SUMS_FILE};
use crate::disk;
use crate::error::{Error, Result};
use crate::outcome::Seal;
use crate::root::{RUN_FILE, Root, RunHistory};
use crate::spec::{LEDGER_FILE, RunId};

/// The number of bytes of a sealed file that its digest does not cover.
const SEAL_END_BYTES: u64 = 78;
/// The size of a read.
const CHUNK_BYTES: usize = 256 << 10;

impl Root {
    /// Writes a sealed run as a bundle: a tar archive with everything that vouches for the run.
    ///
    /// The archive has the audit files of the run and of its execs with their signatures, the file
    /// `run.json`, the lines of the ledger that name the run, the digests of all these, and a README
    /// that says how to check them. All names begin with the id of the run. The files are verified
    /// while they are written. The bytes of the archive depend on these files only.
    ///
    /// The call blocks, and reads the audit files twice.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSuchRun`].
    /// - [`Error::NotSealed`] if the run, or one of its execs, is not sealed yet.
    /// - [`Error::Damaged`] if an audit file is damaged, or is not the one that the ledger names.
    /// - [`Error::Storage`] if a file cannot be read, or `out` cannot be written.
    ///
    /// After an error, what was written to `out` is no bundle.
    pub fn export(&self, run: &RunId, out: impl Write) -> Result<()> {
        if !self.has(run) {
            return Err(self.no_such_run(run));
        }
        // `run.json` has the seal once the ledger has it.
        let file = self.read_run(run)?.filter(|file| file.seal.is_some());
        let Some(file) = file else {
            return Err(Error::NotSealed { run: run.clone() });
        };
        let history = self.run_history(run, file.record.created)?;
        let names = bundled_names(&self.dir(run))?;
        let seals = self.bundled_seals(run, &names)?;
        self.check_history(run, &history, &seals)?;
        let ts = seals.iter().find(|(name, _)| name == LOG_FILE);
        let ts = ts.map_or(0, |(_, seal)| seal.ts.parts().0.max(0));
        let mut bundle = Writer {
            tar: Builder::new(out),
            run,
            mtime: ts.cast_unsigned(),
            sums: String::new(),
        };
        bundle.add_bytes(README_FILE, README.as_bytes())?;
        for name in &names {
            let seal = seals.iter().find(|(sealed, _)| sealed == name);
            bundle.add_file(&self.dir(run), name, seal.map(|(_, seal)| seal))?;
        }
        bundle.add_bytes(LEDGER_FILE, &history.text())?;
        bundle.finish()
    }

    /// Writes a sealed run as a bundle to a new file, as [`export`](Self::export) does.
    ///
    /// The file has its name only once it is complete. Its mode is 0600.
    ///
    /// # Errors
    ///
    /// Those of [`export`](Self::export), and [`Error::Storage`] if `path` exists.
    pub fn export_to(&self, run: &RunId, path: impl AsRef<Path>) -> Result<()> {
        disk::create_atomic(path.as_ref(), |file| self.export(run, file))
    }

    /// Returns the seals of the audit files of a run and of its execs, by the names of the files.
    fn bundled_seals(&self, run: &RunId, names: &[String]) -> Result<Vec<(String, Seal)>> {
        let mut seals = Vec::new();
        for name in names {
            let exec = exec_number(name);
            let found = match exec {
                Some(number) => self.verify_exec(run, number)?,
                None if name == LOG_FILE => self.verify(run)?,
                None => continue,
            };
            match found.state {
                LogState::Sealed(seal) => seals.push((name.clone(), *seal)),
                LogState::Unsealed { .. } => return Err(Error::NotSealed { run: run.clone() }),
                LogState::Damaged(damage) => {
                    return Err(Error::Damaged {
                        path: self.dir(run).join(name),
                        reason: damage.to_string(),
                    });
                }
            }
        }
        Ok(seals)
    }

    /// Fails unless the files have exactly the seals that the ledger has.
    fn check_history(
        &self,
        run: &RunId,
        history: &RunHistory,
        seals: &[(String, Seal)],
    ) -> Result<()> {
        let execs = history.execs.iter();
        let execs = execs.map(|(number, sha256)| (exec_file(*number), sha256));
        let sealed = history.sealed.iter();
        let sealed = sealed.map(|sha256| (LOG_FILE.to_owned(), sha256));
        let recorded: BTreeMap<_, _> = execs.chain(sealed).collect();
        let found = seals.iter();
        let found = found.map(|(name, seal)| (name.clone(), &seal.sha256));
        let found: BTreeMap<_, _> = found.collect();
        let mut names = recorded.keys().chain(found.keys());
        let Some(name) = names.find(|name| recorded.get(*name) != found.get(*name)) else {
            return Ok(());
        };
        let reason = match (recorded.contains_key(name), found.contains_key(name)) {
            (true, true) => "its seal is not the one in the ledger",
            (true, false) => "it is missing, although the ledger has its seal",
            (false, _) => "the ledger does not have its seal",
        };
        Err(Error::Damaged {
            path: self.dir(run).join(name),
            reason: reason.into(),
        })
    }
}

/// Returns the names of the files in a run's directory that belong into a bundle, sorted.
fn bundled_names(dir: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::storage("read", dir, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(
            name.to_str()
                .filter(|name| is_bundled(name))
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

/// Returns true if a file of this name belongs into a bundle.
pub(super) fn is_bundled(name: &str) -> bool {
    let is_audit = |name: &str| name == LOG_FILE || exec_number(name).is_some();
    let is_signature = name.strip_suffix(".sig").is_some_and(is_audit);
    let torn = name.strip_prefix("torn-");
    let is_torn = torn.is_some_and(|number| number.parse::<u64>().is_ok());
    is_audit(name) || is_signature || is_torn || name == RUN_FILE
}

/// Writes a bundle.
struct Writer<'a, W: Write> {
    tar: Builder<W>,
    run: &'a RunId,
    mtime: u64,
    sums: String,
}

impl<W: Write> Writer<'_, W> {
    fn failed(&self, error: io::Error) -> Error {
        Error::storage("write the bundle of run", self.run.as_str(), error)
    }

    fn header(&self, bytes: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.mtime);
        header.set_size(bytes);
        header
    }

    fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.add_sum(name, &Sha256::digest(bytes));
        let mut header = self.header(bytes.len() as u64);
        let path = format!("{}/{name}", self.run);
        let added = self.tar.append_data(&mut header, path, bytes);
        added.map_err(|error| self.failed(error))
    }

    fn add_sum(&mut self, name: &str, digest: &[u8]) {
        self.sums.push_str(&format!("{}  {name}\n", hex(digest)));
    }

    /// Adds a file. The written bytes of an audit file are those that `seal` covers.
    fn add_file(&mut self, dir: &Path, name: &str, seal: Option<&Seal>) -> Result<()> {
        let path = dir.join(name);
        let file = disk::open_to_read(&path)?;
        let metadata = file.metadata();
        let length = metadata
            .map_err(|error| Error::storage("read", &path, error))?
            .len();
        let mut input = Hashing::new(file, length);
        let mut header = self.header(length);
        let entry = format!("{}/{name}", self.run);
        let added = self.tar.append_data(&mut header, entry, &mut input);
        // A file that cannot be read has an error of its own.
        if let Some(error) = input.error.take() {
            return Err(Error::storage("read", path, error));
        }
        added.map_err(|error| self.failed(error))?;
        let changed = match seal {
            Some(seal) => input.covered() != seal.sha256,
            None => input.left > 0,
        };
        if changed {
            let reason = "it was changed while it was read".into();
            return Err(Error::Damaged { path, reason });
        }
        self.add_sum(name, &input.whole.finalize());
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let sums = std::mem::take(&mut self.sums);
        self.add_bytes(SUMS_FILE, sums.as_bytes())?;
        let finished = self.tar.into_inner().and_then(|mut out| out.flush());
        finished
            .map_err(|error| Error::storage("write the bundle of run", self.run.as_str(), error))
    }
}

/// A file whose bytes are hashed while they are read.
struct Hashing {
    file: io::Take<File>,
    /// The number of bytes that were not read yet.
    left: u64,
    whole: Sha256,
    /// The digest of the bytes that the seal covers.
    covered: Option<Sha256>,
    error: Option<io::Error>,
}

impl Hashing {
    fn new(file: File, length: u64) -> Self {
        Self {
            file: file.take(length),
            left: length,
            whole: Sha256::new(),
            covered: None,
            error: None,
        }
    }

    /// Returns the digest that the seal of the file has if no byte has changed.
    fn covered(&mut self) -> String {
        let covered = self.covered.take().unwrap_or_default();
        hex(&covered.finalize())
    }
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A read ends where the bytes end that the seal covers.
        let covered = self.left.saturating_sub(SEAL_END_BYTES);
        let most = if covered > 0 { covered } else { self.left };
        let most = buffer.len().min(CHUNK_BYTES).min(most.max(1) as usize);
        if covered == 0 && self.covered.is_none() {
            self.covered = Some(self.whole.clone());
        }
        match self.file.read(&mut buffer[..most]) {
            Ok(count) => {
                self.whole.update(&buffer[..count]);
                self.left -= count as u64;
                Ok(count)
            }
            Err(error) => {
                self.error = Some(io::Error::new(error.kind(), error.to_string()));
                Err(error)
            }
        }
    }
}

//! The verification of a bundle.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};
use tar::{Archive, EntryType};

use crate::audit::line::hex;
use crate::audit::{LOG_FILE, LogState, Verification, exec_number};
use crate::bundle::export::is_bundled;
use crate::bundle::{README_FILE, SUMS_FILE};
use crate::disk;
use crate::error::{Error, Result};
use crate::root::{LedgerEntry, LedgerLine, RUN_FILE, RunFile};
#[cfg(feature = "sign")]
use crate::sign::{AllowedSigners, NAMESPACE, SignatureError};
use crate::spec::{LEDGER_FILE, RunId};

/// The number of zeros that may follow the last file. moat writes at most 1,535, GNU tar 10,240.
const MAX_END_BYTES: u64 = 64 << 10;
/// The size limit of the files that are read into memory.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// The result of [`verify`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BundleVerification {
    /// The run, or `None` if the archive has no directory with the id of a run.
    pub run: Option<RunId>,
    /// The verification of the run's audit file, or `None` if it is missing.
    pub audit: Option<Verification>,
    /// The verifications of the audit files of execs, by number.
    pub execs: BTreeMap<u32, Verification>,
    /// The lines of the root's ledger that name the run.
    pub ledger: Vec<LedgerLine>,
    /// The problems, each with the file that has it. Empty if the bundle is intact.
    pub problems: Vec<String>,
}

impl BundleVerification {
    /// Returns true if the bundle has no problem.
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Verifies the bundle at `path`, which [`Root::export`](crate::Root::export) wrote.
///
/// `verify` checks that each file has the digest that the bundle states, that all audit files are
/// sealed and intact and belong to one run of one root, and that the lines of the ledger have the
/// digests of their seals. This proves that the bundle is undamaged. It does not prove who wrote
/// it.
///
/// The call blocks, and reads the archive twice.
///
/// # Errors
///
/// [`Error::Storage`] if the file cannot be read. Damage is reported in the result, not as an
/// error.
pub fn verify(path: impl AsRef<Path>) -> Result<BundleVerification> {
    let path = path.as_ref();
    let file = disk::open_to_read(path)?;
    let bundle = Bundle::read(file);
    let bundle = bundle.map_err(|error| Error::storage("read the bundle", path, error))?;
    let verified = bundle.verify();
    verified.map_err(|error| Error::storage("read the bundle", path, error))
}

/// Verifies the bundle at `path` as [`verify()`] does, and the signatures of its audit files.
///
/// An audit file without a signature of an allowed signer is a problem.
///
/// # Errors
///
/// Those of [`verify()`].
#[cfg(feature = "sign")]
pub fn verify_signed(
    path: impl AsRef<Path>,
    allowed: &AllowedSigners,
) -> Result<BundleVerification> {
    let path = path.as_ref();
    let failed = |error| Error::storage("read the bundle", path, error);
    let bundle = Bundle::read(disk::open_to_read(path)?).map_err(failed)?;
    let unsigned = bundle.unsigned(allowed).map_err(failed)?;
    let mut verified = bundle.verify().map_err(failed)?;
    verified.problems.extend(unsigned);
    Ok(verified)
}

/// A file of a bundle.
struct Member {
    /// The position of the content in the archive.
    offset: u64,
    bytes: u64,
    sha256: String,
}

/// The files of a bundle.
struct Bundle {
    archive: File,
    run: Option<RunId>,
    members: BTreeMap<String, Member>,
    problems: Vec<String>,
}

impl Bundle {
    fn read(archive: File) -> io::Result<Self> {
        let mut bundle = Self {
            archive: archive.try_clone()?,
            run: None,
            members: BTreeMap::new(),
            problems: Vec::new(),
        };
        let length = archive.metadata()?.len();
        let mut archive = Archive::new(BufReader::new(archive));
        // Raw, so that an extension of the format is an entry that does not belong into a bundle.
        for entry in archive.entries()?.raw(true) {
            let mut entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    bundle.problems.push(format!("the archive: {error}"));
                    break;
                }
            };
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let Some(name) = bundle.member_name(&path, entry.header().entry_type()) else {
                bundle
                    .problems
                    .push(format!("{path}: it does not belong into a bundle"));
                continue;
            };
            let mut digest = Hasher(Sha256::new());
            let copied = io::copy(&mut entry, &mut digest);
            let bytes = entry.size();
            if copied.is_err() || copied.is_ok_and(|copied| copied != bytes) {
                bundle
                    .problems
                    .push(format!("{name}: the archive ends within it"));
                break;
            }
            let member = Member {
                offset: entry.raw_file_position(),
                bytes,
                sha256: hex(&digest.0.finalize()),
            };
            if bundle.members.insert(name.clone(), member).is_some() {
                bundle
                    .problems
                    .push(format!("{name}: the archive has it twice"));
            }
        }
        bundle.check_end(length)?;
        Ok(bundle)
    }

    /// Checks that only zeros follow the last file.
    fn check_end(&mut self, length: u64) -> io::Result<()> {
        let ends = self.members.values();
        let end = ends.map(|member| member.offset + member.bytes).max();
        let end = end.unwrap_or(0);
        let mut file = &self.archive;
        file.seek(SeekFrom::Start(end))?;
        let mut rest = Vec::new();
        file.take(MAX_END_BYTES).read_to_end(&mut rest)?;
        let is_long = length.saturating_sub(end) > MAX_END_BYTES;
        if is_long || rest.iter().any(|byte| *byte != 0) {
            let problem = "the archive: something follows its last file";
            self.problems.push(problem.to_owned());
        }
        Ok(())
    }

    /// Returns the name of a file of the bundle, without the directory of the run.
    fn member_name(&mut self, path: &str, kind: EntryType) -> Option<String> {
        let (dir, name) = path.split_once('/')?;
        let known = is_bundled(name) || [README_FILE, SUMS_FILE, LEDGER_FILE].contains(&name);
        let run = RunId::new(dir)
            .ok()
            .filter(|_| known && kind == EntryType::Regular)?;
        let run = self.run.get_or_insert(run);
        (run.as_str() == dir).then(|| name.to_owned())
    }

    fn content(&self, member: &Member) -> io::Result<impl Read> {
        let mut file = self.archive.try_clone()?;
        file.seek(SeekFrom::Start(member.offset))?;
        Ok(file.take(member.bytes))
    }

    /// Returns the content of a text file. A missing or malformed one is a problem.
    fn text(&mut self, name: &str) -> io::Result<String> {
        let Some(member) = self.members.get(name) else {
            self.problems.push(format!("{name}: it is missing"));
            return Ok(String::new());
        };
        let mut bytes = Vec::new();
        self.content(member)?
            .take(MAX_TEXT_BYTES)
            .read_to_end(&mut bytes)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|_| {
            self.problems.push(format!("{name}: it is not UTF-8"));
            String::new()
        }))
    }

    /// Returns the problems of the signatures.
    #[cfg(feature = "sign")]
    fn unsigned(&self, allowed: &AllowedSigners) -> io::Result<Vec<String>> {
        let mut problems = Vec::new();
        for (name, member) in &self.members {
            if exec_number(name).is_none() && name != LOG_FILE {
                continue;
            }
            let signature = match self.members.get(&format!("{name}.sig")) {
                Some(signature) => {
                    let mut bytes = Vec::new();
                    let content = self.content(signature)?;
                    content.take(MAX_TEXT_BYTES).read_to_end(&mut bytes)?;
                    bytes
                }
                None => {
                    problems.push(format!("{name}: {}", SignatureError::Missing));
                    continue;
                }
            };
            let verified = allowed.verify(NAMESPACE, self.content(member)?, &signature);
            problems.extend(verified.err().map(|error| format!("{name}: {error}")));
        }
        Ok(problems)
    }

    fn verify(mut self) -> io::Result<BundleVerification> {
        self.check_sums()?;
        let mut audit = None;
        let mut execs = BTreeMap::new();
        for (name, member) in &self.members {
            let exec = exec_number(name);
            if exec.is_none() && name != LOG_FILE {
                continue;
            }
            let found = Verification::of(self.content(member)?)?;
            match exec {
                Some(number) => drop(execs.insert(number, found)),
                None => audit = Some(found),
            }
        }
        self.check_audit(LOG_FILE, None, audit.as_ref(), audit.as_ref());
        for (number, found) in &execs {
            let name = crate::audit::exec_file(*number);
            self.check_audit(&name, Some(*number), Some(found), audit.as_ref());
        }
        let ledger = self.check_ledger(audit.as_ref(), &execs)?;
        self.check_run_file(audit.as_ref())?;
        if !self.members.contains_key(README_FILE) {
            self.problems.push(format!("{README_FILE}: it is missing"));
        }
        Ok(BundleVerification {
            run: self.run,
            audit,
            execs,
            ledger,
            problems: self.problems,
        })
    }

    /// Compares the files with the digests of the bundle.
    fn check_sums(&mut self) -> io::Result<()> {
        let sums = self.text(SUMS_FILE)?;
        let sums: BTreeMap<_, _> = sums
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(sum, name)| (name, sum))
            .collect();
        let mut problems = Vec::new();
        for (name, member) in &self.members {
            match sums.get(name.as_str()) {
                _ if name == SUMS_FILE => {}
                Some(sum) if *sum == member.sha256 => {}
                Some(_) => problems.push(format!("{name}: its digest differs from {SUMS_FILE}")),
                None => problems.push(format!("{name}: {SUMS_FILE} does not name it")),
            }
        }
        let missing = sums
            .keys()
            .filter(|name| !self.members.contains_key(**name));
        problems.extend(missing.map(|name| format!("{name}: it is missing")));
        self.problems.extend(problems);
        Ok(())
    }

    /// Checks that an audit file is sealed, and belongs to the run of the bundle.
    fn check_audit(
        &mut self,
        name: &str,
        exec: Option<u32>,
        found: Option<&Verification>,
        audit: Option<&Verification>,
    ) {
        let Some(found) = found else {
            self.problems.push(format!("{name}: it is missing"));
            return;
        };
        match &found.state {
            LogState::Sealed(_) => {}
            LogState::Unsealed { .. } => self.problems.push(format!("{name}: it is not sealed")),
            LogState::Damaged(damage) => self.problems.push(format!("{name}: {damage}")),
        }
        let root = |found: &Verification| Some(found.start.as_ref()?.record.root.clone());
        if let Some(start) = &found.start {
            let belongs = Some(&start.record.run) == self.run.as_ref()
                && start.exec == exec
                && audit.and_then(root) == root(found);
            if !belongs {
                let run = &start.record.run;
                let problem = format!("{name}: it belongs to run {run}, and not in this place");
                self.problems.push(problem);
            }
        }
    }

    /// Compares `run.json` with the audit file.
    fn check_run_file(&mut self, audit: Option<&Verification>) -> io::Result<()> {
        let text = self.text(RUN_FILE)?;
        let Some(audit) = audit.filter(|_| !text.is_empty()) else {
            return Ok(());
        };
        let start = audit.start.as_ref().map(|start| &start.record);
        let seal = match &audit.state {
            LogState::Sealed(seal) => Some(&**seal),
            _ => None,
        };
        let problem = match serde_json::from_str::<RunFile>(&text) {
            Err(error) => error.to_string(),
            Ok(file) if start.is_some_and(|start| !file.has_record(start)) => {
                format!("it differs from the start record of {LOG_FILE}")
            }
            Ok(file) if file.seal.as_ref() != seal => {
                format!("its seal differs from that of {LOG_FILE}")
            }
            Ok(_) => return Ok(()),
        };
        self.problems.push(format!("{RUN_FILE}: {problem}"));
        Ok(())
    }

    /// Compares the lines of the ledger with the seals.
    fn check_ledger(
        &mut self,
        audit: Option<&Verification>,
        execs: &BTreeMap<u32, Verification>,
    ) -> io::Result<Vec<LedgerLine>> {
        let text = self.text(LEDGER_FILE)?;
        let mut lines = Vec::new();
        for line in text.lines() {
            match LedgerLine::parse(line.as_bytes()) {
                Ok(line) if line.entry.run() == self.run.as_ref() => lines.push(line),
                Ok(_) => self
                    .problems
                    .push(format!("{LEDGER_FILE}: a line names another run")),
                Err(reason) => self.problems.push(format!("{LEDGER_FILE}: {reason}")),
            }
        }
        let digest = |found: &Verification| match &found.state {
            LogState::Sealed(seal) => Some(seal.sha256.clone()),
            _ => None,
        };
        let created = lines.iter().find_map(|line| match &line.entry {
            LedgerEntry::Begun(begun) => Some(begun.created),
            _ => None,
        });
        let start = audit.and_then(|audit| audit.start.as_ref());
        if created.is_none() || created != start.map(|start| start.record.created) {
            let problem = "it does not have the begin of the run";
            self.problems.push(format!("{LEDGER_FILE}: {problem}"));
        }
        let sealed = lines.iter().find_map(|line| match &line.entry {
            LedgerEntry::Sealed(sealed) => Some(sealed.sha256.clone()),
            _ => None,
        });
        if sealed.is_none() || sealed != audit.and_then(digest) {
            let problem = format!("it does not have the seal of {LOG_FILE}");
            self.problems.push(format!("{LEDGER_FILE}: {problem}"));
        }
        let recorded: BTreeMap<_, _> = lines
            .iter()
            .filter_map(|line| match &line.entry {
                LedgerEntry::ExecSealed { exec, sha256, .. } => Some((*exec, sha256.clone())),
                _ => None,
            })
            .collect();
        let found: BTreeMap<_, _> = execs
            .iter()
            .filter_map(|(number, found)| Some((*number, digest(found)?)))
            .collect();
        if recorded != found {
            let problem = "it does not have the seals of the execs in the bundle";
            self.problems.push(format!("{LEDGER_FILE}: {problem}"));
        }
        Ok(lines)
    }
}

/// Hashes what is written to it.
struct Hasher(Sha256);

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

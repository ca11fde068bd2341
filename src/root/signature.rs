//! The signatures of audit files.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256, Sha512};

use crate::audit::exec_file;
use crate::audit::line::{SEAL_KEY, SEAL_TAIL, hex};
use crate::disk;
use crate::error::{Error, Result};
use crate::root::Root;
use crate::sign::{AllowedSigners, NAMESPACE, SigningKey, VerifiedSigner};
use crate::spec::RunId;

/// The mark in `run.json` of a run that is to be signed.
pub(crate) const NOT_SIGNED_YET: &str = "not signed yet";

impl Root {
    /// Verifies the signature of a run's audit file.
    ///
    /// The signature shows who sealed the file, and that the file has not changed since. It does not
    /// show that the file belongs to this run: see [`verify`](Self::verify).
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`]; [`Error::Signature`] if the signature is missing or is not accepted,
    /// with the reason; [`Error::Storage`] if a file cannot be read.
    pub fn verify_signature(
        &self,
        run: &RunId,
        allowed: &AllowedSigners,
    ) -> Result<VerifiedSigner> {
        if !self.has(run) {
            return Err(self.no_such_run(run));
        }
        allowed.verify_file(NAMESPACE, self.audit(run))
    }

    /// Verifies the signature of the log of an exec, as
    /// [`verify_signature`](Self::verify_signature) does.
    ///
    /// # Errors
    ///
    /// As [`verify_signature`](Self::verify_signature).
    pub fn verify_exec_signature(
        &self,
        run: &RunId,
        number: u32,
        allowed: &AllowedSigners,
    ) -> Result<VerifiedSigner> {
        if !self.has(run) {
            return Err(self.no_such_run(run));
        }
        allowed.verify_file(NAMESPACE, self.dir(run).join(exec_file(number)))
    }

    /// Returns true if the logs of a run and of its execs have signatures of this key.
    pub(crate) fn is_signed_by(&self, run: &RunId, key: &SigningKey) -> bool {
        has_signature(&self.audit(run), &only(key)) && self.execs_to_sign(run, key).is_empty()
    }

    /// Returns the numbers of a run's execs whose log has no signature of this key, sorted.
    pub(crate) fn execs_to_sign(&self, run: &RunId, key: &SigningKey) -> Vec<u32> {
        let own = only(key);
        let is_unsigned =
            |number: &u32| !has_signature(&self.dir(run).join(exec_file(*number)), &own);
        let mut numbers: Vec<_> = self.exec_numbers(run).filter(is_unsigned).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Changes the mark in `run.json` of a sealed run, whose lock the caller holds.
    ///
    /// Returns false if the file has that mark already.
    pub(crate) fn mark_unsigned(&self, run: &RunId, mark: Option<&str>) -> Result<bool> {
        let Some(mut file) = self.read_run(run)? else {
            return Err(self.no_such_run(run));
        };
        if file.unsigned.as_deref() == mark {
            return Ok(false);
        }
        file.unsigned = mark.map(str::to_owned);
        self.write_run(&file).map(|()| true)
    }

    /// Removes temporary files of dead processes that signed the run's files.
    pub(crate) fn sweep_signatures(&self, run: &RunId) {
        disk::remove_temporary(&self.dir(run), &["logs.jsonl.sig.", "exec-"]);
    }
}

fn only(key: &SigningKey) -> AllowedSigners {
    AllowedSigners::parse(&format!("owner {}", key.public_key()))
}

fn has_signature(path: &Path, allowed: &AllowedSigners) -> bool {
    allowed.verify_file(NAMESPACE, path).is_ok()
}

/// Returns the SHA-512 of a sealed file, if its digest is `sha256`.
pub(crate) fn sealed_digest(path: &Path, sha256: &str) -> Result<Vec<u8>> {
    let file = disk::open_to_read(path)?;
    let read = digests(file).map_err(|error| Error::storage("read", path, error))?;
    let tail = format!("{SEAL_KEY}{sha256}\"}}\n");
    let is_sealed = hex(&read.sealed) == sha256 && read.tail == tail.as_bytes();
    match is_sealed {
        true => Ok(read.whole),
        false => Err(Error::Damaged {
            path: path.to_owned(),
            reason: "it has changed since it was sealed".to_owned(),
        }),
    }
}

/// The digests of one reading of a file.
struct Digests {
    /// The SHA-512 of all bytes.
    whole: Vec<u8>,
    /// The SHA-256 of all bytes before the tail.
    sealed: Vec<u8>,
    /// The last bytes, which have the length of a digest in a seal.
    tail: Vec<u8>,
}

fn digests(mut file: fs::File) -> io::Result<Digests> {
    let (mut whole, mut sealed) = (Sha512::new(), Sha256::new());
    let mut tail = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = match file.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if count == 0 {
            break;
        }
        whole.update(&buffer[..count]);
        tail.extend_from_slice(&buffer[..count]);
        let before_tail = tail.len().saturating_sub(SEAL_TAIL);
        sealed.update(&tail[..before_tail]);
        tail.drain(..before_tail);
    }
    Ok(Digests {
        whole: whole.finalize().to_vec(),
        sealed: sealed.finalize().to_vec(),
        tail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{LogState, verify};

    #[test]
    fn only_the_sealed_file_has_a_digest() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/complete.jsonl");
        let bytes = fs::read(golden).unwrap();
        let LogState::Sealed(seal) = verify(golden).unwrap().state else {
            panic!("not sealed");
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs.jsonl");
        let digest = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            sealed_digest(&path, &seal.sha256).ok()
        };
        let expected = Some(Sha512::digest(&bytes).to_vec());
        assert_eq!(digest(&bytes), expected);
        for offset in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[offset] ^= 1;
            assert_eq!(digest(&changed), None, "{offset}");
        }
        for length in [0, 10, bytes.len() - 1] {
            assert_eq!(digest(&bytes[..length]), None);
        }
        let longer = [&bytes[..], b"\n"].concat();
        assert_eq!(digest(&longer), None);
    }
}

//! The keys that may sign, and the verification of a signature.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::tz::TimeZone;

use crate::disk;
use crate::error::{Error, Result, SignatureError};
use crate::sign::envelope::{ED25519, Envelope, signed_data};
use crate::sign::line::{Options, SignerLine, matches_list};
use crate::sign::public_key::PublicKey;
use crate::sign::signature_path;
use crate::timestamp::Timestamp;

/// The longest signature file that is read, in bytes. One of moat takes 300.
const MAX_SIGNATURE_BYTES: u64 = 64 << 10;

/// The keys that may sign, in the format that `ssh-keygen` calls `allowed_signers`.
///
/// Each line has the identities of a signer, options, and a public key. The options are
/// `namespaces="..."`, `valid-after="..."` and `valid-before="..."`: the format is in the section
/// ALLOWED SIGNERS of `ssh-keygen(1)`. To rotate a key, add a line for the new key, and set
/// `valid-before` in the line of the old one.
///
/// As for `ssh-keygen`, a line that cannot be read allows nothing, and the others still count.
/// Lines with `cert-authority` allow nothing either, because moat verifies no certificates. The
/// error for an unknown key names all of these lines.
///
/// By default, any identity may have signed, and the keys must be valid now.
///
/// `Debug` shows the number of lines only, because the text may be another file by mistake.
#[derive(Clone)]
pub struct AllowedSigners {
    lines: Vec<SignerLine>,
    identity: Option<String>,
    time: Option<Timestamp>,
}

impl fmt::Debug for AllowedSigners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllowedSigners")
            .field("lines", &self.lines.len())
            .field("identity", &self.identity)
            .field("time", &self.time)
            .finish()
    }
}

/// The signer of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedSigner {
    /// The identities of the signer, as the line of the key has them: patterns, separated by
    /// commas.
    pub principals: String,
    /// The fingerprint of the key, as `ssh-keygen -l` prints it: `SHA256:...`.
    pub fingerprint: String,
    /// The number of the line of the allowed signers, from 1.
    pub line: usize,
}

impl fmt::Display for VerifiedSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with the key {}", self.principals, self.fingerprint)
    }
}

impl AllowedSigners {
    /// Reads an `allowed_signers` file. The call blocks on short file I/O.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the file cannot be read.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = fs::read(path).map_err(|error| Error::storage("read", path, error))?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    /// Reads the text of an `allowed_signers` file.
    ///
    /// Times without `Z` are in the time zone of this process, without daylight saving time, as for
    /// `ssh-keygen`.
    pub fn parse(text: &str) -> Self {
        Self::parse_in(text, &TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }

    pub(super) fn parse_in(text: &str, zone: &TimeZone) -> Self {
        let lines = (1..).zip(text.split_inclusive('\n'));
        let lines = lines.filter_map(|(number, line)| SignerLine::parse(number, line, zone));
        Self {
            lines: lines.collect(),
            identity: None,
            time: None,
        }
    }

    /// Accepts only lines whose identities match this one, as `ssh-keygen -Y verify -I` does.
    #[must_use]
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = Some(identity.into());
        self
    }

    /// Sets the time at which the key must be valid, as `ssh-keygen -Overify-time` does.
    ///
    /// Default: the time of the verification. The signature itself has no time.
    #[must_use]
    pub fn at(mut self, time: Timestamp) -> Self {
        self.time = Some(time);
        self
    }

    /// Verifies the signature of a message.
    ///
    /// `signature` is the content of a signature file. The message is read to its end, if the
    /// key is allowed.
    ///
    /// # Errors
    ///
    /// The reason that the signature is not accepted.
    pub fn verify(
        &self,
        namespace: &str,
        message: impl Read,
        signature: &[u8],
    ) -> Result<VerifiedSigner, SignatureError> {
        let malformed = |reason: &str| SignatureError::Malformed(reason.to_owned());
        let envelope = Envelope::from_armored(signature).map_err(malformed)?;
        if envelope.namespace != namespace.as_bytes() {
            return Err(SignatureError::OtherNamespace {
                found: String::from_utf8_lossy(&envelope.namespace).into_owned(),
                expected: namespace.to_owned(),
            });
        }
        let key = PublicKey {
            algorithm: ED25519.to_owned(),
            blob: envelope.key,
        };
        if key.ed25519().is_none() {
            return Err(malformed("its key is no Ed25519 key"));
        }
        let signer = self.find(namespace, &key)?;
        let digest = envelope.hash.hash(message);
        let digest = digest.map_err(SignatureError::Unreadable)?;
        let data = signed_data(namespace.as_bytes(), envelope.hash, &digest);
        match key.verifies(&data, &envelope.signature) {
            true => Ok(signer),
            false => Err(SignatureError::Mismatch),
        }
    }

    /// Verifies the signature of a file, which is beside it: see
    /// [`signature_path`](crate::sign::signature_path).
    ///
    /// # Errors
    ///
    /// [`Error::Signature`], with the reason; [`Error::Storage`] if a file cannot be read.
    pub fn verify_file(&self, namespace: &str, path: impl AsRef<Path>) -> Result<VerifiedSigner> {
        let path = path.as_ref();
        let message = disk::open_to_read(path)?;
        let refused = |source| Error::Signature {
            path: path.to_owned(),
            source,
        };
        let signature_path = signature_path(path);
        let file = match disk::open_to_read(&signature_path) {
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => {
                return Err(refused(SignatureError::Missing));
            }
            opened => opened?,
        };
        let mut signature = Vec::new();
        file.take(MAX_SIGNATURE_BYTES)
            .read_to_end(&mut signature)
            .map_err(|error| Error::storage("read", &signature_path, error))?;
        self.verify(namespace, message, &signature).map_err(refused)
    }

    /// Returns the first line that allows the key, or else the best reason that none does.
    fn find(&self, namespace: &str, key: &PublicKey) -> Result<VerifiedSigner, SignatureError> {
        let at = self.time.unwrap_or_else(Timestamp::now).parts().0;
        let at = u64::try_from(at).unwrap_or_default();
        let mut reason = None;
        let mut unused = Vec::new();
        for line in &self.lines {
            let identity = self.identity.as_deref();
            if !identity.is_none_or(|identity| matches_list(identity, &line.principals)) {
                continue;
            }
            let entry = match &line.entry {
                Ok(entry) if entry.options.cert_authority => {
                    let certificates = "is for certificates, which moat does not verify";
                    unused.push(format!("line {} {certificates}", line.number));
                    continue;
                }
                Ok(entry) => entry,
                Err(reason) => {
                    unused.push(format!("line {} cannot be used: {reason}", line.number));
                    continue;
                }
            };
            if entry.key.blob != key.blob {
                continue;
            }
            match refusal(&entry.options, line.number, namespace, at) {
                Some(refusal) => {
                    reason.get_or_insert(refusal);
                }
                None => {
                    return Ok(VerifiedSigner {
                        principals: line.principals.clone(),
                        fingerprint: key.fingerprint(),
                        line: line.number,
                    });
                }
            }
        }
        Err(reason.unwrap_or_else(|| self.unknown(key, &unused)))
    }

    fn unknown(&self, key: &PublicKey, unused: &[String]) -> SignatureError {
        let mut details = match &self.identity {
            Some(identity) => format!(" for the identity {identity:?}"),
            None => String::new(),
        };
        for (index, text) in unused.iter().enumerate() {
            details.push_str(if index == 0 { ": " } else { "; " });
            details.push_str(text);
        }
        SignatureError::UnknownKey {
            fingerprint: key.fingerprint(),
            details,
        }
    }
}

/// Returns the reason that the options of a line do not allow its key at this time.
fn refusal(options: &Options, line: usize, namespace: &str, at: u64) -> Option<SignatureError> {
    let namespaces = options.namespaces.as_deref();
    if namespaces.is_some_and(|list| !matches_list(namespace, list)) {
        let namespace = namespace.to_owned();
        return Some(SignatureError::NamespaceNotAllowed { line, namespace });
    }
    if let Some(time) = options.valid_after.filter(|time| at < *time) {
        let valid_after = timestamp(time);
        return Some(SignatureError::NotYetValid { line, valid_after });
    }
    let valid_before = timestamp(options.valid_before.filter(|time| at > *time)?);
    Some(SignatureError::Expired { line, valid_before })
}

fn timestamp(seconds: u64) -> Timestamp {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    time.map_or(Timestamp::now(), Timestamp::from)
}

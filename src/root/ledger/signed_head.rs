//! The signed head of a ledger: the file `ledger.sig`.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::disk;
use crate::error::{Error, Result, SignatureError};
use crate::root::Root;
use crate::root::ledger::end;
use crate::root::ledger::finding::{Finding, FindingKind};
use crate::root::ledger::head::Head;
use crate::sign::{AllowedSigners, LEDGER_NAMESPACE};
use crate::spec::HEAD_SIGNATURE_FILE;

impl Head {
    /// The text that is signed: the line with its newline.
    pub(crate) fn signed_text(&self) -> String {
        format!("{self}\n")
    }
}

/// The content of `ledger.sig`: a signature, and after it the line that was signed.
struct SignedHead {
    head: Head,
    bytes: Vec<u8>,
}

impl SignedHead {
    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let text = std::str::from_utf8(&bytes).ok()?;
        let line = text.strip_suffix('\n')?.rsplit('\n').next()?;
        let head: Head = line.parse().ok()?;
        (head.to_string() == line).then_some(Self { head, bytes })
    }

    fn verify(&self, allowed: &AllowedSigners) -> Result<(), SignatureError> {
        let text = self.head.signed_text();
        let verified = allowed.verify(LEDGER_NAMESPACE, text.as_bytes(), &self.bytes);
        verified.map(drop)
    }
}

impl Root {
    fn head_signature_path(&self) -> PathBuf {
        self.path().join(HEAD_SIGNATURE_FILE)
    }

    /// Reads `ledger.sig`. Returns `None` if it does not exist, or is not what moat writes.
    fn signed_head(&self) -> Result<Option<SignedHead>> {
        let path = self.head_signature_path();
        match fs::read(&path) {
            Ok(bytes) => Ok(SignedHead::parse(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::storage("read", path, error)),
        }
    }

    /// Returns the head of the ledger, unless it has a signature of this key already.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the ledger does not continue the head that was signed last: a signature
    /// would confirm the change.
    pub(crate) fn head_to_sign(&self, public_key: &str) -> Result<Option<Head>> {
        let Some((file, length)) = self.open_ledger()? else {
            return Ok(None);
        };
        let signed = self.signed_head()?;
        let since = signed.as_ref().map(|signed| &signed.head);
        let since = since.map_or((0, None), |head| (head.number, Some(head.sha256.as_str())));
        let continued = end::continued(&file, length, since.0, since.1);
        let end = match continued.map_err(|error| self.ledger_error("read", error))? {
            Ok(Some(end)) => end,
            Ok(None) => return Ok(None),
            Err(reason) => {
                return Err(Error::Damaged {
                    path: self.ledger_path(),
                    reason,
                });
            }
        };
        let head = self.head_of(end);
        let own = AllowedSigners::parse(&format!("owner {public_key}"));
        let is_signed =
            signed.is_some_and(|signed| signed.head == head && signed.verify(&own).is_ok());
        Ok((!is_signed).then_some(head))
    }

    /// Writes `ledger.sig`, unless another process has signed a later head meanwhile.
    pub(crate) fn write_head(&self, head: &Head, signature: &str) -> Result<()> {
        let later = self.signed_head()?;
        if later.is_some_and(|later| later.head.number > head.number) {
            return Ok(());
        }
        let text = format!("{signature}{}", head.signed_text());
        disk::write_atomic(&self.head_signature_path(), text.as_bytes())
    }

    /// Verifies the signature of the head. Returns the head, or the finding if it is not signed.
    pub(super) fn verify_head(&self, allowed: &AllowedSigners) -> Result<Result<Head, Finding>> {
        let refused = |reason: String| Finding::of_ledger(FindingKind::Unsigned, reason);
        Ok(match self.signed_head()? {
            None => Err(refused("its head has no signature".into())),
            Some(signed) => match signed.verify(allowed) {
                Ok(()) => Ok(signed.head),
                Err(error) => Err(refused(format!("the signature of its head: {error}"))),
            },
        })
    }
}

//! The signed head of a ledger: the file `ledger.sig`.

use std::io::{ErrorKind, Read};
use std::path::PathBuf;

use crate::disk;
use crate::error::{Error, Result, SignatureError};
use crate::root::Root;
use crate::root::ledger::end::{self, Continuation};
use crate::root::ledger::finding::{Finding, FindingKind};
use crate::root::ledger::head::Head;
use crate::sign::{AllowedSigners, LEDGER_NAMESPACE};
use crate::spec::HEAD_SIGNATURE_FILE;

/// The size limit of `ledger.sig`.
const MAX_BYTES: u64 = 64 << 10;

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
        let file = match disk::open_to_read(&path) {
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::storage("read", path, error))?;
        Ok(SignedHead::parse(bytes))
    }

    /// Returns the head of the ledger, unless it has a signature of this key already.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the ledger does not continue the head that this key signed last: a
    /// signature would confirm the change.
    pub(crate) fn head_to_sign(&self, public_key: &str) -> Result<Option<Head>> {
        let Some((file, length)) = self.open_ledger()? else {
            return Ok(None);
        };
        // A signed head must not name a line that a power loss takes.
        file.sync_data()
            .map_err(|error| self.ledger_error("sync", error))?;
        let own = AllowedSigners::parse(&format!("owner {public_key}"));
        let signed = self.signed_head()?;
        let signed = signed.filter(|signed| signed.verify(&own).is_ok());
        let signed = signed.map(|signed| signed.head);
        let last = signed.as_ref();
        let last = last.map(|head| (head.number, head.sha256.as_str()));
        let continuation = end::continuation(&file, length, last);
        match continuation.map_err(|error| self.ledger_error("read", error))? {
            Continuation::Empty => Ok(None),
            Continuation::Continued(end) => {
                let head = self.head_of(end);
                Ok((signed.as_ref() != Some(&head)).then_some(head))
            }
            Continuation::Broken(reason) => Err(Error::Damaged {
                path: self.ledger_path(),
                reason,
            }),
        }
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

    /// Verifies the signature of the head. Returns `None` if there is neither a ledger nor a
    /// signature.
    pub(super) fn verify_head(&self, allowed: &AllowedSigners) -> Result<Option<VerifiedHead>> {
        let refused = |reason: String| {
            let finding = Finding::of_ledger(FindingKind::Unsigned, reason);
            Ok(Some(VerifiedHead::Refused(finding)))
        };
        match self.signed_head() {
            Ok(None) if self.open_ledger()?.is_none() => Ok(None),
            Ok(None) => refused("its head has no signature".into()),
            Ok(Some(signed)) => match signed.verify(allowed) {
                Ok(()) => Ok(Some(VerifiedHead::Signed(signed.head))),
                Err(error) => refused(format!("the signature of its head: {error}")),
            },
            Err(error) => refused(error.chain()),
        }
    }
}

/// The result of the verification of `ledger.sig`.
pub(super) enum VerifiedHead {
    Signed(Head),
    /// The head has no signature of an allowed signer.
    Refused(Finding),
}

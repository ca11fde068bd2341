//! Signatures of sealed audit files, which `ssh-keygen` verifies.
//!
//! [`Jsonl::signed_by`](crate::sink::Jsonl::signed_by) signs each sealed audit file with an Ed25519
//! key: from a file ([`SigningKey::from_file`]), from an agent ([`SigningKey::from_agent`]), or
//! from a [`Signer`] that you write, for example for an HSM. The signature of `logs.jsonl` is in
//! `logs.jsonl.sig`. Both moat ([`AllowedSigners`]) and OpenSSH verify it:
//!
//! ```sh
//! ssh-keygen -Y verify -f allowed_signers -I ops@example.com -n moat-audit -s logs.jsonl.sig < logs.jsonl
//! ```
//!
//! A run is sealed whether or not it can be signed: signing never blocks the seal. A run that could
//! not be signed says so in [`RunInfo::unsigned`](crate::root::RunInfo::unsigned), and the next
//! manager that opens the root with a key tries again.
//!
//! ```
//! use moat::sign::{AllowedSigners, NAMESPACE, SigningKey};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("key");
//! # let made = std::process::Command::new("ssh-keygen")
//! #     .args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
//! # if !made.is_ok_and(|status| status.success()) { return Ok(()) }
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let key = SigningKey::from_file(&path)?;
//! let signature = key.sign(NAMESPACE, b"a message").await?;
//!
//! let allowed = AllowedSigners::parse(&format!("ops@example.com {}", key.public_key()));
//! let signer = allowed.verify(NAMESPACE, &b"a message"[..], signature.as_bytes())?;
//! assert_eq!(signer.principals, "ops@example.com");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(unix)]
mod agent;
mod allowed;
mod envelope;
mod key;
mod line;
mod public_key;
#[cfg(test)]
mod tests;
mod validity;
mod wire;

use std::path::{Path, PathBuf};

pub use crate::error::{SignError, SignatureError};
pub use allowed::{AllowedSigners, VerifiedSigner};
pub use key::{Signer, SigningKey};

/// The namespace of the signatures of audit files: `moat-audit`.
pub const NAMESPACE: &str = "moat-audit";

/// The namespace of the signature of a ledger's head: `moat-ledger`.
pub const LEDGER_NAMESPACE: &str = "moat-ledger";

/// The path of the signature of a file: `logs.jsonl.sig` for `logs.jsonl`.
pub fn signature_path(path: impl AsRef<Path>) -> PathBuf {
    let mut name = path.as_ref().as_os_str().to_owned();
    name.push(".sig");
    name.into()
}

//! Public keys in the notation of OpenSSH.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};
use signature::Verifier as _;
use ssh_key::public::Ed25519PublicKey;
use ssh_key::{Algorithm, Signature};

use crate::sign::envelope::ED25519;
use crate::sign::wire::{put_string, take_string};

/// A public key: its binary form begins with its algorithm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicKey {
    pub(super) algorithm: String,
    pub(super) blob: Vec<u8>,
}

impl PublicKey {
    /// Reads a key at the front of `text`: the algorithm, and the key in base64.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (algorithm, rest) = text.split_once([' ', '\t'])?;
        let encoded = rest.trim_start_matches([' ', '\t']);
        let encoded = encoded.split([' ', '\t', '\r', '\n']).next()?;
        // OpenSSH's base64 skips the other white space.
        let encoded = encoded.replace(['\x0b', '\x0c'], "");
        let blob = STANDARD.decode(encoded).ok()?;
        let name = take_string(&mut &*blob)?;
        (name == algorithm.as_bytes()).then(|| Self {
            algorithm: algorithm.to_owned(),
            blob,
        })
    }

    pub(super) fn from_ed25519(key: &[u8; 32]) -> Self {
        let mut blob = Vec::new();
        put_string(&mut blob, ED25519.as_bytes());
        put_string(&mut blob, key);
        Self {
            algorithm: ED25519.to_owned(),
            blob,
        }
    }

    /// The 32 bytes of an Ed25519 key; `None` for any other key.
    pub(super) fn ed25519(&self) -> Option<[u8; 32]> {
        let mut rest = &*self.blob;
        let is_ed25519 = take_string(&mut rest)? == ED25519.as_bytes();
        let key = take_string(&mut rest)?.try_into().ok()?;
        (is_ed25519 && rest.is_empty()).then_some(key)
    }

    /// The fingerprint, as `ssh-keygen -l` prints it.
    pub(super) fn fingerprint(&self) -> String {
        let digest = Sha256::digest(&self.blob);
        format!("SHA256:{}", STANDARD_NO_PAD.encode(digest))
    }

    /// Returns true if the key made this Ed25519 signature of `data`.
    pub(super) fn verifies(&self, data: &[u8], signature: &[u8; 64]) -> bool {
        let Some(key) = self.ed25519() else {
            return false;
        };
        let signature = Signature::new(Algorithm::Ed25519, signature.to_vec());
        signature.is_ok_and(|signature| Ed25519PublicKey(key).verify(data, &signature).is_ok())
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.algorithm, STANDARD.encode(&self.blob))
    }
}

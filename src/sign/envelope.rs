//! The SSHSIG format, as OpenSSH's `PROTOCOL.sshsig` specifies it.

use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256, Sha512};

use crate::sign::wire::{put_string, take_string, take_u32};

const MAGIC: &[u8] = b"SSHSIG";
const VERSION: u32 = 1;
/// The algorithm of the keys that moat signs with and verifies.
pub(super) const ED25519: &str = "ssh-ed25519";
const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "\n-----END SSH SIGNATURE-----";
/// The length of the lines that OpenSSH writes.
const LINE_LENGTH: usize = 70;

/// The hash of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HashAlgorithm {
    Sha256,
    Sha512,
}

impl HashAlgorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Hashes a message.
    pub(super) fn hash(self, message: impl Read) -> io::Result<Vec<u8>> {
        match self {
            Self::Sha256 => hash::<Sha256>(message),
            Self::Sha512 => hash::<Sha512>(message),
        }
    }
}

fn hash<D: Digest>(mut message: impl Read) -> io::Result<Vec<u8>> {
    let mut digest = D::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match message.read(&mut buffer) {
            Ok(0) => return Ok(digest.finalize().to_vec()),
            Ok(count) => digest.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The contents of a signature file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    /// The public key, in its binary form.
    pub(super) key: Vec<u8>,
    pub(super) namespace: Vec<u8>,
    pub(super) hash: HashAlgorithm,
    /// The 64 bytes of an Ed25519 signature.
    pub(super) signature: [u8; 64],
}

impl Envelope {
    /// Returns the text of a signature file.
    pub(super) fn to_armored(&self) -> String {
        let mut blob = MAGIC.to_vec();
        blob.extend_from_slice(&VERSION.to_be_bytes());
        put_string(&mut blob, &self.key);
        put_string(&mut blob, &self.namespace);
        put_string(&mut blob, b"");
        put_string(&mut blob, self.hash.name().as_bytes());
        let mut signature = Vec::new();
        put_string(&mut signature, ED25519.as_bytes());
        put_string(&mut signature, &self.signature);
        put_string(&mut blob, &signature);

        let encoded = STANDARD.encode(blob);
        let mut text = format!("{BEGIN}\n");
        let mut rest = &*encoded;
        while !rest.is_empty() {
            let (line, remaining) = rest.split_at(rest.len().min(LINE_LENGTH));
            text.push_str(line);
            text.push('\n');
            rest = remaining;
        }
        text.push_str(&END[1..]);
        text.push('\n');
        text
    }

    /// Reads a signature file, and accepts the same armor as OpenSSH.
    ///
    /// White space within the base64 is skipped, and so is everything after the footer.
    pub(super) fn from_armored(text: &[u8]) -> Result<Self, &'static str> {
        let text = text
            .strip_prefix(BEGIN.as_bytes())
            .ok_or("it does not begin with the header of an SSH signature")?;
        let text = text.strip_prefix(b"\r").unwrap_or(text);
        let text = text
            .strip_prefix(b"\n")
            .ok_or("its header does not end in a newline")?;
        let end = memchr::memmem::find(text, END.as_bytes())
            .ok_or("it does not end with the footer of an SSH signature")?;
        let base64: Vec<u8> = text[..end]
            .iter()
            .copied()
            .filter(|byte| !matches!(byte, b' ' | b'\t'..=b'\r'))
            .collect();
        let blob = STANDARD
            .decode(base64)
            .map_err(|_| "its base64 is invalid")?;
        Self::from_blob(&blob)
    }

    fn from_blob(blob: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "it is cut off";
        let mut blob = blob.strip_prefix(MAGIC).ok_or("it is no SSHSIG")?;
        if take_u32(&mut blob).ok_or(SHORT)? != VERSION {
            return Err("it has another version than 1");
        }
        let key = take_string(&mut blob).ok_or(SHORT)?.to_vec();
        let namespace = take_string(&mut blob).ok_or(SHORT)?.to_vec();
        // Reserved: a verifier must ignore it.
        take_string(&mut blob).ok_or(SHORT)?;
        let hash = match take_string(&mut blob).ok_or(SHORT)? {
            b"sha256" => HashAlgorithm::Sha256,
            b"sha512" => HashAlgorithm::Sha512,
            _ => return Err("it has another hash algorithm than sha256 and sha512"),
        };
        let mut signature = take_string(&mut blob).ok_or(SHORT)?;
        if !blob.is_empty() {
            return Err("it has trailing data");
        }
        if take_string(&mut signature).ok_or(SHORT)? != ED25519.as_bytes() {
            return Err("its algorithm is not Ed25519, which is the only one that moat verifies");
        }
        let bytes = take_string(&mut signature).ok_or(SHORT)?;
        if !signature.is_empty() {
            return Err("it has trailing data");
        }
        Ok(Self {
            key,
            namespace,
            hash,
            signature: bytes
                .try_into()
                .map_err(|_| "its Ed25519 signature is not 64 bytes long")?,
        })
    }
}

/// Returns the bytes that the key signs for a message with this hash.
pub(super) fn signed_data(namespace: &[u8], hash: HashAlgorithm, digest: &[u8]) -> Vec<u8> {
    let mut data = MAGIC.to_vec();
    put_string(&mut data, namespace);
    put_string(&mut data, b"");
    put_string(&mut data, hash.name().as_bytes());
    put_string(&mut data, digest);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            key: vec![7; 51],
            namespace: b"moat-audit".to_vec(),
            hash: HashAlgorithm::Sha512,
            signature: [9; 64],
        }
    }

    #[test]
    fn an_envelope_reads_back() {
        let text = envelope().to_armored();
        assert_eq!(Envelope::from_armored(text.as_bytes()), Ok(envelope()));
        assert!(text.lines().all(|line| line.len() <= LINE_LENGTH));
        let windows = text.replace('\n', "\r\n");
        assert_eq!(Envelope::from_armored(windows.as_bytes()), Ok(envelope()));
    }

    #[test]
    fn a_truncated_envelope_is_refused() {
        let text = envelope().to_armored();
        for length in 0..text.len() - 1 {
            let read = Envelope::from_armored(&text.as_bytes()[..length]);
            assert!(read.is_err(), "{length}");
        }
    }
}

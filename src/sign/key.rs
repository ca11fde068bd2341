//! Keys that sign.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use signature::Signer as _;
use ssh_key::PrivateKey;
use ssh_key::private::Ed25519Keypair;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::error::{Error, Result, SignError};
use crate::sign::envelope::{Envelope, HashAlgorithm, signed_data};
use crate::sign::public_key::PublicKey;

/// Longest wait for a signer.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);

/// The most calls of a caller's signer at once. Each has a thread, which the signer may block.
const MAX_CALLS: usize = 16;

/// The text that the first line of each private key contains.
const PRIVATE: &str = "PRIVATE KEY";

/// A holder of an Ed25519 key, for example an HSM or a key management service.
///
/// [`SigningKey::from_signer`] makes a key of it.
#[async_trait]
pub trait Signer: fmt::Debug + Send + Sync + 'static {
    /// The public key, in the notation of OpenSSH: `ssh-ed25519 AAAA...`.
    ///
    /// It is read once.
    fn public_key(&self) -> String;

    /// Signs `data`, and returns the 64 bytes of the Ed25519 signature (RFC 8032, without prehash).
    ///
    /// `data` is less than 1 KiB long: it contains the hash of the file to be signed. The call is
    /// given up after 10 s. Each call has a separate thread, at most 16 at once, so it may block.
    /// Its future may use the Tokio runtime of the manager.
    ///
    /// # Errors
    ///
    /// [`SignError`]. The run is then sealed without a signature, and is signed when a manager
    /// opens its root the next time.
    async fn sign(&self, data: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// An Ed25519 key that signs audit files: see [`Jsonl::signed_by`](crate::sink::Jsonl::signed_by).
///
/// Clones share the key. `Debug` shows the fingerprint only.
#[derive(Clone)]
pub struct SigningKey {
    signer: Arc<dyn Signer>,
    public: PublicKey,
    /// Limits the threads of a caller's signer; `None` for the signers of this crate, which neither
    /// block nor panic.
    calls: Option<Arc<Semaphore>>,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey")
            .field(&self.fingerprint())
            .finish()
    }
}

impl SigningKey {
    /// Reads an Ed25519 private key in the format of OpenSSH, without a passphrase.
    ///
    /// `ssh-keygen -t ed25519 -N '' -f FILE` creates one. The call blocks on short file I/O.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the file cannot be read; [`Error::Sign`] if it has no key of this kind.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::read(path.as_ref(), None)
    }

    /// Reads an Ed25519 private key in the format of OpenSSH, which a passphrase encrypts.
    ///
    /// The call blocks: the decryption takes up to about a second.
    ///
    /// # Errors
    ///
    /// As [`from_file`](Self::from_file); also if the passphrase is wrong.
    pub fn from_file_with_passphrase(path: impl AsRef<Path>, passphrase: &str) -> Result<Self> {
        Self::read(path.as_ref(), Some(passphrase))
    }

    /// Uses a key of the SSH agent whose socket is in the environment variable `SSH_AUTH_SOCK`.
    ///
    /// `public_key` selects the key, in the notation of OpenSSH: `ssh-ed25519 AAAA...`. The
    /// variable is read now. The agent is contacted for each signature, so it may be restarted.
    ///
    /// # Errors
    ///
    /// [`Error::Sign`] if the variable is not set, or if `public_key` is not an Ed25519 key.
    #[cfg(unix)]
    pub fn from_agent(public_key: &str) -> Result<Self> {
        let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty());
        let socket = socket.ok_or_else(|| {
            let unset = "cannot find an SSH agent: SSH_AUTH_SOCK is not set; start ssh-agent";
            SignError::message(unset)
        })?;
        Self::from_agent_at(socket, public_key)
    }

    /// Uses a key of the SSH agent at this socket, as [`from_agent`](Self::from_agent) does.
    ///
    /// # Errors
    ///
    /// [`Error::Sign`] if `public_key` is not an Ed25519 key.
    #[cfg(unix)]
    pub fn from_agent_at(socket: impl AsRef<Path>, public_key: &str) -> Result<Self> {
        let agent = crate::sign::agent::Agent::new(socket.as_ref(), parse_ed25519(public_key)?);
        Self::from_builtin(agent)
    }

    /// Uses a signer.
    ///
    /// # Errors
    ///
    /// [`Error::Sign`] if its public key is not an Ed25519 key.
    pub fn from_signer(signer: impl Signer) -> Result<Self> {
        let mut key = Self::from_builtin(signer)?;
        key.calls = Some(Arc::new(Semaphore::new(MAX_CALLS)));
        Ok(key)
    }

    /// Uses a signer of this crate.
    fn from_builtin(signer: impl Signer) -> Result<Self> {
        let public = parse_ed25519(&signer.public_key())?;
        Ok(Self {
            signer: Arc::new(signer),
            public,
            calls: None,
        })
    }

    /// Returns the public key, in the notation of OpenSSH: `ssh-ed25519 AAAA...`.
    ///
    /// A line of an `allowed_signers` file is an identity, a space, and this text.
    pub fn public_key(&self) -> String {
        self.public.to_string()
    }

    /// Returns the fingerprint of the public key, as `ssh-keygen -l` prints it: `SHA256:...`.
    pub fn fingerprint(&self) -> String {
        self.public.fingerprint()
    }

    /// Signs a message, and returns the text of a signature file.
    ///
    /// The hash is SHA-512. The audit files have the namespace
    /// [`NAMESPACE`](crate::sign::NAMESPACE).
    ///
    /// # Errors
    ///
    /// [`Error::Sign`] if the namespace is empty, if the signer fails, panics or takes over 10 s, or
    /// if its signature does not match its public key.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe: a dropped call has no side effect, but the signer may have signed.
    pub async fn sign(&self, namespace: &str, message: &[u8]) -> Result<String> {
        let digest = HashAlgorithm::Sha512.hash(message);
        let digest = digest.map_err(SignError::new)?;
        Ok(self.sign_digest(namespace, &digest).await?)
    }

    /// Signs a message with this SHA-512, as [`sign`](Self::sign) does.
    pub(crate) async fn sign_digest(
        &self,
        namespace: &str,
        digest: &[u8],
    ) -> Result<String, SignError> {
        if namespace.is_empty() {
            return Err(SignError::message("cannot sign: the namespace is empty"));
        }
        let hash = HashAlgorithm::Sha512;
        let data = signed_data(namespace.as_bytes(), hash, digest);
        let signature = timeout(SIGN_TIMEOUT, self.call(&data)).await;
        let signature = signature.unwrap_or_else(|_| {
            let late = format!("cannot sign: the signer did not answer within {SIGN_TIMEOUT:?}");
            Err(SignError::message(late))
        })?;
        let wrong = || {
            let wrong = "cannot sign: the signature of the signer does not match its public key";
            SignError::message(wrong)
        };
        let signature = signature.try_into().map_err(|_| wrong())?;
        if !self.public.verifies(&data, &signature) {
            return Err(wrong());
        }
        let envelope = Envelope {
            key: self.public.blob.clone(),
            namespace: namespace.as_bytes().to_vec(),
            hash,
            signature,
        };
        Ok(envelope.to_armored())
    }

    /// Calls the signer, on a separate thread unless it is of this crate.
    ///
    /// If the future is dropped, a signer that blocks its thread keeps it, and its permit.
    async fn call(&self, data: &[u8]) -> Result<Vec<u8>, SignError> {
        let Some(calls) = &self.calls else {
            return self.signer.sign(data).await;
        };
        let permit = Arc::clone(calls).acquire_owned().await;
        let permit = permit.map_err(SignError::new)?;
        let (signer, data, handle) = (Arc::clone(&self.signer), data.to_owned(), Handle::current());
        let (mut done, signature) = oneshot::channel();
        let call = move || {
            let _permit = permit;
            let signed = handle.block_on(async {
                tokio::select! {
                    signed = signer.sign(&data) => Some(signed),
                    () = done.closed() => None,
                }
            });
            if let Some(signed) = signed {
                let _ = done.send(signed);
            }
        };
        let thread = thread::Builder::new().name("moat-sign".into()).spawn(call);
        thread.map_err(|error| SignError::caused("cannot start a thread for the signer", error))?;
        let panicked = |_| Err(SignError::message("cannot sign: the signer panicked"));
        signature.await.unwrap_or_else(panicked)
    }

    fn read(path: &Path, passphrase: Option<&str>) -> Result<Self> {
        if path.to_string_lossy().contains(PRIVATE) {
            // The other errors contain the path.
            let content = "cannot read a key: this is a private key; pass the path of its file";
            return Err(SignError::message(content).into());
        }
        let fail = |reason: String| {
            let path = path.display();
            SignError::message(format!("cannot use the key {path}: {reason}"))
        };
        let unsupported = |reason: &str| {
            fail(format!(
                "{reason}; moat signs with Ed25519 only; `ssh-keygen -t ed25519 -f FILE` creates one"
            ))
        };
        let mut key = PrivateKey::read_openssh_file(path).map_err(|error| match error {
            ssh_key::Error::Io(kind) => Error::storage("read the key", path, kind.into()),
            ssh_key::Error::AlgorithmUnknown => unsupported("unsupported key algorithm").into(),
            error => fail(format!(
                "it is no private key in the format of OpenSSH ({error}); `ssh-keygen -t ed25519 -f \
                 FILE` creates one"
            ))
            .into(),
        })?;
        if key.is_encrypted() {
            let locked = "it is encrypted; use SigningKey::from_file_with_passphrase, or an agent";
            let passphrase = passphrase.ok_or_else(|| fail(locked.into()))?;
            key = key.decrypt(passphrase).map_err(|error| match error {
                ssh_key::Error::Crypto => fail("the passphrase is wrong".into()),
                error => fail(format!("it cannot be decrypted: {error}")),
            })?;
        }
        let Some(pair) = key.key_data().ed25519() else {
            let algorithm = key.algorithm();
            let reason = format!("unsupported key algorithm {}", algorithm.as_str());
            return Err(unsupported(&reason).into());
        };
        Self::from_builtin(FileKey(pair.clone()))
    }
}

/// Reads a public key. The error does not contain the text, which may be a private key.
fn parse_ed25519(text: &str) -> Result<PublicKey, SignError> {
    let key = PublicKey::parse(text.trim_start()).filter(|key| key.ed25519().is_some());
    key.ok_or_else(|| {
        let reason = match text.contains(PRIVATE) {
            true => "this is a private key; pass the .pub file",
            false => "an Ed25519 key in the notation of OpenSSH begins with ssh-ed25519 AAAA",
        };
        SignError::message(format!("cannot use the public key: {reason}"))
    })
}

/// A private key in memory, which is overwritten after its last use.
struct FileKey(Ed25519Keypair);

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey")
    }
}

#[async_trait]
impl Signer for FileKey {
    fn public_key(&self) -> String {
        PublicKey::from_ed25519(&self.0.public.0).to_string()
    }

    async fn sign(&self, data: &[u8]) -> Result<Vec<u8>, SignError> {
        let signature = self.0.try_sign(data).map_err(SignError::new)?;
        Ok(signature.as_bytes().to_vec())
    }
}

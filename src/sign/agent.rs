//! A client of an SSH agent, which only asks for signatures.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::error::{Result, SignError};
use crate::sign::envelope::ED25519;
use crate::sign::key::Signer;
use crate::sign::public_key::PublicKey;
use crate::sign::wire::{put_string, take_string};

const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// The longest answer that is read, in bytes. A signature takes about 100.
const MAX_ANSWER_BYTES: u32 = 64 << 10;

/// A key of an SSH agent.
#[derive(Debug)]
pub(super) struct Agent {
    socket: PathBuf,
    key: PublicKey,
}

impl Agent {
    pub(super) fn new(socket: &Path, key: PublicKey) -> Self {
        Self {
            socket: socket.to_owned(),
            key,
        }
    }

    async fn ask(&self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        let mut message = Vec::new();
        put_string(&mut message, request);
        stream.write_all(&message).await?;
        let length = stream.read_u32().await?;
        if length > MAX_ANSWER_BYTES {
            return Err(std::io::Error::other("its answer is too long"));
        }
        let mut answer = vec![0; length as usize];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

#[async_trait]
impl Signer for Agent {
    fn public_key(&self) -> String {
        self.key.to_string()
    }

    async fn sign(&self, data: &[u8]) -> Result<Vec<u8>, SignError> {
        let socket = self.socket.display();
        let mut request = vec![SIGN_REQUEST];
        put_string(&mut request, &self.key.blob);
        put_string(&mut request, data);
        request.extend_from_slice(&0u32.to_be_bytes());
        let answer = self.ask(&request).await.map_err(|error| {
            SignError::caused(format!("cannot ask the SSH agent at {socket}"), error)
        })?;
        signature(&answer).ok_or_else(|| {
            let fingerprint = self.key.fingerprint();
            SignError::message(format!(
                "cannot sign with key {fingerprint}: the SSH agent at {socket} refused; check that \
                 `ssh-add -l` lists it"
            ))
        })
    }
}

/// Returns the Ed25519 signature in an answer of the agent.
fn signature(answer: &[u8]) -> Option<Vec<u8>> {
    let mut rest = answer.strip_prefix(&[SIGN_RESPONSE])?;
    let mut signature = take_string(&mut rest)?;
    let is_ed25519 = take_string(&mut signature)? == ED25519.as_bytes();
    let bytes = take_string(&mut signature)?;
    is_ed25519.then(|| bytes.to_vec())
}

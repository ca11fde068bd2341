//! A registry of images on this machine, which can refuse and stall requests.
//!
//! It speaks the part of the registry protocol (version 2) that a pull needs, over plain HTTP.
//! Docker accepts that for an address of the loopback network.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::engine;
use crate::harness::Need;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// The first byte of a TLS handshake. Docker tries TLS first.
const TLS: u8 = 0x16;

/// The answer to a request for a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The manifest, if there is one.
    Manifest,
    /// An error of this status.
    Refuse(u16),
    /// None, until the answer changes.
    Stall,
}

/// An engine that pulls from this machine's loopback address over plain HTTP.
pub fn need() -> &'static Need {
    static NEED: OnceLock<Need> = OnceLock::new();
    NEED.get_or_init(|| {
        engine::network().clone()?;
        engine::unless_podman("Podman pulls over plain HTTP only if it is configured to")?;
        match std::env::var_os("MOAT_TEST_IMAGE") {
            Some(_) => Err("the image of the registry is compiled here".into()),
            None => Ok(()),
        }
    })
}

#[derive(Debug, Default)]
struct Content {
    /// Blobs by their digest.
    blobs: HashMap<String, Vec<u8>>,
    /// Manifests by the path of their request.
    manifests: HashMap<String, Vec<u8>>,
}

/// A listening registry. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    content: Arc<Mutex<Content>>,
    answer: watch::Sender<Answer>,
    server: JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Registry {
    /// Listens on a free port of the loopback address.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub async fn listen() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let content = Arc::new(Mutex::new(Content::default()));
        let (answer, _) = watch::channel(Answer::Manifest);
        let server = {
            let (content, answer) = (Arc::clone(&content), answer.clone());
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (content, answer) = (Arc::clone(&content), answer.subscribe());
                    tokio::spawn(async move {
                        // A client may end its connection at any time.
                        let _ = serve(client, &content, answer).await;
                    });
                }
            })
        };
        Ok(Self {
            port,
            content,
            answer,
            server,
        })
    }

    /// The name of an image in this registry: `127.0.0.1:PORT/NAME`.
    pub fn name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Stores an image of one layer as `name:tag`, in place of one of the same name. Returns its id
    /// in an engine: the first, or in containerd's store the second.
    pub fn store(&self, name: &str, tag: &str, layer: Vec<u8>, config: &Value) -> [String; 2] {
        let config = crate::image::config(&layer, config)
            .to_string()
            .into_bytes();
        let mut content = lock(&self.content);
        let mut blob = |bytes: Vec<u8>, media_type: &str| {
            let (digest, size) = (digest(&bytes), bytes.len());
            content.blobs.insert(digest.clone(), bytes);
            json!({"mediaType": media_type, "digest": digest, "size": size})
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob(config.clone(), CONFIG),
            "layers": [blob(layer, LAYER)],
        });
        let manifest = manifest.to_string().into_bytes();
        let path = |reference: &str| format!("/v2/{name}/manifests/{reference}");
        let ids = [digest(&config), digest(&manifest)];
        content.manifests.insert(path(&ids[1]), manifest.clone());
        content.manifests.insert(path(tag), manifest);
        ids
    }

    /// Sets the answer to requests for manifests. Stalled requests get it as well.
    pub fn answer(&self, answer: Answer) {
        self.answer.send_replace(answer);
    }

    /// A function that sets the answer, for a callback.
    pub fn answerer(&self) -> impl Fn(Answer) + Send + Sync + 'static {
        let sender = self.answer.clone();
        move |answer| {
            sender.send_replace(answer);
        }
    }
}

fn lock(content: &Mutex<Content>) -> MutexGuard<'_, Content> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Answers one request, and ends the connection.
async fn serve(
    mut client: TcpStream,
    content: &Mutex<Content>,
    mut answer: watch::Receiver<Answer>,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
        if head[0] == TLS {
            return answer_tls(client).await;
        }
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.split(' ');
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let mut status = 200;
    if path.contains("/manifests/") {
        let given = answer.wait_for(|answer| *answer != Answer::Stall).await;
        if let Ok(Answer::Refuse(refused)) = given.map(|answer| *answer) {
            status = refused;
        }
    }
    let (status, media_type, body) = match status {
        200 => find(path, &lock(content)),
        refused => (refused, "text/plain", b"refused by the registry".to_vec()),
    };
    let head = format!(
        "HTTP/1.1 {status} {}\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
         Docker-Content-Digest: {}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        reason(status),
        digest(&body),
        body.len(),
    );
    client.write_all(head.as_bytes()).await?;
    if method != "HEAD" {
        client.write_all(&body).await?;
    }
    client.shutdown().await
}

/// Answers a TLS handshake as a server of plain HTTP does, so that the client tries that next.
async fn answer_tls(mut client: TcpStream) -> io::Result<()> {
    let answer = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
    client.write_all(answer).await?;
    client.shutdown().await?;
    // A connection with unread bytes would be reset, and the answer lost.
    tokio::io::copy(&mut client, &mut tokio::io::sink()).await?;
    Ok(())
}

fn find(path: &str, content: &Content) -> (u16, &'static str, Vec<u8>) {
    if path == "/v2/" {
        return (200, "application/json", b"{}".to_vec());
    }
    if let Some(manifest) = content.manifests.get(path) {
        return (200, MANIFEST, manifest.clone());
    }
    let blob = path.rsplit_once("/blobs/");
    if let Some(blob) = blob.and_then(|(_, digest)| content.blobs.get(digest)) {
        return (200, "application/octet-stream", blob.clone());
    }
    let error = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
    (404, "application/json", error.to_string().into_bytes())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        404 => "Not Found",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Refused",
    }
}

//! A proxy for the engine's socket that delays, cuts or refuses single requests.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// A fault of a request, or of its answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The request reaches the engine after this time.
    Late(Duration),
    /// The answer ends cleanly after this many bytes of its body.
    CutAfter(usize),
    /// The answer ends cleanly after this many frames of output, raw or of a WebSocket.
    CutAtFrame(usize),
    /// The answer stalls after this many bytes of its body, and does not end.
    SilentAfter(usize),
    /// The request is answered with this status, and does not reach the engine.
    Refuse(u16),
    /// The request is not answered, and does not reach the engine.
    Hang,
    /// The request reaches the engine late, and its answer is slow.
    Slow {
        /// Bytes per second.
        per_second: u64,
        /// The delay of the request.
        late: Duration,
    },
}

/// A request that reached the proxy.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The last part of its path, such as `create`, or `DELETE`.
    pub operation: String,
    /// When the request arrived.
    pub asked: Instant,
    /// When the headers of the answer arrived.
    pub answered: Option<Instant>,
}

type Hook = Box<dyn FnMut() + Send>;

#[derive(Default)]
struct State {
    faults: HashMap<String, Fault>,
    hooks: HashMap<String, Hook>,
    seen: Vec<Seen>,
}

/// A listening proxy. Dropping it ends it.
#[allow(missing_debug_implementations, reason = "it holds closures")]
pub struct Proxy {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
    /// The number of times that all connections were cut; `u64::MAX` while the proxy is down.
    cuts: watch::Sender<u64>,
    /// True while nothing passes.
    frozen: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
        self.cuts.send_replace(u64::MAX);
    }
}

impl Proxy {
    /// Listens at `directory/proxy.sock` for the engine's socket.
    ///
    /// # Errors
    ///
    /// If the socket cannot be made.
    pub fn listen(directory: &Path) -> io::Result<Self> {
        let engine = std::env::var("DOCKER_HOST")
            .ok()
            .and_then(|host| Some(PathBuf::from(host.strip_prefix("unix://")?)))
            .unwrap_or_else(|| "/var/run/docker.sock".into());
        Self::for_socket(engine, directory)
    }

    /// Listens at `directory/proxy.sock` for the socket of another engine.
    ///
    /// # Errors
    ///
    /// If the socket cannot be made.
    pub fn for_socket(engine: PathBuf, directory: &Path) -> io::Result<Self> {
        let socket = directory.join("proxy.sock");
        let listener = UnixListener::bind(&socket)?;
        let state = Arc::new(Mutex::new(State::default()));
        let (cuts, _) = watch::channel(0);
        let (frozen, is_frozen) = watch::channel(false);
        let server = {
            let (state, cuts) = (state.clone(), cuts.clone());
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let mut cut = cuts.subscribe();
                    if *cut.borrow_and_update() == u64::MAX {
                        continue;
                    }
                    let (state, engine) = (state.clone(), engine.clone());
                    let is_frozen = is_frozen.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            _ = while_thawed(is_frozen, pass(client, &engine, &state)) => {}
                            _ = cut.changed() => {}
                        }
                    });
                }
            })
        };
        Ok(Self {
            socket,
            state,
            cuts,
            frozen,
            server,
        })
    }

    /// The address of the proxy, as in `DOCKER_HOST`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// From now on, all requests for `operation` have this fault.
    pub fn fault(&self, operation: &str, fault: Fault) {
        lock(&self.state).faults.insert(operation.into(), fault);
    }

    /// Calls `hook` before a request for `operation` reaches the engine.
    pub fn before(&self, operation: &str, hook: impl FnMut() + Send + 'static) {
        lock(&self.state)
            .hooks
            .insert(operation.into(), Box::new(hook));
    }

    /// The requests for `operation` so far, in order.
    pub fn seen(&self, operation: &str) -> Vec<Seen> {
        let state = lock(&self.state);
        let mut seen = state.seen.clone();
        seen.retain(|seen| seen.operation == operation);
        seen
    }

    /// Cuts all open connections.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Cuts all connections and accepts none until [`up`](Self::up).
    pub fn down(&self) {
        self.cuts.send_replace(u64::MAX);
    }

    /// Accepts connections again.
    pub fn up(&self) {
        self.cuts.send_replace(0);
    }

    /// Lets nothing pass until [`thaw`](Self::thaw), on any connection.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Ends [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }
}

/// Polls `pass` only while the proxy is not frozen.
pub(crate) async fn while_thawed(
    mut frozen: watch::Receiver<bool>,
    pass: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    tokio::pin!(pass);
    loop {
        if frozen.wait_for(|frozen| !frozen).await.is_err() {
            return pass.await;
        }
        tokio::select! {
            biased;
            _ = frozen.changed() => {}
            result = &mut pass => return result,
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes one request and its answer. Each request has a separate connection, so the proxy only
/// needs the first line and the end of the headers.
async fn pass(mut client: UnixStream, engine: &Path, state: &Mutex<State>) -> io::Result<()> {
    let Some((head, body)) = read_head(&mut client).await? else {
        return Ok(());
    };
    let operation = operation(&head);
    let (fault, index) = {
        let mut state = lock(state);
        if let Some(hook) = state.hooks.get_mut(&operation) {
            hook();
        }
        state.seen.push(Seen {
            operation: operation.clone(),
            asked: Instant::now(),
            answered: None,
        });
        (state.faults.get(&operation).cloned(), state.seen.len() - 1)
    };
    match fault {
        Some(Fault::Late(delay) | Fault::Slow { late: delay, .. }) => {
            tokio::time::sleep(delay).await;
        }
        Some(Fault::Refuse(status)) => return refuse(&mut client, status).await,
        Some(Fault::Hang) => return std::future::pending().await,
        _ => {}
    }
    let mut server = UnixStream::connect(engine).await?;
    server.write_all(&with_close(&head)).await?;
    server.write_all(&body).await?;

    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        if is_upgrade(&head) {
            // The container must see the end of its input.
            to_server.shutdown().await?;
        }
        // A client that half-closes an attached connection must not end the answer.
        std::future::pending::<io::Result<()>>().await
    };
    let down = async {
        let Some((head, body)) = read_head(&mut from_server).await? else {
            return Ok(());
        };
        lock(state).seen[index].answered = Some(Instant::now());
        to_client.write_all(&head).await?;
        match fault {
            Some(Fault::CutAfter(bytes)) => {
                let first = &body[..body.len().min(bytes)];
                to_client.write_all(first).await?;
                let mut rest = (&mut from_server).take((bytes - first.len()) as u64);
                tokio::io::copy(&mut rest, &mut to_client).await?;
            }
            Some(Fault::CutAtFrame(frames)) => {
                let mut from = body.chain(&mut from_server);
                pass_frames(&head, &mut from, &mut to_client, frames).await?;
            }
            Some(Fault::SilentAfter(bytes)) => {
                let first = &body[..body.len().min(bytes)];
                to_client.write_all(first).await?;
                let mut rest = (&mut from_server).take((bytes - first.len()) as u64);
                tokio::io::copy(&mut rest, &mut to_client).await?;
                tokio::io::copy(&mut from_server, &mut tokio::io::sink()).await?;
                std::future::pending::<()>().await;
            }
            Some(Fault::Slow { per_second, .. }) => {
                let mut piece = body;
                loop {
                    to_client.write_all(&piece).await?;
                    let time = piece.len() as f64 / per_second as f64;
                    tokio::time::sleep(Duration::from_secs_f64(time)).await;
                    piece.clear();
                    let mut next = (&mut from_server).take(per_second / 10);
                    if next.read_buf(&mut piece).await? == 0 {
                        break;
                    }
                }
            }
            _ => {
                to_client.write_all(&body).await?;
                tokio::io::copy(&mut from_server, &mut to_client).await?;
            }
        }
        to_client.shutdown().await
    };
    tokio::select! { result = up => result, result = down => result }
}

/// Passes whole frames of output, until their number or the end.
async fn pass_frames(
    head: &[u8],
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    frames: usize,
) -> io::Result<()> {
    let is_websocket = head
        .to_ascii_lowercase()
        .windows(13)
        .any(|window| window == b"sec-websocket");
    for _ in 0..frames {
        let mut frame = vec![0; if is_websocket { 2 } else { 8 }];
        if let Err(error) = from.read_exact(&mut frame).await {
            let at_end = error.kind() == io::ErrorKind::UnexpectedEof;
            return if at_end { Ok(()) } else { Err(error) };
        }
        let length_bytes = match (is_websocket, frame[1] & 0x7f) {
            (true, 126) => 2,
            (true, 127) => 8,
            _ => 0,
        };
        let start = frame.len();
        frame.resize(start + length_bytes, 0);
        from.read_exact(&mut frame[start..]).await?;
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let length = match (is_websocket, length_bytes) {
            (true, 0) => usize::from(frame[1] & 0x7f),
            (true, _) => number(&frame[2..]),
            (false, _) => number(&frame[4..8]),
        };
        let start = frame.len();
        frame.resize(start + length, 0);
        from.read_exact(&mut frame[start..]).await?;
        to.write_all(&frame).await?;
    }
    Ok(())
}

/// The head up to the empty line, and the bytes read after it; `None` at the end of the stream.
async fn read_head(
    from: &mut (impl AsyncReadExt + Unpin),
) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut head = Vec::new();
    loop {
        if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            let body = head.split_off(at + 4);
            return Ok(Some((head, body)));
        }
        if from.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
    }
}

/// The operation of `POST /v1.41/containers/x/attach?stream=1 HTTP/1.1` is `attach`, and so is that
/// of its WebSocket, `/attach/ws`.
fn operation(head: &[u8]) -> String {
    let head = String::from_utf8_lossy(head);
    let mut words = head.split(' ');
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    if method == "DELETE" {
        return method.into();
    }
    let path = path.split('?').next().unwrap_or_default();
    let path = path.strip_suffix("/ws").unwrap_or(path);
    path.rsplit('/').next().unwrap_or_default().into()
}

/// True if the request asks for a connection of raw bytes.
fn is_upgrade(head: &[u8]) -> bool {
    let head = head.to_ascii_lowercase();
    head.windows(9).any(|window| window == b"\nupgrade:")
}

/// The request with a header that makes it the last one on its connection.
fn with_close(head: &[u8]) -> Vec<u8> {
    let end = head.windows(2).position(|window| window == b"\r\n");
    let (Some(end), false) = (end, is_upgrade(head)) else {
        return head.to_vec();
    };
    let mut changed = head[..end + 2].to_vec();
    changed.extend_from_slice(b"Connection: close\r\n");
    changed.extend_from_slice(&head[end + 2..]);
    changed
}

async fn refuse(client: &mut UnixStream, status: u16) -> io::Result<()> {
    let body = r#"{"message":"refused by the proxy"}"#;
    let answer = format!(
        "HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await
}

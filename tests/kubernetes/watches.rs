//! Watches that end, or whose version the server does not have any more.
//!
//! A proxy changes the requests for watches. The answers are those of the server.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use moat::RunId;
use serde_json::{Value, json};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::{self, Down};
use crate::embedder::Embedder;
use crate::stage::{Stage, assert_both_streams, end, read};

testkit::trials! {
    crate::on_local_cluster:
        watches_that_end_lose_nothing;
    crate::on_broken_cluster:
        expired_watches_lose_nothing,
        watches_that_always_expire_lose_nothing,
}

const RUNS: usize = 3;
const LINES: u64 = 400;

/// A proxy of kubectl, which ends TLS. Dropped, it ends.
struct Plain {
    child: Child,
    address: String,
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Plain {
    fn start() -> Self {
        let mut child = Command::new("kubectl")
            .args(["--context", &cluster::context(), "proxy", "--port=0"])
            .args(["--reject-paths=^/none", "--accept-paths=.*"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        Self { child, address }
    }
}

/// A change of a request, of the same length.
type Change = fn(&mut [u8], &Counts) -> bool;

/// What passed the proxy.
#[derive(Default)]
struct Counts {
    /// Requests that were changed.
    changed: AtomicUsize,
    /// Answers that a version is too old.
    expired: AtomicUsize,
}

/// Listens for a client, and changes its requests. Returns the address.
async fn proxy(server: String, change: Change, counts: Arc<Counts>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let counted = Arc::clone(&counts);
            tokio::spawn(async move {
                let mut piece = vec![0; 64 << 10];
                while let Ok(read @ 1..) = from_client.read(&mut piece).await {
                    // A request without a body arrives in one piece.
                    if change(&mut piece[..read], &counted) {
                        counted.changed.fetch_add(1, Ordering::SeqCst);
                    }
                    if to_server.write_all(&piece[..read]).await.is_err() {
                        break;
                    }
                }
            });
            let counted = Arc::clone(&counts);
            tokio::spawn(async move {
                let mut piece = vec![0; 64 << 10];
                while let Ok(read @ 1..) = from_server.read(&mut piece).await {
                    if find(&piece[..read], b"\"code\":410").is_some() {
                        counted.expired.fetch_add(1, Ordering::SeqCst);
                    }
                    if to_client.write_all(&piece[..read]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// The digits of a parameter of a watch.
fn digits<'a>(request: &'a mut [u8], parameter: &str) -> Option<&'a mut [u8]> {
    find(request, b"watch=true")?;
    let start = find(request, parameter.as_bytes())? + parameter.len();
    let digits = request[start..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    let end = start + digits.count();
    Some(&mut request[start..end])
}

/// The server ends each watch after 2 s.
fn shorten(request: &mut [u8], _: &Counts) -> bool {
    let Some(seconds) = digits(request, "timeoutSeconds=") else {
        return false;
    };
    seconds.copy_from_slice(b"002");
    true
}

/// Every other watch begins at a version that the server does not have any more.
fn expire_some(request: &mut [u8], counts: &Counts) -> bool {
    match counts.changed.load(Ordering::SeqCst) % 2 {
        0 => shorten(request, counts),
        _ => expire(request, counts),
    }
}

fn expire(request: &mut [u8], _: &Counts) -> bool {
    let Some(version) = digits(request, "resourceVersion=") else {
        return false;
    };
    version.fill(b'0');
    *version.last_mut().unwrap() = b'1';
    true
}

/// Runs through the proxy. Returns the number of requests that were changed, and of versions that
/// were too old.
async fn run(stage: &Stage, change: Change) -> (usize, usize) {
    let plain = Plain::start();
    let counts = Arc::new(Counts::default());
    let address = proxy(plain.address.clone(), change, Arc::clone(&counts)).await;
    let config = ["config", "view", "--raw", "--minify", "-o", "json"];
    let config = cluster::kubectl(&config);
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["clusters"][0]["cluster"] = json!({"server": format!("http://{address}")});
    let kubeconfig: PathBuf = stage.dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, config.to_string()).unwrap();

    let steps = format!("lines {LINES} --stream both --delay-ms 25 + exit 4");
    let ids: Vec<_> = (0..RUNS)
        .map(|number| format!("watched-{number}"))
        .collect();
    let embedders: Vec<_> = ids
        .iter()
        .map(|id| Embedder::with_kubeconfig(stage, id, &steps, kubeconfig.clone()))
        .collect();
    for id in &ids {
        stage.audited(id, "\"type\":\"end\"").await;
    }
    // The embedders remove the pods, which they learn by the watch.
    stage.is_clean().await;
    for embedder in embedders {
        embedder.kill();
    }
    let manager = stage.manager().await;
    for id in &ids {
        let run = manager
            .get(&RunId::new(id.as_str()).unwrap())
            .await
            .unwrap();
        let outcome = end(&run).await;
        assert_eq!(outcome.code(), Some(4), "{outcome}");
        let audit = read(&outcome);
        assert_both_streams(&audit, LINES);
        assert!(audit.all("resume").is_empty(), "{:?}", audit.events);
    }
    let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    (count(&counts.changed), count(&counts.expired))
}

async fn watches_that_end_lose_nothing(stage: &Stage) {
    let (ended, _) = run(stage, shorten).await;
    println!("{ended} watches");
    assert!((3 * RUNS..30 * RUNS).contains(&ended), "{ended} watches");
}

/// Restarts the API server, so that it does not have version 1 any more. A new cluster still has it.
fn forget_versions() {
    Down::kill("api").start();
}

async fn expired_watches_lose_nothing(stage: &Stage) {
    forget_versions();
    let (ended, expired) = run(stage, expire_some).await;
    println!("{ended} watches, of which {expired} expired");
    assert!(
        (RUNS..30 * RUNS).contains(&expired),
        "{expired} of {ended} watches"
    );
}

/// Lists are the only source, and no client asks for them without a pause.
async fn watches_that_always_expire_lose_nothing(stage: &Stage) {
    forget_versions();
    let started = Instant::now();
    let (_, expired) = run(stage, expire).await;
    let seconds = started.elapsed().as_secs() as usize;
    println!("{expired} watches expired in {seconds} s");
    assert!(
        (3 * RUNS..6 * RUNS * seconds).contains(&expired),
        "{expired} watches in {seconds} s"
    );
}

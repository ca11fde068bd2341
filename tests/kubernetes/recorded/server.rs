//! An API server that gives recorded answers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::answers;

/// The answer to a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A whole answer.
    Http {
        code: u16,
        header: String,
        body: String,
    },
    /// An answer of 200 whose body is shorter than its header says.
    Torn(String),
    /// The connection ends without an answer.
    Cut,
    /// The events of a watch.
    Watch(Vec<Step>),
    /// The output of an exec.
    Exec(Vec<Step>),
}

/// A step of an answer. After the last step, the connection is silent.
#[derive(Debug, Clone)]
pub enum Step {
    /// A line of a watch, or a message of a WebSocket with its channel.
    Send(Vec<u8>),
    /// Waits until the test opens this gate.
    Await(&'static str),
    /// A pause between the events of a watch.
    Pause(Duration),
    /// The regular end: of a WebSocket, `Close(Normal)`.
    Close,
    /// The end of the connection.
    Cut,
}

/// A request that the server has received.
#[derive(Debug, Clone)]
pub struct Request {
    pub received: Instant,
    pub query: Vec<(String, String)>,
    pub body: Value,
    /// The bytes of the standard input of an exec.
    pub input: Arc<Mutex<Vec<u8>>>,
}

impl Request {
    /// The value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        let mut pairs = self.query.iter();
        let (_, value) = pairs.find(|(key, _)| key == name)?;
        Some(value)
    }

    /// The words of an exec's command after the path of the control socket.
    pub fn words(&self) -> Vec<&str> {
        let pairs = self.query.iter().filter(|(key, _)| key == "command");
        let words = pairs.map(|(_, value)| value.as_str());
        words
            .skip_while(|word| word.starts_with('/') || *word == "ctl")
            .collect()
    }

    /// The bytes of the standard input of an exec so far.
    pub fn input(&self) -> Vec<u8> {
        lock(&self.input).clone()
    }
}

#[derive(Default)]
struct State {
    answers: HashMap<String, VecDeque<Answer>>,
    requests: Vec<(String, Request)>,
}

/// A listening server. Dropped, it ends.
pub struct Server {
    pub address: String,
    state: Arc<Mutex<State>>,
    gates: watch::Sender<HashSet<&'static str>>,
    protocol: watch::Sender<&'static str>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let (gates, open) = watch::channel(HashSet::new());
        let (protocol, spoken) = watch::channel("v4.channel.k8s.io");
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, open, spoken) = (Arc::clone(&shared), open.clone(), *spoken.borrow());
                tokio::spawn(async move {
                    // The client may close the connection at any time.
                    let _ = serve(stream, &state, open, spoken).await;
                });
            }
        });
        Self {
            address,
            state,
            gates,
            protocol,
            task,
        }
    }

    /// Sets the answers to `operation`, such as `get pods`. The last one is repeated.
    pub fn answer(&self, operation: &str, answers: impl IntoIterator<Item = Answer>) {
        let answers = answers.into_iter().collect();
        lock(&self.state).answers.insert(operation.into(), answers);
    }

    /// Opens a gate of [`Step::Await`].
    pub fn open(&self, gate: &'static str) {
        self.gates.send_modify(|gates| {
            gates.insert(gate);
        });
    }

    /// Sets the subprotocol of execs. Default: that of Kubernetes 1.20.
    pub fn speak(&self, protocol: &'static str) {
        self.protocol.send_replace(protocol);
    }

    /// The requests for `operation` so far.
    pub fn requests(&self, operation: &str) -> Vec<Request> {
        let state = lock(&self.state);
        let requests = state.requests.iter();
        let requests = requests.filter(|(found, _)| found == operation);
        requests.map(|(_, request)| request.clone()).collect()
    }

    /// The number of requests for `operation` so far.
    pub fn count(&self, operation: &str) -> usize {
        self.requests(operation).len()
    }

    /// The operations of all requests so far.
    pub fn operations(&self) -> Vec<String> {
        let state = lock(&self.state);
        let operations = state.requests.iter();
        operations.map(|(operation, _)| operation.clone()).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one request.
async fn serve(
    mut stream: TcpStream,
    state: &Mutex<State>,
    gates: watch::Receiver<HashSet<&'static str>>,
    protocol: &str,
) -> io::Result<()> {
    let (head, body) = read(&mut stream).await?;
    let mut words = head.split(' ');
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = Request {
        received: Instant::now(),
        query: pairs(query),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        input: Arc::default(),
    };
    let operation = operation(method, path, &request);
    let answer = {
        let mut state = lock(state);
        state.requests.push((operation.clone(), request.clone()));
        match state.answers.get_mut(&operation) {
            Some(answers) if answers.len() > 1 => answers.pop_front(),
            Some(answers) => answers.front().cloned(),
            None => None,
        }
    };
    match answer.unwrap_or_else(|| answers::usual(&operation)) {
        Answer::Http { code, header, body } => {
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {code} x\r\nContent-Length: {length}\r\nConnection: close\r\n\
                 {header}\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await
        }
        Answer::Torn(body) => {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await
        }
        Answer::Cut => Ok(()),
        Answer::Watch(steps) => send_events(stream, steps, gates).await,
        Answer::Exec(steps) => {
            let input = Arc::clone(&request.input);
            send_output(stream, &head, protocol, steps, gates, &input).await
        }
    }
}

/// Reads the head of a request, and its body.
async fn read(stream: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8(bytes).map_err(io::Error::other)?;
    let length = header(&head, "content-length").and_then(|length| length.parse().ok());
    let length = length.unwrap_or(0);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, body))
}

/// Returns the value of a header.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = headers.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
    Some(value.trim())
}

/// Returns the parameters of a query.
fn pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let code = tail.get(..2).filter(|_| *first == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => bytes.push(*first),
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Returns the verb and the resource of a request as Kubernetes names them: `watch pods`.
///
/// The resource of an exec is the helper's subcommand: `exec tap`.
fn operation(method: &str, path: &str, request: &Request) -> String {
    let mut parts = path.trim_start_matches('/').split('/');
    let (resource, name, subresource) = match parts.next() {
        Some("api") => {
            // After `v1`: the resource in all namespaces, or `namespaces` and the namespace.
            let mut parts = parts.skip(1);
            match parts.next().unwrap_or_default() {
                "namespaces" => match parts.nth(1) {
                    Some(resource) => (resource, parts.next(), parts.next()),
                    None => ("namespaces", Some(""), None),
                },
                resource => (resource, None, None),
            }
        }
        Some("apis") => (parts.next_back().unwrap_or_default(), None, None),
        other => (other.unwrap_or_default(), Some(""), None),
    };
    if resource == "selfsubjectaccessreviews" {
        let asked = &request.body["spec"]["resourceAttributes"];
        let text = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
        let (verb, resource, subresource) = (text("verb"), text("resource"), text("subresource"));
        let separator = if subresource.is_empty() { "" } else { "/" };
        return format!("review {verb} {resource}{separator}{subresource}");
    }
    let verb = match (method, name, subresource) {
        (_, _, Some("log")) => return "get log".into(),
        (_, _, Some(_)) => {
            let words = request.words();
            return format!("exec {}", words.first().unwrap_or(&""));
        }
        ("GET", Some(_), _) => "get",
        ("GET", None, _) if request.query("watch").is_some() => "watch",
        ("GET", None, _) => "list",
        ("POST", ..) => "create",
        ("DELETE", ..) => "delete",
        ("PATCH", ..) => "patch",
        _ => method,
    };
    format!("{verb} {resource}")
}

async fn passed(gates: &mut watch::Receiver<HashSet<&'static str>>, gate: &str) -> io::Result<()> {
    let opened = gates.wait_for(|gates| gates.contains(gate)).await;
    opened.map(drop).map_err(io::Error::other)
}

async fn send_events(
    mut stream: TcpStream,
    steps: Vec<Step>,
    mut gates: watch::Receiver<HashSet<&'static str>>,
) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    for step in steps {
        match step {
            Step::Send(line) => {
                let size = format!("{:x}\r\n", line.len());
                let chunk = [size.as_bytes(), &line, b"\r\n"].concat();
                stream.write_all(&chunk).await?;
            }
            Step::Await(gate) => passed(&mut gates, gate).await?,
            Step::Pause(pause) => tokio::time::sleep(pause).await,
            Step::Close => {
                stream.write_all(b"0\r\n\r\n").await?;
                return stream.shutdown().await;
            }
            Step::Cut => return Ok(()),
        }
    }
    // Until the client closes the connection.
    stream.read_u8().await.map(drop)
}

async fn send_output(
    mut stream: TcpStream,
    head: &str,
    protocol: &str,
    steps: Vec<Step>,
    mut gates: watch::Receiver<HashSet<&'static str>>,
    input: &Mutex<Vec<u8>>,
) -> io::Result<()> {
    let offered = header(head, "sec-websocket-protocol").unwrap_or_default();
    assert!(
        offered.split(", ").any(|offer| offer == protocol),
        "{protocol} is not in {offered:?}"
    );
    let key = header(head, "sec-websocket-key").unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    stream.write_all(answer.as_bytes()).await?;
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (mut output, mut messages) = socket.split();
    let send = async {
        for step in steps {
            match step {
                Step::Send(bytes) => {
                    let sent = output.send(Message::Binary(bytes.into())).await;
                    sent.map_err(io::Error::other)?;
                }
                Step::Await(gate) => passed(&mut gates, gate).await?,
                Step::Pause(pause) => tokio::time::sleep(pause).await,
                Step::Close => {
                    let frame = CloseFrame {
                        code: CloseCode::Normal,
                        reason: "".into(),
                    };
                    let sent = output.send(Message::Close(Some(frame))).await;
                    sent.map_err(io::Error::other)?;
                    break;
                }
                Step::Cut => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
        Ok(())
    };
    let receive = async {
        while let Some(Ok(message)) = messages.next().await {
            if let Message::Binary(bytes) = message
                && let Some((0, bytes)) = bytes.split_first().map(|(first, rest)| (*first, rest))
            {
                lock(input).extend_from_slice(bytes);
            }
        }
        Ok::<_, io::Error>(())
    };
    tokio::try_join!(send, receive).map(drop)
}

//! A client of the server.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use testkit::deadline::within;

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    address: String,
    token: String,
}

/// A complete response.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// The JSON of the body, which must come with this status. A body that is not JSON is null.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self}");
        if status >= 400 {
            self.check_problem();
        }
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The detail of an error with this status.
    #[track_caller]
    pub fn detail(&self, status: u16) -> String {
        let problem = self.expect(status);
        problem["detail"].as_str().expect("a detail").to_owned()
    }

    /// The bytes of the body, which must come with the status 200.
    #[track_caller]
    pub fn bytes(&self) -> &[u8] {
        assert_eq!(self.status, 200, "{self}");
        &self.body
    }

    #[track_caller]
    fn check_problem(&self) {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status.as_u16(), "{problem}");
        assert!(problem["title"].is_string() && problem["detail"].is_string());
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = &self.body[..self.body.len().min(1000)];
        write!(f, "{} {}", self.status, String::from_utf8_lossy(body))
    }
}

impl Client {
    pub fn new(address: &str, token: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self {
            http,
            address: address.into(),
            token: token.into(),
        }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        self.http.request(method, url).bearer_auth(&self.token)
    }

    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let answer = within(60, "the response", async {
            let response = request.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = response.bytes().await?.to_vec();
            Ok::<_, reqwest::Error>(Answer {
                status,
                headers,
                body,
            })
        });
        answer.await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = self.request(Method::POST, path).json(body);
        self.send(request).await
    }

    /// The ids of the sessions that a query such as `?state=running` selects.
    pub async fn sessions(&self, query: &str) -> Vec<String> {
        let list = self.get(&format!("/sessions{query}")).await.expect(200);
        let sessions = list["sessions"].as_array().unwrap().iter();
        sessions
            .map(|session| session["id"].as_str().unwrap().to_owned())
            .collect()
    }

    pub async fn session(&self, id: &str) -> Value {
        self.get(&format!("/sessions/{id}")).await.expect(200)
    }

    /// Ends a session.
    pub async fn end(&self, id: &str) -> Value {
        self.delete(&format!("/sessions/{id}")).await.expect(200)
    }

    /// Starts a command. `body` has `cmd`, and may have more fields.
    pub async fn start(&self, session: &str, body: &Value) -> Command {
        let request = self.request(Method::POST, &format!("/sessions/{session}/exec"));
        let response = within(60, "the start of the command", request.json(body).send()).await;
        Command::new(response.unwrap()).await
    }

    /// Runs a command to its end.
    pub async fn exec(&self, session: &str, body: &Value) -> Output {
        self.start(session, body).await.end().await
    }

    /// Runs a script to its end.
    pub async fn shell(&self, session: &str, script: &str) -> Output {
        self.exec(session, &shell(script)).await
    }

    /// Uploads a file.
    pub async fn put(&self, session: &str, path: &str, content: Vec<u8>) -> Answer {
        let request = self.request(Method::PUT, &format!("/sessions/{session}/files"));
        let request = request.query(&[("path", path)]).body(content);
        self.send(request).await
    }

    /// Uploads the contents of a directory.
    pub async fn put_tar(&self, session: &str, path: &str, archive: Vec<u8>) -> Answer {
        let request = self.request(Method::PUT, &format!("/sessions/{session}/files"));
        let request = request.header("content-type", "application/x-tar");
        let request = request.query(&[("path", path)]).body(archive);
        self.send(request).await
    }

    /// Downloads a file.
    pub async fn fetch(&self, session: &str, path: &str) -> Answer {
        let request = self.request(Method::GET, &format!("/sessions/{session}/files"));
        self.send(request.query(&[("path", path)])).await
    }

    /// Downloads a file or a directory as an archive.
    pub async fn fetch_tar(&self, session: &str, path: &str) -> Answer {
        let request = self.request(Method::GET, &format!("/sessions/{session}/files"));
        let request = request.query(&[("path", path), ("archive", "true")]);
        self.send(request).await
    }

    pub async fn audit_of(&self, session: &str, exec: &str) -> Vec<u8> {
        let path = format!("/sessions/{session}/execs/{exec}/audit");
        self.get(&path).await.bytes().to_vec()
    }
}

/// The request for a command of the shell.
pub fn shell(script: &str) -> Value {
    json!({"cmd": ["sh", "-c", script]})
}

/// A running command, and what it has printed so far.
pub struct Command {
    response: Response,
    buffer: Vec<u8>,
    pub id: String,
    pub output: Output,
}

/// The events of a command.
#[derive(Debug, Default)]
pub struct Output {
    pub id: String,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The names of the events, and their data.
    pub events: Vec<(String, Value)>,
    /// The data of the event `exit`.
    pub exit: Value,
}

impl Output {
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// The standard output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.exit["code"], 0, "{:?}", self.events);
        self.text()
    }

    /// Why the command was stopped.
    pub fn stopped(&self) -> &str {
        self.exit["stopped"].as_str().unwrap_or_default()
    }

    fn add(&mut self, name: &str, data: &Value) {
        let stream = match name {
            "stdout" => &mut self.stdout,
            "stderr" => &mut self.stderr,
            "exit" => return self.exit = data.clone(),
            _ => return,
        };
        match (data["text"].as_str(), data["base64"].as_str()) {
            (Some(text), None) => stream.extend_from_slice(text.as_bytes()),
            (None, Some(text)) => stream.extend(BASE64_STANDARD.decode(text).unwrap()),
            _ => panic!("{data}"),
        }
    }
}

impl Command {
    async fn new(response: Response) -> Self {
        let status = response.status();
        if status != 200 {
            panic!("{status} {}", response.text().await.unwrap());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut command = Self {
            response,
            buffer: Vec::new(),
            id: String::new(),
            output: Output::default(),
        };
        let (name, data) = command.next().await.expect("an event");
        assert_eq!(name, "started", "{data}");
        command.id = data["exec"].as_str().unwrap().to_owned();
        command.output.id = command.id.clone();
        command
    }

    /// The next event, or `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<(String, Value)> {
        within(60, "an event", self.read_event()).await
    }

    async fn read_event(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some((name, data)) = parse(std::str::from_utf8(&block).unwrap()) {
                    self.output.add(&name, &data);
                    self.output.events.push((name.clone(), data.clone()));
                    return Some((name, data));
                }
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Reads events until the standard output contains `text`.
    pub async fn wait_for(&mut self, text: &str) {
        while !testkit::audit::contains(&self.output.stdout, text.as_bytes()) {
            let event = self.next().await;
            assert!(event.is_some(), "no {text:?} in {:?}", self.output);
        }
    }

    /// Reads to the end of the stream, which must be the event `exit`.
    pub async fn end(mut self) -> Output {
        while self.next().await.is_some() {}
        let last = self.output.events.last().unwrap();
        assert_eq!(last.0, "exit", "{:?}", self.output.events);
        self.output
    }

    /// Reads to the end of the stream, wherever it is.
    pub async fn rest(mut self) -> Output {
        while self.next().await.is_some() {}
        self.output
    }
}

/// Name and data of an event; `None` for a comment.
fn parse(block: &str) -> Option<(String, Value)> {
    let field = |name: &str| {
        let mut lines = block.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.trim_start().to_owned()))
    };
    let data = field("data:")?;
    Some((
        field("event:")?,
        serde_json::from_str(&data).expect("data is JSON"),
    ))
}

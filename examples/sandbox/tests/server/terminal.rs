//! Terminals over WebSocket.

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::client::Client;
use crate::exec::assert_gone;
use crate::fixture::Server;
use testkit::audit::contains;
use testkit::deadline::{eventually, within};

testkit::trials! {
    crate::on_engine:
        a_client_types_resizes_and_exits,
        a_browser_sends_its_token_as_a_subprotocol,
        wrong_tokens_get_no_terminal,
        a_large_message_closes_the_terminal,
        garbage_does_not_reach_the_shell,
        a_client_that_disappears_frees_its_place;
    crate::on_process:
        local_processes_have_no_terminal,
}

pub struct Terminal {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    output: Vec<u8>,
}

/// The end of a terminal.
#[derive(Debug)]
pub struct End {
    /// The last text message.
    pub exit: Value,
    pub close: Option<CloseFrame>,
}

impl Terminal {
    /// Opens a terminal with a query such as `?columns=80&rows=24`.
    pub async fn open(client: &Client, session: &str, query: &str) -> Result<Self, Error> {
        let bearer = format!("Bearer {}", client.token());
        Self::connect(client, session, query, &[("authorization", &bearer)]).await
    }

    async fn connect(
        client: &Client,
        session: &str,
        query: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let address = client.address();
        let url = format!("ws://{address}/sessions/{session}/terminal{query}");
        let mut request = url.into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, response) = within(30, "the terminal", connect_async(request)).await?;
        if headers.iter().any(|(name, _)| *name == PROTOCOL) {
            assert_eq!(response.headers()[PROTOCOL], "moat.terminal.v1");
        }
        Ok(Self {
            socket,
            output: Vec::new(),
        })
    }

    pub async fn send(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }

    /// Types a line.
    pub async fn enter(&mut self, line: &str) {
        let bytes = format!("{line}\r").into_bytes();
        self.send(Message::binary(bytes)).await;
    }

    async fn resize(&mut self, columns: u16, rows: u16) {
        let resize = json!({"resize": {"columns": columns, "rows": rows}});
        self.send(Message::text(resize.to_string())).await;
    }

    /// Reads until the output contains `text`, and forgets the output up to its end.
    pub async fn wait_for(&mut self, text: &str) {
        let find = |output: &[u8]| {
            output
                .windows(text.len())
                .position(|one| one == text.as_bytes())
        };
        loop {
            if let Some(at) = find(&self.output) {
                self.output.drain(..at + text.len());
                return;
            }
            self.read(text).await;
        }
    }

    async fn read(&mut self, awaited: &str) {
        match within(20, awaited, self.socket.next()).await {
            Some(Ok(Message::Binary(bytes))) => self.output.extend_from_slice(&bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => {
                let output = String::from_utf8_lossy(&self.output);
                panic!("{other:?} and no {awaited:?} after {output:?}");
            }
        }
    }

    /// Waits until `stty size` prints `size`.
    async fn wait_for_size(&mut self, size: &str) {
        eventually(20, size, async || {
            self.enter("stty size; echo a''b").await;
            while !contains(&self.output, b"ab\r\n") {
                self.read("ab").await;
            }
            let output = std::mem::take(&mut self.output);
            contains(&output, size.as_bytes()).then_some(())
        })
        .await;
    }

    /// Reads the output `pid=NUMBER.`
    async fn read_pid(&mut self) -> String {
        loop {
            self.wait_for("pid=").await;
            while !self.output.contains(&b'.') {
                self.read(".").await;
            }
            let text = String::from_utf8_lossy(&self.output).into_owned();
            let number = text.split('.').next().unwrap_or_default();
            if number.bytes().all(|byte| byte.is_ascii_digit()) {
                return number.into();
            }
        }
    }

    /// Reads to the end.
    pub async fn end(mut self) -> End {
        let mut end = End {
            exit: Value::Null,
            close: None,
        };
        while let Some(Ok(message)) = within(20, "the end", self.socket.next()).await {
            match message {
                Message::Text(text) => end.exit = serde_json::from_str(&text).unwrap(),
                Message::Close(frame) => end.close = frame,
                _ => {}
            }
        }
        end
    }
}

const PROTOCOL: &str = "sec-websocket-protocol";

async fn a_client_types_resizes_and_exits(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let mut terminal = Terminal::open(&alice, &id, "?columns=90&rows=20&cmd=/bin/sh")
        .await
        .unwrap();
    terminal.wait_for_size("20 90").await;
    terminal.resize(101, 33).await;
    terminal.wait_for_size("33 101").await;
    terminal.enter("exit 5").await;
    let end = terminal.end().await;
    assert_eq!(end.exit["exit"]["code"], 5, "{end:?}");
    assert_eq!(end.exit["exit"]["stopped"], Value::Null, "{end:?}");
    assert_eq!(u16::from(end.close.unwrap().code), 1000);
}

async fn a_browser_sends_its_token_as_a_subprotocol(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let protocols = format!("moat.terminal.v1, bearer.{}", alice.token());
    let headers = [(PROTOCOL, protocols.as_str())];
    let mut terminal = Terminal::connect(&alice, &id, "", &headers).await.unwrap();
    terminal.enter("echo a''b; exit").await;
    terminal.wait_for("ab").await;
    assert_eq!(terminal.end().await.exit["exit"]["code"], 0);
}

/// The status of a refused handshake.
fn status(refused: Result<Terminal, Error>) -> u16 {
    match refused {
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the terminal is open"),
    }
}

async fn wrong_tokens_get_no_terminal(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    assert_eq!(status(Terminal::connect(&alice, &id, "", &[]).await), 401);
    assert_eq!(
        status(Terminal::open(&server.stranger(), &id, "").await),
        401
    );
    assert_eq!(status(Terminal::open(&server.bob(), &id, "").await), 404);
    for protocols in [
        "moat.terminal.v1",
        "moat.terminal.v1, bearer.wrong",
        "moat.terminal.v1, bearer.",
    ] {
        let headers = [(PROTOCOL, protocols)];
        let refused = Terminal::connect(&alice, &id, "", &headers).await;
        assert_eq!(status(refused), 401, "{protocols}");
    }
    for query in ["?columns=0", "?rows=0", "?columns=70000", "?columns=wide"] {
        assert_eq!(
            status(Terminal::open(&alice, &id, query).await),
            400,
            "{query}"
        );
    }
}

async fn a_large_message_closes_the_terminal(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let mut terminal = Terminal::open(&alice, &id, "").await.unwrap();
    // The server may close the connection before it has read all.
    let _ = terminal
        .socket
        .send(Message::binary(vec![b'x'; (1 << 20) + 1]))
        .await;
    let end = terminal.end().await;
    assert_ne!(end.close.map(|frame| u16::from(frame.code)), Some(1000));
    assert_no_live_execs(&alice, &id).await;
}

/// Waits until no command of the session runs.
pub async fn assert_no_live_execs(client: &Client, session: &str) {
    eventually(20, "the end of all commands", async || {
        let list = client
            .get(&format!("/sessions/{session}/execs"))
            .await
            .expect(200);
        let mut execs = list["execs"].as_array().unwrap().iter();
        execs.all(|one| one["state"] == "ended").then_some(())
    })
    .await;
}

async fn garbage_does_not_reach_the_shell(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    for garbage in [
        "touch /tmp/hacked\r",
        "{\"resize\": {\"columns\": -1, \"rows\": 1e99}}",
        "{\"resize\"",
        "[]",
        "",
    ] {
        let mut terminal = Terminal::open(&alice, &id, "").await.unwrap();
        terminal.send(Message::text(garbage)).await;
        let _ = terminal
            .socket
            .send(Message::binary(b"exit\r".to_vec()))
            .await;
        terminal.end().await;
    }
    assert_no_live_execs(&alice, &id).await;
    assert_eq!(alice.shell(&id, "ls /tmp").await.ok(), "");
}

async fn a_client_that_disappears_frees_its_place(server: &mut Server) {
    server.restart_with_quota("execs = 2").await;
    let alice = server.alice();
    let id = server.session().await;
    for _ in 0..2 {
        let mut terminal = Terminal::open(&alice, &id, "").await.unwrap();
        terminal.enter("echo a''b").await;
        terminal.wait_for("ab").await;
        let held = Terminal::open(&alice, &id, "").await.unwrap();
        assert_eq!(status(Terminal::open(&alice, &id, "").await), 429);
        // No message of the protocol says goodbye.
        drop((terminal, held));
        assert_no_live_execs(&alice, &id).await;
    }
    let mut terminal = Terminal::open(&alice, &id, "").await.unwrap();
    terminal
        .enter("exec sh -c 'echo pid=$$.; exec sleep 600'")
        .await;
    let pid = terminal.read_pid().await;
    drop(terminal);
    assert_gone(&alice, &id, &pid).await;
}

async fn local_processes_have_no_terminal(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    assert_eq!(status(Terminal::open(&alice, &id, "").await), 501);
    assert_eq!(alice.shell(&id, "echo fine").await.ok(), "fine\n");
}

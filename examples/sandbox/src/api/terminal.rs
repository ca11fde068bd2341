//! A terminal in a session, over WebSocket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Query, State};
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use moat::run::{AttachHandle, AttachOptions, Attached, Attachment, Input};
use moat::spec::WindowSize;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::{MissedTickBehavior, interval, timeout};
use utoipa::IntoParams;

use super::auth::{Caller, Segments};
use super::exec::{Running, Supervised};
use crate::command::CommandSpec;
use crate::problem::Problem;
use crate::sandbox::Sandbox;

const PROTOCOL: &str = "moat.terminal.v1";
const SHELL: &str = "/bin/sh";
/// The largest message of a client.
const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// The client answers a ping, so one that has disappeared is noticed.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// The width. Default: 80.
    columns: Option<u16>,
    /// The height. Default: 24.
    rows: Option<u16>,
    /// The program. Default: `/bin/sh`.
    cmd: Option<String>,
}

impl Wanted {
    fn size(&self) -> Result<WindowSize, Problem> {
        let (columns, rows) = (self.columns.unwrap_or(80), self.rows.unwrap_or(24));
        for (name, value) in [("columns", columns), ("rows", rows)] {
            if value == 0 {
                return Err(Problem::field(name, "it must be more than 0"));
            }
        }
        Ok(WindowSize::new(columns, rows))
    }
}

/// A message of the client that is not input.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Control {
    Resize(WindowSize),
}

/// Opens a terminal over WebSocket.
///
/// Binary messages are the bytes of the terminal. A text message to the server sets the size:
/// `{"resize": {"columns": 80, "rows": 24}}`. The last message is the text `{"exit": ...}`. If the
/// client disconnects, the program is killed. A browser offers the subprotocols `moat.terminal.v1`
/// and `bearer.TOKEN`.
#[utoipa::path(get, path = "/sessions/{id}/terminal", params(("id" = String, Path), Wanted), responses(
    (status = 101, description = "the connection is a WebSocket"),
    (status = 400, body = Problem, content_type = "application/problem+json"),
    (status = 404, body = Problem, content_type = "application/problem+json"),
    (status = 409, body = Problem, content_type = "application/problem+json", description = "the session has ended"),
    (status = 429, body = Problem, content_type = "application/problem+json", description = "the quota of commands"),
))]
pub async fn open(
    State(sandbox): State<Arc<Sandbox>>,
    Caller(client): Caller,
    Segments(id): Segments<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let session = sandbox.live_session(&client, &id).await?;
    if sandbox.is_local() {
        return Err(Problem::unsupported("local processes have no terminal"));
    }
    let Query(wanted) = wanted?;
    let upgrade = upgrade.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    let size = wanted.size()?;
    let spec = CommandSpec {
        cmd: vec![wanted.cmd.unwrap_or_else(|| SHELL.into())],
        env: BTreeMap::from([("TERM".into(), "xterm-256color".into())]),
        workdir: None,
        user: None,
        stdin: true,
        terminal: Some(size),
        time_limit: Duration::from_secs(client.quota.exec_seconds),
        silence_limit: None,
        output_limit_bytes: client.quota.output_bytes,
        cancel: session.command_token(),
    };
    let running = Running::start(&sandbox, session, spec).await?;
    // Engines before Docker 23 take no size at the start.
    let options = AttachOptions::new().with_input().lossless().window(size);
    let attachment = running.command.attach(options).await?;
    let upgrade = upgrade
        .protocols([PROTOCOL])
        .max_message_size(MAX_MESSAGE_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| {
        let mut supervised = running.supervise();
        relay(socket, &mut supervised, attachment).await;
        supervised.kill();
    }))
}

/// Relays until the program has ended or the client has disconnected.
async fn relay(socket: WebSocket, supervised: &mut Supervised, mut attachment: Attachment) {
    let (sender, receiver) = socket.split();
    let (input, handle) = (attachment.input(), attachment.handle());
    tokio::select! {
        _ = send_output(sender, supervised, attachment) => {}
        _ = receive_input(receiver, input, &handle) => {}
    }
}

async fn send_output(
    mut socket: SplitSink<WebSocket, Message>,
    supervised: &mut Supervised,
    mut attachment: Attachment,
) -> Result<(), axum::Error> {
    let mut pings = interval(PING_INTERVAL);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let item = tokio::select! {
            item = attachment.next() => item,
            _ = pings.tick() => {
                socket.send(Message::Ping(Vec::new().into())).await?;
                continue;
            }
        };
        match item {
            Some(Ok(Attached::Chunk(chunk))) => socket.send(Message::Binary(chunk.bytes)).await?,
            Some(Ok(_)) => {}
            Some(Err(_)) | None => break,
        }
    }
    let end = match supervised.end().await {
        Ok(end) => json!({"exit": end}),
        Err(error) => json!({"error": {"detail": error.chain()}}),
    };
    socket.send(Message::Text(end.to_string().into())).await?;
    let close = CloseFrame {
        code: close_code::NORMAL,
        reason: "".into(),
    };
    socket.send(Message::Close(Some(close))).await
}

async fn receive_input(
    mut socket: SplitStream<WebSocket>,
    mut input: Option<Input>,
    terminal: &AttachHandle,
) {
    // An answer to a ping is a message.
    while let Ok(Some(Ok(message))) = timeout(SILENCE_TIMEOUT, socket.next()).await {
        match message {
            Message::Binary(bytes) => {
                if let Some(writer) = &mut input
                    && writer.write_all(&bytes).await.is_err()
                {
                    // The program has ended, or ends now.
                    input = None;
                }
            }
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(Control::Resize(size)) => drop(terminal.resize(size).await),
                Err(_) => return,
            },
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}

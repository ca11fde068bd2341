//! Programs that the kubelet runs in a pod, and the frames of their output.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Sink, SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::super::protocol::{HEADER_LEN, Header, Kind, frame};
use super::client::{Client, Failure, encode, with_timeout};
use super::pod::PodRef;

/// The helper's path in both containers of a pod.
pub(crate) const HELPER: &str = "/.moat/bin/moat-helper";
/// The socket on which the wrapper waits for its release.
pub(crate) const GATE: &str = "/.moat/io/gate";
/// The collector's control socket.
pub(crate) const CONTROL: &str = "/.moat/spool/control";
/// The idle time after which a ping is sent.
const PING_AFTER: Duration = Duration::from_secs(30);
/// The maximum length of a program's error text that is kept.
const MAX_STDERR: usize = 1024;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;

/// A container of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    /// The container of the user's command.
    Main,
    /// The container of the collector.
    Collector,
}

impl Container {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Collector => "moat",
        }
    }
}

/// A frame of a program's output.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) payload: Bytes,
}

impl Frame {
    pub(crate) fn kind(&self) -> Kind {
        self.header.kind
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// Returns the message of a [`Kind::Failed`].
    pub(crate) fn failure(&self) -> String {
        let text = self.payload.get(4..).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    /// Returns the number in a payload of 4 bytes.
    pub(crate) fn number(&self) -> Option<i64> {
        let bytes = self.payload.first_chunk::<4>()?;
        Some(i32::from_le_bytes(*bytes).into())
    }

    /// Returns the offset in a payload of 8 bytes.
    pub(crate) fn offset(&self) -> Option<u64> {
        let bytes = self.payload.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes))
    }

    /// Returns the length of the whole frame, in bytes.
    pub(crate) fn len(&self) -> u64 {
        (HEADER_LEN + self.payload.len()) as u64
    }
}

/// The output of a program.
pub(crate) struct Frames {
    socket: BoxStream<'static, Result<Message, SocketError>>,
    buffer: BytesMut,
    stderr: String,
    /// The kubelet's report about the program's end.
    status: Option<String>,
    /// A message has arrived since the last call of [`heard`](Self::heard).
    heard: bool,
}

/// The input of a program.
pub(crate) struct Input {
    socket: Pin<Box<dyn Sink<Message, Error = SocketError> + Send>>,
}

impl Client {
    /// Runs a program in a container of a pod.
    pub(crate) async fn exec(
        &self,
        pod: &PodRef,
        container: Container,
        command: &[&str],
    ) -> Result<(Frames, Input), Failure> {
        let mut path = pod.path();
        path.push_str("/exec?stdin=true&stdout=true&stderr=true&tty=false&container=");
        path.push_str(container.name());
        for word in command {
            path.push_str("&command=");
            path.push_str(&encode(word));
        }
        let (input, output) = self.connect(&path).await?.into_stream().split();
        let frames = Frames {
            socket: output.boxed(),
            buffer: BytesMut::new(),
            stderr: String::new(),
            status: None,
            heard: false,
        };
        let socket = Box::pin(input);
        Ok((frames, Input { socket }))
    }

    /// Connects to the collector of a pod with a request such as `tap 0`.
    pub(crate) async fn control(
        &self,
        pod: &PodRef,
        request: &[&str],
    ) -> Result<(Frames, Input), Failure> {
        let command = [&[HELPER, "ctl", CONTROL], request].concat();
        self.exec(pod, Container::Collector, &command).await
    }

    /// Sends a request to the collector of a pod, and returns the first frame of the answer.
    pub(crate) async fn ask(
        &self,
        pod: &PodRef,
        request: &[&str],
        body: Option<(Kind, &[u8])>,
    ) -> Result<Frame, Failure> {
        with_timeout(async {
            let (mut frames, mut input) = self.control(pod, request).await?;
            if let Some((kind, payload)) = body {
                input.send(kind, payload).await?;
            }
            let answer = frames.next().await?;
            input.close().await;
            answer.ok_or_else(|| frames.cut_off())
        })
        .await
    }
}

impl Frames {
    /// Returns the next frame; none at the end of the output.
    ///
    /// The end does not prove that the output is complete. The future is cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, Failure> {
        loop {
            if let Some(frame) = self.parse()? {
                return Ok(Some(frame));
            }
            let message = self.socket.next().await;
            self.heard = true;
            match message {
                Some(Ok(Message::Binary(bytes))) => self.accept(bytes),
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broken(&error)),
            }
        }
    }

    fn heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    /// Returns the frame at the start of the buffer, if it has arrived.
    fn parse(&mut self) -> Result<Option<Frame>, Failure> {
        let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let Some(header) = Header::decode(*header) else {
            let start = self.buffer[..self.buffer.len().min(200)].escape_ascii();
            return Err(Failure::Broken(format!(
                "the output is not of the helper: {start}"
            )));
        };
        if self.buffer.len() < HEADER_LEN + header.len {
            return Ok(None);
        }
        self.buffer.advance(HEADER_LEN);
        let payload = self.buffer.split_to(header.len).freeze();
        Ok(Some(Frame { header, payload }))
    }

    fn accept(&mut self, bytes: Bytes) {
        let Some((channel, bytes)) = bytes.split_first() else {
            return;
        };
        match *channel {
            STDOUT => self.buffer.extend_from_slice(bytes),
            STDERR if self.stderr.len() < MAX_STDERR => {
                self.stderr.push_str(&String::from_utf8_lossy(bytes));
            }
            STATUS => self.status = message(bytes),
            _ => {}
        }
    }

    /// Returns the failure of an output that ended too early.
    pub(crate) fn cut_off(&self) -> Failure {
        let stderr = self.stderr.trim();
        let reason = match (&self.status, stderr) {
            (Some(status), "") => status.clone(),
            (Some(status), stderr) => format!("{status}: {stderr}"),
            (None, "") => "the connection was closed before the answer".to_owned(),
            (None, stderr) => stderr.to_owned(),
        };
        Failure::Broken(reason)
    }
}

impl Input {
    /// Sends a frame.
    pub(crate) async fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Failure> {
        let mut bytes = Vec::with_capacity(1 + HEADER_LEN + payload.len());
        bytes.push(STDIN);
        bytes.extend_from_slice(&frame(kind, 0, payload));
        let sent = self.socket.send(Message::Binary(bytes.into())).await;
        sent.map_err(|error| broken(&error))
    }

    /// Sends a ping.
    pub(crate) async fn ping(&mut self) -> Result<(), Failure> {
        let sent = self.socket.send(Message::Ping(Bytes::new())).await;
        sent.map_err(|error| broken(&error))
    }

    /// Closes the connection.
    pub(crate) async fn close(&mut self) {
        let _ = self.socket.close().await;
    }
}

/// Reads the next frame, and detects a connection on which nothing arrives any more.
pub(crate) async fn next_alive(
    frames: &mut Frames,
    input: &mut Input,
) -> Result<Option<Frame>, Failure> {
    let mut asked = false;
    loop {
        match tokio::time::timeout(PING_AFTER, frames.next()).await {
            Ok(frame) => return frame,
            Err(_) if asked && !frames.heard() => {
                return Err(Failure::Timeout(2 * PING_AFTER));
            }
            Err(_) => {
                input.ping().await?;
                asked = true;
            }
        }
    }
}

fn broken(error: &SocketError) -> Failure {
    Failure::Broken(crate::error::chain(error))
}

/// Returns the message of a kubelet's report, if it reports a failure.
fn message(status: &[u8]) -> Option<String> {
    let status: serde_json::Value = serde_json::from_slice(status).ok()?;
    let failed = status.get("status")?.as_str()? != "Success";
    let message = status.get("message").and_then(|message| message.as_str());
    failed.then(|| message.unwrap_or("the helper failed").to_owned())
}

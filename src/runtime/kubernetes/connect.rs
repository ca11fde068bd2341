//! Connections to ports of a pod.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf,
};

use super::api::client::Failure;
use super::api::connection::{Frames, Input};
use super::api::pod::PodRef;
use super::commands::spawn;
use super::container::refusal;
use super::protocol::Kind;
use super::shared::Shared;
use crate::error::RuntimeError;
use crate::runtime::Connection;

const OPERATION: &str = "connect to the port";
/// The bytes in each direction that wait for the other side.
const BUFFER_LEN: usize = 64 << 10;

impl Shared {
    /// Connects to a port of a pod, through the collector.
    pub(super) async fn connect(
        &self,
        pod: &PodRef,
        port: u16,
    ) -> Result<Connection, RuntimeError> {
        let port = port.to_string();
        let request = ["dial", port.as_str()];
        let opening = self.client.control(pod, &request);
        let (frames, input, answer) = self.open(pod, OPERATION, opening).await?;
        match answer.kind() {
            Kind::Done => {
                let (connection, side) = pair();
                spawn(forward(side, frames, input));
                Ok(connection)
            }
            _ => Err(refusal(OPERATION, &answer)),
        }
    }
}

/// The runtime's side of a connection.
struct RuntimeSide {
    from_user: DuplexStream,
    to_user: WriteHalf<DuplexStream>,
    /// Ends when the user drops the connection.
    dropped: ReadHalf<DuplexStream>,
    /// The port has ended its direction.
    ended: Arc<AtomicBool>,
}

/// The bytes of a port. Their end is an error, unless the port has ended them.
struct FromPort {
    bytes: DuplexStream,
    ended: Arc<AtomicBool>,
}

impl AsyncRead for FromPort {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.bytes).poll_read(cx, buffer);
        let is_end = buffer.filled().len() == before && buffer.remaining() > 0;
        match read {
            Poll::Ready(Ok(())) if is_end && !self.ended.load(Ordering::Acquire) => {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            read => read,
        }
    }
}

/// Returns the user's side and the runtime's side of a connection.
fn pair() -> (Connection, RuntimeSide) {
    let (bytes, to_user) = tokio::io::duplex(BUFFER_LEN);
    let (output, from_user) = tokio::io::duplex(BUFFER_LEN);
    let (dropped, to_user) = tokio::io::split(to_user);
    let ended = Arc::new(AtomicBool::new(false));
    let input = FromPort {
        bytes,
        ended: Arc::clone(&ended),
    };
    let side = RuntimeSide {
        from_user,
        to_user,
        dropped,
        ended,
    };
    (Connection::new(tokio::io::join(input, output)), side)
}

/// Forwards bytes between the user and the collector, until both directions have ended, one of them
/// is broken, or the user drops the connection. What the user wrote before is sent.
async fn forward(mut side: RuntimeSide, frames: Frames, mut input: Input) {
    let receiving = async {
        tokio::select! {
            ended = receive(frames, side.to_user, &side.ended) => ended,
            _ = side.dropped.read_u8() => Ok(()),
        }
    };
    let _ = tokio::try_join!(send(side.from_user, &mut input), receiving);
    input.close().await;
}

/// Passes the user's bytes on, until they end.
async fn send(mut from_user: DuplexStream, input: &mut Input) -> Result<(), Failure> {
    let mut piece = vec![0; BUFFER_LEN];
    loop {
        match from_user.read(&mut piece).await.unwrap_or(0) {
            0 => return input.send(Kind::Close, &[]).await,
            read => input.send(Kind::Data, &piece[..read]).await?,
        }
    }
}

/// Passes the bytes of the port on, until they end.
async fn receive(
    mut frames: Frames,
    mut to_user: WriteHalf<DuplexStream>,
    ended: &AtomicBool,
) -> Result<(), Failure> {
    let closed = |_| Failure::Broken("the connection was dropped".into());
    loop {
        let frame = frames.next().await?.ok_or_else(|| frames.cut_off())?;
        match frame.kind() {
            Kind::Data => to_user.write_all(&frame.payload).await.map_err(closed)?,
            Kind::Close => {
                ended.store(true, Ordering::Release);
                return to_user.shutdown().await.map_err(closed);
            }
            _ => return Err(Failure::Broken(frame.failure())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_end_of_the_port_is_an_end() {
        for clean in [true, false] {
            let (mut connection, mut side) = pair();
            side.to_user.write_all(b"part").await.unwrap();
            side.ended.store(clean, Ordering::Release);
            drop(side);
            let mut read = Vec::new();
            let end = connection.read_to_end(&mut read).await;
            assert_eq!(read, b"part");
            assert_eq!(end.is_ok(), clean, "{end:?}");
        }
    }

    #[tokio::test]
    async fn a_dropped_connection_is_seen_and_keeps_what_was_written() {
        let (mut connection, mut side) = pair();
        connection.write_all(b"last words").await.unwrap();
        drop(connection);
        assert!(side.dropped.read_u8().await.is_err());
        let mut written = Vec::new();
        side.from_user.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, b"last words");
    }
}

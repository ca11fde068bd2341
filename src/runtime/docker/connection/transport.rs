//! One HTTP exchange on a dedicated connection.
//!
//! The response head is available as soon as it arrives, and the body stays unmodified.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadHalf};
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

use super::call::Call;
use super::dialer::Dialer;
use super::wire::{FULL_READ_BYTES, Wire};
use crate::error::chain;
use crate::runtime::InputWriter;
use crate::runtime::docker::errors::{Failure, Refusal};

/// The maximum timeout for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The size of a new read buffer.
const READ_BUFFER_BYTES: usize = 128 << 10;
/// The maximum size of the body of an error response.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// The maximum size of a body that is read as a whole.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The future that performs the connection's I/O.
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// Sends `call` on a new connection, and waits for the response head.
///
/// The wait takes at most `limit`, of which connecting takes at most 30 s.
/// Dropping the answer closes the connection.
pub(crate) async fn exchange(
    dialer: &Dialer,
    call: Call,
    limit: Duration,
) -> Result<Answer, Failure> {
    let answer = async {
        let connect = limit.min(CONNECT_TIMEOUT);
        let wire = timeout(connect, dialer.open()).await;
        let wire = wire.map_err(|_| Failure::Timeout(connect))??;
        let request = call.request(&dialer.address().authority())?;
        send(wire, request).await
    };
    let answer = timeout(limit, answer).await;
    answer.unwrap_or(Err(Failure::Timeout(limit)))
}

async fn send(wire: Wire, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(wire)).await?;
    let mut driver: Option<Driver> = Some(Box::pin(connection.with_upgrades()));
    let response = {
        let mut response = pin!(sender.send_request(request));
        poll_fn(|cx| {
            // The connection is driven here, and later by the reader, so that no task is spawned.
            let _ = drive(&mut driver, cx);
            response.as_mut().poll(cx)
        })
        .await?
    };
    let status = response.status();
    let headers = response.headers().clone();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let mut upgraded = pin!(hyper::upgrade::on(response));
        let upgraded = poll_fn(|cx| {
            let _ = drive(&mut driver, cx);
            upgraded.as_mut().poll(cx)
        })
        .await?;
        let raw = upgraded.downcast::<TokioIo<Wire>>();
        let raw = raw.map_err(|_| {
            Failure::Broken("the upgraded connection has an unexpected type".into())
        })?;
        let source = Source::Raw(raw.io.into_inner(), raw.read_buf.into());
        return Ok(Answer {
            status,
            headers,
            marks_end: false,
            source,
        });
    }
    let marks_end = marks_end(&response);
    let body = Body {
        incoming: Response::into_body(response),
        driver,
        broken: None,
    };
    let source = Source::Body(Box::new(body));
    Ok(Answer {
        status,
        headers,
        marks_end,
        source,
    })
}

/// Returns true if a body that is cut off can be told from a whole one.
///
/// The body of an answer in HTTP/1.0 ends with the connection. Some proxies send such answers.
fn marks_end(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let is_chunked = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .any(|value| value.as_bytes().to_ascii_lowercase().ends_with(b"chunked"));
    is_chunked || headers.contains_key(header::CONTENT_LENGTH)
}

/// Polls the connection. Returns the error if the connection has just broken.
fn drive(driver: &mut Option<Driver>, cx: &mut Context<'_>) -> Option<hyper::Error> {
    let connection = driver.as_mut()?;
    let Poll::Ready(result) = connection.as_mut().poll(cx) else {
        return None;
    };
    *driver = None;
    result.err()
}

/// A response: its head, and the source of its body.
pub(crate) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    marks_end: bool,
    source: Source,
}

enum Source {
    Body(Box<Body>),
    /// The raw connection, and the bytes already read from it.
    Raw(Wire, BytesMut),
    /// The read half of a raw connection, and the bytes already read from it.
    Half(ReadHalf<Wire>, BytesMut),
}

struct Body {
    incoming: Incoming,
    driver: Option<Driver>,
    /// The connection's error, reported after the data before it.
    broken: Option<hyper::Error>,
}

impl Answer {
    /// Returns the answer, or the refusal if its status is an error.
    pub(crate) async fn error_for_status(self, limit: Duration) -> Result<Self, Failure> {
        if self.status.is_success() || self.status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(self);
        }
        let status = self.status.as_u16();
        // The status is definitive even if the body cannot be read.
        let body = timeout(limit, self.read(MAX_ERROR_BYTES)).await;
        let body = body.unwrap_or(Err(Failure::Timeout(limit)));
        let body = body.unwrap_or_default();
        Err(Failure::Refused(Refusal::from_body(status, &body)))
    }

    /// Returns the raw connection, for writing.
    pub(crate) fn writer(self) -> Result<InputWriter, Failure> {
        match self.source {
            Source::Raw(wire, _) => Ok(Box::pin(wire)),
            _ => Err(not_upgraded()),
        }
    }

    /// Splits the raw connection into its read half and its write half.
    pub(crate) fn split(mut self) -> Result<(Self, InputWriter), Failure> {
        match self.source {
            Source::Raw(wire, buffer) => {
                let (read, write) = tokio::io::split(wire);
                self.source = Source::Half(read, buffer);
                Ok((self, Box::pin(write)))
            }
            _ => Err(not_upgraded()),
        }
    }

    /// Returns the answer, or a refusal if a body that is cut off looks like a whole one.
    pub(crate) fn with_marked_end(self) -> Result<Self, Failure> {
        match self.marks_end {
            true => Ok(self),
            false => {
                let reason = "the answer does not mark its end: a proxy uses HTTP/1.0, or removes \
                              the marks";
                Err(Failure::Refused(Refusal::new(501, reason)))
            }
        }
    }

    /// Returns the value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    /// Returns true for a WebSocket whose server has computed `accept` from the key.
    ///
    /// This proves that the server has read the key.
    pub(crate) fn is_websocket(&self, accept: &str) -> bool {
        let accepted = self.header(header::SEC_WEBSOCKET_ACCEPT.as_str());
        self.is_raw() && accepted == Some(accept.as_bytes())
    }

    /// Returns the next bytes of the body.
    pub(crate) async fn data(&mut self) -> Option<Result<Bytes, Failure>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Reads the whole body, of at most 64 MiB.
    pub(crate) async fn bytes(self, limit: Duration) -> Result<Bytes, Failure> {
        let body = timeout(limit, self.read(MAX_BODY_BYTES)).await;
        body.unwrap_or(Err(Failure::Timeout(limit)))
    }

    async fn read(mut self, max_bytes: usize) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(data) = self.data().await {
            let data = data?;
            if body.len() + data.len() > max_bytes {
                let reason = format!("the response is longer than {max_bytes} bytes");
                return Err(Failure::Broken(reason));
            }
            body.extend_from_slice(&data);
        }
        Ok(body.freeze())
    }

    /// Returns true for a raw connection that is not split.
    pub(crate) fn is_raw(&self) -> bool {
        matches!(self.source, Source::Raw(..))
    }

    /// Removes a raw connection from the I/O driver.
    ///
    /// The next [`poll_data`](Self::poll_data) that finds no data adds it again.
    pub(crate) fn deregister(&mut self) {
        if let Source::Raw(wire, _) = &mut self.source {
            wire.deregister();
        }
    }

    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Failure>>> {
        match &mut self.source {
            Source::Body(body) => body.poll_data(cx),
            Source::Raw(io, buffer) => poll_raw(io, buffer, cx),
            Source::Half(io, buffer) => poll_raw(io, buffer, cx),
        }
    }
}

fn not_upgraded() -> Failure {
    Failure::Broken("the engine did not upgrade the connection, which stdin requires".into())
}

fn poll_raw(
    io: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, Failure>>> {
    if !buffer.is_empty() {
        return Poll::Ready(Some(Ok(buffer.split().freeze())));
    }
    if buffer.capacity() < FULL_READ_BYTES {
        buffer.reserve(READ_BUFFER_BYTES);
    }
    Poll::Ready(match ready!(poll_read_buf(Pin::new(io), cx, buffer)) {
        Ok(0) => None,
        Ok(_) => Some(Ok(buffer.split().freeze())),
        Err(error) => Some(Err(Failure::Broken(chain(&error)))),
    })
}

impl Body {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        let mut driven = false;
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // A frame without data holds trailers.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    return Poll::Ready(Some(Ok(data)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => {
                    let broken = self.broken.take();
                    return Poll::Ready(broken.map(|error| Err(error.into())));
                }
                Poll::Pending if driven => return Poll::Pending,
                Poll::Pending => {
                    if let Some(error) = drive(&mut self.driver, cx) {
                        self.broken = Some(error);
                    }
                    driven = true;
                }
            }
        }
    }
}

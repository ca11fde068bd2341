//! One HTTP exchange on a connection of its own: the response's head is seen when it arrives, and
//! its body is not interpreted.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadHalf};
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

use super::dial::{Dial, Wire};
use super::errors::{Failure, Refusal};
use crate::error::chain;
use crate::runtime::InputWriter;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(30);
/// How much is read at once, at most; and how much at least, if there is so much.
const READ: usize = 128 << 10;
pub(super) const FULL_READ: usize = 64 << 10;
/// The most that is read of an answer that is taken as a whole.
const LARGEST: usize = 64 << 20;

/// What moves a connection on.
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A request: method, path, query and the few headers that some need.
#[derive(Debug)]
pub(super) struct Call {
    method: Method,
    path: String,
    upgrade: bool,
    auth: Option<String>,
    json: Option<String>,
}

impl Call {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            upgrade: false,
            auth: None,
            json: None,
        }
    }

    pub(super) fn post(path: impl Into<String>) -> Self {
        Self {
            method: Method::POST,
            ..Self::get(path)
        }
    }

    /// Adds to the query.
    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        self.path.push(separator);
        self.path.push_str(name);
        self.path.push('=');
        self.path.push_str(&escaped(value, b""));
        self
    }

    /// Adds to the query what is escaped already.
    pub(super) fn literal_query(mut self, name: &str, value: &str) -> Self {
        self = self.query(name, "");
        self.path.push_str(value);
        self
    }

    /// Sends a body.
    pub(super) fn json(mut self, body: &serde_json::Value) -> Self {
        self.json = Some(body.to_string());
        self
    }

    /// Asks for the bare connection in place of a body.
    pub(super) fn upgrade(mut self) -> Self {
        self.upgrade = true;
        self
    }

    /// Sends credentials for an image registry, encoded as the engine wants them.
    pub(super) fn auth(mut self, credentials: Option<String>) -> Self {
        self.auth = credentials;
        self
    }

    fn request(&self, host: &str) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(&self.method)
            .uri(&self.path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, "moat");
        if self.upgrade {
            request = request
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, "tcp");
        }
        if let Some(auth) = &self.auth {
            let mut value = header::HeaderValue::try_from(auth)
                .map_err(|_| Failure::Broken("the credentials fit in no header".into()))?;
            value.set_sensitive(true);
            request = request.header("X-Registry-Auth", value);
        }
        if self.json.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request
            .body(self.json.clone().map(Full::from).unwrap_or_default())
            .map_err(|e| Failure::Broken(e.to_string()))
    }
}

/// `text` for a URL, where the bytes in `plain` need no escape.
pub(super) fn escaped(text: &str, plain: &[u8]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || plain.contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// Sends `call` on a connection of its own. It resolves when the head of the response has arrived,
/// `bound` after it was called at the latest, and 30 s for a connection that does not come about.
///
/// Dropping the answer closes the connection.
pub(super) async fn exchange(dial: &Dial, call: Call, bound: Duration) -> Result<Answer, Failure> {
    let answer = async {
        let wire = timeout(CONNECT, dial.open()).await;
        let wire = wire.map_err(|_| Failure::Timeout(CONNECT))??;
        let request = call.request(&dial.address().authority())?;
        send(wire, request).await
    };
    let answer = timeout(bound, answer).await;
    answer.unwrap_or(Err(Failure::Timeout(bound)))
}

async fn send(wire: Wire, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(wire)).await?;
    let mut driver: Option<Driver> = Some(Box::pin(connection.with_upgrades()));
    let response = {
        let mut response = pin!(sender.send_request(request));
        poll_fn(|cx| {
            // The connection is driven in here, and later by whoever reads: nothing is spawned.
            let _ = drive(&mut driver, cx);
            response.as_mut().poll(cx)
        })
        .await?
    };
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let mut upgraded = pin!(hyper::upgrade::on(response));
        let upgraded = poll_fn(|cx| {
            let _ = drive(&mut driver, cx);
            upgraded.as_mut().poll(cx)
        })
        .await?;
        let bare = upgraded.downcast::<TokioIo<Wire>>();
        let bare = bare.map_err(|_| Failure::Broken("another connection was upgraded".into()))?;
        let source = Source::Raw(bare.io.into_inner(), bare.read_buf.into());
        return Ok(Answer { status, source });
    }
    let body = Body {
        incoming: Response::into_body(response),
        driver,
        broken: None,
    };
    let source = Source::Body(Box::new(body));
    Ok(Answer { status, source })
}

/// Moves the connection on; `Some`: it has broken just now.
fn drive(driver: &mut Option<Driver>, cx: &mut Context<'_>) -> Option<hyper::Error> {
    let connection = driver.as_mut()?;
    let Poll::Ready(result) = connection.as_mut().poll(cx) else {
        return None;
    };
    *driver = None;
    result.err()
}

/// The answer to a call: the head has arrived, the body may be to come.
pub(super) struct Answer {
    status: StatusCode,
    source: Source,
}

enum Source {
    Body(Box<Body>),
    /// The bare connection, and what was read of it already.
    Raw(Wire, BytesMut),
    /// The same, of which another one has the half that is written to.
    Half(ReadHalf<Wire>, BytesMut),
}

struct Body {
    incoming: Incoming,
    driver: Option<Driver>,
    /// How the connection broke; told after what had arrived before it did.
    broken: Option<hyper::Error>,
}

impl Answer {
    /// The answer, if it is no error.
    pub(super) async fn accepted(self, bound: Duration) -> Result<Self, Failure> {
        let good = self.status.is_success() || self.status == StatusCode::SWITCHING_PROTOCOLS;
        if good {
            return Ok(self);
        }
        let status = self.status.as_u16();
        // Where its text cannot be read, the status is a fact all the same.
        let body = timeout(bound, self.read(64 << 10)).await;
        let body = body.unwrap_or(Err(Failure::Timeout(bound)));
        let body = body.unwrap_or_default();
        Err(Failure::Refused(Refusal::from_body(status, &body)))
    }

    /// The bare connection, to be written to.
    pub(super) fn writer(self) -> Result<InputWriter, Failure> {
        match self.source {
            Source::Raw(io, _) => Ok(Box::pin(io)),
            _ => Err(not_bare()),
        }
    }

    /// The bare connection in its two halves.
    pub(super) fn split(mut self) -> Result<(Self, InputWriter), Failure> {
        match self.source {
            Source::Raw(io, buffer) => {
                let (read, write) = tokio::io::split(io);
                self.source = Source::Half(read, buffer);
                Ok((self, Box::pin(write)))
            }
            _ => Err(not_bare()),
        }
    }

    /// The next bytes of the body.
    pub(super) async fn data(&mut self) -> Option<Result<Bytes, Failure>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// The whole body, of which an answer is expected that is not larger than it can be.
    pub(super) async fn whole(self, bound: Duration) -> Result<Bytes, Failure> {
        let whole = timeout(bound, self.read(LARGEST)).await;
        whole.unwrap_or(Err(Failure::Timeout(bound)))
    }

    async fn read(mut self, most: usize) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(data) = self.data().await {
            let data = data?;
            if body.len() + data.len() > most {
                let reason = format!("the answer is longer than {most} bytes");
                return Err(Failure::Broken(reason));
            }
            body.extend_from_slice(&data);
        }
        Ok(body.freeze())
    }

    /// Whether it is the bare connection, with nobody that writes to it.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self.source, Source::Raw(..))
    }

    /// Has nobody woken by what arrives on the bare connection, until [`poll_data`](Self::poll_data)
    /// is called again.
    pub(super) fn rest(&mut self) {
        if let Source::Raw(wire, _) = &mut self.source {
            wire.rest();
        }
    }

    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Failure>>> {
        match &mut self.source {
            Source::Body(body) => body.poll_data(cx),
            Source::Raw(io, buffer) => poll_bare(io, buffer, cx),
            Source::Half(io, buffer) => poll_bare(io, buffer, cx),
        }
    }
}

fn not_bare() -> Failure {
    Failure::Broken("it did not give the bare connection that input needs".into())
}

fn poll_bare(
    io: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, Failure>>> {
    if !buffer.is_empty() {
        return Poll::Ready(Some(Ok(buffer.split().freeze())));
    }
    if buffer.capacity() < FULL_READ {
        buffer.reserve(READ);
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
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => return Poll::Ready(Some(Ok(data))),
                    // Trailers are no data.
                    Err(_) => continue,
                },
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

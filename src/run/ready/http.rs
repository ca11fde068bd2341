//! An HTTP response that a run gives.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{self, Either};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::error::chain;
use crate::run::Run;
use crate::run::port::Route;
#[cfg(feature = "tls")]
use crate::run::ready::HttpTls;
use crate::runtime::Connection;
use crate::spec::InvalidSpec;

/// The timeout of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The length of a body that is searched, in bytes.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// An HTTP request, and the response to wait for: see [`Ready::http_with`].
///
/// The request is `GET` in HTTP/1.1, through [`Run::connect`]. It is repeated until the response
/// meets all requirements. A request without a response after 10 s has failed. Redirects are not
/// followed.
///
/// ```
/// use moat::Ready;
/// use moat::run::HttpCheck;
///
/// let check = HttpCheck::new(9200, "/_cluster/health")
///     .header("Authorization", "Basic ZWxhc3RpYzp0ZXN0")
///     .statuses(200..=399)
///     .body_contains("green");
/// let ready = Ready::http_with(check);
/// ```
///
/// [`Ready::http_with`]: crate::run::ready::Ready::http_with
/// [`Run::connect`]: crate::run::Run::connect
#[derive(Clone)]
pub struct HttpCheck {
    port: u16,
    path: String,
    network: Option<String>,
    headers: Vec<(String, String)>,
    statuses: RangeInclusive<u16>,
    body: Option<String>,
    #[cfg(feature = "tls")]
    tls: Option<HttpTls>,
}

/// Without the values of headers, which may be secrets.
impl fmt::Debug for HttpCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("HttpCheck")
            .field("port", &self.port)
            .field("path", &self.path)
            .field("network", &self.network)
            .field("headers", &headers)
            .field("statuses", &self.statuses)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

impl HttpCheck {
    /// Requests `path`, such as `/health?full=1`, from TCP port `port` of the container.
    pub fn new(port: u16, path: impl Into<String>) -> Self {
        Self {
            port,
            path: path.into(),
            network: None,
            headers: Vec::new(),
            statuses: 200..=299,
            body: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Connects to the address of [`Run::port_on`](crate::run::Run::port_on) in `network`.
    ///
    /// Default: through [`Run::connect`](crate::run::Run::connect).
    pub fn on_network(mut self, network: impl Into<String>) -> Self {
        self.network = Some(network.into());
        self
    }

    /// Adds a header to the request. No error or `Debug` output contains the value.
    ///
    /// Default: `Host: localhost` with the port of the container, and `Connection: close`. A header
    /// with one of these names replaces it.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Requires this status. Default: 200 to 299.
    pub fn status(self, status: u16) -> Self {
        self.statuses(status..=status)
    }

    /// Requires a status in this range. Default: 200 to 299.
    pub fn statuses(mut self, statuses: RangeInclusive<u16>) -> Self {
        self.statuses = statuses;
        self
    }

    /// Requires `text` in the first 1 MiB of the body. Default: the body is not read.
    pub fn body_contains(mut self, text: impl Into<String>) -> Self {
        self.body = Some(text.into());
        self
    }

    /// Sends the request over TLS. Needs the feature `tls`. Default: without TLS.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: HttpTls) -> Self {
        self.tls = Some(tls);
        self
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn network(&self) -> Option<&str> {
        self.network.as_deref()
    }

    pub(super) fn validate(&self) -> Result<(), InvalidSpec> {
        if self.statuses.is_empty() {
            return Err(InvalidSpec::new("statuses", "the range is empty"));
        }
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            tls.validate()?;
        }
        self.request().map(drop)
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, InvalidSpec> {
        let path = &self.path;
        let invalid = |reason: String| InvalidSpec::new("path", format!("{path:?} {reason}"));
        if !path.starts_with('/') {
            return Err(invalid("does not start with a slash".into()));
        }
        let request = Request::get(path).body(Empty::new());
        let mut request = request.map_err(|error| invalid(format!("is invalid: {error}")))?;
        let mut headers = HeaderMap::new();
        for (name, text) in &self.headers {
            let invalid = |reason| InvalidSpec::new("header", format!("{name:?} {reason}"));
            let value = HeaderValue::from_str(text);
            let mut value = value.map_err(|_| invalid("has an invalid value"))?;
            value.set_sensitive(true);
            let name = HeaderName::try_from(name).map_err(|_| invalid("is not a header"))?;
            headers.append(name, value);
        }
        let host = HeaderValue::try_from(format!("localhost:{}", self.port));
        let host = host.map_err(|error| InvalidSpec::new("port", error.to_string()))?;
        headers.entry(header::HOST).or_insert(host);
        let close = HeaderValue::from_static("close");
        headers.entry(header::CONNECTION).or_insert(close);
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Sends the request, and returns the reason if the response does not meet the requirements.
    async fn exchange(&self, connection: Connection) -> Result<(), String> {
        #[cfg(feature = "tls")]
        let connection = match &self.tls {
            Some(tls) => tls.wrap(connection).await?,
            None => connection,
        };
        let request = self.request().map_err(|error| error.to_string())?;
        let broken = |error: hyper::Error| chain(&error);
        let handshake = http1::handshake(TokioIo::new(connection));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        let exchange = Box::pin(async {
            let response = sender.send_request(request).await.map_err(broken)?;
            self.check(response).await
        });
        // The connection is driven here, so that no task is spawned.
        match future::select(exchange, Box::pin(connection)).await {
            Either::Left((checked, _)) => checked,
            Either::Right((_, exchange)) => exchange.await,
        }
    }

    async fn check(&self, response: Response<Incoming>) -> Result<(), String> {
        let status = response.status();
        if !self.statuses.contains(&status.as_u16()) {
            return Err(format!("the status is {status}"));
        }
        let Some(text) = &self.body else {
            return Ok(());
        };
        let mut incoming = response.into_body();
        let mut body = Vec::new();
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|error| chain(&error))?;
            let data = frame.into_data().unwrap_or_default();
            let kept = data.len().min(MAX_BODY_BYTES - body.len());
            body.extend_from_slice(&data[..kept]);
            if memchr::memmem::find(&body, text.as_bytes()).is_some() {
                return Ok(());
            }
            if body.len() == MAX_BODY_BYTES {
                break;
            }
        }
        Err(format!(
            "the body, {} bytes, does not contain {text:?}",
            body.len()
        ))
    }
}

/// Completes "before ...".
impl fmt::Display for HttpCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, path, .. } = self;
        let (first, last) = (self.statuses.start(), self.statuses.end());
        write!(f, "GET {path}")?;
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            f.write_str(" over TLS")?;
        }
        write!(f, " on port {port} returned status {first}")?;
        if first != last {
            write!(f, " to {last}")?;
        }
        match &self.body {
            Some(text) => write!(f, " and a body with {text:?}"),
            None => Ok(()),
        }
    }
}

impl Run {
    /// Sends the request once, and returns the reason if the run is not ready.
    pub(super) async fn probe_http(&self, check: &HttpCheck, route: &Route) -> Result<(), String> {
        let exchange = async {
            let connection = self.connect_by(route, check.port).await;
            let connection = connection.map_err(|error| error.to_string())?;
            let checked = check.exchange(connection).await;
            checked.map_err(|failure| format!("{route}: {failure}"))
        };
        let checked = timeout(REQUEST_TIMEOUT, exchange).await;
        checked.unwrap_or_else(|_| {
            Err(format!(
                "{route}: no response within {} s",
                REQUEST_TIMEOUT.as_secs()
            ))
        })
    }
}

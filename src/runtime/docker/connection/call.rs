//! A request to an engine, built before there is a connection.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, header};

use crate::runtime::docker::errors::Failure;

/// The protocol that follows the response head.
#[derive(Debug)]
enum Upgrade {
    /// A raw byte stream.
    Raw,
    /// A WebSocket, with this key.
    WebSocket(String),
}

/// A request: method, path with query, and the optional headers and body.
#[derive(Debug)]
pub(crate) struct Call {
    method: Method,
    path: String,
    upgrade: Option<Upgrade>,
    auth: Option<String>,
    json: Option<String>,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            upgrade: None,
            auth: None,
            json: None,
        }
    }

    pub(crate) fn head(path: impl Into<String>) -> Self {
        Self {
            method: Method::HEAD,
            ..Self::get(path)
        }
    }

    pub(crate) fn post(path: impl Into<String>) -> Self {
        Self {
            method: Method::POST,
            ..Self::get(path)
        }
    }

    pub(crate) fn delete(path: impl Into<String>) -> Self {
        Self {
            method: Method::DELETE,
            ..Self::get(path)
        }
    }

    /// Adds a query parameter.
    pub(crate) fn query(mut self, name: &str, value: &str) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        self.path.push(separator);
        self.path.push_str(name);
        self.path.push('=');
        self.path.push_str(&escaped(value, b""));
        self
    }

    /// Adds a query parameter whose value is already escaped.
    pub(crate) fn escaped_query(mut self, name: &str, value: &str) -> Self {
        self = self.query(name, "");
        self.path.push_str(value);
        self
    }

    /// Sends a JSON body.
    pub(crate) fn json(mut self, body: &serde_json::Value) -> Self {
        self.json = Some(body.to_string());
        self
    }

    /// Asks the engine to turn the connection into a raw byte stream.
    pub(crate) fn upgrade(mut self) -> Self {
        self.upgrade = Some(Upgrade::Raw);
        self
    }

    /// Asks the engine to turn the connection into a WebSocket.
    ///
    /// The key must be new. The engine proves with it that it has read the request.
    pub(crate) fn websocket(mut self, key: String) -> Self {
        self.upgrade = Some(Upgrade::WebSocket(key));
        self
    }

    /// Sends registry credentials, which are encoded for the header `X-Registry-Auth`.
    pub(crate) fn auth(mut self, credentials: Option<String>) -> Self {
        self.auth = credentials;
        self
    }

    /// Builds the HTTP request. `host` is the value of the `Host` header.
    pub(super) fn request(&self, host: &str) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(&self.method)
            .uri(&self.path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, "moat");
        if let Some(upgrade) = &self.upgrade {
            request = request.header(header::CONNECTION, "Upgrade");
            request = match upgrade {
                Upgrade::Raw => request.header(header::UPGRADE, "tcp"),
                Upgrade::WebSocket(key) => request
                    .header(header::UPGRADE, "websocket")
                    .header(header::SEC_WEBSOCKET_VERSION, "13")
                    .header(header::SEC_WEBSOCKET_KEY, key),
            };
        }
        if let Some(auth) = &self.auth {
            let mut value = header::HeaderValue::try_from(auth)
                .map_err(|_| Failure::Broken("the credentials do not fit in a header".into()))?;
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

/// Percent-encodes `text` for a URL, except for unreserved characters and the bytes in `plain`.
pub(crate) fn escaped(text: &str, plain: &[u8]) -> String {
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

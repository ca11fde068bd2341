//! Requests to the API server: timeouts, and the meaning of its errors.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Method, Request, StatusCode};
use kube::core::Status;
use kube::core::response::StatusSummary;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::rights;
use crate::error::RuntimeError;

/// Timeout of a call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The number of requests in progress. A server refuses more than a few hundred, and each has a
/// connection, which stays open for a while.
const MAX_REQUESTS: usize = 64;
/// Pause before a request that the server refused because it is busy, unless it names a pause.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Pause before a request that the server refused is sent again.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// The maximum length of an answer of another server that is kept, in characters.
const MAX_FOREIGN: usize = 200;

/// A connection to the API server, and the namespace of new pods.
#[derive(Clone)]
pub(crate) struct Client {
    kube: kube::Client,
    requests: Arc<Semaphore>,
    pub(crate) address: String,
    pub(crate) namespace: String,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("address", &self.address)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// A request that failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server did not answer.
    Unreachable(String),
    /// The server did not answer in time.
    Timeout(Duration),
    /// The server answered with an error.
    Refused(Box<Status>),
    /// The connection broke, or the answer was invalid.
    Broken(String),
}

impl Failure {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 404)
    }

    pub(crate) fn is_invalid(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 422)
    }

    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 409)
    }

    /// Returns true if a call has used its time, so that no other may follow it.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout(_))
    }

    pub(crate) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code == 403)
    }

    /// Makes the refusal of a request about a pod inconclusive: the right may be granted again.
    pub(crate) fn about_pod(self) -> Self {
        match self {
            Self::Refused(status) if status.code == 403 => Self::Unreachable(status.message),
            failure => failure,
        }
    }

    /// Returns a definitive answer with a status code of HTTP.
    pub(crate) fn refused(code: u16, reason: String) -> Self {
        let mut status = Status::failure(&reason, "");
        status.code = code;
        Self::Refused(Box::new(status))
    }

    /// Returns the failure of an answer that is not of Kubernetes, such as the page of a proxy.
    ///
    /// Such an answer proves nothing, whatever its status code. A kubelet that was restarted
    /// answers 404 for pods that it does not know yet, for example.
    fn foreign(code: StatusCode, headers: &HeaderMap, text: &str) -> Self {
        let mut reason = format!("the answer {code} is not of Kubernetes");
        if let Some(target) = headers.get(LOCATION) {
            reason.push_str(&format!(", and redirects to {target:?}"));
        }
        let words: Vec<_> = text.split_whitespace().collect();
        if !words.is_empty() {
            let start: String = words.join(" ").chars().take(MAX_FOREIGN).collect();
            reason.push_str(&format!(": {start}"));
        }
        Self::Unreachable(reason)
    }

    /// Returns the error of `operation`, which is inconclusive even if the server answered.
    pub(crate) fn inconclusive(self, operation: &'static str, address: &str) -> RuntimeError {
        match self.error(operation, address) {
            error if error.is_definitive() => RuntimeError::Broken {
                operation,
                reason: error.to_string(),
            },
            error => error,
        }
    }

    /// Returns the error of `operation`.
    ///
    /// Credentials that are refused say nothing about a pod: they may be renewed. The same holds
    /// for an internal error of the server.
    pub(crate) fn error(self, operation: &'static str, address: &str) -> RuntimeError {
        let address = address.to_owned();
        match self {
            Self::Unreachable(reason) => RuntimeError::Unavailable { address, reason },
            Self::Timeout(after) => RuntimeError::Timeout { operation, after },
            Self::Broken(reason) => RuntimeError::Broken { operation, reason },
            Self::Refused(status) => {
                let reason = status.message.clone();
                match status.code {
                    404 => RuntimeError::NotFound { operation, reason },
                    409 => RuntimeError::Conflict { operation, reason },
                    400 | 403 | 405 | 413 | 422 => RuntimeError::Rejected { operation, reason },
                    _ => RuntimeError::Unavailable { address, reason },
                }
            }
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if is_genuine(&status) => Self::Refused(status),
            kube::Error::Api(status) => {
                let code = StatusCode::from_u16(status.code);
                let code = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                Self::foreign(code, &HeaderMap::new(), &status.message)
            }
            error @ (kube::Error::SerdeError(_)
            | kube::Error::FromUtf8(_)
            | kube::Error::ReadEvents(_)
            | kube::Error::LinesCodecMaxLineLengthExceeded) => {
                Self::Broken(crate::error::chain(&error))
            }
            error => Self::Unreachable(crate::error::chain(&error)),
        }
    }
}

/// Returns true if the server sent this status, and kube did not make it from another answer.
fn is_genuine(status: &Status) -> bool {
    let parsed = status.reason != "Failed to parse error data";
    parsed && status.status == Some(StatusSummary::Failure) && status.code != 0
}

impl Client {
    pub(crate) fn new(kube: kube::Client, address: String, namespace: String) -> Self {
        Self {
            kube,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            address,
            namespace,
        }
    }

    /// Waits until another request may be sent.
    async fn permit(&self) -> Result<SemaphorePermit<'_>, Failure> {
        let permit = self.requests.acquire().await;
        permit.map_err(|error| Failure::Broken(error.to_string()))
    }

    /// Returns the same connection with another namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            ..self.clone()
        }
    }

    /// Returns the path of a resource of the namespace, such as `pods`.
    pub(crate) fn path(&self, resource: &str) -> String {
        format!("/api/v1/namespaces/{}/{resource}", self.namespace)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
    ) -> Result<T, Failure> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Merges a patch into an object (RFC 7386).
    pub(crate) async fn patch(&self, path: &str, patch: &Value) -> Result<(), Failure> {
        let patched: Value = self.call(Method::PATCH, path, Some(patch)).await?;
        drop(patched);
        Ok(())
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> Result<(), Failure> {
        let deleted: Value = self.call(Method::DELETE, path, Some(options)).await?;
        drop(deleted);
        Ok(())
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        with_timeout(self.confirm_refusal(|| self.exchange(method.clone(), path, body))).await
    }

    /// Sends a request, and again while the server is too busy for it.
    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        loop {
            let request = request(method.clone(), path, body)?.map(kube::client::Body::from);
            let permit = self.permit().await?;
            let (head, body) = self.kube.send(request).await?.into_parts();
            let body = body.collect_bytes().await?;
            drop(permit);
            match head.status {
                StatusCode::TOO_MANY_REQUESTS => {
                    tokio::time::sleep(pause(&head.headers)).await;
                }
                code => return answer(code, &head.headers, &body),
            }
        }
    }

    /// Sends a request, and again if the refusal is of a server that may have been starting.
    ///
    /// A server that starts refuses every request until it has read the rights of its users: for
    /// 2 s on 1.20. It then refuses reviews as well, which every user may otherwise create. So a
    /// refusal is definitive only after a review, and a pause in which the rest is read.
    async fn confirm_refusal<T, F>(&self, send: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let status = match send().await {
            Err(Failure::Refused(status)) if status.code == 403 => status,
            answer => return answer,
        };
        let review = rights::review_of_pods(&self.namespace);
        let reviewed = self.exchange::<Value>(Method::POST, rights::REVIEWS, Some(&review));
        if reviewed.await.is_err() {
            return Err(Failure::Unreachable(format!(
                "the API server does not know the rights of its users yet: {}",
                status.message
            )));
        }
        tokio::time::sleep(REFUSAL_PAUSE).await;
        send().await
    }

    /// Opens a stream of events at `path`.
    pub(crate) async fn events<T>(
        &self,
        path: &str,
    ) -> Result<
        impl futures::Stream<Item = Result<kube::core::WatchEvent<T>, Failure>> + Send + use<T>,
        Failure,
    >
    where
        T: Clone + DeserializeOwned + Send + 'static,
    {
        use futures::StreamExt;
        let opened = self
            .kube
            .request_events::<T>(request(Method::GET, path, None)?);
        let events = with_timeout(async { opened.await.map_err(Failure::from) }).await?;
        Ok(StreamExt::map(events, |event: Result<_, kube::Error>| {
            event.map_err(Failure::from)
        }))
    }

    /// Opens the text at `path`, which may have no end yet.
    pub(crate) async fn text(
        &self,
        path: &str,
    ) -> Result<impl futures::io::AsyncBufRead + Send + use<>, Failure> {
        let request = request(Method::GET, path, None)?;
        with_timeout(async {
            let _permit = self.permit().await?;
            self.kube
                .request_stream(request)
                .await
                .map_err(Failure::from)
        })
        .await
    }

    /// Opens a WebSocket at `path`.
    pub(crate) async fn connect(&self, path: &str) -> Result<kube::client::Connection, Failure> {
        let open = || async {
            let request = request(Method::GET, path, None)?;
            let _permit = self.permit().await?;
            self.kube.connect(request).await.map_err(Failure::from)
        };
        with_timeout(self.confirm_refusal(open)).await
    }
}

fn request(method: Method, path: &str, body: Option<&Value>) -> Result<Request<Vec<u8>>, Failure> {
    let json = body.map(Value::to_string).unwrap_or_default();
    let content_type = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, content_type)
        .body(json.into_bytes())
        .map_err(|error| Failure::Broken(error.to_string()))
}

fn answer<T: DeserializeOwned>(
    code: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<T, Failure> {
    let foreign = || Failure::foreign(code, headers, &String::from_utf8_lossy(body));
    if code.is_success() {
        return serde_json::from_slice(body).map_err(|_| foreign());
    }
    match serde_json::from_slice::<Status>(body) {
        Ok(status) if is_genuine(&status) => Err(Failure::Refused(Box::new(status))),
        _ => Err(foreign()),
    }
}

/// Returns the pause that a busy server asks for.
fn pause(headers: &HeaderMap) -> Duration {
    let seconds = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .filter(|seconds| *seconds > 0);
    seconds.map_or(BUSY_PAUSE, Duration::from_secs)
}

pub(crate) async fn with_timeout<T>(
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Failure::Timeout(CALL_TIMEOUT)),
    }
}

/// Encodes the value of a query parameter.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            byte => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

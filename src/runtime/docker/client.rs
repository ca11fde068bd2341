//! The client of one engine, and the paths and timeouts of its calls.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::connection::{Address, Answer, Call, Dialer, exchange};
use super::errors::{Failure, Refusal};
use super::exec::RepeatedSizes;
use super::inspect::Info;
use crate::error::RuntimeError;
use crate::runtime::EngineInfo;
use crate::spec::ContainerId;

/// The default timeout of a call, unless its documentation states another.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A timeout of one year. moat sets the timeouts, not bollard.
pub(super) const NO_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The operation of the first call and of the probe, as errors name it.
const VERSION_OPERATION: &str = "report its version";
/// The maximum length of the quote of another server's response, in words.
const MAX_QUOTED_WORDS: usize = 30;

/// A client of one engine.
///
/// Calls use bollard, or connections that moat opens: see the documentation of
/// [`runtime::docker`](super).
#[derive(Clone)]
pub(super) struct Client {
    pub(super) bollard: bollard::Docker,
    pub(super) dialer: Dialer,
    /// The address, as errors show it.
    pub(super) address: String,
    pub(super) engine: EngineInfo,
    pub(super) podman: bool,
    /// The timeout of a call, unless its documentation states another.
    pub(super) timeout: Duration,
    pub(super) repeated_sizes: RepeatedSizes,
}

impl Client {
    /// Connects once without and once with bollard, and negotiates the API version.
    ///
    /// The engine must answer within `limit`.
    pub(super) async fn connect(address: Address, limit: Duration) -> Result<Self, RuntimeError> {
        let dialer = Dialer::new(address)?;
        let bollard = dialer.client(NO_TIMEOUT)?;
        let address = dialer.address().to_string();
        let versions = timeout(limit, async {
            send(&dialer, Call::get("/_ping"), limit).await?;
            let bollard = bollard.negotiate_version().await?;
            let version = bollard.version().await?;
            Ok((bollard, version))
        });
        let versions = versions.await.unwrap_or(Err(Failure::Timeout(limit)));
        let (bollard, version) = versions
            .map_err(|failure| not_an_engine(failure).error(VERSION_OPERATION, &address))?;
        let components = version.components.unwrap_or_default();
        let podman = components.iter().any(|c| c.name == "Podman Engine");
        let name = if podman {
            "Podman Engine"
        } else {
            "Docker Engine"
        };
        let mut engine = EngineInfo::new(name, version.version.unwrap_or_default());
        engine.api = bollard.client_version().to_string();
        Ok(Self {
            bollard,
            dialer,
            address,
            engine,
            podman,
            timeout: CALL_TIMEOUT,
            repeated_sizes: RepeatedSizes::default(),
        })
    }

    /// Reads the engine's current version and its id.
    pub(super) async fn engine_info(&self) -> Result<EngineInfo, RuntimeError> {
        let info = self.with_timeout(async {
            let info = self.info().await?;
            let version = match info.version() {
                Some(version) => version,
                None => self.bollard.version().await?.version.unwrap_or_default(),
            };
            Ok((version, info.engine_id()))
        });
        let (version, id) = info.await.map_err(self.error(VERSION_OPERATION))?;
        // The engine may have been upgraded since the connection was made.
        Ok(EngineInfo {
            version,
            id,
            ..self.engine.clone()
        })
    }

    /// Reads the engine's version and id: empty for Podman, whose id differs in each response.
    async fn info(&self) -> Result<Info, Failure> {
        if self.podman {
            return Ok(Info::default());
        }
        match self.fetch(Call::get(self.path("/info"))).await {
            Ok(json) => Ok(Info::parse(&json)),
            // Filtering proxies refuse this call.
            Err(Failure::Refused(_)) => Ok(Info::default()),
            Err(failure) => Err(failure),
        }
    }

    /// Returns the major and minor number of the negotiated API version.
    ///
    /// A version in another form counts as the oldest.
    pub(super) fn api_version(&self) -> (u32, u32) {
        let numbers = self.engine.api.split_once('.');
        let parsed =
            numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        parsed.unwrap_or((0, 0))
    }

    /// Returns the path of a call, with the negotiated API version.
    pub(super) fn path(&self, path: &str) -> String {
        format!("/v{}{path}", self.engine.api)
    }

    /// Returns the path of a call about a container.
    pub(super) fn container_path(
        &self,
        container: &ContainerId,
        path: &str,
    ) -> Result<String, Failure> {
        Ok(self.path(&format!("/containers/{}{path}", path_segment(container)?)))
    }

    /// Returns a function that adds the operation and the engine's address to a failure.
    pub(super) fn error(&self, operation: &'static str) -> impl FnOnce(Failure) -> RuntimeError {
        let address = self.address.clone();
        move |failure| failure.error(operation, &address)
    }

    /// Sends a call, and returns its answer once the response head has arrived.
    ///
    /// An error status is a [`Failure::Refused`].
    pub(super) async fn send(&self, call: Call) -> Result<Answer, Failure> {
        send(&self.dialer, call, self.timeout).await
    }

    /// Sends a call, and returns the whole response body.
    pub(super) async fn fetch(&self, call: Call) -> Result<Bytes, Failure> {
        self.with_timeout(async { self.send(call).await?.bytes(self.timeout).await })
            .await
    }

    /// Awaits a call through bollard, for at most the timeout of a call.
    pub(super) async fn bollard_call<T>(
        &self,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, Failure> {
        self.with_timeout(async { Ok(call.await?) }).await
    }

    /// Awaits one or more calls, for at most the timeout of one call in total.
    pub(super) async fn with_timeout<T>(
        &self,
        calls: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let result = timeout(self.timeout, calls).await;
        result.unwrap_or(Err(Failure::Timeout(self.timeout)))
    }

    /// Awaits the calls of one operation, for at most the timeout of one call in total.
    pub(super) async fn within_timeout<T>(
        &self,
        operation: &'static str,
        calls: impl Future<Output = Result<T, RuntimeError>>,
    ) -> Result<T, RuntimeError> {
        let after = self.timeout;
        let result = timeout(after, calls).await;
        result.unwrap_or(Err(RuntimeError::Timeout { operation, after }))
    }
}

async fn send(dialer: &Dialer, call: Call, limit: Duration) -> Result<Answer, Failure> {
    let answer = exchange(dialer, call, limit).await?;
    answer.error_for_status(limit).await
}

/// Converts a failure of the first call: the listener may not be an engine.
fn not_an_engine(failure: Failure) -> Failure {
    match failure {
        Failure::Refused(refusal) => {
            let words = refusal.message.split_whitespace();
            let words: Vec<_> = words.take(MAX_QUOTED_WORDS).collect();
            Failure::Unreachable(format!(
                "the server at this address is not an engine: it responds with HTTP status {}: {}",
                refusal.status,
                words.join(" ")
            ))
        }
        Failure::Broken(reason) => Failure::Unreachable(format!(
            "the server at this address does not respond as an engine does: {reason}: is the \
             scheme right, and, with TLS, does the server accept cert.pem and key.pem?"
        )),
        // The error of the operation would not name the address.
        Failure::Timeout(limit) => {
            Failure::Unreachable(format!("it did not answer within {} s", limit.as_secs()))
        }
        Failure::Unreachable(reason) => Failure::Unreachable(reason),
    }
}

/// Returns the id if it is safe as a segment of a URL's path.
///
/// Other characters could change which call the URL means.
pub(super) fn path_segment(container: &ContainerId) -> Result<&str, Failure> {
    let id = container.as_str();
    let valid = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(valid) {
        return Ok(id);
    }
    let message = format!("{id:?} is not a valid container id");
    Err(Failure::Refused(Refusal::new(400, &message)))
}

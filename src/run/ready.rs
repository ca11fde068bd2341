//! Readiness checks and port lookup.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

use crate::error::{Error, Result, RuntimeError};
use crate::outcome::PerStream;
use crate::run::Run;
use crate::run::attach::{AttachOptions, Attached};
use crate::runtime::{Connection, ContainerStatus, Health, Inspection};
use crate::spec::Protocol;

/// The interval between checks of a port or a health check.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The time that a connection must stay open.
///
/// Docker's proxy accepts a connection before it knows whether a process listens in the
/// container. If none does, it closes the connection, usually within a millisecond.
const MIN_CONNECTION_TIME: Duration = Duration::from_millis(200);
/// The number of output lines in an error.
const LAST_LINES: usize = 20;

/// A readiness check, for [`Run::wait_ready`] or [`Manager::service`].
///
/// ```
/// use moat::Ready;
/// use std::time::Duration;
///
/// let ready = [
///     Ready::line("ready to accept connections"),
///     Ready::port(5432).within(Duration::from_secs(20)),
/// ];
/// ```
///
/// There is no check of an HTTP response. Poll the published port instead, with any HTTP client:
///
/// ```ignore
/// let url = format!("http://{}/health", run.port(8080).await?);
/// while !reqwest::get(&url).await.is_ok_and(|response| response.status().is_success()) {
///     tokio::time::sleep(Duration::from_millis(100)).await;
/// }
/// ```
///
/// [`Manager::service`]: crate::manager::Manager::service
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    condition: Condition,
    timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Line(String),
    Port { network: Option<String>, port: u16 },
    Healthy,
}

impl Ready {
    /// Ready once the run has printed `text`, on any stream, since its start.
    ///
    /// The line need not be complete.
    pub fn line(text: impl Into<String>) -> Self {
        Self::new(Condition::Line(text.into()))
    }

    /// Ready once TCP port `port` accepts connections, through [`Run::connect`].
    ///
    /// A connection that is closed within 200 ms, before any byte is received, does not
    /// count: the engine's proxy for published ports may accept any connection.
    pub fn port(port: u16) -> Self {
        Self::new(Condition::Port {
            network: None,
            port,
        })
    }

    /// Ready once the port accepts connections at the address of [`Run::port_on`].
    pub fn port_on(network: impl Into<String>, port: u16) -> Self {
        Self::new(Condition::Port {
            network: Some(network.into()),
            port,
        })
    }

    /// Ready once the health check of the image passes.
    ///
    /// A failed health check, or an image without one, is an immediate error.
    pub fn healthy() -> Self {
        Self::new(Condition::Healthy)
    }

    fn new(condition: Condition) -> Self {
        Self {
            condition,
            timeout: Duration::from_secs(60),
        }
    }

    /// Sets the timeout. Default: 60 s.
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// Completes "timed out after 5 s, before ..." and "it exited before ...".
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(text) => write!(f, "it printed {text:?}"),
            Self::Port { port, .. } => write!(f, "it accepted connections on port {port}"),
            Self::Healthy => f.write_str("its health check passed"),
        }
    }
}

impl Run {
    /// Inspects the container: its addresses and ports, health and status.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`], with [`RuntimeError::NotFound`] if the container does not exist.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn inspect(&self) -> Result<Inspection> {
        let container = self.container()?;
        Ok(self.context().runtime.inspect(&container).await?)
    }

    /// Returns the address at which this process reaches TCP port `port` of the container.
    ///
    /// The run must be running, and the port must be published with
    /// [`RunSpec::port`](crate::spec::RunSpec::port). The address is a port on the engine's
    /// host: this machine, or the host of a `tcp://` address. For other setups see
    /// [`Docker::with_port_host`]. A run in the host's network, and a local process, use
    /// `port` itself.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`], with [`RuntimeError::NotFound`] if the port is not published or
    /// the container is not running.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    ///
    #[cfg_attr(
        feature = "docker",
        doc = "[`Docker::with_port_host`]: crate::runtime::docker::Docker::with_port_host"
    )]
    #[cfg_attr(
        not(feature = "docker"),
        doc = "[`Docker::with_port_host`]: crate::runtime"
    )]
    pub async fn port(&self, port: u16) -> Result<SocketAddr> {
        let inspection = self.inspect().await?;
        Ok(self.resolve_port(&inspection, None, port).await?)
    }

    /// Returns the container's own address in `network`, with `port`.
    ///
    /// The address is reachable from containers in the same network, and from the engine's
    /// machine if that runs Linux. The port need not be published.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`], with [`RuntimeError::NotFound`] if the container has no address
    /// in the network.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn port_on(&self, network: &str, port: u16) -> Result<SocketAddr> {
        let inspection = self.inspect().await?;
        Ok(self.resolve_port(&inspection, Some(network), port).await?)
    }

    /// Connects to TCP port `port` of the container.
    ///
    /// The connection goes to the address of [`port`](Self::port). If the container has none, the
    /// engine connects, with [`Capabilities::connect`](crate::runtime::Capabilities::connect): the
    /// port then need not be published.
    ///
    /// A successful call does not prove that a process listens: the engine may accept a connection
    /// first, and then close it.
    ///
    /// # Errors
    ///
    /// Those of [`port`](Self::port), and [`Error::Runtime`] with [`RuntimeError::Rejected`] if
    /// nothing accepts connections at the port.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn connect(&self, port: u16) -> Result<Connection> {
        let inspection = self.inspect().await?;
        let route = self.route(&inspection, None, port).await?;
        Ok(self.connect_by(&route, port).await?)
    }

    /// Finds the way to a port of a container.
    async fn route(
        &self,
        inspection: &Inspection,
        network: Option<&str>,
        port: u16,
    ) -> Result<Route, RuntimeError> {
        let engine_connects = network.is_none()
            && inspection.status == ContainerStatus::Running
            && self.context().runtime.capabilities().connect;
        match self.resolve_port(inspection, network, port).await {
            Err(error) if error.is_not_found() && engine_connects => Ok(Route::Engine),
            address => address.map(Route::Address),
        }
    }

    async fn connect_by(&self, route: &Route, port: u16) -> Result<Connection, RuntimeError> {
        const OPERATION: &str = "connect to the port";
        match route {
            Route::Engine => {
                let container = self.container()?;
                self.context().runtime.connect(&container, port).await
            }
            Route::Address(address) => {
                let connected = TcpStream::connect(address).await;
                connected.map(Connection::new).map_err(|error| {
                    let reason = format!("{address}: {error}");
                    match error.kind() {
                        ErrorKind::ConnectionRefused => RuntimeError::Rejected {
                            operation: OPERATION,
                            reason,
                        },
                        _ => RuntimeError::Broken {
                            operation: OPERATION,
                            reason,
                        },
                    }
                })
            }
        }
    }

    async fn resolve_port(
        &self,
        inspection: &Inspection,
        network: Option<&str>,
        port: u16,
    ) -> Result<SocketAddr, RuntimeError> {
        const OPERATION: &str = "find the port";
        let not_found = |reason| RuntimeError::NotFound {
            operation: OPERATION,
            reason,
        };
        if let Some(network) = network {
            let address = inspection.addresses.get(network);
            let address = address.ok_or_else(|| {
                not_found(format!("run {} has no address in {network}", self.id()))
            })?;
            return Ok(SocketAddr::new(*address, port));
        }
        let on_host = SocketAddr::from(([0, 0, 0, 0], port));
        let published = inspection.ports.iter();
        let published = published
            .filter(|at| (at.container, at.protocol) == (port, Protocol::Tcp))
            .map(|published| published.at)
            // IPv4 first: the host's name may resolve to one address family only.
            .min_by_key(SocketAddr::is_ipv6)
            .or(inspection.on_host_network.then_some(on_host))
            .ok_or_else(|| {
                let run = self.id();
                let runtime = &self.context().runtime;
                not_found(match inspection.status {
                    ContainerStatus::Running if !runtime.capabilities().ports => format!(
                        "the {} runtime gives ports of run {run} no address",
                        runtime.name()
                    ),
                    ContainerStatus::Running => format!(
                        "run {run} does not publish port {port}; publish it with `RunSpec::port`"
                    ),
                    _ => format!("run {run} is not running"),
                })
            })?;
        if !published.ip().is_unspecified() {
            return Ok(published);
        }
        let host = self.context().runtime.host();
        let addresses = lookup_host((host.as_str(), published.port())).await;
        let addresses = addresses.map_err(|error| not_found(format!("{host}: {error}")))?;
        addresses
            .min_by_key(|at| at.is_ipv6() != published.is_ipv6())
            .ok_or_else(|| not_found(format!("{host} has no address")))
    }

    /// Waits until the run is ready.
    ///
    /// The audit records a wait for a line as an attachment.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`], with the last lines of output, if the timeout elapses. The error
    /// is immediate if the run ends or can never be ready. Also those of
    /// [`wait`](Self::wait), and [`Error::Runtime`] if the address of a port cannot be
    /// determined.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe.
    pub async fn wait_ready(&self, ready: Ready) -> Result<()> {
        let condition = &ready.condition;
        let ended = async {
            match condition {
                // The attachment reports the end, after all output.
                Condition::Line(_) => std::future::pending().await,
                _ => self.wait_exit().await.map(drop),
            }
        };
        let mut last_failure = None;
        let waited = tokio::select! {
            biased;
            ended = ended => ended.map(|()| Readiness::Ended),
            waited = timeout(ready.timeout, self.wait_for(condition, &mut last_failure)) => {
                waited.unwrap_or(Ok(Readiness::TimedOut))
            }
        };
        let (reason, outcome) = match waited? {
            Readiness::Ready => return Ok(()),
            Readiness::Never(reason) => (reason, None),
            Readiness::Ended => {
                let outcome = self.wait().await?;
                let reason = format!("it {} before {condition}", outcome.ending);
                (reason, Some(Box::new(outcome)))
            }
            Readiness::Unsealed => {
                let outcome = self.outcome(&self.entry.snapshot.borrow());
                let reason = format!(
                    "it {} before {condition}, and its log is not sealed yet",
                    outcome.ending
                );
                (reason, Some(Box::new(outcome)))
            }
            Readiness::TimedOut => {
                let seconds = ready.timeout.as_secs_f64();
                let failure = last_failure.map(|failure| format!(" ({failure})"));
                let failure = failure.unwrap_or_default();
                (
                    format!("timed out after {seconds} s, before {condition}{failure}"),
                    None,
                )
            }
        };
        Err(Error::NotReady {
            run: self.id().clone(),
            reason,
            last_lines: match &outcome {
                Some(outcome) if outcome.sealed().is_some() => outcome.last_lines.clone(),
                // An unreadable audit file must not hide why the run is not ready.
                _ => self.last_lines(LAST_LINES).await.unwrap_or_default(),
            },
            outcome,
            audit: self.audit(),
        })
    }

    /// Waits for a condition, without a timeout.
    ///
    /// Stores the reason for the last failed check in `last_failure`.
    async fn wait_for(
        &self,
        condition: &Condition,
        last_failure: &mut Option<String>,
    ) -> Result<Readiness> {
        if let Condition::Line(text) = condition {
            return self.wait_for_line(text.as_bytes()).await;
        }
        loop {
            *last_failure = match self.inspect().await {
                Ok(seen) if seen.status != ContainerStatus::Running => None,
                Ok(seen) => match self.check(condition, &seen).await? {
                    Check::Conclusive(readiness) => return Ok(readiness),
                    Check::NotYet(failure) => failure,
                },
                // If the container no longer exists, the run is about to end.
                Err(error) => Some(error.to_string()),
            };
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Checks the port or the health of a running container.
    async fn check(&self, condition: &Condition, seen: &Inspection) -> Result<Check> {
        if let Condition::Port { network, port } = condition {
            let route = self.route(seen, network.as_deref(), *port).await?;
            let checked = match self.connect_by(&route, *port).await {
                Ok(connection) => probe(connection, &route).await,
                Err(error) => Err(error.to_string()),
            };
            return Ok(match checked {
                Ok(()) => Check::Conclusive(Readiness::Ready),
                Err(failure) => Check::NotYet(Some(failure)),
            });
        }
        Ok(match seen.health {
            Some(Health::Healthy) => Check::Conclusive(Readiness::Ready),
            Some(Health::Starting) => Check::NotYet(None),
            Some(Health::Unhealthy) => {
                Check::Conclusive(Readiness::Never("its health check failed".into()))
            }
            None => Check::Conclusive(Readiness::Never("it has no health check".into())),
        })
    }

    async fn wait_for_line(&self, text: &[u8]) -> Result<Readiness> {
        let options = AttachOptions::new().lossless();
        let mut output = self.attach_with(options).await?;
        let mut unmatched = PerStream::<Vec<u8>>::default();
        while let Some(item) = output.next().await {
            let item = match item {
                Err(Error::NotSealed { .. }) => return Ok(Readiness::Unsealed),
                item => item?,
            };
            match item {
                Attached::Chunk(chunk) => {
                    let unmatched = &mut unmatched[chunk.stream];
                    unmatched.extend_from_slice(&chunk.bytes);
                    if memchr::memmem::find(unmatched, text).is_some() {
                        return Ok(Readiness::Ready);
                    }
                    // Keep the bytes that can be the start of a match.
                    let kept = unmatched.len().min(text.len().saturating_sub(1));
                    unmatched.drain(..unmatched.len() - kept);
                }
                Attached::Lagged { stream, .. } => unmatched[stream].clear(),
            }
        }
        Ok(Readiness::Ended)
    }
}

/// The result of a wait.
enum Readiness {
    Ready,
    /// The run can never be ready.
    Never(String),
    /// The run ended first.
    Ended,
    /// The run ended first, and its seal is overdue. The log may lack output.
    Unsealed,
    TimedOut,
}

/// The result of one check.
enum Check {
    Conclusive(Readiness),
    /// The run is not ready yet. The reason, if any, is for the error of a timeout.
    NotYet(Option<String>),
}

/// The way to a port of a container.
#[derive(Debug)]
enum Route {
    Address(SocketAddr),
    /// Through the engine.
    Engine,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Engine => f.write_str("through the engine"),
        }
    }
}

/// Checks that a connection stays open.
async fn probe(mut connection: impl AsyncRead + Unpin, route: &Route) -> Result<(), String> {
    match timeout(MIN_CONNECTION_TIME, connection.read_u8()).await {
        Err(_) | Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(format!("{route}: the connection was closed immediately")),
    }
}

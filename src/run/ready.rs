//! Waiting until a run is ready for whoever needs it, and where its ports are.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{sleep, timeout};

use crate::error::{Error, Result, RuntimeError};
use crate::outcome::PerStream;
use crate::run::Run;
use crate::run::attach::{AttachOptions, Attached};
use crate::runtime::{ContainerStatus, Health, Inspection};
use crate::spec::Protocol;

/// How often a port or a health check is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long a connection must stand. Docker's proxy takes it before it knows whether anything
/// listens in the container, and closes it, within a millisecond as a rule, where nothing does.
const STANDS: Duration = Duration::from_millis(200);
/// How many lines an error shows.
const LAST_LINES: usize = 20;

/// What to wait for, with [`Run::wait_ready`] or [`Manager::service`](crate::manager::Manager::service), before
/// a run can be used.
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    what: What,
    within: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Line(String),
    Port { network: Option<String>, port: u16 },
    Healthy,
}

impl Ready {
    /// It has printed `text`, on any stream, in whatever it has printed since its start. The line
    /// need not be at its end.
    pub fn line(text: impl Into<String>) -> Self {
        Self::new(What::Line(text.into()))
    }

    /// It takes connections to its TCP port `port`, at the address that [`Run::port`] gives.
    ///
    /// A connection that is closed within 200 ms, before any byte came, does not count: in front
    /// of a published port there can be a proxy of the engine's, which takes any.
    pub fn port(port: u16) -> Self {
        Self::new(What::Port {
            network: None,
            port,
        })
    }

    /// The same, at the container's own address in a network: see [`Run::port_on`].
    pub fn port_on(network: impl Into<String>, port: u16) -> Self {
        Self::new(What::Port {
            network: Some(network.into()),
            port,
        })
    }

    /// The health check of its image says that it is healthy. One that says that it is not, or an
    /// image that has none, is an error at once.
    pub fn healthy() -> Self {
        Self::new(What::Healthy)
    }

    fn new(what: What) -> Self {
        Self {
            what,
            within: Duration::from_secs(60),
        }
    }

    /// For how long to wait. Default: 60 s.
    pub fn within(mut self, bound: Duration) -> Self {
        self.within = bound;
        self
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(text) => write!(f, "it had printed {text:?}"),
            Self::Port { port, .. } => write!(f, "it took connections to port {port}"),
            Self::Healthy => f.write_str("its health check said so"),
        }
    }
}

impl Run {
    /// What the engine knows of the container now: its addresses and ports, its health, its state.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`]: a [`RuntimeError::NotFound`] is that there is no container, or none any
    /// more.
    pub async fn inspect(&self) -> Result<Inspection> {
        let container = self.container()?;
        Ok(self.context().runtime.inspect(&container).await?)
    }

    /// Where this process reaches the container's TCP port `port`, which
    /// [`RunSpec::port`](crate::spec::RunSpec::port) has published, while the run is under way.
    ///
    /// That is a port of the engine's host: of this machine, or of the one that a `tcp://` address
    /// names (see [`Docker::with_port_host`](crate::runtime::docker::Docker::with_port_host) for others). A run in the
    /// host's network, and a local process, have the port itself.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`]: a [`RuntimeError::NotFound`] is that the port is not published, or the
    /// run not under way.
    pub async fn port(&self, port: u16) -> Result<SocketAddr> {
        let inspection = self.inspect().await?;
        Ok(self.reached(&inspection, None, port).await?)
    }

    /// The container's own address in `network`, with `port`: for a process that is in a container
    /// of the same network, or on the machine of the engine where that is Linux. Nothing has to be
    /// published.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Error::Runtime`]: a [`RuntimeError::NotFound`] is that it has no address there.
    pub async fn port_on(&self, network: &str, port: u16) -> Result<SocketAddr> {
        let inspection = self.inspect().await?;
        Ok(self.reached(&inspection, Some(network), port).await?)
    }

    async fn reached(
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
        let of_host = SocketAddr::from(([0, 0, 0, 0], port));
        let published = inspection.ports.iter();
        let published = published
            .filter(|at| (at.container, at.protocol) == (port, Protocol::Tcp))
            .map(|published| published.at)
            // The host's name may stand for addresses of one family alone.
            .min_by_key(SocketAddr::is_ipv6)
            .or(inspection.on_host_network.then_some(of_host))
            .ok_or_else(|| {
                not_found(format!(
                    "run {} does not publish port {port}, or is not under way",
                    self.id()
                ))
            })?;
        if !published.ip().is_unspecified() {
            return Ok(published);
        }
        let host = self.context().runtime.host();
        let found = lookup_host((host.as_str(), published.port())).await;
        let found = found.map_err(|error| not_found(format!("{host}: {error}")))?;
        found
            .min_by_key(|at| at.is_ipv6() != published.is_ipv6())
            .ok_or_else(|| not_found(format!("{host} has no address")))
    }

    /// Waits until the run is ready, as `ready` has it.
    ///
    /// Cancel-safe. Whoever waits for a line is recorded in the audit, as one who looks on.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`], with the last lines of its output: at once where the run ends first or
    /// can never be ready, else when the time is over. Those of [`wait`](Self::wait), and
    /// [`Error::Runtime`], where the engine can tell neither.
    pub async fn wait_ready(&self, ready: Ready) -> Result<()> {
        let Ready { what, within } = &ready;
        // The end of the output comes by itself, after all that was printed.
        let ends = async {
            match what {
                What::Line(_) => std::future::pending().await,
                _ => self.wait_exit().await.map(drop),
            }
        };
        let mut tried = None;
        let waited = tokio::select! {
            biased;
            ended = ends => ended.map(|()| Waited::Ended),
            waited = timeout(*within, self.wait_for(what, &mut tried)) => {
                waited.unwrap_or(Ok(Waited::TooLong))
            }
        };
        let (reason, outcome) = match waited? {
            Waited::Ready => return Ok(()),
            Waited::Never(reason) => (reason, None),
            Waited::Ended => {
                let outcome = self.wait().await?;
                let reason = format!("it {} before {what}", outcome.ending);
                (reason, Some(Box::new(outcome)))
            }
            Waited::TooLong => {
                let tried = tried.map(|tried| format!(" ({tried})")).unwrap_or_default();
                let seconds = within.as_secs_f64();
                (format!("{seconds} s were over before {what}{tried}"), None)
            }
        };
        Err(Error::NotReady {
            run: self.id().clone(),
            reason,
            last_lines: match &outcome {
                Some(outcome) => outcome.last_lines.clone(),
                // What is wrong with its file is no reason to hide what is wrong with it.
                None => self.last_lines(LAST_LINES).await.unwrap_or_default(),
            },
            outcome,
            audit: self.audit(),
        })
    }

    async fn wait_for(&self, what: &What, tried: &mut Option<String>) -> Result<Waited> {
        if let What::Line(text) = what {
            return self.wait_for_line(text.as_bytes()).await;
        }
        loop {
            let looked = match self.inspect().await {
                Ok(seen) if seen.status != ContainerStatus::Running => Err(None),
                Ok(seen) => match what {
                    What::Port { network, port } => {
                        let at = self.reached(&seen, network.as_deref(), *port).await?;
                        stands(at).await.map_err(Some)
                    }
                    _ => match seen.health {
                        Some(Health::Healthy) => Ok(()),
                        Some(Health::Starting) => Err(None),
                        Some(Health::Unhealthy) => {
                            return Ok(Waited::Never("its health check failed".into()));
                        }
                        None => return Ok(Waited::Never("it has no health check".into())),
                    },
                },
                // That of a container that is gone is soon followed by the end of its run.
                Err(error) => Err(Some(error.to_string())),
            };
            match looked {
                Ok(()) => return Ok(Waited::Ready),
                Err(why) => *tried = why,
            }
            sleep(LOOK).await;
        }
    }

    async fn wait_for_line(&self, text: &[u8]) -> Result<Waited> {
        let all = AttachOptions::new().lossless();
        let mut output = self.attach_with(all).await?;
        let mut seen = PerStream::<Vec<u8>>::default();
        while let Some(item) = output.next().await {
            match item? {
                Attached::Chunk(chunk) => {
                    let seen = &mut seen[chunk.stream];
                    seen.extend_from_slice(&chunk.bytes);
                    if memchr::memmem::find(seen, text).is_some() {
                        return Ok(Waited::Ready);
                    }
                    // As much as can be the beginning of it.
                    let begun = seen.len().min(text.len().saturating_sub(1));
                    seen.drain(..seen.len() - begun);
                }
                Attached::Lagged { stream, .. } => seen[stream].clear(),
            }
        }
        Ok(Waited::Ended)
    }
}

/// What a wait has come to.
enum Waited {
    Ready,
    /// It never will be.
    Never(String),
    /// The run has ended before.
    Ended,
    TooLong,
}

/// Connects, and looks whether the connection stands.
async fn stands(at: SocketAddr) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{at}: {error}");
    let mut stream = TcpStream::connect(at).await.map_err(failed)?;
    match timeout(STANDS, stream.read_u8()).await {
        Err(_) | Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(format!("{at}: the connection was closed at once")),
    }
}

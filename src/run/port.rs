//! Inspection of a run's container, and the way to its ports.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::net::{TcpStream, lookup_host};

#[cfg(doc)]
use crate::error::Error;
use crate::error::{Result, RuntimeError};
use crate::run::Run;
use crate::runtime::{Connection, ContainerStatus, Inspection};
use crate::spec::Protocol;

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
    pub(super) async fn route(
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

    pub(super) async fn connect_by(
        &self,
        route: &Route,
        port: u16,
    ) -> Result<Connection, RuntimeError> {
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
}

/// The way to a port of a container.
#[derive(Debug)]
pub(super) enum Route {
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

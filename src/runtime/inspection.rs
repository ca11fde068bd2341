//! The state of a container, as its engine reports it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

#[cfg(doc)]
use super::Runtime;
use super::log::LogConfig;
use crate::spec::Protocol;
use crate::timestamp::Timestamp;

/// The phase of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContainerStatus {
    /// The container was created and never started, or its start failed.
    Created,
    /// The container runs, is paused, or restarts.
    Running,
    /// The container ran and ended.
    Ended,
    /// The engine is removing the container, which may still run.
    ///
    /// The status may last for as long as the container's node does not answer.
    Removing,
}

impl fmt::Display for ContainerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Removing => "removing",
        })
    }
}

/// The answer to [`Runtime::continuity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Continuity {
    /// The engine did not restart, or a restart of the engine loses no output.
    Unbroken,
    /// The engine restarted.
    Broken,
    /// The engine does not report restarts.
    Unknown,
}

/// The state of a container, as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The phase of the container's life.
    pub status: ContainerStatus,
    /// The time of the last start; `None`: never started.
    pub started_at: Option<Timestamp>,
    /// The time of the last end; `None`: never ended.
    pub finished_at: Option<Timestamp>,
    /// The exit code.
    ///
    /// `None` while the container runs, and if the engine does not know it.
    pub code: Option<i64>,
    /// True if the kernel killed the container because it was out of memory.
    pub oom_killed: bool,
    /// The engine's error, if it reports one.
    pub error: Option<String>,
    /// The digest of the image.
    pub image_digest: Option<String>,
    /// The stop signal that the image sets.
    pub stop_signal: Option<String>,
    /// The configuration of the engine's log, including the engine's defaults.
    pub log: LogConfig,
    /// The ports of a running container, if the runtime reports them.
    pub ports: Vec<PublishedPort>,
    /// True if the container shares the network of the engine's host.
    pub on_host_network: bool,
    /// The addresses by network name, if the runtime reports them.
    pub addresses: BTreeMap<String, IpAddr>,
    /// The result of the health check.
    ///
    /// `None`: there is none, or the runtime does not report it.
    pub health: Option<Health>,
    /// The output of the last health check, if the runtime reports it.
    pub health_output: Option<String>,
    /// The time since which the container's node does not answer the engine.
    ///
    /// `None`: it answers, or the engine has no nodes. While it is set, the other fields have the
    /// last known state, and moat takes nothing for an end of the container.
    pub unreachable_since: Option<Timestamp>,
    /// The reason that the container is gone for good with its node: `node a1 was deleted`.
    ///
    /// The status is then [`ContainerStatus::Ended`], without an exit code. The end of the run is
    /// [`Ending::Lost`](crate::outcome::Ending::Lost) with this reason. A runtime sets it only if
    /// the container can never run again.
    pub lost: Option<String>,
}

impl Inspection {
    /// Creates an inspection that has only a status.
    pub fn new(status: ContainerStatus) -> Self {
        Self {
            status,
            started_at: None,
            finished_at: None,
            code: None,
            oom_killed: false,
            error: None,
            image_digest: None,
            stop_signal: None,
            log: LogConfig::default(),
            ports: Vec::new(),
            on_host_network: false,
            addresses: BTreeMap::new(),
            health: None,
            health_output: None,
            unreachable_since: None,
            lost: None,
        }
    }
}

/// A port of a container, and its address on the engine's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishedPort {
    /// The port in the container.
    pub container: u16,
    /// The transport.
    pub protocol: Protocol,
    /// The address and port on the engine's host.
    ///
    /// An unspecified address stands for every address of that host, such as [`Runtime::host`].
    pub at: SocketAddr,
}

impl PublishedPort {
    /// Creates a published port.
    pub const fn new(container: u16, protocol: Protocol, at: SocketAddr) -> Self {
        Self {
            container,
            protocol,
            at,
        }
    }
}

/// The result of an engine's health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// No check has finished yet.
    Starting,
    /// The last check passed.
    Healthy,
    /// As many checks in a row failed as the container's limit allows.
    Unhealthy,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

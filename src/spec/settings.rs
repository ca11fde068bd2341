//! The settings of a run that are recorded.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Mount;
#[cfg(doc)]
use super::RunSpec;
use super::pull::{DEFAULT_PULL_RETRIES, DEFAULT_PULL_STALL_TIMEOUT};

/// The part of a [`RunSpec`] without secrets, which is recorded verbatim.
///
/// The methods of `RunSpec` set the fields and document their meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Settings {
    /// The image's name with its tag or digest; empty for a local process.
    pub image: String,
    /// The command and its arguments; empty: the image's own.
    pub cmd: Vec<String>,
    /// The entrypoint.
    ///
    /// `None`: the image's own. An empty list disables the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// The working directory in the container.
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// The container's host name.
    pub hostname: Option<String>,
    /// Bind mounts, named volumes and tmpfs.
    pub mounts: Vec<Mount>,
    /// The network mode: see [`RunSpec::network`].
    pub network: Option<String>,
    /// Additional names of the container on its network.
    pub network_aliases: Vec<String>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// Additional lines of `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// Addresses of DNS servers.
    pub dns: Vec<String>,
    /// The memory limit, in bytes.
    pub memory: Option<u64>,
    /// The CPU limit, in CPUs.
    pub cpus: Option<f64>,
    /// The maximum number of processes in the container.
    pub pids_limit: Option<u64>,
    /// Resource limits of the container's processes.
    pub ulimits: Vec<Ulimit>,
    /// The size of `/dev/shm`, in bytes.
    pub shm_size: Option<u64>,
    /// Devices of the host that the container can use.
    pub devices: Vec<Device>,
    /// GPUs that the container can use.
    pub gpus: Option<Gpus>,
    /// Kernel parameters of the container's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Capabilities to add.
    pub cap_add: Vec<String>,
    /// Capabilities to drop.
    pub cap_drop: Vec<String>,
    /// Security options in the engine's syntax: `no-new-privileges`.
    pub security_opt: Vec<String>,
    /// True if the container has the host's privileges.
    pub privileged: bool,
    /// True if the container's root file system is read-only.
    pub read_only: bool,
    /// The health check; `None`: the image's own, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// True if an init process forwards signals and reaps orphans.
    pub init: bool,
    /// `os[/arch[/variant]]`.
    pub platform: Option<String>,
    /// The engine's name of the OCI runtime: `runsc`.
    pub oci_runtime: Option<String>,
    /// Labels in addition to those of moat.
    pub labels: BTreeMap<String, String>,
    /// True if the container has a terminal.
    pub tty: bool,
    /// The container's standard input.
    pub stdin: Stdin,
    /// True if the audit records the container's standard input.
    #[serde(skip_serializing_if = "is_false")]
    pub record_stdin: bool,
    /// The number of distinct values that are masked in the output: see [`RunSpec::mask`].
    #[serde(skip_serializing_if = "is_zero")]
    pub masks: u32,
    /// The terminal's size when the container starts.
    ///
    /// `None`: the engine's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowSize>,
    /// The stop signal; `None`: the image's own, else `SIGTERM`.
    pub stop_signal: Option<String>,
    /// The time between the stop signal and SIGKILL.
    #[serde(with = "seconds")]
    pub stop_grace: Duration,
    /// The time limit, measured from the start of the container.
    #[serde(with = "seconds_option")]
    pub time_limit: Option<Duration>,
    /// The maximum time without output.
    #[serde(with = "seconds_option", skip_serializing_if = "Option::is_none")]
    pub silence_limit: Option<Duration>,
    /// The interval between samples of resource usage.
    #[serde(with = "seconds_option", skip_serializing_if = "Option::is_none")]
    pub sample: Option<Duration>,
    /// The limit on the output.
    pub output_limit: Option<OutputLimit>,
    /// The pull policy.
    pub pull: Pull,
    /// The number of times that a failed pull is retried.
    #[serde(skip_serializing_if = "is_default_retries")]
    pub pull_retries: u32,
    /// The time after which a pull without progress fails.
    #[serde(with = "seconds", skip_serializing_if = "is_default_stall_timeout")]
    pub pull_stall_timeout: Duration,
    /// The policy for keeping the container after the seal.
    pub keep: KeepContainer,
    /// The second source of output, used if the attachment breaks.
    pub backstop: Backstop,
    /// True if the run may outlive the process that started it.
    pub detached: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: String::new(),
            cmd: Vec::new(),
            entrypoint: None,
            workdir: None,
            user: None,
            hostname: None,
            mounts: Vec::new(),
            network: None,
            network_aliases: Vec::new(),
            ports: Vec::new(),
            extra_hosts: Vec::new(),
            dns: Vec::new(),
            memory: None,
            cpus: None,
            pids_limit: None,
            ulimits: Vec::new(),
            shm_size: None,
            devices: Vec::new(),
            gpus: None,
            sysctls: BTreeMap::new(),
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            security_opt: Vec::new(),
            privileged: false,
            read_only: false,
            health_check: None,
            init: false,
            platform: None,
            oci_runtime: None,
            labels: BTreeMap::new(),
            tty: false,
            stdin: Stdin::None,
            record_stdin: false,
            masks: 0,
            window: None,
            stop_signal: None,
            stop_grace: Duration::from_secs(10),
            time_limit: None,
            silence_limit: None,
            sample: None,
            output_limit: None,
            pull: Pull::default(),
            pull_retries: DEFAULT_PULL_RETRIES,
            pull_stall_timeout: DEFAULT_PULL_STALL_TIMEOUT,
            keep: KeepContainer::default(),
            backstop: Backstop::default(),
            detached: false,
        }
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn is_default_retries(retries: &u32) -> bool {
    *retries == DEFAULT_PULL_RETRIES
}

fn is_default_stall_timeout(timeout: &Duration) -> bool {
    *timeout == DEFAULT_PULL_STALL_TIMEOUT
}

/// A port of the container, published on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Port {
    /// The port in the container.
    pub container: u16,
    /// The port on the host; `None`: the engine picks a free one.
    pub host: Option<u16>,
    /// The host's address to listen on; `None`: all addresses.
    pub address: Option<String>,
    /// The transport.
    pub protocol: Protocol,
}

impl Port {
    /// Creates a TCP port, published on a free port of the host.
    pub fn tcp(container: u16) -> Self {
        Self {
            container,
            host: None,
            address: None,
            protocol: Protocol::Tcp,
        }
    }

    /// Creates a UDP port, published on a free port of the host.
    pub fn udp(container: u16) -> Self {
        Self {
            protocol: Protocol::Udp,
            ..Self::tcp(container)
        }
    }

    /// Sets the port on the host.
    pub fn host(mut self, port: u16) -> Self {
        self.host = Some(port);
        self
    }

    /// Sets the address on the host. Default: all addresses.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }
}

/// The transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A resource limit of `setrlimit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ulimit {
    /// The name in lower case, without `RLIMIT_`: `nofile`.
    pub name: String,
    /// The soft limit; -1: unlimited.
    pub soft: i64,
    /// The hard limit; -1: unlimited.
    pub hard: i64,
}

impl Ulimit {
    /// Creates a limit: `Ulimit::new("nofile", 1024, 4096)`.
    pub fn new(name: impl Into<String>, soft: i64, hard: i64) -> Self {
        Self {
            name: name.into(),
            soft,
            hard,
        }
    }
}

/// A device of the host that the container can use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Device {
    /// The path on the host.
    pub host: String,
    /// The path in the container.
    pub container: String,
    /// The permissions: one or more of `r` (read), `w` (write), `m` (`mknod`).
    pub permissions: String,
}

impl Device {
    /// Creates a device.
    pub fn new(
        host: impl Into<String>,
        container: impl Into<String>,
        permissions: impl Into<String>,
    ) -> Self {
        Self {
            host: host.into(),
            container: container.into(),
            permissions: permissions.into(),
        }
    }
}

/// A health check, which the engine runs in the container.
///
/// [`Ready::healthy`] waits until it passes.
///
/// ```
/// use std::time::Duration;
/// use moat::RunSpec;
/// use moat::spec::HealthCheck;
///
/// let check = HealthCheck::new(["pg_isready", "-U", "postgres"]).interval(Duration::from_secs(1));
/// let spec = RunSpec::new("postgres:16").health_check(check);
/// # spec.validate().unwrap();
/// ```
///
/// [`Ready::healthy`]: crate::run::Ready::healthy
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthCheck {
    /// The command and its arguments; `None`: no check, even if the image has one.
    pub command: Option<Vec<String>>,
    /// The time between two checks, and between the start and the first check.
    #[serde(with = "seconds")]
    pub interval: Duration,
    /// The time after which a check has failed.
    #[serde(with = "seconds")]
    pub timeout: Duration,
    /// The number of failed checks in a row that make the container unhealthy.
    pub retries: u32,
    /// The time after the start in which failed checks do not count.
    #[serde(with = "seconds")]
    pub start_period: Duration,
}

impl HealthCheck {
    /// Creates a check from a command, which passes if it exits with code 0.
    ///
    /// The command is recorded verbatim. It runs without a shell.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: Some(command.into_iter().map(Into::into).collect()),
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            retries: 3,
            start_period: Duration::ZERO,
        }
    }

    /// Switches the image's health check off.
    pub fn none() -> Self {
        Self {
            command: None,
            ..Self::new([""; 0])
        }
    }

    /// Sets the time between two checks. Default: 30 s. Minimum: 1 ms.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the time after which a check has failed. Default: 30 s. Minimum: 1 ms.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the number of failed checks in a row that make the container unhealthy.
    ///
    /// Default: 3. Minimum: 1.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Sets the time after the start in which failed checks do not count.
    ///
    /// Default: none, or the image's own with Docker. Minimum: 1 ms.
    pub fn start_period(mut self, period: Duration) -> Self {
        self.start_period = period;
        self
    }
}

/// GPUs that the container can use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Gpus {
    /// All GPUs.
    All,
    /// This number of GPUs, picked by the engine.
    Count(u32),
    /// The GPUs with these ids.
    Ids(Vec<String>),
}

/// The standard input of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stdin {
    /// The input is at its end from the start.
    #[default]
    None,
    /// One writer writes the input. Shutting down the [`Input`] ends it.
    ///
    /// The engine cannot distinguish a crashed writer from a finished one, so the container reads
    /// the end of the input in both cases. The audit records which case it was. Without a writer,
    /// the container waits for one.
    ///
    /// The input of a terminal has no end, so this variant excludes `tty`.
    ///
    /// [`Input`]: crate::run::attach::input::Input
    Pipe,
    /// The input is open for the container's whole life.
    ///
    /// Any number of writers share it. It has no end, so a program that reads to the end of its
    /// input never finishes. Podman ends it with the first writer, unless the container has a
    /// terminal.
    Open,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// The width.
    pub columns: u16,
    /// The height.
    pub rows: u16,
}

impl WindowSize {
    /// Creates a size.
    pub const fn new(columns: u16, rows: u16) -> Self {
        Self { columns, rows }
    }
}

impl std::fmt::Display for WindowSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.columns, self.rows)
    }
}

/// A limit on the output of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OutputLimit {
    /// The limit in bytes, over all streams.
    pub bytes: u64,
    /// The action at the limit.
    pub action: LimitAction,
}

impl OutputLimit {
    /// Creates a limit.
    pub const fn new(bytes: u64, action: LimitAction) -> Self {
        Self { bytes, action }
    }
}

/// The action at the limit of a run's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LimitAction {
    /// Stops the run. Output past the limit is a gap.
    Stop,
    /// Discards output past the limit, which is a gap. The run continues.
    ///
    /// The limit bounds the audit file, and not the engine's log, which grows until the container is
    /// removed. Engines bound a log only by deleting its oldest part, which is the part that moat
    /// reads again after a crash. For a container that may print forever, use [`Stop`](Self::Stop),
    /// or [`Backstop::None`], with which the engine keeps no log.
    Drop,
}

/// The pull policy of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pull {
    /// Pulls an image that the engine does not have.
    #[default]
    Missing,
    /// Pulls before every run.
    Always,
    /// Pulls before every run, and uses the engine's image if the pull fails.
    ///
    /// The engine's image must have the platform of the spec. Otherwise the start fails with the
    /// error of the pull. A run that uses it records the reason in the `warnings` of its audit file.
    /// A pod does not support this policy.
    Newer,
    /// Never pulls. A missing image is an error.
    Never,
}

/// The policy for keeping a container after the seal.
///
/// A container that never started is always removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeepContainer {
    /// Always removes the container.
    Never,
    /// Keeps the container if the seal has a gap, so that it can be examined.
    ///
    /// With [`Capabilities::log_rotates`](crate::runtime::Capabilities::log_rotates), each run has
    /// a gap, so that this is the same as [`Never`](Self::Never).
    #[default]
    OnGap,
    /// Keeps the container if the seal has a gap, or if the exit code is not 0.
    OnFailure,
    /// Keeps the container until [`Manager::remove`].
    ///
    /// If the spec has a time limit, a [`reap`](crate::manager::ReapOptions::remove_after) from
    /// another root also removes the container, by default a day after the limit. A reaper sees
    /// only the container, and neither the policy nor the seal of its run.
    ///
    /// [`Manager::remove`]: crate::manager::Manager::remove
    Always,
}

/// The second source of output, used if the attachment to the container breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Backstop {
    /// The engine's own log of the container.
    #[default]
    Engine,
    /// No second source. The engine writes no log, which is faster.
    ///
    /// Output that the attachment misses is a permanent gap of unknown size. This happens if this
    /// process is killed, the connection breaks, or the sink stalls.
    None,
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_f64(value.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

mod seconds_option {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(|v| v.as_secs_f64()).serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(from)?
            .map(|v| Duration::try_from_secs_f64(v).map_err(serde::de::Error::custom))
            .transpose()
    }
}

//! What to run, as far as it may be written down.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The part of a [`RunSpec`](crate::spec::RunSpec) that holds no secrets, and is persisted as it is.
///
/// The fields are set through the methods of `RunSpec`, which say what each means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Settings {
    /// The image's name, with its tag or digest; empty: none, for a local process.
    pub image: String,
    /// The command and its arguments; empty: the image's own.
    pub cmd: Vec<String>,
    /// The entrypoint; `None`: the image's own, `Some` of nothing: none at all.
    pub entrypoint: Option<Vec<String>>,
    /// The working directory in the container.
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// The container's host name.
    pub hostname: Option<String>,
    /// Bind mounts, named volumes and tmpfs.
    pub mounts: Vec<Mount>,
    /// The network mode: `bridge`, `host`, `none`, `container:<id>` or a network's name.
    pub network: Option<String>,
    /// Further names of the container on its network.
    pub network_aliases: Vec<String>,
    /// Ports of the container that the host offers.
    pub ports: Vec<Port>,
    /// Further lines for `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// Addresses of DNS servers.
    pub dns: Vec<String>,
    /// Memory limit, in bytes.
    pub memory: Option<u64>,
    /// CPU limit, in CPUs: `1.5` is one and a half.
    pub cpus: Option<f64>,
    /// The most processes that the container may have.
    pub pids_limit: Option<u64>,
    /// Resource limits of the container's processes.
    pub ulimits: Vec<Ulimit>,
    /// The size of `/dev/shm`, in bytes.
    pub shm_size: Option<u64>,
    /// Devices of the host that the container sees.
    pub devices: Vec<Device>,
    /// GPUs that the container sees.
    pub gpus: Option<Gpus>,
    /// Kernel parameters of the container's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Capabilities to add.
    pub cap_add: Vec<String>,
    /// Capabilities to drop.
    pub cap_drop: Vec<String>,
    /// Security options, as the engine takes them: `no-new-privileges`, `seccomp=...`.
    pub security_opt: Vec<String>,
    /// Whether the container has the host's privileges.
    pub privileged: bool,
    /// Whether the container's root file system is read-only.
    pub read_only: bool,
    /// Whether an init process reaps the container's orphans.
    pub init: bool,
    /// `os[/arch[/variant]]`.
    pub platform: Option<String>,
    /// The name of the OCI runtime, as the engine knows it (`runsc`, say).
    pub oci_runtime: Option<String>,
    /// Labels, beside those that moat sets.
    pub labels: BTreeMap<String, String>,
    /// Whether the container has a terminal.
    pub tty: bool,
    /// What the container's standard input is.
    pub stdin: Stdin,
    /// Whether the audit has what is written to the container's standard input.
    #[serde(skip_serializing_if = "is_not")]
    pub record_stdin: bool,
    /// The size that the terminal has when the container starts; `None`: the engine's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowSize>,
    /// The signal that asks the container to stop; `None`: the image's own, else `SIGTERM`.
    pub stop_signal: Option<String>,
    /// How long a stop waits between that signal and SIGKILL.
    #[serde(with = "seconds")]
    pub stop_grace: Duration,
    /// The time limit, from the start of the container.
    #[serde(with = "seconds_option")]
    pub time_limit: Option<Duration>,
    /// How long it may print nothing.
    #[serde(with = "seconds_option", skip_serializing_if = "Option::is_none")]
    pub silence_limit: Option<Duration>,
    /// How often what it uses is sampled.
    #[serde(with = "seconds_option", skip_serializing_if = "Option::is_none")]
    pub sample: Option<Duration>,
    /// The limit of the output.
    pub output_limit: Option<OutputLimit>,
    /// When to pull the image.
    pub pull: Pull,
    /// Whether the container stays after the seal.
    pub keep: KeepContainer,
    /// What stands behind the live tap.
    pub backstop: Backstop,
    /// Whether the run is meant to outlive the process that started it.
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
            init: false,
            platform: None,
            oci_runtime: None,
            labels: BTreeMap::new(),
            tty: false,
            stdin: Stdin::None,
            record_stdin: false,
            window: None,
            stop_signal: None,
            stop_grace: Duration::from_secs(10),
            time_limit: None,
            silence_limit: None,
            sample: None,
            output_limit: None,
            pull: Pull::default(),
            keep: KeepContainer::default(),
            backstop: Backstop::default(),
            detached: false,
        }
    }
}

fn is_not(flag: &bool) -> bool {
    !flag
}

/// Something that the container sees at a path of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mount {
    /// A file or folder of the engine's host.
    Bind {
        /// An absolute path on the engine's host; it must exist.
        source: PathBuf,
        /// An absolute path in the container.
        target: String,
        /// Whether the container cannot write to it.
        read_only: bool,
    },
    /// A named volume of the engine; it is made where it is missing, and never removed by moat.
    Volume {
        /// The volume's name.
        name: String,
        /// An absolute path in the container.
        target: String,
        /// Whether the container cannot write to it.
        read_only: bool,
    },
    /// A file system in memory that ends with the container.
    Tmpfs {
        /// An absolute path in the container.
        target: String,
        /// The most bytes that it holds; `None`: the engine's default, half of the memory.
        size: Option<u64>,
        /// Whether the container cannot write to it.
        read_only: bool,
    },
}

impl Mount {
    /// Where the container sees it.
    pub fn target(&self) -> &str {
        match self {
            Self::Bind { target, .. }
            | Self::Volume { target, .. }
            | Self::Tmpfs { target, .. } => target,
        }
    }
}

/// A port of the container that the host offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Port {
    /// The port in the container.
    pub container: u16,
    /// The port on the host; `None`: the engine chooses a free one.
    pub host: Option<u16>,
    /// The host's address to listen on; `None`: all.
    pub address: Option<String>,
    /// The transport.
    pub protocol: Protocol,
}

impl Port {
    /// A TCP port of the container, offered on a port of the host that the engine chooses.
    pub fn tcp(container: u16) -> Self {
        Self {
            container,
            host: None,
            address: None,
            protocol: Protocol::Tcp,
        }
    }

    /// A UDP port of the container, offered on a port of the host that the engine chooses.
    pub fn udp(container: u16) -> Self {
        Self {
            protocol: Protocol::Udp,
            ..Self::tcp(container)
        }
    }

    /// Offers it on this port of the host.
    pub fn host(mut self, port: u16) -> Self {
        self.host = Some(port);
        self
    }

    /// Offers it on this address of the host alone.
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

/// A resource limit, as `setrlimit` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Its name, without `RLIMIT_` and in lower case: `nofile`.
    pub name: String,
    /// The soft limit; -1 is without limit.
    pub soft: i64,
    /// The hard limit; -1 is without limit.
    pub hard: i64,
}

/// A device of the host that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its path on the host.
    pub host: String,
    /// Its path in the container.
    pub container: String,
    /// What the container may do: some of `r`, `w`, `m`.
    pub permissions: String,
}

/// GPUs that the container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Gpus {
    /// All of them.
    All,
    /// So many of them, whichever.
    Count(u32),
    /// Those with these ids.
    Ids(Vec<String>),
}

/// What the container's standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stdin {
    /// At its end from the start.
    #[default]
    None,
    /// What one writer writes, to its end: shutting the [`Input`](crate::run::attach::input::Input) down ends it. An
    /// engine cannot tell a writer that died from one that had finished, so the container sees an
    /// end either way; the audit says which it was. Without a writer the container waits for one.
    ///
    /// A terminal has no such end, so this goes without `tty`.
    Pipe,
    /// Open for the container's whole life: any number of writers, one after the other or at
    /// once, come and go. It has no end, so that a program which reads up to it never does.
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
    /// So many columns, and so many rows.
    pub const fn new(columns: u16, rows: u16) -> Self {
        Self { columns, rows }
    }
}

impl std::fmt::Display for WindowSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.columns, self.rows)
    }
}

/// What happens at the limit of a run's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLimit {
    /// The limit, in bytes over all streams.
    pub bytes: u64,
    /// What happens past it.
    pub action: LimitAction,
}

/// What happens past the limit of a run's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LimitAction {
    /// The run is stopped; what it printed past the limit is a gap.
    Stop,
    /// The run goes on; what it prints past the limit is a gap.
    Drop,
}

/// When to pull the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pull {
    /// When the engine does not have it.
    #[default]
    Missing,
    /// Before every run.
    Always,
    /// Never: a missing image is an error.
    Never,
}

/// Whether the container stays after the seal. A container that never started is always removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeepContainer {
    /// It is removed after every seal.
    Never,
    /// It stays when the seal has a gap, so that a human can look at what is left of it.
    #[default]
    OnGap,
    /// It stays when the seal has a gap, or the exit is anything but code 0.
    OnFailure,
    /// It stays until [`Manager::remove`](crate::manager::Manager::remove), or, where the spec has a time
    /// limit, until a [`reap`](crate::manager::ReapOptions::remove_after) from another root: by default a day past
    /// that. A reaper sees the container alone, and neither its run's policy nor its seal.
    Always,
}

/// What stands behind the live tap, for when it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Backstop {
    /// The engine's own log of the container.
    #[default]
    Engine,
    /// Nothing. The engine writes no log, which is faster; what the tap misses (this process is
    /// killed, the connection breaks, the sink stalls) is a final gap of unknown size.
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

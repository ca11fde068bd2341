//! Parses the engine's JSON about containers.
//!
//! bollard's models are not used, because they refuse container states that only Podman has.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::create;
use super::errors::Failure;
use crate::outcome::Usage;
use crate::runtime::{
    ContainerStatus, Health, Inspection, LabeledContainer, LogConfig, LogFidelity, OwnedContainer,
    PublishedPort, WaitStatus, signal,
};
use crate::spec::{ContainerId, Protocol, RootId, RunId};
use crate::timestamp::Timestamp;

/// The response to `GET /info`: the fields that moat reads.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Info {
    #[serde(default, rename = "ID", deserialize_with = "or_default")]
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    docker_root_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    server_version: String,
}

impl Info {
    pub(super) fn parse(json: &[u8]) -> Self {
        serde_json::from_slice(json).unwrap_or_default()
    }

    /// Returns an id that is unique to the engine.
    ///
    /// Up to Docker 20.10, the id in the response identifies the machine, and all daemons of the
    /// machine share it. Their data directories differ.
    pub(super) fn engine_id(&self) -> Option<String> {
        let is_known = !self.id.is_empty() && !self.docker_root_dir.is_empty();
        is_known.then(|| format!("{} {}", self.id, self.docker_root_dir))
    }

    pub(super) fn version(&self) -> Option<String> {
        Some(self.server_version.clone()).filter(|version| !version.is_empty())
    }
}

/// The response to `GET /containers/{id}/json`: the fields that moat reads.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    state: State,
    #[serde(default, deserialize_with = "or_default")]
    image: String,
    #[serde(default, deserialize_with = "or_default")]
    config: Config,
    #[serde(default, deserialize_with = "or_default")]
    host_config: HostConfig,
    #[serde(default, deserialize_with = "or_default")]
    network_settings: NetworkSettings,
    #[serde(default, deserialize_with = "or_default")]
    mounts: Vec<MountPoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MountPoint {
    #[serde(default, rename = "Type", deserialize_with = "or_default")]
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    destination: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    #[serde(default, deserialize_with = "or_default")]
    exit_code: i64,
    #[serde(default, rename = "OOMKilled", deserialize_with = "or_default")]
    oom_killed: bool,
    #[serde(default, deserialize_with = "or_default")]
    error: String,
    #[serde(default, deserialize_with = "or_default")]
    started_at: String,
    #[serde(default, deserialize_with = "or_default")]
    finished_at: String,
    #[serde(default, deserialize_with = "or_default")]
    health: HealthState,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthState {
    #[serde(default, deserialize_with = "or_default")]
    status: String,
    /// The last checks, the oldest first.
    #[serde(default, deserialize_with = "or_default")]
    log: Vec<HealthCheck>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthCheck {
    #[serde(default, deserialize_with = "or_default")]
    output: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(default, deserialize_with = "or_default")]
    ports: BTreeMap<String, Option<Vec<Binding>>>,
    #[serde(default, deserialize_with = "or_default")]
    networks: BTreeMap<String, Endpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Binding {
    #[serde(default, deserialize_with = "or_default")]
    host_ip: String,
    #[serde(default, deserialize_with = "or_default")]
    host_port: String,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    #[serde(default, rename = "IPAddress", deserialize_with = "or_default")]
    address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    stop_signal: Value,
    #[serde(default)]
    tty: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    #[serde(default, deserialize_with = "or_default")]
    network_mode: String,
    #[serde(default, deserialize_with = "or_default")]
    log_config: Log,
    /// The targets of tmpfs, and their options.
    #[serde(default, deserialize_with = "or_default")]
    tmpfs: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Log {
    #[serde(default, rename = "Type", deserialize_with = "or_default")]
    driver: String,
    #[serde(default, deserialize_with = "or_default")]
    config: BTreeMap<String, String>,
}

/// An item of the response to `GET /containers/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: HashMap<String, String>,
    state: String,
}

/// Deserializes `null` as the default value.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Parses the response to an inspection.
pub(super) fn inspection(json: &[u8], podman: bool) -> Result<Inspection, Failure> {
    let container: Container = parse(json)?;
    let mut state = container.state;
    let last_check = state.health.log.pop();
    let (started_at, finished_at) = (time(&state.started_at)?, time(&state.finished_at)?);
    let mut status = status(&state.status)?;
    let mut exit_code = Some(state.exit_code);
    if status == ContainerStatus::Created && finished_at.is_some() {
        if !podman {
            // A Docker daemon that is killed while it starts a container may record its end and not
            // its start.
            status = ContainerStatus::Ended;
        } else if started_at.is_some() {
            // Podman prepares an ended container for another start if a client attaches to it, and
            // forgets its exit code.
            status = ContainerStatus::Ended;
            exit_code = None;
        }
    }
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Inspection {
        started_at,
        finished_at,
        code: match status {
            ContainerStatus::Running => None,
            // A failed start leaves its exit code; otherwise the code is 0.
            ContainerStatus::Created => exit_code.filter(|&code| code != 0),
            ContainerStatus::Ended | ContainerStatus::Removing => exit_code,
        },
        oom_killed: state.oom_killed,
        error: text(state.error),
        image_digest: text(container.image),
        stop_signal: stop_signal(container.config.stop_signal),
        log: log(container.host_config.log_config, podman),
        ports: ports(container.network_settings.ports),
        on_host_network: container.host_config.network_mode == "host",
        addresses: addresses(container.network_settings.networks),
        health: health(&state.health.status),
        health_output: last_check.map(|check| check.output),
        ..Inspection::new(status)
    })
}

/// The targets of a container's mounts.
#[derive(Debug, Default)]
pub(super) struct MountTargets {
    /// The tmpfs, which exist only while the container runs.
    pub(super) tmpfs: Vec<String>,
    pub(super) other: Vec<String>,
    pub(super) is_running: bool,
}

/// Parses the mounts in the response to an inspection.
pub(super) fn mount_targets(json: &[u8]) -> Result<MountTargets, Failure> {
    let container: Container = parse(json)?;
    let (tmpfs, other): (Vec<_>, Vec<_>) = container
        .mounts
        .into_iter()
        .partition(|mount| mount.kind == "tmpfs");
    let targets = |mounts: Vec<MountPoint>| mounts.into_iter().map(|mount| mount.destination);
    Ok(MountTargets {
        tmpfs: targets(tmpfs)
            .chain(container.host_config.tmpfs.into_keys())
            .collect(),
        other: targets(other).collect(),
        is_running: status(&container.state.status)? == ContainerStatus::Running,
    })
}

/// Returns true if the response to an inspection shows a terminal.
pub(super) fn has_terminal(json: &[u8]) -> Result<bool, Failure> {
    let container: Container = parse(json)?;
    Ok(container.config.tty)
}

/// Parses a list of one root's containers.
///
/// Containers without a valid run label are skipped with a warning.
pub(super) fn owned(json: &[u8]) -> Result<Vec<OwnedContainer>, Failure> {
    let listed: Vec<Listed> = parse(json)?;
    let mut owned = Vec::with_capacity(listed.len());
    for container in listed {
        let run = container.labels.get(create::RUN_LABEL);
        let run = run.map(|run| RunId::new(run.as_str()));
        let Some(Ok(run)) = run else {
            tracing::warn!(
                container = container.id,
                "skipping a container of this root: its label {} is not a valid run id",
                create::RUN_LABEL,
            );
            continue;
        };
        owned.push(OwnedContainer {
            container: ContainerId::new(container.id),
            run,
            status: status(&container.state)?,
        });
    }
    Ok(owned)
}

/// Parses a list of containers, and keeps those with valid labels of moat.
pub(super) fn labeled(json: &[u8]) -> Result<Vec<LabeledContainer>, Failure> {
    let listed: Vec<Listed> = parse(json)?;
    let labeled = listed.into_iter().filter_map(|container| {
        let label = |name| container.labels.get(name).map(String::as_str);
        let root = RootId::try_from(label(create::ROOT_LABEL)?.to_owned()).ok()?;
        let run = RunId::new(label(create::RUN_LABEL)?).ok()?;
        // A deadline that cannot be parsed never expires.
        let deadline = label(create::DEADLINE_LABEL).and_then(|at| at.parse().ok());
        // A container in an unknown state is left alone.
        let status = status(&container.state).ok()?;
        let container = ContainerId::new(container.id.as_str());
        Some(LabeledContainer {
            deadline,
            ..LabeledContainer::new(container, root, run, status)
        })
    });
    Ok(labeled.collect())
}

/// The response to `GET /containers/{id}/stats`: the fields that moat reads.
#[derive(Debug, Deserialize)]
struct Stats {
    #[serde(default, deserialize_with = "or_default")]
    memory_stats: MemoryStats,
    #[serde(default, deserialize_with = "or_default")]
    cpu_stats: CpuStats,
    #[serde(default, deserialize_with = "or_default")]
    pids_stats: PidsStats,
}

#[derive(Debug, Default, Deserialize)]
struct MemoryStats {
    /// Missing, like all other values, if the container is not running.
    usage: Option<u64>,
    #[serde(default, deserialize_with = "or_default")]
    stats: HashMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
struct CpuStats {
    #[serde(default, deserialize_with = "or_default")]
    cpu_usage: CpuUsage,
}

#[derive(Debug, Default, Deserialize)]
struct CpuUsage {
    /// Nanoseconds.
    #[serde(default, deserialize_with = "or_default")]
    total_usage: u64,
}

#[derive(Debug, Default, Deserialize)]
struct PidsStats {
    #[serde(default, deserialize_with = "or_default")]
    current: u64,
}

/// Parses resource usage. Returns `None` if the container is not running.
pub(super) fn usage(json: &[u8]) -> Result<Option<Usage>, Failure> {
    let stats: Stats = parse(json)?;
    let Some(memory) = stats.memory_stats.usage else {
        return Ok(None);
    };
    // As `docker stats` computes it. The names are those of cgroup v1 and v2.
    let cache = ["total_inactive_file", "inactive_file"]
        .into_iter()
        .find_map(|name| stats.memory_stats.stats.get(name)?.as_u64())
        .unwrap_or_default();
    Ok(Some(Usage::new(
        memory.saturating_sub(cache),
        Duration::from_nanos(stats.cpu_stats.cpu_usage.total_usage),
        stats.pids_stats.current,
    )))
}

/// Parses the response to a wait. Returns `None` if it is incomplete.
pub(super) fn wait_status(json: &[u8]) -> Result<Option<WaitStatus>, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Wait {
        status_code: Option<i64>,
        error: Option<WaitError>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct WaitError {
        #[serde(default, deserialize_with = "or_default")]
        message: String,
    }
    let wait: Wait = match serde_json::Deserializer::from_slice(json)
        .into_iter()
        .next()
    {
        None => return Ok(None),
        Some(Err(error)) if error.is_eof() => return Ok(None),
        Some(wait) => wait.map_err(|error| Failure::malformed(&error))?,
    };
    let error = wait.error.map(|error| error.message);
    let error = error.filter(|message| !message.is_empty());
    Ok(Some(WaitStatus {
        // -1, or 0 with an error: the engine did not observe the exit.
        code: wait
            .status_code
            .filter(|&code| code > 0 || (code == 0 && error.is_none())),
        error,
    }))
}

/// Converts a stop signal. Podman reports its number on Linux.
fn stop_signal(signal: Value) -> Option<String> {
    let number = match signal {
        Value::String(signal) if signal.is_empty() => return None,
        Value::String(signal) => match signal.parse() {
            Ok(number) => number,
            Err(_) => return Some(signal),
        },
        Value::Number(number) => number.as_u64()?,
        _ => return None,
    };
    Some(signal::name(number).unwrap_or_else(|| number.to_string()))
}

/// Converts a state name of Docker or Podman.
fn status(name: &str) -> Result<ContainerStatus, Failure> {
    match name.to_ascii_lowercase().as_str() {
        "created" | "configured" | "initialized" => Ok(ContainerStatus::Created),
        "running" | "paused" | "restarting" | "stopping" => Ok(ContainerStatus::Running),
        "exited" | "dead" | "stopped" => Ok(ContainerStatus::Ended),
        "removing" => Ok(ContainerStatus::Removing),
        _ => Err(Failure::Broken(format!(
            "{name:?} is not a known container state"
        ))),
    }
}

/// Parses a time. The year 1 means 'never'.
fn time(text: &str) -> Result<Option<Timestamp>, Failure> {
    if text.is_empty() || text.starts_with("0001-01-01T") {
        return Ok(None);
    }
    // Times distinguish two executions of a container, so an invalid time is an error.
    let time = text.parse();
    time.map(Some)
        .map_err(|_| Failure::Broken(format!("{text:?} is not a valid time")))
}

/// Converts the published ports, and skips entries that cannot be parsed.
fn ports(ports: BTreeMap<String, Option<Vec<Binding>>>) -> Vec<PublishedPort> {
    let mut published = Vec::new();
    for (key, bindings) in ports {
        let Some((container, protocol)) = container_port(&key) else {
            continue;
        };
        let bound = bindings.iter().flatten().filter_map(host_address);
        published.extend(bound.map(|at| PublishedPort {
            container,
            protocol,
            at,
        }));
    }
    published
}

/// Parses a key such as `80/tcp`.
fn container_port(key: &str) -> Option<(u16, Protocol)> {
    let (port, protocol) = key.split_once('/')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some((port.parse().ok()?, protocol))
}

fn host_address(binding: &Binding) -> Option<SocketAddr> {
    let address = match binding.host_ip.as_str() {
        // Podman leaves the address out if a port is published on all addresses.
        "" => Ipv4Addr::UNSPECIFIED.into(),
        address => address.parse().ok()?,
    };
    Some(SocketAddr::new(address, binding.host_port.parse().ok()?))
}

fn addresses(networks: BTreeMap<String, Endpoint>) -> BTreeMap<String, IpAddr> {
    let address =
        |(name, endpoint): (String, Endpoint)| Some((name, endpoint.address.parse().ok()?));
    networks.into_iter().filter_map(address).collect()
}

fn health(name: &str) -> Option<Health> {
    match name {
        "starting" => Some(Health::Starting),
        "healthy" => Some(Health::Healthy),
        "unhealthy" => Some(Health::Unhealthy),
        _ => None,
    }
}

fn log(log: Log, podman: bool) -> LogConfig {
    let fidelity = match log.driver.as_str() {
        "json-file" | "k8s-file" if podman => Some(LogFidelity::Lossless),
        "json-file" => Some(LogFidelity::Utf8Lossy),
        "local" => Some(LogFidelity::Lossless),
        _ => None,
    };
    LogConfig {
        driver: log.driver,
        options: log.config,
        fidelity,
    }
}

pub(super) fn parse<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|error| Failure::malformed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn inspect(state: Value) -> Inspection {
        let json = json!({"State": state, "Image": "sha256:abc", "Config": {"StopSignal": "SIGINT"},
            "HostConfig": {"LogConfig": {"Type": "json-file", "Config": {"max-file": "1"}}}});
        inspection(json.to_string().as_bytes(), false).unwrap()
    }

    #[test]
    fn a_created_container_has_no_times_and_no_code() {
        let seen = inspect(json!({"Status": "created", "ExitCode": 0, "Error": "",
            "OOMKilled": false, "StartedAt": "0001-01-01T00:00:00Z",
            "FinishedAt": "0001-01-01T00:00:00Z"}));
        assert_eq!(seen.status, ContainerStatus::Created);
        assert_eq!((seen.started_at, seen.finished_at), (None, None));
        assert_eq!(seen.code, None);
        assert_eq!(seen.error, None);
        assert_eq!(seen.image_digest.as_deref(), Some("sha256:abc"));
        assert_eq!(seen.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(seen.log.driver, "json-file");
        assert_eq!(seen.log.options["max-file"], "1");
        assert_eq!(seen.log.fidelity, Some(LogFidelity::Utf8Lossy));
    }

    /// Docker 20.10 and 28.5 report this for a container whose daemon was killed during its start.
    #[test]
    fn a_created_container_with_an_end_has_ended() {
        let state = || {
            json!({"Status": "created", "ExitCode": 3, "Error": "",
                "StartedAt": "0001-01-01T00:00:00Z",
                "FinishedAt": "2026-11-26T18:16:44.283482872Z"})
        };
        let seen = inspect(state());
        assert_eq!(seen.status, ContainerStatus::Ended);
        assert_eq!((seen.started_at, seen.code), (None, Some(3)));
        let json = json!({"State": state()}).to_string();
        let podman = inspection(json.as_bytes(), true).unwrap();
        assert_eq!(podman.status, ContainerStatus::Created);
    }

    /// Podman 5.8 reports this for a container with exit code 7 that a client has attached to.
    #[test]
    fn a_container_that_podman_prepares_again_has_ended() {
        let json = json!({"State": {"Status": "created", "ExitCode": 0,
            "StartedAt": "2026-11-27T02:02:36.251115742Z",
            "FinishedAt": "2026-11-27T02:02:36.257677761Z"}});
        let seen = inspection(json.to_string().as_bytes(), true).unwrap();
        assert_eq!((seen.status, seen.code), (ContainerStatus::Ended, None));
    }

    #[test]
    fn a_failed_start_has_a_code() {
        let seen = inspect(json!({"Status": "created", "ExitCode": 127, "Error": "no such file"}));
        assert_eq!(seen.status, ContainerStatus::Created);
        assert_eq!(seen.code, Some(127));
        assert_eq!(seen.error.as_deref(), Some("no such file"));
    }

    #[test]
    fn a_running_container_has_no_code() {
        let seen = inspect(json!({"Status": "running", "ExitCode": 0,
            "StartedAt": "2026-11-22T18:23:25.491211661Z"}));
        assert_eq!((seen.status, seen.code), (ContainerStatus::Running, None));
        assert!(seen.started_at.is_some());
    }

    #[test]
    fn an_exited_container_has_its_code_and_times() {
        let seen = inspect(
            json!({"Status": "exited", "ExitCode": 137, "OOMKilled": true,
            "FinishedAt": "2026-11-22T18:23:25.5+01:00"}),
        );
        assert_eq!(
            (seen.status, seen.code),
            (ContainerStatus::Ended, Some(137))
        );
        assert!(seen.oom_killed);
        assert_eq!(
            seen.finished_at.unwrap().to_string(),
            "2026-11-22T17:23:25.500000000Z"
        );
    }

    #[test]
    fn ports_addresses_and_health_are_parsed() {
        let json = json!({
            "State": {"Status": "running", "Health": {"Status": "starting",
                "Log": [{"ExitCode": 1, "Output": "first"}, {"ExitCode": 1, "Output": "no db\n"}]}},
            "HostConfig": {"NetworkMode": "default"},
            "NetworkSettings": {
                "Ports": {
                    "80/tcp": [
                        {"HostIp": "0.0.0.0", "HostPort": "32768"},
                        {"HostIp": "::", "HostPort": "32769"},
                    ],
                    "53/udp": [{"HostIp": "", "HostPort": "53"}],
                    "81/tcp": null,
                    "82/smoke": [{"HostIp": "x", "HostPort": "y"}],
                },
                "Networks": {
                    "bridge": {"IPAddress": "172.17.0.2"},
                    "none": {"IPAddress": ""},
                },
            },
        });
        let seen = inspection(json.to_string().as_bytes(), false).unwrap();
        let port = |container, protocol, at: &str| PublishedPort {
            container,
            protocol,
            at: at.parse().unwrap(),
        };
        assert_eq!(
            seen.ports,
            [
                port(53, Protocol::Udp, "0.0.0.0:53"),
                port(80, Protocol::Tcp, "0.0.0.0:32768"),
                port(80, Protocol::Tcp, "[::]:32769"),
            ]
        );
        assert_eq!(seen.health, Some(Health::Starting));
        assert_eq!(seen.health_output.as_deref(), Some("no db\n"));
        assert!(!seen.on_host_network);
        let address = "172.17.0.2".parse().unwrap();
        assert_eq!(seen.addresses, [("bridge".to_owned(), address)].into());

        let json = json!({"State": {"Status": "running", "Health": {"Status": ""}},
            "HostConfig": {"NetworkMode": "host"}, "NetworkSettings": {"Ports": null}});
        let seen = inspection(json.to_string().as_bytes(), true).unwrap();
        assert_eq!((seen.health, seen.on_host_network), (None, true));
        assert_eq!(seen.ports, []);
    }

    #[test]
    fn a_stop_signal_has_a_name() {
        for (reported, name) in [
            (json!("SIGINT"), Some("SIGINT")),
            (json!("15"), Some("SIGTERM")),
            (json!(9), Some("SIGKILL")),
            (json!("64"), Some("64")),
            (json!(0), Some("0")),
            (json!(""), None),
            (json!(null), None),
        ] {
            assert_eq!(stop_signal(reported).as_deref(), name);
        }
    }

    #[test]
    fn an_unknown_state_is_inconclusive() {
        for (name, expected) in [
            ("configured", ContainerStatus::Created),
            ("initialized", ContainerStatus::Created),
            ("paused", ContainerStatus::Running),
            ("restarting", ContainerStatus::Running),
            ("stopping", ContainerStatus::Running),
            ("stopped", ContainerStatus::Ended),
            ("removing", ContainerStatus::Removing),
            ("dead", ContainerStatus::Ended),
        ] {
            assert_eq!(status(name).unwrap(), expected, "{name}");
        }
        let error = status("melting").unwrap_err().error("inspect", "x");
        assert!(!error.is_definitive());
        let time = time("yesterday").unwrap_err().error("inspect", "x");
        assert!(!time.is_definitive());
    }

    #[test]
    fn each_log_driver_has_its_fidelity() {
        let of = |driver: &str, podman| {
            let driver = driver.to_owned();
            let config = BTreeMap::new();
            log(Log { driver, config }, podman).fidelity
        };
        assert_eq!(of("json-file", false), Some(LogFidelity::Utf8Lossy));
        assert_eq!(of("json-file", true), Some(LogFidelity::Lossless));
        assert_eq!(of("k8s-file", true), Some(LogFidelity::Lossless));
        assert_eq!(of("local", false), Some(LogFidelity::Lossless));
        assert_eq!(of("none", false), None);
        assert_eq!(of("syslog", false), None);
    }

    #[test]
    fn a_wait_never_reports_an_error_as_success() {
        let parse = |json: Value| wait_status(json.to_string().as_bytes()).unwrap().unwrap();
        assert_eq!(parse(json!({"StatusCode": 7})).code, Some(7));
        assert_eq!(parse(json!({"StatusCode": 0, "Error": null})).code, Some(0));
        assert_eq!(parse(json!({"StatusCode": -1})).code, None);
        assert_eq!(parse(json!({})).code, None);
        let lost = parse(json!({"StatusCode": 0, "Error": {"Message": "canceled"}}));
        assert_eq!(lost.code, None);
        assert_eq!(lost.error.as_deref(), Some("canceled"));
        let failed = parse(json!({"StatusCode": 127, "Error": {"Message": "bad"}}));
        assert_eq!(failed.code, Some(127));
    }

    #[test]
    fn half_a_wait_response_is_incomplete() {
        assert!(wait_status(b"").unwrap().is_none());
        assert!(wait_status(b"{\"StatusCode\":").unwrap().is_none());
        assert!(wait_status(b"{\"StatusCode\":1}\n").unwrap().is_some());
        assert!(wait_status(b"<html>").is_err());
    }

    #[test]
    fn containers_without_a_valid_run_label_are_skipped() {
        let json = json!([
            {"Id": "a", "State": "running", "Labels": {"moat.run": "one"}},
            {"Id": "b", "State": "running", "Labels": {"moat.run": "../x"}},
            {"Id": "c", "State": "running", "Labels": null},
            {"Id": "d", "State": "exited", "Labels": {"moat.run": "two"}},
        ]);
        let owned = owned(json.to_string().as_bytes()).unwrap();
        let ids: Vec<_> = owned.iter().map(|c| c.container.as_str()).collect();
        assert_eq!(ids, ["a", "d"]);
        assert_eq!(owned[1].status, ContainerStatus::Ended);
    }

    #[test]
    fn a_malformed_response_is_not_quoted() {
        let json = br#"{"State": {"Status": 7}, "Config": "s3cr3t"}"#;
        let error = inspection(json, false).unwrap_err().error("inspect", "x");
        assert!(!error.is_definitive());
        assert!(!error.to_string().contains("s3cr3t"));
    }
}

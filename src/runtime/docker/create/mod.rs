//! Builds the body of `POST /containers/create` from a spec.

mod check;
mod patch;
mod podman;

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, EndpointSettings, HealthConfig, HostConfig,
    HostConfigLogConfig, Mount as EngineMount, MountTmpfsOptions, MountType, NetworkingConfig,
    PortBinding, PortMap, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};

pub(super) use self::check::check;
pub(super) use self::patch::apply_patch;
pub(super) use self::podman::{
    check as check_podman, check_podman_4, missing_source, unchecked_sources,
};
use super::secrets;
use crate::runtime::CreateRequest;
use crate::spec::{
    Backstop, Gpus, HealthCheck, Mount, Port, Protocol, Relabel, RunSpec, RuntimeView, Settings,
    Stdin,
};

/// The label with the root's id.
pub(super) const ROOT_LABEL: &str = "moat.root";
/// The label with the run's id.
pub(super) const RUN_LABEL: &str = "moat.run";
/// The label with the time after which the container is an orphan, if any.
pub(super) const DEADLINE_LABEL: &str = "moat.deadline";

/// The maximum size of the engine's log, in bytes: 1 PB. Engines refuse `-1`.
const MAX_LOG_BYTES: &str = "1000000000000000";

/// The engine's log driver for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogDriver {
    JsonFile,
    Local,
    None,
}

impl LogDriver {
    pub(super) fn for_backstop(backstop: Backstop) -> Self {
        match backstop {
            Backstop::Engine => Self::JsonFile,
            Backstop::None => Self::None,
        }
    }

    /// Returns the driver's configuration.
    ///
    /// The engine fills in missing options with its own defaults for the driver. Each option that
    /// could lose output is therefore set, even to its usual value.
    fn config(self) -> HostConfigLogConfig {
        let typ = match self {
            Self::JsonFile => "json-file",
            Self::Local => "local",
            Self::None => "none",
        };
        let options: &[(&str, &str)] = match self {
            Self::None => &[],
            _ => &[
                ("max-file", "1"),
                ("max-size", MAX_LOG_BYTES),
                ("mode", "blocking"),
                // With a single file, the engine refuses compression at start.
                ("compress", "false"),
            ],
        };
        HostConfigLogConfig {
            typ: Some(typ.to_owned()),
            config: Some(options.iter().map(|(k, v)| pair(k, v)).collect()),
        }
    }
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// Returns the body for a request, without the patch.
pub(super) fn body(
    request: &CreateRequest<'_>,
    driver: LogDriver,
    is_podman: bool,
) -> ContainerCreateBody {
    let mut body = draft(request.spec, driver);
    if is_podman {
        podman::adapt(&mut body, request.spec.settings());
    }
    let labels = body.labels.get_or_insert_default();
    labels.extend([
        pair(ROOT_LABEL, request.root.as_str()),
        pair(RUN_LABEL, request.run.as_str()),
    ]);
    if let Some(deadline) = request.deadline {
        labels.extend([pair(DEADLINE_LABEL, &deadline.to_string())]);
    }
    body
}

/// Returns the body for a spec, without moat's labels and the patch.
fn draft(spec: &RunSpec, driver: LogDriver) -> ContainerCreateBody {
    let settings = spec.settings();
    let env: Vec<_> = RuntimeView::new(spec)
        .environment()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    ContainerCreateBody {
        image: Some(settings.image.clone()),
        cmd: non_empty(settings.cmd.clone()),
        // Docker's CLI sends one empty string to clear the image's entrypoint.
        entrypoint: settings.entrypoint.clone().map(|entrypoint| {
            if entrypoint.is_empty() {
                vec![String::new()]
            } else {
                entrypoint
            }
        }),
        env: non_empty(env),
        working_dir: settings.workdir.clone(),
        user: settings.user.clone(),
        hostname: settings.hostname.clone(),
        exposed_ports: non_empty(settings.ports.iter().map(port_key).collect()),
        labels: Some(settings.labels.clone().into_iter().collect()),
        tty: Some(settings.tty),
        attach_stdin: Some(false),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        open_stdin: Some(settings.stdin != Stdin::None),
        // If set, stdin ends when any connection to it ends. Otherwise stdin never ends.
        stdin_once: Some(settings.stdin == Stdin::Pipe),
        healthcheck: settings.health_check.as_ref().map(health_check),
        stop_signal: settings.stop_signal.clone(),
        host_config: Some(host_config(spec, driver)),
        networking_config: networking(settings),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &RunSpec, driver: LogDriver) -> HostConfig {
    let settings = spec.settings();
    let (relabeled, plain): (Vec<_>, Vec<_>) = settings
        .mounts
        .iter()
        .partition(|mount| mount.relabeled().is_some());
    let mounts = plain.into_iter().map(mount);
    let secrets = secrets::directories(spec).into_iter().map(anonymous_volume);
    HostConfig {
        log_config: Some(driver.config()),
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        mounts: non_empty(mounts.chain(secrets).collect()),
        binds: non_empty(relabeled.into_iter().filter_map(bind).collect()),
        network_mode: settings.network.clone(),
        port_bindings: ports(settings),
        extra_hosts: non_empty(
            settings
                .extra_hosts
                .iter()
                .map(|(n, a)| format!("{n}:{a}"))
                .collect(),
        ),
        dns: non_empty(settings.dns.clone()),
        memory: settings.memory.map(to_i64),
        nano_cpus: settings.cpus.map(|cpus| (cpus * 1e9).round() as i64),
        pids_limit: settings.pids_limit.map(to_i64),
        shm_size: settings.shm_size.map(to_i64),
        ulimits: non_empty(
            settings
                .ulimits
                .iter()
                .map(|limit| ResourcesUlimits {
                    name: Some(limit.name.clone()),
                    soft: Some(limit.soft),
                    hard: Some(limit.hard),
                })
                .collect(),
        ),
        devices: non_empty(
            settings
                .devices
                .iter()
                .map(|device| DeviceMapping {
                    path_on_host: Some(device.host.clone()),
                    path_in_container: Some(device.container.clone()),
                    cgroup_permissions: Some(device.permissions.clone()),
                })
                .collect(),
        ),
        device_requests: settings.gpus.as_ref().map(|gpus| vec![gpu_request(gpus)]),
        sysctls: Some(
            settings
                .sysctls
                .clone()
                .into_iter()
                .collect::<HashMap<_, _>>(),
        )
        .filter(|sysctls| !sysctls.is_empty()),
        cap_add: non_empty(settings.cap_add.clone()),
        cap_drop: non_empty(settings.cap_drop.clone()),
        security_opt: non_empty(settings.security_opt.clone()),
        privileged: Some(settings.privileged),
        readonly_rootfs: Some(settings.read_only),
        // Set even if false: the engine's default may differ.
        init: Some(settings.init),
        runtime: settings.oci_runtime.clone(),
        // Engines before API 1.42 ignore it.
        console_size: settings
            .window
            .map(|size| vec![size.rows.into(), size.columns.into()]),
        ..HostConfig::default()
    }
}

/// Converts a mount.
///
/// The engine refuses such a mount if its source does not exist. For an entry of the older `Binds`,
/// it would create a directory.
fn mount(mount: &Mount) -> EngineMount {
    let (typ, source, read_only) = match mount {
        Mount::Bind {
            source, read_only, ..
        } => {
            let source = source.to_string_lossy().into_owned();
            (MountType::BIND, Some(source), *read_only)
        }
        Mount::Volume {
            name, read_only, ..
        } => (MountType::VOLUME, Some(name.clone()), *read_only),
        Mount::Tmpfs { read_only, .. } => (MountType::TMPFS, None, *read_only),
    };
    let size = match mount {
        Mount::Tmpfs { size, .. } => *size,
        _ => None,
    };
    EngineMount {
        typ: Some(typ),
        source,
        target: Some(mount.target().to_owned()),
        read_only: Some(read_only),
        tmpfs_options: size.map(|size| MountTmpfsOptions {
            size_bytes: Some(to_i64(size)),
            ..MountTmpfsOptions::default()
        }),
        ..EngineMount::default()
    }
}

/// Converts a mount that is relabeled to `SOURCE:TARGET:OPTIONS`, the only form with this option.
fn bind(mount: &Mount) -> Option<String> {
    let (relabel, source, read_only) = mount.relabeled()?;
    let mode = if read_only { "ro" } else { "rw" };
    let label = match relabel {
        Relabel::Shared => "z",
        Relabel::Private => "Z",
    };
    Some(format!("{source}:{}:{mode},{label}", mount.target()))
}

/// A volume that the engine removes with its container.
fn anonymous_volume(target: &str) -> EngineMount {
    EngineMount {
        typ: Some(MountType::VOLUME),
        target: Some(target.to_owned()),
        read_only: Some(false),
        ..EngineMount::default()
    }
}

fn health_check(check: &HealthCheck) -> HealthConfig {
    let Some(command) = &check.command else {
        return HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        };
    };
    let nanoseconds = |time: Duration| Some(to_i64(time.as_nanos().try_into().unwrap_or(u64::MAX)));
    let test = std::iter::once("CMD".to_owned()).chain(command.iter().cloned());
    HealthConfig {
        test: Some(test.collect()),
        interval: nanoseconds(check.interval),
        timeout: nanoseconds(check.timeout),
        retries: Some(check.retries.into()),
        start_period: nanoseconds(check.start_period),
        start_interval: None,
    }
}

fn networking(settings: &Settings) -> Option<NetworkingConfig> {
    let network = settings.network.as_ref()?;
    let aliases = non_empty(settings.network_aliases.clone())?;
    let endpoint = EndpointSettings {
        aliases: Some(aliases),
        ..EndpointSettings::default()
    };
    Some(NetworkingConfig {
        endpoints_config: Some(HashMap::from([(network.clone(), endpoint)])),
    })
}

fn port_key(port: &Port) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("{}/{protocol}", port.container)
}

fn ports(settings: &Settings) -> Option<PortMap> {
    let mut map = PortMap::new();
    for port in &settings.ports {
        let bindings = map.entry(port_key(port)).or_default();
        bindings.get_or_insert_default().push(PortBinding {
            host_ip: port.address.clone(),
            host_port: port.host.map(|port| port.to_string()),
        });
    }
    Some(map).filter(|map| !map.is_empty())
}

fn gpu_request(gpus: &Gpus) -> DeviceRequest {
    let (count, ids) = match gpus {
        Gpus::All => (Some(-1), None),
        Gpus::Count(count) => (Some(i64::from(*count)), None),
        Gpus::Ids(ids) => (None, Some(ids.clone())),
    };
    DeviceRequest {
        count,
        device_ids: ids,
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..DeviceRequest::default()
    }
}

/// Returns `None` for an empty list, so that the defaults of the engine and the image apply.
fn non_empty<T>(values: Vec<T>) -> Option<Vec<T>> {
    Some(values).filter(|values| !values.is_empty())
}

/// Converts a number that validation has bounded.
fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{RootId, RunId, WindowSize};
    use serde_json::{Value, json};

    fn json(spec: &RunSpec) -> Value {
        let root = RootId::try_from("0123456789abcdef0123".to_owned()).unwrap();
        let run = RunId::new("one").unwrap();
        let request = CreateRequest::new("name", &root, &run, spec);
        let driver = LogDriver::for_backstop(spec.settings().backstop);
        serde_json::to_value(body(&request, driver, false)).unwrap()
    }

    #[test]
    fn a_plain_spec_sets_only_what_moat_requires() {
        assert_eq!(
            json(&RunSpec::new("busybox:1")),
            json!({
                "Image": "busybox:1",
                "Labels": {"moat.root": "0123456789abcdef0123", "moat.run": "one"},
                "Tty": false,
                "AttachStdin": false, "AttachStdout": true, "AttachStderr": true,
                "OpenStdin": false, "StdinOnce": false,
                "HostConfig": {
                    "LogConfig": {"Type": "json-file", "Config": {
                        "max-file": "1", "max-size": "1000000000000000",
                        "mode": "blocking", "compress": "false",
                    }},
                    "AutoRemove": false,
                    "RestartPolicy": {"Name": "no"},
                    "Privileged": false, "ReadonlyRootfs": false, "Init": false,
                },
            })
        );
    }

    #[test]
    fn each_setting_reaches_the_engine() {
        let spec = RunSpec::new("busybox:1")
            .cmd(["echo", "x"])
            .entrypoint(["/bin/sh"])
            .env("A", "b=c")
            .env("EMPTY", "")
            .workdir("/w")
            .user("1:2")
            .hostname("h")
            .bind("/src", "/a")
            .volume("cache", "/b")
            .tmpfs("/c", Some(1 << 20))
            .mount(Mount::tmpfs("/d", None).read_only(true))
            .mount(Mount::bind("/s", "/e").relabel(Relabel::Shared))
            .mount(
                Mount::volume("cache", "/f")
                    .read_only(true)
                    .relabel(Relabel::Private),
            )
            .secret_file("/run/secrets/token", "s3cr3t")
            .network("mine")
            .network_alias("db")
            .port(Port::tcp(80))
            .port(Port::tcp(80).host(8080).address("127.0.0.1"))
            .port(Port::udp(53).host(53))
            .extra_host("me", "host-gateway")
            .dns("1.1.1.1")
            .memory(1 << 30)
            .cpus(1.5)
            .pids_limit(10)
            .ulimit("nofile", 1, 2)
            .shm_size(4096)
            .device("/dev/null")
            .gpus(Gpus::All)
            .sysctl("net.x", "1")
            .cap_add("NET_ADMIN")
            .cap_drop("ALL")
            .security_opt("no-new-privileges")
            .privileged(true)
            .read_only(true)
            .init(true)
            .oci_runtime("runsc")
            .label("team", "x")
            .tty(true)
            .stdin(Stdin::Open)
            .window(WindowSize::new(80, 24))
            .stop_signal("SIGINT");
        let mut body = json(&spec);
        let mut host = body["HostConfig"].take();
        for key in ["LogConfig", "AutoRemove", "RestartPolicy"] {
            host.as_object_mut().unwrap().remove(key);
        }
        assert_eq!(
            body,
            json!({
                "Image": "busybox:1", "Cmd": ["echo", "x"], "Entrypoint": ["/bin/sh"],
                "Env": ["A=b=c", "EMPTY="], "WorkingDir": "/w", "User": "1:2", "Hostname": "h",
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "Labels": {
                    "team": "x", "moat.root": "0123456789abcdef0123", "moat.run": "one",
                },
                "Tty": true, "AttachStdin": false, "AttachStdout": true, "AttachStderr": true,
                "OpenStdin": true, "StdinOnce": false, "StopSignal": "SIGINT",
                "HostConfig": null,
                "NetworkingConfig": {"EndpointsConfig": {"mine": {"Aliases": ["db"]}}},
            })
        );
        assert_eq!(
            host,
            json!({
                "Mounts": [
                    {"Type": "bind", "Source": "/src", "Target": "/a", "ReadOnly": false},
                    {"Type": "volume", "Source": "cache", "Target": "/b", "ReadOnly": false},
                    {"Type": "tmpfs", "Target": "/c", "ReadOnly": false,
                        "TmpfsOptions": {"SizeBytes": 1048576}},
                    {"Type": "tmpfs", "Target": "/d", "ReadOnly": true},
                    {"Type": "volume", "Target": "/run/secrets", "ReadOnly": false},
                ],
                "Binds": ["/s:/e:rw,z", "cache:/f:ro,Z"],
                "NetworkMode": "mine",
                "PortBindings": {
                    "80/tcp": [{}, {"HostIp": "127.0.0.1", "HostPort": "8080"}],
                    "53/udp": [{"HostPort": "53"}],
                },
                "ExtraHosts": ["me:host-gateway"], "Dns": ["1.1.1.1"],
                "Memory": 1073741824, "NanoCpus": 1500000000, "PidsLimit": 10,
                "ShmSize": 4096, "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
                "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/null",
                    "CgroupPermissions": "rwm"}],
                "DeviceRequests": [{"Count": -1, "Capabilities": [["gpu"]]}],
                "Sysctls": {"net.x": "1"}, "CapAdd": ["NET_ADMIN"], "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"], "Privileged": true,
                "ReadonlyRootfs": true, "Init": true, "Runtime": "runsc",
                "ConsoleSize": [24, 80],
            })
        );
    }

    #[test]
    fn only_a_pipe_ends_when_its_writer_closes() {
        for (stdin, open, once) in [
            (Stdin::None, false, false),
            (Stdin::Pipe, true, true),
            (Stdin::Open, true, false),
        ] {
            let body = json(&RunSpec::new("x").stdin(stdin));
            assert_eq!(
                (&body["OpenStdin"], &body["StdinOnce"]),
                (&json!(open), &json!(once))
            );
        }
    }

    #[test]
    fn an_empty_entrypoint_clears_the_images_entrypoint() {
        let body = json(&RunSpec::new("x").entrypoint([""; 0]));
        assert_eq!(body["Entrypoint"], json!([""]));
        assert_eq!(json(&RunSpec::new("x"))["Entrypoint"], Value::Null);
    }

    #[test]
    fn without_a_backstop_the_engine_keeps_no_log() {
        let body = json(&RunSpec::new("x").backstop(Backstop::None));
        assert_eq!(
            body["HostConfig"]["LogConfig"],
            json!({"Type": "none", "Config": {}})
        );
    }

    #[test]
    fn a_health_check_replaces_the_images() {
        let check = HealthCheck::new(["test", "-f", "/a b"])
            .interval(Duration::from_millis(1))
            .timeout(Duration::from_secs(2))
            .start_period(Duration::from_secs(3))
            .retries(4);
        let body = json(&RunSpec::new("x").health_check(check));
        assert_eq!(
            body["Healthcheck"],
            json!({"Test": ["CMD", "test", "-f", "/a b"], "Interval": 1_000_000,
                "Timeout": 2_000_000_000, "Retries": 4, "StartPeriod": 3_000_000_000_u64})
        );
        let body = json(&RunSpec::new("x").health_check(HealthCheck::none()));
        assert_eq!(body["Healthcheck"], json!({"Test": ["NONE"]}));
    }

    #[test]
    fn gpus_are_requested_by_count_or_by_id() {
        let of = |gpus| serde_json::to_value(gpu_request(&gpus)).unwrap();
        assert_eq!(
            of(Gpus::Count(2)),
            json!({"Count": 2, "Capabilities": [["gpu"]]})
        );
        assert_eq!(
            of(Gpus::Ids(vec!["a".into()])),
            json!({"DeviceIDs": ["a"], "Capabilities": [["gpu"]]})
        );
    }
}

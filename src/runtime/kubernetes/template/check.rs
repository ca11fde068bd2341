//! Checks of a spec for Kubernetes that need no server.

use serde_json::{Map, Value};

use crate::runtime::kubernetes::plain::SIGTERM;
use crate::runtime::signal;
use crate::spec::{
    Backstop, Gpus, InvalidSpec, Mount, Pull, RunSpec, RuntimeView, Settings, Stdin,
};

/// The maximum length of an argument or a variable on Linux.
const MAX_ARGUMENT_BYTES: usize = (128 << 10) - 1;
/// The maximum length of a name in a Secret, and of all its content, in bytes.
const MAX_SECRET_KEY: usize = 253;
const MAX_SECRET_BYTES: usize = 1_000_000;
/// The directory of the helper's files in a container.
const RESERVED_PATH: &str = "/.moat";

/// Refuses a spec that a pod cannot run.
pub(crate) fn check(spec: &RunSpec) -> Result<(), InvalidSpec> {
    let settings = spec.settings();
    if settings.image.is_empty() {
        return refuse(
            "image",
            "the spec has no image, so it is for a local process",
        );
    }
    command(spec)?;
    unsupported(settings)?;
    user(settings)?;
    hostname(settings)?;
    hosts(settings)?;
    mounts(settings)?;
    labels(settings)?;
    if let Some(network) = &settings.network
        && network != "host"
    {
        return refuse(
            "network",
            format!("a pod has the cluster's network or \"host\", and not {network:?}"),
        );
    }
    if let Some(platform) = &settings.platform
        && arch(platform).is_none()
    {
        return refuse(
            "platform",
            format!("moat's helper runs on linux/amd64 and linux/arm64, and not on {platform:?}"),
        );
    }
    if RuntimeView::new(spec).secret_files().next().is_some() {
        return refuse(
            "secret_files",
            "moat writes no files into a pod before its start; mount a Secret of the cluster with \
             `engine_patch`, or use `env`",
        );
    }
    if RuntimeView::new(spec).credentials().is_some() {
        return refuse(
            "registry_credentials",
            "a pod needs a secret of the cluster; name it with `Kubernetes::image_pull_secret`",
        );
    }
    match RuntimeView::new(spec).patch() {
        Some(patch) => check_patch("engine_patch", patch),
        None => Ok(()),
    }
}

/// Refuses a spec that a pod without the helper cannot run.
pub(crate) fn check_plain(spec: &RunSpec) -> Result<(), InvalidSpec> {
    check(spec)?;
    let settings = spec.settings();
    for (field, set) in [
        ("tty", settings.tty),
        ("stdin", settings.stdin != Stdin::None),
        ("backstop", settings.backstop == Backstop::None),
    ] {
        if set {
            return refuse(field, "it is not supported without moat's helper");
        }
    }
    if let Some(signal) = &settings.stop_signal
        && signal::number(signal) != Some(SIGTERM)
    {
        return refuse(
            "stop_signal",
            "the kubelet always sends the stop signal of the image; another signal needs moat's helper",
        );
    }
    let mut bytes = 0;
    for (name, value) in RuntimeView::new(spec).environment() {
        bytes += name.len() + value.len();
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        // The kubelet skips a name that begins with a digit.
        let is_skipped = name.starts_with(|c: char| c.is_ascii_digit());
        let is_path = name == "." || name.starts_with("..");
        if name.len() > MAX_SECRET_KEY || !name.chars().all(valid) || is_skipped || is_path {
            return refuse(
                "env",
                format!("{name:?} cannot be the name of a variable in a Secret"),
            );
        }
    }
    if bytes > MAX_SECRET_BYTES {
        return refuse(
            "env",
            format!("the variables have {bytes} bytes, and a Secret holds {MAX_SECRET_BYTES}"),
        );
    }
    Ok(())
}

fn refuse<T>(field: &'static str, reason: impl Into<String>) -> Result<T, InvalidSpec> {
    Err(InvalidSpec::new(field, reason))
}

fn command(spec: &RunSpec) -> Result<(), InvalidSpec> {
    let settings = spec.settings();
    let entrypoint = settings.entrypoint.iter().flatten();
    if entrypoint.clone().chain(&settings.cmd).next().is_none() {
        return refuse(
            "cmd",
            "it is empty: the Kubernetes API does not return the command of an image",
        );
    }
    for argument in entrypoint.chain(&settings.cmd) {
        if argument.len() > MAX_ARGUMENT_BYTES {
            return refuse(
                "cmd",
                format!(
                    "an argument has {} bytes: Linux accepts at most {MAX_ARGUMENT_BYTES}",
                    argument.len()
                ),
            );
        }
    }
    for (name, value) in RuntimeView::new(spec).environment() {
        if name.len() + value.len() >= MAX_ARGUMENT_BYTES {
            return refuse(
                "env",
                format!("{name} is longer than Linux accepts, {MAX_ARGUMENT_BYTES} bytes"),
            );
        }
    }
    Ok(())
}

fn unsupported(settings: &Settings) -> Result<(), InvalidSpec> {
    const PATCH: &str = "a pod does not have this setting";
    const PULLS: &str = "a node retries pulls by its own rules; use `Kubernetes::patience`";
    let defaults = Settings::default();
    for (field, set, reason) in [
        (
            "ports",
            !settings.ports.is_empty(),
            "a pod publishes no ports; use a Service of the cluster",
        ),
        (
            "network_aliases",
            !settings.network_aliases.is_empty(),
            PATCH,
        ),
        (
            "health_check",
            settings
                .health_check
                .as_ref()
                .is_some_and(|check| check.command.is_some()),
            "a pod has no health check that moat reads; wait with `Ready::exec`",
        ),
        ("pids_limit", settings.pids_limit.is_some(), PATCH),
        ("ulimits", !settings.ulimits.is_empty(), PATCH),
        ("devices", !settings.devices.is_empty(), PATCH),
        (
            "gpus",
            matches!(settings.gpus, Some(Gpus::All | Gpus::Ids(_))),
            "a pod can only ask for a number of GPUs",
        ),
        (
            "pull",
            settings.pull == Pull::Newer,
            "a node does not fall back to its own image; use `Pull::Always` or `Pull::Missing`",
        ),
        (
            "pull_retries",
            settings.pull_retries != defaults.pull_retries,
            PULLS,
        ),
        (
            "pull_stall_timeout",
            settings.pull_stall_timeout != defaults.pull_stall_timeout,
            PULLS,
        ),
        (
            "security_opt",
            settings
                .security_opt
                .iter()
                .any(|option| option != "no-new-privileges"),
            "only no-new-privileges is supported; use `Kubernetes::security_context`",
        ),
    ] {
        if set {
            return refuse(field, reason);
        }
    }
    Ok(())
}

/// Returns the numeric user and group of `uid` or `uid:gid`.
pub(crate) fn user_ids(user: &str) -> Option<(u32, Option<u32>)> {
    match user.split_once(':') {
        None => Some((user.parse().ok()?, None)),
        Some((uid, gid)) => Some((uid.parse().ok()?, Some(gid.parse().ok()?))),
    }
}

fn user(settings: &Settings) -> Result<(), InvalidSpec> {
    match &settings.user {
        Some(user) if user_ids(user).is_none() => refuse(
            "user",
            format!("a pod needs a numeric user, such as 1000 or 1000:1000, and not {user:?}"),
        ),
        _ => Ok(()),
    }
}

fn hosts(settings: &Settings) -> Result<(), InvalidSpec> {
    for (name, address) in &settings.extra_hosts {
        if address.parse::<std::net::IpAddr>().is_err() {
            return refuse(
                "extra_hosts",
                format!("{name}: {address:?} is not an IP address"),
            );
        }
    }
    Ok(())
}

/// The API server accepts only a label of DNS. Engines of one machine accept more.
fn hostname(settings: &Settings) -> Result<(), InvalidSpec> {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match &settings.hostname {
        Some(name)
            if name.len() > 63
                || name.starts_with('-')
                || name.ends_with('-')
                || !name.chars().all(is_inner) =>
        {
            refuse(
                "hostname",
                format!(
                    "a pod cannot have the name {name:?}: it takes up to 63 lowercase letters, digits \
                     and '-', with no '-' at either end"
                ),
            )
        }
        _ => Ok(()),
    }
}

fn mounts(settings: &Settings) -> Result<(), InvalidSpec> {
    for mount in &settings.mounts {
        let target = mount.target();
        if target == RESERVED_PATH || target.starts_with("/.moat/") {
            return refuse(
                "mounts",
                format!("{target:?} is reserved for moat's helper"),
            );
        }
        match mount {
            Mount::Bind { .. } => {
                return refuse(
                    "mounts",
                    "a directory of this machine cannot be mounted into a pod; use a volume, \
                     which names a PersistentVolumeClaim, or copy the files",
                );
            }
            Mount::Volume {
                relabel: Some(_), ..
            } => {
                return refuse(
                    "mounts",
                    "the cluster labels the volumes of a pod for SELinux: mount it without `relabel`",
                );
            }
            Mount::Tmpfs {
                read_only: true, ..
            } => return refuse("mounts", "a tmpfs of a pod cannot be read-only"),
            _ => {}
        }
    }
    Ok(())
}

fn labels(settings: &Settings) -> Result<(), InvalidSpec> {
    for (key, value) in &settings.labels {
        if key.contains("moat.dev/") || !is_label_key(key) || !is_label_value(value) {
            return refuse(
                "labels",
                format!("{key:?} with value {value:?} is not a valid label of a pod"),
            );
        }
    }
    Ok(())
}

fn is_label_key(key: &str) -> bool {
    let name = key.split_once('/').map_or(key, |(_, name)| name);
    !name.is_empty() && is_label_value(name) && key.len() <= 253
}

pub(crate) fn is_label_value(value: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && value.chars().all(inner)
        && edge(value.chars().next())
        && edge(value.chars().last())
}

/// Returns Kubernetes' name of an architecture.
pub(crate) fn arch(platform: &str) -> Option<&'static str> {
    let (os, arch) = platform.split_once('/')?;
    match (os, arch) {
        ("linux", "amd64" | "x86_64") => Some("amd64"),
        ("linux", "arm64" | "aarch64" | "arm64/v8") => Some("arm64"),
        _ => None,
    }
}

/// The parts of a pod that a patch must leave alone, and the reason.
const PROTECTED: &[(&str, &str)] = &[
    ("/apiVersion", "moat sets it"),
    ("/kind", "moat sets it"),
    ("/status", "the server sets it"),
    ("/metadata/name", "moat finds the run by it"),
    (
        "/metadata/generateName",
        "a repeated request would create a second pod",
    ),
    ("/metadata/namespace", "moat sets it"),
    (
        "/metadata/ownerReferences",
        "the end of an owner would remove the pod and its output",
    ),
    (
        "/metadata/labels/moat.dev~1root",
        "moat finds the run by it",
    ),
    (
        "/metadata/annotations/moat.dev~1run",
        "moat finds the run by it",
    ),
    ("/metadata/annotations/moat.dev~1deadline", "moat sets it"),
    ("/metadata/annotations/moat.dev~1discard", "moat sets it"),
    ("/metadata/annotations/moat.dev~1plain", "moat sets it"),
    ("/metadata/annotations/moat.dev~1start", "moat sets it"),
    ("/metadata/finalizers", "moat sets them"),
    (
        "/spec/restartPolicy",
        "a restart would run the command a second time",
    ),
    (
        "/spec/activeDeadlineSeconds",
        "the deadline would end the collector and lose output",
    ),
    (
        "/spec/shareProcessNamespace",
        "the end of the command would not end its processes",
    ),
    (
        "/spec/hostPID",
        "the end of the command would not end its processes",
    ),
    ("/spec/ephemeralContainers", "a pod is created without them"),
];

/// Refuses a patch that breaks what moat relies on. Containers are matched by name, and the
/// containers `main` and `moat` must keep their image, their command and their streams.
pub(crate) fn check_patch(field: &'static str, patch: &Value) -> Result<(), InvalidSpec> {
    if !patch.is_object() {
        return refuse(
            field,
            "it must be a JSON object that is merged into the pod",
        );
    }
    for parent in [
        "/metadata",
        "/metadata/labels",
        "/metadata/annotations",
        "/spec",
    ] {
        if patch
            .pointer(parent)
            .is_some_and(|value| !value.is_object())
        {
            return refuse(field, format!("{parent} must be an object"));
        }
    }
    for (pointer, reason) in PROTECTED {
        if patch.pointer(pointer).is_some() {
            return refuse(field, format!("it sets {pointer}: {reason}"));
        }
    }
    for pointer in ["/spec/containers", "/spec/volumes", "/spec/initContainers"] {
        let Some(list) = patch.pointer(pointer) else {
            continue;
        };
        let Some(list) = list.as_array() else {
            return refuse(field, format!("{pointer} must be a list"));
        };
        for item in list {
            check_item(field, pointer, item)?;
        }
    }
    Ok(())
}

fn check_item(field: &'static str, pointer: &str, item: &Value) -> Result<(), InvalidSpec> {
    let Some(name) = item.get("name").and_then(Value::as_str) else {
        return refuse(field, format!("an entry of {pointer} has no name"));
    };
    let own = matches!(name, "main" | "moat") || name.starts_with("moat-");
    if pointer != "/spec/containers" && own {
        return refuse(
            field,
            format!("{pointer} has {name:?}, which is reserved for moat"),
        );
    }
    if pointer == "/spec/containers" && !matches!(name, "main" | "moat") {
        return Ok(());
    }
    for key in [
        "command",
        "args",
        "tty",
        "stdin",
        "stdinOnce",
        "lifecycle",
        "image",
    ] {
        if own && item.get(key).is_some() {
            return refuse(
                field,
                format!("it sets {key} of the container {name:?}, which moat sets"),
            );
        }
    }
    Ok(())
}

/// Merges a patch into a pod: objects by key (RFC 7386), and lists of named objects by name.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (target @ Value::Object(_), Value::Object(patch)) => {
            let Value::Object(target) = target else {
                return;
            };
            merge_objects(target, patch);
        }
        (Value::Array(target), Value::Array(patch)) if is_named(patch) => {
            for item in patch {
                match target
                    .iter_mut()
                    .find(|known| known.get("name") == item.get("name"))
                {
                    Some(known) => merge(known, item),
                    None => target.push(item.clone()),
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn merge_objects(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn is_named(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(|item| item.get("name").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn an_unsupported_spec_is_refused_with_its_field() {
        let spec = || RunSpec::new("busybox").cmd(["true"]);
        check(&spec()).unwrap();
        check(&spec().hostname("web-1")).unwrap();
        for (field, bad) in [
            ("image", RunSpec::command(["true"])),
            ("cmd", RunSpec::new("busybox")),
            ("user", spec().user("nobody")),
            ("hostname", spec().hostname("a_b")),
            ("hostname", spec().hostname("-a")),
            ("hostname", spec().hostname("A")),
            ("hostname", spec().hostname("a".repeat(64))),
            ("network", spec().network("none")),
            ("platform", spec().platform("windows/amd64")),
            ("labels", spec().label("a", "not a label")),
            ("pull", spec().pull(Pull::Newer)),
            ("pull_retries", spec().pull_retries(0)),
            (
                "pull_stall_timeout",
                spec().pull_stall_timeout(Duration::from_secs(1)),
            ),
            ("mounts", spec().tmpfs("/.moat/io", None)),
            ("mounts", spec().bind("/etc", "/etc")),
            ("extra_hosts", spec().extra_host("host", "host-gateway")),
            ("secret_files", spec().secret_file("/run/secrets/a", "x")),
            (
                "health_check",
                spec().health_check(crate::spec::HealthCheck::new(["true"])),
            ),
            (
                "mounts",
                spec().mount(Mount::volume("v", "/x").relabel(crate::spec::Relabel::Private)),
            ),
            (
                "engine_patch",
                spec().engine_patch(json!({"metadata": null})),
            ),
            (
                "engine_patch",
                spec().engine_patch(json!({"metadata": {"labels": null}})),
            ),
            (
                "engine_patch",
                spec().engine_patch(json!({"spec": {"hostPID": true}})),
            ),
            (
                "engine_patch",
                spec()
                    .engine_patch(json!({"spec": {"containers": [{"name": "main", "tty": true}]}})),
            ),
        ] {
            match check(&bad) {
                Err(InvalidSpec { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_plain_pod_refuses_what_only_the_helper_can() {
        let spec = || RunSpec::new("busybox").cmd(["true"]);
        for fine in [
            spec(),
            spec().env("A_b-c.1", "x").stop_signal("TERM"),
            spec().env("A", "x".repeat(100_000)),
        ] {
            check_plain(&fine).unwrap();
        }
        let large = (0..11).fold(spec(), |spec, number| {
            spec.env(format!("A{number}"), "x".repeat(100_000))
        });
        for (field, bad) in [
            ("cmd", RunSpec::new("busybox")),
            ("tty", spec().tty(true)),
            ("stdin", spec().stdin(Stdin::Pipe)),
            ("backstop", spec().backstop(Backstop::None)),
            ("stop_signal", spec().stop_signal("INT")),
            ("env", spec().env("A B", "x")),
            ("env", spec().env("1A", "x")),
            ("env", spec().env("..A", "x")),
            ("env", large),
            (
                "engine_patch",
                spec().engine_patch(json!({"metadata": {"finalizers": []}})),
            ),
        ] {
            match check_plain(&bad) {
                Err(InvalidSpec { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_patch_merges_containers_by_name() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "main", "image": "a"}, {"name": "moat", "image": "a"},
        ]}});
        merge(
            &mut pod,
            &json!({"spec": {"priority": 1, "containers": [
                {"name": "main", "resources": {"limits": {"cpu": "1"}}}, {"name": "side"},
            ]}}),
        );
        assert_eq!(
            pod,
            json!({"spec": {"priority": 1, "containers": [
                {"name": "main", "image": "a", "resources": {"limits": {"cpu": "1"}}},
                {"name": "moat", "image": "a"},
                {"name": "side"},
            ]}})
        );
    }
}

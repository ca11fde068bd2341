//! The pod of a run.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::super::PodOptions;
use super::super::api::connection::{CONTROL, GATE, HELPER};
use super::super::api::pod::{
    DEADLINE_ANNOTATION, DISCARD_ANNOTATION, PLAIN_ANNOTATION, ROOT_LABEL, RUN_ANNOTATION,
};
use super::check::{arch, merge, user_ids};
use super::helper;
use crate::runtime::CreateRequest;
use crate::spec::{Backstop, Gpus, Mount, Pull, RuntimeView, Settings, Stdin};
use crate::timestamp::Timestamp;

/// The spool of the output.
const SPOOL: &str = "/.moat/spool/log";
/// The disk space of a spool's volume beyond its limit, in bytes.
const SPOOL_SLACK: u64 = 64 << 20;
/// The time for which a collector keeps the output after it had to kill the command, in seconds.
const KEEP_AFTER_KILL: u64 = 24 * 3600;
/// The time after which a pod ends whose command was not released, in seconds.
const RELEASE_WITHIN: u64 = 3600;

/// Returns the pod's name: the container's name where that is a valid name, else a digest of it.
pub(crate) fn pod_name(name: &str) -> String {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edges = name.ends_with('-') || name.starts_with('-');
    if name.len() <= 63 && name.chars().all(valid) && !edges {
        return name.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let hex: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("moat-{hex}")
}

/// Returns the pod of a run.
pub(crate) fn pod(request: &CreateRequest<'_>, options: &PodOptions) -> Value {
    let settings = request.spec.settings();
    let arch = match &settings.platform {
        Some(platform) => arch(platform).unwrap_or("amd64"),
        None => options.arch,
    };
    let mut annotations = json!({ RUN_ANNOTATION: request.run.to_string() });
    if let Some(deadline) = request.deadline {
        annotations[DEADLINE_ANNOTATION] = json!(deadline.to_string());
    }
    if settings.backstop == Backstop::None {
        annotations[DISCARD_ANNOTATION] = json!("true");
    }
    // Nobody else knows this name, so that the command cannot start early.
    let secret = options.plain.then(|| {
        let random = ulid::Ulid::generate().to_string().to_ascii_lowercase();
        format!("moat-{random}")
    });
    if let Some(secret) = &secret {
        annotations[PLAIN_ANNOTATION] = json!(secret);
    }
    let mut labels = json!(options.labels);
    merge(&mut labels, &json!(settings.labels));
    labels[ROOT_LABEL] = json!(request.root.to_string());
    let spec = match options.plain {
        true => plain_spec(settings, options, arch),
        false => pod_spec(settings, request.deadline, options, arch),
    };
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(request.name),
            "labels": labels,
            "annotations": annotations,
        },
        "spec": spec,
    });
    if let Some(patch) = &options.patch {
        merge(&mut pod, patch);
    }
    if let Some(patch) = RuntimeView::new(request.spec).patch() {
        merge(&mut pod, patch);
    }
    if let Some(secret) = &secret {
        wait_for(&mut pod, secret);
    }
    pod
}

/// Makes the command wait for a Secret, whatever a patch has set.
fn wait_for(pod: &mut Value, secret: &str) {
    let containers = pod["spec"]["containers"].as_array_mut();
    let main = containers.into_iter().flatten();
    for container in main.filter(|container| container["name"] == "main") {
        let source = json!({"secretRef": {"name": secret}});
        match container["envFrom"].as_array_mut() {
            Some(sources) => sources.push(source),
            None => container["envFrom"] = json!([source]),
        }
    }
}

fn pod_spec(
    settings: &Settings,
    deadline: Option<Timestamp>,
    options: &PodOptions,
    arch: &str,
) -> Value {
    let mut spec = base(settings, options, arch);
    spec["containers"] = json!([
        main(settings, options),
        collector(settings, deadline, options),
    ]);
    spec["volumes"] = json!([helper_volumes(options, arch), own_volumes(settings)].concat());
    if let Some(image) = &options.helper_image {
        spec["initContainers"] = json!([{
            "name": "moat-helper",
            "image": image,
            "command": ["/moat-helper", "install", "/.moat/bin"],
            "volumeMounts": [{"name": "moat-bin", "mountPath": "/.moat/bin"}],
            "securityContext": options.security_context,
        }]);
    }
    spec
}

/// Returns the spec of a pod without the helper.
fn plain_spec(settings: &Settings, options: &PodOptions, arch: &str) -> Value {
    let mut container = command_container(settings, options);
    container["command"] = own_command(settings).collect();
    container["volumeMounts"] = json!(own_mounts(settings));
    let mut spec = base(settings, options, arch);
    spec["containers"] = json!([container]);
    spec["volumes"] = json!(own_volumes(settings));
    let grace = settings.stop_grace.as_secs_f64().ceil().max(1.0) as u64;
    spec["terminationGracePeriodSeconds"] = json!(grace);
    spec
}

/// Returns the parts of a pod's spec that do not depend on the helper.
fn base(settings: &Settings, options: &PodOptions, arch: &str) -> Value {
    let mut selector = json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": arch});
    merge(&mut selector, &json!(options.node_selector));
    let mut spec = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": options.service_account.is_some(),
        "enableServiceLinks": false,
        "nodeSelector": selector,
    });
    for (key, value) in pod_settings(settings, options) {
        spec[key] = value;
    }
    spec
}

/// Returns the fields of a pod's spec that only some specs set.
fn pod_settings(settings: &Settings, options: &PodOptions) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            fields.insert(key.to_owned(), value);
        }
    };
    set(
        "serviceAccountName",
        options.service_account.as_ref().map(|name| json!(name)),
    );
    set(
        "hostname",
        settings.hostname.as_ref().map(|name| json!(name)),
    );
    set(
        "runtimeClassName",
        settings.oci_runtime.as_ref().map(|name| json!(name)),
    );
    set(
        "hostNetwork",
        settings.network.as_ref().map(|_| json!(true)),
    );
    if !options.tolerations.is_empty() {
        set("tolerations", Some(json!(options.tolerations)));
    }
    if !options.image_pull_secrets.is_empty() {
        let secrets = options
            .image_pull_secrets
            .iter()
            .map(|name| json!({"name": name}));
        set("imagePullSecrets", Some(secrets.collect()));
    }
    if !settings.dns.is_empty() {
        set("dnsPolicy", Some(json!("None")));
        set("dnsConfig", Some(json!({"nameservers": settings.dns})));
    }
    let hosts = settings.extra_hosts.iter();
    let hosts: Vec<_> = hosts
        .map(|(name, ip)| json!({"ip": ip, "hostnames": [name]}))
        .collect();
    if !hosts.is_empty() {
        set("hostAliases", Some(json!(hosts)));
    }
    let sysctls = settings.sysctls.iter();
    let sysctls: Vec<_> = sysctls
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    if !sysctls.is_empty() {
        set("securityContext", Some(json!({"sysctls": sysctls})));
    }
    fields
}

/// Returns the container of the command, which the wrapper starts.
fn main(settings: &Settings, options: &PodOptions) -> Value {
    let mut command = vec![HELPER.to_owned(), "run".to_owned()];
    if settings.tty {
        command.push("--tty".into());
    }
    if settings.stdin != Stdin::None {
        command.push("--stdin".into());
    }
    if let Some(size) = settings.window.filter(|_| settings.tty) {
        command.extend(["--window".into(), size.to_string()]);
    }
    command.extend(["--gate".into(), GATE.into(), "--".into()]);
    command.extend(own_command(settings));
    let mut mounts = vec![
        json!({"name": "moat-bin", "mountPath": "/.moat/bin", "readOnly": true}),
        json!({"name": "moat-io", "mountPath": "/.moat/io"}),
    ];
    mounts.extend(own_mounts(settings));
    let mut container = command_container(settings, options);
    container["command"] = json!(command);
    container["volumeMounts"] = json!(mounts);
    container
}

/// Returns the words of the user's command.
fn own_command(settings: &Settings) -> impl Iterator<Item = String> {
    let words = settings.entrypoint.iter().flatten().chain(&settings.cmd);
    // The kubelet replaces `$(NAME)` and `$$`.
    words.map(|word| word.replace('$', "$$"))
}

/// Returns the mounts of the user.
fn own_mounts(settings: &Settings) -> Vec<Value> {
    let mut mounts = Vec::new();
    for (index, mount) in settings.mounts.iter().enumerate() {
        let read_only = match mount {
            Mount::Volume { read_only, .. } => *read_only,
            _ => false,
        };
        mounts.push(json!({
            "name": format!("volume-{index}"), "mountPath": mount.target(), "readOnly": read_only,
        }));
    }
    if settings.shm_size.is_some() {
        mounts.push(json!({"name": "shm", "mountPath": "/dev/shm"}));
    }
    mounts
}

/// Returns the container of the command, without the command.
fn command_container(settings: &Settings, options: &PodOptions) -> Value {
    let mut container = container("main", settings, options);
    container["resources"] = resources(settings, options);
    if let Some(workdir) = &settings.workdir {
        container["workingDir"] = json!(workdir);
    }
    let mut security = json!({});
    if settings.privileged {
        security["privileged"] = json!(true);
    }
    if !settings.cap_add.is_empty() || !settings.cap_drop.is_empty() {
        security["capabilities"] = json!({"add": settings.cap_add, "drop": settings.cap_drop});
    }
    merge(&mut container["securityContext"], &security);
    container
}

/// Returns the container of the collector, which has the same image.
fn collector(settings: &Settings, deadline: Option<Timestamp>, options: &PodOptions) -> Value {
    let limit = options.spool_limit.to_string();
    let mut command = [
        HELPER,
        "serve",
        "--gate",
        GATE,
        "--control",
        CONTROL,
        "--spool",
        SPOOL,
    ]
    .map(str::to_owned)
    .to_vec();
    command.extend(["--limit".into(), limit]);
    if settings.backstop == Backstop::None {
        command.push("--discard".into());
    }
    match settings.stdin {
        Stdin::None => {}
        Stdin::Pipe => command.extend(["--stdin".into(), "pipe".into()]),
        Stdin::Open => command.extend(["--stdin".into(), "open".into()]),
    }
    command.extend(["--release-within".into(), RELEASE_WITHIN.to_string()]);
    if let Some(deadline) = deadline {
        // The time limit begins at the start, and not while the pod waits for a node.
        let seconds = deadline.since(Timestamp::now()).as_secs().max(1);
        let exit = seconds + KEEP_AFTER_KILL;
        command.extend(["--kill-after".into(), seconds.to_string()]);
        command.extend(["--exit-after".into(), exit.to_string()]);
    }
    let mut container = container("moat", settings, options);
    container["command"] = json!(command);
    container["resources"] = json!(options.helper_resources);
    container["volumeMounts"] = json!([
        {"name": "moat-bin", "mountPath": "/.moat/bin", "readOnly": true},
        {"name": "moat-io", "mountPath": "/.moat/io"},
        {"name": "moat-spool", "mountPath": "/.moat/spool"},
    ]);
    container
}

/// Returns the fields that both containers have.
fn container(name: &str, settings: &Settings, options: &PodOptions) -> Value {
    let mut security = json!({});
    if let Some((uid, gid)) = settings.user.as_deref().and_then(user_ids) {
        security["runAsUser"] = json!(uid);
        if let Some(gid) = gid {
            security["runAsGroup"] = json!(gid);
        }
    }
    if settings.read_only {
        security["readOnlyRootFilesystem"] = json!(true);
    }
    if settings
        .security_opt
        .iter()
        .any(|option| option == "no-new-privileges")
    {
        security["allowPrivilegeEscalation"] = json!(false);
    }
    if let Some(context) = &options.security_context {
        merge(&mut security, context);
    }
    json!({
        "name": name,
        "image": settings.image,
        "imagePullPolicy": match settings.pull {
            Pull::Missing => "IfNotPresent",
            // `validate` refuses `Newer`.
            Pull::Always | Pull::Newer => "Always",
            Pull::Never => "Never",
        },
        "securityContext": security,
    })
}

fn resources(settings: &Settings, options: &PodOptions) -> Value {
    let mut resources = options.resources.clone().unwrap_or_else(|| json!({}));
    let mut limits = json!({});
    if let Some(bytes) = settings.memory {
        limits["memory"] = json!(bytes.to_string());
    }
    if let Some(cpus) = settings.cpus {
        let millis = (cpus * 1000.0).ceil().max(1.0);
        limits["cpu"] = json!(format!("{millis:.0}m"));
    }
    if let Some(Gpus::Count(count)) = settings.gpus {
        limits["nvidia.com/gpu"] = json!(count.to_string());
    }
    if limits.as_object().is_some_and(|limits| !limits.is_empty()) {
        merge(&mut resources, &json!({ "limits": limits }));
    }
    resources
}

fn helper_volumes(options: &PodOptions, arch: &str) -> Vec<Value> {
    let helper = match &options.helper_image {
        Some(_) => json!({"name": "moat-bin", "emptyDir": {}}),
        None => json!({"name": "moat-bin", "configMap": {
            "name": helper::config_map(arch), "defaultMode": 0o555,
        }}),
    };
    let spool = options.spool_limit.saturating_add(SPOOL_SLACK);
    vec![
        helper,
        json!({"name": "moat-io", "emptyDir": {}}),
        json!({"name": "moat-spool", "emptyDir": {"sizeLimit": spool.to_string()}}),
    ]
}

/// Returns the volumes of the user.
fn own_volumes(settings: &Settings) -> Vec<Value> {
    let mut volumes = Vec::new();
    for (index, mount) in settings.mounts.iter().enumerate() {
        let mut volume = match mount {
            Mount::Volume { name, .. } => json!({"persistentVolumeClaim": {"claimName": name}}),
            Mount::Tmpfs { size, .. } => memory(*size),
            // The check of the spec has refused it.
            Mount::Bind { .. } => continue,
        };
        volume["name"] = json!(format!("volume-{index}"));
        volumes.push(volume);
    }
    if let Some(size) = settings.shm_size {
        let mut volume = memory(Some(size));
        volume["name"] = json!("shm");
        volumes.push(volume);
    }
    volumes
}

fn memory(size: Option<u64>) -> Value {
    match size {
        Some(size) => json!({"emptyDir": {"medium": "Memory", "sizeLimit": size.to_string()}}),
        None => json!({"emptyDir": {"medium": "Memory"}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_pod_may_have_becomes_a_digest() {
        assert_eq!(pod_name("moat-1234-abc"), "moat-1234-abc");
        let (upper, lower) = (pod_name("moat-1-ABC"), pod_name("moat-1-abc"));
        assert_ne!(upper, lower);
        for long in ["a_b", &"x".repeat(80), "moat-1-ABC"] {
            let name = pod_name(long);
            assert!(name.len() == 37 && name.starts_with("moat-"), "{name}");
        }
    }
}

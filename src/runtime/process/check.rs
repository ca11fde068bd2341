//! Validation of a spec for a local process, before anything is created.

use super::signals;
use crate::spec::{InvalidSpec, Pull, RunSpec, RuntimeView, Settings, Stdin};

/// Rejects, by field name, each setting that a local process does not support.
pub(super) fn check(spec: &RunSpec) -> Result<(), InvalidSpec> {
    // No `..`: a new setting requires a decision here.
    let Settings {
        image,
        cmd,
        entrypoint,
        workdir: _,
        user,
        hostname,
        mounts,
        network,
        network_aliases,
        ports,
        extra_hosts,
        dns,
        memory,
        cpus,
        pids_limit,
        ulimits,
        shm_size,
        devices,
        gpus,
        sysctls,
        cap_add,
        cap_drop,
        security_opt,
        privileged,
        read_only,
        health_check,
        init,
        platform,
        oci_runtime,
        labels: _,
        tty: _,
        stdin,
        record_stdin,
        masks: _,
        window,
        stop_signal,
        stop_grace: _,
        time_limit: _,
        silence_limit: _,
        sample,
        output_limit: _,
        pull,
        pull_retries: _,
        pull_stall_timeout: _,
        keep: _,
        backstop: _,
        detached,
    } = spec.settings();
    if !image.is_empty() {
        return Err(InvalidSpec::new(
            "image",
            "the spec has an image, so it is for a container; create the spec of a local process with \
             `RunSpec::command`",
        ));
    }
    if entrypoint.iter().flatten().chain(cmd).next().is_none() {
        return Err(InvalidSpec::new(
            "cmd",
            "a local process needs a command, because it has no image with a default one",
        ));
    }
    if *detached {
        return Err(InvalidSpec::new(
            "detached",
            "a local process cannot outlive the process that starts it",
        ));
    }
    // The input of a local process is never written.
    if *stdin == Stdin::Pipe {
        return Err(InvalidSpec::new(
            "stdin",
            "the input of a local process cannot be written, so it never ends; use `Stdin::None`",
        ));
    }
    if *record_stdin {
        return Err(InvalidSpec::new(
            "record_stdin",
            "the input of a local process cannot be written, so there is nothing to record",
        ));
    }
    if let Some(signal) = stop_signal
        && signals::parse(signal).is_none()
    {
        let reason = format!("unknown signal {signal:?}");
        return Err(InvalidSpec::new("stop_signal", reason));
    }
    for (field, set) in [
        ("user", user.is_some()),
        ("hostname", hostname.is_some()),
        ("mounts", !mounts.is_empty()),
        ("network", network.is_some()),
        ("network_aliases", !network_aliases.is_empty()),
        ("ports", !ports.is_empty()),
        ("extra_hosts", !extra_hosts.is_empty()),
        ("dns", !dns.is_empty()),
        ("memory", memory.is_some()),
        ("cpus", cpus.is_some()),
        ("pids_limit", pids_limit.is_some()),
        ("ulimits", !ulimits.is_empty()),
        ("shm_size", shm_size.is_some()),
        ("devices", !devices.is_empty()),
        ("gpus", gpus.is_some()),
        ("sysctls", !sysctls.is_empty()),
        ("cap_add", !cap_add.is_empty()),
        ("cap_drop", !cap_drop.is_empty()),
        ("security_opt", !security_opt.is_empty()),
        ("privileged", *privileged),
        ("read_only", *read_only),
        ("health_check", health_check.is_some()),
        ("init", *init),
        ("platform", platform.is_some()),
        ("oci_runtime", oci_runtime.is_some()),
        ("sample", sample.is_some()),
        ("window", window.is_some()),
        ("pull", matches!(pull, Pull::Always | Pull::Newer)),
        (
            "credentials",
            RuntimeView::new(spec).credentials().is_some(),
        ),
        (
            "secret_files",
            RuntimeView::new(spec).secret_files().next().is_some(),
        ),
        ("engine_patch", RuntimeView::new(spec).patch().is_some()),
    ] {
        if set {
            return Err(InvalidSpec::new(
                field,
                "a local process does not support this setting; only a container does",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Credentials, Gpus, HealthCheck, Port, WindowSize};

    #[test]
    fn unsupported_settings_are_rejected_by_field_name() {
        let spec = || RunSpec::command(["true"]);
        let nothing: [&str; 0] = [];
        for (field, bad) in [
            ("image", RunSpec::new("busybox").cmd(["true"])),
            ("cmd", RunSpec::command(nothing)),
            ("user", spec().user("root")),
            ("hostname", spec().hostname("h")),
            ("mounts", spec().bind("/tmp", "/x")),
            ("mounts", spec().volume("vol", "/x")),
            ("mounts", spec().tmpfs("/x", None)),
            ("network", spec().network("none")),
            ("network_aliases", spec().network_alias("db")),
            ("ports", spec().port(Port::tcp(80))),
            ("extra_hosts", spec().extra_host("h", "127.0.0.1")),
            ("dns", spec().dns("127.0.0.1")),
            ("memory", spec().memory(64 << 20)),
            ("cpus", spec().cpus(1.0)),
            ("pids_limit", spec().pids_limit(9)),
            ("ulimits", spec().ulimit("nofile", 9, 9)),
            ("shm_size", spec().shm_size(1 << 20)),
            ("devices", spec().device("/dev/null")),
            ("gpus", spec().gpus(Gpus::All)),
            ("sysctls", spec().sysctl("kernel.msgmax", "1")),
            ("cap_add", spec().cap_add("NET_ADMIN")),
            ("cap_drop", spec().cap_drop("ALL")),
            ("security_opt", spec().security_opt("no-new-privileges")),
            ("privileged", spec().privileged(true)),
            ("read_only", spec().read_only(true)),
            ("health_check", spec().health_check(HealthCheck::none())),
            ("init", spec().init(true)),
            ("platform", spec().platform("linux/arm64")),
            ("oci_runtime", spec().oci_runtime("runsc")),
            ("sample", spec().sample(std::time::Duration::from_secs(1))),
            ("stdin", spec().stdin(Stdin::Pipe)),
            ("record_stdin", spec().stdin(Stdin::Open).record_stdin(true)),
            ("window", spec().tty(true).window(WindowSize::new(80, 24))),
            ("stop_signal", spec().stop_signal("SIGNOPE")),
            ("pull", spec().pull(Pull::Always)),
            ("pull", spec().pull(Pull::Newer)),
            ("detached", spec().detached(true)),
            (
                "credentials",
                spec().credentials(Credentials::new("a", "b")),
            ),
            ("secret_files", spec().secret_file("/run/secrets/a", "x")),
            ("engine_patch", spec().engine_patch(serde_json::json!({}))),
        ] {
            match check(&bad) {
                Err(InvalidSpec { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn supported_settings_are_accepted() {
        let spec = RunSpec::command(["true"])
            .entrypoint(["env"])
            .env("A", "1")
            .workdir("/")
            .label("a", "b")
            .tty(true)
            .stdin(Stdin::Open)
            .stop_signal("INT")
            .time_limit(std::time::Duration::from_secs(1))
            .silence_limit(std::time::Duration::from_secs(1))
            .keep(crate::spec::KeepContainer::Always)
            .backstop(crate::spec::Backstop::None);
        spec.validate().unwrap();
        check(&spec).unwrap();
        let nothing: [&str; 0] = [];
        check(&RunSpec::command(nothing).entrypoint(["true"])).unwrap();
    }
}

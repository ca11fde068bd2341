//! Checks of a spec for Docker that need no engine.

use super::{LogDriver, apply_patch, draft};
use crate::spec::{InvalidSpec, Mount, RunSpec, RuntimeView, Settings};

/// The maximum length of an argument, or of a variable with its name and `=`, on Linux.
///
/// Linux accepts 32 pages of 4 KiB, including a NUL byte. A container with a longer argument starts,
/// and then fails with an error that looks like its own stderr.
const MAX_ARGUMENT_BYTES: usize = (128 << 10) - 1;

/// Refuses a spec that Docker cannot run, without asking an engine.
pub(crate) fn check(spec: &RunSpec) -> Result<(), InvalidSpec> {
    let settings = spec.settings();
    if settings.image.is_empty() {
        return Err(InvalidSpec::new(
            "image",
            "the spec has no image, so it is for a local process; create the spec with \
             `RunSpec::new` and an image, such as \"busybox:1.36\"",
        ));
    }
    arguments(spec)?;
    mounts(settings)?;
    network(settings)?;
    if let Some(patch) = RuntimeView::new(spec).patch() {
        let driver = LogDriver::for_backstop(settings.backstop);
        apply_patch(draft(spec, driver), patch)?;
    }
    Ok(())
}

fn arguments(spec: &RunSpec) -> Result<(), InvalidSpec> {
    let settings = spec.settings();
    let cmd = settings.cmd.iter().map(|text| ("cmd", text.len()));
    let entrypoint = settings.entrypoint.iter().flatten();
    let entrypoint = entrypoint.map(|text| ("entrypoint", text.len()));
    let view = RuntimeView::new(spec);
    let env = view.environment();
    let env = env.map(|(name, value)| ("env", name.len() + 1 + value.len()));
    for (field, length) in cmd.chain(entrypoint).chain(env) {
        if length > MAX_ARGUMENT_BYTES {
            let object = match field {
                "env" => "a variable, with its name,",
                _ => "an argument",
            };
            let reason = format!(
                "{object} has {length} bytes: Linux accepts at most {MAX_ARGUMENT_BYTES}; put the \
                 text into a file and mount the file"
            );
            return Err(InvalidSpec::new(field, reason));
        }
    }
    Ok(())
}

fn mounts(settings: &Settings) -> Result<(), InvalidSpec> {
    for mount in &settings.mounts {
        if let Some((_, source, _)) = mount.relabeled()
            && let Some(path) = [&source, mount.target()]
                .into_iter()
                .find(|p| p.contains(':'))
        {
            let reason =
                format!("{path:?} contains ':', with which an engine cannot relabel a mount");
            return Err(InvalidSpec::new("mounts", reason));
        }
        if let Mount::Tmpfs {
            target,
            size: Some(size),
            ..
        } = mount
            && i64::try_from(*size).is_err()
        {
            let reason =
                format!("the tmpfs at {target:?} has {size} bytes: the maximum is 2^63 - 1");
            return Err(InvalidSpec::new("mounts", reason));
        }
    }
    Ok(())
}

/// Refuses names and DNS servers with the network of another container.
///
/// The container shares the other container's hostname, hosts and DNS servers.
fn network(settings: &Settings) -> Result<(), InvalidSpec> {
    let mode = settings.network.as_deref().unwrap_or_default();
    let Some(other) = mode.strip_prefix("container:") else {
        return Ok(());
    };
    if other.is_empty() {
        return Err(InvalidSpec::new(
            "network",
            "\"container:\" names no container",
        ));
    }
    for (field, set) in [
        ("hostname", settings.hostname.is_some()),
        ("extra_hosts", !settings.extra_hosts.is_empty()),
        ("dns", !settings.dns.is_empty()),
    ] {
        if set {
            let reason = format!(
                "the field cannot be set with network {mode:?}, which shares the other \
                 container's setting"
            );
            return Err(InvalidSpec::new(field, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Relabel;
    use serde_json::json;

    #[test]
    fn an_unsupported_spec_is_refused_with_its_field() {
        let spec = || RunSpec::new("busybox");
        let shared = |from: &str, to: &str| Mount::bind(from, to).relabel(Relabel::Shared);
        let joined = || spec().network("container:other");
        for (field, bad) in [
            ("cmd", spec().cmd(["x".repeat(128 << 10)])),
            ("entrypoint", spec().entrypoint(["x".repeat(128 << 10)])),
            ("env", spec().env("A", "x".repeat((128 << 10) - 2))),
            ("image", RunSpec::command(["true"])),
            ("engine_patch", spec().engine_patch(json!({"Tty": true}))),
            ("mounts", spec().tmpfs("/x", Some(u64::MAX))),
            ("mounts", spec().mount(shared("/a:b", "/x"))),
            ("mounts", spec().mount(shared("/a", "/x:ro"))),
            ("network", spec().network("container:")),
            ("hostname", joined().hostname("h")),
            ("extra_hosts", joined().extra_host("h", "127.0.0.1")),
            ("dns", joined().dns("127.0.0.1")),
        ] {
            match check(&bad) {
                Err(InvalidSpec { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
        check(&joined()).unwrap();
        check(&spec().hostname("h").dns("127.0.0.1")).unwrap();
    }
}

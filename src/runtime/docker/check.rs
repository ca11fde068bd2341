//! What Docker cannot do, refused before there is an engine to ask.

use super::create::{self, Log};
use super::patch;
use crate::spec::InvalidSpec;
use crate::spec::{Mount, RunSpec, Settings};

/// The longest argument, and the longest variable with its name and `=`, that Linux takes, in bytes:
/// 32 pages of 4 KiB, with a NUL byte at the end. A container with a longer one is started, and
/// ends by an error on what looks like its own standard error.
const LONGEST_ARGUMENT: usize = (128 << 10) - 1;

/// Checks what can be checked of a spec without an engine.
pub(super) fn check(spec: &RunSpec) -> Result<(), InvalidSpec> {
    let settings = spec.settings();
    if settings.image.is_empty() {
        return Err(InvalidSpec::new(
            "image",
            "it is empty; name an image, such as \"busybox:1.36\"",
        ));
    }
    arguments(spec)?;
    sizes(settings)?;
    network(settings)?;
    if let Some(patch) = spec.patch() {
        let log = Log::of(settings.backstop);
        patch::apply(create::draft(spec, log), patch)?;
    }
    Ok(())
}

fn arguments(spec: &RunSpec) -> Result<(), InvalidSpec> {
    let settings = spec.settings();
    let cmd = settings.cmd.iter().map(|text| ("cmd", text.len()));
    let entrypoint = settings.entrypoint.iter().flatten();
    let entrypoint = entrypoint.map(|text| ("entrypoint", text.len()));
    let env = spec.environment();
    let env = env.map(|(name, value)| ("env", name.len() + 1 + value.len()));
    for (field, length) in cmd.chain(entrypoint).chain(env) {
        if length > LONGEST_ARGUMENT {
            let what = match field {
                "env" => "a variable, with its name,",
                _ => "an argument",
            };
            let reason = format!(
                "{what} has {length} bytes: Linux takes at most {LONGEST_ARGUMENT}; put it into a \
                 file and mount that"
            );
            return Err(InvalidSpec::new(field, reason));
        }
    }
    Ok(())
}

fn sizes(settings: &Settings) -> Result<(), InvalidSpec> {
    for mount in &settings.mounts {
        if let Mount::Tmpfs {
            target,
            size: Some(size),
            ..
        } = mount
            && i64::try_from(*size).is_err()
        {
            let reason = format!("the tmpfs at {target:?} has {size} bytes: the most is 2^63 - 1");
            return Err(InvalidSpec::new("mounts", reason));
        }
    }
    Ok(())
}

/// A container in another one's network has that one's names and servers.
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
            let reason = format!("it cannot be set with network {mode:?}, whose own holds");
            return Err(InvalidSpec::new(field, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_docker_cannot_do_is_refused_by_the_name_of_its_field() {
        let spec = || RunSpec::new("busybox");
        let joined = || spec().network("container:other");
        for (field, bad) in [
            ("cmd", spec().cmd(["x".repeat(128 << 10)])),
            ("entrypoint", spec().entrypoint(["x".repeat(128 << 10)])),
            ("env", spec().env("A", "x".repeat((128 << 10) - 2))),
            ("image", RunSpec::command(["true"])),
            ("engine_patch", spec().engine_patch(json!({"Tty": true}))),
            ("mounts", spec().tmpfs("/x", Some(u64::MAX))),
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

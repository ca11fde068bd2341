//! Differences of Podman's Docker-compatible interface.
//!
//! Podman converts each mount to one line of comma-separated values, ignores the OCI runtime and
//! requests for devices other than CDI names, creates a missing source of a bind mount, and gives
//! a tmpfs the mode 0755.

use std::collections::HashMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use bollard::models::{ContainerCreateBody, DeviceRequest};

use crate::runtime::docker::secrets;
use crate::spec::{Gpus, InvalidSpec, Mount, RunSpec, Settings};

/// The CDI kind of NVIDIA's GPUs.
const GPU_KIND: &str = "nvidia.com/gpu";

/// The characters that end a part of a mount.
const MOUNT_SEPARATORS: &[char] = &[',', '"', '\n', '\r'];

/// Refuses what Podman would ignore or misread.
pub(crate) fn check(spec: &RunSpec) -> Result<(), InvalidSpec> {
    let settings = spec.settings();
    if settings.oci_runtime.is_some() {
        let reason = "Podman's Docker-compatible interface ignores it: set `runtime` in the \
                      containers.conf of the Podman service";
        return Err(InvalidSpec::new("oci_runtime", reason));
    }
    if let Some(Gpus::Count(_)) = settings.gpus {
        let reason = "Podman cannot choose GPUs by their number: name them with `Gpus::Ids`, or \
                      request `Gpus::All`";
        return Err(InvalidSpec::new("gpus", reason));
    }
    for dir in secrets::directories(spec) {
        check_mounted_path("secret_files", dir, MOUNT_SEPARATORS)?;
    }
    for mount in &settings.mounts {
        let source = match mount {
            Mount::Bind { source, .. } => source.to_string_lossy(),
            Mount::Volume { name, .. } => name.into(),
            Mount::Tmpfs { .. } => "".into(),
        };
        let separators = match mount {
            Mount::Tmpfs { .. } => &[','],
            _ => MOUNT_SEPARATORS,
        };
        for path in [&source, mount.target()] {
            check_mounted_path("mounts", path, separators)?;
        }
    }
    Ok(())
}

/// Refuses what a Podman before 5.0 would misread.
///
/// Podman 4.3 splits the command of a health check at its spaces. 4.4 to 4.9 were not tried.
pub(crate) fn check_podman_4(settings: &Settings) -> Result<(), InvalidSpec> {
    let check = settings.health_check.as_ref();
    let command = check.and_then(|check| check.command.as_deref());
    let is_split = |text: &&String| text.is_empty() || text.contains(char::is_whitespace);
    match command.unwrap_or_default().iter().find(is_split) {
        None => Ok(()),
        Some(argument) => {
            let reason = format!(
                "Podman before 5.0 splits the command at spaces, so {argument:?} cannot be an argument"
            );
            Err(InvalidSpec::new("health_check", reason))
        }
    }
}

fn check_mounted_path(field: &str, path: &str, separators: &[char]) -> Result<(), InvalidSpec> {
    if path.contains(separators) {
        let reason = format!(
            "Podman misreads {path:?}: it accepts no comma, quote or line break in a mount"
        );
        return Err(InvalidSpec::new(field, reason));
    }
    Ok(())
}

/// Replaces the parts of a request that Podman ignores.
pub(super) fn adapt(body: &mut ContainerCreateBody, settings: &Settings) {
    let Some(host) = &mut body.host_config else {
        return;
    };
    let tmpfs: HashMap<_, _> = settings.mounts.iter().filter_map(tmpfs_options).collect();
    if !tmpfs.is_empty() {
        let is_other = |mount: &bollard::models::Mount| !is_tmpfs(mount);
        let others = host.mounts.take().into_iter().flatten().filter(is_other);
        host.mounts = super::non_empty(others.collect());
        host.tmpfs = Some(tmpfs);
    }
    if let Some(gpus) = &settings.gpus {
        host.device_requests = Some(vec![gpu_request(gpus)]);
    }
}

fn is_tmpfs(mount: &bollard::models::Mount) -> bool {
    mount.typ == Some(bollard::models::MountType::TMPFS)
}

/// Returns the target of a tmpfs and its mount options: Docker's defaults, as text.
fn tmpfs_options(mount: &Mount) -> Option<(String, String)> {
    let Mount::Tmpfs {
        target,
        size,
        read_only,
    } = mount
    else {
        return None;
    };
    let mut options = "noexec,nosuid,nodev,mode=1777".to_owned();
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    if *read_only {
        options.push_str(",ro");
    }
    Some((target.clone(), options))
}

fn gpu_request(gpus: &Gpus) -> DeviceRequest {
    let name = |id: &str| format!("{GPU_KIND}={id}");
    let names = match gpus {
        Gpus::Ids(ids) => ids.iter().map(|id| name(id)).collect(),
        _ => vec![name("all")],
    };
    DeviceRequest {
        driver: Some("cdi".to_owned()),
        device_ids: Some(names),
        ..DeviceRequest::default()
    }
}

/// Returns the sources of bind mounts that the engine would create if they were missing.
///
/// Docker refuses those that are not relabeled.
pub(crate) fn unchecked_sources(settings: &Settings, is_podman: bool) -> Vec<&Path> {
    let mounts = settings.mounts.iter();
    let sources = mounts.filter_map(|mount| match mount {
        Mount::Bind {
            source, relabel, ..
        } if is_podman || relabel.is_some() => Some(source.as_path()),
        _ => None,
    });
    sources.collect()
}

/// Returns the source that exists under none of the `roots`.
pub(crate) fn missing_source(sources: &[&Path], roots: &[PathBuf]) -> Option<String> {
    let is_missing =
        |source: &&&Path| !roots.is_empty() && roots.iter().all(|root| is_missing(source, root));
    let source = sources.iter().find(is_missing)?;
    Some(source.display().to_string())
}

/// Returns true if a path is known not to exist under `root`.
fn is_missing(path: &Path, root: &Path) -> bool {
    let mut place = root.to_owned();
    for part in path.components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::RootDir | Component::CurDir => continue,
            _ => return false,
        }
        match place.symlink_metadata() {
            // A link may lead out of `root`.
            Ok(found) if found.is_symlink() => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::NotFound,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{HealthCheck, Relabel};
    use serde_json::{Value, json};

    #[test]
    fn a_setting_that_podman_would_ignore_is_refused() {
        let spec = || RunSpec::new("busybox");
        for (field, bad) in [
            ("oci_runtime", spec().oci_runtime("runsc")),
            ("gpus", spec().gpus(Gpus::Count(1))),
            ("mounts", spec().bind("/a,ro", "/b")),
            ("mounts", spec().bind("/a", "/b\"c")),
            ("mounts", spec().bind("/a\nb", "/b")),
            ("mounts", spec().tmpfs("/a,size=1", None)),
            ("secret_files", spec().secret_file("/a,ro/b", "x")),
        ] {
            let refused = check(&bad).unwrap_err();
            assert_eq!(refused.field, field, "{refused}");
        }
        let good = spec().bind("/a b:c", "/d").gpus(Gpus::All);
        check(&good).unwrap();
    }

    #[test]
    fn a_request_has_what_podman_reads() {
        let spec = RunSpec::new("x")
            .bind("/src", "/a")
            .tmpfs("/b", Some(1 << 20))
            .tmpfs("/c", None)
            .gpus(Gpus::Ids(vec!["0".into()]));
        let mut body = super::super::draft(&spec, super::super::LogDriver::JsonFile);
        adapt(&mut body, spec.settings());
        let body = serde_json::to_value(&body).unwrap();
        let host = &body["HostConfig"];
        assert_eq!(
            host["Tmpfs"],
            json!({
                "/b": "noexec,nosuid,nodev,mode=1777,size=1048576",
                "/c": "noexec,nosuid,nodev,mode=1777",
            })
        );
        assert_eq!(host["Mounts"].as_array().unwrap().len(), 1);
        let gpus = json!([{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]);
        assert_eq!(host["DeviceRequests"], gpus);
        let plain = RunSpec::new("x").tmpfs("/d", None);
        let mut body = super::super::draft(&plain, super::super::LogDriver::JsonFile);
        adapt(&mut body, plain.settings());
        let body = serde_json::to_value(&body).unwrap();
        assert_eq!(body["HostConfig"]["Mounts"], Value::Null);
    }

    #[test]
    fn an_old_podman_refuses_a_health_check_with_spaces() {
        let check = |command: &[&str]| {
            let spec = RunSpec::new("x").health_check(HealthCheck::new(command.iter().copied()));
            check_podman_4(spec.settings()).map_err(|refused| refused.field)
        };
        assert_eq!(check(&["test", "-f", "/a"]), Ok(()));
        for bad in [["test", "a b"], ["test", ""], ["a\tb", "x"]] {
            assert_eq!(check(&bad), Err("health_check".to_owned()));
        }
        let none = RunSpec::new("x").health_check(HealthCheck::none());
        check_podman_4(none.settings()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_missing_source_is_found() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink("/elsewhere", root.join("link")).unwrap();
        let missing = |source: &str| {
            let shared = Mount::bind(source, "/y").relabel(Relabel::Shared);
            let spec = RunSpec::new("x").bind("/elsewhere", "/x").mount(shared);
            let sources = unchecked_sources(spec.settings(), false);
            assert_eq!(sources, [Path::new(source)]);
            assert_eq!(unchecked_sources(spec.settings(), true).len(), 2);
            let entered = root.join("a/b");
            missing_source(&sources, &[entered, root.to_owned()])
        };
        for source in ["/", "/a", "/a/./b", "/link", "/link/c", "/a/../nowhere"] {
            assert_eq!(missing(source), None, "{source}");
        }
        for source in ["/c", "/a/c", "/c/a"] {
            assert_eq!(missing(source).as_deref(), Some(source));
        }
    }
}

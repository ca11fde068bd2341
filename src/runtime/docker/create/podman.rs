//! Differences of Podman's Docker-compatible interface.
//!
//! Podman converts each mount to one line of comma-separated values, ignores the OCI runtime and
//! requests for devices other than CDI names, creates a missing source of a bind mount, and gives
//! a tmpfs the mode 0755.

use std::collections::HashMap;
use std::io;
use std::path::{Component, Path};

use bollard::models::{ContainerCreateBody, DeviceRequest};

use crate::spec::{Gpus, InvalidSpec, Mount, Settings};

/// The CDI kind of NVIDIA's GPUs.
const GPU_KIND: &str = "nvidia.com/gpu";

/// Refuses what Podman would ignore or misread.
pub(crate) fn check(settings: &Settings) -> Result<(), InvalidSpec> {
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
    for mount in &settings.mounts {
        let source = match mount {
            Mount::Bind { source, .. } => source.to_string_lossy(),
            Mount::Volume { name, .. } => name.into(),
            Mount::Tmpfs { .. } => "".into(),
        };
        let separators: &[char] = match mount {
            Mount::Tmpfs { .. } => &[','],
            _ => &[',', '"', '\n', '\r'],
        };
        for path in [&source, mount.target()] {
            if path.contains(separators) {
                let reason = format!(
                    "Podman misreads {path:?}: it accepts no comma, quote or line break in a mount"
                );
                return Err(InvalidSpec::new("mounts", reason));
            }
        }
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

/// Returns true if a mount has a source that Podman would create.
pub(crate) fn has_bind_mount(settings: &Settings) -> bool {
    bind_sources(settings).next().is_some()
}

/// Returns the source of a bind mount that does not exist under `root`.
pub(crate) fn missing_source(settings: &Settings, root: &Path) -> Option<String> {
    let mut missing = bind_sources(settings).filter(|source| is_missing(source, root));
    Some(missing.next()?.display().to_string())
}

fn bind_sources(settings: &Settings) -> impl Iterator<Item = &Path> {
    settings.mounts.iter().filter_map(|mount| match mount {
        Mount::Bind { source, .. } => Some(source.as_path()),
        _ => None,
    })
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
    use crate::spec::RunSpec;
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
        ] {
            let refused = check(bad.settings()).unwrap_err();
            assert_eq!(refused.field, field, "{refused}");
        }
        let good = spec().bind("/a b:c", "/d").gpus(Gpus::All);
        check(good.settings()).unwrap();
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

    #[cfg(unix)]
    #[test]
    fn a_missing_source_is_found() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink("/elsewhere", root.join("link")).unwrap();
        let missing = |source: &str| {
            let spec = RunSpec::new("x").bind("/a", "/x").bind(source, "/y");
            missing_source(spec.settings(), root)
        };
        for source in ["/", "/a", "/a/./b", "/link", "/link/c", "/a/../nowhere"] {
            assert_eq!(missing(source), None, "{source}");
        }
        for source in ["/c", "/a/c", "/c/a"] {
            assert_eq!(missing(source).as_deref(), Some(source));
        }
    }
}

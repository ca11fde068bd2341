//! The file system of a path in a container.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::COPY_IN;
use crate::error::RuntimeError;
use crate::runtime::docker::client::Client;
use crate::runtime::docker::connection::{Answer, Call, escaped};
use crate::runtime::docker::errors::{Failure, Refusal};
use crate::runtime::docker::inspect::{self, MountTargets};
use crate::spec::ContainerId;

/// The directories in which a running container has file systems of the kernel.
const KERNEL_TARGETS: [&str; 3] = ["/dev", "/proc", "/sys"];
/// The header that describes a file: base64 of [`PathStat`] as JSON.
const STAT_HEADER: &str = "X-Docker-Container-Path-Stat";
/// The maximum number of symbolic links in a path, as in Linux.
const MAX_LINKS: usize = 40;

/// The file system of a path.
#[derive(Debug)]
pub(super) enum Location {
    /// The engine's archive call sees the path.
    Engine,
    /// The engine sees the path, and not the tmpfs below it.
    Above(MountTargets),
    /// The path is on a tmpfs, or a file system of the kernel, with this target.
    Tmpfs(String),
}

#[derive(Deserialize)]
struct PathStat {
    /// The target of a symbolic link, with all links resolved; empty for other files.
    #[serde(default, rename = "linkTarget")]
    link_target: String,
}

impl Client {
    /// Finds the file system of `path`.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::Conflict`]: the path is on a tmpfs, and the container does not run.
    pub(super) async fn locate(
        &self,
        operation: &'static str,
        container: &ContainerId,
        path: &str,
    ) -> Result<Location, RuntimeError> {
        let located = async {
            let call = Call::get(self.container_path(container, "/json")?);
            let targets = inspect::mount_targets(&self.fetch(call).await?)?;
            let found = match targets.tmpfs.is_empty() {
                true => lookup(&targets, path),
                false => self.resolve(container, path, &targets).await?,
            };
            Ok((found, targets))
        };
        let (found, targets) = located.await.map_err(self.error(operation))?;
        let is_running = targets.is_running;
        match found {
            // Podman enters a running container. Without one, the directory has no other content.
            _ if is_running && self.podman => Ok(Location::Engine),
            Found::On(target) if is_running => Ok(Location::Tmpfs(target)),
            Found::Above if is_running => Ok(Location::Above(targets)),
            Found::Engine | Found::Above => Ok(Location::Engine),
            Found::On(target) => Err(RuntimeError::Conflict {
                operation,
                reason: format!(
                    "{path} is on the file system at {target}, which exists only while the \
                     container runs"
                ),
            }),
        }
    }

    /// Looks up the path and the target of each symbolic link in it.
    async fn resolve(
        &self,
        container: &ContainerId,
        path: &str,
        targets: &MountTargets,
    ) -> Result<Found, Failure> {
        let mut path = normalized(path);
        for _ in 0..MAX_LINKS {
            let found = lookup(targets, &path);
            if matches!(found, Found::On(_)) {
                return Ok(found);
            }
            match self.first_link(container, &path).await? {
                Some(followed) => path = followed,
                None => return Ok(found),
            }
        }
        // The engine reports the loop.
        Ok(Found::Engine)
    }

    /// Follows the first symbolic link in the path, if there is one.
    async fn first_link(
        &self,
        container: &ContainerId,
        path: &str,
    ) -> Result<Option<String>, Failure> {
        let ends = path.match_indices('/').map(|(at, _)| at).skip(1);
        for end in ends.chain([path.len()]) {
            if let Some(target) = self.link_target(container, &path[..end]).await? {
                return Ok(Some(normalized(&format!("{target}{}", &path[end..]))));
            }
        }
        Ok(None)
    }

    /// Fails if `path` does not exist.
    ///
    /// Podman reports success for an archive to a missing directory.
    pub(super) async fn require_directory(
        &self,
        container: &ContainerId,
        path: &str,
    ) -> Result<(), RuntimeError> {
        match self.stat(container, path).await {
            Err(Failure::Refused(Refusal { status: 404, .. })) => Err(RuntimeError::NotFound {
                operation: COPY_IN,
                reason: format!("the container has no directory {path}"),
            }),
            Err(failure) => Err(self.error(COPY_IN)(failure)),
            Ok(_) => Ok(()),
        }
    }

    /// Asks for the description of a file, which is in a header of the answer.
    async fn stat(&self, container: &ContainerId, path: &str) -> Result<Answer, Failure> {
        let call = Call::head(self.container_path(container, "/archive")?)
            .escaped_query("path", &escaped(path, b"/"));
        self.send(call).await
    }

    /// Returns the target if `path` is a symbolic link.
    async fn link_target(
        &self,
        container: &ContainerId,
        path: &str,
    ) -> Result<Option<String>, Failure> {
        let answer = match self.stat(container, path).await {
            Ok(answer) => answer,
            // The path does not exist, and the engine's copy reports that.
            Err(Failure::Refused(_)) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let stat = answer.header(STAT_HEADER).and_then(|header| {
            let json = STANDARD.decode(header).ok()?;
            serde_json::from_slice::<PathStat>(&json).ok()
        });
        let target = stat.map(|stat| stat.link_target).unwrap_or_default();
        Ok(Some(target).filter(|target| target.starts_with('/')))
    }
}

/// The relation of a path to the tmpfs of a container.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// On none of them.
    Engine,
    On(String),
    Above,
}

/// Looks up a path, without regard to symbolic links.
fn lookup(targets: &MountTargets, path: &str) -> Found {
    let path = normalized(path);
    let tmpfs = targets.tmpfs.iter().map(|target| (target.as_str(), true));
    let kernel = KERNEL_TARGETS.iter().map(|target| (*target, true));
    let other = targets.other.iter().map(|target| (target.as_str(), false));
    // The innermost mount has the path.
    let innermost = tmpfs
        .chain(kernel)
        .chain(other)
        .filter(|(target, _)| contains(target, &path))
        .max_by_key(|(target, _)| normalized(target).len());
    if let Some((target, true)) = innermost {
        return Found::On(target.to_owned());
    }
    match targets.tmpfs.iter().any(|target| contains(&path, target)) {
        true => Found::Above,
        false => Found::Engine,
    }
}

/// Returns the target of the tmpfs that has the path, without regard to symbolic links.
pub(super) fn tmpfs_of(targets: &MountTargets, path: &str) -> Option<String> {
    match lookup(targets, path) {
        Found::On(target) => Some(target).filter(|target| targets.tmpfs.contains(target)),
        Found::Engine | Found::Above => None,
    }
}

/// Returns true if `path` is the directory or is in it.
pub(super) fn contains(directory: &str, path: &str) -> bool {
    let (directory, path) = (normalized(directory), normalized(path));
    let rest = path.strip_prefix(directory.as_str());
    directory == "/" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns the absolute path without `.`, `..` and empty parts.
pub(super) fn normalized(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_has_the_path() {
        let targets = MountTargets {
            tmpfs: vec!["/work".into(), "/data/tmp/".into()],
            other: vec!["/work/cache".into(), "/data".into(), "/dev/shm".into()],
            is_running: true,
        };
        let on = |target: &str| Found::On(target.to_owned());
        for (path, found) in [
            ("/work", on("/work")),
            ("/work/", on("/work")),
            ("/work/a/../b", on("/work")),
            ("work/a", on("/work")),
            ("/workshop", Found::Engine),
            ("/work/cache/a", Found::Engine),
            ("/work/../etc", Found::Engine),
            ("/data", Found::Above),
            ("/data/tmp", on("/data/tmp/")),
            ("/data/other", Found::Engine),
            ("/", Found::Above),
            ("/..", Found::Above),
            ("/dev/x", on("/dev")),
            ("/dev/shm/x", Found::Engine),
            ("/proc/self", on("/proc")),
            ("/etc", Found::Engine),
        ] {
            assert_eq!(lookup(&targets, path), found, "{path}");
        }
    }
}

//! Files to and from a container, as tar archives.
//!
//! The engine packs and unpacks them, in the container's file system as the engine sees it. Docker
//! does not see a tmpfs there: it would unpack into the directory below, which the container cannot
//! see. For such a path, the container's own `tar` packs and unpacks.

mod archive;
mod entries;
mod location;
mod tar;

use bytes::Bytes;
use futures::{Stream, StreamExt};

use self::entries::{Entries, NotTar};
use self::location::Location;
use super::client::Client;
use super::inspect::MountTargets;
use crate::error::RuntimeError;
use crate::runtime::Archive;
use crate::spec::ContainerId;

const COPY_IN: &str = "copy into the container";
const COPY_OUT: &str = "copy out of the container";

impl Client {
    /// Reads `path` as a tar archive. Resolves once the first bytes arrive.
    pub(super) async fn copy_out(
        &self,
        container: &ContainerId,
        path: &str,
    ) -> Result<Archive, RuntimeError> {
        match self.locate(COPY_OUT, container, path).await? {
            Location::Engine | Location::Above(_) => self.download(container, path).await,
            Location::Tmpfs(target) => self.pack(container, path, &target).await,
        }
    }

    /// Unpacks `archive` at `path`, without a timeout.
    pub(super) async fn copy_in(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        match self.locate(COPY_IN, container, path).await? {
            Location::Engine => {
                if self.podman {
                    self.require_directory(container, path).await?;
                }
                self.upload(container, path, archive).await
            }
            Location::Above(targets) => {
                let archive = refuse_entries_on_tmpfs(targets, path, archive);
                self.upload(container, path, archive).await
            }
            Location::Tmpfs(target) => self.unpack(container, path, &target, archive).await,
        }
    }
}

/// Returns the archive. It ends with an error at an entry on one of the tmpfs.
fn refuse_entries_on_tmpfs(targets: MountTargets, path: &str, archive: Archive) -> Archive {
    let path = path.to_owned();
    let mut entries = Entries::default();
    let checked = archive.map(move |part| {
        let part = part?;
        let names = entries.push(&part).map_err(|NotTar| {
            let reason =
                format!("only a plain tar archive can be unpacked at {path}, above a tmpfs");
            rejected(reason)
        })?;
        for name in names {
            let full = location::normalized(&format!("{path}/{name}"));
            let Some(target) = location::tmpfs_of(&targets, &full) else {
                continue;
            };
            // The directory of the mount is on both file systems.
            if name.ends_with('/') && location::contains(&full, &target) {
                continue;
            }
            return Err(rejected(format!(
                "{full} is on the tmpfs at {target}, which the engine does not see: copy it \
                 separately, into {target}"
            )));
        }
        Ok(part)
    });
    until_error(checked)
}

/// Returns the parts up to the first error.
fn until_error(parts: impl Stream<Item = Result<Bytes, RuntimeError>> + Send + 'static) -> Archive {
    let mut broken = false;
    let parts = parts.take_while(move |part| {
        let open = !broken;
        broken = part.is_err();
        std::future::ready(open)
    });
    parts.boxed()
}

fn rejected(reason: String) -> RuntimeError {
    RuntimeError::Rejected {
        operation: COPY_IN,
        reason,
    }
}

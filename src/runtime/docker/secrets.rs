//! Secret files: written into volumes of a container before its start.
//!
//! The engine's configuration has the directories and no value. A tmpfs is no alternative: an engine
//! mounts it at the start, and the command may then read before any call could write.

use std::collections::BTreeSet;
use std::io::Read;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

use super::client::Client;
use super::connection::Call;
use super::inspect;
use crate::error::RuntimeError;
use crate::spec::{ContainerId, RunSpec, RuntimeView};

const OPERATION: &str = "write the secret files";
/// The mode of a secret file.
const MODE: u32 = 0o400;
/// The file with the ids of users, in the container.
const USERS: &str = "/etc/passwd";
/// The maximum size of the archive of that file, in bytes.
const MAX_USERS_BYTES: usize = 4 << 20;

/// Returns the directories of the secret files.
pub(super) fn directories(spec: &RunSpec) -> BTreeSet<&str> {
    let files = RuntimeView::new(spec).secret_files();
    files.map(|(path, _)| split(path).0).collect()
}

/// Splits a path into its directory and its name.
fn split(path: &str) -> (&str, &str) {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    (dir.trim_end_matches('/'), name)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    config: Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    user: String,
}

impl Client {
    /// Writes the secret files of a container that has not started.
    pub(super) async fn write_secrets(
        &self,
        container: &ContainerId,
        spec: &RunSpec,
    ) -> Result<(), RuntimeError> {
        let dirs = directories(spec);
        if dirs.is_empty() {
            return Ok(());
        }
        let owner = self.owner(container).await?;
        for dir in dirs {
            let files = RuntimeView::new(spec).secret_files();
            let files = files.filter(|(path, _)| split(path).0 == dir);
            let archive = archive(files, owner).map_err(|error| RuntimeError::Rejected {
                operation: OPERATION,
                reason: error.to_string(),
            })?;
            let archive = stream::iter([Ok(Bytes::from(archive))]).boxed();
            let upload = self.upload(container, dir, archive);
            self.within_timeout(OPERATION, upload).await?;
        }
        Ok(())
    }

    /// Returns the id of the container's user.
    async fn owner(&self, container: &ContainerId) -> Result<u64, RuntimeError> {
        let inspected = async {
            let call = Call::get(self.container_path(container, "/json")?);
            let json = self.fetch(call).await?;
            let inspected: Inspected = inspect::parse(&json)?;
            Ok(inspected.config.user)
        };
        let user: String = inspected.await.map_err(self.error(OPERATION))?;
        let name = user.split_once(':').map_or(user.as_str(), |(name, _)| name);
        if name.is_empty() {
            return Ok(0);
        }
        if let Ok(id) = name.parse() {
            return Ok(id);
        }
        let users = self.users(container).await?;
        id_of(name, &users).ok_or_else(|| RuntimeError::Rejected {
            operation: OPERATION,
            reason: format!(
                "{USERS} of the container has no user {name:?}; name the user by its id"
            ),
        })
    }

    /// Reads the container's list of users, which is empty if the image has none.
    async fn users(&self, container: &ContainerId) -> Result<String, RuntimeError> {
        let mut archive = match self.download(container, USERS).await {
            Err(RuntimeError::NotFound { .. }) => return Ok(String::new()),
            archive => archive?,
        };
        let mut bytes = Vec::new();
        while let Some(part) = archive.try_next().await? {
            bytes.extend_from_slice(&part);
            if bytes.len() > MAX_USERS_BYTES {
                break;
            }
        }
        first_file(&bytes).map_err(|error| RuntimeError::Broken {
            operation: OPERATION,
            reason: format!("cannot read {USERS} of the container: {error}"),
        })
    }
}

/// Returns the text of the first file of an archive.
fn first_file(archive: &[u8]) -> std::io::Result<String> {
    let mut archive = tar::Archive::new(archive);
    let mut text = Vec::new();
    if let Some(entry) = archive.entries()?.next() {
        entry?.read_to_end(&mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Returns the id of a user in the format of `/etc/passwd`.
fn id_of(name: &str, users: &str) -> Option<u64> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        match fields.next() == Some(name) {
            true => fields.nth(1)?.parse().ok(),
            false => None,
        }
    })
}

/// Packs files of one directory.
fn archive<'a>(
    files: impl Iterator<Item = (&'a str, &'a [u8])>,
    owner: u64,
) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, value) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(value.len() as u64);
        header.set_mode(MODE);
        header.set_uid(owner);
        header.set_gid(0);
        archive.append_data(&mut header, split(path).1, value)?;
    }
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_file_belongs_to_its_user_alone() {
        let files = [
            ("/run/secrets/a", b"one".as_slice()),
            ("/run/secrets/b", b""),
        ];
        let packed = archive(files.into_iter(), 70_000).unwrap();
        let mut packed = tar::Archive::new(packed.as_slice());
        let mut seen = Vec::new();
        for entry in packed.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(
                (header.mode().unwrap(), header.uid().unwrap()),
                (0o400, 70_000)
            );
            seen.push((entry.path().unwrap().display().to_string(), entry.size()));
        }
        assert_eq!(seen, [("a".to_owned(), 3), ("b".to_owned(), 0)]);
    }

    #[test]
    fn the_id_of_a_user_is_found_by_name() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbad\napp:x:1000:1001::/:/bin/sh\n";
        assert_eq!(id_of("app", users), Some(1000));
        assert_eq!(id_of("root", users), Some(0));
        assert_eq!(id_of("bad", users), None);
        assert_eq!(id_of("ap", users), None);
    }

    #[test]
    fn directories_are_mounted_once() {
        let spec = RunSpec::new("x")
            .secret_file("/run/secrets/a", "1")
            .secret_file("/run/secrets/b", "2")
            .secret_file("/run/secrets//c", "3")
            .secret_file("/keys/d", "4");
        let dirs: Vec<_> = directories(&spec).into_iter().collect();
        assert_eq!(dirs, ["/keys", "/run/secrets"]);
    }
}

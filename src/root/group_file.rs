//! The files of groups: the networks and volumes of a root, and the runs that share them.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::{Error, Result};
use crate::root::Root;
use crate::root::json_file::{MAX_RECORD_BYTES, parse, read, to_json_line};
use crate::root::lock::Lock;
use crate::spec::{GroupId, ResourceKind, RootId};
use crate::timestamp::Timestamp;

/// The directory of the files, in a root. No run id begins with a dot.
const GROUPS_DIR: &str = ".groups";
/// The prefix of a file that is being created.
const NEW_PREFIX: &str = ".new-";
/// The age after which such a file has no live creator.
const CREATION_TIMEOUT: Duration = Duration::from_secs(60);

/// The record of a group, written before the engine is asked for anything.
///
/// It never changes. A network or a volume outside a group is recorded as a group without members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    pub(crate) v: u32,
    pub(crate) group: GroupId,
    pub(crate) root: RootId,
    pub(crate) created: Timestamp,
    pub(crate) runtime: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) engine_id: Option<String>,
    /// The network and the volume on the engine. Either may not exist.
    pub(crate) resources: Vec<ResourceKind>,
    /// True if the end of the group stops its members.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) has_members: bool,
}

impl GroupRecord {
    /// Returns the name of the group's network and of its volume on the engine.
    pub(crate) fn resource_name(&self) -> String {
        self.root.container_name(self.group.as_run_id())
    }
}

impl Root {
    /// Returns the path of a group's file.
    pub(crate) fn group_path(&self, group: &GroupId) -> PathBuf {
        self.path().join(GROUPS_DIR).join(format!("{group}.json"))
    }

    /// Writes the file of a new group, and returns its lock.
    ///
    /// The file is locked before it has its name, so no other process sees it without an owner.
    pub(crate) fn create_group(&self, record: &GroupRecord) -> Result<Lock> {
        let path = self.group_path(&record.group);
        let dir = disk::parent_dir(&path);
        disk::create_dirs(dir)?;
        let new = dir.join(format!("{NEW_PREFIX}{}", record.group));
        let file = disk::open_new(&new)?;
        let created = (&file)
            .write_all(&to_json_line(record))
            .and_then(|()| file.sync_all())
            .map_err(|error| Error::storage("write", &new, error))
            .and_then(|()| Lock::try_new(file.into_std(), &new))
            .and_then(|lock| {
                let lock = lock.ok_or_else(|| io::Error::from(ErrorKind::WouldBlock));
                let named = lock.and_then(|lock| disk::rename(&new, &path).map(|()| lock));
                named.map_err(|error| Error::storage("create", &path, error))
            });
        if created.is_err() {
            let _ = disk::remove_file(&new);
        }
        let lock = created?;
        disk::sync_dir(dir)?;
        Ok(lock)
    }

    /// Lists the groups that have a file.
    ///
    /// Fails if the directory cannot be read: an unlisted network would look like an orphan.
    pub(crate) fn groups(&self) -> Result<Vec<GroupId>> {
        let dir = self.path().join(GROUPS_DIR);
        let failed = |error| Error::storage("read", &dir, error);
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut groups = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let group = name.to_str().and_then(|name| name.strip_suffix(".json"));
            groups.extend(group.and_then(GroupId::from_name));
        }
        groups.sort();
        Ok(groups)
    }

    /// Returns the names on the engine of the networks and volumes that have a file.
    ///
    /// A damaged file does not count: no opening ends its group.
    pub(crate) fn recorded_resources(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for group in self.groups()? {
            let path = self.group_path(&group);
            // Without its lock, which an opening would take for that of a live owner.
            let record = read(&path, MAX_RECORD_BYTES);
            let record = record.and_then(|bytes| self.parse_group(&group, &path, &bytes));
            match record {
                Err(Error::Damaged { .. }) => {}
                _ => names.push(self.id().container_name(group.as_run_id())),
            }
        }
        Ok(names)
    }

    /// Takes over a group without a live owner.
    ///
    /// Returns `None` if it has a live owner, or has ended.
    pub(crate) fn take_over_group(&self, group: &GroupId) -> Result<Option<(GroupRecord, Lock)>> {
        let path = self.group_path(group);
        let file = match disk::open_to_write(&path) {
            Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => return Ok(None),
            Err(error) if disk::is_in_use(&error) => return Ok(None),
            opened => opened?.into_std(),
        };
        let Some(lock) = Lock::try_new(file, &path)? else {
            return Ok(None);
        };
        if !lock.is_at(&path) {
            return Ok(None);
        }
        // Through the locked file: Windows lets no other handle read it.
        let bytes = lock.read(MAX_RECORD_BYTES);
        let bytes = bytes.map_err(|error| Error::storage("read", &path, error))?;
        Ok(Some((self.parse_group(group, &path, &bytes)?, lock)))
    }

    fn parse_group(&self, group: &GroupId, path: &Path, bytes: &[u8]) -> Result<GroupRecord> {
        let record: GroupRecord = parse(path, bytes)?;
        if record.group != *group || record.root != *self.id() {
            let owner = (&record.group, &record.root);
            return Err(Error::Damaged {
                path: path.to_owned(),
                reason: format!("it belongs to group {} of root {}", owner.0, owner.1),
            });
        }
        Ok(record)
    }

    /// Removes the file of a group that has ended. The caller has its lock.
    pub(crate) fn remove_group(&self, group: &GroupId) -> Result<()> {
        let path = self.group_path(group);
        match disk::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::storage("remove", path, error))
            }
            _ => disk::sync_dir(disk::parent_dir(&path)),
        }
    }

    /// Removes the files of groups whose creator died before it asked the engine for anything.
    pub(super) fn sweep_groups(&self) {
        let dir = self.path().join(GROUPS_DIR);
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let is_new = entry.file_name().to_string_lossy().starts_with(NEW_PREFIX);
            let modified = entry.metadata().and_then(|file| file.modified());
            let age = modified.ok().and_then(|modified| modified.elapsed().ok());
            if is_new && age.is_some_and(|age| age > CREATION_TIMEOUT) {
                let _ = disk::remove_file(&entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(root: &Root) -> GroupRecord {
        GroupRecord {
            v: 1,
            group: GroupId::generate(),
            root: root.id().clone(),
            created: Timestamp::now(),
            runtime: "scripted".into(),
            engine_id: None,
            resources: vec![ResourceKind::Network],
            has_members: false,
        }
    }

    #[test]
    fn a_group_is_taken_over_only_without_an_owner() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        let record = record(&root);
        let lock = root.create_group(&record).unwrap();
        assert_eq!(root.groups().unwrap(), std::slice::from_ref(&record.group));
        assert!(root.take_over_group(&record.group).unwrap().is_none());
        drop(lock);
        let (read, lock) = root.take_over_group(&record.group).unwrap().unwrap();
        assert_eq!(read, record);
        assert!(root.take_over_group(&record.group).unwrap().is_none());
        root.remove_group(&record.group).unwrap();
        drop(lock);
        assert!(root.take_over_group(&record.group).unwrap().is_none());
        assert!(root.groups().unwrap().is_empty());
        assert_eq!(root.runs().unwrap(), []);
    }

    #[test]
    fn the_file_of_another_root_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        let other = Root::open_or_create(dir.path().join("other")).unwrap();
        let record = record(&other);
        drop(root.create_group(&record).unwrap());
        let error = root.take_over_group(&record.group).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
    }

    #[test]
    fn only_an_old_file_of_a_dead_creator_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(dir.path().join("root")).unwrap();
        drop(root.create_group(&record(&root)).unwrap());
        let new = root.path().join(GROUPS_DIR).join(format!("{NEW_PREFIX}x"));
        let file = fs::File::create(&new).unwrap();
        root.sweep();
        assert!(new.exists());
        let old = std::time::SystemTime::now() - 2 * CREATION_TIMEOUT;
        file.set_modified(old).unwrap();
        root.sweep();
        assert!(!new.exists());
        assert_eq!(root.groups().unwrap().len(), 1);
    }
}

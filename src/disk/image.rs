//! A model of the directory images that a crash may leave. It is stricter than any real medium.
//!
//! As the design docs assume, synced data survives. Of all other data, each part survives or is
//! lost independently: each change of a name until its directory is synced, each sector of a file,
//! and each length that the file had or that a sector gave it. A lost sector below the length reads
//! as zeros.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::disk::journal::{Change, Op};

/// The contents of a directory tree: file bytes, or `None` for a directory.
pub(crate) type Image = BTreeMap<PathBuf, Option<Arc<[u8]>>>;

/// A temporary directory, in memory where such a file system exists.
pub(crate) fn scratch_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// Writes an image into an empty directory.
pub(crate) fn write_image(image: &Image, dir: &Path) {
    for (path, content) in image {
        let path = dir.join(path);
        match content {
            None => fs::create_dir(path).unwrap(),
            Some(bytes) => fs::write(path, bytes).unwrap(),
        }
    }
}

/// Reads the image of a directory.
pub(crate) fn read_image(dir: &Path) -> Image {
    fn add(dir: &Path, below: &Path, image: &mut Image) {
        for entry in fs::read_dir(dir.join(below)).unwrap() {
            let entry = entry.unwrap();
            let path = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                image.insert(path.clone(), None);
                add(dir, &path, image);
            } else {
                let bytes = fs::read(entry.path()).unwrap();
                image.insert(path, Some(bytes.into()));
            }
        }
    }
    let mut image = Image::new();
    add(dir, Path::new(""), &mut image);
    image
}

/// A medium: its visible state, and the state that survives a power loss.
#[derive(Debug, Clone)]
pub(crate) struct Medium {
    sector: usize,
    /// The first node is the directory itself.
    nodes: Vec<Node>,
    files: HashMap<u64, usize>,
}

type Names = BTreeMap<OsString, usize>;

#[derive(Debug, Clone)]
enum Node {
    Dir {
        live: Names,
        synced: Names,
        pending: Vec<NameChange>,
    },
    File {
        live: Vec<u8>,
        synced: Vec<u8>,
        pending: Vec<ContentChange>,
    },
}

/// A change of a name in a directory.
#[derive(Debug, Clone)]
enum NameChange {
    Insert(OsString, usize),
    Remove(OsString),
    Rename(OsString, OsString, usize),
}

/// A change of a file's content.
#[derive(Debug, Clone)]
enum ContentChange {
    Write { at: usize, bytes: Vec<u8> },
    Truncate(usize),
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Insert(name, node) => {
                names.insert(name.clone(), *node);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl ContentChange {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes: new } => {
                bytes.resize(bytes.len().max(at + new.len()), 0);
                bytes[*at..at + new.len()].copy_from_slice(new);
            }
            Self::Truncate(length) => bytes.truncate(*length),
        }
    }
}

impl Medium {
    /// A medium with sectors of `sector` bytes, on which all of `image` is synced.
    pub(crate) fn of(image: &Image, sector: usize) -> Self {
        let mut medium = Self {
            sector,
            nodes: vec![Node::dir()],
            files: HashMap::new(),
        };
        for (path, content) in image {
            let node = match content {
                None => Node::dir(),
                Some(bytes) => Node::File {
                    live: bytes.to_vec(),
                    synced: bytes.to_vec(),
                    pending: Vec::new(),
                },
            };
            let added = medium.add(node);
            let (dir, name) = medium.place(path);
            let Node::Dir { live, synced, .. } = &mut medium.nodes[dir] else {
                panic!("{path:?}");
            };
            live.insert(name.clone(), added);
            synced.insert(name, added);
        }
        medium
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn find(&self, path: &Path) -> usize {
        path.components()
            .fold(0, |node, component| match (&self.nodes[node], component) {
                (Node::Dir { live, .. }, Component::Normal(name)) => live[name],
                _ => panic!("{path:?}"),
            })
    }

    /// The directory that contains a path, and the path's name in it.
    fn place(&self, path: &Path) -> (usize, OsString) {
        let dir = self.find(path.parent().unwrap());
        (dir, path.file_name().unwrap().to_owned())
    }

    fn change_name(&mut self, dir: usize, change: NameChange) {
        let Node::Dir { live, pending, .. } = &mut self.nodes[dir] else {
            panic!("{change:?}");
        };
        change.apply(live);
        pending.push(change);
    }

    fn set_name(&mut self, path: &Path, node: usize) {
        let (dir, name) = self.place(path);
        self.change_name(dir, NameChange::Insert(name, node));
    }

    /// Applies an operation.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::CreateDir(path) => {
                let node = self.add(Node::dir());
                self.set_name(path, node);
            }
            Op::SyncDir(path) => {
                let node = self.find(path);
                if let Node::Dir {
                    live,
                    synced,
                    pending,
                } = &mut self.nodes[node]
                {
                    synced.clone_from(live);
                    pending.clear();
                }
            }
            Op::Create { path, file } => {
                let node = self.add(Node::File {
                    live: Vec::new(),
                    synced: Vec::new(),
                    pending: Vec::new(),
                });
                self.files.insert(*file, node);
                self.set_name(path, node);
            }
            Op::Open { path, file } => {
                let node = self.find(path);
                self.files.insert(*file, node);
            }
            Op::Change { file, change } => self.change(*file, change),
            Op::Rename { from, to } => {
                let (dir, name) = self.place(from);
                assert_eq!(from.parent(), to.parent());
                let change = NameChange::Rename(name, self.place(to).1, self.find(from));
                self.change_name(dir, change);
            }
            Op::Link { from, to } => self.set_name(to, self.find(from)),
            Op::Remove(path) | Op::RemoveDir(path) => {
                let (dir, name) = self.place(path);
                self.change_name(dir, NameChange::Remove(name));
            }
        }
    }

    fn change(&mut self, file: u64, change: &Change) {
        let Node::File {
            live,
            synced,
            pending,
        } = &mut self.nodes[self.files[&file]]
        else {
            panic!("{change:?}");
        };
        match change {
            Change::Write { end, bytes } => {
                assert!(
                    !matches!(pending.last(), Some(ContentChange::Truncate(_))),
                    "the model has no write after an unsynced truncation"
                );
                let at = usize::try_from(*end).unwrap() - bytes.len();
                let bytes = bytes.clone();
                let write = ContentChange::Write { at, bytes };
                write.apply(live);
                pending.push(write);
            }
            Change::SetLen(length) => {
                let length = usize::try_from(*length).unwrap();
                assert!(length <= live.len());
                let truncate = ContentChange::Truncate(length);
                truncate.apply(live);
                pending.push(truncate);
            }
            Change::Sync { all } => {
                assert!(
                    *all || !pending
                        .iter()
                        .any(|one| matches!(one, ContentChange::Truncate(_))),
                    "the model has no data-only sync after a truncation"
                );
                synced.clone_from(live);
                pending.clear();
            }
        }
    }

    /// The visible state.
    pub(crate) fn live(&self) -> Image {
        fn add(nodes: &[Node], node: usize, path: &Path, image: &mut Image) {
            match &nodes[node] {
                Node::File { live, .. } => {
                    image.insert(path.to_owned(), Some(live.as_slice().into()));
                }
                Node::Dir { live, .. } => {
                    if node > 0 {
                        image.insert(path.to_owned(), None);
                    }
                    for (name, child) in live {
                        add(nodes, *child, &path.join(name), image);
                    }
                }
            }
        }
        let mut image = Image::new();
        add(&self.nodes, 0, Path::new(""), &mut image);
        image
    }

    /// The possible states after a process is killed during `op`.
    ///
    /// All earlier operations have happened, and any prefix of a write. The results are media,
    /// because a power loss may follow.
    pub(crate) fn after_kill(&self, op: Option<&Op>) -> Vec<Medium> {
        let mut states = vec![self.clone()];
        if let Some(Op::Change {
            file,
            change: Change::Write { end, bytes },
        }) = op
        {
            for count in 1..bytes.len() {
                let mut torn = self.clone();
                let change = Change::Write {
                    end: end - (bytes.len() - count) as u64,
                    bytes: bytes[..count].to_vec(),
                };
                torn.change(*file, &change);
                states.push(torn);
            }
        }
        states
    }

    /// The possible states after a power loss.
    pub(crate) fn after_power_loss(&self) -> BTreeSet<Image> {
        let contents: Vec<_> = self
            .nodes
            .iter()
            .map(|node| match node {
                Node::Dir { .. } => Vec::new(),
                Node::File {
                    synced, pending, ..
                } => contents(synced, pending, self.sector)
                    .into_iter()
                    .map(Arc::from)
                    .collect(),
            })
            .collect();
        self.dir_images(0, Path::new(""), &contents)
    }

    /// The possible states of the directory `node`, given those of each file.
    fn dir_images(&self, node: usize, path: &Path, contents: &[Vec<Arc<[u8]>>]) -> BTreeSet<Image> {
        let Node::Dir {
            synced, pending, ..
        } = &self.nodes[node]
        else {
            panic!("{path:?}");
        };
        let mut seen = BTreeSet::new();
        let mut images = BTreeSet::new();
        for choice in 0..1u32 << pending.len() {
            let mut names = synced.clone();
            for (at, change) in pending.iter().enumerate() {
                if choice >> at & 1 == 1 {
                    change.apply(&mut names);
                }
            }
            if !seen.insert(names.clone()) {
                continue;
            }
            images.extend(self.combinations(&names, path, contents));
        }
        images
    }

    /// Every combination of the possible states of the entries `names`.
    fn combinations(&self, names: &Names, path: &Path, contents: &[Vec<Arc<[u8]>>]) -> Vec<Image> {
        let mut all = vec![Image::new()];
        for (name, child) in names {
            let path = path.join(name);
            let variants: Vec<Image> = match &self.nodes[*child] {
                Node::File { .. } => contents[*child]
                    .iter()
                    .map(|bytes| Image::from([(path.clone(), Some(bytes.clone()))]))
                    .collect(),
                Node::Dir { .. } => self
                    .dir_images(*child, &path, contents)
                    .into_iter()
                    .map(|mut image| {
                        image.insert(path.clone(), None);
                        image
                    })
                    .collect(),
            };
            all = all
                .iter()
                .flat_map(|image| {
                    variants.iter().map(|variant| {
                        let mut image = image.clone();
                        image.extend(variant.clone());
                        image
                    })
                })
                .collect();
        }
        all
    }
}

impl Node {
    fn dir() -> Self {
        Self::Dir {
            live: Names::new(),
            synced: Names::new(),
            pending: Vec::new(),
        }
    }
}

/// The possible contents of a synced file with `pending` changes.
fn contents(synced: &[u8], pending: &[ContentChange], sector: usize) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::from([synced.to_vec()]);
    let mut rest = pending;
    while let Some(first) = rest.first() {
        if let ContentChange::Truncate(length) = first {
            let cut: Vec<_> = all
                .iter()
                .map(|bytes| bytes[..bytes.len().min(*length)].to_vec())
                .collect();
            all.extend(cut);
            rest = &rest[1..];
            continue;
        }
        let count = rest
            .iter()
            .take_while(|change| matches!(change, ContentChange::Write { .. }))
            .count();
        all = all
            .iter()
            .flat_map(|base| contents_after_writes(base, &rest[..count], sector))
            .collect();
        rest = &rest[count..];
    }
    all
}

/// The possible contents of a file that had `base`, after unsynced writes.
fn contents_after_writes(
    base: &[u8],
    writes: &[ContentChange],
    sector: usize,
) -> BTreeSet<Vec<u8>> {
    let mut lengths = BTreeSet::from([base.len()]);
    // The file after each write. Each sector independently has one of these versions.
    let mut versions = vec![base.to_vec()];
    for write in writes {
        let mut next = versions.last().unwrap().clone();
        write.apply(&mut next);
        lengths.insert(next.len());
        versions.push(next);
    }
    let max_length = versions.last().unwrap().len();
    lengths.extend(
        (0..max_length)
            .step_by(sector)
            .filter(|at| *at > base.len()),
    );
    let mut all = BTreeSet::new();
    for length in lengths {
        let mut files = vec![Vec::with_capacity(length)];
        for from in (0..length).step_by(sector) {
            let to = length.min(from + sector);
            let choices: BTreeSet<Vec<u8>> = versions
                .iter()
                .map(|version| {
                    let there = &version[from.min(version.len())..to.min(version.len())];
                    let mut bytes = there.to_vec();
                    bytes.resize(to - from, 0);
                    bytes
                })
                .collect();
            files = files
                .iter()
                .flat_map(|file| {
                    choices
                        .iter()
                        .map(move |choice| [&file[..], choice].concat())
                })
                .collect();
        }
        all.extend(files);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::journal::Journal;
    use crate::disk::{create_dir, open_new, open_to_write, remove_file, rename, sync_dir};
    use std::io::Write;

    /// The possible contents of a file after each operation.
    ///
    /// `.` is a zero, `-` is no file.
    fn possible_contents(sector: usize, act: impl FnOnce(&Path)) -> Vec<String> {
        let dir = scratch_dir();
        let journal = Journal::of(dir.path());
        let mut medium = Medium::of(&read_image(dir.path()), sector);
        act(&dir.path().join("file"));
        let mut all = Vec::new();
        for op in journal.ops() {
            medium.apply(&op);
            let images: BTreeSet<String> = medium
                .after_power_loss()
                .into_iter()
                .map(|image| match image.get(Path::new("file")) {
                    Some(Some(bytes)) => String::from_utf8_lossy(bytes).replace('\0', "."),
                    _ => "-".into(),
                })
                .collect();
            all.push(Vec::from_iter(images).join(" "));
        }
        assert_eq!(medium.live(), read_image(dir.path()));
        all
    }

    #[test]
    fn sectors_and_lengths_survive_independently() {
        let all = possible_contents(2, |path| {
            let file = open_new(path).unwrap();
            sync_dir(path.parent().unwrap()).unwrap();
            (&file).write_all(b"abcde").unwrap();
            file.sync_data().unwrap();
            (&file).write_all(b"fg").unwrap();
            (&file).write_all(b"h").unwrap();
        });
        assert_eq!(
            all,
            [
                " -",
                "",
                " .. .... ..... ....e ..cd ..cd. ..cde ab ab.. ab... ab..e abcd abcd. abcde",
                "abcde",
                "abcde abcde. abcde.. abcde.g abcdef abcdef. abcdefg",
                "abcde abcde. abcde.. abcde... abcde.g abcde.g. abcde.gh abcdef abcdef. abcdef.. \
                 abcdefg abcdefg. abcdefgh",
            ]
        );
    }

    #[test]
    fn name_changes_survive_independently_until_synced() {
        let all = possible_contents(8, |path| {
            let other = path.with_file_name("other");
            open_new(&other).unwrap().sync_all().unwrap();
            rename(&other, path).unwrap();
            remove_file(path).unwrap();
            sync_dir(path.parent().unwrap()).unwrap();
        });
        assert_eq!(all, ["-", "-", " -", " -", "-"]);
    }

    #[test]
    fn a_truncation_may_be_lost_until_a_full_sync() {
        let all = possible_contents(8, |path| {
            let file = open_new(path).unwrap();
            (&file).write_all(b"ab").unwrap();
            file.sync_all().unwrap();
            sync_dir(path.parent().unwrap()).unwrap();
            let file = open_to_write(path).unwrap();
            file.set_len(1).unwrap();
            file.sync_all().unwrap();
        });
        assert_eq!(all[3..], ["ab", "ab", "a ab", "a"]);
    }

    #[test]
    fn a_lost_directory_takes_synced_files_with_it() {
        let all = possible_contents(8, |path| {
            let dir = path.with_file_name("dir");
            create_dir(&dir).unwrap();
            open_new(&dir.join("file")).unwrap();
            sync_dir(&dir).unwrap();
        });
        assert_eq!(all, ["-", "-", "-"]);
        let image = Image::from([("a".into(), None), ("a/b".into(), Some([1, 2].into()))]);
        let dir = scratch_dir();
        write_image(&image, dir.path());
        assert_eq!(read_image(dir.path()), image);
        let mut medium = Medium::of(&image, 8);
        medium.apply(&Op::CreateDir("a/c".into()));
        medium.apply(&Op::SyncDir("a/c".into()));
        assert_eq!(medium.after_power_loss().len(), 2);
        assert_eq!(medium.after_power_loss().first(), Some(&image));
    }
}

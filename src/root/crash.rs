//! Crash tests of a root and of `run.json`.
//!
//! As in `sink::jsonl::crash`, a journal records every file operation. The test opens each image
//! that a crash may leave after any prefix of the journal.

use std::collections::{BTreeMap, BTreeSet};

use crate::audit::Start;
use crate::disk::create_dir;
use crate::disk::image::{Image, Medium, read_image, scratch_dir, write_image};
use crate::disk::journal::Journal;
use crate::root::{RemovalReason, Root, RunFile};
use crate::sink::{Jsonl, LogSink, RunPlace};
use crate::spec::{ContainerId, RootId, RunId, RunRecord, RunSpec};

/// The sector size: small enough that the record of a run spans several sectors.
const SECTOR_BYTES: usize = 256;
/// The path of the root, whose parent directories do not exist at the start.
const ROOT: &str = "made/too/root";

/// The guarantees that hold after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Promise {
    /// The root has its final id.
    root: bool,
    /// The oldest version of the run's file that may be found; 0 if none is required.
    version: usize,
    /// The run may be missing, because its removal has begun.
    removing: bool,
    /// The run is missing.
    removed: bool,
}

/// The expected contents of a root.
struct Expected {
    id: RootId,
    versions: Vec<RunFile>,
}

impl Expected {
    fn run() -> RunId {
        RunId::new("run").unwrap()
    }

    /// Opens the root of a disk image and checks its contents.
    fn check(&self, image: &Image, promise: Promise) {
        let disk = scratch_dir();
        write_image(image, disk.path());
        let root = Root::open_or_create(disk.path().join(ROOT)).unwrap();
        assert!(!promise.root || *root.id() == self.id);
        let runs = root.runs().unwrap();
        assert!(!runs.is_empty() || promise.version == 0 || promise.removing);
        assert!(runs.is_empty() || !promise.removed);
        for info in root.list().unwrap() {
            assert_eq!(info.problem, None);
            match root.read_run(&info.run).unwrap() {
                None => assert_eq!(promise.version, 0),
                Some(file) => {
                    let version = self.versions.iter().position(|known| *known == file);
                    assert!(version.unwrap() + 1 >= promise.version, "{version:?}");
                }
            }
            let last = self.versions.last().unwrap();
            root.write_run(last).unwrap();
            assert_eq!(root.read_run(&info.run).unwrap().as_ref(), Some(last));
        }
        root.sweep();
        let swept = read_image(disk.path());
        assert!(
            swept
                .keys()
                .all(|path| !path.to_string_lossy().contains("removed"))
        );
    }
}

#[test]
fn a_root_and_its_runs_survive_any_crash() {
    let disk = scratch_dir();
    let journal = Journal::of(disk.path());
    let mut promises = Vec::new();
    // The guarantees after SIGKILL, and after a power failure.
    let mut promised = |killed: Promise, failed: Promise| {
        promises.push((journal.len(), killed, failed));
    };

    let root = Root::open_or_create(disk.path().join(ROOT)).unwrap();
    let mut promise = Promise {
        root: true,
        ..Promise::default()
    };
    promised(promise, promise);

    let spec = RunSpec::new("image");
    let run = Expected::run();
    let record = RunRecord::new(run.clone(), root.id().clone(), "scripted", &spec);
    let mut file = RunFile::new(record);
    let mut versions = vec![file.clone()];
    create_dir(&root.dir(&run)).unwrap();
    let lock = root.lock(&run).unwrap();
    root.write_run(&file).unwrap();
    promised(
        Promise {
            version: 1,
            ..promise
        },
        promise,
    );
    let place = RunPlace::new(run.clone(), root.dir(&run));
    let start = Start::new(file.record.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let log = runtime.block_on(Jsonl::new().open(&place, &start)).unwrap();
    promise.version = 1;
    promised(promise, promise);
    for container in ["4f66ad9a0b2e", "5f66ad9a0b2e"] {
        file.record.container = Some(ContainerId::new(container));
        root.write_run(&file).unwrap();
        versions.push(file.clone());
        promise.version += 1;
        promised(promise, promise);
    }
    drop((log, lock));
    promise.removing = true;
    promised(promise, promise);
    root.remove(&run, RemovalReason::Removed).unwrap();
    promise.removed = true;
    promised(promise, promise);
    let ops = journal.ops();
    drop(journal);

    let expected = Expected {
        id: root.id().clone(),
        versions,
    };
    let mut killed = BTreeSet::new();
    let mut failed = BTreeSet::new();
    let mut again = Vec::new();
    let mut medium = Medium::of(&Image::new(), SECTOR_BYTES);
    for done in 0..=ops.len() {
        let held = promises.iter().rfind(|(from, ..)| *from <= done);
        let (if_killed, if_failed) = held.map_or_else(Default::default, |(_, k, f)| (*k, *f));
        for medium in medium.after_kill(ops.get(done)) {
            killed.insert((medium.live(), if_killed));
        }
        for image in medium.after_power_loss() {
            failed.insert((image, if_failed));
        }
        if !if_failed.root {
            again.push(reopenings(&medium));
        }
        if let Some(op) = ops.get(done) {
            medium.apply(op);
        }
    }
    assert_eq!(
        medium.live(),
        read_image(disk.path()),
        "the journal missed an operation"
    );
    for (image, promise) in killed.iter().chain(&failed) {
        expected.check(image, *promise);
    }
    for (id, images) in &again {
        let expected = Expected {
            id: id.clone(),
            versions: Vec::new(),
        };
        for (image, root) in images {
            let root = *root;
            expected.check(
                image,
                Promise {
                    root,
                    ..Promise::default()
                },
            );
        }
    }
    let again: usize = again.iter().map(|(_, images)| images.len()).sum();
    let tried = (killed.len(), failed.len(), again);
    assert!(
        tried.0 > 3000 && tried.1 > 100 && tried.2 > 120,
        "{tried:?}"
    );
}

/// Opens a root whose creator was killed.
///
/// Returns the id, and each image that a power failure during the call may leave. The flag of an
/// image is true if the id must be final in it.
fn reopenings(after_kill: &Medium) -> (RootId, BTreeMap<Image, bool>) {
    let disk = scratch_dir();
    write_image(&after_kill.live(), disk.path());
    let journal = Journal::of(disk.path());
    let root = Root::open_or_create(disk.path().join(ROOT)).unwrap();
    let mut medium = after_kill.clone();
    let mut images = BTreeMap::new();
    let ops = journal.ops();
    for (done, op) in ops.iter().enumerate() {
        medium.apply(op);
        for image in medium.after_power_loss() {
            let is_final = done + 1 == ops.len();
            *images.entry(image).or_default() |= is_final;
        }
    }
    (root.id().clone(), images)
}

//! Changes of a signed root: each is found, or harmless.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use moat::root::{FindingKind, Head, RunInfo, VerifyOptions};
use moat::runtime::scripted::Script;
use moat::sign::{AllowedSigners, SigningKey};
use moat::sink::Jsonl;
use moat::spec::ExecSpec;
use moat::{Manager, Root, ShutdownMode};
use testkit::keygen::Keys;

use crate::bench::{Bench, named, sealed};

/// A signed root with the runs `a` and `b`. Each has an exec.
struct Signed {
    bench: Bench,
    keys: Keys,
    allowed: AllowedSigners,
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

impl Signed {
    async fn new() -> Self {
        let (bench, keys) = (Bench::in_memory(), Keys::new());
        let allowed = AllowedSigners::parse(&format!("me {}", keys.public("key")));
        let signed = Self {
            bench,
            keys,
            allowed,
        };
        signed.add(&["a", "b"]).await;
        signed
    }

    async fn open(&self) -> Manager {
        let key = SigningKey::from_file(self.keys.path("key")).unwrap();
        let sink = Jsonl::new().signed_by(key);
        self.bench.builder().sink(sink).open().await.unwrap()
    }

    async fn add(&self, runs: &[&str]) {
        let manager = self.open().await;
        for name in runs {
            self.bench.runtime.next_exec(Script::new().stdout("exec\n"));
            let script = Script::new().stdout("output\n").until_stopped();
            let run = self.bench.start(&manager, script, named(name)).await;
            let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
            exec.wait().await.unwrap();
            run.kill().await.unwrap();
            sealed(&run).await;
        }
        manager.shutdown(ShutdownMode::Leave).await;
    }

    /// The files of the root, with their paths in it.
    fn files(&self) -> Files {
        let mut files = Files::new();
        let mut dirs = vec![self.bench.root()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else if !path.ends_with(".ledger-reserve") {
                    let bytes = fs::read(&path).unwrap();
                    files.insert(path.strip_prefix(self.bench.root()).unwrap().into(), bytes);
                }
            }
        }
        files
    }

    fn write(&self, path: &Path, bytes: &[u8]) {
        fs::write(self.bench.root().join(path), bytes).unwrap();
    }

    fn restore(&self, files: &Files) {
        fs::remove_dir_all(self.bench.root()).unwrap();
        for (path, bytes) in files {
            let path = self.bench.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// The runs as a reader sees them, without the fields of `run.json` that only an owner uses.
    fn listed(&self) -> Option<Vec<RunInfo>> {
        let mut listed = Root::open(self.bench.root()).ok()?.list().ok()?;
        for info in &mut listed {
            info.unsigned = None;
            let record = info.record.as_mut()?;
            (record.container, record.deadline, record.engine_id) = (None, None, None);
        }
        Some(listed)
    }

    /// True if the root opens, and nothing is found.
    fn is_intact(&self, head: Option<&Head>) -> bool {
        let options = VerifyOptions::new().signed_by(self.allowed.clone());
        let options = head.cloned().into_iter().fold(options, VerifyOptions::head);
        let root = Root::open(self.bench.root());
        root.is_ok_and(|root| root.verify_all(&options).unwrap().is_intact())
    }
}

/// True if a changed byte of a signature is none that `ssh-keygen` reads: a line break within the
/// base64, and the last one.
fn is_ignored(bytes: &[u8], at: usize) -> bool {
    bytes[at] == b'\n' || bytes[..at].ends_with(b"-----END SSH SIGNATURE-----")
}

/// The distance of the changed bytes: all of them in the long form.
fn step() -> usize {
    if std::env::var_os("MOAT_SOAK").is_some() {
        1
    } else {
        17
    }
}

#[tokio::test]
async fn each_changed_byte_of_a_root_is_found_or_harmless() {
    let signed = Signed::new().await;
    assert!(signed.is_intact(None));
    let files = signed.files();
    let listed = signed.listed();
    let mut found = BTreeMap::<_, usize>::new();
    for (path, bytes) in &files {
        for at in (0..bytes.len()).step_by(step()) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            signed.write(path, &changed);
            let is_found = !signed.is_intact(None);
            let name = path.file_name().unwrap().to_str().unwrap();
            let harmless = match name {
                // A field that nothing reads once the run is sealed.
                "run.json" => signed.listed() == listed,
                _ => name.ends_with(".sig") && is_ignored(bytes, at),
            };
            let near = String::from_utf8_lossy(&bytes[at.saturating_sub(40)..at + 1]);
            assert!(is_found || harmless, "{} {at}: ...{near}", path.display());
            *found.entry(path.file_name().unwrap()).or_default() += usize::from(is_found);
        }
        signed.write(path, bytes);
    }
    assert!(signed.is_intact(None));
    assert_eq!(found.len(), 8, "{found:?}");
}

#[tokio::test]
async fn each_cut_file_of_a_root_is_found() {
    let signed = Signed::new().await;
    for (path, bytes) in &signed.files() {
        let name = path.file_name().unwrap();
        for length in (0..bytes.len()).step_by(61) {
            signed.write(path, &bytes[..length]);
            // Bytes after the last newline of a ledger are what a power loss leaves, but the signed
            // head names the lines before.
            assert!(!signed.is_intact(None), "{name:?}: {length}");
        }
        fs::remove_file(signed.bench.root().join(path)).unwrap();
        // A run without `run.json` is as it was: the audit file has all of it.
        let expected = name == "run.json" || name == "lock";
        assert_eq!(signed.is_intact(None), expected, "{name:?}");
        signed.write(path, bytes);
    }
}

#[tokio::test]
async fn exchanged_files_of_runs_are_found() {
    let signed = Signed::new().await;
    let files = signed.files();
    for (path, bytes) in &files {
        let Ok(name) = path.strip_prefix("a") else {
            continue;
        };
        let other = Path::new("b").join(name);
        if name == Path::new("lock") {
            continue;
        }
        signed.write(path, &files[&other]);
        signed.write(&other, bytes);
        assert!(!signed.is_intact(None), "{}", name.display());
        signed.restore(&files);
    }
    // All files of a run.
    let root = signed.bench.root();
    fs::rename(root.join("a"), root.join("c")).unwrap();
    fs::rename(root.join("b"), root.join("a")).unwrap();
    fs::rename(root.join("c"), root.join("b")).unwrap();
    assert!(!signed.is_intact(None));
}

#[tokio::test]
async fn a_replayed_root_is_found_by_a_kept_head_only() {
    let signed = Signed::new().await;
    let before = signed.files();
    signed.add(&["c"]).await;
    let root = Root::open(signed.bench.root()).unwrap();
    let head = root.head().unwrap().unwrap();
    assert!(signed.is_intact(Some(&head)));
    signed.restore(&before);
    assert!(signed.is_intact(None));
    assert!(!signed.is_intact(Some(&head)));
    let options = VerifyOptions::new().head(head);
    let found = root.verify_all(&options).unwrap().findings;
    let kinds: Vec<_> = found.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [FindingKind::LedgerCut]);
}

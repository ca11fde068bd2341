//! Signatures of sealed audit files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moat::async_trait;
use moat::audit::{LogState, Start, verify};
use moat::events::{EventKind, Events};
use moat::runtime::scripted::Script;
use moat::sign::{AllowedSigners, NAMESPACE, SignError, Signer, SigningKey, signature_path};
use moat::sink::{Fanout, Jsonl, Memory, RecordVisitor, Resumed, RunLog, RunPlace};
use moat::spec::ExecSpec;
use moat::{Error, LogSink, Manager, Root, Run, RunId, ShutdownMode};
use serde_json::Value;
use signature::Signer as _;
use ssh_key::PrivateKey;
use testkit::deadline::{eventually, within};
use testkit::keygen::{Check, Keys};

use crate::bench::{Bench, check, named, sealed};
use crate::ledger::forge;

const NOT_IN_LEDGER: &str = "the ledger does not have the digest of its seal";

/// A signer of the caller, which fails or hangs on request.
#[derive(Debug, Clone)]
struct OwnSigner {
    path: PathBuf,
    fails: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
}

impl OwnSigner {
    fn new(keys: &Keys) -> Self {
        Self {
            path: keys.path("key"),
            fails: Arc::default(),
            hangs: Arc::default(),
        }
    }

    fn key(&self) -> SigningKey {
        SigningKey::from_signer(self.clone()).unwrap()
    }

    fn private(&self) -> PrivateKey {
        PrivateKey::read_openssh_file(&self.path).unwrap()
    }
}

#[async_trait]
impl Signer for OwnSigner {
    fn public_key(&self) -> String {
        self.private().public_key().to_openssh().unwrap()
    }

    async fn sign(&self, data: &[u8]) -> Result<Vec<u8>, SignError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(SignError::new("the module is locked"));
        }
        while self.hangs.load(Ordering::Relaxed) {
            // It blocks the thread, as a library in C would.
            std::thread::sleep(Duration::from_millis(5));
        }
        let signature = self.private().key_data().try_sign(data);
        Ok(signature.map_err(SignError::new)?.as_bytes().to_vec())
    }
}

fn file_key(keys: &Keys) -> SigningKey {
    SigningKey::from_file(keys.path("key")).unwrap()
}

async fn open(bench: &Bench, sink: impl LogSink) -> Manager {
    bench.builder().sink(sink).open().await.unwrap()
}

async fn open_with(bench: &Bench, key: &SigningKey) -> Manager {
    open(bench, Jsonl::new().signed_by(key.clone())).await
}

/// Runs a script with an exec, until both are sealed.
async fn run_with_exec(bench: &Bench, manager: &Manager, name: &str) -> Run {
    bench.runtime.next_exec(Script::new().stdout("exec\n"));
    let script = Script::new().stdout("out\n").until_stopped();
    let run = bench.start(manager, script, named(name)).await;
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    while exec.wait().await.unwrap().sealed().is_none() {}
    run.kill().await.unwrap();
    check(&sealed(&run).await);
    run
}

/// Waits until the mark of a run is removed.
async fn is_signed(root: &Root, run: &RunId) {
    eventually(60, "the signature", async || {
        let info = root.info(run).unwrap();
        (info.seal.is_some() && info.unsigned.is_none()).then_some(())
    })
    .await;
}

/// Waits until the run is released, and returns the events of signatures.
async fn signature_events(mut events: Events) -> Vec<EventKind> {
    let mut found = Vec::new();
    while let Some(event) = within(60, "the release", events.next()).await {
        if let EventKind::Signed { .. } | EventKind::Unsigned { .. } = event.kind {
            found.push(event.kind);
        }
    }
    found
}

/// Runs the command of the documentation in the directory of a run.
fn verify_as_documented(dir: &Path, allowed: &Path, file: &str) -> bool {
    let allowed = allowed.display();
    let script =
        format!("ssh-keygen -Y verify -f {allowed} -I me -n moat-audit -s {file}.sig < {file}");
    let mut command = Command::new("sh");
    let output = command.args(["-c", &script]).current_dir(dir).output();
    output.unwrap().status.success()
}

#[tokio::test]
async fn ssh_keygen_verifies_runs_and_execs() {
    let keys = Keys::new();
    keys.generate("other", &["-t", "ed25519", "-N", ""]);
    let agent = keys.agent("key");
    let agent_key = SigningKey::from_agent_at(&agent.socket, &keys.public("key")).unwrap();
    let line = |options: &str, name: &str| format!("me {options}{}\n", keys.public(name));
    let allowed = keys.write("allowed", line("", "key"));
    let foreign = keys.write("foreign", line("", "other"));
    let expired = keys.write("expired", line("valid-before=\"20200101Z\" ", "key"));
    for (kind, key) in [
        ("file", file_key(&keys)),
        ("agent", agent_key),
        ("signer", OwnSigner::new(&keys).key()),
    ] {
        let bench = Bench::new();
        // The key of the required sink counts.
        let sink = Fanout::new(Jsonl::new().signed_by(key)).best_effort(Memory::new());
        let manager = open(&bench, sink).await;
        let run = run_with_exec(&bench, &manager, kind).await;
        is_signed(manager.root(), run.id()).await;
        let root = manager.root();
        let dir = root.dir(run.id());
        let allowed_signers = |path: &Path| AllowedSigners::from_file(path).unwrap();
        for (file, exec) in [("logs.jsonl", None), ("exec-1.jsonl", Some(1))] {
            let verify = |allowed: &Path| match exec {
                None => root.verify_signature(run.id(), &allowed_signers(allowed)),
                Some(number) => {
                    root.verify_exec_signature(run.id(), number, &allowed_signers(allowed))
                }
            };
            let reason = |allowed: &Path| verify(allowed).unwrap_err().chain();
            assert!(verify_as_documented(&dir, &allowed, file), "{kind} {file}");
            assert_eq!(verify(&allowed).unwrap().principals, "me");

            assert!(!verify_as_documented(&dir, &foreign, file));
            assert!(reason(&foreign).contains("is not an allowed signer"));
            assert!(!verify_as_documented(&dir, &expired, file));
            assert!(reason(&expired).contains("has expired"));

            let mut bytes = fs::read(dir.join(file)).unwrap();
            bytes[20] ^= 1;
            fs::write(dir.join(file), bytes).unwrap();
            assert!(!verify_as_documented(&dir, &allowed, file));
            assert!(reason(&allowed).ends_with("the signature does not match the file"));
        }
        manager.shutdown(ShutdownMode::Leave).await;
    }
}

/// moat and `ssh-keygen` agree about each changed byte. The line breaks of the armor are harmless
/// where the change leaves white space.
#[tokio::test]
async fn each_changed_byte_of_a_signed_run_is_refused() {
    let keys = Keys::new();
    let bench = Bench::in_memory();
    let manager = open_with(&bench, &file_key(&keys)).await;
    let script = Script::new().stdout("out\n");
    let run = bench.start(&manager, script, named("run")).await;
    sealed(&run).await;
    is_signed(manager.root(), run.id()).await;
    let path = run.audit().unwrap();
    let allowed = keys.write("allowed", format!("me {}\n", keys.public("key")));
    let signers = AllowedSigners::from_file(&allowed).unwrap();
    let keygen = Check::new(&allowed);
    let (file, signature) = (fs::read(&path).unwrap(), signature_path(&path));
    let armored = fs::read(&signature).unwrap();
    let accepted = || {
        let ours = signers.verify_file("moat-audit", &path).is_ok();
        assert_eq!(keygen.accepts(&path, &signature), ours);
        ours
    };
    assert!(accepted());
    for offset in 0..file.len() {
        let mut changed = file.clone();
        changed[offset] ^= 1;
        fs::write(&path, changed).unwrap();
        assert!(!accepted(), "byte {offset} of the file");
    }
    fs::write(&path, &file).unwrap();
    for offset in 0..armored.len() {
        let mut changed = armored.clone();
        changed[offset] ^= 1;
        fs::write(&signature, &changed).unwrap();
        // The newline of the header must stay. The one before the footer is part of the footer.
        let is_harmless = armored[offset] == b'\n'
            && offset != "-----BEGIN SSH SIGNATURE-----".len()
            && armored[offset + 1..].first() != Some(&b'-');
        assert_eq!(accepted(), is_harmless, "byte {offset} of the signature");
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn a_failed_signature_is_said_and_retried() {
    let keys = Keys::new();
    let bench = Bench::new();
    let signer = OwnSigner::new(&keys);
    signer.fails.store(true, Ordering::Relaxed);
    let manager = open_with(&bench, &signer.key()).await;
    let all_events = manager.events();
    let run = run_with_exec(&bench, &manager, "run").await;
    let id = run.id().clone();
    let path = run.audit().unwrap();
    let reason = || bench.view().info(&id).unwrap().unsigned;
    manager.shutdown(ShutdownMode::Leave).await;
    let failed = "cannot sign: the module is locked";
    assert_eq!(reason().as_deref(), Some(failed));
    assert!(!signature_path(&path).exists());
    let found = signature_events(all_events).await;
    for exec in [None, Some(1)] {
        let reason = failed.to_owned();
        let event = EventKind::Unsigned { exec, reason };
        assert!(found.contains(&event), "{found:?}");
    }

    // A file that is no signature of the log does not count as one.
    let stale = file_key(&keys).sign(NAMESPACE, b"another log").await;
    let exec_path = path.with_file_name("exec-1.jsonl");
    fs::write(signature_path(&path), "").unwrap();
    fs::write(signature_path(&exec_path), stale.unwrap()).unwrap();

    // Without a key, nothing changes.
    let manager = bench.open_on_threads().await;
    manager.wait_recovery().await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(reason().as_deref(), Some(failed));

    let manager = open_with(&bench, &file_key(&keys)).await;
    is_signed(manager.root(), &id).await;
    let allowed = keys.write("allowed", format!("me {}\n", keys.public("key")));
    let dir = manager.root().dir(&id);
    assert!(verify_as_documented(&dir, &allowed, "logs.jsonl"));
    assert!(verify_as_documented(&dir, &allowed, "exec-1.jsonl"));
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn a_hung_signer_delays_neither_seal_nor_shutdown() {
    let keys = Keys::new();
    let bench = Bench::new();
    let signer = OwnSigner::new(&keys);
    signer.hangs.store(true, Ordering::Relaxed);
    let manager = open_with(&bench, &signer.key()).await;
    let begun = Instant::now();
    let first = run_with_exec(&bench, &manager, "first").await;
    // The signer of the first run still hangs.
    let second = run_with_exec(&bench, &manager, "second").await;
    let closing = Instant::now();
    manager.shutdown(ShutdownMode::Leave).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{begun:?}");
    // The logs and the head of the ledger share 2 s.
    let closing = closing.elapsed();
    assert!(closing < Duration::from_millis(3500), "{closing:?}");
    for run in [&first, &second] {
        let info = bench.view().info(run.id()).unwrap();
        assert!(info.seal.is_some());
        assert_eq!(info.unsigned.as_deref(), Some("not signed yet"));
    }
    signer.hangs.store(false, Ordering::Relaxed);
    let manager = open_with(&bench, &signer.key()).await;
    is_signed(manager.root(), first.id()).await;
    is_signed(manager.root(), second.id()).await;
    manager.shutdown(ShutdownMode::Leave).await;
}

/// Even if the changed file is intact by its own digests.
#[tokio::test]
async fn a_file_changed_after_its_seal_is_not_signed() {
    let keys = Keys::new();
    let signer = OwnSigner::new(&keys);
    signer.fails.store(true, Ordering::Relaxed);
    let bench = Bench::new();
    let manager = open_with(&bench, &signer.key()).await;
    let script = || Script::new().stdout("out\n");
    let run = bench.start(&manager, script(), named("run")).await;
    sealed(&run).await;
    let path = run.audit().unwrap();
    // Another run of the same id, in another root, has an intact file.
    let other = Bench::new();
    let other_manager = other.open_on_threads().await;
    let other_run = other.start(&other_manager, script(), named("run")).await;
    sealed(&other_run).await;
    manager.shutdown(ShutdownMode::Leave).await;
    other_manager.shutdown(ShutdownMode::Leave).await;
    fs::copy(other_run.audit().unwrap(), &path).unwrap();

    signer.fails.store(false, Ordering::Relaxed);
    let manager = open_with(&bench, &signer.key()).await;
    let changed = "it has changed since it was sealed";
    eventually(60, "the refusal", async || {
        let unsigned = bench.view().info(run.id()).unwrap().unsigned;
        unsigned
            .is_some_and(|reason| reason.contains(changed))
            .then_some(())
    })
    .await;
    assert!(!signature_path(&path).exists());
    let missing = AllowedSigners::parse("");
    let error = manager.root().verify_signature(run.id(), &missing);
    assert!(matches!(error, Err(Error::Signature { .. })));
    manager.shutdown(ShutdownMode::Leave).await;
}

/// The digest in the seal of an intact file.
fn digest_of(path: &Path) -> String {
    let LogState::Sealed(seal) = verify(path).unwrap().state else {
        panic!("{path:?} is not sealed");
    };
    seal.sha256
}

/// An attacker without the key replaces a log, and its digest in `run.json`, and marks the run.
#[tokio::test]
async fn a_forged_digest_is_not_signed() {
    let keys = Keys::new();
    let allowed = keys.write("allowed", format!("me {}\n", keys.public("key")));
    let bench = Bench::new();
    let manager = open_with(&bench, &file_key(&keys)).await;
    for name in ["replaced", "removed", "exec", "planted"] {
        let run = run_with_exec(&bench, &manager, name).await;
        is_signed(manager.root(), run.id()).await;
    }
    manager.shutdown(ShutdownMode::Leave).await;
    for name in ["replaced", "removed", "exec", "planted"] {
        let path = bench.file(name, "run.json");
        let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        file["unsigned"] = "any".into();
        let exec = bench.file(name, "exec-1.jsonl");
        let planted = bench.file(name, "exec-2.jsonl");
        match name {
            "exec" => forge(&exec, "\"exec\"", "\"evil\""),
            "planted" => {
                fs::copy(&exec, &planted).unwrap();
                forge(&planted, "\"exec\"", "\"evil\"");
            }
            _ => {
                let log = bench.file(name, "logs.jsonl");
                assert_eq!(file["seal"]["sha256"], digest_of(&log));
                forge(&log, "\"out\"", "\"bad\"");
                file["seal"]["sha256"] = digest_of(&log).into();
            }
        }
        if name == "removed" {
            file.as_object_mut().unwrap().remove("seal").unwrap();
        }
        fs::write(&path, format!("{file}\n")).unwrap();
    }
    let manager = open_with(&bench, &file_key(&keys)).await;
    for (name, file, expected) in [
        ("replaced", "logs.jsonl", NOT_IN_LEDGER),
        ("removed", "logs.jsonl", NOT_IN_LEDGER),
        ("exec", "exec-1.jsonl", "has changed since it was sealed"),
        ("planted", "exec-2.jsonl", NOT_IN_LEDGER),
    ] {
        let id = RunId::new(name).unwrap();
        eventually(60, name, async || {
            let reason = bench.view().info(&id).unwrap().unsigned?;
            reason.ends_with(expected).then_some(())
        })
        .await;
        let dir = bench.root().join(name);
        assert!(!verify_as_documented(&dir, &allowed, file), "{name}");
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

/// A sink with a key, whose logs are not files.
#[derive(Debug)]
struct Pathless(Jsonl);

#[async_trait]
impl LogSink for Pathless {
    async fn open(&self, place: &RunPlace, start: &Start) -> moat::Result<Box<dyn RunLog>> {
        self.0.open(place, start).await
    }

    async fn resume(&self, place: &RunPlace, visit: RecordVisitor) -> moat::Result<Resumed> {
        self.0.resume(place, visit).await
    }

    fn signing_key(&self) -> Option<SigningKey> {
        self.0.signing_key()
    }
}

#[tokio::test]
async fn a_sink_without_files_has_nothing_to_sign() {
    let keys = Keys::new();
    let bench = Bench::new();
    let sink = Pathless(Jsonl::new().signed_by(file_key(&keys)));
    let manager = open(&bench, sink).await;
    let events = manager.events();
    let script = Script::new().stdout("out\n");
    let run = bench.start(&manager, script, named("run")).await;
    sealed(&run).await;
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(signature_events(events).await, []);
    assert_eq!(bench.view().info(run.id()).unwrap().unsigned, None);
    assert!(!signature_path(bench.file("run", "logs.jsonl")).exists());
}

#[tokio::test]
async fn a_run_sealed_without_a_key_stays_unsigned() {
    let keys = Keys::new();
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let old = run_with_exec(&bench, &manager, "old").await;
    manager.shutdown(ShutdownMode::Leave).await;
    let manager = open_with(&bench, &file_key(&keys)).await;
    let new = run_with_exec(&bench, &manager, "new").await;
    is_signed(manager.root(), new.id()).await;
    manager.shutdown(ShutdownMode::Leave).await;
    let info = bench.view().info(old.id()).unwrap();
    assert_eq!(info.unsigned, None);
    assert!(!signature_path(old.audit().unwrap()).exists());
    assert!(!signature_path(bench.file("old", "exec-1.jsonl")).exists());
}

/// The owner died after the seal, and before its copy in `run.json`.
#[tokio::test]
async fn a_seal_without_a_copy_is_signed_if_marked() {
    let keys = Keys::new();
    let signer = OwnSigner::new(&keys);
    signer.fails.store(true, Ordering::Relaxed);
    let bench = Bench::new();
    let manager = open_with(&bench, &signer.key()).await;
    for name in ["marked", "unmarked", "lost"] {
        let script = Script::new().stdout("out\n");
        let run = bench.start(&manager, script, named(name)).await;
        sealed(&run).await;
    }
    manager.shutdown(ShutdownMode::Leave).await;
    for (name, fields) in [
        ("marked", &["seal"][..]),
        ("unmarked", &["seal", "unsigned"]),
    ] {
        let path = bench.file(name, "run.json");
        let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for field in fields {
            file.as_object_mut().unwrap().remove(*field).unwrap();
        }
        fs::write(&path, format!("{file}\n")).unwrap();
    }
    fs::remove_file(bench.file("lost", "run.json")).unwrap();

    let manager = open_with(&bench, &file_key(&keys)).await;
    for run in manager.wait_recovery().await.unwrap() {
        sealed(&run).await;
    }
    manager.shutdown(ShutdownMode::Leave).await;
    for (name, is_signed) in [("marked", true), ("unmarked", false), ("lost", true)] {
        let info = bench.view().info(&RunId::new(name).unwrap()).unwrap();
        assert!(info.seal.is_some(), "{name}");
        assert_eq!(info.unsigned, None, "{name}");
        let signature = signature_path(bench.file(name, "logs.jsonl"));
        assert_eq!(signature.exists(), is_signed, "{name}");
    }
}

/// The runs of a dead owner are signed by the manager that seals them.
#[tokio::test]
async fn a_recovered_run_is_signed() {
    let keys = Keys::new();
    let bench = Bench::new();
    let manager = open_with(&bench, &file_key(&keys)).await;
    bench
        .runtime
        .next_exec(Script::new().stdout("exec\n").echo());
    let script = Script::new().stdout("out\n").until_stopped();
    let run = bench.start(&manager, script, named("run")).await;
    let exec = ExecSpec::new(["any"]).interactive(true);
    let _exec = run.exec(exec).await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
    let manager = open_with(&bench, &file_key(&keys)).await;
    let again = manager.get(run.id()).await.unwrap();
    again.kill().await.unwrap();
    sealed(&again).await;
    is_signed(manager.root(), run.id()).await;
    let allowed = keys.write("allowed", format!("me {}\n", keys.public("key")));
    let dir = manager.root().dir(run.id());
    assert!(verify_as_documented(&dir, &allowed, "logs.jsonl"));
    assert!(verify_as_documented(&dir, &allowed, "exec-1.jsonl"));
    manager.shutdown(ShutdownMode::Leave).await;
}

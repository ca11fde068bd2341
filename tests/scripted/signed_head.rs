//! The signature of the head of a ledger.

use std::fs;
use std::process::{Command, Stdio};

use moat::bundle;
use moat::root::{FindingKind, VerifyOptions};
use moat::runtime::scripted::Script;
use moat::sign::{AllowedSigners, SigningKey};
use moat::sink::Jsonl;
use moat::spec::ExecSpec;
use moat::{Root, RunId, ShutdownMode};
use testkit::deadline::eventually;
use testkit::keygen::Keys;

use crate::bench::{Bench, named, sealed};
use crate::ledger::forge;

struct Signed {
    bench: Bench,
    keys: Keys,
}

impl Signed {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            keys: Keys::new(),
        }
    }

    /// Runs these, and shuts the manager down.
    async fn run(&self, runs: &[&str]) -> Root {
        let key = SigningKey::from_file(self.keys.path("key")).unwrap();
        let sink = Jsonl::new().signed_by(key);
        let manager = self.bench.builder().sink(sink).open().await.unwrap();
        for name in runs {
            let script = Script::new().stdout("out\n");
            sealed(&self.bench.start(&manager, script, named(name)).await).await;
        }
        let root = manager.root().clone();
        manager.shutdown(ShutdownMode::Leave).await;
        root
    }

    fn allowed(&self, key: &str) -> AllowedSigners {
        AllowedSigners::parse(&format!("me {}", self.keys.public(key)))
    }

    /// The kinds of all findings with these signers.
    fn found(&self, root: &Root, key: &str) -> Vec<FindingKind> {
        let options = VerifyOptions::new().signed_by(self.allowed(key));
        let found = root.verify_all(&options).unwrap().findings;
        found.iter().map(|finding| finding.kind).collect()
    }
}

#[tokio::test]
async fn ssh_keygen_accepts_a_signed_head() {
    let signed = Signed::new();
    let root = signed.run(&["a", "b"]).await;
    assert_eq!(signed.found(&root, "key"), []);
    let path = root.path().join("ledger.sig");
    let text = fs::read_to_string(&path).unwrap();
    let head = root.head().unwrap().unwrap();
    assert_eq!(text.lines().last().unwrap(), head.to_string());
    let public = format!("me {}", signed.keys.public("key"));
    let allowed = signed.keys.write("allowed", public);
    let script =
        "tail -n 1 ledger.sig | ssh-keygen -Y verify -f \"$1\" -I me -n moat-ledger -s ledger.sig";
    let accepts = || {
        let verified = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&allowed)
            .current_dir(root.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        verified.unwrap().success()
    };
    assert!(accepts());
    fs::write(&path, text.replace("moat-head v1 ", "moat-head v1 0")).unwrap();
    assert!(!accepts());
    assert_eq!(signed.found(&root, "key"), [FindingKind::Unsigned]);
}

#[tokio::test]
async fn a_cut_ledger_is_found_by_its_signed_head() {
    let signed = Signed::new();
    let root = signed.run(&["a", "b"]).await;
    let path = root.path().join("ledger.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    fs::write(&path, lines[..3].join("\n") + "\n").unwrap();
    fs::remove_dir_all(root.path().join("b")).unwrap();
    assert!(root.verify_all(&VerifyOptions::new()).unwrap().is_intact());
    assert_eq!(signed.found(&root, "key"), [FindingKind::LedgerCut]);

    // A later manager does not sign what does not continue the signed head.
    let before = fs::read(root.path().join("ledger.sig")).unwrap();
    let root = signed.run(&["c", "d", "e"]).await;
    assert_eq!(fs::read(root.path().join("ledger.sig")).unwrap(), before);
    assert_eq!(signed.found(&root, "key"), [FindingKind::LedgerChanged]);
}

#[tokio::test]
async fn an_edited_ledger_is_not_signed() {
    let signed = Signed::new();
    let root = signed.run(&["a"]).await;
    let path = root.path().join("ledger.jsonl");
    // A line after the signed head, which the next manager would sign.
    let before = fs::read(root.path().join("ledger.sig")).unwrap();
    let unsigned = signed.bench.open_on_threads().await;
    sealed(
        &signed
            .bench
            .start(&unsigned, Script::new(), named("b"))
            .await,
    )
    .await;
    unsigned.shutdown(ShutdownMode::Leave).await;
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"run\":\"b\"", "\"run\":\"x\"")).unwrap();
    let root = signed.run(&["c"]).await;
    assert_eq!(fs::read(root.path().join("ledger.sig")).unwrap(), before);
    assert!(
        signed
            .found(&root, "key")
            .contains(&FindingKind::LedgerChanged)
    );
}

#[tokio::test]
async fn an_unsigned_run_and_a_foreign_key_are_named() {
    let signed = Signed::new();
    signed.keys.generate("other", &["-t", "ed25519", "-N", ""]);
    let root = signed.run(&["a"]).await;
    let unsigned = [FindingKind::Unsigned; 2];
    assert_eq!(signed.found(&root, "other"), unsigned);
    fs::remove_file(signed.bench.file("a", "logs.jsonl.sig")).unwrap();
    assert_eq!(signed.found(&root, "key"), unsigned[..1]);
    fs::remove_file(root.path().join("ledger.sig")).unwrap();
    assert_eq!(signed.found(&root, "key"), unsigned);
    // Without signers, signatures are not required.
    assert!(root.verify_all(&VerifyOptions::new()).unwrap().is_intact());
}

#[tokio::test]
async fn the_head_is_signed_while_a_manager_is_open() {
    let signed = Signed::new();
    let key = SigningKey::from_file(signed.keys.path("key")).unwrap();
    let sink = Jsonl::new().signed_by(key);
    let manager = signed.bench.builder().sink(sink).open().await.unwrap();
    let run = signed
        .bench
        .start(&manager, Script::new(), named("a"))
        .await;
    sealed(&run).await;
    run.wait_removed().await.unwrap();
    let root = manager.root().clone();
    eventually(20, "the signature of the last line", async || {
        let head = root.head().unwrap()?.to_string();
        let signed = fs::read_to_string(root.path().join("ledger.sig")).ok()?;
        (signed.lines().last() == Some(&head)).then_some(())
    })
    .await;
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn the_signatures_in_a_bundle_are_verified() {
    let signed = Signed::new();
    signed.keys.generate("other", &["-t", "ed25519", "-N", ""]);
    let root = signed.run(&["a"]).await;
    let path = signed.bench.outside("a.tar");
    let file = fs::File::create(&path).unwrap();
    root.export(&RunId::new("a").unwrap(), file).unwrap();
    let problems = |key: &str| {
        let verified = bundle::verify_signed(&path, &signed.allowed(key));
        verified.unwrap().problems
    };
    assert_eq!(problems("key"), Vec::<String>::new());
    let foreign = problems("other");
    assert_eq!(foreign.len(), 1);
    assert!(foreign[0].starts_with("logs.jsonl: "), "{foreign:?}");
}

/// A forged log of an exec has a right digest, but not the one in the ledger.
#[tokio::test]
async fn a_forged_exec_is_not_signed_later() {
    let signed = Signed::new();
    let manager = signed.bench.open_on_threads().await;
    let run = signed
        .bench
        .start(&manager, Script::new().until_stopped(), named("a"))
        .await;
    signed
        .bench
        .runtime
        .next_exec(Script::new().stdout("output\n"));
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    exec.wait().await.unwrap();
    run.kill().await.unwrap();
    sealed(&run).await;
    run.wait_removed().await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
    // As if its signer had failed.
    let path = signed.bench.file("a", "run.json");
    let mut file: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    file["unsigned"] = "the module is locked".into();
    fs::write(&path, file.to_string()).unwrap();
    forge(&signed.bench.file("a", "exec-1.jsonl"), "output", "OUTPUT");

    let key = SigningKey::from_file(signed.keys.path("key")).unwrap();
    let sink = Jsonl::new().signed_by(key);
    let manager = signed.bench.builder().sink(sink).open().await.unwrap();
    let a = RunId::new("a").unwrap();
    let root = signed.bench.view();
    eventually(20, "the reason in run.json", async || {
        let unsigned = root.info(&a).unwrap().unsigned?;
        unsigned
            .contains("it has changed since it was sealed")
            .then_some(())
    })
    .await;
    manager.shutdown(ShutdownMode::Leave).await;
    assert!(signed.bench.file("a", "logs.jsonl.sig").exists());
    assert!(!signed.bench.file("a", "exec-1.jsonl.sig").exists());
}

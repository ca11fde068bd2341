//! The audit files, and their verification.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::client::{Client, shell};
use crate::fixture::Server;
use testkit::audit::Audit;
use testkit::deadline::eventually;

testkit::trials! {
    crate::on_engine:
        audits_are_the_files_on_disk,
        a_changed_byte_is_found,
        a_running_session_is_not_verified_as_sealed;
    crate::on_process:
        audits_are_the_files_on_disk,
        a_changed_byte_is_found,
}

/// Reads a sealed audit, independently of moat.
#[track_caller]
pub fn parse(server: &Server, bytes: &[u8]) -> Audit {
    let file = tempfile::NamedTempFile::new_in(server.dir()).unwrap();
    fs::write(file.path(), bytes).unwrap();
    Audit::read(file.path()).unwrap()
}

/// The audit files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let (dirs, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let files = files
        .into_iter()
        .filter(|path| path.extension().is_some_and(|found| found == "jsonl"));
    files
        .chain(dirs.iter().flat_map(|dir| self::files(dir)))
        .collect()
}

/// The file on disk with this content.
fn file_of(server: &Server, content: &[u8]) -> PathBuf {
    let found = files(&server.root()).into_iter();
    let mut found = found.filter(|path| fs::read(path).unwrap() == content);
    found.next().expect("a file with the bytes of the audit")
}

/// A session that has ended after two commands, and their ids.
async fn ended(server: &Server, alice: &Client) -> (String, [String; 2]) {
    let id = server.session().await;
    let first = alice.shell(&id, "echo first; echo problem >&2").await;
    let second = alice.shell(&id, "seq 1 2000").await;
    alice.end(&id).await;
    (id, [first.id, second.id])
}

async fn audits_are_the_files_on_disk(server: &mut Server) {
    let alice = server.alice();
    let (id, execs) = ended(server, &alice).await;
    let answer = alice.get(&format!("/sessions/{id}/audit")).await;
    assert_eq!(answer.headers["content-type"], "application/jsonl");
    parse(server, answer.bytes());
    file_of(server, answer.bytes());
    for exec in &execs {
        let audit = alice.audit_of(&id, exec).await;
        file_of(server, &audit);
        parse(server, &audit);
    }
    let first = parse(server, &alice.audit_of(&id, &execs[0]).await);
    assert_eq!(first.stream("stdout"), b"first\n");
    assert_eq!(first.stream("stderr"), b"problem\n");
    let report = verify(&alice, &id).await;
    assert_eq!(report["verified"], true, "{report}");
    let files = report["files"].as_array().unwrap();
    assert_eq!(files.len(), 3, "{report}");
    for file in files {
        assert_eq!(file["state"], "sealed", "{report}");
        assert_eq!(file["damage"], Value::Null);
    }
    alice
        .get(&format!("/sessions/{id}/execs/999/audit"))
        .await
        .detail(404);
}

pub async fn verify(client: &Client, session: &str) -> Value {
    let path = format!("/sessions/{session}/verify");
    client.get(&path).await.expect(200)
}

async fn a_changed_byte_is_found(server: &mut Server) {
    let alice = server.alice();
    let (id, execs) = ended(server, &alice).await;
    let audit = alice.audit_of(&id, &execs[1]).await;
    let path = file_of(server, &audit);
    let mut changed = audit.clone();
    let at = audit.windows(6).position(|six| six == b"\"1234\"").unwrap();
    changed[at + 1] = b'9';
    fs::write(&path, &changed).unwrap();

    let report = verify(&alice, &id).await;
    assert_eq!(report["verified"], false, "{report}");
    let files = report["files"].as_array().unwrap().iter();
    let damaged: Vec<_> = files.filter(|file| file["state"] == "damaged").collect();
    assert_eq!(damaged.len(), 1, "{report}");
    assert!(damaged[0]["damage"].is_string(), "{report}");
    assert_eq!(alice.audit_of(&id, &execs[1]).await, changed);
    fs::write(&path, &audit).unwrap();
    assert_eq!(verify(&alice, &id).await["verified"], true);
}

async fn a_running_session_is_not_verified_as_sealed(server: &mut Server) {
    let alice = server.alice();
    let main = json!({"cmd": ["sh", "-c", "echo up; sleep 600"]});
    let id = server.session_of(&alice, main).await;
    alice.exec(&id, &shell("echo done")).await.ok();
    let path = format!("/sessions/{id}/audit");
    eventually(20, "the output in the audit", async || {
        let audit = alice.get(&path).await;
        testkit::audit::contains(audit.bytes(), b"\"line\":\"up\"").then_some(())
    })
    .await;
    let report = verify(&alice, &id).await;
    let files = report["files"].as_array().unwrap();
    let states: Vec<_> = files.iter().map(|file| &file["state"]).collect();
    assert!(states.contains(&&json!("unsealed")), "{report}");
    assert!(!states.contains(&&json!("damaged")), "{report}");
}

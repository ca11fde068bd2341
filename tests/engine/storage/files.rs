//! External changes to the files of a run while its container runs.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use moat::audit::{LogState, verify};
use moat::spec::Backstop;
use moat::state::RunStatus;
use moat::{Manager, Run, RunSpec};
use testkit::deadline::eventually;

use super::check::{assert_pending, assert_sealed, assert_whole};
use super::open;
use crate::stage::{Stage, Watched};

testkit::trials! {
    crate::storage::on_engine:
        a_removed_directory_is_restored,
        a_truncated_audit_is_captured_again,
        an_edited_audit_is_captured_again,
        a_replaced_audit_is_captured_again,
        #[cfg(feature = "testing")]
        a_line_lost_during_a_fault_is_captured_again,
        appended_foreign_records_are_not_sealed,
        an_edited_audit_without_backstop_is_a_gap,
        a_linked_audit_is_sealed_unchanged,
        another_runs_audit_is_never_accepted;
    crate::storage::on_immutable:
        an_immutable_audit_is_retried,
        an_immutable_directory_loses_nothing,
}

/// A file or directory that not even root can change. Dropped, it is as before.
struct Immutable(PathBuf);

impl Drop for Immutable {
    fn drop(&mut self) {
        chattr("-i", &self.0);
    }
}

impl Immutable {
    fn make(path: &Path) -> Self {
        assert!(
            chattr("+i", path),
            "cannot make {} immutable",
            path.display()
        );
        Self(path.to_owned())
    }
}

fn chattr(flag: &str, path: &Path) -> bool {
    let mut command = Command::new("chattr");
    command.arg(flag).arg(path).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// True if this user can make files immutable, with effect.
pub fn is_possible() -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    if !chattr("+i", file.path()) {
        return false;
    }
    let _immutable = Immutable(file.path().to_owned());
    (&mut file.as_file()).write_all(b"x").is_err()
}

/// A run that prints two hundred lines on both streams, a hundred more after the gate `more`, and
/// ends with code 7 after the gate `end`.
fn spec(stage: &Stage) -> RunSpec {
    stage.gated(
        "lines 200 --stream both + await /gate/more + lines 100 --from 201 --stream both \
         + await /gate/end + exit 7",
    )
}

/// Starts a run and waits until its first lines are in its audit.
async fn start(manager: &Manager, spec: RunSpec) -> Run {
    let run = manager.start(spec).await.unwrap();
    // The streams have no common order.
    written(&run, "out 00000200 ").await;
    written(&run, "err 00000200 ").await;
    run
}

/// Waits until the audit has `text`.
async fn written(run: &Run, text: &str) {
    eventually(60, text, async || {
        fs::read_to_string(run.audit().unwrap())
            .unwrap()
            .contains(text)
            .then_some(())
    })
    .await;
}

/// Lets the run print more, and waits until moat has received it.
async fn print_more(stage: &Stage, run: &Run) {
    let mut output = run.attach().await.unwrap();
    stage.open_gate("more");
    let _ = Watched::default().until(&mut output, "out 00000300 ").await;
}

/// The offset of `text` in the audit.
fn find(audit: &Path, text: &str) -> u64 {
    fs::read_to_string(audit).unwrap().find(text).unwrap() as u64
}

/// Changes one character of line 7 in an audit.
fn edit(audit: &Path) {
    let at = find(audit, "out 00000007 ");
    let file = OpenOptions::new().write(true).open(audit).unwrap();
    // An edit in the same tick of the file system's clock as the owner's write cannot be seen.
    std::thread::sleep(Duration::from_millis(20));
    file.write_at(b"9", at + "out 0000000".len() as u64)
        .unwrap();
}

/// Replaces a file by one with this text.
fn replace(path: &Path, text: impl AsRef<[u8]>) {
    let temporary = path.with_extension("external");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}

async fn a_removed_directory_is_restored(stage: &Stage) {
    let manager = open(stage).await;
    let run = start(&manager, spec(stage)).await;
    fs::remove_dir_all(run.dir()).unwrap();
    stage.open_gate("more");
    stage.open_gate("end");
    assert_whole(stage, &run, &["out", "err"], 300).await;
}

/// Truncated to nothing, inside a record, and between two records.
async fn a_truncated_audit_is_captured_again(stage: &Stage) {
    let manager = open(stage).await;
    for place in [None, Some(" 00000100 "), Some("{\"ts\"")] {
        let run = start(&manager, spec(stage)).await;
        let audit = run.audit().unwrap();
        let length = place.map_or(0, |text| find(&audit, text));
        let file = OpenOptions::new().write(true).open(&audit).unwrap();
        file.set_len(length).unwrap();
        stage.open_gate("more");
        stage.open_gate("end");
        assert_whole(stage, &run, &["out", "err"], 300).await;
        stage.close_gates(&["more", "end"]);
    }
}

/// Before more output, and when only the seal is to come.
async fn an_edited_audit_is_captured_again(stage: &Stage) {
    let manager = open(stage).await;
    for late in [false, true] {
        let run = start(&manager, spec(stage)).await;
        let audit = run.audit().unwrap();
        if late {
            stage.open_gate("more");
            written(&run, "err 00000300 ").await;
        }
        edit(&audit);
        stage.open_gate("more");
        written(&run, "err 00000300 ").await;
        stage.open_gate("end");
        assert_whole(stage, &run, &["out", "err"], 300).await;
        stage.close_gates(&["more", "end"]);
    }
}

/// As an editor replaces a file.
async fn a_replaced_audit_is_captured_again(stage: &Stage) {
    let manager = open(stage).await;
    let run = start(&manager, spec(stage)).await;
    let audit = run.audit().unwrap();
    let text = fs::read_to_string(&audit).unwrap();
    replace(&audit, text.replace("out 00000007 ", "out 00000009 "));
    stage.open_gate("more");
    stage.open_gate("end");
    assert_whole(stage, &run, &["out", "err"], 300).await;
}

/// The edited file has only whole records.
#[cfg(feature = "testing")]
async fn a_line_lost_during_a_fault_is_captured_again(stage: &Stage) {
    use super::check::SEAL_TIMEOUT;
    use moat::Docker;
    use moat::sink::{Faulty, Jsonl, SinkCall, SinkFault};

    let sink = Faulty::new(Jsonl::new());
    let docker = Docker::connect().await.unwrap();
    let manager = Manager::builder(stage.root(), docker)
        .sink(sink.clone())
        .seal_timeout(SEAL_TIMEOUT)
        .open()
        .await
        .unwrap();
    let run = start(&manager, spec(stage)).await;
    sink.fault(SinkFault::error().on([SinkCall::Append, SinkCall::Resume]));
    stage.open_gate("more");
    stage.open_gate("end");
    assert_pending(stage, &manager, &run, 7, "injected fault").await;
    let audit = run.audit().unwrap();
    let text = fs::read_to_string(&audit).unwrap();
    let kept: Vec<&str> = text
        .split_inclusive('\n')
        .filter(|line| !line.contains("err 00000050 "))
        .collect();
    assert!(kept.concat().len() < text.len());
    fs::write(&audit, kept.concat()).unwrap();
    sink.clear_faults();
    assert_whole(stage, &run, &["out", "err"], 300).await;
}

/// A valid record and garbage; less than the rest of the run, and more.
async fn appended_foreign_records_are_not_sealed(stage: &Stage) {
    let manager = open(stage).await;
    let note = r#"{"type":"note","ts":"2026-11-24T00:00:00.000000000Z","text":"external"}"#;
    for added in [format!("{note}\n"), format!("{note}\n").repeat(1000)] {
        let run = start(&manager, spec(stage)).await;
        let mut file = File::options()
            .append(true)
            .open(run.audit().unwrap())
            .unwrap();
        file.write_all(added.as_bytes()).unwrap();
        stage.open_gate("more");
        stage.open_gate("end");
        let audit = assert_whole(stage, &run, &["out", "err"], 300).await;
        assert!(audit.all("note").is_empty());
        stage.close_gates(&["more", "end"]);
    }
}

/// The content before the edit is unknown.
async fn an_edited_audit_without_backstop_is_a_gap(stage: &Stage) {
    let manager = open(stage).await;
    let run = start(&manager, spec(stage).backstop(Backstop::None)).await;
    edit(&run.audit().unwrap());
    print_more(stage, &run).await;
    stage.open_gate("end");
    let (outcome, audit) = assert_sealed(stage, &run).await;
    assert_eq!(outcome.code(), Some(7));
    assert_eq!(audit.verdict(), "gap");
    let text = String::from_utf8_lossy(audit.stream("stdout")).into_owned();
    assert!(!text.contains("out 00000009 ") || text.contains("out 00000007 "));
    let aside = fs::read_to_string(run.dir().join("torn-1")).unwrap();
    assert!(aside.contains("err 00000200 "), "what was there is kept");
}

/// Reading and linking change nothing.
async fn a_linked_audit_is_sealed_unchanged(stage: &Stage) {
    let manager = open(stage).await;
    let run = start(&manager, spec(stage)).await;
    let audit = run.audit().unwrap();
    fs::hard_link(&audit, stage.dir.path().join("backup")).unwrap();
    fs::set_permissions(&audit, fs::Permissions::from_mode(0o640)).unwrap();
    fs::read(&audit).unwrap();
    print_more(stage, &run).await;
    stage.open_gate("end");
    let audit = assert_whole(stage, &run, &["out", "err"], 300).await;
    assert!(audit.all("resume").is_empty(), "{:?}", audit.events);
    // Only the last lines are read, or the whole log if that fails.
    let evidence = audit.evidence();
    assert!(
        ["end_marker", "tail", "replay"].contains(&evidence),
        "{evidence}"
    );
}

/// The file is whole, but of another run.
async fn another_runs_audit_is_never_accepted(stage: &Stage) {
    let manager = open(stage).await;
    let other = manager.start(stage.spec("lines 300")).await.unwrap();
    crate::stage::end(&other).await;
    let run = start(&manager, spec(stage)).await;
    let audit = run.audit().unwrap();
    replace(&audit, fs::read(other.audit().unwrap()).unwrap());
    stage.open_gate("more");
    stage.open_gate("end");
    let reason = "logs.jsonl";
    eventually(60, "the problem", async || run.problem()).await;
    let outcome = run.wait().await.unwrap();
    assert_eq!(outcome.code(), Some(7), "{outcome}");
    assert!(outcome.sealed().is_none(), "{outcome}");
    assert!(
        run.problem()
            .is_some_and(|problem| problem.contains(reason))
    );
    // A foreign sealed file is not changed.
    let state = verify(&audit).unwrap().state;
    assert!(matches!(state, LogState::Sealed(_)), "{state:?}");
    fs::remove_file(&audit).unwrap();
    assert_whole(stage, &run, &["out", "err"], 300).await;
}

async fn an_immutable_audit_is_retried(stage: &Stage) {
    let manager = open(stage).await;
    let run = start(&manager, spec(stage)).await;
    let immutable = Immutable::make(&run.audit().unwrap());
    stage.open_gate("more");
    stage.open_gate("end");
    assert_pending(stage, &manager, &run, 7, "not permitted").await;
    drop(immutable);
    assert_whole(stage, &run, &["out", "err"], 300).await;
}

/// The open file accepts writes. No other file can be created or replaced.
async fn an_immutable_directory_loses_nothing(stage: &Stage) {
    let manager = open(stage).await;
    let run = start(&manager, spec(stage)).await;
    let immutable = Immutable::make(run.dir());
    stage.open_gate("more");
    stage.open_gate("end");
    assert_whole(stage, &run, &["out", "err"], 300).await;
    let listed = manager.list().await.unwrap();
    assert!(listed[0].seal.is_some(), "{listed:?}");
    assert_eq!(listed[0].status, RunStatus::Exited);
    drop(immutable);
}

//! The ledger of a root, and a root that something other than moat has changed.

use std::fs;
use std::path::Path;
use std::sync::mpsc;

use moat::manager::PruneOptions;
use moat::root::{
    Finding, FindingKind, Head, LedgerEntry, LedgerLine, RemovalReason, RunQuery, VerifyOptions,
};
use moat::runtime::scripted::Script;
use moat::spec::ExecSpec;
use moat::state::RunStatus;
use moat::{Manager, Root, RunId, ShutdownMode, Verdict};
use sha2::{Digest, Sha256};
use testkit::deadline::within;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::bench::{Bench, named, seal, sealed};

fn lines(root: &Root) -> Vec<LedgerLine> {
    root.ledger().unwrap().collect::<Result<_, _>>().unwrap()
}

/// The type and the run of each line.
fn steps(root: &Root) -> Vec<(&'static str, String)> {
    let lines = lines(root).into_iter();
    lines
        .map(|line| {
            let kind = match &line.entry {
                LedgerEntry::Created { .. } => "ledger",
                LedgerEntry::Begun(_) => "begun",
                LedgerEntry::Sealed(_) => "sealed",
                LedgerEntry::ExecSealed { .. } => "exec_sealed",
                LedgerEntry::Removing { .. } => "removing",
                LedgerEntry::Removed { .. } => "removed",
                other => panic!("{other:?}"),
            };
            (
                kind,
                line.entry.run().map(RunId::to_string).unwrap_or_default(),
            )
        })
        .collect()
}

fn findings(root: &Root, options: &VerifyOptions) -> Vec<Finding> {
    let verified = root.verify_all(options).unwrap();
    assert_eq!(
        verified.is_intact(),
        verified
            .findings
            .iter()
            .all(|f| f.kind.is_explained_by_crash())
    );
    verified.findings
}

/// The kinds of all findings, with their runs.
fn found(root: &Root) -> Vec<(FindingKind, String)> {
    let found = findings(root, &VerifyOptions::new()).into_iter();
    found
        .map(|finding| {
            let run = finding.run.map(|run| run.to_string());
            (finding.kind, run.unwrap_or_default())
        })
        .collect()
}

/// A root with these sealed runs, which no process owns.
async fn root_of(bench: &Bench, runs: &[&str]) -> Root {
    let manager = bench.open_on_threads().await;
    for run in runs {
        let script = Script::new().stdout(format!("output of {run}\n"));
        let run = bench.start(&manager, script, named(run)).await;
        sealed(&run).await;
    }
    close(manager).await
}

async fn close(manager: Manager) -> Root {
    let root = manager.root().clone();
    manager.shutdown(ShutdownMode::Leave).await;
    root
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Replaces the lines of a ledger. The chain is not computed anew.
fn edit_lines(root: &Root, edit: impl FnOnce(&mut Vec<String>)) {
    let path = root.path().join("ledger.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let mut lines = text.lines().map(|line| format!("{line}\n")).collect();
    edit(&mut lines);
    fs::write(path, lines.concat()).unwrap();
}

/// Computes the chain of a ledger anew from the first line on.
fn forge_chain(root: &Root) {
    edit_lines(root, |lines| {
        let mut digest = "0".repeat(64);
        for (index, line) in lines.iter_mut().enumerate() {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            value["n"] = (index + 1).into();
            value["prev"] = digest.into();
            *line = format!("{value}\n");
            let bytes = Sha256::digest(&line);
            digest = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        }
    });
}

#[tokio::test]
async fn each_step_of_a_run_has_one_line() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let root = manager.root().clone();
    assert_eq!(steps(&root), []);
    assert_eq!(root.head().unwrap(), None);
    bench.runtime.next_exec(Script::new().stdout("exec\n"));
    let spec = named("a").cmd(["echo", "hi"]).label("team", "build");
    let script = Script::new().until_stopped();
    let run = bench.start(&manager, script, spec).await;
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    let exec = exec.wait().await.unwrap();
    run.kill().await.unwrap();
    let outcome = sealed(&run).await;
    manager.remove(run.id()).await.unwrap();
    let run = bench.start(&manager, Script::new(), named("b")).await;
    sealed(&run).await;
    let pruned = PruneOptions::new().keep(0);
    assert_eq!(manager.prune(pruned).await.unwrap().removed.len(), 1);
    let expected = [
        ("ledger", ""),
        ("begun", "a"),
        ("exec_sealed", "a"),
        ("sealed", "a"),
        ("removing", "a"),
        ("removed", "a"),
        ("begun", "b"),
        ("sealed", "b"),
        ("removing", "b"),
        ("removed", "b"),
    ];
    let expected: Vec<_> = expected.map(|(kind, run)| (kind, run.to_owned())).into();
    assert_eq!(steps(&root), expected);

    let lines = lines(&root);
    let LedgerEntry::Begun(begun) = &lines[1].entry else {
        panic!("{lines:?}");
    };
    assert_eq!((&*begun.runtime, begun.late), ("scripted", false));
    assert_eq!(begun.cmd, ["echo", "hi"]);
    assert_eq!(begun.labels["team"], "build");
    let LedgerEntry::ExecSealed {
        exec: 1, sha256, ..
    } = &lines[2].entry
    else {
        panic!("{lines:?}");
    };
    assert_eq!(*sha256, seal(&exec).sha256);
    let LedgerEntry::Sealed(line) = &lines[3].entry else {
        panic!("{lines:?}");
    };
    assert_eq!(line.sha256, seal(&outcome).sha256);
    assert_eq!(
        (line.code, line.verdict),
        (outcome.code(), seal(&outcome).verdict)
    );
    for (line, expected) in [(4, RemovalReason::Removed), (8, RemovalReason::Pruned)] {
        let LedgerEntry::Removing { reason, by, .. } = &lines[line].entry else {
            panic!("{lines:?}");
        };
        assert_eq!((*reason, by.pid), (expected, std::process::id()));
        assert!(by.program.as_ref().unwrap().starts_with("scripted"));
    }
    assert_eq!(found(&close(manager).await), []);
}

#[tokio::test]
async fn a_ledger_is_checked_with_coreutils() {
    let bench = Bench::new();
    let root = root_of(&bench, &["a"]).await;
    let script = "sed -n 2p ledger.jsonl | sha256sum | cut -d ' ' -f 1; sed -n 3p ledger.jsonl | jq -r .prev";
    let out = std::process::Command::new("sh")
        .args(["-c", script])
        .current_dir(root.path())
        .output()
        .unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    let digests: Vec<_> = out.lines().collect();
    assert_eq!(digests.len(), 2, "{out}");
    assert_eq!(digests[0], digests[1]);
    let head = root.head().unwrap().unwrap();
    let text = fs::read_to_string(root.path().join("ledger.jsonl")).unwrap();
    let last = format!("{}\n", text.lines().last().unwrap());
    let digest = Sha256::digest(last)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    assert_eq!((head.number, head.sha256), (3, digest));
}

#[tokio::test]
async fn a_command_that_is_too_long_is_omitted() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let spec = named("a").cmd(["x".repeat(100_000)]);
    sealed(&bench.start(&manager, Script::new(), spec).await).await;
    let root = close(manager).await;
    let lines = lines(&root);
    let LedgerEntry::Begun(begun) = &lines[1].entry else {
        panic!("{lines:?}");
    };
    assert!(begun.omitted && begun.cmd.is_empty());
}

#[tokio::test]
async fn removed_and_changed_files_are_named() {
    let bench = Bench::new();
    let root = root_of(&bench, &["a", "b", "c", "d", "e"]).await;
    assert_eq!(found(&root), []);
    let verified = root.verify_all(&VerifyOptions::new()).unwrap();
    assert_eq!((verified.runs, verified.sealed, verified.lines), (5, 5, 11));

    fs::remove_dir_all(bench.root().join("a")).unwrap();
    fs::remove_file(bench.file("b", "logs.jsonl")).unwrap();
    let path = bench.file("c", "logs.jsonl");
    let changed = fs::read_to_string(&path)
        .unwrap()
        .replace("output", "OUTPUT");
    fs::write(&path, changed).unwrap();
    // An unsealed file in place of a sealed one.
    let path = bench.file("d", "logs.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let unsealed: Vec<_> = text
        .lines()
        .filter(|line| !line.contains("\"end\""))
        .collect();
    fs::write(&path, unsealed.join("\n") + "\n").unwrap();
    // A file with the right form, counts and digest.
    forge(&bench.file("e", "logs.jsonl"), "output", "OUTPUT");
    let expected = [
        (FindingKind::Removed, "a"),
        (FindingKind::Removed, "b"),
        (FindingKind::Damaged, "c"),
        (FindingKind::Replaced, "d"),
        (FindingKind::Replaced, "e"),
        // Its `run.json` has the original seal.
        (FindingKind::Damaged, "e"),
    ];
    let expected: Vec<_> = expected.map(|(kind, run)| (kind, run.to_owned())).into();
    assert_eq!(found(&root), expected);
    let text: Vec<_> = findings(&root, &VerifyOptions::new())
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        text[0],
        "run a: removed: its directory is missing, and no removal is recorded"
    );
}

/// Changes text in a sealed file, and computes its digests anew.
pub fn forge(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap().replace(from, to);
    let covered = &text[..text.len() - 78];
    let digest = Sha256::digest(covered);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(path, format!("{covered},\"sha256\":\"{digest}\"}}\n")).unwrap();
}

#[tokio::test]
async fn a_redated_run_is_named() {
    let bench = Bench::new();
    let root = root_of(&bench, &["a"]).await;
    let lines = lines(&root);
    let LedgerEntry::Begun(begun) = &lines[1].entry else {
        panic!("{lines:?}");
    };
    let created = format!("\"created\":\"{}\"", begun.created);
    let other = "\"created\":\"2020-01-01T00:00:00.000000000Z\"";
    forge(&bench.file("a", "logs.jsonl"), &created, other);
    let found = found(&root);
    assert!(
        found.contains(&(FindingKind::Redated, "a".into())),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_run_from_another_root_is_named() {
    let (bench, other) = (Bench::new(), Bench::new());
    let root = root_of(&bench, &["a"]).await;
    root_of(&other, &["foreign"]).await;
    copy_dir(&other.root().join("foreign"), &bench.root().join("foreign"));
    let kinds: Vec<_> = found(&root).into_iter().map(|(kind, _)| kind).collect();
    assert!(kinds.contains(&FindingKind::Damaged), "{kinds:?}");

    // A copy within the root, with another name.
    copy_dir(&bench.root().join("a"), &bench.root().join("copy"));
    let found = found(&root);
    assert!(found.iter().any(|(_, run)| run == "copy"), "{found:?}");
}

#[tokio::test]
async fn an_added_run_is_named() {
    let bench = Bench::new();
    let root = root_of(&bench, &["a", "b"]).await;
    // The lines of `b`, and the chain without them.
    edit_lines(&root, |lines| lines.retain(|line| !line.contains("\"b\"")));
    forge_chain(&root);
    assert_eq!(found(&root), [(FindingKind::Added, "b".into())]);
}

#[tokio::test]
async fn a_restored_run_is_named() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let run = bench.start(&manager, Script::new(), named("a")).await;
    sealed(&run).await;
    run.wait_removed().await.unwrap();
    let backup = bench.outside("backup");
    copy_dir(&bench.root().join("a"), &backup);
    manager.remove(run.id()).await.unwrap();
    let root = close(manager).await;
    assert_eq!(found(&root), []);
    copy_dir(&backup, &bench.root().join("a"));
    assert_eq!(found(&root), [(FindingKind::Restored, "a".into())]);
}

#[tokio::test]
async fn a_missing_or_replaced_exec_is_named() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let run = bench
        .start(&manager, Script::new().until_stopped(), named("a"))
        .await;
    for _ in 0..2 {
        bench.runtime.next_exec(Script::new().stdout("output\n"));
        let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
        exec.wait().await.unwrap();
    }
    run.kill().await.unwrap();
    sealed(&run).await;
    let root = close(manager).await;
    assert_eq!(found(&root), []);
    fs::remove_file(bench.file("a", "exec-1.jsonl")).unwrap();
    forge(&bench.file("a", "exec-2.jsonl"), "output", "OUTPUT");
    let found = findings(&root, &VerifyOptions::new());
    let found: Vec<_> = found.iter().map(|f| (f.kind, f.exec.unwrap())).collect();
    assert_eq!(
        found,
        [(FindingKind::Replaced, 2), (FindingKind::Removed, 1)]
    );
}

#[tokio::test]
async fn a_changed_line_of_the_ledger_is_found() {
    for change in 0..4 {
        let bench = Bench::new();
        let root = root_of(&bench, &["a", "b"]).await;
        edit_lines(&root, |lines| match change {
            0 => drop(lines.remove(2)),
            1 => lines[2] = lines[2].replace("complete", "lossy"),
            2 => lines.swap(2, 3),
            _ => lines.insert(3, lines[2].clone()),
        });
        let found = found(&root);
        let is_changed = |(kind, _): &(FindingKind, String)| *kind == FindingKind::LedgerChanged;
        assert!(found.iter().any(is_changed), "{change}: {found:?}");
        // The reader stops there.
        let read: Vec<_> = root.ledger().unwrap().collect();
        assert!(read.last().unwrap().is_err() && read.len() < 6, "{read:?}");
    }
}

#[tokio::test]
async fn a_cut_ledger_is_found_by_a_kept_head() {
    let bench = Bench::new();
    let runs: Vec<_> = (0..10).map(|n| format!("run-{n}")).collect();
    let runs: Vec<_> = runs.iter().map(String::as_str).collect();
    let root = root_of(&bench, &runs).await;
    let head = root.head().unwrap().unwrap();
    assert_eq!(head.to_string().parse::<Head>().unwrap(), head);
    let kept = VerifyOptions::new().head(head);
    assert_eq!(findings(&root, &kept), []);

    // The last ten lines, and the runs that they name.
    edit_lines(&root, |lines| lines.truncate(lines.len() - 10));
    for run in &runs[5..] {
        fs::remove_dir_all(bench.root().join(run)).unwrap();
    }
    assert_eq!(found(&root), []);
    let cut = findings(&root, &kept);
    assert_eq!(cut.len(), 1);
    assert_eq!(cut[0].kind, FindingKind::LedgerCut);

    // As many lines as before, of other runs.
    root_of(&bench, &runs[5..]).await;
    let changed = findings(&root, &kept);
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0].kind, FindingKind::LedgerChanged);
}

#[tokio::test]
async fn a_removed_ledger_is_found() {
    let bench = Bench::new();
    let root = root_of(&bench, &["a"]).await;
    let kept = VerifyOptions::new().head(root.head().unwrap().unwrap());
    fs::remove_file(root.path().join("ledger.jsonl")).unwrap();
    assert_eq!(found(&root), [(FindingKind::LedgerMissing, String::new())]);

    // A manager that has the file open continues in a new one.
    let root = root_of(&bench, &["b"]).await;
    assert_eq!(found(&root), [(FindingKind::Added, "a".into())]);
    let kinds: Vec<_> = findings(&root, &kept).iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [FindingKind::LedgerChanged, FindingKind::Added]);
}

#[tokio::test]
async fn the_ledger_of_another_root_is_refused() {
    let (bench, other) = (Bench::new(), Bench::new());
    let root = root_of(&bench, &["a"]).await;
    let foreign = root_of(&other, &["a"]).await;
    fs::copy(
        foreign.path().join("ledger.jsonl"),
        root.path().join("ledger.jsonl"),
    )
    .unwrap();
    assert!(!root.verify_all(&VerifyOptions::new()).unwrap().is_intact());
    let manager = bench.open_on_threads().await;
    let error = manager.start(named("b")).await.unwrap_err().chain();
    assert!(error.contains("belongs to root"), "{error}");
    assert!(!bench.root().join("b").exists());
}

#[tokio::test]
async fn managers_of_one_root_share_a_chain() {
    let bench = Bench::new();
    let managers = [bench.open_on_threads().await, bench.open_on_threads().await];
    let runs = (0..20).map(|n| {
        let (manager, bench) = (managers[n % 2].clone(), &bench);
        async move {
            let run = bench
                .start(&manager, Script::new(), named(&format!("run-{n}")))
                .await;
            sealed(&run).await;
        }
    });
    futures::future::join_all(runs).await;
    for manager in managers {
        close(manager).await;
    }
    let root = bench.view();
    assert_eq!(found(&root), []);
    assert_eq!(lines(&root).len(), 41);
}

#[tokio::test]
async fn a_recovered_run_is_recorded_once() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let run = bench
        .start(&manager, Script::new().until_stopped(), named("a"))
        .await;
    let outcome = run.id().clone();
    drop(run);
    close(manager).await;
    let root = bench.view();
    assert_eq!(steps(&root).len(), 2);
    assert_eq!(found(&root), []);

    // As after a power loss that took the unsynced lines.
    fs::remove_file(root.path().join("ledger.jsonl")).unwrap();
    let manager = bench.open_on_threads().await;
    let run = manager.get(&outcome).await.unwrap();
    run.kill().await.unwrap();
    sealed(&run).await;
    let root = close(manager).await;
    let expected: [(&str, String); 3] = [
        ("ledger", String::new()),
        ("begun", "a".into()),
        ("sealed", "a".into()),
    ];
    assert_eq!(steps(&root), expected);
    assert_eq!(found(&root), [(FindingKind::RecordedLate, "a".into())]);

    // A process that died between the line and `run.json`.
    let path = bench.file("a", "run.json");
    let mut file: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    file.as_object_mut().unwrap().remove("seal").unwrap();
    fs::write(&path, file.to_string()).unwrap();
    let manager = bench.open_on_threads().await;
    let recovered = manager.wait_recovery().await.unwrap();
    assert_eq!(recovered.len(), 1);
    sealed(&recovered[0]).await;
    drop(recovered);
    close(manager).await;
    assert_eq!(steps(&root), expected);
}

#[tokio::test]
async fn an_interrupted_removal_is_completed_once() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    for name in ["a", "b"] {
        let run = bench.start(&manager, Script::new(), named(name)).await;
        // Its seal is in the ledger.
        run.wait_removed().await.unwrap();
    }
    let backup = bench.outside("backup");
    let run = manager.get(&RunId::new("a").unwrap()).await.unwrap();
    run.wait_removed().await.unwrap();
    copy_dir(&bench.root().join("a"), &backup);
    manager.remove(run.id()).await.unwrap();
    let root = close(manager).await;
    // As if the process had died before it removed the renamed directory: the last line is missing.
    edit_lines(&root, |lines| drop(lines.pop()));
    let number = lines(&root).len();
    let removed = bench.root().join(format!(".removed-a-{number}-01k0"));
    copy_dir(&backup, &removed);
    assert_eq!(found(&root), []);
    // Another run has the id by now.
    let root = root_of(&bench, &["a"]).await;
    for _ in 0..2 {
        let manager = bench.open_on_threads().await;
        manager.wait_recovery().await.unwrap();
        close(manager).await;
    }
    assert!(!removed.exists());
    assert_eq!(found(&root), []);
    let removals = steps(&root)
        .iter()
        .filter(|(kind, _)| *kind == "removed")
        .count();
    assert_eq!(removals, 1);
    assert_eq!(root.find(&RunQuery::new()).unwrap().len(), 2);
    root.export(&RunId::new("a").unwrap(), std::io::sink())
        .unwrap();

    // As if it had died before the rename: the run is still there.
    let manager = bench.open_on_threads().await;
    manager.remove(&RunId::new("b").unwrap()).await.unwrap();
    let root = close(manager).await;
    edit_lines(&root, |lines| drop(lines.pop()));
    copy_dir(&backup, &bench.root().join("c"));
    fs::remove_dir_all(bench.root().join("c")).unwrap();
    assert_eq!(found(&root), []);
}

/// A directory that something else has renamed is not removed, and is no removal.
#[tokio::test]
async fn a_renamed_run_is_named_and_kept() {
    let bench = Bench::new();
    let root = root_of(&bench, &["a"]).await;
    let renamed = bench.root().join(".removed-a-2-01k0");
    fs::rename(bench.root().join("a"), &renamed).unwrap();
    assert_eq!(found(&root), [(FindingKind::Removed, "a".into())]);
    let manager = bench.open_on_threads().await;
    manager.wait_recovery().await.unwrap();
    close(manager).await;
    assert!(renamed.join("logs.jsonl").exists());
    assert_eq!(found(&root), [(FindingKind::Removed, "a".into())]);
}

#[tokio::test]
async fn a_seal_that_the_ledger_lost_is_named() {
    let bench = Bench::new();
    let root = root_of(&bench, &["a", "b"]).await;
    edit_lines(&root, |lines| drop(lines.pop()));
    forge(&bench.file("b", "logs.jsonl"), "output", "OUTPUT");
    let found = found(&root);
    assert!(
        found.contains(&(FindingKind::Added, "b".into())),
        "{found:?}"
    );
}

/// A removed run stays removed, also if its `run.json` says that it is to be recovered.
#[tokio::test]
async fn a_restored_run_is_not_recorded_again() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let run = bench.start(&manager, Script::new(), named("a")).await;
    sealed(&run).await;
    run.wait_removed().await.unwrap();
    let backup = bench.outside("backup");
    copy_dir(&bench.root().join("a"), &backup);
    manager.remove(run.id()).await.unwrap();
    let root = close(manager).await;
    let before = lines(&root).len();
    copy_dir(&backup, &bench.root().join("a"));
    let path = bench.file("a", "run.json");
    let mut file: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    file.as_object_mut().unwrap().remove("seal").unwrap();
    fs::write(&path, file.to_string()).unwrap();
    let manager = bench.open_on_threads().await;
    for run in manager.wait_recovery().await.unwrap() {
        sealed(&run).await;
    }
    close(manager).await;
    assert_eq!(lines(&root).len(), before);
    assert_eq!(found(&root), [(FindingKind::Restored, "a".into())]);
}

#[tokio::test]
async fn a_dangling_link_hides_no_other_finding() {
    let bench = Bench::new();
    let root = root_of(&bench, &["a", "b"]).await;
    std::os::unix::fs::symlink("nowhere", bench.file("a", "exec-1.jsonl")).unwrap();
    fs::remove_dir_all(bench.root().join("b")).unwrap();
    let expected = [
        (FindingKind::Damaged, "a".to_owned()),
        (FindingKind::Removed, "b".to_owned()),
    ];
    assert_eq!(found(&root), expected);
}

/// Verifies a root again and again while it is in use.
struct Verifier {
    /// Dropped at the end, also by a panic.
    done: mpsc::Sender<()>,
    verifies: JoinHandle<u32>,
}

impl Verifier {
    fn start(root: &Root) -> Self {
        let root = root.clone();
        let (done, ended) = mpsc::channel();
        let verifies = spawn_blocking(move || {
            let mut rounds = 0;
            while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
                assert_eq!(findings(&root, &VerifyOptions::new()), [], "round {rounds}");
                rounds += 1;
            }
            rounds
        });
        Self { done, verifies }
    }

    /// Ends the verifications, and returns their number.
    async fn rounds(self) -> u32 {
        drop(self.done);
        self.verifies.await.unwrap()
    }
}

/// Ids that are used again and again are not taken for other runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_with_reused_ids_is_intact() {
    let bench = Bench::in_memory();
    let manager = bench.open_on_threads().await;
    let verifier = Verifier::start(manager.root());
    for n in 0..60 {
        let name = format!("run-{}", n % 3);
        let run = bench.start(&manager, Script::new(), named(&name)).await;
        sealed(&run).await;
        run.wait_removed().await.unwrap();
        manager.remove(run.id()).await.unwrap();
    }
    assert!(verifier.rounds().await > 2);
    close(manager).await;
}

/// A process that holds the lock of the ledger, and does not go on, delays a start. It does not
/// hang it.
#[tokio::test]
async fn a_held_lock_fails_a_start_with_a_reason() {
    let bench = Bench::new();
    let root = root_of(&bench, &["a"]).await;
    let ledger = fs::File::open(root.path().join("ledger.jsonl")).unwrap();
    ledger.lock().unwrap();
    let manager = bench.open_on_threads().await;
    let started = within(60, "the error", manager.start(named("b"))).await;
    let error = started.unwrap_err().chain();
    assert!(error.contains("cannot lock"), "{error}");
    assert!(
        error.contains("another process has held its lock for 10s"),
        "{error}"
    );
    assert!(!bench.root().join("b").exists());
    drop(ledger);
    let run = bench.start(&manager, Script::new(), named("b")).await;
    sealed(&run).await;
    assert_eq!(found(&close(manager).await), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_root_is_intact() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let verifier = Verifier::start(manager.root());
    for n in 0..30 {
        let name = format!("run-{n}");
        let run = bench.start(&manager, Script::new(), named(&name)).await;
        sealed(&run).await;
        if n % 2 == 0 {
            run.wait_removed().await.unwrap();
            manager.remove(run.id()).await.unwrap();
        }
    }
    assert!(verifier.rounds().await > 2);
    close(manager).await;
}

#[tokio::test]
async fn runs_are_found_by_their_properties() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let long = "x".repeat(20_000);
    let specs = [
        named("a").cmd(["make", "all"]).label("team", "build"),
        named("b").cmd(["make", "test"]).label("team", "test"),
        named("c").cmd(["echo", &long]).label("team", "build"),
        named("d").cmd(["make", "all"]).label("team", "build"),
    ];
    for (index, spec) in specs.into_iter().enumerate() {
        let script = Script::new().exit(index as i64);
        sealed(&bench.start(&manager, script, spec).await).await;
    }
    let removed = RunId::new("d").unwrap();
    manager.remove(&removed).await.unwrap();
    let live = named("live").cmd(["make"]);
    let live = bench
        .start(&manager, Script::new().until_stopped(), live)
        .await;
    let root = manager.root();
    let found = |query: RunQuery| {
        let found = root.find(&query).unwrap().into_iter();
        let names = found.map(|found| found.begun.run.to_string());
        names.collect::<Vec<_>>().join(" ")
    };
    let query = RunQuery::new;
    assert_eq!(found(query()), "a b c live");
    assert_eq!(found(query().label("team", "build")), "a c");
    assert_eq!(found(query().label("team", "build").text("all")), "a");
    // A command that the ledger omits.
    assert_eq!(found(query().text("xxx")), "c");
    assert_eq!(found(query().text("make").code(1)), "b");
    assert_eq!(found(query().status(RunStatus::Exited)), "a b c");
    assert_eq!(
        found(query().verdict(Verdict::Complete).image("any")),
        "a b c"
    );
    assert_eq!(found(query().image("other")), "");
    let created = root.find(&query()).unwrap()[1].begun.created;
    assert_eq!(found(query().since(created)), "b c live");
    assert_eq!(found(query().until(created)), "a");
    // After the removal, another run has the id.
    let again = bench.start(&manager, Script::new(), named("d")).await;
    sealed(&again).await;
    // The seal is in the ledger.
    again.wait_removed().await.unwrap();
    assert_eq!(found(query().code(0)), "a d");
    live.kill().await.unwrap();
}

//! The ledger of a root whose processes are killed.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use moat::manager::PruneOptions;
use moat::root::{FindingKind, LedgerEntry, LedgerLine, VerifyOptions};
use moat::{LocalProcess, Manager, Root, RunId, RunSpec, ShutdownMode, bundle};
use testkit::deadline::within;

use crate::embedder::Embedder;
use crate::place::Place;

const ROOT: &str = "MOAT_TEST_LEDGER_ROOT";
const EXPORTS: &str = "MOAT_TEST_EXPORTS";

/// The number of kills: more in the long form.
fn kills() -> u64 {
    if env::var_os("MOAT_SOAK").is_some() {
        200
    } else {
        20
    }
}

/// The body of a child, which starts and removes runs until it is killed. In the parent it does
/// nothing.
#[tokio::test]
async fn child_with_runs() {
    let Some(root) = env::var_os(ROOT) else {
        return;
    };
    let manager = Manager::open(root, LocalProcess::new()).await.unwrap();
    loop {
        let runs = (0..4).map(|_| manager.start(RunSpec::command(["true"])));
        for run in futures::future::join_all(runs).await {
            run.unwrap().wait().await.unwrap();
        }
        // Another process may remove the same runs.
        let _ = manager.prune(PruneOptions::new().keep(8)).await;
    }
}

/// Starts this program as the child `name`, with a path in the variable `key`.
fn start(name: &str, key: &str, path: &Path) -> Embedder {
    let mut child = Command::new(env::current_exe().unwrap());
    child
        .args(["--exact", name, "--nocapture"])
        .env(key, path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    Embedder(child.spawn().unwrap())
}

#[tokio::test]
async fn killed_processes_leave_an_exact_ledger() {
    let place = Place::new();
    // Two processes share the root. One of them is killed in each round.
    place.open().await.shutdown(ShutdownMode::Leave).await;
    let root_path = place.root();
    let start = || start("ledger::child_with_runs", ROOT, &root_path);
    let mut children = [start(), start()];
    for round in 0..kills() {
        // Any moment will do: a process opens the root within 10 ms, and a run takes 5 ms.
        tokio::time::sleep(Duration::from_millis(20 + round * 37 % 90)).await;
        let killed = &mut children[round as usize % 2];
        killed.0.kill().unwrap();
        killed.0.wait().unwrap();
        let root = Root::open(place.root()).unwrap();
        let found = root.verify_all(&VerifyOptions::new()).unwrap();
        assert!(found.is_intact(), "round {round}: {:?}", found.findings);
        *killed = start();
    }
    drop(children);
    let manager = place.open().await;
    for run in within(60, "the recovery", manager.wait_recovery())
        .await
        .unwrap()
    {
        within(60, "the seal", run.wait()).await.unwrap();
    }
    manager.shutdown(ShutdownMode::Leave).await;

    let root = Root::open(place.root()).unwrap();
    let found = root.verify_all(&VerifyOptions::new()).unwrap();
    let mut findings = found.findings.iter();
    // Killed between the creation of the directory and the line.
    assert!(
        findings.all(|f| f.kind == FindingKind::RecordedLate),
        "{:?}",
        found.findings
    );
    assert_eq!(found.sealed, found.runs);
    let lines: Vec<LedgerLine> = root.ledger().unwrap().collect::<Result<_, _>>().unwrap();
    assert!(lines.len() as u64 > 10 * kills(), "{}", lines.len());
    assert_each_step_once(&lines);
    let names = fs::read_dir(place.root()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let hidden: Vec<_> = names.filter(|name| name.starts_with(".removed")).collect();
    assert_eq!(hidden, Vec::<String>::new());
}

/// Each run has one begin, then at most one seal, then at most one removal.
fn assert_each_step_once(lines: &[LedgerLine]) {
    let mut steps: HashMap<_, Vec<&str>> = HashMap::new();
    for line in lines {
        let step = match &line.entry {
            LedgerEntry::Begun(begun) if begun.late => "late",
            LedgerEntry::Begun(_) => "begun",
            LedgerEntry::Sealed(_) => "sealed",
            LedgerEntry::Removing { .. } => "removing",
            LedgerEntry::Removed { .. } => "removed",
            _ => continue,
        };
        steps
            .entry(line.entry.run().unwrap())
            .or_default()
            .push(step);
    }
    for (run, steps) in steps {
        let steps = steps.join(" ");
        let steps = steps.strip_prefix("late").or(steps.strip_prefix("begun"));
        // A process may die before it records the end of a removal.
        let ends = [" sealed", " sealed removing", " sealed removing removed"];
        // A removal that was cut off before the rename is announced again.
        let steps = steps
            .unwrap_or_default()
            .replace("removing removing", "removing");
        assert!(ends.contains(&&*steps), "{run}: {steps:?}");
    }
}

/// The body of a child, which exports a run again and again until it is killed. In the parent it
/// does nothing.
#[tokio::test]
async fn child_with_exports() {
    let Some(dir) = env::var_os(EXPORTS) else {
        return;
    };
    let dir = Path::new(&dir);
    let root = Root::open(dir.join("root")).unwrap();
    let run = RunId::new("run").unwrap();
    for number in 0.. {
        let path = dir.join(format!("{number}-{}.tar", std::process::id()));
        root.export_to(&run, path).unwrap();
    }
}

#[tokio::test]
async fn a_killed_export_leaves_no_partial_bundle() {
    let place = Place::new();
    let manager = place.open().await;
    let spec = RunSpec::command(["seq", "20000"]).id(RunId::new("run").unwrap());
    let run = manager.start(spec).await.unwrap();
    within(60, "the seal", run.wait()).await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
    let mut intact = 0;
    for round in 0..kills() {
        let mut child = start("ledger::child_with_exports", EXPORTS, place.dir.path());
        // Any moment will do: an export takes some 10 ms.
        tokio::time::sleep(Duration::from_millis(30 + round * 37 % 90)).await;
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        for entry in fs::read_dir(place.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "tar") {
                let verified = bundle::verify(&path).unwrap();
                assert_eq!(verified.problems, Vec::<String>::new(), "round {round}");
                intact += 1;
                fs::remove_file(path).unwrap();
            }
        }
    }
    assert!(intact > 0);
}

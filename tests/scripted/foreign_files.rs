//! Other things in place of the files of a run, and things in a root that are not runs.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use moat::audit::{Event, LogState, Reader, Record, verify};
use moat::runtime::RuntimeError;
use moat::runtime::scripted::{Call, Fault};
use moat::state::RunStatus;
use moat::{Error, Manager, Root, RunId, ShutdownMode, Verdict};

use crate::abandoned::{BOUND, TEXT, contents, eventually, names, stop, text};
use crate::bench::{Bench, named};

const KINDS: [&str; 9] = [
    "directory",
    "link",
    "dangling",
    "fifo",
    "socket",
    "empty",
    "sparse",
    "binary",
    "nested",
];

/// Replaces a file with something else; `other` is the target of a link.
fn replace(path: &Path, kind: &str, other: &Path) {
    if path.exists() {
        fs::rename(path, other).unwrap();
    }
    match kind {
        "directory" => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("precious"), "kept").unwrap();
        }
        "link" => symlink(other, path).unwrap(),
        "dangling" => symlink(other.with_file_name("nowhere"), path).unwrap(),
        "fifo" => {
            let made = Command::new("mkfifo").arg(path).status();
            assert!(made.unwrap().success());
        }
        "socket" => drop(UnixListener::bind(path).unwrap()),
        "empty" => drop(File::create(path).unwrap()),
        "sparse" => File::create(path).unwrap().set_len(100 << 20).unwrap(),
        "binary" => fs::write(path, [0xff, 0xfe, 0, b'\n', 0x80]).unwrap(),
        "nested" => fs::write(path, "[".repeat(1 << 20) + "\n").unwrap(),
        _ => unreachable!(),
    }
}

fn is_file(kind: &str) -> bool {
    matches!(kind, "empty" | "sparse" | "binary" | "nested")
}

#[tokio::test]
async fn an_irregular_file_harms_one_run_at_most() {
    for file in ["run.json", "logs.jsonl", "lock"] {
        let bench = Bench::in_memory();
        let good = names("good", 3);
        let all: Vec<_> = KINDS.map(str::to_owned).into_iter().chain(good).collect();
        bench.leave_running(&all).await;
        fs::create_dir(bench.outside("elsewhere")).unwrap();
        for kind in KINDS {
            let other = bench.outside("elsewhere").join(kind);
            replace(&bench.file(kind, file), kind, &other);
        }
        let elsewhere = contents(&bench.outside("elsewhere"));

        let manager = bench.open_patiently().await;
        let runs = bench.recovered(&manager).await;
        assert_eq!(runs.len(), all.len());
        let (bad, well): (Vec<_>, Vec<_>) =
            runs.into_iter().partition(|run| run.problem().is_some());
        for outcome in stop(&well).await {
            let seal = outcome.sealed().unwrap();
            assert_eq!(outcome.code(), Some(143), "{outcome}");
            assert_eq!(seal.verdict, Verdict::Complete, "{outcome}");
            let audit = bench.file(outcome.run.as_str(), "logs.jsonl");
            assert_eq!(text(&audit), TEXT, "{outcome}");
        }
        for run in &bad {
            let kind = run.id().as_str();
            // No call on such a run hangs.
            let waited = tokio::time::timeout(BOUND, run.wait()).await;
            assert!(matches!(waited, Ok(Err(Error::Damaged { .. }))), "{kind}");
            let problem = run.problem().unwrap();
            assert!(problem.contains(file), "{problem}");
            assert!(problem.contains("not a regular file"), "{problem}");
            assert!(!is_file(kind), "{kind}: {problem}");
        }
        // The audit has a copy of the record, and the lock file has no content.
        let lost = if file == "run.json" { 0 } else { 5 };
        assert_eq!(bad.len(), lost, "{file}");
        manager.shutdown(ShutdownMode::Leave).await;

        for info in bench.view().list().unwrap() {
            let is_bad = bad.iter().any(|run| *run.id() == info.run);
            assert_eq!(info.problem.is_some(), is_bad, "{file}: {info:?}");
            assert_eq!(
                info.status == RunStatus::Damaged,
                is_bad,
                "{file}: {info:?}"
            );
        }
        assert_eq!(contents(&bench.outside("elsewhere")), elsewhere, "{file}");
        for kind in KINDS {
            // An empty file is not kept. The others are in place or quarantined.
            let aside = match file {
                "run.json" => "run.json.damaged-1",
                "logs.jsonl" if is_file(kind) && kind != "empty" => "torn-1",
                _ => file,
            };
            let kept = bench.file(kind, aside).symlink_metadata();
            let kept = kept.unwrap_or_else(|error| panic!("{file} {kind}: {error}"));
            assert_eq!(kept.is_dir(), kind == "directory", "{file} {kind}");
            assert_eq!(kept.is_symlink(), ["link", "dangling"].contains(&kind));
            assert!(kind != "sparse" || kept.len() == 100 << 20 || file == "lock");
            let precious = bench.file(kind, aside).join("precious");
            assert_eq!(precious.exists(), kind == "directory");
        }
    }
}

#[tokio::test]
async fn an_irregular_root_file_is_refused() {
    for kind in KINDS {
        let bench = Bench::in_memory();
        bench.leave_sealed("run").await;
        let other = bench.outside("elsewhere");
        replace(&bench.root().join("root.json"), kind, &other);
        let before = (kind != "sparse").then(|| contents(&bench.root()));
        let opened = Manager::open(bench.root(), bench.runtime.clone()).await;
        let error = opened.expect_err(kind).chain();
        assert!(error.contains("root.json"), "{error}");
        assert!(Root::open(bench.root()).is_err());
        assert!(before.is_none_or(|before| before == contents(&bench.root())));
    }
}

/// Tests may run as root, which ignores permissions. So another user runs this test.
#[test]
fn an_unreadable_file_is_reported_and_retried() {
    const NAME: &str = "an_unreadable_file_is_reported_and_retried";
    const NOBODY: u32 = 65534;
    use std::os::unix::process::CommandExt;

    let am_root = fs::metadata("/proc/self").is_ok_and(|me| {
        use std::os::unix::fs::MetadataExt;
        me.uid() == 0
    });
    if am_root {
        // The build directory may be closed to other users.
        let dir = tempfile::tempdir().unwrap();
        use std::os::unix::fs::PermissionsExt;
        let all = fs::Permissions::from_mode(0o777);
        fs::set_permissions(dir.path(), all).unwrap();
        let program = dir.path().join("test");
        // A child copies the file. If this process had it open for writing, a concurrent fork could
        // inherit the descriptor, and the program could not be executed.
        let mut copy = Command::new("cp");
        copy.arg(std::env::current_exe().unwrap()).arg(&program);
        assert!(copy.status().unwrap().success());
        let mut child = Command::new(program);
        child.args(["--exact", &format!("foreign_files::{NAME}")]);
        child.env("TMPDIR", dir.path()).current_dir("/");
        let output = child.uid(NOBODY).gid(NOBODY).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{printed}");
        assert!(printed.contains("1 passed"), "{printed}");
        return;
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(without_permission());
}

async fn without_permission() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::in_memory();
    let files = ["run.json", "logs.jsonl", "lock"];
    let all: Vec<String> = ["record", "audit", "lock", "good"]
        .map(str::to_owned)
        .to_vec();
    bench.leave_running(&all).await;
    let allow = |mode| {
        for (name, file) in all.iter().zip(files) {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(bench.file(name, file), mode).unwrap();
        }
    };
    allow(0);
    let before: Vec<_> = bench.view().list().unwrap();
    for info in &before[..] {
        let good = info.run.as_str() == "good";
        assert_eq!(info.problem.is_none(), good, "{info:?}");
    }
    let manager = bench.open_patiently().await;
    let runs = bench.recovered(&manager).await;
    for run in &runs {
        let good = run.id().as_str() == "good";
        assert_eq!(run.problem().is_none(), good, "{:?}", run.problem());
    }
    allow(0o600);
    // The manager retries without a request.
    for outcome in stop(&runs).await {
        assert_eq!(
            outcome.sealed().unwrap().verdict,
            Verdict::Complete,
            "{outcome}"
        );
        let audit = bench.file(outcome.run.as_str(), "logs.jsonl");
        assert_eq!(text(&audit), TEXT, "{outcome}");
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

/// A copy of a run's directory is not that run: its container and its name belong to another run.
#[tokio::test]
async fn a_copied_run_is_not_its_original() {
    for sealed in [false, true] {
        for record in [true, false] {
            let bench = Bench::in_memory();
            match sealed {
                true => drop(bench.leave_sealed("original").await),
                false => bench.leave_running(&["original".into()]).await,
            }
            let other = Bench::in_memory();
            other.leave_sealed("foreign").await;
            let copy = |from: &Path, to: &Path| {
                fs::create_dir(to).unwrap();
                for entry in fs::read_dir(from).unwrap() {
                    let from = entry.unwrap().path();
                    if record || !from.ends_with("run.json") {
                        fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
                    }
                }
            };
            let original = bench.root().join("original");
            copy(&original, &bench.root().join("copy"));
            copy(&other.root().join("foreign"), &bench.root().join("foreign"));
            let before = contents(&original);
            let foreign = contents(&bench.root().join("foreign"));

            let manager = bench.open_patiently().await;
            let runs = bench.recovered(&manager).await;
            let mut of_original = before.clone();
            for run in runs {
                let problem = run.problem();
                if run.id().as_str() == "original" {
                    assert_eq!(problem, None);
                    stop(&[run]).await;
                    // `run.json` gets its copy of the seal after the outcome.
                    let file = original.join("run.json");
                    let has_seal = || fs::read_to_string(&file).unwrap().contains(r#""seal":"#);
                    eventually(has_seal).await;
                    of_original = contents(&original);
                    continue;
                }
                let problem = problem.unwrap();
                assert!(problem.contains("it belongs to"), "{problem}");
                assert!(matches!(run.wait().await, Err(Error::Damaged { .. })));
            }
            manager.shutdown(ShutdownMode::Leave).await;
            assert_eq!(contents(&original), of_original, "{sealed} {record}");
            assert_eq!(contents(&bench.root().join("foreign")), foreign);
            for name in ["copy", "foreign"] {
                let info = bench.view().info(&RunId::new(name).unwrap()).unwrap();
                assert_eq!(info.status, RunStatus::Damaged, "{info:?}");
                assert!(info.problem.unwrap().contains("it belongs to"));
            }
        }
    }
}

#[tokio::test]
async fn other_entries_in_a_root_are_left_alone() {
    let bench = Bench::in_memory();
    bench.leave_running(&["good".into()]).await;
    let elsewhere = Bench::in_memory();
    elsewhere.leave_running(&["linked".into()]).await;
    let outside = contents(&elsewhere.root());
    let at = |name: &str| bench.root().join(name);
    symlink(elsewhere.root().join("linked"), at("linked")).unwrap();
    use std::os::unix::ffi::OsStrExt;
    let odd: [&[u8]; 9] = [
        b".hidden",
        b"-dash",
        b"a b",
        b"a\nb",
        b"\xff\xfe",
        "\u{202e}gpj".as_bytes(),
        b"...",
        &[b'x'; 200],
        b"lost+found",
    ];
    for name in odd {
        let dir = bench.root().join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("run.json"), "{}").unwrap();
    }
    fs::write(at("file"), "x").unwrap();
    fs::create_dir(at("empty")).unwrap();
    symlink("/", at(".removed-link")).unwrap();

    let listed = bench.view().list().unwrap();
    let ids: Vec<_> = listed.iter().map(|info| info.run.as_str()).collect();
    assert_eq!(ids, ["empty", "good"]);
    let manager = bench.open_patiently().await;
    let runs = bench.recovered(&manager).await;
    assert_eq!(runs.len(), 2);
    assert!(runs.iter().all(|run| run.problem().is_none()));
    for outcome in stop(&runs).await {
        assert!(outcome.sealed().is_some(), "{outcome}");
    }
    let linked = RunId::new("linked").unwrap();
    let got = manager.get(&linked).await;
    assert!(matches!(got, Err(Error::NoSuchRun { .. })), "{got:?}");
    let taken = manager.start(named("linked")).await;
    assert!(matches!(taken, Err(Error::RunExists { .. })), "{taken:?}");
    let taken = manager.start(named("file")).await;
    assert!(matches!(taken, Err(Error::RunExists { .. })), "{taken:?}");
    manager.shutdown(ShutdownMode::Leave).await;
    assert_eq!(contents(&elsewhere.root()), outside);
    for name in odd {
        let record = bench.root().join(std::ffi::OsStr::from_bytes(name));
        assert_eq!(fs::read(record.join("run.json")).unwrap(), b"{}");
    }
    assert!(Path::new("/").read_dir().unwrap().count() > 0);
}

#[tokio::test]
async fn a_bad_stop_request_is_ignored() {
    let bench = Bench::in_memory();
    bench.leave_running(&["run".into()]).await;
    for (at, kind) in KINDS.into_iter().enumerate() {
        let path = bench.file("run", &format!("stop-{at}.json"));
        replace(&path, kind, &bench.outside(kind));
    }
    let stop_of = |signal: &str| {
        let ts = "2026-11-22T18:23:25.491211661Z";
        format!(r#"{{"ts":"{ts}","cause":"requested","signal":"{signal}","by_pid":1}}"#)
    };
    // A record must not be longer than the format allows.
    let long = stop_of(&"X".repeat(17 << 20));
    fs::write(bench.file("run", "stop-long.json"), long).unwrap();
    fs::write(bench.file("run", "stop-good.json"), stop_of("SIGTERM")).unwrap();
    symlink(
        bench.file("run", "stop-good.json"),
        bench.file("run", "stop-link.json"),
    )
    .unwrap();
    let manager = bench.open_patiently().await;
    let runs = bench.recovered(&manager).await;
    let outcome = stop(&runs).await.remove(0);
    manager.shutdown(ShutdownMode::Leave).await;
    let audit = outcome.audit.as_ref().unwrap();
    assert!(matches!(verify(audit).unwrap().state, LogState::Sealed(_)));
    assert_eq!(text(audit), TEXT);
    let requests = Reader::open(audit)
        .unwrap()
        .filter(|record| match record.as_ref().unwrap() {
            Record::Event(Event::Stop(stop)) => stop.by_pid == Some(1),
            _ => false,
        });
    assert_eq!(requests.count(), 1);
}

/// The record is not damaged: a later version of moat can read it.
#[tokio::test]
async fn a_later_record_version_is_never_changed() {
    let bench = Bench::in_memory();
    bench.leave_running(&["later".into(), "good".into()]).await;
    let path = bench.file("later", "run.json");
    let later = fs::read_to_string(&path)
        .unwrap()
        .replacen(r#""v":1"#, r#""v":2,"more":[1]"#, 1);
    fs::write(&path, &later).unwrap();
    let before = contents(&bench.root().join("later"));
    let manager = bench.open_patiently().await;
    let runs = bench.recovered(&manager).await;
    for run in &runs {
        let is_later = run.id().as_str() == "later";
        assert_eq!(run.problem().is_some(), is_later, "{:?}", run.problem());
        if let Some(problem) = run.problem() {
            assert!(problem.contains("version 2"), "{problem}");
        }
    }
    manager.shutdown(ShutdownMode::Leave).await;
    let after = contents(&bench.root().join("later"));
    assert_eq!(after[&path], before[&path]);
    assert_eq!(
        after.keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );

    let root = bench.root().join("root.json");
    let text = fs::read_to_string(&root).unwrap();
    fs::write(&root, text.replacen(r#""v":1"#, r#""v":2"#, 1)).unwrap();
    let error = Root::open(bench.root()).unwrap_err().chain();
    assert!(error.contains("version 2"), "{error}");
}

/// Unusual JSON in the record and in a line of the audit.
#[tokio::test]
async fn odd_json_harms_no_run() {
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let odd = [
        ("deep_list", format!(r#""x":{},"#, deep("[", "]"))),
        (
            "deep_map",
            format!(
                r#""x":{}1{},"#,
                r#"{"x":"#.repeat(50_000),
                "}".repeat(50_000)
            ),
        ),
        ("twice", r#""image":"other","#.to_owned()),
        ("huge", r#""memory":1e999,"#.to_owned()),
        (
            "many_digits",
            format!(r#""memory":{},"#, "9".repeat(100_000)),
        ),
        ("negative", r#""pids_limit":-1,"#.to_owned()),
        ("far", r#""stop_grace":1e300,"#.to_owned()),
        ("long_grace", r#""zzz":1,"stop_grace":9e18,"#.to_owned()),
        (
            "far_deadline",
            r#""deadline":"9999-12-30T22:00:00Z","#.to_owned(),
        ),
        (
            "past_deadline",
            r#""deadline":"-009999-01-02T01:59:59Z","#.to_owned(),
        ),
        ("surrogate", r#""x":"\ud800","#.to_owned()),
        ("null_id", r#""container":null,"#.to_owned()),
        (
            "odd_id",
            r#""container":"../../info?a=b\u0000","#.to_owned(),
        ),
        ("unknown", r#""future":{"a":[1,2,{}]},"#.to_owned()),
    ];
    for file in ["run.json", "logs.jsonl"] {
        let bench = Bench::in_memory();
        let names: Vec<_> = odd.iter().map(|(name, _)| (*name).to_owned()).collect();
        let harmed: Vec<_> = names.iter().cloned().chain(["good".into()]).collect();
        bench.leave_running(&harmed).await;
        for (name, fields) in &odd {
            let path = bench.file(name, file);
            let text = fs::read_to_string(&path).unwrap();
            // After the first field, which must stay first.
            let (head, tail) = match file {
                "run.json" => text.split_at(text.find(r#""run":"#).unwrap()),
                _ => {
                    let started = text.find(r#"{"type":"started","#).unwrap();
                    text.split_at(started + r#"{"type":"started","#.len())
                }
            };
            // Otherwise an existing field would appear twice.
            let key = fields.split(':').next().unwrap();
            let tail = match *name {
                "twice" => tail.to_owned(),
                _ => tail.replacen(key, r#""was""#, 1),
            };
            fs::write(&path, format!("{head}{fields}{tail}")).unwrap();
        }
        let manager = bench.open_patiently().await;
        let runs = bench.recovered(&manager).await;
        assert_eq!(runs.len(), harmed.len());
        for run in &runs {
            assert_eq!(run.problem(), None, "{file} {}", run.id());
        }
        for outcome in stop(&runs).await {
            // A deadline may have stopped the run before.
            assert_eq!(outcome.code(), Some(143), "{file} {outcome}");
            assert!(outcome.sealed().is_some(), "{file} {outcome}");
            let audit = outcome.audit.as_ref().unwrap();
            assert!(matches!(verify(audit).unwrap().state, LogState::Sealed(_)));
        }
        manager.shutdown(ShutdownMode::Leave).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_audit_does_not_grow_during_retries() {
    let bench = Bench::in_memory();
    bench.leave_running(&["run".into()]).await;
    for _ in 0..200 {
        let gone = RuntimeError::Broken {
            operation: "inspect the container",
            reason: "injected fault".into(),
        };
        bench.runtime.fault(Call::Inspect, Fault::Error(gone));
    }
    let manager = bench.open_patiently().await;
    let runs = manager.wait_recovery().await.unwrap();
    stop(&runs).await;
    let resumes = Reader::open(runs[0].audit().unwrap())
        .unwrap()
        .filter(|record| matches!(record.as_ref().unwrap(), Record::Event(Event::Resume(_))));
    assert_eq!(resumes.count(), 1);
}

/// The obstacle is reported. Once it is gone, the requested recovery happens.
#[tokio::test]
async fn a_repaired_run_is_recovered_on_demand() {
    let bench = Bench::in_memory();
    bench.leave_running(&["run".into()]).await;
    let audit = bench.file("run", "logs.jsonl");
    let other = bench.outside("elsewhere");
    replace(&audit, "directory", &other);
    let manager = bench.open_patiently().await;
    assert!(bench.recovered(&manager).await[0].problem().is_some());
    fs::remove_dir_all(&audit).unwrap();
    fs::rename(&other, &audit).unwrap();
    let run = manager.get(&RunId::new("run").unwrap()).await.unwrap();
    let outcome = stop(&[run]).await.remove(0);
    assert_eq!(text(&audit), TEXT);
    assert_eq!(outcome.sealed().unwrap().verdict, Verdict::Complete);
}

//! Bundles of runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use moat::bundle::{self, BundleVerification};
use moat::runtime::scripted::Script;
use moat::spec::ExecSpec;
use moat::{Error, Root, RunId, ShutdownMode};

use crate::bench::{Bench, named, sealed};

/// A root with a sealed run `a` that had an exec.
async fn exported(bench: &Bench) -> (Root, PathBuf) {
    let manager = bench.open_on_threads().await;
    let script = Script::new().stdout("output\n").until_stopped();
    let run = bench.start(&manager, script, named("a")).await;
    bench.runtime.next_exec(Script::new().stdout("exec\n"));
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    exec.wait().await.unwrap();
    run.kill().await.unwrap();
    sealed(&run).await;
    // Another run, whose lines are between those of the first.
    sealed(&bench.start(&manager, Script::new(), named("b")).await).await;
    let root = manager.root().clone();
    manager.shutdown(ShutdownMode::Leave).await;
    let path = bench.outside("a.tar");
    fs::write(&path, export(&root, "a").unwrap()).unwrap();
    (root, path)
}

fn export(root: &Root, run: &str) -> moat::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    root.export(&RunId::new(run).unwrap(), &mut bytes)?;
    Ok(bytes)
}

fn intact(path: &PathBuf) -> BundleVerification {
    let verified = bundle::verify(path).unwrap();
    assert_eq!(verified.problems, Vec::<String>::new());
    verified
}

#[tokio::test]
async fn a_bundle_has_everything_about_a_run() {
    let bench = Bench::new();
    let (root, path) = exported(&bench).await;
    let verified = intact(&path);
    assert_eq!(verified.run.unwrap().as_str(), "a");
    assert_eq!(verified.execs.keys().collect::<Vec<_>>(), [&1]);
    assert_eq!(verified.ledger.len(), 3);
    let mut archive = tar::Archive::new(fs::File::open(&path).unwrap());
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    let expected = [
        "README.md",
        "exec-1.jsonl",
        "logs.jsonl",
        "run.json",
        "ledger.jsonl",
        "SHA256SUMS",
    ];
    assert_eq!(names, expected.map(|name| format!("a/{name}")));
    // The same files are the same bytes.
    assert_eq!(export(&root, "a").unwrap(), fs::read(&path).unwrap());
}

#[tokio::test]
async fn a_bundle_is_checked_with_common_tools() {
    let bench = Bench::new();
    let (_, path) = exported(&bench).await;
    let script = "set -e; tar xf a.tar; cd a; sha256sum -c --quiet SHA256SUMS; \
                  head -c -78 logs.jsonl | sha256sum | cut -d ' ' -f 1; \
                  tail -n 1 logs.jsonl | jq -r .sha256; \
                  jq -r 'select(.type == \"sealed\").sha256' ledger.jsonl";
    let out = Command::new("bash")
        .args(["-c", script])
        .current_dir(path.parent().unwrap())
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let digests = String::from_utf8(out.stdout).unwrap();
    let digests: Vec<_> = digests.lines().collect();
    assert_eq!(digests.len(), 3);
    assert_eq!(
        digests.iter().collect::<BTreeSet<_>>().len(),
        1,
        "{digests:?}"
    );
}

/// A changed byte is found, unless it is one that no reader uses: padding, owner and time.
#[tokio::test]
async fn any_changed_byte_of_a_file_is_found() {
    let bench = Bench::new();
    let (_, path) = exported(&bench).await;
    let bytes = fs::read(&path).unwrap();
    let mut contents = Vec::new();
    let mut archive = tar::Archive::new(&bytes[..]);
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let from = entry.raw_file_position() as usize;
        contents.push(from..from + entry.size() as usize);
    }
    let mut found = 0;
    for at in 0..bytes.len() {
        let in_file = contents.iter().any(|range| range.contains(&at));
        if in_file && at % 7 != 0 {
            continue;
        }
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).unwrap();
        let is_intact = bundle::verify(&path).is_ok_and(|verified| verified.is_intact());
        assert!(!is_intact || !in_file, "byte {at}");
        found += usize::from(in_file);
    }
    assert!(found > 500, "{found}");
    // Bytes after the archive, and a `run.json` with another command.
    let mut longer = bytes.clone();
    longer.extend_from_slice(&bytes);
    fs::write(&path, longer).unwrap();
    assert!(!bundle::verify(&path).unwrap().is_intact());
    // Cut at each boundary of a block, except within the zeros at the end.
    let end = contents.last().unwrap().end;
    for length in (0..end).step_by(512) {
        fs::write(&path, &bytes[..length]).unwrap();
        let is_intact = bundle::verify(&path).is_ok_and(|verified| verified.is_intact());
        assert!(!is_intact, "{length} bytes");
    }
}

#[tokio::test]
async fn a_file_of_another_run_is_found_in_a_bundle() {
    let bench = Bench::new();
    let (root, path) = exported(&bench).await;
    let other = export(&root, "b").unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    for (bytes, wanted) in [(fs::read(&path).unwrap(), false), (other, true)] {
        let mut archive = tar::Archive::new(&bytes[..]);
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().file_name().unwrap().to_owned();
            if (name == "logs.jsonl") == wanted {
                let mut header = entry.header().clone();
                let name = PathBuf::from("a").join(name);
                builder.append_data(&mut header, name, entry).unwrap();
            }
        }
    }
    fs::write(&path, builder.into_inner().unwrap()).unwrap();
    let problems = bundle::verify(&path).unwrap().problems.join("\n");
    for expected in [
        "logs.jsonl: its digest differs from SHA256SUMS",
        "logs.jsonl: it belongs to run b",
        "ledger.jsonl: it does not have the seal of logs.jsonl",
    ] {
        assert!(problems.contains(expected), "{problems}");
    }
}

#[tokio::test]
async fn only_intact_runs_are_exported() {
    let bench = Bench::new();
    let (root, _) = exported(&bench).await;
    let error = export(&root, "missing").unwrap_err();
    assert!(matches!(error, Error::NoSuchRun { .. }), "{error:?}");
    let path = bench.file("b", "logs.jsonl");
    let bytes = fs::read(&path).unwrap();
    let mut changed = bytes.clone();
    changed[40] ^= 1;
    fs::write(&path, changed).unwrap();
    let error = export(&root, "b").unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    fs::write(&path, bytes).unwrap();

    // A missing file.
    let exec = bench.file("a", "exec-1.jsonl");
    let aside = bench.outside("aside");
    fs::rename(&exec, &aside).unwrap();
    let error = export(&root, "a").unwrap_err().chain();
    assert!(error.contains("it is missing"), "{error}");
    fs::rename(&aside, &exec).unwrap();

    // The seal is not in the ledger.
    let ledger = root.path().join("ledger.jsonl");
    let text = fs::read_to_string(&ledger).unwrap();
    let lines: Vec<_> = text.lines().collect();
    fs::write(&ledger, lines[..lines.len() - 1].join("\n") + "\n").unwrap();
    let error = export(&root, "b").unwrap_err().chain();
    assert!(
        error.contains("the ledger does not have its seal"),
        "{error}"
    );

    let manager = bench.open_on_threads().await;
    let script = Script::new().until_stopped();
    let run = bench.start(&manager, script, named("live")).await;
    let error = export(&root, "live").unwrap_err();
    assert!(matches!(error, Error::NotSealed { .. }), "{error:?}");
    run.kill().await.unwrap();
}

//! The text of an error that a `main` returns or a test unwraps.

use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use moat::runtime::scripted::Script;
use moat::{Error, Ready};

use crate::bench::{Bench, named};

/// The directory of the run, in a child that runs an ignored test.
const DIR: &str = "MOAT_TEST_ERROR_DIR";

/// Starts a run whose image is missing.
async fn start_without_image(bench: &Bench) -> Error {
    bench.runtime.remove_image("any");
    let manager = bench.open().await;
    manager.start(named("first")).await.err().unwrap()
}

fn audit_line(bench: &Bench) -> String {
    let audit = bench.root().join("first/logs.jsonl");
    format!("\n\nAudit file: {}", audit.display())
}

#[tokio::test]
async fn debug_has_each_cause_once_and_the_audit_file() {
    let bench = Bench::new();
    let error = start_without_image(&bench).await;
    let cause = error.source().unwrap().to_string();
    let expected = format!(
        "cannot start run first\n\nCaused by:\n    {cause}{}",
        audit_line(&bench)
    );
    assert_eq!(format!("{error:?}"), expected);
    assert_eq!(format!("{error:#?}"), expected);
    assert_eq!(error.chain(), format!("cannot start run first: {cause}"));

    let fail = || -> moat::Result<()> { Err(error) };
    let panic = catch_unwind(AssertUnwindSafe(|| fail().unwrap())).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    let start = "called `Result::unwrap()` on an `Err` value: ";
    assert_eq!(*message, format!("{start}{expected}"));
}

#[tokio::test]
async fn debug_keeps_the_last_lines_of_a_failed_run() {
    let bench = Bench::new();
    let script = Script::new().stdout("one\ntwo\x1b[2J\n").exit(7);
    let outcome = bench.run(script, named("first")).await;
    let error = outcome.into_result().unwrap_err();
    let expected = format!(
        "run first exited with code 7; its last lines:\n  one\n  two\\u{{1b}}[2J{}",
        audit_line(&bench)
    );
    assert_eq!(format!("{error:?}"), expected);
}

#[tokio::test]
async fn debug_names_the_audit_file_of_a_run_not_ready() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let script = Script::new().stdout("broken\n").exit(1);
    let run = bench.start(&manager, script, named("first")).await;
    let error = run.wait_ready(Ready::line("listening")).await;
    let shown = format!("{:?}", error.unwrap_err());
    assert!(shown.starts_with("run first is not ready: "), "{shown}");
    let end = format!("; its last lines:\n  broken{}", audit_line(&bench));
    assert!(shown.ends_with(&end), "{shown}");
}

#[test]
fn a_main_that_fails_prints_each_message_once() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--include-ignored", "--nocapture"])
        .arg("error_text::child_returns_an_error")
        .env(DIR, dir.path())
        .output()
        .unwrap();
    let shown = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!output.status.success(), "{shown}");
    let path = dir.path().join("missing");
    let expected = format!(
        "Error: cannot open the root {}\n\nCaused by:\n    it does not exist\n",
        path.display()
    );
    assert!(shown.contains(&expected), "{shown}");
    assert_eq!(shown.matches("it does not exist").count(), 1, "{shown}");
}

#[test]
#[ignore = "fails: another test runs it, and checks its output"]
fn child_returns_an_error() -> moat::Result<()> {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        return Ok(());
    };
    moat::Root::open(Path::new(&dir).join("missing"))?;
    Ok(())
}

//! Hostile values in a spec. Each is refused by the name of its field before anything is created,
//! or is accepted and gives a normal run.

use std::fs;
use std::path::Path;

use moat::audit::{LogState, Reader, verify};
use moat::runtime::scripted::{Call, Script};
use moat::spec::{InvalidSpec, RunRecord};
use moat::{Error, RunId, ShutdownMode};
use serde_json::json;

use crate::abandoned::{BOUND, contents};
use crate::bench::Bench;
use crate::spec_cases::{SECRET, accepted, long, refused};

/// The maximum size of an error, which goes to terminals and logs.
const MAX_ERROR_BYTES: usize = 1000;

/// Asserts that the refusal names the field, and has no secret, no second line and few bytes.
fn assert_refused(field: &str, error: impl Into<Error>) {
    let error = error.into();
    let texts = [error.chain(), format!("{error:?}")];
    let Error::InvalidSpec(InvalidSpec {
        field: named,
        reason,
        ..
    }) = error
    else {
        panic!("{field}: {}", texts[0]);
    };
    assert_eq!(named, field, "{reason}");
    for text in texts {
        assert!(!text.contains(SECRET), "{field}: {text}");
        assert!(
            text.len() < MAX_ERROR_BYTES,
            "{field}: {} bytes",
            text.len()
        );
        assert!(!text.contains(['\n', '\0']), "{field}: {text:?}");
    }
}

#[tokio::test]
async fn a_hostile_value_is_refused_by_its_field() {
    let bench = Bench::in_memory();
    let manager = bench.open_patiently().await;
    let before = contents(&bench.root());
    for (field, spec) in refused() {
        match manager.start(spec).await {
            Err(error) => assert_refused(field, error),
            Ok(run) => panic!("{field}: {:?} is accepted", record(run.dir()).settings),
        }
    }
    assert_eq!(contents(&bench.root()), before, "something was created");
    let asked = [Call::Prepare, Call::Create, Call::Attach].map(|call| bench.runtime.calls(call));
    assert_eq!(asked, [0; 3], "the engine was asked");
    assert!(manager.list().await.unwrap().is_empty());
}

#[test]
fn a_hostile_run_id_is_refused() {
    let long_ones = [65, 10_000].map(|length| long("x", length));
    let ids = [
        "",
        ".",
        "..",
        "../x",
        "../../etc",
        "a/b",
        "a/../b",
        "/",
        "/etc/passwd",
        "a\\b",
        "\0",
        "a\0",
        "a\0b",
        "a\n",
        " a",
        "a ",
        "-a",
        "--rm",
        "_a",
        ".a",
        ".git",
        "a:b",
        "a*",
        "a?",
        "~",
        "$HOME",
        "%2e%2e",
        "é",
        "a\u{301}",
        "аbc",
        "ａ",
        "a\u{200b}",
        "\u{202e}a",
        "１",
        "a\u{2044}b",
        "CON:",
        "root.json",
        &long_ones[0],
        &long_ones[1],
    ];
    for id in ids {
        assert_refused("id", RunId::new(id).unwrap_err());
        assert_refused("id", id.parse::<RunId>().unwrap_err());
        assert_refused("id", RunId::try_from(id.to_owned()).unwrap_err());
        // As in a file that was edited.
        let read: Result<RunId, _> = serde_json::from_value(json!(id));
        assert!(
            read.unwrap_err().to_string().contains("invalid id"),
            "{id:?}"
        );
    }
}

#[tokio::test]
async fn an_accepted_odd_value_makes_a_normal_run() {
    let bench = Bench::in_memory();
    let manager = bench.open_patiently().await;
    for (name, spec) in accepted() {
        bench.runtime.next(Script::new().stdout("x\n").exit(0));
        let run = manager.start(spec.clone()).await;
        let run = run.unwrap_or_else(|error| panic!("{name}: {}", error.chain()));
        let outcome = tokio::time::timeout(BOUND, run.wait()).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{name} hangs")).unwrap();
        let seal = outcome
            .sealed()
            .unwrap_or_else(|| panic!("{name}: {outcome}"));
        assert!(outcome.success() && seal.gaps == 0, "{name}: {outcome}");
        let audit = run.dir().join("logs.jsonl");
        let state = verify(&audit).unwrap().state;
        assert!(matches!(state, LogState::Sealed(_)), "{name}: {state:?}");
        assert_eq!(run.dir().parent(), Some(&*bench.root()), "{name}");
        // The record has the requested settings.
        assert_eq!(record(run.dir()).settings, *spec.settings(), "{name}");
        assert!(Reader::open(&audit).unwrap().all(|record| record.is_ok()));
        drop(run);
        manager.remove(&outcome.run).await.unwrap();
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn odd_values_survive_recovery_without_secrets() {
    let bench = Bench::in_memory();
    let manager = bench.open_patiently().await;
    let mut kept = Vec::new();
    for (name, spec) in accepted() {
        bench
            .runtime
            .next(Script::new().stdout("x\n").until_stopped());
        let run = manager.start(spec.clone()).await.unwrap();
        kept.push((name, run.id().clone(), spec));
    }
    manager.shutdown(ShutdownMode::Leave).await;
    for (path, bytes) in contents(&bench.root()) {
        let found = memchr::memmem::find(&bytes, SECRET.as_bytes());
        assert!(found.is_none(), "a secret is in {}", path.display());
    }

    let manager = bench.open_patiently().await;
    let recovered = bench.recovered(&manager).await;
    assert_eq!(recovered.len(), kept.len());
    for (name, id, spec) in kept {
        let run = manager.get(&id).await.unwrap();
        assert_eq!(record(run.dir()).settings, *spec.settings(), "{name}");
        let stopped = tokio::time::timeout(BOUND, run.stop(None)).await;
        let outcome = stopped.unwrap_or_else(|_| panic!("{name} hangs")).unwrap();
        assert!(outcome.sealed().is_some(), "{name}: {outcome}");
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

fn record(dir: &Path) -> RunRecord {
    serde_json::from_slice(&fs::read(dir.join("run.json")).unwrap()).unwrap()
}

/// A path that the system cannot represent is an error.
#[test]
fn a_path_with_a_nul_byte_is_refused() {
    let error = moat::Root::open(Path::new("/tmp/a\0b")).unwrap_err();
    assert!(matches!(error, Error::Storage { .. }), "{error}");
}

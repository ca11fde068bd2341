//! Every byte of the files of a run cut off or flipped, one at a time.

use std::path::Path;
use std::{fmt, fs};

use moat::audit::{LogState, verify};
use moat::state::RunStatus;
use moat::{Error, RunId, ShutdownMode, Verdict};

use crate::abandoned::{TEXT, contents, names, stop, text};
use crate::bench::Bench;

/// The flipped bits of a byte: one of the eight, or all of them in a soak.
fn bits(at: usize) -> Vec<u8> {
    match std::env::var_os("MOAT_SOAK") {
        Some(_) => (0..8).collect(),
        None => vec![(at % 8) as u8],
    }
}

fn cuts(length: usize) -> Vec<Harm> {
    (0..length).map(Harm::Cut).collect()
}

fn flips(length: usize) -> Vec<Harm> {
    (0..length)
        .flat_map(|at| bits(at).into_iter().map(move |bit| Harm::Flip(at, bit)))
        .collect()
}

#[derive(Debug, Clone, Copy)]
enum Harm {
    Cut(usize),
    Flip(usize, u8),
}

impl Harm {
    fn done_to(self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        match self {
            Self::Cut(at) => bytes.truncate(at),
            Self::Flip(at, bit) => bytes[at] ^= 1 << bit,
        }
        bytes
    }

    fn inflict(self, path: &Path) -> Vec<u8> {
        let bytes = self.done_to(&fs::read(path).unwrap());
        fs::write(path, &bytes).unwrap();
        bytes
    }
}

fn is_sealed(audit: &Path) -> bool {
    matches!(verify(audit).unwrap().state, LogState::Sealed(_))
}

/// The length of one file of a run. All runs here have equal lengths.
async fn length(file: &str) -> usize {
    let bench = Bench::in_memory();
    bench.leave_running(&["x00000".into()]).await;
    fs::read(bench.file("x00000", file)).unwrap().len()
}

/// Leaves one run per harm, harms each run once, and opens the root. Each run ends, or has a
/// problem.
async fn recover_from(file: &str, harms: Vec<Harm>, judge: impl Fn(&Bench, &Seen)) {
    for harms in harms.chunks(250) {
        let bench = Bench::in_memory();
        let names = names("x", harms.len());
        bench.leave_running(&names).await;
        let harmed: Vec<_> = harms
            .iter()
            .zip(&names)
            .map(|(harm, name)| harm.inflict(&bench.file(name, file)))
            .collect();
        let manager = bench.open_patiently().await;
        let runs = bench.recovered(&manager).await;
        assert_eq!(runs.len(), names.len(), "a run was passed over");
        let (bad, good): (Vec<_>, Vec<_>) =
            runs.into_iter().partition(|run| run.problem().is_some());
        let outcomes = stop(&good).await;
        manager.shutdown(ShutdownMode::Leave).await;
        let infos = bench.view().list().unwrap();
        assert_eq!(infos.len(), names.len());
        for (at, name) in names.iter().enumerate() {
            let problem = bad
                .iter()
                .find(|run| run.id().as_str() == *name)
                .map(|run| run.problem().unwrap());
            let outcome = outcomes.iter().find(|o| o.run.as_str() == *name).cloned();
            assert!(problem.is_some() || outcome.is_some());
            let seen = Seen {
                harm: harms[at],
                name: name.clone(),
                bytes: harmed[at].clone(),
                problem,
                outcome,
            };
            if seen.problem.is_some() {
                assert_eq!(infos[at].status, RunStatus::Damaged, "{seen:?}");
                assert!(infos[at].problem.is_some(), "{seen:?}");
                assert_eq!(fs::read(bench.file(name, file)).unwrap(), seen.bytes);
            }
            judge(&bench, &seen);
        }
    }
}

struct Seen {
    harm: Harm,
    name: String,
    bytes: Vec<u8>,
    problem: Option<String>,
    outcome: Option<moat::Outcome>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = String::from_utf8_lossy(&self.bytes);
        write!(f, "{:?}, {:?}", self.harm, self.problem)?;
        if let Some(outcome) = &self.outcome {
            write!(f, ", {outcome}")?;
        }
        write!(f, ", in {bytes}")
    }
}

/// Recovery needs only the audit. A record that cannot be trusted is kept in another file.
fn the_record_does_not_matter(bench: &Bench, seen: &Seen) {
    let Some(outcome) = &seen.outcome else {
        return;
    };
    assert_eq!(outcome.code(), Some(143), "{seen:?}");
    assert_eq!(
        outcome.sealed().unwrap().verdict,
        Verdict::Complete,
        "{seen:?}"
    );
    let audit = bench.file(&seen.name, "logs.jsonl");
    assert_eq!(text(&audit), TEXT, "{seen:?}");
    assert!(is_sealed(&audit), "{seen:?}");
    let aside = fs::read(bench.file(&seen.name, "run.json.damaged-1")).ok();
    match serde_json::from_slice::<serde_json::Value>(&seen.bytes) {
        Err(_) => assert_eq!(aside.as_ref(), Some(&seen.bytes), "{seen:?}"),
        Ok(_) => assert!(aside.is_none_or(|aside| aside == seen.bytes), "{seen:?}"),
    }
}

#[tokio::test]
async fn a_record_cut_anywhere_loses_nothing() {
    let harms = cuts(length("run.json").await);
    recover_from("run.json", harms, |bench, seen| {
        assert_eq!(seen.problem, None, "{seen:?}");
        the_record_does_not_matter(bench, seen);
    })
    .await;
}

#[tokio::test]
async fn a_record_with_a_flipped_bit_loses_nothing() {
    let harms = flips(length("run.json").await);
    recover_from("run.json", harms, the_record_does_not_matter).await;
}

/// Invariant 4: the engine's log replaces what was cut off.
#[tokio::test]
async fn an_open_audit_cut_anywhere_is_refilled() {
    let harms = cuts(length("logs.jsonl").await);
    recover_from("logs.jsonl", harms, |bench, seen| {
        assert_eq!(seen.problem, None, "{seen:?}");
        the_record_of_a_refilled_audit(bench, seen);
    })
    .await;
}

fn the_record_of_a_refilled_audit(bench: &Bench, seen: &Seen) {
    let outcome = seen.outcome.as_ref().unwrap();
    assert_eq!(outcome.code(), Some(143), "{seen:?}");
    let audit = bench.file(&seen.name, "logs.jsonl");
    assert_eq!(text(&audit), TEXT, "{seen:?}");
    assert_eq!(
        outcome.sealed().unwrap().verdict,
        Verdict::Complete,
        "{seen:?}"
    );
    assert!(is_sealed(&audit), "{seen:?}");
}

/// Invariant 7: a flipped bit may look like other output. The seal must not call that complete.
#[tokio::test]
async fn a_flipped_bit_is_never_falsely_complete() {
    let harms = flips(length("logs.jsonl").await);
    recover_from("logs.jsonl", harms, |bench, seen| {
        let Some(outcome) = &seen.outcome else {
            return;
        };
        let audit = bench.file(&seen.name, "logs.jsonl");
        let seal = outcome.sealed().unwrap();
        assert!(is_sealed(&audit), "{seen:?}");
        if seal.verdict == Verdict::Complete {
            assert_eq!(text(&audit), TEXT, "{seen:?}");
            assert_eq!(outcome.code(), Some(143), "{seen:?}");
        }
    })
    .await;
}

/// Invariant 2: a seal in `run.json` counts only with the audit file that it describes.
#[tokio::test]
async fn a_sealed_audit_cut_anywhere_is_damaged() {
    let bench = Bench::in_memory();
    let outcome = bench.leave_sealed("cut").await;
    let id = outcome.run.clone();
    let (audit, record) = (
        bench.file("cut", "logs.jsonl"),
        bench.file("cut", "run.json"),
    );
    let (whole, said) = (fs::read(&audit).unwrap(), fs::read(&record).unwrap());
    let manager = bench.open_patiently().await;
    let root = bench.view();
    for harm in cuts(whole.len()) {
        fs::write(&audit, harm.done_to(&whole)).unwrap();
        assert!(!is_sealed(&audit), "{harm:?}");
        let info = root.info(&id).unwrap();
        assert_eq!(info.status, RunStatus::Damaged, "{harm:?}");
        let run = manager.get(&id).await.unwrap();
        assert_eq!(run.problem(), info.problem, "{harm:?}");
        let waited = run.wait().await;
        assert!(matches!(waited, Err(Error::Damaged { .. })), "{waited:?}");
        // The exit was published once and is definitive.
        assert_eq!(run.wait_exit().await.unwrap(), outcome.ending);
    }
    assert!(bench.recovered(&manager).await.is_empty());
    assert_eq!(fs::read(&record).unwrap(), said);
    fs::write(&audit, &whole).unwrap();
    assert_eq!(root.info(&id).unwrap().problem, None);
    assert_eq!(
        manager.wait(&id).await.unwrap().sealed(),
        outcome.sealed(),
        "as it was"
    );
}

/// Invariant 4: `end` carries the whole outcome and overrides `run.json`.
#[tokio::test]
async fn a_flipped_bit_never_lists_another_seal() {
    let bench = Bench::in_memory();
    let outcome = bench.leave_sealed("flip").await;
    let root = bench.view();
    let manager = bench.open_patiently().await;
    let audit = bench.file("flip", "logs.jsonl");
    let whole = fs::read(&audit).unwrap();
    let mut reported = 0;
    for harm in flips(whole.len()) {
        fs::write(&audit, harm.done_to(&whole)).unwrap();
        assert!(!is_sealed(&audit), "{harm:?}");
        let info = root.info(&outcome.run).unwrap();
        // Only `verify` reads the whole file. The list has the original seal, or a problem.
        match info.problem {
            Some(_) => assert_eq!(info.status, RunStatus::Damaged, "{harm:?}"),
            None => assert_eq!(info.seal.as_ref(), outcome.sealed(), "{harm:?}"),
        }
        reported += usize::from(info.problem.is_some());
    }
    assert!(reported > 100, "{reported}");
    fs::write(&audit, &whole).unwrap();

    let record = bench.file("flip", "run.json");
    let whole = fs::read(&record).unwrap();
    for harm in flips(whole.len()) {
        fs::write(&record, harm.done_to(&whole)).unwrap();
        let info = root.info(&outcome.run).unwrap();
        if info.problem.is_none() {
            assert_eq!(info.seal.as_ref(), outcome.sealed(), "{harm:?}");
            if let Ok(outcome_again) = manager.wait(&outcome.run).await {
                assert_eq!(outcome_again.sealed(), outcome.sealed(), "{harm:?}");
            }
            fs::write(&record, &whole).unwrap();
        }
    }
}

/// A crash between the seal and `run.json`, and then a flipped bit.
#[tokio::test]
async fn a_damaged_seal_is_reported_and_unchanged() {
    let bench = Bench::in_memory();
    let outcome = bench.leave_sealed("flip").await;
    let (audit, record) = (
        bench.file("flip", "logs.jsonl"),
        bench.file("flip", "run.json"),
    );
    let whole = fs::read(&audit).unwrap();
    let mut said: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    said.as_object_mut().unwrap().remove("seal");
    let said = said.to_string();
    for harm in flips(whole.len()).into_iter().step_by(5) {
        let harmed = harm.done_to(&whole);
        fs::write(&audit, &harmed).unwrap();
        fs::write(&record, &said).unwrap();
        let manager = bench.open_patiently().await;
        let runs = bench.recovered(&manager).await;
        assert!(runs[0].problem().is_some(), "{harm:?}");
        let waited = runs[0].wait().await;
        assert!(matches!(waited, Err(Error::Damaged { .. })), "{waited:?}");
        manager.shutdown(ShutdownMode::Leave).await;
        let info = bench.view().info(&outcome.run).unwrap();
        assert_eq!(info.status, RunStatus::Damaged, "{harm:?} {info:?}");
        assert!(fs::read(&audit).unwrap() == harmed, "{harm:?}");
        assert_eq!(fs::read_to_string(&record).unwrap(), said, "{harm:?}");
    }
}

/// The root file is short, so every bit is flipped.
#[tokio::test]
async fn a_damaged_root_file_recovers_no_foreign_run() {
    let bench = Bench::in_memory();
    bench.leave_running(&["run".into()]).await;
    let path = bench.root().join("root.json");
    let whole = fs::read(&path).unwrap();
    let mut of_run = contents(&bench.root().join("run"));
    let all = (0..whole.len()).flat_map(|at| (0..8).map(move |bit| Harm::Flip(at, bit)));
    // The newline at the end is optional.
    for harm in cuts(whole.len() - 1).into_iter().chain(all) {
        fs::write(&path, harm.done_to(&whole)).unwrap();
        let opened = bench.builder_here().open().await;
        match opened {
            Err(error) => assert!(error.to_string().contains("root.json"), "{error}"),
            Ok(manager) if manager.root().id().as_str() == root_id(&whole) => {
                // The harm changed only case, space, or a skipped field.
                bench.recovered(&manager).await;
                manager.shutdown(ShutdownMode::Leave).await;
                of_run = contents(&bench.root().join("run"));
            }
            Ok(manager) => {
                let runs = bench.recovered(&manager).await;
                let problem = runs[0].problem().unwrap();
                assert!(problem.contains("it belongs to"), "{problem}");
                manager.shutdown(ShutdownMode::Leave).await;
            }
        }
        assert_eq!(contents(&bench.root().join("run")), of_run, "{harm:?}");
        assert!(fs::read(&path).unwrap() == harm.done_to(&whole));
    }
    fs::write(&path, &whole).unwrap();
    let manager = bench.open_patiently().await;
    let runs = bench.recovered(&manager).await;
    assert_eq!(runs[0].problem(), None);
    assert_eq!(runs[0].id(), &RunId::new("run").unwrap());
    stop(&runs).await;
}

fn root_id(file: &[u8]) -> String {
    let root: serde_json::Value = serde_json::from_slice(file).unwrap();
    root["root"].as_str().unwrap().to_owned()
}

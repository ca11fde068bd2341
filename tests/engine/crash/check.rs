//! Invariants that hold in the end, whichever process was killed.

use std::path::Path;
use std::{fmt, fs};

use moat::spec::KeepContainer;
use moat::{Root, RunId};
use testkit::audit::Audit;

use super::plan::Planned;

/// The figures of rounds and the problems in them.
#[derive(Debug, Default)]
pub struct Tally {
    pub kills: u32,
    pub lines: u64,
    pub lost: u64,
    pub doubled: u64,
    pub unsealed: u64,
    pub wrong: u64,
    pub left_behind: u64,
    pub problems: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "kills {}, lines {}, lost {}, doubled {}, unsealed {}, wrong verdicts {}, left over {}",
            self.kills,
            self.lines,
            self.lost,
            self.doubled,
            self.unsealed,
            self.wrong,
            self.left_behind
        )
    }
}

impl Tally {
    pub fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    pub fn add(&mut self, other: Self) {
        self.kills += other.kills;
        self.lines += other.lines;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.unsealed += other.unsealed;
        self.wrong += other.wrong;
        self.left_behind += other.left_behind;
        self.problems.extend(other.problems);
    }
}

/// Compares the content of `root` with the known output of `runs`.
pub fn check(root: &Path, gate: &Path, runs: &[Planned], tally: &mut Tally) {
    let view = Root::open(root).unwrap();
    for entry in fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "root.json" && !runs.iter().any(|run| run.id == name) {
            tally.left_behind += 1;
            tally.problem(format!("{name} is left in the root"));
        }
    }
    for run in runs {
        let id = RunId::new(&run.id).unwrap();
        let dir = view.dir(&id);
        let began = gate.join(format!("began-{id}")).exists();
        if !dir.exists() {
            // The process died before it created a directory, so no container may exist.
            if began {
                tally.unsealed += 1;
                tally.problem(format!("{id} ran, and has no audit"));
            }
            continue;
        }
        for entry in fs::read_dir(&dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = ["run.json", "logs.jsonl", "lock"].contains(&name.as_str());
            if !known && !name.starts_with("torn-") {
                tally.left_behind += 1;
                tally.problem(format!("{id}: the file {name} is left"));
            }
        }
        let info = view.info(&id).unwrap();
        if info.seal.is_none() || info.owned || info.problem.is_some() {
            tally.unsealed += 1;
            tally.problem(format!("{id} is not sealed: {info:?}"));
            continue;
        }
        match Audit::read(&view.audit(&id)) {
            Ok(audit) => check_audit(run, began, &audit, tally),
            Err(error) => {
                tally.unsealed += 1;
                tally.problem(format!("{id}: {error}"));
            }
        }
    }
}

fn check_audit(run: &Planned, began: bool, audit: &Audit, tally: &mut Tally) {
    let id = &run.id;
    let mut wrong = |problem: String| {
        tally.wrong += 1;
        tally
            .problems
            .push(format!("{id}: {problem}: {}", audit.end));
    };
    if audit.all("start").len() != 1 {
        wrong("it has not one start".into());
    }
    let state = audit.end["exit"]["state"].as_str().unwrap_or_default();
    let code = audit.end["exit"]["code"].as_u64();
    match began {
        true if (state, code) != ("exited", Some(u64::from(run.code))) => {
            wrong("it ran to its end".into());
        }
        false if !["not_created", "failed_to_start"].contains(&state) => {
            wrong("it never ran".into());
        }
        _ => {}
    }
    if audit.verdict() != "complete" || !audit.all("gap").is_empty() {
        wrong(format!("nothing is missing: {:?}", audit.events));
    }
    for (stream, expected) in run.expected() {
        let expected = if began { expected } else { Vec::new() };
        compare(id, stream, audit.stream(stream), &expected, tally);
    }
}

/// Counts missing and surplus lines. Lines out of order, or changed, count as both.
fn compare(id: &str, stream: &str, found: &[u8], expected: &[u8], tally: &mut Tally) {
    let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    tally.lines += lines(expected);
    if found == expected {
        return;
    }
    let same = found
        .iter()
        .zip(expected)
        .take_while(|(a, b)| a == b)
        .count();
    let (lost, doubled) = (lines(&expected[same..]), lines(&found[same..]));
    tally.lost += lost.saturating_sub(doubled).max(u64::from(lost > 0));
    tally.doubled += doubled.saturating_sub(lost).max(u64::from(doubled > 0));
    tally.problem(format!(
        "{id}: {stream} differs from byte {same} on: {} bytes in the place of {}",
        found.len(),
        expected.len()
    ));
}

/// True if the container of a run is to be kept.
pub fn is_kept(root: &Path, run: &Planned) -> bool {
    let id = RunId::new(&run.id).unwrap();
    let Ok(info) = Root::open(root).and_then(|root| root.info(&id)) else {
        return false;
    };
    // The settings of a run are unknown if its process died before recording them.
    let (Some(seal), Some(record)) = (info.seal, info.record) else {
        return false;
    };
    if seal.exit.never_started() {
        return false;
    }
    match record.settings.keep {
        KeepContainer::Always => true,
        KeepContainer::OnFailure => run.code != 0,
        _ => false,
    }
}

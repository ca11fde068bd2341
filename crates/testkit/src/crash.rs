//! Kills of processes that embed moat: the runs that they start, and what holds in the end,
//! whichever process was killed.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::audit::Audit;
use crate::harness::Failed;
use crate::sequence;

/// Which containers stay after the seal, as in moat's `KeepContainer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// All.
    Always,
    /// None.
    Never,
    /// Those whose command failed.
    OnFailure,
    /// Those whose audit has a gap.
    OnGap,
}

impl Keep {
    /// Returns the setting of moat, which this crate does not name.
    ///
    /// # Panics
    ///
    /// If `T` is not `KeepContainer`.
    pub fn setting<T: DeserializeOwned>(self) -> T {
        let setting = serde_json::to_value(self).and_then(serde_json::from_value);
        setting.expect("the names are those of moat")
    }
}

/// A run with known output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Planned {
    /// The id of the run.
    pub id: String,
    /// The number of lines, on stdout and on stderr.
    pub lines: u64,
    /// The lines in one write.
    pub burst: u64,
    /// The pause after each burst.
    pub delay_ms: u64,
    /// The length of one more line on stdout.
    pub long: Option<u64>,
    /// True for a terminal.
    pub tty: bool,
    /// What happens to the container.
    pub keep: Keep,
    /// The exit code.
    pub code: u8,
    /// True if the command does not exist.
    pub missing: bool,
    /// True if the second half waits for `/gate/go`.
    pub gated: bool,
}

impl Planned {
    /// A run of a few tenths of a second.
    pub fn plain() -> Self {
        Self {
            id: "run-0".into(),
            lines: 100,
            burst: 10,
            delay_ms: 30,
            long: Some(40_000),
            tty: false,
            keep: Keep::OnGap,
            code: 7,
            missing: false,
            gated: false,
        }
    }

    /// A run that outlasts the recovering processes. Only a running container is waited for and has
    /// its log followed.
    pub fn lasting() -> Self {
        Self {
            gated: true,
            ..Self::plain()
        }
    }

    /// Run `number` of a round.
    pub fn random(rng: &mut fastrand::Rng, number: u64) -> Self {
        let mut run = Self {
            id: format!("run-{number}"),
            code: rng.u8(0..4),
            ..Self::plain()
        };
        (run.lines, run.burst, run.delay_ms) = match rng.u32(0..5) {
            0 => (rng.u64(0..3), 1, 0),
            1 => (rng.u64(3_000..6_000), 100, 0),
            2 => (rng.u64(1..300), 1, 1),
            _ => (rng.u64(1..1_000), rng.u64(1..50), rng.u64(1..20)),
        };
        run.long = (rng.u32(0..3) == 0).then(|| rng.u64(1..100_000));
        run.missing = rng.u32(0..8) == 0;
        run.tty = rng.u32(0..4) == 0;
        run.keep = match rng.u32(0..6) {
            0 => Keep::Always,
            1 => Keep::Never,
            2 => Keep::OnFailure,
            _ => Keep::OnGap,
        };
        run
    }

    /// The command. The run reports its start and its end by files in `/gate`, so that no trial
    /// depends on an engine or a log for that.
    pub fn command(&self) -> Vec<String> {
        if self.missing {
            return vec!["missing".into()];
        }
        let Self {
            id,
            lines,
            burst,
            delay_ms,
            code,
            ..
        } = self;
        let mut steps = format!("write /gate/began-{id} x + ");
        if let Some(length) = self.long {
            steps.push_str(&format!("long {length} + "));
        }
        let shape = format!("--stream both --burst {burst} --delay-ms {delay_ms}");
        if self.gated {
            let half = lines / 2;
            let (from, rest) = (half + 1, lines - half);
            steps.push_str(&format!(
                "lines {half} {shape} + await /gate/go + lines {rest} --from {from} {shape} + "
            ));
        } else {
            steps.push_str(&format!("lines {lines} {shape} + "));
        }
        steps.push_str(&format!("write /gate/done-{id} x + exit {code}"));
        steps.split(' ').map(Into::into).collect()
    }

    /// The output on each stream.
    ///
    /// # Panics
    ///
    /// If the output is not UTF-8.
    pub fn expected(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut out = Vec::new();
        if let Some(length) = self.long {
            out.extend(sequence::long(length as usize, false));
            out.push(b'\n');
        }
        let err = sequence::lines("err", self.lines, 64);
        if !self.tty {
            out.extend(sequence::lines("out", self.lines, 64));
            return vec![("stdout", out), ("stderr", err)];
        }
        // On a terminal, the two streams take turns by burst.
        let mut at = 1;
        while at <= self.lines {
            let last = (at + self.burst.max(1)).min(self.lines + 1);
            for stream in ["out", "err"] {
                for number in at..last {
                    out.extend(sequence::line(stream, number, 64).bytes());
                    out.push(b'\n');
                }
            }
            at = last;
        }
        let text = String::from_utf8(out).expect("lines are text");
        vec![("tty", text.replace('\n', "\r\n").into_bytes())]
    }
}

/// The figures of rounds and the problems in them.
#[derive(Debug, Default)]
pub struct Tally {
    /// Processes that were killed.
    pub kills: u32,
    /// Lines that the commands printed.
    pub lines: u64,
    /// Lines that no audit has.
    pub lost: u64,
    /// Lines that an audit has twice.
    pub doubled: u64,
    /// Runs without a sealed audit.
    pub unsealed: u64,
    /// Audits whose verdict, ending or records are wrong.
    pub wrong: u64,
    /// Containers and files that should not be there.
    pub left_behind: u64,
    /// A sentence for each problem.
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
    /// Adds a problem.
    pub fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Adds the containers of a root if they are not as many as the policies of its runs keep.
    pub fn containers(&mut self, left: usize, kept: usize) {
        if left != kept {
            self.left_behind += 1;
            self.problem(format!(
                "{left} containers are left, {kept} were to be kept"
            ));
        }
    }

    /// Adds the figures of another round.
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

    /// Returns success if nothing is lost, doubled, unsealed, wrong or left over.
    ///
    /// # Errors
    ///
    /// The figures and all problems.
    pub fn clean(&self) -> Result<(), Failed> {
        match self.problems.as_slice() {
            [] => Ok(()),
            problems => Err(format!("{self}\n{}", problems.join("\n")).into()),
        }
    }

    /// Compares the content of `root` with the known output of `runs`, whose commands saw `gate` as
    /// `/gate`. `sealed` returns an error if moat does not report a run as sealed.
    ///
    /// # Panics
    ///
    /// If the root cannot be read.
    pub fn check(
        &mut self,
        root: &Path,
        gate: &Path,
        runs: &[Planned],
        sealed: impl Fn(&str) -> Result<(), String>,
    ) {
        for name in names(root) {
            let is_of_root = ["root.json", "ledger.jsonl", ".ledger-reserve"].contains(&&*name);
            if !is_of_root && !runs.iter().any(|run| run.id == name) {
                self.left_behind += 1;
                self.problem(format!("{name} is left in the root"));
            }
        }
        for run in runs {
            let id = &run.id;
            let dir = root.join(id);
            let began = gate.join(format!("began-{id}")).exists();
            if !dir.exists() {
                // The process died before it created a directory, so no container may exist.
                if began {
                    self.unsealed += 1;
                    self.problem(format!("{id} ran, and has no audit"));
                }
                continue;
            }
            for name in names(&dir) {
                let known = ["run.json", "logs.jsonl", "lock"].contains(&name.as_str());
                if !known && !name.starts_with("torn-") {
                    self.left_behind += 1;
                    self.problem(format!("{id}: the file {name} is left"));
                }
            }
            let audit = sealed(id).and_then(|()| Audit::read(&dir.join("logs.jsonl")));
            match audit {
                Ok(audit) => self.check_audit(run, began, &audit),
                Err(error) => {
                    self.unsealed += 1;
                    self.problem(format!("{id}: {error}"));
                }
            }
        }
    }

    fn check_audit(&mut self, run: &Planned, began: bool, audit: &Audit) {
        let id = &run.id;
        let mut wrong = |problem: String| {
            self.wrong += 1;
            self.problems
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
            false if !NEVER_STARTED.contains(&state) => {
                wrong("it never ran".into());
            }
            _ => {}
        }
        if audit.verdict() != "complete" || !audit.all("gap").is_empty() {
            wrong(format!("nothing is missing: {:?}", audit.events));
        }
        for (stream, expected) in run.expected() {
            let expected = if began { expected } else { Vec::new() };
            self.compare(id, stream, audit.stream(stream), &expected);
        }
    }

    /// Counts missing and surplus lines. Lines out of order, or changed, count as both.
    fn compare(&mut self, id: &str, stream: &str, found: &[u8], expected: &[u8]) {
        let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.lines += lines(expected);
        if found == expected {
            return;
        }
        let same = found
            .iter()
            .zip(expected)
            .take_while(|(a, b)| a == b)
            .count();
        let (lost, doubled) = (lines(&expected[same..]), lines(&found[same..]));
        self.lost += lost.saturating_sub(doubled).max(u64::from(lost > 0));
        self.doubled += doubled.saturating_sub(lost).max(u64::from(doubled > 0));
        self.problem(format!(
            "{id}: {stream} differs from byte {same} on: {} bytes in the place of {}",
            found.len(),
            expected.len()
        ));
    }
}

/// The number of kills after which the figures are printed.
const PROGRESS: u32 = 25;

/// The states of a run whose command never started.
const NEVER_STARTED: [&str; 2] = ["failed_to_start", "not_created"];

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the directory can be read");
    entries
        .map(|entry| {
            let name = entry.expect("the directory can be read").file_name();
            name.into_string().expect("the names are text")
        })
        .collect()
}

/// The number of containers that the policies of these runs keep.
pub fn kept(root: &Path, runs: &[Planned]) -> usize {
    runs.iter().filter(|run| is_kept(root, run)).count()
}

fn is_kept(root: &Path, run: &Planned) -> bool {
    // The settings of a run are unknown if its process died before recording them.
    let Ok(text) = fs::read_to_string(root.join(&run.id).join("run.json")) else {
        return false;
    };
    let Ok(file) = serde_json::from_str::<Value>(&text) else {
        return false;
    };
    match file["seal"]["exit"]["state"].as_str() {
        None => return false,
        Some(state) if NEVER_STARTED.contains(&state) => return false,
        Some(_) => {}
    }
    match file["keep"].as_str() {
        Some("always") => true,
        Some("on_failure") => run.code != 0,
        _ => false,
    }
}

/// Plays rounds, `at_once` at a time, until `kills` processes were killed, and prints the figures.
///
/// Round `n` has the seed `seed + n`.
///
/// # Panics
///
/// If a round panics.
pub fn campaign(
    seed: u64,
    kills: u32,
    at_once: usize,
    play: impl Fn(u64) -> Tally + Sync,
) -> Tally {
    let begin = Instant::now();
    let (total, rounds) = (Mutex::new(Tally::default()), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while total.lock().expect("no round panicked").kills < kills {
                    let number = rounds.fetch_add(1, Ordering::Relaxed);
                    let seed = seed.wrapping_add(number);
                    let mut tally = play(seed);
                    for problem in &mut tally.problems {
                        *problem = format!("seed {seed}: {problem}");
                    }
                    let mut total = total.lock().expect("no round panicked");
                    let before = total.kills;
                    total.add(tally);
                    if before / PROGRESS != total.kills / PROGRESS {
                        println!("{total}; {} s", begin.elapsed().as_secs());
                    }
                }
            });
        }
    });
    let tally = total.into_inner().expect("no round panicked");
    println!(
        "{tally}; seed {seed}, {} rounds, {} s",
        rounds.into_inner(),
        begin.elapsed().as_secs()
    );
    tally
}

/// The number in an environment variable, or `default`.
///
/// # Errors
///
/// If the variable has another value.
pub fn number(variable: &str, default: u64) -> Result<u64, Failed> {
    match std::env::var(variable) {
        Ok(text) => Ok(text
            .parse()
            .map_err(|error| format!("{variable}={text}: {error}"))?),
        Err(_) => Ok(default),
    }
}

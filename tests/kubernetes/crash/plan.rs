//! Which runs a round has, and when the processes that own them are killed.

use testkit::crash::Planned;

/// The records after which a process that starts runs is killed.
const START: &[&str] = &[
    "\"type\":\"start\"",
    "\"type\":\"started\"",
    "00000001 ",
    "00000100 ",
    "\"type\":\"end\"",
];
/// The records after which a recovering process is killed.
const RECOVERY: &[&str] = &["\"type\":\"resume\"", "\"type\":\"end\""];
/// The maximum time until a kill, in milliseconds: longer than a run takes.
const LIFE_MS: u64 = 8_000;

/// When a process is killed.
#[derive(Debug, Clone)]
pub struct Death {
    /// The text in the audit file of the first run that is awaited, if any.
    pub record: Option<&'static str>,
    /// The time after the record, or after the start of the process.
    pub after_ms: u64,
}

/// Runs that one process starts at once, and when this process and each recovering process is
/// killed.
#[derive(Debug, Clone)]
pub struct Plan {
    pub runs: Vec<Planned>,
    /// The first is for the process that starts the runs.
    pub deaths: Vec<Death>,
}

impl Plan {
    /// The plan of a seed.
    pub fn random(seed: u64) -> Self {
        let rng = &mut fastrand::Rng::with_seed(seed);
        let runs = (0..rng.u64(2..=4)).map(|number| Planned::random(rng, number));
        let mut runs: Vec<_> = runs.collect();
        // Some runs outlast the kills. Deaths wait for the end of the first run.
        for run in runs.iter_mut().skip(1).filter(|run| !run.tty) {
            run.gated = rng.bool();
        }
        let mut deaths = vec![random_death(rng, START)];
        for _ in 0..rng.u32(0..=2) {
            deaths.push(random_death(rng, RECOVERY));
        }
        Self { runs, deaths }
    }
}

fn random_death(rng: &mut fastrand::Rng, records: &[&'static str]) -> Death {
    match rng.u32(0..3) {
        0 => Death {
            record: None,
            after_ms: rng.u64(0..LIFE_MS),
        },
        _ => Death {
            record: rng.choice(records).copied(),
            after_ms: rng.u64(0..1_000),
        },
    }
}

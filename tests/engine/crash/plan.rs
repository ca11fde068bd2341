//! Which runs a round has, and where the processes that own them are killed.

use serde::{Deserialize, Serialize};
use testkit::crash::Planned;

/// The points at which a process can be killed, in the order of one run.
pub const START: &[&str] = &[
    "before prepare",
    "before open",
    "after open",
    "before create",
    "during create",
    "after create",
    "before tap",
    "after tap",
    "during start",
    "after start",
    "before append",
    "after append",
    "after wait",
    "after evidence",
    "before seal",
    "after seal",
    "before remove",
    "during remove",
    "after remove",
];

/// The points at which recovering processes are killed, and how many of them. First comes the point
/// at which the process died that had started the run.
pub const RECOVERY: &[(&str, &str, usize)] = &[
    ("before open", "before resume", 2),
    ("before create", "after resume", 2),
    ("after open", "before find", 2),
    ("after create", "after find", 2),
    ("after create", "before remove", 2),
    ("after create", "after remove", 1),
    ("before tap", "before inspect", 2),
    ("before tap", "after remove", 1),
    ("after start", "after inspect", 2),
    ("after append", "before append", 2),
    ("after append", "after append", 2),
    ("after append", "before follow", 2),
    ("after append", "during follow", 2),
    ("after append", "after wait", 1),
    ("after wait", "before replay", 2),
    ("after wait", "during replay", 2),
    ("after wait", "before seal", 2),
    ("before seal", "after seal", 1),
    ("after seal", "before remove", 2),
    ("after seal", "after remove", 1),
];

/// Limits on the length of files. The write that would pass the limit writes a part and kills the
/// process. The first limits hit the temporary form of `run.json`, the others the audit's `start`
/// record and batches of output.
pub const TORN: &[u64] = &[0, 100, 1_000, 2_000, 5_000, 20_000];

/// Where a process is killed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Deadly {
    /// At a point, the `nth` time that it is reached. `during`: this many milliseconds into the
    /// call.
    Point {
        name: String,
        nth: u32,
        after_ms: u64,
    },
    /// In the write that would make a file longer than this.
    Torn(u64),
    /// From outside, this many milliseconds after its start.
    Moment(u64),
}

impl Deadly {
    pub fn at(point: &str) -> Self {
        Self::Point {
            name: point.into(),
            nth: 1,
            after_ms: 1,
        }
    }
}

/// Runs that one process starts, and where this process and each recovering process is killed.
#[derive(Debug, Clone)]
pub struct Plan {
    pub runs: Vec<Planned>,
    /// The first is for the process that starts the runs.
    pub deaths: Vec<Deadly>,
}

impl Plan {
    /// The plan of a seed.
    pub fn random(seed: u64) -> Self {
        let rng = &mut fastrand::Rng::with_seed(seed);
        let runs = (0..rng.u64(1..=3)).map(|number| Planned::random(rng, number));
        let runs: Vec<_> = runs.collect();
        let mut deaths = vec![random_death(rng, START)];
        let recoveries: Vec<_> = RECOVERY.iter().map(|&(_, point, _)| point).collect();
        for _ in 0..rng.u32(0..=3) {
            deaths.push(random_death(rng, &recoveries));
        }
        Self { runs, deaths }
    }

    /// True if the first process dies at this point.
    pub fn dies_at(&self, point: &str) -> bool {
        matches!(self.deaths.first(), Some(Deadly::Point { name, .. }) if name == point)
    }

    /// True if a request for a container may outlive its sender.
    pub fn may_outlive(&self) -> bool {
        self.runs.len() > 1
            || self.dies_at("during create")
            || matches!(self.deaths.first(), Some(Deadly::Moment(_)))
    }
}

fn random_death(rng: &mut fastrand::Rng, points: &[&str]) -> Deadly {
    match rng.u32(0..10) {
        0..=4 => Deadly::Moment(rng.u64(0..700)),
        // Most files are short, and most writes come early.
        5 => Deadly::Torn(1 << rng.u64(0..20)),
        _ => Deadly::Point {
            name: rng.choice(points).copied().unwrap_or_default().into(),
            nth: [1, 1, 1, 2, 3, 7][rng.usize(0..6)],
            after_ms: rng.u64(0..20),
        },
    }
}

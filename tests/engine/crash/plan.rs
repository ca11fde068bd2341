//! Which runs a round has, and where the processes that own them are killed.

use moat::spec::KeepContainer;
use serde::{Deserialize, Serialize};
use testkit::sequence;

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

/// A run with known output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Planned {
    pub id: String,
    /// The number of lines, on stdout and on stderr.
    pub lines: u64,
    pub burst: u64,
    pub delay_ms: u64,
    /// The length of one more line on stdout.
    pub long: Option<u64>,
    pub tty: bool,
    pub keep: KeepContainer,
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
            keep: KeepContainer::OnGap,
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
        let text = String::from_utf8(out).unwrap().replace('\n', "\r\n");
        vec![("tty", text.into_bytes())]
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
        let runs = (0..rng.u64(1..=3)).map(|number| random_run(rng, number));
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

fn random_run(rng: &mut fastrand::Rng, number: u64) -> Planned {
    let mut run = Planned {
        id: format!("run-{number}"),
        code: rng.u8(0..4),
        ..Planned::plain()
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
        0 => KeepContainer::Always,
        1 => KeepContainer::Never,
        2 => KeepContainer::OnFailure,
        _ => KeepContainer::OnGap,
    };
    run
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

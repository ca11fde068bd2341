//! The state of each step while the build runs.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::report::Status;

/// Maximum number of names in a line about the running steps.
const MAX_NAMES: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its dependencies have not ended.
    Blocked,
    /// Its run was requested, and has not started.
    Waiting,
    Running {
        since: Instant,
    },
    Ended(Status),
}

/// The steps of a build, in the order of the file.
#[derive(Debug)]
pub struct Tracker {
    steps: Mutex<Vec<(String, Phase)>>,
}

impl Tracker {
    pub fn new(names: impl Iterator<Item = String>) -> Self {
        Self {
            steps: Mutex::new(names.map(|name| (name, Phase::Blocked)).collect()),
        }
    }

    pub fn set(&self, index: usize, phase: Phase) {
        self.lock()[index].1 = phase;
    }

    /// The steps to show in at most `rows` rows: all in their order, or else failures first.
    ///
    /// If not all steps fit, those that passed or were skipped are not shown.
    pub fn visible(&self, rows: usize) -> Vec<usize> {
        let steps = self.lock();
        if steps.len() <= rows {
            return (0..steps.len()).collect();
        }
        let of = |wanted: fn(&Phase) -> bool| {
            let steps = steps.iter().enumerate();
            steps.filter_map(move |(index, (_, phase))| wanted(phase).then_some(index))
        };
        let is_running = |phase: &Phase| matches!(phase, Phase::Running { .. });
        // Failures leave half of the rows to running steps.
        let room = rows - of(is_running).count().min(rows / 2);
        let failed = of(|phase| matches!(phase, Phase::Ended(status) if status.fails_build()));
        let rest = of(is_running)
            .chain(of(|phase| *phase == Phase::Waiting))
            .chain(of(|phase| *phase == Phase::Blocked));
        failed.take(room).chain(rest).take(rows).collect()
    }

    /// The number of steps in each state, on one line.
    pub fn totals(&self) -> String {
        let steps = self.lock();
        let mut counts: Vec<(String, usize)> = Vec::new();
        let mut phases: Vec<_> = steps.iter().map(|(_, phase)| *phase).collect();
        phases.sort_by_key(|phase| match phase {
            Phase::Ended(status) => *status as u8,
            Phase::Running { .. } => u8::MAX - 1,
            Phase::Waiting | Phase::Blocked => u8::MAX,
        });
        for phase in phases {
            let name = match phase {
                Phase::Ended(status) => status.to_string(),
                Phase::Running { .. } => "running".into(),
                Phase::Waiting | Phase::Blocked => "waiting".into(),
            };
            match counts.last_mut() {
                Some((last, count)) if *last == name => *count += 1,
                _ => counts.push((name, 1)),
            }
        }
        let counts = counts.iter().map(|(name, count)| format!("{count} {name}"));
        let counts = counts.collect::<Vec<_>>().join(", ");
        let plural = if steps.len() == 1 { "" } else { "s" };
        format!("{} step{plural}: {counts}", steps.len())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, Phase)>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One line about the running steps, the longest first.
    pub fn describe_running(&self) -> String {
        let now = Instant::now();
        let steps = self.lock();
        let mut running: Vec<_> = steps
            .iter()
            .filter_map(|(name, phase)| match phase {
                Phase::Running { since } => Some((now.saturating_duration_since(*since), name)),
                _ => None,
            })
            .collect();
        running.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        let names = running.iter().take(MAX_NAMES);
        let mut names: Vec<_> = names
            .map(|(time, name)| format!("{name} ({})", describe_time(*time)))
            .collect();
        if running.len() > MAX_NAMES {
            names.push(format!("{} more", running.len() - MAX_NAMES));
        }
        let waiting = steps.iter().filter(|(_, phase)| *phase == Phase::Waiting);
        let waiting = match waiting.count() {
            0 => String::new(),
            waiting => format!("; {waiting} waiting"),
        };
        match running.len() {
            0 => format!("no step running{waiting}"),
            1 => format!("1 step running: {}{waiting}", names[0]),
            many => format!("{many} steps running: {}{waiting}", names.join(", ")),
        }
    }
}

/// A time in its two largest units.
pub fn describe_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_describes_the_running_steps() {
        let tracker = Tracker::new((0..15).map(|index| format!("s{index}")));
        assert_eq!(tracker.describe_running(), "no step running");
        let now = Instant::now();
        let since = |seconds| Phase::Running {
            since: now - Duration::from_secs(seconds),
        };
        tracker.set(0, since(5));
        tracker.set(1, Phase::Waiting);
        tracker.set(2, Phase::Ended(Status::Failed));
        assert_eq!(
            tracker.describe_running(),
            "1 step running: s0 (5 s); 1 waiting"
        );
        for index in 3..15 {
            tracker.set(index, since(61));
        }
        tracker.set(14, since(7300));
        let totals = "15 steps: 1 failed, 13 running, 1 waiting";
        assert_eq!(tracker.totals(), totals);
        let line = tracker.describe_running();
        let start = "13 steps running: s14 (2 h 1 min), s3 (1 min 1 s), s4";
        assert!(line.starts_with(start), "{line}");
        assert!(
            line.ends_with("s11 (1 min 1 s), 3 more; 1 waiting"),
            "{line}"
        );
    }
    #[test]
    fn failures_and_running_steps_are_shown_first() {
        let tracker = Tracker::new((0..60).map(|index| format!("s{index}")));
        assert_eq!(tracker.visible(60), (0..60).collect::<Vec<_>>());
        assert_eq!(tracker.visible(4), [0, 1, 2, 3]);
        for index in 0..30 {
            tracker.set(index, Phase::Ended(Status::Passed));
        }
        tracker.set(40, Phase::Waiting);
        tracker.set(
            50,
            Phase::Running {
                since: Instant::now(),
            },
        );
        tracker.set(20, Phase::Ended(Status::TimedOut));
        tracker.set(21, Phase::Ended(Status::Skipped));
        tracker.set(22, Phase::Ended(Status::AllowedFailure));
        assert_eq!(tracker.visible(5), [20, 50, 40, 30, 31]);
        assert_eq!(
            tracker.totals(),
            "60 steps: 27 passed, 1 failed (allowed), 1 timed out, 1 skipped, 1 running, 29 waiting"
        );
        for index in 0..60 {
            tracker.set(index, Phase::Ended(Status::Failed));
        }
        assert_eq!(tracker.visible(3), [0, 1, 2]);
        for index in 50..60 {
            tracker.set(
                index,
                Phase::Running {
                    since: Instant::now(),
                },
            );
        }
        assert_eq!(tracker.visible(4), [0, 1, 50, 51]);
        assert!(tracker.visible(0).is_empty());
    }
}

//! The rows of the table, and the numbers in them.

use std::fs;

/// A row of the table: `ours` compared with `theirs`. The goal bounds `value`.
pub struct Row {
    pub what: String,
    pub ours: String,
    pub theirs: String,
    pub value: f64,
    pub goal: Option<(Goal, f64)>,
    pub load: f64,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Goal {
    Most,
    Least,
}

impl Row {
    fn verdict(&self) -> (String, &'static str) {
        let Some((goal, bound)) = self.goal else {
            return (String::new(), "");
        };
        let (word, reached) = match goal {
            Goal::Most => ("at most", self.value <= bound),
            Goal::Least => ("at least", self.value >= bound),
        };
        let verdict = if reached { "reached" } else { "not reached" };
        (format!("{word} {bound}"), verdict)
    }

    /// The row in Markdown.
    pub fn text(&self) -> String {
        let (goal, verdict) = self.verdict();
        format!(
            "| {} | {} | {} | {:.2} | {goal} | {verdict} | {:.1} |",
            self.what, self.ours, self.theirs, self.value, self.load
        )
    }

    /// The row for the file of results.
    pub fn json(&self) -> serde_json::Value {
        let (goal, verdict) = self.verdict();
        serde_json::json!({"what": self.what, "moat": self.ours, "reference": self.theirs,
            "value": self.value, "goal": goal, "verdict": verdict, "load": self.load})
    }
}

/// The median of some numbers.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The medians of both sides.
pub fn medians(pairs: Vec<(f64, f64)>) -> (f64, f64) {
    let (ours, theirs) = pairs.into_iter().unzip();
    (median(ours), median(theirs))
}

/// The median of one column of numbers.
pub fn median_of_column(lines: &[Vec<String>], at: usize) -> f64 {
    median(lines.iter().map(|line| line[at].parse().unwrap()).collect())
}

/// The load average of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

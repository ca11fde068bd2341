//! Progress bars for a terminal.
//!
//! Each step has a line with its elapsed time and its last line of output. If the terminal has too
//! few rows, failures and running steps are shown, and the others are only counted.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use console::Term;
use futures::StreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use moat::events::{EventKind, RunEvent};
use moat::outcome::PerStream;
use moat::run::Attached;
use moat::{Run, RunId};

use crate::codes::plain;
use crate::lines::LineBuffer;
use crate::mask::Mask;
use crate::pipeline::Pipeline;
use crate::report::{Status, StepResult};
use crate::tracker::Tracker;

/// Time between two frames of a spinner.
const TICK_INTERVAL: Duration = Duration::from_millis(120);

/// Rows that show no step: the totals, and the row of the cursor.
const RESERVED_ROWS: usize = 2;

/// Maximum width of a step's name, in columns.
const MAX_NAME_WIDTH: usize = 40;

pub struct Bars {
    all: MultiProgress,
    bars: Vec<ProgressBar>,
    /// The index of each run's step.
    indices: Mutex<HashMap<RunId, usize>>,
    /// The last row: the number of steps in each state.
    totals: ProgressBar,
    /// The steps that are shown, from the top.
    shown: Mutex<Vec<usize>>,
}

impl Bars {
    pub fn new(pipeline: &Pipeline, mask: &Mask) -> Self {
        let all = MultiProgress::new();
        let names = pipeline.steps.iter().map(|step| mask.plain(&step.name));
        let names: Vec<_> = names.collect();
        let width = names.iter().map(|name| console::measure_text_width(name));
        let width = width.max().unwrap_or(0).min(MAX_NAME_WIDTH);
        let bars = names.into_iter().map(|name| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            let name = console::truncate_str(&name, width, "~");
            bar.set_prefix(
                console::pad_str(&name, width, console::Alignment::Left, None).into_owned(),
            );
            bar.set_style(style("  {prefix}        {wide_msg:.dim}"));
            bar
        });
        let bars = bars.collect();
        let totals = all.add(ProgressBar::no_length());
        totals.set_style(style("{wide_msg}"));
        Self {
            bars,
            all,
            indices: Mutex::default(),
            totals,
            shown: Mutex::default(),
        }
    }

    /// Shows the steps for which the terminal has rows, and the totals.
    pub fn arrange(&self, tracker: &Tracker) {
        let (rows, _) = Term::stderr().size();
        let steps = tracker.visible(usize::from(rows).saturating_sub(RESERVED_ROWS));
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let same = shown.iter().zip(&steps).take_while(|(a, b)| a == b).count();
        for &index in &shown[same..] {
            self.all.remove(&self.bars[index]);
        }
        for &index in &steps[same..] {
            let bar = self
                .all
                .insert_before(&self.totals, self.bars[index].clone());
            // A tick does not draw a bar that has a ticker, even if it has finished.
            bar.force_draw();
        }
        *shown = steps;
        self.totals.set_message(tracker.totals());
    }

    /// Ends the display. If it shows all steps, it stays on the screen.
    pub fn finish(&self, tracker: &Tracker) {
        self.arrange(tracker);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        self.totals.finish_and_clear();
        self.all.remove(&self.totals);
        if shown.len() < self.bars.len() {
            for index in shown.drain(..) {
                self.all.remove(&self.bars[index]);
            }
            let _ = self.all.clear();
        }
    }

    /// Prints a plain line above the bars.
    pub fn message(&self, line: &str) {
        let _ = self.all.println(line);
    }

    pub fn attempt_started(&self, index: usize, run: &RunId, message: &str) {
        let mut indices = self.indices.lock().unwrap_or_else(PoisonError::into_inner);
        indices.insert(run.clone(), index);
        let bar = &self.bars[index];
        bar.set_style(style(
            "{spinner:.cyan} {prefix} {elapsed:>6} {wide_msg:.dim}",
        ));
        bar.reset_elapsed();
        bar.enable_steady_tick(TICK_INTERVAL);
        bar.set_message(message.to_owned());
    }

    /// Shows the state of a run that has no output yet.
    pub fn event(&self, event: &RunEvent) {
        let indices = self.indices.lock().unwrap_or_else(PoisonError::into_inner);
        let index = event.run.as_ref().and_then(|run| indices.get(run));
        let Some(bar) = index.map(|&index| &self.bars[index]) else {
            return;
        };
        match &event.kind {
            EventKind::Waiting => bar.set_message("queued"),
            EventKind::Pulling { status, .. } => {
                bar.set_message(format!("pull: {}", plain(status)))
            }
            EventKind::Placing { reason, message } => {
                bar.set_message(format!("place: {} {}", plain(reason), plain(message)))
            }
            EventKind::Started { .. } => {
                bar.set_message("");
                bar.reset_elapsed();
            }
            EventKind::StopRequested { cause, .. } => bar.set_message(format!("stopping: {cause}")),
            _ => {}
        }
    }

    /// Shows the last line of a run until the run has ended.
    pub async fn watch(&self, index: usize, run: &Run, mask: &Mask) {
        let Ok(mut output) = run.attach().await else {
            return;
        };
        let mut last = PerStream::<LastLine>::default();
        while let Some(Ok(item)) = output.next().await {
            match item {
                Attached::Chunk(chunk) => {
                    if let Some(line) = last[chunk.stream].push(&chunk.bytes, mask) {
                        self.bars[index].set_message(line);
                    }
                }
                Attached::Lagged { stream, .. } => last[stream].lagged = true,
                _ => {}
            }
        }
    }

    pub fn step_ended(&self, index: usize, step: &StepResult, mask: &Mask) {
        let template = match step.status {
            Status::Passed => "v {prefix:.green} {elapsed:>6} passed",
            Status::Skipped => "  {prefix:.dim}        skipped {wide_msg:.dim}",
            Status::AllowedFailure => {
                "! {prefix:.yellow} {elapsed:>6} failed (allowed) {wide_msg:.dim}"
            }
            Status::Failed => "x {prefix:.red} {elapsed:>6} failed {wide_msg:.dim}",
            Status::TimedOut => "x {prefix:.red} {elapsed:>6} timed out {wide_msg:.dim}",
            Status::Cancelled => "x {prefix:.red} {elapsed:>6} cancelled {wide_msg:.dim}",
        };
        let bar = &self.bars[index];
        bar.set_style(style(template));
        bar.finish_with_message(mask.plain(step.detail.as_deref().unwrap_or_default()));
        if !matches!(step.status, Status::Passed | Status::Skipped) {
            self.message(&mask.plain(&step.summary()));
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// The last complete line of a stream.
#[derive(Default)]
struct LastLine {
    open: LineBuffer,
    /// True if the attachment lagged, so the open line is incomplete.
    lagged: bool,
}

impl LastLine {
    /// Adds output.
    ///
    /// Returns the last line that it completes, if that line has visible text.
    fn push(&mut self, bytes: &[u8], mask: &Mask) -> Option<String> {
        let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n') else {
            self.open.push(bytes);
            return None;
        };
        let mut complete = &bytes[..end];
        if let Some(start) = complete.iter().rposition(|&byte| byte == b'\n') {
            complete = &complete[start + 1..];
            *self = Self::default();
        }
        self.open.push(complete);
        let line = self.open.take(mask);
        self.open.push(&bytes[end + 1..]);
        // Text before a carriage return is overwritten.
        let shown = line.trim_end_matches('\r').rsplit('\r').next()?;
        let shown = mask.plain(shown);
        let lagged = std::mem::take(&mut self.lagged);
        (!lagged && !shown.trim().is_empty()).then_some(shown)
    }
}

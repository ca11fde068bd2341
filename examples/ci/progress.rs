//! A line for each step on a terminal: how long it has been at it, and what it printed last.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use moat::events::{EventKind, RunEvent};
use moat::outcome::PerStream;
use moat::run::Attached;
use moat::{Run, RunId};

use crate::lines::Line;
use crate::mask::Mask;
use crate::pipeline::Pipeline;
use crate::report::{Status, Step};
use crate::view::line;

/// How often the spinners turn.
const TICK: Duration = Duration::from_millis(120);

pub struct Bars {
    all: MultiProgress,
    bars: Vec<ProgressBar>,
    /// Of which step a run is.
    places: Mutex<HashMap<RunId, usize>>,
}

impl Bars {
    pub fn new(pipeline: &Pipeline) -> Self {
        let all = MultiProgress::new();
        let names = pipeline.steps.iter().map(|step| plain(&step.name));
        let names: Vec<_> = names.collect();
        let width = names.iter().map(|name| console::measure_text_width(name));
        let width = width.max().unwrap_or(0).min(40);
        let bars = names.into_iter().map(|name| {
            let bar = all.add(ProgressBar::no_length());
            let name = console::truncate_str(&name, width, "~");
            bar.set_prefix(
                console::pad_str(&name, width, console::Alignment::Left, None).into_owned(),
            );
            bar.set_style(style("  {prefix}        {wide_msg:.dim}"));
            bar.tick();
            bar
        });
        Self {
            bars: bars.collect(),
            all,
            places: Mutex::default(),
        }
    }

    pub fn say(&self, line: &str) {
        let _ = self.all.println(plain(line));
    }

    pub fn begin(&self, place: usize, run: &RunId, said: &str) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.insert(run.clone(), place);
        let bar = &self.bars[place];
        bar.set_style(style(
            "{spinner:.cyan} {prefix} {elapsed:>6} {wide_msg:.dim}",
        ));
        bar.reset_elapsed();
        bar.enable_steady_tick(TICK);
        bar.set_message(said.to_owned());
    }

    /// What happens to a run before it prints anything.
    pub fn told(&self, event: &RunEvent) {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = event.run.as_ref().and_then(|run| places.get(run));
        let Some(bar) = place.map(|&place| &self.bars[place]) else {
            return;
        };
        match &event.kind {
            EventKind::Waiting => bar.set_message("waits for its turn"),
            EventKind::Pulling { status, .. } => {
                bar.set_message(format!("pull: {}", plain(status)))
            }
            EventKind::Started { .. } => {
                bar.set_message("");
                bar.reset_elapsed();
            }
            EventKind::StopRequested { cause, .. } => bar.set_message(format!("stops: {cause}")),
            _ => {}
        }
    }

    /// Shows the last line of a run, until it has ended.
    pub async fn watch(&self, place: usize, run: &Run, mask: &Mask) {
        let Ok(mut output) = run.attach().await else {
            return;
        };
        let mut last = PerStream::<Last>::default();
        while let Some(Ok(item)) = output.next().await {
            match item {
                Attached::Chunk(chunk) => {
                    if let Some(line) = last[chunk.stream].line(&chunk.bytes, mask) {
                        self.bars[place].set_message(line);
                    }
                }
                Attached::Lagged { stream, .. } => last[stream].torn = true,
                _ => {}
            }
        }
    }

    pub fn done(&self, place: usize, step: &Step, mask: &Mask) {
        let sign = match step.status {
            Status::Passed => "{prefix:.green} {elapsed:>6} passed",
            Status::Skipped => "  {prefix:.dim}        skipped {wide_msg:.dim}",
            Status::AllowedFailure => {
                "! {prefix:.yellow} {elapsed:>6} failed, as it may {wide_msg:.dim}"
            }
            Status::Failed => "x {prefix:.red} {elapsed:>6} failed {wide_msg:.dim}",
            Status::TimedOut => "x {prefix:.red} {elapsed:>6} timed out {wide_msg:.dim}",
            Status::Cancelled => "x {prefix:.red} {elapsed:>6} cancelled {wide_msg:.dim}",
        };
        let bar = &self.bars[place];
        let sign = match step.status {
            Status::Passed => format!("v {sign}"),
            _ => sign.to_owned(),
        };
        bar.set_style(style(&sign));
        bar.finish_with_message(plain(
            &mask.line(step.detail.as_deref().unwrap_or_default()),
        ));
        if !matches!(step.status, Status::Passed | Status::Skipped) {
            self.say(&mask.line(&line(step)));
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// `text` in one line that does nothing to the terminal.
pub fn plain(text: &str) -> String {
    let text = console::strip_ansi_codes(text);
    let blank = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(blank).collect()
}

/// The last whole line of a stream.
#[derive(Default)]
struct Last {
    open: Line,
    /// Whether something of the open line was missed.
    torn: bool,
}

impl Last {
    fn line(&mut self, bytes: &[u8], mask: &Mask) -> Option<String> {
        let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n') else {
            self.open.push(bytes);
            return None;
        };
        let mut whole = &bytes[..end];
        if let Some(start) = whole.iter().rposition(|&byte| byte == b'\n') {
            whole = &whole[start + 1..];
            *self = Self::default();
        }
        self.open.push(whole);
        let line = self.open.take(mask);
        self.open.push(&bytes[end + 1..]);
        let shown = line.trim_end_matches('\r').rsplit('\r').next()?;
        let shown = plain(shown);
        let torn = std::mem::take(&mut self.torn);
        (!torn && !shown.trim().is_empty()).then_some(shown)
    }
}

//! The `main` of test targets whose trials depend on the machine.
//!
//! A trial that cannot run here is listed as ignored. After the results of its target, the harness
//! prints how many trials were skipped, and why.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::{Arguments, FormatSetting};
pub use libtest_mimic::{Completion, Failed};

/// A requirement of a trial: `Ok` if the machine meets it, else the reason for skipping.
pub type Need = Result<(), String>;

/// Skipped trials, by reason.
static SKIPPED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// A named test, and the reason if it is to be skipped.
#[derive(Debug)]
pub struct Trial {
    inner: libtest_mimic::Trial,
    skipped: Option<String>,
}

impl Trial {
    /// A trial that fails by returning an error or by a panic.
    pub fn new(name: &str, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Self {
        Self::skippable(name, || run().map(|()| Completion::Completed))
    }

    /// A trial that may return [`skip`] while it runs.
    pub fn skippable(
        name: &str,
        run: impl FnOnce() -> Result<Completion, Failed> + Send + 'static,
    ) -> Self {
        Self {
            inner: libtest_mimic::Trial::ignorable_test(name, run),
            skipped: None,
        }
    }

    /// Skips the trial unless `need` is met. A skipped trial has the ignored flag, and runs with
    /// `--include-ignored`.
    pub fn needs(mut self, need: &Need) -> Self {
        if let Err(reason) = need {
            self.skipped.get_or_insert_with(|| reason.clone());
        }
        self
    }
}

/// A trial that fails by a panic.
pub fn anywhere(name: &str, trial: fn()) -> Trial {
    Trial::new(name, move || {
        trial();
        Ok(())
    })
}

/// One test target: its arguments and its trials.
#[derive(Debug)]
pub struct Harness {
    arguments: Arguments,
    trials: Vec<libtest_mimic::Trial>,
    notes: Vec<String>,
}

impl Harness {
    /// Reads the arguments of this process. Without `--test-threads`, `threads` trials run at a
    /// time: trials wait for an engine or a disk more than they compute.
    pub fn from_args(threads: usize) -> Self {
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(threads);
        Self {
            arguments,
            trials: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds trials.
    pub fn trials(mut self, trials: impl IntoIterator<Item = Trial>) -> Self {
        for trial in trials {
            let Trial { inner, skipped } = trial;
            let inner = inner.with_ignored_flag(skipped.is_some());
            if let Some(reason) = skipped
                && !self.arguments.is_filtered_out(&inner)
                && self.arguments.is_ignored(&inner)
            {
                count(&reason);
            }
            self.trials.push(inner);
        }
        self
    }

    /// Adds a line to the summary, such as the trials that this build does not have.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Runs the trials, prints the results and the skipped trials, and exits.
    pub fn run(self) -> ! {
        let conclusion = libtest_mimic::run(&self.arguments, self.trials);
        let is_text = self.arguments.format != Some(FormatSetting::Json);
        if is_text && !self.arguments.list {
            let skipped = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
            for (reason, trials) in &*skipped {
                let plural = if *trials == 1 { "" } else { "s" };
                println!("skipped {trials} trial{plural}: {reason}");
            }
            for note in &self.notes {
                println!("{note}");
            }
            if !(skipped.is_empty() && self.notes.is_empty()) {
                println!();
            }
        }
        conclusion.exit()
    }
}

fn count(reason: &str) {
    let mut skipped = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    *skipped.entry(reason.into()).or_default() += 1;
}

/// Skips the trial that is running.
pub fn skip(reason: &str) -> Completion {
    count(reason);
    Completion::ignored_with(reason)
}

/// True if the value of the environment variable is `required`.
pub fn is_required(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "required")
}

/// A path of functions without the name of its crate: the name of a trial.
pub fn name(path: &str) -> &str {
    path.split_once("::").map_or(path, |(_, name)| name)
}

/// Runs a trial on a new async runtime. The trial fails after `bound`.
pub fn bounded(bound: Duration, trial: impl Future<Output = ()>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::time::timeout(bound, trial)
            .await
            .map_err(|_| Failed::from(format!("the trial took more than {} s", bound.as_secs())))
    })
}

/// Lists functions of a module as its trials: `trials! { on_engine: first, second }`.
///
/// The macro defines `pub fn trials() -> Vec<Trial>`. `on_engine` turns the name of a trial and its
/// function into a [`Trial`]. More lists follow after semicolons.
#[macro_export]
macro_rules! trials {
    ($($make:path: $($(#[$attribute:meta])* $trial:ident),* $(,)?);* $(;)?) => {
        /// The trials of this module.
        pub fn trials() -> Vec<$crate::harness::Trial> {
            let mut trials = Vec::new();
            $($(
                $(#[$attribute])*
                trials.push($make(
                    $crate::harness::name(concat!(module_path!(), "::", stringify!($trial))),
                    $trial,
                ));
            )*)*
            trials
        }
    };
}

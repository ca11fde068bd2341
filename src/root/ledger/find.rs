//! Finding runs by their properties, from the ledger alone.

use std::collections::HashMap;
use std::io;

use crate::audit::line_reader::{Advance, LineReader};
use crate::error::Result;
use crate::outcome::Verdict;
use crate::root::Root;
use crate::root::ledger::history::is_same;
use crate::root::ledger::line::{LedgerEntry, LedgerLine, RunBegun, RunSealed};
use crate::spec::RunId;
use crate::state::RunStatus;
use crate::timestamp::Timestamp;

/// The properties of runs to find: see [`Root::find`].
///
/// A run must have all of them. Without any, all runs are found.
///
/// ```no_run
/// use moat::root::{Root, RunQuery};
///
/// let root = Root::open("runs")?;
/// for found in root.find(&RunQuery::new().label("team", "build").code(1))? {
///     println!("{} {}", found.begun.created, found.begun.run);
/// }
/// # Ok::<(), moat::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunQuery {
    labels: Vec<(String, String)>,
    image: Option<String>,
    text: Option<String>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    status: Option<RunStatus>,
    code: Option<i64>,
    verdict: Option<Verdict>,
}

impl RunQuery {
    /// Creates a query that all runs satisfy.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requires a label with this value.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Requires this image, as the spec of the run named it.
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// Requires this text in an argument of the command.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Requires that the run was requested at this time or later.
    pub fn since(mut self, time: Timestamp) -> Self {
        self.since = Some(time);
        self
    }

    /// Requires that the run was requested before this time.
    pub fn until(mut self, time: Timestamp) -> Self {
        self.until = Some(time);
        self
    }

    /// Requires that the run is sealed with this status.
    pub fn status(mut self, status: RunStatus) -> Self {
        self.status = Some(status);
        self
    }

    /// Requires that the run is sealed with this exit code.
    pub fn code(mut self, code: i64) -> Self {
        self.code = Some(code);
        self
    }

    /// Requires that the run is sealed with this verdict.
    pub fn verdict(mut self, verdict: Verdict) -> Self {
        self.verdict = Some(verdict);
        self
    }

    /// Returns true if the begin of a run satisfies the query.
    fn accepts_begin(&self, begun: &RunBegun) -> bool {
        let has = |(key, value): &(String, String)| begun.labels.get(key) == Some(value);
        let contains = |text: &String| begun.cmd.iter().any(|arg| arg.contains(text));
        self.labels.iter().all(has)
            && self
                .image
                .as_ref()
                .is_none_or(|image| *image == begun.image)
            && self.text.as_ref().is_none_or(contains)
            && self.since.is_none_or(|since| begun.created >= since)
            && self.until.is_none_or(|until| begun.created < until)
    }

    /// Returns true if the seal of a run satisfies the query.
    fn accepts_seal(&self, sealed: Option<&RunSealed>) -> bool {
        let status = sealed.map(|sealed| sealed.status);
        let verdict = sealed.map(|sealed| sealed.verdict);
        let code = sealed.and_then(|sealed| sealed.code);
        (self.status.is_none() || self.status == status)
            && (self.verdict.is_none() || self.verdict == verdict)
            && (self.code.is_none() || self.code == code)
    }

    fn needs_details(&self) -> bool {
        !self.labels.is_empty() || self.text.is_some()
    }
}

/// A run that [`Root::find`] has found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct FoundRun {
    /// The begin of the run.
    pub begun: RunBegun,
    /// The seal of the run, or `None` if the ledger has none.
    pub sealed: Option<RunSealed>,
}

impl Root {
    /// Finds the runs with these properties, in the order of their begins.
    ///
    /// Only the ledger is read, and no file of a run. The exception are runs whose command and labels
    /// are too long for the ledger ([`RunBegun::omitted`]). Removed runs are not found. The ledger is
    /// not verified: see [`verify_all`](Self::verify_all).
    ///
    /// # Errors
    ///
    /// [`Error::Storage`](crate::Error::Storage) if the ledger cannot be read.
    pub fn find(&self, query: &RunQuery) -> Result<Vec<FoundRun>> {
        let failed = |error: io::Error| self.ledger_error("read", error);
        let mut found: HashMap<RunId, (u64, FoundRun)> = HashMap::new();
        let Some((file, _)) = self.open_ledger()? else {
            return Ok(Vec::new());
        };
        let mut lines = LineReader::new(file);
        loop {
            match lines.advance().map_err(failed)? {
                Advance::End => break,
                Advance::TooLong => continue,
                Advance::Line => {}
            }
            let Ok(line) = LedgerLine::parse(lines.line()) else {
                continue;
            };
            match line.entry {
                LedgerEntry::Begun(begun) => {
                    // An earlier run may have had the id.
                    found.remove(&begun.run);
                    let begun = self.with_details(begun, query);
                    if query.accepts_begin(&begun) {
                        let run = begun.run.clone();
                        let sealed = None;
                        found.insert(run, (line.number, FoundRun { begun, sealed }));
                    }
                }
                LedgerEntry::Sealed(sealed) => {
                    if let Some((_, found)) = found.get_mut(&sealed.run) {
                        found.sealed = Some(sealed);
                    }
                }
                LedgerEntry::Removing { run, created, .. } => {
                    let created_of = |(_, found): &(u64, FoundRun)| found.begun.created;
                    if is_same(created, found.get(&run).map(created_of)) {
                        found.remove(&run);
                    }
                }
                _ => {}
            }
        }
        let mut found: Vec<_> = found
            .into_values()
            .filter(|(_, found)| query.accepts_seal(found.sealed.as_ref()))
            .collect();
        found.sort_by_key(|(number, _)| *number);
        Ok(found.into_iter().map(|(_, found)| found).collect())
    }

    /// Adds the details that the ledger omits, if the query needs them.
    fn with_details(&self, mut begun: RunBegun, query: &RunQuery) -> RunBegun {
        if begun.omitted
            && query.needs_details()
            && let Ok(Some(file)) = self.read_run(&begun.run)
        {
            begun.cmd = file.record.settings.cmd;
            begun.labels = file.record.settings.labels;
        }
        begun
    }
}

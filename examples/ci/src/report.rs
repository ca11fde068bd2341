//! The report: one self-contained HTML file with the output of all steps.
//!
//! Output is read from the audit files while the report is written, so little of it is in memory.
//! In the page it is data, never markup. The page's policy allows no script but its own.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use moat::audit::{Event, LogState, verify};
use moat::outcome::{PerStream, SealState};
use moat::timestamp::Timestamp;
use moat::{Ending, Outcome, RunId, Seal};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::mask::Mask;
use crate::rows::{Line, MAX_LINE_BYTES, Row, Rows, describe, describe_seal};

/// Maximum number of lines at each end of an attempt's output in the report.
///
/// The lines between are omitted. A row gives their number and the path of the audit file. A
/// browser shows 100,000 lines with ease, but not 1,000,000.
pub const EDGE_LINES: usize = 50_000;

/// Maximum number of bytes at each end of an attempt's output in the report.
pub const EDGE_BYTES: u64 = 32 << 20;

const PAGE: &str = include_str!("report.html");

/// The results of a build.
#[derive(Debug)]
pub struct Report {
    pub title: String,
    pub steps: Vec<StepResult>,
}

/// The result of a step.
#[derive(Debug)]
pub struct StepResult {
    pub name: String,
    /// The names of the steps that it depends on.
    pub needs: Vec<String>,
    pub status: Status,
    /// The reason for the status.
    pub detail: Option<String>,
    /// Empty if the step never started.
    pub attempts: Vec<Attempt>,
    /// The part of an earlier process in the result. `None` if this process started the last attempt.
    pub taken_over: Option<TakenOver>,
    pub artifacts: Vec<CollectedArtifact>,
    /// True if it is a service, or what services need.
    pub is_service: bool,
}

/// The part of an earlier process in the result of a step.
#[derive(Debug)]
pub enum TakenOver {
    /// The step passed in the build that this build retries.
    Retry(RunId),
    /// The step had ended before the build was resumed.
    Ended,
    /// The last attempt was running when the build was resumed.
    Running,
}

impl fmt::Display for TakenOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry(build) => write!(f, "taken over from build {build}"),
            Self::Ended => f.write_str("ended before the build was resumed"),
            Self::Running => f.write_str("was running when the build was resumed"),
        }
    }
}

/// An artifact of a step.
#[derive(Debug)]
pub struct CollectedArtifact {
    /// The path in the pipeline file.
    pub path: String,
    /// The copy, relative to the report. `None` if there is none.
    pub copy: Option<PathBuf>,
}

impl StepResult {
    /// The running time of all attempts.
    pub fn time(&self) -> Duration {
        let outcomes = self.attempts.iter().filter_map(|one| one.outcome.as_ref());
        outcomes.filter_map(Outcome::duration).sum()
    }

    /// The result on one line.
    pub fn summary(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{}: {}: {detail}", self.name, self.status),
            None => format!("{}: {}", self.name, self.status),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Passed,
    Failed,
    AllowedFailure,
    TimedOut,
    Cancelled,
    Skipped,
}

impl Status {
    /// Returns true if a step with this status fails the build by itself.
    pub fn fails_build(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut | Self::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::AllowedFailure => "failed (allowed)",
            Self::TimedOut => "timed out",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        })
    }
}

/// One run of a step.
#[derive(Debug)]
pub struct Attempt {
    pub run: RunId,
    /// `None` for a local process.
    pub image: Option<String>,
    pub command: String,
    pub audit: PathBuf,
    /// Used if the audit file is not sealed.
    pub outcome: Option<Outcome>,
}

impl Attempt {
    pub fn new(image: Option<String>, command: String, outcome: Outcome) -> Self {
        Self {
            run: outcome.run.clone(),
            image,
            command,
            audit: outcome.audit.clone().unwrap_or_default(),
            outcome: Some(outcome),
        }
    }
}

impl Report {
    /// Writes the report. Blocks.
    ///
    /// The file is written under another name first, so that a report at `to` is always complete.
    /// Only its owner can read it, as with the audit files.
    ///
    /// # Errors
    ///
    /// [`io::Error`] if the report cannot be written. An audit file that cannot be read is no
    /// error: the report shows it.
    pub fn write(&self, mask: &Mask, to: &Path) -> io::Result<()> {
        let dir = to.parent().filter(|dir| *dir != Path::new(""));
        let file = NamedTempFile::new_in(dir.unwrap_or(Path::new(".")))?;
        let mut page = Page {
            out: BufWriter::new(file),
            mask,
        };
        page.report(self)?;
        let file = page.out.into_inner()?;
        file.as_file().sync_all()?;
        file.persist(to)?;
        Ok(())
    }
}

/// The page that is being written.
struct Page<'a> {
    out: BufWriter<NamedTempFile>,
    mask: &'a Mask,
}

/// Facts about an attempt from its audit file.
#[derive(Default, Serialize)]
struct Facts {
    /// The verdict of a sealed audit, or the state of any other.
    audit: String,
    gaps: u64,
    lines: PerStream<u64>,
    bytes: u64,
    /// Times of the request, the start and the end, in µs since the epoch.
    base: i64,
    started: Option<i64>,
    ended: i64,
    #[serde(skip)]
    seal: Option<Box<Seal>>,
}

/// Lines and bytes that were omitted since the last row.
#[derive(Default)]
struct Omitted {
    lines: u64,
    bytes: u64,
}

enum AttemptError {
    Read(moat::Error),
    Write(io::Error),
}

impl From<moat::Error> for AttemptError {
    fn from(error: moat::Error) -> Self {
        Self::Read(error)
    }
}

impl From<io::Error> for AttemptError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl Page<'_> {
    fn report(&mut self, report: &Report) -> io::Result<()> {
        let policy = format!(
            "default-src 'none'; base-uri 'none'; form-action 'none'; style-src {}; script-src {}",
            hash_of("<style>", "</style>"),
            hash_of("<script>", "</script>"),
        );
        let (head, rest) = PAGE.split_once("{{policy}}").expect("the page has it");
        let (body, tail) = rest.split_once("{{data}}").expect("the page has it");
        write!(self.out, "{head}{policy}{body}")?;
        let mut steps = Vec::with_capacity(report.steps.len());
        for (index, step) in report.steps.iter().enumerate() {
            let mut attempts = Vec::with_capacity(step.attempts.len());
            for (attempt_index, attempt) in step.attempts.iter().enumerate() {
                self.open_data(&format!("rows-{index}-{attempt_index}"))?;
                attempts.push(self.attempt(attempt)?);
                self.close_data()?;
            }
            steps.push(json!({
                "name": self.mask.line(&step.name),
                "needs": step.needs.iter().map(|need| self.mask.line(need)).collect::<Vec<_>>(),
                "status": step.status,
                "detail": step.detail.as_deref().map(|detail| self.mask.line(detail)),
                "attempts": attempts,
                "taken_over": step.taken_over.as_ref().map(TakenOver::to_string),
                "other_build": matches!(step.taken_over, Some(TakenOver::Retry(_))),
                "artifacts": self.artifacts(&step.artifacts),
                "is_service": step.is_service,
            }));
        }
        let about = json!({
            "title": self.mask.line(&report.title),
            "made": micros(Timestamp::now()),
            "steps": steps,
        });
        self.open_data("report")?;
        self.json(&about.to_string())?;
        self.close_data()?;
        write!(self.out, "{tail}")
    }

    /// Describes artifacts as `[path, link]`. A path with a secret has no link.
    fn artifacts(&self, artifacts: &[CollectedArtifact]) -> Vec<Value> {
        let describe = |artifact: &CollectedArtifact| {
            let path = self.mask.line(&artifact.path);
            let copy = artifact.copy.as_ref().map(|copy| link(copy));
            json!([path, copy.filter(|_| path == artifact.path)])
        };
        artifacts.iter().map(describe).collect()
    }

    /// Opens a script element of a type that no browser runs.
    ///
    /// Its text has no `<`, so nothing in it can close the element.
    fn open_data(&mut self, id: &str) -> io::Result<()> {
        writeln!(self.out, r#"<script type="application/json" id="{id}">"#)
    }

    fn close_data(&mut self) -> io::Result<()> {
        writeln!(self.out, "</script>")
    }

    /// Writes the rows of an attempt, and returns its description.
    fn attempt(&mut self, attempt: &Attempt) -> io::Result<Value> {
        let mut facts = Facts::default();
        write!(self.out, "[")?;
        match self.rows(attempt, &mut facts) {
            Ok(()) => {}
            Err(AttemptError::Write(error)) => return Err(error),
            Err(AttemptError::Read(error)) => {
                facts.audit = "unreadable".into();
                self.event(facts.ended - facts.base, "damage", &error.chain())?;
            }
        }
        // Every row ends with a comma, so the array needs a last element.
        write!(self.out, "null]")?;
        let ending = match (&facts.seal, &attempt.outcome) {
            (Some(seal), _) => Some(&seal.exit),
            (None, outcome) => outcome.as_ref().map(|outcome| &outcome.ending),
        };
        let lost = matches!(ending, Some(Ending::Lost { .. }));
        let seal = facts.seal.as_deref();
        let masked = |text: &str| self.mask.line(text).into_owned();
        Ok(json!({
            "run": masked(&attempt.run.to_string()),
            "image": attempt.image.as_deref().map(masked),
            "command": masked(&attempt.command),
            "path": masked(&attempt.audit.display().to_string()),
            "ending": ending.map(|ending| masked(&ending.to_string())),
            "code": ending.and_then(Ending::code),
            "lost": lost,
            "stopped": seal.and_then(|seal| seal.stopped).map(|cause| cause.to_string()),
            "usage": seal.and_then(|seal| seal.usage.as_deref()),
            "facts": facts,
        }))
    }

    fn rows(&mut self, attempt: &Attempt, facts: &mut Facts) -> Result<(), AttemptError> {
        let (head, tail) = survey(&attempt.audit, facts)?;
        let base = facts.base;
        let (mut number, mut omitted) = (0, Omitted::default());
        for row in Rows::open(&attempt.audit)? {
            match row? {
                Row::Line(line) => {
                    number += 1;
                    if number > head && number <= tail {
                        omitted.lines += 1;
                        omitted.bytes += line.length + 1;
                        continue;
                    }
                    self.omitted(&mut omitted)?;
                    self.line(&line, base)?;
                }
                // The seal is written below, after it is verified.
                Row::Event(Event::End(_)) => {}
                Row::Event(event) => {
                    if let Some((ts, kind, text)) = describe(&event) {
                        self.omitted(&mut omitted)?;
                        self.event(micros(ts) - base, kind, &text)?;
                    }
                }
            }
        }
        self.omitted(&mut omitted)?;
        self.last_row(attempt, facts)
    }

    /// Verifies the audit file, and writes the result as the last row.
    fn last_row(&mut self, attempt: &Attempt, facts: &mut Facts) -> Result<(), AttemptError> {
        let verification = verify(&attempt.audit)?;
        facts.gaps = verification.gaps;
        let owner = verification.start.map(|start| start.record.run);
        let misplaced = owner.filter(|owner| *owner != attempt.run).map(|owner| {
            let run = &attempt.run;
            format!("the audit file is damaged: it belongs to run {owner}, not to run {run}")
        });
        let (audit, kind, text) = match (misplaced, verification.state) {
            (Some(text), _) => ("damaged".into(), "damage", text),
            (None, LogState::Sealed(seal)) => {
                let text = describe_seal(&seal);
                let verdict = seal.verdict.to_string();
                facts.seal = Some(seal);
                (verdict, "seal", text)
            }
            (None, LogState::Damaged(damage)) => (
                "damaged".into(),
                "damage",
                format!("the audit file is damaged: {damage}"),
            ),
            _ => {
                let text = match attempt.outcome.as_ref().map(|outcome| &outcome.seal) {
                    Some(SealState::Pending { reason }) => format!("not sealed yet: {reason}"),
                    _ => "not sealed: the run is not over, or its writer was killed".into(),
                };
                ("unsealed".into(), "damage", text)
            }
        };
        facts.audit = audit;
        Ok(self.event(facts.ended - facts.base, kind, &text)?)
    }

    /// Writes an event as `[microseconds, kind, text]`.
    fn event(&mut self, at: i64, kind: &str, text: &str) -> io::Result<()> {
        write!(self.out, r#"[{at},"{kind}","#)?;
        self.string(self.mask.line(text).as_bytes())?;
        writeln!(self.out, "],")
    }

    /// Writes a line as `[microseconds, stream, text]`.
    ///
    /// Marks and the number of omitted bytes follow if either is not zero.
    fn line(&mut self, line: &Line, base: i64) -> io::Result<()> {
        let (bytes, omitted) = line.masked(self.mask);
        write!(
            self.out,
            "[{},{},",
            micros(line.ts) - base,
            line.stream as u8
        )?;
        self.string(&bytes)?;
        let marks = u8::from(!line.complete) + 2 * u8::from(line.lossy);
        match (marks, omitted) {
            (0, 0) => writeln!(self.out, "],"),
            _ => writeln!(self.out, ",{marks},{omitted}],"),
        }
    }

    /// Writes a row for the omitted lines, if any, and resets the count.
    fn omitted(&mut self, omitted: &mut Omitted) -> io::Result<()> {
        match std::mem::take(omitted) {
            Omitted { lines: 0, .. } => Ok(()),
            Omitted { lines, bytes } => {
                writeln!(self.out, r#"[0,"omitted","",{lines},{bytes}],"#)
            }
        }
    }

    /// Writes JSON, with escapes for the characters that the page must not contain.
    fn json(&mut self, json: &str) -> io::Result<()> {
        let mut rest = json;
        while let Some((at, found)) = rest.char_indices().find(|&(_, c)| is_escaped(c)) {
            write!(self.out, "{}", &rest[..at])?;
            for unit in found.encode_utf16(&mut [0; 2]) {
                write!(self.out, "\\u{unit:04x}")?;
            }
            rest = &rest[at + found.len_utf8()..];
        }
        write!(self.out, "{rest}")
    }

    /// Writes a JSON string.
    ///
    /// A byte that is not UTF-8 becomes a lone surrogate, U+DC80 and up, which cannot occur in
    /// UTF-8 text.
    fn string(&mut self, bytes: &[u8]) -> io::Result<()> {
        write!(self.out, "\"")?;
        for chunk in bytes.utf8_chunks() {
            let quoted = serde_json::to_string(chunk.valid())?;
            self.json(&quoted[1..quoted.len() - 1])?;
            for byte in chunk.invalid() {
                write!(self.out, "\\udc{byte:02x}")?;
            }
        }
        write!(self.out, "\"")
    }
}

/// Returns true if HTML forbids the character in a page, or if it can close an element.
///
/// In JSON, such characters occur only in strings.
fn is_escaped(c: char) -> bool {
    let is_noncharacter = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    matches!(c, '<' | '\u{7f}'..='\u{9f}') || is_noncharacter
}

/// Collects the facts that are needed before the rows are written.
///
/// Returns the number of the last line of the head, and that of the last line before the tail.
fn survey(audit: &Path, facts: &mut Facts) -> Result<(u64, u64), AttemptError> {
    let (mut total, mut head) = (0, 0);
    let (mut tail, mut tail_bytes) = (VecDeque::new(), 0);
    for row in Rows::open(audit)? {
        let ts = match row? {
            Row::Line(line) => {
                total += 1;
                facts.lines[line.stream] += 1;
                facts.bytes += line.length + u64::from(line.complete);
                if total <= EDGE_LINES as u64 && facts.bytes <= EDGE_BYTES {
                    head = total;
                }
                let kept = line.length.min(MAX_LINE_BYTES as u64);
                tail.push_back(kept);
                tail_bytes += kept;
                while tail.len() > EDGE_LINES || tail_bytes > EDGE_BYTES {
                    tail_bytes -= tail.pop_front().unwrap_or_default();
                }
                line.ts
            }
            Row::Event(Event::Start(start)) => {
                facts.base = micros(start.record.created);
                start.ts
            }
            Row::Event(Event::Started(started)) => {
                facts.started = Some(micros(started.ts));
                started.ts
            }
            Row::Event(event) => match describe(&event) {
                Some((ts, ..)) => ts,
                None => continue,
            },
        };
        // Not always the last row: clocks step back, and a line has the time of its first piece.
        facts.ended = facts.ended.max(micros(ts));
    }
    Ok((head, total - tail.len() as u64))
}

/// A relative URL.
fn link(path: &Path) -> String {
    let mut link = String::new();
    for name in path.iter() {
        if !link.is_empty() {
            link.push('/');
        }
        for byte in name.as_encoded_bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    link.push(char::from(*byte));
                }
                byte => link.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    link
}

fn micros(ts: Timestamp) -> i64 {
    let since = SystemTime::from(ts).duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

/// The policy source for the page's only script or style.
fn hash_of(open: &str, close: &str) -> String {
    let inner = PAGE
        .split_once(open)
        .and_then(|(_, rest)| rest.split_once(close));
    let (inner, _) = inner.expect("the page has one");
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inner)))
}

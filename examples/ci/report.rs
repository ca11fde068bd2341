//! The report of a pipeline: one HTML file that needs nothing else, with the output of all steps.
//!
//! The output is read from the audit files while the report is written, so that little of it is in
//! memory. In the page it is data, never markup, and the page's policy lets no script run but its
//! own.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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
use crate::rows::{LINE_BYTES, Line, Row, Rows, sealed, told};

/// How many lines of an attempt's output the report has from its start, and as many up to its end.
/// What is between is left out, with a row that says how much that is and where it can be read.
/// So 100,000 lines are there in full; a browser holds them with ease, and ten times as many not.
pub(crate) const SIDE_LINES: usize = 50_000;

/// How many bytes these have at most on each side, for output whose lines are long.
pub(crate) const SIDE_BYTES: u64 = 32 << 20;

const PAGE: &str = include_str!("report.html");

/// What a pipeline has done.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) title: String,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    /// The names of the steps that had to be done before.
    pub(crate) needs: Vec<String>,
    pub(crate) status: Status,
    /// Why it has this status, in words.
    pub(crate) detail: Option<String>,
    /// None: it was never begun.
    pub(crate) attempts: Vec<Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Passed,
    Failed,
    AllowedFailure,
    TimedOut,
    Cancelled,
    Skipped,
}

#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) run: RunId,
    /// `None`: a local process.
    pub(crate) image: Option<String>,
    pub(crate) command: String,
    pub(crate) audit: PathBuf,
    /// What speaks where the audit is not sealed.
    pub(crate) outcome: Option<Outcome>,
}

impl Report {
    /// Writes the report, under another name first: who finds one at `to` finds a whole one, which
    /// only its owner can read, as the audits. It blocks.
    ///
    /// # Errors
    ///
    /// Those of writing it. An audit that cannot be read is no error; the report says so.
    pub(crate) fn write(&self, mask: &Mask, to: &Path) -> io::Result<()> {
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

/// The page while it is written.
struct Page<'a> {
    out: BufWriter<NamedTempFile>,
    mask: &'a Mask,
}

/// What an attempt's audit tells, beside its rows.
#[derive(Default, Serialize)]
struct Findings {
    /// The verdict of a sealed audit, or what is wrong with it.
    audit: String,
    gaps: u64,
    lines: PerStream<u64>,
    bytes: u64,
    /// When it was asked for, started and ended, in microseconds of the epoch.
    base: i64,
    started: Option<i64>,
    ended: i64,
    #[serde(skip)]
    seal: Option<Box<Seal>>,
}

enum Trouble {
    Read(moat::Error),
    Write(io::Error),
}

impl From<moat::Error> for Trouble {
    fn from(error: moat::Error) -> Self {
        Self::Read(error)
    }
}

impl From<io::Error> for Trouble {
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
        for (number, step) in report.steps.iter().enumerate() {
            let mut attempts = Vec::with_capacity(step.attempts.len());
            for (attempt_number, attempt) in step.attempts.iter().enumerate() {
                self.open(&format!("rows-{number}-{attempt_number}"))?;
                attempts.push(self.attempt(attempt)?);
                self.close()?;
            }
            steps.push(json!({
                "name": self.mask.line(&step.name),
                "needs": step.needs.iter().map(|need| self.mask.line(need)).collect::<Vec<_>>(),
                "status": step.status,
                "detail": step.detail.as_deref().map(|detail| self.mask.line(detail)),
                "attempts": attempts,
            }));
        }
        let about = json!({
            "title": self.mask.line(&report.title),
            "made": micros(Timestamp::now()),
            "steps": steps,
        });
        self.open("report")?;
        // In JSON, `<` is in strings alone.
        write!(self.out, "{}", about.to_string().replace('<', "\\u003c"))?;
        self.close()?;
        write!(self.out, "{tail}")
    }

    /// Data is in a script of a type that no browser runs, and that ends nowhere in it since no `<`
    /// is there.
    fn open(&mut self, id: &str) -> io::Result<()> {
        writeln!(self.out, r#"<script type="application/json" id="{id}">"#)
    }

    fn close(&mut self) -> io::Result<()> {
        writeln!(self.out, "</script>")
    }

    /// Writes the rows of an attempt, and gives all else there is to say of it.
    fn attempt(&mut self, attempt: &Attempt) -> io::Result<Value> {
        let mut findings = Findings::default();
        write!(self.out, "[")?;
        match self.rows(attempt, &mut findings) {
            Ok(()) => {}
            Err(Trouble::Write(error)) => return Err(error),
            Err(Trouble::Read(error)) => {
                findings.audit = "unreadable".into();
                self.row(findings.ended - findings.base, "damage", &error.chain())?;
            }
        }
        // So that no row needs to know whether one follows.
        write!(self.out, "null]")?;
        let ending = match (&findings.seal, &attempt.outcome) {
            (Some(seal), _) => Some(&seal.exit),
            (None, outcome) => outcome.as_ref().map(|outcome| &outcome.ending),
        };
        let lost = matches!(ending, Some(Ending::Lost { .. }));
        let seal = findings.seal.as_deref();
        let shown = |text: &str| self.mask.line(text).into_owned();
        Ok(json!({
            "run": shown(&attempt.run.to_string()),
            "image": attempt.image.as_deref().map(shown),
            "command": shown(&attempt.command),
            "path": shown(&attempt.audit.display().to_string()),
            "ending": ending.map(|ending| shown(&ending.to_string())),
            "code": ending.and_then(Ending::code),
            "lost": lost,
            "stopped": seal.and_then(|seal| seal.stopped).map(|cause| cause.to_string()),
            "usage": seal.and_then(|seal| seal.usage.as_deref()),
            "findings": findings,
        }))
    }

    fn rows(&mut self, attempt: &Attempt, findings: &mut Findings) -> Result<(), Trouble> {
        let (head, tail) = survey(&attempt.audit, findings)?;
        let base = findings.base;
        let (mut number, mut left) = (0, (0, 0));
        for row in Rows::open(&attempt.audit)? {
            let told = match row? {
                Row::Line(line) => {
                    number += 1;
                    if number > head && number <= tail {
                        left = (left.0 + 1, left.1 + line.length + 1);
                        continue;
                    }
                    self.left(&mut left)?;
                    self.line(&line, base)?;
                    continue;
                }
                // Told below, when it is verified.
                Row::Event(Event::End(_)) => None,
                Row::Event(event) => told(&event),
            };
            if let Some((ts, kind, text)) = told {
                self.left(&mut left)?;
                self.row(micros(ts) - base, kind, &text)?;
            }
        }
        self.left(&mut left)?;
        // Once more, for what the rows cannot tell: whether the digests hold.
        let verification = verify(&attempt.audit)?;
        findings.gaps = verification.gaps;
        let (audit, kind, text) = match verification.state {
            LogState::Sealed(seal) => {
                let text = sealed(&seal);
                let verdict = seal.verdict.to_string();
                findings.seal = Some(seal);
                (verdict, "seal", text)
            }
            LogState::Damaged(damage) => (
                "damaged".into(),
                "damage",
                format!("the audit is not what was written: {damage}"),
            ),
            _ => {
                let text = match attempt.outcome.as_ref().map(|outcome| &outcome.seal) {
                    Some(SealState::Pending { reason }) => format!("not sealed yet: {reason}"),
                    _ => "not sealed: it is being written, or its writer died".into(),
                };
                ("unsealed".into(), "damage", text)
            }
        };
        findings.audit = audit;
        Ok(self.row(findings.ended - base, kind, &text)?)
    }

    /// An event is `[microseconds, kind, text]`.
    fn row(&mut self, at: i64, kind: &str, text: &str) -> io::Result<()> {
        write!(self.out, r#"[{at},"{kind}","#)?;
        self.string(self.mask.line(text).as_bytes())?;
        writeln!(self.out, "],")
    }

    /// Output is `[microseconds, stream, text]`, and, where there is something to say of it, marks
    /// and the number of bytes that were left out.
    fn line(&mut self, line: &Line, base: i64) -> io::Result<()> {
        let (bytes, beyond) = line.shown(self.mask);
        write!(
            self.out,
            "[{},{},",
            micros(line.ts) - base,
            line.stream as u8
        )?;
        self.string(&bytes)?;
        let marks = u8::from(!line.whole) + 2 * u8::from(line.lossy);
        match (marks, beyond) {
            (0, 0) => writeln!(self.out, "],"),
            _ => writeln!(self.out, ",{marks},{beyond}],"),
        }
    }

    /// Says what was left out since the last row, if anything was.
    fn left(&mut self, left: &mut (u64, u64)) -> io::Result<()> {
        match std::mem::take(left) {
            (0, _) => Ok(()),
            (lines, bytes) => writeln!(self.out, r#"[0,"left","",{lines},{bytes}],"#),
        }
    }

    /// A string of JSON, in which a byte that is not UTF-8 is a lone surrogate, U+DC80 and up: no
    /// text can have one.
    fn string(&mut self, bytes: &[u8]) -> io::Result<()> {
        write!(self.out, "\"")?;
        for chunk in bytes.utf8_chunks() {
            let quoted = serde_json::to_string(chunk.valid())?;
            let mut pieces = quoted[1..quoted.len() - 1].split('<');
            write!(self.out, "{}", pieces.next().unwrap_or_default())?;
            for piece in pieces {
                write!(self.out, "\\u003c{piece}")?;
            }
            for byte in chunk.invalid() {
                write!(self.out, "\\udc{byte:02x}")?;
            }
        }
        write!(self.out, "\"")
    }
}

/// Reads an audit for what has to be known before its rows are written: the number of the last line
/// of its head, and that of the last one before its tail.
fn survey(audit: &Path, findings: &mut Findings) -> Result<(u64, u64), Trouble> {
    let (mut total, mut head) = (0, 0);
    let (mut tail, mut tail_bytes) = (VecDeque::new(), 0);
    for row in Rows::open(audit)? {
        let ts = match row? {
            Row::Line(line) => {
                total += 1;
                findings.lines[line.stream] += 1;
                findings.bytes += line.length + u64::from(line.whole);
                if total <= SIDE_LINES as u64 && findings.bytes <= SIDE_BYTES {
                    head = total;
                }
                let kept = line.length.min(LINE_BYTES as u64);
                tail.push_back(kept);
                tail_bytes += kept;
                while tail.len() > SIDE_LINES || tail_bytes > SIDE_BYTES {
                    tail_bytes -= tail.pop_front().unwrap_or_default();
                }
                line.ts
            }
            Row::Event(Event::Start(start)) => {
                findings.base = micros(start.record.created);
                start.ts
            }
            Row::Event(Event::Started(started)) => {
                findings.started = Some(micros(started.ts));
                started.ts
            }
            Row::Event(event) => match told(&event) {
                Some((ts, ..)) => ts,
                None => continue,
            },
        };
        // Clocks step back, and a line has the time of its first piece.
        findings.ended = findings.ended.max(micros(ts));
    }
    Ok((head, total - tail.len() as u64))
}

fn micros(ts: Timestamp) -> i64 {
    let since = SystemTime::from(ts).duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

/// The only script, or style, that the page may use.
fn hash_of(open: &str, close: &str) -> String {
    let inner = PAGE
        .split_once(open)
        .and_then(|(_, rest)| rest.split_once(close));
    let (inner, _) = inner.expect("the page has one");
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inner)))
}

//! The scan that judges a whole file, for `verify` and for `resume`.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use crate::audit::consistency::SealBasis;
use crate::audit::line::{self, Line, LineError, SEAL_TAIL};
use crate::audit::line_reader::{Advance, LineReader};
use crate::audit::{Damage, Event, Start, Tally};
use crate::outcome::Seal;

/// A position between two lines, with the state of everything before it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mark {
    pub(crate) offset: u64,
    pub(crate) lines: u64,
    pub(crate) digest: Sha256,
    pub(crate) tally: Tally,
    pub(crate) basis: SealBasis,
    pub(crate) checks: u64,
    /// The offset at which the last `check` record ends.
    pub(crate) checked: u64,
}

/// The result of a scan.
#[derive(Debug)]
pub(crate) struct Scan {
    /// The first record, if it is a `start` record.
    pub(crate) start: Option<Box<Start>>,
    /// The end of the trusted part.
    pub(crate) keep: Mark,
    pub(crate) finding: Finding,
}

#[derive(Debug)]
pub(crate) enum Finding {
    /// The file is sealed, and unchanged since.
    Sealed(Box<Seal>),
    /// The file is not sealed. `torn` bytes follow its last newline.
    Unsealed { torn: u64 },
    /// The file is damaged and was never sealed.
    ///
    /// A writer may move everything after `keep` aside.
    Repairable(Damage),
    /// The file was sealed and is damaged, or it has another version.
    ///
    /// No writer may change it.
    Damaged(Damage),
}

/// Scans a whole file.
pub(crate) fn scan(input: impl Read) -> io::Result<Scan> {
    let mut scanner = Scanner {
        lines: LineReader::digesting(input),
        start: None,
        tally: Tally::default(),
        basis: SealBasis::default(),
        checks: 0,
        last_check: Mark::default(),
        seal: None,
        damaged_seal: None,
    };
    match scanner.run()? {
        Ok(scan) => Ok(scan),
        Err(flaw) => scanner.judge(*flaw),
    }
}

struct Scanner<R> {
    lines: LineReader<R>,
    start: Option<Box<Start>>,
    tally: Tally,
    basis: SealBasis,
    checks: u64,
    /// The end of the last `check` record.
    last_check: Mark,
    seal: Option<Box<Seal>>,
    /// The flaw of the last whole line, if that line is a damaged seal.
    ///
    /// The line has an unknown type and ends as only a seal does. A bad line after it does not
    /// replace this flaw: if it were moved aside, the damaged seal would be the last line.
    damaged_seal: Option<Box<Flaw>>,
}

/// The first flaw of a file.
struct Flaw {
    damage: Damage,
    keep: Mark,
    /// Set if no writer may repair the file.
    permanent: bool,
}

impl<R: Read> Scanner<R> {
    /// Reads until the end of the file or its first flaw.
    fn run(&mut self) -> io::Result<Result<Scan, Box<Flaw>>> {
        loop {
            let result = match self.lines.advance()? {
                Advance::End => return Ok(self.end_of_file()),
                _ if self.seal.is_some() => {
                    Err(self.permanent("there are lines after the end record"))
                }
                Advance::TooLong => Err(self.first_flaw("the line is too long")),
                Advance::Line => self.record(),
            };
            if let Err(flaw) = result {
                return Ok(Err(flaw));
            }
        }
    }

    fn end_of_file(&mut self) -> Result<Scan, Box<Flaw>> {
        let tail = self.lines.tail();
        let torn = tail.len() as u64;
        if torn > 0 && self.seal.is_some() {
            return Err(self.permanent("there are bytes after the end record"));
        }
        if newline_lost(tail) {
            return Err(self.permanent("the end record is damaged"));
        }
        if let Some(flaw) = self.damaged_seal.take() {
            return Err(flaw);
        }
        let finding = match self.seal.take() {
            Some(seal) => Finding::Sealed(seal),
            None => Finding::Unsealed { torn },
        };
        Ok(Scan {
            start: self.start.take(),
            keep: self.mark(),
            finding,
        })
    }

    /// Checks the current line.
    fn record(&mut self) -> Result<(), Box<Flaw>> {
        let line = self.lines.line();
        let record = match line::parse(line) {
            Ok(record) => record,
            Err(LineError::Corrupt(reason)) => return Err(self.first_flaw(reason)),
            Err(LineError::Unsupported(reason)) => return Err(self.permanent(reason)),
        };
        let is_first = self.lines.number() == 1;
        if is_first != matches!(record, Line::Event(Event::Start(_))) {
            return Err(self.first_flaw(if is_first {
                "the first record is not a start record"
            } else {
                "there is a second start record"
            }));
        }
        self.damaged_seal = None;
        self.tally.add(&record);
        self.basis.add(self.lines.number(), &record);
        match record {
            Line::Event(Event::Start(start)) => self.start = Some(start),
            Line::Event(Event::Check { sha256 }) => self.check(&sha256)?,
            Line::Event(Event::End(seal)) => {
                self.check_seal(&seal)?;
                self.seal = Some(seal);
            }
            Line::Unknown(_) if ends_as_seal(line) => {
                self.damaged_seal = Some(self.permanent("the end record is damaged"));
            }
            Line::Output(_) | Line::Event(_) | Line::Unknown(_) => {}
        }
        Ok(())
    }

    /// Checks the digest of a `check` record.
    fn check(&mut self, sha256: &str) -> Result<(), Box<Flaw>> {
        if line::hex(&self.lines.digest_before().finalize()) != sha256 {
            return Err(self.since_last_check("a check record"));
        }
        self.checks += 1;
        self.last_check = self.mark();
        self.last_check.checked = self.last_check.offset;
        Ok(())
    }

    /// Checks the digest of an `end` record, and compares the record with the lines before it.
    fn check_seal(&mut self, seal: &Seal) -> Result<(), Box<Flaw>> {
        let mut digest = self.lines.digest_before();
        let Some((head, stated)) = line::split_seal(self.lines.line()) else {
            return Err(self.permanent("the end record does not end in its digest"));
        };
        digest.update(head);
        if line::hex(&digest.finalize()).as_bytes() != stated {
            let mut flaw = self.since_last_check("the end record");
            flaw.permanent = true;
            return Err(flaw);
        }
        let stated = Tally {
            records: seal.records,
            bytes: seal.bytes,
            gaps: seal.gaps,
        };
        if stated != self.tally {
            return Err(self.permanent(format!(
                "the end record counts {stated}, the file has {}",
                self.tally
            )));
        }
        match self.basis.contradiction(seal) {
            Some(reason) => Err(self.permanent(reason)),
            None => Ok(()),
        }
    }

    fn mark(&mut self) -> Mark {
        Mark {
            offset: self.lines.end_offset(),
            lines: self.lines.number(),
            digest: self.lines.digest_with(),
            tally: self.tally,
            basis: self.basis.clone(),
            checks: self.checks,
            checked: self.last_check.checked,
        }
    }

    /// A flaw of the current line, unless the line before it is a damaged seal.
    fn first_flaw(&mut self, reason: impl Into<String>) -> Box<Flaw> {
        match self.damaged_seal.take() {
            Some(flaw) => flaw,
            None => self.flaw(reason, false),
        }
    }

    /// A flaw of the current line, in a file that no writer may repair.
    fn permanent(&mut self, reason: impl Into<String>) -> Box<Flaw> {
        self.flaw(reason, true)
    }

    fn flaw(&mut self, reason: impl Into<String>, permanent: bool) -> Box<Flaw> {
        Box::new(Flaw {
            damage: Damage {
                line: self.lines.number_here(),
                offset: self.lines.offset(),
                reason: reason.into(),
            },
            keep: Mark {
                offset: self.lines.offset(),
                lines: self.lines.number_here() - 1,
                digest: self.lines.digest_before(),
                tally: self.tally,
                basis: self.basis.clone(),
                checks: self.checks,
                checked: self.last_check.checked,
            },
            permanent,
        })
    }

    /// The flaw of a digest that does not match.
    ///
    /// Any byte since the last matching digest may be damaged.
    fn since_last_check(&mut self, record: &str) -> Box<Flaw> {
        Box::new(Flaw {
            damage: Damage {
                line: self.last_check.lines + 1,
                offset: self.last_check.offset,
                reason: format!(
                    "the digest of {record} does not match: a byte from here to the end of line \
                     {} (offset {}) has changed",
                    self.lines.number(),
                    self.lines.end_offset()
                ),
            },
            keep: self.last_check.clone(),
            permanent: false,
        })
    }

    /// Decides whether a flawed file may be repaired: only if it was never sealed.
    fn judge(mut self, flaw: Flaw) -> io::Result<Scan> {
        let finding = if flaw.permanent || self.was_sealed()? {
            Finding::Damaged(flaw.damage)
        } else {
            Finding::Repairable(flaw.damage)
        };
        Ok(Scan {
            start: self.start,
            keep: flaw.keep,
            finding,
        })
    }

    /// Reads the rest of the file, and returns true if the file was once sealed.
    fn was_sealed(&mut self) -> io::Result<bool> {
        let mut sealed = false;
        let mut last_is_seal = false;
        let mut advance = Advance::Line;
        let line = self.lines.line();
        if line::begins_as_seal(line) && line::has_zeros(line) {
            // A writer syncs everything before a seal, then writes it. So a power loss during that
            // write leaves the seal as the first flaw and the last line.
            advance = self.lines.advance()?;
            sealed = advance != Advance::End || !self.lines.tail().is_empty();
        }
        loop {
            match advance {
                Advance::Line => {
                    let line = self.lines.line();
                    sealed |= line::begins_as_seal(line);
                    last_is_seal = ends_as_seal(line);
                }
                Advance::TooLong => last_is_seal = false,
                Advance::End => break,
            }
            advance = self.lines.advance()?;
        }
        Ok(sealed || last_is_seal || newline_lost(self.lines.tail()))
    }
}

/// The length of a `check` record. Its last bytes have the form of a seal's.
const CHECK_LENGTH: usize = r#"{"type":"check""#.len() + SEAL_TAIL;

/// Returns true if a whole line of unknown type can only have been a seal.
///
/// A line with zeros can also have been a `check` record and the lines before it.
pub(crate) fn ends_as_seal(line: &[u8]) -> bool {
    line.len() != CHECK_LENGTH && line::split_seal(line).is_some() && !line::has_zeros(line)
}

/// Returns true if `tail`, the bytes after the last newline, is a seal whose newline has changed.
///
/// No crash of a writer leaves such a tail. A crash leaves a prefix of the line, or zeros in place
/// of the rest.
pub(crate) fn newline_lost(tail: &[u8]) -> bool {
    if tail.len() <= SEAL_TAIL || tail.len() == CHECK_LENGTH || tail.ends_with(&[0]) {
        return false;
    }
    let mut end = tail[tail.len() - SEAL_TAIL..].to_vec();
    end[SEAL_TAIL - 1] = b'\n';
    line::split_seal(&end).is_some()
}

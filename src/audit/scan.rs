//! The one way in which a whole file is judged: for `verify`, and for `resume`.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use crate::audit::line::{self, Bad, Line, SEAL_TAIL};
use crate::audit::lines::{Advance, Lines};
use crate::audit::{Damage, Event, Tally};
use crate::outcome::Seal;

/// A place between two lines, and what is known of all that is before it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mark {
    pub(crate) offset: u64,
    pub(crate) lines: u64,
    pub(crate) digest: Sha256,
    pub(crate) tally: Tally,
    pub(crate) checks: u64,
    /// Where the last `check` record ends.
    pub(crate) checked: u64,
}

/// What a file is found to be.
#[derive(Debug)]
pub(crate) struct Scan {
    /// The end of what can be trusted.
    pub(crate) keep: Mark,
    pub(crate) found: OwnedContainer,
}

#[derive(Debug)]
pub(crate) enum OwnedContainer {
    /// Sealed, and as it was sealed.
    Sealed(Box<Seal>),
    /// Not sealed; so many bytes at the end are not a whole line.
    Unsealed { torn: u64 },
    /// Not sealed, and damaged: what is behind `keep` is of no use.
    TruncatedTail(Damage),
    /// Not what its writer wrote, or not for this version: only a human may change it.
    Damaged(Damage),
}

/// Reads a whole file.
pub(crate) fn scan(input: impl Read) -> io::Result<Scan> {
    let mut scan = Scanner {
        lines: Lines::digesting(input),
        tally: Tally::default(),
        checks: 0,
        safe: Mark::default(),
    };
    match scan.whole()? {
        Ok(scan) => Ok(scan),
        Err(flaw) => scan.judge(flaw),
    }
}

struct Scanner<R> {
    lines: Lines<R>,
    tally: Tally,
    checks: u64,
    /// The end of the last `check` record.
    safe: Mark,
}

/// The first thing that is wrong with a file, and what that says of it.
struct Flaw {
    damage: Damage,
    keep: Mark,
    /// Whether it is certain that nothing may be changed.
    fixed: bool,
}

impl<R: Read> Scanner<R> {
    /// Reads until the end, or the first flaw.
    fn whole(&mut self) -> io::Result<Result<Scan, Flaw>> {
        let mut seal: Option<Box<Seal>> = None;
        // What the last whole line is if it is none that we know, and ends as only a seal does.
        // What is bad behind it says no more of the file: cut off, it would leave that line last.
        let mut disguised = None;
        loop {
            let advance = self.lines.advance()?;
            if advance != Advance::End && seal.is_some() {
                return Ok(Err(self.fixed("there are lines after the end record")));
            }
            match advance {
                Advance::TooLong => {
                    let flaw = disguised.unwrap_or_else(|| self.here("the line is too long"));
                    return Ok(Err(flaw));
                }
                Advance::Line => {}
                Advance::End => {
                    let tail = self.lines.tail();
                    let torn = tail.len() as u64;
                    if torn > 0 && seal.is_some() {
                        return Ok(Err(self.fixed("there are bytes after the end record")));
                    }
                    if newline_lost(tail) {
                        return Ok(Err(self.fixed("the end record is damaged")));
                    }
                    if let Some(flaw) = disguised {
                        return Ok(Err(flaw));
                    }
                    let keep = self.mark();
                    let found = match seal {
                        Some(seal) => OwnedContainer::Sealed(seal),
                        None => OwnedContainer::Unsealed { torn },
                    };
                    return Ok(Ok(Scan { keep, found }));
                }
            }
            let line = self.lines.line();
            let record = match line::parse(line) {
                Ok(record) => record,
                Err(Bad::TruncatedTail(reason)) => {
                    return Ok(Err(disguised.unwrap_or_else(|| self.here(reason))));
                }
                Err(Bad::Foreign(reason)) => return Ok(Err(self.fixed(reason))),
            };
            let first = self.lines.number() == 1;
            if first != matches!(record, Line::Event(Event::Start(_))) {
                let reason = if first {
                    "the first record is not a start record"
                } else {
                    "there is a second start record"
                };
                return Ok(Err(disguised.unwrap_or_else(|| self.here(reason))));
            }
            disguised = None;
            self.tally.add(&record);
            match record {
                Line::Event(Event::Check { sha256 }) => {
                    if line::hex(&self.lines.digest_before().finalize()) != sha256 {
                        return Ok(Err(self.since_check("a check record")));
                    }
                    self.checks += 1;
                    self.safe = self.mark();
                    self.safe.checked = self.safe.offset;
                }
                Line::Event(Event::End(end)) => {
                    if let Err(flaw) = self.end(&end) {
                        return Ok(Err(*flaw));
                    }
                    seal = Some(end);
                }
                Line::Unknown(_) if ends_as_seal(line) => {
                    disguised = Some(self.fixed("the end record is damaged"));
                }
                Line::Unknown(_) => {}
                Line::Output(_) | Line::Event(_) => {}
            }
        }
    }

    fn end(&mut self, end: &Seal) -> Result<(), Box<Flaw>> {
        let mut digest = self.lines.digest_before();
        let Some((head, stated)) = line::split_seal(self.lines.line()) else {
            return Err(self
                .fixed("the end record does not end in its digest")
                .into());
        };
        digest.update(head);
        if line::hex(&digest.finalize()).as_bytes() != stated {
            let since = self.since_check("the end record");
            return Err(Box::new(Flaw {
                fixed: true,
                ..since
            }));
        }
        let told = Tally {
            records: end.records,
            bytes: end.bytes,
            gaps: end.gaps,
        };
        if told != self.tally {
            return Err(self
                .fixed(format!(
                    "the end record counts {told}, the file has {}",
                    self.tally
                ))
                .into());
        }
        Ok(())
    }

    fn mark(&mut self) -> Mark {
        Mark {
            offset: self.lines.end_offset(),
            lines: self.lines.number(),
            digest: self.lines.digest_with(),
            tally: self.tally,
            checks: self.checks,
            checked: self.safe.checked,
        }
    }

    /// The current line is bad.
    fn here(&mut self, reason: impl Into<String>) -> Flaw {
        Flaw {
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
                checks: self.checks,
                checked: self.safe.checked,
            },
            fixed: false,
        }
    }

    fn fixed(&mut self, reason: impl Into<String>) -> Flaw {
        Flaw {
            fixed: true,
            ..self.here(reason)
        }
    }

    /// A digest does not hold: any byte since the last one that held may be the damaged one.
    fn since_check(&mut self, what: &str) -> Flaw {
        Flaw {
            damage: Damage {
                line: self.safe.lines + 1,
                offset: self.safe.offset,
                reason: format!(
                    "the digest of {what} does not hold: a byte from here to the end of line {} \
                     (offset {}) is not the one that was written",
                    self.lines.number(),
                    self.lines.end_offset()
                ),
            },
            keep: self.safe.clone(),
            fixed: false,
        }
    }

    /// Reads on, to see whether what is flawed was sealed.
    fn judge(mut self, flaw: Flaw) -> io::Result<Scan> {
        let mut sealed = flaw.fixed;
        let mut last_is_seal = false;
        if !sealed {
            let mut advance = Advance::Line;
            let line = self.lines.line();
            if line::begins_as_seal(line) && line::has_zeros(line) {
                // All before a seal is synced before it is written. So if the power failed then,
                // the seal itself is the first flaw, and the last line.
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
            sealed |= last_is_seal || newline_lost(self.lines.tail());
        }
        Ok(Scan {
            keep: flaw.keep,
            found: if sealed {
                OwnedContainer::Damaged(flaw.damage)
            } else {
                OwnedContainer::TruncatedTail(flaw.damage)
            },
        })
    }
}

/// The length of a `check` record, which ends as a seal does.
const CHECK: usize = r#"{"type":"check""#.len() + SEAL_TAIL;

/// Whether this whole line, which is no record that we know, can only have been a seal. With zeros
/// it can have been a `check` record as well, and what was before it.
pub(crate) fn ends_as_seal(line: &[u8]) -> bool {
    line.len() != CHECK && line::split_seal(line).is_some() && !line::has_zeros(line)
}

/// Whether the bytes behind the last newline are a seal whose newline has become another byte. No
/// crash of a writer leaves that: it leaves a beginning of the line, or zeros where the rest of it
/// was to be.
pub(crate) fn newline_lost(tail: &[u8]) -> bool {
    if tail.len() <= SEAL_TAIL || tail.len() == CHECK || tail.ends_with(&[0]) {
        return false;
    }
    let mut end = tail[tail.len() - SEAL_TAIL..].to_vec();
    end[SEAL_TAIL - 1] = b'\n';
    line::split_seal(&end).is_some()
}

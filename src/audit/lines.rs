//! The lines of a file, in bounded memory, with the digest of what was read.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use crate::audit::digest::Running;

/// The longest line that a file has, its newline included: 16 MiB.
pub(crate) const LONGEST_LINE: usize = 16 << 20;

/// Small files are many, and want little.
const FIRST_CHUNK: usize = 16 << 10;
const CHUNK: usize = 256 << 10;

/// The lines of `R`, one at a time, each in place in the buffer.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    /// The bytes of `buffer` that were read.
    filled: usize,
    /// The current line, newline included, is `start..end`.
    start: usize,
    end: usize,
    /// There is no newline in `end..searched`.
    searched: usize,
    /// Where `start` is in the file.
    offset: u64,
    number: u64,
    /// Of all that is before `hashed`; `None` where nobody asked for it.
    digest: Option<Running>,
    hashed: usize,
    skipping: bool,
}

/// What [`Lines::advance`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advance {
    /// A line: [`Lines::line`].
    Line,
    /// A line that is too long to be one of ours. Past it there is no digest.
    TooLong,
    /// Where the input ends for now: behind it are the bytes of [`Lines::tail`].
    End,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            buffer: Vec::new(),
            filled: 0,
            start: 0,
            end: 0,
            searched: 0,
            offset: 0,
            number: 0,
            digest: None,
            hashed: 0,
            skipping: false,
        }
    }

    /// The same, with a digest of what was read.
    pub(crate) fn digesting(input: R) -> Self {
        Self {
            digest: Some(Running::new()),
            ..Self::new(input)
        }
    }

    /// Goes to the next line. It may be called again after an end, or an error.
    pub(crate) fn advance(&mut self) -> io::Result<Advance> {
        if self.skipping && !self.skip()? {
            return Ok(Advance::End);
        }
        self.offset += (self.end - self.start) as u64;
        self.start = self.end;
        loop {
            let fresh = &self.buffer[self.searched..self.filled];
            if let Some(at) = memchr::memchr(b'\n', fresh) {
                self.end = self.searched + at + 1;
                self.searched = self.end;
                self.number += 1;
                if self.end - self.start > LONGEST_LINE {
                    return Ok(Advance::TooLong);
                }
                return Ok(Advance::Line);
            }
            self.searched = self.filled;
            if self.filled - self.start >= LONGEST_LINE {
                self.skipping = true;
                return Ok(Advance::TooLong);
            }
            if self.fill()? == 0 {
                return Ok(Advance::End);
            }
        }
    }

    /// Drops what is left of a line that is too long; `false`: it does not end.
    fn skip(&mut self) -> io::Result<bool> {
        self.digest = None;
        loop {
            let rest = &self.buffer[self.start..self.filled];
            match memchr::memchr(b'\n', rest) {
                Some(at) => {
                    self.offset += at as u64 + 1;
                    self.start += at + 1;
                    self.end = self.start;
                    self.searched = self.start;
                    self.skipping = false;
                    self.number += 1;
                    return Ok(true);
                }
                None => {
                    self.offset += rest.len() as u64;
                    (self.start, self.end, self.searched, self.filled) = (0, 0, 0, 0);
                    if self.fill()? == 0 {
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        if self.filled == self.buffer.len() {
            self.hash(self.start);
            self.buffer.copy_within(self.start..self.filled, 0);
            self.filled -= self.start;
            self.searched -= self.start;
            self.end -= self.start;
            self.start = 0;
            self.hashed = 0;
            if self.filled == self.buffer.len() || self.buffer.len() < CHUNK {
                let length = (self.buffer.len() * 2).clamp(FIRST_CHUNK, LONGEST_LINE + CHUNK);
                self.buffer.resize(length, 0);
            }
        }
        loop {
            match self.input.read(&mut self.buffer[self.filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.filled += count;
                    return Ok(count);
                }
            }
        }
    }

    fn hash(&mut self, until: usize) {
        if let Some(digest) = &mut self.digest {
            digest.update(&self.buffer[self.hashed..until]);
        }
        self.hashed = until;
    }

    /// The current line, with its newline; empty before the first one, and at the end.
    pub(crate) fn line(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// At the end: what follows the last newline.
    pub(crate) fn tail(&self) -> &[u8] {
        &self.buffer[self.end..self.filled]
    }

    /// Where the current line starts in the file.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the current line ends in the file.
    pub(crate) fn end_offset(&self) -> u64 {
        self.offset + (self.end - self.start) as u64
    }

    /// The number of whole lines to the end of the current one, which has this number.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The number of the line that starts at [`Lines::offset`], be it whole or not.
    pub(crate) fn number_here(&self) -> u64 {
        self.number + u64::from(self.line().is_empty())
    }

    /// The digest, so far, of every byte before the current line.
    pub(crate) fn digest_before(&mut self) -> Sha256 {
        self.hash(self.start);
        self.digest.as_ref().map(Running::get).unwrap_or_default()
    }

    /// The digest, so far, of every byte to the end of the current line.
    pub(crate) fn digest_with(&mut self) -> Sha256 {
        let mut digest = self.digest_before();
        digest.update(&self.buffer[self.start..self.end]);
        digest
    }

    /// The input.
    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    /// Gives the tail back, so that it is read again: it may be another one then.
    pub(crate) fn rewind(&mut self) -> io::Result<()>
    where
        R: io::Seek,
    {
        self.filled = self.end;
        self.searched = self.end;
        let offset = self.end_offset();
        self.input.seek(io::SeekFrom::Start(offset)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(&mut buffer[..1])
        }
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let text = b"one\n\nthree\ntail";
        for lines in [
            &mut Lines::digesting(Box::new(&text[..]) as Box<dyn Read>),
            &mut Lines::digesting(Box::new(Trickle(text)) as Box<dyn Read>),
        ] {
            let mut seen = Vec::new();
            while lines.advance().unwrap() == Advance::Line {
                let with = lines.digest_with().finalize();
                let end = usize::try_from(lines.end_offset()).unwrap();
                assert_eq!(with, Sha256::digest(&text[..end]));
                seen.push((lines.number(), lines.offset(), lines.line().to_vec()));
            }
            assert_eq!(
                seen,
                [
                    (1, 0, b"one\n".to_vec()),
                    (2, 4, b"\n".to_vec()),
                    (3, 5, b"three\n".to_vec())
                ]
            );
            assert_eq!((lines.tail(), lines.offset()), (&b"tail"[..], 11));
        }
    }

    #[test]
    fn a_line_that_is_too_long_takes_bounded_memory_and_hides_nothing_behind_it() {
        let long = io::repeat(b'x').take(100 << 20);
        let input = (&b"first\n"[..]).chain(long).chain(&b"\nlast\n"[..]);
        let mut lines = Lines::new(input);
        assert_eq!(lines.advance().unwrap(), Advance::Line);
        assert_eq!(lines.advance().unwrap(), Advance::TooLong);
        assert_eq!((lines.number_here(), lines.offset()), (2, 6));
        assert_eq!(lines.advance().unwrap(), Advance::Line);
        assert_eq!((lines.line(), lines.number()), (&b"last\n"[..], 3));
        assert_eq!(lines.offset(), 6 + (100 << 20) + 1);
        assert!(lines.buffer.len() <= LONGEST_LINE + CHUNK);
        assert_eq!(lines.advance().unwrap(), Advance::End);
    }

    #[test]
    fn the_digest_is_right_across_many_refills() {
        let text: Vec<u8> = (0..200_000u32)
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .collect();
        let mut lines = Lines::digesting(&text[..]);
        while lines.advance().unwrap() == Advance::Line {}
        assert_eq!(lines.digest_before().finalize(), Sha256::digest(&text));
    }
}

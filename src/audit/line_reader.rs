//! The line reader: bounded memory, and a digest of the bytes read.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use crate::audit::digest::RunningDigest;

/// The maximum length of a line, including its newline: 16 MiB.
pub(crate) const MAX_LINE_BYTES: usize = 16 << 20;

/// The initial size of the buffer: most files are small.
const INITIAL_BUFFER_BYTES: usize = 16 << 10;
const BUFFER_BYTES: usize = 256 << 10;

/// Reads lines from `R` one at a time, each in place in the buffer.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    input: R,
    buffer: Vec<u8>,
    /// The number of bytes read into `buffer`.
    filled: usize,
    /// The current line, including its newline, is `start..end`.
    start: usize,
    end: usize,
    /// `end..searched` has no newline.
    searched: usize,
    /// The offset of `start` in the file.
    offset: u64,
    number: u64,
    /// The digest of the file up to `hashed`, if requested.
    digest: Option<RunningDigest>,
    hashed: usize,
    /// Set while the rest of a line that is too long is skipped.
    skipping: bool,
}

/// The result of [`LineReader::advance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advance {
    /// A line: see [`LineReader::line`].
    Line,
    /// A line longer than the maximum. There is no digest after it.
    TooLong,
    /// The current end of the input: see [`LineReader::tail`].
    End,
}

impl<R: Read> LineReader<R> {
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

    /// Creates a reader with a digest of the bytes read.
    pub(super) fn digesting(input: R) -> Self {
        Self {
            digest: Some(RunningDigest::new()),
            ..Self::new(input)
        }
    }

    /// Advances to the next line.
    ///
    /// May be called again after the end, because the input may grow, and after an error.
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
                if self.end - self.start > MAX_LINE_BYTES {
                    return Ok(Advance::TooLong);
                }
                return Ok(Advance::Line);
            }
            self.searched = self.filled;
            if self.filled - self.start >= MAX_LINE_BYTES {
                self.skipping = true;
                return Ok(Advance::TooLong);
            }
            if self.fill()? == 0 {
                return Ok(Advance::End);
            }
        }
    }

    /// Skips the rest of a line that is too long.
    ///
    /// Returns false if the line has no end yet.
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
            if self.filled == self.buffer.len() || self.buffer.len() < BUFFER_BYTES {
                let length = (self.buffer.len() * 2)
                    .clamp(INITIAL_BUFFER_BYTES, MAX_LINE_BYTES + BUFFER_BYTES);
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

    /// The current line with its newline. It is empty before the first line and at the end.
    pub(crate) fn line(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The bytes after the last newline, once the end is reached.
    pub(super) fn tail(&self) -> &[u8] {
        &self.buffer[self.end..self.filled]
    }

    /// The offset of the current line's start.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The offset of the current line's end.
    pub(super) fn end_offset(&self) -> u64 {
        self.offset + (self.end - self.start) as u64
    }

    /// The number of the current whole line, counted from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The number of the line at [`LineReader::offset`], whole or not.
    pub(super) fn number_here(&self) -> u64 {
        self.number + u64::from(self.line().is_empty())
    }

    /// The digest of every byte before the current line.
    pub(super) fn digest_before(&mut self) -> Sha256 {
        self.hash(self.start);
        self.digest
            .as_ref()
            .map(RunningDigest::snapshot)
            .unwrap_or_default()
    }

    /// The digest of every byte up to the end of the current line.
    pub(super) fn digest_with(&mut self) -> Sha256 {
        let mut digest = self.digest_before();
        digest.update(&self.buffer[self.start..self.end]);
        digest
    }

    /// The input.
    pub(super) fn input(&self) -> &R {
        &self.input
    }

    /// Seeks back to the start of the tail, which may change before it is read again.
    pub(super) fn rewind(&mut self) -> io::Result<()>
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

    /// Reads one byte at a time.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(&mut buffer[..1])
        }
    }

    #[test]
    fn lines_do_not_depend_on_read_sizes() {
        let text = b"one\n\nthree\ntail";
        for lines in [
            &mut LineReader::digesting(Box::new(&text[..]) as Box<dyn Read>),
            &mut LineReader::digesting(Box::new(Trickle(text)) as Box<dyn Read>),
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
    fn an_overlong_line_takes_bounded_memory() {
        let long = io::repeat(b'x').take(100 << 20);
        let input = (&b"first\n"[..]).chain(long).chain(&b"\nlast\n"[..]);
        let mut lines = LineReader::new(input);
        assert_eq!(lines.advance().unwrap(), Advance::Line);
        assert_eq!(lines.advance().unwrap(), Advance::TooLong);
        assert_eq!((lines.number_here(), lines.offset()), (2, 6));
        assert_eq!(lines.advance().unwrap(), Advance::Line);
        assert_eq!((lines.line(), lines.number()), (&b"last\n"[..], 3));
        assert_eq!(lines.offset(), 6 + (100 << 20) + 1);
        assert!(lines.buffer.len() <= MAX_LINE_BYTES + BUFFER_BYTES);
        assert_eq!(lines.advance().unwrap(), Advance::End);
    }

    #[test]
    fn the_digest_survives_many_refills() {
        let text: Vec<u8> = (0..200_000u32)
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .collect();
        let mut lines = LineReader::digesting(&text[..]);
        while lines.advance().unwrap() == Advance::Line {}
        assert_eq!(lines.digest_before().finalize(), Sha256::digest(&text));
    }
}

//! The end of a ledger: its last whole line.

use std::fs::File;
use std::io::{self, ErrorKind, Write};

use crate::disk;
use crate::root::ledger::line::{self, LedgerEntry, LedgerLine, NO_DIGEST};
use crate::spec::RootId;

/// The size of a read.
const CHUNK_BYTES: u64 = 64 << 10;
/// The size of the end of the file in which a power loss may have left holes.
const HOLE_WINDOW_BYTES: u64 = 128 << 10;
/// The maximum length of a line. moat writes at most 20 KiB.
const MAX_LINE_BYTES: usize = 1 << 20;
/// The number of bytes in which the first line must end.
const MAX_FIRST_LINE_BYTES: usize = 4 << 10;

/// The end of the last whole line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// The number of bytes up to the end of the line.
    pub(super) length: u64,
    /// The number of the line.
    pub(super) number: u64,
    /// The digest of the line, with its newline.
    pub(super) digest: String,
}

impl Default for End {
    /// The end of an empty ledger.
    fn default() -> Self {
        Self {
            length: 0,
            number: 0,
            digest: NO_DIGEST.to_owned(),
        }
    }
}

impl End {
    /// The end after `line`, which begins at `offset` and has its newline.
    pub(super) fn after(line: &[u8], number: u64, offset: u64) -> Self {
        Self {
            length: offset + line.len() as u64,
            number,
            digest: line::digest(line),
        }
    }
}

/// Finds the last whole line that no lost bytes precede. Returns `None` if there is none.
///
/// Bytes after it are what a crash left of later lines. A power loss leaves zeros in place of lost
/// bytes, also between lines that survived. A line without zeros that is none of moat's was edited,
/// and stays in its place.
pub(super) fn find(file: &File, length: u64) -> io::Result<Option<End>> {
    let window = HOLE_WINDOW_BYTES.min(length);
    let mut tail = vec![0; window as usize];
    let count = read_full(file, &mut tail, length - window)?;
    let hole = memchr::memchr(0, &tail[..count]);
    let intact = hole.map_or(length, |at| length - window + at as u64);
    let mut lines = Backward::new(file, 0, intact);
    let mut last: Option<End> = None;
    // The number of lines after the one that was read last.
    let mut later = 0;
    while let Some(found) = lines.next()? {
        let number = LedgerLine::parse(found.bytes).map(|line| line.number + later);
        let end = last.get_or_insert_with(|| End::after(found.bytes, 0, found.offset));
        if let Ok(number) = number {
            end.number = number;
            break;
        }
        later += 1;
        end.number = later;
    }
    Ok(last)
}

/// The end of a ledger, compared with a line that was signed.
#[cfg(feature = "sign")]
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Continuation {
    /// The ledger has no line.
    Empty,
    /// The last line. All lines between it and the signed one are intact.
    Continued(End),
    /// The reason why the ledger does not continue the signed line.
    Broken(String),
}

/// Follows the chain from the last line back to the line `signed`, or to the first line.
#[cfg(feature = "sign")]
pub(super) fn continuation(
    file: &File,
    length: u64,
    signed: Option<(u64, &str)>,
) -> io::Result<Continuation> {
    let (number, sha256) = signed.unwrap_or((0, NO_DIGEST));
    let Some(last) = find(file, length)? else {
        return Ok(match number {
            0 => Continuation::Empty,
            _ => Continuation::Broken(format!("line {number}, which was signed, is missing")),
        });
    };
    let mut lines = Backward::new(file, 0, last.length);
    // The number and the digest of the line before those that were read.
    let mut expected = (last.number, last.digest.clone());
    while expected.0 > number {
        let Some(found) = lines.next()? else {
            return Ok(Continuation::Broken(format!(
                "line {} is missing",
                expected.0
            )));
        };
        match LedgerLine::parse(found.bytes) {
            Ok(line) if (line.number, line::digest(found.bytes)) == expected => {
                expected = (line.number - 1, line.prev);
            }
            _ => {
                return Ok(Continuation::Broken(format!(
                    "line {} was changed",
                    expected.0
                )));
            }
        }
    }
    Ok(
        match (expected.0, expected.1.as_str()) == (number, sha256) {
            true => Continuation::Continued(last),
            false => Continuation::Broken(format!(
                "it does not continue line {number}, which was signed"
            )),
        },
    )
}

/// Returns the root that the first line names. Returns `None` if the first line is not whole.
///
/// The inner error is for a first line that another program or a later version has written.
pub(super) fn root(file: &File) -> io::Result<Result<Option<RootId>, String>> {
    let mut head = vec![0; MAX_FIRST_LINE_BYTES];
    let count = read_full(file, &mut head, 0)?;
    let Some(newline) = memchr::memchr(b'\n', &head[..count]) else {
        return Ok(match count < MAX_FIRST_LINE_BYTES {
            true => Ok(None),
            false => Err("its first line is too long".into()),
        });
    };
    let first = &head[..newline];
    if first.contains(&0) {
        return Ok(Ok(None));
    }
    Ok(match LedgerLine::parse(first) {
        Ok(LedgerLine {
            entry: LedgerEntry::Created { root },
            ..
        }) => Ok(Some(root)),
        Ok(_) => Err("its first line is missing".into()),
        Err(reason) => Err(format!("its first line: {reason}")),
    })
}

/// Copies the bytes from `from` to `to` into `out`.
pub(super) fn copy(file: &File, from: u64, to: u64, out: &disk::File) -> io::Result<()> {
    let mut out: &disk::File = out;
    let mut at = from;
    while at < to {
        let mut chunk = vec![0; CHUNK_BYTES.min(to - at) as usize];
        let count = read_full(file, &mut chunk, at)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        out.write_all(&chunk[..count])?;
        at += count as u64;
    }
    Ok(())
}

/// Reads until the buffer is full, or the file ends.
fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match disk::read_at(file, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The whole lines of a part of a file, from the last to the first.
#[derive(Debug)]
pub(super) struct Backward<'a> {
    file: &'a File,
    /// The offset at which the part begins: the start of a line.
    since: u64,
    /// The offset of `buffer` in the file.
    offset: u64,
    /// The bytes from `offset` to the end of the next line to return.
    buffer: Vec<u8>,
    line: Vec<u8>,
}

/// A whole line, with its newline.
pub(super) struct FoundLine<'a> {
    pub(super) offset: u64,
    pub(super) bytes: &'a [u8],
}

impl<'a> Backward<'a> {
    pub(super) fn new(file: &'a File, since: u64, length: u64) -> Self {
        Self {
            file,
            since,
            offset: length.max(since),
            buffer: Vec::new(),
            line: Vec::new(),
        }
    }

    /// Returns the line before those that were returned.
    pub(super) fn next(&mut self) -> io::Result<Option<FoundLine<'_>>> {
        // Bytes after the last newline are no whole line.
        loop {
            match memchr::memrchr(b'\n', &self.buffer) {
                Some(newline) => {
                    self.buffer.truncate(newline + 1);
                    break;
                }
                None => {
                    self.buffer.clear();
                    if !self.fill()? {
                        return Ok(None);
                    }
                }
            }
        }
        loop {
            let before = &self.buffer[..self.buffer.len() - 1];
            let start = match memchr::memrchr(b'\n', before) {
                Some(newline) => newline + 1,
                None if self.offset == self.since => 0,
                None if self.buffer.len() > MAX_LINE_BYTES => {
                    let long = format!("a line is longer than {MAX_LINE_BYTES} bytes");
                    return Err(io::Error::new(ErrorKind::InvalidData, long));
                }
                None => {
                    self.fill()?;
                    continue;
                }
            };
            self.line.clear();
            self.line.extend_from_slice(&self.buffer[start..]);
            self.buffer.truncate(start);
            return Ok(Some(FoundLine {
                offset: self.offset + start as u64,
                bytes: &self.line,
            }));
        }
    }

    /// Reads the bytes before the buffer. Returns false if there are none.
    fn fill(&mut self) -> io::Result<bool> {
        let wanted = CHUNK_BYTES.min(self.offset - self.since);
        if wanted == 0 {
            return Ok(false);
        }
        let mut chunk = vec![0; wanted as usize];
        let count = read_full(self.file, &mut chunk, self.offset - wanted)?;
        if (count as u64) < wanted {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        chunk.append(&mut self.buffer);
        self.buffer = chunk;
        self.offset -= wanted;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines_of(text: &[u8], since: u64) -> Vec<(u64, Vec<u8>)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let mut lines = Backward::new(&file, since, text.len() as u64);
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push((line.offset, line.bytes.to_vec()));
        }
        all
    }

    #[test]
    fn lines_are_read_from_the_last_to_the_first() {
        let short = lines_of(b"a\nbb\nc\ntorn", 0);
        let expected = [(5, &b"c\n"[..]), (2, b"bb\n"), (0, b"a\n")];
        let expected: Vec<_> = expected.map(|(at, line)| (at, line.to_vec())).into();
        assert_eq!(short, expected);
        assert_eq!(lines_of(b"a\nbb\nc\n", 2), expected[..2]);
        assert_eq!(lines_of(b"", 0), []);
        assert_eq!(lines_of(b"torn", 0), []);

        let long: Vec<u8> = (0..50_000)
            .flat_map(|n| format!("{n}\n").into_bytes())
            .collect();
        let lines = lines_of(&long, 0);
        assert_eq!(lines.len(), 50_000);
        assert!(
            lines
                .iter()
                .rev()
                .enumerate()
                .all(|(n, (_, line))| *line == format!("{n}\n").as_bytes())
        );
    }

    #[test]
    fn a_line_longer_than_a_read_is_found() {
        let mut text = b"first\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', 300_000));
        text.extend_from_slice(b"\ntail");
        let lines = lines_of(&text, 0);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].0, lines[0].1.len()), (6, 300_001));
    }
}

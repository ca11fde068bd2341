//! A line that a run prints.

use std::fmt;

use regex::bytes::Regex;

use crate::outcome::{PerStream, Stream};
use crate::spec::InvalidSpec;

/// The maximum length of a line that a regular expression is matched against, in bytes.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// Output to wait for: see [`Ready::line_with`](super::Ready::line_with).
#[derive(Debug, Clone)]
pub struct LineMatch {
    pattern: Pattern,
    stream: Option<Stream>,
    times: usize,
}

#[derive(Debug, Clone)]
enum Pattern {
    Text(String),
    Regex(Regex),
}

impl LineMatch {
    /// Matches output that contains `text`. The line need not be complete.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Pattern::Text(text.into()))
    }

    /// Matches complete lines that contain a match of the regular expression `pattern`.
    ///
    /// The syntax is that of the crate [`regex`](https://docs.rs/regex), without the Unicode
    /// tables of `\p`. A line is matched without its line ending; `^` and `$` are its ends. The last
    /// line of a run is complete when the run ends. A line longer than 64 KiB is matched in parts.
    ///
    /// # Errors
    ///
    /// [`InvalidSpec`] with the reason if `pattern` is not a valid regular expression.
    pub fn regex(pattern: &str) -> Result<Self, InvalidSpec> {
        match Regex::new(pattern) {
            Ok(regex) => Ok(Self::new(Pattern::Regex(regex))),
            Err(error) => Err(InvalidSpec::new("regex", error.to_string())),
        }
    }

    fn new(pattern: Pattern) -> Self {
        Self {
            pattern,
            stream: None,
            times: 1,
        }
    }

    /// Searches one stream only. Default: each stream.
    ///
    /// A run with a terminal has the stream [`Stream::Tty`] only.
    pub fn on(mut self, stream: Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Sets the number of matches, over all streams that are searched. Default: 1.
    ///
    /// A text can match more than once in a line. A regular expression can only in a line longer than
    /// 64 KiB.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    pub(super) fn validate(&self) -> Result<(), InvalidSpec> {
        match self.times {
            0 => Err(InvalidSpec::new("times", "it is 0")),
            _ => Ok(()),
        }
    }
}

/// Completes "before ...".
impl fmt::Display for LineMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.pattern, self.times) {
            (Pattern::Text(text), _) => write!(f, "it printed {text:?}")?,
            (Pattern::Regex(regex), 1) => write!(f, "it printed a line matching `{regex}`")?,
            (Pattern::Regex(regex), _) => write!(f, "it printed lines matching `{regex}`")?,
        }
        if let Some(stream) = self.stream {
            write!(f, " on {stream}")?;
        }
        match self.times {
            1 => Ok(()),
            times => write!(f, " {times} times"),
        }
    }
}

/// A search in the output of a run.
#[derive(Debug)]
pub(super) struct LineSearch<'a> {
    line: &'a LineMatch,
    /// Output that may be the start of a match.
    unmatched: PerStream<Vec<u8>>,
    found: usize,
}

impl<'a> LineSearch<'a> {
    pub(super) fn new(line: &'a LineMatch) -> Self {
        Self {
            line,
            unmatched: PerStream::default(),
            found: 0,
        }
    }

    /// Searches the next bytes of a stream.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        if self.line.stream.is_some_and(|only| only != stream) {
            return;
        }
        let unmatched = &mut self.unmatched[stream];
        unmatched.extend_from_slice(bytes);
        match &self.line.pattern {
            Pattern::Text(text) => {
                let text = text.as_bytes();
                let mut searched = 0;
                while self.found < self.line.times
                    && let Some(at) = memchr::memmem::find(&unmatched[searched..], text)
                {
                    searched += at + text.len();
                    self.found += 1;
                }
                // Keep the bytes that can be the start of a match.
                let rest = unmatched.len() - searched;
                let kept = rest.min(text.len().saturating_sub(1));
                unmatched.drain(..unmatched.len() - kept);
            }
            Pattern::Regex(regex) => {
                let mut searched = 0;
                while let Some(end) = memchr::memchr(b'\n', &unmatched[searched..]) {
                    let line = &unmatched[searched..searched + end];
                    let line = line.strip_suffix(b"\r").unwrap_or(line);
                    self.found += usize::from(regex.is_match(line));
                    searched += end + 1;
                }
                unmatched.drain(..searched);
                if unmatched.len() > MAX_LINE_BYTES {
                    self.found += usize::from(regex.is_match(unmatched));
                    unmatched.clear();
                }
            }
        }
    }

    /// Forgets the bytes before a gap in a stream.
    pub(super) fn skip(&mut self, stream: Stream) {
        self.unmatched[stream].clear();
    }

    /// Searches the last lines, which have no newline, after the end of the output.
    pub(super) fn finish(&mut self) {
        // A text needs no complete line.
        if let Pattern::Text(_) = self.line.pattern {
            return;
        }
        for stream in Stream::ALL {
            if !self.unmatched[stream].is_empty() {
                self.push(stream, b"\n");
            }
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.found >= self.line.times
    }

    /// Returns the progress, if there is more to say than that nothing was found.
    pub(super) fn progress(&self) -> Option<String> {
        let times = self.line.times;
        (times > 1).then(|| format!("found {} of {times}", self.found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &LineMatch, chunks: &[(Stream, &str)]) -> usize {
        let mut search = LineSearch::new(line);
        for (stream, text) in chunks {
            search.push(*stream, text.as_bytes());
        }
        search.found
    }

    #[test]
    fn a_text_is_counted_across_chunks() {
        use Stream::{Stderr, Stdout};
        let line = LineMatch::text("121").times(9);
        assert_eq!(found(&line, &[(Stdout, "1212"), (Stdout, "1 121")]), 2);
        assert_eq!(
            found(&line, &[(Stdout, "1"), (Stderr, "2"), (Stdout, "21")]),
            1
        );
        assert_eq!(
            found(&line, &[(Stdout, "12"), (Stderr, "1"), (Stdout, "2")]),
            0
        );
        let line = line.on(Stderr);
        assert_eq!(found(&line, &[(Stdout, "121"), (Stderr, "121")]), 1);
    }

    #[test]
    fn a_regex_matches_complete_lines_only() {
        use Stream::{Stdout, Tty};
        let line = LineMatch::regex(r"^port \d+$").unwrap().times(9);
        assert_eq!(
            found(&line, &[(Stdout, "port 8"), (Stdout, "0!\nport 81\n")]),
            1
        );
        assert_eq!(found(&line, &[(Tty, "port 80\r\nport")]), 1);
        let mut search = LineSearch::new(&line);
        search.push(Stdout, b"\xff\nport 80");
        assert_eq!(search.found, 0);
        search.finish();
        assert_eq!(search.found, 1);
        // The newline is not printed.
        let line = LineMatch::text("80\n");
        let mut search = LineSearch::new(&line);
        search.push(Stdout, b"port 80");
        search.finish();
        assert_eq!(search.found, 0);
    }

    #[test]
    fn a_long_line_takes_bounded_memory() {
        let line = LineMatch::regex("end").unwrap();
        let mut search = LineSearch::new(&line);
        for _ in 0..100 {
            search.push(Stream::Stdout, &[b'x'; 4096]);
            assert!(search.unmatched.stdout.len() <= MAX_LINE_BYTES);
        }
        search.push(Stream::Stdout, b" end\n");
        assert!(search.is_done());
    }

    #[test]
    fn an_invalid_regex_is_named() {
        let error = LineMatch::regex("a(b").unwrap_err();
        assert_eq!(error.field, "regex");
        assert!(error.reason.contains("unclosed group"), "{error}");
    }
}

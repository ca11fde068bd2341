//! Escape codes for terminals.
//!
//! A code ends on its line. If the end is missing, its start is text, so that it hides no output.
//! The page of the report uses the same grammar.

use std::borrow::Cow;
use std::ops::RangeInclusive;

pub const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    /// Selects colors or a style.
    Color(&'a str),
    /// Any other code.
    Code(&'a str),
}

/// Splits a text into codes and the text between them.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let code = code_length(rest);
        let (piece, after) = rest.split_at(code.unwrap_or_else(|| text_length(rest)));
        rest = after;
        Some(match code {
            None => Piece::Text(piece),
            Some(_) if is_color(piece) => Piece::Color(piece),
            Some(_) => Piece::Code(piece),
        })
    })
}

/// The text without codes.
pub fn strip(text: &str) -> Cow<'_, str> {
    if !text.contains(char::from(ESC)) {
        return Cow::Borrowed(text);
    }
    let texts = pieces(text).filter_map(|piece| match piece {
        Piece::Text(text) => Some(text),
        Piece::Color(_) | Piece::Code(_) => None,
    });
    Cow::Owned(texts.collect())
}

/// A line that contains no control characters but tabs.
#[derive(Debug)]
pub struct Visible {
    /// The line without codes other than colors.
    pub colored: String,
    /// The line without codes.
    pub text: String,
}

/// Removes codes, and replaces control characters with spaces.
pub fn visible(line: &str) -> Visible {
    let (mut colored, mut text) = (String::new(), String::new());
    for piece in pieces(line) {
        match piece {
            Piece::Text(piece) => {
                let piece: String = piece.chars().map(visible_char).collect();
                colored.push_str(&piece);
                text.push_str(&piece);
            }
            Piece::Color(code) => colored.push_str(code),
            Piece::Code(_) => {}
        }
    }
    Visible { colored, text }
}

/// Replaces control characters and line separators. A tab remains.
fn visible_char(c: char) -> char {
    let is_separator = matches!(c, '\u{2028}' | '\u{2029}');
    if c != '\t' && (c.is_control() || is_separator) {
        ' '
    } else {
        c
    }
}

/// The text on one line, without codes and control characters.
pub fn plain(text: &str) -> String {
    let blank = |c: char| if c.is_control() { ' ' } else { c };
    strip(text).chars().map(blank).collect()
}

/// Length of the text before the first code, in bytes.
fn text_length(text: &str) -> usize {
    let mut starts = text.match_indices(char::from(ESC)).map(|(start, _)| start);
    let first = starts.find(|&start| code_length(&text[start..]).is_some());
    first.unwrap_or(text.len())
}

/// Length of the code at the start of the text, in bytes.
fn code_length(text: &str) -> Option<usize> {
    let code = text.as_bytes().strip_prefix(&[ESC])?;
    let length = match code.first()? {
        b'[' => {
            let parameters = 1 + count(&code[1..], b'0'..=b'?');
            sequence_length(code, parameters)?
        }
        b'P' | b'X' | b']' | b'^' | b'_' => {
            let end = code
                .iter()
                .position(|byte| matches!(*byte, BEL | ESC | b'\n'))?;
            match &code[end..] {
                [BEL, ..] => end + 1,
                [ESC, b'\\', ..] => end + 2,
                _ => return None,
            }
        }
        b'0'..=b'~' => 1,
        _ => sequence_length(code, 0)?,
    };
    Some(1 + length)
}

/// Length of a code that ends in intermediate bytes and a final byte. They begin at `start`.
fn sequence_length(code: &[u8], start: usize) -> Option<usize> {
    let last = start + count(&code[start..], b' '..=b'/');
    // Only codes that begin with `ESC [` have parameters, so only they cannot end in a digit.
    let finals = if start > 0 { b'@'..=b'~' } else { b'0'..=b'~' };
    finals.contains(code.get(last)?).then_some(last + 1)
}

/// The number of bytes in the range at the start.
fn count(bytes: &[u8], range: RangeInclusive<u8>) -> usize {
    bytes.iter().take_while(|byte| range.contains(byte)).count()
}

fn is_color(code: &str) -> bool {
    let parameters = code
        .strip_prefix("\x1b[")
        .and_then(|code| code.strip_suffix('m'));
    parameters.is_some_and(|text| text.chars().all(|c| c.is_ascii_digit() || ";:".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_code_hides_no_text() {
        for kind in ['P', 'X', ']', '^', '_'] {
            let line = format!("a\x1b{kind}");
            assert_eq!(strip(&line), line);
            let lines = format!("a\x1b{kind}b\nc\x07d\x1b\\\n\x1b[31m{kind}\x1b[0m");
            assert_eq!(strip(&lines), format!("a\x1b{kind}b\nc\x07d\n{kind}"));
            let twice = format!("\x1b{kind}a\x1b{kind}b\x07c");
            assert_eq!(strip(&twice), format!("\x1b{kind}ac"));
        }
        for text in [
            "\x1b",
            "\x1b[",
            "\x1b[3",
            "\x1b[3 ",
            "\x1b[3\n1m",
            "\x1b[é",
            "\x1b(",
            "\x1bé",
        ] {
            assert_eq!(strip(text), text);
        }
    }

    #[test]
    fn whole_codes_are_removed() {
        for code in [
            "\x1b[m",
            "\x1b[1;31m",
            "\x1b[38:2::255:0:0m",
            "\x1b[?25l",
            "\x1b[0K",
            "\x1b[4 q",
            "\x1b(B",
            "\x1b7",
            "\x1bM",
            "\x1b]8;;http://é/\x1b\\",
            "\x1b]0;title\x07",
            "\x1bP1$r0m\x1b\\",
            "\x1b_bk;t=1\x07",
        ] {
            assert_eq!(strip(&format!("é{code}{code}b")), "éb", "{code:?}");
        }
    }

    #[test]
    fn colors_are_known() {
        let found: Vec<_> = pieces("a\x1b[38:2::255:0:0mb\x1b[Kc\x1b[>4;2m\x1b]").collect();
        let expected = [
            Piece::Text("a"),
            Piece::Color("\x1b[38:2::255:0:0m"),
            Piece::Text("b"),
            Piece::Code("\x1b[K"),
            Piece::Text("c"),
            Piece::Code("\x1b[>4;2m"),
            Piece::Text("\x1b]"),
        ];
        assert_eq!(found, expected);
    }
}

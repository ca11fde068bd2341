//! The lines of an `allowed_signers` file, as `ssh-keygen` reads them.

use jiff::tz::TimeZone;

use crate::sign::public_key::PublicKey;
use crate::sign::validity;

const BLANKS: [char; 2] = [' ', '\t'];

/// One line: who may sign with a key, for what, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SignerLine {
    /// The number of the line, from 1.
    pub(super) number: usize,
    /// The patterns of the identities, separated by commas.
    pub(super) principals: String,
    /// The key and its options, or the reason that the line cannot be used.
    pub(super) entry: Result<AllowedKey, &'static str>,
}

/// A key and its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AllowedKey {
    pub(super) key: PublicKey,
    pub(super) options: Options,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// The key signs certificates, which moat does not verify.
    pub(super) cert_authority: bool,
    /// The patterns of the namespaces, separated by commas.
    pub(super) namespaces: Option<String>,
    /// Seconds since 1970.
    pub(super) valid_after: Option<u64>,
    /// Seconds since 1970.
    pub(super) valid_before: Option<u64>,
}

impl SignerLine {
    /// Reads a line. Returns `None` for an empty line and a comment.
    pub(super) fn parse(number: usize, line: &str, zone: &TimeZone) -> Option<Self> {
        let line = line.trim_start_matches(BLANKS);
        if line.trim_end_matches(['\r', '\n']).is_empty() || line.starts_with('#') {
            return None;
        }
        let Some((principals, rest)) = first_word(line) else {
            return Some(Self {
                number,
                principals: String::new(),
                entry: Err("it has no key"),
            });
        };
        Some(Self {
            number,
            principals,
            entry: parse_key(rest, zone),
        })
    }
}

/// Splits the first word, which may be quoted, from the rest of a line.
fn first_word(line: &str) -> Option<(String, &str)> {
    let stop = line.find([' ', '\t', '\r', '\n', '"'])?;
    let (before, rest) = line.split_at(stop);
    let mut word = before.to_owned();
    let rest = match rest.strip_prefix('"') {
        Some(quoted) => {
            let (inside, rest) = quoted.split_once('"')?;
            word.push_str(inside);
            rest
        }
        None => rest,
    };
    Some((word, rest.trim_start_matches([' ', '\t', '\r', '\n'])))
}

fn parse_key(text: &str, zone: &TimeZone) -> Result<AllowedKey, &'static str> {
    if let Some(key) = PublicKey::parse(text) {
        let options = Options::default();
        return Ok(AllowedKey { key, options });
    }
    let end = options_end(text).ok_or("its options have an unterminated quote")?;
    let (options, rest) = text.split_at(end);
    let rest = rest.trim_start_matches(BLANKS);
    if rest.is_empty() {
        return Err("it has no key");
    }
    let key = PublicKey::parse(rest).ok_or("its key is invalid")?;
    let options = Options::parse(options, zone)?;
    Ok(AllowedKey { key, options })
}

/// Returns the offset of the first blank outside quotes.
fn options_end(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut bytes = text.bytes().enumerate();
    while let Some((offset, byte)) = bytes.next() {
        match byte {
            b' ' | b'\t' if !quoted => return Some(offset),
            b'\\' if text[offset + 1..].starts_with('"') => {
                bytes.next();
            }
            b'"' => quoted = !quoted,
            _ => {}
        }
    }
    (!quoted).then_some(text.len())
}

impl Options {
    fn parse(text: &str, zone: &TimeZone) -> Result<Self, &'static str> {
        let mut options = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(after) = strip_prefix_ignoring_case(rest, "cert-authority") {
                options.cert_authority = true;
                rest = after;
            } else if let Some(value) = strip_prefix_ignoring_case(rest, "namespaces=") {
                let (value, after) = unquote(value)?;
                set(&mut options.namespaces, value)?;
                rest = after;
            } else if let Some(value) = strip_prefix_ignoring_case(rest, "valid-after=") {
                let (value, after) = unquote(value)?;
                let time = validity::parse(&value, zone);
                set(
                    &mut options.valid_after,
                    time.ok_or("invalid valid-after time")?,
                )?;
                rest = after;
            } else if let Some(value) = strip_prefix_ignoring_case(rest, "valid-before=") {
                let (value, after) = unquote(value)?;
                let time = validity::parse(&value, zone);
                set(
                    &mut options.valid_before,
                    time.ok_or("invalid valid-before time")?,
                )?;
                rest = after;
            }
            rest = match rest.strip_prefix(',') {
                Some("") => return Err("its options end in a comma"),
                Some(next) => next,
                None if rest.is_empty() => break,
                None => return Err("it has an unknown option"),
            };
        }
        match (options.valid_after, options.valid_before) {
            (Some(after), Some(before)) if before <= after => {
                Err("its valid-before is not later than its valid-after")
            }
            _ => Ok(options),
        }
    }
}

fn set<T>(option: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match option.replace(value) {
        None => Ok(()),
        Some(_) => Err("it has an option twice"),
    }
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Reads a quoted value, in which `\"` is a quote.
fn unquote(text: &str) -> Result<(String, &str), &'static str> {
    let inside = text
        .strip_prefix('"')
        .ok_or("the value of an option is not quoted")?;
    let mut value = String::new();
    let mut characters = inside.char_indices();
    while let Some((offset, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &inside[offset + 1..])),
            '\\' if inside[offset + 1..].starts_with('"') => {
                characters.next();
                value.push('"');
            }
            character => value.push(character),
        }
    }
    Err("the value of an option has no end")
}

/// Returns true if a list of patterns, separated by commas, matches `text`.
///
/// `*` and `?` are wildcards. A pattern that begins with `!` refuses what it matches.
pub(super) fn matches_list(text: &str, patterns: &str) -> bool {
    let mut matched = false;
    for pattern in patterns.split(',') {
        let (negated, pattern) = match pattern.strip_prefix('!') {
            Some(pattern) => (true, pattern),
            None => (false, pattern),
        };
        if matches(text.as_bytes(), pattern.as_bytes()) {
            if negated {
                return false;
            }
            matched = true;
        }
    }
    matched
}

/// Matches in time proportional to the product of both lengths.
fn matches(text: &[u8], pattern: &[u8]) -> bool {
    let (mut at, mut in_pattern) = (0, 0);
    // The last `*`, and the text that it has matched up to.
    let mut star = None;
    while at < text.len() {
        match pattern.get(in_pattern) {
            Some(b'*') => {
                star = Some((in_pattern, at));
                in_pattern += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[at] => {
                at += 1;
                in_pattern += 1;
            }
            _ => match star {
                Some((place, matched)) => {
                    star = Some((place, matched + 1));
                    at = matched + 1;
                    in_pattern = place + 1;
                }
                None => return false,
            },
        }
    }
    pattern[in_pattern..].iter().all(|byte| *byte == b'*')
}

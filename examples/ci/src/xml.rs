//! Text for XML 1.0.

use std::borrow::Cow;

use crate::codes;

/// Replacement for a character that XML forbids.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Removes escape codes, and replaces control characters except newlines.
///
/// quick-junit would remove control characters, which can reveal a secret. Characters that XML 1.0
/// forbids even as a reference are replaced too.
pub fn text(text: &str) -> Cow<'_, str> {
    let text = codes::strip(text);
    match text.chars().all(|c| replace(c) == c) {
        true => text,
        false => Cow::Owned(text.chars().map(replace).collect()),
    }
}

fn replace(c: char) -> char {
    match c {
        '\n' => c,
        _ if !is_allowed(c) => REPLACEMENT,
        _ if c.is_control() => ' ',
        _ => c,
    }
}

/// Returns true if the production `Char` of XML 1.0 includes the character.
fn is_allowed(c: char) -> bool {
    matches!(
        c,
        '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..
    )
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn only_forbidden_characters_are_replaced() {
        let controls = ('\0'..' ').filter(|c| !"\t\n\r".contains(*c));
        let forbidden: Vec<char> = controls.chain(['\u{fffe}', '\u{ffff}']).collect();
        assert_eq!(forbidden.len(), 31);
        for c in '\0'..=char::MAX {
            // ESC starts an escape code.
            let line = format!("a{c} b");
            let is_blank = matches!(c, '\t' | '\r' | '\u{7f}'..='\u{9f}');
            let expected = match forbidden.contains(&c) {
                true => "a\u{fffd} b".to_owned(),
                false if is_blank => "a  b".to_owned(),
                false => line.clone(),
            };
            if c != '\u{1b}' {
                assert_eq!(text(&line), expected, "{c:?}");
            }
        }
        assert_eq!(text("\u{1b}[31mred\u{1b}[0m \u{1b}"), "red \u{fffd}");
    }

    #[test]
    fn an_unfinished_escape_code_hides_no_line() {
        let lines = "\u{1b}P\nerror: the cause\naudit: path";
        assert_eq!(text(lines), "\u{fffd}P\nerror: the cause\naudit: path");
    }
}

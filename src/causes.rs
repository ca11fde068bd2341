//! The text of an error and its causes.

use std::error::Error;
use std::fmt;

/// Returns the messages of `error` and of all its causes, each once.
fn messages(error: &dyn Error) -> Vec<String> {
    let mut messages = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Some libraries repeat their cause in their own message.
        if !messages.iter().any(|known| known.ends_with(&message)) {
            messages.push(message);
        }
        cause = error.source();
    }
    messages
}

/// Returns the messages of `error` and of all its causes, joined by `: `.
pub(crate) fn chain(error: &dyn Error) -> String {
    messages(error).join(": ")
}

/// Writes `error` as the result of `main` and a panic of `unwrap` show it.
///
/// The message is followed by each cause on a line of its own.
pub(crate) fn fmt_debug(error: &dyn Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let messages = messages(error);
    write_escaped(f, &messages[0], "\n")?;
    let causes = &messages[1..];
    if !causes.is_empty() {
        f.write_str("\n\nCaused by:")?;
    }
    for (number, cause) in causes.iter().enumerate() {
        match causes.len() {
            1 => f.write_str("\n    ")?,
            _ => write!(f, "\n{number:>5}: ")?,
        }
        write_escaped(f, cause, "\n       ")?;
    }
    Ok(())
}

/// Writes `text`, with `newline` in place of each newline.
///
/// An engine's message may have escape sequences, which must not reach the terminal.
fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str, newline: &str) -> fmt::Result {
    for character in text.chars() {
        match character {
            '\n' => f.write_str(newline)?,
            '\t' => f.write_str("\t")?,
            _ if character.is_control() => write!(f, "{}", character.escape_default())?,
            _ => write!(f, "{character}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message, and the messages of its causes.
    struct Layers(&'static str, Option<Box<Layers>>);

    impl Layers {
        fn new(texts: &[&'static str]) -> Self {
            let (first, rest) = texts.split_first().unwrap();
            let cause = (!rest.is_empty()).then(|| Box::new(Self::new(rest)));
            Self(first, cause)
        }
    }

    impl fmt::Display for Layers {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl fmt::Debug for Layers {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt_debug(self, f)
        }
    }

    impl Error for Layers {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self.1.as_deref()?)
        }
    }

    #[test]
    fn each_message_is_shown_once() {
        for (texts, debug, line) in [
            (&["a"][..], "a", "a"),
            (&["a", "b"], "a\n\nCaused by:\n    b", "a: b"),
            (
                &["a", "b", "c"],
                "a\n\nCaused by:\n    0: b\n    1: c",
                "a: b: c",
            ),
            (&["a: b", "b"], "a: b", "a: b"),
            (&["a: c", "b", "c"], "a: c\n\nCaused by:\n    b", "a: c: b"),
        ] {
            let error = Layers::new(texts);
            assert_eq!(format!("{error:?}"), debug);
            assert_eq!(chain(&error), line);
        }
    }

    #[test]
    fn lines_are_indented_and_escapes_are_shown() {
        let error = Layers::new(&["a\n  b\x1b[2J", "c\nd\te"]);
        let expected = "a\n  b\\u{1b}[2J\n\nCaused by:\n    c\n       d\te";
        assert_eq!(format!("{error:?}"), expected);
    }
}

//! Output as text that does nothing to who reads it.

use std::fmt::Write as _;

use crate::audit::Event;

/// `bytes` as text in one line, with all that could move a cursor, change a colour, ring a bell or
/// turn the direction of writing spelled out: `\x1b`, `\u{202e}`; bytes that are no text, `\xff`.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            // Writing to a string cannot fail.
            let _ = match c {
                '\t' => text.write_char(c),
                '\r' => text.write_str("\\r"),
                '\n' => text.write_str("\\n"),
                c if c.is_ascii_control() => write!(text, "\\x{:02x}", u32::from(c)),
                c if c.is_control() || turns(c) => write!(text, "\\u{{{:x}}}", u32::from(c)),
                c => text.write_char(c),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// An event in one line.
pub(super) fn said(event: &Event) -> String {
    let text = match event {
        Event::Start(start) => {
            let settings = &start.record.settings;
            let mut text = format!("is to run {}", settings.image);
            for word in &settings.cmd {
                text.push(' ');
                text.push_str(word);
            }
            text
        }
        Event::Started(started) => format!("started as {}", started.container),
        Event::Resume(_) => "goes on".into(),
        Event::Gap(gap) => {
            let what = if gap.possible {
                "may be missing"
            } else {
                "is missing"
            };
            let detail = gap.detail.as_deref().unwrap_or_default();
            format!("output {what}: {:?} {detail}", gap.reason)
        }
        Event::Stop(stop) => format!("is stopped with {}", stop.signal),
        Event::Note { text, .. } => text.clone(),
        // It is in the audit because the spec asks for that; no screen and no other log was named.
        Event::Stdin(written) => format!("{} bytes of input", written.bytes.len()),
        Event::Check { .. } => "so far the file is whole".into(),
        Event::End(seal) => format!("{}; audit {}", seal.exit, seal.verdict),
    };
    printable(text.trim_end().as_bytes())
}

/// Whether a character changes where, or in which direction, others are shown.
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use crate::sink::printable::printable;

    #[test]
    fn escape_sequences_are_spelled_out_and_text_is_left_alone() {
        for (bytes, text) in [
            (&b"plain\ttext"[..], "plain\ttext"),
            ("\u{20ac} \u{1f980}".as_bytes(), "\u{20ac} \u{1f980}"),
            (b"\x1b[2J\x07\x7f", "\\x1b[2J\\x07\\x7f"),
            (b"50%\r60%", "50%\\r60%"),
            (b"\xff\xc2", "\\xff\\xc2"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            ("\u{202e}evil".as_bytes(), "\\u{202e}evil"),
        ] {
            assert_eq!(printable(bytes), text);
        }
    }
}

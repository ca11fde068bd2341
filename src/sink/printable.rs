//! Output and events as text that is safe to print.

use std::fmt::Write as _;

use crate::audit::Event;
use crate::outcome::StoppedBecause;

/// Returns `bytes` as one line of printable text.
///
/// Escapes characters that could move the cursor, change colors, ring the bell or change the
/// writing direction: `\x1b`, `\u{202e}`. Invalid UTF-8 becomes `\xff`.
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
                c if c.is_control() || is_directional(c) => {
                    write!(text, "\\u{{{:x}}}", u32::from(c))
                }
                c => text.write_char(c),
            };
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Describes an event in one line.
pub(super) fn describe(event: &Event) -> String {
    let text = match event {
        Event::Start(start) => {
            let settings = &start.record.settings;
            let mut text = format!("running {}", settings.image);
            for word in &settings.cmd {
                text.push(' ');
                text.push_str(word);
            }
            text
        }
        Event::ExecCreated(created) => format!("created as exec {}", created.id),
        Event::Started(started) => format!("started as {}", started.container),
        Event::Resume(_) => "capture resumed".into(),
        Event::Gap(gap) => {
            let certainty = if gap.possible {
                "may be missing"
            } else {
                "is missing"
            };
            let detail = gap.detail.as_deref().unwrap_or_default();
            format!("output {certainty}: {:?} {detail}", gap.reason)
        }
        Event::Stop(stop) => format!("stopping with {} because {}", stop.signal, stop.cause),
        Event::Note { text, .. } => text.clone(),
        // Only the audit file may contain the input itself.
        Event::Stdin(chunk) => format!("{} bytes of input", chunk.bytes.len()),
        Event::Check { .. } => "digest checkpoint".into(),
        Event::End(seal) => {
            let stopped = StoppedBecause(seal.stopped);
            format!("{}{stopped}; audit {}", seal.exit, seal.verdict)
        }
    };
    printable(text.trim_end().as_bytes())
}

/// Returns true for characters that change the position or direction of others.
fn is_directional(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::audit::{Event, Stop};
    use crate::outcome::StopCause;
    use crate::sink::printable::{describe, printable};

    #[test]
    fn control_characters_are_escaped() {
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

    #[test]
    fn a_stop_and_its_seal_have_the_reason() {
        let stop = Stop::new(StopCause::TimeLimit, "SIGTERM", Some(10.0));
        let text = "stopping with SIGTERM because its time limit was reached";
        assert_eq!(describe(&Event::Stop(stop)), text);
        let seal = json!({
            "ts": "2026-11-22T18:23:25Z",
            "exit": { "state": "exited", "code": 137 },
            "verdict": "complete",
            "evidence": "end_marker",
            "records": 0,
            "bytes": {},
            "stopped": "time_limit",
        });
        let text =
            "exited with code 137, stopped because its time limit was reached; audit complete";
        let seal = serde_json::from_value(seal).unwrap();
        assert_eq!(describe(&Event::End(seal)), text);
    }
}

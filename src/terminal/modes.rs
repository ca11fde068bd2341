//! Terminal modes that a program has changed and not restored.

use std::collections::BTreeSet;

/// The maximum number of parameter bytes that are kept of a control sequence.
const MAX_PARAMETER_BYTES: usize = 64;

/// Private modes that are off by default and affect the next program.
///
/// Cursor keys, reverse video, origin, the mouse and focus modes, keypad, bracketed paste,
/// synchronized output.
const OFF_BY_DEFAULT: [u16; 16] = [
    1, 5, 6, 9, 66, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004, 2026,
];
/// Private modes that are on by default: autowrap and the cursor.
const ON_BY_DEFAULT: [u16; 2] = [7, 25];
/// Private modes that switch to the alternate screen.
const ALTERNATE_SCREENS: [u16; 3] = [47, 1047, 1049];

/// Tracks the modes that a program sets, to restore them after the session.
///
/// Only changed modes are restored: leaving an alternate screen that was never entered
/// moves the cursor.
#[derive(Debug, Default)]
pub(super) struct ModeTracker {
    parser: Parser,
    modes: Modes,
}

/// The modes that differ from their defaults.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Modes {
    /// Private modes that are not at their default.
    changed: BTreeSet<u16>,
    keypad: bool,
    insert: bool,
    attributes: bool,
    scroll_region: bool,
    cursor_style: bool,
    modified_keys: bool,
    /// The depth of the stack of keyboard protocols.
    keyboard_depth: u16,
    /// G0 is a character set other than ASCII.
    g0_changed: bool,
    /// G1 is active, instead of G0.
    g1_active: bool,
}

/// The state of the parser before the next byte.
#[derive(Debug, Default)]
enum Parser {
    #[default]
    Text,
    Escape,
    /// Before the last byte of the designation of G0.
    G0,
    /// Before the last byte of another three-byte sequence.
    LastOfThree,
    /// In a control sequence, with its parameters.
    Control(Vec<u8>),
    /// In a string, which extends to its terminator.
    String,
    /// After an escape in a string.
    StringEscape,
}

impl ModeTracker {
    /// Processes output of the program.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let parser = std::mem::take(&mut self.parser);
            self.parser = self.next(parser, byte);
        }
    }

    fn next(&mut self, parser: Parser, byte: u8) -> Parser {
        match (parser, byte) {
            // CAN, SUB and ESC interrupt any sequence.
            (_, 0x18 | 0x1a) => Parser::Text,
            (Parser::String | Parser::StringEscape, 0x1b) => Parser::StringEscape,
            (_, 0x1b) => Parser::Escape,
            (Parser::Text, 0x0e | 0x0f) => {
                self.modes.g1_active = byte == 0x0e;
                Parser::Text
            }
            (Parser::Escape, _) => self.escape(byte),
            (Parser::G0, _) => {
                self.modes.g0_changed = byte != b'B';
                Parser::Text
            }
            (Parser::Control(parameters), 0x40..=0x7e) => {
                self.modes.apply(&Control::parse(&parameters, byte));
                Parser::Text
            }
            (Parser::Control(mut parameters), 0x20..=0x3f) => {
                if parameters.len() < MAX_PARAMETER_BYTES {
                    parameters.push(byte);
                }
                Parser::Control(parameters)
            }
            (Parser::Control(parameters), _) => Parser::Control(parameters),
            (Parser::String, 0x07) | (Parser::StringEscape, b'\\') => Parser::Text,
            (Parser::String, _) => Parser::String,
            (Parser::StringEscape, _) => self.escape(byte),
            (Parser::Text | Parser::LastOfThree, _) => Parser::Text,
        }
    }

    /// Processes the byte after an escape.
    fn escape(&mut self, byte: u8) -> Parser {
        match byte {
            b'[' => return Parser::Control(Vec::new()),
            b']' | b'P' | b'X' | b'^' | b'_' => return Parser::String,
            b'(' => return Parser::G0,
            // The designation of G1 to G3, or another sequence without an effect on a mode.
            b')' | b'*' | b'+' | b'#' | b' ' | b'%' => return Parser::LastOfThree,
            b'=' => self.modes.keypad = true,
            b'>' => self.modes.keypad = false,
            b'c' => self.modes = Modes::default(),
            _ => {}
        }
        Parser::Text
    }

    /// Returns the sequences that restore the changed modes, and resets the tracker.
    pub(super) fn restore(&mut self) -> Vec<u8> {
        let mut bytes = match std::mem::take(&mut self.parser) {
            Parser::Text => Vec::new(),
            Parser::String | Parser::StringEscape => b"\x1b\\".to_vec(),
            _ => vec![0x18],
        };
        std::mem::take(&mut self.modes).restore(&mut bytes);
        bytes
    }
}

/// A control sequence.
struct Control {
    /// One of `<=>?`.
    private: Option<u8>,
    numbers: Vec<u16>,
    intermediate: Option<u8>,
    last: u8,
}

impl Control {
    fn parse(parameters: &[u8], last: u8) -> Self {
        let (private, rest) = match parameters.first() {
            Some(byte @ b'<'..=b'?') => (Some(*byte), &parameters[1..]),
            _ => (None, parameters),
        };
        let (numbers, intermediate) = match rest.last() {
            Some(byte @ b' '..=b'/') => (&rest[..rest.len() - 1], Some(*byte)),
            _ => (rest, None),
        };
        let numbers = numbers
            .split(|byte| *byte == b';')
            // Only the first of several subparameters counts.
            .map(|text| text.split(|byte| *byte == b':').next().unwrap_or_default())
            .map(|text| std::str::from_utf8(text).unwrap_or_default())
            .map(|text| text.parse().unwrap_or(0))
            .collect();
        Self {
            private,
            numbers,
            intermediate,
            last,
        }
    }
}

impl Modes {
    fn apply(&mut self, control: &Control) {
        let numbers = &control.numbers[..];
        match (control.private, control.intermediate, control.last) {
            (Some(b'?'), None, b'h' | b'l') => {
                for &mode in numbers {
                    self.set_private(mode, control.last == b'h');
                }
            }
            (None, None, b'h' | b'l') if numbers.contains(&4) => self.insert = control.last == b'h',
            (None, None, b'm') => self.attributes = attributes(numbers, self.attributes),
            (Some(b'>'), None, b'm') if numbers.first() == Some(&4) => {
                self.modified_keys = numbers.get(1).is_some_and(|&level| level > 0);
            }
            (None, None, b'r') => self.scroll_region = numbers.iter().any(|&number| number > 0),
            (None, Some(b' '), b'q') => {
                self.cursor_style = numbers.first().is_some_and(|&style| style > 0);
            }
            (Some(b'>'), None, b'u') => self.keyboard_depth = self.keyboard_depth.saturating_add(1),
            (Some(b'<'), None, b'u') => {
                let count = numbers.first().copied().unwrap_or(1).max(1);
                self.keyboard_depth = self.keyboard_depth.saturating_sub(count);
            }
            (None, Some(b'!'), b'p') => self.soft_reset(),
            _ => {}
        }
    }

    fn set_private(&mut self, mode: u16, on: bool) {
        let is_screen = ALTERNATE_SCREENS.contains(&mode);
        let default = ON_BY_DEFAULT.contains(&mode);
        if !default && !is_screen && !OFF_BY_DEFAULT.contains(&mode) {
            return;
        }
        if on != default {
            self.changed.insert(mode);
        } else if is_screen {
            // All these modes switch the same screen.
            self.changed
                .retain(|mode| !ALTERNATE_SCREENS.contains(mode));
        } else {
            self.changed.remove(&mode);
        }
    }

    /// Resets the modes that a soft reset affects, not those of the mouse and the screen.
    fn soft_reset(&mut self) {
        let keeps = |mode: &u16| !matches!(mode, 1 | 6 | 7 | 25 | 66);
        let changed = std::mem::take(&mut self.changed);
        *self = Self {
            changed: changed.into_iter().filter(keeps).collect(),
            keyboard_depth: self.keyboard_depth,
            ..Self::default()
        };
    }

    /// Appends the sequences that restore all modes.
    fn restore(self, bytes: &mut Vec<u8>) {
        let Self {
            changed,
            keypad,
            insert,
            attributes,
            scroll_region,
            cursor_style,
            modified_keys,
            keyboard_depth,
            g0_changed,
            g1_active,
        } = self;
        if keyboard_depth > 0 {
            bytes.extend(format!("\x1b[<{keyboard_depth}u").as_bytes());
        }
        if modified_keys {
            bytes.extend(b"\x1b[>4;0m");
        }
        let (screens, modes): (Vec<u16>, Vec<u16>) = changed
            .into_iter()
            .partition(|mode| ALTERNATE_SCREENS.contains(mode));
        for mode in modes {
            let last = match ON_BY_DEFAULT.contains(&mode) {
                true => 'h',
                false => 'l',
            };
            bytes.extend(format!("\x1b[?{mode}{last}").as_bytes());
        }
        for (is_changed, sequence) in [
            (keypad, "\x1b>"),
            (insert, "\x1b[4l"),
            (g0_changed, "\x1b(B"),
            (g1_active, "\x0f"),
            // Resetting the region moves the cursor, so its position is saved.
            (scroll_region, "\x1b7\x1b[r\x1b8"),
            (cursor_style, "\x1b[0 q"),
        ] {
            if is_changed {
                bytes.extend(sequence.as_bytes());
            }
        }
        if let Some(screen) = screens.last() {
            bytes.extend(format!("\x1b[?{screen}l").as_bytes());
        }
        if attributes {
            bytes.extend(b"\x1b[m");
        }
    }
}

/// Returns true if attributes are set after an SGR sequence with these parameters.
fn attributes(numbers: &[u16], mut set: bool) -> bool {
    let mut numbers = numbers.iter();
    while let Some(number) = numbers.next() {
        set = *number != 0;
        if let 38 | 48 | 58 = number {
            // The parameters of a color may be 0.
            let color_parameters = match numbers.next() {
                Some(5) => 1,
                Some(2) => 3,
                _ => 0,
            };
            numbers.by_ref().take(color_parameters).for_each(drop);
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn restored(printed: &[u8]) -> String {
        let mut tracker = ModeTracker::default();
        for byte in printed.chunks(1) {
            tracker.feed(byte);
        }
        String::from_utf8(tracker.restore()).unwrap()
    }

    #[test]
    fn only_changed_modes_are_restored() {
        for (printed, expected) in [
            ("plain text\r\n", ""),
            ("\x1b[31mred\x1b[0m", ""),
            ("\x1b[31mred", "\x1b[m"),
            ("\x1b[38;5;0mblack", "\x1b[m"),
            ("\x1b[1m\x1b[m", ""),
            ("\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"),
            ("\x1b[?1049h\x1b[?25l\x1b[?1049l\x1b[?25h", ""),
            (
                "\x1b[?1000;1006h\x1b[?2004h",
                "\x1b[?1000l\x1b[?1006l\x1b[?2004l",
            ),
            ("\x1b[3;10r", "\x1b7\x1b[r\x1b8"),
            ("\x1b[3;10r\x1b[r", ""),
            ("\x1b=\x1b[?1h", "\x1b[?1l\x1b>"),
            ("\x1b(0lqqk", "\x1b(B"),
            ("\x1b(0lqqk\x1b(B", ""),
            ("\x1b[?1049h\x1b[?1003h\x1bc", ""),
            ("\x1b[?25l\x1b[?1003h\x1b[!p", "\x1b[?1003l"),
            ("\x1b[>1u\x1b[>1u\x1b[<u", "\x1b[<1u"),
            ("\x1b[2 q", "\x1b[0 q"),
            // Incomplete sequences.
            ("\x1b]0;title", "\x1b\\"),
            ("\x1b]0;title\x07", ""),
            ("\x1b]0;\x1b[31m", "\x1b[m"),
            ("\x1b[31", "\x18"),
        ] {
            assert_eq!(restored(printed.as_bytes()), expected, "{printed:?}");
        }
    }

    proptest! {
        #[test]
        fn any_output_is_restored_to_the_defaults(printed in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut tracker = ModeTracker::default();
            tracker.feed(&printed);
            let restored = tracker.restore();
            let mut after = ModeTracker::default();
            after.feed(&printed);
            after.feed(&restored);
            prop_assert_eq!(&after.modes, &Modes::default());
            prop_assert!(matches!(after.parser, Parser::Text));
        }

        #[test]
        fn common_sequences_are_restored_to_the_defaults(
            parts in prop::collection::vec(prop::sample::select(vec![
                "\x1b[?1049h", "\x1b[?47h", "\x1b[?25l", "\x1b[?7l", "\x1b[1;5r", "\x1b[7m", "\x1b=",
                "\x1b(0", "\x0e", "\x1b[4h", "\x1b[>4;2m", "\x1b[>1u", "\x1b[5 q", "\x1b]0;x", "\x1b[",
                "\x1b[?1049l", "text", "\x1b[?2004h", "\x1b[38;2;0;0;0m",
            ]), 0..12)
        ) {
            let printed = parts.concat();
            let mut after = ModeTracker::default();
            after.feed(printed.as_bytes());
            after.feed(restored(printed.as_bytes()).as_bytes());
            prop_assert_eq!(&after.modes, &Modes::default());
        }
    }
}

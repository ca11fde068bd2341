//! What a program has told a terminal, and not taken back.

use std::collections::BTreeSet;

/// The longest parameters of a sequence that are looked at.
const LONGEST: usize = 64;

/// Private modes that are off in a terminal that nobody has touched, and matter to who comes next:
/// cursor keys, reverse video, origin, mouse and focus in all their forms, keypad, bracketed
/// paste, synchronised output.
const OFF: [u16; 16] = [
    1, 5, 6, 9, 66, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1016, 2004, 2026,
];
/// Those that are on: autowrap, the cursor.
const ON: [u16; 2] = [7, 25];
/// The alternate screen, in all its forms.
const SCREENS: [u16; 3] = [47, 1047, 1049];

/// Follows what a program tells its terminal, so that it can be undone when the program dies, or
/// is left alone, in the middle.
///
/// It tells nothing to a terminal that needs nothing: to leave an alternate screen that was never
/// entered moves the cursor.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    place: Place,
    state: State,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct State {
    /// Private modes that are not as they were.
    changed: BTreeSet<u16>,
    keypad: bool,
    insert: bool,
    attributes: bool,
    region: bool,
    cursor_style: bool,
    modified_keys: bool,
    /// How often the keyboard's protocol was changed.
    keyboards: u16,
    /// Another set of characters, or the second one in use.
    characters: bool,
    shifted: bool,
}

/// Where in a sequence the next byte stands.
#[derive(Debug, Default)]
enum Place {
    #[default]
    Text,
    Escape,
    /// In the choice of a set of characters; `true`: of the first one.
    Characters(bool),
    /// In other sequences of three bytes.
    Third,
    Control(Vec<u8>),
    /// In a string, which the terminal takes up to its end; `true`: after an escape in it.
    Passage(bool),
}

impl Leftovers {
    /// Takes what the program prints.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.take(byte);
        }
    }

    fn take(&mut self, byte: u8) {
        // In the middle of anything, these begin again.
        match (byte, &self.place) {
            (0x18 | 0x1a, _) => {
                self.place = Place::Text;
                return;
            }
            (0x1b, Place::Passage(_)) => {
                self.place = Place::Passage(true);
                return;
            }
            (0x1b, _) => {
                self.place = Place::Escape;
                return;
            }
            _ => {}
        }
        self.place = match std::mem::take(&mut self.place) {
            Place::Text => {
                match byte {
                    0x0e => self.state.shifted = true,
                    0x0f => self.state.shifted = false,
                    _ => {}
                }
                Place::Text
            }
            Place::Escape => self.escape(byte),
            Place::Characters(first) => {
                if first {
                    self.state.characters = byte != b'B';
                }
                Place::Text
            }
            Place::Third => Place::Text,
            Place::Control(mut text) => match byte {
                0x40..=0x7e => {
                    self.control(&text, byte);
                    Place::Text
                }
                0x20..=0x3f => {
                    if text.len() < LONGEST {
                        text.push(byte);
                    }
                    Place::Control(text)
                }
                _ => Place::Control(text),
            },
            Place::Passage(false) if byte == 0x07 => Place::Text,
            Place::Passage(false) => Place::Passage(false),
            Place::Passage(true) if byte == b'\\' => Place::Text,
            Place::Passage(true) => self.escape(byte),
        };
    }

    fn escape(&mut self, byte: u8) -> Place {
        match byte {
            b'[' => return Place::Control(Vec::new()),
            b']' | b'P' | b'X' | b'^' | b'_' => return Place::Passage(false),
            b'(' => return Place::Characters(true),
            b')' | b'*' | b'+' => return Place::Characters(false),
            b'#' | b' ' | b'%' => return Place::Third,
            b'=' => self.state.keypad = true,
            b'>' => self.state.keypad = false,
            b'c' => self.state = State::default(),
            _ => {}
        }
        Place::Text
    }

    fn control(&mut self, text: &[u8], last: u8) {
        let state = &mut self.state;
        let (private, rest) = match text.first() {
            Some(b @ b'<'..=b'?') => (Some(*b), &text[1..]),
            _ => (None, text),
        };
        let (numbers, between) = match rest.last() {
            Some(b @ b' '..=b'/') => (&rest[..rest.len() - 1], Some(*b)),
            _ => (rest, None),
        };
        let numbers: Vec<u16> = numbers
            .split(|byte| *byte == b';')
            // Of one with parts, the first is what it is.
            .map(|text| text.split(|byte| *byte == b':').next().unwrap_or_default())
            .map(|text| std::str::from_utf8(text).unwrap_or_default())
            .map(|text| text.parse().unwrap_or(0))
            .collect();
        match (private, between, last) {
            (Some(b'?'), None, b'h' | b'l') => {
                for mode in numbers {
                    let usual = match mode {
                        mode if OFF.contains(&mode) || SCREENS.contains(&mode) => b'l',
                        mode if ON.contains(&mode) => b'h',
                        _ => continue,
                    };
                    match last == usual {
                        // They are one screen, by whichever name.
                        true if SCREENS.contains(&mode) => {
                            state.changed.retain(|mode| !SCREENS.contains(mode));
                        }
                        true => {
                            state.changed.remove(&mode);
                        }
                        false => {
                            state.changed.insert(mode);
                        }
                    }
                }
            }
            (None, None, b'h' | b'l') if numbers.contains(&4) => state.insert = last == b'h',
            (None, None, b'm') => state.attributes = attributes(&numbers, state.attributes),
            (Some(b'>'), None, b'm') if numbers.first() == Some(&4) => {
                state.modified_keys = numbers.get(1).is_some_and(|&level| level > 0);
            }
            (None, None, b'r') => state.region = numbers.iter().any(|&number| number > 0),
            (None, Some(b' '), b'q') => {
                state.cursor_style = numbers.first().is_some_and(|&style| style > 0);
            }
            (Some(b'>'), None, b'u') => state.keyboards = state.keyboards.saturating_add(1),
            (Some(b'<'), None, b'u') => {
                let count = numbers.first().copied().unwrap_or(1).max(1);
                state.keyboards = state.keyboards.saturating_sub(count);
            }
            // The soft reset: the mouse and the screen stay.
            (None, Some(b'!'), b'p') => {
                let changed = std::mem::take(&mut state.changed);
                let stays = |mode: &u16| !matches!(mode, 1 | 6 | 7 | 25 | 66);
                *state = State {
                    changed: changed.into_iter().filter(stays).collect(),
                    keyboards: state.keyboards,
                    ..State::default()
                };
            }
            _ => {}
        }
    }

    /// What brings the terminal back; nothing, if nothing is needed. After it nothing is left.
    pub(super) fn undo(&mut self) -> Vec<u8> {
        let mut undo = Vec::new();
        match std::mem::take(&mut self.place) {
            Place::Text => {}
            Place::Passage(_) => undo.extend(b"\x1b\\"),
            _ => undo.push(0x18),
        }
        let State {
            changed,
            keypad,
            insert,
            attributes,
            region,
            cursor_style,
            modified_keys,
            keyboards,
            characters,
            shifted,
        } = std::mem::take(&mut self.state);
        if keyboards > 0 {
            undo.extend(format!("\x1b[<{keyboards}u").as_bytes());
        }
        if modified_keys {
            undo.extend(b"\x1b[>4;0m");
        }
        let (screens, modes): (Vec<u16>, Vec<u16>) =
            changed.into_iter().partition(|mode| SCREENS.contains(mode));
        for mode in modes {
            let to = if ON.contains(&mode) { 'h' } else { 'l' };
            undo.extend(format!("\x1b[?{mode}{to}").as_bytes());
        }
        for (is_left, sequence) in [
            (keypad, "\x1b>"),
            (insert, "\x1b[4l"),
            (characters, "\x1b(B"),
            (shifted, "\x0f"),
            // It would move the cursor to the corner.
            (region, "\x1b7\x1b[r\x1b8"),
            (cursor_style, "\x1b[0 q"),
        ] {
            if is_left {
                undo.extend(sequence.as_bytes());
            }
        }
        if let Some(screen) = screens.last() {
            undo.extend(format!("\x1b[?{screen}l").as_bytes());
        }
        if attributes {
            undo.extend(b"\x1b[m");
        }
        undo
    }
}

/// Whether attributes are set behind these numbers.
fn attributes(numbers: &[u16], mut set: bool) -> bool {
    let mut numbers = numbers.iter();
    while let Some(number) = numbers.next() {
        match number {
            0 => set = false,
            38 | 48 | 58 => {
                // A colour, whose own numbers may be 0.
                let more = match numbers.next() {
                    Some(5) => 1,
                    Some(2) => 3,
                    _ => 0,
                };
                numbers.by_ref().take(more).for_each(drop);
                set = true;
            }
            _ => set = true,
        }
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn undo(printed: &[u8]) -> String {
        let mut leftovers = Leftovers::default();
        for byte in printed.chunks(1) {
            leftovers.feed(byte);
        }
        String::from_utf8(leftovers.undo()).unwrap()
    }

    #[test]
    fn what_is_left_is_undone_and_nothing_else() {
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
            // In the middle of something.
            ("\x1b]0;title", "\x1b\\"),
            ("\x1b]0;title\x07", ""),
            ("\x1b]0;\x1b[31m", "\x1b[m"),
            ("\x1b[31", "\x18"),
        ] {
            assert_eq!(undo(printed.as_bytes()), expected, "{printed:?}");
        }
    }

    proptest! {
        /// What is undone leaves a terminal as one that was never touched, and memory is bounded.
        #[test]
        fn what_was_undone_leaves_nothing(printed in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut leftovers = Leftovers::default();
            leftovers.feed(&printed);
            let undo = leftovers.undo();
            let mut after = Leftovers::default();
            after.feed(&printed);
            after.feed(&undo);
            prop_assert_eq!(&after.state, &State::default());
            prop_assert!(matches!(after.place, Place::Text));
        }

        #[test]
        fn sequences_that_are_likely_are_undone(
            parts in prop::collection::vec(prop::sample::select(vec![
                "\x1b[?1049h", "\x1b[?47h", "\x1b[?25l", "\x1b[?7l", "\x1b[1;5r", "\x1b[7m", "\x1b=",
                "\x1b(0", "\x0e", "\x1b[4h", "\x1b[>4;2m", "\x1b[>1u", "\x1b[5 q", "\x1b]0;x", "\x1b[",
                "\x1b[?1049l", "text", "\x1b[?2004h", "\x1b[38;2;0;0;0m",
            ]), 0..12)
        ) {
            let printed = parts.concat();
            let mut after = Leftovers::default();
            after.feed(printed.as_bytes());
            after.feed(undo(printed.as_bytes()).as_bytes());
            prop_assert_eq!(&after.state, &State::default());
        }
    }
}

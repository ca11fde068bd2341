//! Key events in typed input.
//!
//! A program may switch its terminal to another keyboard protocol. Then a key such as `ctrl-p` no
//! longer arrives as one byte, but as `ESC [ 112 ; 5 u` (kitty's protocol, and xterm's with
//! `formatOtherKeys`) or as `ESC [ 27 ; 5 ; 112 ~` (xterm's `modifyOtherKeys`).

/// The longest escape sequence of a key, in bytes. Longer ones are no keys.
const MAX_SEQUENCE_BYTES: usize = 64;

/// The modifiers of a key, in the order of their bits.
const SHIFT: u32 = 1;
const CTRL: u32 = 4;
const CAPS_LOCK: u32 = 64;
const NUM_LOCK: u32 = 128;
/// The first code of kitty's protocol that is not a character.
const FIRST_PRIVATE_CODE: u32 = 57344;
/// The codes of modifiers and locks in kitty's protocol.
const LOCK_CODES: std::ops::RangeInclusive<u32> = 57358..=57360;
const MODIFIER_CODES: std::ops::RangeInclusive<u32> = 57441..=57454;

/// The meaning of a piece of typed input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyEvent {
    /// The press of a key that a terminal without a protocol sends as this byte.
    Byte(u8),
    /// Any other key, or other input.
    Other,
    /// The release of a key, or a modifier alone.
    Silent,
}

/// The first piece of typed input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A key event with this number of bytes.
    Event(KeyEvent, usize),
    /// The beginning of an escape sequence that continues in the next read.
    Incomplete,
}

/// Returns the first piece of `typed`, which is not empty.
///
/// An `ESC` alone is the Escape key, so it is not incomplete.
pub(super) fn first_piece(typed: &[u8]) -> Piece {
    let byte = Piece::Event(KeyEvent::Byte(typed[0]), 1);
    let Some(sequence) = typed.strip_prefix(b"\x1b[") else {
        return byte;
    };
    let is_parameter = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b';' | b':');
    let length = sequence
        .iter()
        .take_while(|byte| is_parameter(byte))
        .count();
    match sequence.get(length) {
        _ if length == 0 || length > MAX_SEQUENCE_BYTES => byte,
        None => Piece::Incomplete,
        Some(last) => {
            let event = parse(&sequence[..length], *last);
            Piece::Event(event, b"\x1b[".len() + length + 1)
        }
    }
}

/// Parses the parameters and the last byte of an escape sequence.
fn parse(parameters: &[u8], last: u8) -> KeyEvent {
    let fields: Vec<Vec<Option<u32>>> = parameters
        .split(|byte| *byte == b';')
        .map(|field| field.split(|byte| *byte == b':').map(number).collect())
        .collect();
    let field = |at: usize, part: usize| *fields.get(at)?.get(part)?;
    // Without its modifiers, a key has none. The field is their bits plus 1.
    let modifiers = field(1, 0).unwrap_or(1).saturating_sub(1);
    let code = match (last, field(0, 0)) {
        (b'u', Some(code)) => code,
        (b'~', Some(27)) => match field(2, 0) {
            Some(code) => code,
            None => return KeyEvent::Other,
        },
        _ => return KeyEvent::Other,
    };
    let is_release = field(1, 1) == Some(3);
    if is_release || LOCK_CODES.contains(&code) || MODIFIER_CODES.contains(&code) {
        return KeyEvent::Silent;
    }
    let shifted = field(0, 1).filter(|_| last == b'u');
    key_byte(code, shifted, modifiers & !(CAPS_LOCK | NUM_LOCK))
        .map_or(KeyEvent::Other, KeyEvent::Byte)
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Returns the byte that a terminal without a protocol sends for a key.
fn key_byte(code: u32, shifted: Option<u32>, modifiers: u32) -> Option<u8> {
    let code = match modifiers & SHIFT {
        0 => code,
        _ => shifted.unwrap_or(code),
    };
    if code >= FIRST_PRIVATE_CODE {
        return None;
    }
    let byte = u8::try_from(code).ok().filter(u8::is_ascii)?;
    match (modifiers, byte) {
        (0, byte) => Some(byte),
        (SHIFT, byte) => Some(byte.to_ascii_uppercase()),
        (CTRL, b'a'..=b'z') => Some(byte - b'a' + 1),
        (CTRL, b' ') => Some(0),
        (_, b'@' | b'['..=b'_') if modifiers & !SHIFT == CTRL => Some(byte - b'@'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_each_protocol_have_their_byte() {
        use KeyEvent::{Byte, Other, Silent};
        for (sequence, event) in [
            // kitty: with modifiers, locks, alternate keys, an event type and a text.
            ("\x1b[112;5u", Byte(0x10)),
            ("\x1b[112;197u", Byte(0x10)),
            ("\x1b[112:80;5u", Byte(0x10)),
            ("\x1b[112;5:1u", Byte(0x10)),
            ("\x1b[112;5:2u", Byte(0x10)),
            ("\x1b[112;5:3u", Silent),
            ("\x1b[97;1;97u", Byte(b'a')),
            ("\x1b[97u", Byte(b'a')),
            ("\x1b[97;2u", Byte(b'A')),
            ("\x1b[49:33;2u", Byte(b'!')),
            ("\x1b[13u", Byte(b'\r')),
            ("\x1b[27u", Byte(0x1b)),
            ("\x1b[91;5u", Byte(0x1b)),
            ("\x1b[45:95;6u", Byte(0x1f)),
            ("\x1b[57442;5u", Silent),
            ("\x1b[57358u", Silent),
            ("\x1b[112;6u", Other),
            ("\x1b[112;7u", Other),
            ("\x1b[233u", Other),
            ("\x1b[57376u", Other),
            // xterm.
            ("\x1b[27;5;112~", Byte(0x10)),
            ("\x1b[27;6;64~", Byte(0)),
            ("\x1b[27;5~", Other),
            ("\x1b[3~", Other),
            ("\x1b[1;5A", Other),
            ("\x1b[24;80R", Other),
            ("\x1b[99999999999;5u", Other),
        ] {
            let typed = format!("{sequence}x");
            let piece = first_piece(typed.as_bytes());
            assert_eq!(piece, Piece::Event(event, sequence.len()), "{sequence:?}");
        }
    }

    #[test]
    fn only_a_sequence_with_a_number_is_incomplete() {
        for (typed, event) in [
            ("\x1b", 0x1b),
            ("\x1b[", 0x1b),
            ("\x1b[A", 0x1b),
            ("p", b'p'),
        ] {
            let piece = first_piece(typed.as_bytes());
            assert_eq!(piece, Piece::Event(KeyEvent::Byte(event), 1), "{typed:?}");
        }
        for typed in ["\x1b[1", "\x1b[112;", "\x1b[112;5"] {
            assert_eq!(first_piece(typed.as_bytes()), Piece::Incomplete);
        }
        let long = format!("\x1b[{}", "1".repeat(MAX_SEQUENCE_BYTES + 1));
        let escape = Piece::Event(KeyEvent::Byte(0x1b), 1);
        assert_eq!(first_piece(long.as_bytes()), escape);
    }
}

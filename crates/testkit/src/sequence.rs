//! The output of the workload as a function of its arguments. A test knows every byte without
//! reading a log.
//!
//! The workload includes this file, so it uses the standard library only.

/// Length of the shortest line: stream, number and checksum without padding.
pub const MIN_WIDTH: usize = "out 00000001  01234567".len();

/// Line `number` of `stream` ("out" or "err"), `width` bytes long without its newline:
/// `out 00000001 <padding> <checksum>`.
pub fn line(stream: &str, number: u64, width: usize) -> String {
    let mut text = format!("{stream} {number:08} ");
    let padding = width.max(MIN_WIDTH) - MIN_WIDTH;
    text.extend((0..padding).map(|at| {
        let letter = (number as usize).wrapping_mul(7).wrapping_add(at) % 26;
        (b'a' + letter as u8) as char
    }));
    let checksum = checksum(text.as_bytes());
    text.push_str(&format!(" {checksum:08x}"));
    text
}

/// Lines `1..=count` of `stream`, each with its newline.
pub fn lines(stream: &str, count: u64, width: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(count as usize * (width + 1));
    for number in 1..=count {
        all.extend_from_slice(line(stream, number, width).as_bytes());
        all.push(b'\n');
    }
    all
}

/// Checks that `bytes` are lines `1..=count` of `stream`, each once and in order.
///
/// # Errors
///
/// The first difference: a line that is missing, repeated, out of order, or changed.
pub fn check(bytes: &[u8], stream: &str, count: u64, width: usize) -> Result<(), String> {
    let mut expected = 1;
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(format!(
                "{stream}: after line {}, {} bytes without a newline: {:?}",
                expected - 1,
                rest.len(),
                String::from_utf8_lossy(&rest[..rest.len().min(120)])
            ));
        };
        let found = &rest[..end];
        rest = &rest[end + 1..];
        if found == line(stream, expected, width).as_bytes() {
            expected += 1;
            continue;
        }
        return Err(match number(found, stream, width) {
            Some(number) if number < expected => {
                format!("{stream}: line {number} again where line {expected} is due")
            }
            Some(number) => {
                format!("{stream}: lines {expected} to {} are missing", number - 1)
            }
            None => format!(
                "{stream}: line {expected} is changed: {:?}",
                String::from_utf8_lossy(&found[..found.len().min(120)])
            ),
        });
    }
    if expected != count + 1 {
        return Err(format!(
            "{stream}: {} lines, {count} were expected",
            expected - 1
        ));
    }
    Ok(())
}

/// The number of a line of `stream`, if it is whole and unchanged.
fn number(found: &[u8], stream: &str, width: usize) -> Option<u64> {
    let text = std::str::from_utf8(found).ok()?;
    let number = text.strip_prefix(stream)?.split(' ').nth(1)?.parse().ok()?;
    (text == line(stream, number, width)).then_some(number)
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Pseudorandom bytes of a seed.
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    /// The generator for this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Fills `buffer` with the next bytes. Except in the last call, its length must be a multiple
    /// of eight.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let bytes = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// The first `count` bytes of [`Noise`].
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    Noise::new(seed).fill(&mut bytes);
    bytes
}

/// A line of `count` bytes without a newline, in ASCII or in characters of one to four bytes.
pub fn long(count: usize, utf8: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 4);
    let mut at = 0_u32;
    while bytes.len() < count {
        let letter = char::from(b'a' + (at % 26) as u8);
        let wide = ['ä', '€', '𝄞', letter][(at % 4) as usize];
        let next = if utf8 { wide } else { letter };
        if bytes.len() + next.len_utf8() > count {
            bytes.push(b'.');
        } else {
            bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
        }
        at = at.wrapping_add(1);
    }
    bytes
}

/// A progress bar: `steps` states, each after a carriage return, and one newline.
pub fn progress(steps: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for step in 1..=steps {
        let done = (step * 40 / steps) as usize;
        let bar = format!("\r[{:<40}] {step}/{steps}", "#".repeat(done));
        bytes.extend_from_slice(bar.as_bytes());
    }
    bytes.push(b'\n');
    bytes
}

/// Terminal output that looks like the header of a frame of four gigabytes.
pub const TTY_HOSTILE: &[u8] = b"\x01\x00\x00\x00\xff\xff\xff\xff x\nhidden\n";

/// A character of three bytes, printed in two halves.
pub const SPLIT: &str = "a €uro\n";
/// Where [`SPLIT`] is split, inside its character.
pub const SPLIT_AT: usize = 3;

//! Reading and writing of frames.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::protocol::{HEADER_LEN, Header, Kind, frame};

/// A frame that was read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) micros: u64,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The payload as a number.
    pub(crate) fn number(&self) -> Option<i32> {
        let bytes = self.payload.as_slice().try_into().ok()?;
        Some(i32::from_le_bytes(bytes))
    }

    /// The payload as an offset.
    pub(crate) fn offset(&self) -> Option<u64> {
        let bytes = self.payload.as_slice().try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// The payload as a list of strings; empty if it is none.
    pub(crate) fn strings(&self) -> Vec<OsString> {
        let strings = decode_strings(&mut self.payload.as_slice());
        let strings = strings.unwrap_or_default().into_iter();
        strings.map(OsString::from_vec).collect()
    }

    /// The payload as columns and rows.
    pub(crate) fn window(&self) -> Option<(u16, u16)> {
        let [a, b, c, d] = self.payload.as_slice().try_into().ok()?;
        Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
    }
}

/// Adds variables of the form `NAME=VALUE` to the environment of a command.
pub(crate) fn add_environment(command: &mut Command, variables: &[OsString]) {
    for variable in variables {
        let bytes = variable.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b'=');
        let at = at.unwrap_or(bytes.len());
        let value = bytes.get(at + 1..).unwrap_or_default();
        command.env(OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(value));
    }
}

/// Returns the time in microseconds since 1970.
pub(crate) fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_micros() as u64
}

/// Returns a frame with the present time.
pub(crate) fn stamped(kind: Kind, payload: &[u8]) -> Vec<u8> {
    frame(kind, now_micros(), payload)
}

/// Writes a frame with the present time.
pub(crate) fn write(out: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    out.write_all(&stamped(kind, payload))?;
    out.flush()
}

/// Reads a frame. Returns none at the end of the stream, even within a frame.
pub(crate) fn read(input: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER_LEN];
    match input.read_exact(&mut header) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let header = Header::decode(header).ok_or_else(not_a_frame)?;
    let mut payload = vec![0; header.len];
    match input.read_exact(&mut payload) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    Ok(Some(Frame {
        kind: header.kind,
        micros: header.micros,
        payload,
    }))
}

/// The received bytes of a stream of frames, for readers that must not block.
#[derive(Debug, Default)]
pub(crate) struct FrameBuffer(Vec<u8>);

impl FrameBuffer {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Removes the first frame, if it is complete.
    ///
    /// # Errors
    ///
    /// The bytes are not a frame.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        let Some(header) = self.0.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = Header::decode(*header).ok_or_else(not_a_frame)?;
        let len = HEADER_LEN + header.len;
        if self.0.len() < len {
            return Ok(None);
        }
        let payload = self.0[HEADER_LEN..len].to_vec();
        self.0.drain(..len);
        Ok(Some(Frame {
            kind: header.kind,
            micros: header.micros,
            payload,
        }))
    }
}

fn not_a_frame() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the bytes are not a frame")
}

/// Returns the payload of a `Failed` frame: the error's number and `operation: error`.
pub(crate) fn failure(operation: &str, error: &io::Error) -> Vec<u8> {
    let errno = error.raw_os_error().unwrap_or(0);
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut payload = errno.to_le_bytes().to_vec();
    payload.extend_from_slice(format!("{operation}: {text}").as_bytes());
    payload
}

/// Reads a list of strings from the start of `bytes`, and advances `bytes` past it.
pub(crate) fn decode_strings(bytes: &mut &[u8]) -> Option<Vec<Vec<u8>>> {
    let count = decode_u32(bytes)?;
    let mut strings = Vec::new();
    for _ in 0..count {
        let len = decode_u32(bytes)? as usize;
        let (string, rest) = bytes.split_at_checked(len)?;
        strings.push(string.to_vec());
        *bytes = rest;
    }
    Some(strings)
}

fn decode_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*number))
}

//! The protocol between moat and its helper program in a pod.
//!
//! The helper's crate includes this file, so that both sides have the same definitions. Both
//! directions of every connection are a sequence of frames.

/// The size of a frame's header, in bytes.
pub(crate) const HEADER_LEN: usize = 16;

/// The maximum length of a frame's payload, in bytes.
///
/// A larger length means that the bytes are not frames.
pub(crate) const MAX_PAYLOAD: usize = 1 << 20;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Output on the standard output.
    Stdout = 1,
    /// Output on the standard error.
    Stderr = 2,
    /// Output of a terminal.
    Tty = 3,
    /// The process has started. The frame's time is the time of the start.
    Started = 4,
    /// The process has ended. Payload: the exit code as `i32`, 128 + n after signal n.
    Exited = 5,
    /// The end of the output: every process that could write to it is gone. Payload: text.
    End = 6,
    /// The process or the request has failed. Payload: the `errno` as `i32`, 0 for none, then the
    /// message as text.
    Failed = 7,
    /// The request was carried out.
    Done = 8,
    /// The state does not allow the request. Payload: the reason as text.
    Refused = 9,
    /// The answer to a request for a stream. Payload: the offset of the next frame as `u64`.
    Hello = 10,
    /// There are no more frames yet.
    Pause = 11,
    /// Text with one `key value` pair a line.
    Report = 12,
    /// A wrapper waits for its release. The message carries the file descriptors of its streams.
    Ready = 13,
    /// The wrapper may start the command.
    Release = 14,
    /// Bytes of an input or of an archive.
    Data = 32,
    /// The end of an input or of an archive.
    Close = 33,
    /// The size of the terminal. Payload: columns and rows as `u16`.
    Resize = 34,
    /// A signal for the process. Payload: its number as `i32`.
    Signal = 35,
    /// The frames before this offset were received. Payload: the offset as `u64`.
    Ack = 36,
    /// The exec to run. Payload: see [`encode_strings`].
    Spec = 37,
}

impl Kind {
    const ALL: [Self; 20] = [
        Self::Stdout,
        Self::Stderr,
        Self::Tty,
        Self::Started,
        Self::Exited,
        Self::End,
        Self::Failed,
        Self::Done,
        Self::Refused,
        Self::Hello,
        Self::Pause,
        Self::Report,
        Self::Ready,
        Self::Release,
        Self::Data,
        Self::Close,
        Self::Resize,
        Self::Signal,
        Self::Ack,
        Self::Spec,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The header of a frame: the kind (1 byte), 3 zero bytes, the length of the payload (`u32`), and
/// the time in microseconds since 1970 (`u64`). All numbers are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// The kind.
    pub(crate) kind: Kind,
    /// The length of the payload, in bytes.
    pub(crate) len: usize,
    /// The helper's time, in microseconds since 1970. moat sends 0.
    pub(crate) micros: u64,
}

impl Header {
    /// Returns the bytes of the header.
    pub(crate) fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.kind as u8;
        bytes[4..8].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[8..].copy_from_slice(&self.micros.to_le_bytes());
        bytes
    }

    /// Reads a header. Returns none if the bytes are not a header.
    pub(crate) fn decode(bytes: [u8; HEADER_LEN]) -> Option<Self> {
        let [kind, 0, 0, 0, a, b, c, d, micros @ ..] = bytes else {
            return None;
        };
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        (len <= MAX_PAYLOAD).then_some(())?;
        Some(Self {
            kind: Kind::from_byte(kind)?,
            len,
            micros: u64::from_le_bytes(micros),
        })
    }
}

/// Returns a frame.
pub(crate) fn frame(kind: Kind, micros: u64, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        kind,
        len: payload.len(),
        micros,
    };
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(payload);
    bytes
}

/// Appends a list of strings: its length as `u32`, then for each string its length in bytes as
/// `u32` and its bytes.
pub(crate) fn encode_strings<S: AsRef<[u8]>>(out: &mut Vec<u8>, strings: &[S]) {
    out.extend_from_slice(&(strings.len() as u32).to_le_bytes());
    for string in strings {
        let bytes = string.as_ref();
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    }
}

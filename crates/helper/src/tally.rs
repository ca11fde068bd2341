//! The size and the digest of a stream.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use crate::protocol::Kind;

/// The count and the digest of the bytes of an output stream.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) kind: Kind,
    bytes: u64,
    digest: Sha256,
}

impl Tally {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            bytes: 0,
            digest: Sha256::new(),
        }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.digest.update(bytes);
    }

    /// Appends the line `name bytes digest`.
    fn line(&self, text: &mut String) {
        let name = match self.kind {
            Kind::Stdout => "stdout",
            Kind::Stderr => "stderr",
            _ => "tty",
        };
        let _ = write!(text, "{name} {} ", self.bytes);
        for byte in self.digest.clone().finalize() {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
    }
}

/// Returns the payload of an `End` frame.
pub(crate) fn summary<'a>(
    tallies: impl IntoIterator<Item = &'a Tally>,
    exit: Option<i32>,
) -> String {
    let mut text = String::new();
    for tally in tallies {
        tally.line(&mut text);
    }
    match exit {
        Some(code) => text.push_str(&format!("exit {code}\n")),
        None => text.push_str("exit unknown\n"),
    }
    text
}

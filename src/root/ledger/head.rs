//! The head of a ledger: its last line, in a form to be kept elsewhere.

use std::fmt;
use std::str::FromStr;

use crate::error::Result;
use crate::root::Root;
use crate::root::ledger::end::{self, End};
use crate::spec::{InvalidSpec, RootId};

const PREFIX: &str = "moat-head v1";

/// The last line of a ledger, as its number and digest: see [`Root::head`].
///
/// The digest covers all lines before it. So a person who keeps a head elsewhere can prove later
/// that no line up to it was changed, and that the end of the ledger was not cut off.
///
/// `Display` and `FromStr` use one line of text: `moat-head v1 <root> <number> <digest>`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Head {
    /// The root of the ledger.
    pub root: RootId,
    /// The number of the line, from 1.
    pub number: u64,
    /// The SHA-256 digest, in hexadecimal, of the line with its newline.
    pub sha256: String,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (root, number, sha256) = (&self.root, self.number, &self.sha256);
        write!(f, "{PREFIX} {root} {number} {sha256}")
    }
}

impl FromStr for Head {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let invalid = || {
            let reason = format!("{text:?} is not `{PREFIX} <root> <number> <digest>`");
            InvalidSpec::new("head", reason)
        };
        let rest = text.trim_end().strip_prefix(PREFIX);
        let fields: Vec<_> = rest.ok_or_else(invalid)?.split_whitespace().collect();
        let [root, number, sha256] = fields[..] else {
            return Err(invalid());
        };
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if sha256.len() != 64 || !sha256.bytes().all(is_digit) {
            return Err(invalid());
        }
        Ok(Self {
            root: RootId::try_from(root.to_owned()).map_err(|_| invalid())?,
            number: number.parse().map_err(|_| invalid())?,
            sha256: sha256.to_owned(),
        })
    }
}

impl Root {
    /// Returns the head of the root's ledger. Returns `None` if the root has never had a run.
    ///
    /// Keep it elsewhere, and pass it to [`verify_all`](Self::verify_all) later.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`](crate::Error::Storage) if the ledger cannot be read.
    pub fn head(&self) -> Result<Option<Head>> {
        let Some((file, length)) = self.open_ledger()? else {
            return Ok(None);
        };
        // A kept head must not name a line that a power loss takes.
        file.sync_data()
            .map_err(|error| self.ledger_error("sync", error))?;
        let end = end::find(&file, length).map_err(|error| self.ledger_error("read", error))?;
        Ok(end.map(|end| self.head_of(end)))
    }

    pub(super) fn head_of(&self, end: End) -> Head {
        Head {
            root: self.id().clone(),
            number: end.number,
            sha256: end.digest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_back_from_its_text() {
        let head = Head {
            root: RootId::generate(),
            number: 42,
            sha256: "ab".repeat(32),
        };
        assert_eq!(head.to_string().parse::<Head>().unwrap(), head);
        assert_eq!(format!("{head}\n").parse::<Head>().unwrap(), head);
        for bad in [
            String::new(),
            head.to_string().replace("v1", "v2"),
            head.to_string().replace("42", "-1"),
            head.to_string().to_uppercase(),
            format!("{head} more"),
            head.to_string()[..60].to_owned(),
        ] {
            let error = bad.parse::<Head>().unwrap_err().to_string();
            assert!(error.contains("moat-head v1"), "{error}");
        }
    }
}

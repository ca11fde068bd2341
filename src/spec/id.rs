//! The ids of runs, roots and containers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::spec::InvalidSpec;

/// The maximum length of a run id, in bytes.
const MAX_RUN_ID_BYTES: usize = 64;

/// The file that marks a directory as a root and has the root's id.
pub(crate) const ROOT_FILE: &str = "root.json";
/// The ledger of a root.
pub(crate) const LEDGER_FILE: &str = "ledger.jsonl";
/// The signature of the ledger's head.
pub(crate) const HEAD_SIGNATURE_FILE: &str = "ledger.sig";
/// The names of files in a root, which are no run ids.
const RESERVED: [&str; 3] = [ROOT_FILE, LEDGER_FILE, HEAD_SIGNATURE_FILE];

/// The id of a run: generated, sortable and unique, or set by the caller.
///
/// The id is also the name of the run's directory and a part of the container's name. It has 1 to
/// 64 of the characters `A-Z a-z 0-9 _ . -`, and begins with a letter or a digit. `root.json`,
/// `ledger.jsonl` and `ledger.sig` are reserved.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl RunId {
    /// Creates an id from text.
    ///
    /// # Errors
    ///
    /// [`InvalidSpec`] if `id` is empty, is longer than 64 characters, is reserved, or has a
    /// character that is not allowed in the names of directories and containers.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidSpec> {
        let id = id.into();
        let invalid = |reason: String| Err(InvalidSpec::new("id", reason));
        if id.is_empty() || id.len() > MAX_RUN_ID_BYTES {
            return invalid(format!(
                "a run id has 1 to {MAX_RUN_ID_BYTES} bytes, but this one has {}",
                id.len()
            ));
        }
        if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return invalid(format!("{id:?} does not begin with a letter or a digit"));
        }
        if let Some(bad) = id
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !"_.-".contains(*c))
        {
            return invalid(format!(
                "{id:?} has {bad:?}; a run id has only letters, digits, '_', '.' and '-'"
            ));
        }
        if RESERVED.contains(&&*id) {
            return invalid(format!("{id:?} is the name of a file in each root"));
        }
        Ok(Self(id))
    }

    /// Generates a unique id. Ids sort by their time of generation, to the millisecond.
    pub fn generate() -> Self {
        Self(ulid::Ulid::generate().to_string().to_ascii_lowercase())
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RunId {
    type Err = InvalidSpec;

    fn from_str(id: &str) -> Result<Self, InvalidSpec> {
        Self::new(id)
    }
}

impl TryFrom<String> for RunId {
    type Error = InvalidSpec;

    fn try_from(id: String) -> Result<Self, InvalidSpec> {
        Self::new(id)
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.0
    }
}

/// The random id of a root, generated when the root is created.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootId(String);

impl RootId {
    /// Generates a random id.
    pub fn generate() -> Self {
        Self(format!("{:020x}", ulid::Ulid::generate().random()))
    }

    /// Returns the id as text: 20 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the container of run `id`.
    ///
    /// The name is `moat-<last 8 digits of the root id>-<run id>`.
    pub fn container_name(&self, id: &RunId) -> String {
        format!("moat-{}-{id}", &self.0[self.0.len() - 8..])
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RootId {
    type Error = String;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        if id.len() == 20 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(id))
        } else {
            Err(format!(
                "{id:?} is not a root id, which has 20 hexadecimal digits"
            ))
        }
    }
}

impl From<RootId> for String {
    fn from(id: RootId) -> Self {
        id.0
    }
}

/// The engine's id of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(String);

impl ContainerId {
    /// Wraps an id of the engine.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_cannot_escape_its_root() {
        let long = "x".repeat(10_000);
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\0b",
            "-x",
            "_x",
            "é",
            "a b",
            "root.json",
            &long,
        ] {
            let error = RunId::new(bad).unwrap_err();
            assert!(
                matches!(&error, InvalidSpec { field, .. } if field == "id"),
                "{bad:?}: {error}"
            );
        }
        let error = RunId::new("é".repeat(40)).unwrap_err();
        assert!(error.to_string().contains("has 80"), "{error}");
        for good in ["a", "0", "nightly-2026.11_22", &"x".repeat(64)] {
            assert_eq!(RunId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn generated_ids_are_valid_and_differ() {
        let (a, b) = (RunId::generate(), RunId::generate());
        assert_ne!(a, b);
        assert_eq!(RunId::new(a.as_str()).unwrap(), a);
        let root = RootId::generate();
        assert_eq!(RootId::try_from(root.as_str().to_owned()).unwrap(), root);
        let name = root.container_name(&a);
        assert!(name.starts_with("moat-") && name.ends_with(a.as_str()));
    }
}

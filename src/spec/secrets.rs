//! Text that no file, error or log may contain.

use std::fmt;

use super::RunSpec;

/// A string with a redacted `Debug` output.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The content of a file that no other file, error or log may contain.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SecretBytes(pub(super) Vec<u8>);

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Returns the names of environment variables, each truncated at a stray `=`.
///
/// The text after a stray `=` may be a value.
pub(super) fn env_names(env: &[(String, Secret)]) -> impl Iterator<Item = &str> {
    env.iter()
        .map(|(name, _)| name.split_once('=').map_or(name.as_str(), |(name, _)| name))
}

impl RunSpec {
    /// Adds a file with a secret, such as `/run/secrets/token`.
    ///
    /// The file is there before the command starts. Its owner is the user of the container, and its
    /// mode is 0400. The path is recorded, and the value never is: neither moat's files nor the
    /// engine's `inspect` contain it. Maximum: 1 MiB.
    ///
    /// With Docker and Podman, each directory of such files is an anonymous volume. A directory of
    /// the image keeps its other files there. The value is on the engine's disk until the container
    /// is removed, so an administrator of the engine can read it. Kubernetes and local processes
    /// refuse the setting.
    pub fn secret_file(mut self, path: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.secret_files
            .push((path.into(), SecretBytes(value.into())));
        self
    }

    pub(super) fn secret_file_paths(&self) -> impl Iterator<Item = &str> {
        self.secret_files.iter().map(|(path, _)| path.as_str())
    }
}

/// The secrets of a run, which are redacted in the engine's messages.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets(Vec<Secret>);

impl Secrets {
    /// The minimum length, in bytes, of a value that is redacted everywhere.
    ///
    /// Redacting shorter values everywhere would make messages unreadable. They are redacted only
    /// in `NAME=value`.
    pub(super) const MIN_VALUE_BYTES: usize = 4;

    /// Returns the texts to redact for an environment.
    pub(super) fn values_of(env: &[(String, Secret)]) -> impl Iterator<Item = String> {
        env.iter().flat_map(|(name, value)| {
            let alone = (value.0.len() >= Self::MIN_VALUE_BYTES).then(|| value.0.clone());
            std::iter::once(format!("{name}={}", value.0)).chain(alone)
        })
    }

    pub(super) fn of_env(env: &[(String, Secret)]) -> Self {
        Self::new(Self::values_of(env))
    }

    pub(super) fn new(values: impl IntoIterator<Item = String>) -> Self {
        let mut values: Vec<Secret> = values
            .into_iter()
            .filter(|value| !value.trim().is_empty())
            .map(Secret)
            .collect();
        // Longest first: a secret may be a part of another secret.
        values.sort_by_key(|value| std::cmp::Reverse(value.0.len()));
        values.dedup();
        Self(values)
    }

    /// Returns `text` with every secret replaced by `***`.
    pub(crate) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for Secret(value) in &self.0 {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), "***");
            }
            // Engines quote the values in their messages.
            let quoted = value.escape_debug().to_string();
            if quoted != *value && text.contains(&quoted) {
                text = text.replace(&quoted, "***");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_redacted_even_if_quoted() {
        let secrets = Secrets::new([
            "s3cr3t".into(),
            "s3cr3t-long".into(),
            "a\"b".into(),
            "".into(),
        ]);
        assert_eq!(
            secrets.redact("bad: s3cr3t-long, s3cr3t and a\\\"b, a\"b"),
            "bad: ***, *** and ***, ***"
        );
        assert!(!format!("{secrets:?}").contains("s3cr3t"));
    }
}

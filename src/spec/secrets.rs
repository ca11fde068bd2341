//! Text that must not reach a file, an error or a log.

use std::fmt;

/// A value whose `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The secrets of a run, for taking them out of what an engine says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets(Vec<Secret>);

impl Secrets {
    /// Shorter values are no secrets by themselves, and taking them out of a message would leave
    /// nothing of it; they go where the engine echoes `NAME=value`.
    pub(super) const ALONE: usize = 4;

    /// What is secret of an environment.
    pub(super) fn values_of(env: &[(String, Secret)]) -> impl Iterator<Item = String> {
        env.iter().flat_map(|(name, value)| {
            let alone = (value.0.len() >= Self::ALONE).then(|| value.0.clone());
            std::iter::once(format!("{name}={}", value.0)).chain(alone)
        })
    }

    pub(super) fn of_env(env: &[(String, Secret)]) -> Self {
        Self::new(Self::values_of(env))
    }

    pub(crate) fn new(values: impl IntoIterator<Item = String>) -> Self {
        let mut values: Vec<Secret> = values
            .into_iter()
            .filter(|value| !value.trim().is_empty())
            .map(Secret)
            .collect();
        // The longest first: a secret may be a part of another one.
        values.sort_by_key(|value| std::cmp::Reverse(value.0.len()));
        values.dedup();
        Self(values)
    }

    /// `text` with `***` in place of every secret.
    pub(crate) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for Secret(value) in &self.0 {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), "***");
            }
            // Engines quote what they echo.
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
    fn a_secret_is_taken_out_of_what_the_engine_says_also_when_it_is_quoted() {
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

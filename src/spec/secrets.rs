//! Text that no file, error or log may contain.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::{InvalidSpec, RunRecord, RunSpec};

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

    /// Masks values in the output: each occurrence is replaced by `***`.
    ///
    /// The values are replaced before any other code sees the output of the run and of its execs:
    /// the audit file, sinks, attachments, [`Outcome::last_lines`](crate::Outcome::last_lines),
    /// [`Run::output`](crate::Run::output) and [`Ready::line`](crate::run::Ready::line) have only
    /// `***`. So has the output of a health check in an error. It makes no difference where chunks of
    /// output or records begin and end. Of several values that occur at the same place, the longest
    /// is replaced. moat's error messages are redacted, too. Each call adds values. Default: none.
    ///
    /// The `start` record of the audit file has the number of distinct values, and the seal has the
    /// number of replacements: [`Seal::masked`](crate::Seal::masked). No file has a value or its
    /// hash. A manager that recovers the run needs the values again, from
    /// [`ManagerBuilder::masks`](crate::ManagerBuilder::masks). Without them, it records no output,
    /// but a gap.
    ///
    /// # What is not found
    ///
    /// A value is found only where the output of one stream has all its bytes, unmodified and
    /// adjacent. As the only exception, a newline in a value also stands for the two bytes that a
    /// terminal prints. These are **not found**:
    ///
    /// - encodings of a value: base64, URL encoding, escapes of JSON or of a shell, another
    ///   character set, other letter case;
    /// - a part of a value: without the newline at its end, one line of several, or indented lines.
    ///   Add the lines of a key as separate values if a program may print them;
    /// - a value that is interrupted: by a control sequence of a terminal, by a line wrap, by other
    ///   output on the same stream, or by a switch between stdout and stderr;
    /// - a value outside of the output: in the command, the names of environment variables, labels,
    ///   recorded input ([`record_stdin`](Self::record_stdin)), or copied files;
    /// - a value whose beginning a rotated log has lost (Kubernetes without the helper).
    ///
    /// A value that is very short, or that is a common word, makes the output hard to read, and the
    /// reader can infer it.
    ///
    /// **The engine's log has the output as it was printed**, until the container is removed, which
    /// normally happens after the seal: see [`keep`](Self::keep). The output of a health check is in
    /// the engine's `inspect`. Other clients of the engine can read both.
    ///
    /// # Effects
    ///
    /// Output that may be the beginning of a value is held back until the next byte decides, at most
    /// the length of the longest value. All counts and limits of bytes are those of the masked
    /// output. Terminal output of a run that another process has started arrives through the audit
    /// file, line by line.
    ///
    /// Docker's log driver `json-file` and similar logs replace invalid UTF-8, also in the middle of a
    /// character. There, a value cannot be found if it is not UTF-8, or if it is not ASCII and has
    /// more than 512 bytes, nor can many long values that are not ASCII (1 MiB of variants, such as 9
    /// values of 500 bytes). Such a log is then not read. Every run with it is
    /// [`Unproven`](crate::Verdict::Unproven) at best, and a lost connection is a gap.
    ///
    /// # Errors
    ///
    /// [`validate`](Self::validate) refuses values of less than 2 bytes or more than 16 KiB, and more
    /// than 1,000 values or 256 KiB in total.
    pub fn mask<V: Into<Vec<u8>>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        self.masks.extend(values);
        self.settings.masks = self.masks.len() as u32;
        self
    }

    /// Returns the values to mask in the output.
    pub(crate) fn masks(&self) -> &MaskValues {
        &self.masks
    }

    pub(super) fn secret_file_paths(&self) -> impl Iterator<Item = &str> {
        self.secret_files.iter().map(|(path, _)| path.as_str())
    }
}

/// The distinct values to mask in the output of a run.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct MaskValues(BTreeSet<Vec<u8>>);

impl fmt::Debug for MaskValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} masks", self.0.len())
    }
}

impl<V: Into<Vec<u8>>> Extend<V> for MaskValues {
    fn extend<I: IntoIterator<Item = V>>(&mut self, values: I) {
        self.0.extend(values.into_iter().map(Into::into));
    }
}

impl MaskValues {
    /// The minimum length. A single byte occurs in most output.
    const MIN_VALUE_BYTES: usize = 2;
    /// The maximum length of a value. Up to this many bytes of output are held back.
    const MAX_VALUE_BYTES: usize = 16 << 10;
    const MAX_VALUES: usize = 1000;
    /// The maximum length of all values. Each run needs some 30 times as much memory. Splits of values
    /// beyond ASCII need up to 30 MiB more.
    const MAX_BYTES: usize = 256 << 10;

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// Checks the values. The error has no value.
    pub(crate) fn check(&self) -> Result<(), InvalidSpec> {
        let refused = |reason: String| Err(InvalidSpec::new("mask", reason));
        for value in &self.0 {
            let length = value.len();
            if length < Self::MIN_VALUE_BYTES {
                let minimum = Self::MIN_VALUE_BYTES;
                return refused(match length {
                    0 => "a value is empty".to_owned(),
                    _ => format!("a value has {length} byte: the minimum is {minimum} bytes"),
                });
            }
            if length > Self::MAX_VALUE_BYTES {
                let maximum = Self::MAX_VALUE_BYTES;
                return refused(format!(
                    "a value has {length} bytes: the maximum is {maximum}"
                ));
            }
        }
        let (count, bytes) = (self.0.len(), self.0.iter().map(Vec::len).sum::<usize>());
        if count > Self::MAX_VALUES {
            let maximum = Self::MAX_VALUES;
            return refused(format!(
                "there are {count} values: the maximum is {maximum}"
            ));
        }
        if bytes > Self::MAX_BYTES {
            let maximum = Self::MAX_BYTES;
            return refused(format!(
                "the values have {bytes} bytes: the maximum is {maximum}"
            ));
        }
        Ok(())
    }
}

type ValuesOf = dyn Fn(&RunRecord) -> MaskValues + Send + Sync;

/// The source of the values to mask in runs that another process has started.
#[derive(Clone, Default)]
pub(crate) struct MaskSource(Option<Arc<ValuesOf>>);

impl fmt::Debug for MaskSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MaskSource").finish_non_exhaustive()
    }
}

impl MaskSource {
    pub(crate) fn new(values: impl Fn(&RunRecord) -> MaskValues + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(values)))
    }

    /// The values of a run; none without a source.
    pub(crate) fn values_of(&self, record: &RunRecord) -> MaskValues {
        let values = self.0.as_ref().map(|values_of| values_of(record));
        values.unwrap_or_default()
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

    /// Adds the values that are masked in the output.
    pub(crate) fn with_masks(mut self, masks: &MaskValues) -> Self {
        let values = masks
            .iter()
            .filter_map(|value| std::str::from_utf8(value).ok());
        let known = self.0.drain(..).map(|Secret(value)| value);
        Self::new(
            known
                .collect::<Vec<_>>()
                .into_iter()
                .chain(values.map(Into::into)),
        )
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

    #[test]
    fn a_mask_that_cannot_be_used_is_refused() {
        let spec = || RunSpec::new("busybox").mask(["s3cr3t"]);
        let many = (0..1000).map(|n| n.to_string().repeat(2));
        for (expected, bad) in [
            ("a value is empty", spec().mask([""])),
            ("a value has 1 byte", spec().mask(["x"])),
            (
                "16385 bytes",
                spec().mask(["s3cr3t".repeat(2731)[1..].to_owned()]),
            ),
            ("1001 values", spec().mask(many)),
            (
                "272006 bytes",
                spec().mask((0..17).map(|n| vec![n; 16_000])),
            ),
        ] {
            let InvalidSpec { field, reason } = bad.validate().unwrap_err();
            assert_eq!(field, "mask");
            assert!(reason.contains(expected), "{expected}: {reason}");
            assert!(!reason.contains("s3cr3t"), "{reason}");
        }
        let good = spec()
            .mask([b"s3cr3t".as_slice(), b"\xff\x00"])
            .mask(["ab"]);
        good.validate().unwrap();
        assert_eq!(good.settings().masks, 3);
        assert!(!format!("{good:?}").contains("s3cr3t"), "{good:?}");
    }

    #[test]
    fn masks_are_redacted_in_messages() {
        let spec = RunSpec::new("busybox")
            .env("A", "abcd")
            .mask(["xy", "abcdef"]);
        assert_eq!(spec.secrets().redact("xy: abcdef, abcd"), "***: ***, ***");
    }
}

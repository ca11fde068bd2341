//! Checks of the secret files.

use std::collections::HashSet;
use std::path::{Component, Path};

use super::{Quoted, check_absolute_path};
use crate::spec::{InvalidSpec, RunSpec};

const FIELD: &str = "secret_files";
/// The maximum size of a secret file, in bytes.
const MAX_SECRET_BYTES: usize = 1 << 20;

impl RunSpec {
    pub(super) fn validate_secret_files(&self) -> Result<(), InvalidSpec> {
        let mounts = self.settings.mounts.iter();
        let mounts: HashSet<_> = mounts.map(|mount| components(mount.target())).collect();
        let mut paths = HashSet::new();
        for (path, value) in &self.secret_files {
            check_absolute_path(FIELD, "the path", path)?;
            let parts = components(path);
            if parts.contains(&Component::ParentDir) {
                refuse!(FIELD, "{} contains \"..\"; resolve it", Quoted(path));
            }
            if path.ends_with(['/', '.']) && path.rsplit('/').next().is_some_and(is_dots) {
                refuse!(FIELD, "{} names no file", Quoted(path));
            }
            let dir = &parts[..parts.len() - 1];
            if dir == [Component::RootDir] {
                refuse!(
                    FIELD,
                    "{} is in the root directory, which cannot be a volume; use a directory such as \
                     /run/secrets",
                    Quoted(path)
                );
            }
            if mounts.contains(dir) || mounts.contains(&parts) {
                refuse!(FIELD, "{} is on a mount of the spec", Quoted(path));
            }
            if value.0.len() > MAX_SECRET_BYTES {
                let length = value.0.len();
                refuse!(
                    FIELD,
                    "{} has {length} bytes: the maximum is {MAX_SECRET_BYTES}",
                    Quoted(path)
                );
            }
            if !paths.insert(parts) {
                refuse!(FIELD, "{} is there twice", Quoted(path));
            }
        }
        Ok(())
    }
}

fn components(path: &str) -> Vec<Component<'_>> {
    Path::new(path).components().collect()
}

fn is_dots(name: &str) -> bool {
    matches!(name, "" | "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_cannot_be_a_secret_file_is_refused() {
        let spec = || RunSpec::new("busybox");
        let file = |path: &str| spec().secret_file(path, "s3cr3t");
        for (expected, bad) in [
            ("absolute", file("token")),
            ("root directory", file("/token")),
            ("names no file", file("/run/secrets/")),
            ("names no file", file("/run/secrets/.")),
            ("\"..\"", file("/run/../token")),
            ("names no file", file("/")),
            ("twice", file("/a/b").secret_file("/a//b", "x")),
            ("mount", file("/a/b").tmpfs("/a/", None)),
            ("mount", file("/a/b").bind("/x", "/a/b")),
            (
                "1048577 bytes",
                spec().secret_file("/a/b", vec![0; (1 << 20) + 1]),
            ),
        ] {
            let InvalidSpec { field, reason } = bad.validate().unwrap_err();
            assert_eq!(field, FIELD);
            assert!(reason.contains(expected), "{expected}: {reason}");
            assert!(!reason.contains("s3cr3t"), "{reason}");
        }
        let good = file("/run/secrets/token").secret_file("/run/secrets/db/key", vec![0; 1 << 20]);
        good.tmpfs("/run", None).validate().unwrap();
    }
}

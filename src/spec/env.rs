//! The environment of a container, from calls and from files.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use super::secrets::{self, Secret};
use super::validate::Quoted;
use super::{InvalidSpec, RunSpec};

/// The field that errors name.
const FIELD: &str = "env_file";
/// The spaces that a name cannot contain, as for Docker's CLI.
const SPACES: [char; 2] = [' ', '\t'];

impl RunSpec {
    /// Adds an environment variable.
    ///
    /// The name is recorded, and the value never is. With Docker, name and value together must be
    /// shorter than 128 KiB, the limit of Linux.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let name = name.into();
        if let Some(at) = self.default_env(&name) {
            self.env.remove(at);
            self.default_env -= 1;
        }
        self.env.push((name, Secret(value.into())));
        self
    }

    /// Adds the environment variables of a file, in the format of `docker run --env-file`.
    ///
    /// Each line is `NAME=value`. A line `NAME` takes the value of this process, and is skipped if
    /// this process has no such variable. Blank lines and lines that begin with `#` are skipped.
    /// Quotes and backslashes are part of the value, and so are spaces at its end. A line may end
    /// with CR LF.
    ///
    /// [`env`](Self::env) overrides a variable of a file, in any order of the calls. A later file
    /// overrides an earlier one. As for `env`, no value is recorded.
    ///
    /// The file is read during this call, which blocks. If it cannot be read, or has an invalid
    /// line, [`validate`](Self::validate) returns the error, and so does the start of the run. The
    /// error names the file and the line, and contains no text of the file.
    pub fn env_file(mut self, path: impl AsRef<Path>) -> Self {
        match read(path.as_ref()) {
            Ok(variables) => {
                for (name, value) in variables {
                    self.set_default_env(name, value);
                }
            }
            Err(error) => {
                self.env_error.get_or_insert(error);
            }
        }
        self
    }

    /// Adds variables that are not set, and that `env` and `env_file` override.
    #[cfg(feature = "docker")]
    pub(crate) fn with_missing_env(
        mut self,
        variables: Result<Vec<(String, String)>, InvalidSpec>,
    ) -> Self {
        match variables {
            Ok(variables) => {
                for (name, value) in variables {
                    if !self.env_names().any(|known| known == name) {
                        self.set_default_env(name, value);
                    }
                }
            }
            Err(error) => {
                self.env_error.get_or_insert(error);
            }
        }
        self
    }

    /// Adds a variable that `env` overrides. It replaces another one of that kind.
    fn set_default_env(&mut self, name: String, value: String) {
        let value = Secret(value);
        if let Some(at) = self.default_env(&name) {
            self.env[at].1 = value;
        } else if !self.env_names().any(|known| known == name) {
            self.env.insert(self.default_env, (name, value));
            self.default_env += 1;
        }
    }

    /// Returns the index of a variable that `env` overrides.
    fn default_env(&self, name: &str) -> Option<usize> {
        let defaults = &self.env[..self.default_env];
        defaults.iter().position(|(known, _)| known == name)
    }

    pub(super) fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env.iter().map(|(k, v)| (k.as_str(), v.0.as_str()))
    }

    /// Returns the names of the environment variables.
    pub(super) fn env_names(&self) -> impl Iterator<Item = &str> {
        secrets::env_names(&self.env)
    }
}

fn read(path: &Path) -> Result<Vec<(String, String)>, InvalidSpec> {
    let shown = path.to_string_lossy();
    let shown = Quoted(&shown);
    let bytes = fs::read(path)
        .map_err(|error| InvalidSpec::new(FIELD, format!("cannot read {shown}: {error}")))?;
    parse(&bytes, |name| std::env::var_os(name)).map_err(|(line, reason)| {
        InvalidSpec::new(FIELD, format!("{shown}, line {line}: {reason}"))
    })
}

/// Parses a file. An error is the number of the line and the reason.
fn parse(
    bytes: &[u8],
    inherited: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<(String, String)>, (usize, &'static str)> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut variables = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let refuse = |reason| (index + 1, reason);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = std::str::from_utf8(line).map_err(|_| refuse("it is not UTF-8"))?;
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (line, None),
        };
        check(name, value).map_err(refuse)?;
        let value = match value {
            Some(value) => value.to_owned(),
            None => match inherited(name).map(OsString::into_string) {
                Some(Ok(value)) => value,
                Some(Err(_)) => return Err(refuse("this process' value is not UTF-8")),
                None => continue,
            },
        };
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

fn check(name: &str, value: Option<&str>) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it has no name before '='");
    }
    if name.contains(SPACES) {
        return Err("the name contains a space; write NAME=value, without `export`");
    }
    if name.contains('\0') || value.is_some_and(|value| value.contains('\0')) {
        return Err("it contains a NUL byte");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        let inherited = |name: &str| (name == "HOME").then(|| "/home/me".into());
        parse(text.as_bytes(), inherited).unwrap()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_file_has_the_format_of_docker() {
        let text = "\u{feff}A=1\r\n# B=2\n\n  C = two words \n   #D\n\
                    E=\"quoted\" # kept\nF=\nHOME\nUNSET\nG=a=b";
        assert!(parse(b"C = x", |_| None).is_err());
        let text = text.replace("C = two", "C= two");
        let expected = [
            pair("A", "1"),
            pair("C", " two words "),
            pair("E", "\"quoted\" # kept"),
            pair("F", ""),
            pair("HOME", "/home/me"),
            pair("G", "a=b"),
        ];
        assert_eq!(parsed(&text), expected);
        assert_eq!(parsed(""), []);
    }

    #[test]
    fn an_invalid_line_is_named_without_its_text() {
        for (text, line, expected) in [
            ("A=1\n=s3cr3t", 2, "no name"),
            ("export A=s3cr3t", 1, "a space"),
            ("\n\ns3cr3t word", 3, "a space"),
            ("A=s3cr3t\0", 1, "NUL"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("vars");
            fs::write(&path, text).unwrap();
            let spec = RunSpec::new("x").env_file(&path);
            let error = spec.validate().unwrap_err();
            let text = error.to_string();
            assert_eq!(error.field, "env_file");
            assert!(text.contains(&format!("vars\", line {line}: ")), "{text}");
            assert!(text.contains(expected), "{text}");
            assert!(!format!("{text} {spec:?}").contains("s3cr3t"), "{text}");
        }
        assert_eq!(parse(b"A=\xff", |_| None).unwrap_err().0, 1);
        let missing = RunSpec::new("x").env_file("/nowhere/vars").validate();
        let text = missing.unwrap_err().to_string();
        assert!(text.contains("cannot read \"/nowhere/vars\""), "{text}");
    }

    #[test]
    fn a_call_overrides_a_file_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let one = file("one", "A=one\nB=one\nC=one\n");
        let two = file("two", "B=two\nD=two\n");
        let spec = RunSpec::new("x")
            .env("A", "call")
            .env_file(one)
            .env_file(two)
            .env("C", "call")
            .env("C", "again");
        spec.validate().unwrap();
        let env: Vec<_> = spec.environment().collect();
        let expected = [
            ("B", "two"),
            ("D", "two"),
            ("A", "call"),
            ("C", "call"),
            ("C", "again"),
        ];
        assert_eq!(env, expected);
    }
}

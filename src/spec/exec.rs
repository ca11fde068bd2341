//! The specification of an exec, including its secrets.

use std::fmt;

use super::secrets::{self, Secret};
use super::validate::check_env;
use super::{Secrets, Settings, Stdin, WindowSize};
use crate::spec::InvalidSpec;

/// The specification of an exec: see [`Run::exec`](crate::run::Run::exec).
///
/// As for a [`RunSpec`](crate::spec::RunSpec), the command is recorded verbatim. No file, error or
/// `Debug` output contains a value of the environment.
#[derive(Clone)]
pub struct ExecSpec {
    cmd: Vec<String>,
    env: Vec<(String, Secret)>,
    workdir: Option<String>,
    user: Option<String>,
    tty: bool,
    stdin: bool,
    record_stdin: bool,
    window: Option<WindowSize>,
}

impl fmt::Debug for ExecSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSpec")
            .field("cmd", &self.cmd)
            .field("env", &self.env_names().collect::<Vec<_>>())
            .field("workdir", &self.workdir)
            .field("user", &self.user)
            .field("tty", &self.tty)
            .field("stdin", &self.stdin())
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl ExecSpec {
    /// Creates a spec from a command and its arguments.
    pub fn new<S: Into<String>>(cmd: impl IntoIterator<Item = S>) -> Self {
        Self {
            cmd: cmd.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            workdir: None,
            user: None,
            tty: false,
            stdin: false,
            record_stdin: false,
            window: None,
        }
    }

    /// Adds a variable to the environment of the container.
    ///
    /// The value is a secret.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), Secret(value.into())));
        self
    }

    /// Sets the working directory, an absolute path. Default: the container's.
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.workdir = Some(path.into());
        self
    }

    /// Sets the user: `user`, `uid`, `user:group` or `uid:gid`.
    ///
    /// Default: the container's.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Gives the process a terminal.
    ///
    /// Its output is then one stream, `tty`. Default: false.
    pub fn tty(mut self, tty: bool) -> Self {
        self.tty = tty;
        self
    }

    /// Makes the standard input writable. Default: false, the input is at its end.
    ///
    /// Without a terminal, one writer writes the input and ends it: [`Stdin::Pipe`]. With a
    /// terminal, the input has no end: [`Stdin::Open`].
    pub fn interactive(mut self, stdin: bool) -> Self {
        self.stdin = stdin;
        self
    }

    /// Records the standard input in the exec's audit. Default: false.
    pub fn record_stdin(mut self, record: bool) -> Self {
        self.record_stdin = record;
        self
    }

    /// Sets the size of the terminal. Default: the engine's.
    pub fn window(mut self, size: WindowSize) -> Self {
        self.window = Some(size);
        self
    }

    /// Returns the command and its arguments.
    pub fn command(&self) -> &[String] {
        &self.cmd
    }

    /// Returns the names and values of the environment, for runtimes.
    ///
    /// The values are secrets.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env
            .iter()
            .map(|(name, value)| (name.as_str(), value.0.as_str()))
    }

    fn env_names(&self) -> impl Iterator<Item = &str> {
        secrets::env_names(&self.env)
    }

    /// Returns the kind of the standard input.
    pub fn stdin(&self) -> Stdin {
        match (self.stdin, self.tty) {
            (false, _) => Stdin::None,
            (true, false) => Stdin::Pipe,
            (true, true) => Stdin::Open,
        }
    }

    /// Returns the settings that are not secrets, in the form of a run of `image`.
    pub fn settings(&self, image: &str) -> Settings {
        Settings {
            image: image.to_owned(),
            cmd: self.cmd.clone(),
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            tty: self.tty,
            stdin: self.stdin(),
            record_stdin: self.record_stdin,
            window: self.window,
            ..Settings::default()
        }
    }

    /// Returns the names of the environment variables.
    pub(crate) fn recorded_env(&self) -> Vec<String> {
        self.env_names().map(Into::into).collect()
    }

    /// Returns the values to redact in the engine's messages.
    pub(crate) fn secrets(&self) -> Secrets {
        Secrets::of_env(&self.env)
    }

    /// Checks the spec as far as this is possible without an engine.
    ///
    /// # Errors
    ///
    /// [`InvalidSpec`], which names the first invalid field and the reason.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        if self.cmd.is_empty() {
            return Err(InvalidSpec::new("cmd", "it is empty"));
        }
        check_env(self.environment())?;
        // An exec has no image. Any name passes the check.
        self.settings("any").validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_values_are_not_shown_or_recorded() {
        let spec = ExecSpec::new(["sh"]).env("TOKEN", "s3cr3t");
        assert!(!format!("{spec:?}").contains("s3cr3t"));
        assert_eq!(spec.recorded_env(), ["TOKEN"]);
        assert_eq!(spec.secrets().redact("TOKEN=s3cr3t"), "***");
        let error = ExecSpec::new(["sh"]).env("A=", "s3cr3t").validate();
        assert!(!error.unwrap_err().to_string().contains("s3cr3t"));
    }

    #[test]
    fn an_empty_command_is_refused() {
        assert!(ExecSpec::new([""; 0]).validate().is_err());
    }

    #[test]
    fn the_input_of_a_terminal_stays_open() {
        let spec = ExecSpec::new(["sh"]).interactive(true);
        assert_eq!(spec.stdin(), Stdin::Pipe);
        assert_eq!(spec.tty(true).stdin(), Stdin::Open);
    }
}

//! What to run beside a container's first process, secrets included.

use std::fmt;

use super::secrets::Secret;
use super::validate::check_env;
use super::{Secrets, Settings, Stdin, WindowSize};
use crate::spec::InvalidSpec;

/// A further process in a container that runs: see [`Run::exec`](crate::run::Run::exec).
///
/// As with a [`RunSpec`](crate::spec::RunSpec), the command is recorded verbatim, and the values of the
/// environment are in no file, no error and no `Debug` output.
#[derive(Clone)]
pub struct ExecSpec {
    pub(super) cmd: Vec<String>,
    pub(super) env: Vec<(String, Secret)>,
    pub(super) workdir: Option<String>,
    pub(super) user: Option<String>,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) record_stdin: bool,
    pub(super) window: Option<WindowSize>,
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
    /// A command and its arguments.
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

    /// Adds a variable to the environment, which is that of the container otherwise. The value is
    /// a secret.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), Secret(value.into())));
        self
    }

    /// The working directory, an absolute path. Default: the container's.
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.workdir = Some(path.into());
        self
    }

    /// `user`, `uid`, `user:group` or `uid:gid`. Default: the container's.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Whether the process has a terminal; its output is then one stream, `tty`. Default: no.
    pub fn tty(mut self, tty: bool) -> Self {
        self.tty = tty;
        self
    }

    /// Whether its standard input can be written to: up to its end, or, with a terminal, as often
    /// as one likes. Default: no, it is at its end from the start.
    pub fn interactive(mut self, stdin: bool) -> Self {
        self.stdin = stdin;
        self
    }

    /// Whether its audit has what is written to its standard input. Default: no.
    pub fn record_stdin(mut self, record: bool) -> Self {
        self.record_stdin = record;
        self
    }

    /// The size of its terminal. Default: the engine's.
    pub fn window(mut self, size: WindowSize) -> Self {
        self.window = Some(size);
        self
    }

    /// The command and its arguments.
    pub fn command(&self) -> &[String] {
        &self.cmd
    }

    /// The environment's variables, values included: for runtimes alone.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env
            .iter()
            .map(|(name, value)| (name.as_str(), value.0.as_str()))
    }

    fn env_names(&self) -> impl Iterator<Item = &str> {
        self.env
            .iter()
            .map(|(name, _)| name.split_once('=').map_or(name.as_str(), |(name, _)| name))
    }

    /// What its standard input is.
    pub fn stdin(&self) -> Stdin {
        match (self.stdin, self.tty) {
            (false, _) => Stdin::None,
            (true, false) => Stdin::Pipe,
            (true, true) => Stdin::Open,
        }
    }

    /// What may be written down of it, as if it were a run of its own of this image.
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

    /// The names of the environment's variables.
    pub(crate) fn recorded_env(&self) -> Vec<String> {
        self.env_names().map(Into::into).collect()
    }

    /// What must be taken out of anything that an engine says.
    pub(crate) fn secrets(&self) -> Secrets {
        Secrets::of_env(&self.env)
    }

    /// Checks all that can be checked without an engine.
    ///
    /// # Errors
    ///
    /// [`InvalidSpec`], which names the first field that is wrong and says why.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        if self.cmd.is_empty() {
            return Err(InvalidSpec::new("cmd", "it is empty"));
        }
        check_env(self.environment())?;
        // The image is not part of it.
        self.settings("any").validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_of_the_environment_is_shown_or_recorded() {
        let spec = ExecSpec::new(["sh"]).env("TOKEN", "s3cr3t");
        assert!(!format!("{spec:?}").contains("s3cr3t"));
        assert_eq!(spec.recorded_env(), ["TOKEN"]);
        assert_eq!(spec.secrets().redact("TOKEN=s3cr3t"), "***");
        let error = ExecSpec::new(["sh"]).env("A=", "s3cr3t").validate();
        assert!(!error.unwrap_err().to_string().contains("s3cr3t"));
    }

    #[test]
    fn a_command_of_nothing_is_refused_and_its_input_follows_from_the_terminal() {
        assert!(ExecSpec::new([""; 0]).validate().is_err());
        let spec = ExecSpec::new(["sh"]).interactive(true);
        assert_eq!(spec.stdin(), Stdin::Pipe);
        assert_eq!(spec.tty(true).stdin(), Stdin::Open);
    }
}

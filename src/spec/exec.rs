//! The specification of an exec, including its secrets.

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::secrets::{self, Secret};
use super::validate::check_env;
use super::{LimitAction, OutputLimit, Secrets, Settings, Stdin, WindowSize};
use crate::spec::InvalidSpec;

/// The runtime's id of a created exec, and the confirmation that it is recorded.
pub(crate) type ReportedId = (String, oneshot::Sender<()>);

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
    time_limit: Option<Duration>,
    silence_limit: Option<Duration>,
    output_limit: Option<OutputLimit>,
    stop_when: Option<CancellationToken>,
    /// Receives the id of the exec before its start.
    report_id: Option<mpsc::UnboundedSender<ReportedId>>,
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
            .field("time_limit", &self.time_limit)
            .field("silence_limit", &self.silence_limit)
            .field("output_limit", &self.output_limit)
            .field("stop_when", &self.stop_when.is_some())
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
            time_limit: None,
            silence_limit: None,
            output_limit: None,
            stop_when: None,
            report_id: None,
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

    /// Kills the exec when it has run for `limit`. Default: no limit. It must not be zero.
    ///
    /// The exec and the processes that it started get SIGKILL, without a grace period: see
    /// [`Exec::kill`](crate::run::Exec::kill). If they cannot be killed, the exec continues, and its
    /// log has the stop, a note with the reason, and all output. The process that started the exec
    /// enforces the limit. If that process ends, the next opening of the root that recovers the run
    /// kills the exec at once, also before the limit. The log then has a note, and no stop.
    ///
    /// ```no_run
    /// # async fn lint(run: moat::Run) -> moat::Result<()> {
    /// use std::time::Duration;
    /// use moat::outcome::StopCause;
    /// use moat::spec::{ExecSpec, LimitAction};
    ///
    /// let lint = ExecSpec::new(["make", "lint"])
    ///     .time_limit(Duration::from_secs(60))
    ///     .output_limit(1 << 20, LimitAction::Stop);
    /// let output = run.output(lint).await?;
    /// let stopped = output.status.sealed().and_then(|seal| seal.stopped);
    /// if stopped == Some(StopCause::TimeLimit) {
    ///     println!("still running after 60 s");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Kills the exec when it has written no output for `limit`, as
    /// [`time_limit`](Self::time_limit) does.
    ///
    /// Default: no limit. Minimum: 1 s. The time starts with the exec.
    pub fn silence_limit(mut self, limit: Duration) -> Self {
        self.silence_limit = Some(limit);
        self
    }

    /// Limits the output, in bytes over all streams. Default: no limit. It must not be zero.
    ///
    /// Output past the limit is a gap. [`LimitAction::Stop`] kills the exec as
    /// [`time_limit`](Self::time_limit) does.
    pub fn output_limit(mut self, bytes: u64, action: LimitAction) -> Self {
        self.output_limit = Some(OutputLimit::new(bytes, action));
        self
    }

    /// Kills the exec when `token` is cancelled, as [`time_limit`](Self::time_limit) does.
    ///
    /// Default: no token. A token that is cancelled before the start kills the exec right after the
    /// start. The log records the stop, and the existence of a token.
    pub fn stop_when(mut self, token: CancellationToken) -> Self {
        self.stop_when = Some(token);
        self
    }

    /// Returns the token of [`stop_when`](Self::stop_when).
    pub(crate) fn stop_token(&self) -> Option<CancellationToken> {
        self.stop_when.clone()
    }

    /// Returns the receiver of [`report_id`](Self::report_id).
    ///
    /// The receiver confirms the id once it is recorded.
    pub(crate) fn reported_ids(&mut self) -> mpsc::UnboundedReceiver<ReportedId> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.report_id = Some(sender);
        receiver
    }

    /// Reports the id of the exec, and waits until it is recorded.
    ///
    /// A runtime calls this after the engine has created the exec. Returns false if the exec must
    /// not be started, because nothing could kill it after the death of its owner.
    #[cfg_attr(
        not(any(feature = "docker", feature = "testing")),
        expect(dead_code, reason = "no runtime of this build reports it")
    )]
    pub(crate) async fn report_id(&self, id: &str) -> bool {
        let Some(receiver) = &self.report_id else {
            return true;
        };
        let (recorded, is_recorded) = oneshot::channel();
        receiver.send((id.to_owned(), recorded)).is_ok() && is_recorded.await.is_ok()
    }

    /// Returns true if the exec may have to be killed.
    pub(crate) fn has_stop(&self) -> bool {
        let output = self.output_limit;
        self.time_limit.is_some()
            || self.silence_limit.is_some()
            || self.stop_when.is_some()
            || output.is_some_and(|limit| limit.action == LimitAction::Stop)
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
            time_limit: self.time_limit,
            silence_limit: self.silence_limit,
            output_limit: self.output_limit,
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

impl<S: Into<String>, const N: usize> From<[S; N]> for ExecSpec {
    /// Creates a spec from a command and its arguments.
    fn from(cmd: [S; N]) -> Self {
        Self::new(cmd)
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
    fn limits_that_are_too_small_are_refused_by_name() {
        let any = || ExecSpec::new(["any"]);
        for (field, spec) in [
            ("time_limit", any().time_limit(Duration::ZERO)),
            (
                "silence_limit",
                any().silence_limit(Duration::from_millis(999)),
            ),
            ("output_limit", any().output_limit(0, LimitAction::Stop)),
        ] {
            assert_eq!(spec.validate().unwrap_err().field, field);
        }
    }

    #[test]
    fn the_input_of_a_terminal_stays_open() {
        let spec = ExecSpec::new(["sh"]).interactive(true);
        assert_eq!(spec.stdin(), Stdin::Pipe);
        assert_eq!(spec.tty(true).stdin(), Stdin::Open);
    }
}

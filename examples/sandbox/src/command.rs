//! A command in a session.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use moat::outcome::Outcome;
use moat::run::{AttachOptions, Attachment, Exec};
use moat::spec::{ExecSpec, LimitAction, WindowSize};
use moat::tokio_util::sync::CancellationToken;
use moat::{Result, Run, RunSpec};

/// A command and its limits.
#[derive(Debug, Clone)]
pub struct CommandSpec {
    pub cmd: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    /// True if the standard input can be written.
    pub stdin: bool,
    /// The size of its terminal, if it has one.
    pub terminal: Option<WindowSize>,
    pub time_limit: Duration,
    pub silence_limit: Option<Duration>,
    pub output_limit_bytes: u64,
    /// Ends the command.
    pub cancel: CancellationToken,
}

impl CommandSpec {
    /// The spec of an exec in the session's container.
    pub fn exec(self) -> ExecSpec {
        let mut spec = ExecSpec::new(self.cmd)
            .interactive(self.stdin)
            .time_limit(self.time_limit)
            .output_limit(self.output_limit_bytes, LimitAction::Stop)
            .stop_when(self.cancel);
        for (name, value) in self.env {
            spec = spec.env(name, value);
        }
        if let Some(workdir) = self.workdir {
            spec = spec.workdir(workdir);
        }
        if let Some(user) = self.user {
            spec = spec.user(user);
        }
        if let Some(limit) = self.silence_limit {
            spec = spec.silence_limit(limit);
        }
        if let Some(size) = self.terminal {
            spec = spec.tty(true).window(size);
        }
        spec
    }

    /// The spec of a separate run, for local processes. They have no input and no terminal.
    pub fn run(self, directory: &Path) -> RunSpec {
        let mut spec = RunSpec::command(self.cmd)
            .stop_grace(Duration::ZERO)
            .time_limit(self.time_limit)
            .output_limit(self.output_limit_bytes, LimitAction::Stop)
            .stop_when(self.cancel);
        for (name, value) in self.env {
            spec = spec.env(name, value);
        }
        spec = match self.workdir {
            Some(workdir) => spec.workdir(workdir),
            None => spec.workdir(directory.to_string_lossy()),
        };
        if let Some(user) = self.user {
            spec = spec.user(user);
        }
        if let Some(limit) = self.silence_limit {
            spec = spec.silence_limit(limit);
        }
        spec
    }
}

/// A started command.
///
/// In a container it is an exec. As a local process it is a separate run.
#[derive(Debug, Clone)]
pub enum Command {
    Exec(Exec),
    Run(Run),
}

impl Command {
    /// The id in the session.
    pub fn id(&self) -> String {
        match self {
            Self::Exec(exec) => exec.number().to_string(),
            Self::Run(run) => run.id().to_string(),
        }
    }

    pub async fn attach(&self, options: AttachOptions) -> Result<Attachment> {
        match self {
            Self::Exec(exec) => exec.attach_with(options).await,
            Self::Run(run) => run.attach_with(options).await,
        }
    }

    pub async fn wait(&self) -> Result<Outcome> {
        match self {
            Self::Exec(exec) => exec.wait().await,
            Self::Run(run) => run.wait().await,
        }
    }
}

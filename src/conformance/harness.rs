//! The test setups of an implementation.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Behavior;
use crate::runtime::Runtime;
use crate::sink::{LogSink, RunPlace};
use crate::spec::{ExecSpec, RunSpec};

/// Something that a harness cannot provide, with the reason.
///
/// A case that needs it is [skipped](super::CaseResult::Skipped) for this reason.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(String);

impl fmt::Debug for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<&str> for Unsupported {
    fn from(reason: &str) -> Self {
        Self(reason.into())
    }
}

impl From<String> for Unsupported {
    fn from(reason: String) -> Self {
        Self(reason)
    }
}

/// The test setup of a runtime. Each case has its own harness.
///
/// A method with a default is optional: the cases that need it are skipped.
#[async_trait]
pub trait RuntimeHarness: Send + Sync + 'static {
    /// Returns the runtime. Called once per harness.
    ///
    /// Harnesses may share a runtime, unless they implement [`take_down`](Self::take_down) or
    /// [`silence`](Self::silence): other cases run at the same time. An error fails the case.
    async fn runtime(&self) -> Result<Arc<dyn Runtime>, Unsupported>;

    /// Returns a spec whose container has this behavior.
    ///
    /// [`Behavior::shell`] is the command line for containers that have a shell. The case sets
    /// whether the container has a terminal.
    fn spec(&self, behavior: &Behavior) -> Result<RunSpec, Unsupported>;

    /// Returns an exec with this behavior, for a container of [`spec`](Self::spec).
    fn exec(&self, behavior: &Behavior) -> Result<ExecSpec, Unsupported> {
        let _ = behavior;
        Err("the harness does not support exec".into())
    }

    /// Returns a spec that the runtime must refuse because it does not support a field.
    fn refused(&self) -> Result<RunSpec, Unsupported> {
        Err("the harness has no spec that the runtime refuses".into())
    }

    /// Returns a spec whose image does not exist and must not be pulled.
    fn no_image(&self) -> Result<RunSpec, Unsupported> {
        Err("the harness has no spec with a missing image".into())
    }

    /// Returns a spec whose container echoes what it receives at TCP port `port`, until a signal.
    fn listening(&self, port: u16) -> Result<RunSpec, Unsupported> {
        let _ = port;
        Err("the harness has no spec that listens on a port".into())
    }

    /// Returns the name of an image of the engine that no other case uses, and that the case may
    /// remove.
    ///
    /// The case also creates a container of it, without a command, which it does not start.
    async fn removable_image(&self) -> Result<String, Unsupported> {
        Err("the harness has no image to remove".into())
    }

    /// Returns the time that a case gives the engine to place a container. Default: 60 s.
    fn placement_timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// Makes the engine unreachable: open connections break, and new calls cannot connect.
    async fn take_down(&self) -> Result<(), Unsupported> {
        Err("the harness cannot make the engine unreachable".into())
    }

    /// Makes the engine silent: it accepts calls and does not answer.
    async fn silence(&self) -> Result<(), Unsupported> {
        Err("the harness cannot make the engine silent".into())
    }

    /// Undoes [`take_down`](Self::take_down) and [`silence`](Self::silence).
    async fn bring_back(&self) {}
}

/// The harness of a runtime whose containers have a POSIX shell.
///
/// ```no_run
/// # #[cfg(feature = "docker")]
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use moat::conformance::{self, ShellHarness};
/// use moat::{Docker, RunSpec};
///
/// let docker = Docker::connect().await?;
/// let spec = RunSpec::new("busybox").network("none");
/// let cases = conformance::runtime(move || ShellHarness::new(docker.clone(), spec.clone()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ShellHarness {
    runtime: Arc<dyn Runtime>,
    spec: RunSpec,
}

impl ShellHarness {
    /// Creates a harness from a runtime and a spec. Each case replaces the spec's command.
    pub fn new(runtime: impl Runtime, spec: RunSpec) -> Self {
        Self {
            runtime: Arc::new(runtime),
            spec,
        }
    }
}

#[async_trait]
impl RuntimeHarness for ShellHarness {
    async fn runtime(&self) -> Result<Arc<dyn Runtime>, Unsupported> {
        Ok(Arc::clone(&self.runtime))
    }

    fn spec(&self, behavior: &Behavior) -> Result<RunSpec, Unsupported> {
        Ok(self.spec.clone().cmd(behavior.shell()))
    }

    fn exec(&self, behavior: &Behavior) -> Result<ExecSpec, Unsupported> {
        Ok(ExecSpec::new(behavior.shell()))
    }
}

/// The test setup of a sink. A closure that returns a sink implements it.
///
/// A method with a default is optional: the cases that need it are skipped.
pub trait SinkHarness: Send + Sync + 'static {
    /// Returns a sink.
    ///
    /// All sinks of a harness see the same logs and share nothing else, like sinks in different
    /// processes.
    fn sink(&self) -> Arc<dyn LogSink>;

    /// Leaves a partial record at the end of the log at `place`, as a crash does.
    ///
    /// The log is not open.
    fn tear(&self, place: &RunPlace) -> Result<(), Unsupported> {
        let _ = place;
        Err("the harness cannot leave a partial record".into())
    }

    /// Changes the sealed log at `place`.
    fn damage(&self, place: &RunPlace) -> Result<(), Unsupported> {
        let _ = place;
        Err("the harness cannot damage a log".into())
    }

    /// Makes the next append, sync or seal of the open log at `place` fail.
    ///
    /// It is enough that one of the three calls fails.
    fn spoil(&self, place: &RunPlace) -> Result<(), Unsupported> {
        let _ = place;
        Err("the harness cannot make a log fail".into())
    }
}

impl<F, S> SinkHarness for F
where
    F: Fn() -> S + Send + Sync + 'static,
    S: LogSink,
{
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self())
    }
}

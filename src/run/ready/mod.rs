//! Readiness checks.

mod exec;
#[cfg(feature = "http")]
mod http;
mod line;
#[cfg(feature = "tls")]
mod tls;
mod wait;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

#[cfg(feature = "http")]
pub use self::http::HttpCheck;
pub use self::line::LineMatch;
#[cfg(feature = "tls")]
pub use self::tls::HttpTls;
use crate::error::chain;
use crate::run::Run;
use crate::spec::{ExecSpec, InvalidSpec};

/// The default timeout of a condition that is not a combination of others.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum length of an excerpt of output in an error, in characters.
const EXCERPT_CHARS: usize = 200;

/// A readiness check, for [`Run::wait_ready`] or [`Manager::service`].
///
/// ```
/// use moat::Ready;
/// use moat::outcome::Stream;
/// use moat::run::LineMatch;
/// use std::time::Duration;
///
/// # fn main() -> moat::Result<()> {
/// let ready = [
///     Ready::line("ready to accept connections"),
///     Ready::line_with(LineMatch::regex(r"listening on .*:\d+$")?.on(Stream::Stderr).times(2)),
///     Ready::exec(["pg_isready", "-U", "postgres"]),
///     Ready::any([Ready::healthy(), Ready::port(5432)]).within(Duration::from_secs(20)),
/// ];
/// # Ok(())
/// # }
/// ```
///
/// Each condition has a timeout: see [`within`](Self::within). Except for lines, a condition is
/// checked every 100 ms while the container runs, until it is met.
///
/// [`Manager::service`]: crate::manager::Manager::service
#[derive(Debug, Clone)]
#[must_use = "a condition does nothing until a run waits for it"]
pub struct Ready {
    condition: Condition,
    /// `None`: only the timeouts of the parts apply.
    timeout: Option<Duration>,
}

#[derive(Debug, Clone)]
enum Condition {
    Line(LineMatch),
    Port {
        network: Option<String>,
        port: u16,
    },
    Healthy,
    #[cfg(feature = "http")]
    Http(HttpCheck),
    Exec(ExecSpec),
    Custom(Custom),
    All(Vec<Ready>),
    Any(Vec<Ready>),
}

/// A condition that the caller checks.
#[derive(Clone)]
struct Custom {
    description: String,
    check: Arc<dyn Fn(Run) -> BoxFuture<'static, Result<(), String>> + Send + Sync>,
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Custom").field(&self.description).finish()
    }
}

impl Ready {
    /// Ready once the run has printed `text`, on any stream, since its start.
    ///
    /// The line need not be complete. [`line_with`](Self::line_with) has more options.
    pub fn line(text: impl Into<String>) -> Self {
        Self::line_with(LineMatch::text(text))
    }

    /// Ready once the output of the run, since its start, has matched.
    pub fn line_with(line: LineMatch) -> Self {
        Self::new(Condition::Line(line))
    }

    /// Ready once TCP port `port` accepts connections, through [`Run::connect`].
    ///
    /// A connection that is closed within 200 ms, before any byte is received, does not
    /// count: the engine's proxy for published ports may accept any connection.
    pub fn port(port: u16) -> Self {
        Self::new(Condition::Port {
            network: None,
            port,
        })
    }

    /// Ready once the port accepts connections at the address of [`Run::port_on`].
    pub fn port_on(network: impl Into<String>, port: u16) -> Self {
        Self::new(Condition::Port {
            network: Some(network.into()),
            port,
        })
    }

    /// Ready once `GET path` on TCP port `port`, through [`Run::connect`], has a status of 200
    /// to 299.
    ///
    /// Redirects are not followed. [`http_with`](Self::http_with) has more options.
    #[cfg(feature = "http")]
    pub fn http(port: u16, path: impl Into<String>) -> Self {
        Self::http_with(HttpCheck::new(port, path))
    }

    /// Ready once the server in the container has the response that `check` requires.
    #[cfg(feature = "http")]
    pub fn http_with(check: HttpCheck) -> Self {
        Self::new(Condition::Http(check))
    }

    /// Ready once `cmd` exits with code 0 in the container.
    ///
    /// The command and its arguments are recorded verbatim. [`exec_with`](Self::exec_with) sets
    /// the user, the working directory and the environment.
    pub fn exec<S: Into<String>>(cmd: impl IntoIterator<Item = S>) -> Self {
        Self::exec_with(ExecSpec::new(cmd))
    }

    /// Ready once an exec with this spec exits with code 0.
    ///
    /// The command is run again until then. An attempt without a result after 30 s has failed, and
    /// the next one starts: the process of each such attempt may keep running in the container.
    ///
    /// Unlike [`Run::exec`], an attempt leaves no log, as a health check of the image leaves none.
    /// The audit file of the run has one `note` per wait, with the command. Output of the command
    /// is not output of the run. The last line of the last attempt is in the error of a timeout.
    pub fn exec_with(spec: ExecSpec) -> Self {
        Self::new(Condition::Exec(spec))
    }

    /// Ready once the health check of the spec or the image passes.
    ///
    /// A failed check may pass later, within the timeout. A container without a health check is an
    /// immediate error. See [`RunSpec::health_check`](crate::spec::RunSpec::health_check).
    pub fn healthy() -> Self {
        Self::new(Condition::Healthy)
    }

    /// Ready once a call of `check` returns `Ok`.
    ///
    /// `check` is called again 100 ms after each error. An error of a timeout has `description`,
    /// such as `it has a leader`, and the last error of `check`.
    ///
    /// ```
    /// # use moat::Ready;
    /// let ready = Ready::from_fn("it has a leader", |run| async move {
    ///     match run.last_lines(1).await?.concat().contains("leader") {
    ///         true => Ok(()),
    ///         false => Err("no leader yet".into()),
    ///     }
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// An error of `check` never ends the wait: it is for the error of a timeout. A panic of
    /// `check` is a panic of the wait.
    ///
    /// # Cancel safety
    ///
    /// The future of `check` is dropped if the timeout elapses, the run ends or the wait is
    /// dropped, so it must be cancel-safe. A future that blocks its thread also blocks these.
    pub fn from_fn<F, T>(description: impl Into<String>, check: F) -> Self
    where
        F: Fn(Run) -> T + Send + Sync + 'static,
        T: Future<Output = Result<(), Box<dyn StdError + Send + Sync>>> + Send + 'static,
    {
        let check = move |run| {
            let checked = check(run);
            async move { checked.await.map_err(|error| chain(&*error)) }.boxed()
        };
        Self::new(Condition::Custom(Custom {
            description: description.into(),
            check: Arc::new(check),
        }))
    }

    /// Ready once each of the conditions has been met, at the same time or not.
    ///
    /// They are checked side by side, with their own timeouts, and the first that fails ends the
    /// wait. Without [`within`](Self::within), there is no other timeout.
    pub fn all(conditions: impl IntoIterator<Item = Self>) -> Self {
        Self::combined(Condition::All(conditions.into_iter().collect()))
    }

    /// Ready once one of the conditions is met.
    ///
    /// They are checked side by side, with their own timeouts, and the wait ends when the last has
    /// failed. Without [`within`](Self::within), there is no other timeout.
    pub fn any(conditions: impl IntoIterator<Item = Self>) -> Self {
        Self::combined(Condition::Any(conditions.into_iter().collect()))
    }

    fn new(condition: Condition) -> Self {
        Self {
            condition,
            timeout: Some(DEFAULT_TIMEOUT),
        }
    }

    fn combined(condition: Condition) -> Self {
        Self {
            condition,
            timeout: None,
        }
    }

    /// Sets the timeout.
    ///
    /// Default: 60 s. For [`all`](Self::all) and [`any`](Self::any): none but those of the
    /// conditions.
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Returns the conditions that this one combines.
    fn parts(&self) -> &[Self] {
        match &self.condition {
            Condition::All(parts) | Condition::Any(parts) => parts,
            _ => &[],
        }
    }

    /// Checks the condition as far as this is possible without a run.
    pub(crate) fn validate(&self) -> Result<(), InvalidSpec> {
        match &self.condition {
            Condition::Line(line) => line.validate(),
            #[cfg(feature = "http")]
            Condition::Http(check) => check.validate(),
            Condition::Exec(spec) => spec.validate(),
            Condition::Any(parts) if parts.is_empty() => {
                Err(InvalidSpec::new("any", "it has no condition"))
            }
            Condition::All(parts) | Condition::Any(parts) => {
                parts.iter().try_for_each(Self::validate)
            }
            Condition::Port { .. } | Condition::Healthy | Condition::Custom(_) => Ok(()),
        }
    }
}

/// Completes "timed out after 5 s, before ..." and "it exited before ...".
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => line.fmt(f),
            Self::Port { port, .. } => write!(f, "it accepted connections on port {port}"),
            Self::Healthy => f.write_str("its health check passed"),
            #[cfg(feature = "http")]
            Self::Http(check) => check.fmt(f),
            Self::Exec(spec) => {
                let command = spec.command().join(" ");
                write!(f, "the command {command:?} exited with code 0")
            }
            Self::Custom(custom) => f.write_str(&custom.description),
            Self::All(_) => f.write_str("all conditions were met"),
            Self::Any(_) => f.write_str("a condition was met"),
        }
    }
}

/// Returns the last line of `text` that is not blank, cut and escaped for an error.
fn excerpt(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let mut excerpt = String::new();
    for character in line.chars().take(EXCERPT_CHARS) {
        match character.is_control() && character != '\t' {
            true => excerpt.extend(character.escape_default()),
            false => excerpt.push(character),
        }
    }
    if line.chars().nth(EXCERPT_CHARS).is_some() {
        excerpt.push_str("...");
    }
    Some(excerpt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_one_short_escaped_line() {
        assert_eq!(excerpt(" \n\n"), None);
        let text = "first\n \x1b[31mno room \n\n";
        assert_eq!(excerpt(text).as_deref(), Some("\\u{1b}[31mno room"));
        let long = excerpt(&"é".repeat(EXCERPT_CHARS + 1)).unwrap();
        assert_eq!(long.chars().count(), EXCERPT_CHARS + 3);
    }

    #[test]
    fn an_invalid_condition_is_found_in_each_depth() {
        let invalid = Ready::line_with(LineMatch::text("up").times(0));
        assert_eq!(invalid.validate().unwrap_err().field, "times");
        let nested = Ready::all([Ready::healthy(), Ready::any([invalid])]);
        assert_eq!(nested.validate().unwrap_err().field, "times");
        assert_eq!(Ready::any([]).validate().unwrap_err().field, "any");
        assert_eq!(Ready::exec([""; 0]).validate().unwrap_err().field, "cmd");
        Ready::all([]).validate().unwrap();
    }
}

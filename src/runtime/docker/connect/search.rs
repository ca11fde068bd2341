//! The search for an engine: the first candidate that answers.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use crate::error::RuntimeError;
use crate::runtime::docker::Docker;
use crate::runtime::docker::client::{CALL_TIMEOUT, Client};
use crate::runtime::docker::connection::{
    Address, Candidate, Environment, Requested, candidates, may_exist,
};

/// The timeout of a socket if there is another one to try.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason that a search found no engine.
#[derive(Debug)]
pub(in crate::runtime) enum NoEngine {
    /// The engine that the caller or a variable named cannot be used.
    Named(RuntimeError),
    /// The engine of the current context cannot be used, or no well-known socket answers.
    Unavailable {
        error: RuntimeError,
        /// The addresses that were tried, with their reasons.
        skipped: Vec<String>,
    },
}

impl From<NoEngine> for RuntimeError {
    fn from(no_engine: NoEngine) -> Self {
        match no_engine {
            NoEngine::Named(error) | NoEngine::Unavailable { error, .. } => error,
        }
    }
}

/// The candidates that do not answer, in order.
#[derive(Default)]
struct Skipped {
    reasons: Vec<Reason>,
}

/// The reason that a candidate is skipped.
enum Reason {
    Ignored(String),
    /// Sockets that do not exist.
    Missing(Vec<PathBuf>),
    Unavailable(RuntimeError),
}

impl Docker {
    /// Connects to the engine of Docker's CLI, else to a well-known socket of Docker or Podman.
    ///
    /// Also returns the reasons why other engines were skipped.
    pub(in crate::runtime) async fn find() -> Result<(Self, Vec<String>), NoEngine> {
        let requested = Requested {
            podman: true,
            ..Requested::default()
        };
        Self::first_of(candidates(requested, &Environment::read())).await
    }

    /// Connects to the first candidate that answers.
    pub(in crate::runtime::docker) async fn first_of(
        candidates: Vec<Candidate>,
    ) -> Result<(Self, Vec<String>), NoEngine> {
        let limit = socket_timeout(&candidates);
        Self::first_within(candidates, limit).await
    }

    /// Connects to the first candidate that answers, where each socket has `limit` to answer.
    async fn first_within(
        candidates: Vec<Candidate>,
        limit: Duration,
    ) -> Result<(Self, Vec<String>), NoEngine> {
        let mut skipped = Skipped::default();
        for candidate in candidates {
            match candidate {
                Candidate::Ignored(reason) => {
                    tracing::warn!(reason, "a setting of Docker's CLI is ignored");
                    skipped.reasons.push(Reason::Ignored(reason));
                }
                Candidate::Named {
                    address,
                    source,
                    variable,
                    is_explicit,
                } => {
                    let connected = Self::open(address, source, CALL_TIMEOUT).await;
                    let mut texts = skipped.texts();
                    return match connected {
                        Ok(docker) => Ok((docker, texts)),
                        Err(error) if is_explicit => {
                            Err(NoEngine::Named(with_remedy(error, variable)))
                        }
                        Err(error) => {
                            texts.push(error.to_string());
                            let skipped = texts;
                            Err(NoEngine::Unavailable { error, skipped })
                        }
                    };
                }
                Candidate::Socket(path) if !may_exist(&path) => skipped.missing(path),
                Candidate::Socket(path) => {
                    match Self::open(Ok(Address::local(&path)), None, limit).await {
                        Ok(docker) => return Ok((docker, skipped.texts())),
                        Err(error) => skipped.unavailable(error),
                    }
                }
            }
        }
        Err(NoEngine::Unavailable {
            skipped: skipped.texts(),
            error: skipped.into_error(),
        })
    }

    /// Connects to the engine at `address`. An error names the source of the address.
    async fn open(
        address: Result<Address, RuntimeError>,
        source: Option<String>,
        limit: Duration,
    ) -> Result<Self, RuntimeError> {
        let connected = async {
            let address = address?;
            let port_host = address.host().to_owned();
            let client = Client::connect(address, limit).await?;
            Ok((client, port_host))
        };
        match connected.await {
            Ok((client, port_host)) => Ok(Self {
                client,
                port_host,
                source,
            }),
            Err(mut error) => {
                if let RuntimeError::Unavailable { address, .. } = &mut error
                    && let Some(source) = source
                {
                    address.push_str(&format!(" ({source})"));
                }
                Err(error)
            }
        }
    }
}

/// Adds what to do about `variable`, which names the engine.
fn with_remedy(error: RuntimeError, variable: Option<&str>) -> RuntimeError {
    let Some(variable) = variable else {
        return error;
    };
    error.map_reason(|reason| {
        // Some reasons end in a question.
        let (stop, verb) = match reason.ends_with('?') {
            true => ("", "Correct"),
            false => (";", "correct"),
        };
        format!("{reason}{stop} {verb} {variable}, or unset it if moat may use another engine")
    })
}

/// Returns the timeout of each socket: short if there is another engine to try.
fn socket_timeout(candidates: &[Candidate]) -> Duration {
    let exists = |candidate: &&Candidate| match candidate {
        Candidate::Socket(path) => may_exist(path),
        Candidate::Named { .. } => true,
        Candidate::Ignored(_) => false,
    };
    match candidates.iter().filter(exists).count() {
        ..=1 => CALL_TIMEOUT,
        _ => SOCKET_TIMEOUT,
    }
}

impl Skipped {
    /// Adds a socket that does not exist. Neighbors share one reason.
    fn missing(&mut self, path: PathBuf) {
        match self.reasons.last_mut() {
            Some(Reason::Missing(paths)) => paths.push(path),
            _ => self.reasons.push(Reason::Missing(vec![path])),
        }
    }

    fn unavailable(&mut self, error: RuntimeError) {
        tracing::info!(%error, "an engine is skipped");
        self.reasons.push(Reason::Unavailable(error));
    }

    fn texts(&self) -> Vec<String> {
        self.reasons.iter().map(Reason::text).collect()
    }

    /// Returns an error with all reasons.
    fn into_error(self) -> RuntimeError {
        let reasons: Vec<_> = self.reasons.iter().map(Reason::short_text).collect();
        RuntimeError::Unavailable {
            address: "any known address".into(),
            reason: format!(
                "{}; start the engine or, if it listens elsewhere, set DOCKER_HOST or select a \
                 context with `docker context use`",
                reasons.join("; and ")
            ),
        }
    }
}

impl Reason {
    fn text(&self) -> String {
        match self {
            Self::Ignored(reason) => reason.clone(),
            Self::Missing(paths) => format!("there is no socket at {}", list(paths)),
            Self::Unavailable(error) => error.to_string(),
        }
    }

    /// Returns the text without the words that the error of the search has, too.
    fn short_text(&self) -> String {
        match self {
            Self::Unavailable(RuntimeError::Unavailable { address, reason }) => {
                format!("{address}: {reason}")
            }
            reason => reason.text(),
        }
    }
}

/// Lists the paths: `a, b or c`.
fn list(paths: &[PathBuf]) -> String {
    let mut text = String::new();
    for (at, path) in paths.iter().enumerate() {
        text.push_str(match at {
            0 => "",
            _ if at + 1 == paths.len() => " or ",
            _ => ", ",
        });
        text.push_str(&path.display().to_string());
    }
    text
}

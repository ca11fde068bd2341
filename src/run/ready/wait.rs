//! Waiting until a run is ready.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{sleep, timeout};

use crate::capture::Masks;
use crate::error::{Error, Result};
use crate::monitor::entry::lock;
use crate::run::Run;
use crate::run::attach::{AttachOptions, Attached};
use crate::run::port::Route;
use crate::run::ready::line::{LineMatch, LineSearch};
use crate::run::ready::{Condition, Ready, excerpt};
use crate::runtime::{ContainerStatus, Health, Inspection};
use crate::spec::Secrets;

/// The interval between two checks of a condition.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The time that a connection must stay open.
///
/// Docker's proxy accepts a connection before it knows whether a process listens in the
/// container. If none does, it closes the connection, usually within a millisecond.
const MIN_CONNECTION_TIME: Duration = Duration::from_millis(200);
/// The number of output lines in an error.
const LAST_LINES: usize = 20;

/// A condition that a run waits for, and what is known about it.
struct Check<'a> {
    ready: &'a Ready,
    is_met: AtomicBool,
    /// The reason for the last failed attempt, for the error of a timeout.
    failure: Mutex<Option<String>>,
    parts: Vec<Self>,
}

/// The result of a wait for a condition.
enum Readiness {
    Ready,
    /// The run can never be ready.
    Never(String),
    /// The run ended first.
    Ended,
    /// The run ended first, and its seal is overdue. The log may lack output.
    Unsealed,
    TimedOut(Duration),
}

/// The result of one attempt.
enum Attempt {
    Met,
    /// The condition can never be met.
    Never(&'static str),
    /// The condition is not met yet. The reason, if any, is for the error of a timeout.
    Failed(Option<String>),
}

impl From<Result<(), String>> for Attempt {
    fn from(attempt: Result<(), String>) -> Self {
        match attempt {
            Ok(()) => Self::Met,
            Err(failure) => Self::Failed(Some(failure)),
        }
    }
}

impl<'a> Check<'a> {
    fn new(ready: &'a Ready) -> Self {
        Self {
            ready,
            is_met: AtomicBool::new(false),
            failure: Mutex::default(),
            parts: ready.parts().iter().map(Self::new).collect(),
        }
    }

    fn is_met(&self) -> bool {
        self.is_met.load(Ordering::Relaxed)
    }

    fn set_failure(&self, failure: Option<String>) {
        *lock(&self.failure) = failure;
    }

    /// Stores that a part of an alternative has failed for good, and why.
    fn give_up(&self, reason: String) {
        let mut failure = lock(&self.failure);
        *failure = Some(match failure.take() {
            Some(failure) => format!("{reason}: {failure}"),
            None => reason,
        });
    }

    /// Describes the conditions that are not met, with the last failure of each.
    fn missing(&self) -> String {
        let separator = match &self.ready.condition {
            Condition::Any(_) => " or ",
            _ => " and ",
        };
        let missing: Vec<_> = self.parts.iter().filter(|part| !part.is_met()).collect();
        let texts: Vec<_> = missing
            .iter()
            .map(|part| match part.parts.len() > 1 && missing.len() > 1 {
                true => format!("({})", part.missing()),
                false => part.missing(),
            })
            .collect();
        let text = match texts.is_empty() {
            true => self.ready.condition.to_string(),
            false => texts.join(separator),
        };
        match &*lock(&self.failure) {
            Some(failure) => format!("{text} ({failure})"),
            None => text,
        }
    }
}

impl Run {
    /// Waits until the run is ready.
    ///
    /// The audit records a wait for a line as an attachment, and a wait for a command as a note.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`], with the last lines of output, if the timeout elapses. It names each
    /// condition that is missing, with its last failure. The error is immediate if the run ends or
    /// can never be ready. Also those of [`wait`](Self::wait), and:
    ///
    /// - [`Error::InvalidSpec`] if a condition is invalid.
    /// - [`Error::Runtime`] if the address of a port cannot be determined, or the runtime does not
    ///   support the exec of a condition.
    ///
    /// # Cancel safety
    ///
    /// Cancel-safe. The command of [`Ready::exec`] may keep running.
    pub async fn wait_ready(&self, ready: Ready) -> Result<()> {
        ready.validate()?;
        let check = Check::new(&ready);
        let (reason, outcome) = match self.wait_for(&check).await? {
            Readiness::Ready => return Ok(()),
            Readiness::Never(reason) if check.parts.is_empty() => (reason, None),
            Readiness::Never(reason) => (format!("{reason}; missing: {}", check.missing()), None),
            Readiness::Ended => {
                let outcome = self.wait().await?;
                let (ending, stopped) = (&outcome.ending, outcome.stop_reason());
                let reason = format!("it {ending} before {}{stopped}", check.missing());
                (reason, Some(Box::new(outcome)))
            }
            Readiness::Unsealed => {
                let outcome = self.outcome(&self.entry.snapshot.borrow());
                let reason = format!(
                    "it {} before {}, and its log is not sealed yet",
                    outcome.ending,
                    check.missing()
                );
                (reason, Some(Box::new(outcome)))
            }
            Readiness::TimedOut(limit) => {
                let (seconds, missing) = (limit.as_secs_f64(), check.missing());
                let reason = format!("timed out after {seconds} s, before {missing}");
                (reason, None)
            }
        };
        let masks = self.find_masks().await.unwrap_or(Masks::Missing);
        let secrets = Secrets::default().with_masks(&masks.values());
        Err(Error::NotReady {
            run: self.id().clone(),
            reason: secrets.redact(&reason),
            last_lines: match &outcome {
                Some(outcome) if outcome.sealed().is_some() => outcome.last_lines.clone(),
                // An unreadable audit file must not hide why the run is not ready.
                _ => self.last_lines(LAST_LINES).await.unwrap_or_default(),
            },
            outcome,
            audit: self.audit(),
        })
    }

    /// Waits for a condition within its timeout.
    fn wait_for<'a>(&'a self, check: &'a Check<'a>) -> BoxFuture<'a, Result<Readiness>> {
        let waited = async {
            match &check.ready.condition {
                Condition::All(_) => self.wait_all(&check.parts).await,
                Condition::Any(_) => self.wait_any(&check.parts).await,
                Condition::Line(line) => self.wait_for_line(check, line).await,
                _ => tokio::select! {
                    biased;
                    ended = self.wait_exit() => ended.map(|_| Readiness::Ended),
                    polled = self.poll(check) => polled,
                },
            }
        };
        async move {
            let readiness = match check.ready.timeout {
                Some(limit) => timeout(limit, waited)
                    .await
                    .unwrap_or(Ok(Readiness::TimedOut(limit)))?,
                None => waited.await?,
            };
            let is_met = matches!(readiness, Readiness::Ready);
            check.is_met.store(is_met, Ordering::Relaxed);
            Ok(readiness)
        }
        .boxed()
    }

    async fn wait_all(&self, parts: &[Check<'_>]) -> Result<Readiness> {
        let mut waits: FuturesUnordered<_> = parts.iter().map(|part| self.wait_for(part)).collect();
        while let Some(readiness) = waits.next().await {
            match readiness? {
                Readiness::Ready => {}
                failed => return Ok(failed),
            }
        }
        Ok(Readiness::Ready)
    }

    async fn wait_any(&self, parts: &[Check<'_>]) -> Result<Readiness> {
        let waits = parts
            .iter()
            .map(async |part| (part, self.wait_for(part).await));
        let mut waits: FuturesUnordered<_> = waits.collect();
        let mut failed = Readiness::Never("no condition can be met".into());
        while let Some((part, readiness)) = waits.next().await {
            // The end of the run is the cause of the failure, then the last timeout.
            failed = match (readiness?, failed) {
                (Readiness::Ready, _) => return Ok(Readiness::Ready),
                (Readiness::Never(reason), failed) => {
                    part.give_up(reason);
                    failed
                }
                (Readiness::TimedOut(limit), failed) => {
                    part.give_up(format!("timed out after {} s", limit.as_secs_f64()));
                    match failed {
                        Readiness::Never(_) | Readiness::TimedOut(_) => Readiness::TimedOut(limit),
                        ended => ended,
                    }
                }
                (ended, _) => ended,
            };
        }
        Ok(failed)
    }

    /// Checks a condition again and again, until the attempts have a result.
    async fn poll(&self, check: &Check<'_>) -> Result<Readiness> {
        let condition = &check.ready.condition;
        let mut is_noted = false;
        if let Condition::Exec(spec) = condition {
            self.check_exec(spec)?;
        }
        loop {
            let failure = match self.inspect().await {
                Ok(seen) if seen.status != ContainerStatus::Running => None,
                Ok(seen) => {
                    if let Condition::Exec(spec) = condition
                        && !is_noted
                    {
                        self.note_probe(spec).await;
                        is_noted = true;
                    }
                    match self.attempt(check, &seen).await? {
                        Attempt::Met => return Ok(Readiness::Ready),
                        Attempt::Never(reason) => return Ok(Readiness::Never(reason.into())),
                        Attempt::Failed(failure) => failure,
                    }
                }
                // If the container no longer exists, the run is about to end.
                Err(error) => Some(error.to_string()),
            };
            check.set_failure(failure);
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Checks a condition of a running container once.
    async fn attempt(&self, check: &Check<'_>, seen: &Inspection) -> Result<Attempt> {
        let unanswered = |text: &str| {
            lock(&check.failure).get_or_insert_with(|| text.to_owned());
        };
        Ok(match &check.ready.condition {
            Condition::Port { network, port } => {
                let route = self.route(seen, network.as_deref(), *port).await?;
                let attempt = match self.connect_by(&route, *port).await {
                    Ok(connection) => probe(connection, &route).await,
                    Err(error) => Err(error.to_string()),
                };
                attempt.into()
            }
            Condition::Healthy => self.check_health(seen).await,
            #[cfg(feature = "http")]
            Condition::Http(request) => {
                let route = self.route(seen, request.network(), request.port()).await?;
                unanswered("no response yet");
                self.probe_http(request, &route).await.into()
            }
            Condition::Exec(spec) => {
                unanswered("it has not exited yet");
                self.probe_exec(spec).await?.into()
            }
            Condition::Custom(custom) => {
                unanswered("its check has not returned yet");
                (custom.check)(self.clone()).await.into()
            }
            // These are not polled.
            Condition::Line(_) | Condition::All(_) | Condition::Any(_) => Attempt::Failed(None),
        })
    }

    async fn check_health(&self, seen: &Inspection) -> Attempt {
        match seen.health {
            Some(Health::Healthy) => Attempt::Met,
            Some(Health::Starting) => Attempt::Failed(None),
            Some(Health::Unhealthy) => {
                let output = match &seen.health_output {
                    Some(output) => self.masked_excerpt(output).await,
                    None => None,
                };
                let output = output.map(|line| format!(": {line}")).unwrap_or_default();
                Attempt::Failed(Some(format!("it is unhealthy{output}")))
            }
            None => Attempt::Never("it has no health check"),
        }
    }

    /// Returns an excerpt of masked output. `None` if the masks are unknown.
    async fn masked_excerpt(&self, output: &str) -> Option<String> {
        let masks = self.find_masks().await.unwrap_or(Masks::Missing);
        // A cut value would not be found.
        excerpt(&masks.mask_text(output)?)
    }

    async fn wait_for_line(&self, check: &Check<'_>, line: &LineMatch) -> Result<Readiness> {
        let options = AttachOptions::new().lossless();
        let mut output = self.attach_with(options).await?;
        let mut search = LineSearch::new(line);
        check.set_failure(search.progress());
        while let Some(item) = output.next().await {
            let item = match item {
                Err(Error::NotSealed { .. }) => return Ok(Readiness::Unsealed),
                item => item?,
            };
            match item {
                Attached::Chunk(chunk) => search.push(chunk.stream, &chunk.bytes),
                Attached::Lagged { stream, .. } => search.skip(stream),
            }
            if search.is_done() {
                return Ok(Readiness::Ready);
            }
            check.set_failure(search.progress());
        }
        search.finish();
        Ok(match search.is_done() {
            true => Readiness::Ready,
            false => Readiness::Ended,
        })
    }
}

/// Checks that a connection stays open.
async fn probe(mut connection: impl AsyncRead + Unpin, route: &Route) -> Result<(), String> {
    match timeout(MIN_CONNECTION_TIME, connection.read_u8()).await {
        Err(_) | Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(format!("{route}: the connection was closed immediately")),
    }
}

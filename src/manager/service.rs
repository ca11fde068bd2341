//! A run for the length of a scope.

use std::ops::Deref;
use std::sync::mpsc;
use std::time::Duration;

use crate::error::Result;
use crate::manager::Manager;
use crate::monitor::entry::last_lines;
use crate::outcome::{LastLines, Outcome};
use crate::run::Run;
use crate::run::ready::Ready;
use crate::spec::RunSpec;

/// How long a stop at the end of a scope may take beyond its grace.
const BOUND: Duration = Duration::from_secs(30);
/// How many lines are shown of a service that was there when a thread panicked.
const LAST_LINES: usize = 20;

/// A run for the length of a scope, such as a test: dropped, it is stopped, and its container is
/// gone. Made by [`Manager::service`].
///
/// Where the scope is left by a panic, as that of a test which fails, the last lines of the run and
/// the path of its audit go to stderr, which `cargo test` shows with the failure.
///
/// Dropping it asks for the stop, with the grace of the spec, and blocks the thread until the
/// container is removed, for 30 s beyond the grace at most; the stop goes on in any case. Where the
/// manager's tasks run [on a runtime of the caller's](crate::manager::ManagerBuilder::runtime_handle), which the
/// thread may be needed for, it is asked for and not waited for. [`stop`](Self::stop) does it
/// without blocking.
///
/// A process that is killed drops nothing. Its containers end by their
/// [`time_limit`](RunSpec::time_limit) when their root is opened next, or anybody calls
/// [`Manager::reap`]: give them one.
#[derive(Debug)]
#[must_use = "it is stopped when it is dropped"]
pub struct Service {
    run: Run,
    grace: Duration,
    /// Whether it is not to be stopped any more.
    over: bool,
}

impl Deref for Service {
    type Target = Run;

    fn deref(&self) -> &Run {
        &self.run
    }
}

impl Service {
    /// Stops it, with the grace of its spec, and waits until its container is removed, by policy.
    ///
    /// Cancel-safe: dropped in the middle, it is stopped as if it was dropped itself.
    ///
    /// # Errors
    ///
    /// As for [`Run::stop`].
    pub async fn stop(mut self) -> Result<Outcome> {
        let outcome = self.run.stop(None).await;
        self.run.released().await;
        self.over = true;
        outcome
    }

    /// Lets it go on beyond the scope.
    pub fn release(mut self) -> Run {
        self.over = true;
        self.run.clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let tasks = &self.run.context().tasks;
        let (tell, told) = mpsc::channel();
        let stopped = self.run.clone();
        tasks.spawn(async move {
            let outcome = stopped.stop(None).await;
            stopped.released().await;
            let _ = tell.send(outcome);
        });
        let outcome = match tasks.are_on_own_threads() {
            true => told.recv_timeout(self.grace.saturating_add(BOUND)).ok(),
            false => None,
        };
        if std::thread::panicking() {
            show(&self.run, outcome);
        }
    }
}

/// Shows what became of a run where its test has failed.
fn show(run: &Run, outcome: Option<Result<Outcome>>) {
    match outcome {
        Some(Ok(outcome)) => eprintln!("moat: {}", outcome.failure()),
        stopped => {
            let lines = run.audit().map(|audit| last_lines(audit, LAST_LINES));
            let lines = lines.and_then(Result::ok).unwrap_or_default();
            let why = match stopped {
                Some(Err(error)) => format!("cannot be stopped: {}", error.chain()),
                _ => "is being stopped".to_owned(),
            };
            eprintln!("moat: run {} {why}{}", run.id(), LastLines(&lines));
        }
    }
    if let Some(audit) = run.audit() {
        eprintln!("moat: its audit: {}", audit.display());
    }
}

impl Manager {
    /// Starts a run that is stopped when the [`Service`] is dropped, and waits until it is ready,
    /// in each of these ways, one after the other.
    ///
    /// ```no_run
    /// # use moat::{Manager, Port, Ready, RunSpec};
    /// # use std::time::Duration;
    /// # async fn test(manager: Manager) -> moat::Result<()> {
    /// let spec = RunSpec::new("redis:7").port(Port::tcp(6379)).time_limit(Duration::from_secs(300));
    /// let redis = manager.service(spec, [Ready::port(6379)]).await?;
    /// let address = redis.port(6379).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Dropping this future in the middle stops the run, once it is there.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start), and of [`Run::wait_ready`]: then the run was stopped.
    pub async fn service(
        &self,
        spec: RunSpec,
        ready: impl IntoIterator<Item = Ready>,
    ) -> Result<Service> {
        let grace = spec.settings().stop_grace;
        let service = Service {
            run: self.start(spec).await?,
            grace,
            over: false,
        };
        for ready in ready {
            if let Err(error) = service.wait_ready(ready).await {
                // What stands in the way of that is in the audit, and this is what is wrong.
                let _ = service.stop().await;
                return Err(error);
            }
        }
        Ok(service)
    }
}

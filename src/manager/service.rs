//! Services: runs that stop at the end of a scope.

use std::ops::Deref;
use std::sync::mpsc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::monitor::entry::last_lines;
use crate::outcome::{LastLines, Outcome};
use crate::run::Run;
use crate::run::ready::Ready;
use crate::spec::RunSpec;

/// The timeout of a stop in `Drop`, in addition to the grace period.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// The number of output lines printed if the thread panics.
const LAST_LINES: usize = 20;

/// A run that stops at the end of a scope, such as a test.
///
/// Created by [`Manager::service`]. Dropping a service stops its run and removes the
/// container.
///
/// A run whose log has a gap keeps its container by default, also after an
/// [output limit](RunSpec::output_limit): see [`KeepContainer`](crate::spec::KeepContainer).
///
/// If the thread is panicking, as in a failing test, the drop prints the last lines of the
/// run and the path of its audit file to stderr. `cargo test` shows them with the failure.
///
/// The drop requests the stop, with the grace period of the spec. It blocks the thread until
/// the container is removed, for at most 30 s beyond the grace period. The stop continues
/// after that. If the manager's tasks run on [a runtime of the caller], which may need the
/// thread, the drop does not wait. [`stop`](Self::stop) stops the run without blocking.
///
/// A process that is killed runs no `Drop`. Set a [`time_limit`](RunSpec::time_limit): its
/// containers then end when their root is opened next or [`Manager::reap`] is called.
///
/// [a runtime of the caller]: crate::manager::ManagerBuilder::runtime_handle
#[derive(Debug)]
#[must_use = "dropping a service stops its run"]
pub struct Service {
    run: Run,
    grace: Duration,
    /// The run was stopped or released, so the drop does not stop it.
    disarmed: bool,
}

impl Deref for Service {
    type Target = Run;

    fn deref(&self) -> &Run {
        &self.run
    }
}

impl Service {
    /// Stops the run and waits until its policy has been applied to the container.
    ///
    /// The stop uses the grace period of the spec.
    ///
    /// # Errors
    ///
    /// Those of [`Run::stop`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call stops the run as dropping the service does.
    pub async fn stop(mut self) -> Result<Outcome> {
        let outcome = self.run.stop(None).await;
        if !matches!(outcome, Err(Error::Unanswered { .. })) {
            self.run.released().await;
        }
        self.disarmed = true;
        outcome
    }

    /// Returns the run without stopping it.
    pub fn release(mut self) -> Run {
        self.disarmed = true;
        self.run.clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.disarmed {
            return;
        }
        let tasks = &self.run.context().tasks;
        let (sender, stopped) = mpsc::channel();
        let run = self.run.clone();
        tasks.spawn(async move {
            let outcome = run.stop(None).await;
            if !matches!(outcome, Err(Error::Unanswered { .. })) {
                run.released().await;
            }
            let _ = sender.send(outcome);
        });
        let outcome = match tasks.is_dedicated() {
            true => stopped
                .recv_timeout(self.grace.saturating_add(STOP_TIMEOUT))
                .ok(),
            false => None,
        };
        if std::thread::panicking() {
            print_failure(&self.run, outcome);
        }
    }
}

/// Prints the outcome of the run to stderr, for a failed test.
fn print_failure(run: &Run, outcome: Option<Result<Outcome>>) {
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
        eprintln!("moat: audit file: {}", audit.display());
    }
}

impl Manager {
    /// Starts a run that stops on drop, and waits until it is ready.
    ///
    /// A service does not count for [`max_concurrent`](crate::manager::ManagerBuilder::max_concurrent).
    /// A [`shutdown`](Self::shutdown) of this manager stops it after the runs that are not services.
    ///
    /// The readiness checks run in order, one after the other.
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
    /// # Errors
    ///
    /// Those of [`start`](Self::start) and [`Run::wait_ready`]. If a check fails, the run is
    /// stopped. Nothing is started for an invalid check.
    ///
    /// # Cancel safety
    ///
    /// A dropped call stops the run, if it was started, and may block as the drop of a
    /// [`Service`] does.
    pub async fn service(
        &self,
        spec: RunSpec,
        ready: impl IntoIterator<Item = Ready>,
    ) -> Result<Service> {
        let ready: Vec<_> = ready.into_iter().collect();
        ready.iter().try_for_each(Ready::validate)?;
        let grace = spec.settings().stop_grace;
        let service = Service {
            run: self.launch(spec, None, true).await?.0,
            grace,
            disarmed: false,
        };
        for ready in ready {
            if let Err(error) = service.wait_ready(ready).await {
                // The readiness error is the cause. The audit has any problem of the stop.
                let _ = service.stop().await;
                return Err(error);
            }
        }
        Ok(service)
    }
}

//! The environment of a build: its services, their network and the workspace.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use moat::manager::Group;
use moat::outcome::StopCause;
use moat::spec::{GroupSpec, KeepContainer, NetworkSpec, VolumeSpec};
use moat::tokio_util::sync::CancellationToken;
use moat::{Error, Manager, Outcome, Result, Run, RunId, RunSpec, Runtime, ShutdownMode};

use crate::build::Build;
use crate::earlier;
use crate::pipeline::{Command, Pipeline, Service};
use crate::report::{Attempt, Status, StepResult};
use crate::view::View;

/// The name in the reports, if the network or the workspace cannot be created.
const ENVIRONMENT: &str = "environment";

/// The build that an environment belongs to.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub manager: &'a Manager,
    pub runtime: &'a Arc<dyn Runtime>,
    pub pipeline: &'a Pipeline,
    pub build: &'a Build,
    pub secrets: &'a BTreeMap<String, String>,
    pub out: &'a Path,
    pub view: &'a View<'a>,
}

pub struct Environment<'a> {
    context: Context<'a>,
    group: Option<Group>,
    running: Vec<Running<'a>>,
    /// The results of what did not start.
    failed: Vec<StepResult>,
    /// The reason why no step starts.
    failure: OnceLock<Failure>,
    /// Cancelled when there is a failure.
    stop: CancellationToken,
}

#[derive(Debug)]
struct Failure {
    /// A run that has ended too early.
    run: Option<RunId>,
    reason: String,
}

/// A service that has become ready.
struct Running<'a> {
    service: &'a Service,
    run: Run,
    number: u32,
    /// Those of an earlier process.
    earlier: Vec<Attempt>,
}

impl<'a> Environment<'a> {
    /// Starts the services in the order of the file, each once the one before it is ready.
    ///
    /// Does nothing for a pipeline without services and workspace, or if no step has to run.
    pub async fn start(context: Context<'a>) -> Self {
        let mut environment = Self {
            context,
            group: None,
            running: Vec::new(),
            failed: Vec::new(),
            failure: OnceLock::new(),
            stop: CancellationToken::new(),
        };
        let Pipeline {
            services,
            workspace,
            ..
        } = context.pipeline;
        let needs_none = services.is_empty() && workspace.is_none();
        if needs_none || earlier::all_done(context.pipeline, context.build, context.out) {
            return environment;
        }
        if context.build.is_resumed() {
            context.view.message(
                "the services and the workspace ended with the earlier process, so the steps that \
                 used them run again",
            );
        }
        let mut spec = GroupSpec::new();
        if !services.is_empty() {
            spec = spec.network(NetworkSpec::new());
        }
        if let Some(path) = workspace {
            spec = spec.volume(VolumeSpec::new(), path);
        }
        match context.manager.group(spec).await {
            Ok(group) => {
                environment.start_services(&group).await;
                environment.group = Some(group);
            }
            Err(error) => {
                let reason = "the network or the workspace cannot be created";
                let detail = format!("{reason}: {}", error.chain());
                let failed = result(ENVIRONMENT.into(), failed_status(&error), detail);
                environment.fail(failed, reason.into());
            }
        }
        environment
    }

    async fn start_services(&mut self, group: &Group) {
        for (index, service) in self.context.pipeline.services.iter().enumerate() {
            if let Some(reason) = self.failure() {
                let skipped = result(service.title(), Status::Skipped, reason);
                self.failed.push(skipped);
                continue;
            }
            let mut number = 1;
            let mut earlier = Vec::new();
            let id = loop {
                let id = self.context.build.service_id(index, &service.name, number);
                if self.context.build.earlier_run(&id).is_none() {
                    break id;
                }
                if let Ok(run) = self.context.manager.get(&id).await
                    && let Ok(outcome) = run.wait().await
                {
                    earlier.push(attempt(service, outcome));
                }
                number += 1;
            };
            self.start_service(group, service, (id, number), earlier)
                .await;
        }
    }

    async fn start_service(
        &mut self,
        group: &Group,
        service: &'a Service,
        (id, number): (RunId, u32),
        earlier: Vec<Attempt>,
    ) {
        let Context {
            manager,
            build,
            secrets,
            view,
            ..
        } = self.context;
        let title = service.title();
        view.message(&format!("{title}: started"));
        let spec = service.spec(secrets, &manager.runtime().host());
        let spec = build.label_service(spec.id(id.clone()), &service.name, number);
        let error = match group.service(&service.name, spec, service.ready()).await {
            Ok(run) => {
                view.message(&format!("{title}: ready"));
                self.running.push(Running {
                    service,
                    run,
                    number,
                    earlier,
                });
                return;
            }
            Err(error) => error,
        };
        let mut failed = StepResult {
            attempts: earlier,
            ..result(title.clone(), failed_status(&error), describe(&error))
        };
        if let Some(outcome) = self.outcome(&id, error).await {
            if outcome.stopped() == Some(StopCause::Shutdown) {
                failed.status = Status::Cancelled;
            }
            view.run_ended(&title, number, &outcome).await;
            failed.attempts.push(attempt(service, outcome));
        }
        self.fail(failed, format!("{title} is not ready"));
    }

    /// The outcome of a service that did not become ready.
    async fn outcome(&self, id: &RunId, error: Error) -> Option<Outcome> {
        match error {
            Error::NotStarted { outcome, .. } => Some(*outcome),
            _ => self.context.manager.get(id).await.ok()?.wait().await.ok(),
        }
    }

    fn fail(&mut self, failed: StepResult, reason: String) {
        self.context.view.service_failed(&failed);
        self.failed.push(failed);
        self.set_failure(Failure { run: None, reason });
    }

    /// Stops the steps, unless an earlier failure has.
    fn set_failure(&self, failure: Failure) {
        self.failure.get_or_init(|| failure);
        self.stop.cancel();
    }

    /// The reason why no step starts.
    pub fn failure(&self) -> Option<String> {
        self.failure.get().map(|failure| failure.reason.clone())
    }

    /// A token that is cancelled when a service has ended too early.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a run of a step that [shares](Pipeline::shares) the environment.
    pub async fn start_run(&self, spec: RunSpec, network: Option<&str>) -> Result<Run> {
        let Some(group) = &self.group else {
            return Err(Error::Closed);
        };
        let keep = match spec.settings().keep {
            KeepContainer::Always => KeepContainer::Always,
            // A kept container would keep the network and the workspace.
            _ => KeepContainer::Never,
        };
        let spec = group.join(spec.keep(keep));
        self.context
            .manager
            .start(match network {
                Some(network) => spec.network(network),
                None => spec,
            })
            .await
    }

    /// Notices a service that ends too early, until the future is dropped.
    pub async fn watch(&self) -> Infallible {
        let wait = |running: &'_ Running<'a>| {
            let (run, title) = (running.run.clone(), running.service.title());
            async move { (title, run.wait().await) }
        };
        let mut ends: FuturesUnordered<_> = self.running.iter().map(wait).collect();
        while let Some((title, outcome)) = ends.next().await {
            let Ok(outcome) = outcome else { continue };
            if outcome.stopped() != Some(StopCause::Shutdown) {
                let reason = format!("{title} has ended: {}", outcome.ending);
                let run = Some(outcome.run);
                self.set_failure(Failure { run, reason });
            }
        }
        pending().await
    }

    /// Stops the services, the last one first, and removes the network and the workspace.
    ///
    /// Returns the results of the services.
    pub async fn end(self) -> Vec<StepResult> {
        let view = self.context.view;
        let ended = match self.group {
            Some(group) => group.end().await,
            None => Ok(()),
        };
        let ended = match ended {
            Err(Error::Closed) => self.context.end_with_next_opening().await,
            ended => ended,
        };
        if let Err(error) = ended {
            let error = error.chain();
            view.message(&format!(
                "cannot remove the network or the workspace: {error}; the next build of this root \
                 tries again"
            ));
        }
        let failure = self.failure.into_inner();
        let ended = failure.and_then(|failure| failure.run);
        let mut results = Vec::new();
        for running in self.running {
            results.push(running.end(ended.as_ref(), view).await);
        }
        results.extend(self.failed);
        results
    }
}

impl Context<'_> {
    /// Removes an environment that a signal could not remove while artifacts were copied.
    async fn end_with_next_opening(&self) -> Result<()> {
        let (root, runtime) = (self.manager.root().path(), Arc::clone(self.runtime));
        let manager = Manager::builder(root, runtime).open().await?;
        manager.wait_recovery().await?;
        manager.shutdown(ShutdownMode::Leave).await;
        Ok(())
    }
}

impl Running<'_> {
    /// Waits for the end of the service. `ended` is a run that has ended too early.
    async fn end(self, ended: Option<&RunId>, view: &View<'_>) -> StepResult {
        let title = self.service.title();
        let outcome = match self.run.wait().await {
            Ok(outcome) => outcome,
            Err(error) => return result(title, Status::Failed, error.chain()),
        };
        let is_early = outcome.stopped().is_none() || ended == Some(&outcome.run);
        let mut result = match is_early {
            true => {
                let detail = format!("ended before the build: {}", outcome.ending);
                result(title.clone(), Status::Failed, detail)
            }
            false => result(
                title.clone(),
                Status::Passed,
                "stopped at the end of the build".into(),
            ),
        };
        if is_early {
            view.run_ended(&title, self.number, &outcome).await;
            view.service_failed(&result);
        }
        result.attempts = self.earlier;
        result.attempts.push(attempt(self.service, outcome));
        result
    }
}

fn result(name: String, status: Status, detail: String) -> StepResult {
    StepResult {
        name,
        needs: Vec::new(),
        status,
        detail: Some(detail),
        attempts: Vec::new(),
        taken_over: None,
        artifacts: Vec::new(),
        is_service: true,
    }
}

fn attempt(service: &Service, outcome: Outcome) -> Attempt {
    let command = service.command.as_ref().map(Command::to_string);
    Attempt::new(service.image.clone(), command.unwrap_or_default(), outcome)
}

/// Only a signal closes the manager while services start.
fn failed_status(error: &Error) -> Status {
    match error {
        Error::Closed => Status::Cancelled,
        _ => Status::Failed,
    }
}

/// One line: the output is shown separately.
fn describe(error: &Error) -> String {
    match error {
        Error::NotReady { reason, .. } => format!("not ready: {reason}"),
        Error::Closed => "the build was cancelled".into(),
        error => error.chain(),
    }
}

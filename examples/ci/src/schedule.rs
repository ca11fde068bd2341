//! The schedule: a step starts once the steps that it needs have passed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures::future::join_all;
use moat::outcome::StopCause;
use moat::spec::KeepContainer;
use moat::{Error, Manager, Outcome, Run, RunId, Runtime};
use tokio::sync::watch;

use crate::artifacts::Artifacts;
use crate::build::{self, Build, EarlierRun};
use crate::earlier;
use crate::environment::{Context, Environment};
use crate::leftovers::{Leftovers, remove_container};
use crate::pipeline::{Pipeline, Step};
use crate::report::{Attempt, CollectedArtifact, Status, StepResult, TakenOver};
use crate::view::View;

pub struct Schedule<'a> {
    pub manager: &'a Manager,
    pub runtime: &'a Arc<dyn Runtime>,
    pub pipeline: &'a Pipeline,
    pub build: &'a Build,
    pub leftovers: &'a Leftovers,
    pub secrets: &'a BTreeMap<String, String>,
    /// True if the runtime has images.
    pub images: bool,
    /// The directory of the reports.
    pub out: &'a Path,
    pub view: &'a View<'a>,
}

/// A step, and how this build runs it.
#[derive(Clone, Copy)]
struct Job<'a> {
    index: usize,
    step: &'a Step,
    /// The build whose runs are the attempts.
    build: &'a Build,
    /// True if runs of an earlier process do not count, because their environment is gone.
    runs_again: bool,
    environment: &'a Environment<'a>,
}

impl Job<'_> {
    fn run_id(&self, attempt: u32) -> RunId {
        self.build.run_id(self.index, &self.step.name, attempt)
    }

    fn classify(&self, outcome: &Outcome) -> AttemptResult {
        let is_earlier = self.build.earlier_run(&outcome.run).is_some();
        if self.build.interrupted(outcome) || (is_earlier && self.runs_again) {
            return AttemptResult::Interrupted;
        }
        match outcome.stopped() {
            Some(cause @ (StopCause::Requested | StopCause::Cancelled)) => {
                let reason = self.environment.failure();
                AttemptResult::Cancelled(reason.unwrap_or_else(|| cause.to_string()))
            }
            Some(cause @ (StopCause::TimeLimit | StopCause::SilenceLimit)) => {
                AttemptResult::Failed(Status::TimedOut, cause.to_string())
            }
            Some(cause @ StopCause::OutputLimit) => {
                AttemptResult::Failed(Status::Failed, cause.to_string())
            }
            Some(cause) => AttemptResult::Cancelled(cause.to_string()),
            None if outcome.success() => AttemptResult::Passed,
            None => AttemptResult::Failed(Status::Failed, outcome.ending.to_string()),
        }
    }
}

/// The result of an attempt for its step.
enum AttemptResult {
    Passed,
    /// Can be retried.
    Failed(Status, String),
    Cancelled(String),
    /// Does not count as an attempt: see [`Build::interrupted`].
    Interrupted,
}

impl AttemptResult {
    /// Returns true if the step ends with the attempt, and was not cancelled.
    fn is_last(&self, has_retries: bool) -> bool {
        match self {
            Self::Passed => true,
            Self::Failed(..) => !has_retries,
            Self::Cancelled(_) | Self::Interrupted => false,
        }
    }

    /// Of an earlier process, a step that has passed without all its artifacts runs again: their copy
    /// may have failed.
    fn without_lost(self, artifacts: &[CollectedArtifact], is_earlier: bool) -> Self {
        let is_lost = artifacts.iter().any(|artifact| artifact.copy.is_none());
        match self {
            Self::Passed if is_earlier && is_lost => Self::Interrupted,
            other => other,
        }
    }

    /// Adds an error about artifacts.
    fn and_failed(self, error: String) -> Self {
        match self {
            Self::Passed => Self::Failed(Status::Failed, error),
            Self::Failed(status, detail) => Self::Failed(status, format!("{detail}; {error}")),
            other => other,
        }
    }
}

impl Schedule<'_> {
    /// Runs all steps, and returns their results in the order of the file.
    ///
    /// To cancel the build, shut the manager down with [`ShutdownMode::Stop`](moat::ShutdownMode::Stop).
    pub async fn run(&self) -> Vec<StepResult> {
        tokio::select! {
            results = self.run_steps() => results,
            never = self.view.follow_events(self.manager.events()) => match never {},
        }
    }

    async fn run_steps(&self) -> Vec<StepResult> {
        tokio::join!(
            self.stop_other_builds(),
            self.leftovers.remove(self.manager, self.view),
        );
        let (manager, view) = (self.manager, self.view);
        self.leftovers.remove_environment(manager, view).await;
        self.describe_earlier().await;
        let environment = Environment::start(self.context()).await;
        let steps = tokio::select! {
            steps = self.run_all(&environment) => steps,
            never = environment.watch() => match never {},
        };
        let mut results = environment.end().await;
        results.extend(steps);
        results
    }

    fn context(&self) -> Context<'_> {
        Context {
            manager: self.manager,
            runtime: self.runtime,
            pipeline: self.pipeline,
            build: self.build,
            secrets: self.secrets,
            out: self.out,
            view: self.view,
        }
    }

    async fn run_all(&self, environment: &Environment<'_>) -> Vec<StepResult> {
        let steps = &self.pipeline.steps;
        let statuses: Vec<watch::Sender<Option<Status>>> =
            steps.iter().map(|_| watch::Sender::new(None)).collect();
        let work = steps.iter().enumerate().map(|(index, step)| {
            let statuses = &statuses;
            async move {
                let needs = self.wait_for_needs(step, statuses).await;
                let result = match (needs, environment.failure()) {
                    (Err(need), _) => self.skip(step, need),
                    (Ok(()), Some(reason)) => self.result(step, Status::Skipped, Some(reason)),
                    (Ok(()), None) => self.run_step(index, step, environment).await,
                };
                self.view.step_ended(index, &result);
                statuses[index].send_replace(Some(result.status));
                result
            }
        });
        join_all(work).await
    }

    /// Waits for the steps that `step` needs.
    ///
    /// Fails with the name of the first one that did not pass.
    async fn wait_for_needs(
        &self,
        step: &Step,
        statuses: &[watch::Sender<Option<Status>>],
    ) -> Result<(), &str> {
        for &need in &step.needs {
            let mut status = statuses[need].subscribe();
            let status = status.wait_for(Option::is_some).await.map(|status| *status);
            if !matches!(status, Ok(Some(Status::Passed | Status::AllowedFailure))) {
                return Err(&self.pipeline.steps[need].name);
            }
        }
        Ok(())
    }

    /// Stops the runs of other builds whose process was killed.
    async fn stop_other_builds(&self) {
        let Ok(runs) = self.manager.wait_recovery().await else {
            return;
        };
        let Ok(infos) = self.manager.list().await else {
            return;
        };
        let is_of_another_build = |run: &Run| {
            let info = infos.iter().find(|info| info.run == *run.id());
            let build = info.and_then(|info| build::label(info, build::BUILD));
            build.is_some_and(|build| build != self.build.id.as_str()) && !run.owned_elsewhere()
        };
        let others = runs.iter().filter(|run| is_of_another_build(run));
        let stops = others.map(async |run| {
            if run.state().ending().is_none() {
                self.view
                    .message(&format!("stopping run {} of an earlier build", run.id()));
            }
            // Fails only if the run cannot be recovered.
            let _ = run.stop(None).await;
        });
        join_all(stops).await;
    }

    /// Shows how much of a continued build is done.
    async fn describe_earlier(&self) {
        if self.build.retries().is_none() && !self.build.is_resumed() {
            return;
        }
        let Ok(runs) = self.manager.list().await else {
            return;
        };
        let line = earlier::describe(self.pipeline, self.build, self.out, runs);
        self.view.message(&line);
    }

    fn result(&self, step: &Step, status: Status, detail: Option<String>) -> StepResult {
        let needs = step.needs.iter();
        StepResult {
            name: step.name.clone(),
            needs: needs
                .map(|&index| self.pipeline.steps[index].name.clone())
                .collect(),
            status,
            detail,
            attempts: Vec::new(),
            taken_over: None,
            artifacts: Vec::new(),
            is_service: false,
        }
    }

    fn skip(&self, step: &Step, need: &str) -> StepResult {
        let detail = format!("it needs {need}, which did not pass");
        self.result(step, Status::Skipped, Some(detail))
    }

    /// Runs a step until it passes, is cancelled, or has no retries left.
    async fn run_step(
        &self,
        index: usize,
        step: &Step,
        environment: &Environment<'_>,
    ) -> StepResult {
        let source = earlier::source(self.pipeline, self.build, index, step, self.out);
        let job = Job {
            index,
            step,
            build: source.unwrap_or(self.build),
            runs_again: source.is_none() && self.pipeline.shares(step),
            environment,
        };
        let mut attempts = Vec::new();
        let mut artifacts = Vec::new();
        let mut failures = 0;
        let mut number = 0;
        let (status, detail) = loop {
            number += 1;
            let attempt = self.attempt(job, number).await;
            let retries = match environment.failure() {
                None => step.retries,
                Some(_) => 0,
            };
            let result = match attempt {
                Ok(outcome) => {
                    let result = job.classify(&outcome);
                    let is_last = result.is_last(failures < retries);
                    let taken = self.take_artifacts(step, &outcome, is_last).await;
                    attempts.push(self.attempt_of(step, outcome));
                    match taken {
                        Ok(taken) => {
                            artifacts = taken;
                            let is_earlier = job.build.earlier_run(&job.run_id(number)).is_some();
                            result.without_lost(&artifacts, is_earlier)
                        }
                        Err(error) => result.and_failed(error),
                    }
                }
                Err(Error::Closed) => AttemptResult::Cancelled("the build was cancelled".into()),
                Err(error) => AttemptResult::Failed(Status::Failed, error.chain()),
            };
            match result {
                AttemptResult::Passed => break (Status::Passed, None),
                AttemptResult::Cancelled(detail) => break (Status::Cancelled, Some(detail)),
                AttemptResult::Failed(..) if failures < retries => failures += 1,
                AttemptResult::Failed(_, detail) if step.allow_failure => {
                    break (Status::AllowedFailure, Some(detail));
                }
                AttemptResult::Failed(status, detail) => break (status, Some(detail)),
                AttemptResult::Interrupted => {}
            }
        };
        let last = job.build.earlier_run(&job.run_id(number));
        let taken_over = last.map(|run| match (source, run) {
            (Some(build), _) => TakenOver::Retry(build.id.clone()),
            (None, EarlierRun::Ended) => TakenOver::Ended,
            (None, EarlierRun::Open) => TakenOver::Running,
        });
        StepResult {
            attempts,
            taken_over,
            artifacts,
            ..self.result(step, status, detail)
        }
    }

    fn attempt_of(&self, step: &Step, outcome: Outcome) -> Attempt {
        let image = step.image.clone().filter(|_| self.images);
        Attempt::new(image, step.command.to_string(), outcome)
    }

    /// Starts a run, or takes over the run of an earlier process, and waits for its outcome.
    async fn attempt(&self, job: Job<'_>, number: u32) -> moat::Result<Outcome> {
        let id = job.run_id(number);
        let earlier = job.build.earlier_run(&id);
        if earlier.is_some() && job.runs_again {
            // It ended with the environment of the earlier process.
            return self.manager.get(&id).await?.wait().await;
        }
        self.view.attempt_started(job.index, &id, number, earlier);
        let started = match earlier {
            Some(_) => self.manager.get(&id).await,
            None => self.start(job, number, id).await,
        };
        let outcome = match started {
            // The earlier process has shown the output of a run that ended before.
            Ok(run) if earlier == Some(EarlierRun::Ended) => return run.wait().await,
            Ok(run) => {
                if earlier.is_some() {
                    run.stop_when(job.environment.stop());
                }
                let (outcome, ()) = tokio::join!(run.wait(), self.view.watch(job.index, &run));
                outcome?
            }
            Err(Error::NotStarted { outcome, .. }) => *outcome,
            Err(error) => return Err(error),
        };
        self.view.attempt_ended(job.index, number, &outcome).await;
        Ok(outcome)
    }

    async fn start(&self, job: Job<'_>, number: u32, id: RunId) -> moat::Result<Run> {
        let Job {
            step, environment, ..
        } = job;
        let spec = step.spec(self.images, self.secrets).id(id);
        let mut spec = spec.stop_when(environment.stop());
        if !step.artifacts.is_empty() {
            spec = spec.keep(KeepContainer::Always);
        }
        let spec = self.build.label(spec, &step.name, number);
        match self.pipeline.shares(step) {
            true => environment.start_run(spec, step.network.as_deref()).await,
            false => self.manager.start(spec).await,
        }
    }

    /// Copies the artifacts of the last attempt, and removes the container of any attempt.
    async fn take_artifacts(
        &self,
        step: &Step,
        outcome: &Outcome,
        is_last: bool,
    ) -> Result<Vec<CollectedArtifact>, String> {
        if step.artifacts.is_empty() {
            return Ok(Vec::new());
        }
        let run = self.manager.get(&outcome.run).await;
        let run = run.map_err(|error| error.chain())?;
        let artifacts = Artifacts::new(step, self.out, self.view);
        let taken = match is_last {
            true => artifacts.collect(&run).await,
            false => Ok(Vec::new()),
        };
        remove_container(&run, self.view).await;
        taken
    }
}

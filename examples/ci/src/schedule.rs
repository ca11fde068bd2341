//! The schedule: a step starts once the steps that it needs have passed.

use std::collections::BTreeMap;

use futures::future::join_all;
use moat::outcome::StopCause;
use moat::{Error, Manager, Outcome, Run};
use tokio::sync::watch;

use crate::build::{self, Build, EarlierRun};
use crate::earlier;
use crate::pipeline::{Pipeline, Step};
use crate::report::{Attempt, Status, StepResult, TakenOver};
use crate::view::View;

pub struct Schedule<'a> {
    pub manager: &'a Manager,
    pub pipeline: &'a Pipeline,
    pub build: &'a Build,
    pub secrets: &'a BTreeMap<String, String>,
    /// True if the runtime has images.
    pub images: bool,
    pub view: &'a View<'a>,
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
        self.stop_other_builds().await;
        self.describe_earlier().await;
        let steps = &self.pipeline.steps;
        let statuses: Vec<watch::Sender<Option<Status>>> =
            steps.iter().map(|_| watch::Sender::new(None)).collect();
        let work = steps.iter().enumerate().map(|(index, step)| {
            let statuses = &statuses;
            async move {
                let result = match self.wait_for_needs(step, statuses).await {
                    Ok(()) => self.run_step(index, step).await,
                    Err(need) => self.skip(step, need),
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
        let Ok(runs) = self.manager.list().await else {
            return;
        };
        if let Some(line) = earlier::describe(self.pipeline, self.build, runs) {
            self.view.message(&line);
        }
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
        }
    }

    fn skip(&self, step: &Step, need: &str) -> StepResult {
        let detail = format!("it needs {need}, which did not pass");
        self.result(step, Status::Skipped, Some(detail))
    }

    /// Runs a step until it passes, is cancelled, or has no retries left.
    async fn run_step(&self, index: usize, step: &Step) -> StepResult {
        let source = self.build.passed_in(index, &step.name);
        let build = source.unwrap_or(self.build);
        let mut attempts = Vec::new();
        let mut failures = 0;
        let mut number = 0;
        let (status, detail) = loop {
            number += 1;
            let result = match self.attempt(build, index, step, number).await {
                Ok(outcome) => {
                    let result = Self::classify(build, &outcome);
                    attempts.push(self.attempt_of(step, outcome));
                    result
                }
                Err(Error::Closed) => AttemptResult::Cancelled("the build was cancelled".into()),
                Err(error) => AttemptResult::Failed(Status::Failed, error.chain()),
            };
            match result {
                AttemptResult::Passed => break (Status::Passed, None),
                AttemptResult::Cancelled(detail) => break (Status::Cancelled, Some(detail)),
                AttemptResult::Failed(..) if failures < step.retries => failures += 1,
                AttemptResult::Failed(_, detail) if step.allow_failure => {
                    break (Status::AllowedFailure, Some(detail));
                }
                AttemptResult::Failed(status, detail) => break (status, Some(detail)),
                AttemptResult::Interrupted => {}
            }
        };
        let last = build.earlier_run(&build.run_id(index, &step.name, number));
        let taken_over = last.map(|run| match (source, run) {
            (Some(build), _) => TakenOver::Retry(build.id.clone()),
            (None, EarlierRun::Ended) => TakenOver::Ended,
            (None, EarlierRun::Open) => TakenOver::Running,
        });
        StepResult {
            attempts,
            taken_over,
            ..self.result(step, status, detail)
        }
    }

    fn attempt_of(&self, step: &Step, outcome: Outcome) -> Attempt {
        Attempt {
            run: outcome.run.clone(),
            image: step.image.clone().filter(|_| self.images),
            command: step.command.to_string(),
            audit: outcome.audit.clone().unwrap_or_default(),
            outcome: Some(outcome),
        }
    }

    /// Starts a run, or takes over the run of an earlier process, and waits for its outcome.
    async fn attempt(
        &self,
        build: &Build,
        index: usize,
        step: &Step,
        number: u32,
    ) -> moat::Result<Outcome> {
        let id = build.run_id(index, &step.name, number);
        let earlier = build.earlier_run(&id);
        self.view.attempt_started(index, &id, number, earlier);
        let started = match earlier {
            Some(_) => self.manager.get(&id).await,
            None => {
                let spec = step.spec(self.images, self.secrets).id(id);
                let spec = build.label(spec, &step.name, number);
                self.manager.start(spec).await
            }
        };
        let outcome = match started {
            // The earlier process has shown the output of a run that ended before.
            Ok(run) if earlier == Some(EarlierRun::Ended) => return run.wait().await,
            Ok(run) => {
                let (outcome, ()) = tokio::join!(run.wait(), self.view.watch(index, &run));
                outcome?
            }
            Err(Error::NotStarted { outcome, .. }) => *outcome,
            Err(error) => return Err(error),
        };
        self.view.attempt_ended(index, number, &outcome).await;
        Ok(outcome)
    }

    fn classify(build: &Build, outcome: &Outcome) -> AttemptResult {
        if build.interrupted(outcome) {
            return AttemptResult::Interrupted;
        }
        match outcome.stopped() {
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

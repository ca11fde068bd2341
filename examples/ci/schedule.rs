//! The steps of a pipeline, each as soon as those that it needs have passed.

use std::collections::BTreeMap;

use futures::future::join_all;
use moat::outcome::StopCause;
use moat::{Error, Manager, Outcome, Run};
use tokio::sync::watch;

use crate::build::{self, Build, Left};
use crate::pipeline::{Pipeline, Step};
use crate::report::{Attempt, Status, Step as Done};
use crate::view::View;

pub struct Schedule<'a> {
    pub manager: &'a Manager,
    pub pipeline: &'a Pipeline,
    pub build: &'a Build,
    pub secrets: &'a BTreeMap<String, String>,
    /// Whether the runtime has images.
    pub images: bool,
    pub view: &'a View<'a>,
}

/// What an attempt says of its step.
enum Verdict {
    Passed,
    /// It can be tried again.
    Failed(Status, String),
    Cancelled(String),
    /// Nothing: see [`Build::interrupted`].
    None,
}

impl Schedule<'_> {
    /// Runs all steps, and says what became of each, in the order of the file. A manager that is
    /// shut down with its runs stopped brings it to its end soon.
    pub async fn run(&self) -> Vec<Done> {
        self.stop_other_builds().await;
        let steps = &self.pipeline.steps;
        let ended: Vec<watch::Sender<Option<Status>>> =
            steps.iter().map(|_| watch::Sender::new(None)).collect();
        let work = steps.iter().enumerate().map(|(place, step)| {
            let ended = &ended;
            async move {
                let mut missing = None;
                for &need in &step.needs {
                    let mut status = ended[need].subscribe();
                    let status = status.wait_for(Option::is_some).await.map(|s| *s);
                    if !matches!(status, Ok(Some(Status::Passed | Status::AllowedFailure))) {
                        missing = Some(&steps[need].name);
                        break;
                    }
                }
                let done = match missing {
                    Some(need) => self.skip(step, need),
                    None => self.try_step(place, step).await,
                };
                self.view.done(place, &done);
                ended[place].send_replace(Some(done.status));
                done
            }
        });
        tokio::select! {
            done = join_all(work) => done,
            never = self.view.tell(self.manager.events()) => match never {},
        }
    }

    /// What a killed process has left in the root, and is not gone on with.
    async fn stop_other_builds(&self) {
        let Ok(runs) = self.manager.wait_recovery().await else {
            return;
        };
        let Ok(known) = self.manager.list().await else {
            return;
        };
        let is_others = |run: &Run| {
            let info = known.iter().find(|info| info.run == *run.id());
            let build = info.and_then(|info| build::label(info, build::BUILD));
            build.is_some_and(|build| build != self.build.id.as_str()) && !run.owned_elsewhere()
        };
        let stops = runs.iter().filter(|run| is_others(run)).map(async |run| {
            if run.state().ending().is_none() {
                self.view
                    .say(&format!("run {} of an earlier build is stopped", run.id()));
            }
            // It fails only for a run that cannot be taken over.
            let _ = run.stop(None).await;
        });
        join_all(stops).await;
    }

    fn done(&self, step: &Step, status: Status, detail: Option<String>) -> Done {
        let names = step.needs.iter();
        Done {
            name: step.name.clone(),
            needs: names
                .map(|&at| self.pipeline.steps[at].name.clone())
                .collect(),
            status,
            detail,
            attempts: Vec::new(),
        }
    }

    fn skip(&self, step: &Step, need: &str) -> Done {
        let detail = format!("it needs {need}, which has not passed");
        self.done(step, Status::Skipped, Some(detail))
    }

    async fn try_step(&self, place: usize, step: &Step) -> Done {
        let mut attempts = Vec::new();
        let mut failures = 0;
        let mut number = 0;
        let (status, detail) = loop {
            number += 1;
            let verdict = match self.attempt(place, step, number).await {
                Ok(outcome) => {
                    let verdict = self.judge(&outcome);
                    attempts.push(Attempt {
                        run: outcome.run.clone(),
                        image: step.image.clone().filter(|_| self.images),
                        command: step.command.to_string(),
                        audit: outcome.audit.clone().unwrap_or_default(),
                        outcome: Some(outcome),
                    });
                    verdict
                }
                Err(Error::Closed) => Verdict::Cancelled("it was cancelled".into()),
                Err(error) => Verdict::Failed(Status::Failed, error.chain()),
            };
            match verdict {
                Verdict::Passed => break (Status::Passed, None),
                Verdict::Cancelled(detail) => break (Status::Cancelled, Some(detail)),
                Verdict::Failed(..) if failures < step.retries => failures += 1,
                Verdict::Failed(_, detail) if step.allow_failure => {
                    break (Status::AllowedFailure, Some(detail));
                }
                Verdict::Failed(status, detail) => break (status, Some(detail)),
                Verdict::None => {}
            }
        };
        Done {
            attempts,
            ..self.done(step, status, detail)
        }
    }

    /// One run: a new one, or one that an earlier process has begun.
    async fn attempt(&self, place: usize, step: &Step, number: u32) -> moat::Result<Outcome> {
        let id = self.build.run(place, &step.name, number);
        let left = self.build.left(&id);
        self.view.begin(place, &id, number, left);
        let started = match left {
            Some(_) => self.manager.get(&id).await,
            None => {
                let spec = step.spec(self.images, self.secrets).id(id);
                let spec = self.build.label(spec, &step.name, number);
                self.manager.start(spec).await
            }
        };
        let outcome = match started {
            Ok(run) => {
                let (outcome, ()) = tokio::join!(run.wait(), self.view.watch(place, &run));
                outcome?
            }
            Err(Error::NotStarted { outcome, .. }) => *outcome,
            Err(error) => return Err(error),
        };
        // What had ended before was shown before.
        if left != Some(Left::Ended) {
            self.view.attempted(place, number, &outcome).await;
        }
        Ok(outcome)
    }

    fn judge(&self, outcome: &Outcome) -> Verdict {
        if self.build.interrupted(outcome) {
            return Verdict::None;
        }
        match outcome.stopped() {
            Some(cause @ (StopCause::TimeLimit | StopCause::SilenceLimit)) => {
                Verdict::Failed(Status::TimedOut, cause.to_string())
            }
            Some(cause @ StopCause::OutputLimit) => {
                Verdict::Failed(Status::Failed, cause.to_string())
            }
            Some(cause) => Verdict::Cancelled(cause.to_string()),
            None if outcome.success() => Verdict::Passed,
            None => Verdict::Failed(Status::Failed, outcome.ending.to_string()),
        }
    }
}

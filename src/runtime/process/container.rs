//! What stands for a container: a process that is made, started, and has ended.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use tokio::sync::{oneshot, watch};

use super::child::{Child, Living, Plan};
use super::output::{self, Ends};
use super::signals;
use crate::error::RuntimeError;
use crate::runtime::{Chunk, CreateRequest, Inspection, LogConfig, Status};
use crate::spec::{RootId, RunId};
use crate::timestamp::Timestamp;

/// What the thread needs that starts a process and waits for it.
const STACK: usize = 256 << 10;

/// What others may wait for.
#[derive(Debug, Clone, Default)]
pub(super) struct Life {
    started_at: Option<Timestamp>,
    end: Option<End>,
    /// Whether it cannot be started any more: it was, or failed to, or was removed.
    settled: bool,
}

impl Life {
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some() || (self.settled && self.started_at.is_none())
    }
}

/// How it ended.
#[derive(Debug, Clone)]
pub(super) struct End {
    at: Timestamp,
    pub(super) code: Option<i64>,
    pub(super) error: Option<String>,
}

impl End {
    /// `None`: it is not known.
    fn new(status: Option<ExitStatus>) -> Self {
        let (code, error) = match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => (Some(code.into()), None),
            Some((None, Some(signal))) => (
                Some(128 + i64::from(signal)),
                Some(format!("ended by {}", signals::name(signal))),
            ),
            _ => (
                None,
                Some("its exit status was taken by something else in this process".into()),
            ),
        };
        Self {
            at: Timestamp::now(),
            code,
            error,
        }
    }
}

pub(super) struct Container {
    pub(super) name: String,
    root: RootId,
    run: RunId,
    life: watch::Sender<Life>,
    state: Mutex<State>,
}

struct State {
    stage: Stage,
    /// Whether it is killed as soon as it runs.
    doomed: bool,
}

enum Stage {
    Made(Box<Made>),
    Starting,
    /// Its start failed.
    Failed,
    /// Not reaped before this is left: until then its ids are its own.
    Running(Living),
    Over,
    Removed,
}

struct Made {
    plan: Plan,
    /// The child's ends of its output, where it was tapped.
    ends: Option<Ends>,
}

fn conflict<T>(operation: &'static str, reason: &str) -> Result<T, RuntimeError> {
    Err(RuntimeError::Conflict {
        operation,
        reason: reason.into(),
    })
}

impl Container {
    pub(super) fn new(request: &CreateRequest<'_>) -> Self {
        let made = Made {
            plan: Plan::new(request.spec),
            ends: None,
        };
        Self {
            name: request.name.to_owned(),
            root: request.root.clone(),
            run: request.run.clone(),
            life: watch::Sender::default(),
            state: Mutex::new(State {
                stage: Stage::Made(Box::new(made)),
                doomed: false,
            }),
        }
    }

    pub(super) fn root(&self) -> &RootId {
        &self.root
    }

    pub(super) fn run(&self) -> &RunId {
        &self.run
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tap(
        &self,
    ) -> Result<impl Stream<Item = Result<Chunk, RuntimeError>> + Send + use<>, RuntimeError> {
        const OPERATION: &str = "connect to its output";
        let mut state = self.state();
        let Stage::Made(made) = &mut state.stage else {
            return conflict(OPERATION, "it was started already");
        };
        if made.ends.is_some() {
            return conflict(OPERATION, "its output is connected to already");
        }
        let opened = output::open(made.plan.tty()).and_then(|(ends, sources)| {
            let tap = output::tap(sources, self.life.subscribe())?;
            made.ends = Some(ends);
            Ok(tap)
        });
        opened.map_err(|error| RuntimeError::Rejected {
            operation: OPERATION,
            reason: error.to_string(),
        })
    }

    /// Has a thread start it, and wait for its end.
    pub(super) fn start(
        self: &Arc<Self>,
    ) -> Result<oneshot::Receiver<Result<(), RuntimeError>>, RuntimeError> {
        const OPERATION: &str = "start the process";
        let mut state = self.state();
        let made = match std::mem::replace(&mut state.stage, Stage::Starting) {
            Stage::Made(made) => made,
            other => {
                state.stage = other;
                return conflict(OPERATION, "it was started already");
            }
        };
        let (reply, started) = oneshot::channel();
        let container = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name("moat-process".into())
            .stack_size(STACK)
            .spawn(move || container.see_through(*made, reply));
        if let Err(error) = thread {
            state.stage = Stage::Failed;
            drop(state);
            self.life.send_modify(|life| life.settled = true);
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: format!("there is no thread for it: {error}"),
            });
        }
        Ok(started)
    }

    /// Starts it, waits for its end, and kills what it has left.
    fn see_through(&self, made: Made, reply: oneshot::Sender<Result<(), RuntimeError>>) {
        let spawned = made.spawn();
        let mut state = self.state();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                state.stage = Stage::Failed;
                drop(state);
                self.life.send_modify(|life| life.settled = true);
                let _ = reply.send(Err(error));
                return;
            }
        };
        state.stage = Stage::Running(child.living());
        if state.doomed {
            child.living().kill();
        }
        drop(state);
        self.life.send_modify(|life| {
            life.started_at = Some(Timestamp::now());
            life.settled = true;
        });
        let _ = reply.send(Ok(()));

        child.wait();
        let mut state = self.state();
        state.stage = Stage::Over;
        let end = End::new(child.reap());
        drop(state);
        self.life.send_modify(|life| life.end = Some(end));
    }

    /// Kills it, now or as soon as it runs.
    pub(super) fn doom(&self) {
        let mut state = self.state();
        state.doomed = true;
        if let Stage::Running(living) = &state.stage {
            living.kill();
        }
    }

    pub(super) fn signal(&self, name: &str) -> Result<(), RuntimeError> {
        const OPERATION: &str = "signal the process";
        let Some(signal) = signals::parse(name) else {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: format!("{name:?} is no signal"),
            });
        };
        // It is not reaped while this is held.
        let state = self.state();
        let Stage::Running(living) = &state.stage else {
            return conflict(OPERATION, "it does not run");
        };
        living
            .signal(signal)
            .map_err(|error| RuntimeError::Rejected {
                operation: OPERATION,
                reason: error.to_string(),
            })
    }

    /// Waits for its end. `None`: it will have none.
    pub(super) async fn ended(&self) -> Option<End> {
        let mut life = self.life.subscribe();
        let life = life.wait_for(Life::is_over).await.ok()?;
        life.end.clone()
    }

    /// Waits until a start that is under way is through, and what it has started has ended.
    pub(super) async fn settled(&self) {
        let mut life = self.life.subscribe();
        let waits = matches!(self.state().stage, Stage::Starting | Stage::Running(_));
        if waits {
            let _ = life.wait_for(Life::is_over).await;
        }
    }

    /// Success means that it does not run, and never will.
    pub(super) fn remove(&self) -> Result<(), RuntimeError> {
        let mut state = self.state();
        if matches!(state.stage, Stage::Starting | Stage::Running(_)) {
            return conflict("remove the process", "it runs");
        }
        state.stage = Stage::Removed;
        drop(state);
        self.life.send_modify(|life| life.settled = true);
        Ok(())
    }

    pub(super) fn inspect(&self) -> Inspection {
        let life = self.life.borrow().clone();
        let status = match (life.started_at, &life.end) {
            (None, _) => Status::Created,
            (Some(_), None) => Status::Running,
            (Some(_), Some(_)) => Status::Ended,
        };
        let mut inspection = Inspection::new(status);
        inspection.started_at = life.started_at;
        inspection.on_host_network = true;
        inspection.log = LogConfig {
            driver: "none".into(),
            ..LogConfig::default()
        };
        if let Some(end) = life.end {
            inspection.finished_at = Some(end.at);
            inspection.code = end.code;
            inspection.error = end.error;
        }
        inspection
    }
}

impl Made {
    fn spawn(self) -> Result<Child, RuntimeError> {
        let ends = match self.ends {
            Some(ends) => ends,
            // Nobody has asked for its output.
            None => {
                let opened = output::open(self.plan.tty());
                let (ends, sources) = opened.map_err(|error| RuntimeError::Rejected {
                    operation: "start the process",
                    reason: format!("there is nothing to print to: {error}"),
                })?;
                output::drain(sources.into_iter().map(|(_, source)| source).collect());
                ends
            }
        };
        Child::spawn(&self.plan, ends)
    }
}

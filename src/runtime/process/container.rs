//! The local counterpart of a container.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use tokio::sync::{oneshot, watch};

use super::child::{Child, LiveChild, Plan};
use super::output::{self, ChildEnds};
use super::signals;
use crate::error::RuntimeError;
use crate::runtime::{Chunk, ContainerStatus, CreateRequest, Inspection, LogConfig};
use crate::spec::{RootId, RunId};
use crate::timestamp::Timestamp;

/// Stack size of the thread that starts a process and waits for it.
const STACK_BYTES: usize = 256 << 10;

/// The observable progress of a container.
#[derive(Debug, Clone, Default)]
pub(super) struct Lifecycle {
    started_at: Option<Timestamp>,
    end: Option<End>,
    /// True once the start has succeeded or failed, or the container is removed.
    settled: bool,
}

impl Lifecycle {
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some() || (self.settled && self.started_at.is_none())
    }
}

/// The end of a process: its time, exit code and error.
#[derive(Debug, Clone)]
pub(super) struct End {
    at: Timestamp,
    pub(super) code: Option<i64>,
    pub(super) error: Option<String>,
}

impl End {
    /// Describes an exit status, or an unknown one.
    fn new(status: Option<ExitStatus>) -> Self {
        let (code, error) = match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => (Some(code.into()), None),
            Some((None, Some(signal))) => (
                Some(128 + i64::from(signal)),
                Some(format!("ended by {}", signals::name(signal))),
            ),
            _ => (
                None,
                Some(
                    "the exit status is unknown: other code in this process reaped the child"
                        .into(),
                ),
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
    life: watch::Sender<Lifecycle>,
    state: Mutex<State>,
}

struct State {
    stage: Stage,
    /// True if the process is killed as soon as it runs.
    kill_on_start: bool,
}

enum Stage {
    Created(Box<Prepared>),
    Starting,
    /// The start failed.
    Failed,
    /// The child is reaped only after this stage, so its ids are not reused during it.
    Running(LiveChild),
    Ended,
    Removed,
}

struct Prepared {
    plan: Plan,
    /// The child's ends of the output, if the output is tapped.
    ends: Option<ChildEnds>,
}

fn conflict<T>(operation: &'static str, reason: &str) -> Result<T, RuntimeError> {
    Err(RuntimeError::Conflict {
        operation,
        reason: reason.into(),
    })
}

impl Container {
    pub(super) fn new(request: &CreateRequest<'_>) -> Self {
        let prepared = Prepared {
            plan: Plan::new(request.spec),
            ends: None,
        };
        Self {
            name: request.name.to_owned(),
            root: request.root.clone(),
            run: request.run.clone(),
            life: watch::Sender::default(),
            state: Mutex::new(State {
                stage: Stage::Created(Box::new(prepared)),
                kill_on_start: false,
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
        const OPERATION: &str = "connect to the output of the process";
        let mut state = self.state();
        let Stage::Created(prepared) = &mut state.stage else {
            return conflict(OPERATION, "the process is already started");
        };
        if prepared.ends.is_some() {
            return conflict(OPERATION, "the output is already connected");
        }
        let opened = output::open(prepared.plan.tty()).and_then(|(ends, sources)| {
            let tap = output::tap(sources, self.life.subscribe())?;
            prepared.ends = Some(ends);
            Ok(tap)
        });
        opened.map_err(|error| RuntimeError::Rejected {
            operation: OPERATION,
            reason: error.to_string(),
        })
    }

    /// Starts the process on a thread that waits for its end.
    pub(super) fn start(
        self: &Arc<Self>,
    ) -> Result<oneshot::Receiver<Result<(), RuntimeError>>, RuntimeError> {
        const OPERATION: &str = "start the process";
        let mut state = self.state();
        let prepared = match std::mem::replace(&mut state.stage, Stage::Starting) {
            Stage::Created(prepared) => prepared,
            other => {
                state.stage = other;
                return conflict(OPERATION, "the process is already started");
            }
        };
        let (reply, started) = oneshot::channel();
        let container = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name("moat-process".into())
            .stack_size(STACK_BYTES)
            .spawn(move || container.supervise(*prepared, reply));
        if let Err(error) = thread {
            state.stage = Stage::Failed;
            drop(state);
            self.life.send_modify(|life| life.settled = true);
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: format!("cannot start a thread: {error}"),
            });
        }
        Ok(started)
    }

    /// Starts the process, waits for its end and kills the remaining processes.
    fn supervise(&self, prepared: Prepared, reply: oneshot::Sender<Result<(), RuntimeError>>) {
        let spawned = prepared.spawn();
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
        state.stage = Stage::Running(child.live());
        if state.kill_on_start {
            child.live().kill();
        }
        drop(state);
        self.life.send_modify(|life| {
            life.started_at = Some(Timestamp::now());
            life.settled = true;
        });
        let _ = reply.send(Ok(()));

        child.wait();
        let mut state = self.state();
        state.stage = Stage::Ended;
        let end = End::new(child.reap());
        drop(state);
        self.life.send_modify(|life| life.end = Some(end));
    }

    /// Kills the process now, or as soon as it runs.
    pub(super) fn kill(&self) {
        let mut state = self.state();
        state.kill_on_start = true;
        if let Stage::Running(live) = &state.stage {
            live.kill();
        }
    }

    pub(super) fn signal(&self, name: &str) -> Result<(), RuntimeError> {
        const OPERATION: &str = "signal the process";
        let Some(signal) = signals::parse(name) else {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: format!("unknown signal {name:?}"),
            });
        };
        // The child is not reaped while the state is locked.
        let state = self.state();
        let Stage::Running(live) = &state.stage else {
            return conflict(OPERATION, "the process is not running");
        };
        live.signal(signal).map_err(|error| RuntimeError::Rejected {
            operation: OPERATION,
            reason: error.to_string(),
        })
    }

    /// Waits for the end of the process. Returns `None` if it never starts.
    pub(super) async fn wait_end(&self) -> Option<End> {
        let mut life = self.life.subscribe();
        let life = life.wait_for(Lifecycle::is_over).await.ok()?;
        life.end.clone()
    }

    /// Waits for a pending start, and for the end of a running process.
    pub(super) async fn wait_stopped(&self) {
        let mut life = self.life.subscribe();
        let active = matches!(self.state().stage, Stage::Starting | Stage::Running(_));
        if active {
            let _ = life.wait_for(Lifecycle::is_over).await;
        }
    }

    /// Removes a process that is not running. A removed process never starts.
    pub(super) fn remove(&self) -> Result<(), RuntimeError> {
        let mut state = self.state();
        if matches!(state.stage, Stage::Starting | Stage::Running(_)) {
            return conflict("remove the process", "the process is running");
        }
        state.stage = Stage::Removed;
        drop(state);
        self.life.send_modify(|life| life.settled = true);
        Ok(())
    }

    pub(super) fn inspect(&self) -> Inspection {
        let life = self.life.borrow().clone();
        let status = match (life.started_at, &life.end) {
            (None, _) => ContainerStatus::Created,
            (Some(_), None) => ContainerStatus::Running,
            (Some(_), Some(_)) => ContainerStatus::Ended,
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

impl Prepared {
    fn spawn(self) -> Result<Child, RuntimeError> {
        let ends = match self.ends {
            Some(ends) => ends,
            // The output is not tapped.
            None => {
                let opened = output::open(self.plan.tty());
                let (ends, sources) = opened.map_err(|error| RuntimeError::Rejected {
                    operation: "start the process",
                    reason: format!("cannot open the output: {error}"),
                })?;
                output::drain(sources.into_iter().map(|(_, source)| source).collect());
                ends
            }
        };
        Child::spawn(&self.plan, ends)
    }
}

//! A scripted container and its life.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::script::{Print, Script};
use crate::outcome::Stream;
use crate::runtime::ContainerStatus;
use crate::spec::{Backstop, PlacementProgress, ResourceKind, RootId, RunId, Settings, Stdin};
use crate::timestamp::Timestamp;

/// A container or an exec. Clones share the life and the output.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) root: RootId,
    pub(super) run: RunId,
    pub(super) image: String,
    pub(super) script: Arc<Script>,
    /// The output of the script, and the echoed input.
    prints: Arc<Mutex<Vec<Print>>>,
    pub(super) stdin: Stdin,
    tty: bool,
    pub(super) has_log: bool,
    pub(super) resources: Vec<(ResourceKind, String)>,
    pub(super) deadline: Option<Timestamp>,
    pub(super) life: watch::Sender<Life>,
}

/// The events in the life of a container.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Life {
    /// The start, by the clock of tokio and by the wall clock.
    pub(super) started: Option<(Instant, Timestamp)>,
    /// The time and the exit code of an end that the script does not plan.
    ended: Option<(Instant, i64)>,
    pub(super) removed: bool,
    pub(super) placed: bool,
    /// The time since which the node does not answer, and the status that the engine saw last.
    pub(super) silent: Option<(Timestamp, ContainerStatus)>,
    /// The container is gone with its node.
    pub(super) lost: bool,
    /// The number of restarts of the engine before the creation.
    pub(super) restarts: u64,
    /// The engine lost track of the container: it reports that it was not started.
    pub(super) untracked: bool,
}

impl Life {
    fn start(&mut self) {
        self.started = Some((Instant::now(), Timestamp::now()));
    }

    fn end(&mut self, code: i64) {
        self.ended.get_or_insert((Instant::now(), code));
    }
}

/// The exit code of a process that SIGKILL ended.
pub(super) const CODE_ON_KILL: i64 = 137;

impl Container {
    pub(super) fn new(
        name: &str,
        root: RootId,
        run: RunId,
        script: Script,
        settings: &Settings,
    ) -> Self {
        Self {
            name: name.to_owned(),
            root,
            run,
            image: settings.image.clone(),
            prints: Arc::new(Mutex::new(script.prints.clone())),
            script: Arc::new(script),
            stdin: settings.stdin,
            tty: settings.tty,
            has_log: settings.backstop == Backstop::Engine,
            resources: settings
                .resources()
                .map(|(kind, name)| (kind, name.to_owned()))
                .collect(),
            deadline: None,
            life: watch::Sender::default(),
        }
    }

    pub(super) fn prints(&self) -> MutexGuard<'_, Vec<Print>> {
        self.prints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds output at the current time, if the container has started.
    pub(super) fn print_now(&self, stream: Stream, bytes: bytes::Bytes) {
        let started = self.life.borrow().started;
        if let Some((started, _)) = started {
            let after = started.elapsed();
            self.prints().push(Print {
                after,
                stream,
                bytes,
            });
            self.life.send_modify(|_| {});
        }
    }

    /// Returns the time and the exit code of the end, possibly in the future.
    pub(super) fn end(&self, life: Life) -> Option<(Instant, i64)> {
        let (started, _) = life.started?;
        let planned = (!self.script.until_stopped)
            .then_some((started + self.script.length, self.script.code));
        match (planned, life.ended) {
            (Some(planned), Some(ended)) => Some(if ended.0 < planned.0 { ended } else { planned }),
            (planned, ended) => planned.or(ended),
        }
    }

    /// Returns the status that the engine reports.
    pub(super) fn status_in(&self, life: Life) -> ContainerStatus {
        if let Some((_, status)) = life.silent {
            return status;
        }
        match (life.started, self.end(life)) {
            _ if life.untracked => ContainerStatus::Created,
            _ if life.lost => ContainerStatus::Ended,
            (None, _) => ContainerStatus::Created,
            (_, Some((end, _))) if end <= Instant::now() => ContainerStatus::Ended,
            _ => ContainerStatus::Running,
        }
    }

    pub(super) fn status(&self) -> ContainerStatus {
        let life = *self.life.borrow();
        self.status_in(life)
    }

    pub(super) fn is_running(&self) -> bool {
        self.status() == ContainerStatus::Running
    }

    /// Returns the stream on which output that the script writes to `stream` appears.
    pub(super) fn visible_stream(&self, stream: Stream) -> Stream {
        if self.tty { Stream::Tty } else { stream }
    }

    pub(super) fn start(&self) {
        self.life.send_modify(|life| {
            if life.started.is_none() {
                life.start();
            }
        });
    }

    /// Returns true if the container can be attached to and started.
    pub(super) fn is_placed(&self) -> bool {
        self.script.placement.is_empty() || self.life.borrow().placed
    }

    /// Waits until the container is placed or removed, and reports each step.
    pub(super) async fn place(&self, report: impl Fn(PlacementProgress)) {
        if self.is_placed() {
            return;
        }
        let mut life = self.life.subscribe();
        let steps = async {
            for step in &self.script.placement {
                report(step.progress.clone());
                sleep(step.duration).await;
            }
            self.life.send_modify(|life| life.placed = true);
        };
        tokio::select! {
            () = steps => {}
            _ = life.wait_for(|life| life.removed) => {}
        }
    }

    /// Makes the engine report that the container was not started.
    pub(super) fn lose_track(&self) {
        self.life.send_modify(|life| life.untracked = true);
    }

    pub(super) fn start_again(&self) {
        self.life.send_modify(|life| {
            life.start();
            life.ended = None;
            life.untracked = false;
        });
    }

    pub(super) fn exit(&self, code: i64) {
        self.life.send_modify(|life| life.end(code));
    }

    /// Removes the container, and ends it.
    ///
    /// The end has no effect on a container that has not started.
    pub(super) fn remove(&self) {
        self.life.send_modify(|life| {
            life.removed = true;
            life.end(CODE_ON_KILL);
        });
    }

    /// Makes the node of the container stop answering the engine.
    pub(super) fn silence(&self) {
        let status = self.status();
        self.life
            .send_modify(|life| life.silent = Some((Timestamp::now(), status)));
    }

    /// Makes the node of the container answer again.
    pub(super) fn restore(&self) {
        self.life.send_modify(|life| life.silent = None);
    }

    /// Makes the engine report that the container is gone with its node.
    pub(super) fn lose(&self) {
        self.life.send_modify(|life| {
            life.silent = None;
            life.lost = true;
            life.end(CODE_ON_KILL);
        });
    }

    /// Waits until the node answers, or the container is gone.
    pub(super) async fn reachable(&self) {
        let mut life = self.life.subscribe();
        let reachable = |life: &Life| life.silent.is_none() || life.removed;
        let _ = life.wait_for(reachable).await;
    }

    /// Waits until the engine has lost track of the container.
    pub(super) async fn untracked(&self) {
        let mut life = self.life.subscribe();
        let _ = life.wait_for(|life| life.untracked).await;
    }

    /// Waits for the end, and returns the exit code.
    pub(super) async fn wait_end(&self, life: &mut watch::Receiver<Life>) -> Option<i64> {
        loop {
            let end = self.end(*life.borrow_and_update());
            let reached = async {
                match end {
                    Some((end, _)) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = life.changed() => changed.ok()?,
                () = reached => return end.map(|(_, code)| code),
            }
        }
    }
}

//! A runtime that does what a script says: for what an engine cannot be made to do.
//!
//! It runs nothing. Its containers print, pause and end by the clock of tokio, so a test with a
//! paused clock is exact and takes no time.
//!
//! ```
//! use moat::runtime::scripted::{Script, Scripted};
//! use moat::{Manager, RunSpec, Verdict};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let runtime = Scripted::new();
//! runtime.next(Script::new().stdout("hello\n").stderr("world\n").exit(7));
//!
//! let manager = Manager::open(folder.path().join("runs"), runtime).await?;
//! let outcome = manager.start(RunSpec::new("any")).await?.wait().await?;
//! assert_eq!(outcome.code(), Some(7));
//! assert_eq!(outcome.sealed().map(|seal| seal.verdict), Some(Verdict::Complete));
//! # Ok(())
//! # }
//! ```

mod script;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

pub use script::Script;

use super::{
    Archive, Capabilities, Chunk, CreateRequest, Created, Engine, Fidelity, Found, Inspection,
    LogsRequest, OutputStream, Runtime, RuntimeError, Status, WaitStatus,
};
use crate::{Backstop, ContainerId, RootId, RunId, RunSpec, Stream, Timestamp};

/// A call of the [`Runtime`] trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Call {
    /// [`Runtime::engine`].
    Engine,
    /// [`Runtime::prepare`].
    Prepare,
    /// [`Runtime::create`].
    Create,
    /// [`Runtime::tap`].
    Tap,
    /// [`Runtime::start`].
    Start,
    /// [`Runtime::wait`].
    Wait,
    /// [`Runtime::inspect`].
    Inspect,
    /// [`Runtime::logs`].
    Logs,
    /// [`Runtime::signal`].
    Signal,
    /// [`Runtime::remove`].
    Remove,
    /// [`Runtime::find`].
    Find,
}

/// What goes wrong with a call.
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// It fails, and nothing was done.
    Error(RuntimeError),
    /// It is carried out, and its answer is lost.
    AnswerLost,
    /// It is not carried out, and never answered.
    Hang,
}

/// A runtime that does what scripts say. A clone is the same engine, and outlives its managers.
#[derive(Debug, Clone, Default)]
pub struct Scripted {
    world: Arc<Mutex<World>>,
}

#[derive(Debug, Default)]
struct World {
    scripts: VecDeque<Script>,
    faults: HashMap<Call, VecDeque<Fault>>,
    calls: HashMap<Call, u64>,
    containers: HashMap<ContainerId, Container>,
    made: u64,
}

#[derive(Debug, Clone)]
struct Container {
    root: RootId,
    run: RunId,
    script: Arc<Script>,
    tty: bool,
    has_log: bool,
    life: watch::Sender<Life>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Life {
    /// By the clock of tokio, and that of the wall.
    started: Option<(Instant, Timestamp)>,
    /// When a signal ended it, and with which code.
    ended: Option<(Instant, i64)>,
    removed: bool,
}

impl Container {
    /// When it ends or has ended, and with which code.
    fn end(&self, life: Life) -> Option<(Instant, i64)> {
        let (started, _) = life.started?;
        let natural =
            (!self.script.runs_on).then_some((started + self.script.length, self.script.code));
        match (natural, life.ended) {
            (Some(natural), Some(ended)) => Some(if ended.0 < natural.0 { ended } else { natural }),
            (natural, ended) => natural.or(ended),
        }
    }

    fn status(&self, life: Life) -> Status {
        match (life.started, self.end(life)) {
            (None, _) => Status::Created,
            (_, Some((end, _))) if end <= Instant::now() => Status::Ended,
            _ => Status::Running,
        }
    }

    fn stream(&self, stream: Stream) -> Stream {
        if self.tty { Stream::Tty } else { stream }
    }
}

impl Scripted {
    /// An engine without containers.
    pub fn new() -> Self {
        Self::default()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The script of the next container that is made and has none yet. Default: [`Script::new`].
    pub fn next(&self, script: Script) {
        self.world().scripts.push_back(script);
    }

    /// What goes wrong with the next call of this kind that nothing goes wrong with yet.
    pub fn fault(&self, call: Call, fault: Fault) {
        self.world()
            .faults
            .entry(call)
            .or_default()
            .push_back(fault);
    }

    /// How often a call was made.
    pub fn calls(&self, call: Call) -> u64 {
        self.world().calls.get(&call).copied().unwrap_or_default()
    }

    /// The number of containers that are there.
    pub fn containers(&self) -> usize {
        self.world().containers.len()
    }

    /// Removes the container of a run by force, as another client of the engine would.
    pub fn remove_by_others(&self, run: &RunId) {
        let mut world = self.world();
        world.containers.retain(|_, container| {
            if container.run != *run {
                return true;
            }
            container.life.send_modify(|life| {
                life.ended.get_or_insert((Instant::now(), 137));
                life.removed = true;
            });
            false
        });
    }

    /// Starts the container of a run again, as another client of the engine would.
    pub fn start_by_others(&self, run: &RunId) {
        for container in self.world().containers.values() {
            if container.run == *run {
                container.life.send_modify(|life| {
                    life.started = Some((Instant::now(), Timestamp::now()));
                    life.ended = None;
                });
            }
        }
    }

    /// Takes the next fault of a call. `Ok(true)`: the answer is to be lost.
    async fn enter(&self, call: Call) -> Result<bool, RuntimeError> {
        let fault = {
            let mut world = self.world();
            *world.calls.entry(call).or_default() += 1;
            world.faults.get_mut(&call).and_then(VecDeque::pop_front)
        };
        match fault {
            None => Ok(false),
            Some(Fault::AnswerLost) => Ok(true),
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::Hang) => std::future::pending().await,
        }
    }

    fn container(&self, id: &ContainerId) -> Result<Container, RuntimeError> {
        let world = self.world();
        world
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound {
                operation: "find the container",
                reason: format!("no such container: {id}"),
            })
    }

    /// What a container prints, from its start, when it is due.
    fn output(container: Container, cut: Option<u64>, stays: bool) -> OutputStream {
        struct At {
            container: Container,
            next: usize,
            room: u64,
            stays: bool,
            life: watch::Receiver<Life>,
        }
        let at = At {
            life: container.life.subscribe(),
            room: cut.unwrap_or(u64::MAX),
            container,
            next: 0,
            stays,
        };
        stream::unfold(at, |mut at| async move {
            let life = *at.life.wait_for(|life| life.started.is_some()).await.ok()?;
            let (started, _) = life.started?;
            if at.room == 0 {
                return None;
            }
            if let Some((after, stream, bytes)) = at.container.script.prints.get(at.next).cloned() {
                let due = started + after;
                let container = at.container.clone();
                let ended = |life: &Life| container.end(*life).is_some_and(|(end, _)| end < due);
                tokio::select! {
                    biased;
                    () = sleep_until(due) => {}
                    _ = at.life.wait_for(ended) => {}
                }
                let life = *at.life.borrow();
                if at.container.end(life).is_none_or(|(end, _)| end >= due) {
                    at.next += 1;
                    let take = (bytes.len() as u64).min(at.room);
                    at.room -= take;
                    let chunk = Chunk {
                        stream: at.container.stream(stream),
                        bytes: bytes.slice(..take as usize),
                    };
                    return Some((Ok(chunk), at));
                }
            }
            if at.stays {
                std::future::pending::<()>().await;
            }
            ended(&at.container, &mut at.life).await;
            None
        })
        .filter(|chunk| {
            let empty = matches!(chunk, Ok(Chunk { bytes, .. }) if bytes.is_empty());
            std::future::ready(!empty)
        })
        .boxed()
    }
}

/// Waits until a container has ended.
async fn ended(container: &Container, life: &mut watch::Receiver<Life>) -> Option<i64> {
    loop {
        let end = container.end(*life.borrow_and_update());
        tokio::select! {
            changed = life.changed() => changed.ok()?,
            () = async {
                match end {
                    Some((end, _)) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            } => return end.map(|(_, code)| code),
        }
    }
}

fn lost<T>(operation: &'static str) -> Result<T, RuntimeError> {
    Err(RuntimeError::Broken {
        operation,
        reason: "the answer was lost".into(),
    })
}

#[async_trait]
impl Runtime for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE.with_tap().with_logs()
    }

    async fn engine(&self) -> Result<Engine, RuntimeError> {
        self.enter(Call::Engine).await?;
        Ok(Engine::new("Scripted", "1"))
    }

    fn validate(&self, _spec: &RunSpec) -> crate::Result<()> {
        Ok(())
    }

    async fn prepare(&self, _spec: &RunSpec) -> Result<(), RuntimeError> {
        self.enter(Call::Prepare).await.map(drop)
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        let lose = self.enter(Call::Create).await?;
        let id = {
            let mut world = self.world();
            world.made += 1;
            let id = ContainerId::new(format!("scripted-{}", world.made));
            let container = Container {
                root: request.root.clone(),
                run: request.run.clone(),
                script: Arc::new(world.scripts.pop_front().unwrap_or_default()),
                tty: request.spec.settings().tty,
                has_log: request.spec.settings().backstop == Backstop::Engine,
                life: watch::Sender::default(),
            };
            world.containers.insert(id.clone(), container);
            id
        };
        if lose {
            return lost("create the container");
        }
        Ok(Created {
            container: id,
            warnings: Vec::new(),
        })
    }

    async fn tap(&self, id: &ContainerId, _tty: bool) -> Result<OutputStream, RuntimeError> {
        self.enter(Call::Tap).await?;
        let container = self.container(id)?;
        let (cut, stays) = (container.script.tap_cut, container.script.tap_stays);
        Ok(Self::output(container, cut, stays))
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let lose = self.enter(Call::Start).await?;
        let container = self.container(id)?;
        if let Some(reason) = container.script.start_fails.clone() {
            return Err(RuntimeError::Rejected {
                operation: "start the container",
                reason,
            });
        }
        container.life.send_modify(|life| {
            life.started
                .get_or_insert((Instant::now(), Timestamp::now()));
        });
        if lose {
            return lost("start the container");
        }
        Ok(())
    }

    async fn wait(&self, id: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        self.enter(Call::Wait).await?;
        let container = self.container(id)?;
        let code = ended(&container, &mut container.life.subscribe()).await;
        Ok(WaitStatus { code, error: None })
    }

    async fn inspect(&self, id: &ContainerId) -> Result<Inspection, RuntimeError> {
        self.enter(Call::Inspect).await?;
        let container = self.container(id)?;
        let life = *container.life.borrow();
        let mut inspection = Inspection::new(container.status(life));
        inspection.started_at = life.started.map(|(_, wall)| wall);
        if inspection.status == Status::Ended
            && let (Some((started, wall)), Some((end, code))) = (life.started, container.end(life))
        {
            inspection.code = Some(code);
            inspection.finished_at = Some(wall.saturating_add(end - started));
        }
        inspection.image_digest = Some("sha256:scripted".into());
        inspection.log.driver = "scripted".into();
        inspection.log.fidelity = container.has_log.then_some(Fidelity::Exact);
        Ok(inspection)
    }

    async fn logs(
        &self,
        id: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        self.enter(Call::Logs).await?;
        let container = self.container(id)?;
        if !container.has_log {
            return Err(RuntimeError::Rejected {
                operation: "read the container's log",
                reason: "it has none".into(),
            });
        }
        let cut = container.script.log_cut;
        if request.follow {
            return Ok(Self::output(container, cut, false));
        }
        let life = *container.life.borrow();
        let Some((started, _)) = life.started else {
            return Ok(stream::empty().boxed());
        };
        let end = container.end(life).map_or(Instant::now(), |(end, _)| end);
        let mut room = cut.unwrap_or(u64::MAX);
        let mut lines = Vec::new();
        for (after, stream, bytes) in &container.script.prints {
            if started + *after > end.min(Instant::now()) {
                break;
            }
            let take = room.min(bytes.len() as u64);
            room -= take;
            for line in bytes[..take as usize].split_inclusive(|byte| *byte == b'\n') {
                lines.push(Ok(Chunk {
                    stream: container.stream(*stream),
                    bytes: bytes.slice_ref(line),
                }));
            }
        }
        if let Some(tail) = request.tail {
            lines.drain(..lines.len().saturating_sub(tail as usize));
        }
        Ok(stream::iter(lines).boxed())
    }

    async fn signal(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        let lose = self.enter(Call::Signal).await?;
        let container = self.container(id)?;
        if container.status(*container.life.borrow()) != Status::Running {
            return Err(RuntimeError::Conflict {
                operation: "send a signal to the container",
                reason: "it is not running".into(),
            });
        }
        let kill = signal == "SIGKILL";
        if kill || !container.script.ignores_term {
            let code = if kill { 137 } else { 143 };
            container.life.send_modify(|life| {
                life.ended.get_or_insert((Instant::now(), code));
            });
        }
        if lose {
            return lost("send a signal to the container");
        }
        Ok(())
    }

    async fn remove(&self, id: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        let lose = self.enter(Call::Remove).await?;
        let container = self.container(id)?;
        if !force && container.status(*container.life.borrow()) == Status::Running {
            return Err(RuntimeError::Conflict {
                operation: "remove the container",
                reason: "it is running".into(),
            });
        }
        self.world().containers.remove(id);
        if lose {
            return lost("remove the container");
        }
        Ok(())
    }

    async fn find(&self, root: &RootId) -> Result<Vec<Found>, RuntimeError> {
        self.enter(Call::Find).await?;
        let world = self.world();
        Ok(world
            .containers
            .iter()
            .filter(|(_, container)| container.root == *root)
            .map(|(id, container)| Found {
                container: id.clone(),
                run: container.run.clone(),
                status: container.status(*container.life.borrow()),
            })
            .collect())
    }

    async fn copy_out(&self, _id: &ContainerId, _path: &str) -> Result<Archive, RuntimeError> {
        Err(self.cannot("copy files out of a container"))
    }

    async fn copy_in(
        &self,
        _id: &ContainerId,
        _path: &str,
        _archive: Archive,
    ) -> Result<(), RuntimeError> {
        Err(self.cannot("copy files into a container"))
    }
}

impl Scripted {
    fn cannot(&self, operation: &'static str) -> RuntimeError {
        RuntimeError::Unsupported {
            runtime: self.name(),
            operation,
        }
    }
}

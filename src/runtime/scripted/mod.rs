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
//! # let dir = tempfile::tempdir()?;
//! let runtime = Scripted::new();
//! runtime.next(Script::new().stdout("hello\n").stderr("world\n").exit(7));
//!
//! let manager = Manager::open(dir.path().join("runs"), runtime).await?;
//! let outcome = manager.start(RunSpec::new("any")).await?.wait().await?;
//! assert_eq!(outcome.code(), Some(7));
//! assert_eq!(outcome.sealed().map(|seal| seal.verdict), Some(Verdict::Complete));
//! # Ok(())
//! # }
//! ```
//!
//! # Faults
//!
//! What goes wrong is said in one of three places:
//!
//! - with the container: a [`Script`] whose tap, log or follow [breaks](Script::break_at) at any
//!   byte, each time that it is read, or that cannot be started;
//! - with a call: [`Scripted::fault`] makes the next one of a kind fail, lose its answer, hang, or
//!   give a stream that breaks;
//! - with the engine: [`Scripted::link`] takes it down or makes it silent for every call,
//!   [`Scripted::drop_connections`] cuts what is open, [`Scripted::restart`] and
//!   [`Scripted::remove_externally`] do what its operator and its other clients do.
//!
//! A test of your own code starts like this one: here the tap breaks in the middle of a line, and
//! all that was printed is audited all the same.
//!
//! ```
//! use std::sync::Arc;
//! use moat::runtime::scripted::{Break, Call, Fault, Script, Scripted, Source};
//! use moat::sink::Memory;
//! use moat::outcome::Stream;
//! use moat::{Manager, RunSpec, ShutdownMode, Verdict};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let engine = Scripted::new();
//! // What each container of this image does.
//! let script = Script::new().stdout("one\ntwo\n").break_at(Source::Tap, 5, Break::Error);
//! engine.image("worker", script);
//! // And the first question about it gets no answer.
//! engine.fault(Call::Inspect, Fault::AnswerLost);
//!
//! let memory = Memory::new();
//! let manager = Manager::builder(dir.path().join("runs"), engine.clone())
//!     .sink(memory.clone())
//!     .open()
//!     .await?;
//! let run = manager.start(RunSpec::new("worker")).await?;
//! let outcome = run.wait().await?;
//!
//! assert_eq!(outcome.sealed().map(|seal| seal.verdict), Some(Verdict::Complete));
//! assert_eq!(memory.output(run.id(), Stream::Stdout), b"one\ntwo\n");
//! manager.shutdown(ShutdownMode::Stop).await; // a container goes shortly after its seal
//! assert_eq!(engine.containers(), 0);
//! # Ok(())
//! # }
//! ```

mod connection;
mod input;
mod script;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

pub use connection::Link;
pub use script::{Break, Script, Source};

use self::connection::Connections;

use super::{
    Archive, Capabilities, Chunk, Continuity, CreateRequest, Created, EngineInfo, ExecId,
    ExecInspection, Health, InputWriter, Inspection, LabeledContainer, LogFidelity, LogsRequest,
    OutputStream, OwnedContainer, Runtime, StartedExec, Status, WaitStatus,
};
use crate::error::RuntimeError;
use crate::outcome::{Stream, Usage};
use crate::spec::{
    Backstop, ContainerId, ExecSpec, InvalidSpec, RootId, RunId, RunSpec, Settings, Stdin,
    WindowSize,
};
use crate::timestamp::Timestamp;

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
    /// [`Runtime::attach`].
    Tap,
    /// [`Runtime::attach_running`].
    Watch,
    /// [`Runtime::start`].
    Start,
    /// [`Runtime::wait`].
    Wait,
    /// [`Runtime::inspect`].
    Inspect,
    /// [`Runtime::continuity`].
    Continuity,
    /// [`Runtime::logs`].
    Logs,
    /// [`Runtime::stdin`].
    Stdin,
    /// [`Runtime::resize`] and [`Runtime::exec_resize`].
    Resize,
    /// [`Runtime::exec`].
    Exec,
    /// [`Runtime::exec_inspect`].
    ExecInspect,
    /// [`Runtime::signal`].
    Signal,
    /// [`Runtime::remove`].
    Remove,
    /// [`Runtime::find`].
    Find,
    /// [`Runtime::find_all`].
    FindAll,
    /// [`Runtime::stats`].
    Stats,
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
    /// It is carried out, and the stream that it gives ends in this way after so many bytes.
    /// Nothing, for a call that gives none.
    Stream(u64, Break),
}

/// What is to go wrong with a call that was let in.
#[derive(Debug, Default)]
struct Ill {
    /// Its answer is to be lost.
    lost: bool,
    /// Where its stream breaks.
    cut: Option<(u64, Break)>,
}

/// The bound of each call that has one.
const BOUND: Duration = Duration::from_secs(30);

/// A runtime that does what scripts say. A clone is the same engine, and outlives its managers.
#[derive(Debug, Clone, Default)]
pub struct Scripted {
    world: Arc<Mutex<World>>,
    connections: Connections,
}

#[derive(Debug, Default)]
struct World {
    scripts: VecDeque<Script>,
    scripts_of: HashMap<RunId, Script>,
    images: HashMap<String, Script>,
    lacking: HashSet<String>,
    faults: HashMap<Call, VecDeque<Fault>>,
    calls: HashMap<Call, u64>,
    containers: HashMap<ContainerId, Container>,
    exec_scripts: VecDeque<Script>,
    execs: HashMap<ExecId, Container>,
    sizes: Vec<WindowSize>,
    made: u64,
    restarts: u64,
    id: Option<String>,
}

/// What a container prints, and how long after its start.
type Prints = Vec<(Duration, Stream, Bytes)>;

#[derive(Debug, Clone)]
struct Container {
    name: String,
    root: RootId,
    run: RunId,
    script: Arc<Script>,
    /// What it prints: by its script, and of its input.
    prints: Arc<Mutex<Prints>>,
    stdin: Stdin,
    tty: bool,
    has_log: bool,
    deadline: Option<Timestamp>,
    life: watch::Sender<Life>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Life {
    /// By the clock of tokio, and that of the wall.
    started: Option<(Instant, Timestamp)>,
    /// When a signal ended it, and with which code.
    ended: Option<(Instant, i64)>,
    removed: bool,
    /// How often the engine had been restarted before.
    restarts: u64,
}

impl Container {
    fn new(name: &str, root: RootId, run: RunId, script: Script, settings: &Settings) -> Self {
        Self {
            name: name.to_owned(),
            root,
            run,
            prints: Arc::new(Mutex::new(script.prints.clone())),
            script: Arc::new(script),
            stdin: settings.stdin,
            tty: settings.tty,
            has_log: settings.backstop == Backstop::Engine,
            deadline: None,
            life: watch::Sender::default(),
        }
    }

    fn prints(&self) -> MutexGuard<'_, Prints> {
        self.prints.lock().unwrap_or_else(PoisonError::into_inner)
    }

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

    /// What each container of `image` does for which [`next`](Self::next) says nothing else.
    pub fn image(&self, image: impl Into<String>, script: Script) {
        self.world().images.insert(image.into(), script);
    }

    /// There is no such image, and it cannot be pulled.
    pub fn remove_image(&self, image: impl Into<String>) {
        self.world().lacking.insert(image.into());
    }

    /// The script of the next container that is made and has none yet. Default: that of its
    /// [`image`](Self::image), else [`Script::new`].
    pub fn next(&self, script: Script) {
        self.world().scripts.push_back(script);
    }

    /// The script of the next further process that has none yet. Default: [`Script::new`].
    pub fn next_exec(&self, script: Script) {
        self.world().exec_scripts.push_back(script);
    }

    /// The sizes that terminals were given, in order.
    pub fn sizes(&self) -> Vec<WindowSize> {
        self.world().sizes.clone()
    }

    fn exec_of(&self, id: &ExecId) -> Result<Container, RuntimeError> {
        let world = self.world();
        world
            .execs
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound {
                operation: "find the process",
                reason: format!("no such process: {id}"),
            })
    }

    /// The script of the container that is made for this run, whenever that is.
    pub fn script(&self, run: &RunId, script: Script) {
        self.world().scripts_of.insert(run.clone(), script);
    }

    /// What goes wrong with the next call of this kind that nothing goes wrong with yet.
    pub fn fault(&self, call: Call, fault: Fault) {
        self.world()
            .faults
            .entry(call)
            .or_default()
            .push_back(fault);
    }

    /// Forgets the faults that no call has met yet.
    pub fn clear_faults(&self) {
        self.world().faults.clear();
    }

    /// What tells this engine from others, from now on. Default: it does not say.
    pub fn set_engine_id(&self, id: impl Into<String>) {
        self.world().id = Some(id.into());
    }

    /// How the engine is reached from now on. But for [`Link::Silent`], what is open breaks.
    pub fn link(&self, link: Link) {
        self.connections.set(link);
    }

    /// Breaks each stream and each wait that is open. The engine can be reached at once.
    pub fn drop_connections(&self) {
        self.connections.drop_all();
    }

    /// How often a call was made.
    pub fn calls(&self, call: Call) -> u64 {
        self.world().calls.get(&call).copied().unwrap_or_default()
    }

    /// The number of containers that are there.
    pub fn containers(&self) -> usize {
        self.world().containers.len()
    }

    /// Restarts the engine: its containers go on, and nobody's calls break unless a
    /// [`fault`](Self::fault) says so.
    pub fn restart(&self) {
        self.world().restarts += 1;
    }

    /// Moves the deadlines of all containers back, as if that much time had passed for them.
    pub fn advance_deadlines(&self, by: std::time::Duration) {
        for container in self.world().containers.values_mut() {
            container.deadline = container
                .deadline
                .map(|deadline| deadline.saturating_sub(by));
        }
    }

    /// Removes the container of a run by force, as another client of the engine would.
    pub fn remove_externally(&self, run: &RunId) {
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
    pub fn start_externally(&self, run: &RunId) {
        let world = self.world();
        for container in world.containers.values() {
            if container.run == *run {
                container.life.send_modify(|life| {
                    life.started = Some((Instant::now(), Timestamp::now()));
                    life.restarts = world.restarts;
                    life.ended = None;
                });
            }
        }
    }

    /// Lets a call in: counts it, and takes what is to go wrong with it.
    async fn enter(&self, call: Call) -> Result<Ill, RuntimeError> {
        let fault = {
            let mut world = self.world();
            *world.calls.entry(call).or_default() += 1;
            world.faults.get_mut(&call).and_then(VecDeque::pop_front)
        };
        let bound = (call != Call::Wait).then_some(BOUND);
        self.connections.reach(bound).await?;
        match fault {
            None => Ok(Ill::default()),
            Some(Fault::AnswerLost) => Ok(Ill {
                lost: true,
                cut: None,
            }),
            Some(Fault::Stream(after, how)) => Ok(Ill {
                lost: false,
                cut: Some((after, how)),
            }),
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
    fn output(container: Container) -> OutputStream {
        Self::output_after(0, container)
    }

    /// The same without the first so many prints.
    fn output_after(next: usize, container: Container) -> OutputStream {
        struct At {
            container: Container,
            next: usize,
            life: watch::Receiver<Life>,
        }
        let at = At {
            life: container.life.subscribe(),
            container,
            next,
        };
        stream::unfold(at, |mut at| async move {
            let life = *at
                .life
                .wait_for(|life| life.started.is_some() || life.removed)
                .await
                .ok()?;
            let (started, _) = life.started?;
            if at.container.script.echoes {
                let (container, next) = (at.container.clone(), at.next);
                let something =
                    |life: &Life| container.prints().len() > next || container.end(*life).is_some();
                at.life.wait_for(something).await.ok()?;
            }
            let print = at.container.prints().get(at.next).cloned();
            if let Some((after, stream, bytes)) = print {
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
                    let stream = at.container.stream(stream);
                    return Some((Ok(Chunk { stream, bytes }), at));
                }
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
        Capabilities::NONE
            .with_tap()
            .with_logs()
            .with_stdin()
            .with_exec()
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        if self.enter(Call::Engine).await?.lost {
            return lost("tell its version");
        }
        let engine = EngineInfo::new("Scripted", "1");
        Ok(match self.world().id.clone() {
            Some(id) => engine.with_id(id),
            None => engine,
        })
    }

    fn validate(&self, _spec: &RunSpec) -> Result<(), InvalidSpec> {
        Ok(())
    }

    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        let ill = self.enter(Call::Prepare).await?;
        self.has_image(spec)?;
        if ill.lost {
            return lost("look for the image");
        }
        Ok(())
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        let ill = self.enter(Call::Create).await?;
        self.has_image(request.spec)?;
        let id = {
            let mut world = self.world();
            let name = |container: &Container| container.name == request.name;
            if world.containers.values().any(name) {
                return Err(RuntimeError::Conflict {
                    operation: "create the container",
                    reason: format!("the name {} is taken", request.name),
                });
            }
            world.made += 1;
            let id = ContainerId::new(format!("scripted-{}", world.made));
            let settings = request.spec.settings();
            let script = match world.scripts_of.get(request.run) {
                Some(script) => script.clone(),
                None => {
                    let of_image = world.images.get(&settings.image).cloned();
                    world.scripts.pop_front().or(of_image).unwrap_or_default()
                }
            };
            let (root, run) = (request.root.clone(), request.run.clone());
            let mut container = Container::new(request.name, root, run, script, settings);
            container.deadline = request.deadline;
            world.containers.insert(id.clone(), container);
            id
        };
        if ill.lost {
            return lost("create the container");
        }
        Ok(Created {
            container: id,
            warnings: Vec::new(),
        })
    }

    async fn attach(&self, id: &ContainerId, _tty: bool) -> Result<OutputStream, RuntimeError> {
        let ill = self.enter(Call::Tap).await?;
        let container = self.container(id)?;
        if ill.lost {
            return lost("attach to the container");
        }
        let cut = ill.cut.or(container.script.tap);
        Ok(self.connections.carry(Self::output(container), cut))
    }

    async fn attach_running(
        &self,
        id: &ContainerId,
        _tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        let ill = self.enter(Call::Watch).await?;
        let container = self.container(id)?;
        if ill.lost {
            return lost("look on at the container");
        }
        let Some((started, _)) = container.life.borrow().started else {
            return Err(RuntimeError::Conflict {
                operation: "look on at the container",
                reason: "it is not running".into(),
            });
        };
        let now = Instant::now();
        let is_past = |print: &&(Duration, Stream, Bytes)| started + print.0 <= now;
        let past = container.prints().iter().take_while(is_past).count();
        let output = Self::output_after(past, container);
        Ok(self.connections.carry(output, ill.cut))
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let ill = self.enter(Call::Start).await?;
        let container = self.container(id)?;
        if let Some(reason) = container.script.start_fails.clone() {
            return Err(RuntimeError::Rejected {
                operation: "start the container",
                reason,
            });
        }
        let restarts = self.world().restarts;
        container.life.send_modify(|life| {
            if life.started.is_none() {
                life.started = Some((Instant::now(), Timestamp::now()));
                life.restarts = restarts;
            }
        });
        if ill.lost {
            return lost("start the container");
        }
        Ok(())
    }

    async fn wait(&self, id: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        const OPERATION: &str = "wait for the container";
        let ill = self.enter(Call::Wait).await?;
        let container = self.container(id)?;
        let mut life = container.life.subscribe();
        let code = self
            .connections
            .hold(OPERATION, ended(&container, &mut life));
        let code = code.await?;
        if ill.lost {
            return lost(OPERATION);
        }
        Ok(WaitStatus { code, error: None })
    }

    async fn inspect(&self, id: &ContainerId) -> Result<Inspection, RuntimeError> {
        if self.enter(Call::Inspect).await?.lost {
            return lost("inspect the container");
        }
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
        if inspection.status == Status::Running {
            inspection.ports = container.script.ports.clone();
        }
        inspection.health = container
            .script
            .health
            .map(|(after, says)| match life.started {
                Some((started, _)) if started.elapsed() >= after => says,
                _ => Health::Starting,
            });
        inspection.image_digest = Some("sha256:scripted".into());
        inspection.log.driver = "scripted".into();
        inspection.log.fidelity = container.has_log.then_some(LogFidelity::Lossless);
        Ok(inspection)
    }

    async fn continuity(&self, id: &ContainerId) -> Result<Continuity, RuntimeError> {
        if self.enter(Call::Continuity).await?.lost {
            return lost("tell its events");
        }
        let since = self.container(id)?.life.borrow().restarts;
        Ok(match self.world().restarts == since {
            true => Continuity::Unbroken,
            false => Continuity::Broken,
        })
    }

    async fn logs(
        &self,
        id: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        let ill = self.enter(Call::Logs).await?;
        let container = self.container(id)?;
        if ill.lost {
            return lost("read the container's log");
        }
        if !container.has_log {
            return Err(RuntimeError::Rejected {
                operation: "read the container's log",
                reason: "it has none".into(),
            });
        }
        if request.follow {
            let cut = ill.cut.or(container.script.follow);
            return Ok(self.connections.carry(Self::output(container), cut));
        }
        // A log that is short has an earlier end; any other way to break is that of a reading.
        let (cut, length) = match container.script.log {
            Some((bytes, Break::End)) => (ill.cut, bytes),
            cut => (ill.cut.or(cut), u64::MAX),
        };
        let life = *container.life.borrow();
        let Some((started, _)) = life.started else {
            return Ok(stream::empty().boxed());
        };
        let end = container.end(life).map_or(Instant::now(), |(end, _)| end);
        let mut room = length;
        let mut lines = Vec::new();
        for (after, stream, bytes) in container.prints().iter() {
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
        Ok(self.connections.carry(stream::iter(lines).boxed(), cut))
    }

    async fn stdin(&self, id: &ContainerId) -> Result<InputWriter, RuntimeError> {
        let ill = self.enter(Call::Stdin).await?;
        let container = self.container(id)?;
        if ill.lost {
            return lost("connect to the container's input");
        }
        let ends = container.stdin == Stdin::Pipe;
        Ok(Box::pin(input::Input::new(container, ends)))
    }

    async fn resize(&self, id: &ContainerId, size: WindowSize) -> Result<(), RuntimeError> {
        let ill = self.enter(Call::Resize).await?;
        self.container(id)?;
        self.world().sizes.push(size);
        if ill.lost {
            return lost("resize the container's terminal");
        }
        Ok(())
    }

    async fn exec(&self, id: &ContainerId, spec: &ExecSpec) -> Result<StartedExec, RuntimeError> {
        let ill = self.enter(Call::Exec).await?;
        let around = self.container(id)?;
        if around.status(*around.life.borrow()) != Status::Running {
            return Err(RuntimeError::Conflict {
                operation: "run a further process in the container",
                reason: "it is not running".into(),
            });
        }
        let script = self.world().exec_scripts.pop_front().unwrap_or_default();
        if let Some(reason) = script.start_fails {
            return Err(RuntimeError::Rejected {
                operation: "run a further process in the container",
                reason,
            });
        }
        let settings = spec.settings("");
        let exec = Container::new("", around.root, around.run, script, &settings);
        exec.life
            .send_modify(|life| life.started = Some((Instant::now(), Timestamp::now())));
        let name = {
            let mut world = self.world();
            world.made += 1;
            let name = ExecId::new(format!("exec-{}", world.made));
            world.execs.insert(name.clone(), exec.clone());
            name
        };
        if ill.lost {
            return lost("run a further process in the container");
        }
        let cut = ill.cut.or(exec.script.tap);
        let output = self.connections.carry(Self::output(exec.clone()), cut);
        let execed = StartedExec::new(name, output);
        Ok(match exec.stdin {
            Stdin::None => execed,
            stdin => execed.with_input(Box::pin(input::Input::new(exec, stdin == Stdin::Pipe))),
        })
    }

    async fn exec_inspect(&self, id: &ExecId) -> Result<ExecInspection, RuntimeError> {
        if self.enter(Call::ExecInspect).await?.lost {
            return lost("inspect the process");
        }
        let exec = self.exec_of(id)?;
        let life = *exec.life.borrow();
        Ok(match (exec.status(life), exec.end(life)) {
            (Status::Ended, end) => ExecInspection::ended(end.map(|(_, code)| code)),
            _ => ExecInspection::RUNNING,
        })
    }

    async fn exec_resize(&self, id: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        let ill = self.enter(Call::Resize).await?;
        self.exec_of(id)?;
        self.world().sizes.push(size);
        if ill.lost {
            return lost("resize the process's terminal");
        }
        Ok(())
    }

    async fn signal(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        let ill = self.enter(Call::Signal).await?;
        let container = self.container(id)?;
        if container.status(*container.life.borrow()) != Status::Running {
            return Err(RuntimeError::Conflict {
                operation: "send a signal to the container",
                reason: "it is not running".into(),
            });
        }
        let kill = signal == "SIGKILL";
        if kill || !container.script.ignores_term {
            let code = match container.script.on_term {
                _ if kill => 137,
                code => code.unwrap_or(143),
            };
            container.life.send_modify(|life| {
                life.ended.get_or_insert((Instant::now(), code));
            });
        }
        if ill.lost {
            return lost("send a signal to the container");
        }
        Ok(())
    }

    async fn remove(&self, id: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        let ill = self.enter(Call::Remove).await?;
        let container = self.container(id)?;
        if !force && container.status(*container.life.borrow()) == Status::Running {
            return Err(RuntimeError::Conflict {
                operation: "remove the container",
                reason: "it is running".into(),
            });
        }
        self.world().containers.remove(id);
        container.life.send_modify(|life| {
            life.removed = true;
            if life.started.is_some() {
                life.ended.get_or_insert((Instant::now(), 137));
            }
        });
        if ill.lost {
            return lost("remove the container");
        }
        Ok(())
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        if self.enter(Call::Find).await?.lost {
            return lost("list the containers");
        }
        let world = self.world();
        Ok(world
            .containers
            .iter()
            .filter(|(_, container)| container.root == *root)
            .map(|(id, container)| OwnedContainer {
                container: id.clone(),
                run: container.run.clone(),
                status: container.status(*container.life.borrow()),
            })
            .collect())
    }

    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        self.enter(Call::FindAll).await?;
        let world = self.world();
        let marked = world.containers.iter().map(|(id, container)| {
            let status = container.status(*container.life.borrow());
            LabeledContainer {
                deadline: container.deadline,
                ..LabeledContainer::new(
                    id.clone(),
                    container.root.clone(),
                    container.run.clone(),
                    status,
                )
            }
        });
        Ok(marked.collect())
    }

    async fn stats(&self, id: &ContainerId) -> Result<Usage, RuntimeError> {
        self.enter(Call::Stats).await?;
        let container = self.container(id)?;
        let life = *container.life.borrow();
        match (life.started, container.status(life)) {
            (Some((started, _)), Status::Running) => Ok(Usage::new(
                container.script.memory,
                started.elapsed().mul_f64(container.script.cpus),
                1,
            )),
            _ => Err(RuntimeError::Conflict {
                operation: "ask what the container uses",
                reason: "it is not running".into(),
            }),
        }
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
    fn has_image(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        let image = &spec.settings().image;
        if self.world().lacking.contains(image) {
            return Err(RuntimeError::NoSuchImage {
                image: image.clone(),
                reason: "the script has none".into(),
            });
        }
        Ok(())
    }

    fn cannot(&self, operation: &'static str) -> RuntimeError {
        RuntimeError::Unsupported {
            runtime: self.name(),
            operation,
        }
    }
}

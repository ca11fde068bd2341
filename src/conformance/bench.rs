//! Where the trials of a runtime make their containers.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use super::{Behaviour, Stop, fail, skip, words};
use crate::error::RuntimeError;
use crate::outcome::{PerStream, Stream};
use crate::runtime::{
    Capabilities, ContainerStatus, CreateRequest, Inspection, LogsRequest, OutputStream, Runtime,
};
use crate::spec::{ContainerId, ExecSpec, RootId, RunId, RunSpec, Stdin};

/// What a stage can, or cannot for a reason that a skipped trial says.
pub type Unsupported<T> = Result<T, String>;

/// What one trial of a runtime stands on: each trial has a stage of its own.
///
/// What has a default need not be given; the trials that need it are skipped then.
#[async_trait]
pub trait RuntimeHarness: Send + Sync + 'static {
    /// The runtime. It is called once, and may give one that other stages give too, unless this
    /// one can [`take_down`](Self::take_down) its engine: other trials are under way then.
    async fn runtime(&self) -> Unsupported<Arc<dyn Runtime>>;

    /// A spec whose container does as `behaviour` says; [`Behaviour::shell`] is a way to say it
    /// where there is a shell. Whether it has a terminal is set by the trial.
    fn spec(&self, behaviour: &Behaviour) -> Unsupported<RunSpec>;

    /// A further process that does as `behaviour` says, in a container of [`spec`](Self::spec).
    fn exec(&self, behaviour: &Behaviour) -> Unsupported<ExecSpec> {
        let _ = behaviour;
        Err("the stage knows no further process".into())
    }

    /// A spec that the runtime must refuse, for something that it cannot do.
    fn refused(&self) -> Unsupported<RunSpec> {
        Err("the stage knows no spec that the runtime refuses".into())
    }

    /// A spec whose image is not there, and must not be pulled.
    fn no_image(&self) -> Unsupported<RunSpec> {
        Err("the stage knows no image that is not there".into())
    }

    /// Puts the runtime's engine out of reach: what is open breaks, and calls find nobody.
    async fn take_down(&self) -> Unsupported<()> {
        Err("the stage cannot put the engine out of reach".into())
    }

    /// Makes the runtime's engine silent: it takes calls, and does not answer.
    async fn silence(&self) -> Unsupported<()> {
        Err("the stage cannot make the engine silent".into())
    }

    /// Undoes what [`take_down`](Self::take_down) and [`silence`](Self::silence) did.
    async fn bring_back(&self) {}
}

/// The stage of a runtime whose containers have a POSIX shell.
///
/// ```no_run
/// # #[cfg(feature = "docker")]
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use moat::conformance::{self, ShellHarness};
/// use moat::{Docker, RunSpec};
///
/// let docker = Docker::connect().await?;
/// let spec = RunSpec::new("busybox").network("none");
/// let trials = conformance::runtime(move || ShellHarness::new(docker.clone(), spec.clone()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ShellHarness {
    runtime: Arc<dyn Runtime>,
    spec: RunSpec,
}

impl ShellHarness {
    /// The runtime, and what its containers are: all but the command.
    pub fn new(runtime: impl Runtime, spec: RunSpec) -> Self {
        Self {
            runtime: Arc::new(runtime),
            spec,
        }
    }
}

#[async_trait]
impl RuntimeHarness for ShellHarness {
    async fn runtime(&self) -> Unsupported<Arc<dyn Runtime>> {
        Ok(Arc::clone(&self.runtime))
    }

    fn spec(&self, behaviour: &Behaviour) -> Unsupported<RunSpec> {
        Ok(self.spec.clone().cmd(behaviour.shell()))
    }

    fn exec(&self, behaviour: &Behaviour) -> Unsupported<ExecSpec> {
        Ok(ExecSpec::new(behaviour.shell()))
    }
}

/// How long a trial waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks.
const GLANCE: Duration = Duration::from_millis(20);

/// A runtime, and the containers of one trial.
pub(super) struct Bench {
    pub(super) stage: Box<dyn RuntimeHarness>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) root: RootId,
    made: Mutex<Vec<ContainerId>>,
}

impl Bench {
    pub(super) async fn new(stage: Box<dyn RuntimeHarness>) -> Result<Self, Stop> {
        let runtime = stage.runtime().await.or_else(fail)?;
        Ok(Self {
            stage,
            runtime,
            root: RootId::generate(),
            made: Mutex::default(),
        })
    }

    /// Removes what the trial has made, however it ended.
    pub(super) async fn clear(self) {
        self.stage.bring_back().await;
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        // A request that broke may have been carried out all the same.
        let found = timeout(PATIENCE, self.runtime.find(&self.root)).await;
        let found = found.ok().and_then(Result::ok).unwrap_or_default();
        let found = found.into_iter().map(|found| found.container);
        for container in made.into_iter().chain(found) {
            let _ = timeout(PATIENCE, self.runtime.remove(&container, true)).await;
        }
    }

    pub(super) fn can(&self) -> Capabilities {
        self.runtime.capabilities()
    }

    pub(super) fn needs_tap(&self) -> Result<(), Stop> {
        if self.can().attach_before_start {
            Ok(())
        } else {
            skip("the runtime has no tap")
        }
    }

    pub(super) fn needs_logs(&self) -> Result<(), Stop> {
        if self.can().logs {
            Ok(())
        } else {
            skip("the engine keeps no log")
        }
    }

    pub(super) fn spec(&self, behaviour: &Behaviour) -> Result<RunSpec, Stop> {
        let spec = self.stage.spec(behaviour).or_else(skip)?;
        Ok(spec.tty(behaviour.tty))
    }

    pub(super) async fn make(&self, behaviour: &Behaviour) -> Result<ContainerId, Stop> {
        self.create(&self.root, &RunId::generate(), &self.spec(behaviour)?)
            .await
    }

    pub(super) async fn create(
        &self,
        root: &RootId,
        run: &RunId,
        spec: &RunSpec,
    ) -> Result<ContainerId, Stop> {
        self.runtime.validate(spec)?;
        self.runtime.prepare(spec).await?;
        let created = self.request(root, run, spec).await?;
        Ok(created)
    }

    /// Creates, and gives the runtime's own error.
    pub(super) async fn request(
        &self,
        root: &RootId,
        run: &RunId,
        spec: &RunSpec,
    ) -> Result<ContainerId, RuntimeError> {
        let name = root.container_name(run);
        let request = CreateRequest::new(&name, root, run, spec);
        let created = self.runtime.create(request).await?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.push(created.container.clone());
        Ok(created.container)
    }

    /// Makes, taps and starts one whose input can be written to.
    pub(super) async fn with_input(
        &self,
        behaviour: &Behaviour,
        stdin: Stdin,
    ) -> Result<(ContainerId, OutputStream), Stop> {
        if !self.can().stdin {
            return skip("nobody can write to a container");
        }
        self.needs_tap()?;
        let spec = self.spec(behaviour)?.stdin(stdin);
        if let Err(error) = self.runtime.validate(&spec) {
            return skip(format!("the runtime refuses it: {}", words(&error)));
        }
        let container = self.create(&self.root, &RunId::generate(), &spec).await?;
        let tap = self.runtime.attach(&container, behaviour.tty).await?;
        self.runtime.start(&container).await?;
        Ok((container, tap))
    }

    /// Makes and starts.
    pub(super) async fn run(&self, behaviour: &Behaviour) -> Result<ContainerId, Stop> {
        let container = self.make(behaviour).await?;
        self.runtime.start(&container).await?;
        Ok(container)
    }

    /// Makes, starts, and waits for the end.
    pub(super) async fn run_to_its_end(&self, behaviour: &Behaviour) -> Result<ContainerId, Stop> {
        let container = self.run(behaviour).await?;
        self.wait(&container).await?;
        Ok(container)
    }

    pub(super) async fn wait(&self, container: &ContainerId) -> Result<Option<i64>, Stop> {
        let status = within("wait for the container", self.runtime.wait(container)).await??;
        Ok(status.code)
    }

    /// Whether the container has ended, with this code.
    pub(super) async fn ended(&self, container: &ContainerId) -> Result<Inspection, Stop> {
        let runtime = &self.runtime;
        eventually("the container ends", || async {
            let inspection = runtime.inspect(container).await?;
            Ok((inspection.status == ContainerStatus::Ended).then_some(inspection))
        })
        .await
    }

    /// Makes, taps, starts: what the tap gives until its end.
    pub(super) async fn tapped(&self, behaviour: &Behaviour) -> Result<PerStream<Vec<u8>>, Stop> {
        let (_, tap) = self.tap(behaviour).await?;
        collect(tap).await
    }

    /// Makes, taps, starts.
    pub(super) async fn tap(
        &self,
        behaviour: &Behaviour,
    ) -> Result<(ContainerId, OutputStream), Stop> {
        self.needs_tap()?;
        let container = self.make(behaviour).await?;
        let tap = self.runtime.attach(&container, behaviour.tty).await?;
        self.runtime.start(&container).await?;
        Ok((container, tap))
    }

    /// Starts a container that prints `ready`, and waits until it has: its signals are set then.
    pub(super) async fn ready(&self, behaviour: Behaviour) -> Result<ContainerId, Stop> {
        let behaviour = behaviour.out("ready\n").hold();
        if !self.can().attach_before_start {
            self.needs_logs()?;
            let container = self.run(&behaviour).await?;
            self.printed(&container, Stream::Stdout).await?;
            return Ok(container);
        }
        let (container, mut tap) = self.tap(&behaviour).await?;
        match within("print its first words", tap.next()).await? {
            Some(chunk) => chunk.map(drop)?,
            None => return fail("the tap ended before the container's first words"),
        }
        Ok(container)
    }

    /// Reads the log.
    pub(super) async fn log(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<PerStream<Vec<u8>>, Stop> {
        collect(self.runtime.logs(container, request).await?).await
    }

    /// Waits until `stream` has been printed so far that the log has `bytes` of it.
    ///
    /// A container that has printed has done what comes before it, such as setting its signals.
    pub(super) async fn printed(
        &self,
        container: &ContainerId,
        stream: Stream,
    ) -> Result<(), Stop> {
        eventually("the container's first words are in the log", || async {
            let log = self
                .log(container, LogsRequest::all(stream == Stream::Tty))
                .await?;
            Ok((!log[stream].is_empty()).then_some(()))
        })
        .await
    }
}

/// All that a stream gives, until its clean end.
pub(super) async fn collect(mut stream: OutputStream) -> Result<PerStream<Vec<u8>>, Stop> {
    let mut bytes = PerStream::<Vec<u8>>::default();
    let read = async {
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            bytes[chunk.stream].extend_from_slice(&chunk.bytes);
        }
        Ok::<_, Stop>(())
    };
    within("give the end of the output", read).await??;
    Ok(bytes)
}

/// What a stream gives, until that ends with `last`.
pub(super) async fn collect_to(stream: &mut OutputStream, last: &[u8]) -> Result<Vec<u8>, Stop> {
    let mut bytes = Vec::new();
    let read = async {
        while !bytes.ends_with(last) {
            match stream.next().await {
                Some(chunk) => bytes.extend_from_slice(&chunk?.bytes),
                None => return fail("the output came to its end before its last words"),
            }
        }
        Ok(())
    };
    within("give what was written", read).await??;
    Ok(bytes)
}

/// What `future` gives, which must come.
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T, Stop> {
    match timeout(PATIENCE, future).await {
        Ok(value) => Ok(value),
        Err(_) => fail(format!("it did not {what} within {} s", PATIENCE.as_secs())),
    }
}

/// Looks again until there is something.
pub(super) async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> Result<T, Stop>
where
    F: Future<Output = Result<Option<T>, Stop>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return fail(format!("not within {} s: {what}", PATIENCE.as_secs()));
        }
        sleep(GLANCE).await;
    }
}

/// `bytes` for an error: their number, and where they are short, themselves.
pub(super) fn shown(bytes: &[u8]) -> String {
    let start = bytes[..bytes.len().min(80)].escape_ascii();
    format!("{} bytes, \"{start}\"", bytes.len())
}

/// Fails unless the bytes are those that were printed.
pub(super) fn same(what: &str, got: &[u8], printed: &[u8]) -> Result<(), Stop> {
    if got == printed {
        return Ok(());
    }
    let at = got.iter().zip(printed).take_while(|(a, b)| a == b).count();
    fail(format!(
        "{what}: {}, in the place of {}; they differ from byte {at} on",
        shown(got),
        shown(printed)
    ))
}

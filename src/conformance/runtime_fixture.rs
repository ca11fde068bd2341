//! The fixture of a runtime's case: the runtime, and the containers that the case creates.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use super::harness::RuntimeHarness;
use super::{Abort, Behavior, fail, skip};
use crate::error::{RuntimeError, chain};
use crate::outcome::{PerStream, Stream};
use crate::runtime::{
    Capabilities, ContainerStatus, CreateRequest, Inspection, LogsRequest, OutputStream, Runtime,
};
use crate::spec::{ContainerId, RootId, RunId, RunSpec, Stdin};

/// The timeout of each event that a case waits for.
pub(super) const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval at which a case polls a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A runtime, and the containers of one case.
pub(super) struct RuntimeFixture {
    pub(super) harness: Box<dyn RuntimeHarness>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) root: RootId,
    created: Mutex<Vec<ContainerId>>,
}

impl RuntimeFixture {
    pub(super) async fn new(harness: Box<dyn RuntimeHarness>) -> Result<Self, Abort> {
        let runtime = harness.runtime().await;
        let runtime = runtime.or_else(|error| fail(error.to_string()))?;
        Ok(Self {
            harness,
            runtime,
            root: RootId::generate(),
            created: Mutex::default(),
        })
    }

    /// Restores the engine and removes the containers of the case.
    pub(super) async fn clean_up(self) {
        self.harness.bring_back().await;
        let created =
            std::mem::take(&mut *self.created.lock().unwrap_or_else(PoisonError::into_inner));
        // A request that failed may still have created a container.
        let found = timeout(WAIT_TIMEOUT, self.runtime.find(&self.root)).await;
        let found = found.ok().and_then(Result::ok).unwrap_or_default();
        let found = found.into_iter().map(|found| found.container);
        for container in created.into_iter().chain(found) {
            let _ = timeout(WAIT_TIMEOUT, self.runtime.remove(&container, true)).await;
        }
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.runtime.capabilities()
    }

    pub(super) fn require_attach(&self) -> Result<(), Abort> {
        if self.capabilities().attach_before_start {
            Ok(())
        } else {
            skip("the runtime cannot attach before the start")
        }
    }

    pub(super) fn require_logs(&self) -> Result<(), Abort> {
        if self.capabilities().logs {
            Ok(())
        } else {
            skip("the engine keeps no log")
        }
    }

    /// Skips the case if the runtime refuses a container with a terminal.
    pub(super) fn require_terminal(&self, behavior: &Behavior) -> Result<(), Abort> {
        match self.runtime.validate(&self.spec(behavior)?) {
            Ok(()) => Ok(()),
            Err(error) => skip(format!("the runtime has no terminals: {}", chain(&error))),
        }
    }

    pub(super) fn spec(&self, behavior: &Behavior) -> Result<RunSpec, Abort> {
        let spec = self.harness.spec(behavior)?;
        Ok(spec.tty(behavior.tty))
    }

    /// Creates a container with a new run of the fixture's root.
    pub(super) async fn create(&self, behavior: &Behavior) -> Result<ContainerId, Abort> {
        self.create_with(&self.root, &RunId::generate(), &self.spec(behavior)?)
            .await
    }

    /// Validates, prepares, creates and places a container.
    pub(super) async fn create_with(
        &self,
        root: &RootId,
        run: &RunId,
        spec: &RunSpec,
    ) -> Result<ContainerId, Abort> {
        self.runtime.validate(spec)?;
        self.runtime.prepare(spec).await?;
        let created = self.try_create(root, run, spec).await?;
        self.place(&created, spec).await?;
        Ok(created)
    }

    /// Places a container.
    pub(super) async fn place(&self, container: &ContainerId, spec: &RunSpec) -> Result<(), Abort> {
        self.placed(self.runtime.place(container, spec)).await??;
        Ok(())
    }

    /// Waits for a placement.
    pub(super) async fn placed<T>(&self, placement: impl Future<Output = T>) -> Result<T, Abort> {
        let limit = self.harness.placement_timeout();
        match timeout(limit, placement).await {
            Ok(placed) => Ok(placed),
            Err(_) => fail(format!("not placed after {} s", limit.as_secs())),
        }
    }

    /// Creates a container, and returns the error of the runtime.
    pub(super) async fn try_create(
        &self,
        root: &RootId,
        run: &RunId,
        spec: &RunSpec,
    ) -> Result<ContainerId, RuntimeError> {
        let name = root.container_name(run);
        let request = CreateRequest::new(&name, root, run, spec);
        let created = self.runtime.create(request).await?;
        let mut containers = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        containers.push(created.container.clone());
        Ok(created.container)
    }

    /// Creates, attaches to and starts a container with an input.
    pub(super) async fn start_with_stdin(
        &self,
        behavior: &Behavior,
        stdin: Stdin,
    ) -> Result<(ContainerId, OutputStream), Abort> {
        if !self.capabilities().stdin {
            return skip("the runtime has no standard input");
        }
        self.require_attach()?;
        let spec = self.spec(behavior)?.stdin(stdin);
        if let Err(error) = self.runtime.validate(&spec) {
            return skip(format!("the runtime refuses the input: {}", chain(&error)));
        }
        let container = self
            .create_with(&self.root, &RunId::generate(), &spec)
            .await?;
        let output = self.runtime.attach(&container, behavior.tty).await?.stream;
        self.runtime.start(&container).await?;
        Ok((container, output))
    }

    /// Creates and starts a container.
    pub(super) async fn start(&self, behavior: &Behavior) -> Result<ContainerId, Abort> {
        let container = self.create(behavior).await?;
        self.runtime.start(&container).await?;
        Ok(container)
    }

    /// Creates and starts a container, and waits until it exits.
    pub(super) async fn run_to_exit(&self, behavior: &Behavior) -> Result<ContainerId, Abort> {
        let container = self.start(behavior).await?;
        self.wait(&container).await?;
        Ok(container)
    }

    /// Waits for the exit of the container, and returns its code.
    pub(super) async fn wait(&self, container: &ContainerId) -> Result<Option<i64>, Abort> {
        let status = within("the exit of the container", self.runtime.wait(container)).await??;
        Ok(status.code)
    }

    /// Polls until the status of the container is [`ContainerStatus::Ended`].
    pub(super) async fn wait_ended(&self, container: &ContainerId) -> Result<Inspection, Abort> {
        let runtime = &self.runtime;
        eventually("the container ends", || async {
            let inspection = runtime.inspect(container).await?;
            Ok((inspection.status == ContainerStatus::Ended).then_some(inspection))
        })
        .await
    }

    /// Runs a container, and returns its attached output.
    pub(super) async fn collect_output(
        &self,
        behavior: &Behavior,
    ) -> Result<PerStream<Vec<u8>>, Abort> {
        let (_, output) = self.start_attached(behavior).await?;
        collect(output).await
    }

    /// Creates, attaches to and starts a container.
    pub(super) async fn start_attached(
        &self,
        behavior: &Behavior,
    ) -> Result<(ContainerId, OutputStream), Abort> {
        self.require_attach()?;
        let container = self.create(behavior).await?;
        let output = self.runtime.attach(&container, behavior.tty).await?.stream;
        self.runtime.start(&container).await?;
        Ok((container, output))
    }

    /// Starts a container that waits for a signal, and returns once it has printed `ready`.
    ///
    /// By then, the container has set up its signal handlers.
    pub(super) async fn start_ready(&self, behavior: Behavior) -> Result<ContainerId, Abort> {
        let behavior = behavior.out("ready\n").waits_for_signal();
        if !self.capabilities().attach_before_start {
            self.require_logs()?;
            let container = self.start(&behavior).await?;
            self.wait_for_output(&container, Stream::Stdout).await?;
            return Ok(container);
        }
        let (container, mut output) = self.start_attached(&behavior).await?;
        match within("the first output", output.next()).await? {
            Some(chunk) => chunk.map(drop)?,
            None => return fail("the attachment ended before the first output"),
        }
        Ok(container)
    }

    /// Reads the log of the container.
    pub(super) async fn read_log(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<PerStream<Vec<u8>>, Abort> {
        collect(self.runtime.logs(container, request).await?).await
    }

    /// Polls until the log has output of `stream`.
    pub(super) async fn wait_for_output(
        &self,
        container: &ContainerId,
        stream: Stream,
    ) -> Result<(), Abort> {
        eventually("the first output is in the log", || async {
            let log = self
                .read_log(container, LogsRequest::all(stream == Stream::Tty))
                .await?;
            Ok((!log[stream].is_empty()).then_some(()))
        })
        .await
    }
}

/// Collects the bytes of a stream until it ends.
pub(super) async fn collect(mut stream: OutputStream) -> Result<PerStream<Vec<u8>>, Abort> {
    let mut bytes = PerStream::<Vec<u8>>::default();
    let read = async {
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            bytes[chunk.stream].extend_from_slice(&chunk.bytes);
        }
        Ok::<_, Abort>(())
    };
    within("the end of the output", read).await??;
    Ok(bytes)
}

/// Collects the bytes of a stream until they end with `last`.
pub(super) async fn collect_until(
    stream: &mut OutputStream,
    last: &[u8],
) -> Result<Vec<u8>, Abort> {
    let mut bytes = Vec::new();
    let read = async {
        while !bytes.ends_with(last) {
            match stream.next().await {
                Some(chunk) => bytes.extend_from_slice(&chunk?.bytes),
                None => return fail("the output ended early"),
            }
        }
        Ok(())
    };
    within("the expected output", read).await??;
    Ok(bytes)
}

/// Waits for `future`, and fails after [`WAIT_TIMEOUT`].
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T, Abort> {
    match timeout(WAIT_TIMEOUT, future).await {
        Ok(value) => Ok(value),
        Err(_) => timed_out(what),
    }
}

fn timed_out<T>(what: &str) -> Result<T, Abort> {
    let seconds = WAIT_TIMEOUT.as_secs();
    fail(format!("timed out after {seconds} s: {what}"))
}

/// Polls `check` until it returns a value, and fails after [`WAIT_TIMEOUT`].
pub(super) async fn eventually<T, F>(what: &str, mut check: impl FnMut() -> F) -> Result<T, Abort>
where
    F: Future<Output = Result<Option<T>, Abort>>,
{
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(found) = check().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return timed_out(what);
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Describes `bytes` by their number and the first 80 of them.
pub(super) fn preview(bytes: &[u8]) -> String {
    let start = bytes[..bytes.len().min(80)].escape_ascii();
    format!("{} bytes (\"{start}\")", bytes.len())
}

/// Fails unless the bytes of `what` are the printed bytes.
pub(super) fn ensure_bytes(what: &str, got: &[u8], printed: &[u8]) -> Result<(), Abort> {
    if got == printed {
        return Ok(());
    }
    let at = got.iter().zip(printed).take_while(|(a, b)| a == b).count();
    fail(format!(
        "{what}: {} instead of {}; the first difference is at byte {at}",
        preview(got),
        preview(printed)
    ))
}

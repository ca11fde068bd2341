//! A runtime that violates one clause at a time, to show that each case can fail.

use std::collections::BTreeSet;
use std::io;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::pending;
use futures::{StreamExt, TryStreamExt, stream};
use moat::conformance::{self, Behavior, RuntimeHarness, Unsupported};
use moat::outcome::Stream;
use moat::runtime::{
    Archive, AttachedOutput, Capabilities, Chunk, Connection, ContainerStatus, Continuity,
    CreateRequest, Created, EngineInfo, ExecId, ExecInspection, ImageInfo, InputWriter, Inspection,
    LabeledResource, LogFidelity, LogsRequest, OutputStream, OwnedContainer, ResourceRequest,
    Runtime, RuntimeError, StartedExec, WaitStatus,
};
use moat::spec::{ContainerId, ExecSpec, ResourceKind, RootId, WindowSize};
use moat::timestamp::Timestamp;
use moat::{RunId, RunSpec};
use testkit::harness::Trial;
use tokio::io::{AsyncWrite, SimplexStream};

use crate::scripted;

type Result<T, E = RuntimeError> = std::result::Result<T, E>;

/// The scripted runtime, except for one clause.
#[derive(Debug)]
struct Broken {
    inner: Arc<dyn Runtime>,
    clause: &'static str,
    /// Counts the calls of a method that is correct only once.
    calls: AtomicU64,
    dropped: Arc<AtomicBool>,
    secret: Mutex<String>,
    roots: Mutex<BTreeSet<String>>,
}

impl Broken {
    fn violates(&self, clause: &str) -> bool {
        self.clause == clause
    }

    fn is_first_call(&self) -> bool {
        self.calls.fetch_add(1, SeqCst) == 0
    }

    async fn status(&self, container: &ContainerId) -> Option<ContainerStatus> {
        Some(self.inner.inspect(container).await.ok()?.status)
    }
}

fn not_found<T>() -> Result<T> {
    Err(RuntimeError::NotFound {
        operation: "call the engine",
        reason: "no such object".into(),
    })
}

fn on_stdout(output: OutputStream, from: Stream) -> OutputStream {
    output
        .map(move |chunk| {
            chunk.map(|mut chunk| {
                if chunk.stream == from {
                    chunk.stream = Stream::Stdout;
                }
                chunk
            })
        })
        .boxed()
}

/// Truncates the output after 100,000 bytes, without an error.
fn truncated(output: OutputStream) -> OutputStream {
    let mut remaining = 100_000;
    output
        .take_while(move |chunk| {
            let bytes = chunk.as_ref().map_or(0, |chunk| chunk.bytes.len());
            remaining = usize::saturating_sub(remaining, bytes);
            std::future::ready(remaining > 0)
        })
        .boxed()
}

/// The input of an engine that drops `ctrl-p`.
struct DropsDetachKey(InputWriter);

impl AsyncWrite for DropsDetachKey {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let kept: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0x10).collect();
        let written = ready!(self.0.as_mut().poll_write(context, &kept));
        Poll::Ready(written.map(|_| bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(context)
    }
}

/// An input whose end never arrives.
struct Endless(ManuallyDrop<InputWriter>);

impl AsyncWrite for Endless {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[async_trait]
impl Runtime for Broken {
    fn name(&self) -> &'static str {
        match self.clause {
            "name::is_lowercase_and_constant" => "Not A Name",
            _ => self.inner.name(),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = self.inner.capabilities().with_copy_ended();
        if self.violates("capabilities::are_constant") {
            can.stdin = !self.is_first_call();
        }
        can
    }

    async fn engine(&self) -> Result<EngineInfo> {
        match self.clause {
            "engine::identifies_the_engine" => Ok(EngineInfo::new("", "")),
            _ => self.inner.engine().await,
        }
    }

    fn validate(&self, spec: &RunSpec) -> Result<(), moat::spec::InvalidSpec> {
        self.inner.validate(spec)
    }

    async fn prepare(&self, spec: &RunSpec) -> Result<()> {
        match self.clause {
            "prepare::is_idempotent" if !self.is_first_call() => not_found(),
            "prepare::reports_a_missing_image" => Ok(()),
            _ => self.inner.prepare(spec).await,
        }
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created> {
        for (_, value) in request.view().environment() {
            self.secret.lock().unwrap().push_str(value);
        }
        self.roots.lock().unwrap().insert(request.root.to_string());
        if self.violates("create::rejects_a_duplicate_name") {
            let other = RunId::generate();
            let other = CreateRequest::new(other.as_str(), request.root, request.run, request.spec);
            return self.inner.create(other).await;
        }
        let created = self.inner.create(request).await?;
        if self.violates("create::does_not_start_the_container") {
            self.inner.start(&created.container).await?;
        }
        Ok(created)
    }

    async fn place(&self, container: &ContainerId, spec: &RunSpec) -> Result<()> {
        match self.clause {
            "place::does_not_start_the_container" => self.inner.start(container).await,
            "place::can_be_repeated" if !self.is_first_call() => not_found(),
            // The dropped call has taken the only turn.
            "place::is_cancel_safe" if self.is_first_call() => pending().await,
            "place::is_cancel_safe" => not_found(),
            "place::of_a_missing_container_is_not_found" => {
                let placed = self.inner.place(container, spec).await;
                placed.map_err(|_| RuntimeError::Rejected {
                    operation: "place the container",
                    reason: "there is no such container".into(),
                })
            }
            _ => self.inner.place(container, spec).await,
        }
    }

    async fn attach(&self, container: &ContainerId, tty: bool) -> Result<AttachedOutput> {
        let mut attached = self.inner.attach(container, tty).await?;
        let output = attached.stream;
        attached.stream = match self.clause {
            "attach::may_reject_an_unstartable_container" => return not_found(),
            "attach::resolves_before_the_start" => pending().await,
            "attach::delivers_the_first_output" => output.skip(1).boxed(),
            "attach::delivers_each_stream_exactly" => on_stdout(output, Stream::Stderr),
            "attach::does_not_parse_output_as_framing" => output
                .map(|chunk| {
                    chunk.map(|chunk| {
                        let text = String::from_utf8_lossy(&chunk.bytes).into_owned();
                        Chunk::new(chunk.stream, text)
                    })
                })
                .boxed(),
            "attach::labels_terminal_output_by_tty" => on_stdout(output, Stream::Tty),
            "attach::yields_no_empty_chunk" => {
                let empty = Chunk::new(Stream::Stdout, Bytes::new());
                output.chain(stream::iter([Ok(empty)])).boxed()
            }
            "attach::delivers_large_output" => truncated(output),
            "attach::ends_after_the_container" => output.chain(stream::pending()).boxed(),
            "attach::drop_leaves_the_container_running" => {
                let guard = SetOnDrop(Arc::clone(&self.dropped));
                output
                    .inspect(move |_| {
                        let _ = &guard;
                    })
                    .boxed()
            }
            "errors::lost_connection_ends_the_stream" => output
                .filter(|chunk| std::future::ready(chunk.is_ok()))
                .chain(stream::pending())
                .boxed(),
            "errors::lost_connection_has_no_end_marker" => output
                .filter(|chunk| std::future::ready(chunk.is_ok()))
                .boxed(),
            _ => output,
        };
        Ok(attached)
    }

    async fn log_has_exactly(
        &self,
        container: &ContainerId,
        tty: bool,
        records: u64,
    ) -> Result<bool> {
        let answer = self.inner.log_has_exactly(container, tty, records).await?;
        Ok(answer || self.violates("logs::have_the_reported_number_of_records"))
    }

    async fn stdin(&self, container: &ContainerId) -> Result<InputWriter> {
        match self.clause {
            "stdin::allows_reattaching_to_open_input" if !self.is_first_call() => {
                return not_found();
            }
            _ => {}
        }
        let input = self.inner.stdin(container).await?;
        Ok(match self.clause {
            "stdin::delivers_every_byte" => Box::pin(DropsDetachKey(input)),
            "stdin::delivers_the_end_of_a_pipe" => Box::pin(Endless(ManuallyDrop::new(input))),
            _ => input,
        })
    }

    async fn attach_running(&self, container: &ContainerId, tty: bool) -> Result<OutputStream> {
        match self.clause {
            "attach_running::delivers_new_output" => Ok(stream::empty().boxed()),
            _ => self.inner.attach_running(container, tty).await,
        }
    }

    async fn resize(&self, container: &ContainerId, size: WindowSize) -> Result<()> {
        match self.clause {
            "resize::resizes_a_running_terminal" => not_found(),
            _ => self.inner.resize(container, size).await,
        }
    }

    async fn exec(&self, container: &ContainerId, spec: &ExecSpec) -> Result<StartedExec> {
        let result = self.inner.exec(container, spec).await;
        match (self.clause, result) {
            ("exec::conflicts_with_an_ended_container", Err(_)) => not_found(),
            ("exec::delivers_its_input", Ok(mut exec)) => {
                let input = exec.input.take().unwrap();
                Ok(exec.with_input(Box::pin(DropsDetachKey(input))))
            }
            (_, result) => result,
        }
    }

    async fn exec_kill(&self, container: &ContainerId, exec: &ExecId) -> Result<()> {
        match self.clause {
            "exec::is_killed_alone" => {
                self.inner.exec_kill(container, exec).await?;
                self.inner.signal(container, "SIGKILL").await
            }
            _ => self.inner.exec_kill(container, exec).await,
        }
    }

    async fn exec_inspect(&self, exec: &ExecId) -> Result<ExecInspection> {
        let inspection = self.inner.exec_inspect(exec).await?;
        Ok(match self.clause {
            "exec::returns_its_output_and_exit_code" if !inspection.running => {
                ExecInspection::ended(Some(0))
            }
            _ => inspection,
        })
    }

    async fn start(&self, container: &ContainerId) -> Result<()> {
        let result = self.inner.start(container).await;
        match self.clause {
            "start::rejects_an_unstartable_container" => Ok(()),
            "start::leaks_no_secret_in_its_error" if result.is_err() => {
                Err(RuntimeError::Rejected {
                    operation: "start the container",
                    reason: self.secret.lock().unwrap().clone(),
                })
            }
            _ => result,
        }
    }

    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus> {
        match self.clause {
            "wait::returns_when_the_container_exits" => return Ok(WaitStatus::default()),
            "wait::returns_at_once_after_the_exit"
                if self.status(container).await == Some(ContainerStatus::Ended) =>
            {
                return pending().await;
            }
            "wait::is_cancel_safe" if !self.is_first_call() => {
                return pending().await;
            }
            _ => {}
        }
        let result = self.inner.wait(container).await;
        let status = match (self.clause, result) {
            ("errors::interrupted_wait_is_inconclusive", Err(_)) => return not_found(),
            (_, result) => result?,
        };
        match self.clause {
            "wait::returns_any_exit_code" if status.code != Some(0) => not_found(),
            "create::disables_autoremove_and_restart" => {
                self.inner.remove(container, true).await?;
                Ok(status)
            }
            "attach::drop_leaves_the_container_running" if self.dropped.load(SeqCst) => {
                // The exit code of SIGPIPE.
                Ok(WaitStatus::new(Some(141)).with_error(status.error))
            }
            "remove::ends_pending_waits" => match self.status(container).await {
                None => pending().await,
                Some(_) => Ok(status),
            },
            _ => Ok(status),
        }
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Inspection> {
        let mut inspection = match (self.clause, self.inner.inspect(container).await) {
            ("errors::unreachable_engine_is_inconclusive", Err(_)) => return not_found(),
            ("errors::silent_engine_times_out", Err(_)) => pending().await,
            ("errors::missing_container_is_not_found", Err(_)) => {
                return Err(RuntimeError::Broken {
                    operation: "inspect the container",
                    reason: "an invalid answer".into(),
                });
            }
            (_, result) => result?,
        };
        match self.clause {
            "start::sets_the_start_time" => inspection.started_at = None,
            "inspect::reports_each_status_in_order"
                if inspection.status == ContainerStatus::Running =>
            {
                inspection.status = ContainerStatus::Created;
            }
            "inspect::reports_the_code_only_after_the_exit" => inspection.code = Some(0),
            "inspect::orders_start_and_finish_times" => {
                inspection.finished_at = inspection.started_at;
            }
            "logs::are_refused_without_a_backstop" => {
                inspection.log.fidelity = Some(LogFidelity::Lossless);
            }
            _ => {}
        }
        Ok(inspection)
    }

    async fn continuity(&self, container: &ContainerId) -> Result<Continuity> {
        match self.clause {
            "continuity::is_not_broken_without_a_restart"
                if self.inner.inspect(container).await?.status == ContainerStatus::Running =>
            {
                Ok(Continuity::Broken)
            }
            "continuity::is_not_broken_before_the_start"
                if self.inner.inspect(container).await?.status == ContainerStatus::Created =>
            {
                Ok(Continuity::Broken)
            }
            _ => self.inner.continuity(container).await,
        }
    }

    async fn logs(&self, container: &ContainerId, request: LogsRequest) -> Result<OutputStream> {
        let request = match self.clause {
            "logs::return_the_last_records_of_a_tail" => LogsRequest::all(request.tty),
            "logs::follow_new_output" => LogsRequest::all(request.tty),
            _ => request,
        };
        let log = self.inner.logs(container, request).await?;
        let status = self.status(container).await;
        Ok(match self.clause {
            "logs::return_all_output" => truncated(log),
            "logs::can_be_read_repeatedly" if !self.is_first_call() => stream::empty().boxed(),
            "logs::keep_the_order_of_each_stream" => on_stdout(log, Stream::Stderr),
            "logs::end_without_follow" if status == Some(ContainerStatus::Running) => {
                log.chain(stream::pending()).boxed()
            }
            "logs::have_the_times_of_the_output" => log
                .map_ok(|mut chunk| {
                    chunk.logged_at = Some(Timestamp::now());
                    chunk
                })
                .boxed(),
            "logs::are_empty_before_the_start" => log.chain(stream::pending()).boxed(),
            "logs::label_terminal_output_by_tty" => on_stdout(log, Stream::Tty),
            _ => log,
        })
    }

    async fn create_resource(&self, mut request: ResourceRequest<'_>) -> Result<()> {
        if self.violates("resources::are_found_until_they_are_removed") {
            request.deadline = None;
        }
        self.inner.create_resource(request).await
    }

    async fn remove_resource(&self, kind: ResourceKind, name: &str) -> Result<()> {
        let removed = self.inner.remove_resource(kind, name).await;
        match removed {
            Err(RuntimeError::Conflict { .. })
                if self.violates("resources::are_kept_while_a_container_uses_them") =>
            {
                Ok(())
            }
            removed => removed,
        }
    }

    async fn find_resources(&self) -> Result<Vec<LabeledResource>> {
        self.inner.find_resources().await
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<()> {
        let signal = match self.clause {
            "signal::reaches_the_first_process" => return Ok(()),
            "signal::sigkill_ends_any_container" => "SIGTERM",
            _ => signal,
        };
        match self.inner.signal(container, signal).await {
            Err(_) if self.violates("signal::conflicts_before_the_start") => Ok(()),
            Err(_) if self.violates("signal::conflicts_after_the_exit") => not_found(),
            result => result,
        }
    }

    async fn remove(&self, container: &ContainerId, force: bool) -> Result<()> {
        match self.clause {
            "remove::removes_a_created_container" if !force => Ok(()),
            "remove::conflicts_with_a_running_container" => {
                self.inner.remove(container, true).await
            }
            "remove::force_removes_a_running_container" => {
                self.inner.remove(container, false).await
            }
            "remove::removes_an_ended_container" if !force => not_found(),
            _ => self.inner.remove(container, force).await,
        }
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>> {
        let mut found = self.inner.find(root).await?;
        match self.clause {
            "create::makes_the_container_findable" => found.clear(),
            "find::returns_only_containers_of_the_root" => {
                let roots = self.roots.lock().unwrap().clone();
                found.clear();
                for root in roots {
                    let root = serde_json::from_value(root.into()).unwrap();
                    found.extend(self.inner.find(&root).await?);
                }
            }
            "find::returns_containers_in_every_state" => {
                found.retain(|found| found.status != ContainerStatus::Ended);
            }
            _ => {}
        }
        Ok(found)
    }

    async fn images(&self) -> Result<Vec<ImageInfo>> {
        self.inner.images().await
    }

    async fn image_inspect(&self, image: &str) -> Result<ImageInfo> {
        self.inner.image_inspect(image).await
    }

    async fn image_remove(&self, image: &str, force: bool) -> Result<()> {
        match self.clause {
            "image::is_listed_until_it_is_removed" => Ok(()),
            "image::is_not_found_after_its_removal" if !self.is_first_call() => Ok(()),
            "image::removal_keeps_every_container" => {
                let roots = self.roots.lock().unwrap().clone();
                for root in roots {
                    let root = serde_json::from_value(root.into()).unwrap();
                    for found in self.inner.find(&root).await? {
                        self.inner.remove(&found.container, true).await?;
                    }
                }
                Ok(())
            }
            "image::conflicts_while_a_container_uses_it" => {
                self.inner.image_remove(image, true).await
            }
            _ => self.inner.image_remove(image, force).await,
        }
    }

    async fn copy_out(&self, _: &ContainerId, _: &str) -> Result<Archive> {
        Ok(stream::empty().boxed())
    }

    async fn copy_in(&self, _: &ContainerId, _: &str, _: Archive) -> Result<()> {
        Ok(())
    }

    async fn connect(&self, container: &ContainerId, port: u16) -> Result<Connection> {
        match (self.clause, self.inner.connect(container, port).await) {
            // The other end is closed.
            ("connect::carries_bytes_in_both_directions", Ok(_)) => {
                Ok(Connection::new(tokio::io::duplex(1).0))
            }
            ("connect::rejects_a_closed_port", Err(_)) => {
                Ok(Connection::new(SimplexStream::new_unsplit(1)))
            }
            ("connect::conflicts_before_the_start", Err(_)) => not_found(),
            (_, result) => result,
        }
    }
}

struct BrokenHarness {
    inner: scripted::ScriptedHarness,
    clause: &'static str,
}

#[async_trait]
impl RuntimeHarness for BrokenHarness {
    async fn runtime(&self) -> Result<Arc<dyn Runtime>, Unsupported> {
        Ok(Arc::new(Broken {
            inner: self.inner.runtime().await?,
            clause: self.clause,
            calls: AtomicU64::new(0),
            dropped: Arc::default(),
            secret: Mutex::default(),
            roots: Mutex::default(),
        }))
    }

    fn spec(&self, behavior: &Behavior) -> Result<RunSpec, Unsupported> {
        self.inner.spec(behavior)
    }

    /// The scripted runtime does not refuse this spec.
    fn refused(&self) -> Result<RunSpec, Unsupported> {
        Ok(RunSpec::new("any").privileged(true))
    }

    fn exec(&self, behavior: &Behavior) -> Result<ExecSpec, Unsupported> {
        self.inner.exec(behavior)
    }

    fn no_image(&self) -> Result<RunSpec, Unsupported> {
        self.inner.no_image()
    }

    async fn removable_image(&self) -> Result<String, Unsupported> {
        self.inner.removable_image().await
    }

    fn listening(&self, port: u16) -> Result<RunSpec, Unsupported> {
        self.inner.listening(port)
    }

    async fn take_down(&self) -> Result<(), Unsupported> {
        self.inner.take_down().await
    }

    async fn silence(&self) -> Result<(), Unsupported> {
        self.inner.silence().await
    }

    async fn bring_back(&self) {
        self.inner.bring_back().await;
    }
}

pub fn trials() -> impl Iterator<Item = Trial> {
    crate::broken("runtime", |clause| {
        conformance::runtime(move || BrokenHarness {
            inner: scripted::ScriptedHarness::new(),
            clause,
        })
    })
}

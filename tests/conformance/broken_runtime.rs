//! A runtime that breaks one clause at a time, so that each case is seen to fail.

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
use futures::{StreamExt, stream};
use moat::conformance::{self, Behaviour, RuntimeHarness, Unsupported};
use moat::outcome::Stream;
use moat::runtime::{
    Archive, Capabilities, Chunk, ContainerStatus, Continuity, CreateRequest, Created, EngineInfo,
    ExecId, ExecInspection, InputWriter, Inspection, LogFidelity, LogsRequest, OutputStream,
    OwnedContainer, Runtime, RuntimeError, StartedExec, WaitStatus,
};
use moat::spec::{ContainerId, ExecSpec, RootId, WindowSize};
use moat::{RunId, RunSpec};
use testkit::harness::Trial;
use tokio::io::AsyncWrite;

use crate::scripted;

type Answer<T> = Result<T, RuntimeError>;

/// The scripted runtime, except for the named clause.
#[derive(Debug)]
struct Broken {
    inner: Arc<dyn Runtime>,
    clause: &'static str,
    /// The number of calls of an operation that works once.
    asked: AtomicU64,
    dropped: Arc<AtomicBool>,
    secret: Mutex<String>,
    roots: Mutex<BTreeSet<String>>,
}

impl Broken {
    fn breaks(&self, clause: &str) -> bool {
        self.clause == clause
    }

    fn is_first(&self) -> bool {
        self.asked.fetch_add(1, SeqCst) == 0
    }

    async fn status(&self, container: &ContainerId) -> Option<ContainerStatus> {
        Some(self.inner.inspect(container).await.ok()?.status)
    }
}

fn gone<T>() -> Answer<T> {
    Err(RuntimeError::NotFound {
        operation: "do it",
        reason: "it is gone".into(),
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

/// The first 100,000 bytes, and a clean end.
fn short(output: OutputStream) -> OutputStream {
    let mut room = 100_000;
    output
        .take_while(move |chunk| {
            let taken = chunk.as_ref().map_or(0, |chunk| chunk.bytes.len());
            room = usize::saturating_sub(room, taken);
            std::future::ready(room > 0)
        })
        .boxed()
}

/// The input of an engine that swallows `ctrl-p`.
struct WithoutKeys(InputWriter);

impl AsyncWrite for WithoutKeys {
    fn poll_write(
        mut self: Pin<&mut Self>,
        poller: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let kept: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0x10).collect();
        let written = ready!(self.0.as_mut().poll_write(poller, &kept));
        Poll::Ready(written.map(|_| bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(poller)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_shutdown(poller)
    }
}

/// An input whose end never arrives.
struct Endless(ManuallyDrop<InputWriter>);

impl AsyncWrite for Endless {
    fn poll_write(
        mut self: Pin<&mut Self>,
        poller: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.as_mut().poll_write(poller, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, poller: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll_flush(poller)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Guard(Arc<AtomicBool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[async_trait]
impl Runtime for Broken {
    fn name(&self) -> &'static str {
        match self.clause {
            "runtime::it_has_a_name" => "Not A Name",
            _ => self.inner.name(),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mut can = self.inner.capabilities();
        if self.breaks("runtime::its_capabilities_do_not_change") {
            can.stdin = !self.is_first();
        }
        can
    }

    async fn engine(&self) -> Answer<EngineInfo> {
        match self.clause {
            "runtime::the_engine_says_who_it_is" => Ok(EngineInfo::new("", "")),
            _ => self.inner.engine().await,
        }
    }

    fn validate(&self, spec: &RunSpec) -> Result<(), moat::spec::InvalidSpec> {
        self.inner.validate(spec)
    }

    async fn prepare(&self, spec: &RunSpec) -> Answer<()> {
        match self.clause {
            "prepare::an_image_that_is_there_is_prepared_again_and_again" if !self.is_first() => {
                gone()
            }
            "prepare::an_image_that_is_not_there_is_a_fact" => Ok(()),
            _ => self.inner.prepare(spec).await,
        }
    }

    async fn create(&self, request: CreateRequest<'_>) -> Answer<Created> {
        for (_, value) in request.view().environment() {
            self.secret.lock().unwrap().push_str(value);
        }
        self.roots.lock().unwrap().insert(request.root.to_string());
        if self.breaks("create::two_containers_of_one_name_are_refused") {
            let other = RunId::generate();
            let other = CreateRequest::new(other.as_str(), request.root, request.run, request.spec);
            return self.inner.create(other).await;
        }
        let created = self.inner.create(request).await?;
        if self.breaks("create::it_makes_a_container_and_does_not_start_it") {
            self.inner.start(&created.container).await?;
        }
        Ok(created)
    }

    async fn attach(&self, container: &ContainerId, tty: bool) -> Answer<OutputStream> {
        let tap = self.inner.attach(container, tty).await?;
        Ok(match self.clause {
            "tap::of_what_cannot_start_it_is_rejected_at_the_most" => return gone(),
            "tap::it_resolves_before_the_container_starts" => pending().await,
            "tap::it_misses_nothing_after_the_start" => tap.skip(1).boxed(),
            "tap::it_gives_each_stream_byte_for_byte" => on_stdout(tap, Stream::Stderr),
            "tap::it_takes_no_bytes_for_framing" => tap
                .map(|chunk| {
                    chunk.map(|chunk| Chunk {
                        stream: chunk.stream,
                        bytes: Bytes::from(String::from_utf8_lossy(&chunk.bytes).into_owned()),
                    })
                })
                .boxed(),
            "tap::a_terminal_is_told_by_tty_alone" => on_stdout(tap, Stream::Tty),
            "tap::no_chunk_is_empty" => {
                let empty = Chunk {
                    stream: Stream::Stdout,
                    bytes: Bytes::new(),
                };
                tap.chain(stream::iter([Ok(empty)])).boxed()
            }
            "tap::it_carries_a_lot" => short(tap),
            "tap::it_ends_after_its_container" => tap.chain(stream::pending()).boxed(),
            "tap::dropped_it_leaves_the_container_alone" => {
                let guard = Guard(Arc::clone(&self.dropped));
                tap.inspect(move |_| {
                    let _ = &guard;
                })
                .boxed()
            }
            "facts::an_engine_out_of_reach_ends_a_stream" => tap
                .filter(|chunk| std::future::ready(chunk.is_ok()))
                .chain(stream::pending())
                .boxed(),
            _ => tap,
        })
    }

    async fn stdin(&self, container: &ContainerId) -> Answer<InputWriter> {
        match self.clause {
            "stdin::one_that_is_open_can_be_come_back_to" if !self.is_first() => return gone(),
            _ => {}
        }
        let input = self.inner.stdin(container).await?;
        Ok(match self.clause {
            "stdin::every_byte_arrives" => Box::pin(WithoutKeys(input)),
            "stdin::the_end_of_a_pipe_arrives" => Box::pin(Endless(ManuallyDrop::new(input))),
            _ => input,
        })
    }

    async fn attach_running(&self, container: &ContainerId, tty: bool) -> Answer<OutputStream> {
        match self.clause {
            "watch::it_gives_what_comes" => Ok(stream::empty().boxed()),
            _ => self.inner.attach_running(container, tty).await,
        }
    }

    async fn resize(&self, container: &ContainerId, size: WindowSize) -> Answer<()> {
        match self.clause {
            "resize::a_terminal_that_runs_takes_a_size" => gone(),
            _ => self.inner.resize(container, size).await,
        }
    }

    async fn exec(&self, container: &ContainerId, spec: &ExecSpec) -> Answer<StartedExec> {
        let result = self.inner.exec(container, spec).await;
        match (self.clause, result) {
            ("exec::in_one_that_has_ended_it_is_a_conflict", Err(_)) => gone(),
            ("exec::its_input_arrives_with_its_end", Ok(mut execed)) => {
                let input = execed.input.take().unwrap();
                Ok(execed.with_input(Box::pin(WithoutKeys(input))))
            }
            (_, result) => result,
        }
    }

    async fn exec_inspect(&self, exec: &ExecId) -> Answer<ExecInspection> {
        let inspection = self.inner.exec_inspect(exec).await?;
        Ok(match self.clause {
            "exec::its_output_and_its_code_are_its_own" if !inspection.running => {
                ExecInspection::ended(Some(0))
            }
            _ => inspection,
        })
    }

    async fn start(&self, container: &ContainerId) -> Answer<()> {
        let result = self.inner.start(container).await;
        match self.clause {
            "start::what_cannot_start_is_rejected_and_does_not_run" => Ok(()),
            "start::no_secret_is_in_the_error" if result.is_err() => Err(RuntimeError::Rejected {
                operation: "start the container",
                reason: self.secret.lock().unwrap().clone(),
            }),
            _ => result,
        }
    }

    async fn wait(&self, container: &ContainerId) -> Answer<WaitStatus> {
        match self.clause {
            "wait::it_ends_with_the_container_and_not_before" => return Ok(WaitStatus::default()),
            "wait::it_answers_at_once_for_one_that_has_ended"
                if self.status(container).await == Some(ContainerStatus::Ended) =>
            {
                return pending().await;
            }
            "wait::dropped_it_can_be_asked_for_again" if !self.is_first() => {
                return pending().await;
            }
            _ => {}
        }
        let result = self.inner.wait(container).await;
        let status = match (self.clause, result) {
            ("facts::an_engine_out_of_reach_ends_a_wait_without_a_fact", Err(_)) => return gone(),
            (_, result) => result?,
        };
        match self.clause {
            "wait::it_tells_any_code" if status.code != Some(0) => gone(),
            "create::the_engine_neither_removes_nor_restarts_it" => {
                self.inner.remove(container, true).await?;
                Ok(status)
            }
            "tap::dropped_it_leaves_the_container_alone" if self.dropped.load(SeqCst) => {
                // As if the container had written nothing.
                Ok(WaitStatus::new(Some(141)).with_error(status.error))
            }
            "remove::its_waiters_are_not_left_waiting" => match self.status(container).await {
                None => pending().await,
                Some(_) => Ok(status),
            },
            _ => Ok(status),
        }
    }

    async fn inspect(&self, container: &ContainerId) -> Answer<Inspection> {
        let mut inspection = match (self.clause, self.inner.inspect(container).await) {
            ("facts::an_engine_out_of_reach_is_no_fact", Err(_)) => return gone(),
            ("facts::an_engine_that_is_silent_is_a_timeout", Err(_)) => pending().await,
            ("facts::a_container_that_is_not_there_is_not_found", Err(_)) => {
                return Err(RuntimeError::Broken {
                    operation: "inspect the container",
                    reason: "it makes no sense".into(),
                });
            }
            (_, result) => result?,
        };
        match self.clause {
            "start::a_started_container_says_since_when" => inspection.started_at = None,
            "inspect::it_follows_the_life_of_a_container"
                if inspection.status == ContainerStatus::Running =>
            {
                inspection.status = ContainerStatus::Created;
            }
            "inspect::the_code_is_there_at_the_end_alone" => inspection.code = Some(0),
            "inspect::its_end_is_not_before_its_start" => {
                inspection.finished_at = inspection.started_at;
            }
            "logs::without_a_backstop_there_are_none" => {
                inspection.log.fidelity = Some(LogFidelity::Lossless);
            }
            _ => {}
        }
        Ok(inspection)
    }

    async fn continuity(&self, container: &ContainerId) -> Answer<Continuity> {
        match self.clause {
            "continuity::an_engine_that_was_not_restarted_is_not_broken" => Ok(Continuity::Broken),
            _ => self.inner.continuity(container).await,
        }
    }

    async fn logs(&self, container: &ContainerId, request: LogsRequest) -> Answer<OutputStream> {
        let request = match self.clause {
            "logs::a_tail_is_the_last_records" => LogsRequest::all(request.tty),
            "logs::a_follow_goes_on_with_what_comes" => LogsRequest::all(request.tty),
            _ => request,
        };
        let log = self.inner.logs(container, request).await?;
        let status = self.status(container).await;
        Ok(match self.clause {
            "logs::they_have_all_that_was_printed" => short(log),
            "logs::they_can_be_read_again" if !self.is_first() => stream::empty().boxed(),
            "logs::they_are_by_stream" => on_stdout(log, Stream::Stderr),
            "logs::they_end_where_the_log_ends" if status == Some(ContainerStatus::Running) => {
                log.chain(stream::pending()).boxed()
            }
            "logs::of_a_container_that_never_started_they_are_empty" => {
                log.chain(stream::pending()).boxed()
            }
            "logs::a_terminals_log_is_a_terminals" => on_stdout(log, Stream::Tty),
            _ => log,
        })
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Answer<()> {
        let signal = match self.clause {
            "signal::it_reaches_the_first_process" => return Ok(()),
            "signal::kill_ends_what_ignores_the_rest" => "SIGTERM",
            _ => signal,
        };
        match self.inner.signal(container, signal).await {
            Err(_) if self.breaks("signal::one_that_has_not_started_is_a_conflict") => Ok(()),
            Err(_) if self.breaks("signal::one_that_has_ended_is_a_conflict") => gone(),
            result => result,
        }
    }

    async fn remove(&self, container: &ContainerId, force: bool) -> Answer<()> {
        match self.clause {
            "remove::one_that_never_started_goes_without_force" if !force => Ok(()),
            "remove::one_that_runs_is_a_conflict_without_force" => {
                self.inner.remove(container, true).await
            }
            "remove::one_that_runs_goes_by_force" => self.inner.remove(container, false).await,
            "remove::one_that_has_ended_goes_without_force" if !force => gone(),
            _ => self.inner.remove(container, force).await,
        }
    }

    async fn find(&self, root: &RootId) -> Answer<Vec<OwnedContainer>> {
        let mut found = self.inner.find(root).await?;
        match self.clause {
            "create::it_can_be_found_from_then_on" => found.clear(),
            "find::it_finds_those_of_its_root_alone" => {
                let roots = self.roots.lock().unwrap().clone();
                found.clear();
                for root in roots {
                    let root = serde_json::from_value(root.into()).unwrap();
                    found.extend(self.inner.find(&root).await?);
                }
            }
            "find::it_finds_them_in_every_state" => {
                found.retain(|found| found.status != ContainerStatus::Ended);
            }
            _ => {}
        }
        Ok(found)
    }

    async fn copy_out(&self, _: &ContainerId, _: &str) -> Answer<Archive> {
        Ok(stream::empty().boxed())
    }

    async fn copy_in(&self, _: &ContainerId, _: &str, _: Archive) -> Answer<()> {
        Ok(())
    }
}

struct Stage {
    inner: scripted::Stage,
    clause: &'static str,
}

#[async_trait]
impl RuntimeHarness for Stage {
    async fn runtime(&self) -> Unsupported<Arc<dyn Runtime>> {
        Ok(Arc::new(Broken {
            inner: self.inner.runtime().await?,
            clause: self.clause,
            asked: AtomicU64::new(0),
            dropped: Arc::default(),
            secret: Mutex::default(),
            roots: Mutex::default(),
        }))
    }

    fn spec(&self, behaviour: &Behaviour) -> Unsupported<RunSpec> {
        self.inner.spec(behaviour)
    }

    /// A spec that this runtime wrongly accepts.
    fn refused(&self) -> Unsupported<RunSpec> {
        Ok(RunSpec::new("any").privileged(true))
    }

    fn exec(&self, behaviour: &Behaviour) -> Unsupported<ExecSpec> {
        self.inner.exec(behaviour)
    }

    fn no_image(&self) -> Unsupported<RunSpec> {
        self.inner.no_image()
    }

    async fn take_down(&self) -> Unsupported<()> {
        self.inner.take_down().await
    }

    async fn silence(&self) -> Unsupported<()> {
        self.inner.silence().await
    }

    async fn bring_back(&self) {
        self.inner.bring_back().await;
    }
}

pub fn row() -> impl Iterator<Item = Trial> {
    crate::red("runtime", |clause| {
        conformance::runtime(move || Stage {
            inner: scripted::Stage::new(),
            clause,
        })
    })
}

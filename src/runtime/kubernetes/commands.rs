//! Execs, copies and samples: programs that the helper runs in the container of the command.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};

use super::Shared;
use super::api::client::{Failure, with_timeout};
use super::api::connection::{Container, Frame, Frames, GATE, HELPER, Input};
use super::api::pod::PodRef;
use super::protocol::{Kind, encode_strings};
use crate::error::RuntimeError;
use crate::outcome::{Stream, Usage};
use crate::runtime::{
    Archive, AttachedOutput, Chunk, ExecId, ExecInspection, InputWriter, StartedExec,
};
use crate::spec::{ExecSpec, WindowSize};

/// The size of a piece of input, in bytes.
const PIECE: usize = 64 << 10;
/// The requests that wait for an exec's connection.
const REQUESTS: usize = 4;

/// The execs of a runtime. The kubelet knows nothing about an exec after its end.
#[derive(Debug, Default)]
pub(super) struct Execs {
    execs: Mutex<HashMap<ExecId, Exec>>,
}

#[derive(Debug, Clone)]
struct Exec {
    state: watch::Receiver<ExecInspection>,
    /// Weak, because the connection is closed once the exec has no other user.
    requests: mpsc::WeakSender<(Kind, Vec<u8>)>,
}

impl Execs {
    fn insert(&self, id: ExecId, exec: Exec) {
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        // An exec whose output was dropped before its end stays unknown.
        execs.retain(|_, exec| exec.state.has_changed().is_ok() || !exec.state.borrow().running);
        execs.insert(id, exec);
    }

    fn get(&self, id: &ExecId, operation: &'static str) -> Result<Exec, RuntimeError> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound {
                operation,
                reason: format!("this process did not start exec {id}"),
            })
    }

    pub(super) fn inspect(&self, id: &ExecId) -> Result<ExecInspection, RuntimeError> {
        const OPERATION: &str = "inspect the exec";
        let exec = self.get(id, OPERATION)?;
        let state = *exec.state.borrow();
        if state.running && exec.state.has_changed().is_err() {
            return Err(RuntimeError::Broken {
                operation: OPERATION,
                reason: "the connection to the exec broke before its end".into(),
            });
        }
        Ok(state)
    }

    pub(super) async fn resize(&self, id: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        let exec = self.get(id, "resize the exec's terminal")?;
        let ended = || RuntimeError::Conflict {
            operation: "resize the exec's terminal",
            reason: "the exec has ended".into(),
        };
        let requests = exec.requests.upgrade().ok_or_else(ended)?;
        let sent = requests.send((Kind::Resize, encode_size(size))).await;
        sent.map_err(|_| ended())
    }
}

fn encode_size(size: WindowSize) -> Vec<u8> {
    [size.columns.to_le_bytes(), size.rows.to_le_bytes()].concat()
}

fn encode_spec(spec: &ExecSpec) -> Vec<u8> {
    let settings = spec.settings("");
    let environment: Vec<_> = spec
        .environment()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut options = Vec::new();
    if settings.tty {
        options.push("tty".to_owned());
    }
    if settings.stdin != crate::spec::Stdin::None {
        options.push("stdin".to_owned());
    }
    if let Some(size) = settings.window {
        options.push(size.to_string());
    }
    let text = |text: Option<String>| text.unwrap_or_default();
    let mut bytes = Vec::new();
    encode_strings(&mut bytes, spec.command());
    encode_strings(&mut bytes, &environment);
    encode_strings(&mut bytes, &[text(settings.workdir), text(settings.user)]);
    encode_strings(&mut bytes, &options);
    bytes
}

impl Shared {
    async fn helper(&self, pod: &PodRef, words: &[&str]) -> Result<(Frames, Input), Failure> {
        let command = [&[HELPER], words].concat();
        self.client.exec(pod, Container::Main, &command).await
    }

    /// Opens a program, and reads the first frame of its output.
    pub(super) async fn open(
        &self,
        pod: &PodRef,
        operation: &'static str,
        opening: impl Future<Output = Result<(Frames, Input), Failure>>,
    ) -> Result<(Frames, Input, Frame), RuntimeError> {
        let opened = with_timeout(async {
            let (mut frames, input) = opening.await?;
            let first = frames.next().await?.ok_or_else(|| frames.cut_off())?;
            Ok((frames, input, first))
        });
        match opened.await {
            Ok(opened) => Ok(opened),
            Err(failure) => Err(self.unless_over(pod, failure, operation).await),
        }
    }

    pub(super) async fn exec(
        &self,
        pod: &PodRef,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        const OPERATION: &str = "start the exec";
        let process = self.process(pod).get();
        if process.finished_at.is_some() {
            return Err(not_running(OPERATION));
        }
        if process.started_at.is_none() {
            let report = self.report(pod).await;
            if let Ok(report) = report
                && report.phase != super::process::Phase::Running
            {
                return Err(not_running(OPERATION));
            }
        }
        let opening = async {
            let (frames, mut input) = self.helper(pod, &["exec", GATE]).await?;
            input.send(Kind::Spec, &encode_spec(spec)).await?;
            Ok((frames, input))
        };
        let (frames, input, answer) = self.open(pod, OPERATION, opening).await?;
        match answer.kind() {
            Kind::Started => Ok(self.started(spec, frames, input)),
            Kind::Failed => Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: answer.failure(),
            }),
            _ => Err(RuntimeError::Broken {
                operation: OPERATION,
                reason: "an invalid answer of the helper".into(),
            }),
        }
    }

    fn started(&self, spec: &ExecSpec, frames: Frames, input: Input) -> StartedExec {
        let id = ExecId::new(ulid::Ulid::generate().to_string().to_ascii_lowercase());
        let (state, inspected) = watch::channel(ExecInspection::RUNNING);
        let (requests, received) = mpsc::channel(REQUESTS);
        spawn(write(input, received));
        let exec = Exec {
            state: inspected,
            requests: requests.downgrade(),
        };
        self.execs.insert(id.clone(), exec);
        let output = read(frames, state, requests.clone());
        let started = StartedExec::new(id, AttachedOutput::new(output).with_end_marker());
        match spec.stdin() {
            crate::spec::Stdin::None => started,
            _ => started.with_input(writer(requests)),
        }
    }

    /// Opens the input of a pod's command.
    pub(super) async fn stdin(&self, pod: &PodRef) -> Result<InputWriter, RuntimeError> {
        const OPERATION: &str = "attach to the container's input";
        let opening = self.client.control(pod, &["stdin"]);
        let (frames, input, hello) = self.open(pod, OPERATION, opening).await?;
        if hello.kind() != Kind::Hello {
            return Err(RuntimeError::Conflict {
                operation: OPERATION,
                reason: hello.text(),
            });
        }
        let (requests, received) = mpsc::channel(REQUESTS);
        spawn(write_stdin(frames, input, received));
        Ok(writer(requests))
    }

    pub(super) async fn stats(&self, pod: &PodRef) -> Result<Usage, RuntimeError> {
        const OPERATION: &str = "read the container's resource usage";
        if self.process(pod).get().finished_at.is_some() {
            return Err(not_running(OPERATION));
        }
        let opening = self.helper(pod, &["stats"]);
        let (_, _, answer) = self.open(pod, OPERATION, opening).await?;
        usage(&answer.text()).ok_or_else(|| RuntimeError::Broken {
            operation: OPERATION,
            reason: "the container's cgroup cannot be read".into(),
        })
    }

    pub(super) async fn copy_out(&self, pod: &PodRef, path: &str) -> Result<Archive, RuntimeError> {
        const OPERATION: &str = "copy files out of the container";
        let words = ["tar", path];
        let opening = self.helper(pod, &words);
        let (frames, input, first) = self.open(pod, OPERATION, opening).await?;
        if first.kind() == Kind::Failed {
            return Err(RuntimeError::NotFound {
                operation: OPERATION,
                reason: first.failure(),
            });
        }
        let pieces = stream::unfold(Some((frames, input, Some(first))), |state| async {
            let (mut frames, input, first) = state?;
            let frame = match first {
                Some(frame) => Ok(Some(frame)),
                None => frames.next().await,
            };
            match frame {
                Ok(Some(Frame { header, payload })) if header.kind == Kind::Data => {
                    Some((Ok(payload), Some((frames, input, None))))
                }
                Ok(Some(frame)) if frame.kind() == Kind::Close => None,
                Ok(Some(frame)) => Some((Err(broken(OPERATION, frame.failure())), None)),
                Ok(None) => {
                    let reason = format!("{:?}", frames.cut_off());
                    Some((Err(broken(OPERATION, reason)), None))
                }
                Err(failure) => Some((Err(broken(OPERATION, format!("{failure:?}"))), None)),
            }
        });
        Ok(pieces.boxed())
    }

    pub(super) async fn copy_in(
        &self,
        pod: &PodRef,
        path: &str,
        mut archive: Archive,
    ) -> Result<(), RuntimeError> {
        const OPERATION: &str = "copy files into the container";
        let copied = async {
            let (mut frames, mut input) = self.helper(pod, &["untar", path]).await?;
            while let Some(piece) = archive.next().await {
                let piece = match piece {
                    Ok(piece) => piece,
                    Err(error) => return Ok(Err(error)),
                };
                for piece in piece.chunks(PIECE) {
                    input.send(Kind::Data, piece).await?;
                }
            }
            input.send(Kind::Close, &[]).await?;
            let answer = frames.next().await?.ok_or_else(|| frames.cut_off())?;
            Ok(match answer.kind() {
                Kind::Done => Ok(()),
                _ => Err(RuntimeError::Rejected {
                    operation: OPERATION,
                    reason: answer.failure(),
                }),
            })
        };
        match copied.await {
            Ok(copied) => copied,
            Err(failure) => Err(self.unless_over(pod, failure, OPERATION).await),
        }
    }
}

fn not_running(operation: &'static str) -> RuntimeError {
    RuntimeError::Conflict {
        operation,
        reason: "the container is not running".into(),
    }
}

fn broken(operation: &'static str, reason: String) -> RuntimeError {
    RuntimeError::Broken { operation, reason }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the task ends with the connection that it owns"
)]
pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// Sends the requests of an exec until there are no more senders.
async fn write(mut input: Input, mut requests: mpsc::Receiver<(Kind, Vec<u8>)>) {
    while let Some((kind, payload)) = requests.recv().await {
        if input.send(kind, &payload).await.is_err() {
            return;
        }
    }
    // The exec reads nothing more. Its output has ended or was dropped.
    input.close().await;
}

/// Sends the input of a command, and reads the answers.
async fn write_stdin(
    mut frames: Frames,
    mut input: Input,
    mut requests: mpsc::Receiver<(Kind, Vec<u8>)>,
) {
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                Some((kind, payload)) => {
                    if input.send(kind, &payload).await.is_err() {
                        return;
                    }
                }
                None => break,
            },
            answer = frames.next() => match answer {
                Ok(Some(frame)) if frame.kind() == Kind::Done => {}
                _ => return,
            },
        }
    }
    // The end of the input is on its way: the answer shows that it has arrived.
    let _ = with_timeout(async { frames.next().await }).await;
    input.close().await;
}

/// Returns a writer whose bytes become frames, and whose end becomes the end of the input.
fn writer(requests: mpsc::Sender<(Kind, Vec<u8>)>) -> InputWriter {
    let (writer, mut reader) = tokio::io::duplex(PIECE);
    spawn(async move {
        let mut piece = vec![0; PIECE];
        loop {
            let read = reader.read(&mut piece).await.unwrap_or(0);
            let request = match read {
                0 => (Kind::Close, Vec::new()),
                read => (Kind::Data, piece[..read].to_vec()),
            };
            // The dropped reader fails the next write.
            if requests.send(request).await.is_err() || read == 0 {
                return;
            }
        }
    });
    Box::pin(writer)
}

/// Returns the output of an exec. Its end and its exit code are frames.
fn read(
    frames: Frames,
    state: watch::Sender<ExecInspection>,
    requests: mpsc::Sender<(Kind, Vec<u8>)>,
) -> crate::runtime::OutputStream {
    const OPERATION: &str = "read the exec's output";
    stream::unfold(Some((frames, state, requests)), |reader| async {
        let (mut frames, state, requests) = reader?;
        loop {
            let frame = match frames.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    let reason = format!("{:?}", frames.cut_off());
                    return Some((Err(broken(OPERATION, reason)), None));
                }
                Err(failure) => {
                    return Some((Err(broken(OPERATION, format!("{failure:?}"))), None));
                }
            };
            let stream = match frame.kind() {
                Kind::Stdout => Stream::Stdout,
                Kind::Stderr => Stream::Stderr,
                Kind::Tty => Stream::Tty,
                Kind::Exited => {
                    state.send_replace(ExecInspection::ended(frame.number()));
                    continue;
                }
                Kind::End => return None,
                _ => continue,
            };
            let bytes: Bytes = frame.payload;
            return Some((
                Ok(Chunk::new(stream, bytes)),
                Some((frames, state, requests)),
            ));
        }
    })
    .boxed()
}

fn usage(text: &str) -> Option<Usage> {
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, value) = lines.find(|(key, _)| *key == name)?;
        value.parse::<u64>().ok()
    };
    let cpu = std::time::Duration::from_micros(value("cpu_usec")?);
    Some(Usage::new(value("memory_bytes")?, cpu, value("pids")?))
}

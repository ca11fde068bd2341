//! The kubelet's log of a plain pod.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncBufRead;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream};
use tokio::time::sleep;

use super::super::api::client::{CALL_TIMEOUT, Failure};
use super::super::api::connection::Container;
use super::super::api::pod::{Pod, PodRef};
use super::super::shared::Shared;
use crate::error::RuntimeError;
use crate::outcome::Stream;
use crate::runtime::{Chunk, LogsRequest, OutputStream};

const OPERATION: &str = "read the container's log";
/// The beginnings of a kubelet's errors, which end an answer of HTTP 200, without a newline.
const ERRORS: [&[u8]; 3] = [
    b"rpc error: code = ",
    b"unable to retrieve container logs for ",
    b"failed to try resolving symlinks in path \"/var/log/pods/",
];
/// The maximum length of such an error, in bytes.
const MAX_ERROR: usize = 4096;
/// The pause before a log is asked for again that the kubelet does not know yet.
const PAUSE: Duration = Duration::from_millis(200);
/// The number of requests for such a log.
const MAX_REQUESTS: u32 = 50;

/// The range of a log.
#[derive(Debug, Clone, Copy)]
pub(super) enum LogRange {
    All,
    /// All, and new output until the container ends.
    Follow,
    /// New output until the container ends.
    New,
    /// The last lines.
    Tail(u32),
}

impl LogRange {
    fn query(self) -> String {
        match self {
            Self::All => String::new(),
            Self::Follow => "&follow=true".into(),
            Self::New => "&follow=true&tailLines=0".into(),
            Self::Tail(lines) => format!("&tailLines={lines}"),
        }
    }
}

/// Reads the log of a container, which is empty before its start.
pub(super) async fn read(
    shared: &Shared,
    pod: &PodRef,
    request: LogsRequest,
) -> Result<OutputStream, RuntimeError> {
    let range = match (request.tail, request.follow) {
        (Some(lines), _) => LogRange::Tail(lines),
        (None, true) => LogRange::Follow,
        (None, false) => LogRange::All,
    };
    let found = shared.pod(pod).await;
    let found =
        found.map_err(|failure| failure.about_pod().error(OPERATION, &shared.client.address))?;
    match super::inspection(&found).started_at {
        Some(_) => open(shared, &found, range).await,
        None => Ok(stream::empty().boxed()),
    }
}

/// Returns all output of a container that has not started.
pub(super) fn from_start(shared: Arc<Shared>, pod: PodRef) -> OutputStream {
    stream::once(async move {
        let started = shared.wait_plain_start(&pod).await;
        let started =
            started.map_err(|failure| failure.inconclusive(OPERATION, &shared.client.address))?;
        open(&shared, &started, LogRange::Follow).await
    })
    .try_flatten()
    .boxed()
}

/// Opens the log of a container that has started.
pub(super) async fn open(
    shared: &Shared,
    pod: &Pod,
    range: LogRange,
) -> Result<OutputStream, RuntimeError> {
    let address = shared.client.address.clone();
    let path = pod.reference().path();
    let path = format!("{path}/log?container=main{}", range.query());
    let mut requests = 0;
    let text = loop {
        requests += 1;
        match shared.client.text(&path).await {
            Ok(text) => break text,
            // The kubelet reports the start before it can read the log.
            Err(failure) if is_not_ready(&failure) && requests < MAX_REQUESTS => sleep(PAUSE).await,
            Err(failure) => return Err(failure.about_pod().error(OPERATION, &address)),
        }
    };
    let mut log = KubeletLog {
        text: Box::pin(text),
        ids: ids(pod),
        held: Vec::new(),
        ended: false,
    };
    // A log that cannot be read is an answer of 200 that has only the error.
    let first = match range {
        LogRange::All | LogRange::Tail(_) => {
            let first = tokio::time::timeout(CALL_TIMEOUT, log.next()).await;
            let first = first.unwrap_or(Err(Failure::Timeout(CALL_TIMEOUT)));
            Some(first.map_err(|failure| failure.error(OPERATION, &address))?)
        }
        LogRange::Follow | LogRange::New => None,
    };
    let rest = stream::try_unfold(log, |mut log| async {
        let next = log.next().await?;
        Ok(next.map(|bytes| (bytes, log)))
    });
    let first = stream::iter(first.flatten().map(Ok));
    let chunks = first.chain(rest).map(move |bytes: Result<Bytes, Failure>| {
        let bytes = bytes.map_err(|failure| failure.inconclusive(OPERATION, &address))?;
        Ok(Chunk::new(Stream::Merged, bytes))
    });
    Ok(chunks.boxed())
}

fn is_not_ready(failure: &Failure) -> bool {
    match failure {
        Failure::Refused(status) if status.code == 400 => {
            let message = &status.message;
            message.contains("is waiting to start") || message.contains("is not available")
        }
        _ => false,
    }
}

/// Returns the UID of the pod and the id of the container, of which an error of the kubelet has one.
fn ids(pod: &Pod) -> Vec<String> {
    let main = pod.container(Container::Main);
    let id = main.and_then(|main| main.container_id.rsplit_once("//"));
    let id = id.map(|(_, id)| id.to_owned()).filter(|id| !id.is_empty());
    id.into_iter().chain([pod.metadata.uid.clone()]).collect()
}

/// A log without the kubelet's error at its end.
struct KubeletLog {
    text: Pin<Box<dyn AsyncBufRead + Send>>,
    ids: Vec<String>,
    /// Bytes that may be the beginning of an error.
    held: Vec<u8>,
    ended: bool,
}

impl KubeletLog {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while !self.ended {
            let read = self.text.fill_buf().await;
            let read = read.map_err(|error| Failure::Broken(error.to_string()))?;
            self.ended = read.is_empty();
            let mut bytes = std::mem::take(&mut self.held);
            bytes.extend_from_slice(read);
            let length = read.len();
            self.text.consume_unpin(length);
            // The output before an error was returned already.
            if self.ended && self.is_error(&bytes) {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                return Err(Failure::refused(400, text));
            }
            let error = find_error(&bytes);
            if !self.ended && bytes.len() - error <= MAX_ERROR {
                self.held = bytes.split_off(error);
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes.into()));
            }
        }
        Ok(None)
    }

    /// Returns true for an error of the kubelet about this container.
    fn is_error(&self, bytes: &[u8]) -> bool {
        let begins = ERRORS.iter().any(|start| bytes.starts_with(start));
        let mut ids = self.ids.iter();
        begins && ids.any(|id| memchr::memmem::find(bytes, id.as_bytes()).is_some())
    }
}

/// Returns where an error of the kubelet begins, or may begin, at the end of `bytes`.
fn find_error(bytes: &[u8]) -> usize {
    let line = memchr::memrchr(b'\n', bytes).map_or(0, |end| end + 1);
    let may_begin = |at: &usize| {
        let rest = &bytes[*at..];
        ERRORS.iter().any(|error| {
            let common = rest.len().min(error.len());
            rest[..common] == error[..common]
        })
    };
    (line..bytes.len()).find(may_begin).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a log that arrives in chunks of this size.
    fn read(text: &str, chunk: usize) -> (String, Option<String>) {
        let chunks = text.as_bytes().chunks(chunk);
        let chunks: Vec<_> = chunks.map(|part| Ok(part.to_vec())).collect();
        let mut log = KubeletLog {
            text: Box::pin(stream::iter(chunks).into_async_read()),
            ids: vec!["2ab7".into(), "3f1c".into()],
            held: Vec::new(),
            ended: false,
        };
        let mut output = Vec::new();
        let error = loop {
            match futures::executor::block_on(log.next()) {
                Ok(Some(bytes)) => output.extend_from_slice(&bytes),
                Ok(None) => break None,
                Err(failure) => break Some(format!("{failure:?}")),
            }
        };
        (String::from_utf8(output).unwrap(), error)
    }

    #[test]
    fn an_error_of_the_kubelet_is_no_output() {
        let errors = [
            "unable to retrieve container logs for containerd://2ab7",
            "failed to try resolving symlinks in path \"/var/log/pods/ci_x_3f1c/main/0.log\": lstat",
            "rpc error: code = Unknown desc = Error: No such container: 2ab7",
        ];
        for error in errors {
            for before in ["", "a line\n", "a line\nunable to", "rpc error: code = 1\n"] {
                for chunk in [1, 7, 1000] {
                    let (output, found) = read(&format!("{before}{error}"), chunk);
                    assert_eq!(output, before);
                    assert!(found.unwrap().contains(&error[..20]), "{error}");
                }
            }
            for text in [
                format!("{error}\n"),
                format!("{error}\nmore"),
                error[..9].into(),
            ] {
                for chunk in [1, 7, 1000] {
                    assert_eq!(read(&text, chunk), (text.clone(), None));
                }
            }
        }
        let other = "call failed: rpc error: code = Unavailable desc = refused";
        assert_eq!(read(other, 7), (other.to_owned(), None));
        let long = format!("{}{}", errors[0], "x".repeat(2 * MAX_ERROR));
        assert_eq!(read(&long, 1000), (long.clone(), None));
    }
}

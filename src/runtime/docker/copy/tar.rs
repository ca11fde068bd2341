//! Archives that the container's own `tar` packs and unpacks, in an exec.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use super::entries::Entries;
use super::location::normalized;
use super::{COPY_IN, COPY_OUT};
use crate::error::{RuntimeError, chain};
use crate::outcome::Stream;
use crate::runtime::docker::client::Client;
use crate::runtime::{Archive, ExecId, InputWriter, OutputStream, StartedExec};
use crate::spec::{ContainerId, ExecSpec};

/// The maximum size of the messages of `tar`, in bytes. The rest is cut off.
const MAX_MESSAGE_BYTES: usize = 4 << 10;
/// The time in which the exit code of a `tar` that has stopped reading arrives.
const EXIT_CODE_TIME: Duration = Duration::from_secs(2);
/// The number of bytes that show whether they are an archive.
const HEADER_BYTES: usize = 512;
/// The message of GNU tar about an archive that it has completed with exit code 1.
const FILE_CHANGED: &str = "file changed as we read it";
/// The time between two inspections of an exec whose output has ended.
const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A running `tar`.
struct Tar {
    client: Client,
    operation: &'static str,
    /// The file system that the engine does not see.
    target: String,
    exec: ExecId,
    output: OutputStream,
    /// The text on stderr so far.
    messages: Vec<u8>,
    /// The entries on stdout so far.
    entries: Entries,
}

impl Client {
    /// Packs `path`, which is on the tmpfs at `target`.
    pub(super) async fn pack(
        &self,
        container: &ContainerId,
        path: &str,
        target: &str,
    ) -> Result<Archive, RuntimeError> {
        let full = normalized(path);
        let (parent, name) = match full.rsplit_once('/') {
            // The content of the directory, as for the engine.
            _ if path.ends_with("/.") => (full.as_str(), "."),
            Some(("", name)) => ("/", name),
            Some(parts) => parts,
            None => ("/", full.as_str()),
        };
        let cmd = ["tar", "-c", "-f", "-", "-C", parent, "--", name];
        let (mut tar, _) = self.tar(COPY_OUT, container, target, cmd, false).await?;
        // An engine that cannot start `tar` writes the reason to stdout.
        let first = self.within_timeout(COPY_OUT, async {
            let mut first = BytesMut::new();
            while first.len() < HEADER_BYTES
                && let Some(bytes) = tar.next().await?
            {
                first.extend_from_slice(&bytes);
            }
            // An archive without files. The exit code has the reason.
            if first.iter().all(|&byte| byte == 0) {
                while tar.next().await?.is_some() {}
            }
            Ok::<_, RuntimeError>(first.freeze())
        });
        let first = first.await?;
        let rest = stream::try_unfold(tar, |mut tar| async {
            let next = tar.next().await?;
            Ok(next.map(|bytes| (bytes, tar)))
        });
        Ok(stream::iter([Ok(first)]).chain(rest).boxed())
    }

    /// Unpacks `archive` at `path`, which is on the tmpfs at `target`.
    pub(super) async fn unpack(
        &self,
        container: &ContainerId,
        path: &str,
        target: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        let cmd = ["tar", "-x", "-p", "-f", "-", "-C", &normalized(path)];
        let (mut tar, input) = self.tar(COPY_IN, container, target, cmd, true).await?;
        let Some(input) = input else {
            return Err(tar.failure("the engine gives it no input".to_owned()));
        };
        let unpacked = async {
            while tar.next().await?.is_some() {}
            Ok(())
        };
        // Both at once: a `tar` that writes messages waits until they are read. If the archive
        // fails, the connection is closed, which ends `tar`.
        tokio::try_join!(send(archive, input), unpacked).map(|_| ())
    }

    async fn tar<const N: usize>(
        &self,
        operation: &'static str,
        container: &ContainerId,
        target: &str,
        cmd: [&str; N],
        interactive: bool,
    ) -> Result<(Tar, Option<InputWriter>), RuntimeError> {
        let spec = ExecSpec::new(cmd)
            .env("LC_ALL", "C")
            .interactive(interactive);
        let StartedExec { id, output, input } = self.start_exec(container, &spec).await?;
        let tar = Tar {
            client: self.clone(),
            operation,
            target: target.to_owned(),
            exec: id,
            output: output.stream,
            messages: Vec::new(),
            entries: Entries::default(),
        };
        Ok((tar, input))
    }
}

/// Sends the archive. Bytes after its end need not arrive.
async fn send(mut archive: Archive, mut input: InputWriter) -> Result<(), RuntimeError> {
    while let Some(part) = archive.next().await {
        let part = part?;
        if let Err(error) = input.write_all(&part).await
            && part.iter().any(|&byte| byte != 0)
        {
            // The exit code of `tar` may have the reason.
            sleep(EXIT_CODE_TIME).await;
            return Err(RuntimeError::Broken {
                operation: COPY_IN,
                reason: chain(&error),
            });
        }
    }
    // The shutdown ends the input.
    let _ = input.shutdown().await;
    Ok(())
}

impl Tar {
    /// Returns the next bytes on stdout, or `None` after a successful end.
    async fn next(&mut self) -> Result<Option<Bytes>, RuntimeError> {
        while let Some(chunk) = self.output.next().await {
            let chunk = chunk?;
            if chunk.stream == Stream::Stdout {
                if self.operation == COPY_OUT && self.entries.push(&chunk.bytes).is_err() {
                    return Err(self.not_an_archive().await);
                }
                return Ok(Some(chunk.bytes));
            }
            let room = MAX_MESSAGE_BYTES - self.messages.len();
            let end = room.min(chunk.bytes.len());
            self.messages.extend_from_slice(&chunk.bytes[..end]);
        }
        match self.exit_code().await? {
            // The engine reads the output of an exec to its end, even if this connection is cut.
            Some(0) if self.operation == COPY_OUT && !self.entries.has_ended() => {
                Err(RuntimeError::Broken {
                    operation: COPY_OUT,
                    reason: "the archive has no end".into(),
                })
            }
            Some(1) if self.entries.has_ended() && self.only_changed_files() => Ok(None),
            Some(0) => Ok(None),
            code => Err(self.error(code)),
        }
    }

    async fn exit_code(&mut self) -> Result<Option<i64>, RuntimeError> {
        let exited = self.client.within_timeout(self.operation, async {
            loop {
                let inspection = self.client.inspect_exec(&self.exec).await?;
                if !inspection.running {
                    return Ok(inspection.code);
                }
                sleep(EXIT_POLL_INTERVAL).await;
            }
        });
        exited.await
    }

    /// Returns true if all messages are about files that changed, as logs do.
    fn only_changed_files(&self) -> bool {
        let text = String::from_utf8_lossy(&self.messages);
        !text.is_empty() && text.lines().all(|line| line.ends_with(FILE_CHANGED))
    }

    /// Creates the error for other text on stdout, after the end of the output.
    async fn not_an_archive(&mut self) -> RuntimeError {
        while self.output.next().await.is_some_and(|chunk| chunk.is_ok()) {}
        match self.exit_code().await {
            Ok(Some(0)) => self.failure("its output is no archive".to_owned()),
            Ok(code) => self.error(code),
            Err(error) => error,
        }
    }

    /// Creates the error for an exit code other than 0.
    fn error(&self, code: Option<i64>) -> RuntimeError {
        let text = String::from_utf8_lossy(&self.messages);
        let text = text.trim();
        let is_missing = ["No such file or directory", "Not a directory"]
            .iter()
            .any(|missing| text.contains(missing));
        if is_missing && code != Some(127) {
            return RuntimeError::NotFound {
                operation: self.operation,
                reason: text.to_owned(),
            };
        }
        self.failure(match code {
            Some(126 | 127) => "the container has no tar".to_owned(),
            Some(code) if text.is_empty() => format!("it exited with code {code}"),
            _ => text.to_owned(),
        })
    }

    fn failure(&self, reason: String) -> RuntimeError {
        RuntimeError::Rejected {
            operation: self.operation,
            reason: format!(
                "only the container's own tar can copy files on the file system at {}: {reason}",
                self.target
            ),
        }
    }
}

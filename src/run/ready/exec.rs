//! A command in the container that checks if a run is ready.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::{sleep, timeout};

use crate::audit::Event;
use crate::capture::{Masks, OutputMasker};
use crate::error::{Result, RuntimeError};
use crate::outcome::Stream;
use crate::run::Run;
use crate::run::ready::excerpt;
use crate::run::ready::wait::POLL_INTERVAL;
use crate::runtime::{LogFidelity, OutputStream, Runtime};
use crate::spec::{ContainerId, ExecSpec};
use crate::timestamp::Timestamp;

/// The timeout of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// The length of the output that an attempt keeps, in bytes.
const MAX_OUTPUT_BYTES: usize = 4096;
/// The time that the output may take to end after the command.
///
/// A background process of the command may keep the output open.
const LATE_OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

impl Run {
    /// Notes in the audit of the run that a command checks if the run is ready.
    pub(super) async fn note_probe(&self, spec: &ExecSpec) {
        self.wait_ownership().await;
        // Not `Action::Exec`, which promises a log.
        self.record_note(Event::Note {
            ts: Timestamp::now(),
            text: format!(
                "readiness check, without a log: {}",
                spec.command().join(" ")
            ),
            interaction: None,
        });
    }

    /// Runs the command once, and returns the reason if the run is not ready.
    pub(super) async fn probe_exec(&self, spec: &ExecSpec) -> Result<Result<(), String>> {
        let container = self.container()?;
        let runtime = &*self.context().runtime;
        let masks = self.find_masks().await?;
        let attempt = run_command(runtime, &container, spec, &masks);
        let attempt = timeout(ATTEMPT_TIMEOUT, attempt).await;
        let failure = match attempt {
            Ok(Ok((Some(0), _))) => return Ok(Ok(())),
            Ok(Ok((code, output))) => {
                let code = code.map_or("an unknown code".into(), |code| format!("code {code}"));
                let output = excerpt(&String::from_utf8_lossy(&output));
                let output = output.map(|line| format!(": {line}")).unwrap_or_default();
                format!("it exited with {code}{output}")
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it ran for more than {} s", ATTEMPT_TIMEOUT.as_secs()),
        };
        let secrets = spec.secrets().with_masks(&masks.values());
        Ok(Err(secrets.redact(&failure)))
    }
}

/// Runs a command in the container, and returns its exit code and the end of its masked output.
async fn run_command(
    runtime: &dyn Runtime,
    container: &ContainerId,
    spec: &ExecSpec,
    masks: &Masks,
) -> Result<(Option<i64>, Vec<u8>), RuntimeError> {
    let started = runtime.exec(container, spec).await?;
    let mut chunks = started.output.stream;
    let mut output = OutputEnd {
        masker: OutputMasker::new(masks, LogFidelity::Lossless),
        bytes: Vec::new(),
    };
    let mut has_ended = false;
    loop {
        if has_ended {
            sleep(POLL_INTERVAL).await;
        } else {
            let read = read_to_end(&mut chunks, &mut output);
            has_ended = timeout(POLL_INTERVAL, read).await.is_ok();
        }
        let inspection = runtime.exec_inspect(&started.id).await?;
        if !inspection.running {
            if !has_ended {
                // A busy engine delivers output after the end.
                let rest = read_to_end(&mut chunks, &mut output);
                let _ = timeout(LATE_OUTPUT_TIMEOUT, rest).await;
            }
            // Without its masks, the output must not be in an error.
            let output = match masks.is_missing() {
                true => Vec::new(),
                false => output.finish(),
            };
            return Ok((inspection.code, output));
        }
    }
}

/// The end of an output.
struct OutputEnd {
    masker: OutputMasker,
    bytes: Vec<u8>,
}

impl OutputEnd {
    fn finish(mut self) -> Vec<u8> {
        for stream in Stream::ALL {
            self.masker.finish(stream, &mut self.bytes);
        }
        self.bytes
    }
}

/// Appends output until its end, and keeps the last bytes.
async fn read_to_end(chunks: &mut OutputStream, output: &mut OutputEnd) {
    while let Some(Ok(chunk)) = chunks.next().await {
        output.masker.push(&chunk, &mut output.bytes);
        let excess = output.bytes.len().saturating_sub(MAX_OUTPUT_BYTES);
        output.bytes.drain(..excess);
    }
}

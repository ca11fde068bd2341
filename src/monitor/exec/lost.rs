//! Execs whose owner has died: their logs are sealed, and those with limits are killed.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep, timeout};

use super::{ExecOutcome, record_seal, write_seal};
use crate::audit::{Event, Gap, GapReason, Resume, ResumeCause, TruncatedTail};
use crate::capture::{Capture, Hub, Masks, Progress};
use crate::error::{Error, Result, RuntimeError, chain};
use crate::monitor::context::Context;
use crate::monitor::seal::reopen_log;
use crate::monitor::wait::Backoff;
use crate::outcome::{Ending, Evidence};
use crate::runtime::{ExecId, Runtime};
use crate::sink::{Resumed, RunLog, RunPlace};
use crate::spec::{ContainerId, RunId};

/// Longest time for which the recovery of a run tries to kill one of its execs.
const KILL_TIMEOUT: Duration = Duration::from_secs(15);

/// Time in which the engine may still start an exec for the request of a dead owner.
const START_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval at which an exec is inspected that may not have started.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The number of execs that are killed at once.
const CONCURRENT_KILLS: usize = 8;

/// The note on an exec that was killed.
const KILLED: &str = "the exec and the processes that it started were killed: its owner died, and \
                      nothing enforced its limits";

/// The operation that a runtime without `Capabilities::exec_kill` does not support.
const NO_KILL: &str = "kill an exec";

/// The log of an exec that may have to be killed before it is sealed.
pub(in crate::monitor) struct LostExec {
    number: u32,
    log: LostLog,
}

/// The log of an exec whose owner has died.
struct LostLog {
    progress: Progress,
    log: Box<dyn RunLog>,
    torn: Option<TruncatedTail>,
}

/// Seals the logs of a run's execs whose owner has died, except those that may have to be killed.
///
/// Whether these have to be killed depends on the state of the container. Their logs stay locked,
/// and are returned for [`seal_lost`].
pub(in crate::monitor) async fn take_over_lost(context: &Context, run: &RunId) -> Vec<LostExec> {
    let id = run.clone();
    let open = context
        .on_disk("list the execs of a run in", move |root| {
            Ok(root.unsealed_execs(&id))
        })
        .await;
    let mut killable = Vec::new();
    for number in open.unwrap_or_default() {
        let place = context.place(run).of_exec(number);
        match open_lost(context, &place).await {
            Ok(Some(log)) if log.progress.exec_created.is_some() => {
                killable.push(LostExec { number, log });
            }
            Ok(Some(log)) => report(run, number, seal(context, &place, log, None).await),
            Ok(None) => {}
            Err(error) => report(run, number, Err(error)),
        }
    }
    killable
}

/// Seals the logs of all execs whose owner has died, of a run that has ended.
pub(in crate::monitor) async fn seal_lost_of_ended(context: &Context, run: &RunId) {
    let execs = take_over_lost(context, run).await;
    seal_lost(context, run, execs, None).await;
}

/// Seals the logs of execs, and kills these first if their container runs.
pub(in crate::monitor) async fn seal_lost(
    context: &Context,
    run: &RunId,
    execs: Vec<LostExec>,
    running: Option<&ContainerId>,
) {
    let sealed = stream::iter(execs).for_each_concurrent(CONCURRENT_KILLS, async |exec| {
        let LostExec { number, log } = exec;
        let note = match running {
            Some(container) => kill(context, container, &log.progress).await,
            None => None,
        };
        if let Some(note) = &note {
            tracing::warn!(%run, number, "{note}");
        }
        let place = context.place(run).of_exec(number);
        report(run, number, seal(context, &place, log, note).await);
    });
    sealed.await;
}

fn report(run: &RunId, number: u32, sealed: Result<()>) {
    match sealed {
        // A live owner seals its log.
        Ok(()) | Err(Error::Owned { .. }) => {}
        Err(error) => {
            tracing::warn!(%run, number, error = %error.chain(), "cannot seal the log of an exec");
        }
    }
}

/// Opens the log of an exec. Returns `None` if it is sealed or does not exist.
async fn open_lost(context: &Context, place: &RunPlace) -> Result<Option<LostLog>> {
    let (resumed, progress) = reopen_log(context, place).await?;
    Ok(match resumed {
        Resumed::Open { log, torn } => Some(LostLog {
            progress,
            log,
            torn,
        }),
        Resumed::Sealed(_) | Resumed::Absent => None,
    })
}

/// Kills an exec that may still run, and returns a note on the result.
///
/// Returns `None` if the exec has ended.
async fn kill(context: &Context, container: &ContainerId, progress: &Progress) -> Option<String> {
    let id = ExecId::new(&*progress.exec_created.as_ref()?.id);
    let runtime = &*context.runtime;
    let killed = async {
        if !runtime.capabilities().exec_kill {
            return Err(context.unsupported(NO_KILL));
        }
        let mut backoff = Backoff::new();
        let mut attempted = false;
        loop {
            let killed = async {
                if !is_running(runtime, &id, progress.started.is_some()).await? {
                    return Ok(attempted);
                }
                attempted = true;
                runtime.exec_kill(container, &id).await.map(|()| true)
            };
            match killed.await {
                Err(error) if !error.is_definitive() => backoff.pause().await,
                killed => return killed,
            }
        }
    };
    let reason = match timeout(KILL_TIMEOUT, killed).await {
        Ok(Ok(false)) => return None,
        Ok(Ok(true)) => return Some(KILLED.into()),
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("the engine has not done so within {KILL_TIMEOUT:?}"),
    };
    Some(format!(
        "the exec continues without an owner that enforces its limits: it cannot be killed: {reason}"
    ))
}

/// Returns true if an exec runs, and false if it has ended or was never started.
async fn is_running(
    runtime: &dyn Runtime,
    id: &ExecId,
    has_started: bool,
) -> Result<bool, RuntimeError> {
    let started_by = Instant::now() + START_TIMEOUT;
    loop {
        match runtime.exec_inspect(id).await {
            Ok(inspection) if inspection.running => return Ok(true),
            // The engine may still carry out the start that the dead owner requested.
            Ok(inspection)
                if !has_started && inspection.code.is_none() && Instant::now() < started_by => {}
            Ok(_) | Err(RuntimeError::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn seal(
    context: &Context,
    place: &RunPlace,
    exec: LostLog,
    note: Option<String>,
) -> Result<()> {
    let LostLog {
        progress,
        log,
        torn,
    } = exec;
    let started = progress.started.is_some();
    let is_masked = progress
        .record
        .as_ref()
        .is_some_and(|record| record.settings.masks > 0);
    let mut capture = Capture::new(progress, Arc::new(Hub::default()), log, None);
    if is_masked {
        // No output follows.
        capture = capture.with_masks(Masks::Missing);
    }
    let mut outcome = ExecOutcome {
        ending: Ending::Lost {
            reason: "its owner died, and the connection was lost".into(),
        },
        evidence: Evidence::None,
        gaps: vec![match started {
            true => Gap::new(GapReason::NoBackstop),
            // The exec may never have started.
            false => Gap::possible(GapReason::NoBackstop),
        }],
    };
    let resume = Event::Resume(Resume::new(ResumeCause::Reopened, torn));
    let mut unwritten = vec![resume];
    unwritten.extend(note.map(Event::note));
    let seal = write_seal(&mut capture, &mut outcome, &mut unwritten).await?;
    record_seal(context, place, &seal).await;
    Ok(())
}

//! The signatures of sealed logs.
//!
//! `run.json` of a run that is to be signed has a mark from the start. The mark is removed when the
//! signatures of the run and of its execs are written, so whatever ends this process, the next
//! opening of the root finds the run.

pub(crate) mod head;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::sleep;

use crate::disk;
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::monitor::Monitor;
use crate::monitor::context::Context;
use crate::root::{NOT_SIGNED_YET, RunFile, sealed_digest};
use crate::sign::{NAMESPACE, signature_path};
use crate::sink::RunPlace;
use crate::spec::RunId;

/// The number of runs that the opening of a root signs at once.
const CONCURRENT_RETRIES: usize = 4;

/// The interval between attempts to lock a sealed run whose monitor still signs it.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// The number of attempts to lock such a run: the monitor of a hung signer takes 10 s.
const LOCK_ATTEMPTS: u32 = 150;

impl Context {
    /// Marks a run that is to be signed.
    pub(super) fn mark_to_sign(&self, file: &mut RunFile) {
        if self.sink.signing_key().is_some() {
            file.unsigned
                .get_or_insert_with(|| NOT_SIGNED_YET.to_owned());
        }
    }

    fn emit_signature(&self, place: &RunPlace, signed: &Result<String>) {
        let exec = place.exec;
        let kind = match signed {
            Ok(fingerprint) => EventKind::Signed {
                exec,
                fingerprint: fingerprint.clone(),
            },
            Err(error) => {
                let reason = error.chain();
                tracing::warn!(run = %place.run, exec, reason, "a sealed log is not signed");
                EventKind::Unsigned { exec, reason }
            }
        };
        self.event_bus.emit(&place.run, kind);
    }
}

impl Monitor {
    /// Signs the logs of a sealed run that is marked, while this monitor still owns the run.
    pub(super) async fn sign(&mut self, file: &RunFile) {
        let context = Arc::clone(&self.context);
        let Some(seal) = file.seal.as_ref().filter(|_| file.unsigned.is_some()) else {
            return;
        };
        if context.sink.signing_key().is_none() {
            return;
        }
        let signed = async {
            let mark = sign_all(&context, &self.place, &seal.sha256).await;
            let run = self.place.run.clone();
            let marked = context.on_disk("record a signature in", move |root| {
                root.mark_unsigned(&run, mark.as_deref())
            });
            warn_if_stale(&self.place.run, marked.await);
        };
        tokio::select! {
            () = signed => {}
            () = context.shutdown_grace_elapsed() => {}
        }
    }
}

/// Signs the log of a run, and the sealed logs of its execs that have no signature.
///
/// Returns the reason that one of them is not signed. Does not ask a signer again that has failed:
/// each call may take 10 s.
async fn sign_all(context: &Context, place: &RunPlace, sha256: &str) -> Option<String> {
    let signed = sign_log(context, place, Some(sha256)).await;
    context.emit_signature(place, &signed);
    let mut reason = match signed {
        Err(error @ Error::Sign(_)) => return Some(error.chain()),
        signed => signed.err().map(|error| error.chain()),
    };
    let run = place.run.clone();
    let listed = context.on_disk("list the execs of a run in", move |root| {
        let unsealed = root.unsealed_execs(&run);
        let mut digests = match root.read_run(&run)? {
            Some(file) => root.run_history(&run, file.record.created)?.execs,
            None => Default::default(),
        };
        let exec = |number: u32| {
            let is_unsealed = unsealed.contains(&number);
            (number, is_unsealed, digests.remove(&number))
        };
        let execs = root.unsigned_execs(&run).into_iter().map(exec);
        Ok(execs.collect::<Vec<_>>())
    });
    let listed = match listed.await {
        Ok(listed) => listed,
        Err(error) => return Some(reason.unwrap_or_else(|| error.chain())),
    };
    for (number, is_unsealed, sha256) in listed {
        let problem = if is_unsealed {
            // The monitor of the exec signs the log.
            NOT_SIGNED_YET.to_owned()
        } else {
            let place = place.of_exec(number);
            let signed = sign_log(context, &place, sha256.as_deref()).await;
            context.emit_signature(&place, &signed);
            match signed {
                Ok(_) => continue,
                Err(error @ Error::Sign(_)) => {
                    return Some(format!("exec {number}: {}", error.chain()));
                }
                Err(error) => error.chain(),
            }
        };
        reason.get_or_insert(format!("exec {number}: {problem}"));
    }
    reason
}

/// Signs the log of an exec that this process has sealed.
///
/// The monitor of the run removes the mark of the run, unless it has already looked at the execs.
pub(super) async fn sign_exec(context: &Context, place: &RunPlace, sha256: &str) {
    if context.sink.signing_key().is_none() {
        return;
    }
    let signed = sign_log(context, place, Some(sha256)).await;
    context.emit_signature(place, &signed);
    let number = place.exec.unwrap_or_default();
    let problem = signed.err().map(|error| error.chain());
    let problem = problem.map(|reason| format!("exec {number}: {reason}"));
    for _ in 0..LOCK_ATTEMPTS {
        let (run, problem) = (place.run.clone(), problem.clone());
        let marked = context.on_disk("record a signature in", move |root| {
            let file = root.read_run(&run)?;
            if file.is_none_or(|file| file.seal.is_none() || file.unsigned.is_none()) {
                return Ok(());
            }
            let _lock = root.lock(&run)?;
            let is_complete =
                has_signature(&root.audit(&run)) && root.unsigned_execs(&run).is_empty();
            match (problem, is_complete) {
                (None, true) => root.mark_unsigned(&run, None).map(drop),
                (Some(problem), _) => root.mark_unsigned(&run, Some(&problem)).map(drop),
                (None, false) => Ok(()),
            }
        });
        match marked.await {
            Err(Error::Owned { .. }) => sleep(LOCK_INTERVAL).await,
            marked => return warn_if_stale(&place.run, marked),
        }
    }
}

/// Signs runs of earlier processes whose signature failed, or was cut off.
pub(super) async fn sign_again(context: &Context, runs: Vec<RunId>) {
    if context.sink.signing_key().is_none() {
        return;
    }
    let signed = stream::iter(runs).for_each_concurrent(CONCURRENT_RETRIES, async |run| {
        let signed = sign_run_again(context, &run).await;
        warn_if_stale(&run, signed);
    });
    signed.await;
}

/// Signs a run that has no owner. The run is locked only while `run.json` is written, so that it
/// can be removed meanwhile.
async fn sign_run_again(context: &Context, run: &RunId) -> Result<()> {
    let id = run.clone();
    let seal = context.on_disk("read a run in", move |root| {
        {
            let _lock = root.lock(&id)?;
            root.sweep_signatures(&id);
        }
        let file = root.read_run(&id)?.filter(|file| file.unsigned.is_some());
        Ok(file.and_then(|file| file.seal))
    });
    let Some(seal) = seal.await? else {
        return Ok(());
    };
    let mark = sign_all(context, &context.place(run), &seal.sha256).await;
    let id = run.clone();
    context
        .on_disk("record a signature in", move |root| {
            let _lock = root.lock(&id)?;
            root.mark_unsigned(&id, mark.as_deref()).map(drop)
        })
        .await
}

/// Signs one log, and returns the fingerprint of the key.
///
/// A file that has changed since the seal is not signed.
async fn sign_log(context: &Context, place: &RunPlace, sha256: Option<&str>) -> Result<String> {
    let (Some(key), Some(path)) = (context.sink.signing_key(), context.sink.path(place)) else {
        return Ok(String::new());
    };
    let (file, sha256) = (path.clone(), sha256.map(str::to_owned));
    let digest = context.on_disk("sign a log in", move |_| {
        sealed_digest(&file, sha256.as_deref())
    });
    let signature = key.sign_digest(NAMESPACE, &digest.await?).await?;
    context
        .on_disk("sign a log in", move |_| {
            disk::write_atomic(&signature_path(path), signature.as_bytes())
        })
        .await?;
    Ok(key.fingerprint())
}

fn has_signature(path: &std::path::Path) -> bool {
    signature_path(path).symlink_metadata().is_ok()
}

fn warn_if_stale<T>(run: &RunId, written: Result<T>) {
    match written {
        // Another process owns the run, or has removed it.
        Ok(_) | Err(Error::Owned { .. } | Error::NoSuchRun { .. }) => {}
        Err(error) => {
            tracing::warn!(%run, error = %error.chain(), "cannot record a signature");
        }
    }
}

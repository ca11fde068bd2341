//! The signatures of sealed logs.
//!
//! `run.json` of a run that is to be signed has a mark from the start. The mark is removed when the
//! signatures of the run and of its execs are written, so whatever ends this process, the next
//! opening of the root finds the run.

pub(crate) mod head;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::sleep;

use crate::disk;
use crate::error::{Error, Result};
use crate::events::EventKind;
use crate::monitor::Monitor;
use crate::monitor::context::Context;
use crate::root::{NOT_SIGNED_YET, Root, RunFile, RunHistory, sealed_digest};
use crate::sign::{NAMESPACE, SigningKey, signature_path};
use crate::sink::RunPlace;
use crate::spec::RunId;

/// The number of runs that the opening of a root signs at once.
const CONCURRENT_RETRIES: usize = 4;

/// The reason that a log is not signed whose seal only the log itself and `run.json` show.
const NOT_IN_LEDGER: &str = "the ledger does not have the digest of its seal";

/// The interval between attempts to lock a sealed run whose monitor still signs it.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// The number of attempts to lock such a run: the monitor of a hung signer takes 10 s.
const LOCK_ATTEMPTS: u32 = 150;

impl Context {
    /// Marks a run that is to be signed.
    pub(super) fn mark_to_sign(&self, file: &mut RunFile) {
        if self.to_sign(&self.place(&file.record.run)).is_some() {
            file.unsigned
                .get_or_insert_with(|| NOT_SIGNED_YET.to_owned());
        }
    }

    /// Returns the key that signs a log, and the path of the log; `None` if it is not to be signed.
    fn to_sign(&self, place: &RunPlace) -> Option<(SigningKey, PathBuf)> {
        self.sink.signing_key().zip(self.sink.path(place))
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
        if context.to_sign(&self.place).is_none() {
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

/// Signs the log of a run with this seal, and the sealed logs of its execs that have no signature.
///
/// Returns the reason that one of them is not signed. After a failure, the signer is not called
/// again: each call may take 10 s.
async fn sign_all(context: &Context, place: &RunPlace, sha256: &str) -> Option<String> {
    let (key, _) = context.to_sign(place)?;
    let run = place.run.clone();
    let seals = context.on_disk("read the seals of a run in", move |root| {
        seals_in_ledger(root, &run)
    });
    let proven = match seals.await {
        Ok(seals) => seals.sealed,
        Err(error) => return Some(error.chain()),
    };
    // `run.json` is not evidence: whoever replaces the log can also change the digest there.
    let run_digest = proven.as_deref().filter(|proven| *proven == sha256);
    let signed = sign_proven(context, place, run_digest).await;
    let mut reason = match signed {
        Err(error @ Error::Sign(_)) => return Some(error.chain()),
        signed => signed.err().map(|error| error.chain()),
    };
    let execs = match execs_to_sign(context, place, key).await {
        Ok(execs) => execs,
        Err(error) => return Some(reason.unwrap_or_else(|| error.chain())),
    };
    for exec in execs {
        let number = exec.number;
        let problem = if exec.is_unsealed {
            // The monitor of the exec signs the log.
            NOT_SIGNED_YET.to_owned()
        } else {
            let place = place.of_exec(number);
            match sign_proven(context, &place, exec.sha256.as_deref()).await {
                Ok(()) => continue,
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

/// Returns the digests of the seals of a run and of its execs, as the ledger has them.
fn seals_in_ledger(root: &Root, run: &RunId) -> Result<RunHistory> {
    match root.read_run(run)? {
        Some(file) => root.run_history(run, file.record.created),
        None => Err(root.no_such_run(run)),
    }
}

/// An exec whose log has no signature of the key.
struct ExecToSign {
    number: u32,
    is_unsealed: bool,
    /// The digest in the ledger.
    sha256: Option<String>,
}

async fn execs_to_sign(
    context: &Context,
    place: &RunPlace,
    key: SigningKey,
) -> Result<Vec<ExecToSign>> {
    let run = place.run.clone();
    let listed = context.on_disk("list the execs of a run in", move |root| {
        let unsealed = root.unsealed_execs(&run);
        let mut digests = seals_in_ledger(root, &run)?.execs;
        let exec = |number| ExecToSign {
            number,
            is_unsealed: unsealed.contains(&number),
            sha256: digests.remove(&number),
        };
        let execs = root.execs_to_sign(&run, &key).into_iter();
        Ok(execs.map(exec).collect())
    });
    listed.await
}

/// Signs one log with this digest, which the ledger has, and emits the result.
async fn sign_proven(context: &Context, place: &RunPlace, sha256: Option<&str>) -> Result<()> {
    let signed = match (sha256, context.to_sign(place)) {
        (_, None) => return Ok(()),
        (Some(sha256), Some(target)) => sign_log(context, target, sha256).await,
        (None, Some((_, path))) => Err(Error::Damaged {
            path,
            reason: NOT_IN_LEDGER.to_owned(),
        }),
    };
    context.emit_signature(place, &signed);
    signed.map(drop)
}

/// Signs the log of an exec that this process has sealed.
///
/// The monitor of the run removes the mark of the run, unless it has already listed the execs.
pub(super) async fn sign_exec(context: &Context, place: &RunPlace, sha256: &str) {
    let Some(target) = context.to_sign(place) else {
        return;
    };
    let key = target.0.clone();
    let signed = sign_log(context, target, sha256).await;
    context.emit_signature(place, &signed);
    let number = place.exec.unwrap_or_default();
    let problem = signed.err().map(|error| error.chain());
    let problem = problem.map(|reason| format!("exec {number}: {reason}"));
    for _ in 0..LOCK_ATTEMPTS {
        let (run, problem, key) = (place.run.clone(), problem.clone(), key.clone());
        let marked = context.on_disk("record a signature in", move |root| {
            let file = root.read_run(&run)?;
            if file.is_none_or(|file| file.seal.is_none() || file.unsigned.is_none()) {
                return Ok(());
            }
            let _lock = root.lock(&run)?;
            match problem {
                None if root.is_signed_by(&run, &key) => root.mark_unsigned(&run, None).map(drop),
                None => Ok(()),
                Some(problem) => root.mark_unsigned(&run, Some(&problem)).map(drop),
            }
        });
        match marked.await {
            Err(Error::Owned { .. }) => sleep(LOCK_INTERVAL).await,
            marked => return warn_if_stale(&place.run, marked),
        }
    }
}

/// Signs runs of earlier processes whose signature failed, or was cut off.
pub(super) async fn retry_signatures(context: &Context, runs: Vec<RunId>) {
    if context.sink.signing_key().is_none() {
        return;
    }
    let signed = stream::iter(runs).for_each_concurrent(CONCURRENT_RETRIES, async |run| {
        let signed = retry_run_signature(context, &run).await;
        warn_if_stale(&run, signed);
    });
    signed.await;
}

/// Signs a run that has no owner. The run is locked only while `run.json` is written, so that it
/// can be removed meanwhile.
async fn retry_run_signature(context: &Context, run: &RunId) -> Result<()> {
    let id = run.clone();
    let seal = context.on_disk("read a run in", move |root| {
        {
            let _lock = root.lock(&id)?;
            root.sweep_signatures(&id);
        }
        let file = root.read_run(&id)?.filter(|file| file.unsigned.is_some());
        Ok(file.and_then(|file| file.seal))
    });
    let place = context.place(run);
    let Some(seal) = seal.await?.filter(|_| context.to_sign(&place).is_some()) else {
        return Ok(());
    };
    let mark = sign_all(context, &place, &seal.sha256).await;
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
/// A file that has another digest than that of its seal is not signed.
async fn sign_log(
    context: &Context,
    (key, path): (SigningKey, PathBuf),
    sha256: &str,
) -> Result<String> {
    let (file, sha256) = (path.clone(), sha256.to_owned());
    let digest = context.on_disk("sign a log in", move |_| sealed_digest(&file, &sha256));
    let signature = key.sign_digest(NAMESPACE, &digest.await?).await?;
    context
        .on_disk("sign a log in", move |_| {
            disk::write_atomic(&signature_path(path), signature.as_bytes())
        })
        .await?;
    Ok(key.fingerprint())
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

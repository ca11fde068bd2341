//! Verification of the engine and of the runtime that a run belongs to.

use crate::audit::Started;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::runtime::{EngineInfo, Runtime};
use crate::spec::{RunId, RunRecord};

/// Verifies that the engine is the one that has the container of a run.
///
/// Another engine does not find the container, although the container may be running. `recorded`
/// holds the engine ids from the files of the run. Only if every one of them differs is it another
/// engine, so one flipped bit does not orphan a run. An engine without an id is accepted.
///
/// Returns `None` without asking the engine if no id is recorded.
pub(crate) async fn verify_engine_id(
    runtime: &dyn Runtime,
    run: &RunId,
    recorded: [Option<&str>; 2],
) -> Result<Option<EngineInfo>> {
    let recorded = || recorded.into_iter().flatten();
    let Some(first) = recorded().next() else {
        return Ok(None);
    };
    let engine = match runtime.engine().await {
        Ok(engine) => engine,
        Err(error) if error.is_definitive() => return Ok(Some(EngineInfo::default())),
        // An engine that does not answer may be any engine.
        Err(error) => return Err(error.into()),
    };
    match &engine.id {
        Some(here) if recorded().all(|id| id != here) => Err(Error::OtherEngine {
            run: run.clone(),
            engine: first.to_owned(),
            here: here.clone(),
        }),
        _ => Ok(Some(engine)),
    }
}

impl Monitor {
    /// Refuses a run of another runtime, which cannot find the container of the run.
    pub(super) fn verify_runtime(&self, record: &RunRecord) -> Result<()> {
        if record.runtime == self.context.runtime.name() {
            return Ok(());
        }
        let runtime = record.runtime.clone();
        self.snapshot
            .send_modify(|snapshot| snapshot.other_runtime = Some(runtime.clone()));
        Err(Error::OtherRuntime {
            run: self.place.run.clone(),
            runtime,
        })
    }

    /// Refuses a run of another engine.
    ///
    /// Returns true if an engine id was recorded, and so verified.
    pub(super) async fn verify_engine(&mut self, recorded: [Option<&str>; 2]) -> Result<bool> {
        let verified = verify_engine_id(&*self.context.runtime, &self.place.run, recorded);
        let engine = self.calls.track("report its id", verified).await?;
        let is_verified = engine.is_some();
        self.engine = engine.or(self.engine.take());
        Ok(is_verified)
    }

    /// Refuses a run whose record and audit file both name another engine.
    pub(super) async fn verify_run_engine(
        &mut self,
        record: &RunRecord,
        started: Option<&Started>,
    ) -> Result<bool> {
        let started = started.and_then(|started| started.engine_id.as_deref());
        self.verify_engine([started, record.engine_id.as_deref()])
            .await
    }
}

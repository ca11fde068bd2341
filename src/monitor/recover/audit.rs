//! The audit file of a run whose owner has died: verification, and resumption.

use std::sync::Arc;

use crate::audit::{Action, Event, Interaction, Resume, ResumeCause};
use crate::capture::{Capture, Masks, Progress};
use crate::disk;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::monitor::entry::{PipeState, lock};
use crate::monitor::exec::{self, LostExec};
use crate::monitor::seal::reopen_log;
use crate::outcome::Seal;
use crate::root::RunFile;
use crate::sink::Resumed;
use crate::spec::{RunRecord, Settings, Stdin};
use crate::state::Transition;
use crate::timestamp::Timestamp;

/// The audit of a run that is being recovered.
pub(super) enum Audit {
    Sealed(Box<RunFile>),
    Open(Box<OpenAudit>),
}

/// An audit that this task appends to.
pub(super) struct OpenAudit {
    pub(super) file: RunFile,
    /// True if the owner cannot have asked the engine to start the container.
    ///
    /// The container id is on disk before that request. So an intact `run.json` without an id
    /// proves it, also after recovery has found a container by its label.
    pub(super) start_ruled_out: bool,
    pub(super) capture: Capture,
    /// The execs whose logs are sealed once the state of the container is known.
    pub(super) lost_execs: Vec<LostExec>,
}

/// The properties of a run that its `run.json` proves.
#[derive(Default)]
struct Verified {
    runtime: bool,
    engine: bool,
}

impl Monitor {
    /// Reads `run.json`, verifies it against the audit file, and opens the audit file.
    pub(super) async fn open_audit(&mut self) -> Result<Audit> {
        let context = Arc::clone(&self.context);
        let run = self.place.run.clone();
        let file = context
            .on_disk("read a run in", move |root| root.read_run(&run))
            .await;
        let is_recorded = matches!(file, Ok(Some(_)));
        let verified = match &file {
            Ok(Some(file)) => self.verify_run_file(file).await?,
            _ => Verified::default(),
        };
        let (resumed, progress) = reopen_log(&context, &self.place).await?;
        if let Some(record) = &progress.record {
            let is_sealed = matches!(resumed, Resumed::Sealed(_));
            self.check_place(record)?;
            if !is_sealed && !verified.runtime {
                self.verify_runtime(record)?;
            }
            if !is_sealed && !verified.engine {
                self.verify_run_engine(record, progress.started.as_ref())
                    .await?;
            }
        }
        let recorded = file.as_ref().ok().and_then(Option::as_ref);
        let recorded_masks = recorded.map_or(0, |file| file.record.settings.masks);
        let (mut file, note) = self.reconcile_files(file, progress.record.as_ref()).await?;
        #[cfg(feature = "sign")]
        if !is_recorded {
            self.context.mark_to_sign(&mut file);
        }
        if let Some(started) = &progress.started {
            file.record.container = Some(started.container.clone());
            if started.engine_id.is_some() {
                file.record.engine_id = started.engine_id.clone();
            }
        }
        self.publish_stop_grace(&file.record);
        self.find_masks(&file.record, recorded_masks);
        let is_intact = is_recorded && note.is_none();
        let start_ruled_out = is_intact && file.record.container.is_none();
        let capture = match resumed {
            Resumed::Sealed(seal) => return Ok(self.close_sealed(file, seal, &progress).await),
            Resumed::Open { log, torn } => {
                let mut capture = self.capture(&file, progress, log);
                let resume = Resume::new(ResumeCause::Reopened, torn);
                let mut records = vec![Event::Resume(resume)];
                records.extend(note);
                records.extend(self.lost_input(&file, capture.progress.input));
                capture.write(records).await?;
                capture
            }
            Resumed::Absent => {
                let (progress, log) = self.open_log(&file.record).await?;
                self.capture(&file, progress, log)
            }
        };
        Ok(Audit::Open(Box::new(OpenAudit {
            file,
            start_ruled_out,
            capture,
            lost_execs: Vec::new(),
        })))
    }

    /// Finds the masks of the run. `recorded` is their number in `run.json`.
    ///
    /// If one of the two files has fewer masks, it is damaged: no output may be unmasked for that.
    fn find_masks(&mut self, record: &RunRecord, recorded: u32) {
        let count = record.settings.masks.max(recorded);
        let masks = Masks::of_run(&self.context.masks, record, count);
        self.secrets = std::mem::take(&mut self.secrets).with_masks(&masks.values());
        let _ = self.masks.set(masks);
    }

    /// Verifies that the run belongs to this runtime and engine.
    ///
    /// Both files of the run must name another runtime before the run is refused, so one flipped
    /// bit does not orphan it.
    async fn verify_run_file(&mut self, file: &RunFile) -> Result<Verified> {
        let RunFile { record, seal, .. } = file;
        let run = self.place.run.clone();
        let summary = self
            .context
            .on_disk("read a run in", move |root| Ok(root.audit_summary(&run)))
            .await?;
        let is_ours = |record: &RunRecord| record.runtime == self.context.runtime.name();
        let runtime =
            seal.is_some() || is_ours(record) || summary.record.as_ref().is_some_and(is_ours);
        if !runtime {
            self.verify_runtime(record)?;
        }
        // A sealed run needs no engine.
        let mut engine = false;
        if seal.is_none() && summary.seal.is_none() {
            let ids = [summary.engine_id.as_deref(), record.engine_id.as_deref()];
            engine = self.verify_engine(ids).await?;
        }
        Ok(Verified { runtime, engine })
    }

    /// Completes a run whose owner died between the seal and its copy in `run.json`.
    async fn close_sealed(&mut self, mut file: RunFile, seal: Seal, progress: &Progress) -> Audit {
        if file.record.container.is_none() {
            file.record.container = seal.container.clone();
        }
        exec::seal_lost_of_ended(&self.context, &self.place.run).await;
        self.publish(Transition::Ended(seal.exit.clone()));
        file.seal = Some(seal);
        self.persist_seal(&file).await;
        // This comes last. A waiter may close the manager once it sees the seal, and that must not
        // cut off the removal of the container, which follows.
        self.publish_seal(&file, progress.last_lines());
        Audit::Sealed(Box::new(file))
    }

    /// Describes the loss of a pipe's input whose writer was in the dead process.
    fn lost_input(&self, file: &RunFile, input: Option<(Action, u32)>) -> Option<Event> {
        if file.record.settings.stdin != Stdin::Pipe {
            return None;
        }
        let (action, pid) = input?;
        *lock(&self.pipe) = PipeState::Ended;
        (action == Action::AttachInput).then(|| Event::Note {
            ts: Timestamp::now(),
            text: format!(
                "process {pid} died before it closed the input; the container saw the end of the \
                 input"
            ),
            interaction: Some(Interaction::new(Action::InputLost, 0)),
        })
    }

    /// Reconciles `run.json` with the audit file.
    ///
    /// A `run.json` that contradicts the audit file is quarantined, and the returned note records
    /// that.
    async fn reconcile_files(
        &mut self,
        file: Result<Option<RunFile>>,
        audited: Option<&RunRecord>,
    ) -> Result<(RunFile, Option<Event>)> {
        let Some(audited) = audited else {
            let file = file?.unwrap_or_else(|| self.unrecorded_run());
            return Ok((file, None));
        };
        let (file, damage) = reconcile(file, audited)?;
        let Some(damage) = damage else {
            return Ok((file, None));
        };
        let run = self.place.run.clone();
        let name = self
            .context
            .on_disk("quarantine a record in", move |root| root.quarantine(&run))
            .await?;
        tracing::warn!(run = %self.place.run, damage, "run.json is damaged; it was renamed to {name}");
        let text = format!("run.json was damaged, and was renamed to {name}: {damage}");
        Ok((file, Some(Event::note(text))))
    }

    /// Updates `run.json` if this task knows more than the file.
    pub(super) async fn update_run_file(
        &mut self,
        file: &mut RunFile,
        capture: &mut Capture,
    ) -> Result<()> {
        let started = capture.progress.started.as_ref();
        if let (None, Some(limit)) = (file.record.deadline, file.record.settings.time_limit) {
            let from = started.and_then(|started| started.started_at);
            let from = from.unwrap_or(file.record.created);
            file.record.deadline = Some(from.saturating_add(limit));
        }
        let known = file.clone();
        self.context
            .on_disk("update a run in", move |root| {
                let run = &known.record.run;
                match root.read_run(run) {
                    Ok(Some(file)) if file == known => Ok(()),
                    _ => root.write_run(&known),
                }
            })
            .await
    }

    /// The record of a run whose owner died before it wrote one.
    fn unrecorded_run(&self) -> RunFile {
        RunFile::new(RunRecord {
            run: self.place.run.clone(),
            root: self.context.root.id().clone(),
            created: Timestamp::now(),
            runtime: self.context.runtime.name().to_owned(),
            engine_id: None,
            settings: Settings::default(),
            env: Vec::new(),
            secret_files: Vec::new(),
            patched: false,
            membership: None,
            container: None,
            deadline: None,
        })
    }
}

/// Combines `run.json` with the start record of the audit file, which wins.
///
/// Only `run.json` has the container, the deadline and the engine id, so these are kept. Returns
/// the damage of `run.json` if there is any.
fn reconcile(
    file: Result<Option<RunFile>>,
    audited: &RunRecord,
) -> Result<(RunFile, Option<String>)> {
    match file {
        Ok(None) => Ok((RunFile::new(audited.clone()), None)),
        Ok(Some(mut file)) => {
            let differs = !file.has_record(audited);
            let (container, deadline, engine_id) = (
                file.record.container.take(),
                file.record.deadline.take(),
                file.record.engine_id.take(),
            );
            file.record = RunRecord {
                container,
                deadline,
                engine_id,
                ..audited.clone()
            };
            let damage = "it differs from the start record of the audit file";
            Ok((file, differs.then(|| damage.to_owned())))
        }
        Err(Error::Damaged { reason, .. }) => Ok((RunFile::new(audited.clone()), Some(reason))),
        Err(Error::Storage { source, .. }) if disk::is_irregular(&source) => {
            Ok((RunFile::new(audited.clone()), Some(source.to_string())))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error as IoError, ErrorKind};

    use super::*;
    use crate::spec::{ContainerId, RootId, RunId, RunSpec};

    #[test]
    fn the_audit_file_wins_over_run_json() {
        let spec = RunSpec::new("image");
        let (run, root) = (RunId::generate(), RootId::generate());
        let audited = RunRecord::new(run, root, "scripted", &spec);
        let mut known = RunFile::new(audited.clone());
        known.record.container = Some(ContainerId::new("4f66ad9a0b2e"));
        known.record.deadline = Some(audited.created);
        known.record.engine_id = Some("A".into());
        let mut changed = known.clone();
        changed.record.patched = true;

        let absent = reconcile(Ok(None), &audited).unwrap();
        assert_eq!(absent, (RunFile::new(audited.clone()), None));
        let same = reconcile(Ok(Some(known.clone())), &audited).unwrap();
        assert_eq!(same, (known.clone(), None));
        let (file, damage) = reconcile(Ok(Some(changed)), &audited).unwrap();
        assert_eq!(file, known);
        assert!(damage.unwrap().contains("differs"));

        let damaged = Error::Damaged {
            path: "run.json".into(),
            reason: "not JSON".into(),
        };
        let damaged = reconcile(Err(damaged), &audited).unwrap();
        let expected = RunFile::new(audited.clone());
        assert_eq!(damaged, (expected, Some("not JSON".to_owned())));
        let unreadable = IoError::from(ErrorKind::PermissionDenied);
        let unreadable = Error::storage("read", "run.json", unreadable);
        assert!(reconcile(Err(unreadable), &audited).is_err());
    }
}

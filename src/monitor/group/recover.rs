//! The recovery of groups whose owner has died.

use std::sync::Arc;

use futures::future::join_all;

use super::OwnedGroup;
use super::members::is_user;
use crate::monitor::context::Context;
use crate::monitor::wait::Backoff;
use crate::root::GroupRecord;
use crate::spec::{GroupId, RunRecord};

/// Ends the groups of the root that have no live owner.
///
/// A group without members is not ended while a run uses it. Then a task waits for that run. A task
/// also looks for the resources that the engine may create late.
pub(crate) async fn recover(context: &Arc<Context>) {
    let groups = take_over_all(context, Patience::UntilAnswered).await;
    let ends = groups.into_iter().map(|group| async move {
        let waits = !group.record.has_members && group.is_used(context).await;
        if !waits && end(context, &group).await {
            return;
        }
        let task = Arc::clone(context);
        context.tasks.spawn(async move {
            let closing = task.closing.clone();
            let ended = closing.run_until_cancelled(group.end_patiently(&task));
            if let Some(Err(error)) = ended.await {
                let id = &group.record.group;
                tracing::warn!(group = %id, error = %error.chain(), "cannot end a group");
            }
        });
    });
    join_all(ends).await;
}

/// Ends the groups that have no live owner, and those whose end has failed, unless one of the
/// unsealed runs uses them.
///
/// Returns the groups that have ended, or in a dry run the groups that would be ended.
pub(crate) async fn end_unused(
    context: &Context,
    unsealed: &[RunRecord],
    dry_run: bool,
) -> Vec<GroupId> {
    let taken_over = take_over_all(context, Patience::OneAttempt).await;
    let groups: Vec<_> = context.groups().values().cloned().collect();
    let mut ended = Vec::new();
    for group in groups {
        let is_used = unsealed.iter().any(|run| is_user(&group.record, run));
        if group.has_owner() || is_used {
            continue;
        }
        if dry_run || end(context, &group).await {
            ended.push(group.record.group.clone());
        }
    }
    // The next opening tries again.
    for group in taken_over {
        context.groups().remove(&group.record.group);
        group.release();
    }
    ended.sort();
    ended
}

/// Takes over the groups of the root that have no live owner.
async fn take_over_all(context: &Context, patience: Patience) -> Vec<Arc<OwnedGroup>> {
    let found = context.on_disk("list the groups in", |root| {
        let mut found = Vec::new();
        for group in root.groups()? {
            match root.take_over_group(&group) {
                Ok(taken) => found.extend(taken),
                Err(error) => {
                    tracing::warn!(%group, error = %error.chain(), "cannot recover a group");
                }
            }
        }
        Ok(found)
    });
    let found = found.await.unwrap_or_else(|error| {
        tracing::error!(error = %error.chain(), "cannot list the groups to recover");
        Vec::new()
    });
    let mut groups = Vec::new();
    for (record, lock) in found {
        if is_here(context, &record, patience).await {
            let group = Arc::new(OwnedGroup::recovered(record, lock));
            context
                .groups()
                .insert(group.record.group.clone(), Arc::clone(&group));
            groups.push(group);
        }
    }
    groups
}

/// Ends a group. Returns false if that fails.
async fn end(context: &Context, group: &OwnedGroup) -> bool {
    let id = &group.record.group;
    let ended = group.end(context).await;
    match &ended {
        Ok(()) => tracing::info!(group = %id, "ended a group without an owner"),
        Err(error) => tracing::warn!(group = %id, error = %error.chain(), "cannot end a group"),
    }
    ended.is_ok()
}

/// The reaction to an engine that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    UntilAnswered,
    OneAttempt,
}

/// Returns true if the engine of this manager has the resources of the group.
async fn is_here(context: &Context, record: &GroupRecord, patience: Patience) -> bool {
    if record.runtime != context.runtime.name() {
        return false;
    }
    let Some(recorded) = &record.engine_id else {
        return true;
    };
    let mut backoff = Backoff::new();
    loop {
        match context.ask_engine().await {
            Ok(engine) => return engine.id.is_none_or(|id| id == *recorded),
            Err(error) if error.is_definitive() || patience == Patience::OneAttempt => {
                tracing::warn!(%error, "cannot recover a group");
                return false;
            }
            Err(error) => tracing::warn!(%error, "cannot recover a group; retrying"),
        }
        backoff.pause().await;
    }
}

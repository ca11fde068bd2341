//! The runs of a group, and the runs that use its network or its volume.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::sleep;

use crate::error::{Error, Result};
use crate::monitor::context::Context;
use crate::monitor::entry::{Entry, StopRequest};
use crate::outcome::StopCause;
use crate::root::GroupRecord;
use crate::spec::RunRecord;

/// The interval at which a run without a record is looked up again.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A run that has a monitor, and its record.
struct Active {
    entry: Arc<Entry>,
    record: RunRecord,
}

/// The runs of a manager that have a monitor.
struct ActiveRuns {
    runs: Vec<Active>,
    /// True if the record of another run is not written yet.
    is_incomplete: bool,
}

impl ActiveRuns {
    /// Reads the records of all runs that have a monitor.
    async fn read(context: &Context) -> Self {
        let entries: Vec<_> = context.entries().values().cloned().collect();
        let read = context.on_disk("read the runs in", move |root| {
            let mut active = Self {
                runs: Vec::new(),
                is_incomplete: false,
            };
            for entry in entries.into_iter().filter(|entry| !entry.stops.is_closed()) {
                match root.read_run(&entry.place.run) {
                    Ok(Some(file)) => active.runs.push(Active {
                        entry,
                        record: file.record,
                    }),
                    Ok(None) => active.is_incomplete = true,
                    // A damaged run is not removed, and keeps what its container uses.
                    Err(_) => {}
                }
            }
            Ok(active)
        });
        // Fails only if the disk threads have ended, with the manager.
        read.await.unwrap_or(Self {
            runs: Vec::new(),
            is_incomplete: false,
        })
    }

    fn filter(mut self, is_selected: impl Fn(&RunRecord) -> bool) -> Self {
        self.runs.retain(|run| is_selected(&run.record));
        self
    }
}

fn is_member(group: &GroupRecord, run: &RunRecord) -> bool {
    let membership = run.membership.as_ref();
    membership.is_some_and(|membership| membership.group == group.group)
}

/// Returns true if the run is a member of the group, or uses its resources.
pub(super) fn is_user(group: &GroupRecord, run: &RunRecord) -> bool {
    let name = group.resource_name();
    let is_owned = |(kind, used)| group.resources.contains(&kind) && used == name;
    is_member(group, run) || run.settings.resources().any(is_owned)
}

/// Returns true if a run of this manager is a member of the group, or uses its resources.
pub(super) async fn is_used(context: &Context, group: &GroupRecord) -> bool {
    let active = ActiveRuns::read(context).await;
    let users = active.filter(|run| is_user(group, run));
    // A run whose record is not written yet may use it.
    users.is_incomplete || !users.runs.is_empty()
}

/// Stops the members, each with the grace period of its spec: first the runs that are not services,
/// at once, and then the services, one by one, the last one first.
///
/// A member about which the engine does not answer does not prevent the others. It is the error.
pub(super) async fn stop_all(context: &Context, group: &GroupRecord) -> Result<()> {
    let mut result = Ok(());
    let mut stuck = Vec::new();
    loop {
        let active = ActiveRuns::read(context).await;
        let members = active.filter(|run| is_member(group, run) && !stuck.contains(&run.run));
        let is_service = |run: &Active| run.record.membership.as_ref().is_some_and(|m| m.service);
        let (mut services, mut next): (Vec<_>, Vec<_>) =
            members.runs.into_iter().partition(is_service);
        services.sort_by_key(|service| service.record.created);
        if next.is_empty() && !members.is_incomplete {
            next.extend(services.pop());
        }
        if next.is_empty() && !members.is_incomplete {
            return result;
        }
        if next.is_empty() {
            sleep(POLL_INTERVAL).await;
        }
        let stops = join_all(next.iter().map(|run| stop(&run.entry))).await;
        for (run, stopped) in next.iter().zip(stops) {
            if stopped.is_err() {
                stuck.push(run.record.run.clone());
            }
            result = result.and(stopped);
        }
    }
}

/// Stops a run, and waits until its policy has been applied to its container.
///
/// Fails as [`Run::stop`](crate::run::Run::stop) does if the engine does not answer about the run.
async fn stop(entry: &Entry) -> Result<()> {
    // A run that has ended takes no stop.
    let _ = entry.stops.send(StopRequest {
        cause: StopCause::Requested,
        grace: None,
    });
    tokio::select! {
        biased;
        () = entry.stops.closed() => Ok(()),
        problem = entry.unanswered_after(None) => Err(Error::Unanswered {
            run: entry.place.run.clone(),
            problem,
        }),
    }
}

/// Waits until no run of this manager uses the resources.
pub(super) async fn wait_for_users(context: &Context, group: &GroupRecord) {
    loop {
        let active = ActiveRuns::read(context).await;
        let users = active.filter(|run| is_user(group, run));
        match users.runs.first() {
            Some(user) => user.entry.stops.closed().await,
            None if users.is_incomplete => sleep(POLL_INTERVAL).await,
            None => return,
        }
    }
}

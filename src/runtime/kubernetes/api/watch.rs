//! The shared watch of a root's pods.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::core::WatchEvent;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::client::{Client, Failure, encode};
use super::pod::{Pod, PodList, PodRef, ROOT_LABEL};
use crate::spec::RootId;

/// The time after which the server ends a watch, in seconds.
const WATCH_SECONDS: u32 = 290;
/// The maximum duration of a watch. Covers a connection that breaks without an end.
const WATCH_LIMIT: Duration = Duration::from_secs(320);
/// The pause after the end of a watch or a failure. After a failure, it is doubled up to the
/// maximum.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// The watches of a client: one for each root and namespace, shared by all of its pods.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    roots: Mutex<HashMap<(RootId, String), Arc<RootWatch>>>,
}

/// The pods of a root in a namespace, kept up to date by one watch.
#[derive(Debug, Default)]
pub(crate) struct RootWatch {
    pods: Mutex<HashMap<String, Reports>>,
    task: Mutex<Option<AbortHandle>>,
}

/// The reports about a pod.
#[derive(Debug, Default)]
struct Reports {
    sender: watch::Sender<Seen>,
    /// This process uses the pod. The report of its end is kept until it is forgotten.
    subscribed: bool,
}

impl Reports {
    fn is_gone(&self) -> bool {
        matches!(*self.sender.borrow(), Seen::Gone)
    }
}

/// The last report about a pod.
#[derive(Debug, Clone, Default)]
pub(crate) enum Seen {
    /// No report has arrived yet.
    #[default]
    Unknown,
    /// The pod as last reported.
    Pod(Arc<Pod>),
    /// The pod does not exist any more.
    Gone,
}

impl Drop for RootWatch {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

impl Watches {
    /// Subscribes to the reports about a pod. Starts the watch of its root if there is none.
    pub(crate) fn subscribe(
        &self,
        client: &Client,
        root: &RootId,
        pod: &PodRef,
    ) -> watch::Receiver<Seen> {
        let mut roots = lock(&self.roots);
        let key = (root.clone(), pod.namespace.clone());
        let watch = roots.entry(key).or_default();
        let reports = {
            let mut pods = lock(&watch.pods);
            let reports = pods.entry(pod.uid.clone()).or_default();
            reports.subscribed = true;
            reports.sender.subscribe()
        };
        // The entry must exist before the first list, which shows if the pod is gone already.
        watch.start(client, root, &pod.namespace);
        reports
    }

    /// Returns true if a pod with a subscription does not exist any more.
    ///
    /// The answer needs no rights: they may end before the pod, together with its namespace.
    pub(crate) fn is_gone(&self, root: &RootId, pod: &PodRef) -> bool {
        let Some(watch) = self.of(root, pod) else {
            return false;
        };
        let pods = lock(&watch.pods);
        pods.get(&pod.uid).is_some_and(Reports::is_gone)
    }

    /// Subscribes to a pod that was just created, and reports it unless the watch knows more.
    pub(crate) fn created(&self, client: &Client, root: &RootId, pod: Pod) {
        let reference = pod.reference();
        drop(self.subscribe(client, root, &reference));
        let Some(watch) = self.of(root, &reference) else {
            return;
        };
        let pods = lock(&watch.pods);
        if let Some(reports) = pods.get(&reference.uid) {
            reports.sender.send_if_modified(|seen| {
                let is_first = matches!(seen, Seen::Unknown);
                if is_first {
                    *seen = Seen::Pod(Arc::new(pod));
                }
                is_first
            });
        }
    }

    /// Reports that a pod does not exist any more.
    pub(crate) fn remove(&self, root: &RootId, pod: &PodRef) {
        if let Some(watch) = self.of(root, pod) {
            watch.remove(&pod.uid);
        }
    }

    /// Forgets a pod.
    pub(crate) fn forget(&self, root: &RootId, pod: &PodRef) {
        if let Some(watch) = self.of(root, pod) {
            lock(&watch.pods).remove(&pod.uid);
        }
    }

    fn of(&self, root: &RootId, pod: &PodRef) -> Option<Arc<RootWatch>> {
        let key = (root.clone(), pod.namespace.clone());
        lock(&self.roots).get(&key).map(Arc::clone)
    }
}

impl RootWatch {
    #[expect(
        clippy::disallowed_methods,
        reason = "the watch ends with the runtime, and has no output"
    )]
    fn start(self: &Arc<Self>, client: &Client, root: &RootId, namespace: &str) {
        let watch = Arc::downgrade(self);
        let mut task = lock(&self.task);
        // A task ends with the async runtime of its manager.
        if task.as_ref().is_none_or(AbortHandle::is_finished) {
            let client = client.in_namespace(namespace);
            let following = tokio::spawn(follow(watch, client, root.clone()));
            *task = Some(following.abort_handle());
        }
    }

    fn publish(&self, pod: Pod) {
        let mut pods = lock(&self.pods);
        let uid = pod.metadata.uid.clone();
        let reports = pods.entry(uid).or_default();
        reports.sender.send_replace(Seen::Pod(Arc::new(pod)));
    }

    fn remove(&self, uid: &str) {
        let mut pods = lock(&self.pods);
        if let Some(reports) = pods.get(uid) {
            reports.sender.send_replace(Seen::Gone);
            if !reports.subscribed {
                pods.remove(uid);
            }
        }
    }

    /// Replaces all reports by those of a list.
    ///
    /// `known` has the pods that were known before the list was requested: only they are gone if
    /// the list does not have them.
    fn replace(&self, items: Vec<Pod>, known: Vec<String>) {
        let listed: HashSet<_> = items.iter().map(|pod| &pod.metadata.uid).collect();
        for uid in known {
            if !listed.contains(&uid) {
                self.remove(&uid);
            }
        }
        for pod in items {
            self.publish(pod);
        }
    }

    /// Returns the pods that exist, as far as is known.
    fn known(&self) -> Vec<String> {
        let pods = lock(&self.pods);
        let known = pods.iter().filter(|(_, reports)| !reports.is_gone());
        known.map(|(uid, _)| uid.clone()).collect()
    }
}

/// Keeps the reports up to date until the watch is dropped.
async fn follow(watch: Weak<RootWatch>, client: Client, root: RootId) {
    let selector = encode(&format!("{ROOT_LABEL}={root}"));
    let mut pause = MIN_PAUSE;
    let mut version: Option<String> = None;
    loop {
        let outcome = match &version {
            None => list(&watch, &client, &selector).await,
            Some(from) => events(&watch, &client, &selector, from).await,
        };
        match outcome {
            Ok(Some(next)) => {
                // A server or a proxy may end each watch at once.
                if version.replace(next).is_some() {
                    sleep(MIN_PAUSE).await;
                    pause = MIN_PAUSE;
                }
            }
            Ok(None) => return,
            Err(failure) => {
                tracing::debug!(%root, ?failure, "the watch of the pods broke");
                // A new list shows what the watch has missed.
                version = None;
                sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

/// Lists the pods, and returns the version to watch from; none once the watch was dropped.
async fn list(
    watch: &Weak<RootWatch>,
    client: &Client,
    selector: &str,
) -> Result<Option<String>, Failure> {
    let Some(known) = watch.upgrade().map(|watch| watch.known()) else {
        return Ok(None);
    };
    let path = client.path(&format!("pods?labelSelector={selector}"));
    let list: PodList = client.get(&path).await?;
    let Some(watch) = watch.upgrade() else {
        return Ok(None);
    };
    watch.replace(list.items, known);
    Ok(Some(list.metadata.resource_version))
}

/// Opens a watch, and reads it to its end.
async fn events(
    watch: &Weak<RootWatch>,
    client: &Client,
    selector: &str,
    from: &str,
) -> Result<Option<String>, Failure> {
    let path = client.path(&format!(
        "pods?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}\
         &labelSelector={selector}&resourceVersion={}",
        encode(from)
    ));
    read(watch, client.events::<Pod>(&path).await?, from).await
}

/// Reads one watch to its end, and returns the version to continue from.
async fn read(
    watch: &Weak<RootWatch>,
    events: impl Stream<Item = Result<WatchEvent<Pod>, Failure>>,
    from: &str,
) -> Result<Option<String>, Failure> {
    let mut events = std::pin::pin!(events);
    let mut version = from.to_owned();
    let limit = Instant::now() + WATCH_LIMIT;
    while let Ok(Some(event)) = timeout_at(limit, events.next()).await {
        let Some(watch) = watch.upgrade() else {
            return Ok(None);
        };
        match event? {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                version.clone_from(&pod.metadata.resource_version);
                watch.publish(pod);
            }
            WatchEvent::Deleted(pod) => {
                version.clone_from(&pod.metadata.resource_version);
                watch.remove(&pod.metadata.uid);
            }
            WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
            WatchEvent::Error(status) => return Err(Failure::Refused(status)),
        }
    }
    Ok(Some(version))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_is_opened_again() {
        let watch = Arc::new(RootWatch::default());
        let bookmark = r#"{"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1",
            "metadata": {"resourceVersion": "12"}}}"#;
        let first = Ok(serde_json::from_str(bookmark).unwrap());
        let events = stream::iter([first]).chain(stream::pending());
        let start = Instant::now();
        let version = read(&Arc::downgrade(&watch), events, "10").await.unwrap();
        assert_eq!(version.as_deref(), Some("12"));
        assert_eq!(start.elapsed(), WATCH_LIMIT);
    }
}

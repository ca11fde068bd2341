//! The task tracker of a manager, and the Tokio runtime that its tasks run on.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of a manager.
///
/// Every task is spawned here, so that a shutdown can wait for all of them.
#[derive(Debug)]
pub(crate) struct Tasks {
    handle: Handle,
    tracker: TaskTracker,
    /// True if only this manager uses the runtime of `handle`.
    dedicated: bool,
}

impl Tasks {
    /// Runs tasks on the caller's runtime.
    pub(crate) fn on(handle: Handle) -> Self {
        Self {
            handle,
            tracker: TaskTracker::new(),
            dedicated: false,
        }
    }

    /// Runs tasks on a dedicated thread, until `closing` is cancelled and all tasks have ended.
    ///
    /// A tap that is not read in time costs output: the engine drops what it could not deliver
    /// some time after the exit. On a dedicated thread, the caller's tasks cannot delay the reads.
    pub(crate) fn on_dedicated_thread(closing: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("moat")
            .enable_all()
            .build()?;
        let tasks = Self {
            dedicated: true,
            ..Self::on(runtime.handle().clone())
        };
        let tracker = tasks.tracker.clone();
        std::thread::Builder::new()
            .name("moat-keeper".into())
            .spawn(move || {
                runtime.block_on(async {
                    closing.cancelled().await;
                    tracker.close();
                    tracker.wait().await;
                });
                runtime.shutdown_background();
            })?;
        Ok(tasks)
    }

    /// Returns true if tasks make progress while the caller's runtime is blocked.
    pub(crate) fn is_dedicated(&self) -> bool {
        self.dedicated
    }

    /// Spawns a task that a shutdown waits for.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.handle);
    }

    /// Waits until all tasks have ended.
    pub(crate) async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

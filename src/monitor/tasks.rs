//! Where the tasks of a manager run.

use std::io;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of a manager, and the runtime that they run on.
#[derive(Debug)]
pub(crate) struct Tasks {
    handle: Handle,
    tracker: TaskTracker,
    own: bool,
}

impl Tasks {
    /// On a runtime of somebody else's.
    pub(crate) fn on(handle: Handle) -> Self {
        Self {
            handle,
            tracker: TaskTracker::new(),
            own: false,
        }
    }

    /// On threads of their own, which leave when `closing` is cancelled and all tasks have ended.
    ///
    /// A tap that is not read in time costs output: the engine gives up on what it could not hand
    /// on some time after the exit. So what else the process does, on its runtime, is kept away.
    pub(crate) fn on_own_threads(closing: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("moat")
            .enable_all()
            .build()?;
        let tasks = Self {
            own: true,
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

    /// Whether they go on while the caller's thread is blocked.
    pub(crate) fn are_on_own_threads(&self) -> bool {
        self.own
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.handle);
    }

    /// Waits until all tasks have ended.
    pub(crate) async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

//! The sizes of terminals.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::error::RuntimeError;
use crate::runtime::docker::client::Client;
use crate::runtime::docker::connection::Call;
use crate::runtime::docker::errors::Failure;
use crate::spec::WindowSize;

/// The pauses before Podman is asked again for the last size of a terminal.
///
/// conmon before 2.2, which holds the terminal for Podman, sets the first of two sizes twice if it
/// reads both at once. A size that is set already has no effect.
const REPEATS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// The tasks that ask Podman again, by the path of the terminal.
type Tasks = HashMap<String, AbortOnDropHandle<()>>;

#[derive(Clone, Default)]
pub(in crate::runtime::docker) struct RepeatedSizes(Arc<Mutex<Tasks>>);

impl RepeatedSizes {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Resizes the terminal of the container or exec at `path`.
    pub(in crate::runtime::docker) async fn resize_terminal(
        &self,
        path: Result<String, Failure>,
        size: WindowSize,
    ) -> Result<(), RuntimeError> {
        let resized = async {
            let path = path?;
            // A repeated size must not follow this one.
            self.repeated_sizes.tasks().remove(&path);
            self.set_size(&path, size).await?;
            if self.podman {
                self.repeat_size(path, size);
            }
            Ok(())
        };
        resized.await.map_err(self.error("resize the terminal"))
    }

    async fn set_size(&self, path: &str, size: WindowSize) -> Result<(), Failure> {
        let call = Call::post(path)
            .query("h", &size.rows.to_string())
            .query("w", &size.columns.to_string());
        self.fetch(call).await.map(drop)
    }

    fn repeat_size(&self, path: String, size: WindowSize) {
        let client = self.clone();
        let terminal = path.clone();
        #[expect(clippy::disallowed_methods, reason = "the task ends by itself")]
        let task = tokio::spawn(async move {
            for pause in REPEATS {
                sleep(pause).await;
                // An error is ignored: the terminal may have ended.
                let _ = client.set_size(&terminal, size).await;
            }
        });
        let mut tasks = self.repeated_sizes.tasks();
        tasks.retain(|_, task| !task.is_finished());
        tasks.insert(path, AbortOnDropHandle::new(task));
    }
}

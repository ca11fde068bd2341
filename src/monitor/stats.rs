//! Samples of a running container's resource usage.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::error::RuntimeError;
use crate::monitor::context::Context;
use crate::outcome::Usage;
use crate::spec::{ContainerId, RunId};

/// Waits for one interval, and returns a sample.
///
/// A failed sample is skipped. Never resolves without an interval, or if the runtime cannot sample.
pub(super) async fn sample(
    context: Arc<Context>,
    run: RunId,
    container: ContainerId,
    interval: Option<Duration>,
) -> Usage {
    let Some(interval) = interval else {
        return pending().await;
    };
    loop {
        sleep(interval).await;
        match context.runtime.stats(&container).await {
            Ok(usage) => return usage,
            Err(error @ RuntimeError::Unsupported { .. }) => {
                tracing::warn!(%run, %error, "the runtime cannot sample resource usage");
                return pending().await;
            }
            // The container has ended, or the engine does not answer now.
            Err(error) => tracing::debug!(%run, %container, %error, "cannot sample"),
        }
    }
}

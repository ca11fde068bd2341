//! What a container uses, sampled while it runs.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::error::RuntimeError;
use crate::monitor::context::Context;
use crate::outcome::Usage;
use crate::spec::{ContainerId, RunId};

/// The next sample, an interval from now; never, without one, or where the engine cannot tell.
pub(crate) async fn sample(
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
                tracing::warn!(%run, %error, "nothing is sampled");
                return pending().await;
            }
            // It has ended, or the engine does not answer now.
            Err(error) => tracing::debug!(%run, %container, %error, "no sample"),
        }
    }
}

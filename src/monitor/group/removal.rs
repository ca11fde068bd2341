//! The removal of the networks and volumes of a group.

use std::time::Duration;

use tokio::time::Instant;

use super::OwnedGroup;
use crate::error::{Result, RuntimeError};
use crate::monitor::context::Context;
use crate::monitor::policy::REMOVAL_PERIOD;
use crate::monitor::recover::remove_orphans;
use crate::monitor::wait::Backoff;
use crate::spec::ResourceKind;

/// The time for which the removal of a resource in use is repeated.
///
/// All runs that use it have ended, so only a kept container or another program can use it. An
/// engine may report a network as in use for a moment after the end of its last container.
const CONFLICT_PERIOD: Duration = Duration::from_secs(10);

impl OwnedGroup {
    /// Removes all resources. A failed removal does not prevent the others.
    pub(super) async fn remove_resources(&self, context: &Context) -> Result<()> {
        let may_appear = self.may_appear().await;
        let mut removed = Ok(());
        for kind in &self.record.resources {
            removed = removed.and(self.remove_resource(context, *kind, may_appear).await);
        }
        removed.map_err(Into::into)
    }

    async fn remove_resource(
        &self,
        context: &Context,
        kind: ResourceKind,
        may_appear: bool,
    ) -> Result<(), RuntimeError> {
        let name = self.record.resource_name();
        let begun = Instant::now();
        let mut backoff = Backoff::new();
        loop {
            let error = match context.runtime.remove_resource(kind, &name).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let period = match &error {
                RuntimeError::NotFound { .. } if !may_appear => return Ok(()),
                RuntimeError::Conflict { .. } => CONFLICT_PERIOD,
                error if error.is_definitive() => Duration::ZERO,
                _ => REMOVAL_PERIOD,
            };
            if begun.elapsed() >= period {
                tracing::debug!(%kind, name, %error, "cannot remove the resource of a group");
                return Err(error);
            }
            if matches!(error, RuntimeError::Conflict { .. }) {
                // An engine may create a container late, for the request of a dead owner.
                remove_orphans(context).await;
            }
            backoff.pause().await;
        }
    }
}

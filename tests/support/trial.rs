//! One trial, on a runtime of its own.

use std::future::Future;
use std::time::Duration;

use libtest_mimic::Failed;

/// Runs a trial, which may take so long at the most.
pub fn bounded(bound: Duration, trial: impl Future<Output = ()>) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::time::timeout(bound, trial)
            .await
            .map_err(|_| Failed::from(format!("it took more than {} s", bound.as_secs())))
    })
}

//! Waiting with a timeout.

use std::future::Future;
use std::time::{Duration, Instant};

/// Polls `condition` until it is `Some`.
///
/// # Panics
///
/// Panics after `seconds`.
pub async fn eventually<T>(
    seconds: u64,
    what: &str,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            start.elapsed() < Duration::from_secs(seconds),
            "{seconds} s passed before {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Polls `condition` until it is true, on this thread.
///
/// # Panics
///
/// Panics after 60 s.
#[track_caller]
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "60 s passed before {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the value of `future`.
///
/// # Panics
///
/// Panics after `seconds`.
pub async fn within<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(seconds), future).await {
        Ok(value) => value,
        Err(_) => panic!("{seconds} s passed before {what}"),
    }
}

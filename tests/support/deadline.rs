//! Waiting for a fact, with a bound.

use std::time::{Duration, Instant};

/// Asks `fact` again and again until it is `Some`, for at most `seconds`.
pub async fn eventually<T>(
    seconds: u64,
    what: &str,
    mut fact: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = fact().await {
            return value;
        }
        assert!(
            start.elapsed() < Duration::from_secs(seconds),
            "after {seconds} s, {what} is still to come"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The value of `future`, which must come within `seconds`.
pub async fn within<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(seconds), future).await {
        Ok(value) => value,
        Err(_) => panic!("after {seconds} s, {what} is still to come"),
    }
}

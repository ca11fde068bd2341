//! The bodies of requests, and their limits.

use std::io;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use futures::{StreamExt, stream};
use tokio::time::{Instant, timeout, timeout_at};

/// The longest time for a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// The limits of the rest of a body that its request has not read.
const REST_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_REST_BYTES: usize = 16 << 20;

/// A body that fails if the client pauses for `max_pause`, or takes too long.
///
/// The rest of a refused body is read and discarded. A client that sends without reading would
/// otherwise find its connection reset, and lose the response.
pub fn limited(body: Body, max_pause: Duration) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let deadline = Instant::now() + BODY_TIMEOUT;
    let unread = Unread(Some(body.into_data_stream()));
    let next = move |unread: Option<Unread>| async move {
        let mut unread = unread?;
        let until = deadline.min(Instant::now() + max_pause);
        match timeout_at(until, unread.next()).await {
            Ok(bytes) => Some((bytes?, Some(unread))),
            Err(_) => Some((Err(io::ErrorKind::TimedOut.into()), Some(unread))),
        }
    };
    Body::from_stream(stream::unfold(Some(unread), next))
}

/// True if the body has failed because the client was too slow.
pub fn is_timeout(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::TimedOut;
        }
        source = error.source();
    }
    false
}

/// The unread rest of a body. Dropping it discards the rest.
struct Unread(Option<BodyDataStream>);

impl Unread {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let item = self.0.as_mut()?.next().await;
        if !matches!(item, Some(Ok(_))) {
            self.0 = None;
        }
        item.map(|item| item.map_err(io::Error::other))
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        if let Some(rest) = self.0.take() {
            tokio::spawn(timeout(REST_TIMEOUT, discard(rest)));
        }
    }
}

async fn discard(mut rest: BodyDataStream) {
    let mut read = 0;
    while let Some(Ok(bytes)) = rest.next().await {
        read += bytes.len();
        if read > MAX_REST_BYTES {
            return;
        }
    }
}

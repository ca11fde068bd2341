//! The connections of clients, and their limits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::map_request;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::limited;

/// Connections at the same time. More wait.
const MAX_CONNECTIONS: usize = 1024;
/// The time that a shutdown gives requests in progress.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);
/// A pause after a failed accept, such as with no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest times for which the server waits for a client.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// The longest time for the headers of a request, and for a pause in its body.
    pub read: Duration,
    /// The longest time for which a client may read nothing of what is sent to it.
    pub write: Duration,
}

/// Serves until the token is cancelled, and then completes the requests in progress.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    timeouts: Timeouts,
    stop: CancellationToken,
) {
    let limit = move |request: Request| {
        std::future::ready(request.map(|body| limited(body, timeouts.read)))
    };
    let router = router.layer(map_request(limit));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, place)) => {
                let served = serve_connection(stream, router.clone(), timeouts, stop.clone());
                connections.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(error) => {
                eprintln!("cannot accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.close();
    let _ = timeout(SHUTDOWN_TIMEOUT, connections.wait()).await;
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    timeouts: Timeouts,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(timeouts.write));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.read)
        .serve_connection(
            TokioIo::new(Box::pin(stream)),
            TowerToHyperService::new(router),
        )
        .with_upgrades();
    tokio::pin!(connection);
    // An error is a client that broke the protocol or disconnected.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

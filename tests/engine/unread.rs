//! A foreign client that is attached to the container of a run and does not read its output.
//!
//! Once the container has ended, Docker holds its lock until that client reads or leaves. Meanwhile
//! it answers no call about the container.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use moat::state::State;
use moat::{Error, Run, ShutdownMode};
use testkit::deadline::eventually;
use testkit::{engine, sequence};

use crate::stage::{Stage, assert_complete, end, read};

testkit::trials! {
    crate::on_engine_or_skip:
        an_unread_attachment_bounds_a_stop,
        an_unread_attachment_bounds_a_shutdown,
}

/// More than the engine buffers for a client: its pipe and the buffers of the socket.
const LINES: u64 = 60_000;
const GRACE: Duration = Duration::from_secs(1);
/// The documented time beyond the grace period.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const SLACK: Duration = Duration::from_secs(10);

/// A client that attaches to a container, and never reads.
fn attach_unread(container: &str) -> Result<UnixStream, &'static str> {
    let address = engine::address();
    let path = address.strip_prefix("unix://");
    let path = path.ok_or("the engine has no local socket")?;
    let mut stream = UnixStream::connect(path).unwrap();
    write!(
        stream,
        "POST /containers/{container}/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\n\
         Host: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
    )
    .unwrap();
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    assert!(head.starts_with(b"HTTP/1.1 101"), "{head:?}");
    Ok(stream)
}

/// Starts a run whose output has filled the buffers of a client that does not read.
async fn start(stage: &Stage, manager: &moat::Manager) -> Result<(Run, UnixStream), &'static str> {
    let steps = format!("await /gate/go + lines {LINES} --burst 1000 + hold");
    let spec = stage.gated(&steps).stop_grace(GRACE);
    let run = manager.start(spec).await.unwrap();
    let container = run.state().container().unwrap().to_string();
    let client = attach_unread(&container)?;
    stage.open_gate("go");
    if engine::is_podman() {
        // Lets the container end.
        drop(client);
        return Err("Podman's clients receive output at the pace of the slowest");
    }
    let audit = run.audit().unwrap();
    eventually(60, "a megabyte", async || {
        (audit.metadata().ok()?.len() > 1 << 20).then_some(())
    })
    .await;
    Ok((run, client))
}

const ANSWERS: &str = "the engine answers about a container whose client does not read";

async fn an_unread_attachment_bounds_a_stop(stage: &Stage) -> Result<(), &'static str> {
    let manager = stage.manager().await;
    let (run, client) = start(stage, &manager).await?;
    let begun = Instant::now();
    let reported = async {
        while run.problem().is_none() && run.state().ending().is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (run.problem(), begun.elapsed())
    };
    let (stopped, (problem, after)) = tokio::join!(run.stop(None), reported);
    let elapsed = begun.elapsed();
    if stopped.is_ok() {
        return Err(ANSWERS);
    }
    assert!(
        matches!(stopped, Err(Error::Unanswered { .. })),
        "{stopped:?}"
    );
    let bound = GRACE + STOP_TIMEOUT;
    assert!((bound..bound + SLACK).contains(&elapsed), "{elapsed:?}");
    // The signals get no answer from the end of the container on, or SIGKILL gets none.
    assert!(after < GRACE + SLACK, "{after:?}");
    assert!(problem.unwrap().contains("the engine has not answered"));
    assert!(matches!(run.state(), State::Running { .. }));

    drop(client);
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(137));
    assert_eq!(run.problem(), None);
    let audit = read(&outcome);
    let expected = sequence::lines("out", LINES, 64);
    assert!(expected.starts_with(audit.stream("stdout")));
    // Before 24.0, the engine reads for 2 s after the end. Later, it waits for its clients.
    let gaps = audit.all("gap");
    let is_late = gaps.iter().any(|gap| gap["reason"] == "late_drain");
    match audit.evidence() {
        "end_marker" => assert_complete(&audit),
        _ => assert!(is_late, "{gaps:?}"),
    }
    Ok(())
}

async fn an_unread_attachment_bounds_a_shutdown(stage: &Stage) -> Result<(), &'static str> {
    let manager = stage.manager().await;
    let (run, client) = start(stage, &manager).await?;
    let begun = Instant::now();
    manager.shutdown(ShutdownMode::Stop).await;
    let elapsed = begun.elapsed();
    if run.state().ending().is_some() {
        return Err(ANSWERS);
    }
    let bound = GRACE + STOP_TIMEOUT;
    assert!((bound..bound + SLACK).contains(&elapsed), "{elapsed:?}");
    let id = run.id().clone();
    drop((run, manager, client));

    let manager = stage.manager().await;
    let outcome = end(&manager.get(&id).await.unwrap()).await;
    assert_eq!(outcome.code(), Some(137));
    let audit = read(&outcome);
    assert_eq!(audit.all("stop").len(), 1);
    let notes = audit.all("note");
    assert!(
        notes.iter().any(|note| {
            let text = note["text"].as_str().unwrap_or_default();
            text.contains("the engine has not answered")
        }),
        "{notes:?}"
    );
    Ok(())
}

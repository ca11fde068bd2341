//! Faults of the scripted runtime itself. The clock is paused, so each test is exact and takes no
//! time.

use std::time::Duration;

use futures::StreamExt;
use moat::runtime::scripted::{Break, Call, Fault, Link, Script, Scripted, Source};
use moat::runtime::{
    ContainerStatus, CreateRequest, LogsRequest, OutputStream, Runtime, RuntimeError,
};
use moat::spec::{ContainerId, RootId};
use moat::{RunId, RunSpec};
use tokio::time::{Instant, timeout};

const TEXT: &[u8] = b"one\ntwo\nthree\n";

async fn made(engine: &Scripted, script: Script) -> ContainerId {
    engine.next(script);
    let (root, run, spec) = (RootId::generate(), RunId::generate(), RunSpec::new("any"));
    let name = root.container_name(&run);
    let request = CreateRequest::new(&name, &root, &run, &spec);
    engine.create(request).await.unwrap().container
}

async fn stream(engine: &Scripted, container: &ContainerId, source: Source) -> OutputStream {
    match source {
        Source::Attachment => engine
            .attach(container, false)
            .await
            .map(|output| output.stream),
        Source::Log => engine.logs(container, LogsRequest::all(false)).await,
        _ => engine.logs(container, LogsRequest::follow(false)).await,
    }
    .unwrap()
}

/// The bytes of a stream, and how it ended.
async fn read(mut stream: OutputStream) -> (Vec<u8>, Break) {
    let mut bytes = Vec::new();
    loop {
        // On a paused clock this timeout passes at once, but only when nothing else can happen.
        match timeout(Duration::from_secs(3600), stream.next()).await {
            Err(_) => return (bytes, Break::Stall),
            Ok(None) => return (bytes, Break::End),
            Ok(Some(Err(_))) => {
                assert!(stream.next().await.is_none());
                return (bytes, Break::Error);
            }
            Ok(Some(Ok(chunk))) => bytes.extend_from_slice(&chunk.bytes),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_source_breaks_alone_at_any_byte() {
    for source in [Source::Attachment, Source::Log, Source::Follow] {
        for how in [Break::End, Break::Error, Break::Stall] {
            for at in 0..=TEXT.len() {
                let engine = Scripted::new();
                let script = Script::new().stdout(TEXT).break_at(source, at as u64, how);
                let container = made(&engine, script).await;
                let tap = stream(&engine, &container, Source::Attachment).await;
                engine.start(&container).await.unwrap();
                engine.wait(&container).await.unwrap();
                let mut taps = Some(tap);
                for other in [Source::Attachment, Source::Log, Source::Follow] {
                    let stream = match (other, taps.take()) {
                        (Source::Attachment, Some(tap)) => tap,
                        _ => stream(&engine, &container, other).await,
                    };
                    let expected = match other == source {
                        true => (TEXT[..at].to_vec(), how),
                        false => (TEXT.to_vec(), Break::End),
                    };
                    assert_eq!(read(stream).await, expected, "{source:?} {how:?} {at}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_breaks_one_stream() {
    let engine = Scripted::new();
    let container = made(&engine, Script::new().stdout(TEXT)).await;
    engine.start(&container).await.unwrap();
    engine.wait(&container).await.unwrap();
    engine.fault(Call::Logs, Fault::Stream(5, Break::Error));
    let first = read(stream(&engine, &container, Source::Log).await).await;
    assert_eq!(first, (TEXT[..5].to_vec(), Break::Error));
    let second = read(stream(&engine, &container, Source::Log).await).await;
    assert_eq!(second, (TEXT.to_vec(), Break::End));
}

#[tokio::test]
async fn a_removed_image_can_be_restored() {
    let engine = Scripted::new();
    let spec = RunSpec::new("worker");
    engine.prepare(&spec).await.unwrap();
    engine.remove_image("worker");
    let missing = engine.prepare(&spec).await;
    assert!(matches!(missing, Err(RuntimeError::NoSuchImage { .. })));
    engine.image("worker", Script::new());
    engine.prepare(&spec).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_down_breaks_streams() {
    let engine = Scripted::new();
    let container = made(&engine, Script::new().stdout(TEXT).until_stopped()).await;
    let tap = stream(&engine, &container, Source::Attachment).await;
    engine.start(&container).await.unwrap();
    let wait = engine.wait(&container);
    let (wait, read, ()) = futures::join!(wait, read(tap), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        engine.link(Link::Down);
    });
    assert!(matches!(wait, Err(RuntimeError::Broken { .. })), "{wait:?}");
    assert_eq!(read, (TEXT.to_vec(), Break::Error));
    let inspect = engine.inspect(&container).await;
    assert!(matches!(inspect, Err(RuntimeError::Unavailable { .. })));
    engine.link(Link::Up);
    assert_eq!(
        engine.inspect(&container).await.unwrap().status,
        ContainerStatus::Running
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_engine_times_out_after_30_s() {
    let engine = Scripted::new();
    let container = made(&engine, Script::new().stdout(TEXT)).await;
    let tap = stream(&engine, &container, Source::Attachment).await;
    engine.start(&container).await.unwrap();
    engine.link(Link::Silent);
    let begin = Instant::now();
    let inspect = engine.inspect(&container).await;
    assert!(matches!(inspect, Err(RuntimeError::Timeout { .. })));
    assert_eq!(begin.elapsed(), Duration::from_secs(30));
    let (read, ()) = futures::join!(read(tap), async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        engine.link(Link::Up);
    });
    assert_eq!(read, (TEXT.to_vec(), Break::End));
    assert_eq!(begin.elapsed(), Duration::from_secs(90));
}

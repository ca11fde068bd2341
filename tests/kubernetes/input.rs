//! Standard input, and stopping.

use std::time::Duration;

use futures::StreamExt;
use moat::outcome::StopCause;
use moat::run::{AttachOptions, Attached};
use moat::spec::Stdin;
use testkit::sequence;
use tokio::io::AsyncWriteExt;

use crate::stage::{Stage, assert_bytes, assert_complete, end, read};

testkit::trials! {
    crate::on_cluster:
        input_comes_back_byte_for_byte,
        a_time_limit_stops_a_run,
        a_stop_kills_a_stubborn_run,
}

async fn input_comes_back_byte_for_byte(stage: &Stage) {
    let bytes = sequence::noise(3, 3_000_000);
    let manager = stage.manager().await;
    let spec = stage.spec("cat + exit 2").stdin(Stdin::Pipe);
    let options = AttachOptions::new().with_input().lossless();
    let (run, mut output) = manager.start_attached(spec, options).await.unwrap();
    let mut input = output.input().unwrap();
    let write = async {
        input.write_all(&bytes).await.unwrap();
        input.shutdown().await.unwrap();
    };
    let watch = async {
        let mut shown = Vec::new();
        while let Some(item) = output.next().await {
            match item.unwrap() {
                Attached::Chunk(chunk) => shown.extend_from_slice(&chunk.bytes),
                other => panic!("{other:?}"),
            }
        }
        shown
    };
    let ((), shown) = tokio::join!(write, watch);
    assert_bytes(&shown, &bytes);
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(2));
    let audit = read(&outcome);
    assert_bytes(audit.stream("stdout"), &bytes);
    assert_complete(&audit);
}

async fn a_time_limit_stops_a_run(stage: &Stage) {
    let spec = stage
        .spec("trap --exit 9")
        .time_limit(Duration::from_secs(2));
    let (outcome, audit) = stage.run(spec).await;
    assert_eq!(outcome.code(), Some(9));
    assert_eq!(
        outcome.sealed().unwrap().stopped,
        Some(StopCause::TimeLimit)
    );
    assert_complete(&audit);
    stage.is_clean().await;
}

async fn a_stop_kills_a_stubborn_run(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = stage.spec("ignore-term + echo ready + hold");
    let run = manager.start(spec).await.unwrap();
    let ready = moat::Ready::line("ready");
    run.wait_ready(ready).await.unwrap();
    run.stop(Some(Duration::from_secs(1))).await.unwrap();
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(137));
    let audit = read(&outcome);
    assert_bytes(audit.stream("stdout"), b"ready\n");
    assert_complete(&audit);
    stage.is_clean().await;
}

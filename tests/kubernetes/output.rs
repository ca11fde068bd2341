//! The bytes of the output.

use futures::{StreamExt, stream};
use testkit::sequence;

use crate::stage::{Stage, assert_both_streams, assert_bytes, assert_complete, end, read};

testkit::trials! {
    crate::on_cluster:
        parallel_runs_keep_each_line_once,
        all_bytes_are_kept,
        a_long_line_is_kept,
        silence_is_complete,
}

async fn parallel_runs_keep_each_line_once(stage: &Stage) {
    const LINES: u64 = 20_000;
    let manager = stage.manager().await;
    let runs = (0..16).map(|number| {
        let spec = stage.spec(&format!("lines {LINES} --stream both + exit {number}"));
        async {
            let run = manager.start(spec).await.unwrap();
            end(&run).await
        }
    });
    let outcomes: Vec<_> = stream::iter(runs).buffered(8).collect().await;
    for (number, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome.code(), Some(number as i64));
        let audit = read(outcome);
        assert_both_streams(&audit, LINES);
        assert_eq!(audit.evidence(), "end_marker");
    }
    stage.is_clean().await;
}

/// Bytes that are no text, line ends of other systems, NUL, and no newline at the end.
async fn all_bytes_are_kept(stage: &Stage) {
    let steps = "bytes 300000 --seed 5 + hex 0d0a0d0a0a000a00c3 + split + print end \
                 + hex 000d0a00 --stream err";
    let (outcome, audit) = stage.run(stage.spec(steps)).await;
    assert_eq!(outcome.code(), Some(0));
    let mut expected = sequence::noise(5, 300_000);
    expected.extend(b"\r\n\r\n\n\0\n\0\xc3");
    expected.extend(sequence::SPLIT.as_bytes());
    expected.extend(b"end");
    assert_bytes(audit.stream("stdout"), &expected);
    assert_bytes(audit.stream("stderr"), b"\0\r\n\0");
    assert_complete(&audit);
}

async fn a_long_line_is_kept(stage: &Stage) {
    let (_, audit) = stage.run(stage.spec("long 8000000 --utf8")).await;
    let mut expected = sequence::long(8_000_000, true);
    expected.push(b'\n');
    assert_bytes(audit.stream("stdout"), &expected);
    assert_complete(&audit);
}

async fn silence_is_complete(stage: &Stage) {
    let (outcome, audit) = stage.run(stage.spec("close-stdio + exit 3")).await;
    assert_eq!(outcome.code(), Some(3));
    assert!(audit.streams.is_empty(), "{:?}", audit.streams);
    assert_complete(&audit);
}

//! What an audit file costs: to write it, to read it, and to check it.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "made by criterion's macros; a benchmark fails by panicking"
)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moat::sink::audit::{Reader, Record, verify};
use moat::sink::{Batch, Output, RunPlace, Start};
use moat::{Jsonl, LogSink, RunId, RunRecord};

const LINES: usize = 10_000;
const TS: &str = "2026-11-22T18:23:25.491211661Z";

criterion_group!(benches, audit);
criterion_main!(benches);

fn record() -> RunRecord {
    serde_json::from_value(serde_json::json!({
        "run": "bench",
        "root": "0".repeat(20),
        "created": TS,
        "runtime": "none",
        "image": "none",
    }))
    .unwrap()
}

/// The lines of an audit file, as text.
fn text() -> String {
    let start = serde_json::json!({"type": "start", "v": 1, "ts": TS, "run": "bench",
        "root": "0".repeat(20), "created": TS, "runtime": "none", "image": "none"});
    let mut text = format!("{start}\n");
    for number in 0..LINES {
        let line = format!("line {number:08} {}", "x".repeat(60));
        text.push_str(&format!(
            "{{\"ts\":\"{TS}\",\"stream\":\"stdout\",\"line\":\"{line}\"}}\n"
        ));
    }
    text
}

fn outputs(text: &str) -> Vec<Output> {
    Reader::new(text.as_bytes())
        .filter_map(|record| match record.unwrap() {
            Record::Output(output) => Some(output),
            _ => None,
        })
        .collect()
}

fn audit(criterion: &mut Criterion) {
    let text = text();
    let outputs = outputs(&text);
    assert_eq!(outputs.len(), LINES);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file.jsonl");
    std::fs::write(&file, &text).unwrap();

    let mut group = criterion.benchmark_group("audit");
    group.throughput(Throughput::Elements(LINES as u64));
    let sink = Jsonl::new();
    group.bench_function("write", |bencher| {
        bencher.iter_batched(
            || {
                let run = RunId::generate();
                let place = RunPlace::new(run.clone(), folder.path().join(run.as_str()));
                std::fs::create_dir(&place.folder).unwrap();
                let log = runtime
                    .block_on(sink.open(&place, &Start::new(record())))
                    .unwrap();
                let mut batch = Batch::new();
                outputs.iter().for_each(|output| batch.push_output(output));
                (log, batch)
            },
            |(mut log, batch)| runtime.block_on(log.append(batch)).unwrap(),
            criterion::BatchSize::PerIteration,
        );
    });
    group.bench_function("read", |bencher| {
        bencher.iter(|| Reader::new(text.as_bytes()).count());
    });
    group.bench_function("verify", |bencher| {
        bencher.iter(|| verify(&file).unwrap());
    });
    group.finish();
}

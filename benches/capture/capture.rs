//! The cost of audit files, of the parts of a capture, and of opening a root.
//!
//! `cargo bench -p bench-capture`. `benches/engine` measures whole runs.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moat::audit::{Batch, Output, Reader, Record, Start, verify};
use moat::bench::{Intake, encode, lines, observe};
use moat::runtime::scripted::{Script, Scripted};
use moat::sink::{Jsonl, RunPlace};
use moat::spec::RunRecord;
use moat::{LogSink, Manager, RunId, RunSpec, ShutdownMode};
use sha2::{Digest, Sha256};

const LINES: usize = 10_000;
const TS: &str = "2026-11-22T18:23:25.491211661Z";

criterion_group!(benches, audit, parts, open);
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
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file.jsonl");
    std::fs::write(&file, &text).unwrap();

    let mut group = criterion.benchmark_group("audit");
    group.throughput(Throughput::Elements(LINES as u64));
    let sink = Jsonl::new();
    group.bench_function("write", |bencher| {
        bencher.iter_batched(
            || {
                let run = RunId::generate();
                let place = RunPlace::new(run.clone(), dir.path().join(run.as_str()));
                std::fs::create_dir(&place.dir).unwrap();
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

fn parts(criterion: &mut Criterion) {
    let text =
        "a line of eighty bytes, as a test prints it when it has passed, with its time 0.01\n"
            .repeat(100_000);
    let text = text.as_bytes();
    let mut framed = Vec::new();
    for payload in text.chunks(16 << 10) {
        framed.extend_from_slice(&[1, 0, 0, 0]);
        framed.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        framed.extend_from_slice(payload);
    }
    let framed = Bytes::from(framed);
    let batches: Vec<Batch> = text.chunks(256 << 10).map(lines).collect();
    let mut out = Vec::new();

    let mut group = criterion.benchmark_group("parts");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("demux and lines", |bencher| {
        bencher.iter(|| {
            let mut intake = Intake::new();
            let mut rest = framed.clone();
            while !rest.is_empty() {
                let read = rest.split_to(rest.len().min(128 << 10));
                std::hint::black_box(intake.push(read));
            }
        });
    });
    group.bench_function("observe", |bencher| {
        bencher.iter(|| batches.iter().map(observe).sum::<u64>());
    });
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            for batch in &batches {
                out.clear();
                encode(batch, &mut out);
                std::hint::black_box(&out);
            }
        });
    });
    group.bench_function("digest", |bencher| {
        bencher.iter(|| Sha256::digest(text));
    });
    group.finish();
}

fn open(criterion: &mut Criterion) {
    const RUNS: u64 = 1_000;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let engine = Scripted::new();
        let manager = Manager::open(dir.path(), engine.clone()).await.unwrap();
        for _ in 0..RUNS {
            engine.next(Script::new().stdout("a line\n"));
            let run = manager.start(RunSpec::new("none")).await.unwrap();
            run.wait().await.unwrap();
        }
        manager.shutdown(ShutdownMode::Stop).await;
    });

    let mut group = criterion.benchmark_group("root");
    group.throughput(Throughput::Elements(RUNS));
    group.bench_function("open", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let manager = Manager::open(dir.path(), Scripted::new()).await.unwrap();
                assert!(manager.wait_recovery().await.unwrap().is_empty());
                manager.shutdown(ShutdownMode::Leave).await;
            });
        });
    });
    group.finish();
}

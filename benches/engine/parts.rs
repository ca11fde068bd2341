//! The parts that need no engine, each in turn with its reference.

use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::time::Instant;

use bytes::Bytes;
use moat::audit::{Batch, Output, Start};
use moat::bench::{Intake, encode, lines};
use moat::outcome::Stream;
use moat::sink::{Jsonl, RunPlace};
use moat::spec::RunRecord;
use moat::timestamp::Timestamp;
use moat::{LogSink, RunId};

/// The seconds that two jobs take in turn, for each round.
pub fn turns(rounds: usize, mut ours: impl FnMut(), mut theirs: impl FnMut()) -> Vec<(f64, f64)> {
    let time = |job: &mut dyn FnMut()| {
        let begin = Instant::now();
        job();
        begin.elapsed().as_secs_f64()
    };
    (0..rounds)
        .map(|round| {
            if round % 2 == 0 {
                let first = time(&mut ours);
                (first, time(&mut theirs))
            } else {
                let first = time(&mut theirs);
                (time(&mut ours), first)
            }
        })
        .collect()
}

fn text(count: usize) -> Vec<u8> {
    let line = |number| format!("out {number:08} {} 01234567\n", "x".repeat(59));
    (0..count)
        .flat_map(|number| line(number).into_bytes())
        .collect()
}

#[derive(serde::Serialize)]
struct Line<'a> {
    ts: Timestamp,
    stream: Stream,
    line: &'a str,
}

/// Encoding, and `serde_json` on a derived struct.
pub fn encoding(rounds: usize) -> Vec<(f64, f64)> {
    let text = text(200_000);
    let batches: Vec<Batch> = text.chunks(256 << 10).map(lines).collect();
    let now = Timestamp::now();
    let mut out = Vec::with_capacity(1 << 20);
    turns(
        rounds,
        || {
            for batch in &batches {
                out.clear();
                encode(batch, &mut out);
                black_box(&out);
            }
        },
        || {
            let mut out = BufWriter::with_capacity(1 << 20, std::io::sink());
            for line in text.split(|byte| *byte == b'\n') {
                let line = Line {
                    ts: now,
                    stream: Stream::Stdout,
                    line: std::str::from_utf8(line).unwrap(),
                };
                serde_json::to_writer(&mut out, &line).unwrap();
                out.write_all(b"\n").unwrap();
            }
        },
    )
}

/// Demultiplexing and lines over 1 GB, read as an engine sends it, and a copy of the same bytes.
pub fn intake(rounds: usize) -> Vec<(f64, f64)> {
    const READ: usize = 128 << 10;
    let text = text(12_200_000);
    let mut framed = Vec::with_capacity(text.len() + (1 << 20));
    for payload in text.chunks(16 << 10) {
        framed.extend_from_slice(&[1, 0, 0, 0]);
        framed.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        framed.extend_from_slice(payload);
    }
    drop(text);
    // The reads are done in advance, so the measurement begins after them.
    let framed = Bytes::from(framed);
    let mut to = vec![0; framed.len()];
    turns(
        rounds,
        || {
            let mut intake = Intake::new();
            let mut rest = framed.clone();
            while !rest.is_empty() {
                let read = rest.split_to(rest.len().min(READ));
                black_box(intake.push(read));
            }
        },
        || {
            to.copy_from_slice(&framed);
            black_box(&to);
        },
    )
}

/// An audit file of about 1 GB.
pub async fn audit(dir: &std::path::Path) -> std::path::PathBuf {
    let record: RunRecord = serde_json::from_value(serde_json::json!({
        "run": "bench", "root": "0".repeat(20), "created": Timestamp::now(),
        "runtime": "none", "image": "none",
    }))
    .unwrap();
    let place = RunPlace::new(RunId::new("bench").unwrap(), dir);
    let sink = Jsonl::new();
    let mut log = sink.open(&place, &Start::new(record)).await.unwrap();
    let text = text(10_000);
    for _ in 0..660 {
        let mut batch = Batch::new();
        let now = Timestamp::now();
        for line in text.split(|byte| *byte == b'\n').take(10_000) {
            batch.push_output(&Output::new(now, Stream::Stdout, line));
        }
        log.append(batch).await.unwrap();
    }
    log.sync().await.unwrap();
    sink.path(&place).unwrap()
}

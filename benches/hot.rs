//! One hot loop over a fixed amount of output, for `benches/callgrind`, which counts its instructions.
//!
//! The argument is `intake`, `mask`, `encode`, `verify`, or `setup` for the generation of the text alone.
//! Without an argument, as in `cargo bench`, each runs once.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a benchmark fails by panicking"
)]

use bytes::Bytes;
use moat::audit::verify;
use moat::bench::{Intake, encode, lines, mask};

const LINES: usize = 100_000;

fn main() {
    let all = ["setup", "intake", "mask", "encode", "verify"];
    let asked: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    for name in all {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            println!("{name}: {}", run(name));
        }
    }
}

fn run(name: &str) -> usize {
    match name {
        "intake" => {
            let framed = framed();
            let mut intake = Intake::new();
            framed
                .chunks(64 << 10)
                .map(|chunk| intake.push(Bytes::copy_from_slice(chunk)).len())
                .sum()
        }
        "mask" => {
            let text = Bytes::from(text());
            let chunks = (0..text.len()).step_by(8 << 10);
            let chunks = chunks.map(|at| text.slice(at..text.len().min(at + (8 << 10))));
            mask(chunks, &MASKS).len()
        }
        "encode" => {
            let batch = lines(&text());
            let mut out = Vec::new();
            encode(&batch, &mut out);
            out.len()
        }
        "setup" => text().len(),
        _ => {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("logs.jsonl");
            let mut audit = START.as_bytes().to_vec();
            encode(&lines(&text()), &mut audit);
            std::fs::write(&path, &audit).unwrap();
            verify(&path).unwrap().records as usize
        }
    }
}

const START: &str = concat!(
    r#"{"type":"start","v":1,"ts":"2026-11-22T18:23:25.491211661Z","run":"bench","#,
    r#""root":"00000000000000000000","created":"2026-11-22T18:23:25.491211661Z","#,
    r#""runtime":"none","image":"none"}"#,
    "\n"
);

/// Tokens of which none occurs in the text, and a number that occurs a hundred times.
const MASKS: [&str; 5] = [
    "ghp_0123456789abcdefghijklmnopqrstuvwxyz",
    "npm_zyxwvutsrqponmlkjihgfedcba9876543210",
    "correct horse battery staple",
    "-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END KEY-----\n",
    "line 000123",
];

/// Lines of 81 bytes. One in ten needs escaping.
fn text() -> Vec<u8> {
    let mut text = Vec::new();
    for number in 0..LINES {
        let quote = if number % 10 == 0 { '"' } else { ' ' };
        text.extend_from_slice(format!("line {number:08}{quote}{}\n", "x".repeat(66)).as_bytes());
    }
    text
}

/// The same, in frames of 8 KiB, as an engine sends it.
fn framed() -> Vec<u8> {
    let mut framed = Vec::new();
    for payload in text().chunks(8 << 10) {
        framed.extend_from_slice(&[1, 0, 0, 0]);
        framed.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        framed.extend_from_slice(payload);
    }
    framed
}

//! Writes the output of a container to a file with a log consumer of testcontainers:
//! `with-testcontainers NAME TAG FILE LINES CMD...`. It ends after `LINES` lines, or at the end of the
//! log.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::mpsc;

use testcontainers::core::logs::LogFrame;
use testcontainers::runners::AsyncRunner;
use testcontainers::{GenericImage, ImageExt};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, tag, file, lines, cmd @ ..] = &arguments[..] else {
        panic!("usage: with-testcontainers NAME TAG FILE LINES CMD...");
    };
    let mut file = BufWriter::new(File::create(file).unwrap());
    let lines: usize = lines.parse().unwrap();
    let (frames, received) = mpsc::channel::<Vec<u8>>();
    let writer = tokio::task::spawn_blocking(move || {
        let mut seen = 0;
        // The consumer is dropped at the end of the engine's log, which may come early.
        while seen < lines
            && let Ok(frame) = received.recv()
        {
            seen += frame.iter().filter(|byte| **byte == b'\n').count();
            file.write_all(&frame).unwrap();
        }
        file.flush().unwrap();
    });
    let container = GenericImage::new(name, tag)
        .with_network("none")
        .with_cmd(cmd)
        .with_log_consumer(move |frame: &LogFrame| {
            // The writer may have received all lines.
            let _ = frames.send(frame.bytes().to_vec());
        })
        .start()
        .await
        .unwrap();
    writer.await.unwrap();
    container.rm().await.unwrap();
}

//! The sink for consoles.

use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use moat::runtime::scripted::Script;
use moat::sink::Console;

use crate::bench::run_into;

/// Waits until the condition is true; `false` after 20 s.
pub fn becomes_true(mut condition: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() > Duration::from_secs(20) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

struct Shown(Sender<Vec<u8>>);

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A console and its output.
pub fn shown() -> (Console, Receiver<Vec<u8>>) {
    let (out, text) = mpsc::channel();
    (Console::to(Shown(out)), text)
}

#[tokio::test]
async fn escape_sequences_are_spelled_out() {
    let (console, text) = shown();
    let long = "x".repeat(16 << 10);
    let script = Script::new()
        .stdout("plain\n")
        .stderr("\x1b[2Jhidden\r\n")
        .stdout(format!("{long}y\n"))
        .exit(7);
    run_into(console.clone(), "build", script).await;
    run_into(
        console,
        "t",
        Script::new().stdout("last, without a newline"),
    )
    .await;
    let text = String::from_utf8(text.try_iter().flatten().collect()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "build * running any");
    assert!(
        lines[1].starts_with("build * started as scripted-"),
        "{text}"
    );
    assert!(lines.contains(&"build | plain"), "{text}");
    assert!(lines.contains(&"build ! \\x1b[2Jhidden\\r"), "{text}");
    assert!(lines.contains(&format!("build | {long}\u{2026}").as_str()));
    assert!(lines.contains(&"build | y"));
    assert!(
        lines.contains(&"build * exited with code 7; audit complete"),
        "{text}"
    );
    assert!(
        lines.contains(&"t     | last, without a newline\u{2026}"),
        "{text}"
    );
    assert!(!text.contains('\x1b'));
}

#[tokio::test]
async fn only_the_name_is_colored() {
    let (console, text) = shown();
    run_into(
        console.colors(true),
        "build",
        Script::new().stdout("\x1b[31mred\n"),
    )
    .await;
    let text = String::from_utf8(text.try_iter().flatten().collect()).unwrap();
    for line in text.lines() {
        let colors = line.split_once("\x1b[0m ").map(|(name, rest)| {
            (
                name.starts_with("\x1b[3"),
                name.matches('\x1b').count(),
                rest.contains('\x1b'),
            )
        });
        assert_eq!(colors, Some((true, 1, false)), "{line:?}");
    }
    assert!(text.contains("\\x1b[31mred"), "{text}");
}

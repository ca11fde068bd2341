//! The examples, as programs that tests start.

use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

/// The program of an example. Cargo builds examples with the tests, next to their directory.
///
/// # Panics
///
/// If the example was not built.
pub fn program(name: &str) -> PathBuf {
    let mut directory = std::env::current_exe().expect("the path of this program");
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    let program = directory.join("examples").join(name);
    assert!(
        program.exists(),
        "{} is missing: `cargo test --test NAME` does not build it, `cargo build --examples \
         --all-features` does",
        program.display()
    );
    program
}

/// Waits for the end of a process, and returns its peak resident memory, in KiB.
///
/// # Panics
///
/// If the state of the process cannot be read.
pub fn peak(process: &mut Child) -> u64 {
    let status = format!("/proc/{}/status", process.id());
    let mut peak = 0;
    while process.try_wait().expect("the state of a child").is_none() {
        let found = std::fs::read_to_string(&status).unwrap_or_default();
        let high = found.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = high.and_then(|high| high.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(10));
    }
    peak
}

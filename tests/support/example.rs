//! The examples, as programs that tests start.

use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

/// Cargo builds the examples with the tests, into a folder beside theirs.
pub fn program(name: &str) -> PathBuf {
    let mut dir = std::env::current_exe().unwrap();
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    let program = dir.join("examples").join(name);
    assert!(
        program.exists(),
        "{} is missing: `cargo test --test NAME` alone does not build it, `cargo build --examples \
         --all-features` does",
        program.display()
    );
    program
}

/// The most memory that a process had until its end, in KiB.
pub fn peak(process: &mut Child) -> u64 {
    let status = format!("/proc/{}/status", process.id());
    let mut peak = 0;
    while process.try_wait().unwrap().is_none() {
        let found = std::fs::read_to_string(&status).unwrap_or_default();
        let high = found.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = high.and_then(|high| high.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(10));
    }
    peak
}

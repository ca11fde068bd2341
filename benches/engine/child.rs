//! A process and its cost.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The cost of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Wall time, in seconds.
    pub wall: f64,
    /// User and system time, in seconds.
    pub cpu: f64,
    /// Peak resident memory, in MiB.
    pub peak: f64,
}

/// Runs a process to its end. It must succeed.
pub fn measure(command: &mut Command) -> Cost {
    let begin = Instant::now();
    let child = command.spawn().unwrap();
    finish(child, begin)
}

/// Waits for the end of a process that was started at `begin`. It must succeed.
///
/// CPU time is read while the process is a zombie, and peak memory while it runs.
pub fn finish(mut child: Child, begin: Instant) -> Cost {
    let dir = format!("/proc/{}", child.id());
    let mut cost = Cost::default();
    loop {
        if let Some(peak) = peak(&dir) {
            cost.peak = peak;
        }
        let stat = fs::read_to_string(format!("{dir}/stat")).unwrap();
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
        if fields[0] == "Z" {
            // Ticks of 10 ms.
            let ticks: f64 = fields[11..13]
                .iter()
                .map(|f| f.parse::<f64>().unwrap())
                .sum();
            cost.cpu = ticks / 100.0;
            cost.wall = begin.elapsed().as_secs_f64();
            assert!(child.wait().unwrap().success(), "the process failed");
            return cost;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn peak(dir: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("{dir}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

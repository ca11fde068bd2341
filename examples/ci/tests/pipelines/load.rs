//! Many steps, and much output.

use std::time::{Duration, Instant};

use crate::place::{Place, Process};
use crate::support::example::peak;

pub fn thirty_steps_one_of_a_million_lines_and_one_that_hangs_end_in_time_and_in_little_memory(
    place: &Place,
) {
    let numbers: Vec<_> = (1..=28).map(|n| format!("'{n}'")).collect();
    let pipeline = format!(
        "[[step]]\nname = 'loud'\ncommands = ['seq 1 1000000', 'sleep 3']\n\
         [[step]]\nname = 'hangs'\ntimeout = 5\ngrace = 0.5\ncommands = ['echo begun', 'sleep 600']\n\
         [[step]]\nname = 'quick'\nmatrix = {{ n = [{}] }}\ncommands = ['echo ${{{{ matrix.n }}}}']\n",
        numbers.join(", ")
    );
    let begun = Instant::now();
    let mut process = Process::start(place.docker(&pipeline));
    let reader = process.0.stdout.take().unwrap();
    let out = std::thread::spawn(move || std::io::read_to_string(reader).unwrap());
    let peak = peak(&mut process.0);
    let took = begun.elapsed();
    println!("30 steps took {took:.1?}, {peak} KiB resident at most");
    let out = out.join().unwrap();
    assert_eq!(process.0.wait().unwrap().code(), Some(1), "{out}");
    assert!(took < Duration::from_secs(400), "{took:?}");
    assert!(peak > 0 && peak < 64 << 10, "{peak} KiB resident");
    let statuses = place.statuses();
    assert_eq!(statuses.len(), 30);
    assert_eq!(statuses["hangs"], "timed out: its time limit was reached");
    assert_eq!(
        statuses
            .values()
            .filter(|status| *status == "passed")
            .count(),
        29
    );
    let loud = &place.audits()["loud 1"];
    let lines: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(loud.stream("stdout") == lines.as_bytes());
    place.assert_no_containers();
}

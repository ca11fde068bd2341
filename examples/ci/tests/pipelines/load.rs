//! A build with many steps and much output.

use std::time::{Duration, Instant};

use crate::fixture::{Fixture, Process};
use testkit::examples::peak;

testkit::trials! {
    crate::on_engine:
        a_large_build_stays_within_time_and_memory,
}

fn a_large_build_stays_within_time_and_memory(fixture: &Fixture) {
    let numbers: Vec<_> = (1..=28).map(|n| format!("'{n}'")).collect();
    let pipeline = format!(
        "[[step]]\nname = 'loud'\ncommands = ['seq 1 1000000', 'sleep 3']\n\
         [[step]]\nname = 'hangs'\ntimeout = 5\ngrace = 0.5\ncommands = ['echo started', 'sleep 600']\n\
         [[step]]\nname = 'quick'\nmatrix = {{ n = [{}] }}\ncommands = ['echo ${{{{ matrix.n }}}}']\n",
        numbers.join(", ")
    );
    let start = Instant::now();
    let mut process = Process::start(fixture.docker(&pipeline));
    let reader = process.0.stdout.take().unwrap();
    let out = std::thread::spawn(move || std::io::read_to_string(reader).unwrap());
    let peak = peak(&mut process.0);
    let took = start.elapsed();
    println!("30 steps took {took:.1?}, peak {peak} KiB resident");
    let out = out.join().unwrap();
    assert_eq!(process.0.wait().unwrap().code(), Some(1), "{out}");
    assert!(took < Duration::from_secs(400), "{took:?}");
    assert!(peak > 0 && peak < 64 << 10, "{peak} KiB resident");
    let statuses = fixture.statuses();
    assert_eq!(statuses.len(), 30);
    assert_eq!(statuses["hangs"], "timed out: its time limit was reached");
    assert_eq!(
        statuses
            .values()
            .filter(|status| *status == "passed")
            .count(),
        29
    );
    let loud = &fixture.audits()["loud 1"];
    let lines: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(loud.stream("stdout") == lines.as_bytes());
    fixture.assert_no_containers();
}

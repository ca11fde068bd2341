//! Rows of a container with much output: moat next to `docker run > file` and to a bare reader.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::child::{Cost, measure};
use crate::table::median;
use crate::{Bench, LONG_ROUNDS, Machine};

const CMD: &str = "lines 1000000 --width 81";

/// The costs of moat, of `docker run > file` and of a bare reader, for the same command.
struct Costs([Vec<Cost>; 3]);

impl Costs {
    fn measure(bench: &mut Bench, driver: &str, cmd: &str, rounds: usize) -> Self {
        let mut costs: [Vec<Cost>; 3] = Default::default();
        for round in 0..rounds {
            for turn in 0..3 {
                let who = if round % 2 == 0 { turn } else { 2 - turn };
                costs[who].push(match who {
                    0 => bench.moat(driver, cmd),
                    1 => bench.docker(driver, cmd),
                    _ => bench.bare(driver, cmd),
                });
            }
        }
        Self(costs)
    }

    fn medians(&self, what: fn(&Cost) -> f64) -> [f64; 3] {
        [0, 1, 2].map(|who| median(self.0[who].iter().map(what).collect()))
    }
}

pub fn million(bench: &mut Bench) {
    for driver in ["json-file", "none"] {
        let costs = Costs::measure(bench, driver, CMD, bench.rounds);
        let wall = costs.medians(|cost| cost.wall);
        let cpu = costs.medians(|cost| cost.cpu);
        let peak = costs.medians(|cost| cost.peak);
        let name = |what: &str| format!("1,000,000 lines, {driver}: {what}");
        for (what, [ours, theirs], unit, most) in [
            (
                "wall, docker run > file",
                [wall[0], wall[1]],
                "s",
                Some(0.95),
            ),
            ("wall, bare reader", [wall[0], wall[2]], "s", Some(1.02)),
            ("CPU, bare reader", [cpu[0], cpu[2]], "s", Some(1.5)),
            ("CPU, docker CLI", [cpu[0], cpu[1]], "s", Some(0.5)),
            ("peak memory, docker CLI", [peak[0], peak[1]], "MiB", None),
        ] {
            bench.ratio(&name(what), ours, theirs, unit, most);
        }
    }
    others(bench, CMD);
}

/// The same on two other machines, which are simulated: see [`Machine`].
pub fn machines(bench: &mut Bench) {
    for (machine, name) in [(Machine::Pinned, "one core"), (Machine::Loaded, "loaded")] {
        bench.machine = machine;
        let busy = (machine == Machine::Loaded).then(Busy::start);
        for driver in ["json-file", "none"] {
            let costs = Costs::measure(bench, driver, CMD, LONG_ROUNDS);
            let wall = costs.medians(|cost| cost.wall);
            let name = |what: &str| format!("{name}: 1,000,000 lines, {driver}: {what}");
            let (docker, bare) = ("wall, docker run > file", "wall, bare reader");
            bench.ratio(&name(docker), wall[0], wall[1], "s", Some(0.95));
            bench.ratio(&name(bare), wall[0], wall[2], "s", Some(1.02));
        }
        relay(bench, &format!("{name}: "), LONG_ROUNDS);
        drop(busy);
    }
    bench.machine = Machine::Plain;
}

/// A busy thread for each core, until it is dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(done)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Output whose end proves nothing, and output without lines, both written in large blocks.
pub fn blocks(bench: &mut Bench) {
    let line = "x".repeat(81);
    for (what, driver, cmd) in [
        (
            "one line 1,000,000 times",
            "json-file",
            format!("yes {line} 1000000 --burst 50"),
        ),
        (
            "1 GB without a newline",
            "none",
            "fill 1000000000".to_owned(),
        ),
    ] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..bench.rounds {
            for turn in 0..2 {
                match (round + turn) % 2 {
                    0 => ours.push(bench.moat(driver, &cmd)),
                    _ => theirs.push(bench.docker(driver, &cmd)),
                }
            }
        }
        bench.compare(&format!("{what}, {driver}"), &ours, &theirs, [1.05, 3.0]);
    }
}

/// An attachment that relays the output to a file.
pub fn viewer(bench: &mut Bench) {
    relay(bench, "", bench.rounds);
}

fn relay(bench: &mut Bench, machine: &str, rounds: usize) {
    let cmd = "lines 1000000 --width 81 --burst 50";
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for turn in 0..2 {
            if (round + turn) % 2 == 1 {
                theirs.push(bench.docker("none", cmd));
                continue;
            }
            let root = bench.root();
            let file = File::create(bench.dir.path().join("viewed")).unwrap();
            let mut command = bench.role("viewer");
            command
                .args([&root, &bench.image, "none"])
                .args(cmd.split(' '));
            ours.push(measure(command.stdout(file)));
            fs::remove_dir_all(root).unwrap();
        }
    }
    bench.compare(
        &format!("{machine}1,000,000 lines with a viewer, none"),
        &ours,
        &theirs,
        [1.0, 3.0],
    );
}

/// Clients that follow the container's log, on the same output.
fn others(bench: &mut Bench, cmd: &str) {
    let program = with_testcontainers();
    let (name, tag) = bench.image.split_once(':').unwrap();
    let (name, tag) = (name.to_owned(), tag.to_owned());
    let file = bench.dir.path().join("consumed");
    let mut costs: [Vec<Cost>; 3] = Default::default();
    let mut fewest = [u64::MAX; 3];
    for _ in 0..LONG_ROUNDS {
        costs[0].push(bench.moat("json-file", cmd));
        let mut bollard = bench.role("bollard");
        bollard.args([&bench.image, "json-file"]).arg(&file);
        let mut testcontainers = Command::new(&program);
        testcontainers.args([&name, &tag]).arg(&file).arg("1000000");
        for (who, command) in [(1, &mut bollard), (2, &mut testcontainers)] {
            costs[who].push(measure(command.args(cmd.split(' '))));
            let lines = fs::metadata(&file).unwrap().len() / 82;
            fewest[who] = fewest[who].min(lines);
        }
    }
    let of = |who: usize, what: fn(&Cost) -> f64| median(costs[who].iter().map(what).collect());
    for (who, name) in [
        (1, "bollard's log stream"),
        (2, "testcontainers' log consumer"),
    ] {
        let name = |what: &str| format!("1,000,000 lines, json-file: {what}, {name}");
        let wall = |cost: &Cost| cost.wall;
        let cpu = |cost: &Cost| cost.cpu;
        bench.ratio(&name("wall"), of(0, wall), of(who, wall), "s", None);
        bench.ratio(&name("CPU"), of(0, cpu), of(who, cpu), "s", None);
        let what = name("lines received, minimum");
        let theirs = fewest[who] as f64;
        bench.row(
            &what,
            "1000000".into(),
            theirs.to_string(),
            theirs / 1e6,
            None,
        );
    }
}

/// Builds the program that uses testcontainers, which is a separate package.
fn with_testcontainers() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/testcontainers");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("testcontainers");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--manifest-path"]);
    cargo.arg(package.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&target);
    assert!(cargo.status().unwrap().success(), "{cargo:?}");
    target.join("release/with-testcontainers")
}

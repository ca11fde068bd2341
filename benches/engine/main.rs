//! The cost of a run with an audit on a real engine, compared with other clients that do the same
//! work: `cargo bench --all-features --bench engine`. With `-- NAME`, only the parts whose name
//! contains `NAME` run.
//!
//! Both sides of a row run in turn, in both orders, and medians are compared. The program prints the
//! table of `docs/performance.md`, and writes all figures to `target/engine-bench.json`, from which
//! `benches/plot` draws. `MOAT_BENCH_ROUNDS` sets the number of rounds. Default: 5.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a benchmark fails by panicking"
)]

mod bare;
mod child;
mod clients;
mod parts;
mod roles;
mod table;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use child::{Cost, finish, measure};
use moat::audit::verify;
use table::{Goal, Row, load, median, median_of_column, medians};
use testkit::{engine, image};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, role, rest @ ..] = &arguments[..]
        && flag == "--role"
    {
        return roles::play(role, rest);
    }
    let filter = arguments.into_iter().find(|a| !a.starts_with('-'));
    let rounds = std::env::var("MOAT_BENCH_ROUNDS").ok();
    let image = engine::block_on(async { image::provide(&engine::connect()?).await });
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut bench = Bench {
        image: image.unwrap(),
        machine: Machine::Plain,
        dir,
        rounds: rounds.map_or(5, |rounds| rounds.parse().unwrap()),
        serial: 0,
        rows: Vec::new(),
    };
    let all: [Part; 13] = [
        ("parts", parts),
        ("crowd", crowd),
        ("open", open),
        ("verify", verifying),
        ("million", clients::million),
        ("blocks", clients::blocks),
        ("viewer", clients::viewer),
        ("machines", clients::machines),
        ("memory", memory),
        ("short", short),
        ("many", many),
        ("replay", replay),
        ("growth", growth),
    ];
    for (name, run) in all {
        if filter
            .as_ref()
            .is_none_or(|filter| name.contains(&**filter))
        {
            run(&mut bench);
        }
    }
    bench.report();
}

/// The options of a container's log, which are those that moat sets: a log that is not rotated. The
/// daemon may have others.
fn log_options(driver: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let options = [("max-file", "1"), ("max-size", "1000000000000000")];
    options.into_iter().filter(move |_| driver == "json-file")
}

/// A group of rows, with the name that the filter compares.
type Part = (&'static str, fn(&mut Bench));

/// The machine on which the measured processes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    Plain,
    /// The processes have the first core only. The engine and the container have all cores.
    Pinned,
    /// A busy thread for each core halves the speed of the machine.
    Loaded,
}

struct Bench {
    image: String,
    machine: Machine,
    dir: tempfile::TempDir,
    rounds: usize,
    serial: usize,
    rows: Vec<Row>,
}

/// The number of rounds of parts that take minutes.
const LONG_ROUNDS: usize = 3;

impl Bench {
    /// The path of a new root.
    fn root(&mut self) -> String {
        self.serial += 1;
        let root = self.dir.path().join(format!("root-{}", self.serial));
        root.to_str().unwrap().to_owned()
    }

    fn role(&self, role: &str) -> Command {
        let mut command = self.command(std::env::current_exe().unwrap());
        command.args(["--role", role]).stdin(Stdio::null());
        command
    }

    /// A program on the simulated machine.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        if self.machine != Machine::Pinned {
            return Command::new(program);
        }
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", "0"]).arg(program);
        command
    }

    fn moat(&mut self, driver: &str, cmd: &str) -> Cost {
        let root = self.root();
        let mut command = self.role("moat");
        command
            .args([&root, &self.image, driver])
            .args(cmd.split(' '));
        let cost = measure(&mut command);
        fs::remove_dir_all(root).unwrap();
        cost
    }

    fn bare(&self, driver: &str, cmd: &str) -> Cost {
        let mut command = self.role("bare");
        measure(command.args([&self.image, driver]).args(cmd.split(' ')))
    }

    fn docker(&self, driver: &str, cmd: &str) -> Cost {
        measure(&mut self.docker_command(driver, cmd, 0))
    }

    fn docker_command(&self, driver: &str, cmd: &str, number: usize) -> Command {
        let file = File::create(self.dir.path().join(format!("out-{number}"))).unwrap();
        let mut command = self.command("docker");
        command
            .args(["run", "--rm", "--network", "none", "--log-driver", driver])
            .args(log_options(driver).map(|(key, value)| format!("--log-opt={key}={value}")))
            .arg(&self.image)
            .args(cmd.split(' '))
            .stdin(Stdio::null())
            .stdout(file);
        command
    }

    /// The lines that a role prints, split into words.
    fn numbers(&self, role: &str, arguments: &[&str]) -> Vec<Vec<String>> {
        let output = self
            .role(role)
            .args(arguments)
            .stderr(Stdio::inherit())
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{role} failed");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| line.split(' ').map(str::to_owned).collect())
            .collect()
    }

    fn row(
        &mut self,
        what: &str,
        ours: String,
        theirs: String,
        value: f64,
        goal: Option<(Goal, f64)>,
    ) {
        let row = Row {
            what: what.to_owned(),
            ours,
            theirs,
            value,
            goal,
            load: load(),
        };
        eprintln!("{}", row.text());
        self.rows.push(row);
    }

    /// The ratio of two times.
    fn ratio(&mut self, what: &str, ours: f64, theirs: f64, unit: &str, most: Option<f64>) {
        self.row(
            what,
            format!("{ours:.2} {unit}"),
            format!("{theirs:.2} {unit}"),
            ours / theirs,
            most.map(|most| (Goal::Most, most)),
        );
    }

    /// Rows for the wall and CPU time of `docker run > file`, with the goals of both.
    fn compare(&mut self, what: &str, ours: &[Cost], theirs: &[Cost], most: [f64; 2]) {
        let of = |costs: &[Cost], what: fn(&Cost) -> f64| median(costs.iter().map(what).collect());
        for (unit, cost, most) in [
            ("wall", (|cost| cost.wall) as fn(&Cost) -> f64, most[0]),
            ("CPU", |cost| cost.cpu, most[1]),
        ] {
            let what = format!("{what}: {unit}, docker run > file");
            self.ratio(&what, of(ours, cost), of(theirs, cost), "s", Some(most));
        }
    }

    fn report(&self) {
        println!("| what | moat | reference | ratio or value | goal | | load |");
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for row in &self.rows {
            println!("{}", row.text());
        }
        let rows: Vec<_> = self.rows.iter().map(Row::json).collect();
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let text = serde_json::to_string_pretty(&rows).unwrap();
        fs::write(target.join("engine-bench.json"), text).unwrap();
    }
}

fn parts(bench: &mut Bench) {
    let (ours, theirs) = medians(parts::encoding(15));
    bench.row(
        "encoding, 200,000 lines, against serde_json",
        format!("{:.1} ms", ours * 1e3),
        format!("{:.1} ms", theirs * 1e3),
        theirs / ours,
        Some((Goal::Least, 4.0)),
    );
    let (ours, theirs) = medians(parts::intake(7));
    bench.ratio(
        "demux and lines, 1 GB, against memcpy",
        ours,
        theirs,
        "s",
        Some(3.0),
    );
}

fn crowd(bench: &mut Bench) {
    let root = bench.root();
    let mut seen = Vec::new();
    for count in ["1", "1001"] {
        let dir = format!("{root}-{count}");
        let numbers = bench.numbers("crowd", &[&dir, count]);
        seen.push([0, 1, 2].map(|at| numbers[0][at].parse::<f64>().unwrap()));
    }
    for (at, what, goal) in [
        (0, "KiB of memory for each additional run of 1,000", 64.0),
        (1, "file descriptors for each additional run of 1,000", 3.0),
        (2, "threads for each additional run of 1,000", 0.0),
    ] {
        let (one, all) = (seen[0][at], seen[1][at]);
        let value = (all - one) / 1000.0;
        // The pools grow to their bounds. Those threads do not belong to a run.
        let value = if at == 2 && all - one <= 8.0 {
            0.0
        } else {
            value
        };
        let goal = Some((Goal::Most, goal));
        bench.row(what, format!("{all}"), format!("{one}"), value, goal);
    }
}

fn open(bench: &mut Bench) {
    let root = bench.root();
    bench.numbers("crowd", &[&root, "1"]);
    let root = Path::new(&root);
    let dirs = fs::read_dir(root).unwrap().flatten();
    let run = dirs
        .map(|entry| entry.path())
        .find(|path| path.is_dir())
        .unwrap();
    let id = run.file_name().unwrap().to_str().unwrap().to_owned();
    let text = fs::read_to_string(run.join("run.json")).unwrap();
    let audit = fs::read_to_string(run.join("logs.jsonl")).unwrap();
    for number in 1..10_000 {
        let other = format!("{}{number:06}", &id[..20]);
        let dir = root.join(&other);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("run.json"), text.replace(&id, &other)).unwrap();
        fs::write(dir.join("logs.jsonl"), &audit).unwrap();
    }
    let numbers = bench.numbers("open", &[root.to_str().unwrap()]);
    let of = |at: usize| median_of_column(&numbers, at);
    let (usable, done, theirs) = (of(0), of(1), of(2));
    bench.ratio(
        "open 10,000 runs, against reading run.json",
        done,
        theirs,
        "ms",
        Some(2.5),
    );
    bench.ratio("the same, until it is usable", usable, theirs, "ms", None);
}

fn verifying(bench: &mut Bench) {
    let dir = bench.dir.path().join("audit");
    fs::create_dir(&dir).unwrap();
    let file = engine::block_on(parts::audit(&dir));
    let openssl = || {
        let mut command = Command::new("openssl");
        command
            .args(["dgst", "-sha256"])
            .arg(&file)
            .stdout(Stdio::null());
        assert!(command.status().unwrap().success());
    };
    let ours = || assert!(verify(&file).unwrap().records > 6_000_000);
    let (ours, theirs) = medians(parts::turns(7, ours, openssl));
    bench.ratio("verify 1 GB, against openssl", ours, theirs, "s", Some(1.5));
    fs::remove_dir_all(dir).unwrap();
}

fn memory(bench: &mut Bench) {
    let small = bench.moat("none", "lines 1000000 --width 81");
    let large = bench.moat("none", "lines 12200000 --width 81");
    bench.ratio(
        "peak memory, 1 GB against 82 MB",
        large.peak,
        small.peak,
        "MiB",
        Some(1.1),
    );
    let most = small.peak.max(large.peak);
    let text = format!("{most:.1} MiB");
    bench.row(
        "peak memory",
        text,
        String::new(),
        most,
        Some((Goal::Most, 16.0)),
    );
}

/// With the engine's log as backstop, which is read once more at the end, and without.
fn short(bench: &mut Bench) {
    for driver in ["json-file", "none"] {
        let root = bench.root();
        let numbers = bench.numbers("short", &[&root, &bench.image, "41", driver]);
        let of = |at: usize| median_of_column(&numbers, at);
        let (ours, theirs) = (of(0), of(1));
        let more = numbers.iter().map(|pair| {
            let [ours, theirs] = [0, 1].map(|at| pair[at].parse::<f64>().unwrap());
            ours - theirs
        });
        bench.row(
            &format!("ms more for a short run than bare calls, {driver}, by pair"),
            format!("{ours:.1} ms"),
            format!("{theirs:.1} ms"),
            median(more.collect()),
            Some((Goal::Most, 3.0)),
        );
        let root = bench.root();
        let numbers = bench.numbers("seals", &[&root, &bench.image, "16", "10", driver]);
        let of = |kind: &str| {
            let mut times: Vec<f64> = numbers
                .iter()
                .filter(|line| line[0] == kind)
                .map(|line| line[1].parse().unwrap())
                .collect();
            times.sort_by(f64::total_cmp);
            [times[times.len() / 2], times[times.len() * 99 / 100]]
        };
        let (ours, theirs) = (of("seal"), of("bare"));
        bench.row(
            &format!(
                "ms from the end to the seal, 16 runs at once, 99 %, beyond bare code, {driver}"
            ),
            format!("{:.1} ms; median {:.1}", ours[1], ours[0]),
            format!("{:.1} ms; median {:.1}", theirs[1], theirs[0]),
            ours[1] - theirs[1],
            Some((Goal::Most, 10.0)),
        );
    }
}

fn many(bench: &mut Bench) {
    let cmd = "lines 10000 --width 81";
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut incomplete = 0;
    for round in 0..LONG_ROUNDS {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                let root = bench.root();
                let mut command = bench.role("many");
                command
                    .args([&root, &bench.image, "64"])
                    .args(cmd.split(' '));
                let begin = Instant::now();
                let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
                let output = child.stdout.take().unwrap();
                ours.push(finish(child, begin));
                let line = BufReader::new(output).lines().next().unwrap().unwrap();
                incomplete += line.parse::<usize>().unwrap();
            } else {
                let begin = Instant::now();
                let children: Vec<_> = (0..64)
                    .map(|number| {
                        bench
                            .docker_command("json-file", cmd, number)
                            .spawn()
                            .unwrap()
                    })
                    .collect();
                let mut all = Cost::default();
                for child in children {
                    all.cpu += finish(child, begin).cpu;
                }
                all.wall = begin.elapsed().as_secs_f64();
                theirs.push(all);
            }
        }
    }
    let of = |costs: &[Cost], what: fn(&Cost) -> f64| median(costs.iter().map(what).collect());
    let wall = [&ours, &theirs].map(|costs| of(costs, |cost| cost.wall));
    let cpu = [&ours, &theirs].map(|costs| of(costs, |cost| cost.cpu));
    bench.ratio(
        "64 containers of 10,000 lines: wall",
        wall[0],
        wall[1],
        "s",
        Some(0.85),
    );
    bench.ratio(
        "64 containers of 10,000 lines: CPU",
        cpu[0],
        cpu[1],
        "s",
        Some(0.3),
    );
    bench.row(
        "64 containers: runs that are not complete",
        format!("{incomplete}"),
        String::new(),
        incomplete as f64,
        Some((Goal::Most, 0.0)),
    );
}

fn replay(bench: &mut Bench) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..LONG_ROUNDS {
        let root = bench.root();
        let mut command = bench.role("abandon");
        command
            .args([&*root, &bench.image])
            .args(["lines", "1000000", "--width", "81"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (run, container) = line.trim().split_once(' ').unwrap();
        let mut wait = Command::new("docker");
        assert!(
            wait.args(["wait", container])
                .stdout(Stdio::null())
                .status()
                .unwrap()
                .success()
        );
        theirs.push(measure(bench.role("bare-logs").arg(container)).wall);
        ours.push(measure(bench.role("recover").args([&*root, run])).wall);
        fs::remove_dir_all(root).unwrap();
    }
    bench.ratio(
        "replay of 1,000,000 lines",
        median(ours),
        median(theirs),
        "s",
        Some(1.1),
    );
}

/// The growth of the cost: with the number of lines, with their length, and with concurrent runs.
fn growth(bench: &mut Bench) {
    let shapes = [
        (10_000, 81),
        (100_000, 81),
        (1_000_000, 81),
        (4_000_000, 20),
        (100_000, 810),
        (10_000, 8_100),
        (1_000, 81_000),
    ];
    for (lines, width) in shapes {
        let cmd = format!("lines {lines} --width {width}");
        let mut costs: [Vec<Cost>; 2] = Default::default();
        for round in 0..LONG_ROUNDS {
            for turn in 0..2 {
                let who = (round + turn) % 2;
                costs[who].push(match who {
                    0 => bench.moat("none", &cmd),
                    _ => bench.bare("none", &cmd),
                });
            }
        }
        let of = |who: usize, what: fn(&Cost) -> f64| median(costs[who].iter().map(what).collect());
        let name = |what: &str| format!("{lines} lines of {width} bytes, none: {what}");
        let wall = [0, 1].map(|who| of(who, |cost| cost.wall));
        let cpu = [0, 1].map(|who| of(who, |cost| cost.cpu));
        bench.ratio(&name("wall, bare reader"), wall[0], wall[1], "s", None);
        bench.ratio(&name("CPU, bare reader"), cpu[0], cpu[1], "s", None);
    }
    for count in [1, 4, 16, 64] {
        let mut costs = Vec::new();
        for _ in 0..LONG_ROUNDS {
            let root = bench.root();
            let count = count.to_string();
            let mut command = bench.role("many");
            command.args([&*root, &bench.image, &count]);
            command.args(["lines", "10000", "--width", "81"]);
            costs.push(measure(command.stdout(Stdio::null())));
            fs::remove_dir_all(root).unwrap();
        }
        let of = |what: fn(&Cost) -> f64| median(costs.iter().map(what).collect());
        let (wall, cpu, peak) = (of(|c| c.wall), of(|c| c.cpu), of(|c| c.peak));
        bench.row(
            &format!("{count} runs at once of 10,000 lines: CPU for each"),
            format!("{:.1} ms", cpu * 1e3 / f64::from(count)),
            format!("{wall:.2} s of wall time, {peak:.1} MiB at the peak"),
            cpu * 1e3 / f64::from(count),
            None,
        );
    }
}

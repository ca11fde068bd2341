//! The examples, started as their users start them: exit codes, streams, and what is left behind.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "nobody reaches into a test; tests spawn as their users do, and fail by panicking"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use tempfile::TempDir;

#[path = "support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::audit::Audit;
use support::{engine, image, sequence};

macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        vec![$(Trial::test(stringify!($name), || {
            $name(&Place::new());
            Ok(())
        })),*]
    };
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    let ignored = !engine::is_expected();
    let trials: Vec<Trial> = trials![
        quickstart_says_how_to_get_an_image,
        run_exits_with_the_containers_code_and_prints_both_streams_where_they_belong,
        one_changed_byte_is_found_with_moat_and_with_coreutils,
        run_shows_the_options_effects_in_the_container,
        run_exits_with_125_for_errors,
        run_exits_with_124_when_the_time_limit_stopped_it,
        an_interrupt_stops_the_run_and_prints_the_audit,
        output_is_passed_on_byte_for_byte,
        a_reader_that_leaves_does_not_end_the_audit,
        a_large_output_takes_little_memory,
        a_killed_run_is_recovered_with_every_line_once,
        a_detached_run_is_listed_waited_for_and_removed,
        runs_can_follow_and_stop_a_run_of_another_process,
        files_alone_are_enough_to_list_read_and_verify,
    ];
    let trials = trials
        .into_iter()
        .map(|trial| trial.with_ignored_flag(ignored));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// A folder with a root in it, and what its runs leave on the engine.
struct Place {
    folder: TempDir,
    image: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        for root in ["root", "moat-runs"] {
            engine::sweep(&self.folder.path().join(root));
        }
    }
}

/// A process that is killed when a test ends early.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Place {
    fn new() -> Self {
        let image =
            engine::block_on(async { image::provide(&engine::connect().unwrap()).await.unwrap() });
        let folder = tempfile::Builder::new()
            .prefix("moat-test-")
            .tempdir()
            .unwrap();
        Self { folder, image }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn audit(&self, run: &str) -> PathBuf {
        self.root().join(run).join("logs.jsonl")
    }

    /// `run --root ROOT --network none OPTIONS IMAGE -- STEPS`
    fn run(&self, options: &[&str], steps: &str) -> Command {
        let mut command = example("run");
        command
            .arg("--root")
            .arg(self.root())
            .args(["--network", "none"]);
        command
            .args(options)
            .arg(&self.image)
            .arg("--")
            .args(steps.split(' '));
        command
    }

    /// `runs --root ROOT ARGUMENTS`
    fn runs(&self, arguments: &[&str]) -> Command {
        let mut command = example("runs");
        command.arg("--root").arg(self.root()).args(arguments);
        command
    }
}

/// Cargo builds the examples with the tests, into a folder beside theirs.
fn example(name: &str) -> Command {
    let mut folder = std::env::current_exe().unwrap();
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let program = folder.join("examples").join(name);
    assert!(
        program.exists(),
        "{} is missing: `cargo test --test examples` alone does not build it, `cargo build \
         --examples` does",
        program.display()
    );
    Command::new(program)
}

fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The last line of stderr says where the audit is.
#[track_caller]
fn audit_of(output: &Output) -> PathBuf {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = stderr.lines().last().unwrap_or_default();
    let path = last.strip_prefix("audit: ");
    PathBuf::from(path.unwrap_or_else(|| panic!("no audit in the last line: {stderr}")))
}

fn wait_for(what: &str, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{what} did not come"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn audited(path: &Path, text: &str) {
    wait_for(text, || {
        fs::read_to_string(path).unwrap_or_default().contains(text)
    });
}

fn signal(process: &Process, name: &str) {
    let id = process.0.id().to_string();
    let status = Command::new("kill")
        .args(["-s", name, &id])
        .status()
        .unwrap();
    assert!(status.success());
}

fn quickstart_says_how_to_get_an_image(place: &Place) {
    let mut command = example("quickstart");
    command.current_dir(place.folder.path());
    command.arg("moat-test.invalid/nothing:here");
    let output = output(command);
    assert_code(&output, 1);
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("moat-test.invalid/nothing:here"),
        "{stderr}"
    );
    assert!(stderr.contains("docker import"), "{stderr}");
}

fn run_exits_with_the_containers_code_and_prints_both_streams_where_they_belong(place: &Place) {
    let output = output(place.run(&["--name", "first"], "echo out + warn err + exit 7"));
    assert_code(&output, 7);
    assert_eq!(text(&output.stdout), "out\n");
    let audit = place.audit("first");
    assert_eq!(
        text(&output.stderr),
        format!("err\naudit: {}\n", audit.display())
    );
    let audit = Audit::read(&audit).unwrap();
    assert_eq!(audit.stream("stdout"), b"out\n");
    assert_eq!(audit.stream("stderr"), b"err\n");
    assert_eq!(audit.verdict(), "complete");
}

fn one_changed_byte_is_found_with_moat_and_with_coreutils(place: &Place) {
    assert_code(
        &output(place.run(&["--name", "first"], "echo out + exit 7")),
        7,
    );
    assert_code(&output(place.runs(&["verify", "first"])), 0);
    let sum = |path: &Path| {
        let script = "head -c -78 \"$1\" | sha256sum | cut -c -64; tail -c 67 \"$1\" | head -c 64";
        let output = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(path)
            .output()
            .unwrap();
        let text = text(&output.stdout);
        let (found, sealed) = text.split_once('\n').unwrap();
        found == sealed
    };
    let path = place.audit("first");
    assert!(sum(&path));
    let bytes = fs::read(&path).unwrap();
    let changed = place.folder.path().join("changed.jsonl");
    let code = text(&bytes).find("\"code\":7").unwrap() + 7;
    for at in (0..bytes.len()).step_by(97).chain([code]) {
        let mut copy = bytes.clone();
        copy[at] ^= 1;
        fs::write(&changed, &copy).unwrap();
        let output = output(place.runs(&["verify", changed.to_str().unwrap()]));
        assert_ne!(output.status.code(), Some(0), "byte {at} was changed");
        assert!(!sum(&changed), "byte {at} was changed");
    }
}

fn run_shows_the_options_effects_in_the_container(place: &Place) {
    let host = place.folder.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "from the host\n").unwrap();
    let volume = format!("{}:/data:ro", host.display());
    let options = [
        "--env",
        "A=1",
        "--env",
        "B=x=y",
        "--workdir",
        "/work",
        "--user",
        "1000:1001",
        "--volume",
        &volume,
        "--memory",
        "67108864",
        "--backstop",
        "none",
    ];
    let steps = "env A + env B + pwd + whoami + read /data/file + write /data/x y";
    let output = output(place.run(&options, steps));
    assert_code(&output, 3);
    assert_eq!(
        text(&output.stdout),
        "1\nx=y\n/work\n1000:1001\nfrom the host\n"
    );
    let audit = Audit::read(&audit_of(&output)).unwrap();
    assert_eq!(audit.evidence(), "eof", "nothing stands behind the tap");
}

fn run_exits_with_125_for_errors(place: &Place) {
    assert_code(&output(example("run")), 125);
    assert_code(&output(place.run(&["--timeout", "soon"], "exit 0")), 125);
    assert_code(&output(place.run(&["--env", "NAME"], "exit 0")), 125);

    let file = place.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let mut command = example("run");
    command
        .arg("--root")
        .arg(file.join("root"))
        .args([&place.image, "exit", "0"]);
    let found = output(command);
    assert_code(&found, 125);
    assert!(text(&found.stderr).contains(file.to_str().unwrap()));

    let mut command = place.run(&[], "exit 0");
    command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let found = output(command);
    assert_code(&found, 125);
    assert!(text(&found.stderr).contains("/nowhere/docker.sock"));

    let mut command = example("run");
    command
        .arg("--root")
        .arg(place.root())
        .arg("moat-test.invalid/nothing:here");
    let found = output(command);
    assert_code(&found, 125);
    assert!(text(&found.stderr).contains("moat-test.invalid/nothing:here"));
    assert_eq!(
        Audit::read(&audit_of(&found)).unwrap().evidence(),
        "never_started"
    );
}

fn run_exits_with_124_when_the_time_limit_stopped_it(place: &Place) {
    let options = ["--timeout", "1", "--grace", "0.5"];
    let output = output(place.run(&options, "deaf + echo ready + sleep 600"));
    assert_code(&output, 124);
    assert_eq!(text(&output.stdout), "ready\n");
    Audit::read(&audit_of(&output)).unwrap();
}

fn an_interrupt_stops_the_run_and_prints_the_audit(place: &Place) {
    let mut command = place.run(&["--name", "first"], "trap --exit 5");
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = Process(child);
    let mut stdout = BufReader::new(process.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "output is live");
    signal(&process, "INT");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "caught SIGTERM\n");
    let mut stderr = String::new();
    process
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    assert_eq!(process.0.wait().unwrap().code(), Some(5), "{stderr}");
    let audit = place.audit("first");
    assert!(
        stderr.ends_with(&format!("audit: {}\n", audit.display())),
        "{stderr}"
    );
    assert_eq!(Audit::read(&audit).unwrap().verdict(), "complete");
}

fn output_is_passed_on_byte_for_byte(place: &Place) {
    let found = output(place.run(&[], "bytes 300000 --seed 7 + long 100000 --utf8"));
    assert_code(&found, 0);
    let mut expected = sequence::noise(7, 300_000);
    expected.extend(sequence::long(100_000, true));
    expected.push(b'\n');
    assert!(found.stdout == expected);
    let found = output(place.run(&["--tty"], "tty-hostile"));
    let shown = text(
        &sequence::TTY_HOSTILE
            .iter()
            .map(|b| b & 0x7f)
            .collect::<Vec<_>>(),
    );
    assert!(shown.ends_with("hidden\n"));
    assert!(
        found.stdout.ends_with(b"\xff x\r\nhidden\r\n"),
        "{:?}",
        found.stdout
    );
}

fn a_reader_that_leaves_does_not_end_the_audit(place: &Place) {
    let mut command = place.run(&["--name", "first"], "lines 5000 + exit 4");
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = Process(child);
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(process.0.wait().unwrap().code(), Some(4));
    let audit = Audit::read(&place.audit("first")).unwrap();
    sequence::check(audit.stream("stdout"), "out", 5000, 64).unwrap();
    assert_eq!(audit.verdict(), "complete");
}

/// A line of any length, and any number of lines, go through bounded memory.
fn a_large_output_takes_little_memory(place: &Place) {
    let soak = std::env::var("MOAT_SOAK").is_ok_and(|value| value == "1");
    let bytes = if soak { 1_000_000_000 } else { 60_000_000 };
    let steps = format!("fill {bytes} + lines 20000 + sleep 0.5");
    let mut command = place.run(&["--name", "first"], &steps);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut process = Process(child);
    let status = format!("/proc/{}/status", process.0.id());
    let mut peak = 0;
    while process.0.try_wait().unwrap().is_none() {
        let found = fs::read_to_string(&status).unwrap_or_default();
        let high = found.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = high.and_then(|high| high.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(peak > 0 && peak < 32 << 10, "{peak} KiB resident");
    let found = output(place.runs(&["verify", "first"]));
    assert_code(&found, 0);
    let total = bytes + 20_000 * 65;
    assert!(
        text(&found.stdout).contains(&format!(" {total} bytes")),
        "{}",
        text(&found.stdout)
    );
}

fn a_killed_run_is_recovered_with_every_line_once(place: &Place) {
    let steps = "lines 2000 --burst 10 --delay-ms 5";
    let mut command = place.run(&["--name", "first"], steps);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    audited(&place.audit("first"), "out 00000300 ");
    drop(process);
    let found = output(place.runs(&["recover"]));
    assert_code(&found, 0);
    let stdout = text(&found.stdout);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(
        stdout.contains("first") && stdout.contains("complete"),
        "{stdout}"
    );
    let audit = Audit::read(&place.audit("first")).unwrap();
    sequence::check(audit.stream("stdout"), "out", 2000, 64).unwrap();
}

fn a_detached_run_is_listed_waited_for_and_removed(place: &Place) {
    let found = output(place.run(&["--detach"], "lines 100 + sleep 0.5 + exit 9"));
    assert_code(&found, 0);
    let id = text(&found.stdout).trim().to_owned();
    audit_of(&found);
    let found = output(place.runs(&["list", "--json"]));
    assert_code(&found, 0);
    let listed: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(listed[0]["run"], id.as_str());
    assert_eq!(listed[0]["state"], "running");
    let found = output(place.runs(&["wait", &id]));
    assert_code(&found, 9);
    let found = output(place.runs(&["logs", &id]));
    assert_code(&found, 0);
    assert_eq!(found.stdout, sequence::lines("out", 100, 64));
    assert_code(&output(place.runs(&["verify", &id])), 0);
    assert_code(&output(place.runs(&["remove", &id])), 0);
    assert!(!place.root().join(&id).exists());
    assert_code(&output(place.runs(&["wait", &id])), 125);
}

fn runs_can_follow_and_stop_a_run_of_another_process(place: &Place) {
    let mut command = place.run(&["--name", "first"], "lines 100 + trap --exit 5");
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut owner = Process(child);
    audited(&place.audit("first"), "ready");
    let mut follow = place.runs(&["logs", "first", "--follow"]);
    let follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut wait = place.runs(&["wait", "first"]);
    let wait = wait.stdout(Stdio::piped()).spawn().unwrap();
    let refused = output(place.runs(&["remove", "first"]));
    assert_code(&refused, 125);
    assert_code(&output(place.runs(&["stop", "first"])), 0);
    let followed = follow.wait_with_output().unwrap();
    let mut expected = sequence::lines("out", 100, 64);
    expected.extend_from_slice(b"ready\ncaught SIGTERM\n");
    assert!(followed.stdout == expected, "{}", text(&followed.stdout));
    assert_code(&wait.wait_with_output().unwrap(), 5);
    assert_eq!(owner.0.wait().unwrap().code(), Some(5));
}

fn files_alone_are_enough_to_list_read_and_verify(place: &Place) {
    assert_code(
        &output(place.run(&["--name", "first"], "echo out + warn err + exit 7")),
        7,
    );
    let alone = |arguments: &[&str]| {
        let mut command = place.runs(arguments);
        command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
        output(command)
    };
    let listed = alone(&["list"]);
    assert_code(&listed, 0);
    let table = text(&listed.stdout);
    assert!(
        table.contains("first") && table.contains("exited"),
        "{table}"
    );
    let logs = alone(&["logs", "first"]);
    assert_eq!(
        (text(&logs.stdout), text(&logs.stderr)),
        ("out\n".into(), "err\n".into())
    );
    assert_code(&alone(&["verify", "first"]), 0);
    assert_code(&alone(&["verify", "other"]), 125);
    assert_code(&alone(&["wait", "first"]), 125);
}

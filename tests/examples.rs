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
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use tempfile::TempDir;

#[path = "support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use support::audit::Audit;
use support::{busybox, engine, image, sequence};

macro_rules! trials {
    ($($name:ident),* $(,)?) => {
        vec![$(Trial::test(stringify!($name), || {
            $name(&Place::default());
            Ok(())
        })),*]
    };
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    let ignored = !cfg!(feature = "docker") || !engine::is_expected();
    let without_engine = trials![
        quickstart_runs_a_local_process_where_there_is_no_engine_and_says_so,
        run_runs_a_local_process_as_it_runs_a_container,
        what_a_local_process_cannot_have_is_refused_by_name,
        a_large_output_of_a_local_process_takes_little_memory,
        a_killed_run_of_a_local_process_leaves_no_child_behind_and_is_sealed_as_lost,
    ];
    let trials: Vec<Trial> = trials![
        quickstart_says_how_to_get_an_image,
        quickstart_says_which_engine_it_has_found,
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
    let of_tests = trials![in_tests_passes_and_shows_the_output_of_a_service_with_a_failure];
    let with_tests = cfg!(feature = "blocking") && busybox::is_here();
    let with_namespaces =
        trials![a_killed_run_of_a_local_process_harms_no_process_in_a_terminal_of_others];
    let trials = trials
        .into_iter()
        .map(|trial| trial.with_ignored_flag(ignored))
        .chain(without_engine)
        .chain(
            of_tests
                .into_iter()
                .map(|trial| trial.with_ignored_flag(ignored || !with_tests)),
        )
        .chain(
            with_namespaces
                .into_iter()
                .map(|trial| trial.with_ignored_flag(!has_namespaces())),
        );
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// A folder with a root in it, and what its runs leave on the engine.
struct Place {
    dir: TempDir,
    image: OnceLock<String>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.image.get().is_none() {
            return;
        }
        for root in ["root", "moat-runs"] {
            engine::sweep(&self.dir.path().join(root));
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

impl Default for Place {
    fn default() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("moat-test-")
            .tempdir()
            .unwrap();
        Self {
            dir,
            image: OnceLock::new(),
        }
    }
}

impl Place {
    /// The image, where there is an engine to have it.
    fn image(&self) -> &str {
        self.image.get_or_init(|| {
            engine::block_on(async { image::provide(&engine::connect().unwrap()).await.unwrap() })
        })
    }

    /// `run --root ROOT --runtime process OPTIONS -- sh -c SCRIPT`
    fn process(&self, options: &[&str], script: &str) -> Command {
        let mut command = example("run");
        command
            .arg("--root")
            .arg(self.root())
            .args(["--runtime", "process"]);
        command.args(options).args(["--", "sh", "-c", script]);
        command
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
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
            .arg(self.image())
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

fn example(name: &str) -> Command {
    Command::new(support::example::program(name))
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

fn in_tests_passes_and_shows_the_output_of_a_service_with_a_failure(place: &Place) {
    let docker = engine::connect().unwrap();
    let image = engine::block_on(async { busybox::provide(&docker).await.unwrap() });
    let mut command = example("in_tests");
    command
        .current_dir(place.dir.path())
        .args([&*image, "fail"]);
    let found = output(command);
    let root = place.dir.path().join("target/in-tests");
    let id = engine::root_id(&root).unwrap();
    let left = engine::block_on(async { engine::containers(&docker, &id).await.unwrap() });
    engine::sweep(&root);
    assert_code(&found, 1);
    assert_eq!(
        text(&found.stdout),
        "test the page says hello ... ok\ntest other pages are not there ... ok\n\
         test without async ... ok\ntest fails ... FAILED\n"
    );
    let stderr = text(&found.stderr);
    let shown = stderr.split("\nmoat: ").skip(1).collect::<Vec<_>>();
    assert_eq!(shown.len(), 2, "{stderr}");
    let (_, lines) = shown[0].split_once("; its last lines:\n").unwrap();
    // They are of two streams, between which there is no order.
    for line in ["  starting", "  listening"] {
        assert!(lines.lines().any(|shown| shown == line), "{stderr}");
    }
    let audit = shown[1].trim().strip_prefix("audit file: ").unwrap();
    let audit = Audit::read(&place.dir.path().join(audit)).unwrap();
    assert_eq!(audit.verdict(), "complete");
    assert!(left.is_empty(), "{left:?}");
}

/// Whether or not that has busybox.
fn quickstart_says_which_engine_it_has_found(place: &Place) {
    place.image();
    let mut command = example("quickstart");
    command.current_dir(place.dir.path());
    let found = output(command);
    assert_code(&found, 0);
    let stdout = text(&found.stdout);
    assert!(
        stdout.starts_with("runtime: Docker Engine ")
            || stdout.starts_with("runtime: Podman Engine "),
        "{stdout}"
    );
    assert!(stdout.contains("stdout: hello, stranger\n"), "{stdout}");
    assert!(stdout.contains("exited with code 3; audit complete"));
}

fn quickstart_runs_a_local_process_where_there_is_no_engine_and_says_so(place: &Place) {
    let mut command = example("quickstart");
    command.current_dir(place.dir.path());
    command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let found = output(command);
    assert_code(&found, 0);
    let stdout = text(&found.stdout);
    let mut lines = stdout.lines();
    let first = lines.next().unwrap();
    assert!(first.starts_with("runtime: local processes"), "{stdout}");
    let why = match cfg!(feature = "docker") {
        true => "/nowhere/docker.sock",
        false => "without its feature `docker`",
    };
    assert!(first.contains(why), "{stdout}");
    assert!(stdout.contains("stdout: hello, stranger\n"), "{stdout}");
    assert!(stdout.contains("exited with code 3; audit complete"));
    let audit = stdout.lines().last().unwrap().strip_prefix("audit: ");
    Audit::read(&place.dir.path().join(audit.unwrap())).unwrap();
}

fn run_runs_a_local_process_as_it_runs_a_container(place: &Place) {
    let found = output(place.process(&["--name", "first"], "echo a; echo b >&2; exit 7"));
    assert_code(&found, 7);
    assert_eq!(text(&found.stdout), "a\n");
    let path = place.audit("first");
    assert_eq!(
        text(&found.stderr),
        format!("b\naudit: {}\n", path.display())
    );
    let audit = Audit::read(&path).unwrap();
    assert_eq!(audit.stream("stdout"), b"a\n");
    assert_eq!(audit.stream("stderr"), b"b\n");
    assert_eq!((audit.verdict(), audit.evidence()), ("complete", "eof"));
    assert_code(&output(place.runs(&["verify", "first"])), 0);
    assert_code(
        &output(place.runs(&["wait", "first", "--runtime", "process"])),
        7,
    );
    let removed = output(place.runs(&["remove", "first", "--runtime", "process"]));
    assert_code(&removed, 0);
    assert!(!path.exists());

    let found = output(place.process(&["--tty"], "test -t 1 && stty size"));
    assert_code(&found, 0);
    assert_eq!(text(&found.stdout), "24 80\r\n");
    let found = output(place.process(&["--workdir", "/"], "pwd"));
    assert_code(&found, 0);
    assert_eq!(text(&found.stdout), "/\n");
    let found = output(place.process(&["--timeout", "0.2"], "sleep 600"));
    assert_code(&found, 124);
}

fn what_a_local_process_cannot_have_is_refused_by_name(place: &Place) {
    for (options, field) in [
        (&["--memory", "67108864"][..], "memory"),
        (&["--network", "none"], "network"),
        (&["--user", "0"], "user"),
        (&["--volume", "/tmp:/data"], "mounts"),
        (&["--detach"], "detached"),
    ] {
        let found = output(place.process(options, "true"));
        assert_code(&found, 125);
        let stderr = text(&found.stderr);
        assert!(stderr.contains(&format!("invalid {field}")), "{stderr}");
    }
    let found = output(place.process(&[], "true"));
    assert_code(&found, 0);
}

fn a_killed_run_of_a_local_process_leaves_no_child_behind_and_is_sealed_as_lost(place: &Place) {
    let marker = format!("moat-test-marker-{}", std::process::id());
    let script = format!(
        "trap '' TERM HUP; sh -c ': {marker}; while :; do sleep 1; done' & \
         echo begun; while :; do sleep 1; done"
    );
    let mut command = place.process(&["--name", "first"], &script);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    audited(&place.audit("first"), "\"line\":\"begun");
    let children = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines
            .filter(|line| String::from_utf8_lossy(line).contains(&marker))
            .count()
    };
    wait_for("the run, its shell, and that one's child", || {
        children() >= 3
    });
    drop(process);
    wait_for("the end of all", || children() == 0);
    let found = output(place.runs(&["recover", "--runtime", "process"]));
    assert_code(&found, 0);
    let stdout = text(&found.stdout);
    assert!(stdout.contains("first lost: "), "{stdout}");
    let audit = Audit::read(&place.audit("first")).unwrap();
    assert_eq!(audit.stream("stdout"), b"begun\n");
    assert_eq!(audit.verdict(), "gap");
    assert_eq!(audit.all("gap")[0]["reason"], "no_backstop");
}

/// A command in a world of its own, where terminals are counted from 0. It ends with its parent.
fn world(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c"]);
    command.arg(format!(
        "mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts && \
         mount --bind /dev/pts/ptmx /dev/ptmx && {script}"
    ));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Whether this user may have such a world, and has what makes a terminal there.
fn has_namespaces() -> bool {
    let made = world("script -qc true /dev/null").status();
    made.is_ok_and(|status| status.success())
}

/// A terminal's number is not its own: each container counts its own from 0.
fn a_killed_run_of_a_local_process_harms_no_process_in_a_terminal_of_others(place: &Place) {
    let marker = std::process::id();
    let script = format!(": its-{marker}; tty; while :; do sleep 1; done");
    let mut command = place.process(&["--name", "first", "--tty"], &script);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let process = Process(child.unwrap());
    audited(&place.audit("first"), "\"line\":\"/dev/pts/");
    let audit = fs::read_to_string(place.audit("first")).unwrap();
    let (_, number) = audit.split_once("\"line\":\"/dev/pts/").unwrap();
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap();
    let others = number[..digits].parse::<usize>().unwrap() + 1;
    let sleep = format!("1000.{marker}");
    let child = world(&format!(
        "for one in $(seq {others}); do script -qc 'exec sleep {sleep}' /dev/null & done; wait"
    ));
    let _world = Process({ child }.spawn().unwrap());
    let processes = |args: &str| {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let args = args.as_bytes();
        lines.filter(|line| line.starts_with(args)).count()
    };
    let their = format!("sleep\0{sleep}\0");
    wait_for("the terminals of others", || processes(&their) == others);
    drop(process);
    let its = format!("sh\0-c\0: its-{marker};");
    wait_for("the end of all that is its own", || processes(&its) == 0);
    // Its guardian is the last to go.
    wait_for("the end of its guardian", || {
        let found = output(place.runs(&["recover", "--runtime", "process"]));
        text(&found.stdout).contains("first lost: ")
    });
    assert_eq!(processes(&their), others);
}

fn quickstart_says_how_to_get_an_image(place: &Place) {
    place.image();
    let mut command = example("quickstart");
    command.current_dir(place.dir.path());
    command.arg("localhost:1/nothing:here");
    let output = output(command);
    assert_code(&output, 1);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("localhost:1/nothing:here"), "{stderr}");
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
    let changed = place.dir.path().join("changed.jsonl");
    let code = text(&bytes).find("\"code\":7").unwrap() + 7;
    for at in (0..bytes.len()).step_by(97).chain([code]) {
        let mut copy = bytes.clone();
        copy[at] ^= 1;
        fs::write(&changed, &copy).unwrap();
        let output = output(place.runs(&["verify", changed.to_str().unwrap()]));
        assert_ne!(output.status.code(), Some(0), "byte {at} was changed");
        // What frames the digest is the same in every seal, and for moat alone to look at.
        let from_end = bytes.len() - at;
        let frames = from_end <= 3 || (68..=78).contains(&from_end);
        assert!(frames || !sum(&changed), "byte {at} was changed");
    }
}

fn run_shows_the_options_effects_in_the_container(place: &Place) {
    let host = place.dir.path().join("host");
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

    let file = place.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let mut command = example("run");
    command
        .arg("--root")
        .arg(file.join("root"))
        .args([place.image(), "exit", "0"]);
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
        .arg("localhost:1/nothing:here");
    let found = output(command);
    assert_code(&found, 125);
    assert!(text(&found.stderr).contains("localhost:1/nothing:here"));
    assert_eq!(
        Audit::read(&audit_of(&found)).unwrap().evidence(),
        "never_started"
    );
}

fn run_exits_with_124_when_the_time_limit_stopped_it(place: &Place) {
    let options = ["--timeout", "4", "--grace", "2"];
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
    let steps = format!("fill {bytes} + lines 20000 + sleep 3");
    let mut command = place.run(&["--name", "first"], &steps);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let peak = support::example::peak(&mut Process(child).0);
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

fn a_large_output_of_a_local_process_takes_little_memory(place: &Place) {
    let script = "head -c 100000000 /dev/zero | tr '\\0' x | fold -w 99; sleep 0.5";
    let mut command = place.process(&["--name", "first"], script);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let peak = support::example::peak(&mut Process(child).0);
    assert!(peak > 0 && peak < 32 << 10, "{peak} KiB resident");
    let found = output(place.runs(&["verify", "first"]));
    assert_code(&found, 0);
    // A newline after each 99 characters but the last ones.
    let total = 100_000_000 + (100_000_000 - 1) / 99;
    let stdout = text(&found.stdout);
    // Where the disk stands still for seconds the live output is given up, and nothing is behind it.
    let whole = stdout.contains(&format!(" {total} bytes"));
    assert!(whole || stdout.contains("audit gap\n"), "{stdout}");
}

fn a_killed_run_is_recovered_with_every_line_once(place: &Place) {
    let steps = "lines 2000 --burst 10 --delay-ms 25";
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
    let found = output(place.run(&["--detach"], "lines 100 + sleep 5 + exit 9"));
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

//! The examples with local processes.

use std::fs;
use std::process::{Command, Stdio};

use testkit::audit::Audit;
use testkit::deadline::wait_for;
use testkit::examples;

use crate::place::{Place, Process, assert_code, audited, output, text};

testkit::trials! {
    crate::anywhere:
        run_starts_a_local_process,
        unsupported_options_are_refused_by_name,
        large_output_takes_bounded_memory,
        a_killed_run_leaves_no_child;
    crate::in_namespaces:
        a_kill_spares_terminals_in_namespaces,
}

fn run_starts_a_local_process(place: &Place) {
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
    assert_eq!(
        (audit.verdict(), audit.evidence()),
        ("complete", "end_marker")
    );
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

fn unsupported_options_are_refused_by_name(place: &Place) {
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

fn large_output_takes_bounded_memory(place: &Place) {
    let script = "head -c 100000000 /dev/zero | tr '\\0' x | fold -w 99; sleep 0.5";
    let mut process = Process::start_silent(place.process(&["--name", "first"], script));
    let peak = examples::peak(&mut process.0);
    // 33 MiB were measured with all features, unoptimized: the mapped program counts.
    assert!(peak > 0 && peak < 44 << 10, "{peak} KiB resident");
    let found = output(place.runs(&["verify", "first"]));
    assert_code(&found, 0);
    // A newline after each 99 characters except the last.
    let total = 100_000_000 + (100_000_000 - 1) / 99;
    let stdout = text(&found.stdout);
    // If the disk stalls for seconds, live output is lost, and there is no backstop.
    let whole = stdout.contains(&format!(" {total} bytes"));
    assert!(whole || stdout.contains("audit gap\n"), "{stdout}");
}

fn a_killed_run_leaves_no_child(place: &Place) {
    let marker = format!("moat-test-marker-{}", std::process::id());
    let script = format!(
        "trap '' TERM HUP; sh -c ': {marker}; while :; do sleep 1; done' & \
         echo begun; while :; do sleep 1; done"
    );
    let process = Process::start_silent(place.process(&["--name", "first"], &script));
    audited(&place.audit("first"), "\"line\":\"begun");
    let children = || count_processes(|line| String::from_utf8_lossy(line).contains(&marker));
    wait_for("the run, its shell and its child", || children() >= 3);
    drop(process);
    wait_for("the end of all processes", || children() == 0);
    let found = output(place.runs(&["recover", "--runtime", "process"]));
    assert_code(&found, 0);
    let stdout = text(&found.stdout);
    assert!(stdout.contains("first lost: "), "{stdout}");
    let audit = Audit::read(&place.audit("first")).unwrap();
    assert_eq!(audit.stream("stdout"), b"begun\n");
    assert_eq!(audit.verdict(), "gap");
    assert_eq!(audit.all("gap")[0]["reason"], "no_backstop");
}

/// The number of processes whose command line matches.
fn count_processes(matches: impl Fn(&[u8]) -> bool) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| matches(line)).count()
}

/// A command in separate namespaces, where terminals count from 0. It ends with its parent.
fn in_namespaces(script: &str) -> Command {
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

/// True if this user may create such namespaces, and `script` is installed.
pub fn has_namespaces() -> bool {
    let made = in_namespaces("script -qc true /dev/null").status();
    made.is_ok_and(|status| status.success())
}

/// A terminal's number is not unique: each container counts from 0.
fn a_kill_spares_terminals_in_namespaces(place: &Place) {
    let marker = std::process::id();
    let script = format!(": its-{marker}; tty; while :; do sleep 1; done");
    let process = Process::start_silent(place.process(&["--name", "first", "--tty"], &script));
    audited(&place.audit("first"), "\"line\":\"/dev/pts/");
    let audit = fs::read_to_string(place.audit("first")).unwrap();
    let (_, number) = audit.split_once("\"line\":\"/dev/pts/").unwrap();
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap();
    let others = number[..digits].parse::<usize>().unwrap() + 1;
    let sleep = format!("1000.{marker}");
    let _others = Process::start_silent(in_namespaces(&format!(
        "for one in $(seq {others}); do script -qc 'exec sleep {sleep}' /dev/null & done; wait"
    )));
    let processes = |args: &str| count_processes(|line| line.starts_with(args.as_bytes()));
    let their = format!("sleep\0{sleep}\0");
    wait_for("the terminals of others", || processes(&their) == others);
    drop(process);
    let its = format!("sh\0-c\0: its-{marker};");
    wait_for("the end of its processes", || processes(&its) == 0);
    // The guardian is the last process.
    wait_for("the end of its guardian", || {
        let found = output(place.runs(&["recover", "--runtime", "process"]));
        text(&found.stdout).contains("first lost: ")
    });
    assert_eq!(processes(&their), others);
}

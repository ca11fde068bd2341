//! The example `run`, on an engine.

use std::fs;
use std::io::{BufRead, BufReader, Read};

use testkit::audit::Audit;
use testkit::{examples, sequence};

use crate::place::{Place, Process, assert_code, audit_of, example, output, signal, text};

testkit::trials! {
    crate::on_engine:
        it_passes_exit_code_and_streams,
        options_have_their_effect,
        errors_exit_with_125,
        a_time_limit_exits_with_124,
        an_interrupt_stops_the_run,
        output_is_passed_byte_for_byte,
        a_closed_stdout_does_not_end_the_audit,
        large_output_takes_bounded_memory,
}

fn it_passes_exit_code_and_streams(place: &Place) {
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

fn options_have_their_effect(place: &Place) {
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
    let evidence = ["eof", "end_marker"];
    assert!(evidence.contains(&audit.evidence()), "there is no backstop");
}

fn errors_exit_with_125(place: &Place) {
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

fn a_time_limit_exits_with_124(place: &Place) {
    let options = ["--timeout", "4", "--grace", "2"];
    let output = output(place.run(&options, "ignore-term + echo ready + sleep 600"));
    assert_code(&output, 124);
    assert_eq!(text(&output.stdout), "ready\n");
    Audit::read(&audit_of(&output)).unwrap();
}

fn an_interrupt_stops_the_run(place: &Place) {
    let command = place.run(&["--name", "first"], "trap --exit 5");
    let mut process = Process::start(command);
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

fn output_is_passed_byte_for_byte(place: &Place) {
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

fn a_closed_stdout_does_not_end_the_audit(place: &Place) {
    let command = place.run(&["--name", "first"], "lines 5000 + exit 4");
    let mut process = Process::start(command);
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(process.0.wait().unwrap().code(), Some(4));
    let audit = Audit::read(&place.audit("first")).unwrap();
    sequence::check(audit.stream("stdout"), "out", 5000, 64).unwrap();
    assert_eq!(audit.verdict(), "complete");
}

/// Lines of any length and number take bounded memory.
fn large_output_takes_bounded_memory(place: &Place) {
    let soak = std::env::var("MOAT_SOAK").is_ok_and(|value| value == "1");
    let bytes = if soak { 1_000_000_000 } else { 60_000_000 };
    let steps = format!("fill {bytes} + lines 20000 + sleep 3");
    let mut process = Process::start_silent(place.run(&["--name", "first"], &steps));
    let peak = examples::peak(&mut process.0);
    // 33 MiB were measured with all features, unoptimized: the mapped program counts.
    assert!(peak > 0 && peak < 44 << 10, "{peak} KiB resident");
    let found = output(place.runs(&["verify", "first"]));
    assert_code(&found, 0);
    let total = bytes + 20_000 * 65;
    assert!(
        text(&found.stdout).contains(&format!(" {total} bytes")),
        "{}",
        text(&found.stdout)
    );
}

//! The output of the program, and the secrets that it masks.

use std::fs;
use std::io::Read;
use std::num::NonZero;

use pty_process::Size;

use crate::fixture::{Fixture, program, run};

testkit::trials! {
    crate::anywhere:
        secrets_appear_only_in_the_audit,
        a_truncated_secret_is_in_no_view,
        output_cannot_issue_github_commands,
        a_terminal_shows_one_line_per_step,
        a_closed_stdout_does_not_fail_the_build,
        only_the_last_lines_are_printed,
}

fn secrets_appear_only_in_the_audit(fixture: &Fixture) {
    let secret = "s3cr3t-Zq7w";
    // The last secret spans two records of the audit, which have 16 KiB each.
    let pipeline = "[[step]]\nname = 'a'\nsecrets = ['MOAT_TEST_SECRET']\ncommands = [\n\
        'echo \"it is $MOAT_TEST_SECRET\"', 'echo \"$MOAT_TEST_SECRET\" >&2',\n\
        'head -c 16380 /dev/zero | tr \"\\0\" x; echo \"$MOAT_TEST_SECRET\"', 'exit 3']\n";
    let mut command = fixture.process(pipeline);
    command.env("MOAT_TEST_SECRET", secret);
    let out = run(command, 1);
    let audit = &fixture.audits()["a 1"];
    let printed = String::from_utf8_lossy(audit.stream("stdout")).into_owned();
    assert_eq!(printed.matches(secret).count(), 2);
    assert!(
        out.contains("it is ***\n") && out.contains("xxx***\n"),
        "{out}"
    );
    for file in ["report.html", "junit.xml"] {
        let text = fs::read_to_string(fixture.path().join("out").join(file)).unwrap();
        assert!(!text.contains("s3cr") && !text.contains("Zq7w"), "{text}");
    }
    assert!(!out.contains("s3cr") && !out.contains("Zq7w"), "{out}");
    let junit = fs::read_to_string(fixture.path().join("out/junit.xml")).unwrap();
    assert!(junit.contains("it is ***"), "{junit}");
}

/// Only the start of a long line is shown. Its end cuts through a secret.
///
/// The secret has no text that can be in a run id or in the name of a temporary directory.
fn a_truncated_secret_is_in_no_view(fixture: &Fixture) {
    let secret: String = (1000..4000).map(|n| format!("~{n}")).collect();
    let pipeline = "[[step]]\nname = 'a'\nsecrets = ['MOAT_TEST_SECRET']\ncommands = [\n\
        'head -c 55000 /dev/zero | tr \"\\0\" x; echo \"$MOAT_TEST_SECRET\"', 'exit 3']\n";
    let mut command = fixture.process(pipeline);
    command.env("MOAT_TEST_SECRET", &secret);
    let out = run(command, 1);
    assert!(out.contains("xxx"), "{out}");
    assert!(!out.contains("~1"), "{out}");
    let junit = fs::read_to_string(fixture.path().join("out/junit.xml")).unwrap();
    assert!(junit.contains("xxx") && !junit.contains("~1"), "{junit}");
}

/// Finds commands in the output, as the runner does.
///
/// A command is at the start of a line, or in its old form anywhere in it. While commands are
/// stopped, only the token is a command.
fn commands(out: &str) -> Vec<String> {
    let mut stopped: Option<String> = None;
    let mut commands = Vec::new();
    for line in out.split(['\r', '\n']) {
        if let Some(token) = &stopped {
            if line.trim_start() == format!("::{token}::") {
                stopped = None;
            }
        } else if let Some(token) = line.trim_start().strip_prefix("::stop-commands::") {
            stopped = Some(token.to_owned());
        } else if line.trim_start().starts_with("::") || line.contains("##[") {
            commands.push(line.to_owned());
        }
    }
    assert_eq!(stopped, None);
    commands
}

fn output_cannot_issue_github_commands(fixture: &Fixture) {
    let pipeline = r###"
        [[step]]
        name = "bad"
        commands = [
            "echo ::error::from the container; echo '##[error]from the container'",
            "echo ::stop-commands::; echo ::endgroup::; printf '::warning::\\r::notice::'",
            "exit 7",
        ]
        [[step]]
        name = "may"
        allow_failure = true
        matrix = { key = ["##[x]::set-env name=a::b"] }
        commands = ["exit 8"]
        [[step]]
        name = "good"
        commands = ["echo '::add-mask::x'"]
    "###;
    let mut command = fixture.process(pipeline);
    command.env("GITHUB_ACTIONS", "true");
    let out = run(command, 1);
    assert!(out.contains("::error::from the container\n"), "{out}");
    let commands = commands(&out);
    let ours = |start: &str| commands.iter().filter(|c| c.starts_with(start)).count();
    assert_eq!(ours("::group::"), 3, "{commands:?}");
    assert_eq!(ours("::endgroup::"), 3, "{commands:?}");
    assert_eq!(
        ours("::error title=bad::bad: failed: exited with code 7"),
        1
    );
    assert_eq!(
        ours("::warning title=may (key=##[x]%3A%3Aset-env name=a%3A%3Ab)::may"),
        1
    );
    assert_eq!(commands.len(), 8, "{commands:?}");
}

fn only_the_last_lines_are_printed(fixture: &Fixture) {
    let out = run(
        fixture.process("[[step]]\nname = 'a'\ncommands = ['seq 1 5000']\n"),
        0,
    );
    assert!(out.contains("[4000 earlier lines: "), "{out}");
    assert!(
        out.contains("]\n4001\n") && out.contains("\n5000\n"),
        "{out}"
    );
}

fn a_terminal_shows_one_line_per_step(fixture: &Fixture) {
    let pipeline = fixture.pipeline(
        "[[step]]\nname = 'slow'\ntimeout = 60\nsecrets = ['MOAT_TEST_SECRET']\n\
         commands = ['printf \"\\033[2J$MOAT_TEST_SECRET is hidden\\n\"', \
         'while ! test -e go; do sleep 0.02; done']\nworkdir = 'HERE'\n\
         [[step]]\nname = 'after'\nneeds = ['slow']\ncommands = ['echo why; exit 3']\n"
            .replace("HERE", fixture.path().to_str().unwrap())
            .as_str(),
    );
    let (mut pty, pts) = pty_process::blocking::open().unwrap();
    pty.resize(Size::new(24, 80)).unwrap();
    let command = pty_process::blocking::Command::new(program())
        .arg(pipeline)
        .args(["--runtime", "process", "--root"])
        .arg(fixture.root())
        .arg("--out")
        .arg(fixture.path().join("out"))
        .env_remove("GITHUB_ACTIONS")
        .env("TERM", "xterm-256color")
        .env("MOAT_TEST_SECRET", "s3cr3t");
    let mut child = command.spawn(pts).unwrap();
    let size = [24, 80].map(|side| NonZero::new(side).unwrap());
    let mut screen = vt100::Parser::new(size[0], size[1], 0);
    let mut released = false;
    let mut bytes = [0; 4096];
    // A read fails once the last writer has closed the terminal.
    while let Ok(read @ 1..) = pty.read(&mut bytes) {
        screen.process(&bytes[..read]);
        let shown = screen.screen().contents();
        assert!(!shown.contains("s3cr3t"), "{shown}");
        // One update of the screen can take two reads.
        if !released && shown.contains("*** is hidden") && shown.contains(" after ") {
            released = true;
            fs::write(fixture.path().join("go"), "").unwrap();
        }
    }
    let code = child.wait().unwrap().code();
    let shown = screen.screen().contents();
    assert!(released, "{shown}");
    assert_eq!(code, Some(1), "{shown}");
    let has = |words: &[&str]| {
        let line = |line: &str| words.iter().all(|word| line.contains(word));
        shown.lines().any(line)
    };
    assert!(has(&["slow", "passed"]), "{shown}");
    assert!(has(&["after", "failed", "exited with code 3"]), "{shown}");
    assert!(has(&["why"]) && has(&["junit: "]), "{shown}");
}

fn a_closed_stdout_does_not_fail_the_build(fixture: &Fixture) {
    let pipeline = fixture.pipeline("[[step]]\nname = 'a'\ncommands = ['echo a']\n");
    let (mut pty, pts) = pty_process::blocking::open().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let command = pty_process::blocking::Command::new(program())
        .arg(pipeline)
        .args(["--runtime", "process", "--root"])
        .arg(fixture.root())
        .arg("--out")
        .arg(fixture.path().join("out"))
        .env_remove("GITHUB_ACTIONS")
        .stdout(writer);
    let mut child = command.spawn(pts).unwrap();
    // A read fails once the last writer has closed the terminal.
    let _ = std::io::copy(&mut pty, &mut std::io::sink());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

//! The output of the program, and the secrets that it masks.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::num::NonZero;
use std::process::Command;

use crate::fixture::{Fixture, Process, on_terminal, run, text};

testkit::trials! {
    crate::anywhere:
        secrets_appear_only_in_the_audit,
        a_truncated_secret_is_in_no_view,
        the_junit_file_is_well_formed_xml,
        output_cannot_issue_github_commands,
        output_cannot_issue_commands_of_other_systems,
        a_terminal_shows_one_line_per_step,
        a_small_terminal_shows_failures_and_totals,
        failures_and_totals_are_the_last_lines,
        a_closed_stdout_does_not_fail_the_build,
        only_the_last_lines_are_printed,
        a_heartbeat_names_the_running_steps,
        streamed_lines_are_live_masked_and_no_commands,
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

/// A parser checks the file. Characters come from the output, a name, and the name of the pipeline.
fn the_junit_file_is_well_formed_xml(fixture: &Fixture) {
    // U+FFFF, U+FFFE, U+D800 as bytes, control characters, an unfinished escape code, and `]]>`.
    let pipeline = "name = 'p\u{ffff}<'\n[[step]]\nname = 'a'\nretries = 1\n\
        matrix = { key = ['\u{fffe}&\u{a0}'] }\ncommands = [\n\
        'printf \"x\\357\\277\\277 \\357\\277\\276 \\355\\240\\200 y\\n\"',\n\
        'printf \"\\001\\002\\010\\013\\014\\037\\177\\000 \\033[31m ]]> <z> \\033\"', 'exit 3']\n";
    run(fixture.process(pipeline), 1);
    let script = "import sys, xml.etree.ElementTree as tree\n\
        root = tree.parse(sys.argv[1]).getroot()\n\
        case = root.find('testsuite/testcase')\n\
        print(root[0].get('name'), case.get('name'), case.find('system-out').text)\n";
    let mut python = Command::new("python3");
    python.env("PYTHONUTF8", "1");
    let out = python.args(["-c", script]);
    let out = out.arg(fixture.path().join("out/junit.xml")).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    let out = text(&out.stdout);
    assert!(
        out.starts_with("p\u{fffd}< a (key=\u{fffd}&\u{a0}) x\u{fffd} \u{fffd} "),
        "{out}"
    );
    assert!(out.contains(" y\n") && out.contains(" ]]> <z> "), "{out}");
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
        ours("::warning title=may (key=## [x]%3A%3Aset-env name=a%3A%3Ab)::may"),
        1
    );
    assert_eq!(commands.len(), 8, "{commands:?}");
}

/// Commands of each CI system, between other lines. A command ends in `evil` where it can.
fn output_cannot_issue_commands_of_other_systems(fixture: &Fixture) {
    let pipeline = r####"
        [[step]]
        name = "bad"
        matrix = { key = ["##vso[task.evil]x", "##teamcity[evil]", "section_end:1:evil"] }
        commands = [
            "echo '##vso[task.prependpath]/evil'; echo 'a ##[endgroup]evil'",
            "printf '\\033[0Ksection_start:1:evil\\r\\033[0Kevil\\nsection_end:1:evil\\r\\033[0K\\n'",
            "echo \"##teamcity[setParameter name='evil' value='evil']\"",
            "printf -- '--- evil\\n+++ evil\\n~~~ evil\\n^^^ +++\\n\\033[31m+++ evil\\n'",
            "printf 'a\\r##vso[task.evil]\\r##teamcity[evil]\\r+++ evil'",
            "exit 7",
        ]
    "####;
    for (variable, commands) in [
        ("GITLAB_CI", ["section_start:", "section_end:"].as_slice()),
        ("TF_BUILD", &["##vso[", "##[group]", "##[endgroup]"]),
        ("TEAMCITY_VERSION", &["##teamcity["]),
        ("BUILDKITE", &["---", "+++", "~~~", "^^^"]),
    ] {
        let mut command = fixture.process(pipeline);
        command.env(variable, "True");
        let out = run(command, 1);
        // Separates the marker of a section from its title.
        let out = out.replace("\r\u{1b}[0K", "\n");
        assert!(!out.contains('\r'), "{out:?}");
        let is_command = |line: &&str| {
            let anywhere = variable != "BUILDKITE";
            let text = line.replace("\u{1b}[31m", "").replace("\u{1b}[0K", "");
            let at = commands.iter().find_map(|command| text.find(command));
            at.is_some_and(|at| anywhere || at == 0)
        };
        let found: Vec<_> = out.lines().filter(is_command).collect();
        let count = |text: &str| found.iter().filter(|line| line.contains(text)).count();
        let (opened, closed, issues) = match variable {
            "GITLAB_CI" => (count("section_start:"), count("section_end:"), 3),
            "TF_BUILD" => (
                count("##[group]"),
                count("##[endgroup]"),
                count("type=error"),
            ),
            "TEAMCITY_VERSION" => (count("blockOpened"), count("blockClosed"), count("ERROR")),
            _ => (count("+++ bad"), 3, 3),
        };
        assert_eq!(
            (opened, closed, issues),
            (3, 3, 3),
            "{variable}: {found:#?}"
        );
        let ours = match variable {
            "GITLAB_CI" => 6,
            // With the summary of the job.
            "TF_BUILD" => 10,
            "BUILDKITE" => 4,
            _ => 9,
        };
        assert_eq!(found.len(), ours, "{variable}: {found:#?}");
    }
    // An error shows lines of the file.
    let mut command = fixture.process("a = '##vso[task.evil]x'\n");
    let out = command.arg("--ci=azure").output().unwrap();
    let stderr = text(&out.stderr);
    assert!(stderr.contains("## vso[task.evil]x"), "{stderr}");
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

/// A step that prints `commands`, and then waits until it is released.
fn held(fixture: &Fixture, commands: &str) -> Command {
    fixture.process(&format!(
        "[[step]]\nname = 'held'\ntimeout = 60\nsecrets = ['MOAT_TEST_SECRET']\nworkdir = '{}'\n\
         commands = [{commands}, 'while ! test -e go; do sleep 0.02; done']\n\
         [[step]]\nname = 'after'\nneeds = ['held']\nexec = ['false']\n",
        fixture.path().display()
    ))
}

/// Releases a held step once a line contains `shown`. Returns the whole output.
fn release_after(fixture: &Fixture, mut command: Command, shown: &str) -> String {
    command.env("MOAT_TEST_SECRET", "s3cr3t");
    let mut process = Process::start(command);
    let mut stdout = BufReader::new(process.0.stdout.take().unwrap());
    let mut out = String::new();
    let mut released = false;
    // The time limit of the step ends the output in any case.
    while stdout.read_line(&mut out).unwrap() > 0 {
        if !released && out.contains(shown) {
            released = true;
            fs::write(fixture.path().join("go"), "").unwrap();
        }
    }
    assert!(out.contains("held: passed"), "{out}");
    assert_eq!(process.0.wait().unwrap().code(), Some(1));
    out
}

fn a_heartbeat_names_the_running_steps(fixture: &Fixture) {
    let mut command = held(fixture, "'true'");
    command.args(["--heartbeat", "1"]);
    release_after(fixture, command, "\n1 step running: held (");
}

fn streamed_lines_are_live_masked_and_no_commands(fixture: &Fixture) {
    let commands = "'echo \"a $MOAT_TEST_SECRET\"', 'echo \"##vso[task.x]$MOAT_TEST_SECRET\" >&2', \
         'printf \"s3\\033[Kcr3t\"'";
    let mut command = held(fixture, commands);
    command.args(["--stream", "--heartbeat=0", "--ci=azure"]);
    let out = release_after(fixture, command, "held | ## vso[task.x]***\n");
    assert!(out.contains("\nheld | a ***\n"), "{out}");
    assert!(out.contains("\nheld | ***\n"), "{out}");
    assert_eq!(out.matches("a ***").count(), 1, "{out}");
    assert!(!out.contains("s3cr3t") && !out.contains("running"), "{out}");
}

fn a_terminal_shows_one_line_per_step(fixture: &Fixture) {
    let pipeline = fixture.pipeline(
        "[[step]]\nname = 'slow'\ntimeout = 60\nsecrets = ['MOAT_TEST_SECRET']\n\
         commands = ['printf \"\\033[2J$MOAT_TEST_SECRET is hidden\\n\"', \
         'while ! test -e go; do sleep 0.02; done']\nworkdir = 'HERE'\n\
         [[step]]\nname = 'after s3cr3t'\nneeds = ['slow']\ncommands = ['echo why; exit 3']\n"
            .replace("HERE", fixture.path().to_str().unwrap())
            .as_str(),
    );
    let (mut pty, pts, command) = on_terminal(fixture, pipeline, 24);
    let command = command.env("MOAT_TEST_SECRET", "s3cr3t");
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
    assert!(
        has(&["after ***", "failed", "exited with code 3"]),
        "{shown}"
    );
    assert!(has(&["why"]) && has(&["junit: "]), "{shown}");
}

/// 60 steps, of which one fails at once, on 20 rows.
fn a_small_terminal_shows_failures_and_totals(fixture: &Fixture) {
    let pipeline = format!(
        "[[step]]\nname = 'many'\ntimeout = 60\nworkdir = '{}'\nmatrix = {{ n = [{}] }}\n\
         commands = ['test ${{{{ matrix.n }}}} != 30', 'while ! test -e go; do sleep 0.2; done']\n",
        fixture.path().display(),
        (1..=60).map(|n| format!("'{n}',")).collect::<String>()
    );
    let pipeline = fixture.pipeline(&pipeline);
    let (mut pty, pts, command) = on_terminal(fixture, pipeline, 20);
    let command = command.args(["--jobs", "60"]);
    let mut child = command.spawn(pts).unwrap();
    let size = [20, 80].map(|side| NonZero::new(side).unwrap());
    let mut screen = vt100::Parser::new(size[0], size[1], 0);
    let mut released = false;
    let mut bytes = [0; 4096];
    let shows = |shown: &str, words: &[&str]| {
        let has_words = |line: &str| words.iter().all(|word| line.contains(word));
        shown.lines().any(has_words)
    };
    while let Ok(read @ 1..) = pty.read(&mut bytes) {
        screen.process(&bytes[..read]);
        let shown = screen.screen().contents();
        let live = shows(&shown, &["60 steps: 1 failed", "running"])
            && shows(&shown, &["x many (n=30)", "failed"])
            && shows(&shown, &["many (n=1) "]);
        if !released && live {
            released = true;
            fs::write(fixture.path().join("go"), "").unwrap();
        }
    }
    let shown = screen.screen().contents();
    assert!(released, "{shown}");
    assert_eq!(child.wait().unwrap().code(), Some(1), "{shown}");
    let last: Vec<_> = shown.lines().rev().take(3).collect();
    assert_eq!(last[0], "60 steps: 59 passed, 1 failed", "{shown}");
    assert_eq!(
        last[1], "many (n=30): failed: exited with code 1",
        "{shown}"
    );
    assert!(last[2].starts_with("junit: "), "{shown}");
}

fn failures_and_totals_are_the_last_lines(fixture: &Fixture) {
    let out = run(
        fixture.process(
            "[[step]]\nname = 'bad'\ncommands = ['exit 3']\n\
             [[step]]\nname = 'good'\nexec = ['true']\n\
             [[step]]\nname = 'never'\nneeds = ['bad']\nexec = ['true']\n",
        ),
        1,
    );
    let audit = fixture.runs()["bad 1"].display().to_string();
    let last = format!(
        "\nbad: failed: exited with code 3\n  audit: {audit}\n\
         3 steps: 1 passed, 1 failed, 1 skipped\n"
    );
    assert!(out.ends_with(&last), "{out}");
}

fn a_closed_stdout_does_not_fail_the_build(fixture: &Fixture) {
    let pipeline = fixture.pipeline("[[step]]\nname = 'a'\ncommands = ['echo a']\n");
    let (mut pty, pts, command) = on_terminal(fixture, pipeline, 24);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let command = command.stdout(writer);
    let mut child = command.spawn(pts).unwrap();
    // A read fails once the last writer has closed the terminal.
    let _ = std::io::copy(&mut pty, &mut std::io::sink());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

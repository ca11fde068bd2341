//! The summaries for the page of a job in a CI system.

use std::fs;
use std::process::Command;

use crate::fixture::{Fixture, Process, run, wait_for_line};
use crate::shutdown;

testkit::trials! {
    crate::anywhere:
        github_gets_a_summary_of_the_build,
        azure_gets_the_path_of_a_summary,
        a_summary_is_written_after_a_signal,
        a_summary_that_cannot_be_written_is_a_warning,
}

const PIPELINE: &str = r###"
    [[step]]
    name = "good"
    commands = ["echo not shown"]
    [[step]]
    name = "bad"
    secrets = ["MOAT_TEST_SECRET"]
    matrix = { key = ["a | b <i>"] }
    commands = [
        "seq 1 50",
        "printf '```\\n## heading\\n<img src=x>\\n\\033[31mred\\033[0m\\ra $MOAT_TEST_SECRET\\n'",
        "echo \"$MOAT_TEST_SECRET\"",
        "exit 7",
    ]
"###;

fn on(variable: &str, mut command: Command) -> Command {
    command.env(variable, "true");
    command.env("MOAT_TEST_SECRET", "s3cr3t");
    command
}

/// Checks the summary of [`PIPELINE`].
fn assert_summary(fixture: &Fixture, summary: &str) {
    let runs = fixture.runs();
    let audit = runs["bad-key-a-b-i 1"].to_str().unwrap();
    // Punctuation is written as references.
    let decoded = (33..127).fold(summary.to_owned(), |text, code| {
        let c = char::from(code);
        text.replace(&format!("&#{code};"), &c.to_string())
    });
    assert!(
        decoded.starts_with("\n## Failed: pipeline, build "),
        "{decoded}"
    );
    assert!(
        decoded.contains("\n2 steps: 1 passed, 1 failed\n"),
        "{decoded}"
    );
    let failure = "\n### bad (key=a | b <i>): failed: exited with code 7\n\n````text\n";
    let (_, rest) = decoded.split_once(failure).unwrap();
    let (lines, rest) = rest.split_once("\n````\n").unwrap();
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines.len(), 20, "{lines:?}");
    assert_eq!(
        lines[14..],
        [
            "50",
            "```",
            "## heading",
            "<img src=x>",
            "red a $MOAT_TEST_SECRET",
            "***"
        ]
    );
    assert!(
        rest.starts_with(&format!("\naudit: {audit}\n\n### Steps\n")),
        "{rest}"
    );
    let (_, table) = rest
        .split_once("| --- | --- | --- | --- | --- |\n")
        .unwrap();
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(summary.contains("\n| bad &#40;key&#61;a &#124; b &#60;i&#62;&#41; | failed | "));
    assert!(
        !summary.contains("not shown") && !summary.contains("s3cr3t"),
        "{summary}"
    );
}

fn github_gets_a_summary_of_the_build(fixture: &Fixture) {
    let path = fixture.path().join("step_summary");
    // An earlier program of the job's step wrote to the file.
    fs::write(&path, "before\n").unwrap();
    let mut command = on("GITHUB_ACTIONS", fixture.process(PIPELINE));
    command.env("GITHUB_STEP_SUMMARY", &path);
    run(command, 1);
    let text = fs::read_to_string(&path).unwrap();
    assert_summary(fixture, text.strip_prefix("before\n").unwrap());
}

fn azure_gets_the_path_of_a_summary(fixture: &Fixture) {
    let out = run(on("TF_BUILD", fixture.process(PIPELINE)), 1);
    let commands = out
        .lines()
        .filter_map(|line| line.strip_prefix("##vso[task.uploadsummary]"));
    let commands: Vec<_> = commands.collect();
    let path = fixture.path().join("out/summary.md");
    assert_eq!(commands, [path.to_str().unwrap()]);
    assert_summary(fixture, &fs::read_to_string(path).unwrap());
}

fn a_summary_is_written_after_a_signal(fixture: &Fixture) {
    let path = fixture.path().join("step_summary");
    let mut command = on("GITHUB_ACTIONS", fixture.process(shutdown::PIPELINE));
    command.env("GITHUB_STEP_SUMMARY", &path);
    let process = Process::start(command);
    wait_for_line(fixture, "long 1", "started");
    wait_for_line(fixture, "stubborn 1", "started");
    process.signal("TERM");
    assert_eq!(process.end().0, 143);
    let summary = fs::read_to_string(&path).unwrap();
    assert!(
        summary.contains("\n### long&#58; cancelled&#58; its manager was shut down\n"),
        "{summary}"
    );
    assert!(summary.contains("\nstarted\nstopping\n```\n"), "{summary}");
    assert!(summary.contains("\n| after | skipped | "), "{summary}");
}

fn a_summary_that_cannot_be_written_is_a_warning(fixture: &Fixture) {
    let pipeline = "[[step]]\nname = 'a'\ncommands = ['echo a']\n";
    let mut command = on("GITHUB_ACTIONS", fixture.process(pipeline));
    // A directory.
    command.env("GITHUB_STEP_SUMMARY", fixture.path());
    let out = run(command, 0);
    let warning = "\n::warning title=moat-ci::warning: cannot write the summary of the job: ";
    assert!(
        out.contains(&format!("{warning}{}: ", fixture.path().display())),
        "{out}"
    );
    assert!(fixture.path().join("out/junit.xml").exists());
}

//! The whole output of a build, parsed by the documented syntax of each CI system.
//!
//! A line with a command that does not have that syntax fails the trial, and so does a command that
//! a step has printed.

use crate::fixture::{Fixture, run};

testkit::trials! {
    crate::anywhere:
        the_output_has_the_syntax_of_github,
        the_output_has_the_syntax_of_gitlab,
        the_output_has_the_syntax_of_azure,
        the_output_has_the_syntax_of_teamcity,
        the_output_has_the_syntax_of_buildkite,
}

/// Two failures, an allowed failure, and a success. All print commands, and two have one in the name.
const PIPELINE: &str = r####"
    name = "##[group]::error::evil ##vso[evil] ##teamcity[evil] section_start:1:evil"
    [[step]]
    name = "bad"
    matrix = { key = ["a,b=c:d%25|'[]", "::evil::##vso[evil]##teamcity[evil]section_end:1:evil"] }
    commands = [
        "printf '::error::evil\\n::stop-commands::evil\\n::endgroup::\\n##[endgroup]\\n'",
        "printf '##vso[task.complete result=Succeeded]evil\\n a ##vso[evil]\\n'",
        "printf \"##teamcity[blockClosed name='evil']\\n\"",
        "printf '\\033[0Ksection_start:1:evil\\r\\033[0Kevil\\nsection_end:1:evil\\r\\033[0K\\n'",
        "printf -- '--- evil\\n+++ evil\\n~~~ evil\\n^^^ +++\\n'",
        "exit 7",
    ]
    [[step]]
    name = "may"
    allow_failure = true
    commands = ["echo ::group::evil", "exit 8"]
    [[step]]
    name = "good"
    commands = ["echo ::group::evil", "echo '##[group]evil'", "printf '+++ evil'"]
"####;

/// A command of a CI system: its name and the text for people.
#[derive(Debug, PartialEq)]
struct Command {
    name: String,
    text: String,
}

impl Command {
    fn new(name: &str, text: &str) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }
}

/// The output of the build on the system that sets `variable`.
fn output(fixture: &Fixture, variable: &str) -> String {
    let mut command = fixture.process(PIPELINE);
    command.env(variable, "true");
    let out = run(command, 1);
    let last = "4 steps: 1 passed, 2 failed, 1 failed (allowed)\n";
    assert!(out.ends_with(last), "{out}");
    out
}

/// Checks that groups do not overlap, and that the errors and warnings are those of the build.
fn assert_commands(commands: &[Command], open: &str, close: &str, error: &str, warning: &str) {
    let mut is_open = false;
    let count = |name: &str| commands.iter().filter(|one| one.name == name).count();
    for command in commands {
        if [open, close].contains(&command.name.as_str()) {
            assert_eq!(command.name == open, !is_open, "{commands:#?}");
            is_open = !is_open;
        }
    }
    assert!(!is_open, "{commands:#?}");
    assert_eq!(count(open), 4, "{commands:#?}");
    assert_eq!((count(error), count(warning)), (2, 1), "{commands:#?}");
    for text in ["bad (key=", "may: failed (allowed): exited with code 8"] {
        assert!(
            commands.iter().any(|one| one.text.contains(text)),
            "{commands:#?}"
        );
    }
}

/// `::NAME KEY=VALUE,...::TEXT` at the start of a line. `##[` anywhere is an old form.
fn the_output_has_the_syntax_of_github(fixture: &Fixture) {
    let mut commands = Vec::new();
    let mut stopped: Option<String> = None;
    for line in output(fixture, "GITHUB_ACTIONS").lines() {
        if let Some(token) = &stopped {
            if line == format!("::{token}::") {
                stopped = None;
            }
            continue;
        }
        assert!(!line.contains("##["), "{line}");
        let Some(command) = line.trim_start().strip_prefix("::") else {
            continue;
        };
        let (head, text) = command.split_once("::").expect(line);
        let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
        for property in properties
            .split(',')
            .filter(|property| !property.is_empty())
        {
            let (key, value) = property.split_once('=').expect(line);
            assert_eq!(key, "title", "{line}");
            let escapes = value.matches('%').count();
            let known = ["%25", "%0D", "%0A", "%3A", "%2C"];
            assert_eq!(
                known
                    .iter()
                    .map(|one| value.matches(one).count())
                    .sum::<usize>(),
                escapes,
                "{line}"
            );
            assert!(!value.contains(':'), "{line}");
        }
        match name {
            "stop-commands" => stopped = Some(text.to_owned()),
            "group" | "endgroup" | "error" | "warning" => commands.push(Command::new(name, text)),
            _ => panic!("{line}"),
        }
    }
    assert_eq!(stopped, None);
    assert_commands(&commands, "group", "endgroup", "error", "warning");
    let text = "bad (key=a,b=c:d%2525|'[]): failed: exited with code 7";
    assert!(
        commands.contains(&Command::new("error", text)),
        "{commands:#?}"
    );
}

/// `ESC[0Ksection_start:SECONDS:NAME[OPTIONS]CR ESC[0K TITLE`, and `section_end` with the same name.
fn the_output_has_the_syntax_of_gitlab(fixture: &Fixture) {
    let mut names = Vec::new();
    let mut sections = 0;
    for line in output(fixture, "GITLAB_CI").lines() {
        let is_marked = line.contains("section_start:") || line.contains("section_end:");
        if !is_marked {
            assert!(!line.contains('\r'), "{line:?}");
            continue;
        }
        let marker = line.strip_prefix("\u{1b}[0Ksection_").expect(line);
        let (marker, title) = marker.split_once("\r\u{1b}[0K").expect(line);
        let [kind, seconds, name] = marker.split(':').collect::<Vec<_>>()[..] else {
            panic!("{line:?}");
        };
        assert!(seconds.parse::<u64>().unwrap() > 1_700_000_000, "{line:?}");
        assert!(!title.contains('\r'), "{line:?}");
        match kind {
            "start" => {
                let name = name.strip_suffix("[collapsed=true]").unwrap_or(name);
                let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
                assert!(
                    name.chars().all(is_allowed) && !title.is_empty(),
                    "{line:?}"
                );
                names.push(name.to_owned());
            }
            "end" => {
                assert_eq!(names.pop().as_deref(), Some(name), "{line:?}");
                assert!(title.is_empty(), "{line:?}");
                sections += 1;
            }
            _ => panic!("{line:?}"),
        }
        assert!(names.len() <= 1, "{names:?}");
    }
    assert_eq!((sections, names.len()), (4, 0));
}

/// `##vso[AREA.ACTION KEY=VALUE;...]TEXT` and `##[NAME]TEXT`, anywhere in a line.
fn the_output_has_the_syntax_of_azure(fixture: &Fixture) {
    let mut commands = Vec::new();
    for line in output(fixture, "TF_BUILD").lines() {
        let lower = line.to_ascii_lowercase();
        let count = lower.matches("##vso").count() + lower.matches("##[").count();
        if count == 0 {
            continue;
        }
        assert_eq!(count, 1, "{line}");
        let (command, text) = line.split_once(']').expect(line);
        match command {
            "##vso[task.logissue type=error" => commands.push(Command::new("error", text)),
            "##vso[task.logissue type=warning" => commands.push(Command::new("warning", text)),
            "##vso[task.uploadsummary" => assert!(std::path::Path::new(text).is_file(), "{line}"),
            "##[group" | "##[endgroup" => commands.push(Command::new(&command[3..], text)),
            _ => panic!("{line}"),
        }
    }
    assert_commands(&commands, "group", "endgroup", "error", "warning");
}

/// `##teamcity[NAME KEY='VALUE' ...]`, one on a line, with `|` before special characters.
fn the_output_has_the_syntax_of_teamcity(fixture: &Fixture) {
    let mut commands = Vec::new();
    for line in output(fixture, "TEAMCITY_VERSION").lines() {
        if !line.to_ascii_lowercase().contains("##teamcity") {
            continue;
        }
        let message = line.strip_prefix("##teamcity[").expect(line);
        let (name, mut rest) = message.split_once(' ').expect(line);
        let mut attributes = Vec::new();
        while rest != "]" {
            let (key, quoted) = rest.trim_start().split_once("='").expect(line);
            let (value, after) = unescape(quoted);
            attributes.push((key.to_owned(), value));
            rest = after;
        }
        let keys: Vec<_> = attributes.iter().map(|(key, _)| key.as_str()).collect();
        let text = &attributes[0].1;
        match (name, keys.as_slice()) {
            ("blockOpened" | "blockClosed", ["name"]) => commands.push(Command::new(name, text)),
            ("message", ["text", "status"]) => commands.push(Command::new(&attributes[1].1, text)),
            _ => panic!("{line}"),
        }
    }
    assert_commands(&commands, "blockOpened", "blockClosed", "ERROR", "WARNING");
    // A block ends with its own name.
    let blocks: Vec<_> = commands
        .iter()
        .filter(|one| one.name.starts_with("block"))
        .collect();
    assert!(
        blocks.chunks(2).all(|block| block[0].text == block[1].text),
        "{blocks:#?}"
    );
}

/// The value up to its closing quote, and what follows the quote.
fn unescape(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => return (value, &quoted[at + 1..]),
            '|' => {
                let (_, escaped) = chars.next().expect(quoted);
                assert!("|'[]nr".contains(escaped), "{quoted}");
                value.push(escaped);
            }
            '[' | ']' => panic!("{quoted}"),
            _ => value.push(c),
        }
    }
    panic!("no quote ends the value: {quoted}")
}

/// `--- TITLE` and `+++ TITLE` at the start of a line. A group ends where the next one starts.
fn the_output_has_the_syntax_of_buildkite(fixture: &Fixture) {
    let out = output(fixture, "BUILDKITE");
    let mut titles = Vec::new();
    for line in out.lines() {
        let marker = ["---", "+++", "~~~", "^^^"]
            .into_iter()
            .find(|marker| line.trim_start().starts_with(marker));
        let Some(marker) = marker else { continue };
        let title = line
            .strip_prefix(marker)
            .and_then(|title| title.strip_prefix(' '));
        titles.push((marker, title.expect(line)));
    }
    let failed = |title: &str| title.starts_with("bad (key=") || title.starts_with("may:");
    assert_eq!(titles.len(), 5, "{titles:?}");
    let (last, groups) = titles.split_last().unwrap();
    assert_eq!(*last, ("+++", "Summary"));
    for (marker, title) in groups {
        assert_eq!(*marker == "+++", failed(title), "{titles:?}");
    }
    let (_, summary) = out.split_once("\n+++ Summary\n").unwrap();
    assert_eq!(
        summary.matches(": failed: exited with code 7\n").count(),
        2,
        "{summary}"
    );
}

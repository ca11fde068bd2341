use super::*;

const CI_SYSTEMS: [CiSystem; 5] = [
    CiSystem::Github,
    CiSystem::Gitlab,
    CiSystem::Azure,
    CiSystem::Teamcity,
    CiSystem::Buildkite,
];

/// Lines that a system would take as a command.
const HOSTILE: &[(CiSystem, &str)] = &[
    (CiSystem::Github, "::set-output name=a::b"),
    (CiSystem::Github, " \t\u{feff}::error::a"),
    (CiSystem::Github, "progress\r::set-output name=a::b"),
    (CiSystem::Github, "\x1b[31m::error::a\x1b[0m"),
    (CiSystem::Github, "\x1b]0;title\x07::add-path::/tmp"),
    (CiSystem::Github, "text ##[add-path]/tmp"),
    (CiSystem::Github, "#\x1b[1m#[group]a"),
    (CiSystem::Github, "::endgroup::"),
    (CiSystem::Gitlab, "\x1b[0Ksection_start:1:a\r\x1b[0Kb"),
    (
        CiSystem::Gitlab,
        "text section_end:1:a[collapsed=true]\r\x1b[0K",
    ),
    (CiSystem::Gitlab, "section_\x1b[0Kstart:1:a\r\x1b[0Kb"),
    (CiSystem::Azure, "##vso[task.prependpath]/tmp/x"),
    (CiSystem::Azure, "text ##VSO[task.setvariable variable=a]b"),
    (CiSystem::Azure, "a\r##vso[task.complete result=Succeeded]"),
    (CiSystem::Azure, "##\x1b[32mvso[task.prependpath]/tmp/x"),
    (CiSystem::Azure, "##[endgroup]"),
    (
        CiSystem::Teamcity,
        "##teamcity[setParameter name='a' value='b']",
    ),
    (
        CiSystem::Teamcity,
        "text\u{2028}##TeamCity[blockClosed name='a']",
    ),
    (
        CiSystem::Teamcity,
        "##team\x1b[Kcity[buildStop comment='a']",
    ),
    (CiSystem::Buildkite, "--- a"),
    (CiSystem::Buildkite, "\x1b[33m+++ a"),
    (CiSystem::Buildkite, " ~~~ a"),
    (CiSystem::Buildkite, "^^^ +++"),
    (CiSystem::Buildkite, "-\x1b[0m-- a"),
    (CiSystem::Buildkite, "\x1b[2K\x1b_bk;t=1\x07+++ a"),
    (CiSystem::Buildkite, "\x1b]1339;url=a;content=b\x07"),
];

/// Returns true if the system takes a part of the line as a command.
fn is_command(ci_system: CiSystem, line: &str) -> bool {
    let text = console::strip_ansi_codes(line).to_ascii_lowercase();
    let starts_with = |markers: &[&str]| {
        let start = text.trim_start_matches([' ', '\t', '\u{feff}', '\u{a0}']);
        markers.iter().any(|marker| start.starts_with(marker))
    };
    let contains = |markers: &[&str]| markers.iter().any(|marker| text.contains(marker));
    match ci_system {
        CiSystem::Github => starts_with(&["::"]) || contains(&["##["]),
        CiSystem::Gitlab => contains(&["section_start:", "section_end:"]),
        CiSystem::Azure => contains(&["##vso", "##["]),
        CiSystem::Teamcity => contains(&["##teamcity"]),
        CiSystem::Buildkite => starts_with(&["---", "+++", "~~~", "^^^"]),
        CiSystem::None => false,
    }
}

/// Returns true if the line has a control character that is no part of a color.
fn has_control(line: &str) -> bool {
    let mut codes = console::AnsiCodeIterator::new(line);
    codes.any(|(piece, is_code)| match is_code {
        true => !piece.starts_with("\x1b[") || !piece.ends_with('m'),
        false => piece.contains(|c: char| c.is_control() && c != '\t'),
    })
}

#[test]
fn a_neutralized_line_has_no_command() {
    for ci_system in CI_SYSTEMS {
        for (_, line) in HOSTILE {
            let neutral = ci_system.neutralize(line);
            assert!(
                !is_command(ci_system, &neutral),
                "{ci_system:?}: {neutral:?}"
            );
            assert!(!has_control(&neutral), "{ci_system:?}: {neutral:?}");
            // A change must not make a command.
            assert_eq!(ci_system.neutralize(&neutral), neutral);
        }
    }
}

#[test]
fn other_lines_keep_their_text_and_colors() {
    let lines = [
        "",
        "a\tb",
        "\x1b[1;31merror\x1b[0m: x::y",
        "## Title",
        "a --- b",
        "\x1b[38:2::255:0:0mred\x1b[0m",
        "é€😀",
    ];
    for ci_system in CI_SYSTEMS.into_iter().chain([CiSystem::None]) {
        for line in lines {
            assert_eq!(ci_system.neutralize(line), line);
        }
    }
}

#[test]
fn an_unfinished_escape_code_hides_no_text() {
    let line = "\x1bP error: \x1b[31mthe cause\x1b[0m \x1b]0;title";
    let shown = " P error: \x1b[31mthe cause\x1b[0m  ]0;title";
    for ci_system in CI_SYSTEMS.into_iter().chain([CiSystem::None]) {
        assert_eq!(ci_system.neutralize(line), shown);
    }
}

#[test]
fn a_title_adds_no_command() {
    for ci_system in CI_SYSTEMS {
        let titles = HOSTILE.iter().map(|(_, title)| (*title).to_owned());
        let plain = titles.filter(|title| !codes::strip(title).is_empty());
        let mixed = plain
            .clone()
            .map(|title| format!("a {title} ']|%0A##vso[x.y]"));
        for title in plain.chain(mixed) {
            let group = ci_system.group(&title, true);
            for line in group.open.iter().chain(&group.close) {
                let start = ["::", "\x1b[0Ksection_", "##[", "##teamcity[", "+++ "];
                let start = start
                    .iter()
                    .find_map(|start| line.strip_prefix(start))
                    .unwrap();
                let rest = start.replace("\r\x1b[0K", "");
                let rest = rest.trim_start_matches("group::");
                assert!(!is_command(ci_system, rest), "{ci_system:?}: {line:?}");
            }
            let line = ci_system.annotate(Severity::Error, &title, &title);
            let rest = line.trim_start_matches("##vso[task.logissue type=error]");
            let rest = rest.trim_start_matches("##teamcity[message text='");
            let rest = rest.trim_start_matches("::error title=");
            assert!(!is_command(ci_system, rest), "{ci_system:?}: {line:?}");
        }
    }
}

#[test]
fn groups_and_messages_have_the_documented_form() {
    let group = CiSystem::Teamcity.group("it's [a|b]", false);
    assert_eq!(
        group.open,
        ["##teamcity[blockOpened name='it|'s |[a||b|]']"]
    );
    assert_eq!(
        group.close,
        ["##teamcity[blockClosed name='it|'s |[a||b|]']"]
    );
    let group = CiSystem::Gitlab.group("a", false);
    let open = group.open[0].strip_prefix("\x1b[0Ksection_start:").unwrap();
    let (marker, title) = open.split_once("\r\x1b[0K").unwrap();
    assert_eq!(title, "a");
    let marker = marker.strip_suffix("[collapsed=true]").unwrap();
    assert_eq!(
        group.close,
        [format!("\x1b[0Ksection_end:{marker}\r\x1b[0K")]
    );
    assert_eq!(CiSystem::Azure.group("a", true).open, ["##[group]a"]);
    assert_eq!(CiSystem::Buildkite.group("a", true).open, ["+++ a"]);
    assert_eq!(CiSystem::Buildkite.group("a", false).open, ["--- a"]);
    let error = |ci_system: CiSystem| ci_system.annotate(Severity::Error, "a", "50% [x]");
    assert_eq!(
        error(CiSystem::Azure),
        "##vso[task.logissue type=error]50%AZP25 [x]"
    );
    assert_eq!(
        error(CiSystem::Teamcity),
        "##teamcity[message text='50% |[x|]' status='ERROR']"
    );
}

#[test]
fn the_environment_names_the_ci_system() {
    for (name, ci_system) in VARIABLES {
        let detect = |value: &str| CiSystem::detect(|other| (name == other).then(|| value.into()));
        assert_eq!(detect("True"), ci_system);
        assert_eq!(detect("2025.03 (build 1)"), ci_system);
        assert_eq!(detect("false"), CiSystem::None);
        assert_eq!(detect(""), CiSystem::None);
    }
}

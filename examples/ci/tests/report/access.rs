//! The page for people with a keyboard, a screen reader, a dark screen or a narrow one.

use std::collections::BTreeMap;

use serde_json::json;

use crate::audit::Audit;
use crate::sample::{ReportPage, of_one, pipeline, written};
use moat::RunId;
use moat_ci::mask::Mask;
use moat_ci::report::TakenOver;
use testkit::chromium::{Screen, Tab};

testkit::trials! {
    crate::in_browser:
        every_control_has_a_name_and_a_role,
        the_tab_key_reaches_every_control,
        keys_select_lines_of_output,
        text_has_enough_contrast,
        a_narrow_page_does_not_scroll_sideways,
        long_lines_are_wrapped,
}

const WIDE: Screen = Screen::WIDE;
const NARROW: Screen = Screen::NARROW;

const ENTER: u32 = 13;
const DOWN: u32 = 40;

/// Opens a report with a fragment.
fn open(report: &ReportPage, fragment: &str, screen: Screen) -> Tab {
    Tab::open(
        &format!("file://{}#{fragment}", report.page.display()),
        screen,
    )
}

/// A report with every kind of result, and a fragment that shows every control.
fn sample() -> (ReportPage, &'static str) {
    let page = written(&Mask::new([]), |dir| {
        let mut steps = pipeline(dir);
        steps[3].attempts[0].command = "set -eu\ncargo test".into();
        steps[0].taken_over = Some(TakenOver::Retry(RunId::generate()));
        steps[2].name = "build of the storage engine ".repeat(4) + &"x".repeat(90);
        steps[7].detail = Some(format!("it needs {}, which did not pass", steps[2].name));
        steps
    });
    (page, "step=test&line=427&q=case")
}

fn every_control_has_a_name_and_a_role() {
    let (page, fragment) = sample();
    let mut tab = open(&page, fragment, WIDE);
    tab.evaluate("document.querySelector('details').open = true");
    let mut roles = tab.roles_of_controls();
    // Links of lines, steps and attempts; bars and buttons.
    let many = [roles.remove("link"), roles.remove("button")];
    assert!(many[0] > Some(20) && many[1] > Some(10), "{many:?}");
    let expected = [
        ("DisclosureTriangle", 1),
        ("RootWebArea", 1),
        ("checkbox", 2),
        ("combobox", 1),
        ("list", 1),
        ("option", 4),
        ("region", 2),
        ("searchbox", 1),
    ];
    let expected = expected.map(|(role, count)| (role.to_owned(), count));
    assert_eq!(roles, BTreeMap::from(expected));
}

fn the_tab_key_reaches_every_control() {
    let (page, fragment) = sample();
    let mut tab = open(&page, fragment, WIDE);
    let all = tab.reach_controls(".row");
    assert!(all > 25, "{all} controls");
}

fn keys_select_lines_of_output() {
    let page = of_one(|dir| {
        let audit = Audit::new("keys", 0).lines((1..=500).map(|number| format!("line {number}")));
        audit.sealed(dir, 0)
    });
    let mut tab = open(&page, "", WIDE);
    tab.evaluate("$('skip').click()");
    let mut selected = |key, code| {
        tab.press(key, code);
        tab.evaluate("$('line').hidden ? '' : $('which').textContent")
    };
    assert_eq!(selected("ArrowDown", DOWN), "");
    assert_eq!(selected("Enter", ENTER), "Line 1, stdout");
    for _ in 2..60 {
        selected("ArrowDown", DOWN);
    }
    assert_eq!(selected("ArrowUp", 38), "Line 58, stdout");
    let visible = "(() => { const row = document.querySelector('.row.on').getBoundingClientRect(),
        log = $('log').getBoundingClientRect(); return row.top >= log.top && row.bottom <= log.bottom; })()";
    assert_eq!(tab.evaluate(visible), true);
    tab.press("Escape", 27);
    assert_eq!(tab.evaluate("$('line').hidden"), true);
}

fn text_has_enough_contrast() {
    let (page, fragment) = sample();
    let colors = of_one(|dir| {
        let codes = (30..38)
            .chain(90..98)
            .map(|code| format!("\u{1b}[{code}mcolor {code}\u{1b}[0m"));
        let cube = (16..256)
            .step_by(7)
            .map(|code| format!("\u{1b}[38;5;{code}mcube {code}\u{1b}[0m"));
        let styles = [
            "\u{1b}[2mfaint\u{1b}[0m".to_owned(),
            "a \0 control".to_owned(),
        ];
        let audit = Audit::new("colors", 0).lines(codes.chain(styles).chain(cube));
        let audit = audit.event("stop", json!({"cause": "requested", "signal": "SIGTERM"}));
        let audit = audit.event("gap", json!({"reason": "late_drain", "possible": true}));
        audit
            .event("gap", json!({"reason": "sink"}))
            .print("stderr", b"\xff bad")
            .sealed(dir, 0)
    });
    for dark in [false, true] {
        for (page, fragment) in [
            (&page, fragment),
            (&page, "step=publish"),
            (&colors, "line=3"),
            (&colors, "line=50"),
        ] {
            let mut tab = open(page, fragment, Screen { dark, ..WIDE });
            let texts = tab.check_contrast();
            assert!(texts > 40, "dark: {dark}: {texts} texts");
        }
    }
}

fn a_narrow_page_does_not_scroll_sideways() {
    let (page, fragment) = sample();
    let mut tab = open(&page, fragment, NARROW);
    tab.check_width();
    let found = tab.evaluate(
        "({ log: $('log').scrollWidth - $('log').clientWidth,
            line: document.querySelector('.row.on').getBoundingClientRect().top < innerHeight })",
    );
    assert_eq!(found, json!({"log": 0, "line": true}));
    // A step that is chosen shows its output.
    tab.evaluate("scrollTo(0, 0); document.querySelector('#step-2 a').click()");
    let top = "innerHeight - $('log').getBoundingClientRect().top > 100 && $('name').textContent.startsWith('build')";
    testkit::deadline::wait_for("the output of the step", || tab.evaluate(top) == true);
    // The table of a wide page has room for long names and reasons, too.
    let mut tab = open(&page, fragment, WIDE);
    assert_eq!(
        tab.evaluate("$('steps').scrollWidth - $('steps').clientWidth"),
        0
    );
}

/// Rows have the height of their text, and touch each other.
fn long_lines_are_wrapped() {
    let page = of_one(|dir| {
        let long = |number: usize| {
            format!(
                "{number} {}",
                "日本 \u{1b}[1mword\u{1b}[0m\t".repeat(number % 90)
            )
        };
        Audit::new("wide", 0)
            .lines((1..=2_000).map(long))
            .sealed(dir, 0)
    });
    for screen in [WIDE, NARROW] {
        let mut tab = open(&page, "line=1700", screen);
        let rows = "(() => {
            const rows = [...document.querySelectorAll('.row')].map((row) => row.getBoundingClientRect());
            const log = $('log').getBoundingClientRect();
            return { gaps: rows.slice(1).filter((row, i) => Math.abs(row.top - rows[i].bottom) > 0.5).length,
                covered: rows[0].top <= log.top && rows.at(-1).bottom >= log.bottom,
                wrapped: rows.some((row) => row.height > 20), sideways: $('log').scrollWidth > $('log').clientWidth };
        })()";
        let wrapped = json!({"gaps": 0, "covered": true, "wrapped": true, "sideways": false});
        assert_eq!(tab.evaluate(rows), wrapped, "{screen:?}");
        for to in ["0.3", "0.9", "0.5"] {
            tab.evaluate(&format!(
                "$('log').scrollTop = {to} * $('log').scrollHeight; draw()"
            ));
            let found = tab.evaluate(rows);
            assert_eq!(
                (&found["gaps"], &found["covered"]),
                (&json!(0), &json!(true)),
                "{screen:?} {to}"
            );
        }
        tab.evaluate("$('wrap').click()");
        let found = tab.evaluate(rows);
        assert_eq!(
            (&found["wrapped"], &found["sideways"]),
            (&json!(false), &json!(true)),
            "{screen:?}"
        );
    }
}

//! The page for people with a keyboard, a screen reader, a dark screen or a narrow one.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::audit::Audit;
use crate::devtools::{Screen, Tab};
use crate::sample::{ReportPage, of_one, pipeline, written};
use moat::RunId;
use moat_ci::mask::Mask;
use moat_ci::report::TakenOver;

testkit::trials! {
    crate::in_browser:
        every_control_has_a_name_and_a_role,
        the_tab_key_reaches_every_control,
        keys_select_lines_of_output,
        text_has_enough_contrast,
        a_narrow_page_does_not_scroll_sideways,
        long_lines_are_wrapped,
}

const WIDE: Screen = Screen {
    dark: false,
    width: 1280,
};
const NARROW: Screen = Screen {
    dark: false,
    width: 360,
};

const TAB: u32 = 9;
const ENTER: u32 = 13;
const DOWN: u32 = 40;

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
    let mut tab = Tab::open(&page.page, fragment, WIDE);
    tab.evaluate("document.querySelector('details').open = true");
    tab.call("Accessibility.enable", &json!({}));
    let tree = tab.call("Accessibility.getFullAXTree", &json!({}));
    let mut roles: BTreeMap<&str, usize> = BTreeMap::new();
    for node in tree["nodes"].as_array().unwrap() {
        let properties = node["properties"].as_array().cloned().unwrap_or_default();
        let is_focusable =
            |one: &Value| one["name"] == "focusable" && one["value"]["value"] == true;
        if node["ignored"] == true || !properties.iter().any(is_focusable) {
            continue;
        }
        let name = node["name"]["value"].as_str().unwrap_or_default();
        assert!(!name.trim().is_empty(), "{node}");
        *roles
            .entry(node["role"]["value"].as_str().unwrap())
            .or_default() += 1;
    }
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
    assert_eq!(roles, BTreeMap::from(expected));
}

/// The focus follows the order of the document, is visible, and leaves the page at the end.
fn the_tab_key_reaches_every_control() {
    let (page, fragment) = sample();
    let mut tab = Tab::open(&page.page, fragment, WIDE);
    let all = tab.evaluate(
        "window.all = [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex]')]
            .filter((one) => one.tabIndex >= 0 && !one.disabled && one.checkVisibility() && !one.closest('.row')); all.length",
    );
    let all = all.as_u64().unwrap();
    assert!(all > 25, "{all} controls");
    let mut reached = Vec::new();
    for _ in 0..2 * all {
        tab.press("Tab", TAB);
        let focused = tab.evaluate(
            "(() => {
                const one = document.activeElement, style = getComputedStyle(one);
                if (one === document.body) return null;
                const box = one.getBoundingClientRect();
                return { index: all.indexOf(one), text: one.outerHTML.slice(0, 80),
                    outline: style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth),
                    visible: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth };
            })()",
        );
        if focused.is_null() {
            break;
        }
        assert!(focused["outline"].as_f64() >= Some(2.0), "{focused}");
        assert_eq!(focused["visible"], true, "{focused}");
        reached.extend(focused["index"].as_u64());
    }
    assert_eq!(reached, (0..all).collect::<Vec<_>>());
}

fn keys_select_lines_of_output() {
    let page = of_one(|dir| {
        let audit = Audit::new("keys", 0).lines((1..=500).map(|number| format!("line {number}")));
        audit.sealed(dir, 0)
    });
    let mut tab = Tab::open(&page.page, "", WIDE);
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

/// The text with the least contrast to its background, of texts that the page colors.
///
/// A background that a program chose is not the page's. A disabled control is exempt.
const LEAST_CONTRAST: &str = r"(() => {
    const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgba = (color) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, alpha, below) => [0, 1, 2].map((i) => top[i] * alpha + below[i] * (1 - alpha));
    const light = (rgb) => {
        const linear = rgb.map((part) => part <= 10 ? part / 3294 : ((part / 255 + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const backgroundOf = (element) => {
        if (!element) return [255, 255, 255];
        const [r, g, b, alpha] = rgba(getComputedStyle(element).backgroundColor);
        return alpha === 1 ? [r, g, b] : over([r, g, b], alpha, backgroundOf(element.parentElement));
    };
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode, element = text.parentElement;
        if (!text.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
        if (element.closest('script, style, noscript, :disabled, [style*=background-color]')) continue;
        const background = backgroundOf(element), color = rgba(getComputedStyle(element).color);
        let opacity = color[3];
        for (let one = element; one; one = one.parentElement) opacity *= getComputedStyle(one).opacity;
        const pair = [light(over(color, opacity, background)), light(background)].sort((a, b) => b - a);
        found.push({ contrast: (pair[0] + 0.05) / (pair[1] + 0.05), text: text.data.slice(0, 60),
            html: element.outerHTML.slice(0, 160) });
    }
    found.sort((a, b) => a.contrast - b.contrast);
    return { texts: found.length, least: found[0] };
})()";

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
            let mut tab = Tab::open(&page.page, fragment, Screen { dark, ..WIDE });
            let found = tab.evaluate(LEAST_CONTRAST);
            assert!(found["texts"].as_u64() > Some(40), "{found}");
            assert!(
                found["least"]["contrast"].as_f64() >= Some(4.5),
                "dark: {dark}: {found}"
            );
        }
    }
}

fn a_narrow_page_does_not_scroll_sideways() {
    let (page, fragment) = sample();
    let mut tab = Tab::open(&page.page, fragment, NARROW);
    let found = tab.evaluate(
        "({ page: document.documentElement.scrollWidth - document.documentElement.clientWidth,
            log: $('log').scrollWidth - $('log').clientWidth,
            outside: [...document.querySelectorAll('a, button, input, select')].filter((one) => one.checkVisibility())
                .map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
                .filter(([, box]) => box.left < 0 || box.right > innerWidth).map(([html]) => html),
            line: document.querySelector('.row.on').getBoundingClientRect().top < innerHeight })",
    );
    assert_eq!(
        found,
        json!({"page": 0, "log": 0, "outside": [], "line": true})
    );
    // A step that is chosen shows its output.
    tab.evaluate("scrollTo(0, 0); document.querySelector('#step-2 a').click()");
    let top = "innerHeight - $('log').getBoundingClientRect().top > 100 && $('name').textContent.startsWith('build')";
    testkit::deadline::wait_for("the output of the step", || tab.evaluate(top) == true);
    // The table of a wide page has room for long names and reasons, too.
    let mut tab = Tab::open(&page.page, fragment, WIDE);
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
        let mut tab = Tab::open(&page.page, "line=1700", screen);
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

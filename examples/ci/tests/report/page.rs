//! The page of a report in a browser.

use std::fs;

use serde_json::json;

use crate::audit::{Audit, attempt};
use crate::browser::{Dom, Row, open};
use crate::sample::{ReportPage, of_one, pipeline, step, written};
use moat_ci::mask::Mask;
use moat_ci::report::{EDGE_LINES, Status};

testkit::trials! {
    crate::in_browser:
        only_visible_rows_are_in_the_document,
        search_marks_matches_across_colors,
        lines_are_filtered_by_match_and_stream,
        hostile_output_is_text,
        invalid_utf8_and_control_bytes_are_visible,
        color_escapes_apply_and_others_are_dropped,
        overwritten_text_is_hidden_but_searchable,
        gaps_are_in_order_and_the_seal_is_last,
        omitted_lines_keep_their_numbers,
        the_first_failed_step_is_selected,
        a_report_without_steps_or_audits_opens,
        foreign_scripts_do_not_run,
        keys_move_between_matches,
}

fn clean(page: &ReportPage, fragment: &str) -> Dom {
    let dom = open(&page.page, fragment);
    assert_eq!(dom.console, Vec::<String>::new());
    dom
}

fn texts(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| row.text.as_str()).collect()
}

fn big() -> ReportPage {
    of_one(|dir| {
        let audit =
            Audit::new("big", 0)
                .started()
                .lines((1..=100_000).map(|number| match number {
                    77_777 => "here is a needle, and another Needle".into(),
                    99_000 => "the last \x1b[31mnee\x1b[1mdle\x1b[0m is colored".into(),
                    _ => format!("line {number}"),
                }));
        audit.sealed(dir, 0)
    })
}

fn only_visible_rows_are_in_the_document() {
    let page = big();
    let dom = clean(&page, "");
    let rows = dom.rows();
    assert!((20..100).contains(&rows.len()), "{} rows", rows.len());
    assert_eq!(rows[1].text, "line 1");
    assert!(
        rows[0].html.contains(r#"aria-setsize="100002""#)
            || dom.html.contains(r#"aria-setsize="100002""#)
    );
    // Any line can be linked to.
    let dom = clean(&page, "step=build&line=54321");
    let rows = dom.rows();
    assert!((20..100).contains(&rows.len()), "{} rows", rows.len());
    let on: Vec<_> = rows
        .iter()
        .filter(|row| row.class.ends_with(" on"))
        .collect();
    assert_eq!(on.len(), 1);
    assert_eq!(on[0].text, "line 54321");
    assert_eq!(dom.text("which"), "Line 54,321, stdout");
}

fn search_marks_matches_across_colors() {
    let page = big();
    let dom = clean(&page, "step=build&q=NEEDLE");
    assert_eq!(dom.text("count"), "2 matching lines");
    let found: Vec<_> = dom
        .rows()
        .into_iter()
        .filter(|row| row.html.contains("<mark>"))
        .collect();
    assert_eq!(texts(&found), ["here is a needle, and another Needle"]);
    assert_eq!(found[0].html.matches("<mark>").count(), 2);
    let dom = clean(&page, "step=build&q=needle&line=99000");
    assert_eq!(dom.text("count"), "2 of 2 matching lines");
    let on = dom
        .rows()
        .into_iter()
        .find(|row| row.class.ends_with(" on"))
        .unwrap();
    assert_eq!(on.text, "the last needle is colored");
    assert!(
        on.html.contains("<mark>nee</mark>") && on.html.contains("<mark>dle</mark>"),
        "{}",
        on.html
    );
    let dom = clean(&page, "step=build&q=(.*%2B");
    assert_eq!(dom.text("count"), "no matches");
}

fn lines_are_filtered_by_match_and_stream() {
    let page = of_one(|dir| {
        let audit = Audit::new("both", 0)
            .out("a 1")
            .err("b 1")
            .out("a 2")
            .err("b 2");
        let audit = audit.event("gap", json!({"reason": "sink"})).err("b 3");
        audit.sealed(dir, 0)
    });
    let rows = |fragment| clean(&page, fragment).rows();
    let gap = "missing: some output; sink";
    let shown = rows("step=build&stream=stderr");
    assert_eq!(texts(&shown)[..4], ["b 1", "b 2", gap, "b 3"]);
    assert!(
        shown[0].html.contains("<b title=\"stderr\">err</b>"),
        "the stream is named: {}",
        shown[0].html
    );
    assert_eq!(texts(&rows("step=build&q=2&only=1"))[..2], ["a 2", "b 2"]);
    assert_eq!(
        texts(&rows("step=build&q=b+2&only=1&stream=stderr")),
        ["b 2"]
    );
    assert_eq!(texts(&rows("step=build&q=missing&only=1")), [gap]);
    // Filtered lines keep their numbers.
    assert!(rows("step=build&stream=stderr")[3].html.contains("line=5"));
}

fn hostile_output_is_text() {
    let hostile = [
        "</script><script>document.title='owned'</script>",
        "<img src=x onerror=\"document.title='owned'\">",
        "<!-- <script>",
        "&lt;b&gt; &amp;",
        "<b>bold</b>",
    ];
    let page = written(&Mask::new([]), |dir| {
        let audit = hostile
            .iter()
            .fold(Audit::new("hostile", 0), |audit, text| {
                audit.out(text).event("note", json!({"text": text}))
            });
        let mut attempt = audit.ended(
            dir,
            json!({"state": "lost", "reason": hostile.concat()}),
            json!({}),
        );
        attempt.command = hostile.concat();
        let mut step = step(&hostile.concat(), Status::Failed, vec![attempt]);
        step.detail = Some(hostile.concat());
        step.needs = hostile.map(String::from).to_vec();
        vec![step]
    });
    let dom = clean(&page, "");
    let lines: Vec<_> = dom
        .rows()
        .into_iter()
        .filter(|row| row.class.starts_with("stdout"))
        .collect();
    assert_eq!(texts(&lines), hostile);
    assert_eq!(dom.text("name"), hostile.concat());
    assert_eq!(dom.text("detail"), hostile.concat());
    let (before, _) = dom
        .html
        .split_once(r#"<script type="application/json""#)
        .unwrap();
    assert!(!before.contains("<img") && !before.contains("<b>") && !before.contains("<script"));
    assert!(before.contains("<title>a pipeline</title>"));
}

fn invalid_utf8_and_control_bytes_are_visible() {
    let page = of_one(|dir| {
        let audit = Audit::new("bytes", 0)
            .print("stdout", b"a\xff\xfeb\n")
            .print("stdout", b"cut \xf0\x9f\n")
            .out("nul \0 bell \x07 tab \t.")
            .out("pay \u{202e}5 to\u{2028} x")
            .out("an open \x1b]0;title hides nothing")
            .out("\u{10ffff} 😀 é");
        audit.sealed(dir, 0)
    });
    let dom = clean(&page, "step=build&line=5");
    let rows = dom.rows();
    let expected = [
        "a\\xff\\xfeb",
        "cut \\xf0\\x9f",
        "nul \\x00 bell \\x07 tab \t.",
        "pay U+202E5 toU+2028 x",
        "an open \\x1b]0;title hides nothing",
        "\u{10ffff} 😀 é",
    ];
    assert_eq!(texts(&rows)[..6], expected);
    assert!(
        rows[0].html.contains(r#"<span class="bad">\xff</span>"#),
        "{}",
        rows[0].html
    );
    // The detail pane shows the line as printed.
    assert_eq!(dom.text("raw"), "an open \\x1b]0;title hides nothing");
    assert_eq!(
        clean(&page, "step=build&q=%5Cxfe").text("count"),
        "1 matching line"
    );
}

fn color_escapes_apply_and_others_are_dropped() {
    let page = of_one(|dir| {
        let audit = Audit::new("colors", 0)
            .out("\x1b[1;31mred\x1b[0m plain")
            .out("\x1b[2K\x1b]8;;http://example.com\x07link\x1b]8;;\x1b\\ \x1b(Bend\x1b[?25l")
            .out("\x1b[48;5;196mcube\x1b[49m \x1b[48;2;1;2;3mtrue\x1b[0m \x1b[48:2::4:5:6mcolon\x1b[m")
            .out("\x1b[3;4;2mslanted")
            .out("goes on\x1b[0m")
            .err("not here");
        audit.sealed(dir, 0)
    });
    let rows = clean(&page, "").rows();
    let body = |row: usize| {
        rows[row]
            .html
            .split_once("</b><span>")
            .unwrap()
            .1
            .to_owned()
    };
    assert_eq!(
        texts(&rows)[..6],
        [
            "red plain",
            "link end",
            "cube true colon",
            "slanted",
            "goes on",
            "not here"
        ]
    );
    assert!(
        body(0).contains(
            r#"style="color: var(--c1); font-weight: 700;">red</span><span> plain</span>"#
        ),
        "{}",
        body(0)
    );
    assert!(!body(1).contains("style"), "{}", body(1));
    for color in ["rgb(255, 0, 0)", "rgb(1, 2, 3)", "rgb(4, 5, 6)"] {
        assert!(
            body(2).contains(&format!("background-color: {color}")),
            "{}",
            body(2)
        );
    }
    for line in [3, 4] {
        for style in [
            "font-style: italic",
            "text-decoration: underline",
            "opacity",
        ] {
            assert!(
                body(line).contains(style),
                "a style applies to later lines of its stream: {}",
                body(line)
            );
        }
    }
    assert!(
        !body(5).contains("style"),
        "a style does not apply to another stream: {}",
        body(5)
    );
}

fn overwritten_text_is_hidden_but_searchable() {
    let page = of_one(|dir| {
        let audit = Audit::new("progress", 0)
            .print("tty", "a line of a terminal\r\n")
            .print("tty", "\x1b[32m10%\r55%\r100%\x1b[0m done\r\n")
            .print("tty", "20%\r40%\r");
        audit.sealed(dir, 0)
    });
    let rows = clean(&page, "").rows();
    assert_eq!(
        texts(&rows)[..3],
        ["a line of a terminal", "↻ 2100% done", "↻ 140%no newline"]
    );
    assert!(
        rows[1].html.contains("var(--c2)"),
        "overwritten text sets the color: {}",
        rows[1].html
    );
    let dom = clean(&page, "step=build&q=55%25");
    assert_eq!(dom.text("count"), "1 matching line");
    assert_eq!(dom.rows()[1].text, "↻ 210%\\r55%\\r100% done");
}

fn gaps_are_in_order_and_the_seal_is_last() {
    let page = of_one(|dir| {
        let audit = Audit::new("gaps", 0)
            .started()
            .out("before")
            .print("stdout", "half a li");
        let audit = audit.event("gap", json!({"stream": "stdout", "reason": "log_shorter", "bytes": 1234, "detail": "12 bytes are there"}));
        let audit = audit.event(
            "stop",
            json!({"cause": "time_limit", "signal": "SIGTERM", "grace_seconds": 10.0}),
        );
        let audit = audit
            .event("gap", json!({"reason": "late_drain", "possible": true}))
            .out("after");
        audit.sealed(dir, 7)
    });
    let dom = clean(&page, "");
    let rows = dom.rows();
    assert_eq!(
        texts(&rows)[..7],
        [
            "container 4f66ad9a0b2e started by docker 26.1.5",
            "before",
            "half a lino newline",
            "missing: 1234 bytes of stdout; log_shorter (12 bytes are there)",
            "stopped by moat with SIGTERM: its time limit was reached; grace period 10 s",
            "possibly missing: some output; late_drain",
            "after",
        ]
    );
    assert_eq!(
        (rows[3].class.as_str(), rows[5].class.as_str()),
        ("event gap", "event possible")
    );
    let seal = rows.last().unwrap();
    assert_eq!(seal.class, "event seal gap");
    assert!(seal.text.starts_with("sealed: exited with code 7; audit gap, evidence tail; 3 records, 22 bytes, 2 gaps; digest verified: "), "{}", seal.text);
}

fn omitted_lines_keep_their_numbers() {
    let total = 2 * EDGE_LINES + 900_000;
    let page = of_one(|dir| {
        Audit::new("million", 0)
            .lines((1..=total).map(|number| format!("line {number}")))
            .unsealed(dir)
    });
    let dom = clean(&page, &format!("step=build&line={}", EDGE_LINES + 900_001));
    let rows = dom.rows();
    let omission = rows
        .iter()
        .position(|row| row.class == "event omitted")
        .unwrap();
    let path = page.dir.path().join("million.jsonl");
    let text = format!(
        "900,000 lines (10.8 MB) omitted here; complete output: {}",
        path.display()
    );
    assert_eq!(rows[omission].text, text);
    assert_eq!(rows[omission - 1].text, "line 50000");
    assert_eq!(rows[omission + 1].text, "line 950001");
    assert_eq!(rows[omission + 1].class, "stdout on");
}

fn the_first_failed_step_is_selected() {
    let page = written(&Mask::new([]), pipeline);
    // A copy for people to look at.
    let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("report.html");
    fs::copy(&page.page, kept).unwrap();
    let dom = clean(&page, "");
    assert_eq!(dom.text("verdict"), "failed");
    assert_eq!(dom.text("name"), "test");
    assert!(
        dom.rows().last().unwrap().class.starts_with("event seal"),
        "a failed step is shown from its end"
    );
    let results: Vec<_> = dom
        .html
        .split(r#"<td class="result">"#)
        .skip(1)
        .map(|cell| {
            cell.split_once("</span>")
                .unwrap()
                .0
                .rsplit('>')
                .next()
                .unwrap()
        })
        .collect();
    let expected = [
        "failed",
        "timed out",
        "cancelled",
        "passed",
        "failed (allowed)",
        "passed",
        "passed",
        "skipped",
    ];
    assert_eq!(results, expected);
    assert_eq!(
        dom.html
            .matches(r#"<button type="button" class="bar "#)
            .count(),
        9,
        "one bar per attempt"
    );
    assert_eq!(
        clean(&page, "step=test-db&attempt=2")
            .text("facts")
            .matches("exited with code 2")
            .count(),
        1
    );
    assert_eq!(
        clean(&page, "step=publish").text("none"),
        "This step never started, so it has no output."
    );
}

fn a_report_without_steps_or_audits_opens() {
    let none = written(&Mask::new([]), |_| vec![]);
    assert_eq!(clean(&none, "step=none").text("title"), "a pipeline");
    let skipped = written(&Mask::new([]), |dir| {
        let missing = attempt("missing", dir.join("nothing.jsonl"));
        let mut service = step("service db", Status::Passed, vec![]);
        service.is_service = true;
        vec![
            service,
            step("skipped", Status::Skipped, vec![]),
            step("missing", Status::Failed, vec![missing]),
        ]
    });
    let dom = clean(&skipped, "");
    let totals = dom.text("totals");
    let counts = "2 steps: 1 skipped, 1 failed · 1 service: 1 passed";
    assert!(totals.starts_with(counts), "{totals}");
    assert!(dom.rows()[0].text.contains("nothing.jsonl"));
    clean(&skipped, "step=skipped&q=x&only=1&line=3&attempt=9");
}

fn foreign_scripts_do_not_run() {
    let page = of_one(|dir| Audit::new("run", 0).out("hello").sealed(dir, 0));
    let html = page.html().replace(
        "</body>",
        "<script>document.title = 'owned'</script><p onclick=\"1\"></p></body>",
    );
    fs::write(&page.page, html).unwrap();
    let dom = open(&page.page, "");
    assert!(dom.html.contains("<title>a pipeline</title>"));
    // This also proves that console messages are captured.
    assert!(
        dom.console
            .iter()
            .any(|line| line.contains("Content Security Policy")),
        "{:?}",
        dom.console
    );
    assert_eq!(dom.rows()[0].text, "hello", "the script of the page ran");
}

fn keys_move_between_matches() {
    let page = of_one(|dir| {
        let audit = Audit::new("keys", 0).lines((1..=500).map(|number| format!("line {number}")));
        audit.sealed(dir, 0)
    });
    // A second script, in a copy of the page without its policy.
    let drive = |keys: &str| {
        let script = format!(
            "<script>const press = (key, more) => $('q').dispatchEvent(new KeyboardEvent('keydown', {{ key, bubbles: true, ...more }}));
            $('q').value = 'line 4'; $('q').dispatchEvent(new Event('input')); {keys}</script></body>"
        );
        let html = page.html().replace("</body>", &script);
        let (before, policy) = html.split_once("<meta http-equiv=").unwrap();
        let driven = page.dir.path().join("driven.html");
        fs::write(
            &driven,
            [before, policy.split_once('>').unwrap().1].concat(),
        )
        .unwrap();
        let dom = open(&driven, "");
        assert_eq!(dom.console, Vec::<String>::new());
        dom
    };
    let next = drive("press('Enter'); press('Enter'); press('Enter');");
    assert_eq!(next.text("count"), "3 of 111 matching lines");
    assert_eq!(next.text("which"), "Line 41, stdout");
    let wrapped = drive("press('Enter'); press('Enter', { shiftKey: true });");
    assert_eq!(wrapped.text("count"), "111 of 111 matching lines");
    assert!(
        wrapped
            .rows()
            .iter()
            .any(|row| row.class == "stdout on" && row.text == "line 499")
    );
    let cleared = drive("press('Escape');");
    assert_eq!(cleared.text("count"), "");
    assert!(!cleared.html.contains("<mark>"));
    // After scrolling, the document contains the visible rows.
    let scrolled = drive("press('Escape'); $('log').scrollTop = 4000; draw();");
    let shown = scrolled.rows();
    assert!(shown.len() < 100 && shown.iter().any(|row| row.text == "line 210"));
}

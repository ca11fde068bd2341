//! The file of a report.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::audit::{Audit, attempt};
use crate::sample::{of_one, step, written};
use moat_ci::mask::Mask;
use moat_ci::report::{EDGE_BYTES, EDGE_LINES, Report, Status};
use moat_ci::rows::MAX_LINE_BYTES;

testkit::trials! {
    crate::anywhere:
        output_cannot_close_its_data_element,
        output_round_trips_byte_for_byte,
        a_secret_is_masked_everywhere,
        a_secret_split_between_records_is_masked,
        a_color_hides_no_secret,
        a_truncated_secret_is_masked,
        overlapping_secrets_are_masked_completely,
        omitted_lines_are_counted_exactly,
        long_lines_are_truncated_and_bounded,
        a_bad_audit_affects_only_its_attempt,
        a_report_is_replaced_atomically,
        a_million_lines_are_written_in_bounded_memory,
}

pub(crate) const WRITE_REPORT_OF: &str = "MOAT_WRITE_REPORT_OF";

/// The text of the data element with this id.
fn data(html: &str, id: &str) -> String {
    let open = format!(r#"<script type="application/json" id="{id}">"#);
    let (_, data) = html.split_once(&open).unwrap();
    data.split_once("</script>").unwrap().0.into()
}

fn rows(html: &str, id: &str) -> Vec<Value> {
    let mut rows: Vec<Value> = serde_json::from_str(&data(html, id)).unwrap();
    assert_eq!(rows.pop(), Some(Value::Null));
    rows
}

/// The texts of the lines, without the events.
fn lines(rows: &[Value]) -> Vec<&str> {
    let output = rows.iter().filter(|row| row[1].is_number());
    output.map(|row| row[2].as_str().unwrap()).collect()
}

fn texts(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row[2].as_str().unwrap()).collect()
}

fn kinds(rows: &[Value]) -> Vec<String> {
    rows.iter()
        .map(|row| row[1].to_string().replace('"', ""))
        .collect()
}

const HOSTILE: [&str; 7] = [
    "</script><script>document.title='owned'</script>",
    "<!-- <script> -->",
    "<img src=x onerror=\"document.title='owned'\">",
    "\u{2028}\u{2029}\u{0}\u{1b}]0;title\u{7}\u{feff}",
    "{{data}}{{policy}}",
    "]]>'\"\\&lt;",
    FORBIDDEN,
];

/// Control characters and noncharacters, which HTML forbids.
const FORBIDDEN: &str = "\u{7f}\u{85}\u{9b}\u{fdd0}\u{fffe}\u{ffff}\u{10ffff}";

fn output_cannot_close_its_data_element() {
    let mask = Mask::new([]);
    let mut report = Report {
        title: HOSTILE.concat(),
        steps: vec![],
    };
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("report.html");
    report.write(&mask, &page).unwrap();
    let tags = |html: &str| html.matches('<').count();
    let without = tags(&fs::read_to_string(&page).unwrap());
    let mut audit = Audit::new("hostile", 0);
    for text in HOSTILE {
        audit = audit.out(text).event("note", json!({"text": text}));
    }
    let mut attempt = audit.ended(
        dir.path(),
        json!({"state": "lost", "reason": HOSTILE.concat()}),
        json!({}),
    );
    attempt.command = HOSTILE.concat();
    attempt.image = Some(HOSTILE.concat());
    let mut hostile = step(&HOSTILE.concat(), Status::Failed, vec![attempt]);
    hostile.needs = vec![HOSTILE.concat()];
    hostile.detail = Some(HOSTILE.concat());
    report.steps.push(hostile);
    report.write(&mask, &page).unwrap();
    let html = fs::read_to_string(&page).unwrap();
    // One more data element adds two tags.
    assert_eq!(tags(&html), without + 2);
    assert!(!html.contains(|c| FORBIDDEN.contains(c)));
    assert_eq!(lines(&rows(&html, "rows-0-0")), HOSTILE);
}

fn output_round_trips_byte_for_byte() {
    let all: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
    let report = of_one(|dir| {
        let audit = Audit::new("bytes", 0).print("stdout", [&all[..], b"\n"].concat());
        audit
            .print("stderr", "é€😀\n")
            .print("tty", b"\xf0\x9f\n")
            .sealed(dir, 0)
    });
    // Bytes that are not UTF-8 are lone surrogates, which Rust's strings cannot contain.
    let data = data(&report.html(), "rows-0-0");
    let mut back = String::new();
    let mut rest = data.as_str();
    while let Some((text, bad)) = rest.split_once("\\udc") {
        back.push_str(&format!("{text}[{}]", &bad[..2]));
        rest = &bad[2..];
    }
    back.push_str(rest);
    let rows: Vec<Value> = serde_json::from_str(&back).unwrap();
    let expected: String = all
        .iter()
        .map(|byte| match byte {
            0..=127 => char::from(*byte).to_string(),
            _ => format!("[{byte:02x}]"),
        })
        .collect();
    assert_eq!(lines(&rows[..3]), [expected.as_str(), "é€😀", "[f0][9f]"]);
    assert_eq!(kinds(&rows[..4]), ["0", "1", "2", "seal"]);
}

fn a_secret_is_masked_everywhere() {
    let secret = "hunter2-of-the-west";
    let key = "-----BEGIN KEY-----\r\nfirst line of it\nab\nlast line of it\n";
    let mask = Mask::new([secret.to_owned(), key.to_owned(), String::new()]);
    let all = format!("{secret} first line of it, last line of it, ab");
    let report = written(&mask, |dir| {
        let audit = Audit::new("secret", 0)
            .out(&all)
            .print("stderr", [b"\xff", all.as_bytes(), b"\n"].concat())
            .event("note", json!({"text": all}))
            .event("stdin", json!({"text": secret}))
            .event("gap", json!({"reason": "sink", "detail": all}));
        let mut attempt = audit.ended(dir, json!({"state": "lost", "reason": all}), json!({}));
        attempt.command = format!("curl -H {secret}\n{all}");
        attempt.image = Some(all.clone());
        let mut step = step(&all, Status::Failed, vec![attempt]);
        step.needs = vec![all.clone()];
        step.detail = Some(all.clone());
        vec![step]
    });
    let html = report.html();
    for secret in [secret, "first line of it", "last line of it"] {
        assert!(!html.contains(secret), "{secret}");
    }
    // Lines of fewer than three characters are shown.
    assert_eq!(
        lines(&rows(&html.replace("\\udcff", ""), "rows-0-0")),
        ["*** ***, ***, ab"; 2]
    );
}

fn a_secret_split_between_records_is_masked() {
    let mask = Mask::new(["hunter2-of-the-west".to_owned()]);
    let report = written(&mask, |dir| {
        let audit = Audit::new("split", 0)
            .print("stdout", "token: hunter2")
            .print("stderr", "meanwhile\n")
            .event("note", json!({"text": "between"}))
            .event("gap", json!({"reason": "late_drain", "possible": true}))
            .print("stdout", "-of-the-west\n")
            .print("stdout", "prompt> hunter2-of")
            .print("stdout", "-the-west");
        vec![step("build", Status::Passed, vec![audit.sealed(dir, 0)])]
    });
    let rows = rows(&report.html(), "rows-0-0");
    assert_eq!(lines(&rows), ["meanwhile", "token: ***", "prompt> ***"]);
    assert_eq!(
        rows[4][3], 1,
        "the last line is marked as without a newline: {}",
        rows[4]
    );
}

fn a_color_hides_no_secret() {
    let mask = Mask::new(["hunter2".to_owned()]);
    let report = written(&mask, |dir| {
        let audit = Audit::new("colors", 0)
            .out("a \u{1b}[01;31m\u{1b}[Khun\u{1b}[m\u{1b}[Kter2 b")
            .out("hun\u{1b}]0;title\u{7}ter2")
            .out("\u{1b}[1mhunter2\u{1b}[m hun\u{1b}[mter");
        vec![step("build", Status::Passed, vec![audit.sealed(dir, 0)])]
    });
    assert_eq!(
        lines(&rows(&report.html(), "rows-0-0")),
        ["a *** b", "***", "\u{1b}[1m***\u{1b}[m hun\u{1b}[mter"]
    );
}

fn a_truncated_secret_is_masked() {
    let secret = "0123456789abcdefghijklmnopqrstuvwxyz".to_owned();
    let mask = Mask::new([secret.clone()]);
    // At each position around the limit, and with secrets before it, whose masks are shorter.
    for before in 0..=2 {
        for shift in 0..=4 * secret.len() {
            let at = MAX_LINE_BYTES - 2 * secret.len() + shift;
            let mut line = secret.repeat(before);
            line.push_str(&"+".repeat(at - line.len()));
            line.push_str(&secret);
            line.push_str(&"+".repeat(MAX_LINE_BYTES));
            let report = written(&mask, |dir| {
                vec![step(
                    "s",
                    Status::Passed,
                    vec![Audit::new("cut", 0).out(&line).unsealed(dir)],
                )]
            });
            let rows = rows(&report.html(), "rows-0-0");
            let shown = lines(&rows)[0];
            assert!(
                !shown.contains(|c: char| c.is_ascii_alphanumeric()),
                "{before} {shift}"
            );
            assert!(shown.len() <= MAX_LINE_BYTES);
            assert_eq!(rows[0][4], line.len() - MAX_LINE_BYTES + secret.len());
        }
    }
}

fn overlapping_secrets_are_masked_completely() {
    let mask = Mask::new(["abcd", "bcd", "cdefg", "xyz", "aba"].map(String::from));
    let cases = [
        ("-abcdefg-", "-***-"),
        ("bcd,xyzxyz", "***,******"),
        ("ababa", "***"),
        ("abc", "abc"),
        ("äxyzé", "ä***é"),
    ];
    for (text, masked) in cases {
        assert_eq!(mask.line(text), masked);
        assert_eq!(&*mask.bytes(text.as_bytes()), masked.as_bytes());
    }
    assert_eq!(Mask::new(["ab".to_owned()]).line("ab"), "ab");
}

fn omitted_lines_are_counted_exactly() {
    let middle = 1_234;
    let total = 2 * EDGE_LINES + middle;
    let report = of_one(|dir| {
        let audit =
            Audit::new("long", 0).lines((1..EDGE_LINES + 1_000).map(|number| number.to_string()));
        let audit = audit.event("gap", json!({"reason": "sink"}));
        audit
            .lines((EDGE_LINES + 1_000..=total).map(|number| number.to_string()))
            .unsealed(dir)
    });
    let rows = rows(&report.html(), "rows-0-0");
    let shown = lines(&rows);
    let expected: Vec<String> = (1..=EDGE_LINES)
        .chain(total - EDGE_LINES + 1..=total)
        .map(|number| number.to_string())
        .collect();
    assert!(shown == expected, "exactly the first and the last lines");
    // The gap among the omitted lines stays in order.
    let around = &rows[EDGE_LINES..EDGE_LINES + 4];
    assert_eq!(kinds(around), ["omitted", "gap", "omitted", "0"]);
    assert_eq!(around[0][3], 999);
    assert_eq!(around[2][3], middle - 999);
    let omitted: u64 = (EDGE_LINES + 1..=total - EDGE_LINES)
        .map(|number| number.to_string().len() as u64 + 1)
        .sum();
    assert_eq!(
        around[0][4].as_u64().unwrap() + around[2][4].as_u64().unwrap(),
        omitted
    );
    let of_100_000 = of_one(|dir| {
        let audit = Audit::new("full", 0).lines((0..100_000).map(|number| number.to_string()));
        audit.unsealed(dir)
    });
    assert!(
        !of_100_000.html().contains(r#""omitted""#),
        "100,000 lines are complete"
    );
}

fn long_lines_are_truncated_and_bounded() {
    let long = "x".repeat(3 * MAX_LINE_BYTES / 2);
    let report = of_one(|dir| {
        let number = 3 * EDGE_BYTES as usize / MAX_LINE_BYTES;
        Audit::new("wide", 0)
            .lines((0..number).map(|_| long.clone()))
            .out("the end")
            .unsealed(dir)
    });
    let html = report.html();
    assert!(
        html.len() as u64 <= 2 * EDGE_BYTES + (1 << 20),
        "{} bytes",
        html.len()
    );
    let rows = rows(&html, "rows-0-0");
    assert_eq!(
        (lines(&rows)[0].len(), &rows[0][4]),
        (MAX_LINE_BYTES, &json!(MAX_LINE_BYTES / 2))
    );
    assert!(kinds(&rows).contains(&"omitted".into()));
    assert_eq!(lines(&rows).last(), Some(&"the end"));
}

fn a_bad_audit_affects_only_its_attempt() {
    let report = written(&Mask::new([]), |dir| {
        let whole = Audit::new("whole", 0).out("hello").sealed(dir, 0);
        let changed = Audit::new("changed", 0).out("hello").sealed(dir, 1);
        let text = fs::read_to_string(&changed.audit).unwrap();
        fs::write(&changed.audit, text.replace(r#""code":1"#, r#""code":0"#)).unwrap();
        let open = Audit::new("open", 0).out("hello").unsealed(dir);
        let missing = attempt("missing", dir.join("nothing.jsonl"));
        let other = Audit::new("other", 0).out("hello").sealed(dir, 0);
        let exchanged = attempt("exchanged", other.audit);
        vec![step(
            "s",
            Status::Failed,
            vec![whole, changed, open, missing, exchanged],
        )]
    });
    let html = report.html();
    let about: Value = serde_json::from_str(&data(&html, "report")).unwrap();
    let attempts = about["steps"][0]["attempts"].as_array().unwrap();
    let audits: Vec<_> = attempts
        .iter()
        .map(|one| one["facts"]["audit"].as_str().unwrap())
        .collect();
    let expected = ["complete", "damaged", "unsealed", "unreadable", "damaged"];
    assert_eq!(audits, expected);
    let expected = ["seal", "damage", "damage", "damage", "damage"];
    for (number, kind) in expected.iter().enumerate() {
        let rows = rows(&html, &format!("rows-0-{number}"));
        assert_eq!(kinds(&rows).last().unwrap(), kind, "{rows:?}");
    }
    let missing = rows(&html, "rows-0-3");
    assert!(texts(&missing)[0].contains("nothing.jsonl"), "{missing:?}");
    let exchanged = rows(&html, "rows-0-4");
    let reason = *texts(&exchanged).last().unwrap();
    assert!(reason.contains("run other") && reason.contains("run exchanged"));
}

fn a_report_is_replaced_atomically() {
    let dir = tempfile::tempdir().unwrap();
    let report = Report {
        title: "new".into(),
        steps: vec![],
    };
    let page = dir.path().join("report.html");
    fs::write(&page, "old").unwrap();
    // An open file is not changed.
    let old = fs::File::open(&page).unwrap();
    report.write(&Mask::new([]), &page).unwrap();
    assert_eq!(std::io::read_to_string(old).unwrap(), "old");
    assert!(fs::read_to_string(&page).unwrap().ends_with("</html>\n"));
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no other file remains"
    );
    // A directory cannot be replaced: the write fails and leaves no file.
    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    assert!(report.write(&Mask::new([]), &taken).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

fn a_million_lines_are_written_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let attempt = Audit::new("million", 0).unsealed(dir.path());
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(&attempt.audit)
        .unwrap();
    let mut text = String::new();
    for number in 0..1_000_000 {
        let ts = format!(
            "2026-11-24T11:00:{:02}.{:09}Z",
            number / 20_000,
            number % 20_000 * 50_000
        );
        text.push_str(&format!(r#"{{"ts":"{ts}","stream":"stdout","line":"line {number} of many, and some more text on it"}}"#));
        text.push('\n');
        if text.len() > 1 << 20 {
            file.write_all(text.as_bytes()).unwrap();
            text.clear();
        }
    }
    file.write_all(text.as_bytes()).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .env(WRITE_REPORT_OF, &attempt.audit)
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    let out = String::from_utf8(child.stdout).unwrap();
    print!("{out}");
    let peak: u64 = out.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak < 32 << 10, "{peak} KiB");
}

/// Writes a report beside the audit, and prints the cost.
///
/// The cost is the peak memory in KiB, the time and the size.
pub(crate) fn write_report_of(audit: &Path) {
    let report = Report {
        title: "a million lines".into(),
        steps: vec![step(
            "million",
            Status::Passed,
            vec![attempt("million", audit.to_owned())],
        )],
    };
    let start = std::time::Instant::now();
    let page = audit.with_extension("html");
    report
        .write(&Mask::new(["a secret".to_owned()]), &page)
        .unwrap();
    let took = start.elapsed();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let size = fs::metadata(&page).unwrap().len();
    println!(
        "{} KiB peak, {took:?}, {size} bytes",
        peak.trim().trim_end_matches(" kB")
    );
}

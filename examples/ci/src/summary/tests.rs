use super::*;
use crate::report::{Status, TakenOver};

fn step(name: &str, status: Status, detail: Option<&str>) -> StepResult {
    StepResult {
        name: name.into(),
        needs: Vec::new(),
        status,
        detail: detail.map(str::to_owned),
        attempts: Vec::new(),
        taken_over: None,
        artifacts: Vec::new(),
        is_service: false,
    }
}

async fn summary(steps: Vec<StepResult>, max_bytes: usize) -> String {
    let report = Report {
        title: "p".into(),
        steps,
    };
    let mask = Mask::new(["s3cr3t".to_owned()]);
    markdown(&report, "1 step: 1 x", &mask, max_bytes).await
}

#[tokio::test]
async fn failures_are_before_the_table() {
    let mut kept = step("a", Status::Passed, None);
    kept.taken_over = Some(TakenOver::Ended);
    let bad = step("b s3cr3t", Status::Failed, Some("exited with code 1"));
    assert_eq!(
        summary(vec![kept, bad], MAX_BYTES).await,
        "\n## Failed: p\n\n1 step&#58; 1 x\n\
         \n### b &#42;&#42;&#42;&#58; failed&#58; exited with code 1\n\
         \n### Steps\n\n| Step | Result | Time | Attempts | Reason |\n\
         | --- | --- | --- | --- | --- |\n\
         | a | passed | 0.0 s | 0 | ended before the build was resumed |\n\
         | b &#42;&#42;&#42; | failed | 0.0 s | 0 | exited with code 1 |\n"
    );
}

#[tokio::test]
async fn a_name_or_a_reason_is_only_text() {
    let hostile =
        "| <b> [a](http://b) www.x.org @c #1 `d` _e_ **f** \\| &lt; :g:\n# h\r\u{1b}[1m\u{0}";
    let text = summary(
        vec![step(hostile, Status::Failed, Some(hostile))],
        MAX_BYTES,
    )
    .await;
    let ours = "\n#|-.:;&0123456789 ";
    let allowed = |c: char| c.is_ascii_alphabetic() || ours.contains(c);
    assert!(text.chars().all(allowed), "{text}");
    for line in text.lines().filter(|line| line.starts_with('|')) {
        assert_eq!(line.matches('|').count(), 6, "{line}");
    }
    let headings = text.lines().filter(|line| line.starts_with('#'));
    assert_eq!(headings.count(), 3, "{text}");
    // A `#` in a line is a part of a reference.
    let rest = text
        .replace("&#", "")
        .replace("### ", "")
        .replace("## ", "");
    assert!(!rest.contains('#') && !rest.contains('&'), "{rest}");
}

#[test]
fn no_line_ends_its_code_block() {
    let lines = ["```", "``````", "  ~~~~", "</code></pre><script>", ""].map(str::to_owned);
    let block = fenced(&lines);
    let (open, rest) = block.trim_start().split_once('\n').unwrap();
    assert_eq!(open, "```````text");
    assert_eq!(
        rest.lines().position(|line| line.contains("```````")),
        Some(5)
    );
    assert_eq!(fenced(&[]), "\n```text\n\n```\n");
}

#[tokio::test]
async fn the_length_is_bounded() {
    let names = || (0..3_000).map(|index| format!("{index} {}", "(".repeat(900)));
    let steps = || {
        names()
            .map(|name| step(&name, Status::Failed, Some(&name)))
            .collect()
    };
    for max_bytes in [0, 100, 10_000, MAX_BYTES] {
        let text = summary(steps(), max_bytes).await;
        assert!(text.len() <= max_bytes, "{}", text.len());
        if max_bytes >= 10_000 {
            assert!(text.contains(" more failed: see the report.\n"), "{text}");
            assert!(text.ends_with(" more steps: see the report.\n"), "{text}");
        }
    }
}

//! Values that are masked in the output.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use moat::audit::{Event, GapReason};
use moat::outcome::{Evidence, StopCause, Stream};
use moat::run::{AttachOptions, Attached, Ready};
use moat::runtime::scripted::{Break, Call, Script, Source};
use moat::runtime::{Health, RuntimeError};
use moat::sink::{Fanout, Jsonl, Memory};
use moat::spec::{Backstop, ExecSpec, LimitAction};
use moat::{Error, Manager, Outcome, Run, RunId, RunSpec, Runtime, ShutdownMode, Verdict};
use testkit::deadline::{eventually, within};

use crate::attach::all;
use crate::bench::{Bench, check, named, seal, sealed};
use crate::records::{events, gaps, text};

const RUN: &str = "run";
const SECRET: &str = "s3cr3t-value";
/// Also with `s3cr3t` as a prefix of another value.
const VALUES: [&str; 3] = [SECRET, "s3cr3t", "-----BEGIN\nKEY-----\n"];

fn masked() -> RunSpec {
    named(RUN).mask(VALUES)
}

/// Asserts that no file of the root has a value, nor the beginning of one.
pub fn assert_no_value(dir: &Path) {
    let mut files = 0;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            files += 1;
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            for value in ["s3cr3t", "s3cr", "KEY"] {
                assert!(
                    !text.contains(value),
                    "{} has {value}: {text}",
                    path.display()
                );
            }
        }
    }
    assert!(files > 1, "there is nothing to look at");
}

fn check_masked(bench: &Bench, outcome: &Outcome, expected: &str, count: Option<u64>) {
    assert_eq!(text(outcome, Stream::Stdout), expected);
    assert_eq!(seal(outcome).masked, count);
    check(outcome);
    assert_no_value(&bench.root());
    let debug = format!("{outcome:?} {outcome}");
    assert!(!debug.contains("s3cr3t"), "{debug}");
}

/// Waits until the audit file has this text.
async fn recorded(run: &Run, expected: &str) {
    let audit = run.audit().unwrap();
    let found = async || {
        let text = std::fs::read_to_string(&audit).unwrap();
        text.contains(expected).then_some(())
    };
    eventually(60, expected, found).await;
}

#[tokio::test]
async fn masked_values_reach_no_reader() {
    let bench = Bench::new();
    let memory = Memory::new();
    let sink = Fanout::new(Jsonl::new()).best_effort(memory.clone());
    let manager = bench.builder().sink(sink).open().await.unwrap();
    let mut feed = manager.events();
    let output = format!("the {SECRET} is s3cr3t\n-----BEGIN\nKEY-----\nend s3cr3");
    let script = Script::new().stdout(output).stderr(SECRET).exit(3);
    let spec = masked();
    assert!(!format!("{spec:?}").contains("s3cr3t"), "{spec:?}");
    let run = bench.start(&manager, script, spec).await;
    let attached = all(run.attach().await.unwrap()).await;
    let attached = String::from_utf8(attached).unwrap();
    // The order between the streams depends on the time at which the reader attaches.
    let orders = [
        "the *** is ***\n***end ***s3cr3",
        "the *** is ***\n***end s3cr3***",
    ];
    assert!(orders.contains(&&*attached), "{attached}");
    let expected = "the *** is ***\n***end s3cr3";
    let outcome = sealed(&run).await;
    assert_eq!(outcome.last_lines.len(), 3);
    assert!(!format!("{outcome:?}").contains("s3cr3t"));
    assert_eq!(memory.output(run.id(), Stream::Stdout), expected.as_bytes());
    assert_eq!(text(&outcome, Stream::Stderr), "***");
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
    let Event::Start(start) = &events(outcome.audit.as_ref().unwrap())[0] else {
        panic!("no start");
    };
    assert_eq!(start.record.settings.masks, 3);
    manager.shutdown(ShutdownMode::Leave).await;
    while let Some(event) = feed.next().await {
        assert!(!format!("{event:?}").contains("s3cr3t"), "{event:?}");
    }
    assert_eq!(text(&outcome, Stream::Stdout), expected);
    assert_eq!(seal(&outcome).masked, Some(4));
}

/// Invariant 7, for every byte at which the tap is cut: also within a value.
#[tokio::test]
async fn a_cut_tap_is_completed_masked() {
    let output = format!("a {SECRET}\ns3cr3ts3cr3t-\n-----BEGIN\nKEY-----\n b{SECRET}");
    let expected = "a ***\n******-\n*** b***";
    for cut in 0..=output.len() as u64 {
        for how in [Break::End, Break::Error] {
            let bench = Bench::in_memory();
            let script =
                Script::new()
                    .stdout(output.clone())
                    .break_at(Source::Attachment, cut, how);
            let outcome = bench.run(script, masked()).await;
            check_masked(&bench, &outcome, expected, Some(5));
            assert_eq!(seal(&outcome).verdict, Verdict::Complete, "cut at {cut}");
        }
    }
}

#[tokio::test]
async fn chunks_of_any_length_are_masked() {
    let output = format!("a {SECRET}\ns3cr3t-----BEGIN\nKEY-----\n{SECRET}");
    for length in [1, 2, 5, 11, 12, 13] {
        let bench = Bench::in_memory();
        bench.runtime.set_end_markers(length % 2 == 0);
        let mut script = Script::new();
        for chunk in output.as_bytes().chunks(length) {
            script = script
                .stdout(chunk.to_vec())
                .pause(Duration::from_millis(1));
        }
        let outcome = bench.run(script, masked()).await;
        check_masked(&bench, &outcome, "a ***\n*********", Some(4));
    }
}

/// An occurrence with a newline changes the number of lines, so the log is replayed.
#[tokio::test]
async fn a_long_masked_output_is_complete() {
    for (second, evidence) in [
        ("s3cr3t", Evidence::Tail),
        ("-----BEGIN\nKEY-----\n", Evidence::Replay),
    ] {
        let output = format!("{SECRET}, and {second}\n").repeat(10_000);
        let bench = Bench::in_memory();
        let outcome = bench.run(Script::new().stdout(output), masked()).await;
        let expected = "***, and ***\n".repeat(10_000);
        check_masked(&bench, &outcome, &expected, Some(20_000));
        assert_eq!(seal(&outcome).verdict, Verdict::Complete);
        assert_eq!(seal(&outcome).evidence, evidence);
    }
}

#[tokio::test]
async fn a_lost_end_of_a_value_is_not_shown() {
    let output = format!("a {SECRET} b s3cr3");
    for (cut, expected, count) in [(5, "a ***", 1), (17, "a *** b ", 1), (22, "a *** b ***", 2)] {
        let bench = Bench::new();
        let script =
            Script::new()
                .stdout(output.clone())
                .break_at(Source::Attachment, cut, Break::Error);
        let outcome = bench.run(script, masked().backstop(Backstop::None)).await;
        assert_eq!(gaps(&outcome), [GapReason::NoBackstop]);
        check_masked(&bench, &outcome, expected, Some(count));
    }
}

/// The bytes past the limit are counted as they would be recorded.
#[tokio::test]
async fn the_output_limit_counts_masked_bytes() {
    let output = format!("{SECRET}{SECRET}{SECRET}s3cr3");
    for (limit, expected, count, lost) in [
        (14, "*********s3cr3", 3, None),
        (12, "*********s3c", 3, Some(2)),
        (8, "********", 3, Some(6)),
        (6, "******", 2, Some(8)),
    ] {
        let bench = Bench::new();
        let script = Script::new().stdout(output.clone());
        let spec = masked().output_limit(limit, LimitAction::Drop);
        let outcome = bench.run(script, spec).await;
        check_masked_prefix(&bench, &outcome, expected, count);
        let found = events(outcome.audit.as_ref().unwrap());
        let found = found.iter().find_map(|event| match event {
            Event::Gap(gap) => gap.bytes,
            _ => None,
        });
        assert_eq!(found, lost, "limit of {limit}");
    }
}

fn check_masked_prefix(bench: &Bench, outcome: &Outcome, expected: &str, count: u64) {
    assert_eq!(text(outcome, Stream::Stdout), expected);
    assert_eq!(seal(outcome).masked, Some(count));
    check(outcome);
    drop(bench.root());
}

#[tokio::test]
async fn an_exec_of_a_masked_run_is_masked() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let script = Script::new().until_stopped();
    let run = bench.start(&manager, script, masked()).await;
    let output = format!("{SECRET}\ns3cr3");
    bench.runtime.next_exec(Script::new().stdout(output));
    let exec = run.exec(ExecSpec::new(["any"])).await.unwrap();
    assert_eq!(all(exec.attach().await.unwrap()).await, b"***\ns3cr3");
    let outcome = within(60, "the exec", exec.wait()).await.unwrap();
    assert_eq!(seal(&outcome).masked, Some(1));
    check(&outcome);
    run.kill().await.unwrap();
    manager.shutdown(ShutdownMode::Stop).await;
    assert!(
        !std::fs::read_to_string(outcome.audit.unwrap())
            .unwrap()
            .contains(SECRET)
    );
}

#[tokio::test]
async fn a_readiness_check_sees_masked_output() {
    let bench = Bench::new();
    let manager = bench.open_on_threads().await;
    let script = Script::new()
        .stdout(format!("port {SECRET}\n"))
        .until_stopped();
    let run = bench.start(&manager, script, masked()).await;
    let line = run.wait_ready(Ready::line("port ***"));
    within(60, "the line", line).await.unwrap();
    for _ in 0..100 {
        bench
            .runtime
            .next_exec(Script::new().stdout(SECRET).exit(1));
    }
    let failing = Ready::exec(["any"]).within(Duration::from_millis(300));
    let error = within(60, "the check", run.wait_ready(failing))
        .await
        .unwrap_err();
    let error = error.chain();
    assert!(
        error.contains("***") && !error.contains("s3cr3t"),
        "{error}"
    );
    run.kill().await.unwrap();
    manager.shutdown(ShutdownMode::Stop).await;
    assert_no_value(&bench.root());
}

/// In the owner, whose excerpt of the output would cut the value, and without the masks.
#[tokio::test]
async fn the_output_of_a_health_check_is_masked() {
    let bench = Bench::new();
    let owner = bench.open_on_threads().await;
    let script = Script::new()
        .health(Duration::ZERO, Health::Unhealthy)
        .health_output(format!("{}{SECRET}\n", "x".repeat(195)))
        .until_stopped();
    let run = bench.start(&owner, script, masked()).await;
    let other = bench.open_on_threads().await;
    let seen = other.get(run.id()).await.unwrap();
    for (run, expected) in [(&run, "xxx***)"), (&seen, "(it is unhealthy)")] {
        let healthy = Ready::healthy().within(Duration::from_millis(300));
        let error = within(60, "the check", run.wait_ready(healthy)).await;
        let error = error.unwrap_err().chain();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("s3cr"), "{error}");
    }
    run.kill().await.unwrap();
    other.shutdown(ShutdownMode::Leave).await;
    owner.shutdown(ShutdownMode::Stop).await;
}

/// The number of masks is in two files.
#[tokio::test]
async fn a_run_of_another_owner_is_never_unmasked() {
    for (name, from, to) in [
        ("run.json", r#","masks":3"#, ""),
        ("logs.jsonl", r#""masks":3"#, r#""mbsks":3"#),
        ("run.json", "", ""),
    ] {
        let bench = Bench::new();
        let owner = bench.open_on_threads().await;
        let script = Script::new().until_stopped();
        let run = bench.start(&owner, script, masked().tty(true)).await;
        let path = bench.file(RUN, name);
        let intact = std::fs::read_to_string(&path).unwrap();
        if from.is_empty() {
            std::fs::remove_file(&path).unwrap();
        } else {
            let damaged = intact.replacen(from, to, 1);
            assert_ne!(damaged, intact);
            std::fs::write(&path, damaged).unwrap();
        }
        let other = bench.open_on_threads().await;
        if let Ok(seen) = other.get(run.id()).await {
            bench.runtime.next_exec(Script::new().stdout(SECRET));
            assert!(seen.exec(ExecSpec::new(["any"])).await.is_err());
            let options = AttachOptions::new().live_only();
            drop(seen.attach_with(options).await);
        }
        assert_eq!(bench.runtime.calls(Call::Exec), 0, "{name}");
        assert_eq!(bench.runtime.calls(Call::AttachRunning), 0, "{name}");
        std::fs::write(&path, intact).unwrap();
        other.shutdown(ShutdownMode::Leave).await;
        run.kill().await.unwrap();
        owner.shutdown(ShutdownMode::Stop).await;
    }
}

/// Leaves a running run after the first part of its output, and lets it write the second.
async fn left(bench: &Bench, first: &str, recorded_as: &str, second: &str) {
    let manager = bench.open_on_threads().await;
    let script = Script::new()
        .stdout(first.to_owned())
        .pause(Duration::from_millis(300))
        .stdout(second.to_owned())
        .until_stopped();
    let run = bench.start(&manager, script, masked()).await;
    if !recorded_as.is_empty() {
        recorded(&run, recorded_as).await;
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

async fn end(manager: &Manager, bench: &Bench) -> Outcome {
    within(60, "the recovery", manager.wait_recovery())
        .await
        .unwrap();
    let run = manager.get(&RunId::new(RUN).unwrap()).await.unwrap();
    let container = bench.runtime.find(manager.root().id()).await.unwrap();
    // The log has all output by then.
    tokio::time::sleep(Duration::from_millis(400)).await;
    bench
        .runtime
        .signal(&container[0].container, "SIGKILL")
        .await
        .unwrap();
    let outcome = within(60, "the seal", sealed(&run)).await;
    manager.shutdown(ShutdownMode::Leave).await;
    outcome
}

#[tokio::test]
async fn a_recovered_run_is_masked_with_the_same_values() {
    for (first, recorded_as) in [
        ("", ""),
        ("a\nb s3cr3t-value\nc", r#""line":"b ***""#),
        ("a\nb s3cr3t-value\ns3c", r#""line":"b ***""#),
        (
            "-----BEGIN\nKEY-----\nb s3cr3t-value\n-----BEGIN\nK",
            r#""line":"***b ***""#,
        ),
    ] {
        let bench = Bench::new();
        let second = "r3t-value\n-----BEGIN\nKEY-----\nx s3cr3t\n";
        left(&bench, first, recorded_as, second).await;
        let manager = bench.builder().masks(|run| {
            assert_eq!(run.run.as_str(), RUN);
            VALUES
        });
        let manager = manager.open().await.unwrap();
        let outcome = end(&manager, &bench).await;
        let mut expected = format!("{first}{second}");
        for value in VALUES {
            expected = expected.replace(value, "***");
        }
        let count = expected.matches("***").count() as u64;
        check(&outcome);
        assert_eq!(text(&outcome, Stream::Stdout), expected);
        assert_eq!(seal(&outcome).masked, Some(count));
        assert_eq!(seal(&outcome).verdict, Verdict::Complete);
        assert_eq!(seal(&outcome).evidence, Evidence::Replay);
    }
}

#[tokio::test]
async fn a_manager_without_the_masks_records_no_output() {
    let few: &[&str] = &VALUES[..2];
    for (first, recorded_as, values, possible) in [
        ("", "", None, false),
        ("b s3cr3t-value\n", r#""line":"b ***""#, None, true),
        ("b s3cr3t-value\ns3", r#""line":"b ***""#, Some(few), true),
    ] {
        let bench = Bench::new();
        left(&bench, first, recorded_as, "cr3t-value\ns3cr3t\n").await;
        let mut builder = bench.builder();
        if let Some(values) = values {
            builder = builder.masks(move |_| values.to_vec());
        }
        let manager = builder.open().await.unwrap();
        within(60, "the recovery", manager.wait_recovery())
            .await
            .unwrap();
        // Its exec would have to be masked, too.
        let run = manager.get(&RunId::new(RUN).unwrap()).await.unwrap();
        bench.runtime.next_exec(Script::new().stdout(SECRET));
        let refused = run.exec(ExecSpec::new(["any"])).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Runtime(RuntimeError::Rejected { .. })),
            "{refused:?}"
        );
        assert_eq!(bench.runtime.calls(Call::Exec), 0);
        let outcome = end(&manager, &bench).await;
        let expected = first.replace(SECRET, "***").replace("s3", "");
        let count = if first.is_empty() { Some(0) } else { None };
        check_masked(&bench, &outcome, &expected, count);
        assert_eq!(seal(&outcome).verdict, Verdict::Gap);
        assert_eq!(seal(&outcome).evidence, Evidence::None);
        let found = events(outcome.audit.as_ref().unwrap());
        let found = found.into_iter().filter_map(|event| match event {
            Event::Gap(gap) => Some((gap.reason, gap.possible)),
            _ => None,
        });
        let found: Vec<_> = found.collect();
        assert_eq!(found, [(GapReason::MasksMissing, possible)], "{first:?}");
    }
}

#[tokio::test]
async fn the_output_limit_applies_without_the_masks() {
    let bench = Bench::new();
    let owner = bench.open_on_threads().await;
    let script = Script::new()
        .stdout("a\n")
        .pause(Duration::from_millis(300))
        .stdout(format!("{SECRET}\n").repeat(100))
        .until_stopped();
    let spec = masked().output_limit(1000, LimitAction::Stop);
    let run = bench.start(&owner, script, spec).await;
    recorded(&run, r#""line":"a""#).await;
    owner.shutdown(ShutdownMode::Leave).await;
    let manager = bench.open_on_threads().await;
    within(60, "the recovery", manager.wait_recovery())
        .await
        .unwrap();
    let run = manager.get(run.id()).await.unwrap();
    let outcome = within(60, "the limit", sealed(&run)).await;
    assert_eq!(seal(&outcome).stopped, Some(StopCause::OutputLimit));
    check_masked(&bench, &outcome, "a\n", None);
}

/// In both forms, whichever of them the program prints.
#[tokio::test]
async fn a_value_with_crlf_is_masked_on_a_terminal() {
    let value = "s3cr3t\r\nKEY\n";
    for printed in [value.to_owned(), value.replace('\n', "\r\n")] {
        let bench = Bench::new();
        let script = Script::new().print(Stream::Tty, format!("a {printed}b"));
        let outcome = bench.run(script, named(RUN).tty(true).mask([value])).await;
        assert_eq!(text(&outcome, Stream::Tty), "a ***b");
        assert_eq!(seal(&outcome).masked, Some(1));
        assert_no_value(&bench.root());
    }
}

/// Whichever of the two files lost the number.
#[tokio::test]
async fn a_damaged_number_of_masks_unmasks_nothing() {
    let bench = Bench::new();
    left(&bench, "b s3cr3t\n", r#""line":"b ***""#, "s3cr3t\n").await;
    let path = bench.file(RUN, "logs.jsonl");
    let log = std::fs::read_to_string(&path).unwrap();
    let damaged = log.replacen(r#""masks":3"#, r#""mbsks":3"#, 1);
    assert_ne!(damaged, log);
    std::fs::write(&path, damaged).unwrap();
    let manager = bench.open_on_threads().await;
    let outcome = end(&manager, &bench).await;
    check_masked(&bench, &outcome, "b ***\n", None);
    assert_eq!(gaps(&outcome), [GapReason::MasksMissing]);
}

#[tokio::test]
async fn an_error_of_the_engine_is_redacted() {
    let bench = Bench::new();
    let script = Script::new().fail_to_start(format!("no {SECRET}"));
    let outcome = bench.run(script, masked()).await;
    assert!(outcome.to_string().contains("no ***"), "{outcome}");
    check_masked(&bench, &outcome, "", Some(0));
}

#[tokio::test]
async fn a_terminal_that_is_not_tapped_is_read_masked() {
    let bench = Bench::new();
    let first = bench.open_on_threads().await;
    let script = Script::new()
        .print(
            Stream::Tty,
            format!("{SECRET}-----BEGIN\r\nKEY-----\r\n\r\n"),
        )
        .until_stopped();
    let run = bench.start(&first, script, masked().tty(true)).await;
    recorded(&run, r#""line":"******\r""#).await;
    first.shutdown(ShutdownMode::Leave).await;
    let second = bench.builder().masks(|_| VALUES).open().await.unwrap();
    within(60, "the recovery", second.wait_recovery())
        .await
        .unwrap();
    let run = second.get(run.id()).await.unwrap();
    let options = AttachOptions::new().live_only();
    let mut attached = run.attach_with(options).await.unwrap();
    run.kill().await.unwrap();
    while let Some(item) = attached.next().await {
        if let Ok(Attached::Chunk(chunk)) = item {
            let text = String::from_utf8_lossy(&chunk.bytes).into_owned();
            assert!(!text.contains("s3cr3t"), "{text}");
        }
    }
    assert_eq!(bench.runtime.calls(Call::AttachRunning), 0);
    second.shutdown(ShutdownMode::Stop).await;
    assert_no_value(&bench.root());
}

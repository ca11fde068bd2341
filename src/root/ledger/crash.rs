//! Crash tests of the ledger.
//!
//! As in `root::crash`, a journal records every file operation. Each image that a crash may leave is
//! opened, and the ledger is continued.

use std::collections::BTreeSet;

use crate::disk::image::{Image, Medium, read_image, scratch_dir, write_image};
use crate::disk::journal::{Journal, Op};
use crate::outcome::{Ending, Evidence, PerStream, Seal, Verdict};
use crate::root::ledger::end::End;
use crate::root::{LedgerEntry, LedgerLine, Root, VerifyOptions};
use crate::spec::{RunId, RunRecord, RunSpec};
use crate::timestamp::Timestamp;

/// The sector size: small enough that a line spans several sectors.
const SECTOR_BYTES: usize = 128;
const ROOT: &str = "root";

fn record(root: &Root, run: &str) -> RunRecord {
    let run = RunId::new(run).unwrap();
    RunRecord::new(run, root.id().clone(), "scripted", &RunSpec::new("image"))
}

fn seal() -> Seal {
    Seal {
        ts: Timestamp::now(),
        exit: Ending::not_created("no image".into()),
        verdict: Verdict::Complete,
        evidence: Evidence::NeverStarted,
        records: 0,
        bytes: PerStream::default(),
        gaps: 0,
        masked: None,
        stopped: None,
        container: None,
        image_digest: None,
        capture_seconds: 0.0,
        usage: None,
        sha256: "ab".repeat(32),
    }
}

fn lines(root: &Root) -> Vec<LedgerLine> {
    root.ledger().unwrap().collect::<Result<_, _>>().unwrap()
}

/// Continues the ledger of an image, and checks its lines.
///
/// At least the first `promised` of the `expected` lines are in it, once and in order.
fn check(image: &Image, promised: usize, expected: &[LedgerLine]) {
    let disk = scratch_dir();
    write_image(image, disk.path());
    let root = Root::open(disk.path().join(ROOT)).unwrap();
    // A reader does not change the file, and finds no line that is not what was written.
    let before = root.verify_all(&VerifyOptions::new()).unwrap();
    let run = RunId::new("next").unwrap();
    root.record_exec_seal(&run, 1, &seal()).unwrap();
    let found = lines(&root);
    let kept = found
        .iter()
        .zip(expected)
        .take_while(|(found, expected)| found == expected)
        .count();
    assert!(kept >= promised, "{kept} of {promised}: {found:?}");
    let added: Vec<_> = found[kept..].iter().map(|line| &line.entry).collect();
    let is_next = |entry: &LedgerEntry| entry.run() == Some(&run);
    match added[..] {
        [next] => assert!(is_next(next), "{added:?}"),
        [
            LedgerEntry::Resumed { .. } | LedgerEntry::Created { .. },
            next,
        ] => {
            assert!(is_next(next), "{added:?}");
        }
        [
            LedgerEntry::Created { .. },
            LedgerEntry::Resumed { .. },
            next,
        ] => {
            assert!(is_next(next), "{added:?}");
        }
        _ => panic!("{added:?}"),
    }
    let mut changed = before.findings.iter();
    let changed = changed.find(|finding| finding.run.is_none());
    assert_eq!(changed, None, "{before:?}");
}

/// Appends all kinds of lines from two processes, and returns the number of lines that survive
/// SIGKILL and a power loss after each step.
fn write_lines(disk: &std::path::Path, journal: &Journal) -> Vec<(usize, usize, usize)> {
    let mut promises = Vec::new();
    let root = Root::open(disk.join(ROOT)).unwrap();
    let other = Root::open(disk.join(ROOT)).unwrap();
    let mut promise = |written: usize, synced: usize| {
        promises.push((journal.len(), written, synced));
    };
    let (a, b) = (record(&root, "a"), record(&root, "b"));
    root.record_begun(&a).unwrap();
    promise(2, 0);
    other.record_begun(&b).unwrap();
    promise(3, 0);
    root.record_exec_seal(&a.run, 1, &seal()).unwrap();
    promise(4, 0);
    root.record_seal(&a, &seal(), false).unwrap();
    promise(5, 5);
    other.record_seal(&b, &seal(), true).unwrap();
    promise(6, 6);
    promises
}

#[test]
fn a_ledger_survives_any_crash() {
    let disk = scratch_dir();
    Root::open_or_create(disk.path().join(ROOT)).unwrap();
    let before = read_image(disk.path());
    let journal = Journal::of(disk.path());
    let promises = write_lines(disk.path(), &journal);
    let expected = lines(&Root::open(disk.path().join(ROOT)).unwrap());
    assert_eq!(expected.len(), 6);
    let ops = journal.ops();
    drop(journal);

    let mut images = BTreeSet::new();
    let mut medium = Medium::of(&before, SECTOR_BYTES);
    for done in 0..=ops.len() {
        let promise = promises.iter().rfind(|(from, ..)| *from <= done);
        let (killed, failed) = promise.map_or((0, 0), |(_, killed, failed)| (*killed, *failed));
        for medium in medium.after_kill(ops.get(done)) {
            images.insert((medium.live(), killed));
        }
        for image in medium.after_power_loss() {
            images.insert((image, failed));
        }
        if let Some(op) = ops.get(done) {
            medium.apply(op);
        }
    }
    for (image, promised) in &images {
        check(image, *promised, &expected);
    }
    assert!(images.len() > 300, "{}", images.len());
    check_reopenings(&images, &expected);
}

/// Crashes again while a torn end is moved aside.
fn check_reopenings(images: &BTreeSet<(Image, usize)>, expected: &[LedgerLine]) {
    let mut reopened = BTreeSet::new();
    // All torn ends are moved aside by the same steps, so some of the images suffice.
    for (image, promised) in images.iter().step_by(61) {
        let disk = scratch_dir();
        write_image(image, disk.path());
        let journal = Journal::of(disk.path());
        let root = Root::open(disk.path().join(ROOT)).unwrap();
        let run = RunId::new("between").unwrap();
        root.record_exec_seal(&run, 1, &seal()).unwrap();
        let ops = journal.ops();
        drop(journal);
        let is_repair =
            |op: &Op| matches!(op, Op::Create { path, .. } if path.ends_with(".ledger-torn-1"));
        if !ops.iter().any(is_repair) {
            continue;
        }
        let mut medium = Medium::of(image, SECTOR_BYTES);
        let mut last_is_new = false;
        for op in &ops {
            medium.apply(op);
            last_is_new |= medium.live().iter().any(|(path, content)| {
                let text = content.as_deref().unwrap_or_default();
                path.ends_with("ledger.jsonl") && memchr::memmem::find(text, b"between").is_some()
            });
            if last_is_new {
                break;
            }
            reopened.insert((medium.live(), *promised));
            for image in medium.after_power_loss() {
                reopened.insert((image, *promised));
            }
        }
    }
    for (image, promised) in &reopened {
        check(image, *promised, expected);
    }
    assert!(reopened.len() > 100, "{}", reopened.len());
}

#[test]
fn a_failed_write_leaves_the_earlier_lines() {
    let disk = scratch_dir();
    let root = Root::open_or_create(disk.path().join(ROOT)).unwrap();
    root.record_begun(&record(&root, "a")).unwrap();
    let before = lines(&root);
    let path = root.ledger_path();
    let mut torn = std::fs::read(&path).unwrap();
    torn.extend_from_slice(b"{\"type\":\"begun\",\"n\":3");
    std::fs::write(&path, &torn).unwrap();
    let verified = root.verify_all(&VerifyOptions::new()).unwrap();
    assert_eq!(verified.torn, 21);
    assert!(
        verified.findings.iter().all(|f| f.run.is_some()),
        "{verified:?}"
    );

    root.record_begun(&record(&root, "b")).unwrap();
    let after = lines(&root);
    assert_eq!(after[..2], before);
    let LedgerEntry::Resumed { bytes: 21, file } = &after[2].entry else {
        panic!("{after:?}");
    };
    let aside = std::fs::read(root.path().join(file)).unwrap();
    assert_eq!(aside, b"{\"type\":\"begun\",\"n\":3");
    assert_eq!(after[3].entry.run().unwrap().as_str(), "b");
    assert_eq!(End::default().number, 0);
}

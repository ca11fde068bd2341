//! The target of the writer that continues a file.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use futures::executor::block_on;

use crate::audit::{
    Batch, Event, LOG_FILE, LogState, Output, Reader, Record, RecordRef, Resume, ResumeCause,
    Verification,
};
use crate::error::{Error, Result};
use crate::fuzz::Input;
use crate::fuzz::reader::verify_and_read;
use crate::outcome::{Ending, Evidence, Exit, Seal, Stream, Verdict};
use crate::sink::{Durability, Jsonl, LogSink, Resumed, RunPlace};
use crate::spec::RunId;
use crate::timestamp::Timestamp;

/// Checks that a writer can continue any file that it should.
///
/// A damaged or sealed file must stay unchanged. Otherwise the whole records must stay and the rest
/// must be moved aside. The file must verify after more records and a seal. A second crash at any
/// position must leave a file that can be continued.
///
/// The input is the position of the second crash in two bytes, counted from the end, and a file.
pub fn reopen(dir: &Path, input: &[u8]) {
    let mut input = Input(input);
    let crash = input.short();
    let file = input.0;

    let dir = dir.join("run");
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir(&dir).unwrap();
    let path = dir.join(LOG_FILE);
    fs::write(&path, file).unwrap();
    let state = verify_and_read(file).state;

    let torn = dir.join("torn-1");
    match resume(&dir) {
        Err(Error::Damaged { .. }) => {
            assert!(matches!(state, LogState::Damaged(_)));
            assert!(fs::read(&path).unwrap() == file && !torn.exists());
        }
        Err(error) => panic!("{}", error.chain()),
        Ok((Resumed::Sealed(seal), records)) => {
            assert_eq!(state, LogState::Sealed(Box::new(seal)));
            assert!(fs::read(&path).unwrap() == file && !torn.exists());
            assert_eq!(records, records_of(file));
        }
        Ok((Resumed::Absent, _)) => {
            assert!(!matches!(state, LogState::Sealed(_)));
            assert!(!path.exists());
            let aside = fs::read(&torn).unwrap_or_default();
            assert!(aside == file, "not all of the file is moved aside");
        }
        Ok((Resumed::Open { log, torn: moved }, records)) => {
            drop(log);
            let kept = fs::read(&path).unwrap();
            let aside = fs::read(&torn).unwrap_or_default();
            assert!([&kept[..], &aside].concat() == file, "bytes are lost");
            assert_eq!(moved.map_or(0, |torn| torn.bytes), aside.len() as u64);
            if let LogState::Unsealed { torn } = state {
                assert_eq!(torn, aside.len() as u64, "whole records are moved aside");
            }
            let state = verify_and_read(&kept).state;
            assert_eq!(state, LogState::Unsealed { torn: 0 });
            assert_eq!(records, records_of(&kept));
            continue_file(&dir, &kept, records, crash, &aside);
        }
    }
}

/// Appends to a file and seals it, then checks a changed byte and a second crash.
fn continue_file(dir: &Path, kept: &[u8], mut records: Vec<Record>, crash: usize, bytes: &[u8]) {
    let path = dir.join(LOG_FILE);
    append_and_seal(dir, &mut records, crash.is_multiple_of(2), bytes);
    let sealed = fs::read(&path).unwrap();
    assert!(sealed.starts_with(kept), "kept records are changed");
    assert_eq!(written(records_of(&sealed)), written(records.clone()));

    let mut changed = sealed.clone();
    let at = crash % sealed.len();
    changed[at] ^= 1 << (crash % 8);
    let state = Verification::of(&changed[..]).unwrap().state;
    let is_sealed = matches!(state, LogState::Sealed(_));
    assert!(!is_sealed, "a changed byte is not detected");

    let length = sealed.len() - crash % (sealed.len() - kept.len() + 1);
    fs::write(&path, &sealed[..length]).unwrap();
    match resume(dir) {
        Ok((Resumed::Sealed(_), _)) => assert_eq!(length, sealed.len()),
        Ok((Resumed::Open { .. }, again)) => {
            assert!(length < sealed.len());
            let again = written(again);
            assert_eq!(again, written(records)[..again.len()]);
            let now = fs::read(&path).unwrap();
            assert!(now.starts_with(kept) && sealed.starts_with(&now));
            let lost = &sealed[now.len()..length];
            assert!(!lost.contains(&b'\n'), "a whole record is lost");
        }
        other => panic!("a crash after {length} bytes leaves {other:?}"),
    }
}

/// Resumes the file, appends to it and to `records`, and seals it.
fn append_and_seal(dir: &Path, records: &mut Vec<Record>, partial: bool, bytes: &[u8]) {
    let path = dir.join(LOG_FILE);
    let Ok((Resumed::Open { mut log, torn }, again)) = resume(dir) else {
        panic!("a continued file cannot be reopened");
    };
    assert_eq!((torn, &again), (None, &*records));

    let resumed = Event::Resume(Resume::new(ResumeCause::Reopened, None));
    let bytes = &bytes[..bytes.len() % 999];
    let mut output = Output::new(Timestamp::now(), Stream::Stderr, bytes);
    output.partial = partial;
    let mut batch = Batch::new();
    batch.push_event(resumed.clone());
    records.push(Record::Event(resumed));
    for _ in 0..20 {
        batch.push_output(&output);
        records.push(Record::Output(output.clone()));
    }
    block_on(log.append(batch)).unwrap();
    let open = verify_and_read(&fs::read(&path).unwrap());
    let seal = Box::new(block_on(log.seal(seal_of(records, &open))).unwrap());
    assert_eq!(seal.gaps, open.gaps, "a gap is not counted");
    drop(log);
    let state = verify_and_read(&fs::read(&path).unwrap()).state;
    assert_eq!(state, LogState::Sealed(seal.clone()));
    records.push(Record::Event(Event::End(seal)));
}

/// A seal that agrees with the known records of a file.
fn seal_of(records: &[Record], open: &Verification) -> Seal {
    let is_lossy = |record: &Record| matches!(record, Record::Output(output) if output.lossy);
    let is_gap = |record: &&Record| matches!(record, Record::Event(Event::Gap(_)));
    let started = records.iter().rev().find_map(|record| match record {
        Record::Event(Event::Started(started)) => Some(started),
        _ => None,
    });
    let gaps = records.iter().filter(is_gap).count() as u64;
    let evidence = Evidence::Replay;
    Seal {
        ts: Timestamp::now(),
        exit: match started {
            Some(_) => Ending::Exited(Exit::with_code(0)),
            None => Ending::Lost {
                reason: "the file has no start".into(),
            },
        },
        verdict: Verdict::of(gaps, records.iter().any(is_lossy), evidence),
        evidence,
        records: open.records,
        bytes: open.bytes,
        gaps,
        masked: None,
        stopped: None,
        container: started.map(|started| started.container.clone()),
        image_digest: started.and_then(|started| started.image_digest.clone()),
        usage: None,
        capture_seconds: 0.0,
        sha256: String::new(),
    }
}

/// The records that were appended to the sink.
///
/// Excludes the `check` records that the sink adds, and records of unknown types.
fn written(records: Vec<Record>) -> Vec<Record> {
    let is_written = |record: &Record| {
        !matches!(
            record,
            Record::Unknown(_) | Record::Event(Event::Check { .. })
        )
    };
    records.into_iter().filter(is_written).collect()
}

/// The known records of a file.
fn records_of(file: &[u8]) -> Vec<Record> {
    let records = Reader::new(file).map(|record| record.unwrap());
    let known = |record: &Record| !matches!(record, Record::Unknown(_));
    records.filter(known).collect()
}

/// The result of resuming the file in `dir`, and the records that the sink returns.
fn resume(dir: &Path) -> Result<(Resumed, Vec<Record>)> {
    static SINK: OnceLock<Jsonl> = OnceLock::new();
    let sink = SINK.get_or_init(|| Jsonl::with_durability(Durability::Interval(Duration::MAX)));
    sink.forget(&dir.join(LOG_FILE));
    let place = RunPlace::new(RunId::new("run")?, dir);
    let (sender, records) = std::sync::mpsc::channel();
    let visit = Box::new(move |record: RecordRef<'_>| {
        let _ = sender.send(Record::from(record));
    });
    let resumed = block_on(sink.resume(&place, visit))?;
    Ok((resumed, records.into_iter().collect()))
}

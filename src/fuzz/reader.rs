//! The target of the readers of an audit file.

use std::io::Read;

use crate::audit::{Event, LogState, Reader, Record, Verification};
use crate::fuzz::Input;
use crate::outcome::{PerStream, Verdict};

/// The golden files: five sealed files and an unsealed one.
const GOLDEN: [&[u8]; 6] = [
    include_bytes!("../../tests/golden/complete.jsonl"),
    include_bytes!("../../tests/golden/gap.jsonl"),
    include_bytes!("../../tests/golden/later-writer.jsonl"),
    include_bytes!("../../tests/golden/lossy.jsonl"),
    include_bytes!("../../tests/golden/not-created.jsonl"),
    include_bytes!("../../tests/golden/unsealed-torn.jsonl"),
];

/// Checks that `verify` and the reader agree on any file.
///
/// A changed file must never be reported as sealed. If only one byte has changed, a sealed file
/// must be reported as damaged.
///
/// The input is a file; or a byte below 6, which selects a golden file, and changes to that file.
pub fn reader(input: &[u8]) {
    let mut input = Input(input);
    let golden = input
        .0
        .first()
        .and_then(|first| GOLDEN.get(usize::from(*first)));
    let Some(golden) = golden else {
        verify_and_read(input.0);
        return;
    };
    input.byte();
    let (file, is_byte_change) = change(golden, input);
    let state = verify_and_read(&file).state;
    if file != *golden {
        let sealed = matches!(state, LogState::Sealed(_));
        assert!(!sealed, "a changed file is reported as sealed");
        let was_sealed = matches!(
            Reader::new(*golden).last(),
            Some(Ok(Record::Event(Event::End(_))))
        );
        let damaged = matches!(state, LogState::Damaged(_));
        assert!(
            damaged || !is_byte_change || !was_sealed,
            "{state:?}: a writer would continue the changed file"
        );
    }
}

/// Applies the changes that `input` describes.
///
/// Returns true if they are one change of one byte to another value than zero: a power loss also
/// leaves zeros.
fn change(golden: &[u8], mut input: Input<'_>) -> (Vec<u8>, bool) {
    let mut file = golden.to_vec();
    let mut is_byte_change = input.0.len() == 4;
    while !input.is_empty() {
        let (kind, at, value) = (input.byte(), input.short() % (file.len() + 1), input.byte());
        is_byte_change &= kind.is_multiple_of(6) && at < file.len() && value != 0;
        let end = (at + usize::from(value)).min(file.len());
        match kind % 6 {
            0 if at < file.len() => file[at] = value,
            0 | 1 => file.insert(at, value),
            2 if at < file.len() => drop(file.remove(at)),
            2 => drop(file.pop()),
            3 => file.truncate(at),
            4 => drop(file.drain(at..end)),
            _ => file.extend_from_within(at..end),
        }
    }
    (file, is_byte_change)
}

/// The result of reading a whole file with [`Reader`].
#[derive(Debug, Clone, PartialEq)]
struct ReadResult {
    records: Vec<Record>,
    state: LogState,
    lines: u64,
    offset: u64,
}

fn read(input: impl Read) -> ReadResult {
    let mut reader = Reader::new(input);
    let records: Vec<_> = reader.by_ref().map(|record| record.unwrap()).collect();
    let state = reader.state().clone();
    assert!(reader.next().is_none(), "a record after the end");
    assert_eq!(*reader.state(), state, "the state changes after the end");
    ReadResult {
        records,
        state,
        lines: reader.lines(),
        offset: reader.offset(),
    }
}

/// Input that returns a limited number of bytes per read.
struct SmallReads<'a>(&'a [u8], usize);

impl Read for SmallReads<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let most = into.len().min(self.1);
        self.0.read(&mut into[..most])
    }
}

/// Verifies a file, and asserts that the reader agrees.
pub(super) fn verify_and_read(file: &[u8]) -> Verification {
    let verified = Verification::of(file).unwrap();
    let read_result = read(file);
    let in_small_reads = read(SmallReads(file, file.len() % 61 + 1));
    assert_eq!(in_small_reads, read_result);
    assert!(read_result.offset <= file.len() as u64);
    match &verified.state {
        LogState::Damaged(damage) => {
            assert!(damage.offset <= file.len() as u64 && damage.line > 0);
            if let LogState::Damaged(seen) = &read_result.state {
                assert!(seen.offset >= damage.offset && seen.line >= damage.line);
            }
        }
        LogState::Sealed(_) | LogState::Unsealed { .. } => {
            assert_counts_agree(&verified, &read_result, file.len() as u64);
        }
    }
    if verified.checked > 0 {
        // The part up to a check record is valid on its own.
        let before = Verification::of(&file[..verified.checked as usize]).unwrap();
        assert_eq!(before.state, LogState::Unsealed { torn: 0 });
        assert_eq!(
            (before.checks, before.checked),
            (verified.checks, verified.checked)
        );
    }
    verified
}

fn assert_counts_agree(verified: &Verification, read: &ReadResult, length: u64) {
    assert_eq!(read.state, verified.state);
    let mut bytes = PerStream::<u64>::default();
    let (mut outputs, mut gaps, mut lossy, mut starts) = (0, 0, false, 0);
    for record in &read.records {
        match record {
            Record::Output(output) => {
                outputs += 1;
                bytes[output.stream] += output.bytes.len() as u64 + u64::from(!output.partial);
                lossy |= output.lossy;
            }
            Record::Event(Event::Gap(_)) => gaps += 1,
            Record::Unknown(kind) if kind == "gap" => gaps += 1,
            Record::Event(Event::Started(_)) => starts += 1,
            Record::Unknown(kind) if kind == "started" => starts += 1,
            _ => {}
        }
    }
    assert_eq!(verified.records, outputs);
    assert_eq!(verified.bytes, bytes);
    assert_eq!(verified.gaps, gaps);
    assert_eq!(verified.lines, read.lines);
    if let LogState::Sealed(seal) = &verified.state {
        assert_eq!(seal.verdict, Verdict::of(gaps, lossy, seal.evidence));
        let never_started = seal.exit.never_started();
        assert!(!never_started || (outputs == 0 && starts == 0));
        assert!(!seal.exit.proves_start() || starts > 0);
    }
    let torn = match verified.state {
        LogState::Unsealed { torn } => torn,
        _ => 0,
    };
    assert_eq!(read.offset + torn, length);
}

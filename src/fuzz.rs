//! What fuzzers try. Each function takes any bytes, and panics where a promise does not hold.
//!
//! `fuzz/` runs them with inputs that it makes up; the tests below, with the committed ones.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use futures::executor::block_on;

use crate::audit::{
    Batch, Event, LOG_FILE, LogState, Output, Reader, Record, RecordRef, Resume, ResumeCause,
    Verification,
};
use crate::capture::{LineAssembler, MAX_RECORD_BYTES};
use crate::outcome::{Ending, Evidence, Exit, PerStream, Seal, Stream, Verdict};
use crate::sink::{Durability, Jsonl, LogSink, Resumed, RunPlace};
use crate::spec::RunId;
use crate::timestamp::Timestamp;

/// The input of a target, taken apart from the front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next byte; 0 behind the end.
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    fn short(&mut self) -> usize {
        usize::from(u16::from_be_bytes([self.byte(), self.byte()]))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The demultiplexer. However its input is cut: each frame's payload comes out whole, in order, as
/// its stream's, and then the fault that ends it; a terminal's bytes come out as they went in.
///
/// The input: a byte whose lowest bit is the terminal, and the next three how often (2^n times)
/// the stream is repeated; a byte that counts the cuts; these, a byte each; and the stream.
#[cfg(feature = "docker")]
pub fn demux(input: &[u8]) {
    use crate::runtime::docker::demux::{CHUNK, Demux, ERROR_TEXT, Fault, HEADER};

    /// The runs of bytes of one stream, and the fault.
    type Seen = (Vec<(Stream, Vec<u8>)>, Option<Fault>);

    fn add(seen: &mut Seen, stream: Stream, bytes: &[u8]) {
        match seen.0.last_mut() {
            _ if bytes.is_empty() => {}
            Some((last, all)) if *last == stream => all.extend_from_slice(bytes),
            _ => seen.0.push((stream, bytes.to_vec())),
        }
    }

    /// What must come out.
    fn expected(tty: bool, bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        if tty {
            add(&mut seen, Stream::Tty, bytes);
            return seen;
        }
        let mut rest = Input(bytes);
        while !rest.is_empty() {
            let Ok(header) = <[u8; HEADER]>::try_from(rest.take(HEADER)) else {
                seen.1 = Some(Fault::Dangling);
                break;
            };
            let [kind, 0, 0, 0, length @ ..] = header else {
                seen.1 = Some(Fault::Header(header));
                break;
            };
            let length = u32::from_be_bytes(length) as usize;
            let payload = rest.take(length);
            match kind {
                1 => add(&mut seen, Stream::Stdout, payload),
                2 => add(&mut seen, Stream::Stderr, payload),
                3 => {
                    let text = String::from_utf8_lossy(&payload[..payload.len().min(ERROR_TEXT)]);
                    seen.1 = Some(Fault::Engine(text.trim().to_owned()));
                    break;
                }
                _ => {
                    seen.1 = Some(Fault::Header(header));
                    break;
                }
            }
            if payload.len() < length {
                seen.1 = Some(Fault::Dangling);
                break;
            }
        }
        seen
    }

    fn drain(demux: &mut Demux, seen: &mut Seen) {
        while let Some(item) = demux.pop() {
            assert_eq!(seen.1, None, "{item:?} came after a fault");
            match item {
                Ok(chunk) => {
                    assert!(!chunk.bytes.is_empty(), "an empty chunk");
                    add(seen, chunk.stream, &chunk.bytes);
                }
                Err(fault) => seen.1 = Some(fault),
            }
        }
    }

    let mut input = Input(input);
    let flags = input.byte();
    let tty = flags & 1 == 1;
    let count = usize::from(input.byte());
    let cuts = input.take(count);
    let bytes = input.0.repeat(1 << (flags >> 1 & 7));

    let mut demux = Demux::new(tty);
    let mut seen = Seen::default();
    let (mut rest, mut pushed) = (Input(&bytes), 0);
    for cut in cuts.iter().map(Some).chain([None]) {
        // Sizes of a byte, and of thousands; after some, what is held back is asked for.
        let length = match cut {
            Some(cut) if cut & 0x80 == 0 => usize::from(*cut),
            Some(cut) => usize::from(cut & 0x3f) << 9,
            None => usize::MAX,
        };
        let piece = rest.take(length);
        pushed += piece.len();
        demux.push(piece.to_vec().into());
        if cut.is_some_and(|cut| cut & 0x40 != 0) {
            demux.flush();
        }
        drain(&mut demux, &mut seen);
        if tty {
            let popped: usize = seen.0.iter().map(|(_, bytes)| bytes.len()).sum();
            assert!(pushed - popped < CHUNK, "{} bytes held", pushed - popped);
        }
    }
    demux.finish();
    drain(&mut demux, &mut seen);
    assert_eq!(seen, expected(tty, &bytes));
    demux.push(b"\x01\0\0\0\0\0\0\x01x".as_slice().into());
    demux.finish();
    assert_eq!(demux.pop(), None, "it goes on behind its end");
}

/// The line assembler. Records are a function of a stream's bytes, however these are cut and
/// mixed with another's; they rejoin to the bytes, and cut no character.
///
/// The input: pieces, each a byte whose lowest two bits are the stream and whose next two are what
/// follows: as many bytes as the next byte says; those, repeated as often as two more say; or a
/// line's end.
pub fn lines(input: &[u8]) {
    const MOST: usize = 4 * MAX_RECORD_BYTES;
    type Record = (Stream, Vec<u8>, bool, bool);

    let mut input = Input(input);
    let mut pieces: Vec<(Stream, Vec<u8>)> = Vec::new();
    let mut total = 0;
    while !input.is_empty() && total < MOST {
        let head = input.byte();
        let stream = Stream::ALL[usize::from(head & 3) % Stream::ALL.len()];
        let bytes = match head >> 2 & 3 {
            0 => b"\n".to_vec(),
            1 => {
                let unit = usize::from(head >> 4 & 3) + 1;
                let times = input.short() % (2 * MAX_RECORD_BYTES + 2);
                input.take(unit).repeat(times)
            }
            _ => {
                let length = usize::from(input.byte());
                input.take(length).to_vec()
            }
        };
        total += bytes.len();
        pieces.push((stream, bytes));
    }
    let mut whole = PerStream::<Vec<u8>>::default();
    for (stream, bytes) in &pieces {
        whole[*stream].extend_from_slice(bytes);
    }

    let ts = Timestamp::now();
    let assemble = |pieces: &mut dyn Iterator<Item = (Stream, &[u8])>, replacing: bool| {
        let mut lines = LineAssembler::default();
        lines.set_replacing_log(replacing);
        let mut batch = Batch::new();
        for (stream, bytes) in pieces {
            lines.push(ts, stream, bytes, &mut batch);
            assert!(
                lines.open(stream).len() <= MAX_RECORD_BYTES,
                "too much is held"
            );
        }
        lines.finish(ts, &mut batch);
        assert!(Stream::ALL.iter().all(|one| lines.open(*one).is_empty()));
        let records = batch.iter().map(|record| match record {
            RecordRef::Output {
                stream,
                bytes,
                partial,
                lossy,
                ..
            } => (stream, bytes.to_vec(), partial, lossy),
            RecordRef::Event(event) => panic!("{event:?}"),
        });
        records.collect::<Vec<Record>>()
    };
    let cut = assemble(
        &mut pieces.iter().map(|(one, bytes)| (*one, &bytes[..])),
        false,
    );
    for stream in Stream::ALL {
        let bytes = &whole[stream];
        let of: Vec<_> = cut.iter().filter(|record| record.0 == stream).collect();
        let mut joined = Vec::new();
        for (_, line, partial, lossy) in &of {
            assert!(line.len() <= MAX_RECORD_BYTES && !line.contains(&b'\n'));
            assert!(!lossy, "what was printed is marked as replaced");
            assert!(!(*partial && line.is_empty()), "a part of nothing");
            joined.extend_from_slice(line);
            joined.extend((!partial).then_some(b'\n'));
        }
        assert!(joined == *bytes, "{stream:?} does not rejoin");
        if std::str::from_utf8(bytes).is_ok() {
            let whole = |record: &&&Record| std::str::from_utf8(&record.1).is_ok();
            assert_eq!(of.iter().filter(whole).count(), of.len(), "a cut character");
        }
        let at_once = assemble(&mut [(stream, &bytes[..])].into_iter(), false);
        assert!(at_once.iter().eq(of.iter().copied()), "chunks show");
        // Bytes one by one, as long as they are few.
        let few = 1 + bytes.len() / MAX_RECORD_BYTES * 97;
        let mut chunks = bytes.chunks(few).map(|few| (stream, few));
        assert!(assemble(&mut chunks, false) == at_once, "chunks show");
        // From a log that replaces, the same records, and those marked that may be changed.
        let mut replacing = assemble(&mut bytes.chunks(7).map(|few| (stream, few)), true);
        for (_, line, _, lossy) in &mut replacing {
            let replaced = memchr::memmem::find(line, "\u{fffd}".as_bytes()).is_some();
            assert_eq!(*lossy, replaced);
            *lossy = false;
        }
        assert!(replacing == at_once, "the source shows");
    }
}

/// Sealed files, and one that is not, each as another version of this library wrote it.
const GOLDEN: [&[u8]; 6] = [
    include_bytes!("../tests/golden/complete.jsonl"),
    include_bytes!("../tests/golden/gap.jsonl"),
    include_bytes!("../tests/golden/later-writer.jsonl"),
    include_bytes!("../tests/golden/lossy.jsonl"),
    include_bytes!("../tests/golden/not-created.jsonl"),
    include_bytes!("../tests/golden/unsealed-torn.jsonl"),
];

/// The readers of a file. A sealed one that was changed is never found to be sealed, nor to be open
/// where only a byte has become another; and `verify` and the reader agree on any.
///
/// The input: a file; or a byte below 6, which is a golden file, and changes of that.
pub fn reader(input: &[u8]) {
    let mut input = Input(input);
    let golden = input
        .0
        .first()
        .and_then(|first| GOLDEN.get(usize::from(*first)));
    let Some(golden) = golden else {
        agree(input.0);
        return;
    };
    input.byte();
    let mut file = golden.to_vec();
    // One byte that became another, but zero, which a failure of the power leaves as well.
    let mut is_flip = input.0.len() == 4;
    while !input.is_empty() {
        let (kind, at, value) = (input.byte(), input.short() % (file.len() + 1), input.byte());
        is_flip &= kind.is_multiple_of(6) && at < file.len() && value != 0;
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
    let state = agree(&file).state;
    if file != *golden {
        let sealed = matches!(state, LogState::Sealed(_));
        assert!(!sealed, "a changed file is found to be sealed");
        let was_sealed = matches!(
            Reader::new(*golden).last(),
            Some(Ok(Record::Event(Event::End(_))))
        );
        let damaged = matches!(state, LogState::Damaged(_));
        assert!(
            damaged || !is_flip || !was_sealed,
            "{state:?}: it would be gone on with"
        );
    }
}

/// What `verify` says of a file, with which the reader must agree.
fn agree(file: &[u8]) -> Verification {
    /// Input that comes in small pieces.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let most = into.len().min(self.1);
            self.0.read(&mut into[..most])
        }
    }

    fn read(input: impl Read) -> (Vec<Record>, LogState, u64, u64) {
        let mut reader = Reader::new(input);
        let records: Vec<_> = reader.by_ref().map(|record| record.unwrap()).collect();
        let state = reader.state().clone();
        assert!(reader.next().is_none(), "a record behind the end");
        assert_eq!(*reader.state(), state, "the end changes");
        (records, state, reader.lines(), reader.offset())
    }

    let found = Verification::of(file).unwrap();
    let (records, state, lines, offset) = read(file);
    let dripped = read(Drip(file, file.len() % 61 + 1));
    assert_eq!(dripped, (records.clone(), state.clone(), lines, offset));
    assert!(offset <= file.len() as u64);
    match &found.state {
        LogState::Damaged(damage) => {
            assert!(damage.offset <= file.len() as u64 && damage.line > 0);
            if let LogState::Damaged(seen) = &state {
                assert!(seen.offset >= damage.offset && seen.line >= damage.line);
            }
        }
        whole => {
            assert_eq!(state, *whole);
            let mut bytes = PerStream::<u64>::default();
            let (mut outputs, mut gaps) = (0, 0);
            for record in &records {
                match record {
                    Record::Output(output) => {
                        outputs += 1;
                        bytes[output.stream] +=
                            output.bytes.len() as u64 + u64::from(!output.partial);
                    }
                    Record::Event(Event::Gap(_)) => gaps += 1,
                    Record::Unknown(kind) if kind == "gap" => gaps += 1,
                    _ => {}
                }
            }
            assert_eq!(found.records, outputs);
            assert_eq!(found.bytes, bytes);
            assert_eq!(found.gaps, gaps);
            assert_eq!(found.lines, lines);
            let torn = match whole {
                LogState::Unsealed { torn } => *torn,
                _ => 0,
            };
            assert_eq!(offset + torn, file.len() as u64);
        }
    }
    if found.checked > 0 {
        // What a check record vouches for stands alone.
        let before = Verification::of(&file[..found.checked as usize]).unwrap();
        assert_eq!(before.state, LogState::Unsealed { torn: 0 });
        assert_eq!(
            (before.checks, before.checked),
            (found.checks, found.checked)
        );
    }
    found
}

/// Going on with any file. What is damaged or sealed stays as it is; of the rest the whole records
/// are kept as they are and the others are moved aside; what is appended and sealed then verifies;
/// and a writer that dies again, anywhere, leaves what can be gone on with.
///
/// The input: two bytes for the place of that death, counted from the end, and a file.
pub fn reopen(dir: &Path, input: &[u8]) {
    let mut input = Input(input);
    let death = input.short();
    let file = input.0;

    let dir = dir.join("run");
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir(&dir).unwrap();
    let path = dir.join(LOG_FILE);
    fs::write(&path, file).unwrap();
    let found = agree(file);

    let torn = dir.join("torn-1");
    match resume(&dir) {
        Err(crate::error::Error::Damaged { .. }) => {
            assert!(matches!(found.state, LogState::Damaged(_)));
            assert!(fs::read(&path).unwrap() == file && !torn.exists());
        }
        Err(error) => panic!("{}", error.chain()),
        Ok((Resumed::Sealed(seal), records)) => {
            assert_eq!(found.state, LogState::Sealed(Box::new(seal)));
            assert!(fs::read(&path).unwrap() == file && !torn.exists());
            assert_eq!(records, records_of(file));
        }
        Ok((Resumed::Absent, _)) => {
            assert!(!matches!(found.state, LogState::Sealed(_)));
            assert!(!path.exists());
            let aside = fs::read(&torn).unwrap_or_default();
            assert!(aside == file, "not all of it is moved aside");
        }
        Ok((Resumed::Open { log, torn: moved }, records)) => {
            drop(log);
            let kept = fs::read(&path).unwrap();
            let aside = fs::read(&torn).unwrap_or_default();
            assert!([&kept[..], &aside].concat() == file, "bytes are lost");
            assert_eq!(moved.map_or(0, |torn| torn.bytes), aside.len() as u64);
            if let LogState::Unsealed { torn } = found.state {
                assert_eq!(torn, aside.len() as u64, "whole records are moved aside");
            }
            assert_eq!(agree(&kept).state, LogState::Unsealed { torn: 0 });
            assert_eq!(records, records_of(&kept));
            go_on(&dir, &kept, records, death, &aside);
        }
    }
}

/// Appends to a file that was reopened, seals it, and dies again.
fn go_on(dir: &Path, kept: &[u8], mut records: Vec<Record>, death: usize, bytes: &[u8]) {
    let path = dir.join(LOG_FILE);
    let Ok((Resumed::Open { mut log, torn }, again)) = resume(dir) else {
        panic!("what was reopened cannot be reopened");
    };
    assert_eq!((torn, &again), (None, &records));

    let resumed = Event::Resume(Resume::new(ResumeCause::Reopened, None));
    let mut output = Output::new(
        Timestamp::now(),
        Stream::Stderr,
        &bytes[..bytes.len() % 999],
    );
    output.partial = death.is_multiple_of(2);
    let mut batch = Batch::new();
    batch.push_event(resumed.clone());
    records.push(Record::Event(resumed));
    for _ in 0..20 {
        batch.push_output(&output);
        records.push(Record::Output(output.clone()));
    }
    block_on(log.append(batch)).unwrap();
    let open = agree(&fs::read(&path).unwrap());
    let seal = block_on(log.seal(Seal {
        ts: Timestamp::now(),
        exit: Ending::Exited(Exit::with_code(0)),
        verdict: Verdict::Complete,
        evidence: Evidence::None,
        records: open.records,
        bytes: open.bytes,
        gaps: open.gaps,
        stopped: None,
        container: None,
        image_digest: None,
        usage: None,
        capture_seconds: 0.0,
        sha256: String::new(),
    }));
    let seal = Box::new(seal.unwrap());
    drop(log);
    let sealed = fs::read(&path).unwrap();
    assert!(sealed.starts_with(kept), "what was kept is changed");
    assert_eq!(agree(&sealed).state, LogState::Sealed(seal.clone()));
    records.push(Record::Event(Event::End(seal)));
    assert_eq!(own(records_of(&sealed)), own(records.clone()));

    let mut changed = sealed.clone();
    let at = death % sealed.len();
    changed[at] ^= 1 << (death % 8);
    let state = Verification::of(&changed[..]).unwrap().state;
    assert!(
        !matches!(state, LogState::Sealed(_)),
        "a change is not seen"
    );

    let length = sealed.len() - death % (sealed.len() - kept.len() + 1);
    fs::write(&path, &sealed[..length]).unwrap();
    match resume(dir) {
        Ok((Resumed::Sealed(_), _)) => assert_eq!(length, sealed.len()),
        Ok((Resumed::Open { .. }, again)) => {
            assert!(length < sealed.len());
            assert_eq!(own(again.clone()), own(records)[..own(again).len()]);
            let now = fs::read(&path).unwrap();
            assert!(now.starts_with(kept) && sealed.starts_with(&now));
            let lost = &sealed[now.len()..length];
            assert!(!lost.contains(&b'\n'), "a whole record is lost");
        }
        other => panic!("a death after {length} bytes leaves {other:?}"),
    }
}

/// The records of a file that a sink shows, or was given.
fn own(records: Vec<Record>) -> Vec<Record> {
    let is_own = |record: &Record| {
        !matches!(
            record,
            Record::Unknown(_) | Record::Event(Event::Check { .. })
        )
    };
    records.into_iter().filter(is_own).collect()
}

fn records_of(file: &[u8]) -> Vec<Record> {
    let records = Reader::new(file).map(|record| record.unwrap());
    let known = |record: &Record| !matches!(record, Record::Unknown(_));
    records.filter(known).collect()
}

/// What the sink finds in `folder`, and the records that it shows.
fn resume(dir: &Path) -> crate::error::Result<(Resumed, Vec<Record>)> {
    static SINK: OnceLock<Jsonl> = OnceLock::new();
    let sink = SINK.get_or_init(|| Jsonl::with_durability(Durability::Interval(Duration::MAX)));
    sink.forget(&dir.join(LOG_FILE));
    let place = RunPlace::new(RunId::new("run")?, dir);
    let (sender, records) = std::sync::mpsc::channel();
    let visit = Box::new(move |record: RecordRef<'_>| {
        let _ = sender.send(match record {
            RecordRef::Output {
                ts,
                stream,
                bytes,
                partial,
                lossy,
            } => {
                let mut output = Output::new(ts, stream, bytes);
                (output.partial, output.lossy) = (partial, lossy);
                Record::Output(output)
            }
            RecordRef::Event(event) => Record::Event(event.clone()),
        });
    });
    let resumed = block_on(sink.resume(&place, visit))?;
    Ok((resumed, records.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Runs a target over its committed inputs.
    fn replay(target: &str, run: impl Fn(&[u8])) {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let dir = dir.join(target);
        // A package has no corpus: it is in the repository.
        let files = fs::read_dir(&dir)
            .unwrap_or_else(|error| panic!("no corpus at {}: {error}", dir.display()));
        let mut names: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        names.sort();
        assert!(names.len() >= 5, "{} inputs: {names:?}", names.len());
        for name in names {
            // What it captured is shown if it panics.
            println!("{}", name.display());
            run(&fs::read(&name).unwrap());
        }
    }

    #[cfg(feature = "docker")]
    #[test]
    fn committed_inputs_keep_the_promise_of_the_demultiplexer() {
        replay("demux", demux);
    }

    #[test]
    fn committed_inputs_keep_the_promise_of_the_line_assembler() {
        replay("lines", lines);
    }

    #[test]
    fn committed_inputs_keep_the_promise_of_the_readers() {
        replay("reader", reader);
    }

    #[test]
    fn committed_inputs_keep_the_promise_of_reopening() {
        let dir = crate::disk::image::scratch();
        replay("reopen", |input| reopen(dir.path(), input));
    }
}

//! Crash tests of the log: every image that a crash may leave is reopened.
//!
//! Each test records the file operations of the real sink. For every prefix of these operations,
//! every image that a crash may leave is created (`disk::image`), reopened and appended to. So is
//! every image that a second crash may leave during the reopening.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::audit::{
    Batch, Event, LogState, Output, Reader, Record, RecordRef, Resume, ResumeCause, Start, verify,
};
use crate::disk::image::{Image, Medium, read_image, scratch_dir, write_image};
use crate::disk::journal::{Change, Journal, Op};
use crate::disk::{create_dir, open_to_write};
use crate::outcome::{PerStream, Seal, Stream};
use crate::sink::jsonl::{Durability, Jsonl};
use crate::sink::{LogSink, Resumed, RunLog, RunPlace};
use crate::spec::RunId;

const LOG: &str = "root/run/logs.jsonl";
const TS: &str = "2026-11-22T18:23:25.491211661Z";

fn place(disk: &Path) -> RunPlace {
    RunPlace::new(RunId::new("run").unwrap(), disk.join("root/run"))
}

fn parsed<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).unwrap()
}

fn start() -> Start {
    parsed(json!({
        "v": 1, "ts": TS, "run": "run", "root": "0123456789abcdef0123",
        "created": TS, "runtime": "scripted", "image": "image",
    }))
}

fn line(stream: Stream, bytes: &[u8]) -> Record {
    Record::Output(Output::new(TS.parse().unwrap(), stream, bytes))
}

fn partial(stream: Stream, bytes: &[u8]) -> Record {
    let mut output = Output::new(TS.parse().unwrap(), stream, bytes);
    output.partial = true;
    Record::Output(output)
}

fn batch(records: &[Record]) -> Batch {
    let mut batch = Batch::new();
    for record in records {
        match record {
            Record::Output(output) => batch.push_output(output),
            Record::Event(event) => batch.push_event(event.clone()),
            Record::Unknown(_) => panic!("{record:?}"),
        }
    }
    batch
}

/// The output bytes by stream.
fn printed(records: &[Record]) -> PerStream<Vec<u8>> {
    let mut all = PerStream::<Vec<u8>>::default();
    for record in records {
        if let Record::Output(output) = record {
            all[output.stream].extend_from_slice(&output.bytes);
            if !output.partial {
                all[output.stream].push(b'\n');
            }
        }
    }
    all
}

/// A seal with the counts of these records.
fn seal(records: &[Record]) -> Seal {
    let printed = printed(records);
    let outputs = records
        .iter()
        .filter(|record| matches!(record, Record::Output(_)))
        .count();
    parsed(json!({
        "ts": TS,
        // A reason of this length spreads the seal over sectors.
        "exit": {
            "state": "lost",
            "reason": "the process that started the run has died, and the engine has no container \
                       with these labels",
        },
        "verdict": "complete",
        "evidence": "replay",
        "records": outputs,
        "bytes": {
            "stdout": printed.stdout.len(),
            "stderr": printed.stderr.len(),
            "tty": printed.tty.len(),
        },
        "gaps": 0,
    }))
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

fn read(bytes: &[u8]) -> (Vec<Record>, u64) {
    let mut reader = Reader::new(bytes);
    let records = reader.by_ref().map(Result::unwrap).collect();
    (records, reader.offset())
}

/// The promises at one point of a recording, in bytes of the file.
#[derive(Debug, Clone, Copy, Default)]
struct Promise {
    /// Bytes of records whose `append` has returned.
    appended: u64,
    /// Bytes that must survive a power loss.
    synced: u64,
    sealed: bool,
}

/// Records the file operations on a log.
struct Recorder {
    disk: tempfile::TempDir,
    before: Image,
    journal: Journal,
    sink: Jsonl,
    log: Option<Box<dyn RunLog>>,
    durability: Durability,
    promise: Promise,
    /// Each promise, with the number of operations after which it holds.
    promises: Vec<(usize, Promise)>,
    /// Crashes before this operation are covered by another test.
    from: usize,
}

impl Recorder {
    fn new(durability: Durability) -> Self {
        let disk = scratch_dir();
        fs::create_dir(disk.path().join("root")).unwrap();
        Self {
            before: read_image(disk.path()),
            journal: Journal::of(disk.path()),
            sink: Jsonl::with_durability(durability),
            disk,
            log: None,
            durability,
            promise: Promise::default(),
            promises: Vec::new(),
            from: 0,
        }
    }

    /// An open log.
    fn opened(durability: Durability) -> Self {
        let mut recorder = Self::new(durability);
        recorder.open();
        recorder.from = recorder.journal.len();
        recorder
    }

    fn length(&self) -> u64 {
        fs::metadata(self.disk.path().join(LOG)).unwrap().len()
    }

    fn promised(&mut self, synced: bool) {
        self.promise.appended = self.length();
        if synced {
            self.promise.synced = self.length();
        }
        self.promises.push((self.journal.len(), self.promise));
    }

    fn open(&mut self) {
        create_dir(&self.disk.path().join("root/run")).unwrap();
        let log = wait(self.sink.open(&place(self.disk.path()), &start()));
        self.log = Some(log.unwrap());
        self.promised(true);
    }

    fn log(&mut self) -> &mut Box<dyn RunLog> {
        self.log.as_mut().unwrap()
    }

    fn append(&mut self, records: &[Record]) {
        wait(self.log().append(batch(records))).unwrap();
        self.promised(self.durability == Durability::Always);
    }

    fn sync(&mut self) {
        wait(self.log().sync()).unwrap();
        self.promised(true);
    }

    /// Waits for the periodic sync.
    fn wait_periodic_sync(&mut self) {
        let begin = Instant::now();
        while !matches!(
            self.journal.ops().last(),
            Some(Op::Change {
                change: Change::Sync { .. },
                ..
            })
        ) {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
        self.promised(true);
    }

    fn seal(&mut self) {
        let (records, _) = read(&fs::read(self.disk.path().join(LOG)).unwrap());
        wait(self.log().seal(seal(&records))).unwrap();
        self.promise.sealed = true;
        self.promised(true);
    }

    /// Closes the log and appends `torn`, as if the process was killed during a write.
    fn kill_during_write(&mut self, torn: &[u8]) {
        self.log = None;
        let file = open_to_write(&self.disk.path().join(LOG)).unwrap();
        std::io::Seek::seek(&mut file.as_std(), std::io::SeekFrom::End(0)).unwrap();
        std::io::Write::write_all(&mut &file, torn).unwrap();
    }

    fn resume(&mut self) {
        let place = place(self.disk.path());
        let Ok(Resumed::Open { log, torn }) = wait(self.sink.resume(&place, Box::new(|_| {})))
        else {
            panic!("not resumed");
        };
        self.log = Some(log);
        self.promised(true);
        let mut resume = Resume::new(ResumeCause::Reopened, torn);
        resume.ts = TS.parse().unwrap();
        self.append(&[Record::Event(Event::Resume(resume))]);
    }

    fn finish(self) -> Recording {
        drop(self.log);
        let ops = self.journal.ops();
        let image = read_image(self.disk.path());
        let mut medium = Medium::of(&self.before, 64);
        ops.iter().for_each(|op| medium.apply(op));
        assert_eq!(medium.live(), image, "an operation was not recorded");
        let whole = image[Path::new(LOG)].clone().unwrap();
        Recording {
            before: self.before,
            ops,
            promises: self.promises,
            from: self.from,
            log: FinalLog {
                records: read(&whole).0,
                bytes: whole,
                checked_logs: Mutex::default(),
                completed_from: Mutex::default(),
            },
        }
    }
}

/// The recorded operations on a log.
struct Recording {
    before: Image,
    ops: Vec<Op>,
    promises: Vec<(usize, Promise)>,
    from: usize,
    log: FinalLog,
}

/// The final state of a log.
struct FinalLog {
    bytes: Arc<[u8]>,
    records: Vec<Record>,
    /// The logs that were read as the crash left them.
    checked_logs: Mutex<HashSet<Arc<[u8]>>>,
    /// The lengths from which a log was completed.
    completed_from: Mutex<HashSet<u64>>,
}

/// The numbers of reopened images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    /// Left by a killed process, at any byte of a write.
    killed: usize,
    /// Left by a power loss.
    power_loss: usize,
    /// Left by a second crash, while the log was resumed.
    second_crash: usize,
}

impl Counts {
    /// Fails if the model produces fewer images than expected.
    fn at_least(self, killed: usize, power_loss: usize, second_crash: usize) {
        let enough = self.killed >= killed
            && self.power_loss >= power_loss
            && self.second_crash >= second_crash;
        assert!(enough, "{self:?}");
    }
}

impl Recording {
    /// The promises after `done` operations.
    fn promise(&self, done: usize) -> Promise {
        let held = self.promises.iter().take_while(|(from, _)| *from <= done);
        held.last().map_or(Promise::default(), |(_, last)| *last)
    }

    /// Every state of the medium, with the next operation.
    fn media(&self, sector: usize) -> Vec<(Medium, Option<&Op>, Promise)> {
        let mut medium = Medium::of(&self.before, sector);
        let mut all = Vec::new();
        for done in 0..=self.ops.len() {
            if done >= self.from {
                all.push((medium.clone(), self.ops.get(done), self.promise(done)));
            }
            if let Some(op) = self.ops.get(done) {
                medium.apply(op);
            }
        }
        all
    }

    /// Reopens every image that a crash may leave.
    ///
    /// The sector size is `sector` at the first power loss, and `second_sector` at the second.
    fn crash(&self, sector: usize, second_sector: usize) -> Counts {
        let mut killed = Cases::default();
        let mut power_loss = Cases::default();
        let mut second_crash = Cases::default();
        for (medium, op, promise) in self.media(sector) {
            let media = medium.after_kill(op);
            for (at, medium) in media.iter().enumerate() {
                let case = Case::of(promise, promise.appended);
                second_crash.extend(self.after_second_kill(medium, &case));
                killed.add(medium.live(), case);
                // A power loss after the reopening: not all of the log was synced.
                if at == 0 || at == media.len() / 2 {
                    let case = Case::of(promise, promise.synced);
                    second_crash.extend(self.after_second_power_loss(medium, &case, false));
                }
            }
            for image in medium.after_power_loss() {
                power_loss.add(image, Case::of(promise, promise.synced));
            }
        }
        for (image, case) in &power_loss.0 {
            second_crash.extend(self.after_second_power_loss(
                &Medium::of(image, second_sector),
                case,
                true,
            ));
        }
        for cases in [&killed, &power_loss] {
            self.check(cases, true);
        }
        self.check(&second_crash, false);
        Counts {
            killed: killed.0.len(),
            power_loss: power_loss.0.len(),
            second_crash: second_crash.0.len(),
        }
    }

    /// Checks every case. `always` as in [`FinalLog::check`].
    fn check(&self, cases: &Cases, always: bool) {
        let cases: Vec<_> = cases.0.iter().collect();
        std::thread::scope(|scope| {
            for part in cases.chunks(cases.len().div_ceil(2).max(1)) {
                scope.spawn(move || {
                    for (image, case) in part {
                        self.log.check(image, case, always);
                    }
                });
            }
        });
    }

    /// Reopens an image, and returns the images that a kill during the reopening leaves.
    fn after_second_kill(&self, first: &Medium, case: &Case) -> Cases {
        let mut cases = Cases::default();
        let (mut medium, reopened, ops) = self.reopened(first);
        for op in &ops {
            medium.apply(op);
            let mut case = case.clone();
            case.torn.extend(reopened.torn.clone());
            cases.add(medium.live(), case);
        }
        cases
    }

    fn reopened(&self, first: &Medium) -> (Medium, Reopened, Vec<Op>) {
        let mut reopened = Reopened::of(&first.live());
        let journal = Journal::of(reopened.disk.path());
        reopened.resume(&self.log);
        (first.clone(), reopened, journal.ops())
    }

    /// Reopens an image, and returns the images that a power loss during the reopening leaves.
    ///
    /// `synced` means that all of the first image is synced.
    fn after_second_power_loss(&self, first: &Medium, case: &Case, synced: bool) -> Cases {
        let mut cases = Cases::default();
        let (mut medium, reopened, ops) = self.reopened(first);
        for (done, op) in ops.iter().enumerate() {
            medium.apply(op);
            let mut case = case.clone();
            let returned = done + 1 == ops.len();
            if synced || returned {
                case.torn.extend(reopened.torn.clone());
            }
            if returned {
                case.min_kept = case.min_kept.max(reopened.kept);
                case.sealed |= reopened.sealed;
            }
            for image in medium.after_power_loss() {
                cases.add(image, case.clone());
            }
        }
        cases
    }
}

/// The expected content of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Case {
    /// The number of bytes of the log that must be kept.
    min_kept: u64,
    sealed: bool,
    /// The bytes that an earlier resumption has moved aside, or may have.
    torn: BTreeSet<Vec<u8>>,
}

impl Case {
    fn of(promise: Promise, min_kept: u64) -> Self {
        Self {
            min_kept,
            sealed: promise.sealed,
            torn: BTreeSet::new(),
        }
    }
}

/// Images with their expected contents.
#[derive(Default)]
struct Cases(BTreeMap<Image, Case>);

impl Cases {
    /// Adds an image. An image that is reached twice must meet the expectations of both.
    fn add(&mut self, image: Image, case: Case) {
        match self.0.entry(image) {
            Entry::Vacant(entry) => {
                entry.insert(case);
            }
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                known.min_kept = known.min_kept.max(case.min_kept);
                known.sealed |= case.sealed;
                known.torn.extend(case.torn);
            }
        }
    }

    fn extend(&mut self, cases: Self) {
        for (image, case) in cases.0 {
            self.add(image, case);
        }
    }
}

/// A log after a crash.
struct Reopened {
    disk: tempfile::TempDir,
    sink: Jsonl,
    log: Option<Box<dyn RunLog>>,
    /// The number of bytes of the log that were kept.
    kept: u64,
    sealed: bool,
    /// The bytes that were moved aside.
    torn: Option<Vec<u8>>,
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().build().unwrap();
    static SINK: Jsonl = Jsonl::with_durability(Durability::Interval(Duration::MAX));
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

impl Reopened {
    fn of(image: &Image) -> Self {
        let disk = scratch_dir();
        write_image(image, disk.path());
        Self {
            disk,
            sink: SINK.with(Clone::clone),
            log: None,
            kept: 0,
            sealed: false,
            torn: None,
        }
    }

    fn path(&self) -> PathBuf {
        self.disk.path().join(LOG)
    }

    /// The contents of the files with bytes that were moved aside.
    fn aside(&self) -> Vec<Vec<u8>> {
        let files = fs::read_dir(self.disk.path().join("root/run"));
        files
            .into_iter()
            .flatten()
            .map(Result::unwrap)
            .filter(|file| file.file_name().to_string_lossy().starts_with("torn-"))
            .map(|file| fs::read(file.path()).unwrap())
            .collect()
    }

    /// Resumes the log, which is a prefix of `full`, and checks the result.
    fn resume(&mut self, full: &FinalLog) {
        let before = fs::read(self.path()).ok();
        let aside_before = self.aside().len();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let records = Arc::clone(&seen);
        let visit = Box::new(move |record: RecordRef<'_>| {
            records.lock().unwrap().push(match record {
                RecordRef::Output {
                    ts,
                    stream,
                    bytes,
                    partial,
                    ..
                } => {
                    let mut output = Output::new(ts, stream, bytes);
                    output.partial = partial;
                    Record::Output(output)
                }
                RecordRef::Event(event) => Record::Event(event.clone()),
            });
        });
        let resumed = wait(self.sink.resume(&place(self.disk.path()), visit));
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let after = fs::read(self.path()).ok();
        let kept = after.clone().unwrap_or_default();
        match resumed.expect("a crash must never make the log unusable") {
            Resumed::Absent => assert_eq!(after, None),
            Resumed::Sealed(_) => {
                assert_eq!(before, after);
                assert_eq!(kept, *full.bytes);
                self.sealed = true;
            }
            Resumed::Open { log, torn } => {
                self.log = Some(log);
                let cut = before.as_ref().unwrap().len() - kept.len();
                assert_eq!(torn.as_ref().map_or(0, |torn| torn.bytes), cut as u64);
                if let Some(torn) = torn {
                    let path = self.path().with_file_name(torn.file);
                    assert_eq!(
                        fs::read(path).unwrap(),
                        &before.as_ref().unwrap()[kept.len()..]
                    );
                }
            }
        }
        assert!(
            full.bytes.starts_with(&kept),
            "kept bytes were never written"
        );
        assert_eq!(seen, full.records[..seen.len()]);
        assert_eq!(
            seen.len(),
            newlines(&kept),
            "the visited records are not the kept ones"
        );
        self.kept = kept.len() as u64;
        let before = before.unwrap_or_default();
        if before.len() > kept.len() {
            self.torn = Some(before[kept.len()..].to_vec());
            assert_eq!(self.aside().len(), aside_before + 1);
        } else {
            assert_eq!(self.aside().len(), aside_before);
        }
    }

    /// Appends the missing records, as a replay does, and seals the log.
    fn complete(&mut self, full: &FinalLog) {
        if !self.sealed {
            if self.log.is_none() {
                let log = wait(self.sink.open(&place(self.disk.path()), &start()));
                self.log = Some(log.unwrap());
            }
            let log = self.log.as_mut().unwrap();
            let there = newlines(&fs::read(self.disk.path().join(LOG)).unwrap());
            let rest: Vec<Record> = full.records[there..]
                .iter()
                .filter(|record| {
                    !matches!(record, Record::Event(Event::Check { .. } | Event::End(_)))
                })
                .cloned()
                .collect();
            wait(log.append(batch(&rest))).unwrap();
            wait(log.seal(seal(&full.records))).unwrap();
        }
        self.log = None;
        let found = verify(self.path()).unwrap();
        assert!(matches!(found.state, LogState::Sealed(_)), "{found:?}");
        let (records, _) = read(&fs::read(self.path()).unwrap());
        let ends = |record: &&Record| matches!(record, Record::Event(Event::End(_)));
        assert_eq!(records.iter().filter(ends).count(), 1);
        assert_eq!(printed(&records), printed(&full.records));
    }
}

impl FinalLog {
    /// Resumes the log of an image, and completes it.
    ///
    /// The checks before and after the resumption depend on the log alone. Unless `always` is set,
    /// they run once for all images with the same log.
    fn check(&self, image: &Image, case: &Case, always: bool) {
        let _context = Context { image, case };
        let mut reopened = Reopened::of(image);
        let dir = place(reopened.disk.path()).dir;
        if !dir.is_dir() {
            // The manager creates the log again.
            fs::create_dir(&dir).unwrap();
        }
        if let Some(Some(bytes)) = image.get(Path::new(LOG))
            && (self.checked_logs.lock().unwrap().insert(bytes.clone()) || always)
        {
            let (records, good) = read(bytes);
            let good = usize::try_from(good).unwrap();
            assert!(self.bytes.starts_with(&bytes[..good]));
            assert_eq!(records, self.records[..records.len()]);
            let state = verify(reopened.path()).unwrap().state;
            let sealed = matches!(state, LogState::Sealed(_));
            assert_eq!(sealed, *bytes == self.bytes && self.ends(), "{state:?}");
        }
        reopened.resume(self);
        assert!(
            reopened.kept >= case.min_kept,
            "{} bytes kept",
            reopened.kept
        );
        assert!(reopened.sealed || !case.sealed);
        let aside = reopened.aside();
        for torn in &case.torn {
            assert!(aside.contains(torn), "the incomplete end is lost");
        }
        if self.completed_from.lock().unwrap().insert(reopened.kept) || always {
            reopened.complete(self);
        }
    }

    fn ends(&self) -> bool {
        matches!(self.records.last(), Some(Record::Event(Event::End(_))))
    }
}

/// Prints the image of a failed check.
struct Context<'a> {
    image: &'a Image,
    case: &'a Case,
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("{:?}", self.case);
        for (path, content) in self.image {
            let text = content.as_deref().map(String::from_utf8_lossy);
            eprintln!("{}: {text:?}", path.display());
        }
    }
}

fn lines() -> [Record; 2] {
    [line(Stream::Stdout, b"one"), line(Stream::Stderr, b"two")]
}

#[test]
fn a_crash_during_open_leaves_a_log_or_none() {
    let mut recorder = Recorder::new(Durability::default());
    recorder.open();
    recorder.finish().crash(128, 256).at_least(700, 200, 2800);
}

#[test]
fn an_unsynced_log_is_a_prefix_of_the_appended_records() {
    let mut recorder = Recorder::opened(Durability::Interval(Duration::MAX));
    recorder.append(&lines());
    recorder.append(&[partial(Stream::Stdout, b"thr")]);
    recorder.finish().crash(32, 128).at_least(200, 700, 9500);
}

#[test]
fn synced_records_survive_a_power_loss() {
    let mut recorder = Recorder::opened(Durability::Always);
    recorder.append(&lines());
    recorder.append(&[partial(Stream::Stdout, b"thr")]);
    recorder.finish().crash(64, 128).at_least(200, 20, 950);
    let mut recorder = Recorder::opened(Durability::Interval(Duration::MAX));
    recorder.append(&lines());
    recorder.sync();
    recorder.append(&[partial(Stream::Stdout, b"thr")]);
    recorder.finish().crash(64, 128).at_least(200, 20, 950);
}

#[test]
fn periodically_synced_records_survive_a_power_loss() {
    let mut recorder = Recorder::opened(Durability::Interval(Duration::from_millis(1)));
    recorder.append(&lines());
    recorder.wait_periodic_sync();
    recorder.append(&[partial(Stream::Stdout, b"thr")]);
    recorder.wait_periodic_sync();
    recorder.finish().crash(64, 128).at_least(200, 20, 950);
}

#[test]
fn a_seal_survives_once_it_has_returned() {
    let mut recorder = Recorder::opened(Durability::Interval(Duration::MAX));
    recorder.append(&lines());
    recorder.seal();
    recorder.finish().crash(64, 256).at_least(500, 250, 4300);
}

#[test]
fn a_log_with_a_truncated_end_is_resumed() {
    let mut recorder = Recorder::opened(Durability::Interval(Duration::MAX));
    recorder.append(&lines());
    recorder.kill_during_write(b"{\"ts\":\"2026-11-22T18:23:25.491211661Z\",\"str");
    recorder.resume();
    recorder.append(&[line(Stream::Stdout, b"three")]);
    recorder.seal();
    recorder.finish().crash(64, 256).at_least(800, 500, 8500);
}

#[test]
fn a_log_with_checks_is_a_prefix_after_a_crash() {
    let mut recorder = Recorder::opened(Durability::Interval(Duration::MAX));
    recorder.append(&lines());
    recorder.append(&[partial(Stream::Stdout, b"thr")]);
    recorder.append(&[line(Stream::Stdout, b"ee")]);
    let recording = recorder.finish();
    let check = |record: &Record| matches!(record, Record::Event(Event::Check { .. }));
    assert!(recording.log.records.iter().any(check));
    recording.crash(64, 256).at_least(350, 550, 6500);
}

/// No crash leaves such an image. It is refused and left unchanged.
#[test]
fn a_seal_without_its_records_is_refused() {
    let mut recorder = Recorder::opened(Durability::default());
    recorder.append(&lines());
    recorder.seal();
    let recording = recorder.finish();
    let whole = &recording.log.bytes;
    let end = whole.len()
        - 1
        - whole
            .iter()
            .rev()
            .skip(1)
            .position(|b| *b == b'\n')
            .unwrap();
    assert!(whole[end..].starts_with(b"{\"type\":\"end\""));
    let (mut refused_count, mut resumed_count) = (0, 0);
    for from in 0..whole.len() {
        for count in [1, 64, whole.len()] {
            let to = whole.len().min(from + count);
            let mut bytes = whole.to_vec();
            bytes[from..to].fill(0);
            let image = Image::from([
                ("root".into(), None),
                ("root/run".into(), None),
                (LOG.into(), Some(bytes.into())),
            ]);
            if to < end {
                let disk = scratch_dir();
                write_image(&image, disk.path());
                let resumed = wait(Jsonl::new().resume(&place(disk.path()), Box::new(|_| {})));
                assert!(
                    matches!(resumed, Err(crate::error::Error::Damaged { .. })),
                    "{from}..{to}: {resumed:?}"
                );
                assert_eq!(read_image(disk.path()), image);
                refused_count += 1;
            } else {
                let there = whole[..from].iter().rposition(|byte| *byte == b'\n');
                let there = there.map_or(0, |at| at as u64 + 1);
                recording
                    .log
                    .check(&image, &Case::of(Promise::default(), there), true);
                resumed_count += 1;
            }
        }
    }
    assert!(
        refused_count > 1700 && resumed_count > 2000,
        "{refused_count}, {resumed_count}"
    );
}

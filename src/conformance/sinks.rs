//! The clauses of the contract of a sink.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Stop, ensure, fail, skip, words};
use crate::audit::{
    Action, Batch, Event, Interaction, Output, Record, RecordRef, Start, StdinChunk,
};
use crate::error::Error;
use crate::outcome::{Ending, Evidence, Exit, PerStream, Seal, Stream, Verdict};
use crate::sink::{LogSink, RecordVisitor, Resumed, RunLog, RunPlace};
use crate::spec::{RootId, RunId, RunRecord, RunSpec};
use crate::timestamp::Timestamp;

/// What the trials of a sink stand on. A closure that gives sinks is one.
///
/// What has a default need not be given; the trials that need it are skipped then.
pub trait SinkHarness: Send + Sync + 'static {
    /// A sink that sees the same logs as each other one that this gives, and shares nothing else
    /// with them, as in another process.
    fn sink(&self) -> Arc<dyn LogSink>;

    /// Leaves half a record at the end of the log at `place`, which nobody has open, as a crash
    /// does.
    fn tear(&self, place: &RunPlace) -> Result<(), String> {
        let _ = place;
        Err("the stage cannot tear a log".into())
    }

    /// Changes the log at `place`, which is sealed.
    fn damage(&self, place: &RunPlace) -> Result<(), String> {
        let _ = place;
        Err("the stage cannot damage a log".into())
    }

    /// Makes a call on the log at `place`, which is open, fail: one of the next append, sync and
    /// seal.
    fn spoil(&self, place: &RunPlace) -> Result<(), String> {
        let _ = place;
        Err("the stage cannot make a log fail".into())
    }
}

impl<F, S> SinkHarness for F
where
    F: Fn() -> S + Send + Sync + 'static,
    S: LogSink,
{
    fn sink(&self) -> Arc<dyn LogSink> {
        Arc::new(self())
    }
}

/// A folder for the logs of one trial.
pub(crate) struct Shelf {
    stage: Arc<dyn SinkHarness>,
    sink: Arc<dyn LogSink>,
    dir: PathBuf,
}

impl Shelf {
    pub(super) fn new(stage: Arc<dyn SinkHarness>) -> Result<Self, Stop> {
        let name = format!("moat-conformance-{}", RunId::generate());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir)
            .or_else(|error| fail(format!("cannot make {}: {error}", dir.display())))?;
        Ok(Self {
            sink: stage.sink(),
            stage,
            dir,
        })
    }

    pub(super) async fn clear(self) {
        // A folder in the system's own folder for what may go.
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// A place for one more run.
    fn place(&self) -> Result<RunPlace, Stop> {
        let run = RunId::generate();
        let dir = self.dir.join(run.as_str());
        std::fs::create_dir(&dir)
            .or_else(|error| fail(format!("cannot make {}: {error}", dir.display())))?;
        Ok(RunPlace::new(run, dir))
    }

    async fn open(&self, place: &RunPlace) -> Result<(Box<dyn RunLog>, Start), Stop> {
        let start = Start::new(record(place));
        let log = self.sink.open(place, &start).await?;
        Ok((log, start))
    }

    /// A log with these records behind its first, dropped again; and all of its records.
    async fn filled(&self, records: &[Record]) -> Result<(RunPlace, Vec<Record>), Stop> {
        let place = self.place()?;
        let (mut log, start) = self.open(&place).await?;
        log.append(batch(records)).await?;
        let mut all = vec![Record::Event(Event::Start(Box::new(start)))];
        all.extend_from_slice(records);
        Ok((place, all))
    }

    /// Resumes with a sink of its own.
    async fn resume(&self, place: &RunPlace) -> Result<(Resumed, Vec<Record>), Error> {
        resume(&*self.stage.sink(), place).await
    }

    /// The log at `place`, opened to go on, with its records.
    async fn reopened(&self, place: &RunPlace) -> Result<(Box<dyn RunLog>, Vec<Record>), Stop> {
        match self.resume(place).await? {
            (Resumed::Open { log, .. }, records) => Ok((log, records)),
            (other, _) => fail(format!("the log is not open to go on: {other:?}")),
        }
    }

    async fn ensure_holds(&self, place: &RunPlace, expected: &[Record]) -> Result<(), Stop> {
        let (_, records) = self.reopened(place).await?;
        ensure_same(&records, expected)
    }
}

/// Resumes, and keeps what is shown before the sink returns.
async fn resume(sink: &dyn LogSink, place: &RunPlace) -> Result<(Resumed, Vec<Record>), Error> {
    let seen = Arc::new(Mutex::new(Some(Vec::new())));
    let visit: RecordVisitor = {
        let seen = Arc::clone(&seen);
        Box::new(move |record| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(records) = &mut *seen {
                // Digests are a file's own.
                if !matches!(record, RecordRef::Event(Event::Check { .. })) {
                    records.push(Record::from(record));
                }
            }
        })
    };
    let resumed = sink.resume(place, visit).await?;
    let records = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok((resumed, records.unwrap_or_default()))
}

fn ensure_same(got: &[Record], expected: &[Record]) -> Result<(), Stop> {
    if got == expected {
        return Ok(());
    }
    let at = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
    fail(format!(
        "it has {} records in the place of {}; at {at} it has {:?} in the place of {:?}",
        got.len(),
        expected.len(),
        got.get(at),
        expected.get(at)
    ))
}

fn batch(records: &[Record]) -> Batch {
    let mut batch = Batch::new();
    for record in records {
        match record {
            Record::Output(output) => batch.push_output(output),
            Record::Event(event) => batch.push_event(event.clone()),
            Record::Unknown(_) => {}
        }
    }
    batch
}

fn record(place: &RunPlace) -> RunRecord {
    let spec = RunSpec::new("conformance").cmd(["a trial"]);
    RunRecord::new(place.run.clone(), RootId::generate(), "conformance", &spec)
}

fn line(bytes: impl Into<Vec<u8>>) -> Record {
    Record::Output(Output::new(Timestamp::now(), Stream::Stdout, bytes))
}

fn lines(numbers: std::ops::Range<u32>) -> Vec<Record> {
    numbers
        .map(|number| line(format!("line {number}")))
        .collect()
}

/// A seal that counts `records` rightly.
fn seal(records: &[Record]) -> Seal {
    let mut bytes = PerStream::<u64>::default();
    let mut outputs = 0;
    let mut gaps = 0;
    for record in records {
        match record {
            Record::Output(output) => {
                outputs += 1;
                bytes[output.stream] += output.bytes.len() as u64 + u64::from(!output.partial);
            }
            Record::Event(Event::Gap(_)) => gaps += 1,
            Record::Event(_) | Record::Unknown(_) => {}
        }
    }
    Seal {
        ts: Timestamp::now(),
        exit: Ending::Exited(Exit::with_code(0)),
        verdict: Verdict::Complete,
        evidence: Evidence::Tail,
        records: outputs,
        bytes,
        gaps,
        stopped: None,
        container: None,
        image_digest: None,
        usage: None,
        capture_seconds: 0.0,
        sha256: String::new(),
    }
}

pub(crate) mod open {
    use super::*;

    pub(crate) async fn the_log_has_its_start_record(shelf: &Shelf) -> Result<(), Stop> {
        let (place, all) = shelf.filled(&[]).await?;
        shelf.ensure_holds(&place, &all).await
    }

    pub(crate) async fn a_second_one_is_refused(shelf: &Shelf) -> Result<(), Stop> {
        let place = shelf.place()?;
        let (mut log, _) = shelf.open(&place).await?;
        log.append(batch(&[line("kept")])).await?;
        ensure_refused(&*shelf.sink, &place).await?;
        ensure_refused(&*shelf.stage.sink(), &place).await?;
        drop(log);
        ensure_refused(&*shelf.stage.sink(), &place).await?;
        let (_, records) = shelf.reopened(&place).await?;
        ensure(records.len() == 2, || {
            format!("the first one became {records:?}")
        })
    }

    async fn ensure_refused(sink: &dyn LogSink, place: &RunPlace) -> Result<(), Stop> {
        match sink.open(place, &Start::new(record(place))).await {
            Err(Error::RunExists { .. }) => Ok(()),
            Err(error) => fail(format!("no RunExists, but: {}", words(&error))),
            Ok(_) => fail("a second log was made"),
        }
    }

    pub(crate) async fn that_of_a_further_process_is_apart(shelf: &Shelf) -> Result<(), Stop> {
        let (around, all) = shelf.filled(&[line("around")]).await?;
        let inside = around.of_exec(1);
        let mut start = Start::new(record(&inside));
        start.exec = Some(1);
        // One that knows a log for each run alone says so here.
        if let Ok(mut log) = shelf.sink.open(&inside, &start).await {
            let printed = line("inside");
            log.append(batch(std::slice::from_ref(&printed))).await?;
            drop(log);
            let start = Record::Event(Event::Start(Box::new(start)));
            shelf.ensure_holds(&inside, &[start, printed]).await?;
        }
        shelf.ensure_holds(&around, &all).await
    }

    pub(crate) async fn logs_of_two_runs_are_apart(shelf: &Shelf) -> Result<(), Stop> {
        let (first, first_start) = shelf.filled(&[]).await?;
        let (second, second_start) = shelf.filled(&[]).await?;
        let (mut one, _) = shelf.reopened(&first).await?;
        let (mut two, _) = shelf.reopened(&second).await?;
        let (mut of_one, mut of_two) = (first_start, second_start);
        for number in 0..10 {
            let (a, b) = (line(format!("one {number}")), line(format!("two {number}")));
            one.append(batch(std::slice::from_ref(&a))).await?;
            two.append(batch(std::slice::from_ref(&b))).await?;
            of_one.push(a);
            of_two.push(b);
        }
        drop((one, two));
        shelf.ensure_holds(&first, &of_one).await?;
        shelf.ensure_holds(&second, &of_two).await
    }

    pub(crate) async fn its_path_leads_to_it(shelf: &Shelf) -> Result<(), Stop> {
        let place = shelf.place()?;
        let Some(path) = shelf.sink.path(&place) else {
            return skip("the sink's logs are no files");
        };
        ensure(!path.exists(), || {
            format!("{} is there already", path.display())
        })?;
        let _log = shelf.open(&place).await?;
        ensure(path.exists(), || format!("{} is not there", path.display()))
    }
}

pub(crate) mod append {
    use std::task::Poll;

    use super::*;
    use crate::audit::{Gap, GapReason, Resume, ResumeCause, Started, Stop as Stopped};
    use crate::outcome::StopCause;
    use crate::runtime::LogConfig;
    use crate::spec::ContainerId;

    pub(crate) async fn what_was_appended_stays(shelf: &Shelf) -> Result<(), Stop> {
        let (place, all) = shelf.filled(&lines(0..3)).await?;
        shelf.ensure_holds(&place, &all).await
    }

    pub(crate) async fn every_record_comes_back_as_it_was(shelf: &Shelf) -> Result<(), Stop> {
        let mut records = Vec::new();
        let bytes: [&[u8]; 7] = [
            b"",
            b"plain",
            "\u{20ac} \u{1f980} \u{2028}".as_bytes(),
            b"\0\x1b[2J\r\t\"\\",
            b"\xff\xfe\x80 not UTF-8",
            b"{\"type\":\"end\"}",
            &[b'x'; 16 << 10],
        ];
        for (number, bytes) in bytes.into_iter().enumerate() {
            let mut output = Output::new(Timestamp::now(), Stream::ALL[number % 3], bytes);
            output.partial = number % 2 == 1;
            output.lossy = number % 4 == 3;
            records.push(Record::Output(output));
        }
        let events = [
            Event::Started(Box::new(Started {
                ts: Timestamp::now(),
                container: ContainerId::new("c1"),
                started_at: Some(Timestamp::now()),
                image_digest: None,
                log: LogConfig::default(),
                engine: "an engine".into(),
                engine_version: "1".into(),
                engine_id: Some("A".into()),
                warnings: vec!["a warning".into()],
            })),
            Event::Resume(Resume::new(ResumeCause::Reopened, None)),
            Event::Gap(Gap::possible(GapReason::LateDrain)),
            Event::Stop(Stopped::new(StopCause::Requested, "SIGTERM", Some(2.5))),
            Event::note("a note\nof two lines"),
            Event::Note {
                ts: Timestamp::now(),
                text: "attached".into(),
                interaction: Some(Interaction::new(Action::Attach, 1)),
            },
            Event::Stdin(StdinChunk::new(*b"typed \xff")),
        ];
        records.extend(events.map(Record::Event));
        let (place, all) = shelf.filled(&records).await?;
        shelf.ensure_holds(&place, &all).await
    }

    pub(crate) async fn order_is_kept_over_many_batches(shelf: &Shelf) -> Result<(), Stop> {
        let place = shelf.place()?;
        let (mut log, start) = shelf.open(&place).await?;
        for number in 0..100 {
            log.append(batch(&lines(number * 50..(number + 1) * 50)))
                .await?;
        }
        drop(log);
        let mut all = vec![Record::Event(Event::Start(Box::new(start)))];
        all.extend(lines(0..5000));
        let (_, mut records) = shelf.reopened(&place).await?;
        // Each was made at a time of its own.
        for (got, expected) in records.iter_mut().zip(&all) {
            if let (Record::Output(got), Record::Output(expected)) = (got, expected) {
                got.ts = expected.ts;
            }
        }
        ensure_same(&records, &all)
    }

    pub(crate) async fn an_empty_batch_adds_nothing(shelf: &Shelf) -> Result<(), Stop> {
        let (place, all) = shelf.filled(&lines(0..1)).await?;
        let (mut log, _) = shelf.reopened(&place).await?;
        log.append(Batch::new()).await?;
        drop(log);
        shelf.ensure_holds(&place, &all).await
    }

    pub(crate) async fn one_that_was_dropped_is_all_or_a_first_part(
        shelf: &Shelf,
    ) -> Result<(), Stop> {
        let (place, mut all) = shelf.filled(&[]).await?;
        let more = lines(0..2000);
        let (mut log, _) = shelf.reopened(&place).await?;
        let mut append = log.append(batch(&more));
        let done =
            std::future::poll_fn(|context| Poll::Ready(append.as_mut().poll(context).is_ready()));
        let done = done.await;
        drop(append);
        if !done {
            let next = log.append(batch(&lines(0..1))).await;
            ensure(next.is_err(), || "the log takes more".into())?;
        }
        drop(log);
        // Whoever has it in hand may take a moment to let it go.
        let (_, records) = super::super::bench::eventually("the log is free", || async {
            match shelf.resume(&place).await {
                Err(Error::Owned { .. }) => Ok(None),
                other => Ok(Some(other?)),
            }
        })
        .await?;
        all.extend(more);
        let prefix = records.len() <= all.len() && records == all[..records.len()];
        ensure(prefix && !records.is_empty(), || {
            format!(
                "{} records, and not a prefix of what was appended",
                records.len()
            )
        })?;
        if done {
            return skip("an append of this sink is done when it is polled first");
        }
        Ok(())
    }

    pub(crate) async fn records_survive_the_death_of_the_process(_: &Shelf) -> Result<(), Stop> {
        skip("it needs a process to kill, and so a test of the sink's own")
    }
}

pub(crate) mod sync {
    use super::*;

    pub(crate) async fn synced_records_survive_the_power_failing(_: &Shelf) -> Result<(), Stop> {
        skip("it needs a medium that can be cut off, and so a test of the sink's own")
    }

    pub(crate) async fn it_can_be_asked_for_at_any_time(shelf: &Shelf) -> Result<(), Stop> {
        let (place, mut all) = shelf.filled(&lines(0..2)).await?;
        let (mut log, _) = shelf.reopened(&place).await?;
        log.sync().await?;
        log.sync().await?;
        let last = line("last");
        log.append(batch(std::slice::from_ref(&last))).await?;
        log.sync().await?;
        drop(log);
        all.push(last);
        shelf.ensure_holds(&place, &all).await
    }
}

pub(crate) mod resume {
    use super::*;

    pub(crate) async fn of_no_log_is_absent(shelf: &Shelf) -> Result<(), Stop> {
        let place = shelf.place()?;
        for _ in 0..2 {
            let (resumed, records) = shelf.resume(&place).await?;
            let absent = matches!(resumed, Resumed::Absent) && records.is_empty();
            ensure(absent, || format!("{resumed:?} with {records:?}"))?;
        }
        shelf.open(&place).await.map(drop)
    }

    pub(crate) async fn it_shows_each_record_before_it_returns(shelf: &Shelf) -> Result<(), Stop> {
        let (place, all) = shelf.filled(&lines(0..500)).await?;
        for _ in 0..2 {
            shelf.ensure_holds(&place, &all).await?;
        }
        Ok(())
    }

    pub(crate) async fn it_goes_on_where_the_log_ends(shelf: &Shelf) -> Result<(), Stop> {
        let (place, mut all) = shelf.filled(&lines(0..3)).await?;
        for number in 0..3 {
            let (mut log, records) = shelf.reopened(&place).await?;
            ensure_same(&records, &all)?;
            let more = line(format!("more {number}"));
            log.append(batch(std::slice::from_ref(&more))).await?;
            all.push(more);
        }
        shelf.ensure_holds(&place, &all).await
    }

    pub(crate) async fn of_a_log_that_is_open_is_refused(shelf: &Shelf) -> Result<(), Stop> {
        let place = shelf.place()?;
        let (log, _) = shelf.open(&place).await?;
        ensure_owned(shelf, &place).await?;
        drop(log);
        let (log, _) = shelf.reopened(&place).await?;
        ensure_owned(shelf, &place).await?;
        drop(log);
        shelf.reopened(&place).await.map(drop)
    }

    async fn ensure_owned(shelf: &Shelf, place: &RunPlace) -> Result<(), Stop> {
        for sink in [Arc::clone(&shelf.sink), shelf.stage.sink()] {
            match super::resume(&*sink, place).await {
                Err(Error::Owned { .. }) => {}
                Err(error) => return fail(format!("no Owned, but: {}", words(&error))),
                Ok((resumed, _)) => return fail(format!("it was resumed: {resumed:?}")),
            }
        }
        Ok(())
    }

    pub(crate) async fn what_is_not_whole_is_taken_out(shelf: &Shelf) -> Result<(), Stop> {
        let (place, mut all) = shelf.filled(&lines(0..3)).await?;
        shelf.stage.tear(&place).or_else(skip)?;
        let (mut log, records) = shelf.reopened(&place).await?;
        let prefix = records.len() <= all.len() && records == all[..records.len()];
        ensure(prefix, || format!("{records:?} is not a prefix"))?;
        let more = line("more");
        log.append(batch(std::slice::from_ref(&more))).await?;
        drop(log);
        all.truncate(records.len());
        all.push(more);
        shelf.ensure_holds(&place, &all).await
    }

    pub(crate) async fn a_sealed_log_that_is_damaged_is_refused(shelf: &Shelf) -> Result<(), Stop> {
        let (place, all) = shelf.filled(&lines(0..3)).await?;
        let (mut log, _) = shelf.reopened(&place).await?;
        log.seal(seal(&all)).await?;
        drop(log);
        shelf.stage.damage(&place).or_else(skip)?;
        for _ in 0..2 {
            match shelf.resume(&place).await {
                Err(Error::Damaged { .. }) => {}
                Err(error) => return fail(format!("no Damaged, but: {}", words(&error))),
                Ok((resumed, _)) => return fail(format!("it was believed: {resumed:?}")),
            }
        }
        Ok(())
    }
}

// Named as the call is; the function `seal` is the parent's.
pub(crate) mod seal {
    use super::*;

    pub(crate) async fn it_is_what_resume_gives(shelf: &Shelf) -> Result<(), Stop> {
        let (place, all) = shelf.filled(&lines(0..3)).await?;
        let (mut log, _) = shelf.reopened(&place).await?;
        let sealed = log.seal(super::seal(&all)).await?;
        drop(log);
        for _ in 0..2 {
            let (resumed, mut records) = shelf.resume(&place).await?;
            match resumed {
                Resumed::Sealed(found) if found == sealed => {}
                other => return fail(format!("{other:?} in the place of {sealed:?}")),
            }
            // The seal may be shown as the last record, or not.
            records.retain(|record| !matches!(record, Record::Event(Event::End(_))));
            ensure_same(&records, &all)?;
        }
        Ok(())
    }

    pub(crate) async fn nothing_is_added_behind_it(shelf: &Shelf) -> Result<(), Stop> {
        let (place, all) = shelf.filled(&lines(0..1)).await?;
        let (mut log, _) = shelf.reopened(&place).await?;
        log.seal(super::seal(&all)).await?;
        let appended = log.append(batch(&lines(1..2))).await;
        ensure(appended.is_err(), || "a record was appended".into())?;
        drop(log);
        let (_, mut records) = shelf.resume(&place).await?;
        records.retain(|record| !matches!(record, Record::Event(Event::End(_))));
        ensure_same(&records, &all)
    }

    pub(crate) async fn there_is_one(shelf: &Shelf) -> Result<(), Stop> {
        let (place, all) = shelf.filled(&lines(0..1)).await?;
        let (mut log, _) = shelf.reopened(&place).await?;
        let sealed = log.seal(super::seal(&all)).await?;
        let again = log.seal(super::seal(&all)).await;
        ensure(again.is_err(), || "it was sealed again".into())?;
        drop(log);
        match shelf.resume(&place).await? {
            (Resumed::Sealed(found), _) if found == sealed => Ok(()),
            (other, _) => fail(format!("{other:?} in the place of {sealed:?}")),
        }
    }

    pub(crate) async fn a_digest_of_the_callers_is_ignored(shelf: &Shelf) -> Result<(), Stop> {
        let (place, all) = shelf.filled(&lines(0..1)).await?;
        let (mut log, _) = shelf.reopened(&place).await?;
        let mut ours = super::seal(&all);
        ours.sha256 = "0".repeat(64);
        let sealed = log.seal(ours.clone()).await?;
        ensure(sealed.sha256 != ours.sha256, || "it was taken over".into())
    }
}

pub(crate) mod errors {
    use super::*;

    pub(crate) async fn after_one_a_log_takes_nothing_more(shelf: &Shelf) -> Result<(), Stop> {
        let (place, mut all) = shelf.filled(&lines(0..1)).await?;
        let (mut log, _) = shelf.reopened(&place).await?;
        shelf.stage.spoil(&place).or_else(skip)?;
        let more = line("more");
        all.push(more.clone());
        let failed = log.append(batch(&[more])).await.is_err()
            || log.sync().await.is_err()
            || log.seal(super::seal(&all)).await.is_err();
        ensure(failed, || "no call has failed".into())?;
        let appended = log.append(batch(&lines(1..2))).await;
        ensure(appended.is_err(), || "a record was appended".into())?;
        let synced = log.sync().await;
        ensure(synced.is_err(), || "a sync succeeded".into())?;
        let sealed = log.seal(super::seal(&all)).await;
        ensure(sealed.is_err(), || "it was sealed".into())
    }
}

pub(crate) mod threads {
    use super::*;

    pub(crate) async fn the_one_that_polls_is_not_blocked(_: &Shelf) -> Result<(), Stop> {
        skip("whether a thread is blocked cannot be seen from outside")
    }
}

//! The clauses of [`LogSink`](crate::sink::LogSink).

use std::sync::Arc;

use super::runtime_fixture::eventually;
use super::sink_fixture::{
    SinkFixture, batch, ensure_same, line, lines, resume_with, run_record, seal_of,
};
use super::{Abort, ensure, fail, skip};
use crate::audit::{Action, Batch, Event, Interaction, Output, Record, Start, StdinChunk};
use crate::error::{Error, chain};
use crate::outcome::Stream;
use crate::sink::{LogSink, Resumed, RunPlace};
use crate::timestamp::Timestamp;

pub(super) mod open {
    use super::*;

    pub(crate) async fn writes_the_start_record(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, all) = fixture.filled(&[]).await?;
        fixture.ensure_holds(&place, &all).await
    }

    pub(crate) async fn rejects_a_second_log(fixture: &SinkFixture) -> Result<(), Abort> {
        let place = fixture.place()?;
        let (mut log, _) = fixture.open(&place).await?;
        log.append(batch(&[line("kept")])).await?;
        ensure_refused(&*fixture.sink, &place).await?;
        ensure_refused(&*fixture.harness.sink(), &place).await?;
        drop(log);
        ensure_refused(&*fixture.harness.sink(), &place).await?;
        let (_, records) = fixture.reopened(&place).await?;
        ensure(records.len() == 2, || {
            format!("the first log has {records:?}")
        })
    }

    async fn ensure_refused(sink: &dyn LogSink, place: &RunPlace) -> Result<(), Abort> {
        match sink.open(place, &Start::new(run_record(place))).await {
            Err(Error::RunExists { .. }) => Ok(()),
            Err(error) => fail(format!("expected RunExists: {}", chain(&error))),
            Ok(_) => fail("a second log was created"),
        }
    }

    pub(crate) async fn separates_execs(fixture: &SinkFixture) -> Result<(), Abort> {
        let (run, all) = fixture.filled(&[line("run")]).await?;
        let exec = run.of_exec(1);
        let mut start = Start::new(run_record(&exec));
        start.exec = Some(1);
        // A sink without logs for execs fails here.
        if let Ok(mut log) = fixture.sink.open(&exec, &start).await {
            let printed = line("exec");
            log.append(batch(std::slice::from_ref(&printed))).await?;
            drop(log);
            let start = Record::Event(Event::Start(Box::new(start)));
            fixture.ensure_holds(&exec, &[start, printed]).await?;
        }
        fixture.ensure_holds(&run, &all).await
    }

    pub(crate) async fn separates_runs(fixture: &SinkFixture) -> Result<(), Abort> {
        let (first, first_start) = fixture.filled(&[]).await?;
        let (second, second_start) = fixture.filled(&[]).await?;
        let (mut one, _) = fixture.reopened(&first).await?;
        let (mut two, _) = fixture.reopened(&second).await?;
        let (mut of_one, mut of_two) = (first_start, second_start);
        for number in 0..10 {
            let (a, b) = (line(format!("one {number}")), line(format!("two {number}")));
            one.append(batch(std::slice::from_ref(&a))).await?;
            two.append(batch(std::slice::from_ref(&b))).await?;
            of_one.push(a);
            of_two.push(b);
        }
        drop((one, two));
        fixture.ensure_holds(&first, &of_one).await?;
        fixture.ensure_holds(&second, &of_two).await
    }
}

pub(super) mod path {
    use super::*;

    pub(crate) async fn names_the_log_file(fixture: &SinkFixture) -> Result<(), Abort> {
        let place = fixture.place()?;
        let Some(path) = fixture.sink.path(&place) else {
            return skip("the sink's logs are not files");
        };
        ensure(!path.exists(), || {
            format!("{} already exists", path.display())
        })?;
        let _log = fixture.open(&place).await?;
        ensure(path.exists(), || {
            format!("{} does not exist", path.display())
        })
    }
}

pub(super) mod append {
    use std::task::Poll;

    use super::*;
    use crate::audit::{ExecCreated, Gap, GapReason, Resume, ResumeCause, Started, Stop};
    use crate::outcome::StopCause;
    use crate::runtime::LogConfig;
    use crate::spec::ContainerId;

    pub(crate) async fn keeps_records(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, all) = fixture.filled(&lines(0..3)).await?;
        fixture.ensure_holds(&place, &all).await
    }

    pub(crate) async fn preserves_every_record(fixture: &SinkFixture) -> Result<(), Abort> {
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
            let mut output = Output::new(
                Timestamp::now(),
                Stream::ALL[number % Stream::ALL.len()],
                bytes,
            );
            output.partial = number % 2 == 1;
            output.lossy = number % 4 == 3;
            records.push(Record::Output(output));
        }
        let events = [
            Event::ExecCreated(ExecCreated::new("e1", true)),
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
            Event::Stop(Stop::new(StopCause::Requested, "SIGTERM", Some(2.5))),
            Event::note("a note\nof two lines"),
            Event::Note {
                ts: Timestamp::now(),
                text: "attached".into(),
                interaction: Some(Interaction::new(Action::Attach, 1)),
            },
            Event::Stdin(StdinChunk::new(*b"typed \xff")),
        ];
        records.extend(events.map(Record::Event));
        let (place, all) = fixture.filled(&records).await?;
        fixture.ensure_holds(&place, &all).await
    }

    pub(crate) async fn keeps_the_order_across_batches(fixture: &SinkFixture) -> Result<(), Abort> {
        let place = fixture.place()?;
        let (mut log, start) = fixture.open(&place).await?;
        for number in 0..100 {
            log.append(batch(&lines(number * 50..(number + 1) * 50)))
                .await?;
        }
        drop(log);
        let mut all = vec![Record::Event(Event::Start(Box::new(start)))];
        all.extend(lines(0..5000));
        let (_, mut records) = fixture.reopened(&place).await?;
        // Each call to `lines` sets new timestamps.
        for (got, expected) in records.iter_mut().zip(&all) {
            if let (Record::Output(got), Record::Output(expected)) = (got, expected) {
                got.ts = expected.ts;
            }
        }
        ensure_same(&records, &all)
    }

    pub(crate) async fn ignores_an_empty_batch(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, all) = fixture.filled(&lines(0..1)).await?;
        let (mut log, _) = fixture.reopened(&place).await?;
        log.append(Batch::new()).await?;
        drop(log);
        fixture.ensure_holds(&place, &all).await
    }

    pub(crate) async fn drop_leaves_a_prefix(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, mut all) = fixture.filled(&[]).await?;
        let more = lines(0..2000);
        let (mut log, _) = fixture.reopened(&place).await?;
        let mut append = log.append(batch(&more));
        let done =
            std::future::poll_fn(|context| Poll::Ready(append.as_mut().poll(context).is_ready()));
        let done = done.await;
        drop(append);
        if !done {
            let next = log.append(batch(&lines(0..1))).await;
            ensure(next.is_err(), || "the log accepts another batch".into())?;
        }
        drop(log);
        // The dropped append may hold the log for a moment.
        let (_, records) = eventually("the log is closed", || async {
            match fixture.resume(&place).await {
                Err(Error::Owned { .. }) => Ok(None),
                other => Ok(Some(other?)),
            }
        })
        .await?;
        all.extend(more);
        let prefix = records.len() <= all.len() && records == all[..records.len()];
        ensure(prefix && !records.is_empty(), || {
            format!(
                "{} records are not a prefix of the appended records",
                records.len()
            )
        })?;
        if done {
            return skip("an append of this sink completes on its first poll");
        }
        Ok(())
    }

    pub(crate) async fn survives_a_killed_process(_: &SinkFixture) -> Result<(), Abort> {
        skip("requires killing a process: test it in the sink's tests")
    }
}

pub(super) mod sync {
    use super::*;

    pub(crate) async fn survives_power_loss(_: &SinkFixture) -> Result<(), Abort> {
        skip("requires a simulated power failure: test it in the sink's tests")
    }

    pub(crate) async fn can_be_repeated(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, mut all) = fixture.filled(&lines(0..2)).await?;
        let (mut log, _) = fixture.reopened(&place).await?;
        log.sync().await?;
        log.sync().await?;
        let last = line("last");
        log.append(batch(std::slice::from_ref(&last))).await?;
        log.sync().await?;
        drop(log);
        all.push(last);
        fixture.ensure_holds(&place, &all).await
    }
}

pub(super) mod resume {
    use super::*;

    pub(crate) async fn reports_a_missing_log(fixture: &SinkFixture) -> Result<(), Abort> {
        let place = fixture.place()?;
        for _ in 0..2 {
            let (resumed, records) = fixture.resume(&place).await?;
            let absent = matches!(resumed, Resumed::Absent) && records.is_empty();
            ensure(absent, || {
                format!("`resume` returned {resumed:?} and visited {records:?}")
            })?;
        }
        fixture.open(&place).await.map(drop)
    }

    pub(crate) async fn visits_each_record(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, all) = fixture.filled(&lines(0..500)).await?;
        for _ in 0..2 {
            fixture.ensure_holds(&place, &all).await?;
        }
        Ok(())
    }

    pub(crate) async fn appends_at_the_end(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, mut all) = fixture.filled(&lines(0..3)).await?;
        for number in 0..3 {
            let (mut log, records) = fixture.reopened(&place).await?;
            ensure_same(&records, &all)?;
            let more = line(format!("more {number}"));
            log.append(batch(std::slice::from_ref(&more))).await?;
            all.push(more);
        }
        fixture.ensure_holds(&place, &all).await
    }

    pub(crate) async fn rejects_an_open_log(fixture: &SinkFixture) -> Result<(), Abort> {
        let place = fixture.place()?;
        let (log, _) = fixture.open(&place).await?;
        ensure_owned(fixture, &place).await?;
        drop(log);
        let (log, _) = fixture.reopened(&place).await?;
        ensure_owned(fixture, &place).await?;
        drop(log);
        fixture.reopened(&place).await.map(drop)
    }

    async fn ensure_owned(fixture: &SinkFixture, place: &RunPlace) -> Result<(), Abort> {
        for sink in [Arc::clone(&fixture.sink), fixture.harness.sink()] {
            match resume_with(&*sink, place).await {
                Err(Error::Owned { .. }) => {}
                Err(error) => return fail(format!("expected Owned: {}", chain(&error))),
                Ok((resumed, _)) => return fail(format!("the open log was resumed: {resumed:?}")),
            }
        }
        Ok(())
    }

    pub(crate) async fn truncates_a_partial_record(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, mut all) = fixture.filled(&lines(0..3)).await?;
        fixture.harness.tear(&place)?;
        let (mut log, records) = fixture.reopened(&place).await?;
        let prefix = records.len() <= all.len() && records == all[..records.len()];
        ensure(prefix, || {
            format!("{records:?} is not a prefix of the appended records")
        })?;
        let more = line("more");
        log.append(batch(std::slice::from_ref(&more))).await?;
        drop(log);
        all.truncate(records.len());
        all.push(more);
        fixture.ensure_holds(&place, &all).await
    }

    pub(crate) async fn rejects_a_damaged_sealed_log(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, all) = fixture.filled(&lines(0..3)).await?;
        let (mut log, _) = fixture.reopened(&place).await?;
        log.seal(seal_of(&all)).await?;
        drop(log);
        fixture.harness.damage(&place)?;
        for _ in 0..2 {
            match fixture.resume(&place).await {
                Err(Error::Damaged { .. }) => {}
                Err(error) => return fail(format!("expected Damaged: {}", chain(&error))),
                Ok((resumed, _)) => {
                    return fail(format!("the damage was not detected: {resumed:?}"));
                }
            }
        }
        Ok(())
    }
}

pub(super) mod seal {
    use super::*;

    pub(crate) async fn is_returned_by_resume(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, all) = fixture.filled(&lines(0..3)).await?;
        let (mut log, _) = fixture.reopened(&place).await?;
        let sealed = log.seal(seal_of(&all)).await?;
        drop(log);
        for _ in 0..2 {
            let (resumed, mut records) = fixture.resume(&place).await?;
            match resumed {
                Resumed::Sealed(found) if found == sealed => {}
                other => return fail(format!("`resume` returned {other:?} instead of {sealed:?}")),
            }
            // A sink may visit the seal as the last record, or omit it.
            records.retain(|record| !matches!(record, Record::Event(Event::End(_))));
            ensure_same(&records, &all)?;
        }
        Ok(())
    }

    pub(crate) async fn rejects_later_appends(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, all) = fixture.filled(&lines(0..1)).await?;
        let (mut log, _) = fixture.reopened(&place).await?;
        log.seal(seal_of(&all)).await?;
        let appended = log.append(batch(&lines(1..2))).await;
        ensure(appended.is_err(), || "a record was appended".into())?;
        drop(log);
        let (_, mut records) = fixture.resume(&place).await?;
        records.retain(|record| !matches!(record, Record::Event(Event::End(_))));
        ensure_same(&records, &all)
    }

    pub(crate) async fn rejects_a_second_seal(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, all) = fixture.filled(&lines(0..1)).await?;
        let (mut log, _) = fixture.reopened(&place).await?;
        let sealed = log.seal(seal_of(&all)).await?;
        let again = log.seal(seal_of(&all)).await;
        ensure(again.is_err(), || "the log was sealed again".into())?;
        drop(log);
        match fixture.resume(&place).await? {
            (Resumed::Sealed(found), _) if found == sealed => Ok(()),
            (other, _) => fail(format!("`resume` returned {other:?} instead of {sealed:?}")),
        }
    }

    pub(crate) async fn ignores_the_callers_digest(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, all) = fixture.filled(&lines(0..1)).await?;
        let (mut log, _) = fixture.reopened(&place).await?;
        let mut passed = seal_of(&all);
        passed.sha256 = "0".repeat(64);
        let sealed = log.seal(passed.clone()).await?;
        ensure(sealed.sha256 != passed.sha256, || {
            "the caller's digest was kept".into()
        })
    }
}

pub(super) mod errors {
    use super::*;

    pub(crate) async fn are_permanent(fixture: &SinkFixture) -> Result<(), Abort> {
        let (place, mut all) = fixture.filled(&lines(0..1)).await?;
        let (mut log, _) = fixture.reopened(&place).await?;
        fixture.harness.spoil(&place)?;
        let more = line("more");
        all.push(more.clone());
        let failed = log.append(batch(&[more])).await.is_err()
            || log.sync().await.is_err()
            || log.seal(seal_of(&all)).await.is_err();
        ensure(failed, || "no call failed".into())?;
        let appended = log.append(batch(&lines(1..2))).await;
        ensure(appended.is_err(), || "a record was appended".into())?;
        let synced = log.sync().await;
        ensure(synced.is_err(), || "a sync succeeded".into())?;
        let sealed = log.seal(seal_of(&all)).await;
        ensure(sealed.is_err(), || "the log was sealed".into())
    }
}

pub(super) mod threads {
    use super::*;

    pub(crate) async fn are_not_blocked(_: &SinkFixture) -> Result<(), Abort> {
        skip("a blocked thread cannot be observed from outside")
    }
}

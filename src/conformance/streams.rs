//! The clauses about output, and about files.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::bench::{Bench, collect, collect_to, eventually, same, within};
use super::{Behaviour, Stop, ensure, fail, skip, words};
use crate::error::RuntimeError;
use crate::outcome::Stream;
use crate::runtime::{Archive, ContainerStatus, LogsRequest};
use crate::spec::{Backstop, RunId};

const NONE: &[u8] = b"";

/// A busy engine may give up what it has not read shortly after the exit, and says so by its
/// capabilities: a container that has printed a lot goes on for so long.
const FOR_THE_ENGINE: Duration = Duration::from_secs(1);

/// As a terminal shows it.
fn with_returns(bytes: &[u8]) -> Vec<u8> {
    let mut shown = Vec::new();
    for byte in bytes {
        if *byte == b'\n' {
            shown.push(b'\r');
        }
        shown.push(*byte);
    }
    shown
}

pub(crate) mod tap {
    use super::*;

    pub(crate) async fn it_resolves_before_the_container_starts(bench: &Bench) -> Result<(), Stop> {
        bench.needs_tap()?;
        let container = bench.make(&Behaviour::new().out("late\n")).await?;
        let tap = within("answer", bench.runtime.attach(&container, false)).await??;
        let inspection = bench.runtime.inspect(&container).await?;
        ensure(inspection.status == ContainerStatus::Created, || {
            format!("the tap made it {:?}", inspection.status)
        })?;
        bench.runtime.start(&container).await?;
        same("stdout", &collect(tap).await?.stdout, b"late\n")
    }

    pub(crate) async fn it_misses_nothing_after_the_start(bench: &Bench) -> Result<(), Stop> {
        for _ in 0..10 {
            let got = bench
                .tapped(&Behaviour::new().out("all there is\n"))
                .await?;
            same("stdout", &got.stdout, b"all there is\n")?;
        }
        Ok(())
    }

    pub(crate) async fn it_gives_each_stream_byte_for_byte(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new()
            .out("one\n")
            .err("eins\n")
            .out("two\n\n")
            .err("zwei, without a newline")
            .out("\u{20ac} and three");
        let got = bench.tapped(&behaviour).await?;
        for stream in Stream::ALL {
            same(stream.as_str(), &got[stream], &behaviour.printed(stream))?;
        }
        Ok(())
    }

    pub(crate) async fn it_takes_no_bytes_for_framing(bench: &Bench) -> Result<(), Stop> {
        let all: Vec<u8> = (0..=255).collect();
        let behaviour = Behaviour::new()
            .out(&b"\x01\0\0\0\xff\xff\xff\xff"[..])
            .out(&b"\x02\0\0\0\0\0\0\x05stderr\n"[..])
            .err(&b"\x03\0\0\0\0\0\0\x04fail\x1b[2J"[..])
            .out(all);
        let got = bench.tapped(&behaviour).await?;
        same("stdout", &got.stdout, &behaviour.printed(Stream::Stdout))?;
        same("stderr", &got.stderr, &behaviour.printed(Stream::Stderr))
    }

    pub(crate) async fn a_terminal_is_told_by_tty_alone(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new()
            .out(&b"\x01\0\0\0\xff\xff\xff\xff\n"[..])
            .err("errors too\n")
            .tty();
        bench.needs_tap()?;
        let spec = bench.spec(&behaviour)?;
        if let Err(error) = bench.runtime.validate(&spec) {
            return skip(format!("the runtime gives no terminal: {}", words(&error)));
        }
        let got = bench.tapped(&behaviour).await?;
        let all = [
            behaviour.printed(Stream::Stdout),
            behaviour.printed(Stream::Stderr),
        ]
        .concat();
        same("stdout", &got.stdout, NONE)?;
        same("stderr", &got.stderr, NONE)?;
        // A double is not a terminal: it need not add carriage returns.
        if got.tty == all {
            return Ok(());
        }
        same("the terminal", &got.tty, &with_returns(&all))
    }

    pub(crate) async fn no_chunk_is_empty(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new().out("").out("a\n").err("b\n").out("c");
        let (_, mut tap) = bench.tap(&behaviour).await?;
        while let Some(chunk) = within("give the end of the output", tap.next()).await? {
            ensure(!chunk?.bytes.is_empty(), || "an empty chunk".into())?;
        }
        Ok(())
    }

    pub(crate) async fn it_carries_a_lot(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new()
            .lines(Stream::Stdout, 8000)
            .lines(Stream::Stderr, 4000)
            .lines(Stream::Stdout, 8000)
            .pause(FOR_THE_ENGINE);
        let got = bench.tapped(&behaviour).await?;
        same("stdout", &got.stdout, &behaviour.printed(Stream::Stdout))?;
        same("stderr", &got.stderr, &behaviour.printed(Stream::Stderr))
    }

    pub(crate) async fn it_ends_after_its_container(bench: &Bench) -> Result<(), Stop> {
        let (container, tap) = bench.tap(&Behaviour::new().out("x\n")).await?;
        bench.ended(&container).await?;
        match tokio::time::timeout(Duration::from_secs(12), collect(tap)).await {
            Ok(read) => read.map(drop),
            Err(_) => fail("it does not end"),
        }
    }

    pub(crate) async fn of_what_cannot_start_it_is_rejected_at_the_most(
        bench: &Bench,
    ) -> Result<(), Stop> {
        bench.needs_tap()?;
        let container = bench.make(&Behaviour::missing()).await?;
        match within("answer", bench.runtime.attach(&container, false)).await? {
            Ok(_) | Err(RuntimeError::Rejected { .. }) => {}
            Err(error) => return fail(words(&error)),
        }
        let inspection = bench.runtime.inspect(&container).await?;
        ensure(inspection.status == ContainerStatus::Created, || {
            format!("{inspection:?}")
        })?;
        bench.runtime.remove(&container, false).await?;
        Ok(())
    }

    pub(crate) async fn dropped_it_leaves_the_container_alone(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new()
            .out("first\n")
            .pause(Duration::from_millis(200))
            .lines(Stream::Stdout, 5000)
            .exit(8);
        let (container, mut tap) = bench.tap(&behaviour).await?;
        let first = within("print its first words", tap.next()).await?;
        ensure(matches!(first, Some(Ok(_))), || {
            format!("the tap gave {first:?}")
        })?;
        drop(tap);
        let code = bench.wait(&container).await?;
        ensure(code == Some(8), || {
            format!("it ended with {code:?} in the place of 8")
        })
    }
}

pub(crate) mod logs {
    use super::*;

    pub(crate) async fn they_have_all_that_was_printed(bench: &Bench) -> Result<(), Stop> {
        bench.needs_logs()?;
        let behaviour = Behaviour::new()
            .lines(Stream::Stdout, 4000)
            .out("no newline at the end")
            .pause(FOR_THE_ENGINE);
        let container = bench.run_to_its_end(&behaviour).await?;
        let log = bench.log(&container, LogsRequest::all(false)).await?;
        same("stdout", &log.stdout, &behaviour.printed(Stream::Stdout))
    }

    pub(crate) async fn they_can_be_read_again(bench: &Bench) -> Result<(), Stop> {
        bench.needs_logs()?;
        let container = bench
            .run_to_its_end(&Behaviour::new().out("again\n"))
            .await?;
        for _ in 0..3 {
            let log = bench.log(&container, LogsRequest::all(false)).await?;
            same("stdout", &log.stdout, b"again\n")?;
        }
        Ok(())
    }

    pub(crate) async fn they_are_by_stream(bench: &Bench) -> Result<(), Stop> {
        bench.needs_logs()?;
        let behaviour = Behaviour::new()
            .lines(Stream::Stdout, 300)
            .lines(Stream::Stderr, 300)
            .out("three\n")
            .err("drei\n");
        let container = bench.run_to_its_end(&behaviour).await?;
        let log = bench.log(&container, LogsRequest::all(false)).await?;
        for stream in Stream::ALL {
            same(stream.as_str(), &log[stream], &behaviour.printed(stream))?;
        }
        Ok(())
    }

    pub(crate) async fn they_end_where_the_log_ends(bench: &Bench) -> Result<(), Stop> {
        bench.needs_logs()?;
        let container = bench.run(&Behaviour::new().out("so far\n").hold()).await?;
        let log = eventually("the log has what was printed", || async {
            let log = bench.log(&container, LogsRequest::all(false)).await?;
            Ok((!log.stdout.is_empty()).then_some(log))
        });
        same("stdout", &log.await?.stdout, b"so far\n")?;
        let inspection = bench.runtime.inspect(&container).await?;
        ensure(inspection.status == ContainerStatus::Running, || {
            format!("{inspection:?}")
        })
    }

    pub(crate) async fn a_tail_is_the_last_records(bench: &Bench) -> Result<(), Stop> {
        bench.needs_logs()?;
        let behaviour = Behaviour::new().lines(Stream::Stdout, 100);
        let container = bench.run_to_its_end(&behaviour).await?;
        let all = behaviour.printed(Stream::Stdout);
        for (records, bytes) in [(10, 640), (1, 64), (1000, all.len())] {
            let tail = bench
                .log(&container, LogsRequest::tail(false, records))
                .await?;
            same("the tail", &tail.stdout, &all[all.len() - bytes..])?;
        }
        Ok(())
    }

    pub(crate) async fn a_follow_goes_on_with_what_comes(bench: &Bench) -> Result<(), Stop> {
        bench.needs_logs()?;
        let behaviour = Behaviour::new()
            .out("one\n")
            .pause(Duration::from_millis(700))
            .out("two\n")
            .hold();
        let container = bench.run(&behaviour).await?;
        bench.printed(&container, Stream::Stdout).await?;
        let request = LogsRequest::follow(false);
        let mut follow = bench.runtime.logs(&container, request).await?;
        // While it runs: such a stream may lose what is printed right before the end.
        let got = collect_to(&mut follow, b"two\n").await?;
        same("stdout", &got, &behaviour.printed(Stream::Stdout))?;
        bench.runtime.signal(&container, "SIGTERM").await?;
        same("the rest", &collect(follow).await?.stdout, NONE)
    }

    pub(crate) async fn of_a_container_that_never_started_they_are_empty(
        bench: &Bench,
    ) -> Result<(), Stop> {
        bench.needs_logs()?;
        let container = bench.make(&Behaviour::new().out("never\n")).await?;
        let log = bench.log(&container, LogsRequest::all(false)).await?;
        same("stdout", &log.stdout, NONE)
    }

    pub(crate) async fn a_terminals_log_is_a_terminals(bench: &Bench) -> Result<(), Stop> {
        bench.needs_logs()?;
        let behaviour = Behaviour::new().out("\x01\0\0\0 on a terminal\n").tty();
        let spec = bench.spec(&behaviour)?;
        if let Err(error) = bench.runtime.validate(&spec) {
            return skip(format!("the runtime gives no terminal: {}", words(&error)));
        }
        let container = bench.run_to_its_end(&behaviour).await?;
        let log = bench.log(&container, LogsRequest::all(true)).await?;
        let printed = behaviour.printed(Stream::Stdout);
        same("stdout", &log.stdout, NONE)?;
        if log.tty == printed {
            return Ok(());
        }
        same("the terminal", &log.tty, &with_returns(&printed))
    }

    pub(crate) async fn without_a_backstop_there_are_none(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new().out("gone\n");
        let spec = bench.spec(&behaviour)?.backstop(Backstop::None);
        if let Err(error) = bench.runtime.validate(&spec) {
            return skip(format!("the engine always keeps a log: {}", words(&error)));
        }
        let container = bench.create(&bench.root, &RunId::generate(), &spec).await?;
        bench.runtime.start(&container).await?;
        bench.wait(&container).await?;
        let log = bench.ended(&container).await?.log;
        ensure(log.fidelity.is_none(), || {
            format!("it says that it keeps one: {log:?}")
        })?;
        let error = match bench
            .runtime
            .logs(&container, LogsRequest::all(false))
            .await
        {
            Err(error) => error,
            Ok(mut stream) => match within("answer", stream.next()).await? {
                Some(Err(error)) => error,
                other => return fail(format!("the log could be read: {other:?}")),
            },
        };
        ensure(error.is_definitive(), || words(&error))
    }
}

pub(crate) mod copy {
    use super::*;

    const NAME: &str = "moat-conformance";
    const CONTENT: &[u8] = b"a file of the conformance suite\n";

    pub(crate) async fn what_is_copied_in_can_be_copied_out(bench: &Bench) -> Result<(), Stop> {
        let container = bench.make(&Behaviour::new()).await?;
        let archive: Archive = stream::iter([Ok(Bytes::from(tar()))]).boxed();
        able(bench.runtime.copy_in(&container, "/", archive).await)?;
        let archive = able(
            bench
                .runtime
                .copy_out(&container, &format!("/{NAME}"))
                .await,
        )?;
        holds_the_file(archive).await
    }

    pub(crate) async fn a_container_that_has_ended_can_be_copied_out_of(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.make(&Behaviour::new()).await?;
        let archive: Archive = stream::iter([Ok(Bytes::from(tar()))]).boxed();
        able(bench.runtime.copy_in(&container, "/", archive).await)?;
        bench.runtime.start(&container).await?;
        bench.wait(&container).await?;
        let archive = able(
            bench
                .runtime
                .copy_out(&container, &format!("/{NAME}"))
                .await,
        )?;
        holds_the_file(archive).await
    }

    fn able<T>(result: Result<T, RuntimeError>) -> Result<T, Stop> {
        match result {
            Err(error @ RuntimeError::Unsupported { .. }) => skip(words(&error)),
            result => Ok(result?),
        }
    }

    async fn holds_the_file(mut archive: Archive) -> Result<(), Stop> {
        let mut bytes = Vec::new();
        while let Some(part) = within("give the archive", archive.next()).await? {
            bytes.extend_from_slice(&part?);
        }
        let there = |what: &[u8]| memchr::memmem::find(&bytes, what).is_some();
        ensure(there(NAME.as_bytes()) && there(CONTENT), || {
            format!("an archive of {} bytes does not hold the file", bytes.len())
        })
    }

    /// An archive of one file.
    fn tar() -> Vec<u8> {
        let mut header = [0; 512];
        let mut put = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, NAME);
        put(100, "0000644\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", CONTENT.len()));
        put(136, "00000000000\0");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut archive = header.to_vec();
        archive.extend_from_slice(CONTENT);
        // The file is padded to a block, and two empty ones are the end.
        archive.resize(512 * 4, 0);
        archive
    }
}

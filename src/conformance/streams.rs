//! The clauses of [`Runtime`](crate::runtime::Runtime) on output and files.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::runtime_fixture::{
    RuntimeFixture, collect, collect_until, ensure_bytes, eventually, within,
};
use super::{Abort, Behavior, ensure, fail, skip};
use crate::error::{RuntimeError, chain};
use crate::outcome::Stream;
use crate::runtime::{Archive, ContainerStatus, LogsRequest};
use crate::spec::{Backstop, ContainerId, RunId};

const EMPTY: &[u8] = b"";

/// The time for which a container still runs after a large output.
///
/// An engine with a [`DrainLimit`](crate::runtime::DrainLimit) may discard output that it has not
/// read shortly after the exit.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Replaces each `\n` by `\r\n`, as a terminal does.
fn with_crlf(bytes: &[u8]) -> Vec<u8> {
    let mut shown = Vec::new();
    for byte in bytes {
        if *byte == b'\n' {
            shown.push(b'\r');
        }
        shown.push(*byte);
    }
    shown
}

/// Fails unless a terminal shows the printed bytes. A test double need not add carriage returns.
fn ensure_terminal_bytes(got: &[u8], printed: &[u8]) -> Result<(), Abort> {
    if got == printed {
        return Ok(());
    }
    ensure_bytes("the terminal", got, &with_crlf(printed))
}

pub(super) mod attach {
    use super::*;

    pub(crate) async fn resolves_before_the_start(fixture: &RuntimeFixture) -> Result<(), Abort> {
        fixture.require_attach()?;
        let container = fixture.create(&Behavior::new().out("late\n")).await?;
        let output = within("`attach`", fixture.runtime.attach(&container, false)).await??;
        let inspection = fixture.runtime.inspect(&container).await?;
        ensure(inspection.status == ContainerStatus::Created, || {
            format!("attaching changed the status to {:?}", inspection.status)
        })?;
        fixture.runtime.start(&container).await?;
        ensure_bytes("stdout", &collect(output.stream).await?.stdout, b"late\n")
    }

    pub(crate) async fn delivers_the_first_output(fixture: &RuntimeFixture) -> Result<(), Abort> {
        for _ in 0..10 {
            let got = fixture
                .collect_output(&Behavior::new().out("all output\n"))
                .await?;
            ensure_bytes("stdout", &got.stdout, b"all output\n")?;
        }
        Ok(())
    }

    pub(crate) async fn delivers_each_stream_exactly(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let behavior = Behavior::new()
            .out("one\n")
            .err("error one\n")
            .out("two\n\n")
            .err("error two, without a newline")
            .out("\u{20ac} and three");
        let got = fixture.collect_output(&behavior).await?;
        for stream in Stream::ALL {
            ensure_bytes(stream.as_str(), &got[stream], &behavior.printed(stream))?;
        }
        Ok(())
    }

    pub(crate) async fn does_not_parse_output_as_framing(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let all: Vec<u8> = (0..=255).collect();
        let behavior = Behavior::new()
            .out(&b"\x01\0\0\0\xff\xff\xff\xff"[..])
            .out(&b"\x02\0\0\0\0\0\0\x05stderr\n"[..])
            .err(&b"\x03\0\0\0\0\0\0\x04fail\x1b[2J"[..])
            .out(all);
        let got = fixture.collect_output(&behavior).await?;
        ensure_bytes("stdout", &got.stdout, &behavior.printed(Stream::Stdout))?;
        ensure_bytes("stderr", &got.stderr, &behavior.printed(Stream::Stderr))
    }

    pub(crate) async fn labels_terminal_output_by_tty(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let behavior = Behavior::new()
            .out(&b"\x01\0\0\0\xff\xff\xff\xff\n"[..])
            .err("errors too\n")
            .tty();
        fixture.require_attach()?;
        fixture.require_terminal(&behavior)?;
        let got = fixture.collect_output(&behavior).await?;
        let all = [
            behavior.printed(Stream::Stdout),
            behavior.printed(Stream::Stderr),
        ]
        .concat();
        ensure_bytes("stdout", &got.stdout, EMPTY)?;
        ensure_bytes("stderr", &got.stderr, EMPTY)?;
        ensure_terminal_bytes(&got.tty, &all)
    }

    pub(crate) async fn yields_no_empty_chunk(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let behavior = Behavior::new().out("").out("a\n").err("b\n").out("c");
        let (_, mut output) = fixture.start_attached(&behavior).await?;
        while let Some(chunk) = within("the end of the output", output.next()).await? {
            ensure(!chunk?.bytes.is_empty(), || "an empty chunk".into())?;
        }
        Ok(())
    }

    pub(crate) async fn delivers_large_output(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let behavior = Behavior::new()
            .lines(Stream::Stdout, 8000)
            .lines(Stream::Stderr, 4000)
            .lines(Stream::Stdout, 8000)
            .pause(DRAIN_TIME);
        let got = fixture.collect_output(&behavior).await?;
        ensure_bytes("stdout", &got.stdout, &behavior.printed(Stream::Stdout))?;
        ensure_bytes("stderr", &got.stderr, &behavior.printed(Stream::Stderr))
    }

    pub(crate) async fn ends_after_the_container(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let (container, output) = fixture.start_attached(&Behavior::new().out("x\n")).await?;
        fixture.wait_ended(&container).await?;
        match tokio::time::timeout(Duration::from_secs(12), collect(output)).await {
            Ok(read) => read.map(drop),
            Err(_) => fail("the attachment does not end"),
        }
    }

    pub(crate) async fn may_reject_an_unstartable_container(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        fixture.require_attach()?;
        let container = fixture.create(&Behavior::command_not_found()).await?;
        match within("`attach`", fixture.runtime.attach(&container, false)).await? {
            Ok(_) | Err(RuntimeError::Rejected { .. }) => {}
            Err(error) => return fail(chain(&error)),
        }
        let inspection = fixture.runtime.inspect(&container).await?;
        ensure(inspection.status == ContainerStatus::Created, || {
            format!("`inspect` returned {inspection:?}")
        })?;
        fixture.runtime.remove(&container, false).await?;
        Ok(())
    }

    pub(crate) async fn drop_leaves_the_container_running(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let behavior = Behavior::new()
            .out("first\n")
            .pause(Duration::from_millis(200))
            .lines(Stream::Stdout, 5000)
            .exit(8);
        let (container, mut output) = fixture.start_attached(&behavior).await?;
        let first = within("the first output", output.next()).await?;
        ensure(matches!(first, Some(Ok(_))), || {
            format!("the attachment yielded {first:?}")
        })?;
        drop(output);
        let code = fixture.wait(&container).await?;
        ensure(code == Some(8), || {
            format!("the exit code is {code:?} instead of 8")
        })
    }
}

pub(super) mod logs {
    use super::*;

    pub(crate) async fn return_all_output(fixture: &RuntimeFixture) -> Result<(), Abort> {
        fixture.require_logs()?;
        let behavior = Behavior::new()
            .lines(Stream::Stdout, 4000)
            .out("no newline at the end")
            .pause(DRAIN_TIME);
        let container = fixture.run_to_exit(&behavior).await?;
        let log = fixture
            .read_log(&container, LogsRequest::all(false))
            .await?;
        ensure_bytes("stdout", &log.stdout, &behavior.printed(Stream::Stdout))
    }

    pub(crate) async fn can_be_read_repeatedly(fixture: &RuntimeFixture) -> Result<(), Abort> {
        fixture.require_logs()?;
        let container = fixture.run_to_exit(&Behavior::new().out("again\n")).await?;
        for _ in 0..3 {
            let log = fixture
                .read_log(&container, LogsRequest::all(false))
                .await?;
            ensure_bytes("stdout", &log.stdout, b"again\n")?;
        }
        Ok(())
    }

    pub(crate) async fn keep_the_order_of_each_stream(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        fixture.require_logs()?;
        let behavior = Behavior::new()
            .lines(Stream::Stdout, 300)
            .lines(Stream::Stderr, 300)
            .out("three\n")
            .err("error three\n");
        let container = fixture.run_to_exit(&behavior).await?;
        let log = fixture
            .read_log(&container, LogsRequest::all(false))
            .await?;
        for stream in Stream::ALL {
            ensure_bytes(stream.as_str(), &log[stream], &behavior.printed(stream))?;
        }
        Ok(())
    }

    pub(crate) async fn end_without_follow(fixture: &RuntimeFixture) -> Result<(), Abort> {
        fixture.require_logs()?;
        let container = fixture
            .start(&Behavior::new().out("so far\n").waits_for_signal())
            .await?;
        let log = eventually("the output is in the log", || async {
            let log = fixture
                .read_log(&container, LogsRequest::all(false))
                .await?;
            Ok((!log.stdout.is_empty()).then_some(log))
        });
        ensure_bytes("stdout", &log.await?.stdout, b"so far\n")?;
        let inspection = fixture.runtime.inspect(&container).await?;
        ensure(inspection.status == ContainerStatus::Running, || {
            format!("`inspect` returned {inspection:?}")
        })
    }

    pub(crate) async fn return_the_last_records_of_a_tail(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        fixture.require_logs()?;
        let behavior = Behavior::new().lines(Stream::Stdout, 100);
        let container = fixture.run_to_exit(&behavior).await?;
        let all = behavior.printed(Stream::Stdout);
        for (records, bytes) in [(10, 640), (1, 64), (1000, all.len())] {
            let tail = fixture
                .read_log(&container, LogsRequest::tail(false, records))
                .await?;
            ensure_bytes("the tail", &tail.stdout, &all[all.len() - bytes..])?;
        }
        Ok(())
    }

    pub(crate) async fn follow_new_output(fixture: &RuntimeFixture) -> Result<(), Abort> {
        fixture.require_logs()?;
        let behavior = Behavior::new()
            .out("one\n")
            .pause(Duration::from_millis(700))
            .out("two\n")
            .waits_for_signal();
        let container = fixture.start(&behavior).await?;
        fixture.wait_for_output(&container, Stream::Stdout).await?;
        let request = LogsRequest::follow(false);
        let mut follow = fixture.runtime.logs(&container, request).await?;
        // While the container runs: a follow may lose output from right before the exit.
        let got = collect_until(&mut follow, b"two\n").await?;
        ensure_bytes("stdout", &got, &behavior.printed(Stream::Stdout))?;
        fixture.runtime.signal(&container, "SIGTERM").await?;
        ensure_bytes("the rest", &collect(follow).await?.stdout, EMPTY)
    }

    pub(crate) async fn have_the_times_of_the_output(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        const PAUSE: Duration = Duration::from_millis(700);
        fixture.require_logs()?;
        // An engine may store a long line in parts.
        let long = "x".repeat(20_000);
        let behavior = Behavior::new().out("one\n").pause(PAUSE).out(long);
        let container = fixture.run_to_exit(&behavior).await?;
        let request = LogsRequest::all(false).with_timestamps(true);
        let log = fixture.runtime.logs(&container, request).await?;
        let chunks: Vec<_> = log.try_collect().await?;
        let bytes: Vec<_> = chunks.iter().map(|chunk| &chunk.bytes[..]).collect();
        let printed = behavior.printed(Stream::Stdout);
        ensure_bytes("stdout", &bytes.concat(), &printed)?;
        let times: Vec<_> = chunks.iter().filter_map(|chunk| chunk.logged_at).collect();
        ensure(times.is_empty() || times.len() == chunks.len(), || {
            format!("some chunks have no time: {chunks:?}")
        })?;
        if let [first, .., last] = times[..] {
            let between = last.since(first);
            ensure(between > PAUSE / 2, || {
                format!("{between:?} between two lines, with a pause of {PAUSE:?} between them")
            })?;
        }
        Ok(())
    }

    pub(crate) async fn are_empty_before_the_start(fixture: &RuntimeFixture) -> Result<(), Abort> {
        fixture.require_logs()?;
        let container = fixture.create(&Behavior::new().out("never\n")).await?;
        let log = fixture
            .read_log(&container, LogsRequest::all(false))
            .await?;
        ensure_bytes("stdout", &log.stdout, EMPTY)
    }

    pub(crate) async fn have_the_reported_number_of_records(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        const RECORDS: u64 = 40;
        fixture.require_logs()?;
        let behavior = (0..RECORDS).fold(Behavior::new(), |behavior, _| behavior.out("same\n"));
        let container = fixture.run_to_exit(&behavior.pause(DRAIN_TIME)).await?;
        for records in [0, 1, RECORDS / 2, RECORDS - 1, RECORDS + 1, 2 * RECORDS] {
            let proven = fixture.runtime.log_has_exactly(&container, false, records);
            let proven = proven.await?;
            ensure(!proven, || {
                format!("a log of {RECORDS} records has exactly {records}")
            })?;
        }
        Ok(())
    }

    pub(crate) async fn label_terminal_output_by_tty(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        fixture.require_logs()?;
        let behavior = Behavior::new().out("\x01\0\0\0 on a terminal\n").tty();
        fixture.require_terminal(&behavior)?;
        let container = fixture.run_to_exit(&behavior).await?;
        let log = fixture.read_log(&container, LogsRequest::all(true)).await?;
        let printed = behavior.printed(Stream::Stdout);
        ensure_bytes("stdout", &log.stdout, EMPTY)?;
        ensure_terminal_bytes(&log.tty, &printed)
    }

    pub(crate) async fn are_refused_without_a_backstop(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let behavior = Behavior::new().out("gone\n");
        let spec = fixture.spec(&behavior)?.backstop(Backstop::None);
        if let Err(error) = fixture.runtime.validate(&spec) {
            return skip(format!("the engine always keeps a log: {}", chain(&error)));
        }
        let container = fixture
            .create_with(&fixture.root, &RunId::generate(), &spec)
            .await?;
        fixture.runtime.start(&container).await?;
        fixture.wait(&container).await?;
        let log = fixture.wait_ended(&container).await?.log;
        ensure(log.fidelity.is_none(), || {
            format!("`inspect` reports a log: {log:?}")
        })?;
        let error = match fixture
            .runtime
            .logs(&container, LogsRequest::all(false))
            .await
        {
            Err(error) => error,
            Ok(mut stream) => match within("the first record", stream.next()).await? {
                Some(Err(error)) => error,
                other => return fail(format!("the log is readable: {other:?}")),
            },
        };
        ensure(error.is_definitive(), || chain(&error))
    }
}

pub(super) mod copy_out {
    use super::*;

    const NAME: &str = "moat-conformance";
    const CONTENT: &[u8] = b"a file of the conformance suite\n";

    pub(crate) async fn returns_a_file_that_was_copied_in(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = create_with_file(fixture).await?;
        ensure_file_is_copied_out(fixture, &container).await
    }

    pub(crate) async fn reads_from_an_ended_container(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        if !fixture.capabilities().copy_ended {
            return skip("the runtime cannot copy files out of a container that has ended");
        }
        let container = create_with_file(fixture).await?;
        fixture.runtime.start(&container).await?;
        fixture.wait(&container).await?;
        ensure_file_is_copied_out(fixture, &container).await
    }

    pub(crate) async fn reports_a_missing_file(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new()).await?;
        let path = format!("/{NAME}-missing");
        match fixture.runtime.copy_out(&container, &path).await {
            Err(RuntimeError::NotFound { .. }) => Ok(()),
            Err(error @ RuntimeError::Unsupported { .. }) => skip(chain(&error)),
            Err(error) => fail(chain(&error)),
            Ok(_) => fail("an archive is returned"),
        }
    }

    /// Creates a container, and copies the file into it.
    async fn create_with_file(fixture: &RuntimeFixture) -> Result<ContainerId, Abort> {
        let container = fixture.create(&Behavior::new()).await?;
        let archive: Archive = stream::iter([Ok(Bytes::from(tar()))]).boxed();
        supported(fixture.runtime.copy_in(&container, "/", archive).await)?;
        Ok(container)
    }

    fn supported<T>(result: Result<T, RuntimeError>) -> Result<T, Abort> {
        match result {
            Err(error @ RuntimeError::Unsupported { .. }) => skip(chain(&error)),
            result => Ok(result?),
        }
    }

    async fn ensure_file_is_copied_out(
        fixture: &RuntimeFixture,
        container: &ContainerId,
    ) -> Result<(), Abort> {
        let path = format!("/{NAME}");
        let mut archive = supported(fixture.runtime.copy_out(container, &path).await)?;
        let mut bytes = Vec::new();
        while let Some(part) = within("the archive", archive.next()).await? {
            bytes.extend_from_slice(&part?);
        }
        let contains = |part: &[u8]| memchr::memmem::find(&bytes, part).is_some();
        ensure(contains(NAME.as_bytes()) && contains(CONTENT), || {
            format!(
                "the archive of {} bytes does not contain the file",
                bytes.len()
            )
        })
    }

    /// Returns a tar archive of one file.
    fn tar() -> Vec<u8> {
        let mut header = [0; 512];
        let mut set = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        set(0, NAME);
        set(100, "0000644\0");
        set(108, "0000000\0");
        set(116, "0000000\0");
        set(124, &format!("{:011o}\0", CONTENT.len()));
        set(136, "00000000000\0");
        set(148, "        ");
        set(156, "0");
        set(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut archive = header.to_vec();
        archive.extend_from_slice(CONTENT);
        // The file is padded to a block, and two empty blocks end the archive.
        archive.resize(512 * 4, 0);
        archive
    }
}

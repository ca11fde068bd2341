//! The clauses of [`Runtime`](crate::runtime::Runtime) on interaction with a container.

use std::time::Duration;

use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::runtime_fixture::{
    RuntimeFixture, collect, collect_until, ensure_bytes, eventually, within,
};
use super::{Abort, Behavior, ensure, fail, skip};
use crate::error::{RuntimeError, chain};
use crate::runtime::{ContainerStatus, InputWriter};
use crate::spec::Stdin;

async fn write(input: &mut InputWriter, bytes: &[u8]) -> Result<(), Abort> {
    let written = async {
        input.write_all(bytes).await?;
        input.flush().await
    };
    match within("a write to the input", written).await? {
        Ok(()) => Ok(()),
        Err(error) => fail(chain(&error)),
    }
}

async fn end(input: &mut InputWriter) -> Result<(), Abort> {
    match within("the shutdown of the input", input.shutdown()).await? {
        Ok(()) => Ok(()),
        Err(error) => fail(chain(&error)),
    }
}

/// Returns every byte value, then the detach keys of common engines (ctrl-p ctrl-q).
fn every_byte() -> Vec<u8> {
    (0..=255).chain(*b"\x10\x11\x10").collect()
}

pub(super) mod stdin {
    use super::*;

    pub(crate) async fn delivers_every_byte(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let behavior = Behavior::new().echo();
        let (container, output) = fixture.start_with_stdin(&behavior, Stdin::Pipe).await?;
        let mut input = fixture.runtime.stdin(&container).await?;
        write(&mut input, &every_byte()).await?;
        end(&mut input).await?;
        ensure_bytes("stdout", &collect(output).await?.stdout, &every_byte())
    }

    pub(crate) async fn delivers_the_end_of_a_pipe(fixture: &RuntimeFixture) -> Result<(), Abort> {
        for dropped in [false, true] {
            let behavior = Behavior::new().echo().exit(3);
            let (container, output) = fixture.start_with_stdin(&behavior, Stdin::Pipe).await?;
            let mut input = fixture.runtime.stdin(&container).await?;
            write(&mut input, b"a line\n").await?;
            if dropped {
                drop(input);
            } else {
                end(&mut input).await?;
            }
            let code = fixture.wait(&container).await?;
            ensure(code == Some(3), || {
                format!("the exit code is {code:?} instead of 3")
            })?;
            ensure_bytes("stdout", &collect(output).await?.stdout, b"a line\n")?;
        }
        Ok(())
    }

    pub(crate) async fn allows_reattaching_to_open_input(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        if !fixture.runtime.capabilities().stdin_reattach {
            return skip("the runtime ends an open input with its first writer");
        }
        let behavior = Behavior::new().echo();
        let (container, mut output) = fixture.start_with_stdin(&behavior, Stdin::Open).await?;
        for text in ["first\n", "second\n"] {
            let mut input = fixture.runtime.stdin(&container).await?;
            write(&mut input, text.as_bytes()).await?;
            let got = collect_until(&mut output, text.as_bytes()).await?;
            ensure_bytes("stdout", &got, text.as_bytes())?;
            drop(input);
            let status = fixture.runtime.inspect(&container).await?.status;
            ensure(status == ContainerStatus::Running, || {
                format!("the status changed to {status:?}")
            })?;
        }
        Ok(())
    }
}

pub(super) mod attach_running {
    use super::*;

    const PROMPT: &[u8] = b"a prompt: ";

    pub(crate) async fn delivers_new_output(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let behavior = Behavior::new().out("ready\n").echo().tty();
        let (container, mut output) = fixture.start_with_stdin(&behavior, Stdin::Open).await?;
        collect_until(&mut output, b"\n").await?;
        let mut attached = match fixture.runtime.attach_running(&container, true).await {
            Err(RuntimeError::Unsupported { .. }) => {
                return skip("the runtime cannot attach to a running container");
            }
            result => result?,
        };
        let mut input = fixture.runtime.stdin(&container).await?;
        // An engine may answer shortly before it forwards output, so the write is repeated.
        let mut got = Vec::new();
        let read = async {
            while memchr::memmem::find(&got, PROMPT).is_none() {
                write(&mut input, PROMPT).await?;
                match timeout(Duration::from_secs(1), attached.next()).await {
                    Ok(Some(chunk)) => got.extend_from_slice(&chunk?.bytes),
                    Ok(None) => return fail("the attachment ends while the container runs"),
                    Err(_) => {}
                }
            }
            Ok(())
        };
        within("the new output", read).await??;
        collect_until(&mut output, PROMPT).await.map(drop)
    }
}

pub(super) mod resize {
    use super::*;
    use crate::spec::WindowSize;

    pub(crate) async fn resizes_a_running_terminal(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let behavior = Behavior::new().waits_for_signal().tty();
        fixture.require_terminal(&behavior)?;
        let container = fixture.start(&behavior).await?;
        let size = WindowSize::new(100, 30);
        match fixture.runtime.resize(&container, size).await {
            Err(RuntimeError::Unsupported { .. }) => skip("the runtime cannot resize a terminal"),
            resized => Ok(resized?),
        }
    }
}

pub(super) mod exec {
    use super::*;
    use crate::runtime::StartedExec;
    use crate::spec::ExecSpec;

    fn spec(fixture: &RuntimeFixture, behavior: &Behavior) -> Result<ExecSpec, Abort> {
        if !fixture.capabilities().exec {
            return skip("the runtime has no exec");
        }
        Ok(fixture.harness.exec(behavior)?)
    }

    pub(crate) async fn returns_its_output_and_exit_code(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let behavior = Behavior::new().out("out\n").err("err\n").exit(7);
        let spec = spec(fixture, &behavior)?;
        let container = fixture.start_ready(Behavior::new()).await?;
        let StartedExec { id, output, .. } = fixture.runtime.exec(&container, &spec).await?;
        let got = collect(output.stream).await?;
        ensure_bytes("stdout", &got.stdout, b"out\n")?;
        ensure_bytes("stderr", &got.stderr, b"err\n")?;
        let code = eventually("the exec ends", || async {
            let inspection = fixture.runtime.exec_inspect(&id).await?;
            Ok((!inspection.running).then_some(inspection.code))
        });
        let code = code.await?;
        ensure(code == Some(7), || {
            format!("the exit code is {code:?} instead of 7")
        })
    }

    pub(crate) async fn delivers_its_input(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let spec = spec(fixture, &Behavior::new().echo())?.interactive(true);
        let container = fixture.start_ready(Behavior::new()).await?;
        let started = fixture.runtime.exec(&container, &spec).await?;
        let Some(mut input) = started.input else {
            return fail("the exec has no input");
        };
        write(&mut input, &every_byte()).await?;
        end(&mut input).await?;
        ensure_bytes(
            "stdout",
            &collect(started.output.stream).await?.stdout,
            &every_byte(),
        )
    }

    pub(crate) async fn is_killed_alone(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let spec = spec(fixture, &Behavior::new().out("begun\n").waits_for_signal())?;
        if !fixture.capabilities().exec_kill {
            return skip("the runtime cannot kill an exec");
        }
        let container = fixture.start_ready(Behavior::new()).await?;
        let StartedExec { id, output, .. } = fixture.runtime.exec(&container, &spec).await?;
        match fixture.runtime.exec_kill(&container, &id).await {
            Err(RuntimeError::Unsupported { .. }) => {
                return skip("the runtime cannot kill an exec in this container");
            }
            killed => killed?,
        }
        within("the end of the output", collect(output.stream)).await??;
        eventually("the exec ends", || async {
            let inspection = fixture.runtime.exec_inspect(&id).await?;
            Ok((!inspection.running).then_some(()))
        })
        .await?;
        let inspection = fixture.runtime.inspect(&container).await?;
        let runs = inspection.status == ContainerStatus::Running;
        ensure(runs, || format!("the container is {:?}", inspection.status))
    }

    pub(crate) async fn conflicts_with_an_ended_container(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let spec = spec(fixture, &Behavior::new())?;
        let container = fixture.run_to_exit(&Behavior::new()).await?;
        fixture.wait_ended(&container).await?;
        match fixture.runtime.exec(&container, &spec).await {
            Err(RuntimeError::Conflict { .. }) => Ok(()),
            Err(error) => fail(chain(&error)),
            Ok(_) => fail("the exec was started"),
        }
    }
}

pub(super) mod connect {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::error::RuntimeError;
    use crate::runtime::Connection;
    use crate::spec::{ContainerId, RunId};

    /// A port at which the container of the harness listens, and one at which it does not.
    const PORT: u16 = 8080;
    const CLOSED_PORT: u16 = 8081;
    const MESSAGE: &[u8] = b"a message of the conformance suite\n";

    /// Creates a container that listens on [`PORT`].
    async fn create(fixture: &RuntimeFixture) -> Result<ContainerId, Abort> {
        if !fixture.capabilities().connect {
            return skip("the runtime cannot connect to a port of a container");
        }
        let spec = fixture.harness.listening(PORT)?;
        let run = RunId::generate();
        fixture.create_with(&fixture.root, &run, &spec).await
    }

    /// Returns the echo of the message, or as much of it as arrives before the end.
    async fn exchange(mut connection: Connection) -> Vec<u8> {
        let mut echo = Vec::new();
        if connection.write_all(MESSAGE).await.is_ok() {
            while echo.len() < MESSAGE.len() {
                match connection.read_buf(&mut echo).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        }
        echo
    }

    pub(crate) async fn carries_bytes_in_both_directions(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = create(fixture).await?;
        fixture.runtime.start(&container).await?;
        eventually("the container echoes the message", || async {
            match fixture.runtime.connect(&container, PORT).await {
                Ok(connection) => {
                    let echo = within("the echo", exchange(connection)).await?;
                    Ok((echo == MESSAGE).then_some(()))
                }
                // It does not listen yet.
                Err(RuntimeError::Rejected { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    pub(crate) async fn rejects_a_closed_port(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = create(fixture).await?;
        fixture.runtime.start(&container).await?;
        match fixture.runtime.connect(&container, CLOSED_PORT).await {
            Err(RuntimeError::Rejected { .. }) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(mut connection) => {
                let read = within("the end of the connection", connection.read_u8()).await?;
                ensure(read.is_err(), || format!("the connection yielded {read:?}"))
            }
        }
    }

    pub(crate) async fn conflicts_before_the_start(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = create(fixture).await?;
        let result = fixture.runtime.connect(&container, PORT).await;
        let conflict = matches!(result, Err(RuntimeError::Conflict { .. }));
        ensure(conflict, || format!("expected Conflict: {result:?}"))
    }
}

//! The clauses about those who sit in front of a container.

use std::time::Duration;

use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::bench::{Bench, collect, collect_to, eventually, same, within};
use super::{Behaviour, Stop, ensure, fail, skip, words};
use crate::error::RuntimeError;
use crate::runtime::{ContainerStatus, InputWriter};
use crate::spec::Stdin;

async fn write(input: &mut InputWriter, bytes: &[u8]) -> Result<(), Stop> {
    let written = async {
        input.write_all(bytes).await?;
        input.flush().await
    };
    match within("take what is written", written).await? {
        Ok(()) => Ok(()),
        Err(error) => fail(words(&error)),
    }
}

async fn end(input: &mut InputWriter) -> Result<(), Stop> {
    match within("take the end of the input", input.shutdown()).await? {
        Ok(()) => Ok(()),
        Err(error) => fail(words(&error)),
    }
}

/// Every byte, and the keys that engines have a use of their own for.
fn every_byte() -> Vec<u8> {
    (0..=255).chain(*b"\x10\x11\x10").collect()
}

pub(crate) mod stdin {
    use super::*;

    pub(crate) async fn every_byte_arrives(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new().echo();
        let (container, tap) = bench.with_input(&behaviour, Stdin::Pipe).await?;
        let mut input = bench.runtime.stdin(&container).await?;
        write(&mut input, &every_byte()).await?;
        end(&mut input).await?;
        same("stdout", &collect(tap).await?.stdout, &every_byte())
    }

    pub(crate) async fn the_end_of_a_pipe_arrives(bench: &Bench) -> Result<(), Stop> {
        for dropped in [false, true] {
            let behaviour = Behaviour::new().echo().exit(3);
            let (container, tap) = bench.with_input(&behaviour, Stdin::Pipe).await?;
            let mut input = bench.runtime.stdin(&container).await?;
            write(&mut input, b"a line\n").await?;
            if dropped {
                drop(input);
            } else {
                end(&mut input).await?;
            }
            let code = bench.wait(&container).await?;
            ensure(code == Some(3), || format!("it ended with {code:?}"))?;
            same("stdout", &collect(tap).await?.stdout, b"a line\n")?;
        }
        Ok(())
    }

    pub(crate) async fn one_that_is_open_can_be_come_back_to(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new().echo();
        let (container, mut tap) = bench.with_input(&behaviour, Stdin::Open).await?;
        for text in ["first\n", "second\n"] {
            let mut input = bench.runtime.stdin(&container).await?;
            write(&mut input, text.as_bytes()).await?;
            let got = collect_to(&mut tap, text.as_bytes()).await?;
            same("stdout", &got, text.as_bytes())?;
            drop(input);
            let status = bench.runtime.inspect(&container).await?.status;
            ensure(status == ContainerStatus::Running, || {
                format!("it is {status:?}")
            })?;
        }
        Ok(())
    }
}

pub(crate) mod watch {
    use super::*;

    const PROMPT: &[u8] = b"a prompt: ";

    pub(crate) async fn it_gives_what_comes(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new().out("ready\n").echo().tty();
        let (container, mut tap) = bench.with_input(&behaviour, Stdin::Open).await?;
        collect_to(&mut tap, b"\n").await?;
        let mut watch = match bench.runtime.attach_running(&container, true).await {
            Err(RuntimeError::Unsupported { .. }) => return skip("nobody can look on"),
            watch => watch?,
        };
        let mut input = bench.runtime.stdin(&container).await?;
        // An engine may answer a moment before it passes anything on: then it is written again.
        let mut got = Vec::new();
        let look = async {
            while memchr::memmem::find(&got, PROMPT).is_none() {
                write(&mut input, PROMPT).await?;
                match timeout(Duration::from_secs(1), watch.next()).await {
                    Ok(Some(chunk)) => got.extend_from_slice(&chunk?.bytes),
                    Ok(None) => return fail("it ends while its container runs"),
                    Err(_) => {}
                }
            }
            Ok(())
        };
        within("give what was written", look).await??;
        collect_to(&mut tap, PROMPT).await.map(drop)
    }
}

pub(crate) mod resize {
    use super::*;
    use crate::spec::WindowSize;

    pub(crate) async fn a_terminal_that_runs_takes_a_size(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new().hold().tty();
        if let Err(error) = bench.runtime.validate(&bench.spec(&behaviour)?) {
            return skip(format!("the runtime gives no terminal: {}", words(&error)));
        }
        let container = bench.run(&behaviour).await?;
        let size = WindowSize::new(100, 30);
        match bench.runtime.resize(&container, size).await {
            Err(RuntimeError::Unsupported { .. }) => skip("a terminal keeps its size"),
            resized => Ok(resized?),
        }
    }
}

pub(crate) mod exec {
    use super::*;
    use crate::runtime::StartedExec;
    use crate::spec::ExecSpec;

    fn spec(bench: &Bench, behaviour: &Behaviour) -> Result<ExecSpec, Stop> {
        if !bench.can().exec {
            return skip("nobody can run a further process");
        }
        bench.stage.exec(behaviour).or_else(skip)
    }

    pub(crate) async fn its_output_and_its_code_are_its_own(bench: &Bench) -> Result<(), Stop> {
        let behaviour = Behaviour::new().out("out\n").err("err\n").exit(7);
        let spec = spec(bench, &behaviour)?;
        let container = bench.ready(Behaviour::new()).await?;
        let StartedExec { id, output, .. } = bench.runtime.exec(&container, &spec).await?;
        let got = collect(output).await?;
        same("stdout", &got.stdout, b"out\n")?;
        same("stderr", &got.stderr, b"err\n")?;
        let code = eventually("the process ends", || async {
            let inspection = bench.runtime.exec_inspect(&id).await?;
            Ok((!inspection.running).then_some(inspection.code))
        });
        let code = code.await?;
        ensure(code == Some(7), || format!("it ended with {code:?}"))
    }

    pub(crate) async fn its_input_arrives_with_its_end(bench: &Bench) -> Result<(), Stop> {
        let spec = spec(bench, &Behaviour::new().echo())?.interactive(true);
        let container = bench.ready(Behaviour::new()).await?;
        let execed = bench.runtime.exec(&container, &spec).await?;
        let Some(mut input) = execed.input else {
            return fail("it has no input");
        };
        write(&mut input, &every_byte()).await?;
        end(&mut input).await?;
        same(
            "stdout",
            &collect(execed.output).await?.stdout,
            &every_byte(),
        )
    }

    pub(crate) async fn in_one_that_has_ended_it_is_a_conflict(bench: &Bench) -> Result<(), Stop> {
        let spec = spec(bench, &Behaviour::new())?;
        let container = bench.run_to_its_end(&Behaviour::new()).await?;
        bench.ended(&container).await?;
        match bench.runtime.exec(&container, &spec).await {
            Err(RuntimeError::Conflict { .. }) => Ok(()),
            Err(error) => fail(words(&error)),
            Ok(_) => fail("it was run"),
        }
    }
}

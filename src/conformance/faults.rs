//! The clauses about what an error says.

pub(crate) mod facts {
    use std::time::Duration;

    use futures::StreamExt;
    use futures::future::{BoxFuture, join_all};
    use tokio::time::timeout;

    use crate::conformance::bench::{Bench, within};
    use crate::conformance::{Behaviour, Stop, ensure, fail, skip, words};
    use crate::error::RuntimeError;
    use crate::runtime::{ContainerStatus, CreateRequest, LogsRequest};
    use crate::spec::{ContainerId, RunId, RunSpec};

    /// Past the bound of each call, for a machine that has much to do.
    const PAST_BOUND: Duration = Duration::from_secs(35);

    type Asked<'a> = BoxFuture<'a, Result<(), RuntimeError>>;

    /// Each call about a container.
    fn about<'a>(bench: &'a Bench, container: &'a ContainerId) -> Vec<(&'static str, Asked<'a>)> {
        let runtime = &*bench.runtime;
        let mut calls: Vec<(&'static str, Asked<'a>)> = vec![
            ("start", Box::pin(async { runtime.start(container).await })),
            (
                "inspect",
                Box::pin(async { runtime.inspect(container).await.map(drop) }),
            ),
            (
                "signal",
                Box::pin(async { runtime.signal(container, "SIGTERM").await }),
            ),
            (
                "remove",
                Box::pin(async { runtime.remove(container, true).await }),
            ),
        ];
        if bench.can().attach_before_start {
            let tap = async { runtime.attach(container, false).await.map(drop) };
            calls.push(("tap", Box::pin(tap)));
        }
        if bench.can().logs {
            let logs = async {
                runtime
                    .logs(container, LogsRequest::all(false))
                    .await
                    .map(drop)
            };
            calls.push(("logs", Box::pin(logs)));
        }
        calls
    }

    /// Each call that asks the engine, and is bounded.
    fn all<'a>(
        bench: &'a Bench,
        container: &'a ContainerId,
        run: &'a RunId,
        spec: &'a RunSpec,
    ) -> Vec<(&'static str, Asked<'a>)> {
        let runtime = &*bench.runtime;
        let mut calls = about(bench, container);
        let create = async {
            let request = CreateRequest::new("moat-conformance-unreached", &bench.root, run, spec);
            runtime.create(request).await.map(drop)
        };
        calls.push(("create", Box::pin(create)));
        calls.push((
            "engine",
            Box::pin(async { runtime.engine().await.map(drop) }),
        ));
        calls.push((
            "find",
            Box::pin(async { runtime.find(&bench.root).await.map(drop) }),
        ));
        calls
    }

    pub(crate) async fn a_container_that_is_not_there_is_not_found(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.make(&Behaviour::new()).await?;
        bench.runtime.remove(&container, true).await?;
        let wait = async { bench.runtime.wait(&container).await.map(drop) };
        let mut calls = about(bench, &container);
        calls.push(("wait", Box::pin(wait)));
        for (name, call) in calls {
            match within(name, call).await? {
                Err(RuntimeError::NotFound { .. }) => {}
                Err(error) => return fail(format!("{name}: {}", words(&error))),
                Ok(()) => return fail(format!("{name} succeeded")),
            }
        }
        Ok(())
    }

    pub(crate) async fn an_engine_out_of_reach_is_no_fact(bench: &Bench) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new()).await?;
        let (run, spec) = (RunId::generate(), bench.spec(&Behaviour::new())?);
        bench.stage.take_down().await.or_else(skip)?;
        for (name, call) in all(bench, &container, &run, &spec) {
            match timeout(PAST_BOUND, call).await {
                Ok(Err(error)) => ensure(!error.is_definitive(), || {
                    format!("{name}: {}", words(&error))
                })?,
                Ok(Ok(())) => return fail(format!("{name} succeeded")),
                Err(_) => return fail(format!("{name} did not end")),
            }
        }
        bench.stage.bring_back().await;
        let inspection = bench.runtime.inspect(&container).await?;
        ensure(inspection.status == ContainerStatus::Running, || {
            format!("meanwhile it became {:?}", inspection.status)
        })
    }

    pub(crate) async fn an_engine_out_of_reach_ends_a_wait_without_a_fact(
        bench: &Bench,
    ) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new()).await?;
        let mut wait = bench.runtime.wait(&container);
        // It is under way, and not only made.
        if let Ok(answer) = timeout(Duration::from_millis(300), &mut wait).await {
            return fail(format!(
                "while the container runs, the answer is {answer:?}"
            ));
        }
        bench.stage.take_down().await.or_else(skip)?;
        match within("end the wait", wait).await? {
            Err(error) => ensure(!error.is_definitive(), || words(&error)),
            Ok(status) => ensure(status.code.is_none(), || format!("{status:?}")),
        }
    }

    pub(crate) async fn an_engine_out_of_reach_ends_a_stream(bench: &Bench) -> Result<(), Stop> {
        let (_, mut tap) = bench.tap(&Behaviour::new().out("ready\n").hold()).await?;
        let first = within("print its first words", tap.next()).await?;
        ensure(matches!(first, Some(Ok(_))), || {
            format!("the tap gave {first:?}")
        })?;
        bench.stage.take_down().await.or_else(skip)?;
        let end = within("end the stream", async {
            loop {
                match tap.next().await {
                    None => return Ok(()),
                    Some(Err(error)) => return Err(error),
                    Some(Ok(_)) => {}
                }
            }
        });
        match end.await? {
            Err(error) => ensure(!error.is_definitive(), || words(&error)),
            Ok(()) => Ok(()),
        }
    }

    pub(crate) async fn an_engine_that_is_silent_is_a_timeout(bench: &Bench) -> Result<(), Stop> {
        let container = bench.ready(Behaviour::new()).await?;
        let (run, spec) = (RunId::generate(), bench.spec(&Behaviour::new())?);
        bench.stage.silence().await.or_else(skip)?;
        let calls = all(bench, &container, &run, &spec);
        // All at once: each takes its 30 s.
        let (names, calls): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
        let answers = join_all(calls.into_iter().map(|call| timeout(PAST_BOUND, call))).await;
        for (name, answer) in names.into_iter().zip(answers) {
            match answer {
                Ok(Err(error)) => ensure(!error.is_definitive(), || {
                    format!("{name}: {}", words(&error))
                })?,
                Ok(Ok(())) => return fail(format!("{name} succeeded")),
                Err(_) => return fail(format!("{name} did not end within 30 s")),
            }
        }
        Ok(())
    }
}

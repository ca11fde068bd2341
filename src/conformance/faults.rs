//! The clauses of [`Runtime`](crate::runtime::Runtime) on errors.

pub(super) mod errors {
    use std::time::Duration;

    use futures::StreamExt;
    use futures::future::{BoxFuture, join_all};
    use tokio::time::timeout;

    use crate::conformance::runtime_fixture::{RuntimeFixture, WAIT_TIMEOUT, within};
    use crate::conformance::{Abort, Behavior, ensure, fail, skip};
    use crate::error::{RuntimeError, chain};
    use crate::runtime::{ContainerStatus, CreateRequest, LogsRequest, OutputStream};
    use crate::spec::{ContainerId, RunId, RunSpec};

    /// The 30 s limit of each call, and 5 s for a busy machine.
    const PAST_CALL_TIMEOUT: Duration = Duration::from_secs(35);

    type Call<'a> = BoxFuture<'a, Result<(), RuntimeError>>;

    /// Returns each call on a container, except `wait`.
    fn container_calls<'a>(
        fixture: &'a RuntimeFixture,
        container: &'a ContainerId,
    ) -> Vec<(&'static str, Call<'a>)> {
        let runtime = &*fixture.runtime;
        let mut calls: Vec<(&'static str, Call<'a>)> = vec![
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
        if fixture.capabilities().attach_before_start {
            let attach = async { runtime.attach(container, false).await.map(drop) };
            calls.push(("attach", Box::pin(attach)));
        }
        if fixture.capabilities().logs {
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

    /// Returns each call that has a time limit.
    fn engine_calls<'a>(
        fixture: &'a RuntimeFixture,
        container: &'a ContainerId,
        run: &'a RunId,
        spec: &'a RunSpec,
    ) -> Vec<(&'static str, Call<'a>)> {
        let runtime = &*fixture.runtime;
        let mut calls = container_calls(fixture, container);
        let create = async {
            let request =
                CreateRequest::new("moat-conformance-unreached", &fixture.root, run, spec);
            runtime.create(request).await.map(drop)
        };
        calls.push(("create", Box::pin(create)));
        calls.push((
            "engine",
            Box::pin(async { runtime.engine().await.map(drop) }),
        ));
        calls.push((
            "find",
            Box::pin(async { runtime.find(&fixture.root).await.map(drop) }),
        ));
        if fixture.capabilities().images {
            let name = &spec.settings().image;
            let inspect = async move { runtime.image_inspect(name).await.map(drop) };
            calls.push(("image_inspect", Box::pin(inspect)));
            let images = async { runtime.images().await.map(drop) };
            calls.push(("images", Box::pin(images)));
        }
        calls
    }

    pub(crate) async fn missing_container_is_not_found(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.create(&Behavior::new()).await?;
        fixture.runtime.remove(&container, true).await?;
        let wait = async { fixture.runtime.wait(&container).await.map(drop) };
        let mut calls = container_calls(fixture, &container);
        calls.push(("wait", Box::pin(wait)));
        for (name, call) in calls {
            match within(name, call).await? {
                Err(RuntimeError::NotFound { .. }) => {}
                Err(error) => return fail(format!("`{name}`: {}", chain(&error))),
                Ok(()) => return fail(format!("`{name}` succeeded")),
            }
        }
        Ok(())
    }

    pub(crate) async fn unreachable_engine_is_inconclusive(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new()).await?;
        let (run, spec) = (RunId::generate(), fixture.spec(&Behavior::new())?);
        fixture.harness.take_down().await?;
        for (name, call) in engine_calls(fixture, &container, &run, &spec) {
            match timeout(PAST_CALL_TIMEOUT, call).await {
                Ok(Err(error)) => ensure(!error.is_definitive(), || {
                    format!("`{name}`: {}", chain(&error))
                })?,
                Ok(Ok(())) => return fail(format!("`{name}` succeeded")),
                Err(_) => return fail(format!("`{name}` did not return")),
            }
        }
        fixture.harness.bring_back().await;
        let inspection = fixture.runtime.inspect(&container).await?;
        ensure(inspection.status == ContainerStatus::Running, || {
            format!("the status changed to {:?}", inspection.status)
        })
    }

    pub(crate) async fn interrupted_wait_is_inconclusive(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new()).await?;
        let mut wait = fixture.runtime.wait(&container);
        // Polls the future, so that the call is in flight.
        if let Ok(answer) = timeout(Duration::from_millis(300), &mut wait).await {
            return fail(format!("`wait` ended while the container runs: {answer:?}"));
        }
        fixture.harness.take_down().await?;
        if let Ok(answer) = timeout(WAIT_TIMEOUT, &mut wait).await {
            return match answer {
                Err(error) => ensure(!error.is_definitive(), || chain(&error)),
                Ok(status) => ensure(status.code.is_none(), || {
                    format!("`wait` returned {status:?}")
                }),
            };
        }
        // The runtime resumes the call.
        fixture.harness.bring_back().await;
        fixture.runtime.signal(&container, "SIGTERM").await?;
        let status = within("the resumed wait", wait).await??;
        ensure(status.code == Some(0), || {
            format!("`wait` returned {status:?}")
        })
    }

    pub(crate) async fn lost_connection_ends_the_stream(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        let (container, mut output) = fixture
            .start_attached(&Behavior::new().out("ready\n").waits_for_signal())
            .await?;
        match after_lost_connection(fixture, &container, &mut output).await? {
            AfterLoss::Error(error) => ensure(!error.is_definitive(), || chain(&error)),
            AfterLoss::End | AfterLoss::Resumed => Ok(()),
        }
    }

    pub(crate) async fn lost_connection_has_no_end_marker(
        fixture: &RuntimeFixture,
    ) -> Result<(), Abort> {
        fixture.require_attach()?;
        let mut marked = None;
        // An engine may mark the end of a terminal's output only.
        for tty in [false, true] {
            let behavior = Behavior::new().out("ready\n").waits_for_signal();
            let behavior = if tty { behavior.tty() } else { behavior };
            let container = fixture.create(&behavior).await?;
            let output = fixture.runtime.attach(&container, tty).await?;
            if output.end_marker {
                fixture.runtime.start(&container).await?;
                marked = Some((container, output.stream));
                break;
            }
        }
        let Some((container, mut output)) = marked else {
            return skip("the runtime has no end markers");
        };
        match after_lost_connection(fixture, &container, &mut output).await? {
            AfterLoss::Error(error) => ensure(!error.is_definitive(), || chain(&error)),
            AfterLoss::End => fail("the attachment ended as with its end marker"),
            AfterLoss::Resumed => Ok(()),
        }
    }

    /// The behavior of a stream whose connection was lost.
    enum AfterLoss {
        /// The stream ended with an error.
        Error(RuntimeError),
        /// The stream ended as at the end of the output.
        End,
        /// The stream was resumed, and ended after the container.
        Resumed,
    }

    /// Takes the engine down after the first output of a container that waits for a signal.
    async fn after_lost_connection(
        fixture: &RuntimeFixture,
        container: &ContainerId,
        output: &mut OutputStream,
    ) -> Result<AfterLoss, Abort> {
        let first = within("the first output", output.next()).await?;
        ensure(matches!(first, Some(Ok(_))), || {
            format!("the attachment yielded {first:?}")
        })?;
        fixture.harness.take_down().await?;
        match timeout(WAIT_TIMEOUT, end(output)).await {
            Ok(Some(error)) => return Ok(AfterLoss::Error(error)),
            Ok(None) => return Ok(AfterLoss::End),
            Err(_) => {}
        }
        fixture.harness.bring_back().await;
        fixture.runtime.signal(container, "SIGTERM").await?;
        match within("the end of the stream", end(output)).await? {
            Some(error) => fail(format!("the resumed stream: {}", chain(&error))),
            None => Ok(AfterLoss::Resumed),
        }
    }

    /// Reads a stream to its end, and returns its error.
    async fn end(output: &mut OutputStream) -> Option<RuntimeError> {
        loop {
            match output.next().await {
                Some(Ok(_)) => {}
                end => return end.and_then(Result::err),
            }
        }
    }

    pub(crate) async fn silent_engine_times_out(fixture: &RuntimeFixture) -> Result<(), Abort> {
        let container = fixture.start_ready(Behavior::new()).await?;
        let (run, spec) = (RunId::generate(), fixture.spec(&Behavior::new())?);
        fixture.harness.silence().await?;
        let calls = engine_calls(fixture, &container, &run, &spec);
        // Concurrently, because each call takes 30 s.
        let (names, calls): (Vec<_>, Vec<_>) = calls.into_iter().unzip();
        let answers = join_all(
            calls
                .into_iter()
                .map(|call| timeout(PAST_CALL_TIMEOUT, call)),
        )
        .await;
        for (name, answer) in names.into_iter().zip(answers) {
            match answer {
                Ok(Err(error)) => ensure(!error.is_definitive(), || {
                    format!("`{name}`: {}", chain(&error))
                })?,
                Ok(Ok(())) => return fail(format!("`{name}` succeeded")),
                Err(_) => return fail(format!("`{name}` did not return within 30 s")),
            }
        }
        Ok(())
    }
}

//! The calls about containers: create, start, output, wait, remove, list.

use std::time::{Duration, SystemTime};

use bollard::query_parameters::{
    CreateContainerOptions, KillContainerOptions, RemoveContainerOptions, StartContainerOptions,
};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::sleep;

use super::client::{Client, NO_TIMEOUT, path_segment};
use super::connection::{Answer, Call, exchange};
use super::create::{self, LogDriver};
use super::errors::{Failure, Refusal};
use super::output::Output;
use super::{events, inspect};
use crate::error::RuntimeError;
use crate::outcome::Usage;
use crate::runtime::{
    Continuity, CreateRequest, Created, Inspection, LabeledContainer, LogsRequest, OutputStream,
    OwnedContainer, WaitStatus,
};
use crate::spec::{ContainerId, RootId};

/// The interval at which a container that is being removed is inspected.
const REMOVAL_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The maximum size of the response to a wait.
const MAX_WAIT_BYTES: usize = 64 << 10;

impl Client {
    pub(super) async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        const OPERATION: &str = "create the container";
        let settings = request.spec.settings();
        let sources = create::unchecked_sources(settings, self.podman);
        if !sources.is_empty()
            && let roots = self.dialer.roots_of_engine().await
            && let Some(source) = create::missing_source(&sources, &roots)
        {
            return Err(RuntimeError::Rejected {
                operation: OPERATION,
                reason: format!("the source {source:?} of a mount does not exist"),
            });
        }
        let driver = LogDriver::for_backstop(settings.backstop);
        let mut created = self.create_with_log(&request, driver).await;
        // The engine merges its defaults for `json-file` into our options. If they set a buffer
        // size, the engine refuses that together with our `blocking`. It does not merge them into
        // another driver's options.
        let merged = |refusal: &Refusal| {
            driver == LogDriver::JsonFile && refusal.message_contains("max-buffer-size")
        };
        if let Err(failure) = &created
            && failure.refusal(merged).is_some()
        {
            created = self.create_with_log(&request, LogDriver::Local).await;
        }
        let created =
            created.map_err(|failure| match failure.refusal(Refusal::is_no_such_image) {
                Some(refusal) => RuntimeError::NoSuchImage {
                    image: settings.image.clone(),
                    reason: refusal.message.clone(),
                },
                None => failure.error(OPERATION, &self.address),
            })?;
        if let Err(error) = self.write_secrets(&created.container, request.spec).await {
            // Best effort: the owner of the run removes what is left.
            let _ = self.remove(&created.container, true).await;
            return Err(error);
        }
        Ok(created)
    }

    async fn create_with_log(
        &self,
        request: &CreateRequest<'_>,
        driver: LogDriver,
    ) -> Result<Created, Failure> {
        let mut body = create::body(request, driver, self.podman);
        if let Some(patch) = request.view().patch() {
            body = create::apply_patch(body, patch)
                .map_err(|error| Failure::Refused(Refusal::new(400, &error.to_string())))?;
        }
        let options = CreateContainerOptions {
            name: Some(request.name.to_owned()),
            platform: request.spec.settings().platform.clone().unwrap_or_default(),
        };
        let created = self
            .bollard_call(self.bollard.create_container(Some(options), body))
            .await?;
        Ok(Created {
            container: ContainerId::new(created.id),
            warnings: created.warnings,
        })
    }

    pub(super) async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let started = async {
            let id = path_segment(container)?;
            let options = None::<StartContainerOptions>;
            self.bollard_call(self.bollard.start_container(id, options))
                .await
        };
        started.await.map_err(self.error("start the container"))
    }

    pub(super) async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        let status = self.wait_status(container).await;
        status.map_err(self.error("wait for the container"))
    }

    async fn wait_status(&self, container: &ContainerId) -> Result<WaitStatus, Failure> {
        let call = Call::post(self.container_path(container, "/wait")?);
        let call = call.query("condition", "not-running");
        // Some engines send the response head only once the container has exited.
        let answer = exchange(&self.dialer, call, NO_TIMEOUT).await?;
        let mut answer = answer.error_for_status(self.timeout).await?;
        let mut json = Vec::new();
        while let Some(data) = answer.data().await {
            json.extend_from_slice(&data?);
            if let Some(status) = inspect::wait_status(&json)? {
                return Ok(status);
            }
            if json.len() > MAX_WAIT_BYTES {
                break;
            }
        }
        Err(Failure::Broken("the response is incomplete".into()))
    }

    pub(super) async fn inspect(
        &self,
        container: &ContainerId,
    ) -> Result<Inspection, RuntimeError> {
        let inspection = self.inspection(container).await;
        inspection.map_err(self.error("inspect the container"))
    }

    async fn inspection(&self, container: &ContainerId) -> Result<Inspection, Failure> {
        let call = Call::get(self.container_path(container, "/json")?);
        let json = self.fetch(call).await?;
        inspect::inspection(&json, self.podman)
    }

    pub(super) async fn continuity(
        &self,
        container: &ContainerId,
    ) -> Result<Continuity, RuntimeError> {
        if self.podman {
            // Each container has a separate monitor process, which reads and keeps its output.
            return Ok(Continuity::Unbroken);
        }
        let continuity = async {
            let first = self.past_events().await?;
            match events::continuity(&first, container)? {
                Continuity::Broken => {
                    events::confirmed(&first, &self.past_events().await?, container)
                }
                continuity => Ok(continuity),
            }
        };
        continuity.await.map_err(self.error("list its events"))
    }

    /// Reads the events that the engine has in memory.
    async fn past_events(&self) -> Result<Bytes, Failure> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        // A limit in whole seconds would exclude the most recent events.
        let now = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let call = Call::get(self.path("/events"))
            .query("since", "1")
            .query("until", &now);
        self.fetch(call).await
    }

    pub(super) async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        match request.follow && self.podman {
            true => self.follow_log(container, request).await,
            false => self.read_log(container, request).await,
        }
    }

    /// Reads the log in one request.
    pub(super) async fn read_log(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        const OPERATION: &str = "read the container's log";
        // A terminal's log has no frames, so its times cannot be told from its bytes.
        let timestamps = request.timestamps && !request.tty;
        let answer = self.open_log(container, &request, timestamps).await;
        let answer = answer.map_err(self.error(OPERATION))?;
        let address = self.address.clone();
        Ok(Output::of_log(answer, request.tty, timestamps, OPERATION, address).boxed())
    }

    /// Requests the engine's log, each record of which begins with its time stamp if asked for.
    pub(super) async fn open_log(
        &self,
        container: &ContainerId,
        request: &LogsRequest,
        timestamps: bool,
    ) -> Result<Answer, Failure> {
        let timestamps = if timestamps { "1" } else { "0" };
        let follow = if request.follow { "1" } else { "0" };
        let tail = request.tail.map_or("all".to_owned(), |n| n.to_string());
        let call = Call::get(self.container_path(container, "/logs")?)
            .query("stdout", "1")
            .query("stderr", "1")
            .query("timestamps", timestamps)
            .query("follow", follow)
            .query("tail", &tail);
        let answer = self.send(call).await;
        match answer {
            // The end of a log is a proof. Live output that follows it proves nothing.
            Ok(answer) if !request.follow => answer.with_marked_end(),
            // The log is removed with the container, so a missing container is definitive.
            Err(failure) if failure.refusal(Refusal::is_marked_for_removal).is_some() => {
                match self.with_timeout(self.wait_removed(container)).await {
                    Ok(()) => Err(Failure::Refused(Refusal::no_such_container(container))),
                    Err(_) => Err(failure),
                }
            }
            answer => answer,
        }
    }

    pub(super) async fn signal(
        &self,
        container: &ContainerId,
        signal: &str,
    ) -> Result<(), RuntimeError> {
        const OPERATION: &str = "signal the container";
        let signaled = async {
            let id = path_segment(container)?;
            let signal = signal.to_owned();
            let options = KillContainerOptions { signal };
            self.bollard_call(self.bollard.kill_container(id, Some(options)))
                .await
        };
        signaled.await.map_err(|failure| match &failure {
            // Older engines respond with status 500.
            Failure::Refused(refusal) if refusal.message_contains("is not running") => {
                RuntimeError::Conflict {
                    operation: OPERATION,
                    reason: refusal.message.clone(),
                }
            }
            _ => failure.error(OPERATION, &self.address),
        })
    }

    pub(super) async fn remove(
        &self,
        container: &ContainerId,
        force: bool,
    ) -> Result<(), RuntimeError> {
        let removed = self.with_timeout(async {
            let id = path_segment(container)?;
            let options = RemoveContainerOptions {
                v: true,
                force,
                link: false,
            };
            let removed = self
                .bollard_call(self.bollard.remove_container(id, Some(options)))
                .await;
            match removed {
                // A concurrent removal can still fail. Only the container's absence is
                // definitive.
                Err(failure) if failure.refusal(Refusal::is_being_removed).is_some() => {
                    self.wait_removed(container).await
                }
                removed => removed,
            }
        });
        removed.await.map_err(self.error("remove the container"))
    }

    /// Waits until a container that is being removed is gone.
    async fn wait_removed(&self, container: &ContainerId) -> Result<(), Failure> {
        loop {
            match self.inspection(container).await {
                Err(failure) if failure.refusal(Refusal::is_no_such_container).is_some() => {
                    return Ok(());
                }
                Err(failure @ (Failure::Unreachable(_) | Failure::Timeout(_))) => {
                    return Err(failure);
                }
                // During a removal, an engine can respond with other errors.
                _ => sleep(REMOVAL_POLL_INTERVAL).await,
            }
        }
    }

    pub(super) async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        let label = format!("{}={root}", create::ROOT_LABEL);
        let found = self
            .list(&label)
            .await
            .and_then(|json| inspect::owned(&json));
        found.map_err(self.error("list the containers"))
    }

    pub(super) async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        let json = self.list(create::ROOT_LABEL).await;
        let found = json.and_then(|json| inspect::labeled(&json));
        found.map_err(self.error("list the containers"))
    }

    /// Lists the containers with a label, in any state.
    async fn list(&self, label: &str) -> Result<Bytes, Failure> {
        let filters = serde_json::json!({"label": [label]}).to_string();
        let call = Call::get(self.path("/containers/json"))
            .query("all", "1")
            .query("filters", &filters);
        self.fetch(call).await
    }

    pub(super) async fn stats(&self, container: &ContainerId) -> Result<Usage, RuntimeError> {
        const OPERATION: &str = "read the container's resource usage";
        let usage = async {
            let call = Call::get(self.container_path(container, "/stats")?)
                .query("stream", "0")
                .query("one-shot", "1");
            inspect::usage(&self.fetch(call).await?)
        };
        let usage = usage.await.map_err(self.error(OPERATION))?;
        usage.ok_or_else(|| RuntimeError::Conflict {
            operation: OPERATION,
            reason: "the container is not running".into(),
        })
    }
}

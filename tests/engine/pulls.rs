//! Pulls from a registry on this machine.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bollard::query_parameters::RemoveImageOptionsBuilder;
use moat::outcome::StopCause;
use moat::runtime::RuntimeError;
use moat::spec::{Pull, PullOptions};
use moat::state::State;
use moat::tokio_util::sync::CancellationToken;
use moat::{Error, Manager, Outcome, RunSpec};
use serde_json::json;
use testkit::deadline::within;
use testkit::harness::Trial;
use testkit::registry::{self, Answer, Registry};
use testkit::{engine, image};

use crate::stage::{Stage, end, read};

testkit::trials! {
    on_registry:
        newer_pulls_an_image_that_changed,
        newer_uses_the_local_image_without_a_registry,
        a_registry_that_is_overloaded_is_asked_again,
        an_image_that_is_unknown_is_not_asked_for_again,
        a_registry_that_stalls_fails_the_pull,
        a_stop_ends_the_pause_before_a_retry,
        an_image_is_pulled_described_and_removed,
}

/// A trial on the engine, with a registry beside it.
fn on_registry(name: &str, trial: impl AsyncFnOnce(&Stage, Hub) + Send + 'static) -> Trial {
    let trial = async move |stage: &Stage| trial(stage, Hub::new(stage).await).await;
    crate::on_engine(name, trial).needs(registry::need())
}

/// A registry, and its image. Dropped, it removes all versions of the image from the engine.
struct Hub {
    registry: Registry,
    docker: bollard::Docker,
    image: String,
    ids: Mutex<Vec<String>>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        let ids = self.ids.lock().unwrap().clone();
        engine::block_on(async {
            for image in ids {
                remove(&self.docker, &image).await;
            }
        });
    }
}

/// Removes an image, unless the engine does not have it.
async fn remove(docker: &bollard::Docker, image: &str) {
    let options = RemoveImageOptionsBuilder::new().force(true).build();
    let _ = docker.remove_image(image, Some(options), None).await;
}

impl Hub {
    async fn new(stage: &Stage) -> Self {
        let registry = Registry::listen().await.unwrap();
        let hub = Self {
            image: registry.name("moat/image:1"),
            registry,
            docker: stage.docker.clone(),
            ids: Mutex::default(),
        };
        hub.store("1");
        hub
    }

    /// Stores the image in this version. Its id differs from those of other trials.
    fn store(&self, version: &str) {
        let config = json!({"Entrypoint": ["/workload"], "Env": [format!("VERSION={version} of {}", self.image)]});
        let layer = image::layer().unwrap();
        let ids = self.registry.store("moat/image", "1", layer, &config);
        self.ids.lock().unwrap().extend(ids);
    }

    fn spec(&self, pull: Pull) -> RunSpec {
        RunSpec::new(&self.image)
            .cmd(["exit", "0"])
            .network("none")
            .pull(pull)
    }
}

/// Runs `spec`, and returns its outcome and its reports of fallbacks.
async fn run(manager: &Manager, spec: RunSpec) -> (Result<Outcome, Error>, Vec<String>) {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&reports);
    let spec = spec.on_pull(move |progress| {
        if progress.fallback {
            seen.lock().unwrap().push(progress.status);
        }
    });
    let outcome = match manager.start(spec).await {
        Ok(run) => Ok(end(&run).await),
        Err(error) => Err(error),
    };
    let reports = reports.lock().unwrap().clone();
    (outcome, reports)
}

async fn newer_pulls_an_image_that_changed(stage: &Stage, hub: Hub) {
    let manager = stage.manager().await;
    let digest = async |pull| {
        let (outcome, reports) = run(&manager, hub.spec(pull)).await;
        assert_eq!(reports, [""; 0]);
        read(&outcome.unwrap()).all("started")[0]["image_digest"].clone()
    };
    let first = digest(Pull::Newer).await;
    hub.store("2");
    assert_eq!(digest(Pull::Missing).await, first);
    assert_ne!(digest(Pull::Newer).await, first);
    stage.is_clean().await;
}

async fn newer_uses_the_local_image_without_a_registry(stage: &Stage, mut hub: Hub) {
    let manager = stage.manager().await;
    let (outcome, _) = run(&manager, hub.spec(Pull::Newer)).await;
    let started = read(&outcome.unwrap()).all("started")[0].clone();
    assert_eq!(started["warnings"], json!([]));
    // The old one no longer listens.
    hub.registry = Registry::listen().await.unwrap();

    let (outcome, reports) = run(&manager, hub.spec(Pull::Newer)).await;
    let outcome = outcome.unwrap();
    assert!(outcome.success(), "{outcome}");
    assert_eq!(reports.len(), 1, "{reports:?}");
    let reason = format!(
        "the local image {} is used, because the pull failed",
        hub.image
    );
    assert!(reports[0].starts_with(&reason), "{reports:?}");
    assert!(reports[0].contains("connection refused"), "{reports:?}");
    let started = read(&outcome).all("started")[0].clone();
    assert_eq!(started["warnings"], json!(reports));

    remove(&stage.docker, &hub.image).await;
    let (outcome, reports) = run(&manager, hub.spec(Pull::Newer)).await;
    let Err(Error::NotStarted { source, .. }) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(reports, [""; 0]);
    assert!(
        matches!(source, RuntimeError::NoSuchImage { .. }),
        "{source}"
    );
    assert!(
        source.to_string().contains("connection refused"),
        "{source}"
    );
    stage.is_clean().await;
}

async fn a_registry_that_is_overloaded_is_asked_again(stage: &Stage, hub: Hub) {
    let manager = stage.manager().await;
    for status in [503, 429] {
        hub.registry.answer(Answer::Refuse(status));
        let (answer, pauses) = (hub.registry.answerer(), pauses());
        let seen = pauses.clone();
        let spec = hub.spec(Pull::Always).on_pull(move |progress| {
            if progress.status.starts_with("Retrying in ") {
                seen.lock().unwrap().push(progress.status);
                answer(Answer::Manifest);
            }
        });
        let outcome = end(&manager.start(spec).await.unwrap()).await;
        assert!(outcome.success(), "{outcome}");
        let pauses = pauses.lock().unwrap();
        assert_eq!(pauses.len(), 1, "{pauses:?}");
        assert!(pauses[0].starts_with("Retrying in 1 s: "), "{pauses:?}");
    }
    stage.is_clean().await;
}

fn pauses() -> Arc<Mutex<Vec<String>>> {
    Arc::default()
}

async fn an_image_that_is_unknown_is_not_asked_for_again(stage: &Stage, hub: Hub) {
    let manager = stage.manager().await;
    let pauses = pauses();
    let seen = pauses.clone();
    let spec = RunSpec::new(hub.registry.name("moat/none:1")).on_pull(move |progress| {
        seen.lock().unwrap().push(progress.status);
    });
    let Err(Error::NotStarted { source, .. }) = manager.start(spec).await else {
        panic!("a run without an image started");
    };
    assert!(
        matches!(source, RuntimeError::NoSuchImage { .. }),
        "{source}"
    );
    let pauses = pauses.lock().unwrap();
    let retried = pauses.iter().any(|status| status.contains("Retrying"));
    assert!(!retried, "{pauses:?}");
}

async fn a_registry_that_stalls_fails_the_pull(stage: &Stage, hub: Hub) {
    let manager = stage.manager().await;
    hub.registry.answer(Answer::Stall);
    let spec = hub.spec(Pull::Always).pull_retries(0);
    let spec = spec.pull_stall_timeout(Duration::from_secs(2));
    let started = within(20, "the end of the pull", manager.start(spec)).await;
    let Err(Error::NotStarted { source, .. }) = started else {
        panic!("a run without an image started");
    };
    let limit = Duration::from_secs(2);
    assert!(
        matches!(source, RuntimeError::Timeout { after, .. } if after == limit),
        "{source}"
    );
    stage.is_clean().await;
}

/// A stop does not wait for the next attempt.
async fn a_stop_ends_the_pause_before_a_retry(stage: &Stage, hub: Hub) {
    let manager = stage.manager().await;
    hub.registry.answer(Answer::Refuse(503));
    let stop = CancellationToken::new();
    let (token, stopped) = (stop.clone(), Arc::new(Mutex::new(None)));
    let at = stopped.clone();
    let spec = hub.spec(Pull::Always).pull_retries(100).stop_when(stop);
    let spec = spec.on_pull(move |progress| {
        // The third pause is 4 s.
        if progress.status.starts_with("Retrying in 4 s: ") {
            *at.lock().unwrap() = Some(Instant::now());
            token.cancel();
        }
    });
    let started = within(60, "the end of the pull", manager.start(spec)).await;
    let Err(Error::NotStarted { outcome, .. }) = started else {
        panic!("a run without an image started");
    };
    assert_eq!(outcome.stopped(), Some(StopCause::Cancelled), "{outcome}");
    let stopped = stopped.lock().unwrap().expect("the third pause");
    assert!(stopped.elapsed() < Duration::from_secs(3));
    stage.is_clean().await;
}

async fn an_image_is_pulled_described_and_removed(stage: &Stage, hub: Hub) {
    let manager = stage.manager().await;
    let image = manager.image(&hub.image);
    assert!(!image.exists().await.unwrap());
    let layers = Arc::new(Mutex::new(0));
    let seen = layers.clone();
    let options = PullOptions::new().on_progress(move |progress| {
        *seen.lock().unwrap() += usize::from(progress.layer.is_some());
    });
    let pulled = image.pull(options).await.unwrap();
    assert!(*layers.lock().unwrap() > 0, "no progress of a layer");
    assert!(pulled.id.starts_with("sha256:"), "{pulled:?}");
    assert_eq!(pulled.tags, [hub.image.as_str()]);
    let repository = hub.image.trim_end_matches(":1");
    let digest = &pulled.digests[0];
    assert!(digest.starts_with(&format!("{repository}@sha256:")));
    let platform = pulled.platform.clone().unwrap();
    assert!(platform.starts_with("linux/"), "{platform}");
    assert!(pulled.size >= image::layer().unwrap().len() as u64 / 2);
    assert_eq!(pulled.created, None);
    let listed = manager.images().await.unwrap();
    let listed = listed.iter().find(|listed| listed.id == pulled.id);
    assert_eq!(listed.unwrap().tags, pulled.tags);

    let spec = hub.spec(Pull::Never).cmd(["hold"]);
    let run = manager.start(spec).await.unwrap();
    let error = image.remove(false).await.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::Runtime(RuntimeError::Conflict { .. })),
        "{text}"
    );
    assert!(text.contains(&hub.image), "{text}");
    assert!(text.contains("remove the containers"), "{text}");
    // Only the name is removed: the container still runs.
    assert!(image.remove(true).await.unwrap());
    assert!(!image.exists().await.unwrap());
    assert!(matches!(run.state(), State::Running { .. }));
    let nameless = manager.image(&pulled.id);
    assert_eq!(nameless.inspect().await.unwrap().tags, [""; 0]);
    run.kill().await.unwrap();
    stage.is_clean().await;
    assert!(nameless.remove(false).await.unwrap());
    assert!(!nameless.remove(false).await.unwrap());
}

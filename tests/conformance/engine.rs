//! The harness of Docker, and of engines that are compatible with it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bollard::query_parameters::RemoveImageOptionsBuilder;
use moat::conformance::{Behavior, RuntimeHarness, Step, Unsupported};
use moat::outcome::Stream;
use moat::runtime::Runtime;
use moat::spec::{ExecSpec, Pull};
use moat::{Docker, RunId, RunSpec};
use serde_json::json;
use tempfile::TempDir;
use testkit::engine::{block_on, connect};
use testkit::image;
use testkit::proxy::Proxy;
use tokio::sync::OnceCell;

/// An engine with a proxy per case, which can cut the connection.
pub struct EngineHarness {
    dir: TempDir,
    proxy: OnceCell<Proxy>,
    /// The id of an image that a case may remove.
    removable: OnceLock<String>,
}

/// Removes an image that a case left.
impl Drop for EngineHarness {
    fn drop(&mut self) {
        let Some(id) = self.removable.get() else {
            return;
        };
        block_on(async {
            let options = RemoveImageOptionsBuilder::new().force(true).build();
            if let Ok(docker) = connect() {
                let _ = docker.remove_image(id, Some(options), None).await;
            }
        });
    }
}

impl EngineHarness {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            proxy: OnceCell::new(),
            removable: OnceLock::new(),
        }
    }

    /// Fails if the engine has no Unix socket to proxy.
    fn proxy(&self) -> Result<&Proxy, Unsupported> {
        self.proxy
            .get()
            .ok_or_else(|| "the engine has no Unix socket to proxy".into())
    }
}

/// Returns the Unix socket of the engine, if it has one.
fn socket() -> Option<PathBuf> {
    match std::env::var("DOCKER_HOST") {
        Ok(host) => Some(PathBuf::from(host.strip_prefix("unix://")?)),
        Err(_) => Some("/var/run/docker.sock".into()),
    }
}

/// Returns the name of the test image.
fn image() -> Result<String, Unsupported> {
    static IMAGE: OnceLock<Result<String, String>> = OnceLock::new();
    let image =
        IMAGE.get_or_init(|| block_on(async { image::provide_with_shell(&connect()?).await }));
    Ok(image.clone()?)
}

#[async_trait]
impl RuntimeHarness for EngineHarness {
    async fn runtime(&self) -> Result<Arc<dyn Runtime>, Unsupported> {
        let connected = match socket() {
            None => Docker::connect().await,
            Some(socket) => {
                let proxy = Proxy::for_socket(socket, self.dir.path());
                let proxy = proxy.map_err(|error| error.to_string())?;
                let address = proxy.address();
                let _ = self.proxy.set(proxy);
                Docker::connect_to(&address).await
            }
        };
        Ok(Arc::new(connected.map_err(|error| error.to_string())?))
    }

    fn spec(&self, behavior: &Behavior) -> Result<RunSpec, Unsupported> {
        // Podman ignores the entrypoint of an imported image.
        let spec = RunSpec::new(image()?)
            .entrypoint(["/workload"])
            .network("none");
        if behavior.command_not_found {
            return Ok(spec.entrypoint(["/nonexistent"]));
        }
        Ok(spec.cmd(arguments(behavior)?))
    }

    fn exec(&self, behavior: &Behavior) -> Result<ExecSpec, Unsupported> {
        let program = std::iter::once("/workload".to_owned());
        Ok(ExecSpec::new(program.chain(arguments(behavior)?)))
    }

    fn refused(&self) -> Result<RunSpec, Unsupported> {
        let patch = json!({"HostConfig": {"AutoRemove": true}});
        Ok(RunSpec::new("any").engine_patch(patch))
    }

    fn no_image(&self) -> Result<RunSpec, Unsupported> {
        Ok(RunSpec::new("moat-conformance/none:none").pull(Pull::Never))
    }

    async fn removable_image(&self) -> Result<String, Unsupported> {
        let tag = RunId::generate();
        let name = format!("localhost/moat-conformance:{tag}");
        // With containerd's store, the removal of an image can take a layer from under a create.
        let layer = image::unique_layer(tag.as_str()).map_err(|error| error.to_string())?;
        let config = json!({"Entrypoint": ["/none"]});
        let docker = connect()?;
        image::load(&docker, &name, layer, &config).await?;
        let loaded = docker.inspect_image(&name).await;
        let loaded = loaded.map_err(|error| error.to_string())?;
        let _ = self.removable.set(loaded.id.unwrap_or_default());
        Ok(name)
    }

    async fn take_down(&self) -> Result<(), Unsupported> {
        self.proxy()?.down();
        Ok(())
    }

    async fn silence(&self) -> Result<(), Unsupported> {
        self.proxy()?.freeze();
        Ok(())
    }

    async fn bring_back(&self) {
        if let Ok(proxy) = self.proxy() {
            proxy.thaw();
            proxy.up();
        }
    }
}

/// Returns the arguments of the workload program for `behavior`.
pub fn arguments(behavior: &Behavior) -> Result<Vec<String>, Unsupported> {
    let mut arguments = Vec::new();
    let mut step = |text: String, stream: Option<Stream>| {
        arguments.extend(text.split(' ').map(str::to_owned));
        if stream == Some(Stream::Stderr) {
            arguments.extend(["--stream", "err"].map(str::to_owned));
        }
        arguments.push("+".into());
    };
    if behavior.ignores_sigterm {
        step("ignore-term".into(), None);
    } else if behavior.waits_for_signal {
        step(format!("on-term {}", behavior.exit), None);
    }
    for done in &behavior.steps {
        match done {
            Step::Print(stream, bytes) => {
                let mut text = "hex ".to_owned();
                for byte in bytes {
                    let _ = write!(text, "{byte:02x}");
                }
                step(text, Some(*stream));
            }
            Step::Lines(stream, count) => step(format!("count {count}"), Some(*stream)),
            Step::Echo => step("cat".into(), None),
            Step::Pause(duration) => step(format!("sleep {}", duration.as_secs_f64()), None),
            step => return Err(format!("the workload does not support {step:?}").into()),
        }
    }
    if behavior.waits_for_signal {
        step("hold".into(), None);
    }
    step(format!("exit {}", behavior.exit), None);
    arguments.pop();
    Ok(arguments)
}

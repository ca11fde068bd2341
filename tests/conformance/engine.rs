//! Docker, or an engine with its protocol, for the suite.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use moat::conformance::{Behaviour, RuntimeHarness, Step, Unsupported};
use moat::outcome::Stream;
use moat::runtime::Runtime;
use moat::spec::{ExecSpec, Pull};
use moat::{Docker, RunSpec};
use tempfile::TempDir;
use testkit::engine::{block_on, connect};
use testkit::image;
use testkit::proxy::Proxy;
use tokio::sync::OnceCell;

/// An engine behind a proxy that can be taken down.
pub struct Stage {
    dir: TempDir,
    proxy: OnceCell<Proxy>,
}

impl Stage {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            proxy: OnceCell::new(),
        }
    }

    /// `None` if the engine has no socket for a proxy.
    fn proxy(&self) -> Unsupported<&Proxy> {
        self.proxy
            .get()
            .ok_or_else(|| "there is no proxy before an engine without a socket".into())
    }
}

/// The socket of the engine, if it has one.
fn socket() -> Option<PathBuf> {
    match std::env::var("DOCKER_HOST") {
        Ok(host) => Some(PathBuf::from(host.strip_prefix("unix://")?)),
        Err(_) => Some("/var/run/docker.sock".into()),
    }
}

/// The test image.
fn image() -> Unsupported<String> {
    static IMAGE: std::sync::OnceLock<Unsupported<String>> = std::sync::OnceLock::new();
    IMAGE
        .get_or_init(|| block_on(async { image::provide(&connect()?).await }))
        .clone()
}

#[async_trait]
impl RuntimeHarness for Stage {
    async fn runtime(&self) -> Unsupported<Arc<dyn Runtime>> {
        let connected = match socket() {
            None => Docker::connect().await,
            Some(socket) => {
                let proxy = Proxy::before_socket(socket, self.dir.path());
                let proxy = proxy.map_err(|error| error.to_string())?;
                let address = proxy.address();
                let _ = self.proxy.set(proxy);
                Docker::connect_to(&address).await
            }
        };
        Ok(Arc::new(connected.map_err(|error| error.to_string())?))
    }

    fn spec(&self, behaviour: &Behaviour) -> Unsupported<RunSpec> {
        // With its entrypoint: Podman ignores that of an import.
        let spec = RunSpec::new(image()?)
            .entrypoint(["/workload"])
            .network("none");
        if behaviour.command_not_found {
            return Ok(spec.entrypoint(["/nonexistent"]));
        }
        Ok(spec.cmd(words(behaviour)?))
    }

    fn exec(&self, behaviour: &Behaviour) -> Unsupported<ExecSpec> {
        let program = std::iter::once("/workload".to_owned());
        Ok(ExecSpec::new(program.chain(words(behaviour)?)))
    }

    fn refused(&self) -> Unsupported<RunSpec> {
        let patch = serde_json::json!({"HostConfig": {"AutoRemove": true}});
        Ok(RunSpec::new("any").engine_patch(patch))
    }

    fn no_image(&self) -> Unsupported<RunSpec> {
        Ok(RunSpec::new("moat-conformance/none:none").pull(Pull::Never))
    }

    async fn take_down(&self) -> Unsupported<()> {
        self.proxy()?.down();
        Ok(())
    }

    async fn silence(&self) -> Unsupported<()> {
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

/// The steps of the workload for a behavior.
fn words(behaviour: &Behaviour) -> Unsupported<Vec<String>> {
    let mut words = Vec::new();
    let mut step = |text: String, stream: Option<Stream>| {
        words.extend(text.split(' ').map(str::to_owned));
        if stream == Some(Stream::Stderr) {
            words.extend(["--stream", "err"].map(str::to_owned));
        }
        words.push("+".into());
    };
    if behaviour.ignores_sigterm {
        step("deaf".into(), None);
    } else if behaviour.waits_for_signal {
        step(format!("on-term {}", behaviour.exit), None);
    }
    for done in &behaviour.steps {
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
            step => return Err(format!("the workload has no word for {step:?}")),
        }
    }
    if behaviour.waits_for_signal {
        step("hold".into(), None);
    }
    step(format!("exit {}", behaviour.exit), None);
    words.pop();
    Ok(words)
}

//! The harness of a Kubernetes cluster: the context that `MOAT_KUBE` names.
//!
//! The image is loaded into the engine of this machine, which is also the engine of a cluster that
//! `tests/engines/kubernetes` starts. With `MOAT_TEST_IMAGE`, another cluster pulls that image.

use std::fs;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use kube::config::Kubeconfig;
use moat::RunSpec;
use moat::conformance::{Behavior, RuntimeHarness, Unsupported};
use moat::runtime::Runtime;
use moat::runtime::kubernetes::{ClusterOptions, Kubernetes};
use moat::spec::{ExecSpec, Pull};
use tempfile::TempDir;
use testkit::cluster::context;
use testkit::engine::{block_on, connect};
use testkit::image;
use testkit::relay::Relay;
use tokio::sync::OnceCell;

use crate::engine::arguments;

/// A cluster with a relay per case, which can cut the connection.
///
/// The relay passes TLS to the server unchanged. So the server's certificate must name `127.0.0.1`,
/// or the kubeconfig a `tls-server-name`.
pub struct ClusterHarness {
    dir: TempDir,
    relay: OnceCell<Relay>,
}

impl ClusterHarness {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            relay: OnceCell::new(),
        }
    }

    /// Returns the relay, which exists once the runtime is connected.
    fn relay(&self) -> Result<&Relay, Unsupported> {
        self.relay.get().ok_or_else(|| "there is no relay".into())
    }

    /// Starts the relay, and connects through it.
    async fn connect(&self) -> Result<Kubernetes, String> {
        let context = context();
        let mut config = Kubeconfig::read().map_err(|error| error.to_string())?;
        let contexts = config.contexts.iter();
        let selected = contexts.filter(|named| named.name == context);
        let selected = selected.filter_map(|named| named.context.as_ref());
        let name = selected.map(|context| context.cluster.clone()).next();
        let name = name.ok_or_else(|| format!("there is no context {context}"))?;
        let mut clusters = config.clusters.iter_mut();
        let cluster = clusters.find(|cluster| cluster.name == name);
        let cluster = cluster.and_then(|named| named.cluster.as_mut());
        let server = cluster.and_then(|cluster| cluster.server.as_mut());
        let server = server.ok_or_else(|| format!("cluster {name} has no server"))?;
        let target = server.strip_prefix("https://").map(str::to_owned);
        let target = target.ok_or_else(|| format!("{server} has no TLS"))?;
        let relay = Relay::listen(target.trim_end_matches('/').to_owned()).await;
        let relay = relay.map_err(|error| error.to_string())?;
        *server = format!("https://{}", relay.address());
        let _ = self.relay.set(relay);
        let path = self.dir.path().join("kubeconfig");
        let text = serde_json::to_string(&config).map_err(|error| error.to_string())?;
        fs::write(&path, text).map_err(|error| error.to_string())?;
        let options = ClusterOptions::default().kubeconfig(path).context(context);
        let connected = Kubernetes::connect_with(options).await;
        connected.map_err(|error| error.chain())
    }
}

fn image() -> Result<String, Unsupported> {
    static IMAGE: OnceLock<Result<String, String>> = OnceLock::new();
    let image = IMAGE.get_or_init(|| block_on(async { image::provide(&connect()?).await }));
    Ok(image.clone()?)
}

#[async_trait]
impl RuntimeHarness for ClusterHarness {
    async fn runtime(&self) -> Result<Arc<dyn Runtime>, Unsupported> {
        Ok(Arc::new(self.connect().await?))
    }

    fn spec(&self, behavior: &Behavior) -> Result<RunSpec, Unsupported> {
        let spec = RunSpec::new(image()?).network("host");
        if behavior.command_not_found {
            return Ok(spec.entrypoint(["/nonexistent"]));
        }
        Ok(spec.entrypoint(["/workload"]).cmd(arguments(behavior)?))
    }

    fn exec(&self, behavior: &Behavior) -> Result<ExecSpec, Unsupported> {
        let program = std::iter::once("/workload".to_owned());
        Ok(ExecSpec::new(program.chain(arguments(behavior)?)))
    }

    fn refused(&self) -> Result<RunSpec, Unsupported> {
        let patch = serde_json::json!({"spec": {"restartPolicy": "Always"}});
        Ok(RunSpec::new("any").cmd(["true"]).engine_patch(patch))
    }

    fn listening(&self, port: u16) -> Result<RunSpec, Unsupported> {
        let spec = RunSpec::new(image()?).network("host");
        Ok(spec
            .entrypoint(["/workload"])
            .cmd(["serve".to_owned(), port.to_string()]))
    }

    fn no_image(&self) -> Result<RunSpec, Unsupported> {
        let spec = RunSpec::new("moat-conformance/none:none").cmd(["true"]);
        Ok(spec.network("host").pull(Pull::Never))
    }

    async fn take_down(&self) -> Result<(), Unsupported> {
        self.relay()?.down();
        Ok(())
    }

    async fn silence(&self) -> Result<(), Unsupported> {
        self.relay()?.freeze();
        Ok(())
    }

    async fn bring_back(&self) {
        if let Ok(relay) = self.relay() {
            relay.thaw();
            relay.up();
        }
    }
}

//! Managers whose calls block.

use std::path::PathBuf;
use std::time::Duration;

use super::{
    Attachment, Events, Group, Network, Run, Service, TOKIO, Volume, refuse_async_code, wait,
};
use crate::error::Result;
use crate::manager::{
    ManagerBuilder, Orphan, PruneOptions, PruneReport, ReapOptions, ReapReport, ShutdownMode,
    Signal,
};
use crate::outcome::Outcome;
use crate::root::{Root, RunInfo};
use crate::run::AttachOptions;
use crate::run::ready::Ready;
use crate::runtime::{ImageInfo, Runtime};
use crate::spec::{GroupSpec, NetworkSpec, PullOptions, RunId, RunSpec, VolumeSpec};

/// A [`crate::manager::Manager`] whose calls block.
#[derive(Debug, Clone)]
pub struct Manager(crate::manager::Manager);

impl Manager {
    /// Opens a root: see [`crate::manager::Manager::open`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::open`].
    pub fn open(root: impl Into<PathBuf>, runtime: impl Runtime) -> Result<Self> {
        Self::open_with(crate::manager::Manager::builder(root, runtime))
    }

    /// Opens a root with the settings of `builder`: see [`ManagerBuilder::open`].
    ///
    /// # Errors
    ///
    /// Those of [`ManagerBuilder::open`].
    pub fn open_with(builder: ManagerBuilder) -> Result<Self> {
        wait(builder.open()).map(Self)
    }

    /// Starts a run: see [`crate::manager::Manager::start`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::start`].
    pub fn start(&self, spec: RunSpec) -> Result<Run> {
        wait(self.0.start(spec)).map(Run)
    }

    /// Starts a service: see [`crate::manager::Manager::service`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::service`].
    pub fn service(
        &self,
        spec: RunSpec,
        ready: impl IntoIterator<Item = Ready>,
    ) -> Result<Service> {
        wait(self.0.service(spec, ready)).map(Service::new)
    }

    /// Creates a group: see [`crate::manager::Manager::group`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::group`].
    pub fn group(&self, spec: GroupSpec) -> Result<Group> {
        wait(self.0.group(spec)).map(Group)
    }

    /// Creates a network: see [`crate::manager::Manager::network`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::network`].
    pub fn network(&self, spec: NetworkSpec) -> Result<Network> {
        wait(self.0.network(spec)).map(Network)
    }

    /// Creates a volume: see [`crate::manager::Manager::volume`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::volume`].
    pub fn volume(&self, spec: VolumeSpec) -> Result<Volume> {
        wait(self.0.volume(spec)).map(Volume)
    }

    /// Returns a handle to a run: see [`crate::manager::Manager::get`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::get`].
    pub fn get(&self, id: &RunId) -> Result<Run> {
        wait(self.0.get(id)).map(Run)
    }

    /// Waits for recovery: see [`crate::manager::Manager::wait_recovery`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::wait_recovery`].
    pub fn wait_recovery(&self) -> Result<Vec<Run>> {
        wait(self.0.wait_recovery()).map(|runs| runs.into_iter().map(Run).collect())
    }

    /// Attaches to the output of a run: see [`crate::manager::Manager::attach`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::attach`].
    pub fn attach(&self, id: &RunId) -> Result<Attachment> {
        wait(self.0.attach(id)).map(Attachment)
    }

    /// Starts a run and attaches to it: see [`crate::manager::Manager::start_attached`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::start_attached`].
    pub fn start_attached(
        &self,
        spec: RunSpec,
        options: AttachOptions,
    ) -> Result<(Run, Attachment)> {
        let (run, attachment) = wait(self.0.start_attached(spec, options))?;
        Ok((Run(run), Attachment(attachment)))
    }

    /// Waits for a run: see [`crate::manager::Manager::wait`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::wait`].
    pub fn wait(&self, id: &RunId) -> Result<Outcome> {
        wait(self.0.wait(id))
    }

    /// Stops a run: see [`crate::manager::Manager::stop`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::stop`].
    pub fn stop(&self, id: &RunId, grace: Option<Duration>) -> Result<Outcome> {
        wait(self.0.stop(id, grace))
    }

    /// Lists all runs in the root, sorted by id: see [`crate::manager::Manager::list`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::list`].
    pub fn list(&self) -> Result<Vec<RunInfo>> {
        wait(self.0.list())
    }

    /// Removes a sealed run: see [`crate::manager::Manager::remove`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::remove`].
    pub fn remove(&self, id: &RunId) -> Result<()> {
        wait(self.0.remove(id))
    }

    /// Removes old runs: see [`crate::manager::Manager::prune`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::prune`].
    pub fn prune(&self, options: PruneOptions) -> Result<PruneReport> {
        wait(self.0.prune(options))
    }

    /// Finds containers without a run: see [`crate::manager::Manager::orphans`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::orphans`].
    pub fn orphans(&self) -> Result<Vec<Orphan>> {
        wait(self.0.orphans())
    }

    /// Removes a container without a run: see [`crate::manager::Manager::remove_orphan`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::remove_orphan`].
    pub fn remove_orphan(&self, orphan: &Orphan) -> Result<()> {
        wait(self.0.remove_orphan(orphan))
    }

    /// Ends containers that outlived their process: see [`crate::manager::Manager::reap`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::reap`].
    pub fn reap(&self, options: ReapOptions) -> Result<ReapReport> {
        wait(self.0.reap(options))
    }

    /// Returns a handle to an image: see [`crate::manager::Manager::image`].
    pub fn image(&self, name: impl Into<String>) -> Image {
        Image(self.0.image(name))
    }

    /// Lists the images of the engine: see [`crate::manager::Manager::images`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::images`].
    pub fn images(&self) -> Result<Vec<ImageInfo>> {
        wait(self.0.images())
    }

    /// Subscribes to the events of all runs, from now on: see [`crate::manager::Manager::events`].
    pub fn events(&self) -> Events {
        Events(self.0.events())
    }

    /// Returns the root.
    pub fn root(&self) -> &Root {
        self.0.root()
    }

    /// Returns the runtime. Its methods are async.
    pub fn runtime(&self) -> &dyn Runtime {
        self.0.runtime()
    }

    /// Stops all runs and shuts down on Ctrl-C, SIGTERM or SIGHUP.
    ///
    /// Returns a function for a thread. The function waits for a signal and for the shutdown, and
    /// returns the signal: see [`crate::manager::Manager::stop_on_signals`].
    ///
    /// ```no_run
    /// # #[cfg(feature = "process")]
    /// # fn main() -> moat::Result<()> {
    /// # let manager = moat::blocking::Manager::open("", moat::LocalProcess::new())?;
    /// let signal = manager.stop_on_signals()?;
    /// std::thread::spawn(move || std::process::exit(signal().exit_code()));
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "process"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::stop_on_signals`].
    pub fn stop_on_signals(&self) -> Result<impl FnOnce() -> Signal + Send + 'static> {
        refuse_async_code();
        let _context = TOKIO.enter();
        let signal = self.0.stop_on_signals()?;
        Ok(|| wait(signal))
    }

    /// Stops all runs on a signal, with time for runs that clean up.
    ///
    /// Returns a function for a thread, as [`stop_on_signals`](Self::stop_on_signals) does: see
    /// [`crate::manager::Manager::stop_on_signals_with_cleanup`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Manager::stop_on_signals`].
    pub fn stop_on_signals_with_cleanup(
        &self,
        limit: Duration,
    ) -> Result<impl FnOnce() -> Signal + Send + 'static> {
        refuse_async_code();
        let _context = TOKIO.enter();
        let signal = self.0.stop_on_signals_with_cleanup(limit)?;
        Ok(|| wait(signal))
    }

    /// Shuts the manager down: see [`crate::manager::Manager::shutdown`].
    pub fn shutdown(&self, mode: ShutdownMode) {
        wait(self.0.shutdown(mode));
    }
}

/// A [`crate::manager::Image`] whose calls block.
#[derive(Debug, Clone)]
pub struct Image(crate::manager::Image);

impl Image {
    /// Returns the name or id of the image: see [`crate::manager::Image::name`].
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Returns true if the engine has the image: see [`crate::manager::Image::exists`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Image::exists`].
    pub fn exists(&self) -> Result<bool> {
        wait(self.0.exists())
    }

    /// Returns the engine's description: see [`crate::manager::Image::inspect`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Image::inspect`].
    pub fn inspect(&self) -> Result<ImageInfo> {
        wait(self.0.inspect())
    }

    /// Pulls the image: see [`crate::manager::Image::pull`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Image::pull`].
    pub fn pull(&self, options: PullOptions) -> Result<ImageInfo> {
        wait(self.0.pull(options))
    }

    /// Removes the image: see [`crate::manager::Image::remove`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Image::remove`].
    pub fn remove(&self, force: bool) -> Result<bool> {
        wait(self.0.remove(force))
    }
}

//! Runs, execs and services whose calls block.

use std::error::Error as StdError;
use std::io::Read;
use std::net::SocketAddr;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::io::channel;
use super::{Archive, Attachment, Connection, Events, TOKIO, refuse_async_code, wait};
use crate::audit::Follow;
use crate::error::Result;
use crate::outcome::{Ending, Outcome};
use crate::run::ready::Ready;
use crate::run::{AttachOptions, CopyOptions, CopyProgress, Output};
use crate::runtime::Inspection;
use crate::spec::{ExecSpec, RunId};
use crate::state::State;

/// A [`crate::run::Run`] whose calls block.
#[derive(Debug, Clone)]
pub struct Run(pub(super) crate::run::Run);

impl Run {
    /// Returns the id of the run.
    pub fn id(&self) -> &RunId {
        self.0.id()
    }

    /// Returns the directory of the run.
    pub fn dir(&self) -> &Path {
        self.0.dir()
    }

    /// Returns the path of the audit file, or `None` if the sink writes no file.
    pub fn audit(&self) -> Option<PathBuf> {
        self.0.audit()
    }

    /// Returns the current state of the run.
    pub fn state(&self) -> State {
        self.0.state()
    }

    /// Returns true if another live process owns the run.
    pub fn owned_elsewhere(&self) -> bool {
        self.0.owned_elsewhere()
    }

    /// Waits until the run is ready: see [`crate::run::Run::wait_ready`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::wait_ready`].
    pub fn wait_ready(&self, ready: Ready) -> Result<()> {
        wait(self.0.wait_ready(ready))
    }

    /// Returns the address of a published port: see [`crate::run::Run::port`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::port`].
    pub fn port(&self, port: u16) -> Result<SocketAddr> {
        wait(self.0.port(port))
    }

    /// Returns the container's own address: see [`crate::run::Run::port_on`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::port_on`].
    pub fn port_on(&self, network: &str, port: u16) -> Result<SocketAddr> {
        wait(self.0.port_on(network, port))
    }

    /// Returns the last lines of output: see [`crate::run::Run::last_lines`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::last_lines`].
    pub fn last_lines(&self, max_lines: usize) -> Result<Vec<String>> {
        wait(self.0.last_lines(max_lines))
    }

    /// Waits until the run has ended and is sealed: see [`crate::run::Run::wait`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::wait`].
    pub fn wait(&self) -> Result<Outcome> {
        wait(self.0.wait())
    }

    /// Waits until the container is removed: see [`crate::run::Run::wait_removed`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::wait_removed`].
    pub fn wait_removed(&self) -> Result<bool> {
        wait(self.0.wait_removed())
    }

    /// Stops the run: see [`crate::run::Run::stop`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::stop`].
    pub fn stop(&self, grace: Option<Duration>) -> Result<Outcome> {
        wait(self.0.stop(grace))
    }

    /// Kills the run: see [`crate::run::Run::kill`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::kill`].
    pub fn kill(&self) -> Result<Outcome> {
        wait(self.0.kill())
    }

    /// Returns the problem that blocks the run, if any: see [`crate::run::Run::problem`].
    pub fn problem(&self) -> Option<String> {
        self.0.problem()
    }

    /// Subscribes to the events of the run, from now on: see [`crate::run::Run::events`].
    pub fn events(&self) -> Events {
        Events(self.0.events())
    }

    /// Follows the records of the audit file: see [`crate::run::Run::follow`].
    pub fn follow(&self) -> Option<Follow> {
        self.0.follow()
    }

    /// Stops the run when `token` is cancelled: see [`crate::run::Run::stop_when`].
    pub fn stop_when(&self, token: CancellationToken) {
        self.0.stop_when(token);
    }

    /// Waits until the run has ended, and not for its seal: see [`crate::run::Run::wait_exit`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::wait_exit`].
    pub fn wait_exit(&self) -> Result<Ending> {
        wait(self.0.wait_exit())
    }

    /// Attaches to the output: see [`crate::run::Run::attach`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::attach`].
    pub fn attach(&self) -> Result<Attachment> {
        wait(self.0.attach()).map(Attachment)
    }

    /// Attaches to the run with options: see [`crate::run::Run::attach_with`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::attach_with`].
    pub fn attach_with(&self, options: AttachOptions) -> Result<Attachment> {
        wait(self.0.attach_with(options)).map(Attachment)
    }

    /// Starts an exec in the container: see [`crate::run::Run::exec`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::exec`].
    pub fn exec(&self, spec: ExecSpec) -> Result<Exec> {
        wait(self.0.exec(spec)).map(Exec)
    }

    /// Runs a command in the container, and returns its output: see [`crate::run::Run::output`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::output`].
    pub fn output(&self, spec: impl Into<ExecSpec>) -> Result<Output> {
        wait(self.0.output(spec.into()))
    }

    /// Inspects the container: see [`crate::run::Run::inspect`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::inspect`].
    pub fn inspect(&self) -> Result<Inspection> {
        wait(self.0.inspect())
    }

    /// Opens a connection to a TCP port of the container: see [`crate::run::Run::connect`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::connect`].
    pub fn connect(&self, port: u16) -> Result<Connection> {
        wait(self.0.connect(port)).map(Connection)
    }

    /// Returns a tar archive of a path in the container: see [`crate::run::Run::copy_out`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::copy_out`].
    pub fn copy_out(&self, path: &str) -> Result<Archive> {
        wait(self.0.copy_out(path)).map(Archive::new)
    }

    /// Copies a file or directory into the container: see [`crate::run::Run::copy_to`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::copy_to`].
    pub fn copy_to(&self, path: impl AsRef<Path>, into: &str) -> Result<CopyProgress> {
        wait(self.0.copy_to(path, into))
    }

    /// Copies into the container with options: see [`crate::run::Run::copy_to_with`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::copy_to_with`].
    pub fn copy_to_with(
        &self,
        path: impl AsRef<Path>,
        into: &str,
        options: CopyOptions,
    ) -> Result<CopyProgress> {
        wait(self.0.copy_to_with(path, into, options))
    }

    /// Copies a file or directory of the container: see [`crate::run::Run::copy_from`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::copy_from`].
    pub fn copy_from(&self, path: &str, into: impl AsRef<Path>) -> Result<CopyProgress> {
        wait(self.0.copy_from(path, into))
    }

    /// Copies from the container with options: see [`crate::run::Run::copy_from_with`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::copy_from_with`].
    pub fn copy_from_with(
        &self,
        path: &str,
        into: impl AsRef<Path>,
        options: CopyOptions,
    ) -> Result<CopyProgress> {
        wait(self.0.copy_from_with(path, into, options))
    }

    /// Returns the content of a file of the container: see [`crate::run::Run::read_file`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::read_file`].
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        wait(self.0.read_file(path))
    }

    /// Returns the content of a file with options: see [`crate::run::Run::read_file_with`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::read_file_with`].
    pub fn read_file_with(&self, path: &str, options: CopyOptions) -> Result<Vec<u8>> {
        wait(self.0.read_file_with(path, options))
    }

    /// Creates or replaces a file in the container: see [`crate::run::Run::write_file`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::write_file`].
    pub fn write_file(&self, path: &str, bytes: impl Into<Bytes>) -> Result<()> {
        wait(self.0.write_file(path, bytes))
    }

    /// Creates or replaces a file with options: see [`crate::run::Run::write_file_with`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::write_file_with`].
    pub fn write_file_with(
        &self,
        path: &str,
        bytes: impl Into<Bytes>,
        options: CopyOptions,
    ) -> Result<()> {
        wait(self.0.write_file_with(path, bytes, options))
    }

    /// Removes the container of a sealed run: see [`crate::run::Run::remove_container`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::remove_container`].
    pub fn remove_container(&self) -> Result<()> {
        wait(self.0.remove_container())
    }

    /// Unpacks a tar archive in the container: see [`crate::run::Run::copy_in`].
    ///
    /// The calling thread reads the archive.
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Run::copy_in`], and [`Error::Runtime`] if the archive cannot be read.
    ///
    /// [`Error::Runtime`]: crate::error::Error::Runtime
    pub fn copy_in(&self, path: &str, archive: impl Read) -> Result<()> {
        refuse_async_code();
        let (chunks, stream) = channel();
        let (run, path) = (self.0.clone(), path.to_owned());
        let copy = TOKIO.spawn(async move { run.copy_in(&path, stream).await });
        // If a read panics, the copy is aborted before its stream ends.
        let copied = AbortOnDropHandle::new(copy);
        let read = chunks.send_all(archive);
        drop(chunks);
        let copied = wait(copied).unwrap_or_else(|panic| resume_unwind(panic.into_panic()));
        // An archive that cannot be read is the cause of a copy that fails.
        read.and(copied)
    }
}

/// A [`crate::run::Exec`] whose calls block.
#[derive(Debug, Clone)]
pub struct Exec(crate::run::Exec);

impl Exec {
    /// Returns the number of the exec in the run, from 1.
    pub fn number(&self) -> u32 {
        self.0.number()
    }

    /// Returns the path of the exec's log, or `None` if the sink writes no file.
    pub fn audit(&self) -> Option<PathBuf> {
        self.0.audit()
    }

    /// Attaches to the output of the exec: see [`crate::run::Exec::attach`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Exec::attach`].
    pub fn attach(&self) -> Result<Attachment> {
        wait(self.0.attach()).map(Attachment)
    }

    /// Attaches to the exec with options: see [`crate::run::Exec::attach_with`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Exec::attach_with`].
    pub fn attach_with(&self, options: AttachOptions) -> Result<Attachment> {
        wait(self.0.attach_with(options)).map(Attachment)
    }

    /// Waits until the exec has ended and its log is sealed: see [`crate::run::Exec::wait`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Exec::wait`].
    pub fn wait(&self) -> Result<Outcome> {
        wait(self.0.wait())
    }

    /// Kills the exec and what it started: see [`crate::run::Exec::kill`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::run::Exec::kill`].
    pub fn kill(&self) -> Result<Outcome> {
        wait(self.0.kill())
    }
}

/// A [`crate::manager::Service`] whose calls block. Dropping it stops the run.
#[derive(Debug)]
#[must_use = "dropping a service stops its run"]
pub struct Service {
    service: crate::manager::Service,
    run: Run,
}

impl Deref for Service {
    type Target = Run;

    fn deref(&self) -> &Run {
        &self.run
    }
}

impl Service {
    pub(super) fn new(service: crate::manager::Service) -> Self {
        let run = Run(service.clone());
        Self { service, run }
    }

    /// Stops the run: see [`crate::manager::Service::stop`].
    ///
    /// # Errors
    ///
    /// Those of [`crate::manager::Service::stop`].
    pub fn stop(self) -> Result<Outcome> {
        wait(self.service.stop())
    }

    /// Returns the run without stopping it.
    pub fn release(self) -> Run {
        Run(self.service.release())
    }
}

/// Creates a condition from a closure that may block: see [`Ready::from_fn`].
///
/// ```
/// # use moat::blocking::ready_fn;
/// let ready = ready_fn("it answers", |run| {
///     std::net::TcpStream::connect(run.port(80)?)?;
///     Ok(())
/// });
/// ```
///
/// Each call of `check` has a new thread. If the timeout elapses during a call, the thread exits
/// when the call returns. A panic counts as an error.
pub fn ready_fn<F>(description: impl Into<String>, check: F) -> Ready
where
    F: Fn(&Run) -> Result<(), Box<dyn StdError + Send + Sync>> + Send + Sync + 'static,
{
    let check = Arc::new(check);
    Ready::from_fn(description, move |run| {
        let check = Arc::clone(&check);
        let (sender, checked) = oneshot::channel();
        let thread = thread::Builder::new().name("moat-ready".into());
        let spawned = thread.spawn(move || {
            let _ = sender.send(check(&Run(run)));
        });
        async move {
            spawned?;
            checked
                .await
                .unwrap_or_else(|_| Err("the check panicked".into()))
        }
    })
}

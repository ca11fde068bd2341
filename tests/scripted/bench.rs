//! A scripted engine and a directory for a root.

use std::path::{Path, PathBuf};

use moat::audit::{LogState, verify};
use moat::runtime::scripted::{Script, Scripted};
use moat::{
    Error, LogSink, Manager, ManagerBuilder, Outcome, Root, Run, RunId, RunSpec, Runtime, Seal,
    ShutdownMode,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

/// A scripted engine and a directory for a root.
pub struct Bench {
    pub runtime: Scripted,
    pub directory: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            runtime: Scripted::new(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// With the root in memory where possible, for tests that sync thousands of files. They also have
    /// thousands of files open, so the limit of descriptors is raised.
    pub fn in_memory() -> Self {
        raise_descriptor_limit();
        let memory = Path::new("/dev/shm");
        let directory = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        Self {
            runtime: Scripted::new(),
            directory: directory.unwrap(),
        }
    }

    pub fn root(&self) -> PathBuf {
        self.outside("root")
    }

    /// A path outside the root.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file of a run.
    pub fn file(&self, run: &str, name: &str) -> PathBuf {
        self.root().join(run).join(name)
    }

    /// The root, without an engine.
    pub fn view(&self) -> Root {
        Root::open(self.root()).unwrap()
    }

    /// A manager whose tasks run on its threads, which is the default.
    pub fn builder(&self) -> ManagerBuilder {
        Manager::builder(self.root(), self.runtime.clone())
    }

    pub async fn open_on_threads(&self) -> Manager {
        self.builder().open().await.unwrap()
    }

    /// A manager with tasks on the runtime of the test, whose clock may be paused.
    pub fn builder_here(&self) -> ManagerBuilder {
        self.builder()
            .runtime_handle(tokio::runtime::Handle::current())
    }

    pub async fn open(&self) -> Manager {
        self.builder_here().open().await.unwrap()
    }

    /// Starts a run with this script.
    pub async fn start(&self, manager: &Manager, script: Script, spec: RunSpec) -> Run {
        self.runtime.next(script);
        manager.start(spec).await.unwrap()
    }

    /// Sends SIGTERM to the only container of a root, as another client would.
    pub async fn terminate_externally(&self, manager: &Manager) {
        let found = self.runtime.find(manager.root().id()).await.unwrap();
        let ended = self.runtime.signal(&found[0].container, "SIGTERM");
        ended.await.unwrap();
    }

    /// Runs a script to its end, and checks what holds for every run.
    pub async fn run(&self, script: Script, spec: RunSpec) -> Outcome {
        self.runtime.next(script);
        let manager = self.open().await;
        let outcome = match manager.start(spec).await {
            Ok(run) => sealed(&run).await,
            Err(Error::NotStarted { outcome, .. }) => {
                sealed(&manager.get(&outcome.run).await.unwrap()).await
            }
            Err(error) => panic!("{}", error.chain()),
        };
        manager.shutdown(ShutdownMode::Leave).await;
        check(&outcome);
        outcome
    }
}

/// Raises the soft limit, often 1,024, to the hard limit.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

pub fn spec() -> RunSpec {
    RunSpec::new("any")
}

pub fn named(id: &str) -> RunSpec {
    spec().id(RunId::new(id).unwrap())
}

/// Runs a script to its end, with the log in `sink`.
pub async fn run_into(sink: impl LogSink, name: &str, script: Script) -> Outcome {
    let bench = Bench::in_memory();
    let manager = bench.builder().sink(sink).open().await.unwrap();
    let run = bench.start(&manager, script, named(name)).await;
    run.wait().await.unwrap()
}

/// Waits for the seal. A timeout would not help: a paused clock passes any timeout while a thread
/// writes a file.
pub async fn sealed(run: &Run) -> Outcome {
    loop {
        let outcome = run.wait().await.unwrap();
        if outcome.sealed().is_some() {
            return outcome;
        }
    }
}

pub fn seal(outcome: &Outcome) -> &Seal {
    outcome.sealed().unwrap_or_else(|| panic!("{outcome}"))
}

/// Asserts that the audit file is intact and has the seal of the outcome.
pub fn check(outcome: &Outcome) {
    let path = outcome.audit.as_ref().unwrap();
    let verification = verify(path).unwrap();
    match verification.state {
        LogState::Sealed(sealed) => assert_eq!(*sealed, *seal(outcome)),
        other => panic!("{other:?}"),
    }
}

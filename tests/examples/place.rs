//! A directory for a root, and the programs that use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;
use testkit::deadline::wait_for;
use testkit::{cluster, engine, examples, image};

/// A directory with a root. Dropped, it removes the containers of the root.
pub struct Place {
    pub dir: TempDir,
    image: OnceLock<String>,
    /// For a trial with pods.
    kubeconfig: OnceLock<PathBuf>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.image.get().is_none() {
            return;
        }
        for root in ["root", "moat-runs"] {
            engine::sweep(&self.dir.path().join(root));
        }
        if self.kubeconfig.get().is_some()
            && let Some(root) = engine::root_id(&self.root())
        {
            cluster::sweep(&root);
        }
    }
}

/// A process that is killed if a test ends early.
pub struct Process(pub Child);

impl Process {
    /// Starts a process with piped stdout and stderr.
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Starts a process whose output is discarded.
    pub fn start_silent(mut command: Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Default for Place {
    fn default() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("moat-test-")
            .tempdir()
            .unwrap();
        Self {
            dir,
            image: OnceLock::new(),
            kubeconfig: OnceLock::new(),
        }
    }
}

impl Place {
    /// The test image, made on the first call.
    pub fn image(&self) -> &str {
        self.image.get_or_init(|| {
            engine::block_on(async { image::provide(&engine::connect().unwrap()).await.unwrap() })
        })
    }

    /// `run --root ROOT --runtime process OPTIONS -- sh -c SCRIPT`
    pub fn process(&self, options: &[&str], script: &str) -> Command {
        let mut command = example("run");
        command.arg("--root").arg(self.root());
        command.args(["--runtime", "process"]);
        command.args(options).args(["--", "sh", "-c", script]);
        command
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn audit(&self, run: &str) -> PathBuf {
        self.root().join(run).join("logs.jsonl")
    }

    /// `run --root ROOT --network none OPTIONS IMAGE -- STEPS`
    pub fn run(&self, options: &[&str], steps: &str) -> Command {
        let mut command = example("run");
        command
            .arg("--root")
            .arg(self.root())
            .args(["--network", "none"]);
        command
            .args(options)
            .arg(self.image())
            .arg("--")
            .args(steps.split(' '));
        command
    }

    /// `runs --root ROOT ARGUMENTS`
    pub fn runs(&self, arguments: &[&str]) -> Command {
        let mut command = example("runs");
        command.arg("--root").arg(self.root()).args(arguments);
        command
    }

    /// `run --root ROOT --runtime kubernetes --network host OPTIONS IMAGE -- /workload STEPS`
    ///
    /// The cluster of the tests has no pod network.
    pub fn run_pod(&self, options: &[&str], steps: &str) -> Command {
        let mut command = example("run");
        command.arg("--root").arg(self.root());
        command.args(["--runtime", "kubernetes", "--network", "host"]);
        command.args(options).arg(self.image());
        command.args(["--", "/workload"]).args(steps.split(' '));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// `runs --root ROOT --runtime kubernetes ARGUMENTS`
    pub fn runs_of_pods(&self, arguments: &[&str]) -> Command {
        let mut command = self.runs(&["--runtime", "kubernetes"]);
        command.args(arguments).env("KUBECONFIG", self.kubeconfig());
        command
    }

    fn kubeconfig(&self) -> &Path {
        self.kubeconfig.get_or_init(|| {
            let path = self.dir.path().join("kubeconfig");
            cluster::write_kubeconfig(&path);
            path
        })
    }

    /// Checks that the cluster has no pod of this root.
    pub fn assert_no_pods(&self) {
        cluster::wait_for_removal(&engine::root_id(&self.root()).unwrap());
    }
}

/// The command of an example.
pub fn example(name: &str) -> Command {
    Command::new(examples::program(name))
}

/// Runs a command to its end, without input.
pub fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
pub fn assert_code(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The audit file that the last line of stderr names.
#[track_caller]
pub fn audit_of(output: &Output) -> PathBuf {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = stderr.lines().last().unwrap_or_default();
    let path = last.strip_prefix("audit: ");
    PathBuf::from(path.unwrap_or_else(|| panic!("no audit in the last line: {stderr}")))
}

/// Waits until the audit file has `text`.
pub fn audited(path: &Path, text: &str) {
    wait_for(text, || {
        fs::read_to_string(path).unwrap_or_default().contains(text)
    });
}

/// Sends a signal, such as `INT`.
pub fn signal(process: &Process, name: &str) {
    let id = process.0.id().to_string();
    let status = Command::new("kill")
        .args(["-s", name, &id])
        .status()
        .unwrap();
    assert!(status.success());
}

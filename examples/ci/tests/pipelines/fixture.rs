//! A temporary directory with a pipeline, a root and the reports.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use pty_process::blocking::{Pts, Pty};
use quick_junit::{Report, TestCase, TestCaseStatus};
use tempfile::TempDir;

use testkit::audit::Audit;
use testkit::deadline::wait_for;
use testkit::{busybox, cluster, engine};

/// Variables that name the CI system of a job. The tests may run in one.
pub const CI_VARIABLES: [&str; 5] = [
    "GITHUB_ACTIONS",
    "GITLAB_CI",
    "TF_BUILD",
    "TEAMCITY_VERSION",
    "BUILDKITE",
];

pub struct Fixture {
    dir: TempDir,
    image: OnceLock<String>,
    /// For a trial with pods.
    kubeconfig: OnceLock<PathBuf>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.image.get().is_some() {
            engine::sweep(&self.root());
        }
        if self.kubeconfig.get().is_some()
            && let Some(root) = engine::root_id(&self.root())
        {
            cluster::sweep(&root);
        }
    }
}

impl Fixture {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("moat-test-").tempdir();
        Self {
            dir: dir.unwrap(),
            image: OnceLock::new(),
            kubeconfig: OnceLock::new(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn root(&self) -> PathBuf {
        self.path().join("root")
    }

    /// Writes the pipeline file.
    pub fn pipeline(&self, text: &str) -> PathBuf {
        let path = self.path().join("pipeline.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// `moat-ci PIPELINE --root ROOT --out OUT`
    fn command(&self, pipeline: &Path) -> Command {
        let mut command = Command::new(program());
        command.arg(pipeline).arg("--root").arg(self.root());
        command.arg("--out").arg(self.path().join("out"));
        for name in CI_VARIABLES {
            command.env_remove(name);
        }
        command.env_remove("GITHUB_STEP_SUMMARY");
        command.stdin(Stdio::null());
        command
    }

    /// Runs the steps of the pipeline `text` as local processes.
    pub fn process(&self, text: &str) -> Command {
        let mut command = self.command(&self.pipeline(text));
        command.args(["--runtime", "process", "--jobs", "8"]);
        command
    }

    /// Runs the steps of the pipeline `text` as local processes, one at a time.
    pub fn process_one_job(&self, text: &str) -> Command {
        let mut command = self.command(&self.pipeline(text));
        command.args(["--runtime", "process", "--jobs", "1"]);
        command
    }

    /// Runs the steps of the pipeline `text` in containers.
    pub fn docker(&self, text: &str) -> Command {
        let mut command = self.command(&self.pipeline(text));
        command.args(["--image", self.image(), "--jobs", "8"]);
        command
    }

    /// Runs the steps of the pipeline `text` in containers, one at a time.
    pub fn docker_one_job(&self, text: &str) -> Command {
        let mut command = self.command(&self.pipeline(text));
        command.args(["--image", self.image(), "--jobs", "1"]);
        command
    }

    /// Runs the steps of the pipeline `text` in pods.
    ///
    /// The cluster of the tests has no pod network.
    pub fn cluster(&self, text: &str) -> Command {
        let kubeconfig = self.kubeconfig.get_or_init(|| {
            let path = self.path().join("kubeconfig");
            cluster::write_kubeconfig(&path);
            path
        });
        let pipeline = self.pipeline(&format!("network = 'host'\n{text}"));
        let mut command = self.command(&pipeline);
        command.args(["--runtime", "kubernetes", "--image", self.image()]);
        command.args(["--jobs", "8"]).env("KUBECONFIG", kubeconfig);
        command
    }

    fn image(&self) -> &str {
        self.image.get_or_init(|| {
            engine::block_on(async { busybox::provide(&engine::connect().unwrap()).await.unwrap() })
        })
    }

    pub fn junit(&self) -> Report {
        let text = fs::read_to_string(self.path().join("out/junit.xml")).unwrap();
        let report = Report::deserialize_from_str(&text).unwrap();
        // The schema of Jenkins does not allow the attribute on the root element.
        let (head, _) = text.split_once("<testsuite ").unwrap();
        assert!(!head.contains("skipped="), "{head}");
        // The totals match the test cases.
        let cases: Vec<_> = report
            .test_suites
            .iter()
            .flat_map(|s| &s.test_cases)
            .collect();
        let is_skipped = |case: &&&TestCase| matches!(case.status, TestCaseStatus::Skipped { .. });
        let skipped = cases.iter().filter(is_skipped).count();
        let is_failed =
            |case: &&&TestCase| matches!(case.status, TestCaseStatus::NonSuccess { .. });
        let failed = cases.iter().filter(is_failed).count();
        assert_eq!(report.tests, cases.len());
        assert_eq!(report.failures + report.errors, failed);
        assert_eq!(
            report.test_suites.iter().map(|s| s.skipped).sum::<usize>(),
            skipped
        );
        report
    }

    /// The result of each step: the type and the message in the JUnit file.
    pub fn statuses(&self) -> BTreeMap<String, String> {
        let junit = self.junit();
        let cases = junit.test_suites.iter().flat_map(|suite| &suite.test_cases);
        let status = |case: &TestCase| {
            let texts = match &case.status {
                TestCaseStatus::Success { .. } => return "passed".to_owned(),
                TestCaseStatus::NonSuccess { ty, message, .. }
                | TestCaseStatus::Skipped { ty, message, .. } => [ty, message],
            };
            let texts = texts.map(|text| text.as_ref().unwrap().as_str().to_owned());
            texts.join(": ")
        };
        cases
            .map(|case| (case.name.as_str().to_owned(), status(case)))
            .collect()
    }

    /// The audits of all runs by step and attempt, such as `build 1`.
    ///
    /// All must be sealed and valid.
    pub fn audits(&self) -> BTreeMap<String, Audit> {
        let audits = self.runs().into_iter();
        audits
            .map(|(name, path)| (name, Audit::read(&path).unwrap()))
            .collect()
    }

    /// The audits of all services by name and number, such as `db 1`.
    ///
    /// All must be sealed and valid.
    pub fn services(&self) -> BTreeMap<String, Audit> {
        let audits = self.service_files().into_iter();
        audits
            .map(|(name, path)| (name, Audit::read(&path).unwrap()))
            .collect()
    }

    /// The audit files of all services so far, by name and number.
    pub fn service_files(&self) -> BTreeMap<String, PathBuf> {
        self.files("ci.service")
    }

    /// The audit files of all runs of steps so far, by step and attempt.
    pub fn runs(&self) -> BTreeMap<String, PathBuf> {
        self.files("ci.step")
    }

    /// The audit files of the runs with a label, by its value and by their attempt.
    fn files(&self, kind: &str) -> BTreeMap<String, PathBuf> {
        let dirs = fs::read_dir(self.root()).into_iter().flatten().flatten();
        let named = dirs.filter_map(|dir| {
            let audit = dir.path().join("logs.jsonl");
            let text = fs::read_to_string(&audit).ok()?;
            let start: serde_json::Value = serde_json::from_str(text.lines().next()?).ok()?;
            let label = |name| start["labels"][name].as_str().map(str::to_owned);
            Some((format!("{} {}", label(kind)?, label("ci.attempt")?), audit))
        });
        named.collect()
    }

    /// Checks that the engine has no container of this root.
    pub fn assert_no_containers(&self) {
        let root = engine::root_id(&self.root()).unwrap();
        // The last container is removed shortly after its seal.
        wait_for("the removal of the containers", || {
            engine::block_on(engine::containers(&engine::address(), &root))
                .unwrap()
                .is_empty()
        });
    }

    /// Checks that the cluster has no pod of this root.
    pub fn assert_no_pods(&self) {
        cluster::wait_for_removal(&engine::root_id(&self.root()).unwrap());
    }
}

pub fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_moat-ci").into()
}

/// The program with local processes on a terminal of 80 columns, in no CI system.
pub fn on_terminal(
    fixture: &Fixture,
    pipeline: PathBuf,
    rows: u16,
) -> (Pty, Pts, pty_process::blocking::Command) {
    let (pty, pts) = pty_process::blocking::open().unwrap();
    pty.resize(pty_process::Size::new(rows, 80)).unwrap();
    let command = pty_process::blocking::Command::new(program())
        .arg(pipeline)
        .args(["--runtime", "process", "--root"])
        .arg(fixture.root())
        .arg("--out")
        .arg(fixture.path().join("out"))
        .env("TERM", "xterm-256color");
    let command = CI_VARIABLES
        .into_iter()
        .fold(command, |command, name| command.env_remove(name));
    (pty, pts, command)
}

/// A process that is killed when the value is dropped.
pub struct Process(pub Child);

impl Process {
    pub fn start(mut command: Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    pub fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status();
        assert!(status.unwrap().success());
    }

    /// Kills the process, and waits for its end.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for the end. Returns the exit code and the standard output.
    pub fn end(mut self) -> (i32, String) {
        let mut out = String::new();
        let mut stdout = self.0.stdout.take().unwrap();
        std::io::Read::read_to_string(&mut stdout, &mut out).unwrap();
        (self.0.wait().unwrap().code().unwrap(), out)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command that must exit with `code`, and returns its standard output.
#[track_caller]
pub fn run(mut command: Command, code: i32) -> String {
    let output = command.output().unwrap();
    assert_code(&output, code);
    text(&output.stdout)
}

/// Continues the last build.
pub fn resumed(mut command: Command) -> Command {
    command.arg("--resume");
    command
}

/// Runs the failed steps of the last build again.
pub fn retried(mut command: Command) -> Command {
    command.arg("--retry-failed");
    command
}

/// Checks that the build of a live process cannot be continued by `again`.
pub fn assert_running_build_refuses(fixture: &Fixture, again: fn(Command) -> Command) {
    let pipeline = "[[step]]\nname = 'a'\ncommands = ['echo started', 'sleep 600']\n";
    let process = Process::start(fixture.process(pipeline));
    wait_for_line(fixture, "a 1", "started");
    let output = again(fixture.process(pipeline)).output().unwrap();
    assert_code(&output, 2);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("another process owns its run"), "{stderr}");
    process.signal("TERM");
    assert_eq!(process.end().0, 143);
}

#[track_caller]
pub fn assert_code(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until the run has printed `line`.
pub fn wait_for_line(fixture: &Fixture, run: &str, line: &str) {
    wait_for_text(fixture, run, &format!("\"line\":\"{line}\""));
}

/// Waits until the audit of the run contains `text`.
pub fn wait_for_text(fixture: &Fixture, run: &str, text: &str) {
    wait_for(text, || {
        let runs = fixture.runs();
        let audit = runs.get(run).map(fs::read_to_string);
        audit.is_some_and(|audit| audit.unwrap_or_default().contains(text))
    });
}

//! Processes that embed moat and are killed, and managers that are dropped.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use moat::audit::{Event, GapReason, Reader, Record};
use moat::outcome::{Evidence, Stream};
use moat::{
    Ending, Error, LocalProcess, Manager, Outcome, Root, RunId, RunSpec, Seal, ShutdownMode,
    Verdict,
};
use testkit::deadline::{eventually, within};

use crate::place::{Place, audited, bytes, check, dies, gaps, line, lives, seal, sh};

/// A process that embeds moat: this program, started again.
pub struct Embedder(pub Child);

impl Drop for Embedder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const ROLE: &str = "MOAT_TEST_EMBEDDER";

/// Separates the arguments of the command.
const SEPARATOR: &str = "\x1f";

impl Embedder {
    /// Starts `script` in a run of the root.
    pub fn start(root: &Path, script: &str, tty: bool) -> Self {
        let command = Command::new(std::env::current_exe().unwrap());
        Self::spawn(command, root, &["sh", "-c", script], tty)
    }

    /// Runs `command` in an embedder that ignores `signals` from its start.
    pub fn ignoring(signals: &str, root: &Path, command: &[&str], tty: bool) -> Self {
        Self::spawn(ignoring(signals), root, command, tty)
    }

    /// Runs `command` in an embedder that blocks all signals.
    pub fn blocking(root: &Path, command: &[&str], tty: bool) -> Self {
        let mut embedder = Command::new(std::env::current_exe().unwrap());
        embedder.env("MOAT_TEST_BLOCK", "1");
        Self::spawn(embedder, root, command, tty)
    }

    pub fn spawn(mut embedder: Command, root: &Path, command: &[&str], tty: bool) -> Self {
        embedder
            .args(["--exact", "embedder::child_embedder", "--nocapture"])
            .env(ROLE, root)
            .env("MOAT_TEST_COMMAND", command.join(SEPARATOR))
            .env("MOAT_TEST_TTY", if tty { "1" } else { "" })
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // A separate process group, as a shell makes it.
        embedder.process_group(0);
        Self(embedder.spawn().unwrap())
    }

    /// Waits for the end, and returns the seal and the output of the run.
    pub async fn end(mut self, root: &Path) -> (Seal, String) {
        let status = eventually(60, "the embedder's end", async || {
            self.0.try_wait().unwrap()
        });
        assert!(status.await.success());
        let root = Root::open(root).unwrap();
        let id = RunId::new("first").unwrap();
        let seal = root.info(&id).unwrap().seal.unwrap();
        let output = Reader::open(root.audit(&id)).unwrap();
        let lines = output.filter_map(|record| match record.unwrap() {
            Record::Output(output) => Some(String::from_utf8_lossy(&output.bytes).into_owned()),
            _ => None,
        });
        (seal, lines.collect::<Vec<_>>().join("\n").replace('\r', ""))
    }
}

/// Builds the command of this test binary in a shell that ignores `signals`.
pub fn ignoring(signals: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("trap '' {signals}; exec \"$0\" \"$@\"");
    command
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap());
    command
}

/// The body of the child. In the parent it does nothing.
#[tokio::test]
async fn child_embedder() {
    let Some(root) = std::env::var_os(ROLE) else {
        return;
    };
    let command = std::env::var("MOAT_TEST_COMMAND").unwrap();
    let tty = !std::env::var("MOAT_TEST_TTY").unwrap().is_empty();
    if std::env::var_os("MOAT_TEST_BLOCK").is_some() {
        // The threads of the manager inherit the mask of this one.
        nix::sys::signal::SigSet::all().thread_block().unwrap();
    }
    let manager = Manager::open(root, LocalProcess::new()).await.unwrap();
    let id = RunId::new("first").unwrap();
    let spec = RunSpec::command(command.split(SEPARATOR)).tty(tty).id(id);
    let run = manager.start(spec).await.unwrap();
    if let Ok(expected) = std::env::var("MOAT_TEST_SIGNAL") {
        // After the start, which gives each ignored signal a handler.
        let signals = manager.stop_on_signals().unwrap();
        std::fs::write(std::env::var("MOAT_TEST_LISTENING").unwrap(), "yes\n").unwrap();
        assert_eq!(signals.await.to_string(), expected);
        return;
    }
    run.wait().await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
}

#[tokio::test]
async fn dropping_the_manager_kills_its_processes() {
    let place = Place::new();
    let manager = place.open().await;
    let script = format!(
        "sleep 600 & echo $! >{}; echo $$ >{}; echo ready; wait",
        place.file("grandchild"),
        place.file("first")
    );
    let run = manager.start(sh(&script)).await.unwrap();
    audited(&run, "ready").await;
    let id = run.id().clone();
    drop((run, manager));
    dies(&line(&place.file("first")).await).await;
    dies(&line(&place.file("grandchild")).await).await;
    lost(&place, &id).await;
}

/// Asserts that recovery reports the run as lost and keeps its captured output.
pub async fn lost(place: &Place, id: &RunId) -> Outcome {
    let manager = place.open().await;
    let recovered = within(20, "the recovery", manager.wait_recovery())
        .await
        .unwrap();
    assert_eq!(recovered.len(), 1);
    let outcome = within(20, "the seal", recovered[0].wait()).await.unwrap();
    assert_eq!(&outcome.run, id);
    match &outcome.ending {
        Ending::Lost { reason } => assert!(reason.contains("ended with the process"), "{reason}"),
        other => panic!("{other}"),
    }
    assert_eq!(seal(&outcome).verdict, Verdict::Gap);
    assert_eq!(seal(&outcome).evidence, Evidence::None);
    assert_eq!(gaps(&outcome), [(GapReason::NoBackstop, false)]);
    let captured = bytes(&outcome, Stream::Stdout).len() + bytes(&outcome, Stream::Tty).len();
    assert!(captured >= "ready\n".len());
    check(&outcome);
    manager.shutdown(ShutdownMode::Leave).await;
    outcome
}

#[tokio::test]
async fn a_killed_embedder_takes_its_children_along() {
    for tty in [false, true] {
        let place = Place::new();
        // With a terminal, the job is in a separate group.
        let script = format!(
            "trap '' HUP TERM; {} sh -c 'echo $$ >{}; while :; do sleep 60; done' & echo $$ >{}; \
             echo ready; while :; do sleep 0.05; done",
            if tty { "set -m;" } else { "" },
            place.file("grandchild"),
            place.file("first")
        );
        let mut embedder = Embedder::start(&place.root(), &script, tty);
        let first = line(&place.file("first")).await;
        let grandchild = line(&place.file("grandchild")).await;
        let root = Root::open(place.root()).unwrap();
        let id = RunId::new("first").unwrap();
        let audit = root.audit(&id);
        eventually(20, "its output", async || {
            fs::read_to_string(&audit)
                .ok()?
                .contains("\"line\":\"ready")
                .then_some(())
        })
        .await;
        assert!(lives(&first) && lives(&grandchild));
        embedder.0.kill().unwrap();
        embedder.0.wait().unwrap();
        dies(&first).await;
        dies(&grandchild).await;
        lost(&place, &id).await;
    }
}

/// A kill at any moment leaves no process and no unsealed run.
#[tokio::test]
async fn a_kill_at_any_moment_leaves_no_process() {
    for round in 0..60_u32 {
        let place = Place::new();
        let marker = format!("moat-test-{}-{round}", std::process::id());
        let script = format!("trap '' HUP; echo ready; : {marker}; while :; do sleep 1; done");
        let tty = round % 2 == 1;
        let mut embedder = Embedder::start(&place.root(), &script, tty);
        let dir = place.root().join("first");
        eventually(20, "the run's directory", async || {
            dir.exists().then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_micros(u64::from(round) * 400)).await;
        embedder.0.kill().unwrap();
        embedder.0.wait().unwrap();
        eventually(20, "the end of all processes", async || {
            marked(&marker).is_empty().then_some(())
        })
        .await;
        let manager = place.open().await;
        for run in manager.wait_recovery().await.unwrap() {
            let outcome = within(20, "the seal", run.wait()).await.unwrap();
            assert!(outcome.sealed().is_some(), "{outcome}");
            check(&outcome);
        }
        manager.shutdown(ShutdownMode::Leave).await;
    }
}

/// The processes with `marker` in their arguments.
fn marked(marker: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let has = |path: PathBuf| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(marker)
    };
    processes
        .filter(|entry| has(entry.path()))
        .filter_map(|entry| Some(entry.file_name().to_str()?.to_owned()))
        .collect()
}

/// The guardian of the process is in the same group.
#[tokio::test]
async fn a_process_that_signals_its_group_is_guarded() {
    let place = Place::new();
    let script = format!(
        "trap '' HUP INT QUIT USR1 USR2 TERM TSTP; \
         for s in HUP INT QUIT USR1 USR2 TERM TSTP; do kill -s $s 0; done; \
         echo $$ >{}; while :; do sleep 1; done",
        place.file("first")
    );
    let embedder = Embedder::start(&place.root(), &script, false);
    let first = line(&place.file("first")).await;
    drop(embedder);
    dies(&first).await;
}

#[tokio::test]
async fn another_embedder_cannot_stop_a_process() {
    let place = Place::new();
    let script = "echo ready; while ! [ -e go ]; do sleep 0.02; done; exit 6";
    let script = script.replace("go", &place.file("go"));
    let embedder = Embedder::start(&place.root(), &script, false);
    let id = RunId::new("first").unwrap();
    eventually(20, "the run", async || {
        let info = Root::open(place.root()).ok()?.info(&id).ok()?;
        (info.status == moat::state::RunStatus::Running).then_some(())
    })
    .await;
    let manager = place.open().await;
    let run = manager.get(&id).await.unwrap();
    let refused = within(20, "the refusal", run.stop(None)).await;
    assert!(matches!(refused, Err(Error::Owned { .. })), "{refused:?}");
    fs::write(place.file("go"), "").unwrap();
    let outcome = within(20, "its end", run.wait()).await.unwrap();
    assert_eq!(outcome.code(), Some(6));
    assert_eq!(seal(&outcome).stopped, None, "nothing has stopped it");
    let stops = Reader::open(outcome.audit.as_ref().unwrap()).unwrap();
    let stops = stops.filter(|record| matches!(record, Ok(Record::Event(Event::Stop(_)))));
    assert_eq!(stops.count(), 0);
    drop(embedder);
}

#[cfg(feature = "testing")]
#[tokio::test]
async fn a_run_of_another_runtime_is_left_alone() {
    use moat::runtime::scripted::{Script, Scripted};

    let place = Place::new();
    let scripted = Scripted::new();
    scripted.next(Script::new().stdout("a\n").until_stopped());
    let manager = Manager::open(place.root(), scripted.clone()).await.unwrap();
    let id = manager
        .start(RunSpec::new("any"))
        .await
        .unwrap()
        .id()
        .clone();
    manager.shutdown(ShutdownMode::Leave).await;

    let other = place.open().await;
    let run = other.wait_recovery().await.unwrap().remove(0);
    assert!(run.problem().unwrap().contains("scripted"));
    let refused = run.wait().await;
    assert!(
        matches!(refused, Err(Error::OtherRuntime { .. })),
        "{refused:?}"
    );
    other.shutdown(ShutdownMode::Leave).await;
    let info = Root::open(place.root()).unwrap().info(&id).unwrap();
    assert!(
        info.seal.is_none(),
        "it was sealed by a runtime that cannot know"
    );

    let manager = Manager::open(place.root(), scripted).await.unwrap();
    let outcome = manager.stop(&id, Some(Duration::ZERO)).await.unwrap();
    assert_eq!(seal(&outcome).verdict, Verdict::Complete);
}

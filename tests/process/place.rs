//! A directory for a root, and what runs leave there.

use std::fs;
use std::path::PathBuf;

use moat::audit::{Event, GapReason, LogState, Reader, Record, verify};
use moat::outcome::Stream;
use moat::{Ending, Error, Exit, LocalProcess, Manager, Outcome, Run, RunSpec, Seal, ShutdownMode};
use testkit::deadline::{eventually, within};

pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The path of a file next to the root.
    pub fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub async fn open(&self) -> Manager {
        Manager::open(self.root(), LocalProcess::new())
            .await
            .unwrap()
    }

    /// Runs a command to its end, and checks what holds for every run.
    pub async fn run(&self, spec: RunSpec) -> Outcome {
        let manager = self.open().await;
        let outcome = match manager.start(spec).await {
            Ok(run) => within(300, "the seal", run.wait()).await.unwrap(),
            Err(Error::NotStarted { outcome, .. }) => *outcome,
            Err(error) => panic!("{}", error.chain()),
        };
        manager.shutdown(ShutdownMode::Leave).await;
        check(&outcome);
        outcome
    }
}

pub fn sh(script: &str) -> RunSpec {
    RunSpec::command(["sh", "-c", script])
}

pub fn seal(outcome: &Outcome) -> &Seal {
    outcome.sealed().unwrap()
}

pub fn check(outcome: &Outcome) {
    let found = verify(outcome.audit.as_ref().unwrap()).unwrap();
    match found.state {
        LogState::Sealed(found) => assert_eq!(&*found, seal(outcome)),
        state => panic!("{state:?}"),
    }
}

pub fn bytes(outcome: &Outcome, stream: Stream) -> Vec<u8> {
    let mut all = Vec::new();
    for record in Reader::open(outcome.audit.as_ref().unwrap()).unwrap() {
        if let Record::Output(output) = record.unwrap()
            && output.stream == stream
        {
            all.extend_from_slice(&output.bytes);
            if !output.partial {
                all.push(b'\n');
            }
        }
    }
    all
}

pub fn text(outcome: &Outcome, stream: Stream) -> String {
    String::from_utf8(bytes(outcome, stream)).unwrap()
}

pub fn gaps(outcome: &Outcome) -> Vec<(GapReason, bool)> {
    Reader::open(outcome.audit.as_ref().unwrap())
        .unwrap()
        .filter_map(|record| match record.unwrap() {
            Record::Event(Event::Gap(gap)) => Some((gap.reason, gap.possible)),
            _ => None,
        })
        .collect()
}

pub fn exit(outcome: &Outcome) -> &Exit {
    match &outcome.ending {
        Ending::Exited(exit) => exit,
        other => panic!("{other}"),
    }
}

/// Waits for a line in a file and returns it.
pub async fn line(path: &str) -> String {
    eventually(20, path, async || {
        let text = fs::read_to_string(path).ok()?;
        text.contains('\n').then(|| text.trim().to_owned())
    })
    .await
}

/// True if the process exists and is not a zombie.
pub fn lives(id: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

pub async fn dies(id: &str) {
    eventually(20, "the end of a process", async || {
        (!lives(id)).then_some(())
    })
    .await;
}

/// Waits until a line is in the audit.
pub async fn audited(run: &Run, text: &str) {
    let audit = run.audit().unwrap();
    eventually(20, text, async || {
        let line = format!("\"line\":\"{text}");
        fs::read_to_string(&audit)
            .unwrap_or_default()
            .contains(&line)
            .then_some(())
    })
    .await;
}

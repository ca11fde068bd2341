//! Standard input and the size of a terminal.

use moat::manager::RecoveryMode;
use moat::outcome::Stream;
use moat::run::{AttachOptions, Attachment, Input};
use moat::spec::{Stdin, WindowSize};
use moat::{Error, Manager, Run, RunSpec, ShutdownMode};
use testkit::deadline::{eventually, within};
use testkit::engine;
use testkit::harness::Trial;
use tokio::io::AsyncWriteExt;

use crate::load::is_soak;
use crate::stage::{
    Stage, Watched, actions, assert_bytes, assert_complete, assert_nothing_missed, end, read,
};

testkit::trials! {
    crate::on_busybox:
        a_pipe_carries_all_input_unrecorded,
        a_writer_lost_early_is_recorded,
        a_pipe_has_one_writer,
        the_engine_does_not_swallow_detach_keys,
        a_terminal_follows_size_changes,
        input_is_recorded_on_request,
        large_input_passes_through;
    on_lasting_input:
        open_input_survives_a_detach,
        a_recovered_run_accepts_input,
        a_run_of_another_owner_accepts_input,
}

/// A trial on an engine whose open input outlives its writers.
fn on_lasting_input(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    let need = engine::unless_podman("Podman ends an open input with its first writer");
    crate::on_busybox(name, trial).needs(&need)
}

/// A run of a shell script.
pub fn sh(stage: &Stage, script: &str) -> RunSpec {
    RunSpec::new(&stage.image)
        .cmd(["sh", "-c", script])
        .network("none")
}

pub fn with_input() -> AttachOptions {
    AttachOptions::new().with_input().lossless()
}

/// Starts a run with an attachment, and takes its input.
async fn start_with_input(manager: &Manager, spec: RunSpec) -> (Run, Attachment, Input) {
    let (run, mut output) = manager.start_attached(spec, with_input()).await.unwrap();
    let input = output.input().unwrap();
    (run, output, input)
}

/// Attaches to a run, and takes its input.
async fn attach_with_input(run: &Run) -> (Attachment, Input) {
    let mut output = run.attach_with(with_input()).await.unwrap();
    let input = output.input().unwrap();
    (output, input)
}

/// Opens the root a second time, as a process that does not own the run would.
async fn open_elsewhere(stage: &Stage, run: &Run) -> (Manager, Run) {
    let docker = moat::Docker::connect().await.unwrap();
    let other = Manager::builder(stage.root(), docker)
        .recovery(RecoveryMode::OnDemand)
        .open()
        .await
        .unwrap();
    let theirs = other.get(run.id()).await.unwrap();
    eventually(60, "the inspection of the run", async || {
        theirs.owned_elsewhere().then_some(())
    })
    .await;
    (other, theirs)
}

/// Reads until the terminal shows `text`.
pub async fn shown(output: &mut Attachment, text: &str) -> String {
    let mut watched = Watched::default();
    loop {
        let all = watched.bytes.get(&Stream::Tty).cloned().unwrap_or_default();
        let all = String::from_utf8_lossy(&all).into_owned();
        if all.contains(text) {
            return all;
        }
        assert!(watched.next(output).await, "{all:?} has no {text:?}");
    }
}

/// The end of a pipe arrives, and ends nothing else.
async fn a_pipe_carries_all_input_unrecorded(stage: &Stage) {
    let manager = stage.manager().await;
    let mut seed = fastrand::Rng::with_seed(7);
    let bytes: Vec<u8> = (0..3_000_000).map(|_| seed.u8(..)).collect();
    let spec = sh(
        stage,
        "echo before >&2; cat | wc -c; sleep 1; echo after >&2",
    )
    .stdin(Stdin::Pipe);
    let (run, mut output, mut input) = start_with_input(&manager, spec).await;
    assert!(output.input().is_none());
    input.write_all(&bytes).await.unwrap();
    input.shutdown().await.unwrap();
    let watched = Watched::all(output).await;
    assert_bytes(watched.stdout(), b"3000000\n");
    let outcome = end(&run).await;
    let audit = read(&outcome);
    assert_complete(&audit);
    assert_eq!(audit.stream("stderr"), b"before\nafter\n");
    assert_eq!(actions(&audit), ["attach_input", "input_end"]);
    assert!(audit.all("stdin").is_empty());
    let pid = audit.all("note")[0]["pid"].as_u64();
    assert_eq!(pid, Some(u64::from(std::process::id())));
    // The error is definitive.
    let error = input.write(b"more").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    let error = run.attach_with(with_input()).await.unwrap_err();
    assert!(matches!(error, Error::NoInput { .. }), "{error}");
}

/// The container sees a clean end of input, but the audit records a lost writer.
async fn a_writer_lost_early_is_recorded(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = sh(stage, "cat").stdin(Stdin::Pipe);
    let (run, _output, mut input) = start_with_input(&manager, spec).await;
    input.write_all(b"half of it").await.unwrap();
    drop(input);
    let audit = read(&end(&run).await);
    assert_eq!(audit.stream("stdout"), b"half of it");
    assert_eq!(actions(&audit), ["attach_input", "input_lost"]);
}

async fn a_pipe_has_one_writer(stage: &Stage) {
    let manager = stage.manager().await;
    let run = manager
        .start(sh(stage, "cat").stdin(Stdin::Pipe))
        .await
        .unwrap();
    let mut first = run.attach_with(with_input()).await.unwrap();
    let error = run.attach_with(with_input()).await.unwrap_err();
    assert!(matches!(error, Error::NoInput { .. }), "{error}");
    // A process that does not own the run cannot write either.
    let (_other, theirs) = open_elsewhere(stage, &run).await;
    let error = theirs.attach_with(with_input()).await.unwrap_err();
    assert!(matches!(error, Error::NoInput { .. }), "{error}");
    let mut input = first.input().unwrap();
    input.write_all(b"mine\n").await.unwrap();
    input.shutdown().await.unwrap();
    let audit = read(&end(&run).await);
    assert_eq!(audit.stream("stdout"), b"mine\n");
    let none = manager.start(sh(stage, "true")).await.unwrap();
    let error = none.attach_with(with_input()).await.unwrap_err();
    assert!(matches!(error, Error::NoInput { .. }), "{error}");
}

async fn open_input_survives_a_detach(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = sh(
        stage,
        "while read line; do echo got $line; [ $line = end ] && exit 5; done",
    )
    .stdin(Stdin::Open);
    let (run, mut output, mut input) = start_with_input(&manager, spec).await;
    input.write_all(b"one\n").await.unwrap();
    let mut watched = Watched::default();
    watched.until(&mut output, "got one").await;
    // A terminal has no end of input.
    let error = input.shutdown().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    drop((input, output));
    for line in ["two", "three"] {
        let (mut output, mut input) = attach_with_input(&run).await;
        input
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
        let mut watched = Watched::default();
        watched.until(&mut output, &format!("got {line}")).await;
    }
    let (output, mut input) = attach_with_input(&run).await;
    input.write_all(b"end\n").await.unwrap();
    let watched = Watched::all(output).await;
    assert_bytes(watched.stdout(), b"got one\ngot two\ngot three\ngot end\n");
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(5));
    let audit = read(&outcome);
    assert_complete(&audit);
    let once = ["attach_input", "detach"];
    assert_eq!(
        actions(&audit),
        [&once[..], &once, &once, &once[..1]].concat()
    );
}

async fn a_recovered_run_accepts_input(stage: &Stage) {
    let first = stage.manager().await;
    let spec = sh(stage, "while read line; do echo got $line; done").stdin(Stdin::Open);
    let (run, mut output, mut input) = start_with_input(&first, spec).await;
    input.write_all(b"one\n").await.unwrap();
    drop(input);
    Watched::default().until(&mut output, "got one").await;
    let id = run.id().clone();
    drop((run, output));
    first.shutdown(ShutdownMode::Leave).await;

    let second = stage.manager().await;
    let run = second.get(&id).await.unwrap();
    second.wait_recovery().await.unwrap();
    let (mut output, mut input) = attach_with_input(&run).await;
    input.write_all(b"two\n").await.unwrap();
    let mut watched = Watched::default();
    watched.until(&mut output, "got two").await;
    assert_bytes(watched.stdout(), b"got one\ngot two\n");
    run.kill().await.unwrap();
    let audit = read(&end(&run).await);
    assert_complete(&audit);
}

async fn a_run_of_another_owner_accepts_input(stage: &Stage) {
    let owner = stage.manager().await;
    let spec = sh(
        stage,
        "while read line; do echo got $line; [ $line = end ] && exit; done",
    )
    .stdin(Stdin::Open);
    let run = owner.start(spec).await.unwrap();
    let (other, theirs) = open_elsewhere(stage, &run).await;
    let (mut output, mut input) = attach_with_input(&theirs).await;
    input.write_all(b"one\n").await.unwrap();
    Watched::default().until(&mut output, "got one").await;
    drop((input, output));
    let mut output = theirs.attach_with(with_input().live_only()).await.unwrap();
    // After its end, the run does not wait for requests that are still to be recorded.
    eventually(60, "the request for the owner", async || {
        let names = std::fs::read_dir(run.dir()).unwrap().map(|entry| {
            let name = entry.unwrap().file_name();
            name.into_string().unwrap()
        });
        let notes = names.filter(|name| name.starts_with("note-") && name.ends_with(".json"));
        (notes.count() == 3).then_some(())
    })
    .await;
    output.input().unwrap().write_all(b"end\n").await.unwrap();
    let watched = Watched::all(output).await;
    let seen = String::from_utf8_lossy(watched.stdout()).into_owned();
    assert!(seen == "got end\n" || seen.is_empty(), "{seen:?}");
    other.shutdown(ShutdownMode::Leave).await;
    let audit = read(&end(&run).await);
    assert_complete(&audit);
    assert_eq!(actions(&audit), ["attach_input", "detach", "attach_input"]);
}

/// An engine detaches at `ctrl-p ctrl-q`, unless it has another sequence.
async fn the_engine_does_not_swallow_detach_keys(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = sh(
        stage,
        "stty raw -echo; echo ready; head -c 5 | od -An -tx1; echo done",
    )
    .tty(true)
    .stdin(Stdin::Open);
    let (_run, mut output, mut input) = start_with_input(&manager, spec).await;
    shown(&mut output, "ready").await;
    // One key at a time: the first key must not wait for the next one.
    for key in [0x10, 0x11, 0x00, 0x1c, 0x10] {
        input.write_all(&[key]).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let all = shown(&mut output, "done").await;
    assert!(all.contains("10 11 00 1c 10"), "{all:?}");
}

async fn a_terminal_follows_size_changes(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = sh(
        stage,
        "until [ \"$(stty size 2>/dev/null)\" = '33 101' ]; do :; done; echo si''zed; \
         until [ \"$(stty size)\" = '20 90' ]; do sleep 0.05; done; echo res''ized; \
         read line; exit 3",
    )
    .tty(true)
    .stdin(Stdin::Open);
    let options = with_input().window(WindowSize::new(101, 33));
    let (run, mut output) = manager.start_attached(spec, options).await.unwrap();
    let mut input = output.input().unwrap();
    shown(&mut output, "sized").await;
    let handle = output.handle();
    handle.resize(WindowSize::new(90, 20)).await.unwrap();
    handle.resize(WindowSize::new(90, 20)).await.unwrap();
    shown(&mut output, "resized").await;
    input.write_all(b"\n").await.unwrap();
    let outcome = within(30, "the outcome", output.outcome()).await.unwrap();
    assert_eq!(outcome.code(), Some(3));
    let audit = read(&end(&run).await);
    assert_complete(&audit);
    assert_eq!(actions(&audit), ["attach_input", "resize"]);
    let start = std::fs::read_to_string(outcome.audit.unwrap()).unwrap();
    assert!(
        start.contains(r#""window":{"columns":101,"rows":33}"#),
        "{start}"
    );
}

async fn input_is_recorded_on_request(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = sh(stage, "wc -c").stdin(Stdin::Pipe).record_stdin(true);
    let (run, _output, mut input) = start_with_input(&manager, spec).await;
    let bytes: Vec<u8> = b"pass\nword \xff\xfe\n".repeat(40_000);
    input.write_all(&bytes).await.unwrap();
    input.shutdown().await.unwrap();
    let audit = read(&end(&run).await);
    assert_complete(&audit);
    assert_eq!(
        audit.stream("stdout"),
        format!("{}\n", bytes.len()).as_bytes()
    );
    let mut recorded = Vec::new();
    for record in audit.all("stdin") {
        match (record["text"].as_str(), record["b64"].as_str()) {
            (Some(text), None) => recorded.extend_from_slice(text.as_bytes()),
            (None, Some(b64)) => {
                use base64::Engine;
                let decoded = base64::prelude::BASE64_STANDARD.decode(b64);
                recorded.extend(decoded.unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_bytes(&recorded, &bytes);
}

/// More than all buffers hold, with concurrent reader and writer.
async fn large_input_passes_through(stage: &Stage) {
    const BLOCK: usize = 1 << 20;
    let blocks = match is_soak() {
        true => 1024,
        // The end of Podman's output is proven by a second reading of its log.
        false if engine::is_podman() => 8,
        false => 48,
    };
    let manager = stage.manager().await;
    let spec = sh(stage, "cat").stdin(Stdin::Pipe);
    let (run, mut output, mut input) = start_with_input(&manager, spec).await;
    let write = async {
        // Distinct lines: the end of the engine's log is then enough evidence.
        for block in 0..blocks {
            let lines = (0..BLOCK / 64).map(|line| format!("{:063}\n", block * BLOCK + line));
            let bytes: String = lines.collect();
            input.write_all(bytes.as_bytes()).await.unwrap();
        }
    };
    let mut watched = Watched::default();
    let read_all = async {
        let mut bytes = 0;
        // An engine can discard what an ended container has printed and nobody reads.
        while bytes < blocks * BLOCK {
            assert!(watched.next(&mut output).await, "the output ended");
            bytes += watched.stdout().len();
            watched.bytes.clear();
        }
        assert_eq!(bytes, blocks * BLOCK);
    };
    tokio::join!(write, read_all);
    input.shutdown().await.unwrap();
    while watched.next(&mut output).await {}
    assert_bytes(watched.stdout(), b"");
    let outcome = end(&run).await;
    assert_eq!(outcome.code(), Some(0));
    // Reading the whole log back would take longer than the rest of the trial.
    if outcome.sealed().unwrap().verdict != moat::Verdict::Complete {
        assert_nothing_missed(&read(&outcome));
    }
}

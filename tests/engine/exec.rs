//! Exec: more processes in the container of a run.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use moat::audit::{LogState, verify};
use moat::outcome::StopCause;
use moat::run::AttachOptions;
use moat::runtime::RuntimeError;
use moat::spec::{ExecSpec, Stdin, WindowSize};
use moat::{Docker, Ending, Error, Manager, Outcome, Run, RunId, RunSpec, ShutdownMode, Verdict};
use testkit::child::{self, Process};
use testkit::deadline::{eventually, within};
use testkit::engine;
use tokio::io::AsyncWriteExt;

use crate::stage::{Stage, Watched, actions, assert_bytes, end, read};
use crate::stdin::shown;

testkit::trials! {
    crate::on_busybox:
        an_exec_has_output_code_and_audit,
        an_exec_without_writer_sees_the_end_of_input,
        an_exec_accepts_input,
        a_failed_exec_leaves_a_sealed_audit,
        an_exec_terminal_has_its_size,
        an_exec_left_open_is_sealed_as_lost,
        an_exec_with_a_limit_does_not_outlive_its_owner,
        an_exec_ends_with_its_container,
        a_removed_log_of_an_exec_is_restored,
        limits_kill_a_hardened_exec_and_what_it_started,
        a_background_process_does_not_delay_an_exec,
        an_exec_without_a_shell_continues_and_says_so,
        a_kill_fails_while_the_container_is_paused,
        a_kill_of_an_exec_that_ends_succeeds,
        a_kill_reaches_an_exec_of_another_user,
}

async fn running(stage: &Stage) -> (moat::Manager, Run) {
    let manager = stage.manager().await;
    let spec = RunSpec::new(&stage.image)
        .cmd(["sleep", "600"])
        .init(false)
        .network("none");
    let run = manager.start(spec).await.unwrap();
    (manager, run)
}

async fn outcome(exec: &moat::run::Exec) -> Outcome {
    within(60, "the end of the exec", exec.wait())
        .await
        .unwrap()
}

async fn an_exec_has_output_code_and_audit(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let spec = ExecSpec::new(["sh", "-c", "echo $GREETING; pwd >&2; exit 7"])
        .env("GREETING", "s3cr3t")
        .workdir("/tmp");
    let exec = run.exec(spec).await.unwrap();
    let watched = Watched::all(exec.attach().await.unwrap()).await;
    assert_bytes(watched.stdout(), b"s3cr3t\n");
    let ended = outcome(&exec).await;
    assert_eq!(ended.code(), Some(7));
    assert_eq!(exec.number(), 1);
    assert_eq!(exec.audit(), Some(run.dir().join("exec-1.jsonl")));
    let audit = read(&ended);
    // Docker marks no end of an exec's output, and keeps no log of it.
    assert_eq!(audit.verdict(), "unproven");
    assert_eq!(audit.evidence(), "eof");
    assert_eq!(audit.stream("stderr"), b"/tmp\n");
    let start = std::fs::read_to_string(exec.audit().unwrap()).unwrap();
    let start = start.lines().next().unwrap().to_owned();
    assert!(
        start.contains(r#""exec":1"#) && !start.contains("s3cr3t"),
        "{start}"
    );

    let second = run.exec(ExecSpec::new(["true"])).await.unwrap();
    assert_eq!(outcome(&second).await.code(), Some(0));
    assert_eq!(second.number(), 2);
    run.kill().await.unwrap();
    let audit = read(&end(&run).await);
    assert_eq!(actions(&audit), ["exec", "exec"]);
    let error = run.exec(ExecSpec::new(["true"])).await.unwrap_err();
    assert!(matches!(error, Error::Ended { .. }), "{error}");
}

async fn an_exec_without_writer_sees_the_end_of_input(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let exec = run
        .exec(ExecSpec::new(["cat"]).interactive(true))
        .await
        .unwrap();
    let output = exec.attach().await.unwrap();
    drop(exec);
    let ended = within(30, "the end of the exec", output.outcome()).await;
    assert_eq!(ended.unwrap().code(), Some(0));
}

async fn an_exec_accepts_input(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let exec = run
        .exec(ExecSpec::new(["cat"]).interactive(true))
        .await
        .unwrap();
    let mut output = exec
        .attach_with(AttachOptions::new().with_input().lossless())
        .await
        .unwrap();
    let mut input = output.input().unwrap();
    let bytes = b"all of it\n".repeat(300_000);
    let mut watched = Watched::default();
    let watch = async {
        // The engine discards what an ended exec has printed and nobody reads.
        while watched.stdout().len() < bytes.len() {
            assert!(watched.next(&mut output).await, "the output ended");
        }
    };
    let (written, ()) = tokio::join!(input.write_all(&bytes), watch);
    written.unwrap();
    input.shutdown().await.unwrap();
    while watched.next(&mut output).await {}
    assert_bytes(watched.stdout(), &bytes);
    let ended = outcome(&exec).await;
    assert_eq!(ended.code(), Some(0));
    assert_eq!(actions(&read(&ended)), ["attach_input", "input_end"]);

    // A dropped writer also ends the input, and is recorded.
    let exec = run
        .exec(ExecSpec::new(["cat"]).interactive(true))
        .await
        .unwrap();
    let options = AttachOptions::new().with_input();
    drop(exec.attach_with(options).await.unwrap());
    let error = exec.attach_with(options).await.unwrap_err();
    assert!(matches!(error, Error::NoInput { .. }), "{error}");
    let ended = outcome(&exec).await;
    assert_eq!(ended.code(), Some(0));
    assert!(actions(&read(&ended)).contains(&"input_lost".into()));
    run.kill().await.unwrap();
}

async fn a_failed_exec_leaves_a_sealed_audit(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let spec = ExecSpec::new(["true"]).user("nobody-of-this-name");
    match run.exec(spec).await {
        Err(Error::NotStarted { outcome, .. }) => {
            read(&outcome);
            assert!(outcome.ending.never_started(), "{outcome}");
        }
        // Some engines report it in the output and by the exit code.
        Ok(exec) => assert!(outcome(&exec).await.code() > Some(0)),
        Err(error) => panic!("{error}"),
    }
    let exec = run.exec(ExecSpec::new(["/no/such/program"])).await;
    let ended = match exec {
        Ok(exec) => outcome(&exec).await,
        Err(Error::NotStarted { outcome, .. }) => *outcome,
        Err(error) => panic!("{error}"),
    };
    read(&ended);
    assert!(ended.code() != Some(0), "{ended}");
    run.kill().await.unwrap();
}

async fn an_exec_terminal_has_its_size(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let spec = ExecSpec::new(["sh"]).tty(true).interactive(true);
    assert_eq!(spec.stdin(), Stdin::Open);
    let exec = run.exec(spec).await.unwrap();
    let options = AttachOptions::new()
        .with_input()
        .window(WindowSize::new(70, 30));
    let mut output = exec.attach_with(options).await.unwrap();
    let mut input = output.input().unwrap();
    input.write_all(b"stty size; echo do''ne\n").await.unwrap();
    shown(&mut output, "30 70").await;
    drop((input, output));
    // Detached and attached again.
    let mut output = exec.attach_with(options).await.unwrap();
    output
        .input()
        .unwrap()
        .write_all(b"exit 4\n")
        .await
        .unwrap();
    assert_eq!(outcome(&exec).await.code(), Some(4));
    run.kill().await.unwrap();
}

/// The log of an exec whose owner left: a gap, and an unknown end.
fn assert_lost(path: &Path) {
    let found = verify(path).unwrap();
    let LogState::Sealed(seal) = found.state else {
        panic!("{found:?}");
    };
    assert_eq!(seal.verdict, Verdict::Gap);
    assert!(matches!(seal.exit, Ending::Lost { .. }), "{}", seal.exit);
}

async fn an_exec_left_open_is_sealed_as_lost(stage: &Stage) {
    let (manager, run) = running(stage).await;
    let exec = run
        .exec(ExecSpec::new(["sh", "-c", "echo begun; sleep 600"]))
        .await
        .unwrap();
    let mut output = exec.attach().await.unwrap();
    Watched::default().until(&mut output, "begun").await;
    let (id, path) = (run.id().clone(), exec.audit().unwrap());
    drop((run, exec, output));
    manager.shutdown(ShutdownMode::Leave).await;
    assert!(matches!(
        verify(&path).unwrap().state,
        LogState::Unsealed { .. }
    ));

    let manager = stage.manager().await;
    manager.wait_recovery().await.unwrap();
    assert_lost(&path);
    assert!(std::fs::read_to_string(&path).unwrap().contains("begun"));
    let run = manager.get(&id).await.unwrap();
    run.kill().await.unwrap();
    end(&run).await;

    // Also if the run was sealed in the meantime.
    let sealed = std::fs::read(&path).unwrap();
    let lines = sealed.split_inclusive(|byte| *byte == b'\n');
    let open: Vec<u8> = lines.take(2).flatten().copied().collect();
    std::fs::write(&path, open).unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
    let manager = stage.manager().await;
    eventually(60, "the seal", async || {
        let state = verify(&path).unwrap().state;
        matches!(state, LogState::Sealed(_)).then_some(())
    })
    .await;
    assert_lost(&path);
    manager.shutdown(ShutdownMode::Leave).await;
}

/// The role of this process as the owner of two execs.
const ROLE: &str = "exec_owner";
/// The run of the owner.
const OWNED: &str = "owned";

#[derive(serde::Serialize, serde::Deserialize)]
struct Orders {
    root: std::path::PathBuf,
    image: String,
}

/// Plays the owner of two execs, one of them with a time limit, until it is killed.
pub fn role() -> Option<()> {
    let orders: Orders = child::orders(ROLE)?;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async move {
        let docker = Docker::connect().await.unwrap();
        let manager = Manager::open(&orders.root, docker).await.unwrap();
        let spec = RunSpec::new(orders.image)
            .id(RunId::new(OWNED).unwrap())
            .cmd(["sleep", "600"])
            .network("none");
        let run = manager.start(spec).await.unwrap();
        let limited = ["sh", "-c", "sleep 1000 & echo begun; sleep 1000"];
        let limited = ExecSpec::new(limited).time_limit(Duration::from_secs(3600));
        let unlimited = ExecSpec::new(["sh", "-c", "echo begun; exec sleep 1001"]);
        let execs = (run.exec(limited).await, run.exec(unlimited).await);
        begun(&execs.0.unwrap()).await;
        begun(&execs.1.unwrap()).await;
        println!("ready");
        std::io::stdout().flush().unwrap();
        std::future::pending::<()>().await;
    });
    Some(())
}

async fn an_exec_with_a_limit_does_not_outlive_its_owner(stage: &Stage) {
    let orders = Orders {
        root: stage.root(),
        image: stage.image.clone(),
    };
    let mut owner = Process::spawn(child::command(ROLE, &orders).stdout(Stdio::piped()));
    let mut word = String::new();
    let mut stdout = BufReader::new(owner.stdout().unwrap());
    stdout.read_line(&mut word).unwrap();
    assert_eq!(word, "ready\n", "the owner did not start");
    owner.kill();

    let manager = stage.manager().await;
    let recovery = within(60, "the recovery", manager.wait_recovery());
    assert_eq!(recovery.await.unwrap().len(), 1);
    let run = manager.get(&RunId::new(OWNED).unwrap()).await.unwrap();
    let left = processes(&run).await;
    assert!(!left.contains("sleep 1000"), "{left}");
    assert!(
        left.contains("sleep 600") && left.contains("sleep 1001"),
        "{left}"
    );
    for (log, is_killed) in [("exec-1.jsonl", true), ("exec-2.jsonl", false)] {
        let path = run.dir().join(log);
        assert_lost(&path);
        let records = std::fs::read_to_string(&path).unwrap();
        assert!(records.contains("begun"), "{records}");
        assert_eq!(records.contains("were killed"), is_killed, "{records}");
    }
    run.kill().await.unwrap();
    end(&run).await;
}

async fn an_exec_ends_with_its_container(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let exec = run
        .exec(ExecSpec::new(["sh", "-c", "echo begun; exec sleep 600"]))
        .await
        .unwrap();
    // An engine that is killed during a start reports it as a failed start.
    let mut output = exec.attach().await.unwrap();
    Watched::default().until(&mut output, "begun").await;
    run.kill().await.unwrap();
    let ended = outcome(&exec).await;
    let audit = read(&ended);
    match ended.code() {
        // The engine may report the end late. Then the output may have ended first.
        Some(code) => assert!(
            code == 137 && ["unproven", "gap"].contains(&audit.verdict()),
            "{ended}"
        ),
        // The container was removed before moat could ask.
        None => assert_eq!(audit.verdict(), "gap"),
    }
}

async fn a_removed_log_of_an_exec_is_restored(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let spec = ExecSpec::new(["sh", "-c", "echo begun; read line; exit 4"]).interactive(true);
    let exec = run.exec(spec).await.unwrap();
    let options = AttachOptions::new().with_input();
    let mut output = exec.attach_with(options).await.unwrap();
    let mut input = output.input().unwrap();
    Watched::default().until(&mut output, "begun").await;
    let path = exec.audit().unwrap();
    eventually(60, "the output in the log", async || {
        let log = std::fs::read_to_string(&path).unwrap();
        log.contains("begun").then_some(())
    })
    .await;
    std::fs::remove_file(&path).unwrap();
    input.write_all(b"go\n").await.unwrap();
    let ended = outcome(&exec).await;
    let audit = read(&ended);
    assert_eq!(audit.verdict(), "gap");
    assert_eq!(audit.all("started").len(), 1);
    assert_eq!(audit.all("gap")[0]["reason"], "sink");
    assert_eq!(ended.code(), Some(4));
    run.kill().await.unwrap();
}

/// Returns the processes of the container.
async fn processes(run: &Run) -> String {
    let output = within(60, "ps", run.output(["ps"])).await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stdout).unwrap()
}

/// A child with the marker, one with another session, and one without an environment.
const CHILDREN: &str =
    "sleep 987 & setsid sleep 986 & env -i sleep 985 & echo begun; exec sleep 984";

async fn limits_kill_a_hardened_exec_and_what_it_started(stage: &Stage) {
    let manager = stage.manager().await;
    let spec = RunSpec::new(&stage.image)
        .cmd(["sleep", "600"])
        .network("none")
        .read_only(true)
        .user("1000:1000")
        .cap_drop("ALL")
        .tmpfs("/work", Some(1 << 20));
    let run = manager.start(spec).await.unwrap();
    let children = || ExecSpec::new(["sh", "-c", CHILDREN]);

    let limited = children().time_limit(Duration::from_secs(3));
    let exec = run.exec(limited).await.unwrap();
    let ended = outcome(&exec).await;
    let audit = read(&ended);
    assert_eq!(ended.code(), Some(137));
    assert_eq!(ended.sealed().unwrap().stopped, Some(StopCause::TimeLimit));
    assert_eq!(audit.all("stop")[0]["cause"], "time_limit");
    assert_bytes(audit.stream("stdout"), b"begun\n");
    let left = processes(&run).await;
    assert!(!left.contains("sleep 98"), "{left}");
    assert!(left.contains("sleep 600"), "{left}");

    // Another exec of the same spec is not affected.
    let (killed, kept) = (run.exec(children()).await, run.exec(children()).await);
    let (killed, kept) = (killed.unwrap(), kept.unwrap());
    for exec in [&killed, &kept] {
        let mut output = exec.attach().await.unwrap();
        Watched::default().until(&mut output, "begun").await;
    }
    let ended = within(60, "the kill", killed.kill()).await.unwrap();
    assert_eq!(ended.sealed().unwrap().stopped, Some(StopCause::Killed));
    let left = processes(&run).await;
    assert_eq!(left.matches("sleep 98").count(), 4, "{left}");
    within(60, "the kill", kept.kill()).await.unwrap();
    let left = processes(&run).await;
    assert!(!left.contains("sleep 98"), "{left}");
    run.kill().await.unwrap();
}

async fn a_background_process_does_not_delay_an_exec(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let background = ["sh", "-c", "sleep 300 & echo out; exit 6"];
    let output = within(60, "the output", run.output(background)).await;
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert_bytes(&output.stdout, b"out\n");
    let audit = read(&output.status);
    match engine::is_podman() {
        // Podman closes the output with the exec.
        true => assert_eq!(audit.verdict(), "unproven"),
        false => {
            assert_eq!(audit.verdict(), "gap");
            let gap = audit.all("gap").remove(0).to_string();
            assert!(gap.contains("a background process may hold it"), "{gap}");
        }
    }
    run.kill().await.unwrap();
}

/// Waits for the first output of an exec.
async fn begun(exec: &moat::run::Exec) {
    let mut output = exec.attach().await.unwrap();
    Watched::default().until(&mut output, "begun").await;
}

/// The image of the workload has one program, and no shell.
async fn an_exec_without_a_shell_continues_and_says_so(stage: &Stage) {
    let manager = stage.manager().await;
    let image = testkit::image::provide(&stage.docker).await.unwrap();
    let spec = RunSpec::new(image).cmd(["hold"]).network("none");
    let run = manager.start(spec).await.unwrap();
    let command = "/workload echo begun + cat + exit 5".split(' ');
    let spec = ExecSpec::new(command)
        .interactive(true)
        .time_limit(Duration::from_millis(1));
    let exec = run.exec(spec).await.unwrap();
    begun(&exec).await;
    let log = exec.audit().unwrap();
    eventually(60, "the note", async || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.contains("without /bin/sh").then_some(())
    })
    .await;
    let error = within(60, "the error", exec.kill()).await.unwrap_err();
    let Error::Runtime(RuntimeError::Unsupported { operation, .. }) = error else {
        panic!("{error}");
    };
    assert!(operation.contains("without /bin/sh"), "{operation}");
    drop(
        exec.attach_with(AttachOptions::new().with_input())
            .await
            .unwrap(),
    );
    let ended = outcome(&exec).await;
    assert_eq!(ended.code(), Some(5));
    let audit = read(&ended);
    assert_eq!(audit.stream("stdout"), b"begun\n");
    assert_eq!(audit.all("stop")[0]["cause"], "time_limit");
    let causes: Vec<_> = audit
        .all("stop")
        .iter()
        .map(|stop| stop["cause"].to_string())
        .collect();
    assert_eq!(causes, [r#""time_limit""#, r#""killed""#]);
    let notes = audit.all("note");
    let reports = notes
        .iter()
        .filter(|note| note.to_string().contains("without /bin/sh"));
    assert_eq!(reports.count(), 1, "{notes:?}");
    run.kill().await.unwrap();
}

async fn a_kill_fails_while_the_container_is_paused(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let exec = run
        .exec(ExecSpec::new(["sh", "-c", "echo begun; exec sleep 300"]))
        .await;
    let exec = exec.unwrap();
    begun(&exec).await;
    let container = stage.containers().await.remove(0);
    stage.docker.pause_container(&container).await.unwrap();
    let error = within(60, "the error", exec.kill()).await.unwrap_err();
    assert!(
        matches!(error, Error::Runtime(RuntimeError::Conflict { .. })),
        "{error}"
    );
    stage.docker.unpause_container(&container).await.unwrap();
    let ended = outcome(&exec).await;
    assert_eq!(ended.code(), Some(137));
    assert_eq!(read(&ended).all("stop").len(), 1);
    run.kill().await.unwrap();
}

/// Kills at the end of the exec, twice at once, after the seal, and at the end of the container.
async fn a_kill_of_an_exec_that_ends_succeeds(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    for pause in ["0", "0.1", "0.3", "300"] {
        let command = format!("echo begun; exec sleep {pause}");
        let exec = run
            .exec(ExecSpec::new(["sh", "-c", &command]))
            .await
            .unwrap();
        begun(&exec).await;
        let killed = async { tokio::join!(exec.kill(), exec.kill()) };
        let (first, second) = within(60, "the kills", killed).await;
        first.unwrap();
        second.unwrap();
        within(60, "the kill", exec.kill()).await.unwrap();
    }
    let exec = run
        .exec(ExecSpec::new(["sh", "-c", "echo begun; exec sleep 300"]))
        .await;
    let exec = exec.unwrap();
    begun(&exec).await;
    let killed = async { tokio::join!(run.kill(), exec.kill()) };
    let (ended, killed) = within(60, "the kills", killed).await;
    ended.unwrap();
    killed.unwrap();
}

async fn a_kill_reaches_an_exec_of_another_user(stage: &Stage) {
    let (_manager, run) = running(stage).await;
    let spec = ExecSpec::new(["sh", "-c", CHILDREN]).user("1000:1000");
    let exec = run.exec(spec).await.unwrap();
    begun(&exec).await;
    let ended = within(60, "the kill", exec.kill()).await.unwrap();
    assert_eq!(ended.code(), Some(137));
    let left = processes(&run).await;
    assert!(!left.contains("sleep 98"), "{left}");
    run.kill().await.unwrap();
}

//! Builds with services, a workspace and artifacts.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use moat::Root;
use testkit::deadline::wait_for;
use testkit::engine;
use testkit::harness::Trial;

use crate::fixture::{
    Fixture, Process, assert_code, resumed, retried, run, text, wait_for_line, wait_for_text,
};

testkit::trials! {
    crate::on_engine:
        the_services_example_passes,
        a_service_that_is_not_ready_fails_the_build,
        a_service_that_ends_stops_the_build,
        a_step_with_a_network_does_not_join,
        artifacts_of_a_failed_step_are_copied,
        a_special_file_cannot_be_an_artifact,
        a_signal_removes_the_environment,
        a_signal_ends_the_start_of_a_service,
        resume_runs_steps_of_the_environment_again,
        the_next_build_removes_the_environment,
        a_retry_has_a_new_environment,
        resume_copies_the_artifacts_of_an_ended_step,
        the_next_build_removes_a_kept_container,
        a_later_build_removes_a_kept_container;
    on_network:
        a_service_is_ready_by_its_port_and_a_request;
    crate::anywhere:
        local_processes_have_no_environment;
    crate::on_cluster:
        pods_have_no_environment,
}

fn on_network(name: &str, trial: fn(&Fixture)) -> Trial {
    crate::on_engine(name, trial).needs(engine::network())
}

const EXAMPLE: &str = include_str!("../../../pipelines/services.toml");

/// A service that ends on SIGTERM.
const SERVICE: &str = "[[service]]\nname = 'db'\nready = { line = 'up' }\n\
    commands = [\"trap 'echo down; exit 0' TERM\", 'echo up', 'while :; do sleep 0.1; done']\n";

impl Fixture {
    /// A file of the artifacts of a step.
    fn artifact(&self, path: &str) -> PathBuf {
        self.path().join("out/artifacts").join(path)
    }

    fn read_artifact(&self, path: &str) -> String {
        fs::read_to_string(self.artifact(path)).unwrap()
    }

    /// Checks that the engine has no container, network or volume of this root.
    fn assert_nothing_is_left(&self) {
        let root = engine::root_id(&self.root()).unwrap();
        let left = || engine::block_on(engine::left(&engine::address(), &root)).unwrap();
        wait_for("the removal of the environment", || left().is_empty());
    }

    /// The artifacts of a step in the report, with their links.
    fn reported(&self, step: &str) -> Vec<(String, Option<String>)> {
        let page = fs::read_to_string(self.path().join("out/report.html")).unwrap();
        let (_, data) = page.split_once("id=\"report\">\n").unwrap();
        let (data, _) = data.split_once("</script>").unwrap();
        let report: serde_json::Value = serde_json::from_str(data).unwrap();
        let steps = report["steps"].as_array().unwrap();
        let step = steps.iter().find(|found| found["name"] == step).unwrap();
        serde_json::from_value(step["artifacts"].clone()).unwrap()
    }
}

fn the_services_example_passes(fixture: &Fixture) {
    let out = run(fixture.docker(EXAMPLE), 0);
    assert!(out.contains("\nservice web: ready\n"), "{out}");
    assert_eq!(fixture.read_artifact("build/dist/greeting"), "hello\n");
    for shard in ["1", "2"] {
        let path = format!("test-shard-{shard}/result-{shard}");
        assert_eq!(fixture.read_artifact(&path), format!("shard {shard} ok\n"));
    }
    let audits = fixture.audits();
    assert_eq!(audits["test-shard-1 1"].stream("stdout"), b"hello\n");
    let statuses = fixture.statuses();
    let names = ["build", "service web", "test (shard=1)", "test (shard=2)"];
    assert_eq!(statuses.keys().collect::<Vec<_>>(), names);
    assert!(statuses.values().all(|status| status == "passed"));
    let link = Some("artifacts/build/dist".to_owned());
    assert_eq!(fixture.reported("build"), [("dist".to_owned(), link)]);
    let services = fixture.services();
    assert_eq!(services["web 1"].stream("stdout"), b"serving\n");
    fixture.assert_nothing_is_left();
}

fn a_service_is_ready_by_its_port_and_a_request(fixture: &Fixture) {
    let pipeline = "[[service]]\nname = 'web'\ngrace = 0.1\n\
        ready = { port = 8080, http = { port = 8080, path = '/page' } }\n\
        commands = ['mkdir /www', 'echo hello > /www/page', 'sleep 1', 'httpd -f -p 8080 -h /www']\n\
        [[step]]\nname = 'a'\ncommands = ['wget -q -O - http://web:8080/page']\n";
    run(fixture.docker(pipeline), 0);
    assert_eq!(fixture.audits()["a 1"].stream("stdout"), b"hello\n");
    fixture.assert_nothing_is_left();
}

fn a_service_that_is_not_ready_fails_the_build(fixture: &Fixture) {
    let pipeline = "[[service]]\nname = 'good'\nexec = ['sleep', '600']\ngrace = 0.1\n\
        [[service]]\nname = 'db'\nready = { line = 'ready' }\nready_timeout = 3\ngrace = 0.1\n\
        commands = ['echo no disk >&2', 'exec sleep 600']\n\
        [[service]]\nname = 'never'\nexec = ['true']\n\
        [[step]]\nname = 'a'\nexec = ['true']\nartifacts = ['/file']\n";
    // Of an earlier build.
    fs::create_dir_all(fixture.artifact("a")).unwrap();
    fs::write(fixture.artifact("a/file"), "").unwrap();
    let out = run(fixture.docker(pipeline), 1);
    assert!(!fixture.artifact("a").exists());
    assert!(out.contains("\nno disk\n"), "{out}");
    assert!(out.contains("\nservice db: failed: not ready: "), "{out}");
    let statuses = fixture.statuses();
    assert_eq!(statuses["service good"], "passed");
    assert!(statuses["service db"].starts_with("failed: not ready: "));
    for skipped in ["service never", "a"] {
        assert_eq!(statuses[skipped], "skipped: service db is not ready");
    }
    let page = fs::read_to_string(fixture.path().join("out/report.html")).unwrap();
    assert!(page.contains("\"no disk\""));
    assert!(fixture.audits().is_empty());
    assert_eq!(fixture.services()["db 1"].stream("stderr"), b"no disk\n");
    fixture.assert_nothing_is_left();
}

fn a_service_that_ends_stops_the_build(fixture: &Fixture) {
    let pipeline = "workspace = '/work'\n[[service]]\nname = 'db'\n\
        commands = ['while ! test -e /work/go; do sleep 0.1; done', 'echo crashed', 'exit 3']\n\
        [[step]]\nname = 'a'\ngrace = 0.1\nretries = 1\n\
        commands = ['echo up', 'touch go', 'sleep 600']\n\
        [[step]]\nname = 'b'\nneeds = ['a']\nexec = ['true']\n\
        [[step]]\nname = 'c'\ngrace = 0.1\ncommands = ['echo up', 'touch go', 'sleep 600']\n";
    let out = run(fixture.docker_one_job(pipeline), 1);
    assert!(out.contains("\ncrashed\n"), "{out}");
    let reason = "service db has ended: exited with code 3";
    let statuses = fixture.statuses();
    for step in ["a", "c"] {
        assert_eq!(statuses[step], format!("cancelled: {reason}"));
    }
    assert_eq!(statuses["b"], "skipped: it needs a, which did not pass");
    assert_eq!(
        statuses["service db"],
        "failed: ended before the build: exited with code 3"
    );
    // The step that waited for the other one is not started.
    let audits = fixture.audits();
    assert_eq!(audits.keys().collect::<Vec<_>>(), ["a 1", "c 1"]);
    let printed: Vec<u8> = audits
        .values()
        .flat_map(|audit| audit.stream("stdout").to_vec())
        .collect();
    assert_eq!(printed, b"up\n");
    fixture.assert_nothing_is_left();
}

fn a_step_with_a_network_does_not_join(fixture: &Fixture) {
    let steps = "[[service]]\nname = 'db'\nexec = ['sleep', '600']\ngrace = 0.1\n\
        [[step]]\nname = 'in'\ncommands = ['test -e /sys/class/net/eth0', \
        'nslookup db || ping -c 1 db', 'echo x > file']\n\
        workdir = '/tmp'\n\
        [[step]]\nname = 'out'\nnetwork = 'none'\ncommands = ['! test -e /sys/class/net/eth0']\n";
    run(fixture.docker(steps), 0);
    // It still has the workspace.
    let steps = steps.replace("workdir = '/tmp'\n", "");
    let steps = steps.replace("network = 'none'", "needs = ['in']\nnetwork = 'none'");
    let steps = steps.replace("['! test", "['cat file', '! test");
    run(fixture.docker(&format!("workspace = '/work'\n{steps}")), 0);
    fixture.assert_nothing_is_left();
}

/// Of two attempts, the last one counts.
fn artifacts_of_a_failed_step_are_copied(fixture: &Fixture) {
    let pipeline = "workspace = '/work'\n[[step]]\nname = 'test/all'\nretries = 1\n\
        matrix = { os = ['a & b'] }\n\
        artifacts = ['out', '/tmp/log #1', 'missing']\n\
        commands = ['test -e again && echo 2 > /tmp/\"log #1\" || touch again /tmp/\"log #1\"', \
        'mkdir -p out/sub', 'echo x >> out/sub/file', 'ln -sf /etc/passwd out/link', 'exit 3']\n";
    let out = run(fixture.docker(pipeline), 1);
    let name = "test/all (os=a & b)";
    let warning = format!("\nwarning: {name}: artifact missing was not found\n");
    assert_eq!(out.matches(&warning).count(), 1, "{out}");
    assert_eq!(fixture.read_artifact("test-all-os-a-b/tmp/log #1"), "2\n");
    let file = fixture.read_artifact("test-all-os-a-b/out/sub/file");
    assert_eq!(file, "x\nx\n");
    // A link that leads out of the directory is left out.
    assert!(!fixture.artifact("test-all-os-a-b/out/link").exists());
    assert_eq!(fixture.statuses()[name], "failed: exited with code 3");
    let link = |link: &str| Some(format!("artifacts/test-all-os-a-b/{link}"));
    let reported = fixture.reported(name).into_iter();
    let reported: Vec<_> = reported.map(|(_, link)| link).collect();
    assert_eq!(reported, [link("out"), link("tmp/log%20%231"), None]);
    fixture.assert_nothing_is_left();
}

fn a_special_file_cannot_be_an_artifact(fixture: &Fixture) {
    let pipeline = "[[step]]\nname = 'a'\nworkdir = '/tmp'\nartifacts = ['pipe']\n\
        commands = ['mkfifo pipe']\n[[step]]\nname = 'b'\nneeds = ['a']\nexec = ['true']\n";
    run(fixture.docker(pipeline), 1);
    let statuses = fixture.statuses();
    assert!(
        statuses["a"].starts_with("failed: artifact pipe: cannot copy /tmp/pipe: "),
        "{statuses:?}"
    );
    assert_eq!(statuses["b"], "skipped: it needs a, which did not pass");
    // Its command has passed, and the step has not.
    for again in [resumed, retried] {
        run(again(fixture.docker(pipeline)), 1);
        assert!(fixture.statuses()["a"].starts_with("failed: artifact pipe: "));
    }
    fixture.assert_nothing_is_left();
}

fn a_signal_removes_the_environment(fixture: &Fixture) {
    let pipeline = format!(
        "workspace = '/work'\n{SERVICE}[[step]]\nname = 'a'\ngrace = 0.1\nartifacts = ['file']\n\
         commands = ['echo x > file', 'echo started', 'sleep 600']\n"
    );
    let process = Process::start(fixture.docker(&pipeline));
    wait_for_line(fixture, "a 1", "started");
    process.signal("TERM");
    let (code, out) = process.end();
    assert_eq!(code, 143, "{out}");
    let statuses = fixture.statuses();
    assert_eq!(statuses["a"], "cancelled: its manager was shut down");
    assert_eq!(statuses["service db"], "passed");
    let service = &fixture.services()["db 1"];
    assert_eq!(service.stream("stdout"), b"up\ndown\n");
    assert!(fixture.path().join("out/report.html").exists());
    fixture.assert_nothing_is_left();
}

fn a_signal_ends_the_start_of_a_service(fixture: &Fixture) {
    let pipeline = "[[service]]\nname = 'db'\nready = { line = 'never' }\ngrace = 0.1\n\
        commands = ['echo starting', 'exec sleep 600']\n[[step]]\nname = 'a'\nexec = ['true']\n";
    let process = Process::start(fixture.docker(pipeline));
    wait_for("the start of the service", || {
        let audits = fixture.service_files();
        let audit = audits.get("db 1").map(fs::read_to_string);
        audit.is_some_and(|audit| audit.unwrap_or_default().contains("\"starting\""))
    });
    process.signal("INT");
    let (code, out) = process.end();
    assert_eq!(code, 130, "{out}");
    let statuses = fixture.statuses();
    assert!(
        statuses["service db"].starts_with("cancelled: "),
        "{statuses:?}"
    );
    assert_eq!(statuses["a"], "skipped: service db is not ready");
    fixture.assert_nothing_is_left();
}

/// The steps append to a file of the workspace, which the resumed build does not have.
const COUNTING: &str = "[[step]]\nname = 'first'\ncommands = ['echo x >> file']\n\
    [[step]]\nname = 'slow'\nneeds = ['first']\nartifacts = ['file']\ngrace = 0.1\n\
    commands = ['echo x >> file', 'if test -e /here/go; then exit 0; fi', 'echo started', \
    'sleep 600']\nmounts = ['.:/here']\n\
    [[step]]\nname = 'lone'\nnetwork = 'none'\nexec = ['true']\n";

fn killed(fixture: &Fixture, pipeline: &str) {
    let process = Process::start(fixture.docker(pipeline));
    wait_for_line(fixture, "slow 1", "started");
    wait_for_text(fixture, "lone 1", "\"type\":\"end\"");
    process.kill();
    fs::write(fixture.path().join("go"), "").unwrap();
}

fn resume_runs_steps_of_the_environment_again(fixture: &Fixture) {
    let pipeline = format!("workspace = '/work'\n{SERVICE}{COUNTING}");
    killed(fixture, &pipeline);
    run(resumed(fixture.docker(&pipeline)), 0);
    let audits = fixture.audits();
    let runs = ["first 1", "first 2", "lone 1", "lone 2", "slow 1", "slow 2"];
    assert_eq!(audits.keys().collect::<Vec<_>>(), runs);
    assert_eq!(fixture.read_artifact("slow/file"), "x\nx\n");
    assert_eq!(
        fixture.services().keys().collect::<Vec<_>>(),
        ["db 1", "db 2"]
    );
    assert!(fixture.statuses().values().all(|status| status == "passed"));
    fixture.assert_nothing_is_left();
}

fn a_retry_has_a_new_environment(fixture: &Fixture) {
    let pipeline = format!(
        "{SERVICE}[[step]]\nname = 'in'\nexec = ['true']\n\
         [[step]]\nname = 'lone'\nnetwork = 'none'\nartifacts = ['/file']\n\
         commands = ['echo x > /file']\n\
         [[step]]\nname = 'bad'\nmounts = ['.:/here']\ncommands = ['test -e /here/go']\n"
    );
    let retry = || run(retried(fixture.docker(&pipeline)), 0);
    let runs = || Root::open(fixture.root()).unwrap().list().unwrap().len();
    run(fixture.docker(&pipeline), 1);
    fs::write(fixture.path().join("go"), "").unwrap();
    let out = retry();
    let line = "\nretry: 1 step passed before, 2 to run\n";
    assert!(out.contains(line), "{out}");
    assert!(out.contains("\nservice db: ready\n"), "{out}");
    // Of three steps and a service in the first build, all but one run again.
    assert_eq!(runs(), 4 + 3);
    assert_eq!(fixture.read_artifact("lone/file"), "x\n");
    assert!(fixture.reported("lone")[0].1.is_some());
    let out = retry();
    assert!(out.contains("\nnothing to retry: all steps"), "{out}");
    assert_eq!(runs(), 4 + 3);
    assert!(fixture.reported("lone")[0].1.is_some());
    fixture.assert_nothing_is_left();
}

fn the_next_build_removes_the_environment(fixture: &Fixture) {
    killed(
        fixture,
        &format!("{SERVICE}{}", COUNTING.replace("'file'", "'/file'")),
    );
    run(
        fixture.docker("[[step]]\nname = 'new'\nexec = ['true']\n"),
        0,
    );
    assert_eq!(fixture.audits()["slow 1"].end["stopped"], "requested");
    fixture.assert_nothing_is_left();
}

/// Kills the harness when a step has ended, and before its artifact is copied.
///
/// The output of the step does not fit into the pipe, which nothing reads.
fn killed_before_the_copy(fixture: &Fixture, pipeline: &str) {
    let process = Process::start(fixture.docker(pipeline));
    wait_for_text(fixture, "a 1", "\"type\":\"end\"");
    process.kill();
    assert!(!fixture.artifact("a/file").exists());
}

const LOUD: &str = "[[step]]\nname = 'a'\nworkdir = '/tmp'\nartifacts = ['file']\n\
    commands = ['echo x > file', 'yes $(seq 100) | head -n 1000']\n";

fn resume_copies_the_artifacts_of_an_ended_step(fixture: &Fixture) {
    killed_before_the_copy(fixture, LOUD);
    run(resumed(fixture.docker(LOUD)), 0);
    assert_eq!(fixture.audits().len(), 1);
    assert_eq!(fixture.read_artifact("a/file"), "x\n");
    fixture.assert_nothing_is_left();
    // The container is removed, and the copy stays.
    run(resumed(fixture.docker(LOUD)), 0);
    assert_eq!(fixture.read_artifact("a/file"), "x\n");
    let link = Some("artifacts/a/file".to_owned());
    assert_eq!(fixture.reported("a"), [("file".to_owned(), link)]);
}

fn the_next_build_removes_a_kept_container(fixture: &Fixture) {
    killed_before_the_copy(fixture, &format!("workspace = '/work'\n{LOUD}"));
    run(
        fixture.docker("[[step]]\nname = 'new'\nexec = ['true']\n"),
        0,
    );
    fixture.assert_nothing_is_left();
}

/// The build was not the last one when it was killed.
fn a_later_build_removes_a_kept_container(fixture: &Fixture) {
    let new = "[[step]]\nname = 'new'\nexec = ['true']\n";
    let wait = "commands = ['echo started', 'until test -e /here/go; do sleep 0.1; done', ";
    let pipeline = format!("workspace = '/work'\n{LOUD}mounts = ['.:/here']\n");
    let pipeline = pipeline.replace("commands = [", wait);
    let process = Process::start(fixture.docker(&pipeline));
    wait_for_line(fixture, "a 1", "started");
    run(fixture.docker(new), 0);
    fs::write(fixture.path().join("go"), "").unwrap();
    wait_for_text(fixture, "a 1", "\"type\":\"end\"");
    process.kill();
    run(fixture.docker(new), 0);
    fixture.assert_nothing_is_left();
}

const STEP: &str = "[[step]]\nname = 'a'\nexec = ['true']\n";

fn assert_refused(fixture: &Fixture, build: fn(&Fixture, &str) -> Command, runtime: &str) {
    for (pipeline, message) in [
        (format!("{SERVICE}{STEP}"), "service: the runtime"),
        (
            format!("workspace = '/work'\n{STEP}"),
            "workspace: the runtime",
        ),
        (
            format!("{STEP}artifacts = ['/file']\n"),
            "step \"a\": artifacts: the runtime",
        ),
    ] {
        let output = build(fixture, &pipeline).output().unwrap();
        assert_code(&output, 2);
        let stderr = text(&output.stderr);
        let message = format!("{message} {runtime:?} ");
        assert!(stderr.contains(&message), "{stderr}");
    }
    assert!(!fixture.root().exists() && !fixture.path().join("out").exists());
}

fn local_processes_have_no_environment(fixture: &Fixture) {
    assert_refused(fixture, Fixture::process, "process");
}

fn pods_have_no_environment(fixture: &Fixture) {
    assert_refused(fixture, Fixture::cluster, "kubernetes");
}

//! Small programs on moat alone: a CI runner, a sandbox, and a test suite.

mod runner;
mod sandbox;
mod suite;

use std::fs;
use std::time::Duration;

use moat::outcome::StopCause;
use moat::tokio_util::sync::CancellationToken;
use testkit::deadline::within;
use testkit::engine;
use testkit::harness::Trial;

use self::runner::Job;
use self::sandbox::Sandbox;
use crate::stage::Stage;

testkit::trials! {
    crate::on_busybox:
        a_runner_has_a_service_a_workspace_and_artifacts,
        a_sandbox_limits_commands_and_moves_files;
    on_busybox_with_network:
        a_suite_has_a_service_for_each_test,
}

fn on_busybox_with_network(name: &str, trial: impl AsyncFnOnce(&Stage) + Send + 'static) -> Trial {
    crate::on_busybox(name, trial).needs(engine::network())
}

async fn a_runner_has_a_service_a_workspace_and_artifacts(stage: &Stage) {
    let manager = stage.manager().await;
    let (workspace, artifacts) = (
        stage.dir.path().join("source"),
        stage.dir.path().join("out"),
    );
    fs::create_dir(&workspace).unwrap();
    fs::write(workspace.join("input"), "from the workspace\n").unwrap();
    let job = Job {
        image: &stage.image,
        service: "mkdir /tmp/www; echo from the service > /tmp/www/page; \
                  exec httpd -f -p 8080 -h /tmp/www",
        ready: "wget -q -O - http://127.0.0.1:8080/page",
        script: "cat source/input > out/$CELL && wget -q -O - http://service:8080/page >> out/$CELL \
                 && test $CELL != red",
        cells: &["blue", "green", "red"],
        workspace: &workspace,
        artifacts: &artifacts,
    };
    let outcomes = within(150, "the job", runner::run(&manager, &job))
        .await
        .unwrap();
    let codes: Vec<_> = outcomes.iter().map(|outcome| outcome.code()).collect();
    assert_eq!(codes, [Some(0), Some(0), Some(1)]);
    for cell in job.cells {
        let artifact = fs::read_to_string(artifacts.join(cell)).unwrap();
        assert_eq!(artifact, "from the workspace\nfrom the service\n");
    }
    stage.is_clean().await;
}

async fn a_sandbox_limits_commands_and_moves_files(stage: &Stage) {
    let manager = stage.manager().await;
    let sandbox = Sandbox::new(&manager, &stage.image).await.unwrap();
    sandbox.write("/work/input", "up\n").await.unwrap();
    let run =
        |script: &'static str| within(60, script, sandbox.run(script, CancellationToken::new()));
    let output = run("tr a-z A-Z < input > output; id -u; exit 3")
        .await
        .unwrap();
    assert_eq!(
        (output.status.code(), &*output.stdout),
        (Some(3), &b"1000\n"[..])
    );
    assert_eq!(sandbox.read("/work/output").await.unwrap(), b"UP\n");
    let written = run("echo x > /etc/x; echo x > /work/y && cat /work/y")
        .await
        .unwrap();
    assert_eq!(
        (written.status.code(), &*written.stdout),
        (Some(0), &b"x\n"[..])
    );

    let limited = run("sleep 987 & sleep 986").await.unwrap();
    assert_eq!(stopped(&limited), Some(StopCause::TimeLimit));
    let flood = run("yes").await.unwrap();
    assert_eq!(stopped(&flood), Some(StopCause::OutputLimit));
    assert_eq!(flood.stdout.len(), 1 << 20);
    let cancel = CancellationToken::new();
    let cancelled = sandbox.run("sleep 985 & sleep 984", cancel.clone());
    let later = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.cancel();
    };
    let (cancelled, ()) = within(60, "the cancelled command", async {
        tokio::join!(cancelled, later)
    })
    .await;
    assert_eq!(stopped(&cancelled.unwrap()), Some(StopCause::Cancelled));
    let left = run("ps").await.unwrap();
    let left = String::from_utf8(left.stdout).unwrap();
    assert!(
        !left.contains("sleep 98") && !left.contains("yes"),
        "{left}"
    );
    drop(sandbox);
    stage.is_clean().await;
}

fn stopped(output: &moat::run::Output) -> Option<StopCause> {
    output.status.sealed().unwrap().stopped
}

async fn a_suite_has_a_service_for_each_test(stage: &Stage) {
    let (root, image) = (&stage.root(), &stage.image);
    suite::a_page_is_served(root, image).await;
    suite::a_new_page_is_served(root, image).await;
    suite::a_missing_page_is_an_error(root, image).await;
    stage.is_clean().await;
}

//! Builds whose steps run in the pods of a Kubernetes cluster.

use std::fs;
use std::process::Command;

use quick_junit::TestCaseStatus;
use serde_json::json;
use testkit::cluster::{kubectl, kubectl_as, pods};

use crate::fixture::{Fixture, Process, assert_code, run, text};
use crate::{resume, shutdown, steps};

testkit::trials! {
    crate::on_cluster:
        the_demo_passes_in_pods,
        failures_and_limits_fail_the_build,
        a_step_gets_its_environment_and_secrets,
        a_directory_of_this_machine_is_refused,
        a_signal_stops_and_removes_pods,
        resume_recovers_running_pods,
        the_next_build_stops_leftover_pods;
    crate::on_local_cluster:
        steps_share_a_claim;
}

fn the_demo_passes_in_pods(fixture: &Fixture) {
    steps::assert_demo_passed(fixture, &run(fixture.cluster(steps::DEMO), 0));
    fixture.assert_no_pods();
}

fn failures_and_limits_fail_the_build(fixture: &Fixture) {
    let out = run(
        fixture.cluster(
            "[[step]]\nname = 'bad'\nretries = 1\n\
             commands = ['echo broken >&2', 'exit 7', 'echo not here']\n\
             [[step]]\nname = 'after'\nneeds = ['bad']\nexec = ['true']\n\
             [[step]]\nname = 'hangs'\ntimeout = 1\ngrace = 0.3\n\
             commands = ['echo started', 'sleep 600']\n\
             [[step]]\nname = 'missing'\nexec = ['/no/such/program']\n",
        ),
        1,
    );
    let statuses = fixture.statuses();
    assert_eq!(statuses["bad"], "failed: exited with code 7");
    assert_eq!(
        statuses["after"],
        "skipped: it needs bad, which did not pass"
    );
    assert_eq!(statuses["hangs"], "timed out: its time limit was reached");
    let missing = &statuses["missing"];
    assert!(missing.contains("/no/such/program"), "{missing}");
    assert!(
        out.contains("\nbroken\n") && !out.contains("not here"),
        "{out}"
    );
    let audits = fixture.audits();
    let runs = ["bad 1", "bad 2", "hangs 1", "missing 1"];
    assert_eq!(audits.keys().collect::<Vec<_>>(), runs);
    assert_eq!(audits["bad 2"].stream("stderr"), b"broken\n");
    assert_eq!(audits["hangs 1"].stream("stdout"), b"started\n");
    let junit = fixture.junit();
    let cases = junit.test_suites.iter().flat_map(|suite| &suite.test_cases);
    let bad = cases.into_iter().find(|case| case.name.as_str() == "bad");
    let TestCaseStatus::NonSuccess { reruns, .. } = &bad.unwrap().status else {
        panic!("{bad:?}");
    };
    assert_eq!(reruns.runs.len(), 1);
    let report = fs::read_to_string(fixture.path().join("out/report.html")).unwrap();
    assert!(report.contains("exited with code 7"));
    fixture.assert_no_pods();
}

fn a_step_gets_its_environment_and_secrets(fixture: &Fixture) {
    let mut command = fixture.cluster(
        "env = { A = '1', B = '2' }\n\
         [[step]]\nname = 'a'\nenv = { B = '3 $A $(A)' }\nworkdir = '/tmp'\n\
         secrets = ['MOAT_TEST_SECRET']\n\
         commands = ['echo \"$A $B $(pwd)\"', 'echo \"$MOAT_TEST_SECRET\"']\n",
    );
    command.env("MOAT_TEST_SECRET", "s3cr3t");
    let out = run(command, 0);
    assert!(out.contains("\n***\n") && !out.contains("s3cr3t"), "{out}");
    let audits = fixture.audits();
    let found = audits["a 1"].stream("stdout");
    assert_eq!(text(found), "1 3 $A $(A) /tmp\ns3cr3t\n");
}

fn a_directory_of_this_machine_is_refused(fixture: &Fixture) {
    let pipeline = "[[step]]\nname = 'a'\nexec = ['true']\n\
        [[step]]\nname = 'b'\nexec = ['true']\nmounts = ['.:/src']\n";
    let output = fixture.cluster(pipeline).output().unwrap();
    assert_code(&output, 2);
    let stderr = text(&output.stderr);
    let message = "step \"b\": mounts: a directory of this machine cannot be mounted into a pod";
    assert!(stderr.contains(message), "{stderr}");
    assert!(!fixture.root().exists() && !fixture.path().join("out").exists());
}

fn a_signal_stops_and_removes_pods(fixture: &Fixture) {
    let process = Process::start(fixture.cluster(shutdown::PIPELINE));
    shutdown::stop(fixture, process, "INT", 130);
    fixture.assert_no_pods();
}

fn resume_recovers_running_pods(fixture: &Fixture) {
    resume::recover_running(fixture, Fixture::cluster);
    fixture.assert_no_pods();
}

fn the_next_build_stops_leftover_pods(fixture: &Fixture) {
    resume::stop_leftovers(fixture, Fixture::cluster, |root| pods(root).len());
    fixture.assert_no_pods();
}

/// A claim of a directory of this machine. Dropped, it is removed.
struct Claim {
    name: String,
    file: String,
}

impl Claim {
    fn new(fixture: &Fixture) -> Self {
        let dir = fixture.path().join("volume");
        fs::create_dir(&dir).unwrap();
        let name = fixture.path().file_name().unwrap().to_str().unwrap();
        let name = name.to_ascii_lowercase();
        let namespace = "jsonpath={.contexts[0].context.namespace}";
        let namespace = kubectl(&["config", "view", "--minify", "-o", namespace]);
        let size = json!({"storage": "1Mi"});
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "capacity": size,
                    "accessModes": ["ReadWriteMany"],
                    "hostPath": {"path": dir},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "volumeName": name,
                    "storageClassName": "",
                    "accessModes": ["ReadWriteMany"],
                    "resources": {"requests": size},
                },
            },
        ]});
        let file = fixture.path().join("claim.json");
        fs::write(&file, objects.to_string()).unwrap();
        let file = file.to_str().unwrap().to_owned();
        kubectl_as("admin", &["create", "-f", &file]);
        Self { name, file }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let delete = ["--context", "admin", "delete", "--wait=false", "-f"];
        let _ = Command::new("kubectl")
            .args(delete)
            .arg(&self.file)
            .output();
    }
}

fn steps_share_a_claim(fixture: &Fixture) {
    let claim = Claim::new(fixture);
    let name = &claim.name;
    let pipeline = format!(
        "[[step]]\nname = 'build'\nmounts = ['{name}:/work']\nworkdir = '/work'\n\
         commands = ['echo built > file']\n\
         [[step]]\nname = 'test'\nneeds = ['build']\nmounts = ['{name}:/src:ro']\n\
         commands = ['cat /src/file', '! echo x > /src/file']\n"
    );
    run(fixture.cluster(&pipeline), 0);
    assert_eq!(fixture.audits()["test 1"].stream("stdout"), b"built\n");
    fixture.assert_no_pods();
}

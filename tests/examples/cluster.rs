//! The examples `run` and `runs`, on a Kubernetes cluster.

use std::process::Stdio;

use testkit::sequence;

use crate::place::{Place, Process, assert_code, audit_of, audited, output, text};
use crate::runs::{RECOVERED_STEPS, assert_recovered_after_kill};

testkit::trials! {
    crate::on_cluster:
        a_detached_pod_can_be_managed,
        it_follows_executes_and_stops_in_a_pod_of_another_process,
        the_pod_of_a_killed_run_is_recovered_without_loss,
}

fn a_detached_pod_can_be_managed(place: &Place) {
    let found = output(place.run_pod(&["--detach"], "lines 100 + sleep 5 + exit 9"));
    assert_code(&found, 0);
    let id = text(&found.stdout).trim().to_owned();
    audit_of(&found);
    let found = output(place.runs_of_pods(&["list", "--json"]));
    assert_code(&found, 0);
    let listed: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(listed["run"], id.as_str());
    assert_eq!(listed["status"], "running");
    assert_code(&output(place.runs_of_pods(&["wait", &id])), 9);
    let found = output(place.runs_of_pods(&["logs", &id]));
    assert_code(&found, 0);
    assert_eq!(found.stdout, sequence::lines("out", 100, 64));
    assert_code(&output(place.runs(&["verify", &id])), 0);
    assert_code(&output(place.runs_of_pods(&["remove", &id])), 0);
    assert!(!place.root().join(&id).exists());
    place.assert_no_pods();
}

fn it_follows_executes_and_stops_in_a_pod_of_another_process(place: &Place) {
    let command = place.run_pod(&["--name", "first"], "lines 100 + trap --exit 5");
    let mut owner = Process::start_silent(command);
    audited(&place.audit("first"), "ready");
    let start = |arguments: &[&str]| {
        let mut command = place.runs_of_pods(arguments);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let follow = start(&["logs", "first", "--follow"]);
    let attach = start(&["attach", "first"]);
    let wait = start(&["wait", "first"]);
    let exec = ["exec", "first", "--", "/workload", "echo", "hello", "+"];
    let found = output(place.runs_of_pods(&[&exec[..], &["exit", "3"]].concat()));
    assert_code(&found, 3);
    assert_eq!(text(&found.stdout), "hello\n");
    assert_code(&output(place.runs_of_pods(&["remove", "first"])), 125);
    assert_code(&output(place.runs_of_pods(&["stop", "first"])), 0);
    let mut expected = sequence::lines("out", 100, 64);
    expected.extend_from_slice(b"ready\ncaught SIGTERM\n");
    for (reader, code) in [(follow, 0), (attach, 5)] {
        let found = reader.wait_with_output().unwrap();
        assert_code(&found, code);
        assert!(found.stdout == expected, "{}", text(&found.stdout));
    }
    assert_code(&wait.wait_with_output().unwrap(), 5);
    assert_eq!(owner.0.wait().unwrap().code(), Some(5));
    place.assert_no_pods();
}

fn the_pod_of_a_killed_run_is_recovered_without_loss(place: &Place) {
    let run = place.run_pod(&["--name", "first"], RECOVERED_STEPS);
    assert_recovered_after_kill(place, run, place.runs_of_pods(&["recover"]));
    place.assert_no_pods();
}

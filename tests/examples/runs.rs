//! The example `runs`, on an engine.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::audit::Audit;
use testkit::sequence;

use crate::place::{Place, Process, assert_code, audit_of, audited, output, text};

testkit::trials! {
    crate::on_engine:
        verify_finds_one_changed_byte,
        verify_names_the_run_of_an_exchanged_file,
        #[cfg(feature = "sign")] verify_checks_the_signature,
        a_killed_run_is_recovered_without_loss,
        a_detached_run_can_be_managed,
        it_follows_and_stops_a_run_of_another_process,
        list_logs_and_verify_need_no_engine;
    crate::anywhere:
        list_has_the_times_and_the_reason_of_a_stop,
        verify_names_a_removed_run,
}

fn list_has_the_times_and_the_reason_of_a_stop(place: &Place) {
    let limited = ["--name", "late", "--timeout", "0.2"];
    assert_code(&output(place.process(&limited, "sleep 600")), 124);
    assert_code(&output(place.process(&["--name", "done"], "exit 7")), 7);
    let found = output(place.runs(&["list", "--json"]));
    let runs: Vec<serde_json::Value> = text(&found.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let found = output(place.runs(&["list"]));
    let table = text(&found.stdout);
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0][3..6], ["STARTED", "ENDED", "STOPPED"]);
    for (number, (name, stopped)) in [("done", None), ("late", Some("time_limit"))]
        .into_iter()
        .enumerate()
    {
        let (run, row) = (&runs[number], &rows[number + 1]);
        assert_eq!(run["run"], name);
        assert_eq!(run["stopped"].as_str(), stopped);
        let time = |field: &str| run[field].as_str().unwrap();
        assert!(time("started_at") <= time("ended_at"), "{run}");
        assert!(run["record"]["created"].is_string(), "{run}");
        let start = |field| format!("{}Z", &time(field)[..19]);
        let expected = [start("started_at"), start("ended_at")];
        assert_eq!(row[3..5], expected);
        assert_eq!(row[5], stopped.unwrap_or("-"));
    }
}

fn verify_names_a_removed_run(place: &Place) {
    for name in ["a", "b"] {
        assert_code(&output(place.process(&["--name", name], "exit 7")), 7);
    }
    assert_code(
        &output(place.runs(&["remove", "a", "--runtime", "process"])),
        0,
    );
    let head = text(&output(place.runs(&["head"])).stdout);
    let verified = output(place.runs(&["verify", "--head", head.trim()]));
    assert_code(&verified, 0);
    assert!(text(&verified.stdout).contains("intact; 1 run, 1 sealed, 7 lines"));
    let history = text(&output(place.runs(&["history", "a"])).stdout);
    let history: Vec<_> = history.lines().collect();
    assert_eq!(history.len(), 4, "{history:?}");
    assert!(
        history[1].ends_with("a  exited with code 7, complete"),
        "{history:?}"
    );
    assert!(
        history[2].contains("a  being removed by runs"),
        "{history:?}"
    );

    let bundle = place.dir.path().join("b.tar");
    let bundle = bundle.to_str().unwrap();
    assert_code(&output(place.runs(&["export", "b", bundle])), 0);
    assert_code(&output(place.runs(&["verify", bundle])), 0);
    assert_code(&output(place.runs(&["export", "b", bundle])), 125);

    fs::remove_dir_all(place.audit("b").parent().unwrap()).unwrap();
    let verified = output(place.runs(&["verify"]));
    assert_code(&verified, 1);
    let found = text(&verified.stdout);
    assert!(found.contains("run b: removed: "), "{found}");
    assert_code(
        &output(place.runs(&["verify", "--head", "moat-head v2"])),
        125,
    );
}

fn verify_finds_one_changed_byte(place: &Place) {
    assert_code(
        &output(place.run(&["--name", "first"], "echo out + exit 7")),
        7,
    );
    assert_code(&output(place.runs(&["verify", "first"])), 0);
    let sum = |path: &Path| {
        let script = "head -c -78 \"$1\" | sha256sum | cut -c -64; tail -c 67 \"$1\" | head -c 64";
        let output = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(path)
            .output()
            .unwrap();
        let text = text(&output.stdout);
        let (found, sealed) = text.split_once('\n').unwrap();
        found == sealed
    };
    let path = place.audit("first");
    assert!(sum(&path));
    let bytes = fs::read(&path).unwrap();
    let changed = place.dir.path().join("changed.jsonl");
    let code = text(&bytes).find("\"code\":7").unwrap() + 7;
    for at in (0..bytes.len()).step_by(97).chain([code]) {
        let mut copy = bytes.clone();
        copy[at] ^= 1;
        fs::write(&changed, &copy).unwrap();
        let output = output(place.runs(&["verify", changed.to_str().unwrap()]));
        assert_ne!(output.status.code(), Some(0), "byte {at} was changed");
        // The text around the digest is the same in every seal, so only moat checks it.
        let from_end = bytes.len() - at;
        let frames = from_end <= 3 || (68..=78).contains(&from_end);
        assert!(frames || !sum(&changed), "byte {at} was changed");
    }
}

/// The steps of the run of [`assert_recovered_after_kill`].
pub const RECOVERED_STEPS: &str = "lines 2000 --burst 10 --delay-ms 25";

/// Kills `run`, the process of the run `first`, amid its output, and checks that `recover` completes
/// the audit.
pub fn assert_recovered_after_kill(place: &Place, run: Command, recover: Command) {
    let process = Process::start_silent(run);
    audited(&place.audit("first"), "out 00000300 ");
    drop(process);
    let found = output(recover);
    assert_code(&found, 0);
    let stdout = text(&found.stdout);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(
        stdout.contains("first") && stdout.contains("complete"),
        "{stdout}"
    );
    let audit = Audit::read(&place.audit("first")).unwrap();
    sequence::check(audit.stream("stdout"), "out", 2000, 64).unwrap();
}

/// A run is not signed by the example, so the test signs its file.
#[cfg(feature = "sign")]
fn verify_checks_the_signature(place: &Place) {
    let keys = testkit::keygen::Keys::new();
    assert_code(
        &output(place.run(&["--name", "first"], "echo out + exit 0")),
        0,
    );
    let allowed = keys.write("allowed", format!("me {}\n", keys.public("key")));
    let allowed = allowed.to_str().unwrap();
    let verify = |who: &str| {
        output(place.runs(&[
            "verify",
            "first",
            "--allowed-signers",
            allowed,
            "--identity",
            who,
        ]))
    };
    let unsigned = verify("me");
    assert_code(&unsigned, 1);
    assert!(text(&unsigned.stdout).contains("no signature file"));

    let root = moat::Root::open(place.root()).unwrap();
    let path = root.audit(&moat::RunId::new("first").unwrap());
    let key = moat::sign::SigningKey::from_file(keys.path("key")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let file = std::fs::read(&path).unwrap();
    let signature = runtime.block_on(key.sign(moat::sign::NAMESPACE, &file));
    std::fs::write(moat::sign::signature_path(&path), signature.unwrap()).unwrap();
    let signed = verify("me");
    assert_code(&signed, 0);
    assert!(text(&signed.stdout).contains("signed by me with the key SHA256:"));
    assert_code(&verify("you"), 1);
}

fn verify_names_the_run_of_an_exchanged_file(place: &Place) {
    for name in ["first", "second"] {
        assert_code(&output(place.run(&["--name", name], "echo out")), 0);
    }
    let other = place.audit("second");
    fs::copy(&other, place.audit("first")).unwrap();
    let found = output(place.runs(&["verify", "first"]));
    assert_code(&found, 1);
    let expected =
        "line 1 (offset 0): it belongs to run second, but is in the directory of run first";
    assert!(
        text(&found.stdout).contains(expected),
        "{}",
        text(&found.stdout)
    );
    assert_code(&output(place.runs(&["verify", other.to_str().unwrap()])), 0);
}

fn a_killed_run_is_recovered_without_loss(place: &Place) {
    let run = place.run(&["--name", "first"], RECOVERED_STEPS);
    assert_recovered_after_kill(place, run, place.runs(&["recover"]));
}

fn a_detached_run_can_be_managed(place: &Place) {
    let found = output(place.run(&["--detach"], "lines 100 + sleep 5 + exit 9"));
    assert_code(&found, 0);
    let id = text(&found.stdout).trim().to_owned();
    audit_of(&found);
    let found = output(place.runs(&["list", "--json"]));
    assert_code(&found, 0);
    let listed: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(listed["run"], id.as_str());
    assert_eq!(listed["status"], "running");
    let found = output(place.runs(&["wait", &id]));
    assert_code(&found, 9);
    let found = output(place.runs(&["logs", &id]));
    assert_code(&found, 0);
    assert_eq!(found.stdout, sequence::lines("out", 100, 64));
    assert_code(&output(place.runs(&["verify", &id])), 0);
    assert_code(&output(place.runs(&["remove", &id])), 0);
    assert!(!place.root().join(&id).exists());
    assert_code(&output(place.runs(&["wait", &id])), 125);
}

fn it_follows_and_stops_a_run_of_another_process(place: &Place) {
    let command = place.run(&["--name", "first"], "lines 100 + trap --exit 5");
    let mut owner = Process::start_silent(command);
    audited(&place.audit("first"), "ready");
    let mut follow = place.runs(&["logs", "first", "--follow"]);
    let follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut wait = place.runs(&["wait", "first"]);
    let wait = wait.stdout(Stdio::piped()).spawn().unwrap();
    let refused = output(place.runs(&["remove", "first"]));
    assert_code(&refused, 125);
    assert_code(&output(place.runs(&["stop", "first"])), 0);
    let followed = follow.wait_with_output().unwrap();
    let mut expected = sequence::lines("out", 100, 64);
    expected.extend_from_slice(b"ready\ncaught SIGTERM\n");
    assert!(followed.stdout == expected, "{}", text(&followed.stdout));
    assert_code(&wait.wait_with_output().unwrap(), 5);
    assert_eq!(owner.0.wait().unwrap().code(), Some(5));
}

fn list_logs_and_verify_need_no_engine(place: &Place) {
    assert_code(
        &output(place.run(&["--name", "first"], "echo out + warn err + exit 7")),
        7,
    );
    let alone = |arguments: &[&str]| {
        let mut command = place.runs(arguments);
        command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
        output(command)
    };
    let listed = alone(&["list"]);
    assert_code(&listed, 0);
    let table = text(&listed.stdout);
    assert!(
        table.contains("first") && table.contains("exited"),
        "{table}"
    );
    let logs = alone(&["logs", "first"]);
    assert_eq!(
        (text(&logs.stdout), text(&logs.stderr)),
        ("out\n".into(), "err\n".into())
    );
    assert_code(&alone(&["verify", "first"]), 0);
    assert_code(&alone(&["verify", "other"]), 125);
    assert_code(&alone(&["wait", "first"]), 125);
}

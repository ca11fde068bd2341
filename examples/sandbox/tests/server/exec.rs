//! Commands in a session.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, shell};
use crate::fixture::Server;
use testkit::audit::assert_bytes;
use testkit::deadline::eventually;

testkit::trials! {
    crate::on_engine:
        streams_are_apart_and_in_order,
        exit_codes_and_failed_starts_are_reported,
        a_command_has_environment_and_directory,
        a_command_reads_its_input,
        a_command_runs_as_the_user,
        bytes_arrive_whole,
        limits_stop_a_command,
        a_command_is_killed_on_request,
        a_disconnect_kills_the_command,
        a_child_in_the_background_does_not_delay_the_end,
        much_output_arrives_whole_and_is_audited,
        the_quota_of_commands_holds;
    crate::on_process:
        streams_are_apart_and_in_order,
        exit_codes_and_failed_starts_are_reported,
        a_command_has_environment_and_directory,
        input_of_a_local_process_is_refused,
        bytes_arrive_whole,
        limits_stop_a_command,
        a_command_is_killed_on_request,
        a_disconnect_kills_the_command,
        much_output_arrives_whole_and_is_audited,
        the_quota_of_commands_holds,
}

async fn streams_are_apart_and_in_order(server: &mut Server) {
    let id = server.session().await;
    let script = "for n in 1 2 3 4 5 6 7 8 9; do echo out $n; echo err $n >&2; done";
    let output = server.alice().shell(&id, script).await;
    let lines = |stream: &str| {
        (1..=9)
            .map(|n| format!("{stream} {n}\n"))
            .collect::<String>()
    };
    assert_eq!(output.ok(), lines("out"));
    assert_bytes(&output.stderr, lines("err").as_bytes());
    let exits = output.events.iter().filter(|(name, _)| name == "exit");
    assert_eq!(exits.count(), 1);
    assert_eq!(output.exit["exec"], output.id);
    assert_eq!(output.exit["ending"], "exited");
}

async fn exit_codes_and_failed_starts_are_reported(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    for code in [0, 1, 42, 255] {
        let output = alice.shell(&id, &format!("exit {code}")).await;
        assert_eq!(output.exit["code"], code);
        assert_eq!(output.exit["stopped"], Value::Null);
    }
    let path = format!("/sessions/{id}/execs");
    let execs = alice.get(&path).await.expect(200);
    let execs = execs["execs"].as_array().unwrap();
    assert_eq!(execs.len(), 4);
    assert!(
        execs.iter().all(|exec| exec["state"] == "ended"),
        "{execs:?}"
    );
    let mut codes: Vec<_> = execs.iter().map(|exec| exec["code"].as_i64()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(1), Some(42), Some(255)]);
    let absent = json!({"cmd": ["/absent/program"]});
    assert_absent_program(&alice, &id, &absent).await;
    assert_eq!(alice.shell(&id, "echo again").await.ok(), "again\n");
}

/// Either the request fails, or the command does, with a code other than 0.
async fn assert_absent_program(client: &Client, session: &str, body: &Value) {
    let answer = client
        .post(&format!("/sessions/{session}/exec"), body)
        .await;
    if answer.status == 200 {
        let events = String::from_utf8(answer.body).unwrap();
        assert!(events.contains("event: exit"), "{events}");
        assert!(!events.contains("\"code\":0"), "{events}");
    } else {
        answer.detail(400);
    }
}

async fn a_command_has_environment_and_directory(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let body = json!({
        "cmd": ["sh", "-c", "echo \"$WORD\"; pwd; cat"],
        "env": {"WORD": "blue green"}, "workdir": "/tmp",
    });
    // Without input, the command reads an end.
    assert_eq!(alice.exec(&id, &body).await.ok(), "blue green\n/tmp\n");
}

async fn a_command_reads_its_input(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let input = "first\nsecond without a newline";
    let body = json!({"cmd": ["cat"], "stdin": input});
    assert_eq!(alice.exec(&id, &body).await.ok(), input);
    let body = json!({"cmd": ["cat"], "stdin": ""});
    assert_eq!(alice.exec(&id, &body).await.ok(), "");
    let large = "x".repeat(900_000);
    let body = json!({"cmd": ["wc", "-c"], "stdin": large});
    assert_eq!(alice.exec(&id, &body).await.ok().trim(), "900000");
    // A command that does not read it ends nevertheless.
    let body = json!({"cmd": ["true"], "stdin": large});
    assert_eq!(alice.exec(&id, &body).await.ok(), "");
}

async fn input_of_a_local_process_is_refused(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let body = json!({"cmd": ["cat"], "stdin": "text"});
    let path = format!("/sessions/{id}/exec");
    alice.post(&path, &body).await.detail(501);
    let execs = alice
        .get(&format!("/sessions/{id}/execs"))
        .await
        .expect(200);
    assert_eq!(execs["execs"].as_array().unwrap().len(), 0);
}

async fn a_command_runs_as_the_user(server: &mut Server) {
    let id = server.session().await;
    let body = json!({"cmd": ["id", "-u"], "user": "1234"});
    assert_eq!(server.alice().exec(&id, &body).await.ok(), "1234\n");
}

async fn bytes_arrive_whole(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let output = alice.shell(&id, r"printf 'a\377\376\000b\n'").await;
    assert_bytes(&output.stdout, b"a\xff\xfe\0b\n");
    let encoded = output
        .events
        .iter()
        .any(|(_, data)| data["base64"].is_string());
    assert!(encoded, "{:?}", output.events);

    // The halves of a character arrive apart.
    let script = r"printf 'a\303'; sleep 0.3; printf '\251 \342\202'; sleep 0.3; printf '\254\n'";
    let output = alice.shell(&id, script).await;
    assert_eq!(output.text(), "aé €\n");
    let encoded = output
        .events
        .iter()
        .any(|(_, data)| data["base64"].is_string());
    assert!(!encoded, "{:?}", output.events);
}

async fn limits_stop_a_command(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let start = Instant::now();
    let output = alice
        .exec(&id, &with("sleep 600", json!({"time_limit_seconds": 1})))
        .await;
    assert_eq!(output.stopped(), "time_limit");
    let busy = "while :; do echo line; sleep 0.05; done";
    let output = alice
        .exec(&id, &with(busy, json!({"time_limit_seconds": 1})))
        .await;
    assert_eq!(output.stopped(), "time_limit");
    assert!(output.text().starts_with("line\nline\n"));
    let silent = "echo one; sleep 600";
    let output = alice
        .exec(&id, &with(silent, json!({"silence_limit_seconds": 1})))
        .await;
    assert_eq!(output.stopped(), "silence_limit");
    assert_eq!(output.text(), "one\n");
    let output = alice
        .exec(&id, &with("yes", json!({"output_limit_bytes": 10_000})))
        .await;
    assert_eq!(output.stopped(), "output_limit");
    assert!(output.stdout.len() <= 10_000, "{}", output.stdout.len());
    assert!(output.text().starts_with("y\ny\n"));
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(alice.session(&id).await["state"], "running");
}

fn with(script: &str, limits: Value) -> Value {
    let mut body = shell(script);
    let Value::Object(limits) = limits else {
        unreachable!()
    };
    body.as_object_mut().unwrap().extend(limits);
    body
}

async fn a_command_is_killed_on_request(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let mut command = alice.start(&id, &shell("echo $$; exec sleep 600")).await;
    command.wait_for("\n").await;
    let pid = String::from_utf8(command.output.stdout.clone()).unwrap();
    let path = format!("/sessions/{id}/execs/{}", command.id);
    alice.delete(&path).await.expect(204);
    let output = command.end().await;
    assert!(!output.stopped().is_empty(), "{:?}", output.exit);
    assert_gone(&alice, &id, pid.trim()).await;
    alice.delete(&path).await.expect(204);
    alice
        .delete(&format!("/sessions/{id}/execs/999"))
        .await
        .detail(404);
}

/// Waits until the process is gone.
pub async fn assert_gone(client: &Client, session: &str, pid: &str) {
    let script = format!("kill -0 {pid} 2>&-");
    eventually(20, "the end of the process", async || {
        let output = client.shell(session, &script).await;
        (output.exit["code"] != 0).then_some(())
    })
    .await;
}

async fn a_disconnect_kills_the_command(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let mut command = alice.start(&id, &shell("echo $$; exec sleep 600")).await;
    command.wait_for("\n").await;
    let pid = String::from_utf8(command.output.stdout.clone()).unwrap();
    let alive = format!("kill -0 {}", pid.trim());
    assert_eq!(alice.shell(&id, &alive).await.ok(), "");
    let exec = command.id.clone();
    drop(command);
    assert_gone(&alice, &id, pid.trim()).await;
    let ended = eventually(20, "the end of the command", async || {
        let list = alice
            .get(&format!("/sessions/{id}/execs"))
            .await
            .expect(200);
        let execs = list["execs"].as_array().unwrap();
        let found = execs.iter().find(|one| one["id"] == *exec).cloned();
        found.filter(|one| one["state"] == "ended")
    })
    .await;
    assert!(ended["stopped"].is_string(), "{ended}");
}

async fn a_child_in_the_background_does_not_delay_the_end(server: &mut Server) {
    let id = server.session().await;
    let start = Instant::now();
    let output = server.alice().shell(&id, "sleep 60 & echo main").await;
    assert_eq!(output.ok(), "main\n");
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

async fn much_output_arrives_whole_and_is_audited(server: &mut Server) {
    let alice = server.alice();
    let id = server.session().await;
    let output = alice.shell(&id, "seq 1 150000; seq 1 1000 >&2").await;
    let numbers = |to: u32| (1..=to).map(|n| format!("{n}\n")).collect::<String>();
    assert_bytes(output.ok().as_bytes(), numbers(150_000).as_bytes());
    assert_bytes(&output.stderr, numbers(1000).as_bytes());
    let audit = alice.audit_of(&id, &output.id).await;
    let audit = crate::audits::parse(server, &audit);
    assert_bytes(audit.stream("stdout"), &output.stdout);
    assert_bytes(audit.stream("stderr"), &output.stderr);
    assert_eq!(audit.verdict(), output.exit["verdict"]);
}

async fn the_quota_of_commands_holds(server: &mut Server) {
    server.restart_with_quota("execs = 2").await;
    let alice = server.alice();
    let ids = [server.session().await, server.session().await];
    let first = alice.start(&ids[0], &shell("exec sleep 600")).await;
    let second = alice.start(&ids[1], &shell("exec sleep 600")).await;
    let path = format!("/sessions/{}/exec", ids[0]);
    let detail = alice.post(&path, &shell("true")).await.detail(429);
    assert!(detail.contains("commands"), "{detail}");
    drop(first);
    eventually(20, "a free place", async || {
        let answer = alice.post(&path, &shell("true")).await;
        (answer.status == 200).then_some(())
    })
    .await;
    alice
        .delete(&format!("/sessions/{}/execs/{}", ids[1], second.id))
        .await
        .expect(204);
    second.end().await;
}

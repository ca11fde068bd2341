//! SIGKILL of the server, and its restart.

use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};

use crate::audits::{parse, verify};
use crate::client::{Client, Command, shell};
use crate::fixture::Server;
use crate::terminal::Terminal;
use testkit::audit::Audit;
use testkit::deadline::eventually;

testkit::trials! {
    crate::on_engine:
        sessions_survive_sigkill,
        sigkill_at_a_start_leaves_no_unknown_container,
}

/// Prints the numbers from 1 on.
const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n; usleep 5000; done";

/// The number of times that the server is killed.
fn kills() -> u64 {
    testkit::crash::number("SANDBOX_KILLS", 3).unwrap()
}

async fn pause_up_to(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(..=milliseconds))).await;
}

async fn sessions_survive_sigkill(server: &mut Server) {
    server.restart_with_quota("execs = 100").await;
    let alice = server.alice();
    let counting = json!({"cmd": ["sh", "-c", COUNT]});
    let ids = [
        server.session_of(&alice, counting.clone()).await,
        server.session_of(&alice, counting).await,
    ];
    let begun = sessions(&alice, &ids).await;
    for kill in 1..=kills() {
        let work = Work::start(&server.alice(), &ids).await;
        pause_up_to(150).await;
        server.kill();
        server.spawn().await;
        let alice = server.alice();
        assert_eq!(sessions(&alice, &ids).await, begun, "after kill {kill}");
        work.check(server, &alice).await;
        let answer = alice.shell(&ids[0], &format!("echo {kill}")).await;
        assert_eq!(answer.ok(), format!("{kill}\n"));
    }
    let alice = server.alice();
    for id in &ids {
        let ended = alice.end(id).await;
        let audit = alice.get(&format!("/sessions/{id}/audit")).await;
        let audit = parse(server, audit.bytes());
        assert_eq!(ended["verdict"], audit.verdict());
        let counted = check_numbers(audit.stream("stdout"));
        assert!(counted > 10 * kills(), "{counted}");
        let report = verify(&alice, id).await;
        assert_eq!(report["verified"], true, "{report}");
    }
    server.assert_no_containers().await;
}

/// The running sessions, as the client sees them.
async fn sessions(client: &Client, ids: &[String]) -> Vec<Value> {
    let mut sessions = Vec::new();
    for id in ids {
        let session = eventually(20, "a running session", async || {
            let session = client.session(id).await;
            (session["state"] == "running").then_some(session)
        });
        sessions.push(session.await);
    }
    sessions
}

/// What the server does when it is killed.
struct Work {
    session: String,
    command: Command,
    /// The pid of the command in the container.
    pid: String,
    terminal: Terminal,
    upload: tokio::task::JoinHandle<()>,
}

impl Work {
    async fn start(alice: &Client, ids: &[String; 2]) -> Self {
        let session = ids[0].clone();
        let script = format!("echo $$ >&2; {COUNT}");
        let mut command = alice.start(&session, &shell(&script)).await;
        command.wait_for("20\n").await;
        let pid = String::from_utf8(command.output.stderr.clone()).unwrap();
        let mut terminal = Terminal::open(alice, &ids[1], "").await.unwrap();
        terminal.enter("echo te''rm").await;
        terminal.wait_for("term").await;
        Self {
            session,
            command,
            pid: pid.trim().into(),
            terminal,
            upload: endless_upload(alice.clone(), ids[1].clone()),
        }
    }

    /// Checks what the restarted server reports.
    async fn check(self, server: &Server, alice: &Client) {
        let _ = self.upload.await;
        let seen = self.command.rest().await;
        let audit = ended_audit(server, alice, &self.session, &seen.id).await;
        assert_eq!(audit.verdict(), "gap", "{}", audit.end);
        let counted = check_numbers(audit.stream("stdout"));
        assert!(counted > 0, "{}", audit.end);
        drop(self.terminal);
        crate::exec::assert_gone(alice, &self.session, &self.pid).await;
    }
}

/// Uploads until the server is gone.
fn endless_upload(client: Client, session: String) -> tokio::task::JoinHandle<()> {
    let chunks = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 1000]));
    let slow = chunks.then(async |chunk| {
        tokio::time::sleep(Duration::from_millis(5)).await;
        chunk
    });
    let path = format!("/sessions/{session}/files?path=/tmp/upload");
    let request = client.request(reqwest::Method::PUT, &path);
    let request = request.body(reqwest::Body::wrap_stream(slow));
    tokio::spawn(async move {
        let answer = request.send().await;
        assert!(answer.is_err(), "{answer:?}");
    })
}

/// The audit of a command, once it is sealed.
async fn ended_audit(server: &Server, client: &Client, session: &str, exec: &str) -> Audit {
    let path = format!("/sessions/{session}/execs");
    eventually(30, "the seal of the command", async || {
        let list = client.get(&path).await.expect(200);
        let execs = list["execs"].as_array().unwrap();
        let found = execs.iter().find(|one| one["id"] == exec).cloned();
        found.filter(|one| one["state"] == "ended")
    })
    .await;
    parse(server, &client.audit_of(session, exec).await)
}

/// Checks that each number from 1 on is there once, and returns the last.
#[track_caller]
fn check_numbers(output: &[u8]) -> u64 {
    let text = std::str::from_utf8(output).unwrap();
    let mut last = 0;
    for line in text.lines() {
        assert_eq!(line, (last + 1).to_string(), "after {last}");
        last += 1;
    }
    last
}

async fn sigkill_at_a_start_leaves_no_unknown_container(server: &mut Server) {
    for _ in 0..kills() {
        let alice = server.alice();
        let spec = server.spec(json!({}));
        let post = tokio::spawn(async move {
            let request = alice.request(reqwest::Method::POST, "/sessions");
            let _ = request.json(&spec).send().await;
        });
        pause_up_to(400).await;
        server.kill();
        server.spawn().await;
        post.await.unwrap();
        let alice = server.alice();
        eventually(30, "a session for each container", async || {
            let sessions = alice.sessions("?state=running").await;
            let containers = server.containers().await;
            (sessions.len() == containers.len()).then_some(())
        })
        .await;
        for id in alice.sessions("?state=running").await {
            eventually(20, "a session that works", async || {
                let session = alice.session(&id).await;
                (session["state"] != "starting").then_some(())
            })
            .await;
            assert_eq!(alice.shell(&id, "echo up").await.ok(), "up\n");
            alice.end(&id).await;
        }
        server.assert_no_containers().await;
    }
}

//! Many sessions at once, with times and memory.
//!
//! `SANDBOX_LOAD=100 cargo test -p moat-sandbox --release --test load` starts 100 sessions of local
//! processes and 30 of containers, three times, and prints the medians. Without the variable: 10 and
//! 3, once.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests spawn tasks, and fail by panicking"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;

use testkit::harness::{Harness, Trial, bounded};
use testkit::{busybox, engine};

#[allow(dead_code, reason = "shared with the tests of the server")]
#[path = "../server/client.rs"]
mod client;
#[allow(dead_code, reason = "shared with the tests of the server")]
#[path = "../server/fixture.rs"]
mod fixture;

use client::{Client, Command, shell};
use fixture::{Runtime, Server};

/// Commands in each session, one after the other.
const COMMANDS: usize = 5;
/// The size of the file that each session of a container receives and sends.
const FILE_BYTES: usize = 1 << 20;

fn main() {
    let on_engine = Trial::new("sessions_of_containers", || measure(Runtime::Docker, 3))
        .needs(engine::need())
        .needs(busybox::need());
    Harness::from_args(1)
        .trials([
            Trial::new("sessions_of_local_processes", || {
                measure(Runtime::Process, 10)
            }),
            on_engine,
        ])
        .run()
}

/// Measures this share of the sessions that were asked for.
fn measure(runtime: Runtime, tenths: u64) -> Result<(), testkit::harness::Failed> {
    let asked = testkit::crash::number("SANDBOX_LOAD", 10)?;
    let sessions = (asked * tenths / 10).max(1) as usize;
    let rounds = if asked > 10 { 3 } else { 1 };
    bounded(Duration::from_secs(1800), async move {
        let mut all = Vec::new();
        for _ in 0..rounds {
            all.push(round(runtime, sessions).await);
        }
        let name = match runtime {
            Runtime::Docker => "containers",
            Runtime::Process => "local processes",
        };
        println!("{sessions} sessions of {name}, {COMMANDS} commands each, {rounds} rounds:");
        for figure in all[0].keys() {
            let values = all.iter().map(|round| round[figure]).collect();
            println!("  {figure:<40} {:>10.1}", part(values, 0.5));
        }
    })
}

type Figures = BTreeMap<String, f64>;

/// The value below which `share` of the values are.
fn part(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

/// Adds the median and the 95th percentile of times.
fn add(figures: &mut Figures, name: &str, times: Vec<Duration>) {
    let times: Vec<_> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    figures.insert(format!("{name}, ms, median"), part(times.clone(), 0.5));
    figures.insert(format!("{name}, ms, p95"), part(times, 0.95));
}

async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    let value = future.await;
    (value, start.elapsed())
}

async fn round(runtime: Runtime, count: usize) -> Figures {
    let mut server = Server::start(runtime).await;
    let quota = format!("sessions = {count}\nexecs = {count}\ntransfers = {count}");
    server.restart_with_quota(&quota).await;
    let alice = server.alice();
    let mut figures = Figures::new();
    let memory = server.memory();

    let creates = (0..count).map(|_| timed(server.session_of(&alice, json!({}))));
    let (created, all) = timed(join_all(creates)).await;
    let (ids, times): (Vec<_>, Vec<_>) = created.into_iter().unzip();
    add(&mut figures, "create", times);
    figures.insert("sessions/s".into(), count as f64 / all.as_secs_f64());
    let grown = server.memory().saturating_sub(memory) >> 10;
    figures.insert("memory, KiB/session".into(), grown as f64 / count as f64);

    let commands = join_all(ids.iter().map(|id| run_commands(&alice, id)));
    let (times, all) = timed(commands).await;
    let (first, whole): (Vec<_>, Vec<_>) = times.into_iter().flatten().unzip();
    figures.insert("commands/s".into(), whole.len() as f64 / all.as_secs_f64());
    add(&mut figures, "exec, first byte", first);
    add(&mut figures, "exec, whole", whole);
    if runtime == Runtime::Docker {
        measure_files(&mut figures, &alice, &ids).await;
    }
    figures.insert(
        "server after it, MiB".into(),
        server.memory() as f64 / 1048576.0,
    );

    let ends = join_all(ids.iter().map(|id| timed(alice.end(id)))).await;
    add(
        &mut figures,
        "end",
        ends.into_iter().map(|(_, time)| time).collect(),
    );
    for id in &ids {
        assert_verified(&alice, id).await;
    }
    server.end().await;
    figures
}

/// The times to the first byte and to the end of each command.
async fn run_commands(client: &Client, session: &str) -> Vec<(Duration, Duration)> {
    let mut times = Vec::new();
    for number in 0..COMMANDS {
        let start = Instant::now();
        let script = format!("echo {number}; seq 1 1000");
        let mut command: Command = client.start(session, &shell(&script)).await;
        command.wait_for("\n").await;
        let first = start.elapsed();
        let output = command.end().await;
        times.push((first, start.elapsed()));
        assert_eq!(output.ok().lines().count(), 1001);
    }
    times
}

async fn measure_files(figures: &mut Figures, client: &Client, ids: &[String]) {
    let content = vec![b'x'; FILE_BYTES];
    let path = "/tmp/file";
    let up = ids
        .iter()
        .map(|id| timed(client.put(id, path, content.clone())));
    let (answers, times): (Vec<_>, Vec<_>) = join_all(up).await.into_iter().unzip();
    for answer in answers {
        answer.expect(204);
    }
    add(figures, "file up, 1 MiB", times);
    let down = ids.iter().map(|id| timed(client.fetch(id, path)));
    let (answers, times): (Vec<_>, Vec<_>) = join_all(down).await.into_iter().unzip();
    for answer in answers {
        assert!(answer.bytes() == content);
    }
    add(figures, "file down, 1 MiB", times);
}

async fn assert_verified(client: &Client, session: &str) {
    let report = client
        .get(&format!("/sessions/{session}/verify"))
        .await
        .expect(200);
    assert_eq!(report["verified"], true, "{report}");
    let files = report["files"].as_array().unwrap();
    assert_eq!(files.len(), 1 + COMMANDS, "{report}");
}

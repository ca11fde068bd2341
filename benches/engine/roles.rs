//! The measured processes. Each is this program, started again with a role.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join_all;
use moat::run::{AttachOptions, Attached};
use moat::runtime::scripted::{Script, Scripted};
use moat::spec::Backstop;
use moat::{Docker, Manager, Run, RunId, RunSpec, ShutdownMode, Verdict};

use tokio::io::AsyncWriteExt;

use crate::{bare, log_options};

pub fn play(role: &str, arguments: &[String]) {
    match role {
        "bare" => {
            bare::attach(&arguments[0], &arguments[1], &arguments[2..]);
            return;
        }
        "bare-logs" => {
            bare::logs(&arguments[0]);
            return;
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        match role {
            "moat" => moat(arguments).await,
            "viewer" => viewer(arguments).await,
            "many" => many(arguments).await,
            "abandon" => abandon(arguments).await,
            "recover" => recover(arguments).await,
            "short" => short(arguments).await,
            "seals" => seals(arguments).await,
            "crowd" => crowd(arguments).await,
            "open" => open(arguments).await,
            "bollard" => bollard_logs(arguments).await,
            role => panic!("there is no role {role}"),
        }
    });
}

async fn manager(root: &str) -> Manager {
    Manager::open(root, Docker::connect().await.unwrap())
        .await
        .unwrap()
}

fn spec(image: &str, backstop: &str, cmd: &[String]) -> RunSpec {
    let backstop = match backstop {
        "none" => Backstop::None,
        _ => Backstop::default(),
    };
    RunSpec::new(image)
        .cmd(cmd.to_vec())
        .network("none")
        .backstop(backstop)
}

async fn whole(run: &Run) {
    let outcome = run.wait().await.unwrap();
    let seal = outcome.sealed().unwrap();
    // Without a backstop, an old engine leaves the end unproven.
    assert_ne!(seal.verdict, Verdict::Gap, "{seal:?}");
}

/// root, image, driver, command
async fn moat(arguments: &[String]) {
    let manager = manager(&arguments[0]).await;
    let spec = spec(&arguments[1], &arguments[2], &arguments[3..]);
    let run = manager.start(spec).await.unwrap();
    whole(&run).await;
    manager.shutdown(ShutdownMode::Leave).await;
}

/// root, image, driver, command: relays the output to its own, as `docker run` does.
async fn viewer(arguments: &[String]) {
    let manager = manager(&arguments[0]).await;
    let spec = spec(&arguments[1], &arguments[2], &arguments[3..]);
    let options = AttachOptions::new().lossless();
    let (run, output) = manager.start_attached(spec, options).await.unwrap();
    let mut output = output.ready_chunks(64);
    let mut stdout = tokio::io::BufWriter::with_capacity(256 << 10, tokio::io::stdout());
    while let Some(items) = output.next().await {
        for item in items {
            match item.unwrap() {
                Attached::Chunk(chunk) => stdout.write_all(&chunk.bytes).await.unwrap(),
                item => panic!("{item:?}"),
            }
        }
        stdout.flush().await.unwrap();
    }
    whole(&run).await;
    manager.shutdown(ShutdownMode::Leave).await;
}

/// root, image, count, command: prints the number of runs that are not complete.
async fn many(arguments: &[String]) {
    let manager = manager(&arguments[0]).await;
    let count: usize = arguments[2].parse().unwrap();
    let runs = (0..count).map(|_| async {
        let spec = spec(&arguments[1], "json-file", &arguments[3..]);
        let run = manager.start(spec).await.unwrap();
        let outcome = run.wait().await.unwrap();
        let seal = outcome.sealed().unwrap();
        usize::from(seal.verdict == Verdict::Gap)
    });
    println!("{}", join_all(runs).await.iter().sum::<usize>());
    manager.shutdown(ShutdownMode::Leave).await;
}

/// root, image, command: prints the run and its container, and waits to be killed.
async fn abandon(arguments: &[String]) {
    let manager = manager(&arguments[0]).await;
    let spec = spec(&arguments[1], "json-file", &arguments[2..]);
    let run = manager.start(spec).await.unwrap();
    println!("{} {}", run.id(), run.state().container().unwrap());
    std::future::pending::<()>().await;
}

/// root, run
async fn recover(arguments: &[String]) {
    let manager = manager(&arguments[0]).await;
    let run = manager.get(&RunId::new(&arguments[1]).unwrap()).await;
    run.unwrap().wait().await.unwrap();
    manager.shutdown(ShutdownMode::Leave).await;
}

/// root, image, pairs, driver: prints the milliseconds of moat and of bare calls, for each pair.
async fn short(arguments: &[String]) {
    let manager = manager(&arguments[0]).await;
    let cmd = ["echo".to_owned(), "x".to_owned()];
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    for pair in 0..arguments[2].parse::<usize>().unwrap() {
        let mut times = [0.0; 2];
        for turn in 0..2 {
            let ours = (pair + turn) % 2 == 0;
            let begin = Instant::now();
            if ours {
                let spec = spec(&arguments[1], &arguments[3], &cmd);
                let run = manager.start(spec).await.unwrap();
                whole(&run).await;
            } else {
                bare_calls(&docker, &arguments[1], &arguments[3], &cmd).await;
            }
            times[usize::from(!ours)] = begin.elapsed().as_secs_f64() * 1e3;
            // The container is removed after the outcome.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("{} {}", times[0], times[1]);
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

/// Create, attach, start, wait, inspect. The removal of the container is not measured.
async fn bare_calls(docker: &bollard::Docker, image: &str, driver: &str, cmd: &[String]) {
    use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
    use bollard::query_parameters as query;

    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(cmd.to_vec()),
        host_config: Some(HostConfig {
            log_config: Some(HostConfigLogConfig {
                typ: Some(driver.to_owned()),
                config: Some(
                    log_options(driver)
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .collect(),
                ),
            }),
            network_mode: Some("none".into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let created = docker.create_container(None, body).await.unwrap();
    let options = query::AttachContainerOptionsBuilder::new()
        .stream(true)
        .stdout(true)
        .stderr(true)
        .build();
    let mut attached = docker
        .attach_container(&created.id, Some(options))
        .await
        .unwrap();
    docker.start_container(&created.id, None).await.unwrap();
    while attached.output.next().await.is_some() {}
    let mut waiting = docker.wait_container(&created.id, None);
    while waiting.next().await.is_some() {}
    docker.inspect_container(&created.id, None).await.unwrap();
    let (docker, id) = (docker.clone(), created.id);
    // After the measurement, as moat does.
    #[allow(clippy::disallowed_methods, reason = "there is no tracker here")]
    tokio::spawn(async move {
        let _ = docker.remove_container(&id, None).await;
    });
}

/// root, image, concurrent runs, rounds, driver: prints, for each run, `seal` and the milliseconds from
/// its known end to its seal, and `bare` and the milliseconds of bare code that does the same I/O at
/// the same time.
async fn seals(arguments: &[String]) {
    let manager = &manager(&arguments[0]).await;
    let [width, rounds] = [2, 3].map(|at| arguments[at].parse::<usize>().unwrap());
    let driver = &*arguments[4];
    let cmd = &["lines".to_owned(), "100".to_owned()];
    for _ in 0..rounds {
        let runs = (0..width).map(|number| async move {
            let spec = spec(&arguments[1], driver, cmd);
            let run = manager.start(spec).await.unwrap();
            let path = format!("{}-bare-{number}", arguments[0]);
            let file = fs::File::create(&path).unwrap();
            file.sync_all().unwrap();
            let container = run.state().container().unwrap().to_string();
            let log = (driver == "json-file").then_some(container);
            run.wait_exit().await.unwrap();
            let begin = Instant::now();
            let bare = std::thread::spawn(move || bare::seal(file, log.as_deref(), begin));
            whole(&run).await;
            println!("seal {}", begin.elapsed().as_secs_f64() * 1e3);
            println!("bare {}", bare.join().unwrap().as_secs_f64() * 1e3);
            fs::remove_file(path).unwrap();
        });
        join_all(runs).await;
    }
    manager.shutdown(ShutdownMode::Leave).await;
}

/// root, runs: prints the memory in KiB, descriptors and threads of this process while all runs are
/// active.
async fn crowd(arguments: &[String]) {
    let runtime = Scripted::new();
    let manager = Manager::open(&arguments[0], runtime.clone()).await.unwrap();
    let count: usize = arguments[1].parse().unwrap();
    let starts = (0..count).map(|_| {
        runtime.next(Script::new().stdout("a line\n").until_stopped());
        manager.start(RunSpec::new("none"))
    });
    let runs: Vec<Run> = join_all(starts)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let of = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    println!("{} {descriptors} {}", of("VmRSS"), of("Threads"));
    drop(runs);
    manager.shutdown(ShutdownMode::Stop).await;
}

/// root: prints the milliseconds until the manager is usable, until all runs are scanned, and for
/// reading each `run.json`.
async fn open(arguments: &[String]) {
    let root = Path::new(&arguments[0]);
    for round in 0..10 {
        let mut times = [0.0; 3];
        for turn in 0..2 {
            let begin = Instant::now();
            if (round + turn) % 2 == 0 {
                let manager = Manager::open(root, Scripted::new()).await.unwrap();
                times[0] = begin.elapsed().as_secs_f64() * 1e3;
                manager.wait_recovery().await.unwrap();
                times[1] = begin.elapsed().as_secs_f64() * 1e3;
                manager.shutdown(ShutdownMode::Leave).await;
            } else {
                let mut bytes = 0;
                for entry in fs::read_dir(root).unwrap() {
                    let file = entry.unwrap().path().join("run.json");
                    bytes += fs::read(file).map_or(0, |text| text.len());
                }
                assert!(bytes > 0);
                times[2] = begin.elapsed().as_secs_f64() * 1e3;
            }
        }
        println!("{} {} {}", times[0], times[1], times[2]);
    }
}

/// image, driver, file, command: follows a container's log as a client with bollard does.
async fn bollard_logs(arguments: &[String]) {
    use bollard::models::{ContainerCreateBody, HostConfig};
    use bollard::query_parameters as query;

    let docker = bollard::Docker::connect_with_defaults().unwrap();
    let body = ContainerCreateBody {
        image: Some(arguments[0].clone()),
        cmd: Some(arguments[3..].to_vec()),
        host_config: Some(HostConfig {
            network_mode: Some("none".into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let id = docker.create_container(None, body).await.unwrap().id;
    docker.start_container(&id, None).await.unwrap();
    let options = query::LogsOptionsBuilder::new()
        .follow(true)
        .stdout(true)
        .stderr(true)
        .build();
    let mut logs = docker.logs(&id, Some(options));
    let mut file = BufWriter::new(fs::File::create(&arguments[2]).unwrap());
    while let Some(item) = logs.next().await {
        file.write_all(&item.unwrap().into_bytes()).unwrap();
    }
    file.flush().unwrap();
    docker.remove_container(&id, None).await.unwrap();
}

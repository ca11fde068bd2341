//! The engine of this machine through `ssh://`, with an sshd that each trial starts on loopback.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use moat::run::AttachOptions;
use moat::spec::Stdin;
use moat::{Docker, Manager, RunSpec, ShutdownMode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::deadline::{eventually, wait_for, within};
use testkit::harness::{Need, Trial, bounded};
use testkit::{child, engine, sequence};
use tokio::io::AsyncWriteExt;

use crate::stage::{Stage, Watched, assert_bytes, assert_nothing_missed, end, read};

testkit::trials! {
    on_sshd:
        a_run_through_ssh_is_captured_whole,
        a_broken_ssh_connection_loses_no_output,
        an_unreachable_host_is_reported_by_ssh,
}

/// The role of this process as the program that connects, with a `PATH` for its `ssh`.
const ROLE: &str = "ssh";
/// About 5 MB.
const LINES: u64 = 80_000;
const WIDTH: usize = 64;

/// A trial in a child process, whose `ssh` uses the configuration of an sshd.
fn on_sshd(name: &str, play: fn(&Stage, &Sshd)) -> Trial {
    let run = move || {
        bounded(Duration::from_secs(300), async {
            let stage = Stage::new().await;
            let sshd = Sshd::start(stage.dir.path());
            tokio::task::spawn_blocking(move || play(&stage, &sshd))
                .await
                .unwrap();
        })
    };
    Trial::new(name, run).needs(engine::need()).needs(need())
}

/// The programs, and an engine whose socket is on this machine.
fn need() -> &'static Need {
    static NEED: OnceLock<Need> = OnceLock::new();
    NEED.get_or_init(|| {
        for name in ["sshd", "ssh", "ssh-keygen", "docker"] {
            if program(name).is_none() {
                return Err(format!(
                    "there is no program {name} (package openssh-server)"
                ));
            }
        }
        match engine::address().starts_with("unix:///") {
            true => Ok(()),
            false => Err("the engine has no socket on this machine".into()),
        }
    })
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let mut programs = directories.map(|directory| directory.join(name));
    programs.find(|program| program.is_file())
}

/// An sshd on loopback, with its own keys, for the user of this process.
struct Sshd {
    process: Child,
    port: u16,
    /// The directory of an `ssh` that uses the keys.
    bin: PathBuf,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Sshd {
    fn start(dir: &Path) -> Self {
        let dir = dir.join("ssh");
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).unwrap();
        for key in ["host_key", "user_key"] {
            let mut keygen = Command::new(program("ssh-keygen").unwrap());
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
            assert!(keygen.arg(dir.join(key)).status().unwrap().success());
        }
        fs::copy(dir.join("user_key.pub"), dir.join("authorized_keys")).unwrap();
        let shown = dir.display();
        let server = format!(
            "ListenAddress 127.0.0.1\nHostKey {shown}/host_key\nPidFile none\nUsePAM no\n\
             AuthorizedKeysFile {shown}/authorized_keys\nStrictModes no\nMaxStartups 100\n\
             PermitRootLogin yes\nPasswordAuthentication no\n"
        );
        fs::write(dir.join("sshd_config"), server).unwrap();
        let client = format!(
            "IdentityFile {shown}/user_key\nIdentitiesOnly yes\nUserKnownHostsFile {shown}/known\n\
             GlobalKnownHostsFile /dev/null\nStrictHostKeyChecking accept-new\n"
        );
        fs::write(dir.join("config"), client).unwrap();
        let ssh = program("ssh").unwrap();
        let script = format!(
            "#!/bin/sh\nexec {} -F {shown}/config \"$@\"\n",
            ssh.display()
        );
        fs::write(bin.join("ssh"), script).unwrap();
        fs::set_permissions(bin.join("ssh"), PermissionsExt::from_mode(0o755)).unwrap();

        // sshd requires it where it separates privileges, as for root.
        let _ = fs::create_dir_all("/run/sshd");
        let port = free_port();
        let process = Command::new(program("sshd").unwrap())
            .args(["-D", "-E"])
            .arg(dir.join("log"))
            .args(["-p", &port.to_string(), "-f"])
            .arg(dir.join("sshd_config"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let sshd = Self { process, port, bin };
        wait_for("a listening sshd", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        sshd
    }

    /// Plays a part in a child process with this sshd's `ssh`.
    fn play(&self, stage: &Stage, part: Part) {
        let socket = engine::address();
        let orders = Orders {
            part,
            address: format!(
                "ssh://127.0.0.1:{}{}",
                self.port,
                socket.trim_start_matches("unix://")
            ),
            sshd: self.process.id(),
            dir: stage.dir.path().to_owned(),
            image: stage.image.clone(),
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [self.bin.clone()]
            .into_iter()
            .chain(std::env::split_paths(&path));
        let played = child::command(ROLE, &orders)
            .env("PATH", std::env::join_paths(path).unwrap())
            .output()
            .unwrap();
        assert!(
            played.status.success(),
            "{}{}",
            String::from_utf8_lossy(&played.stdout),
            String::from_utf8_lossy(&played.stderr)
        );
    }
}

/// A port that nothing listens at.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
enum Part {
    Capture,
    Break,
    Refuse,
}

/// The orders of the child.
#[derive(serde::Serialize, serde::Deserialize)]
struct Orders {
    part: Part,
    address: String,
    sshd: u32,
    dir: PathBuf,
    image: String,
}

/// Plays a part if this process has one.
pub fn role() -> Option<()> {
    let orders: Orders = child::orders(ROLE)?;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        match orders.part {
            Part::Capture => orders.capture().await,
            Part::Break => orders.break_connections().await,
            Part::Refuse => orders.refuse().await,
        }
        eventually(20, "the end of each ssh", async || {
            let left = children(std::process::id());
            left.is_empty().then_some(())
        })
        .await;
    });
    Some(())
}

impl Orders {
    async fn manager(&self) -> Manager {
        let docker = Docker::connect_to(&self.address).await.unwrap();
        assert!(docker.to_string().ends_with(&self.address), "{docker}");
        Manager::open(self.dir.join("root"), docker).await.unwrap()
    }

    fn spec(&self, steps: &str) -> RunSpec {
        RunSpec::new(&self.image)
            .cmd(steps.split(' '))
            .network("none")
            .bind(self.dir.join("gate"), "/gate")
    }

    /// Lets the container end once its output has been read: an engine can discard unread output.
    fn open_gate(&self) {
        fs::write(self.dir.join("gate/go"), "").unwrap();
    }

    async fn capture(&self) {
        let manager = self.manager().await;
        let steps = format!("cat + lines {LINES} --width {WIDTH} + echo sent + await /gate/go");
        let spec = self.spec(&steps).stdin(Stdin::Pipe);
        let options = AttachOptions::new().with_input().lossless();
        let (run, mut output) = manager.start_attached(spec, options).await.unwrap();
        let mut input = output.input().unwrap();
        let mut watched = Watched::default();
        input.write_all(b"typed\n").await.unwrap();
        input.flush().await.unwrap();
        // The echo arrives while the input is open, and the rest only once it has ended.
        watched.until(&mut output, "typed\n").await;
        input.write_all(b"more\n").await.unwrap();
        input.shutdown().await.unwrap();
        drop(input);
        while !watched.stdout().ends_with(b"sent\n") {
            assert!(watched.next(&mut output).await, "the output ended");
        }
        self.open_gate();
        let outcome = end(&run).await;
        let mut expected = b"typed\nmore\n".to_vec();
        expected.extend(sequence::lines("out", LINES, WIDTH));
        expected.extend(b"sent\n");
        assert_bytes(watched.stdout(), &expected);
        // More than the engine keeps for a reader that is late.
        let audit = read(&outcome);
        assert_bytes(audit.stream("stdout"), &expected);
        assert_nothing_missed(&audit);
        assert_eq!(outcome.code(), Some(0));
        drop(output);
        manager.shutdown(ShutdownMode::Stop).await;
    }

    async fn break_connections(&self) {
        let manager = self.manager().await;
        let steps = "lines 100 + echo sent + await /gate/go + lines 100 + exit 3";
        let run = manager.start(self.spec(steps)).await.unwrap();
        let mut output = run.attach().await.unwrap();
        Watched::default().until(&mut output, "sent\n").await;
        // sshd's process of each connection, of which one carries the output.
        let connections = children(self.sshd);
        assert!(!connections.is_empty());
        for process in connections {
            let _ = kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL);
        }
        self.open_gate();
        let outcome = end(&run).await;
        let lines = sequence::lines("out", 100, WIDTH);
        let audit = read(&outcome);
        assert_bytes(
            audit.stream("stdout"),
            &[&lines[..], b"sent\n", &lines].concat(),
        );
        assert_nothing_missed(&audit);
        assert_eq!(outcome.code(), Some(3));
        drop(output);
        manager.shutdown(ShutdownMode::Stop).await;
    }

    async fn refuse(&self) {
        let address = format!("ssh://127.0.0.1:{}", free_port());
        let error = within(60, "the refusal", Docker::connect_to(&address)).await;
        let error = error.unwrap_err().to_string();
        let start = format!("cannot reach the engine at {address}: ssh: connect to host 127.0.0.1");
        assert!(error.starts_with(&start), "{error}");
        assert!(error.contains("Connection refused"), "{error}");
        // sshd answers, but the host has no engine at this socket.
        let missing = self.dir.join("missing.sock");
        let address = self.address.rsplit_once(':').unwrap();
        let port = address.1.split('/').next().unwrap();
        let address = format!("{}:{port}{}", address.0, missing.display());
        let error = within(60, "the refusal", Docker::connect_to(&address)).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("missing.sock"), "{error}");
        assert!(error.contains("does `ssh -o BatchMode=yes"), "{error}");
    }
}

/// The children of a process, zombies included.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // After the name, which is in parentheses: the state, and the parent.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        fields.split_whitespace().nth(1) == Some(&parent.to_string())
    })
    .collect()
}

fn a_run_through_ssh_is_captured_whole(stage: &Stage, sshd: &Sshd) {
    sshd.play(stage, Part::Capture);
}

fn a_broken_ssh_connection_loses_no_output(stage: &Stage, sshd: &Sshd) {
    sshd.play(stage, Part::Break);
}

fn an_unreachable_host_is_reported_by_ssh(stage: &Stage, sshd: &Sshd) {
    sshd.play(stage, Part::Refuse);
}

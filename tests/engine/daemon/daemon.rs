//! A Docker daemon for one trial, with a separate containerd and network namespace. The daemon of the
//! machine is not touched.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bollard::API_DEFAULT_VERSION;
use moat::{Docker, Manager, Run, RunSpec};
use tempfile::TempDir;
use testkit::deadline::eventually;
use testkit::{engine, image};

use crate::stage::printed;

/// The control groups of the kernel; version 1 has a directory per kind.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The variants of a daemon.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kind {
    /// Containers outlive the daemon.
    pub live_restore: bool,
    /// The size of a disk for its data, as `mount` takes it.
    pub disk: Option<&'static str>,
}

/// A daemon, and a directory for a root. Dropped, it leaves no process, mount or file.
pub struct Daemon {
    dir: TempDir,
    containerd: Child,
    dockerd: Option<Child>,
    pub docker: bollard::Docker,
    pub image: String,
}

/// True if this machine can run a daemon.
pub fn is_possible() -> bool {
    let all = "[ $(id -u) = 0 ] && command -v dockerd containerd unshare";
    let found = Command::new("sh")
        .args(["-c", all])
        .stdout(Stdio::null())
        .status();
    found.is_ok_and(|status| status.success())
}

impl Daemon {
    /// A daemon whose containers end with it.
    pub async fn new() -> Self {
        Self::of(Kind::default()).await
    }

    /// A daemon of this kind.
    pub async fn of(kind: Kind) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("moat-daemon-")
            .tempdir()
            .unwrap();
        let path = dir.path();
        fs::create_dir(path.join("gate")).unwrap();
        let data = path.join("data");
        fs::create_dir(&data).unwrap();
        write_configuration(path, kind.live_restore);
        // The client needs a socket from the start. The daemon replaces it.
        let socket = path.join("d.sock");
        drop(UnixListener::bind(&socket).unwrap());
        let address = format!("unix://{}", socket.display());
        let docker = bollard::Docker::connect_with_unix(&address, 60, API_DEFAULT_VERSION).unwrap();
        let containerd = Command::new("containerd")
            .arg("--config")
            .arg(path.join("containerd.toml"))
            .stdout(Stdio::null())
            .stderr(File::create(path.join("containerd.log")).unwrap())
            .spawn()
            .unwrap();
        let mut daemon = Self {
            dir,
            containerd,
            dockerd: None,
            docker,
            image: String::new(),
        };
        if let Some(size) = kind.disk {
            let socket = daemon.path().join("c.sock");
            eventually(30, "containerd's socket", async || {
                socket.exists().then_some(())
            })
            .await;
            let options = format!("size={size}");
            let mut mount = daemon.among_its_mounts("mount");
            mount.args(["-t", "tmpfs", "-o", &options, "moat-test"]);
            assert!(mount.arg(data).status().unwrap().success());
        }
        daemon.start().await;
        daemon.image = image::provide(&daemon.docker).await.unwrap();
        daemon
    }

    /// Starts the daemon, and waits until it answers.
    pub async fn start(&mut self) {
        assert!(self.dockerd.is_none(), "the daemon already runs");
        let path = self.path();
        let log = File::options()
            .create(true)
            .append(true)
            .open(path.join("dockerd.log"))
            .unwrap();
        let option = |name, file| format!("--{name}={}", path.join(file).display());
        let dockerd = Command::new("unshare")
            .args(["--net", "dockerd", "--bridge=none"])
            .args(["--iptables=false", "--ip6tables=false"])
            .arg(format!("--host={}", self.address()))
            .args([
                option("config-file", "daemon.json"),
                option("containerd", "c.sock"),
                option("data-root", "data"),
                option("exec-root", "exec"),
                option("pidfile", "d.pid"),
            ])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.dockerd = Some(dockerd);
        eventually(90, "the daemon's answer", async || {
            self.docker.ping().await.ok()
        })
        .await;
    }

    /// Ends the daemon with SIGTERM. `then` runs between the signal and the end.
    pub async fn terminate(&mut self, then: impl FnOnce(&Self)) {
        self.signal("TERM");
        then(self);
        self.ended().await;
    }

    /// Ends the daemon with SIGKILL.
    pub async fn kill(&mut self) {
        self.signal("KILL");
        self.ended().await;
        let _ = fs::remove_file(self.path().join("d.pid"));
    }

    async fn ended(&mut self) {
        let mut dockerd = self.dockerd.take().expect("it runs");
        eventually(60, "the end of the daemon", async || {
            dockerd.try_wait().unwrap()
        })
        .await;
    }

    /// Stops the daemon until [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        kill(signal, self.pid());
    }

    /// The process of the daemon.
    pub fn pid(&self) -> u32 {
        self.dockerd.as_ref().expect("it runs").id()
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.path().join("d.sock")
    }

    /// The address of the daemon, as in `DOCKER_HOST`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The directory of the root.
    pub fn root(&self) -> PathBuf {
        self.path().join("root")
    }

    /// A manager of the root.
    pub async fn manager(&self) -> Manager {
        self.manager_at(&self.address()).await
    }

    /// The same through another address.
    pub async fn manager_at(&self, address: &str) -> Manager {
        let docker = Docker::connect_to(address).await.unwrap();
        Manager::open(self.root(), docker).await.unwrap()
    }

    /// A run of the workload with these steps, separated by spaces. It can wait at a gate with
    /// `await /gate/NAME`. A daemon that ends gives it 10 s to end.
    pub fn spec(&self, steps: &str) -> RunSpec {
        RunSpec::new(&self.image)
            .cmd(steps.split(' '))
            .network("none")
            .bind(self.path().join("gate"), "/gate")
            .engine_patch(serde_json::json!({"StopTimeout": 10}))
    }

    /// Starts a run of these steps, and waits until it has printed `text`.
    pub async fn start_until(&self, steps: &str, text: &str) -> (Manager, Run) {
        let manager = self.manager().await;
        let run = manager.start(self.spec(steps)).await.unwrap();
        printed(&run, text).await;
        (manager, run)
    }

    /// Lets a run pass this gate.
    pub fn open_gate(&self, name: &str) {
        fs::write(self.path().join("gate").join(name), "").unwrap();
    }

    /// Waits until a run opens a gate, with `write /gate/NAME x`.
    pub async fn gate_opens(&self, name: &str) {
        let path = self.path().join("gate").join(name);
        eventually(60, "the gate", async || path.exists().then_some(())).await;
    }

    /// The only container of the root.
    pub async fn container(&self) -> String {
        let root = engine::root_id(&self.root()).expect("the root has an id");
        let mut found = engine::containers(&self.address(), &root).await.unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    /// Waits until the daemon has no container.
    pub async fn is_clean(&self) {
        let root = engine::root_id(&self.root()).expect("the root has an id");
        eventually(90, "the removal of the container", async || {
            let found = engine::containers(&self.address(), &root).await.unwrap();
            found.is_empty().then_some(())
        })
        .await;
    }

    /// Waits until the daemon reports that a container has ended.
    pub async fn container_ended(&self, container: &str) {
        eventually(30, "the end of the container", async || {
            let found = self.docker.inspect_container(container, None).await.ok()?;
            (!found.state?.running?).then_some(())
        })
        .await;
    }

    /// The daemon's data, as the daemon's programs see it: this process may have other mounts.
    pub fn data(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.containerd.id());
        let path = self.path().join("data");
        Path::new(&root).join(path.strip_prefix("/").unwrap())
    }

    /// The log file of a container.
    pub fn log_of(&self, container: &str) -> PathBuf {
        let dir = self.data().join("containers").join(container);
        dir.join(format!("{container}-json.log"))
    }

    /// The shims of the daemon's containers.
    pub fn shims(&self) -> Vec<u32> {
        let address = self.path().join("c.sock").display().to_string();
        let mut shims = Vec::new();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let pid = process
                .file_name()
                .to_str()
                .and_then(|pid| pid.parse().ok());
            let (Some(pid), Ok(line)) = (pid, fs::read(process.path().join("cmdline"))) else {
                continue;
            };
            let mut words = line.split(|byte| *byte == 0);
            let is_shim = words
                .next()
                .is_some_and(|name| String::from_utf8_lossy(name).contains("containerd-shim"));
            if is_shim && words.any(|word| word == address.as_bytes()) {
                shims.push(pid);
            }
        }
        shims
    }

    /// The control groups of all containers of the daemon.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let containers = fs::read_dir(self.data().join("containers"));
        for container in containers.into_iter().flatten().flatten() {
            let group = Path::new("docker").join(container.file_name());
            let kinds = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
            let kinds = kinds.map(|kind| kind.path().join(&group));
            found.extend(kinds.chain([Path::new(CGROUPS).join(&group)]));
        }
        found.retain(|group| group.is_dir());
        found
    }

    fn end_all(&mut self) {
        let groups = self.cgroups();
        if let Some(mut dockerd) = self.dockerd.take() {
            let _ = dockerd.kill();
            let _ = dockerd.wait();
        }
        for group in &groups {
            let _ = fs::write(group.join("freezer.state"), "THAWED");
            for pid in fs::read_to_string(group.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
            {
                kill("KILL", pid.parse().unwrap());
            }
        }
        // containerd ends a shim whose container has ended, and cleans up after it.
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline && !self.shims().is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        for shim in self.shims() {
            kill("KILL", shim);
        }
        self.unmount_all();
        let _ = self.containerd.kill();
        let _ = self.containerd.wait();
        for group in groups {
            let _ = fs::remove_dir(group);
        }
    }

    /// A command in the mount namespace of the daemon's programs, which may have another one than
    /// this process.
    fn among_its_mounts(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let containerd = self.containerd.id().to_string();
        command.args(["--mount", "--target", &containerd, program]);
        command
    }

    fn unmount_all(&self) {
        let mounts = format!("/proc/{}/mounts", self.containerd.id());
        let mounts = fs::read_to_string(mounts).unwrap_or_default();
        let path = self.path().display().to_string();
        // The last mount first.
        for mount in mounts.lines().rev() {
            if let Some(target) = mount.split(' ').nth(1)
                && target.starts_with(&path)
            {
                let mut umount = self.among_its_mounts("umount");
                let _ = umount.args(["--lazy", target]).status();
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path().join("dockerd.log")).unwrap_or_default();
            let lines: Vec<_> = log
                .lines()
                .filter(|line| !line.contains("retries="))
                .collect();
            eprintln!("{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        self.end_all();
    }
}

/// Configures a containerd and a daemon whose defaults rotate output away.
fn write_configuration(path: &Path, live_restore: bool) {
    let quoted = |file: &str| format!("{:?}", path.join(file).display().to_string());
    let containerd = format!(
        "version = 2\nroot = {}\nstate = {}\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {}\n",
        quoted("c-root"),
        quoted("c-state"),
        quoted("c.sock"),
    );
    fs::write(path.join("containerd.toml"), containerd).unwrap();
    let dockerd = serde_json::json!({
        "live-restore": live_restore,
        "storage-driver": "vfs",
        "log-driver": "json-file",
        "log-opts": {"max-size": "10k", "max-file": "2"},
    });
    fs::write(path.join("daemon.json"), dockerd.to_string()).unwrap();
}

/// Sends a signal to a process.
pub fn kill(signal: &str, pid: u32) {
    let _ = Command::new("kill")
        .arg(format!("-{signal}"))
        .arg(pid.to_string())
        .stderr(Stdio::null())
        .status();
}

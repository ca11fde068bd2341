//! The server, started in a temporary directory.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::client::Client;
use testkit::deadline::{eventually, within};
use testkit::{busybox, engine};

#[derive(Clone, Copy, PartialEq)]
pub enum Runtime {
    Docker,
    Process,
}

/// A server with the clients `alice` and `bob`. Dropped, it is stopped and its containers are removed.
pub struct Server {
    dir: TempDir,
    runtime: Runtime,
    image: Option<String>,
    quota: String,
    /// A file of clients in place of that of alice and bob.
    clients: Option<PathBuf>,
    arguments: Vec<String>,
    child: Option<Child>,
    address: String,
    tokens: [String; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if self.runtime == Runtime::Docker {
            engine::sweep(&self.runs());
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
            eprintln!("standard error of the server:\n{log}");
        }
    }
}

impl Server {
    pub async fn start(runtime: Runtime) -> Self {
        let dir = tempfile::Builder::new().prefix("moat-test-").tempdir();
        let image = match runtime {
            Runtime::Docker => {
                let docker = engine::connect().unwrap();
                Some(busybox::provide(&docker).await.unwrap())
            }
            Runtime::Process => None,
        };
        let mut server = Self {
            dir: dir.unwrap(),
            runtime,
            image,
            quota: String::new(),
            clients: None,
            arguments: Vec::new(),
            child: None,
            address: String::new(),
            tokens: [token(), token()],
        };
        server.spawn().await;
        server
    }

    /// Starts the server again, with these lines in the quota of each client.
    pub async fn restart_with_quota(&mut self, quota: &str) {
        self.stop();
        self.quota = quota.into();
        self.spawn().await;
    }

    /// Starts the server again, with these arguments in addition.
    pub async fn restart_with(&mut self, arguments: &[&str]) {
        self.stop();
        self.arguments = arguments.iter().map(|&argument| argument.into()).collect();
        self.spawn().await;
    }

    /// Uses other clients than alice and bob from the next start on.
    pub fn use_clients(&mut self, clients: PathBuf) {
        self.clients = Some(clients);
    }

    pub fn use_own_clients(&mut self) {
        self.clients = None;
    }

    /// Writes the file of alice and bob.
    fn write_clients(&self) -> PathBuf {
        let clients = self.dir.path().join("clients.toml");
        let names = ["alice", "bob"].into_iter().zip(&self.tokens);
        let tables = names.map(|(name, token)| {
            let digest = Sha256::digest(token);
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!(
                "[[client]]\nname = \"{name}\"\ntoken_sha256 = \"{digest}\"\n[client.quota]\n{}\n",
                self.quota
            )
        });
        fs::write(&clients, tables.collect::<String>()).unwrap();
        clients
    }

    /// The command of the server.
    fn command(&self) -> Command {
        let clients = self.clients.clone().unwrap_or_else(|| self.write_clients());
        let runtime = match self.runtime {
            Runtime::Docker => "docker",
            Runtime::Process => "process",
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat-sandbox"));
        command
            .arg("--clients")
            .arg(clients)
            .arg("--root")
            .arg(self.root())
            .args(["--listen", "127.0.0.1:0", "--runtime", runtime])
            .args(&self.arguments)
            .env("TMPDIR", self.temporary())
            .stdin(Stdio::null());
        command
    }

    /// Starts a second server in the same directory, which must fail. Returns its error.
    pub fn second_server(&self) -> String {
        let output = self.command().output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts the server, which must not be running.
    pub async fn spawn(&mut self) {
        fs::create_dir_all(self.temporary()).unwrap();
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.dir.path().join("stderr"));
        let mut child = self
            .command()
            .stdout(Stdio::piped())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        self.child = Some(child);
        self.address = within(30, "the address of the server", read_address(stdout)).await;
    }

    /// Stops the server by SIGTERM, or by SIGKILL if it takes longer than 20 s.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        signal(&child, "TERM");
        for _ in 0..2000 {
            if matches!(child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("the server did not end within 20 s");
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Kills the server by SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends all sessions, and checks that no container is left.
    pub async fn end(&mut self) {
        for client in [self.alice(), self.bob()] {
            for id in client.sessions("?state=running").await {
                client.delete(&format!("/sessions/{id}")).await.expect(200);
            }
        }
        self.assert_no_containers().await;
    }

    pub async fn assert_no_containers(&self) {
        if self.runtime == Runtime::Process {
            return;
        }
        eventually(20, "the removal of the containers", async || {
            self.containers().await.is_empty().then_some(())
        })
        .await;
    }

    /// The containers of the root of the server.
    pub async fn containers(&self) -> Vec<String> {
        let root = engine::root_id(&self.runs()).unwrap();
        engine::containers(&engine::address(), &root).await.unwrap()
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The root of the sessions.
    fn runs(&self) -> PathBuf {
        self.root().join("runs")
    }

    /// A directory for other files of a test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The directory for temporary files of the server.
    pub fn temporary(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }

    /// The address of the server, such as `127.0.0.1:40001`.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn alice(&self) -> Client {
        Client::new(&self.address, &self.tokens[0])
    }

    pub fn bob(&self) -> Client {
        Client::new(&self.address, &self.tokens[1])
    }

    /// A client whose token is unknown.
    pub fn stranger(&self) -> Client {
        Client::new(&self.address, "unknown")
    }

    /// The request for a session, with these fields in addition.
    pub fn spec(&self, fields: Value) -> Value {
        let mut spec = match &self.image {
            Some(image) => json!({"image": image}),
            None => json!({}),
        };
        let Value::Object(fields) = fields else {
            panic!("{fields} is not an object")
        };
        spec.as_object_mut().unwrap().extend(fields);
        spec
    }

    /// Starts a session of `client`, and returns its id.
    pub async fn session_of(&self, client: &Client, fields: Value) -> String {
        let created = client.post("/sessions", &self.spec(fields)).await;
        created.expect(201)["id"].as_str().unwrap().to_owned()
    }

    /// Starts a session of alice, and returns its id.
    pub async fn session(&self) -> String {
        self.session_of(&self.alice(), json!({})).await
    }

    /// The resident memory of the server in bytes.
    pub fn memory(&self) -> u64 {
        let id = self.child.as_ref().unwrap().id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() << 10
    }
}

fn token() -> String {
    let name = tempfile::Builder::new().rand_bytes(40).prefix("").tempdir();
    let name = name.unwrap();
    name.path().file_name().unwrap().to_str().unwrap().into()
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let _ = Command::new("kill").args(["-s", name, &id]).status();
}

/// Reads the address from the first line, and discards later output.
async fn read_address(stdout: std::process::ChildStdout) -> String {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let _ = sender.send(lines.next());
        lines.for_each(drop);
    });
    let line = receiver.await.unwrap().expect("the server ended at once");
    let address = line.strip_prefix("listening on http://");
    address.unwrap_or_else(|| panic!("{line:?}")).to_owned()
}

//! The server, and a browser that shows its page.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use testkit::child::Process;
use testkit::chromium::{Screen, Tab};
use testkit::deadline::wait_for;
use testkit::{busybox, engine};

pub(crate) const TOKEN: &str = "a-token-of-the-tests";

/// A server with one client. Dropped, it stops its sessions.
pub(crate) struct Server {
    process: Option<Process>,
    pub(crate) address: String,
    dir: TempDir,
    runtime: &'static str,
}

impl Server {
    pub(crate) fn start(runtime: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clients = dir.path().join("clients.toml");
        let digest = Sha256::digest(TOKEN);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let client = format!("[[client]]\nname = \"alice\"\ntoken_sha256 = \"{digest}\"\n");
        fs::write(&clients, client).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat-sandbox"));
        command
            .args(["--listen", "127.0.0.1:0", "--stop-sessions"])
            .args(["--runtime", runtime, "--clients"])
            .arg(clients)
            .arg("--root")
            .arg(dir.path().join("root"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.path().join("stderr")).unwrap());
        let mut process = Process::spawn(&mut command);
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ");
        let address = address.unwrap_or_else(|| {
            let log = fs::read_to_string(dir.path().join("stderr"));
            panic!("the server did not start: {line}{}", log.unwrap())
        });
        Self {
            address: address.into(),
            process: Some(process),
            dir,
            runtime,
        }
    }

    /// Kills the server.
    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// A file of the test.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let id = process.id().to_string();
            let _ = Command::new("kill").args(["-s", "TERM", &id]).status();
            wait_for("the end of the server", || !process.is_alive());
        }
        if self.runtime == "docker" {
            engine::sweep(&self.dir.path().join("root/runs"));
        }
    }
}

/// The page of a new server.
pub(crate) struct Page {
    tab: Tab,
    pub(crate) server: Server,
}

impl Deref for Page {
    type Target = Tab;

    fn deref(&self) -> &Tab {
        &self.tab
    }
}

impl DerefMut for Page {
    fn deref_mut(&mut self) -> &mut Tab {
        &mut self.tab
    }
}

impl Page {
    /// Opens the page. Nobody is signed in.
    pub(crate) fn open(runtime: &'static str, screen: Screen) -> Self {
        let server = Server::start(runtime);
        let tab = Tab::open(&server.address, screen);
        Self { tab, server }
    }

    /// Opens the page, and signs in.
    pub(crate) fn signed_in(runtime: &'static str, screen: Screen) -> Self {
        let mut page = Self::open(runtime, screen);
        page.sign_in(TOKEN);
        page.wait("!$('signed-in').hidden");
        page
    }

    /// Opens the page with a new session that is a local process.
    pub(crate) fn with_session(screen: Screen) -> Self {
        let mut page = Self::signed_in("process", screen);
        page.create_session("");
        page
    }

    /// Opens the page with a new session that is a container, and a terminal in it.
    pub(crate) fn with_terminal(screen: Screen) -> Self {
        let image = engine::block_on(async {
            let docker = engine::connect().unwrap();
            busybox::provide(&docker).await.unwrap()
        });
        let mut page = Self::signed_in("docker", screen);
        page.create_session(&image);
        page.open_terminal();
        page
    }

    pub(crate) fn sign_in(&mut self, token: &str) {
        self.fill("token", token);
        self.click("sign-in-button");
    }

    pub(crate) fn create_session(&mut self, image: &str) {
        self.fill("image", image);
        self.click("create-button");
        self.wait(
            "!$('session').hidden && document.querySelector('#sessions .on .running') !== null",
        );
    }

    /// Replaces the text of an input.
    pub(crate) fn fill(&mut self, id: &str, text: &str) {
        self.evaluate(&format!("$('{id}').focus(), $('{id}').select()"));
        self.call("Input.insertText", &json!({"text": text}));
        if text.is_empty() {
            self.evaluate(&format!("$('{id}').value = ''"));
        }
    }

    pub(crate) fn click(&mut self, id: &str) {
        self.evaluate(&format!("$('{id}').click()"));
    }

    pub(crate) fn text(&mut self, id: &str) -> String {
        let text = self.evaluate(&format!("$('{id}').textContent"));
        text.as_str().unwrap().into()
    }

    /// Shows a result in every part but the terminal.
    pub(crate) fn fill_all(&mut self) {
        self.run("echo out; echo err >&2");
        self.click("audit-button");
        self.wait("!$('audit').hidden");
        self.click("verify-button");
        self.wait("!$('verified').hidden");
    }

    /// Runs a command to its end.
    pub(crate) fn run(&mut self, command: &str) {
        self.wait("$('exec-button').ariaDisabled !== 'true'");
        self.evaluate("$('exec-state').textContent = ''");
        self.fill("command", command);
        self.type_text("\n");
        self.wait("$('cancel-button').hidden && $('exec-state').textContent.toLowerCase().includes('exited')");
    }

    pub(crate) fn open_terminal(&mut self) {
        self.click("open-terminal");
        self.wait("$('terminal-state').textContent === 'Connected.'");
    }

    /// Waits until the screen of the terminal has this text.
    pub(crate) fn wait_for_screen(&mut self, text: &str) {
        let text = json!(text);
        self.wait(&format!(
            "[...document.querySelectorAll('.xterm-rows > div')]
                .some((row) => row.textContent.replaceAll('\u{a0}', ' ').includes({text}))"
        ));
    }

    /// Keeps an image of the page, for people to look at.
    pub(crate) fn keep_image(&mut self, name: &str) {
        let image = self.screenshot();
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::write(dir.join(format!("sandbox-{name}.png")), image).unwrap();
    }

    /// The browser had nothing to complain about.
    pub(crate) fn assert_clean(mut self) {
        assert_eq!(self.complaints(), Vec::<String>::new());
    }
}

//! SSH keys and signatures, by the programs of OpenSSH.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A directory with key pairs.
#[derive(Debug)]
pub struct Keys {
    dir: TempDir,
}

impl Keys {
    /// Creates the Ed25519 key `key`.
    ///
    /// # Panics
    ///
    /// If `ssh-keygen` cannot be run.
    #[allow(clippy::new_without_default, reason = "it runs a program")]
    pub fn new() -> Self {
        let keys = Self {
            dir: tempfile::tempdir().expect("a directory"),
        };
        keys.generate("key", &["-t", "ed25519", "-N", ""]);
        keys
    }

    /// Creates a key with these options of `ssh-keygen`.
    ///
    /// # Panics
    ///
    /// If `ssh-keygen` fails.
    pub fn generate(&self, name: &str, options: &[&str]) {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-C", ""]).args(options);
        let status = command
            .arg("-f")
            .arg(self.path(name))
            .stdin(Stdio::null())
            .status();
        assert!(status.expect("ssh-keygen").success());
    }

    /// The path of a private key, or of another file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The public key `name`, without a comment.
    ///
    /// # Panics
    ///
    /// If there is no such key.
    pub fn public(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path(&format!("{name}.pub")));
        text.expect("a public key").trim().to_owned()
    }

    /// Writes a file, and returns its path.
    ///
    /// # Panics
    ///
    /// If the file cannot be written.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("a file");
        path
    }

    /// Starts an agent that has the key `name`.
    ///
    /// # Panics
    ///
    /// If the programs of OpenSSH cannot be run.
    pub fn agent(&self, name: &str) -> Agent {
        let socket = self.path(&format!("{name}.agent"));
        // Without `-D`, the agent would be a daemon that outlives the test.
        let agent = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let agent = Agent {
            child: agent.expect("ssh-agent"),
            socket,
        };
        crate::deadline::wait_for("the agent", || agent.socket.exists());
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(self.path(name))
            .env("SSH_AUTH_SOCK", &agent.socket)
            .status();
        assert!(added.expect("ssh-add").success());
        agent
    }
}

/// An agent. Dropped, it is killed.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    /// The socket.
    pub socket: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A verification by `ssh-keygen`.
#[derive(Debug, Clone, Copy)]
pub struct Check<'a> {
    /// The `allowed_signers` file.
    pub allowed: &'a Path,
    /// The identity of the signer.
    pub identity: &'a str,
    /// The time at which the key must be valid, in the notation of `ssh-keygen`; `None`: now.
    pub at: Option<&'a str>,
    /// The time zone.
    pub zone: &'a str,
}

impl<'a> Check<'a> {
    /// A check for `me`, now.
    pub fn new(allowed: &'a Path) -> Self {
        Self {
            allowed,
            identity: "me",
            at: None,
            zone: "UTC",
        }
    }

    /// Runs `ssh-keygen -Y verify -f ALLOWED -I WHO -n moat-audit -s SIGNATURE < FILE`.
    ///
    /// # Panics
    ///
    /// If `ssh-keygen` cannot be run, or the file does not exist.
    pub fn accepts(&self, file: &Path, signature: &Path) -> bool {
        let mut command = Command::new("ssh-keygen");
        command.env("TZ", self.zone).args(["-Y", "verify"]);
        if let Some(at) = self.at {
            command.arg(format!("-Overify-time={at}"));
        }
        let status = command
            .arg("-f")
            .arg(self.allowed)
            .args(["-I", self.identity, "-n", "moat-audit", "-s"])
            .arg(signature)
            .stdin(File::open(file).expect("the signed file"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.expect("ssh-keygen").success()
    }
}

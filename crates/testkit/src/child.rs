//! The running test program, started again as a child with orders.

use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::deadline::eventually;

/// The orders of this process, if it is a child in this role.
///
/// # Panics
///
/// If the orders do not parse as those of the role.
pub fn orders<T: DeserializeOwned>(role: &str) -> Option<T> {
    let orders = std::env::var(name(role)).ok()?;
    Some(serde_json::from_str(&orders).expect("the orders of this role"))
}

/// A command that starts the running program in this role.
///
/// # Panics
///
/// If the path of the program is unknown, or the orders cannot be JSON.
pub fn command(role: &str, orders: &impl Serialize) -> Command {
    let program = std::env::current_exe().expect("the path of this program");
    let (name, value) = variable(role, orders);
    let mut command = Command::new(program);
    command.env(name, value);
    command
}

/// The environment variable that puts the running program into this role, and its value.
///
/// # Panics
///
/// If the orders cannot be JSON.
pub fn variable(role: &str, orders: &impl Serialize) -> (String, String) {
    let orders = serde_json::to_string(orders).expect("orders as JSON");
    (name(role), orders)
}

fn name(role: &str) -> String {
    format!("MOAT_TEST_ROLE_{}", role.to_uppercase())
}

/// A child process. Dropped, it is killed with SIGKILL.
#[derive(Debug)]
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Starts the running program in this role, without standard input.
    ///
    /// # Panics
    ///
    /// If the program cannot be started.
    pub fn start(role: &str, orders: &impl Serialize) -> Self {
        Self::spawn(command(role, orders).stdin(Stdio::null()))
    }

    /// Starts a command.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().expect("the child can be started"))
    }

    /// The output of the process, once, if it is piped.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.0.stdout.take()
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Returns true if the process has not ended.
    ///
    /// # Panics
    ///
    /// If the state of the process is unknown.
    pub fn is_alive(&mut self) -> bool {
        let status = self.0.try_wait().expect("the state of the child");
        status.is_none()
    }

    /// Kills the process with SIGKILL. Returns false if it had ended.
    pub fn kill(mut self) -> bool {
        self.is_alive()
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    ///
    /// After `seconds`.
    pub async fn ended(&mut self, seconds: u64) -> ExitStatus {
        eventually(seconds, "the end of the process", async || {
            self.0.try_wait().expect("the state of the child")
        })
        .await
    }
}

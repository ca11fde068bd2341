//! The running test program, started again as a child with orders.

use std::process::Command;

use serde::Serialize;
use serde::de::DeserializeOwned;

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

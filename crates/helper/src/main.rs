//! The helper program that moat puts into each pod.
//!
//! The container `main` runs the user's command below [`wrapper`]. The container `moat` runs
//! [`collector`], which captures the output, and [`ctl`], which connects moat to the collector.

mod archive;
mod cgroup;
mod collector;
mod ctl;
mod exec;
mod frames;
mod options;
#[allow(dead_code)]
#[path = "../../../src/runtime/kubernetes/protocol.rs"]
mod protocol;
mod signals;
mod streams;
mod tally;
mod user;
mod wrapper;

use std::ffi::OsString;
use std::process::exit;

use options::Options;

/// The exit code for arguments that are not understood.
const EXIT_USAGE: i32 = 64;

fn main() {
    let mut args = std::env::args_os().skip(1);
    let subcommand = args.next().unwrap_or_default();
    let args = args.collect();
    let code = run(&subcommand.to_string_lossy(), args).unwrap_or_else(|message| {
        eprintln!("moat-helper: {message}");
        EXIT_USAGE
    });
    exit(code)
}

/// Runs a subcommand. Returns the exit code.
fn run(subcommand: &str, args: Vec<OsString>) -> Result<i32, String> {
    let mut options = Options::new(args);
    Ok(match subcommand {
        "run" => wrapper::run(wrapper::Settings::parse(options)?),
        "serve" => collector::run(collector::Settings::parse(options)?),
        "ctl" => ctl::run(&options.operand("the control socket")?, &options.rest()),
        "exec" => exec::run(options.operand("the gate")?.as_ref()),
        "install" => archive::install(options.operand("a directory")?.as_ref()),
        "tar" => archive::pack(options.operand("a path")?.as_ref()),
        "untar" => archive::unpack(options.operand("a directory")?.as_ref()),
        "stats" => cgroup::report(),
        "version" => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            0
        }
        other => return Err(format!("unknown subcommand {other:?}")),
    })
}

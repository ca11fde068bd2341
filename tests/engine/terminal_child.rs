//! A process that attaches its terminal to a run and then fails: this program, started again.

use std::time::Duration;

use moat::run::AttachOptions;
use moat::runtime::scripted::{Script, Scripted};
use moat::spec::Stdin;
use moat::terminal::Terminal;
use moat::{Manager, RunSpec};

/// The role of this process.
pub const ROLE: &str = "terminal";

/// Attaches and fails as ordered, if this process is in that role.
pub fn role() -> Option<()> {
    let failure: String = testkit::child::orders(ROLE)?;
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(async { fail(&failure).await });
    Some(())
}

async fn fail(failure: &str) {
    const MESS: &str = "\x1b[?1049h\x1b[?25l\x1b[31mmess";
    let dir = tempfile::tempdir().unwrap();
    let runtime = Scripted::new();
    runtime.next(
        Script::new()
            .print(moat::outcome::Stream::Tty, MESS)
            .until_stopped(),
    );
    let manager = Manager::open(dir.path().join("runs"), runtime)
        .await
        .unwrap();
    let spec = RunSpec::new("any").tty(true).stdin(Stdin::Open);
    let options = AttachOptions::new().with_input();
    let (_run, attachment) = manager.start_attached(spec, options).await.unwrap();
    let terminal = Terminal::open().unwrap();
    let session = terminal.attach(attachment);
    tokio::select! {
        end = session => panic!("the session ended early: {end:?}"),
        // Long enough for the screen to show the modes that are to be reset.
        () = tokio::time::sleep(Duration::from_millis(500)) => {
            if failure == "panic" {
                panic!("a panic while the terminal is attached");
            }
        }
    }
    std::process::exit(9);
}

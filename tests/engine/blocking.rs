//! The API for code that is not async.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::thread;

use moat::blocking::{Manager, connect_docker};
use moat::outcome::Stream;
use moat::run::AttachOptions;
use moat::runtime::docker::ConnectOptions;
use moat::spec::{ExecSpec, Stdin};
use moat::{RunSpec, ShutdownMode};
use tokio::sync::oneshot;

use crate::stage::Stage;

testkit::trials! {
    crate::on_busybox: a_thread_copies_executes_and_types,
}

/// An archive that fails after some bytes.
struct Unreadable(bool);

impl Read for Unreadable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match std::mem::replace(&mut self.0, true) {
            false => Ok(buffer.len().min(512)),
            true => Err(io::Error::other("the medium is worn")),
        }
    }
}

async fn a_thread_copies_executes_and_types(stage: &Stage) {
    let (root, image) = (stage.root(), stage.image.clone());
    let (sender, done) = oneshot::channel();
    thread::spawn(move || {
        use_engine(root, &image);
        sender.send(()).unwrap();
    });
    done.await.expect("the thread has panicked");
    stage.is_clean().await;
}

fn use_engine(root: PathBuf, image: &str) {
    let docker = connect_docker(ConnectOptions::default()).unwrap();
    let manager = Manager::open(root, docker).unwrap();
    let spec = RunSpec::new(image).cmd(["cat"]).stdin(Stdin::Pipe);
    let input = AttachOptions::new().with_input();
    let (run, mut output) = manager.start_attached(spec.network("none"), input).unwrap();

    let content = b"0123456789".repeat(30_000);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, "report.txt", content.as_slice())
        .unwrap();
    run.copy_in("/", archive.into_inner().unwrap().as_slice())
        .unwrap();
    let exec = run
        .exec(ExecSpec::new(["wc", "-c", "/report.txt"]))
        .unwrap();
    let mut counted = String::new();
    let mut printed = exec.attach().unwrap().into_reader(Stream::Stdout);
    printed.read_to_string(&mut counted).unwrap();
    assert_eq!(counted, "300000 /report.txt\n");
    assert_eq!(exec.wait().unwrap().code(), Some(0));

    let mut archive = tar::Archive::new(run.copy_out("/report.txt").unwrap());
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    let mut copied = Vec::new();
    entry.read_to_end(&mut copied).unwrap();
    assert!(copied == content, "{} bytes", copied.len());
    let error = run.copy_in("/", Unreadable(false)).unwrap_err();
    let why = error.chain().to_string();
    assert!(
        why.contains("cannot read the archive: the medium is worn"),
        "{why}"
    );

    let mut input = output.input().unwrap();
    input.write_all(b"typed\n").unwrap();
    input.shutdown().unwrap();
    let mut echoed = String::new();
    let mut output = output.into_reader(Stream::Stdout);
    output.read_to_string(&mut echoed).unwrap();
    assert_eq!(echoed, "typed\n");
    assert!(run.wait().unwrap().sealed().is_some());
    manager.shutdown(ShutdownMode::Stop);
}

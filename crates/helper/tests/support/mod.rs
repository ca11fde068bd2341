//! A pod without a cluster: both containers' programs as processes in a temporary directory.
#![allow(dead_code)]

#[path = "../../../../src/runtime/kubernetes/protocol.rs"]
pub(crate) mod protocol;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use protocol::{HEADER_LEN, Header, Kind, encode_strings, frame};
use rustix::process::{Pid, Signal, kill_process};

/// The time that anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The program to test: another build than the tests' own if `MOAT_HELPER` has its path.
pub(crate) fn helper() -> Command {
    let other = std::env::var_os("MOAT_HELPER");
    Command::new(other.unwrap_or(env!("CARGO_BIN_EXE_moat-helper").into()))
}

/// A frame with its offset in the stream that it was read from.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) micros: u64,
    pub(crate) payload: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
}

impl Frame {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).unwrap()
    }

    pub(crate) fn offset(&self) -> u64 {
        u64::from_le_bytes(self.payload.as_slice().try_into().unwrap())
    }

    pub(crate) fn code(&self) -> i32 {
        i32::from_le_bytes(self.payload.as_slice().try_into().unwrap())
    }

    /// The number and the message of a `Failed` frame.
    pub(crate) fn failure(&self) -> (i32, String) {
        let (errno, text) = self.payload.split_first_chunk().unwrap();
        (
            i32::from_le_bytes(*errno),
            String::from_utf8(text.to_vec()).unwrap(),
        )
    }
}

pub(crate) fn read_frame(input: &mut impl Read) -> Option<Frame> {
    let mut header = [0; HEADER_LEN];
    match input.read_exact(&mut header) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
        other => other.unwrap(),
    }
    let decoded = Header::decode(header).expect("a header");
    let mut payload = vec![0; decoded.len];
    input.read_exact(&mut payload).unwrap();
    Some(Frame {
        kind: decoded.kind,
        micros: decoded.micros,
        bytes: [header.as_slice(), &payload].concat(),
        payload,
    })
}

pub(crate) fn read_frames(input: &mut impl Read) -> Vec<Frame> {
    std::iter::from_fn(|| read_frame(input)).collect()
}

/// The bytes of one stream.
pub(crate) fn bytes_of(frames: &[Frame], kind: Kind) -> Vec<u8> {
    let frames = frames.iter().filter(|frame| frame.kind == kind);
    frames.flat_map(|frame| frame.payload.clone()).collect()
}

pub(crate) fn kinds(frames: &[Frame]) -> Vec<Kind> {
    frames.iter().map(|frame| frame.kind).collect()
}

/// Waits for a condition.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The child processes of a pod.
pub(crate) struct Pod {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) serve: Child,
    pub(crate) main: Option<Child>,
}

/// The options of a pod.
pub(crate) struct Options<'a> {
    pub(crate) serve: &'a [&'a str],
    pub(crate) run: &'a [&'a str],
    pub(crate) command: &'a [&'a str],
}

pub(crate) const LIMIT: &str = "1000000000";

impl Pod {
    /// Starts both programs with a shell script as the command.
    pub(crate) fn sh(script: &str) -> Self {
        Self::with(Options {
            serve: &[],
            run: &[],
            command: &["sh", "-c", script],
        })
    }

    pub(crate) fn with(options: Options<'_>) -> Self {
        let mut pod = Self::serve(options.serve);
        pod.run(options.run, options.command);
        pod
    }

    /// Starts the collector alone.
    pub(crate) fn serve(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("termination"), "").unwrap();
        let serve = serve_command(dir.path(), options).spawn().unwrap();
        Self {
            dir,
            serve,
            main: None,
        }
    }

    /// Starts the wrapper.
    pub(crate) fn run(&mut self, options: &[&str], command: &[&str]) {
        let mut run = helper();
        run.arg("run")
            .args(options)
            .arg("--gate")
            .arg(self.path("gate"));
        run.arg("--").args(command).env("MARK", self.path("mark"));
        self.main = Some(run.stdin(Stdio::null()).spawn().unwrap());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn connect(&self, request: &str) -> UnixStream {
        let mut stream = eventually("the control socket", || {
            UnixStream::connect(self.path("control")).ok()
        });
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        stream
    }

    /// The frames of the answer to a request.
    pub(crate) fn request(&self, request: &str) -> Vec<Frame> {
        read_frames(&mut self.connect(request))
    }

    /// The only frame of the answer to a request.
    pub(crate) fn ask(&self, request: &str) -> Frame {
        let frames = match request {
            "release" => self.send_release(&[]),
            request => self.request(request),
        };
        assert_eq!(frames.len(), 1, "{request}: {frames:?}");
        frames.into_iter().next().unwrap()
    }

    /// Requests the release of the command with variables of the environment.
    pub(crate) fn connect_release(&self, variables: &[&str]) -> UnixStream {
        let mut stream = self.connect("release");
        let mut payload = Vec::new();
        encode_strings(&mut payload, variables);
        // The collector may be gone.
        let _ = stream.write_all(&frame(Kind::Spec, 0, &payload));
        stream
    }

    fn send_release(&self, variables: &[&str]) -> Vec<Frame> {
        read_frames(&mut self.connect_release(variables))
    }

    pub(crate) fn release_with(&self, variables: &[&str]) {
        assert_eq!(self.send_release(variables)[0].kind, Kind::Started);
    }

    pub(crate) fn release(&self) {
        assert_eq!(self.ask("release").kind, Kind::Started);
    }

    /// The frames up to the end.
    pub(crate) fn all(&self) -> Vec<Frame> {
        let mut frames = self.request("tap 0 follow");
        assert_eq!(frames.remove(0).kind, Kind::Hello);
        assert_eq!(frames.first().unwrap().kind, Kind::Started);
        assert_eq!(frames.last().unwrap().kind, Kind::End);
        frames
    }

    /// A value of the state.
    pub(crate) fn state(&self, key: &str) -> Option<String> {
        value(&self.ask("state").text(), key)
    }

    pub(crate) fn wait_phase(&self, phase: &str) {
        eventually(phase, || {
            (self.state("phase").unwrap() == phase).then_some(())
        });
    }

    pub(crate) fn main_exit(&mut self) -> ExitStatus {
        let main = self.main.as_mut().unwrap();
        eventually("the exit of main", || main.try_wait().unwrap())
    }

    pub(crate) fn serve_exit(&mut self) -> ExitStatus {
        let serve = &mut self.serve;
        eventually("the exit of the collector", || serve.try_wait().unwrap())
    }

    pub(crate) fn termination(&self) -> String {
        fs::read_to_string(self.path("termination")).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for child in self.main.iter_mut().chain([&mut self.serve]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn serve_command(dir: &Path, options: &[&str]) -> Command {
    let mut serve = helper();
    serve.arg("serve");
    for (option, name) in [
        ("--gate", "gate"),
        ("--control", "control"),
        ("--spool", "spool"),
        ("--termination-log", "termination"),
    ] {
        serve.arg(option).arg(dir.join(name));
    }
    if !options.contains(&"--limit") {
        serve.args(["--limit", LIMIT]);
    }
    serve.args(options).stdin(Stdio::null());
    serve
}

/// The value of a line `key value`.
pub(crate) fn value(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.map(str::to_owned)
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

pub(crate) fn send(to: &mut impl Write, kind: Kind, payload: &[u8]) {
    to.write_all(&frame(kind, 0, payload)).unwrap();
    to.flush().unwrap();
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! The input of the command.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Input;
use super::control::{self, Client};
use super::state::{Gate, Phase, Shared};
use crate::frames::{self, stamped};
use crate::protocol::Kind;

/// The interval between two checks of a command that does not read its input.
const STALL_INTERVAL: Duration = Duration::from_millis(500);
/// The interval between two checks of a client that waits for the wrapper.
const CLIENT_INTERVAL: Duration = Duration::from_millis(200);

/// The end for the writers of the input.
#[derive(Debug)]
pub(super) struct Stdin {
    input: Option<Input>,
    fd: Option<Arc<OwnedFd>>,
    tty: bool,
    /// A writer is in the middle of a frame.
    writing: bool,
    /// The bytes written.
    written: u64,
    /// The number of connections, now and in all.
    writers: u64,
    connections: u64,
}

impl Stdin {
    pub(super) fn new(input: Option<Input>) -> Self {
        Self {
            input,
            fd: None,
            tty: false,
            writing: false,
            written: 0,
            writers: 0,
            connections: 0,
        }
    }

    /// Takes the write end of a pipe or the master of a terminal.
    pub(super) fn open(&mut self, fd: Arc<OwnedFd>, tty: bool) {
        self.fd = self.input.is_some().then_some(fd);
        self.tty = tty;
    }

    /// Ends the input.
    pub(super) fn end(&mut self) {
        self.fd = None;
    }

    /// Returns true if the end of its writer ends the input.
    fn ends_with_writer(&self) -> bool {
        self.input == Some(Input::Pipe) && !self.tty
    }
}

/// Serves a writer of the input.
pub(super) fn serve(shared: &Arc<Shared>, mut client: Client) -> io::Result<()> {
    let Some(written) = register(shared, &client) else {
        return control::close(client, &control::refused("there is no input"));
    };
    let hello = stamped(Kind::Hello, &written.to_le_bytes());
    let result = io::Write::write_all(client.get_mut(), &hello);
    let end = result.and_then(|()| copy(shared, &mut client));
    let mut state = shared.lock();
    state.stdin.writers -= 1;
    match end {
        Ok(End::Closed) => {
            if state.stdin.ends_with_writer() {
                state.stdin.end();
            }
            drop(state);
            control::close(client, &stamped(Kind::Done, &[]))
        }
        Ok(End::Refused) => {
            drop(state);
            control::close(client, &control::refused("the input has ended"))
        }
        Ok(End::Broken) | Err(_) => {
            if state.stdin.ends_with_writer() && state.stdin.writers == 0 {
                let shared = Arc::clone(shared);
                let connections = state.stdin.connections;
                drop(state);
                thread::Builder::new().spawn(move || end_after_grace(&shared, connections))?;
            }
            Ok(())
        }
    }
}

/// Counts a writer when the wrapper is there. Returns the number of bytes written before, or none
/// if there is no input.
fn register(shared: &Shared, client: &Client) -> Option<u64> {
    let mut state = shared.lock();
    state.stdin.input?;
    while matches!(state.gate, Gate::Awaited) {
        state = shared.wait_for(state, CLIENT_INTERVAL);
        if control::is_gone(client.get_ref()) {
            return None;
        }
    }
    state.stdin.fd.as_ref()?;
    state.stdin.writers += 1;
    state.stdin.connections += 1;
    // Writers that wait for the grace of an earlier connection.
    shared.notify();
    Some(state.stdin.written)
}

/// Ends the input unless another writer comes in time.
fn end_after_grace(shared: &Shared, connections: u64) {
    let deadline = Instant::now() + shared.stdin_grace;
    let mut state = shared.lock();
    while state.stdin.connections == connections {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            state.stdin.end();
            return;
        }
        state = shared.wait_for(state, left);
    }
}

/// The end of a writer.
enum End {
    Closed,
    Refused,
    Broken,
}

fn copy(shared: &Shared, client: &mut Client) -> io::Result<End> {
    while let Some(frame) = frames::read(client)? {
        match frame.kind {
            Kind::Close => return Ok(End::Closed),
            Kind::Data if !write(shared, &frame.payload) => return Ok(End::Refused),
            _ => {}
        }
    }
    Ok(End::Broken)
}

/// Writes a frame's bytes without bytes of other writers in between. Returns false if the input has
/// ended.
fn write(shared: &Shared, bytes: &[u8]) -> bool {
    let mut state = shared.lock();
    while state.stdin.writing {
        state = shared.wait(state);
    }
    state.stdin.writing = true;
    drop(state);
    let written = write_all(shared, bytes);
    let mut state = shared.lock();
    state.stdin.writing = false;
    if !written {
        state.stdin.end();
    }
    shared.notify();
    written
}

fn write_all(shared: &Shared, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let (fd, phase) = {
            let state = shared.lock();
            (state.stdin.fd.clone(), state.phase)
        };
        let Some(fd) = fd.filter(|_| phase != Phase::Ended) else {
            return false;
        };
        match rustix::io::write(&fd, bytes) {
            Ok(len) => {
                bytes = &bytes[len..];
                shared.lock().stdin.written += len as u64;
            }
            // The terminal of a command that has ended may take no more and report no error. So
            // the phase is read from time to time.
            Err(Errno::AGAIN) => wait_writable(&fd),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

fn wait_writable(fd: impl AsFd) {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: STALL_INTERVAL.as_nanos() as _,
    };
    let _ = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&timeout));
}

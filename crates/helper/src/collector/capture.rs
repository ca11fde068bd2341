//! The thread that reads the output and writes the spool.

use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::fcntl_setpipe_size;

use super::spool;
use super::state::{Gate, Phase, Shared};
use crate::frames::{self, Frame, FrameBuffer, now_micros, stamped};
use crate::protocol::{Header, Kind, frame};
use crate::streams;
use crate::tally::Tally;

/// The most bytes of an output that one frame has.
const READ_LEN: usize = 64 << 10;
/// The size of a pipe, in bytes.
const PIPE_LEN: usize = 1 << 20;
/// The time between two attempts to write to a full disk, in milliseconds.
const RETRY_INTERVAL_MS: u64 = 100;

/// Accepts the wrapper, and after it execs that ask for the environment.
pub(super) fn accept(shared: &Arc<Shared>, gate: &UnixListener) {
    let mut accepted = false;
    for connection in gate.incoming().flatten() {
        let shared = Arc::clone(shared);
        if !accepted {
            accepted = true;
            thread::spawn(move || Capture::new(shared, connection).run());
        } else {
            // Without a thread, the connection is closed.
            let _ = thread::Builder::new().spawn(move || send_environment(&shared, connection));
        }
    }
}

/// Answers an exec that asks for the environment of the command.
fn send_environment(shared: &Shared, mut connection: UnixStream) -> io::Result<()> {
    match frames::read(&mut connection)? {
        Some(frame) if frame.kind == Kind::Spec => {
            let environment = shared.lock().environment.clone();
            connection.write_all(&stamped(Kind::Spec, &environment))
        }
        _ => Ok(()),
    }
}

struct Output {
    tally: Tally,
    /// None at the end of the output.
    fd: Option<OwnedFd>,
}

struct Capture {
    shared: Arc<Shared>,
    gate: Option<UnixStream>,
    received: FrameBuffer,
    outputs: Vec<Output>,
    buffer: Vec<u8>,
    /// Frames to write, and the number of their bytes that were written.
    pending: Vec<u8>,
    written: usize,
    /// A `Started` frame was made.
    started: bool,
    /// The wrapper has reported the end of the command.
    exited: bool,
}

impl Capture {
    fn new(shared: Arc<Shared>, gate: UnixStream) -> Self {
        Self {
            shared,
            gate: Some(gate),
            received: FrameBuffer::default(),
            outputs: Vec::new(),
            buffer: vec![0; READ_LEN],
            pending: Vec::new(),
            written: 0,
            started: false,
            exited: false,
        }
    }

    fn run(mut self) {
        match self.receive_ready() {
            Ok(()) => {}
            Err(error) => {
                eprintln!("moat-helper: no wrapper: {error}");
                self.close_gate();
            }
        }
        while !self.is_complete() {
            if let Err(error) = self.turn() {
                eprintln!("moat-helper: {error}");
                thread::sleep(std::time::Duration::from_millis(RETRY_INTERVAL_MS));
            }
        }
        self.end();
    }

    /// Receives the ends of the streams.
    fn receive_ready(&mut self) -> io::Result<()> {
        let mut fds = Vec::new();
        let ready = loop {
            if let Some(frame) = self.received.next()? {
                break frame;
            }
            self.receive_fds(&mut fds)?;
        };
        let names = String::from_utf8_lossy(&ready.payload).into_owned();
        let names: Vec<_> = names.split_whitespace().collect();
        if ready.kind != Kind::Ready || names.len() != fds.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let gate = self.gate.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let gate = gate.try_clone()?;
        let mut state = self.shared.lock();
        for (name, fd) in names.into_iter().zip(fds) {
            let kind = match name {
                "stdout" => Kind::Stdout,
                "stderr" => Kind::Stderr,
                "tty" => Kind::Tty,
                "stdin" => {
                    set_nonblocking(&fd)?;
                    state.stdin.open(Arc::new(fd), false);
                    continue;
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            };
            set_nonblocking(&fd)?;
            let _ = fcntl_setpipe_size(&fd, PIPE_LEN);
            if kind == Kind::Tty {
                let master = Arc::new(fd.try_clone()?);
                state.stdin.open(Arc::clone(&master), true);
                state.master = Some(master);
            }
            state.tallies.push(Tally::new(kind));
            self.outputs.push(Output {
                tally: Tally::new(kind),
                fd: Some(fd),
            });
        }
        state.gate = Gate::Open(gate);
        state.phase = Phase::Ready;
        self.shared.notify();
        Ok(())
    }

    fn receive_fds(&mut self, fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        let gate = self.gate.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut self.buffer)];
        let message = recvmsg(gate, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if message.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received.push(&self.buffer[..message.bytes]);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        let outputs_ended = self.outputs.iter().all(|output| output.fd.is_none());
        outputs_ended && (self.exited || self.gate.is_none()) && self.pending.is_empty()
    }

    /// Waits for an event, and moves what there is to the spool.
    fn turn(&mut self) -> io::Result<()> {
        let blocked = !self.pending.is_empty();
        let may_read = self.started || self.gate.is_none();
        let read = may_read && !blocked && !self.shared.lock().positions.check_limit();
        let mut fds = vec![self.shared.wake.as_fd()];
        fds.extend(self.gate.as_ref().map(|gate| gate.as_fd()));
        let first_output = fds.len();
        let open = |output: &Output| output.fd.is_some() && read;
        let outputs = self.outputs.iter().filter(|output| open(output));
        fds.extend(
            outputs
                .filter_map(|output| output.fd.as_ref())
                .map(|fd| fd.as_fd()),
        );
        let ready = streams::wait_readable(&fds, blocked.then_some(RETRY_INTERVAL_MS))?;

        if ready[0] {
            let _ = rustix::io::read(&self.shared.wake, &mut [0_u8; 8]);
        }
        let mut output_ready = ready[first_output..].iter();
        for index in 0..self.outputs.len() {
            if open(&self.outputs[index]) && output_ready.next() == Some(&true) {
                self.read(index);
            }
        }
        if self.gate.is_some() && ready[1] {
            self.receive();
        }
        self.flush();
        Ok(())
    }

    /// Reads from an output.
    fn read(&mut self, index: usize) {
        let output = &mut self.outputs[index];
        let Some(fd) = &output.fd else { return };
        match streams::read_output(fd, &mut self.buffer) {
            Some(0) => output.fd = None,
            Some(len) => {
                output.tally.add(&self.buffer[..len]);
                let header = Header {
                    kind: output.tally.kind,
                    len,
                    micros: now_micros(),
                };
                self.note_start();
                self.pending.extend_from_slice(&header.encode());
                self.pending.extend_from_slice(&self.buffer[..len]);
            }
            None => {}
        }
    }

    /// Makes a `Started` frame before the first output of a command whose start the wrapper could
    /// not report any more.
    fn note_start(&mut self) {
        if !self.started {
            self.set_started(now_micros());
        }
    }

    fn set_started(&mut self, micros: u64) {
        self.started = true;
        self.pending
            .extend_from_slice(&frame(Kind::Started, micros, &[]));
        let mut state = self.shared.lock();
        state.started_micros = Some(micros);
        if state.phase == Phase::Releasing {
            state.phase = Phase::Running;
        }
        self.shared.notify();
    }

    /// Reads from the wrapper.
    fn receive(&mut self) {
        let read = self.gate.as_mut().map(|gate| gate.read(&mut self.buffer));
        match read {
            Some(Ok(read)) if read > 0 => self.received.push(&self.buffer[..read]),
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => return,
            _ => return self.close_gate(),
        }
        loop {
            match self.received.next() {
                Ok(Some(frame)) => self.handle(frame),
                Ok(None) => return,
                Err(_) => return self.close_gate(),
            }
        }
    }

    fn handle(&mut self, received: Frame) {
        match received.kind {
            Kind::Started if !self.started => self.set_started(received.micros),
            Kind::Exited => self.set_exited(&received),
            kind => {
                let mut state = self.shared.lock();
                match kind {
                    Kind::Failed if state.phase == Phase::Releasing => {
                        state.phase = Phase::Ready;
                        state.failure = Some((state.attempts, received.payload));
                    }
                    Kind::Done | Kind::Refused => state.answer = Some(kind),
                    _ => {}
                }
                self.shared.notify();
            }
        }
    }

    fn set_exited(&mut self, received: &Frame) {
        self.exited = true;
        self.pending
            .extend_from_slice(&frame(Kind::Exited, received.micros, &received.payload));
        let mut state = self.shared.lock();
        state.exited_micros = Some(received.micros);
        state.exit_code = received.number();
        state.phase = Phase::Exited;
        self.shared.notify();
    }

    fn close_gate(&mut self) {
        self.gate = None;
        let mut state = self.shared.lock();
        state.gate = Gate::Closed;
        state.phase = Phase::Exited;
        self.shared.notify();
    }

    /// Writes the pending frames. What cannot be written now stays pending.
    fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let end = self.shared.lock().positions.end;
        let mut error = None;
        while self.written < self.pending.len() {
            let rest = &self.pending[self.written..];
            match self.shared.spool.write_at(rest, end + self.written as u64) {
                Ok(written) => self.written += written,
                Err(failed) if failed.kind() == io::ErrorKind::Interrupted => {}
                Err(failed) => {
                    error = Some(failed.raw_os_error().unwrap_or(0));
                    break;
                }
            }
        }
        let mut state = self.shared.lock();
        state.spool_error = error;
        if error.is_some() {
            return;
        }
        state.positions.advance(self.written as u64);
        for (tally, output) in state.tallies.iter_mut().zip(&self.outputs) {
            tally.clone_from(&output.tally);
        }
        let freed = state.positions.release();
        self.shared.notify();
        drop(state);
        self.pending.clear();
        self.written = 0;
        if let Some(range) = freed {
            spool::free(&self.shared.spool, range);
        }
    }

    /// Writes the last frame.
    fn end(mut self) {
        let text = {
            let state = self.shared.lock();
            crate::tally::summary(&state.tallies, state.exit_code)
        };
        self.pending = stamped(Kind::End, text.as_bytes());
        loop {
            self.flush();
            if self.pending.is_empty() {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(RETRY_INTERVAL_MS));
        }
        let mut state = self.shared.lock();
        state.phase = Phase::Ended;
        state.master = None;
        state.stdin.end();
        self.shared.notify();
        drop(state);
        drop(super::leave_message(&self.shared));
    }
}

/// The collector has the only copies of its ends: the command is not affected.
fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

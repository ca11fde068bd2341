//! The control socket: one request a connection.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::state::{Gate, Phase, Shared};
use super::{dial, spool, stdin, tap};
use crate::frames::{self, stamped};
use crate::protocol::{Kind, frame};
use crate::streams::{self, Window};

/// The length of a request line, in bytes.
const MAX_REQUEST: u64 = 4096;
/// The interval between two checks of a client that waits for the wrapper.
const CLIENT_INTERVAL: Duration = Duration::from_millis(200);
const SIGKILL: i32 = 9;

/// A connection of a client, after its request line.
pub(super) type Client = BufReader<UnixStream>;

/// Accepts clients.
pub(super) fn serve(shared: &Arc<Shared>, listener: &UnixListener) {
    for connection in listener.incoming() {
        let shared = Arc::clone(shared);
        let handler = thread::Builder::new();
        let Ok(connection) = connection else {
            // The process has too many open files.
            thread::sleep(CLIENT_INTERVAL);
            continue;
        };
        // Without a thread, the connection is closed.
        let _ = handler.spawn(move || handle(&shared, connection));
    }
}

fn handle(shared: &Arc<Shared>, connection: UnixStream) -> io::Result<()> {
    let mut client = BufReader::with_capacity(64 << 10, connection);
    let mut line = String::new();
    (&mut client).take(MAX_REQUEST).read_line(&mut line)?;
    let words: Vec<_> = line.split_whitespace().collect();
    let answer = match words.as_slice() {
        ["state"] => stamped(Kind::Report, shared.lock().report().as_bytes()),
        ["release"] => {
            let environment = frames::read(&mut client)?;
            let environment = environment.filter(|frame| frame.kind == Kind::Spec);
            release(shared, &client, environment.map(|frame| frame.payload))
        }
        ["signal", signal] => signal_command(shared, signal),
        ["resize", cols, rows] => resize(shared, cols, rows),
        ["stdin"] => return stdin::serve(shared, client),
        ["dial", port] => return dial::serve(shared, client, port),
        ["tap", offset] => return serve_tap(shared, client, offset, false),
        ["tap", offset, "follow"] => return serve_tap(shared, client, offset, true),
        ["tail", lines] => match lines.parse() {
            Ok(lines) => {
                let offset = spool::tail(shared, lines)?;
                return tap::serve(shared, client, offset, false);
            }
            Err(_) => refused("not a number of lines"),
        },
        ["quit"] if !shared.lock().expire() => refused("the command runs"),
        ["quit"] => {
            let _message = super::leave_message(shared);
            client.get_mut().write_all(&stamped(Kind::Done, &[]))?;
            std::process::exit(0)
        }
        _ => refused("unknown request"),
    };
    close(client, &answer)
}

/// Sends the last answer, and waits until the client has closed the connection: with input that
/// was not read, the client could miss the answer.
pub(super) fn close(mut client: Client, answer: &[u8]) -> io::Result<()> {
    client.get_mut().write_all(answer)?;
    client.get_mut().shutdown(std::net::Shutdown::Write)?;
    io::copy(&mut client, &mut io::sink())?;
    Ok(())
}

pub(super) fn refused(reason: &str) -> Vec<u8> {
    stamped(Kind::Refused, reason.as_bytes())
}

fn serve_tap(shared: &Arc<Shared>, client: Client, offset: &str, follow: bool) -> io::Result<()> {
    let offset = match offset {
        "end" => Some(shared.lock().positions.end),
        number => match number.parse() {
            Ok(offset) => spool::resolve(shared, offset)?,
            Err(_) => None,
        },
    };
    match offset {
        Some(offset) => tap::serve(shared, client, offset, follow),
        None => close(client, &refused("not the offset of a frame")),
    }
}

/// Releases the wrapper once, and returns its report.
///
/// A repeated release has the same environment.
fn release(shared: &Shared, client: &Client, environment: Option<Vec<u8>>) -> Vec<u8> {
    let Some(environment) = environment else {
        return refused("the environment of the command is missing");
    };
    let mut attempt = None;
    let mut state = shared.lock();
    loop {
        if let Some(micros) = state.started_micros {
            return frame(Kind::Started, micros, &[]);
        }
        if let (Some(attempt), Some((failed, payload))) = (attempt, &state.failure)
            && *failed >= attempt
        {
            return stamped(Kind::Failed, payload);
        }
        match state.phase {
            _ if matches!(state.gate, Gate::Closed) => {
                return match state.may_have_started() {
                    true => refused("the wrapper has ended before it reported the start"),
                    false => refused("the wrapper has ended without a start"),
                };
            }
            Phase::Waiting | Phase::Ready if state.expired => {
                return refused("the deadline has passed");
            }
            Phase::Waiting => {
                // A client that is gone must not start the command later.
                state = shared.wait_for(state, CLIENT_INTERVAL);
                if is_gone(client.get_ref()) {
                    return Vec::new();
                }
                continue;
            }
            Phase::Ready => {
                state.attempts += 1;
                state.environment.clone_from(&environment);
                state.phase = Phase::Releasing;
                attempt = Some(state.attempts);
                if !state.send_to_wrapper(Kind::Release, &environment) {
                    // The capture thread reads the reason.
                    state.phase = Phase::Exited;
                }
            }
            Phase::Releasing => attempt = attempt.or(Some(state.attempts)),
            Phase::Running | Phase::Exited | Phase::Ended => {}
        }
        state = shared.wait(state);
    }
}

/// Returns true if the client has closed its connection.
pub(super) fn is_gone(client: &UnixStream) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
}

fn signal_command(shared: &Shared, signal: &str) -> Vec<u8> {
    match signal.parse() {
        Ok(signal) if send_signal(shared, signal) => stamped(Kind::Done, &[]),
        Ok(_) => refused("the command does not run, or there is no such signal"),
        Err(_) => refused("not a signal"),
    }
}

/// Sends a signal through the wrapper. Returns false if the wrapper could not send it.
fn send_signal(shared: &Shared, signal: i32) -> bool {
    let _one_request = shared
        .signaling
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let mut state = shared.lock();
    state.answer = None;
    let sent =
        state.phase == Phase::Running && state.send_to_wrapper(Kind::Signal, &signal.to_le_bytes());
    while sent && state.answer.is_none() && state.phase == Phase::Running {
        state = shared.wait(state);
    }
    sent && state.answer == Some(Kind::Done)
}

/// Kills the command at its deadline, and forbids a start.
pub(super) fn kill(shared: &Shared) {
    let mut state = shared.lock();
    state.expired = true;
    shared.notify();
    while state.phase == Phase::Releasing {
        state = shared.wait(state);
    }
    drop(state);
    send_signal(shared, SIGKILL);
}

fn resize(shared: &Shared, cols: &str, rows: &str) -> Vec<u8> {
    let (Ok(cols), Ok(rows)) = (cols.parse(), rows.parse()) else {
        return refused("not a size");
    };
    let Some(master) = shared.lock().master.clone() else {
        return refused("there is no terminal");
    };
    match streams::resize(&*master, Window { cols, rows }) {
        Ok(()) => stamped(Kind::Done, &[]),
        Err(error) => stamped(
            Kind::Failed,
            &frames::failure("resize the terminal", &error),
        ),
    }
}

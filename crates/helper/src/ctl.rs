//! Connects the streams of an exec to the collector's control socket.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::frames;
use crate::protocol::Kind;

/// The time that the collector has to open its socket.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);
const BUFFER_LEN: usize = 256 << 10;

/// Sends a request, and copies both directions until the collector closes the connection. Returns
/// the exit code.
pub(crate) fn run(socket: &OsStr, words: &[OsString]) -> i32 {
    let mut stdout = match io::stdout().as_fd().try_clone_to_owned() {
        Ok(stdout) => File::from(stdout),
        Err(_) => return 1,
    };
    match request(socket, words) {
        Ok(mut answers) => {
            copy_input(&answers);
            // An error is the end of one of both sides.
            let _ = copy(&mut answers, &mut stdout);
            0
        }
        Err(error) => {
            let operation = format!("connect {}", socket.to_string_lossy());
            let _ = frames::write(
                &mut stdout,
                Kind::Failed,
                &frames::failure(&operation, &error),
            );
            1
        }
    }
}

fn request(socket: &OsStr, words: &[OsString]) -> io::Result<UnixStream> {
    let mut connection = connect(socket)?;
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    let mut line = words.join(&b' ');
    line.push(b'\n');
    connection.write_all(&line)?;
    Ok(connection)
}

fn connect(socket: &OsStr) -> io::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match UnixStream::connect(socket) {
            Err(_) if Instant::now() < deadline => thread::sleep(CONNECT_INTERVAL),
            result => return result,
        }
    }
}

/// Copies the input on another thread. Its end means that moat is gone, and ends the connection's
/// direction to the collector.
fn copy_input(connection: &UnixStream) {
    let input = io::stdin().as_fd().try_clone_to_owned();
    if let (Ok(input), Ok(mut connection)) = (input, connection.try_clone()) {
        thread::spawn(move || {
            let _ = copy(&mut File::from(input), &mut connection);
            let _ = connection.shutdown(Shutdown::Write);
        });
    }
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

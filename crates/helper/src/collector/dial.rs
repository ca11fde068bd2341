//! Connections to TCP ports of the pod.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::control::{self, Client};
use super::state::{Phase, Shared};
use crate::frames::{self, failure, stamped};
use crate::protocol::Kind;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_LEN: usize = 64 << 10;

/// Connects to a port, and copies both directions until the client closes its connection.
pub(super) fn serve(shared: &Shared, mut client: Client, port: &str) -> io::Result<()> {
    let Ok(port) = port.parse() else {
        return control::close(client, &control::refused("not a port"));
    };
    if shared.lock().phase != Phase::Running {
        return control::close(client, &control::refused("the command does not run"));
    }
    let connection = match connect(port) {
        Ok(connection) => connection,
        Err(error) => {
            let payload = failure(&format!("connect to port {port}"), &error);
            return control::close(client, &stamped(Kind::Failed, &payload));
        }
    };
    client.get_mut().write_all(&stamped(Kind::Done, &[]))?;
    let (from, to) = (connection.try_clone()?, client.get_ref().try_clone()?);
    let sender = thread::Builder::new().spawn(move || send(from, to))?;
    let received = receive(&mut client, &connection);
    // Ends the sender, too.
    let _ = connection.shutdown(Shutdown::Both);
    let _ = sender.join();
    received
}

/// A server may listen on one of both addresses only.
fn connect(port: u16) -> io::Result<TcpStream> {
    let dial = |address: SocketAddr| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT);
    let first = dial((Ipv4Addr::LOCALHOST, port).into());
    first.or_else(|error| dial((Ipv6Addr::LOCALHOST, port).into()).map_err(|_| error))
}

/// Copies the client's bytes to the port. After an error of the port, they are dropped.
fn receive(client: &mut Client, mut connection: &TcpStream) -> io::Result<()> {
    while let Some(frame) = frames::read(client)? {
        let _ = match frame.kind {
            Kind::Data => connection.write_all(&frame.payload),
            Kind::Close => connection.shutdown(Shutdown::Write),
            _ => Ok(()),
        };
    }
    Ok(())
}

/// Copies the port's bytes to the client, and reports their end.
fn send(mut connection: TcpStream, mut client: UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; READ_LEN];
    let end = loop {
        match connection.read(&mut buffer) {
            Ok(0) => break stamped(Kind::Close, &[]),
            Ok(read) => client.write_all(&stamped(Kind::Data, &buffer[..read]))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break stamped(Kind::Failed, &failure("read from the port", &error)),
        }
    };
    client.write_all(&end)
}

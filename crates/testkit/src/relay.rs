//! A relay of TCP connections that can be cut or frozen, for a server that uses TLS.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::proxy::while_thawed;

/// A listening relay. Dropping it ends it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    /// True while no connection is accepted.
    down: watch::Sender<bool>,
    /// True while nothing passes.
    frozen: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.down.send_replace(true);
    }
}

impl Relay {
    /// Listens on a port of `127.0.0.1` for the server at `target`, such as `127.0.0.1:6443`.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn listen(target: String) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (down, is_down) = watch::channel(false);
        let (frozen, is_frozen) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, is_frozen) = (target.clone(), is_frozen.clone());
                let mut is_down = is_down.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        biased;
                        _ = is_down.wait_for(|down| *down) => {}
                        _ = while_thawed(is_frozen, pass(client, target)) => {}
                    }
                });
            }
        });
        Ok(Self {
            address,
            down,
            frozen,
            task,
        })
    }

    /// The address of the relay.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts all connections, and each new one until [`up`](Self::up).
    pub fn down(&self) {
        self.down.send_replace(true);
    }

    /// Passes new connections again.
    pub fn up(&self) {
        self.down.send_replace(false);
    }

    /// Lets nothing pass until [`thaw`](Self::thaw), on any connection.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Ends [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }
}

async fn pass(mut client: TcpStream, target: String) -> io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

//! The process at the other end of a Unix socket.

use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::address::Endpoint;
use super::dialer::Dialer;

/// The programs that listen at Podman's socket. Others forward it from elsewhere.
const LISTENERS: [&str; 2] = ["podman", "systemd"];

impl Dialer {
    /// Returns the path of Podman's root directory: the files that it can mount.
    ///
    /// Returns `None` if the service is on another machine, or if its files are out of reach.
    pub(crate) async fn root_of_podman(&self) -> Option<PathBuf> {
        let Endpoint::Unix(path) = &self.address().endpoint else {
            return None;
        };
        let stream = UnixStream::connect(path).await.ok()?;
        let process = stream.peer_cred().ok()?.pid()?;
        let process = Path::new("/proc").join(process.to_string());
        let name = std::fs::read_to_string(process.join("comm")).ok()?;
        let root = process.join("root");
        // Its name alone does not show that its files can be read.
        let is_readable = std::fs::metadata(root.join("proc")).is_ok();
        (LISTENERS.contains(&name.trim()) && is_readable).then_some(root)
    }
}

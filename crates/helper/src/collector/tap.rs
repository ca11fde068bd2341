//! Sends the spool to a client.

use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::control::Client;
use super::spool;
use super::state::{Phase, Shared};
use crate::frames::{self, stamped};
use crate::protocol::Kind;

/// The size of a read from the spool, in bytes.
const READ_LEN: u64 = 512 << 10;

/// Sends the frames from an offset on, and receives acknowledgments until the client closes the
/// connection.
pub(super) fn serve(
    shared: &Arc<Shared>,
    client: Client,
    offset: u64,
    follow: bool,
) -> io::Result<()> {
    let stream = client.get_ref().try_clone()?;
    let gone = Arc::new(AtomicBool::new(false));
    let reader = {
        let (shared, gone) = (Arc::clone(shared), Arc::clone(&gone));
        thread::Builder::new().spawn(move || {
            receive(&shared, client);
            // Under the lock: the sender must not miss the change.
            let _state = shared.lock();
            gone.store(true, Ordering::SeqCst);
            shared.notify();
        })?
    };
    let mut tap = Tap {
        shared,
        stream,
        gone,
        position: offset,
    };
    let result = tap.send(follow);
    let how = match result {
        Ok(()) => Shutdown::Write,
        Err(_) => Shutdown::Both,
    };
    // The client may be gone already.
    let _ = tap.stream.shutdown(how);
    let _ = reader.join();
    result
}

/// Receives acknowledgments.
fn receive(shared: &Shared, mut client: Client) {
    while let Ok(Some(frame)) = frames::read(&mut client) {
        let Some(offset) = frame.offset().filter(|_| frame.kind == Kind::Ack) else {
            continue;
        };
        let mut state = shared.lock();
        if state.positions.acknowledge(offset) {
            shared.wake_capture();
        }
        let freed = state.positions.release();
        if state.is_delivered() {
            shared.notify();
        }
        drop(state);
        if let Some(range) = freed {
            spool::free(&shared.spool, range);
        }
    }
}

struct Tap<'a> {
    shared: &'a Shared,
    stream: UnixStream,
    gone: Arc<AtomicBool>,
    position: u64,
}

impl Tap<'_> {
    fn send(&mut self, follow: bool) -> io::Result<()> {
        let hello = stamped(Kind::Hello, &self.position.to_le_bytes());
        self.stream.write_all(&hello)?;
        let mut buffer = vec![0; READ_LEN as usize];
        let until = self.shared.lock().positions.end;
        loop {
            let (end, ended) = self.wait_frames(follow);
            let end = if follow { end } else { until };
            while self.position < end {
                self.send_part(&mut buffer, end)?;
            }
            if !follow {
                self.stream.write_all(&stamped(Kind::Pause, &[]))?;
            }
            if !follow || ended || self.gone.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }

    /// Waits until there are more frames, or no more will come. Returns the end, and true if it is
    /// final.
    fn wait_frames(&self, follow: bool) -> (u64, bool) {
        let mut state = self.shared.lock();
        loop {
            let ended = state.phase == Phase::Ended;
            let more = state.positions.end > self.position;
            if more || ended || !follow || self.gone.load(Ordering::SeqCst) {
                return (state.positions.end, ended);
            }
            state = self.shared.wait(state);
        }
    }

    fn send_part(&mut self, buffer: &mut [u8], end: u64) -> io::Result<()> {
        let len = (end - self.position).min(buffer.len() as u64) as usize;
        let part = &mut buffer[..len];
        self.shared.spool.read_exact_at(part, self.position)?;
        // The start moves before a range is freed. So these bytes are not from a hole.
        if self.shared.lock().positions.start > self.position {
            return Err(io::Error::other("the frames were acknowledged and freed"));
        }
        self.stream.write_all(part)?;
        self.position += len as u64;
        Ok(())
    }
}

//! The digest of a file that is read.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use sha2::{Digest, Sha256};

/// From here on a thread is worth its start: the digest takes longer than all else that is done to
/// a line.
const LARGE: u64 = if cfg!(test) { 64 << 10 } else { 4 << 20 };
/// How many pieces wait for that thread.
const AHEAD: usize = 2;

/// The SHA-256 of all that it is given; for a large file, made beside the reading of its lines.
#[derive(Debug)]
pub(super) struct Running {
    /// Of all, up to `LARGE`; later the worker has it.
    begun: Sha256,
    length: u64,
    worker: Option<Worker>,
}

impl Running {
    pub(super) fn new() -> Self {
        Self {
            begun: Sha256::new(),
            length: 0,
            worker: None,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let large = self.length >= LARGE;
        self.length += bytes.len() as u64;
        if large && self.worker.is_none() {
            self.worker = Worker::new(self.begun.clone());
        }
        match &mut self.worker {
            Some(worker) => worker.update(bytes),
            // Where no thread can be had, too.
            None => self.begun.update(bytes),
        }
    }

    /// The digest so far.
    pub(super) fn get(&self) -> Sha256 {
        match &self.worker {
            Some(worker) => worker.get(),
            None => self.begun.clone(),
        }
    }
}

/// A thread that ends when this is dropped.
#[derive(Debug)]
struct Worker {
    work: SyncSender<Work>,
    /// Buffers that it has done with.
    spare: Receiver<Vec<u8>>,
}

enum Work {
    Piece(Vec<u8>),
    Tell(Sender<Sha256>),
}

impl Worker {
    /// `None`: this process may not have one more thread.
    fn new(mut digest: Sha256) -> Option<Self> {
        let (work, todo) = sync_channel(AHEAD);
        let (done, spare) = channel();
        let run = move || {
            for work in todo {
                match work {
                    Work::Piece(piece) => {
                        digest.update(&piece);
                        let _ = done.send(piece);
                    }
                    Work::Tell(whom) => {
                        let _ = whom.send(digest.clone());
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("moat-digest".into());
        thread.spawn(run).ok()?;
        Some(Self { work, spare })
    }

    fn update(&self, bytes: &[u8]) {
        let mut piece = self.spare.try_recv().unwrap_or_default();
        piece.clear();
        piece.extend_from_slice(bytes);
        self.send(Work::Piece(piece));
    }

    fn get(&self) -> Sha256 {
        let (tell, told) = channel();
        self.send(Work::Tell(tell));
        told.recv().expect(LIVES)
    }

    fn send(&self, work: Work) {
        self.work.send(work).expect(LIVES);
    }
}

const LIVES: &str = "the thread ends when its channel does";

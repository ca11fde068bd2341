//! The running digest of a file.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use sha2::{Digest, Sha256};

use crate::runtime::exclusive::Exclusive;

/// The file size from which the digest runs on a thread.
///
/// The digest takes longer than everything else that is done to a line.
const THREAD_THRESHOLD_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 4 << 20 };
/// The number of buffers that wait for the thread.
const QUEUED_BUFFERS: usize = 2;

/// A running SHA-256. The digest of a large file is computed on a separate thread.
#[derive(Debug)]
pub(super) struct RunningDigest {
    /// The digest until a worker takes over, at about `THREAD_THRESHOLD_BYTES`.
    digest: Sha256,
    length: u64,
    worker: Option<Worker>,
}

impl RunningDigest {
    pub(super) fn new() -> Self {
        Self {
            digest: Sha256::new(),
            length: 0,
            worker: None,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let large = self.length >= THREAD_THRESHOLD_BYTES;
        self.length += bytes.len() as u64;
        if large && self.worker.is_none() {
            self.worker = Worker::new(self.digest.clone());
        }
        match &mut self.worker {
            Some(worker) => worker.update(bytes),
            // The file is small, or no thread could be started.
            None => self.digest.update(bytes),
        }
    }

    /// The digest so far.
    pub(super) fn snapshot(&self) -> Sha256 {
        match &self.worker {
            Some(worker) => worker.snapshot(),
            None => self.digest.clone(),
        }
    }
}

/// The thread that computes a digest. It ends when the worker is dropped.
#[derive(Debug)]
struct Worker {
    jobs: SyncSender<Job>,
    /// Buffers that the thread has hashed, to be reused.
    spare: Exclusive<Receiver<Vec<u8>>>,
}

enum Job {
    Update(Vec<u8>),
    Snapshot(Sender<Sha256>),
}

impl Worker {
    /// Starts a worker; `None` if the process cannot start another thread.
    fn new(mut digest: Sha256) -> Option<Self> {
        let (jobs, queue) = sync_channel(QUEUED_BUFFERS);
        let (done, spare) = channel();
        let run = move || {
            for job in queue {
                match job {
                    Job::Update(buffer) => {
                        digest.update(&buffer);
                        let _ = done.send(buffer);
                    }
                    Job::Snapshot(sender) => {
                        let _ = sender.send(digest.clone());
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("moat-digest".into());
        thread.spawn(run).ok()?;
        Some(Self {
            jobs,
            spare: Exclusive::new(spare),
        })
    }

    fn update(&mut self, bytes: &[u8]) {
        let mut buffer = self.spare.get_mut().try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        self.send(Job::Update(buffer));
    }

    fn snapshot(&self) -> Sha256 {
        let (sender, receiver) = channel();
        self.send(Job::Snapshot(sender));
        receiver.recv().expect(WORKER_RUNS)
    }

    fn send(&self, job: Job) {
        self.jobs.send(job).expect(WORKER_RUNS);
    }
}

const WORKER_RUNS: &str = "the worker runs until its channel closes";

//! The threads that do file I/O.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// The time after which an idle thread exits.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A small pool of threads for file I/O. A clone is a handle to the same pool.
///
/// Threads start when there is work, and exit when they have been idle for a while. Nothing ever
/// joins them: a thread that hangs in a system call is abandoned.
#[derive(Clone)]
pub(crate) struct Disk {
    pool: Arc<Pool>,
}

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    name: &'static str,
    max_threads: usize,
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// The jobs of a pool.
///
/// A thread exits only when both queues are empty, so a pool that has a job has a thread.
#[derive(Default)]
struct Queue {
    ready: VecDeque<Job>,
    delayed: BTreeMap<(Instant, u64), Job>,
    /// Distinguishes jobs that are due at the same instant.
    serial: u64,
    threads: usize,
    /// The number of threads that wait for a job.
    idle: usize,
}

impl Disk {
    /// Creates a pool of at most 16 threads.
    ///
    /// Most of them wait for a sync. The file system combines concurrent syncs, so the last of 16
    /// runs that end together waits no longer than the first.
    pub(crate) fn new() -> Self {
        Self::with_threads("moat-disk", 16)
    }

    /// Creates a pool of at most `max_threads` threads, named `name` and a number.
    pub(crate) fn with_threads(name: &'static str, max_threads: usize) -> Self {
        Self {
            pool: Arc::new(Pool {
                name,
                max_threads,
                queue: Mutex::default(),
                wake: Condvar::new(),
            }),
        }
    }

    /// Runs `job` on a thread of the pool.
    ///
    /// If the future is dropped, the job continues, and its result is dropped on the thread.
    ///
    /// # Errors
    ///
    /// The job's own error. If the job panics, or no thread can be started, the error names
    /// `operation` (a verb) and `path`.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        path: &Path,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, outcome) = oneshot::channel();
        self.pool
            .submit(
                None,
                Box::new(move || {
                    let _ = done.send(catch_unwind(AssertUnwindSafe(job)));
                }),
            )
            .map_err(|error| Error::storage(operation, path, error))?;
        match outcome.await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Error::storage(
                operation,
                path,
                io::Error::other("the job panicked"),
            )),
        }
    }

    /// Runs `job` on a thread of the pool after `delay`, without reporting its result.
    ///
    /// # Errors
    ///
    /// Fails if the pool has no thread and cannot start one. The job then never runs.
    pub(crate) fn run_later(
        &self,
        delay: Duration,
        job: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        match Instant::now().checked_add(delay) {
            Some(due) => self.pool.submit(Some(due), Box::new(job)),
            // The clock cannot represent the due time, so the job never runs.
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.pool.name)
            .field("max_threads", &self.pool.max_threads)
            .finish_non_exhaustive()
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(self: &Arc<Self>, due: Option<Instant>, job: Job) -> io::Result<()> {
        let mut queue = self.lock();
        // Each ready job needs a thread, and the delayed jobs need one that waits for them.
        let ready = queue.ready.len() + usize::from(due.is_none());
        let has_delayed = due.is_some() || !queue.delayed.is_empty();
        let needed = ready + usize::from(has_delayed);
        if queue.idle < needed && queue.threads < self.max_threads {
            let pool = Arc::clone(self);
            let started = std::thread::Builder::new()
                .name(format!("{}-{}", self.name, queue.threads + 1))
                .spawn(move || pool.work());
            match started {
                Ok(_) => queue.threads += 1,
                // An existing thread runs the job later.
                Err(_) if queue.threads > 0 => {}
                Err(error) => return Err(error),
            }
        }
        match due {
            None => queue.ready.push_back(job),
            Some(due) => {
                let serial = queue.serial;
                queue.serial += 1;
                queue.delayed.insert((due, serial), job);
            }
        }
        self.wake.notify_one();
        Ok(())
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            if let Some(job) = queue.next_job(now) {
                drop(queue);
                // `run` reports the panics of its jobs. Panics of delayed jobs are ignored.
                let _ = catch_unwind(AssertUnwindSafe(job));
                queue = self.lock();
                continue;
            }
            let wait = match queue.delayed.first_key_value() {
                Some(((due, _), _)) => due.saturating_duration_since(now),
                None => IDLE_TIMEOUT,
            };
            queue.idle += 1;
            let (guard, timeout) = self
                .wake
                .wait_timeout(queue, wait)
                .unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.idle -= 1;
            if timeout.timed_out() && queue.ready.is_empty() && queue.delayed.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

impl Queue {
    /// Takes the next job to run now. Due delayed jobs come first: they have waited longest.
    fn next_job(&mut self, now: Instant) -> Option<Job> {
        if let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            return Some(entry.remove());
        }
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn here() -> &'static Path {
        Path::new("here")
    }

    #[tokio::test]
    async fn a_panic_of_a_job_is_an_error_and_keeps_the_thread() {
        let disk = Disk::with_threads("moat-disk", 4);
        for _ in 0..20 {
            let error = disk
                .run("test", here(), || -> Result<()> { panic!("on purpose") })
                .await
                .unwrap_err();
            assert_eq!(error.to_string(), "cannot test here");
        }
        let name = disk
            .run("test", here(), || {
                Ok(std::thread::current().name().map(str::to_owned))
            })
            .await
            .unwrap();
        assert!(name.unwrap().starts_with("moat-disk-"));
        assert!(disk.pool.lock().threads <= 4);
    }

    #[tokio::test]
    async fn hung_jobs_block_neither_other_jobs_nor_the_drop() {
        let disk = Disk::new();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let hung: Vec<_> = (0..3)
            .map(|_| {
                let (disk, gate) = (disk.clone(), gate.clone());
                async move {
                    disk.run("hang", here(), move || {
                        let _ = gate.lock().unwrap().recv();
                        Ok(())
                    })
                    .await
                }
            })
            .collect();
        let mut hung = Box::pin(futures::future::join_all(hung));
        assert!(futures::poll!(&mut hung).is_pending());
        for n in 0..100 {
            assert_eq!(disk.run("go", here(), move || Ok(n)).await.unwrap(), n);
        }
        drop((hung, disk));
        drop(release);
    }

    #[tokio::test]
    async fn more_jobs_than_threads_all_complete() {
        let disk = Disk::with_threads("moat-test", 2);
        let jobs = (0..200).map(|n| {
            let disk = disk.clone();
            async move { disk.run("go", here(), move || Ok(n)).await.unwrap() }
        });
        let done = futures::future::join_all(jobs).await;
        assert_eq!(done, (0..200).collect::<Vec<_>>());
        assert!(disk.pool.lock().threads <= 2);
    }

    #[test]
    fn a_delayed_job_runs_when_due_and_not_before() {
        let disk = Disk::with_threads("moat-test", 1);
        let (done, order) = mpsc::channel();
        let begin = Instant::now();
        for (name, delay) in [("second", 1200), ("first", 60)] {
            let done = done.clone();
            disk.run_later(Duration::from_millis(delay), move || {
                done.send((name, begin.elapsed())).unwrap();
            })
            .unwrap();
        }
        disk.run_later(Duration::MAX, || panic!("never")).unwrap();
        let (first, second) = (order.recv().unwrap(), order.recv().unwrap());
        assert_eq!((first.0, second.0), ("first", "second"));
        assert!(first.1 >= Duration::from_millis(60), "{first:?}");
        assert!(second.1 >= Duration::from_millis(1200), "{second:?}");
    }
}

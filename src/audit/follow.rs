//! Following an audit file while any process writes it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};

use crate::audit::{Event, LogState, Reader, Record};
use crate::disk::{Disk, FileId};
use crate::error::{Error, Result};
use crate::outcome::Stream;

/// The interval at which a growing file is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The number of records and the bytes of output after which a read for an async stream ends.
const MAX_READ_RECORDS: usize = 512;
const MAX_READ_BYTES: usize = 1 << 20;

/// Options for following an audit file.
///
/// By default, all records are returned, from the first.
///
/// Any process may follow any file: a follower never blocks the writer. The records end after the
/// seal. Without a seal, the follower waits, even if the writer has died: the next manager that
/// opens the root continues the file and seals it.
///
/// ```no_run
/// use moat::audit::{Follow, Record};
///
/// for record in Follow::new("runs/nightly/logs.jsonl").last(20).records()? {
///     if let Record::Output(output) = record? {
///         println!("{}", String::from_utf8_lossy(&output.bytes));
///     }
/// }
/// # Ok::<(), moat::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Follow {
    path: PathBuf,
    from: StartAt,
    stream: Option<Stream>,
    wait: bool,
}

#[derive(Debug, Clone, Copy)]
enum StartAt {
    Record(u64),
    /// The number of output records before the current end.
    Last(usize),
}

impl Follow {
    /// Follows the audit file at `path` from its start.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            from: StartAt::Record(0),
            stream: None,
            wait: true,
        }
    }

    /// Skips the first `number` records of the file.
    ///
    /// A reader that has seen `number` records continues after them. The `start` record counts.
    pub fn from_record(mut self, number: u64) -> Self {
        self.from = StartAt::Record(number);
        self
    }

    /// Starts at the last `lines` output records of the requested stream.
    ///
    /// The file is read to its current end when it is opened, and these records are held in memory.
    /// A record is a line, or up to 16 KiB of a longer line. Later records follow.
    pub fn last(mut self, lines: usize) -> Self {
        self.from = StartAt::Last(lines);
        self
    }

    /// Limits the output to one stream. The default is all streams.
    ///
    /// Records other than output are always returned.
    pub fn stream(mut self, stream: Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Sets whether to wait for more records if the file has no seal.
    ///
    /// The default is true. If false, the records end after the last whole record.
    pub fn wait(mut self, wait: bool) -> Self {
        self.wait = wait;
        self
    }

    /// Returns the records in order, as a blocking iterator.
    ///
    /// An item is [`Error::Storage`] if the file cannot be read or was removed, and
    /// [`Error::Damaged`] if it is damaged. An error is the last item.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the file cannot be opened. With [`last`](Self::last), also if it
    /// cannot be read.
    pub fn records(self) -> Result<Records> {
        Records::open(self)
    }

    /// Returns the records as an async stream.
    ///
    /// The items are those of [`records`](Self::records).
    ///
    /// A dedicated thread reads the file, up to 512 records or about 1 MiB ahead. It ends after the
    /// stream is dropped.
    pub fn into_stream(self) -> BoxStream<'static, Result<Record>> {
        let reader = AsyncReader {
            disk: Disk::with_threads("moat-follow", 1),
            path: self.path.clone(),
            follow: Some(self),
            records: None,
            read: VecDeque::new(),
        };
        stream::unfold(reader, |mut reader| async move {
            let record = reader.next().await?;
            Some((record, reader))
        })
        .boxed()
    }
}

/// The state of an async stream of records.
struct AsyncReader {
    disk: Disk,
    path: PathBuf,
    /// The options, until the file is opened.
    follow: Option<Follow>,
    /// The open file, until its end.
    records: Option<Records>,
    /// Records read ahead.
    read: VecDeque<Result<Record>>,
}

impl AsyncReader {
    async fn next(&mut self) -> Option<Result<Record>> {
        loop {
            if let Some(record) = self.read.pop_front() {
                return Some(record);
            }
            let (follow, records) = (self.follow.take(), self.records.take());
            let read = move || {
                let mut records = match (follow, records) {
                    (Some(follow), _) => follow.records()?,
                    (None, Some(records)) => records,
                    // The last read reached the end.
                    (None, None) => return Ok(None),
                };
                let read = records.read_some();
                Ok(Some((records, read)))
            };
            let (records, read) = match self.disk.run("read", &self.path, read).await {
                Ok(Some(read)) => read,
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            };
            self.read = read;
            if records.ended {
                continue;
            }
            self.records = Some(records);
            if self.read.is_empty() {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }
}

/// The records of a followed file: see [`Follow::records`].
#[derive(Debug)]
pub struct Records {
    follow: Follow,
    reader: Reader,
    /// The device and inode of the file.
    file: FileId,
    /// The number of records left to skip.
    skip: u64,
    /// Records read ahead.
    held: VecDeque<Record>,
    ended: bool,
}

impl Records {
    fn open(follow: Follow) -> Result<Self> {
        let reader = Reader::open(&follow.path)?;
        Self::new(follow, reader)
    }

    fn new(follow: Follow, reader: Reader) -> Result<Self> {
        // Of the open file: the path may lead to another file by now.
        let file = FileId::of(reader.file())
            .map_err(|error| Error::storage("read", &follow.path, error))?;
        let mut records = Self {
            file,
            reader,
            skip: 0,
            held: VecDeque::new(),
            ended: false,
            follow,
        };
        match records.follow.from {
            StartAt::Record(number) => records.skip = number,
            StartAt::Last(lines) => records.skip_to_last(lines)?,
        }
        Ok(records)
    }

    /// Reads to the current end, and holds the records from the last `lines` on.
    fn skip_to_last(&mut self, lines: usize) -> Result<()> {
        let mut held = 0;
        while let Some(record) = self.reader.next().transpose()? {
            if !self.wants(&record) {
                continue;
            }
            let output = matches!(record, Record::Output(_));
            // Records before the first held output are dropped, except for the seal.
            if !output && held == 0 && !is_end(&record) {
                continue;
            }
            self.held.push_back(record);
            held += usize::from(output);
            while held > lines {
                let first = self.held.pop_front();
                held -= usize::from(matches!(first, Some(Record::Output(_))));
            }
            while held == 0 && self.held.front().is_some_and(|record| !is_end(record)) {
                self.held.pop_front();
            }
        }
        Ok(())
    }

    fn wants(&self, record: &Record) -> bool {
        match (record, self.follow.stream) {
            (Record::Output(output), Some(stream)) => output.stream == stream,
            _ => true,
        }
    }

    /// Reads the next record; `None` if the file has no more for now, or has ended.
    fn read(&mut self) -> Option<Result<Record>> {
        if let Some(record) = self.held.pop_front() {
            self.ended = is_end(&record);
            return Some(Ok(record));
        }
        while !self.ended {
            match self.reader.next() {
                Some(Ok(record)) => {
                    self.ended = is_end(&record);
                    if self.skip > 0 {
                        self.skip -= 1;
                    } else if self.wants(&record) {
                        return Some(Ok(record));
                    }
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                None => {
                    if let Err(error) = self.check_file() {
                        self.ended = true;
                        return Some(Err(error));
                    }
                    self.ended |= !self.follow.wait;
                    return None;
                }
            }
        }
        None
    }

    /// Fails if the file is damaged, removed or replaced.
    fn check_file(&self) -> Result<()> {
        let damaged = |reason: String| Error::Damaged {
            path: self.follow.path.clone(),
            reason,
        };
        match self.reader.state() {
            LogState::Damaged(damage) => Err(damaged(damage.to_string())),
            _ => {
                let path = &self.follow.path;
                let now = FileId::at(path).map_err(|error| Error::storage("read", path, error))?;
                if now != self.file {
                    return Err(damaged("another file has replaced it".into()));
                }
                Ok(())
            }
        }
    }

    /// Reads the available records, up to the limits of one read.
    fn read_some(&mut self) -> VecDeque<Result<Record>> {
        let mut some = VecDeque::new();
        let mut bytes = 0;
        while some.len() < MAX_READ_RECORDS
            && bytes < MAX_READ_BYTES
            && let Some(record) = self.read()
        {
            if let Ok(Record::Output(output)) = &record {
                bytes += output.bytes.len();
            }
            some.push_back(record);
        }
        some
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        loop {
            match self.read() {
                Some(record) => return Some(record),
                None if self.ended => return None,
                None => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }
}

fn is_end(record: &Record) -> bool {
    matches!(record, Record::Event(Event::End(_)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_replaced_while_it_is_opened_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs.jsonl");
        let golden = include_bytes!("../../tests/golden/unsealed-torn.jsonl");
        fs::write(&path, golden).unwrap();
        let reader = Reader::open(&path).unwrap();
        let other = dir.path().join("other");
        fs::write(&other, golden).unwrap();
        fs::rename(&other, &path).unwrap();

        let follow = Follow::new(&path).wait(false);
        let mut records = Records::new(follow, reader).unwrap();
        let last = records.by_ref().find(Result::is_err).unwrap();
        let error = last.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(records.next().is_none());
    }
}

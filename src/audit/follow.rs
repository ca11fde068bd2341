//! Following an audit file, live or ended, of whichever process.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};

use crate::audit::{Event, LogState, Reader, Record};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::outcome::Stream;

/// How often a file that may grow is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How many records, and about how many bytes of output, are read at once for an async reader.
const MOST_RECORDS: usize = 512;
const MOST_BYTES: usize = 1 << 20;

/// What to follow of an audit file: all of it, unless told otherwise.
///
/// Whoever writes the file, this process or another one, knows nothing of who follows it, and is
/// held up by nobody. What follows ends after the seal; while there is none, it waits for more,
/// also when the writer has died: the next opening of the root goes on with the file, and seals it.
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
    from: From,
    stream: Option<Stream>,
    waits: bool,
}

#[derive(Debug, Clone, Copy)]
enum From {
    Record(u64),
    Last(usize),
}

impl Follow {
    /// The audit file at `path`, from its start.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            from: From::Record(0),
            stream: None,
            waits: true,
        }
    }

    /// From record `number` on, of all records of the file: the first, `start`, is 0. It is the
    /// number of records to skip: whoever has seen so many goes on where they were.
    pub fn from_record(mut self, number: u64) -> Self {
        self.from = From::Record(number);
        self
    }

    /// From the last `lines` records of output on that are there now (a line, or up to 16 KiB of a
    /// longer one), of the stream that is asked for. So many are in memory at once.
    pub fn last(mut self, lines: usize) -> Self {
        self.from = From::Last(lines);
        self
    }

    /// The output of this stream alone; records that are not output come in any case.
    pub fn stream(mut self, stream: Stream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Whether to wait for more where there is no seal. Default: yes. Without it, what follows
    /// ends behind the last whole record.
    pub fn wait(mut self, wait: bool) -> Self {
        self.waits = wait;
        self
    }

    /// The records, in order, as a blocking iterator.
    ///
    /// An item is an error where the file cannot be read ([`Error::Storage`]), also since someone
    /// has removed it, or is damaged ([`Error::Damaged`]); it is the last one.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] if the file cannot be opened.
    pub fn records(self) -> Result<Records> {
        Records::open(self)
    }

    /// The records, in order, as an async stream: the items of [`records`](Self::records).
    ///
    /// The file is read on a thread for that, some records ahead. Dropping the stream ends it.
    pub fn into_stream(self) -> BoxStream<'static, Result<Record>> {
        struct At {
            disk: Disk,
            follow: Option<Follow>,
            records: Option<Records>,
            read: VecDeque<Result<Record>>,
            path: PathBuf,
        }
        let at = At {
            disk: Disk::with_threads("moat-follow", 1),
            path: self.path.clone(),
            follow: Some(self),
            records: None,
            read: VecDeque::new(),
        };
        stream::unfold(at, |mut at| async move {
            loop {
                if let Some(record) = at.read.pop_front() {
                    return Some((record, at));
                }
                let (follow, records) = (at.follow.take(), at.records.take());
                let look = move || {
                    let mut records = match (follow, records) {
                        (Some(follow), _) => follow.records()?,
                        (None, Some(records)) => records,
                        // What was last read was the end.
                        (None, None) => return Ok(None),
                    };
                    let read = records.read_some();
                    Ok(Some((records, read)))
                };
                match at.disk.run("read", &at.path, look).await {
                    Ok(None) => return None,
                    Ok(Some((records, read))) => {
                        at.read = read;
                        let over = records.over;
                        if !over {
                            at.records = Some(records);
                            if at.read.is_empty() {
                                tokio::time::sleep(LOOK).await;
                            }
                        }
                    }
                    Err(error) => at.read.push_back(Err(error)),
                }
            }
        })
        .boxed()
    }
}

/// The records of a file that is followed: see [`Follow::records`].
#[derive(Debug)]
pub struct Records {
    follow: Follow,
    reader: Reader,
    /// Which file it is: device and number.
    file: (u64, u64),
    /// How many records are still to be skipped.
    skip: u64,
    /// What was read before it was asked for.
    held: VecDeque<Record>,
    over: bool,
}

impl Records {
    fn open(follow: Follow) -> Result<Self> {
        let reader = Reader::open(&follow.path)?;
        let mut records = Self {
            file: file(&follow.path)?,
            reader,
            skip: 0,
            held: VecDeque::new(),
            over: false,
            follow,
        };
        match records.follow.from {
            From::Record(number) => records.skip = number,
            From::Last(lines) => records.skip_to_last(lines)?,
        }
        Ok(records)
    }

    /// Reads what is there, and holds the end of it.
    fn skip_to_last(&mut self, lines: usize) -> Result<()> {
        let mut held = 0;
        while let Some(record) = self.reader.next().transpose()? {
            if !self.wants(&record) {
                continue;
            }
            let output = matches!(record, Record::Output(_));
            // Without output there is nothing to begin with, but for what says how it ended.
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

    /// The next record that is there; `None`: there is none yet, or it is over.
    fn read(&mut self) -> Option<Result<Record>> {
        if let Some(record) = self.held.pop_front() {
            self.over = is_end(&record);
            return Some(Ok(record));
        }
        while !self.over {
            match self.reader.next() {
                Some(Ok(record)) => {
                    self.over = is_end(&record);
                    if self.skip > 0 {
                        self.skip -= 1;
                    } else if self.wants(&record) {
                        return Some(Ok(record));
                    }
                }
                Some(Err(error)) => {
                    self.over = true;
                    return Some(Err(error));
                }
                None => {
                    if let Err(error) = self.look() {
                        self.over = true;
                        return Some(Err(error));
                    }
                    self.over |= !self.follow.waits;
                    return None;
                }
            }
        }
        None
    }

    /// Looks why there is no more for now.
    fn look(&self) -> Result<()> {
        let damaged = |reason: String| Error::Damaged {
            path: self.follow.path.clone(),
            reason,
        };
        match self.reader.state() {
            LogState::Damaged(damage) => Err(damaged(damage.to_string())),
            _ if file(&self.follow.path)? != self.file => {
                Err(damaged("another file is in its place".into()))
            }
            _ => Ok(()),
        }
    }

    /// What is there, up to a bound.
    fn read_some(&mut self) -> VecDeque<Result<Record>> {
        let mut some = VecDeque::new();
        let mut bytes = 0;
        while some.len() < MOST_RECORDS
            && bytes < MOST_BYTES
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
                None if self.over => return None,
                None => std::thread::sleep(LOOK),
            }
        }
    }
}

fn is_end(record: &Record) -> bool {
    matches!(record, Record::Event(Event::End(_)))
}

/// Which file is at `path`.
fn file(path: &Path) -> Result<(u64, u64)> {
    let file = path
        .symlink_metadata()
        .map_err(|error| Error::storage("read", path, error))?;
    Ok((file.dev(), file.ino()))
}

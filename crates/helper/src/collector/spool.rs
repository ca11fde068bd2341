//! The file of frames that no client may have received yet.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, fallocate};

use super::state::Shared;
use crate::protocol::{HEADER_LEN, Header, Kind};

/// The distance of indexed frames, in bytes.
const INDEX_DISTANCE: u64 = 1 << 20;
/// The acknowledged bytes that are kept for clients that read them again.
const KEPT_ACKNOWLEDGED: u64 = 64 << 20;
/// The alignment of a hole.
const PAGE: u64 = 4096;

/// The offsets of a spool. All but `acked` are the offsets of frames.
#[derive(Debug)]
pub(super) struct Positions {
    /// The first frame that is retained.
    pub(super) start: u64,
    /// The end of the last frame.
    pub(super) end: u64,
    pub(super) acked: u64,
    /// The offsets of `start` and of a frame about every [`INDEX_DISTANCE`].
    index: VecDeque<u64>,
    limit: u64,
    discard: bool,
    /// The capture thread waits for an acknowledgment.
    stalled: bool,
}

impl Positions {
    pub(super) fn new(limit: u64, discard: bool) -> Self {
        Self {
            start: 0,
            end: 0,
            acked: 0,
            index: VecDeque::from([0]),
            limit,
            discard,
            stalled: false,
        }
    }

    /// Advances the end past a batch of frames that was written.
    pub(super) fn advance(&mut self, len: u64) {
        let last = self.index.back().copied().unwrap_or(0);
        if self.end >= last + INDEX_DISTANCE {
            self.index.push_back(self.end);
        }
        self.end += len;
    }

    /// Returns true if no more output may be read until an acknowledgment.
    pub(super) fn check_limit(&mut self) -> bool {
        self.stalled = self.end - self.acked >= self.limit;
        self.stalled
    }

    /// Notes an acknowledgment. Returns true if the capture thread must be woken.
    pub(super) fn acknowledge(&mut self, offset: u64) -> bool {
        if offset <= self.end {
            self.acked = self.acked.max(offset);
        }
        self.stalled && !self.check_limit()
    }

    pub(super) fn is_all_acknowledged(&self) -> bool {
        self.acked == self.end
    }

    /// Moves the start past frames that need not be kept. Returns the range to free.
    pub(super) fn release(&mut self) -> Option<Range<u64>> {
        let bound = if self.discard {
            self.acked
        } else if self.end - self.start >= self.limit {
            let needed = self.end - self.limit + INDEX_DISTANCE;
            needed.min(self.acked.saturating_sub(KEPT_ACKNOWLEDGED))
        } else {
            return None;
        };
        let freed = self.start;
        while let Some(next) = self.index.get(1).filter(|next| **next <= bound) {
            self.start = *next;
            self.index.pop_front();
        }
        (self.start > freed).then_some(freed..self.start)
    }

    /// The range between two indexed frames that contains an offset.
    fn segment(&self, offset: u64) -> Range<u64> {
        let after = self.index.partition_point(|indexed| *indexed <= offset);
        let from = after.checked_sub(1).and_then(|at| self.index.get(at));
        let to = self.index.get(after).copied().unwrap_or(self.end);
        from.copied().unwrap_or(self.start)..to
    }
}

/// Frees a range of the file. The start must have been moved past it before, so that no client
/// reads the hole.
pub(super) fn free(file: &File, range: Range<u64>) {
    let from = range.start / PAGE * PAGE;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // Without support by the file system, the space stays used.
    let _ = fallocate(file, flags, from, range.end - from);
}

/// A frame in the spool: its offset and the number of its line feeds, 0 if it is not output.
struct Entry {
    offset: u64,
    lines: u64,
}

/// Reads the frames of a range. Returns none if they were freed meanwhile.
fn entries(file: &File, range: Range<u64>) -> io::Result<Option<Vec<Entry>>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start)?;
    let mut entries = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some(header) = rest.first_chunk::<HEADER_LEN>() {
        let Some(header) = Header::decode(*header) else {
            return Ok(None);
        };
        let Some((payload, after)) = rest[HEADER_LEN..].split_at_checked(header.len) else {
            return Ok(None);
        };
        let output = matches!(header.kind, Kind::Stdout | Kind::Stderr | Kind::Tty);
        let feeds = payload.iter().filter(|byte| **byte == b'\n').count() as u64;
        entries.push(Entry {
            offset: range.end - rest.len() as u64,
            lines: if output { feeds } else { 0 },
        });
        rest = after;
    }
    Ok(Some(entries))
}

/// Returns the offset of the first frame to send to a client that asks for `offset`, or none if
/// `offset` is not that of a frame.
pub(super) fn resolve(shared: &Shared, offset: u64) -> io::Result<Option<u64>> {
    let (start, end, segment) = {
        let positions = &shared.lock().positions;
        (positions.start, positions.end, positions.segment(offset))
    };
    if offset <= start || offset == end {
        return Ok(Some(offset.max(start)));
    }
    if offset > end {
        return Ok(None);
    }
    let entries = entries(&shared.spool, segment)?;
    let start = shared.lock().positions.start;
    Ok(match entries {
        _ if offset <= start => Some(start),
        Some(entries) => entries
            .iter()
            .any(|entry| entry.offset == offset)
            .then_some(offset),
        None => None,
    })
}

/// Returns the offset of a frame from which on there are at least the last `lines` lines.
pub(super) fn tail(shared: &Shared, lines: u64) -> io::Result<u64> {
    let end = shared.lock().positions.end;
    let mut to = end;
    let mut found = 0;
    loop {
        let (start, segment) = {
            let positions = &shared.lock().positions;
            (positions.start, positions.segment(to.saturating_sub(1)))
        };
        if to <= start {
            return Ok(start);
        }
        let Some(entries) = entries(&shared.spool, segment.start..to)? else {
            return Ok(shared.lock().positions.start);
        };
        for entry in entries.iter().rev() {
            found += entry.lines;
            // One more: the end of the line before the first one.
            if found > lines {
                return Ok(entry.offset);
            }
        }
        to = segment.start;
    }
}

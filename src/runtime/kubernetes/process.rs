//! The state of a pod's command, as its collector reports it.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::api::connection::Frame;
use super::protocol::Kind;
use crate::timestamp::Timestamp;

/// The facts about a command that its frames report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) code: Option<i64>,
}

/// The last known facts about a command, and a subscription to them.
#[derive(Debug, Default)]
pub(super) struct ProcessState {
    sender: watch::Sender<Process>,
    /// The engine's error of a start that failed.
    error: Mutex<Option<String>>,
}

impl ProcessState {
    /// Records the facts of a frame of the spool.
    pub(super) fn observe(&self, frame: &Frame) {
        let at = Some(timestamp(frame.header.micros));
        match frame.kind() {
            Kind::Started => self.update(|process| process.started_at = at),
            Kind::Exited => self.update(|process| {
                process.finished_at = at;
                process.code = frame.number();
            }),
            _ => {}
        }
    }

    fn update(&self, change: impl FnOnce(&mut Process)) {
        self.sender.send_modify(change);
    }

    pub(super) fn get(&self) -> Process {
        *self.sender.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Process> {
        self.sender.subscribe()
    }

    pub(super) fn set_error(&self, error: String) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn error(&self) -> Option<String> {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.clone()
    }

    /// Records the facts of the collector's report.
    pub(super) fn record(&self, report: &Report) {
        self.update(|process| {
            process.started_at = report.started_at.or(process.started_at);
            process.finished_at = report.finished_at.or(process.finished_at);
            process.code = report.code.or(process.code);
        });
    }
}

/// The collector's answer to `state`, or its termination message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) phase: Phase,
    /// The command may have run.
    pub(super) released: bool,
    pub(super) started_at: Option<Timestamp>,
    pub(super) finished_at: Option<Timestamp>,
    pub(super) code: Option<i64>,
}

/// The phase of a command's life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// The command has not started.
    #[default]
    Waiting,
    /// The command runs.
    Running,
    /// The command has ended. Processes that it started may still write output.
    Exited,
}

impl Report {
    /// Parses lines of a key and a value.
    pub(super) fn parse(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(' ') else {
                continue;
            };
            match (key, value) {
                ("phase", "running") => report.phase = Phase::Running,
                ("phase", "exited" | "ended") => report.phase = Phase::Exited,
                ("released", _) => report.released = true,
                ("started_micros", micros) => {
                    report.started_at = parse_micros(micros);
                    report.released = true;
                }
                ("exited_micros", micros) => report.finished_at = parse_micros(micros),
                ("exit", code) => report.code = code.parse().ok(),
                _ => {}
            }
        }
        report
    }
}

fn parse_micros(text: &str) -> Option<Timestamp> {
    text.parse().ok().map(timestamp)
}

pub(super) fn timestamp(micros: u64) -> Timestamp {
    let since = std::time::Duration::from_micros(micros);
    (std::time::UNIX_EPOCH + since).into()
}

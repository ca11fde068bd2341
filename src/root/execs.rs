//! The execs of a run, read from their logs.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;

use super::Root;
use super::summary::AuditSummary;
use crate::audit::{Verification, exec_file, exec_number, verify};
use crate::error::Result;
use crate::outcome::Seal;
use crate::spec::{RunId, RunRecord};

/// A summary of an exec, read from its log: see [`Root::execs`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExecInfo {
    /// The number of the exec in the run, from 1.
    pub number: u32,
    /// The exec's log.
    pub audit: PathBuf,
    /// What was to be run, or `None` if the log cannot be read.
    ///
    /// The command, the working directory, the user and the terminal are those of the exec.
    pub record: Option<RunRecord>,
    /// The seal of the log, or `None` if it is not sealed.
    pub seal: Option<Seal>,
    /// The problem with the log, or `None`.
    pub problem: Option<String>,
}

impl Root {
    /// Lists a summary of the execs of a run, sorted by number.
    ///
    /// Only both ends of each log are read: see [`verify_exec`](Self::verify_exec).
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`](crate::error::Error::NoSuchRun). A problem with a single log is reported
    /// in its [`ExecInfo::problem`].
    pub fn execs(&self, run: &RunId) -> Result<Vec<ExecInfo>> {
        if !self.has(run) {
            return Err(self.no_such_run(run));
        }
        let mut numbers: Vec<_> = self.exec_numbers(run).collect();
        numbers.sort_unstable();
        Ok(numbers
            .into_iter()
            .filter_map(|number| self.exec_info(run, number))
            .collect())
    }

    /// Verifies the log of an exec, and that the log belongs to the exec.
    ///
    /// This is [`audit::verify`](verify()), except that the log of another exec, run or root is
    /// damaged in its first line. The reason names both.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchRun`](crate::error::Error::NoSuchRun), or
    /// [`Error::Storage`](crate::error::Error::Storage) if the file cannot be read.
    pub fn verify_exec(&self, run: &RunId, number: u32) -> Result<Verification> {
        if !self.has(run) {
            return Err(self.no_such_run(run));
        }
        let found = verify(self.exec_audit(run, number))?;
        Ok(self.in_place(run, Some(number), found))
    }

    /// Returns `None` if the log was removed.
    fn exec_info(&self, run: &RunId, number: u32) -> Option<ExecInfo> {
        let audit = self.exec_audit(run, number);
        let mut info = ExecInfo {
            number,
            record: None,
            seal: None,
            problem: None,
            audit,
        };
        match AuditSummary::read(&info.audit) {
            Ok(summary) => {
                let summary = summary?;
                info.record = summary.record;
                info.seal = summary.seal;
                info.problem = summary.problem;
            }
            Err(error) => info.problem = Some(error.chain()),
        }
        Some(info)
    }

    pub(crate) fn exec_audit(&self, run: &RunId, number: u32) -> PathBuf {
        self.dir(run).join(exec_file(number))
    }

    /// Returns the numbers of a run's execs that have a log, in no order.
    pub(crate) fn exec_numbers(&self, run: &RunId) -> impl Iterator<Item = u32> {
        fs::read_dir(self.dir(run))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| exec_number(entry.file_name().to_str()?))
    }

    /// Returns the numbers of a run's execs whose log is not sealed.
    pub(crate) fn unsealed_execs(&self, run: &RunId) -> Vec<u32> {
        self.exec_numbers(run)
            .filter(|number| {
                self.exec_info(run, *number)
                    .is_some_and(|info| info.seal.is_none())
            })
            .collect()
    }
}

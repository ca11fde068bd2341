//! The contracts of [`Runtime`] and [`LogSink`], one trial for each clause.
//!
//! Whoever writes a runtime or a sink proves with it that moat's promise stands on it too:
//! [`runtime()`] and [`sink()`] give a list of [`Case`]s. The list is the same for everyone, so no
//! clause is left out unseen; one that cannot be tried is [`CaseResult::Skipped`], with the reason.
//!
//! ```
//! use moat::conformance;
//! use moat::sink::Memory;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Memory::new();
//! for trial in conformance::sink(move || memory.clone()) {
//!     let name = trial.name();
//!     match trial.run().await {
//!         Ok(tried) => println!("{name} {tried}"), // it holds, or was skipped for a reason
//!         Err(failure) => panic!("{name}: {failure}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here depends on a test framework. Under `#[tokio::test]` that loop is the body of a
//! test; with a framework that lists its tests, each trial is one of them. Where the clock of tokio
//! is paused, the trials of a double take no time.
//!
//! # What cannot be tried
//!
//! Three clauses are always skipped: that a record survives the death of the process, and that it
//! survives that of the machine, need a process to kill and a medium to cut; and that a sink
//! does not block the thread that polls it cannot be seen from outside. They are listed all the
//! same. Of the order between streams and of what an engine does after a request whose sender has
//! gone, nothing is promised, so nothing is tried.
//!
//! [`Runtime`]: crate::runtime::Runtime
//! [`LogSink`]: crate::sink::LogSink

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::timeout;

mod behaviour;
mod bench;
mod containers;
mod faults;
mod interaction;
mod sinks;
mod streams;

pub use behaviour::{Behaviour, Step};
pub use bench::{RuntimeHarness, ShellHarness, Unsupported};
pub use sinks::SinkHarness;

use bench::Bench;
use sinks::Shelf;

/// The most time that a trial may take.
const BOUND: Duration = Duration::from_secs(300);

/// One clause of a contract, to be tried on one implementor.
pub struct Case {
    name: &'static str,
    clause: &'static str,
    run: Box<dyn FnOnce() -> BoxFuture<'static, Result<(), Stop>> + Send>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("clause", &self.clause)
            .finish_non_exhaustive()
    }
}

impl Case {
    /// Its name: `tap::it_gives_each_stream_byte_for_byte`. It does not change.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The clause, in the words of the contract.
    pub fn clause(&self) -> &'static str {
        self.clause
    }

    /// Tries it, for at most 300 s.
    ///
    /// # Errors
    ///
    /// [`Failure`]: the clause does not hold, or what the trial needs could not be made.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its end, it leaves behind the containers and files that it has made.
    pub async fn run(self) -> Result<CaseResult, Failure> {
        let tried = timeout(BOUND, (self.run)()).await;
        match tried.unwrap_or_else(|_| fail(format!("no end within {} s", BOUND.as_secs()))) {
            Ok(()) => Ok(CaseResult::Passed),
            Err(Stop::Skip(reason)) => Ok(CaseResult::Skipped(reason)),
            Err(Stop::Fail(reason)) => Err(Failure {
                clause: self.clause,
                reason,
            }),
        }
    }
}

/// What became of a trial that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaseResult {
    /// The clause holds, as far as a trial can tell.
    Passed,
    /// It could not be tried on this implementor, for this reason.
    Skipped(String),
}

impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("holds"),
            Self::Skipped(reason) => write!(f, "skipped: {reason}"),
        }
    }
}

/// A clause that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; the contract: {clause}")]
pub struct Failure {
    clause: &'static str,
    reason: String,
}

/// Why a trial went no further.
#[derive(Debug)]
enum Stop {
    Skip(String),
    Fail(String),
}

fn fail<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fail(reason.into()))
}

fn skip<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Skip(reason.into()))
}

/// Fails for `reason` unless `holds`.
fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Result<(), Stop> {
    if holds { Ok(()) } else { fail(reason()) }
}

/// `error` and its causes, in one line.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl From<crate::error::RuntimeError> for Stop {
    fn from(error: crate::error::RuntimeError) -> Self {
        Self::Fail(words(&error))
    }
}

impl From<crate::spec::InvalidSpec> for Stop {
    fn from(error: crate::spec::InvalidSpec) -> Self {
        Self::Fail(words(&error))
    }
}

impl From<crate::error::Error> for Stop {
    fn from(error: crate::error::Error) -> Self {
        Self::Fail(words(&error))
    }
}

/// A list of trials, each named after its function.
macro_rules! trials {
    ($on:ty, $new:expr; $($path:ident::$module:ident { $($name:ident: $clause:literal),* $(,)? })*) => {
        vec![$($(Case {
            name: concat!(stringify!($module), "::", stringify!($name)),
            clause: $clause,
            run: {
                let new = Arc::clone(&$new);
                Box::new(move || Box::pin(async move {
                    let on: $on = new().await?;
                    let tried = $path::$module::$name(&on).await;
                    on.clear().await;
                    tried
                }))
            },
        }),*),*]
    };
}

/// The trials of a [`Runtime`](crate::runtime::Runtime), each on a stage of its own, that `stage` gives.
///
/// They may run at the same time, and leave nothing behind.
pub fn runtime<S: RuntimeHarness>(stage: impl Fn() -> S + Send + Sync + 'static) -> Vec<Case> {
    let new = Arc::new(move || Bench::new(Box::new(stage())));
    trials! {
        Bench, new;
        containers::runtime {
            it_has_a_name: "The runtime's name is recorded with each run: lower case, and always the same",
            its_capabilities_do_not_change: "What the engine can do does not change",
            the_engine_says_who_it_is: "The engine says who it is, and serves as a probe",
            what_it_cannot_do_is_refused_by_the_fields_name: "What this engine cannot do is refused, not ignored, and the field is named",
        }
        containers::prepare {
            an_image_that_is_there_is_prepared_again_and_again: "Prepare makes sure that the image is there",
            an_image_that_is_not_there_is_a_fact: "An image that is not there, and may not be pulled, is NoSuchImage",
        }
        containers::create {
            it_makes_a_container_and_does_not_start_it: "Create makes the container, and does not start it",
            it_can_be_found_from_then_on: "A container can be found from its making on, with its run",
            the_engine_neither_removes_nor_restarts_it: "The engine neither removes nor restarts a container by itself",
            two_containers_of_one_name_are_refused: "A name that is taken is refused, as a fact",
        }
        streams::tap {
            it_resolves_before_the_container_starts: "A tap resolves when the engine has answered, before the container starts",
            it_misses_nothing_after_the_start: "Nothing that a container prints after the start is missed",
            it_gives_each_stream_byte_for_byte: "A tap gives each of the streams byte by byte, none twice, none skipped",
            it_takes_no_bytes_for_framing: "No bytes that a container prints are taken for anything else",
            a_terminal_is_told_by_tty_alone: "Whether output is a terminal's follows from tty alone",
            no_chunk_is_empty: "A chunk is never empty",
            it_carries_a_lot: "A tap gives all of a long output, on both streams",
            it_ends_after_its_container: "A tap ends within 10 s of its container's end",
            of_what_cannot_start_it_is_rejected_at_the_most: "A tap of what cannot be started is answered, or Rejected as the start is",
            dropped_it_leaves_the_container_alone: "Dropping a stream leaks nothing, and leaves the container alone",
        }
        containers::start {
            a_started_container_says_since_when: "A container that was started has a time of its start",
            what_cannot_start_is_rejected_and_does_not_run: "A start that the engine could not do is Rejected, and the container does not run",
            no_secret_is_in_the_error: "Values of the environment are in no error",
        }
        containers::wait {
            it_ends_with_the_container_and_not_before: "Wait waits until a container that was started no longer runs",
            it_tells_any_code: "An exit code is an answer, and no error, whatever it is",
            it_answers_at_once_for_one_that_has_ended: "Wait answers at once for a container that has ended",
            dropped_it_can_be_asked_for_again: "Dropping a wait leaks nothing: another one gets the answer",
        }
        containers::inspect {
            it_follows_the_life_of_a_container: "The status is Created, Running and Ended, one after the other",
            the_code_is_there_at_the_end_alone: "The exit code is known when the container has ended, and not while it runs",
            its_end_is_not_before_its_start: "The end is not before the start, by the engine's clock",
        }
        containers::continuity {
            an_engine_that_was_not_restarted_is_not_broken: "Broken is the answer of an engine that was restarted, and of no other",
        }
        streams::logs {
            they_have_all_that_was_printed: "The engine keeps all of the output until the container is removed",
            they_can_be_read_again: "The log is read from its start, each time",
            they_are_by_stream: "The log gives each stream in its own order",
            they_end_where_the_log_ends: "Without follow, a log ends where it ends, also while the container runs",
            a_tail_is_the_last_records: "A tail is the last records of the log",
            a_follow_goes_on_with_what_comes: "A follow gives what was printed, goes on with what comes, and ends with the container",
            of_a_container_that_never_started_they_are_empty: "The log of a container that has not started is empty",
            a_terminals_log_is_a_terminals: "Whether output is a terminal's follows from tty alone, in the log too",
            without_a_backstop_there_are_none: "Without a backstop the log cannot be read again, and says so as a fact",
        }
        interaction::stdin {
            every_byte_arrives: "All bytes arrive as they are, those that an engine has a use of its own for with them",
            the_end_of_a_pipe_arrives: "The end of a pipe arrives in the container when the writer is shut down or dropped",
            one_that_is_open_can_be_come_back_to: "An input that is open can be left and come back to, and has no end",
        }
        interaction::watch {
            it_gives_what_comes: "A watch gives what a container prints from now on, as it is printed",
        }
        interaction::resize {
            a_terminal_that_runs_takes_a_size: "The terminal of a container that runs takes a size",
        }
        interaction::exec {
            its_output_and_its_code_are_its_own: "A further process has all of its output to come, and an exit code of its own",
            its_input_arrives_with_its_end: "The input of a further process arrives as it is, and so does its end",
            in_one_that_has_ended_it_is_a_conflict: "A further process in a container that does not run is a Conflict",
        }
        containers::signal {
            it_reaches_the_first_process: "A signal is sent to the container's first process",
            kill_ends_what_ignores_the_rest: "SIGKILL ends a container, whatever it ignores",
            one_that_has_not_started_is_a_conflict: "A signal to a container that does not run is a Conflict",
            one_that_has_ended_is_a_conflict: "A signal to a container that no longer runs is a Conflict",
        }
        containers::remove {
            one_that_never_started_goes_without_force: "Without force, success means that the container does not run, and never will",
            one_that_runs_is_a_conflict_without_force: "Without force, Conflict is the answer for a container that runs, and it goes on",
            one_that_runs_goes_by_force: "With force, a container that runs is removed",
            one_that_has_ended_goes_without_force: "A container that has ended is removed without force",
            its_waiters_are_not_left_waiting: "The wait for a container that is removed comes to an end",
        }
        containers::find {
            it_finds_those_of_its_root_alone: "Find gives the containers that were made for the root, and no others",
            it_finds_them_in_every_state: "Find gives the containers in every state",
        }
        streams::copy {
            what_is_copied_in_can_be_copied_out: "A file that is unpacked into a container is in the archive of it",
            a_container_that_has_ended_can_be_copied_out_of: "A container that has ended can be copied out of",
        }
        faults::facts {
            a_container_that_is_not_there_is_not_found: "A container that is not there is NotFound, by each call",
            an_engine_out_of_reach_is_no_fact: "An engine that cannot be reached says nothing about a container",
            an_engine_out_of_reach_ends_a_wait_without_a_fact: "A wait that breaks says nothing about the container",
            an_engine_out_of_reach_ends_a_stream: "A connection that breaks ends its stream, and says nothing about the container",
            an_engine_that_is_silent_is_a_timeout: "Every call is bounded by 30 s, and past it fails without a fact",
        }
    }
}

/// The trials of a [`LogSink`](crate::sink::LogSink), on what `stage` gives: a closure will do.
///
/// They may run at the same time, and leave nothing behind.
pub fn sink(stage: impl SinkHarness) -> Vec<Case> {
    let stage: Arc<dyn SinkHarness> = Arc::new(stage);
    let new = Arc::new(move || {
        let stage = Arc::clone(&stage);
        async move { Shelf::new(stage) }
    });
    trials! {
        Shelf, new;
        sinks::open {
            the_log_has_its_start_record: "When open returns, the log is there, and has its start record",
            a_second_one_is_refused: "There is one log for a run: RunExists, whether it is open or not",
            logs_of_two_runs_are_apart: "The log of one run has no record of another",
            that_of_a_further_process_is_apart: "The log of a further process is apart from its run's, or cannot be opened",
            its_path_leads_to_it: "The file that holds the log, if it is one, is where path says",
        }
        sinks::append {
            what_was_appended_stays: "What was appended stays, also where it was neither synced nor sealed",
            every_record_comes_back_as_it_was: "A record comes back as it was appended, whatever its bytes are",
            order_is_kept_over_many_batches: "No record is in a log twice, and none is missing before one that is there",
            an_empty_batch_adds_nothing: "A log has what was appended, and no more",
            one_that_was_dropped_is_all_or_a_first_part: "A log whose append was dropped takes nothing more, and has a prefix",
            records_survive_the_death_of_the_process: "When append returns, its records survive the death of the process",
        }
        sinks::sync {
            synced_records_survive_the_power_failing: "After sync, records survive the death of the machine",
            it_can_be_asked_for_at_any_time: "A sync of what is synced already changes nothing",
        }
        sinks::resume {
            of_no_log_is_absent: "Resume of a run without a log is Absent, and makes none",
            it_shows_each_record_before_it_returns: "Resume shows each record, in order, before it returns",
            it_goes_on_where_the_log_ends: "A log that is resumed goes on where it ends",
            of_a_log_that_is_open_is_refused: "A log that is open cannot be resumed: Owned",
            what_is_not_whole_is_taken_out: "What is not whole at the end of a log is taken out, and the rest is a prefix",
            a_sealed_log_that_is_damaged_is_refused: "A sealed log that is not what was sealed is Damaged, and nothing is changed",
        }
        sinks::seal {
            it_is_what_resume_gives: "After seal, resume gives the seal, and no log to write to",
            nothing_is_added_behind_it: "Nothing can be appended to a sealed log",
            there_is_one: "A log has at most one seal",
            a_digest_of_the_callers_is_ignored: "The digest of the caller's is ignored",
        }
        sinks::errors {
            after_one_a_log_takes_nothing_more: "After an error a log takes nothing more: each later call on it fails",
        }
        sinks::threads {
            the_one_that_polls_is_not_blocked: "A sink must not block the thread that polls its futures",
        }
    }
}

//! Conformance tests for implementations of [`Runtime`] and [`LogSink`].
//!
//! [`runtime()`] and [`sink()`] return a list of [`Case`]s, one for each clause of the trait's
//! contract. The list is the same for every implementation. A case that an implementation cannot
//! run is [`CaseResult::Skipped`], with a reason.
//!
//! ```
//! use moat::conformance;
//! use moat::sink::Memory;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Memory::new();
//! for case in conformance::sink(move || memory.clone()) {
//!     let name = case.name();
//!     match case.run().await {
//!         Ok(result) => println!("{name} {result}"), // passed, or skipped with a reason
//!         Err(failure) => panic!("{name}: {failure}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The suite does not depend on a test framework. The loop can be the body of a `#[tokio::test]`,
//! or a framework that lists tests at run time can list each case as a test. With tokio's
//! clock paused, the cases of a test double take no time. `#[tokio::test(start_paused = true)]`
//! needs tokio's feature `test-util`. The cases open no manager, so nothing else is necessary.
//!
//! # Limits
//!
//! Three cases are always skipped. Two of them need a process to kill or a power failure to
//! simulate: records survive a killed process, and synced records survive power loss. The third
//! cannot be observed from outside: a sink does not block the thread that polls it.
//!
//! The contracts do not define the order of output between streams, nor what an engine does with a
//! request whose future was dropped. No case covers them.
//!
//! [`Runtime`]: crate::runtime::Runtime
//! [`LogSink`]: crate::sink::LogSink

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::timeout;

mod behavior;
mod containers;
mod faults;
mod harness;
mod interaction;
mod objects;
mod placement;
mod runtime_fixture;
mod sink_fixture;
mod sinks;
mod streams;

pub use behavior::{Behavior, Step};
pub use harness::{RuntimeHarness, ShellHarness, SinkHarness, Unsupported};

use crate::error::chain;
use runtime_fixture::RuntimeFixture;
use sink_fixture::SinkFixture;

/// The timeout of a case.
const CASE_TIMEOUT: Duration = Duration::from_secs(300);

/// A test of one clause of a contract on one implementation.
pub struct Case {
    name: &'static str,
    clause: &'static str,
    run: Box<dyn FnOnce() -> BoxFuture<'static, Result<(), Abort>> + Send + Sync>,
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
    /// Returns the stable name: `attach::delivers_each_stream_exactly`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the clause that the case tests.
    pub fn clause(&self) -> &'static str {
        self.clause
    }

    /// Runs the case, for at most 300 s.
    ///
    /// # Errors
    ///
    /// [`Failure`] if the implementation violates the clause, or if the setup of the case fails.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the containers and files of the case in place.
    pub async fn run(self) -> Result<CaseResult, Failure> {
        let result = timeout(CASE_TIMEOUT, (self.run)()).await;
        let timed_out = |_| fail(format!("timed out after {} s", CASE_TIMEOUT.as_secs()));
        match result.unwrap_or_else(timed_out) {
            Ok(()) => Ok(CaseResult::Passed),
            Err(Abort::Skip(reason)) => Ok(CaseResult::Skipped(reason)),
            Err(Abort::Fail(reason)) => Err(Failure {
                clause: self.clause,
                reason,
            }),
        }
    }
}

/// The result of a case that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaseResult {
    /// The case found no violation of the clause.
    Passed,
    /// The case could not run on this implementation, for this reason.
    Skipped(String),
}

impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Skipped(reason) => write!(f, "skipped: {reason}"),
        }
    }
}

/// A violation of a clause.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (clause: {clause})")]
pub struct Failure {
    clause: &'static str,
    reason: String,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The reason for the early end of a case.
#[derive(Debug)]
enum Abort {
    Skip(String),
    Fail(String),
}

fn fail<T>(reason: impl Into<String>) -> Result<T, Abort> {
    Err(Abort::Fail(reason.into()))
}

fn skip<T>(reason: impl Into<String>) -> Result<T, Abort> {
    Err(Abort::Skip(reason.into()))
}

/// Fails with `reason` unless `condition` is true.
fn ensure(condition: bool, reason: impl FnOnce() -> String) -> Result<(), Abort> {
    if condition { Ok(()) } else { fail(reason()) }
}

impl From<Unsupported> for Abort {
    fn from(error: Unsupported) -> Self {
        Self::Skip(error.to_string())
    }
}

impl From<crate::error::RuntimeError> for Abort {
    fn from(error: crate::error::RuntimeError) -> Self {
        Self::Fail(chain(&error))
    }
}

impl From<crate::spec::InvalidSpec> for Abort {
    fn from(error: crate::spec::InvalidSpec) -> Self {
        Self::Fail(chain(&error))
    }
}

impl From<crate::error::Error> for Abort {
    fn from(error: crate::error::Error) -> Self {
        Self::Fail(chain(&error))
    }
}

/// Builds a list of cases. Each case has the name of its function.
macro_rules! cases {
    ($fixture:ty, $new:expr; $($path:ident::$module:ident { $($name:ident: $clause:literal),* $(,)? })*) => {
        vec![$($(Case {
            name: concat!(stringify!($module), "::", stringify!($name)),
            clause: $clause,
            run: {
                let new = Arc::clone(&$new);
                Box::new(move || Box::pin(async move {
                    let fixture: $fixture = new().await?;
                    let result = $path::$module::$name(&fixture).await;
                    fixture.clean_up().await;
                    result
                }))
            },
        }),*),*]
    };
}

/// Returns the cases of a [`Runtime`](crate::runtime::Runtime).
///
/// Each case calls `harness` once. Cases may run concurrently, and remove their containers.
pub fn runtime<H: RuntimeHarness>(harness: impl Fn() -> H + Send + Sync + 'static) -> Vec<Case> {
    let new = Arc::new(move || RuntimeFixture::new(Box::new(harness())));
    cases! {
        RuntimeFixture, new;
        containers::name {
            is_lowercase_and_constant: "The name of a runtime is lowercase and does not change",
        }
        containers::capabilities {
            are_constant: "The capabilities of a runtime do not change",
        }
        containers::engine {
            identifies_the_engine: "`engine` returns the engine's name, and can be called as a probe",
        }
        containers::validate {
            rejects_unsupported_fields: "`validate` rejects a field that the engine does not support, and names it",
        }
        containers::prepare {
            is_idempotent: "`prepare` succeeds for an image that exists, any number of times",
            reports_a_missing_image: "`prepare` or `place` fails with NoSuchImage for a missing image that must not be pulled",
        }
        containers::create {
            does_not_start_the_container: "`create` creates the container and does not start it",
            makes_the_container_findable: "`find` returns a container, with its run, as soon as it is created",
            disables_autoremove_and_restart: "The engine neither removes nor restarts a container by itself",
            rejects_a_duplicate_name: "`create` fails with a definitive error if the name is taken",
        }
        placement::place {
            does_not_start_the_container: "A placed container is Created, and its command does not run",
            can_be_repeated: "`place` succeeds for a container that is placed",
            is_cancel_safe: "Dropping a `place` loses nothing: the container can be placed again, and started",
            of_a_missing_container_is_not_found: "`place` fails with NotFound for a container that does not exist, or does not look for it",
        }
        streams::attach {
            resolves_before_the_start: "`attach` resolves once the engine has answered, before the container starts",
            delivers_the_first_output: "An attachment made before the start delivers all output after the start",
            delivers_each_stream_exactly: "An attachment delivers every byte of each stream once and in order",
            does_not_parse_output_as_framing: "Bytes of the output are never interpreted as framing",
            labels_terminal_output_by_tty: "Output is labeled as terminal output by `tty` alone, never by its bytes",
            yields_no_empty_chunk: "An attachment yields no empty chunk",
            delivers_large_output: "An attachment delivers all of a large output on both streams",
            ends_after_the_container: "An attachment ends within 10 s of the container's exit",
            may_reject_an_unstartable_container: "`attach` to a container that cannot start succeeds, or fails with Rejected as `start` does",
            drop_leaves_the_container_running: "Dropping an attachment does not affect the container",
        }
        containers::start {
            sets_the_start_time: "A started container has a start time",
            rejects_an_unstartable_container: "`start` fails with Rejected if the engine cannot start the container, which does not run",
            leaks_no_secret_in_its_error: "Errors contain no value of an environment variable",
        }
        containers::wait {
            returns_when_the_container_exits: "`wait` returns when the container exits, not before",
            returns_any_exit_code: "`wait` returns any exit code as a success",
            returns_at_once_after_the_exit: "`wait` returns at once for a container that has ended",
            is_cancel_safe: "Dropping a `wait` loses nothing: the next call returns the exit code",
        }
        containers::inspect {
            reports_each_status_in_order: "The status of a container is Created, then Running, then Ended",
            reports_the_code_only_after_the_exit: "`inspect` reports the exit code once the container has ended, not before",
            orders_start_and_finish_times: "The finish time is after the start time on the engine's clock",
        }
        containers::continuity {
            is_not_broken_before_the_start: "`continuity` of a container that was not started is Broken only if the engine was restarted since its creation",
            is_not_broken_without_a_restart: "`continuity` is Broken only if the engine was restarted",
        }
        streams::logs {
            return_all_output: "The engine keeps all output until the container is removed",
            can_be_read_repeatedly: "`logs` reads the log from its start each time",
            keep_the_order_of_each_stream: "`logs` returns each stream in order",
            end_without_follow: "Without `follow`, `logs` ends at the end of the log, even while the container runs",
            return_the_last_records_of_a_tail: "A tail returns the last records of the log",
            follow_new_output: "With `follow`, `logs` returns past and new output, and ends with the container",
            have_the_times_of_the_output: "With `timestamps`, the bytes are unchanged, and times are those of the output",
            are_empty_before_the_start: "The log of a container that has not started is empty",
            have_the_reported_number_of_records: "`log_has_exactly` is never true of a log with more or fewer records",
            label_terminal_output_by_tty: "The log labels output as terminal output by `tty` alone",
            are_refused_without_a_backstop: "Without a backstop, `logs` fails with a definitive error",
        }
        interaction::stdin {
            delivers_every_byte: "Standard input delivers every byte unchanged, including detach keys",
            delivers_the_end_of_a_pipe: "Shutting down or dropping the writer of a piped input ends the container's input",
            allows_reattaching_to_open_input: "An open input does not end when its writer is dropped, and accepts another writer",
        }
        interaction::attach_running {
            delivers_new_output: "`attach_running` delivers new output as the container writes it",
        }
        interaction::resize {
            resizes_a_running_terminal: "`resize` accepts a size for the terminal of a running container",
        }
        interaction::exec {
            returns_its_output_and_exit_code: "An exec returns all of its output, and its exit code",
            delivers_its_input: "The input of an exec delivers every byte, and its end",
            is_killed_alone: "`exec_kill` ends an exec, and not its container",
            conflicts_with_an_ended_container: "`exec` fails with Conflict if the container does not run",
        }
        interaction::connect {
            carries_bytes_in_both_directions: "A connection to a port carries every byte in both directions",
            rejects_a_closed_port: "`connect` fails with Rejected if nothing listens at the port, or the connection ends",
            conflicts_before_the_start: "`connect` fails with Conflict if the container does not run",
        }
        containers::signal {
            reaches_the_first_process: "`signal` sends the signal to the container's first process",
            sigkill_ends_any_container: "SIGKILL ends a container that ignores other signals",
            conflicts_before_the_start: "`signal` fails with Conflict for a container that has not started",
            conflicts_after_the_exit: "`signal` fails with Conflict for a container that has ended",
        }
        objects::resources {
            are_found_until_they_are_removed: "`find_resources` returns a network or a volume with its labels, until it is removed",
            are_kept_while_a_container_uses_them: "`remove_resource` fails with Conflict while a container uses the network or the volume",
        }
        containers::remove {
            removes_a_created_container: "Without `force`, `remove` removes a container that never started",
            conflicts_with_a_running_container: "Without `force`, `remove` fails with Conflict for a running container, which continues",
            force_removes_a_running_container: "With `force`, `remove` removes a running container",
            removes_an_ended_container: "Without `force`, `remove` removes a container that has ended",
            ends_pending_waits: "A pending `wait` ends when its container is removed",
        }
        containers::find {
            returns_only_containers_of_the_root: "`find` returns the containers of the root, and no others",
            returns_containers_in_every_state: "`find` returns containers in every state",
        }
        objects::image {
            is_listed_until_it_is_removed: "`images` lists an image until it is removed",
            is_not_found_after_its_removal: "`image_inspect` and `image_remove` fail with NotFound, and name the image, once it is removed",
            removal_keeps_every_container: "With `force`, `image_remove` removes no container",
            conflicts_while_a_container_uses_it: "Without `force`, `image_remove` fails with Conflict while a container uses the image",
        }
        streams::copy_out {
            returns_a_file_that_was_copied_in: "`copy_out` returns a file that `copy_in` has unpacked",
            reads_from_an_ended_container: "`copy_out` reads from a container that has ended",
            reports_a_missing_file: "`copy_out` fails with NotFound for a file that does not exist",
        }
        faults::errors {
            missing_container_is_not_found: "Every call fails with NotFound for a container that does not exist",
            unreachable_engine_is_inconclusive: "Every call fails with an inconclusive error if the engine is unreachable",
            interrupted_wait_is_inconclusive: "A `wait` whose connection breaks is inconclusive, or is resumed",
            lost_connection_ends_the_stream: "A stream whose connection breaks ends without a definitive error, or is resumed",
            lost_connection_has_no_end_marker: "A broken connection never ends an attachment as its end marker does",
            silent_engine_times_out: "Every call to a silent engine fails within 30 s with an inconclusive error",
        }
    }
}

/// Returns the cases of a [`LogSink`](crate::sink::LogSink).
///
/// `harness` may be a closure that returns a sink. Cases may run concurrently, and remove their
/// files.
pub fn sink(harness: impl SinkHarness) -> Vec<Case> {
    let harness: Arc<dyn SinkHarness> = Arc::new(harness);
    let new = Arc::new(move || {
        let harness = Arc::clone(&harness);
        async move { SinkFixture::new(harness) }
    });
    cases! {
        SinkFixture, new;
        sinks::open {
            writes_the_start_record: "When `open` returns, the log exists and has its start record",
            rejects_a_second_log: "`open` fails with RunExists if the run has a log, open or not",
            separates_runs: "The log of a run has no record of another run",
            separates_execs: "The log of an exec is separate from the log of its run, or `open` fails",
        }
        sinks::path {
            names_the_log_file: "`path` returns the file of the log, if the log is a file",
        }
        sinks::append {
            keeps_records: "Appended records are kept without a sync or a seal",
            preserves_every_record: "Every record is read back as it was appended, whatever its bytes",
            keeps_the_order_across_batches: "A log is a prefix of the appended records, without duplicates",
            ignores_an_empty_batch: "An empty batch adds no record",
            drop_leaves_a_prefix: "After a dropped `append`, a log has a prefix of the records and accepts no more",
            survives_a_killed_process: "When `append` returns, its records survive a killed process",
        }
        sinks::sync {
            survives_power_loss: "When `sync` returns, all appended records survive power loss",
            can_be_repeated: "A `sync` without new records changes nothing",
        }
        sinks::resume {
            reports_a_missing_log: "`resume` of a run without a log is Absent, and creates no log",
            visits_each_record: "`resume` visits each record in order before it returns",
            appends_at_the_end: "A resumed log appends after its last record",
            rejects_an_open_log: "`resume` fails with Owned while the log is open",
            truncates_a_partial_record: "`resume` removes a partial record at the end, and the rest is a prefix",
            rejects_a_damaged_sealed_log: "`resume` fails with Damaged if a sealed log was changed, and leaves it as it is",
        }
        sinks::seal {
            is_returned_by_resume: "After `seal`, `resume` returns the seal and no open log",
            rejects_later_appends: "A sealed log accepts no record",
            rejects_a_second_seal: "A log has at most one seal",
            ignores_the_callers_digest: "`seal` ignores the digest that its caller passes",
        }
        sinks::errors {
            are_permanent: "After an error, every later call on the log fails",
        }
        sinks::threads {
            are_not_blocked: "A sink does not block the thread that polls its futures",
        }
    }
}

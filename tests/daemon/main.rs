//! What moat promises when the engine itself is hurt: on daemons of the tests' own. The trials are
//! listed as ignored where none can be started, and fail where an engine is promised by
//! `MOAT_ENGINE=required`.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "nobody reaches into a test; tests spawn as their users do, and fail by panicking"
)]

use std::time::Duration;

use libtest_mimic::{Arguments, Trial};

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod support;

#[path = "../engine/stage.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod stage;

mod daemon;
mod logs;
mod others;
mod restarts;
mod silence;
mod truth;

/// The most time that a trial may take.
const BOUND: Duration = Duration::from_secs(300);

/// A list of trials, each named after its function.
macro_rules! trials {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        vec![$($(trial(
            concat!(stringify!($module), "::", stringify!($name)),
            || Box::pin($module::$name()),
        )),*),*]
    };
}

fn main() {
    let mut arguments = Arguments::from_args();
    // Trials wait for the engine more than they compute.
    arguments.test_threads.get_or_insert(4);
    let required = std::env::var("MOAT_ENGINE").is_ok_and(|value| value == "required");
    let ignored = !required && !daemon::is_possible();
    let trials: Vec<Trial> = trials! {
        restarts:
            a_graceful_restart_during_output_waits_for_the_container_and_loses_nothing,
            a_killed_daemon_during_output_is_a_possible_gap,
            a_graceful_restart_with_live_restore_during_output_is_a_possible_gap,
            a_killed_daemon_with_live_restore_during_output_is_a_possible_gap,
            a_graceful_restart_during_silence_stops_the_container_and_loses_nothing,
            a_killed_daemon_during_silence_loses_nothing_that_was_printed,
            a_graceful_restart_with_live_restore_during_silence_loses_no_line,
            a_killed_daemon_with_live_restore_during_silence_loses_no_line,
            what_died_in_a_daemons_memory_is_never_passed_over,
            what_died_in_a_daemons_memory_while_nobody_watched_is_never_passed_over,
            a_killed_daemon_under_load_loses_no_line_unsaid,
            a_container_that_ends_while_its_daemon_is_down_keeps_its_exit_code;
        logs:
            a_deleted_log_leaves_what_was_received_and_is_a_possible_gap,
            a_log_that_was_deleted_while_nobody_watched_is_a_gap,
            a_truncated_log_leaves_what_was_received_and_is_complete,
            a_log_that_was_truncated_while_nobody_watched_is_a_gap,
            a_torn_log_leaves_what_was_received_and_is_complete,
            a_log_that_was_torn_while_nobody_watched_is_a_gap,
            a_full_disk_of_the_daemon_leaves_what_was_received_and_is_a_possible_gap,
            a_full_disk_of_the_daemon_while_nobody_watched_is_a_gap,
            a_full_disk_of_the_daemon_is_not_taken_for_a_terminals_output;
        others:
            a_killed_shim_ends_the_run_with_the_engines_own_code_and_all_that_was_printed,
            a_stop_by_others_is_the_containers_own_end,
            a_kill_by_others_is_code_137_and_complete,
            a_removal_by_others_in_the_middle_of_output_is_said,
            a_pause_by_others_is_no_end_and_loses_nothing,
            a_stop_ends_a_container_that_others_have_paused,
            a_renamed_container_is_watched_recovered_and_removed,
            a_kept_container_that_others_start_again_changes_nothing,
            a_container_that_others_start_again_before_its_log_is_read_is_never_complete,
            a_run_of_another_daemon_is_left_alone;
        silence:
            a_frozen_daemon_is_no_end_and_loses_nothing,
            a_stop_reaches_a_container_of_a_frozen_daemon_when_that_goes_on,
            a_start_at_a_frozen_daemon_fails_and_nothing_runs_unaudited,
            a_start_at_a_daemon_that_is_frozen_for_a_while_succeeds_late,
            a_create_that_lands_after_its_bound_never_runs,
            a_start_that_lands_after_its_bound_is_watched,
            a_socket_that_is_gone_for_a_while_changes_nothing,
            a_slow_connection_loses_nothing,
            a_frozen_connection_is_no_end_and_loses_nothing,
            a_wait_that_is_never_answered_does_not_hang_the_run;
    };
    let trials = trials
        .into_iter()
        .map(|trial| trial.with_ignored_flag(ignored));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

type Future = std::pin::Pin<Box<dyn std::future::Future<Output = ()>>>;

fn trial(name: &str, run: fn() -> Future) -> Trial {
    Trial::test(name, move || support::trial::bounded(BOUND, run()))
}

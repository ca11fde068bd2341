//! What moat promises, on a real engine. The trials are listed as ignored where none answers, and
//! fail where one is promised by `MOAT_ENGINE=required`.

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

mod embedder;
mod exits;
mod faults;
mod harness;
mod load;
mod output;
mod policies;
mod recovery;
mod services;
mod specs;
mod stage;

use stage::Stage;

/// The most time that a trial may take, but for the long forms of `MOAT_SOAK`.
const BOUND: Duration = Duration::from_secs(300);

/// A list of trials, each named after its function.
macro_rules! trials {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        vec![$($(trial(
            concat!(stringify!($module), "::", stringify!($name)),
            |stage| Box::pin(async move { $module::$name(&stage).await }),
        )),*),*]
    };
}

fn main() {
    if let Some(role) = embedder::role() {
        return role;
    }
    let mut arguments = Arguments::from_args();
    // Trials wait for the engine more than they compute.
    arguments.test_threads.get_or_insert(4);
    let ignored = !support::engine::is_expected();
    let trials: Vec<Trial> = trials! {
        exits:
            a_run_that_prints_and_ends_leaves_a_complete_audit,
            a_non_zero_exit_code_is_in_the_outcome_and_in_the_seal,
            a_run_without_output_is_complete_and_empty,
            a_missing_image_fails_the_start_and_leaves_a_sealed_audit,
            a_missing_command_fails_the_start_and_leaves_no_container,
            a_stop_lets_the_container_end_by_itself,
            a_container_that_ignores_the_stop_signal_is_killed_after_the_grace,
            a_stop_of_a_run_that_has_ended_tells_the_same_outcome,
            a_kill_does_not_wait,
            a_run_past_its_time_limit_is_stopped_and_says_so,
            a_container_removed_by_others_is_sealed_as_removed_with_what_it_printed,
            a_container_out_of_memory_is_told_from_one_that_was_killed,
            a_child_out_of_memory_does_not_change_the_exit_code,
            a_terminal_is_one_stream_as_the_terminal_gave_it,
            a_detached_run_goes_on_and_is_sealed_by_the_next_manager,
            stop_wait_and_a_natural_exit_at_once_agree_on_the_exit,
            any_number_of_waiters_get_the_same_outcome,
            a_container_that_closes_its_output_early_is_waited_for;
        harness:
            what_a_run_uses_is_sampled_and_in_its_seal,
            a_container_carries_its_deadline_and_any_moat_can_see_it,
            a_container_whose_run_is_gone_is_found_and_removed;
        output:
            a_line_of_ten_megabytes_is_audited_byte_for_byte,
            a_long_line_of_multibyte_characters_is_audited_byte_for_byte,
            random_bytes_are_audited_byte_for_byte,
            a_progress_bar_is_audited_byte_for_byte,
            a_character_in_two_halves_is_whole_in_the_audit,
            output_without_a_last_newline_is_whole,
            hostile_bytes_on_a_terminal_hide_nothing,
            hostile_bytes_without_a_terminal_hide_nothing,
            each_stream_is_in_its_own_order,
            a_late_reader_gets_the_past_and_the_rest_without_loss_or_doubles,
            readers_that_come_at_any_time_see_the_same_bytes,
            a_reader_after_the_end_gets_all_of_it,
            a_reader_that_does_not_read_harms_neither_container_nor_audit,
            output_past_the_limit_stops_the_run_and_is_a_gap,
            output_past_the_limit_is_dropped_as_a_gap_and_the_run_goes_on;
        faults:
            nothing_is_lost_when_the_answer_to_attach_comes_late,
            a_tap_that_is_cut_is_made_good_from_the_engines_log,
            a_tap_that_is_cut_among_identical_lines_neither_loses_nor_doubles_one,
            a_tap_that_goes_silent_is_made_good_after_its_deadline,
            a_cut_tap_without_a_readable_log_is_a_gap,
            a_log_that_cannot_be_read_is_no_proof_of_completeness,
            a_cut_tap_without_a_backstop_is_a_gap,
            a_lost_connection_to_the_engine_loses_nothing,
            a_runtime_that_its_user_blocks_never_passes_a_loss_for_complete,
            the_audit_exists_before_the_engine_is_asked_for_a_container,
            the_container_is_removed_only_after_the_seal;
        recovery:
            a_killed_embedder_loses_and_doubles_no_line,
            a_killed_embedder_loses_and_doubles_no_identical_line,
            embedders_killed_one_after_the_other_lose_nothing,
            a_run_that_ends_while_nobody_looks_is_sealed_by_the_next_manager,
            a_terminal_run_of_a_killed_embedder_is_whole,
            a_manager_that_leaves_does_not_touch_its_runs,
            a_manager_that_stops_its_runs_seals_them,
            a_time_limit_that_passed_while_nobody_looked_is_enforced_at_open,
            a_stop_is_carried_on_when_its_owner_is_killed_before_the_grace_is_over,
            another_process_can_wait_read_and_stop_but_not_take_over,
            a_container_started_again_by_others_is_another_execution;
        policies:
            the_engine_keeps_every_byte_by_our_own_log_settings,
            a_container_is_removed_after_its_seal,
            a_container_is_kept_when_asked_for_and_removed_with_its_run,
            a_failed_run_can_keep_its_container,
            a_container_is_kept_when_its_audit_has_a_gap,
            anonymous_volumes_are_removed_with_the_container,
            files_can_be_copied_out_of_a_kept_container,
            a_taken_run_id_is_refused_and_the_first_run_untouched,
            an_unwritable_root_is_an_error_that_names_the_path,
            secrets_are_in_no_file_of_the_root,
            a_bad_variable_is_refused_before_the_engine_can_echo_it,
            the_settings_reach_the_container;
        specs:
            a_patch_that_undoes_a_promise_is_refused_before_anything_is_made,
            what_the_engine_refuses_fails_the_start_and_leaves_a_sealed_audit_without_secrets,
            odd_values_that_are_taken_do_what_they_say,
            what_no_process_can_be_given_is_refused_and_the_longest_arrives,
            limits_beyond_any_machine_run_or_fail_with_a_sealed_audit;
        services:
            a_port_is_ready_when_the_container_listens_behind_it,
            a_line_is_ready_when_it_is_printed,
            a_health_check_is_asked_of_the_engine,
            a_service_leaves_no_container_and_a_sealed_audit_after_its_scope_and_after_a_panic,
            one_manager_serves_tests_whose_runtimes_end,
            a_service_of_a_killed_test_is_ended_by_the_next_opening;
        load:
            fifty_runs_at_once_are_all_complete,
            short_runs_lose_nothing,
            many_runs_of_many_lines_lose_and_double_nothing,
            the_order_of_a_stream_holds_in_every_run;
    };
    let trials = trials
        .into_iter()
        .map(|trial| trial.with_ignored_flag(ignored));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

type Future<'a> = std::pin::Pin<Box<dyn std::future::Future<Output = ()> + 'a>>;

fn trial(name: &str, run: fn(Stage) -> Future<'static>) -> Trial {
    Trial::test(name, move || {
        let bound = if load::is_soak() { BOUND * 20 } else { BOUND };
        support::trial::bounded(bound, async { run(Stage::new().await).await })
    })
}

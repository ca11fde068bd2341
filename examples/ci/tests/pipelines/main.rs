//! The example `ci`, started as its users start it: what it runs, shows and leaves behind.

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "nobody reaches into a test; tests fail by panicking"
)]

use libtest_mimic::{Arguments, Trial};

mod ends;
mod load;
mod place;
mod resume;
mod steps;
mod support;
mod views;

use place::Place;

macro_rules! trials {
    ($($module:ident: $($name:ident),* $(,)?);* $(;)?) => {
        vec![$($(Trial::test(concat!(stringify!($module), "::", stringify!($name)), || {
            $module::$name(&Place::new());
            Ok(())
        })),*),*]
    };
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    let required = std::env::var("MOAT_ENGINE").is_ok_and(|value| value == "required");
    let there = support::engine::is_expected() && support::busybox::is_here();
    let ignored = !cfg!(feature = "docker") || !(required || there);
    let without_engine: Vec<Trial> = trials! {
        steps:
            the_demo_is_green_as_local_processes,
            steps_that_need_nothing_of_each_other_run_at_once,
            no_more_steps_run_at_once_than_there_are_jobs,
            what_needs_a_failed_step_is_skipped_and_the_rest_goes_on,
            a_failure_that_is_allowed_is_told_and_fails_nothing,
            a_failed_step_is_tried_again_as_often_as_it_may_be,
            a_matrix_is_a_step_for_each_cell,
            a_step_that_hangs_or_is_silent_is_stopped,
            what_is_wrong_is_said_before_anything_is_made;
        views:
            secrets_are_in_the_audit_alone,
            a_secret_at_the_cut_of_a_long_line_is_in_no_view,
            no_output_is_taken_for_a_command_of_githubs_runner,
            a_terminal_has_a_line_for_each_step,
            who_does_not_read_what_is_printed_fails_nothing,
            of_many_lines_the_last_are_shown;
        ends:
            a_signal_stops_all_local_processes_and_every_audit_is_sealed,
            no_report_of_an_earlier_build_is_taken_for_that_of_a_killed_one,
            where_no_report_can_be_written_nothing_is_run;
        resume:
            what_ended_with_a_killed_harness_is_run_again_and_nothing_else,
            what_never_came_to_run_is_run_again,
            a_step_that_had_failed_before_is_not_tried_more_often,
            a_changed_pipeline_is_not_gone_on_with,
            a_build_that_is_under_way_is_not_gone_on_with,
            without_a_build_there_is_nothing_to_go_on_with;
    };
    let on_engine: Vec<Trial> = trials! {
        steps:
            the_demo_is_green_in_containers;
        ends:
            a_signal_stops_all_containers_and_every_audit_is_sealed;
        resume:
            a_container_of_a_killed_harness_is_picked_up_and_its_audit_is_whole,
            what_a_killed_harness_has_left_is_stopped_by_the_next_build;
        load:
            thirty_steps_one_of_a_million_lines_and_one_that_hangs_end_in_time_and_in_little_memory;
    };
    let on_engine = on_engine
        .into_iter()
        .map(|trial| trial.with_ignored_flag(ignored));
    libtest_mimic::run(
        &arguments,
        without_engine.into_iter().chain(on_engine).collect(),
    )
    .exit();
}

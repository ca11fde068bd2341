//! Tests of the program `moat-ci`.
//!
//! Each test runs a pipeline, and checks the output, the exit code and the files.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests spawn processes, and fail by panicking"
)]

use libtest_mimic::{Arguments, Trial};

mod fixture;
mod load;
mod resume;
mod shutdown;
mod steps;
mod support;
mod views;

use fixture::Fixture;

macro_rules! trials {
    ($($module:ident: $($name:ident),* $(,)?);* $(;)?) => {
        vec![$($(Trial::test(concat!(stringify!($module), "::", stringify!($name)), || {
            $module::$name(&Fixture::new());
            Ok(())
        })),*),*]
    };
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(4);
    let required = std::env::var("MOAT_ENGINE").is_ok_and(|value| value == "required");
    let available = support::engine::is_expected() && support::busybox::is_here();
    let ignored = !cfg!(feature = "docker") || !(required || available);
    let without_engine: Vec<Trial> = trials! {
        steps:
            the_demo_passes_as_local_processes,
            independent_steps_run_in_parallel,
            jobs_limits_the_number_of_running_steps,
            a_failed_step_skips_only_its_dependents,
            an_allowed_failure_does_not_fail_the_build,
            a_failed_step_is_retried_up_to_its_limit,
            a_matrix_runs_one_step_per_cell,
            limits_stop_hanging_and_silent_steps,
            an_invalid_pipeline_creates_nothing;
        views:
            secrets_appear_only_in_the_audit,
            a_truncated_secret_is_in_no_view,
            output_cannot_issue_github_commands,
            a_terminal_shows_one_line_per_step,
            a_closed_stdout_does_not_fail_the_build,
            only_the_last_lines_are_printed;
        shutdown:
            a_signal_stops_and_seals_local_processes,
            a_killed_build_leaves_no_earlier_report,
            nothing_runs_if_reports_cannot_be_written;
        resume:
            resume_reruns_only_interrupted_runs,
            resume_reruns_runs_that_never_started,
            resume_does_not_add_retries,
            a_changed_pipeline_cannot_be_resumed,
            a_running_build_cannot_be_resumed,
            resume_without_a_build_starts_one;
    };
    let on_engine: Vec<Trial> = trials! {
        steps:
            the_demo_passes_in_containers;
        shutdown:
            a_signal_stops_and_seals_containers;
        resume:
            resume_recovers_running_containers,
            the_next_build_stops_leftover_containers;
        load:
            a_large_build_stays_within_time_and_memory;
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

//! What moat promises when the audit cannot be written: a full disk, files that others meddle with,
//! no descriptors, sinks that fail, stall or panic, on a real engine.
//!
//! The trials are listed as ignored where no engine answers, and fail where one is promised by
//! `MOAT_ENGINE=required`. Those that mount a file system, or make files immutable, are ignored
//! where this machine does not allow that.

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

mod descriptors;
mod disk;
mod faults;
mod faulty;
mod files;
mod full;
mod truth;

use stage::Stage;

/// The most time that a trial may take.
const BOUND: Duration = Duration::from_secs(240);

/// A list of trials, each named after its function, for a module that may be ignored.
macro_rules! trials {
    ($($module:ident if $possible:expr => $($name:ident),* $(,)?;)*) => {
        vec![$($(trial(
            concat!(stringify!($module), "::", stringify!($name)),
            |stage| Box::pin(async move { $module::$name(&stage).await }),
        ).with_ignored_flag(!$possible)),*),*]
    };
}

fn main() {
    if let Some(role) = descriptors::role() {
        return role;
    }
    let mut arguments = Arguments::from_args();
    // Trials wait more than they compute.
    arguments.test_threads.get_or_insert(8);
    let engine = support::engine::is_expected();
    let mounts = engine && disk::Disk::is_possible();
    let locks = engine && files::is_possible();
    let trials: Vec<Trial> = trials! {
        full if mounts =>
            a_disk_that_is_full_at_the_start_refuses_the_run_and_leaves_nothing,
            a_disk_that_fills_in_the_middle_loses_nothing_once_it_has_room,
            a_disk_that_is_full_at_the_seal_is_waited_for,
            a_stop_on_a_full_disk_stops_the_container_and_is_recorded_later,
            a_full_disk_is_waited_for_by_the_next_manager_too;
        files if engine =>
            a_folder_that_is_removed_meanwhile_is_made_again_with_all_that_was_printed,
            a_truncated_audit_is_never_sealed_with_a_hole,
            an_audit_that_was_edited_in_place_is_captured_again,
            an_audit_that_was_replaced_by_an_edited_copy_is_captured_again,
            an_audit_that_has_lost_a_line_while_its_disk_refused_is_captured_again,
            what_others_append_to_an_audit_is_not_sealed,
            an_edited_audit_that_no_log_stands_behind_is_a_gap,
            an_audit_that_was_only_looked_at_and_linked_is_sealed_as_it_is,
            another_runs_sealed_audit_in_the_place_is_never_taken_for_this_ones;
        files if locks =>
            an_audit_that_may_not_be_written_any_more_is_waited_for,
            a_folder_that_may_not_be_changed_any_more_loses_nothing;
        faults if engine =>
            a_sink_that_stalls_holds_up_neither_the_container_nor_a_stop,
            a_sink_that_stalls_at_the_first_record_holds_up_nothing,
            a_shutdown_does_not_wait_for_a_sink_that_stalls,
            a_sink_that_fails_some_times_loses_nothing,
            a_sink_that_cannot_open_a_log_refuses_the_run_and_leaves_nothing,
            a_sink_that_fails_for_ever_keeps_the_container_and_hangs_nobody,
            a_sink_that_panics_is_survived_and_loses_nothing;
        descriptors if engine =>
            a_process_out_of_descriptors_refuses_new_runs_and_loses_nothing_of_the_old;
    };
    libtest_mimic::run(&arguments, trials).exit();
}

type Future<'a> = std::pin::Pin<Box<dyn std::future::Future<Output = ()> + 'a>>;

fn trial(name: &str, run: fn(Stage) -> Future<'static>) -> Trial {
    Trial::test(name, move || {
        support::trial::bounded(BOUND, async { run(Stage::new().await).await })
    })
}

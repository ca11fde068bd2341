//! Sitting in front of a run, on a real engine. The trials are listed as ignored where none
//! answers, or there is no static busybox, and fail where that is promised by
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

mod crowd;
mod embedder;
mod execs;
mod input;
mod screen;
mod terminals;

use stage::Stage;

/// The most time that a trial may take, but for the long forms of `MOAT_SOAK`.
const BOUND: Duration = Duration::from_secs(180);

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
    if embedder::role().is_some() {
        return;
    }
    let mut arguments = Arguments::from_args();
    // Trials wait for the engine more than they compute.
    arguments.test_threads.get_or_insert(4);
    let required = std::env::var("MOAT_ENGINE").is_ok_and(|value| value == "required");
    let there = support::engine::is_expected() && support::busybox::is_here();
    let ignored = !(required || there);
    let trials: Vec<Trial> = trials! {
        input:
            a_pipe_brings_every_byte_and_its_end_and_the_audit_has_none_of_them,
            a_writer_that_goes_before_the_end_is_recorded,
            a_pipe_has_one_writer,
            an_open_input_can_be_left_and_come_back_to,
            a_recovered_run_is_attached_to_with_its_input,
            the_run_of_another_owner_is_attached_to_with_its_input,
            no_key_is_kept_by_the_engine,
            a_terminal_has_its_size_and_follows_a_change,
            input_is_recorded_where_the_spec_asks_for_it,
            one_who_wants_what_comes_gets_nothing_of_what_was,
            an_attachment_ends_after_the_last_byte_and_tells_the_outcome,
            large_input_flows_through;
        execs:
            a_further_process_has_its_own_output_code_and_audit,
            a_further_process_whose_input_nobody_takes_sees_its_end,
            a_further_process_can_be_written_to,
            a_further_process_that_cannot_start_leaves_a_sealed_audit,
            a_terminal_in_a_further_process_has_its_size,
            what_an_owner_leaves_open_is_sealed_as_lost_at_the_next_opening,
            a_further_process_ends_with_its_container;
        terminals:
            a_shell_is_used_left_come_back_to_and_exited,
            an_editor_fills_the_screen_and_is_drawn_again_for_who_comes_back,
            a_monitor_is_seen_live,
            what_a_dying_program_left_behind_is_undone,
            a_signal_leaves_the_terminal_as_it_was,
            the_keys_work_in_front_of_a_program_that_does_not_read,
            who_is_stopped_gives_the_terminal_back_and_has_it_again,
            who_waits_for_the_end_of_a_run_can_leave,
            a_panic_leaves_the_terminal_as_it_was_and_its_message_readable,
            an_error_leaves_the_terminal_as_it_was,
            a_further_process_has_a_terminal_of_its_own,
            what_is_piped_in_comes_out_again_in_bounded_memory;
        crowd:
            twenty_eyes_of_which_one_is_blind_slow_nothing_down;
    };
    let trials = trials
        .into_iter()
        .map(|trial| trial.with_ignored_flag(ignored));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

type Future<'a> = std::pin::Pin<Box<dyn std::future::Future<Output = ()> + 'a>>;

fn trial(name: &str, run: fn(Stage) -> Future<'static>) -> Trial {
    Trial::test(name, move || {
        let soak = std::env::var_os("MOAT_SOAK").is_some();
        let bound = if soak { BOUND * 20 } else { BOUND };
        support::trial::bounded(bound, async {
            let mut stage = Stage::new().await;
            stage.image = support::busybox::provide(&stage.docker).await.unwrap();
            run(stage).await
        })
    })
}

/// Asserts that the audit says that nothing is missing, or that the engine may have given up on
/// output: that is what it says of a large one whose end was read late. Whether anything is missing
/// is for who knows the bytes.
#[track_caller]
fn assert_nothing_missed(audit: &support::audit::Audit) {
    let gaps = audit.all("gap");
    let late = gaps
        .iter()
        .all(|gap| gap["reason"] == "late_drain" && gap["possible"] == true);
    let verdict = if gaps.is_empty() { "complete" } else { "gap" };
    assert!(
        late && audit.verdict() == verdict,
        "{}\n{:?}",
        audit.end,
        audit.events
    );
}

/// The actions that an audit has on record, in order.
fn actions(audit: &support::audit::Audit) -> Vec<String> {
    audit
        .all("note")
        .iter()
        .filter_map(|note| note["action"].as_str().map(Into::into))
        .collect()
}

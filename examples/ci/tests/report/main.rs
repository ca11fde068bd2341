//! Tests of the HTML report: the file, and its page in a browser.
//!
//! The browser is headless Chromium. Without Chromium the trials of the page are ignored. With
//! `MOAT_CHROMIUM=required` they fail.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use libtest_mimic::{Arguments, Trial};

mod audit;
mod browser;
mod file;
mod page;
mod sample;

macro_rules! trials {
    ($part:ident: $($name:ident),* $(,)?) => {
        vec![$(Trial::test(concat!(stringify!($part), "::", stringify!($name)), || {
            $part::$name();
            Ok(())
        })),*]
    };
}

fn main() {
    // A process that only writes a report, so that its memory can be measured.
    if let Some(audit) = std::env::var_os(file::WRITE_REPORT_OF) {
        return file::write_report_of(audit.as_ref());
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(2);
    let ignored = !browser::is_expected();
    let browser_trials = trials![page:
        only_visible_rows_are_in_the_document,
        search_marks_matches_across_colors,
        lines_are_filtered_by_match_and_stream,
        hostile_output_is_text,
        invalid_utf8_and_control_bytes_are_visible,
        color_escapes_apply_and_others_are_dropped,
        overwritten_text_is_hidden_but_searchable,
        gaps_are_in_order_and_the_seal_is_last,
        omitted_lines_keep_their_numbers,
        the_first_failed_step_is_selected,
        a_report_without_steps_or_audits_opens,
        foreign_scripts_do_not_run,
        keys_move_between_matches,
    ];
    let trials = trials![file:
        output_cannot_close_its_data_element,
        output_round_trips_byte_for_byte,
        a_secret_is_masked_everywhere,
        a_secret_split_between_records_is_masked,
        a_truncated_secret_is_masked,
        overlapping_secrets_are_masked_completely,
        omitted_lines_are_counted_exactly,
        long_lines_are_truncated_and_bounded,
        a_bad_audit_affects_only_its_attempt,
        a_report_is_replaced_atomically,
        a_million_lines_are_written_in_bounded_memory,
    ];
    let trials = trials
        .into_iter()
        .chain(
            browser_trials
                .into_iter()
                .map(|trial| trial.with_ignored_flag(ignored)),
        )
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}

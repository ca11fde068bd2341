//! The report of the CI example: what is in the file, and what a browser makes of it.
//!
//! The browser is Chromium without a screen. Where there is none, its trials are listed as ignored;
//! with `MOAT_CHROMIUM=required` its absence is a failure.

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
    // A report is written by this process, and by no test, so that its memory can be measured.
    if let Some(audit) = std::env::var_os(file::WRITE_REPORT_OF) {
        return file::write_report_of(audit.as_ref());
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(2);
    let ignored = !browser::is_expected();
    let in_the_browser = trials![page:
        a_step_of_100_000_lines_is_there_with_few_rows_in_the_document,
        search_counts_and_marks_what_it_finds_across_colours,
        only_matching_lines_and_one_stream_can_be_shown,
        hostile_output_is_text,
        bytes_that_are_not_utf8_and_control_characters_are_seen,
        colours_are_followed_and_other_escapes_dropped,
        what_a_carriage_return_has_overwritten_is_not_shown_but_found,
        gaps_are_in_their_place_and_the_seal_is_at_the_end,
        what_is_left_out_is_said_and_lines_keep_their_numbers,
        the_first_failed_step_is_shown_and_each_status_is_named,
        a_report_without_steps_or_audits_opens,
        a_script_that_is_not_the_pages_own_does_not_run,
        keys_go_through_what_was_found,
    ];
    let trials = trials![file:
        output_cannot_end_the_data_that_it_is_in,
        output_reads_back_from_the_page_byte_for_byte,
        a_secret_is_masked_wherever_it_stands,
        a_secret_in_two_records_of_a_line_is_masked,
        a_secret_at_the_cut_of_a_long_line_is_masked,
        overlapping_secrets_leave_no_rest,
        what_is_left_out_is_counted_precisely,
        long_lines_are_cut_and_their_output_is_bounded,
        a_damaged_and_a_missing_audit_are_told_and_harm_no_other_step,
        a_report_takes_the_place_of_another_only_when_it_is_whole,
        a_million_lines_are_written_in_bounded_memory,
    ];
    let trials = trials
        .into_iter()
        .chain(
            in_the_browser
                .into_iter()
                .map(|trial| trial.with_ignored_flag(ignored)),
        )
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}

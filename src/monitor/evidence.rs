//! Evidence: what the facts at the end of a run prove about the captured output.
//!
//! Everything here is pure. The monitor collects the facts, does the I/O that
//! a [`Decision`] asks for, and passes the result back.

use tokio::time::{Duration, Instant};

use crate::audit::{Gap, GapReason};
use crate::capture::{Masking, PumpEnd};
use crate::monitor::StartTimes;
use crate::monitor::wait::Ended;
use crate::outcome::{Ending, Evidence, PerStream, Stream};
use crate::runtime::{DrainLimit, LogFidelity};

/// Maximum time between the end of a whole tap and the end of its container.
///
/// A raw attachment has no end marker, so a proxy that cuts it produces a clean
/// end too. A tap that ends earlier than this may have been cut.
pub(super) const EOF_TOLERANCE: Duration = Duration::from_secs(1);

/// Margin by which an engine may cut off output before its declared limit.
const DRAIN_MARGIN: Duration = Duration::from_millis(200);

/// The kind of an ending, as far as evidence depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndingKind {
    NeverStarted,
    Exited,
    Removed,
    Lost,
    /// The engine lost track of the container: the program may still run.
    Untracked,
    /// The container is gone with its node, and its log with it.
    NodeLost,
}

impl EndingKind {
    pub(super) fn new(ended: &Ended) -> Self {
        let inspection = ended.inspection.as_ref();
        match &ended.ending {
            _ if ended.untracked => Self::Untracked,
            Ending::FailedToStart { .. } | Ending::NotCreated { .. } => Self::NeverStarted,
            _ if inspection.is_some_and(|seen| seen.lost.is_some()) => Self::NodeLost,
            Ending::Exited(_) => Self::Exited,
            Ending::Removed { .. } => Self::Removed,
            Ending::Lost { .. } => Self::Lost,
        }
    }
}

/// The way in which the tap ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TapEndKind {
    /// The tap ended with an error, or was given up.
    Broken,
    /// The tap ended without an error. A connection that a proxy cuts ends in the same way.
    Clean,
    /// The tap ended with an end marker, which follows the last byte.
    Marked,
}

impl TapEndKind {
    /// `end_marker` is true if a clean end of the stream is its end marker.
    pub(super) fn new(end: &PumpEnd, end_marker: bool) -> Self {
        match end {
            PumpEnd::Eof if end_marker => Self::Marked,
            PumpEnd::Eof => Self::Clean,
            _ => Self::Broken,
        }
    }
}

/// When the container ended, by this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerEnd {
    /// The engine reported the time of the end.
    Reported(Instant),
    /// The monitor learned of the end at this time. The container may have ended earlier.
    Observed(Instant),
}

impl ContainerEnd {
    fn at(self) -> Instant {
        match self {
            Self::Reported(at) | Self::Observed(at) => at,
        }
    }
}

/// The end of the tap, relative to the end of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TapEnd {
    pub(super) kind: TapEndKind,
    /// Time from the end of the tap to the end of the container, or zero.
    pub(super) lead: Duration,
    /// Time from the end of the container to the end of the tap, or zero.
    pub(super) lag: Duration,
}

impl TapEnd {
    /// `lateness` is the longest time for which the engine may have held the end of the tap.
    pub(super) fn new(
        kind: TapEndKind,
        at: Instant,
        container_end: ContainerEnd,
        lateness: Duration,
    ) -> Self {
        let end = container_end.at();
        let lag = at.saturating_duration_since(end);
        Self {
            kind,
            lead: end.saturating_duration_since(at),
            lag: match container_end {
                ContainerEnd::Reported(_) => lag,
                // A process that was blocked observes both ends at the same time.
                ContainerEnd::Observed(_) => lag.max(lateness),
            },
        }
    }
}

/// The state of the engine's log of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EngineLog {
    /// No inspection has reported the log's driver yet.
    Unknown,
    /// The container is gone, and its log with it.
    Removed,
    /// The engine cannot read the log back.
    Unreadable,
    Readable(LogFidelity),
}

impl From<Option<LogFidelity>> for EngineLog {
    fn from(fidelity: Option<LogFidelity>) -> Self {
        fidelity.map_or(Self::Unreadable, Self::Readable)
    }
}

/// The facts at the end of a run, before the engine's log is read.
#[derive(Debug, Clone)]
pub(super) struct EndFacts {
    pub(super) ending: EndingKind,
    /// `None` if the output was never tapped.
    pub(super) tap: Option<TapEnd>,
    /// A failed sink lost records of received output.
    pub(super) lost_records: bool,
    /// The masking of the output.
    pub(super) masking: Masking,
    /// Another execution of the container has started since this one ended.
    pub(super) started_again: bool,
    /// The run keeps the engine's log as a backstop, and the runtime has one.
    pub(super) backstop: bool,
    pub(super) log: EngineLog,
    /// Output past the output limit was dropped.
    pub(super) limit_reached: bool,
    /// The sink's log was resumed after a failure.
    pub(super) resumed: bool,
    /// The wait for the exit was interrupted.
    pub(super) interrupted: bool,
    /// The engine was, or may have been, restarted during the run.
    pub(super) engine_restarted: bool,
    /// When the engine cuts off unread output.
    pub(super) drain: Option<DrainLimit>,
    /// The container's output comes from a log that the engine rotates.
    pub(super) log_rotates: bool,
}

impl EndFacts {
    /// Returns true if the tap ended with its end marker, and everything it
    /// delivered is recorded.
    pub(super) fn tap_is_proven(&self) -> bool {
        self.tap.is_some_and(|tap| tap.kind == TapEndKind::Marked) && !self.lost_records
    }

    /// Returns true if nothing suggests that the tap was cut: it ended cleanly, no
    /// earlier than the container, and everything it delivered is recorded.
    pub(super) fn tap_seems_whole(&self) -> bool {
        let seems_whole = |tap: TapEnd| match tap.kind {
            TapEndKind::Broken => false,
            TapEndKind::Clean => tap.lead < EOF_TOLERANCE,
            TapEndKind::Marked => true,
        };
        self.tap.is_some_and(seems_whole) && !self.lost_records
    }
}

/// The next step towards the evidence of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    Settled(Finding),
    /// Inspect the container, and decide again with [`EndFacts::log`].
    InspectLog,
    /// Compare the tail of the engine's log, and continue with [`after_tail`].
    CompareTail(LogFidelity),
    /// Replay the engine's log, and continue with [`after_replay`].
    Replay(LogFidelity),
}

/// The evidence for a run's output, and the gaps that the facts prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) evidence: Evidence,
    pub(super) gaps: Vec<MissingOutput>,
}

impl Finding {
    fn without_gap(evidence: Evidence) -> Self {
        Self {
            evidence,
            gaps: Vec::new(),
        }
    }

    fn of_gap(gap: MissingOutput) -> Self {
        Self {
            evidence: Evidence::None,
            gaps: vec![gap],
        }
    }

    /// The finding for a container that its engine lost track of.
    fn of_lost_track() -> Self {
        Self::of_gap(MissingOutput::possible(GapReason::EngineRestarted))
    }
}

/// Output that is missing, or may be: a gap record without its timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MissingOutput {
    pub(super) reason: GapReason,
    pub(super) stream: Option<Stream>,
    pub(super) possible: bool,
    pub(super) bytes: Option<u64>,
    pub(super) detail: Option<String>,
}

impl MissingOutput {
    fn certain(reason: GapReason) -> Self {
        Self {
            reason,
            stream: None,
            possible: false,
            bytes: None,
            detail: None,
        }
    }

    fn possible(reason: GapReason) -> Self {
        Self {
            possible: true,
            ..Self::certain(reason)
        }
    }
}

impl From<MissingOutput> for Gap {
    fn from(missing: MissingOutput) -> Self {
        Self {
            stream: missing.stream,
            possible: missing.possible,
            bytes: missing.bytes,
            detail: missing.detail,
            ..Self::new(missing.reason)
        }
    }
}

/// The end of a replay of the engine's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReplayEnd {
    /// The log was read to its end.
    Complete { started_again: bool },
    /// The container was removed before or during the replay.
    Removed,
    /// The engine refused to read the log.
    Refused { reason: String },
}

/// Bytes of each stream once the rest of the output is captured.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OutputTotals {
    /// Bytes in records and in open lines.
    pub(super) received: PerStream<u64>,
    /// Bytes past the output limit.
    pub(super) dropped: PerStream<u64>,
}

/// Returns what is proven about a run whose container is unknown.
pub(super) fn without_container(ending: EndingKind) -> Finding {
    match ending {
        // The id is recorded before the start is requested, so a container without
        // a recorded id was never started.
        EndingKind::NeverStarted => Finding::without_gap(Evidence::NeverStarted),
        // The container may have run: its id is lost, and its log with it.
        EndingKind::Exited
        | EndingKind::Removed
        | EndingKind::Lost
        | EndingKind::Untracked
        | EndingKind::NodeLost => Finding::of_gap(MissingOutput::certain(GapReason::LogUnreadable)),
    }
}

/// Decides what the facts about a known container prove, or which I/O can prove
/// more.
pub(super) fn decide(facts: &EndFacts) -> Decision {
    use Decision::Settled;

    match facts.ending {
        EndingKind::NeverStarted => return Settled(Finding::without_gap(Evidence::NeverStarted)),
        // No output was captured since the owner died, wherever it can be read.
        _ if facts.masking.is_missing => {
            return Settled(Finding::of_gap(MissingOutput {
                possible: !facts.masking.has_discarded,
                ..MissingOutput::certain(GapReason::MasksMissing)
            }));
        }
        // The marker followed the last byte, whatever happened to the container since. A
        // program that runs on has closed its output.
        _ if facts.tap_is_proven() => return Settled(Finding::without_gap(Evidence::EndMarker)),
        // The log may have output, but its end is not the end of the program.
        EndingKind::Untracked => {
            return match facts.log {
                EngineLog::Unknown if facts.backstop => Decision::InspectLog,
                EngineLog::Readable(fidelity) if facts.backstop => Decision::Replay(fidelity),
                _ => Settled(Finding::of_lost_track()),
            };
        }
        // The engine deletes the log with the container.
        EndingKind::Removed => return Settled(tap_alone(facts, GapReason::Removed)),
        // The connection of a tap may end cleanly when the node stops.
        EndingKind::NodeLost => {
            return Settled(Finding::of_gap(MissingOutput {
                possible: facts.tap.is_some_and(|tap| tap.kind != TapEndKind::Broken),
                ..MissingOutput::certain(GapReason::NodeLost)
            }));
        }
        EndingKind::Exited | EndingKind::Lost => {}
    }
    // Another execution appends to the same log: the log no longer shows where
    // the output of this run ends.
    if facts.started_again {
        return Settled(tap_alone(facts, GapReason::StartedAgain));
    }
    if !facts.backstop {
        return Settled(tap_alone(facts, GapReason::NoBackstop));
    }
    let fidelity = match facts.log {
        EngineLog::Unknown => return Decision::InspectLog,
        EngineLog::Removed => return Settled(tap_alone(facts, GapReason::Removed)),
        EngineLog::Unreadable => return Settled(tap_alone(facts, GapReason::LogUnreadable)),
        EngineLog::Readable(fidelity) => fidelity,
    };
    let seems_whole = facts.tap_seems_whole();
    // Past the limit the capture only counts bytes, so its last records are not
    // the tail of the log. The count is exact, and the log adds nothing. After a
    // resumed log the count is uncertain: a replay counts again.
    if facts.limit_reached && !facts.resumed && seems_whole {
        return Settled(Finding::without_gap(Evidence::Eof));
    }
    // The tail and the number of records are the cheap proof: on a million lines, they
    // take half a second, and a replay takes several. If the wait was interrupted, the engine
    // was out of reach for a time and the tap proves less, so the whole log is read.
    if seems_whole && !facts.interrupted {
        return Decision::CompareTail(fidelity);
    }
    Decision::Replay(fidelity)
}

/// Decides what follows a comparison with the tail of the engine's log.
///
/// A tail that does not agree proves nothing: it may not be readable in time. The
/// replay decides.
pub(super) fn after_tail(agrees: bool, fidelity: LogFidelity) -> Decision {
    match agrees {
        true => Decision::Settled(Finding::without_gap(Evidence::Tail)),
        false => Decision::Replay(fidelity),
    }
}

/// Returns what a replay of the engine's log proves.
///
/// The replay records its own gaps, such as a log that differs.
pub(super) fn after_replay(facts: &EndFacts, end: ReplayEnd) -> Finding {
    if facts.ending == EndingKind::Untracked {
        return Finding::of_lost_track();
    }
    match end {
        ReplayEnd::Complete {
            started_again: false,
        } => Finding::without_gap(Evidence::Replay),
        // The replay may have captured output of the other execution.
        ReplayEnd::Complete {
            started_again: true,
        } => Finding::of_gap(MissingOutput::certain(GapReason::StartedAgain)),
        ReplayEnd::Removed => tap_alone(facts, GapReason::Removed),
        // A replay was needed because the tap alone was in doubt. A whole tap
        // makes the gap only possible.
        ReplayEnd::Refused { reason } => Finding::of_gap(MissingOutput {
            possible: facts.tap_seems_whole(),
            detail: Some(reason),
            ..MissingOutput::certain(GapReason::LogUnreadable)
        }),
    }
}

/// Adds the gaps that depend on the final totals.
pub(super) fn conclude(facts: &EndFacts, totals: &OutputTotals, finding: Finding) -> Finding {
    let Finding { evidence, mut gaps } = finding;
    match (facts.drain, facts.tap) {
        (Some(drain), Some(tap)) => gaps.extend(late_drain(drain, tap.lag, &totals.received)),
        // An engine that reads nothing after the end may lose it also for a run without a tap.
        (Some(DrainLimit { buffer: 0, .. }), None) if evidence != Evidence::NeverStarted => {
            gaps.push(MissingOutput::possible(GapReason::LateDrain));
        }
        _ => {}
    }
    // A reader that is slower than the rotation misses output, and nothing shows it. Such an engine
    // may also report a start too late.
    if facts.log_rotates {
        gaps.push(MissingOutput::possible(GapReason::LogRotated));
    }
    gaps.extend(past_limit(&totals.dropped, evidence));
    // A restarted engine loses output that it had read but not passed on yet. The marker
    // shows that the engine had passed on all of it. The finding for an untracked
    // container has this gap already.
    let untracked = facts.ending == EndingKind::Untracked;
    if facts.engine_restarted && !untracked && !facts.tap_is_proven() {
        gaps.push(MissingOutput::possible(GapReason::EngineRestarted));
    }
    Finding { evidence, gaps }
}

/// Returns when the container ended, by this machine's clock.
///
/// `observed` is when the monitor learned of the end. The engine's clock may be
/// offset from this machine's. The start happened between its request and the
/// engine's answer, which bounds the offset. The duration of the run is measured
/// by the engine's clock alone.
pub(super) fn container_end(
    observed: Instant,
    ending: &Ending,
    start_times: Option<StartTimes>,
) -> ContainerEnd {
    let observed = ContainerEnd::Observed(observed);
    let Ending::Exited(exit) = ending else {
        return observed;
    };
    match (exit.started_at, exit.finished_at, start_times) {
        (Some(started), Some(finished), Some(times)) => {
            let here = started.clamp(times.requested, times.answered.max(times.requested));
            let end = times.at + here.since(times.requested) + finished.since(started);
            ContainerEnd::Reported(end)
        }
        _ => observed,
    }
}

/// Returns what the tap proves where the engine's log cannot be read.
fn tap_alone(facts: &EndFacts, reason: GapReason) -> Finding {
    if facts.tap_seems_whole() {
        return Finding::without_gap(Evidence::Eof);
    }
    Finding::of_gap(MissingOutput {
        // A tap that ended cleanly but too early may have had nothing more.
        possible: facts.tap.is_some_and(|tap| tap.kind != TapEndKind::Broken),
        ..MissingOutput::certain(reason)
    })
}

/// Returns the gaps of an engine that may have cut off output that was read `lag`
/// after the end.
///
/// Docker's daemon before 24.0 reads for 2 s after the exit, and gives each reader,
/// its own log included, a pipe of 1,000,000 bytes. If a reader is slower, the rest
/// is cut off at the same byte for the tap and for the log, so their tails agree,
/// and an end marker follows. Measured with 16 runs of 20,000 lines at once, on 2
/// cores with a load of 12 to 17: some of 160 runs were cut. No comparison shows the
/// cut, so the time and the size of the output decide.
pub(super) fn late_drain(
    drain: DrainLimit,
    lag: Duration,
    received: &PerStream<u64>,
) -> Vec<MissingOutput> {
    if lag + DRAIN_MARGIN < drain.timeout {
        return Vec::new();
    }
    let possible = |stream| MissingOutput {
        stream,
        detail: Some(format!("read {:.1} s after the end", lag.as_secs_f64())),
        ..MissingOutput::possible(GapReason::LateDrain)
    };
    if drain.buffer == 0 {
        return vec![possible(None)];
    }
    Stream::ALL
        .into_iter()
        .filter(|stream| received[*stream] >= drain.buffer)
        .map(|stream| possible(Some(stream)))
        .collect()
}

/// Returns the gaps of output past the limit. Without evidence the number of
/// bytes is unknown.
pub(super) fn past_limit(dropped: &PerStream<u64>, evidence: Evidence) -> Vec<MissingOutput> {
    Stream::ALL
        .into_iter()
        .filter(|stream| dropped[*stream] > 0)
        .map(|stream| MissingOutput {
            stream: Some(stream),
            bytes: (evidence != Evidence::None).then_some(dropped[stream]),
            ..MissingOutput::certain(GapReason::OutputLimit)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::TapEndKind::{Broken, Clean, Marked};
    use super::*;
    use crate::outcome::Exit;
    use crate::timestamp::Timestamp;

    const SECOND: Duration = Duration::from_secs(1);

    const fn tap(kind: TapEndKind, lead: Duration, lag: Duration) -> Option<TapEnd> {
        Some(TapEnd { kind, lead, lag })
    }

    /// Taps that prove that they are whole, if no record of them was lost.
    const MARKED: [Option<TapEnd>; 3] = [
        tap(Marked, Duration::ZERO, Duration::ZERO),
        tap(Marked, Duration::from_secs(60), Duration::ZERO),
        tap(Marked, Duration::ZERO, Duration::from_secs(9)),
    ];
    /// Taps that seem whole.
    const WHOLE: [Option<TapEnd>; 3] = [
        tap(Clean, Duration::ZERO, Duration::ZERO),
        tap(Clean, Duration::from_millis(999), Duration::ZERO),
        tap(Clean, Duration::ZERO, Duration::from_secs(9)),
    ];
    /// Taps that ended cleanly before their container.
    const EARLY: [Option<TapEnd>; 2] = [
        tap(Clean, SECOND, Duration::ZERO),
        tap(Clean, Duration::from_secs(60), Duration::ZERO),
    ];
    /// Taps that broke, and no tap at all.
    const BROKEN: [Option<TapEnd>; 3] = [
        None,
        tap(Broken, Duration::ZERO, Duration::ZERO),
        tap(Broken, SECOND, Duration::ZERO),
    ];

    const NO_MASKS: Masking = Masking {
        count: None,
        is_missing: false,
        has_discarded: false,
        spans_lines: false,
    };
    const LOSSLESS: EngineLog = EngineLog::Readable(LogFidelity::Lossless);
    const LOSSY: EngineLog = EngineLog::Readable(LogFidelity::Utf8Lossy);
    const DRAIN: DrainLimit = DrainLimit::new(Duration::from_secs(2), 1_000_000);

    /// Facts of a run whose tap seems whole and whose log can be read.
    fn facts() -> EndFacts {
        EndFacts {
            ending: EndingKind::Exited,
            tap: WHOLE[0],
            lost_records: false,
            masking: NO_MASKS,
            started_again: false,
            backstop: true,
            log: LOSSLESS,
            limit_reached: false,
            resumed: false,
            interrupted: false,
            engine_restarted: false,
            drain: None,
            log_rotates: false,
        }
    }

    /// Calls `visit` with every combination of the facts.
    fn for_each_combination(mut visit: impl FnMut(&EndFacts)) {
        use EndingKind::{Exited, Lost, NeverStarted, NodeLost, Removed, Untracked};
        let logs = [
            EngineLog::Unknown,
            EngineLog::Removed,
            EngineLog::Unreadable,
            LOSSLESS,
            LOSSY,
        ];
        for ending in [NeverStarted, Exited, Removed, Lost, Untracked, NodeLost] {
            let taps = MARKED.into_iter().chain(WHOLE).chain(EARLY).chain(BROKEN);
            for tap in taps {
                for log in logs {
                    for bits in 0..1 << 8 {
                        let bit = |at: u32| bits >> at & 1 == 1;
                        visit(&EndFacts {
                            ending,
                            tap,
                            lost_records: bit(0),
                            masking: NO_MASKS,
                            started_again: bit(1),
                            backstop: bit(2),
                            log,
                            limit_reached: bit(3),
                            resumed: bit(4),
                            interrupted: bit(5),
                            engine_restarted: bit(6),
                            drain: bit(7).then_some(DRAIN),
                            log_rotates: false,
                        });
                    }
                }
            }
        }
    }

    fn is_proven(f: &EndFacts) -> bool {
        MARKED.contains(&f.tap) && !f.lost_records
    }

    fn seems_whole(f: &EndFacts) -> bool {
        (MARKED.contains(&f.tap) || WHOLE.contains(&f.tap)) && !f.lost_records
    }

    fn ends_cleanly(f: &EndFacts) -> bool {
        !BROKEN.contains(&f.tap)
    }

    /// The container ran, and no marker proves what it printed.
    fn unproven_run(f: &EndFacts) -> bool {
        f.ending != EndingKind::NeverStarted && !is_proven(f)
    }

    /// The container ran and may still exist, and no marker proves what it printed.
    fn ran(f: &EndFacts) -> bool {
        matches!(f.ending, EndingKind::Exited | EndingKind::Lost) && !is_proven(f)
    }

    fn log_counts(f: &EndFacts) -> bool {
        ran(f) && !f.started_again && f.backstop
    }

    fn readable(f: &EndFacts) -> bool {
        log_counts(f) && (f.log == LOSSLESS || f.log == LOSSY)
    }

    fn finding(evidence: Evidence, gap: Option<MissingOutput>) -> Finding {
        Finding {
            evidence,
            gaps: gap.into_iter().collect(),
        }
    }

    fn unproven(reason: GapReason, possible: bool) -> Finding {
        finding(
            Evidence::None,
            Some(MissingOutput {
                reason,
                stream: None,
                possible,
                bytes: None,
                detail: None,
            }),
        )
    }

    /// A manager without the masks reads nothing, so no other fact matters.
    #[test]
    fn missing_masks_are_a_gap_unless_nothing_ran() {
        for has_discarded in [false, true] {
            let masking = Masking {
                is_missing: true,
                has_discarded,
                ..NO_MASKS
            };
            for_each_combination(|facts| {
                let decision = decide(&EndFacts {
                    masking,
                    ..facts.clone()
                });
                let expected = match facts.ending {
                    EndingKind::NeverStarted => Finding::without_gap(Evidence::NeverStarted),
                    _ => Finding::of_gap(MissingOutput {
                        possible: !has_discarded,
                        ..MissingOutput::certain(GapReason::MasksMissing)
                    }),
                };
                assert_eq!(decision, Decision::Settled(expected));
            });
        }
    }

    type Predicate = fn(&EndFacts) -> bool;

    struct Rule {
        name: String,
        applies: Box<dyn Fn(&EndFacts) -> bool>,
        expected: Decision,
    }

    /// The rules for a container that its engine lost track of, if no marker proves what it
    /// printed.
    fn untracked_rules() -> Vec<Rule> {
        let lost = || Decision::Settled(unproven(GapReason::EngineRestarted, true));
        let rows: [(&str, Predicate, Decision); 5] = [
            ("no backstop", |f| !f.backstop, lost()),
            (
                "log removed or unreadable",
                |f| f.backstop && [EngineLog::Removed, EngineLog::Unreadable].contains(&f.log),
                lost(),
            ),
            (
                "log unknown",
                |f| f.backstop && f.log == EngineLog::Unknown,
                Decision::InspectLog,
            ),
            (
                "lossless log",
                |f| f.backstop && f.log == LOSSLESS,
                Decision::Replay(LogFidelity::Lossless),
            ),
            (
                "lossy log",
                |f| f.backstop && f.log == LOSSY,
                Decision::Replay(LogFidelity::Utf8Lossy),
            ),
        ];
        let rules = rows.into_iter().map(|(name, applies, expected)| Rule {
            name: format!("untracked, {name}"),
            applies: Box::new(move |f| {
                f.ending == EndingKind::Untracked && !is_proven(f) && applies(f)
            }),
            expected,
        });
        rules.collect()
    }

    /// The rules, of which exactly one applies to each combination of facts.
    fn rules() -> Vec<Rule> {
        use Decision::Settled;
        let mut rules = untracked_rules();
        let mut rule = |name: &str, applies, expected| {
            rules.push(Rule {
                name: name.to_owned(),
                applies,
                expected,
            });
        };
        let without_gap = |evidence| Settled(finding(evidence, None));

        rule(
            "container never started",
            Box::new(|f| f.ending == EndingKind::NeverStarted),
            without_gap(Evidence::NeverStarted),
        );

        rule(
            "end marker",
            Box::new(|f| f.ending != EndingKind::NeverStarted && is_proven(f)),
            without_gap(Evidence::EndMarker),
        );

        for possible in [true, false] {
            rule(
                &format!("node lost, output possibly missing: {possible}"),
                Box::new(move |f| {
                    f.ending == EndingKind::NodeLost
                        && !is_proven(f)
                        && possible == (f.tap.is_some() && ends_cleanly(f))
                }),
                Settled(unproven(GapReason::NodeLost, possible)),
            );
        }

        // The tap is the only source, for one of five reasons.
        let tap_alone: [(&str, Predicate, GapReason); 5] = [
            (
                "container removed",
                |f| f.ending == EndingKind::Removed && unproven_run(f),
                GapReason::Removed,
            ),
            (
                "started again",
                |f| ran(f) && f.started_again,
                GapReason::StartedAgain,
            ),
            (
                "no backstop",
                |f| ran(f) && !f.started_again && !f.backstop,
                GapReason::NoBackstop,
            ),
            (
                "log removed",
                |f| log_counts(f) && f.log == EngineLog::Removed,
                GapReason::Removed,
            ),
            (
                "log unreadable",
                |f| log_counts(f) && f.log == EngineLog::Unreadable,
                GapReason::LogUnreadable,
            ),
        ];
        for (name, when, reason) in tap_alone {
            rule(
                &format!("{name}, tap seems whole"),
                Box::new(move |f| when(f) && seems_whole(f)),
                without_gap(Evidence::Eof),
            );
            rule(
                &format!("{name}, tap clean but early or lost"),
                Box::new(move |f| when(f) && !seems_whole(f) && ends_cleanly(f)),
                Settled(unproven(reason, true)),
            );
            rule(
                &format!("{name}, tap broken"),
                Box::new(move |f| when(f) && !seems_whole(f) && !ends_cleanly(f)),
                Settled(unproven(reason, false)),
            );
        }

        rule(
            "log unknown",
            Box::new(|f| log_counts(f) && f.log == EngineLog::Unknown),
            Decision::InspectLog,
        );
        let counted = |f: &EndFacts| f.limit_reached && !f.resumed;
        rule(
            "limit reached, tap seems whole",
            Box::new(move |f| readable(f) && seems_whole(f) && counted(f)),
            without_gap(Evidence::Eof),
        );
        for (log, fidelity) in [
            (LOSSLESS, LogFidelity::Lossless),
            (LOSSY, LogFidelity::Utf8Lossy),
        ] {
            let readable = move |f: &EndFacts| readable(f) && f.log == log;
            rule(
                &format!("tap seems whole, {fidelity:?}"),
                Box::new(move |f| readable(f) && seems_whole(f) && !counted(f) && !f.interrupted),
                Decision::CompareTail(fidelity),
            );
            rule(
                &format!("tap seems whole, interrupted, {fidelity:?}"),
                Box::new(move |f| readable(f) && seems_whole(f) && !counted(f) && f.interrupted),
                Decision::Replay(fidelity),
            );
            rule(
                &format!("tap cut, {fidelity:?}"),
                Box::new(move |f| readable(f) && !seems_whole(f)),
                Decision::Replay(fidelity),
            );
        }
        rules
    }

    #[test]
    fn one_rule_decides_each_combination_of_facts() {
        let rules = rules();
        let mut used = vec![0; rules.len()];
        for_each_combination(|facts| {
            let mut applying = (0..rules.len()).filter(|at| (rules[*at].applies)(facts));
            let (Some(at), None) = (applying.next(), applying.next()) else {
                panic!("not exactly one rule applies to {facts:?}");
            };
            let Rule { name, expected, .. } = &rules[at];
            assert_eq!(decide(facts), *expected, "{name}: {facts:?}");
            used[at] += 1;
        });
        for (rule, used) in rules.iter().zip(used) {
            assert!(used > 0, "no combination reaches {}", rule.name);
        }
    }

    #[test]
    fn a_run_without_a_container_is_whole_only_if_it_never_started() {
        let whole = without_container(EndingKind::NeverStarted);
        assert_eq!(whole, finding(Evidence::NeverStarted, None));
        for ending in [
            EndingKind::Exited,
            EndingKind::Removed,
            EndingKind::Lost,
            EndingKind::Untracked,
            EndingKind::NodeLost,
        ] {
            let lost = without_container(ending);
            assert_eq!(
                lost,
                unproven(GapReason::LogUnreadable, false),
                "{ending:?}"
            );
        }
    }

    #[test]
    fn a_tail_that_does_not_agree_leads_to_a_replay() {
        for fidelity in [LogFidelity::Lossless, LogFidelity::Utf8Lossy] {
            assert_eq!(
                after_tail(true, fidelity),
                Decision::Settled(finding(Evidence::Tail, None))
            );
            assert_eq!(after_tail(false, fidelity), Decision::Replay(fidelity));
        }
    }

    #[test]
    fn the_end_of_a_replay_settles_the_evidence() {
        let complete = |started_again| ReplayEnd::Complete { started_again };
        let refused = || ReplayEnd::Refused {
            reason: "no such driver".into(),
        };
        let refusal = |possible| {
            let mut finding = unproven(GapReason::LogUnreadable, possible);
            finding.gaps[0].detail = Some("no such driver".into());
            finding
        };
        for_each_combination(|facts| {
            if facts.ending == EndingKind::Untracked {
                // The log was read, but the program may run on.
                let lost = unproven(GapReason::EngineRestarted, true);
                for end in [
                    complete(false),
                    complete(true),
                    refused(),
                    ReplayEnd::Removed,
                ] {
                    assert_eq!(after_replay(facts, end), lost);
                }
                return;
            }
            let replayed = after_replay(facts, complete(false));
            assert_eq!(replayed, finding(Evidence::Replay, None));
            let replayed = after_replay(facts, complete(true));
            assert_eq!(replayed, unproven(GapReason::StartedAgain, false));
            assert_eq!(after_replay(facts, refused()), refusal(seems_whole(facts)));
            let removed = match (seems_whole(facts), ends_cleanly(facts)) {
                (true, _) => finding(Evidence::Eof, None),
                (false, clean) => unproven(GapReason::Removed, clean),
            };
            assert_eq!(after_replay(facts, ReplayEnd::Removed), removed);
        });
    }

    /// The gaps that the totals add to complete evidence.
    fn added(facts: &EndFacts, totals: &OutputTotals, evidence: Evidence) -> Vec<MissingOutput> {
        conclude(facts, totals, finding(evidence, None)).gaps
    }

    #[test]
    fn a_late_tap_of_a_full_pipe_is_a_possible_gap() {
        let limit = DRAIN.timeout - DRAIN_MARGIN;
        let nearly = Duration::from_millis(1);
        let rows = [
            (Some(DRAIN), tap(Clean, Duration::ZERO, limit), true),
            // The tap of an engine that cuts off output may break, too.
            (Some(DRAIN), tap(Broken, Duration::ZERO, limit), true),
            (
                Some(DRAIN),
                tap(Clean, Duration::ZERO, limit - nearly),
                false,
            ),
            (Some(DRAIN), tap(Clean, limit, Duration::ZERO), false),
            (Some(DRAIN), None, false),
            (None, tap(Clean, Duration::ZERO, limit), false),
        ];
        for (drain, tap, late) in rows {
            for evidence in [Evidence::Tail, Evidence::Replay, Evidence::None] {
                let facts = EndFacts {
                    drain,
                    tap,
                    ..facts()
                };
                let mut totals = OutputTotals::default();
                totals.received.stdout = DRAIN.buffer;
                totals.received.stderr = DRAIN.buffer - 1;
                let expected = late.then(|| MissingOutput {
                    reason: GapReason::LateDrain,
                    stream: Some(Stream::Stdout),
                    possible: true,
                    bytes: None,
                    detail: Some("read 1.8 s after the end".into()),
                });
                let expected: Vec<_> = expected.into_iter().collect();
                assert_eq!(added(&facts, &totals, evidence), expected, "{facts:?}");
            }
        }
    }

    #[test]
    fn an_engine_that_discards_unread_output_leaves_a_possible_gap() {
        for tap in [None, WHOLE[0], MARKED[0]] {
            let drain = Some(DrainLimit::new(Duration::ZERO, 0));
            let facts = EndFacts {
                drain,
                tap,
                ..facts()
            };
            let gaps = added(&facts, &OutputTotals::default(), Evidence::Replay);
            let found: Vec<_> = gaps.iter().map(|gap| (gap.reason, gap.stream)).collect();
            assert_eq!(found, [(GapReason::LateDrain, None)], "{tap:?}");
        }
        let never = added(
            &EndFacts {
                drain: Some(DrainLimit::new(Duration::ZERO, 0)),
                tap: None,
                ..facts()
            },
            &OutputTotals::default(),
            Evidence::NeverStarted,
        );
        assert_eq!(never, []);
    }

    #[test]
    fn a_log_that_rotates_leaves_a_possible_gap() {
        let facts = |ending, tap| EndFacts {
            ending,
            tap,
            log_rotates: true,
            ..facts()
        };
        let endings = [
            EndingKind::NeverStarted,
            EndingKind::Exited,
            EndingKind::Removed,
            EndingKind::Lost,
        ];
        for ending in endings {
            for tap in [None, WHOLE[0], MARKED[0], BROKEN[0]] {
                for evidence in [Evidence::Tail, Evidence::Eof, Evidence::NeverStarted] {
                    let totals = OutputTotals::default();
                    let gaps = added(&facts(ending, tap), &totals, evidence);
                    let found = MissingOutput::possible(GapReason::LogRotated);
                    assert_eq!(gaps, [found], "{ending:?} {tap:?}");
                }
            }
        }
    }

    #[test]
    fn output_past_the_limit_is_a_gap_per_stream() {
        let mut totals = OutputTotals::default();
        totals.dropped.stderr = 7;
        totals.dropped.tty = 9;
        let rows = [
            (Evidence::Tail, true),
            (Evidence::Replay, true),
            (Evidence::Eof, true),
            (Evidence::None, false),
        ];
        for (evidence, counted) in rows {
            let gap = |stream, bytes: u64| MissingOutput {
                reason: GapReason::OutputLimit,
                stream: Some(stream),
                possible: false,
                bytes: counted.then_some(bytes),
                detail: None,
            };
            let expected = vec![gap(Stream::Stderr, 7), gap(Stream::Tty, 9)];
            assert_eq!(added(&facts(), &totals, evidence), expected);
        }
    }

    #[test]
    fn a_restarted_engine_is_a_possible_gap() {
        let facts = EndFacts {
            engine_restarted: true,
            ..facts()
        };
        let totals = OutputTotals::default();
        let expected = unproven(GapReason::EngineRestarted, true).gaps;
        assert_eq!(added(&facts, &totals, Evidence::Tail), expected);

        let marked = EndFacts {
            tap: MARKED[0],
            ..facts.clone()
        };
        assert_eq!(added(&marked, &totals, Evidence::EndMarker), []);

        // The finding for an untracked container has this gap already.
        let untracked = EndFacts {
            ending: EndingKind::Untracked,
            ..facts
        };
        assert_eq!(added(&untracked, &totals, Evidence::None), []);
    }

    #[test]
    fn the_gaps_of_a_finding_keep_their_order() {
        let facts = EndFacts {
            engine_restarted: true,
            drain: Some(DRAIN),
            tap: tap(Broken, Duration::ZERO, DRAIN.timeout),
            ..facts()
        };
        let mut totals = OutputTotals::default();
        totals.received.tty = DRAIN.buffer;
        totals.dropped.tty = 1;
        let concluded = conclude(&facts, &totals, unproven(GapReason::Removed, false));
        assert_eq!(concluded.evidence, Evidence::None);
        let reasons: Vec<_> = concluded.gaps.iter().map(|gap| gap.reason).collect();
        let expected = [
            GapReason::Removed,
            GapReason::LateDrain,
            GapReason::OutputLimit,
            GapReason::EngineRestarted,
        ];
        assert_eq!(reasons, expected);
    }

    #[test]
    fn the_engine_clock_only_measures_the_duration() {
        let at = Instant::now();
        let learned = at + 60 * SECOND;
        let observed = ContainerEnd::Observed(learned);
        let reported = |seconds: u32| ContainerEnd::Reported(at + seconds * SECOND);
        let requested = Timestamp::now();
        let after = |seconds: u32| requested.saturating_add(seconds * SECOND);
        let start_times = Some(StartTimes {
            at,
            requested,
            answered: after(3),
        });
        let exited = |started_at, finished_at| {
            Ending::Exited(Exit {
                started_at,
                finished_at,
                ..Exit::default()
            })
        };
        let rows = [
            // The clocks agree: started 1 s after the request, and ran for 9 s.
            (
                exited(Some(after(1)), Some(after(10))),
                start_times,
                reported(10),
            ),
            // The engine's clock is ahead, so the start was at the answer.
            (
                exited(Some(after(100)), Some(after(109))),
                start_times,
                reported(12),
            ),
            // The engine's clock ran backwards: the duration is zero.
            (
                exited(Some(after(1)), Some(requested)),
                start_times,
                reported(1),
            ),
            (exited(Some(after(1)), Some(after(10))), None, observed),
            (exited(None, Some(after(10))), start_times, observed),
            (exited(Some(after(1)), None), start_times, observed),
            (Ending::Removed { code: Some(0) }, start_times, observed),
        ];
        for (ending, start_times, expected) in rows {
            assert_eq!(
                container_end(learned, &ending, start_times),
                expected,
                "{ending:?}"
            );
        }
    }

    #[test]
    fn the_end_of_a_tap_is_relative_to_its_container() {
        let at = Instant::now();
        let later = at + SECOND;
        let (early_end, late_end) = (ContainerEnd::Reported(at), ContainerEnd::Reported(later));
        let lateness = 9 * SECOND;
        assert_eq!(
            Some(TapEnd::new(Clean, at, late_end, lateness)),
            tap(Clean, SECOND, Duration::ZERO)
        );
        assert_eq!(
            Some(TapEnd::new(Broken, later, early_end, lateness)),
            tap(Broken, Duration::ZERO, SECOND)
        );
    }

    #[test]
    fn an_end_that_the_engine_does_not_time_may_be_late() {
        let at = Instant::now();
        let lag = |end, lateness| TapEnd::new(Marked, at + SECOND, end, lateness).lag;
        assert_eq!(
            lag(ContainerEnd::Observed(at + SECOND), 4 * SECOND),
            4 * SECOND
        );
        assert_eq!(lag(ContainerEnd::Observed(at), Duration::ZERO), SECOND);
    }
}

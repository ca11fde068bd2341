//! Contradictions between the seal of a file and the records before it.

use crate::audit::line::Line;
use crate::audit::{Event, Started};
use crate::outcome::{Ending, Evidence, Seal, Verdict};
use crate::spec::ContainerId;

/// The records that a seal must agree with, by the numbers of their lines.
#[derive(Debug, Clone, Default)]
pub(crate) struct SealBasis {
    /// The first gap.
    gap: Option<u64>,
    /// The number of gaps that only a later version can read.
    pub(crate) unknown_gaps: u64,
    /// The first output with bytes that the engine's log may have replaced.
    lossy: Option<u64>,
    /// The last start of the container.
    started: Option<StartedLine>,
}

#[derive(Debug, Clone)]
struct StartedLine {
    number: u64,
    /// `None` if only a later version can read the record.
    record: Option<Box<Started>>,
}

impl SealBasis {
    /// Adds the record in line `number`.
    #[inline]
    pub(super) fn add(&mut self, number: u64, line: &Line<'_>) {
        match line {
            // Nearly all records.
            Line::Output(output) if !output.lossy => {}
            _ => self.add_rare(number, line),
        }
    }

    fn add_rare(&mut self, number: u64, line: &Line<'_>) {
        match line {
            Line::Output(_) => self.add_lossy(number),
            Line::Event(event) => self.add_event(number, event),
            Line::Unknown(kind) => match &**kind {
                "gap" => {
                    self.gap.get_or_insert(number);
                    self.unknown_gaps += 1;
                }
                "started" => {
                    let record = None;
                    self.started = Some(StartedLine { number, record });
                }
                _ => {}
            },
        }
    }

    /// Adds output with the flag `lossy` in line `number`.
    pub(crate) fn add_lossy(&mut self, number: u64) {
        self.lossy.get_or_insert(number);
    }

    /// Adds a record other than output in line `number`.
    pub(crate) fn add_event(&mut self, number: u64, event: &Event) {
        match event {
            Event::Gap(_) => {
                self.gap.get_or_insert(number);
            }
            Event::Started(started) => {
                let record = Some(started.clone());
                self.started = Some(StartedLine { number, record });
            }
            _ => {}
        }
    }

    /// Describes the first contradiction to a seal whose counts match.
    pub(crate) fn contradiction(&self, seal: &Seal) -> Option<String> {
        self.wrong_verdict(seal)
            .or_else(|| self.wrong_ending(seal))
            .or_else(|| self.wrong_container(seal))
    }

    fn wrong_verdict(&self, seal: &Seal) -> Option<String> {
        let expected = Verdict::of(seal.gaps, self.lossy.is_some(), seal.evidence);
        if seal.verdict == expected {
            return None;
        }
        let reason = match (expected, self.gap, self.lossy) {
            (Verdict::Gap, Some(line), _) => format!("line {line} is a gap"),
            (Verdict::Lossy, _, Some(line)) => format!("line {line} is lossy"),
            (Verdict::Unproven, ..) => format!("its evidence is {}", seal.evidence),
            _ => "no other line supports that".to_owned(),
        };
        Some(format!(
            "the end record has the verdict {}, but {reason}, so the verdict is {expected}",
            seal.verdict
        ))
    }

    fn wrong_ending(&self, seal: &Seal) -> Option<String> {
        let never_started = seal.exit.never_started();
        let is_supported = match seal.evidence {
            Evidence::NeverStarted => never_started,
            Evidence::None => true,
            Evidence::EndMarker | Evidence::Tail | Evidence::Replay | Evidence::Eof => {
                !never_started
            }
        };
        let reason = match &self.started {
            _ if !is_supported => format!("its evidence is {}", seal.evidence),
            _ if never_started && seal.records > 0 => "the file has output".to_owned(),
            Some(line) if never_started => {
                format!("line {} says that the container started", line.number)
            }
            None if seal.exit.proves_start() => {
                "no line says that the container started".to_owned()
            }
            _ => return None,
        };
        let ending = match seal.exit {
            Ending::Exited(_) => "exited",
            Ending::FailedToStart { .. } => "failed to start",
            Ending::NotCreated { .. } => "was not created",
            Ending::Removed { .. } => "was removed",
            Ending::Lost { .. } => "was lost",
        };
        Some(format!(
            "the end record says that the container {ending}, but {reason}"
        ))
    }

    fn wrong_container(&self, seal: &Seal) -> Option<String> {
        let Some(StartedLine { number, record }) = &self.started else {
            let image = seal.image_digest.as_ref()?;
            return Some(format!(
                "the end record has the image {image}, but no line says that the container started"
            ));
        };
        let started = record.as_ref()?;
        let sealed = seal.container.as_ref();
        let containers = (
            sealed.map(ContainerId::as_str),
            Some(started.container.as_str()),
        );
        let images = (
            seal.image_digest.as_deref(),
            started.image_digest.as_deref(),
        );
        for (noun, (sealed, started)) in [("container", containers), ("image", images)] {
            if sealed != started {
                return Some(format!(
                    "the end record has the {noun} {}, but line {number} has {}",
                    sealed.unwrap_or("none"),
                    started.unwrap_or("none")
                ));
            }
        }
        None
    }
}

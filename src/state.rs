//! The life of a run, as a pure function of what happened.

use crate::outcome::Ending;
use crate::spec::ContainerId;
use crate::timestamp::Timestamp;

/// Where a run is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It is written down; the engine may not have been asked yet.
    Intended,
    /// The engine has made its container.
    Created {
        /// The container.
        container: ContainerId,
    },
    /// Its container runs.
    Running {
        /// The container.
        container: ContainerId,
        /// When it started, by the engine's clock.
        started_at: Option<Timestamp>,
    },
    /// It has ended: nothing changes this any more.
    Ended {
        /// The container, where one was made.
        container: Option<ContainerId>,
        /// How it ended.
        ending: Ending,
    },
}

/// What can happen to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The engine has made the container.
    Created(ContainerId),
    /// The engine has started the container.
    Started(Option<Timestamp>),
    /// The run has ended.
    Ended(Ending),
}

impl State {
    /// The container, where one was made.
    pub fn container(&self) -> Option<&ContainerId> {
        match self {
            Self::Intended => None,
            Self::Created { container } | Self::Running { container, .. } => Some(container),
            Self::Ended { container, .. } => container.as_ref(),
        }
    }

    /// How it ended, if it has.
    pub fn ending(&self) -> Option<&Ending> {
        match self {
            Self::Ended { ending, .. } => Some(ending),
            _ => None,
        }
    }

    /// A word for it: `intended`, `created`, `running`, `exited`, `failed to start`,
    /// `not created`, `removed` or `lost`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Created { .. } => "created",
            Self::Running { .. } => "running",
            Self::Ended { ending, .. } => match ending {
                Ending::Exited(_) => "exited",
                Ending::FailedToStart { .. } => "failed to start",
                Ending::NotCreated { .. } => "not created",
                Ending::Removed { .. } => "removed",
                Ending::Lost { .. } => "lost",
            },
        }
    }

    /// The state after `event`. A terminal state stays what it is, and an event that does not
    /// follow from a state leaves it as it was.
    #[must_use]
    pub(crate) fn after(self, event: Event) -> Self {
        match (self, event) {
            (ended @ Self::Ended { .. }, _) => ended,
            (Self::Intended, Event::Created(container)) => Self::Created { container },
            (Self::Created { container }, Event::Started(started_at)) => Self::Running {
                container,
                started_at,
            },
            (
                Self::Running {
                    container,
                    started_at: None,
                },
                Event::Started(started_at),
            ) => Self::Running {
                container,
                started_at,
            },
            (state, Event::Ended(ending)) => Self::Ended {
                container: state.container().cloned(),
                ending,
            },
            (state, _) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Exit;

    fn events() -> Vec<Event> {
        vec![
            Event::Created(ContainerId::new("c")),
            Event::Created(ContainerId::new("other")),
            Event::Started(None),
            Event::Started(Some(Timestamp::now())),
            Event::Ended(Ending::Exited(Exit::with_code(7))),
            Event::Ended(Ending::Exited(Exit::with_code(137))),
            Event::Ended(Ending::Removed { code: None }),
            Event::Ended(Ending::Lost {
                reason: "gone".into(),
            }),
        ]
    }

    /// Invariant 6: over every sequence of four events.
    #[test]
    fn a_terminal_state_never_changes() {
        let events = events();
        let mut states = vec![State::Intended];
        for _ in 0..4 {
            let mut next = Vec::new();
            for state in &states {
                for event in &events {
                    let after = state.clone().after(event.clone());
                    if state.ending().is_some() {
                        assert_eq!(&after, state, "{event:?} changed a terminal state");
                    }
                    next.push(after);
                }
            }
            states = next;
        }
        assert!(states.iter().any(|state| state.ending().is_some()));
    }

    #[test]
    fn a_run_is_created_then_started_then_ended_and_keeps_its_container() {
        let state = State::Intended
            .after(Event::Started(None))
            .after(Event::Created(ContainerId::new("c")));
        assert_eq!(state.word(), "created");
        let state = state.after(Event::Started(None));
        assert_eq!(state.word(), "running");
        let state = state.after(Event::Ended(Ending::Exited(Exit::with_code(0))));
        assert_eq!(state.word(), "exited");
        assert_eq!(state.container(), Some(&ContainerId::new("c")));
    }
}

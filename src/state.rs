//! The state of a run, as a pure function of its transitions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::outcome::Ending;
use crate::spec::ContainerId;
use crate::timestamp::Timestamp;

/// The state of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// The run is on disk. The engine may not have been asked for a container yet.
    Intended,
    /// The engine has created the container.
    Created {
        /// The container.
        container: ContainerId,
    },
    /// The container is running.
    Running {
        /// The container.
        container: ContainerId,
        /// The start time, by the engine's clock.
        started_at: Option<Timestamp>,
    },
    /// The run has ended. This state is final.
    Ended {
        /// The container, if one was created.
        container: Option<ContainerId>,
        /// The ending.
        ending: Ending,
    },
}

/// The status of a run: a [`State`] without its data.
///
/// `Display`, `FromStr` and serde use the same words, such as `failed to start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RunStatus {
    /// The run is on disk. The engine may not have been asked for a container yet.
    Intended,
    /// The engine has created the container.
    Created,
    /// The container is running.
    Running,
    /// The container has exited.
    Exited,
    /// The container could not be started.
    #[serde(rename = "failed to start")]
    FailedToStart,
    /// The container could not be created.
    #[serde(rename = "not created")]
    NotCreated,
    /// The container was removed externally while it ran.
    Removed,
    /// The end of the container could not be observed.
    Lost,
    /// The files of the run are damaged.
    Damaged,
}

impl RunStatus {
    const ALL: [Self; 9] = [
        Self::Intended,
        Self::Created,
        Self::Running,
        Self::Exited,
        Self::FailedToStart,
        Self::NotCreated,
        Self::Removed,
        Self::Lost,
        Self::Damaged,
    ];

    /// Returns the text of the status, as in `Display`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::FailedToStart => "failed to start",
            Self::NotCreated => "not created",
            Self::Removed => "removed",
            Self::Lost => "lost",
            Self::Damaged => "damaged",
        }
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The error of parsing a [`RunStatus`].
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot parse {0:?} as the status of a run")]
pub struct ParseRunStatusError(String);

impl fmt::Debug for ParseRunStatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RunStatus {
    type Err = ParseRunStatusError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| ParseRunStatusError(text.to_owned()))
    }
}

impl From<&Ending> for RunStatus {
    fn from(ending: &Ending) -> Self {
        match ending {
            Ending::Exited(_) => Self::Exited,
            Ending::FailedToStart { .. } => Self::FailedToStart,
            Ending::NotCreated { .. } => Self::NotCreated,
            Ending::Removed { .. } => Self::Removed,
            Ending::Lost { .. } => Self::Lost,
        }
    }
}

/// A transition of a run's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transition {
    /// The engine has created the container.
    Created(ContainerId),
    /// The engine has started the container.
    Started(Option<Timestamp>),
    /// The run has ended.
    Ended(Ending),
}

impl State {
    /// Returns the container, if one was created.
    pub fn container(&self) -> Option<&ContainerId> {
        match self {
            Self::Intended => None,
            Self::Created { container } | Self::Running { container, .. } => Some(container),
            Self::Ended { container, .. } => container.as_ref(),
        }
    }

    /// Returns the ending, if the run has ended.
    pub fn ending(&self) -> Option<&Ending> {
        match self {
            Self::Ended { ending, .. } => Some(ending),
            _ => None,
        }
    }

    /// Returns the status: the state without its data.
    pub fn status(&self) -> RunStatus {
        match self {
            Self::Intended => RunStatus::Intended,
            Self::Created { .. } => RunStatus::Created,
            Self::Running { .. } => RunStatus::Running,
            Self::Ended { ending, .. } => RunStatus::from(ending),
        }
    }

    /// Returns the state after `transition`.
    ///
    /// A terminal state never changes. A transition that is invalid in a state is ignored.
    #[must_use]
    pub(crate) fn after(self, transition: Transition) -> Self {
        match (self, transition) {
            (ended @ Self::Ended { .. }, _) => ended,
            (Self::Intended, Transition::Created(container)) => Self::Created { container },
            (Self::Created { container }, Transition::Started(started_at)) => Self::Running {
                container,
                started_at,
            },
            (
                Self::Running {
                    container,
                    started_at: None,
                },
                Transition::Started(started_at),
            ) => Self::Running {
                container,
                started_at,
            },
            (state, Transition::Ended(ending)) => Self::Ended {
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

    fn transitions() -> Vec<Transition> {
        vec![
            Transition::Created(ContainerId::new("c")),
            Transition::Created(ContainerId::new("other")),
            Transition::Started(None),
            Transition::Started(Some(Timestamp::now())),
            Transition::Ended(Ending::Exited(Exit::with_code(7))),
            Transition::Ended(Ending::Exited(Exit::with_code(137))),
            Transition::Ended(Ending::Removed { code: None }),
            Transition::Ended(Ending::Lost {
                reason: "gone".into(),
            }),
        ]
    }

    /// Invariant 6, for every sequence of four transitions.
    #[test]
    fn a_terminal_state_never_changes() {
        let transitions = transitions();
        let mut states = vec![State::Intended];
        for _ in 0..4 {
            let mut next = Vec::new();
            for state in &states {
                for transition in &transitions {
                    let after = state.clone().after(transition.clone());
                    if state.ending().is_some() {
                        assert_eq!(&after, state, "{transition:?} changed a terminal state");
                    }
                    next.push(after);
                }
            }
            states = next;
        }
        assert!(states.iter().any(|state| state.ending().is_some()));
    }

    #[test]
    fn a_run_keeps_its_container_from_creation_to_end() {
        let state = State::Intended
            .after(Transition::Started(None))
            .after(Transition::Created(ContainerId::new("c")));
        assert_eq!(state.status(), RunStatus::Created);
        let state = state.after(Transition::Started(None));
        assert_eq!(state.status(), RunStatus::Running);
        let state = state.after(Transition::Ended(Ending::Exited(Exit::with_code(0))));
        assert_eq!(state.status(), RunStatus::Exited);
        assert_eq!(state.container(), Some(&ContainerId::new("c")));
    }

    #[test]
    fn display_from_str_and_serde_agree() {
        for status in RunStatus::ALL {
            assert_eq!(status.to_string().parse(), Ok(status));
            let json = serde_json::to_value(status).unwrap();
            assert_eq!(json, status.as_str());
            assert_eq!(serde_json::from_value::<RunStatus>(json).unwrap(), status);
        }
        let error = "gone".parse::<RunStatus>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot parse \"gone\" as the status of a run"
        );
    }
}

//! What the engine remembers of events: in memory alone, so what it remembers of a start tells
//! whether it is the same process that started the container.

use serde::Deserialize;

use super::errors::Failure;
use super::inspect::senseless;
use crate::ContainerId;
use crate::runtime::Continuity;

/// How many events an engine remembers.
const MOST: usize = 256;

/// An item of the answer to `GET /events`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default, rename = "Type")]
    kind: String,
    #[serde(default)]
    action: String,
    #[serde(default)]
    actor: Actor,
}

#[derive(Debug, Default, Deserialize)]
struct Actor {
    #[serde(default, rename = "ID")]
    id: String,
}

/// What all the events that an engine remembers say of a container that it has started.
pub(super) fn continuity(json: &[u8], container: &ContainerId) -> Result<Continuity, Failure> {
    let mut count = 0;
    for event in serde_json::Deserializer::from_slice(json).into_iter() {
        let event: Event = event.map_err(senseless)?;
        if event.kind == "container"
            && event.action == "start"
            && event.actor.id == container.as_str()
        {
            return Ok(Continuity::Unbroken);
        }
        count += 1;
    }
    // One that remembers fewer than it could has forgotten none.
    Ok(match count {
        MOST.. => Continuity::Unknown,
        _ => Continuity::Broken,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(action: &str, id: &str) -> String {
        json!({"status": action, "id": id, "Type": "container", "Action": action,
            "Actor": {"ID": id, "Attributes": {"image": "x"}}, "time": 1, "timeNano": 1})
        .to_string()
            + "\n"
    }

    fn told(events: &str) -> Continuity {
        continuity(events.as_bytes(), &ContainerId::new("mine")).unwrap()
    }

    #[test]
    fn a_start_that_is_remembered_shows_that_the_engine_is_the_same() {
        let others = event("start", "other").repeat(300);
        assert_eq!(told(&event("start", "mine")), Continuity::Unbroken);
        assert_eq!(
            told(&(others + &event("start", "mine"))),
            Continuity::Unbroken
        );
    }

    #[test]
    fn a_start_that_is_not_remembered_was_another_process_or_is_forgotten() {
        assert_eq!(told(""), Continuity::Broken);
        assert_eq!(told(&event("die", "mine")), Continuity::Broken);
        let others = event("start", "other");
        assert_eq!(told(&others.repeat(MOST - 1)), Continuity::Broken);
        assert_eq!(told(&others.repeat(MOST)), Continuity::Unknown);
        assert!(continuity(b"<html>", &ContainerId::new("mine")).is_err());
    }
}

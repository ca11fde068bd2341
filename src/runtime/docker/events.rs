//! What the engine remembers of events: in memory alone, so what it remembers of a start tells
//! whether it is the same process that started the container.

use serde::Deserialize;
use serde_json::Value;

use super::errors::Failure;
use super::inspect::senseless;
use crate::runtime::Continuity;
use crate::spec::ContainerId;

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

/// What the events that an engine remembers say of a container that it has started: all of them,
/// but for what is newer than the request.
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

/// What they say where the first answer was [`Continuity::Broken`], and they were asked for again.
///
/// Events that the first one left out for being newer make it short where no room is left, too, and
/// the start may have gone for them. The second one has them; and where it begins as the first one
/// does, nothing was forgotten in between.
pub(super) fn confirmed(
    first: &[u8],
    again: &[u8],
    container: &ContainerId,
) -> Result<Continuity, Failure> {
    let told = continuity(again, container)?;
    let forgotten = match oldest(first)? {
        Some(event) => oldest(again)? != Some(event),
        None => false,
    };
    Ok(match told {
        Continuity::Broken if forgotten => Continuity::Unknown,
        told => told,
    })
}

fn oldest(json: &[u8]) -> Result<Option<Value>, Failure> {
    let mut events = serde_json::Deserializer::from_slice(json).into_iter();
    events.next().transpose().map_err(senseless)
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

    #[test]
    fn what_a_request_left_out_for_being_newer_may_have_taken_the_place_of_a_start() {
        let mine = ContainerId::new("mine");
        let told = |first: &str, again: &str| {
            confirmed(first.as_bytes(), again.as_bytes(), &mine).unwrap()
        };
        let others = event("die", "other").repeat(MOST - 2);
        let first = event("create", "other") + &others;
        assert_eq!(told(&first, &first), Continuity::Broken);
        let more = first.clone() + &event("die", "other");
        assert_eq!(told(&first, &more), Continuity::Unknown);
        assert_eq!(told(&first, &others), Continuity::Unknown);
        assert_eq!(told(&first, ""), Continuity::Unknown);
        assert_eq!(told("", &others), Continuity::Broken);
        let late = others + &event("start", "mine");
        assert_eq!(told(&first, &late), Continuity::Unbroken);
    }
}

//! The guarantees that the brokers lack, though the topics work. They are reported and are no failure. A cluster with
//! one broker gets one note, not one for each topic.

use std::collections::{BTreeMap, HashMap};

/// The minimum number of replicas with which a record survives the loss of one broker while another is down.
const REPLICAS: i32 = 3;
/// Fewest replicas that must acknowledge a record, for it to survive the loss of one broker.
const MIN_INSYNC_REPLICAS: i32 = 2;

pub(super) const OFFSETS_RETENTION: &str = "offsets.retention.minutes";

/// The replication and retention of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keeping {
    pub replicas: i32,
    pub min_insync_replicas: Option<i32>,
    /// The retention, unless it is unknown or unlimited.
    pub retention_ms: Option<i64>,
}

impl Keeping {
    pub(super) fn new(replicas: i32, settings: &HashMap<String, String>) -> Self {
        let number = |name: &str| settings.get(name).and_then(|value| value.parse().ok());
        Self {
            replicas,
            min_insync_replicas: number("min.insync.replicas").and_then(|number| i32::try_from(number).ok()),
            retention_ms: number("retention.ms").filter(|retention| *retention >= 0),
        }
    }
}

/// Returns the notes. `topics` are by name, `events` is the one that the consumer group reads, `brokers` are the
/// settings of each broker.
pub(super) fn notes(
    events: &str,
    topics: &BTreeMap<&str, Keeping>,
    brokers: &[HashMap<String, String>],
) -> Vec<String> {
    let offsets = topics.get(events).and_then(|keeping| offsets(events, keeping.retention_ms, brokers));
    copies(topics, brokers.len()).into_iter().chain(offsets).collect()
}

fn copies(topics: &BTreeMap<&str, Keeping>, brokers: usize) -> Option<String> {
    if brokers == 1 {
        return Some("one broker has the only copy of each record".to_owned());
    }
    let few: Vec<String> = topics
        .iter()
        .filter(|(_, keeping)| {
            keeping.replicas < REPLICAS
                || keeping.min_insync_replicas.is_some_and(|number| number < MIN_INSYNC_REPLICAS)
        })
        .map(|(name, keeping)| {
            let in_sync = keeping.min_insync_replicas.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
            format!("{name} {}/{in_sync}", keeping.replicas)
        })
        .collect();
    (!few.is_empty()).then(|| {
        format!(
            "replication factor/min.insync.replicas is below {REPLICAS}/{MIN_INSYNC_REPLICAS}, so the loss of a broker can \
             lose acknowledged records: {}",
            few.join(", ")
        )
    })
}

/// Compares the retentions of offsets and events. A group without consumers loses its offsets after the shorter time,
/// and then starts at the oldest event.
fn offsets(events: &str, retention_ms: Option<i64>, brokers: &[HashMap<String, String>]) -> Option<String> {
    let minutes = brokers.iter().filter_map(|settings| settings.get(OFFSETS_RETENTION)?.parse::<i64>().ok()).min()?;
    let kept = retention_ms.unwrap_or(i64::MAX);
    (minutes.saturating_mul(60_000) < kept).then(|| {
        format!(
            "{OFFSETS_RETENTION} is {minutes}, less than {events} keeps events: consumers that stop for longer \
             notify every user again"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes_of(brokers: usize, replicas: i32, in_sync: i32, minutes: &str) -> Vec<String> {
        let keeping =
            Keeping { replicas, min_insync_replicas: Some(in_sync), retention_ms: Some(30 * 24 * 60 * 60 * 1000) };
        let topics = BTreeMap::from([("orders", keeping), ("orders.relay", keeping)]);
        let broker = HashMap::from([(OFFSETS_RETENTION.to_owned(), minutes.to_owned())]);
        notes("orders", &topics, &vec![broker; brokers])
    }

    #[test]
    fn safe_brokers_get_no_note() {
        assert_eq!(notes_of(3, 3, 2, "86400"), [""; 0]);
    }

    #[test]
    fn a_single_broker_is_one_note() {
        assert_eq!(notes_of(1, 1, 1, "86400"), ["one broker has the only copy of each record"]);
    }

    #[test]
    fn topics_with_too_few_replicas_are_one_note() {
        for (replicas, in_sync) in [(2, 2), (3, 1)] {
            let found = notes_of(3, replicas, in_sync, "86400");
            let named = format!("orders {replicas}/{in_sync}, orders.relay {replicas}/{in_sync}");
            assert!(found.len() == 1 && found[0].ends_with(&named), "{found:?}");
        }
    }

    #[test]
    fn offsets_that_expire_before_the_events_are_a_note() {
        assert_eq!(notes_of(3, 3, 2, "43200"), [""; 0]);
        let found = notes_of(3, 3, 2, "10080");
        assert!(found.len() == 1 && found[0].starts_with("offsets.retention.minutes is 10080, less than"), "{found:?}");
        assert_eq!(notes_of(3, 3, 2, "unknown"), [""; 0]);
    }
}

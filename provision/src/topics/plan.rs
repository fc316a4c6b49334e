//! The wanted form of each topic and the reasons for it, and the comparison with the topic that was found. Pure.

use std::collections::HashMap;

use super::{Difference, Error, Planned, PlannedSetting, Wanted};

/// The plan for the creation of a topic, and for its comparison if it exists.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub name: String,
    pub partitions: i32,
    pub replication_factor: Option<i32>,
    pub settings: Vec<Setting>,
    count: Count,
}

/// The form of a topic according to the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub partitions: i32,
    /// The minimum number of replicas of a partition.
    pub replicas: i32,
    /// True if every partition has a leader.
    pub led: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub name: &'static str,
    pub value: String,
    rule: Rule,
}

/// The accepted numbers of partitions.
#[derive(Clone, Copy, Debug)]
enum Count {
    /// The pipeline works with any number, but a difference from the configured one is reported.
    AsConfigured,
    /// The pipeline does not work with fewer.
    AtLeast(i32),
    Any,
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    Same,
    /// A minimum, where -1 means no limit.
    AtLeast,
}

impl Plan {
    pub(super) fn orders(wanted: &Wanted<'_>) -> Self {
        Self::kept(wanted, &wanted.topics.orders, wanted.partitions, Count::AsConfigured)
    }

    /// Plans the topics that depend on the events' topic, which has `orders` partitions.
    pub(super) fn others(wanted: &Wanted<'_>, orders: i32) -> [Self; 2] {
        // A notification goes to the partition number of its event.
        let notifications = Self::kept(wanted, &wanted.topics.notifications, orders, Count::AtLeast(orders));

        // One partition: dead letters are few, a list of them is in the order in which they failed, and each names its
        // source partition, so that a replay keeps the order there. Larger than an event can be, because the broker's
        // limit is per batch, and a dead letter is the event and more.
        let mut dead_letters = Self::kept(wanted, &wanted.topics.dead_letters, 1, Count::Any);
        dead_letters.settings.push(Setting::at_least("max.message.bytes", "2097152"));
        [notifications, dead_letters]
    }

    /// Plans the relay topic: one partition for each shard, and one more for the owner of the topics.
    pub(super) fn relay(wanted: &Wanted<'_>) -> Self {
        Self {
            name: wanted.topics.relay.clone(),
            partitions: wanted.shards + 1,
            replication_factor: wanted.replication_factor,
            settings: vec![
                // Only the last record of each partition counts. The active segment is never compacted, so with the
                // default of 1 GiB a partition would keep that much obsolete data.
                Setting::same("cleanup.policy", "compact"),
                Setting::same("segment.bytes", "16777216"),
                // A relay stops if its progress record does not fit. The record lists the ids of up to 4,000 events, 39
                // bytes each, and random ids compress badly.
                Setting::at_least("max.message.bytes", "262144"),
            ],
            count: Count::AtLeast(wanted.shards),
        }
    }

    /// Plans a topic that keeps everything for the whole retention, whatever the brokers' defaults are.
    fn kept(wanted: &Wanted<'_>, name: &str, partitions: i32, count: Count) -> Self {
        Self {
            name: name.to_owned(),
            partitions,
            replication_factor: wanted.replication_factor,
            settings: vec![
                Setting::same("cleanup.policy", "delete"),
                Setting::at_least("retention.ms", &wanted.retention.as_millis().to_string()),
                Setting::at_least("retention.bytes", "-1"),
            ],
            count,
        }
    }

    /// Returns the differences of an existing topic, or an error if the pipeline cannot work with it.
    pub(super) fn judge(&self, shape: &Shape, found: &HashMap<String, String>) -> Result<Vec<Difference>, Error> {
        let difference = |what, found: &dyn ToString, expected: &dyn ToString| Difference {
            topic: self.name.clone(),
            what,
            found: found.to_string(),
            expected: expected.to_string(),
        };
        let mut differences = Vec::new();
        let partitions = difference("partitions", &shape.partitions, &self.partitions);
        match self.count {
            Count::AtLeast(least) if shape.partitions < least => {
                return Err(Error::TooFewPartitions(Difference { expected: least.to_string(), ..partitions }));
            }
            Count::AsConfigured if shape.partitions != self.partitions => differences.push(partitions),
            _ => {}
        }
        if let Some(expected) = self.replication_factor
            && shape.replicas != expected
        {
            differences.push(difference("replication.factor", &shape.replicas, &expected));
        }
        for setting in &self.settings {
            let found = found.get(setting.name).map_or("unknown", String::as_str);
            if !setting.is_met_by(found) {
                differences.push(difference(setting.name, &found, &setting.value));
            }
        }
        Ok(differences)
    }
}

impl From<Plan> for Planned {
    fn from(plan: Plan) -> Self {
        let settings = plan.settings.into_iter().map(|Setting { name, value, rule }| PlannedSetting {
            name,
            value,
            is_minimum: matches!(rule, Rule::AtLeast),
        });
        Self { name: plan.name, partitions: plan.partitions, settings: settings.collect() }
    }
}

impl Setting {
    fn same(name: &'static str, value: &str) -> Self {
        Self { name, value: value.to_string(), rule: Rule::Same }
    }

    fn at_least(name: &'static str, value: &str) -> Self {
        Self { name, value: value.to_string(), rule: Rule::AtLeast }
    }

    fn is_met_by(&self, found: &str) -> bool {
        let amount = |text: &str| match text.parse::<i64>() {
            Ok(-1) => Some(i64::MAX),
            other => other.ok(),
        };
        match self.rule {
            Rule::Same => self.value == found,
            Rule::AtLeast => amount(found) >= amount(&self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use orderflow_core::Topics;

    use super::*;
    use crate::{Adopt, topics::RETENTION};

    fn wanted() -> Wanted<'static> {
        Wanted {
            topics: Topics::named("orders"),
            partitions: 6,
            shards: 2,
            replication_factor: None,
            retention: RETENTION,
            owner: "shop/main".to_owned(),
            adopt: Adopt::Nothing,
        }
    }

    fn shape(partitions: i32) -> Shape {
        Shape { partitions, replicas: 1, led: true }
    }

    fn as_planned(plan: &Plan) -> HashMap<String, String> {
        plan.settings.iter().map(|setting| (setting.name.to_owned(), setting.value.clone())).collect()
    }

    #[test]
    fn a_topic_created_as_planned_has_no_differences() {
        let plans = Plan::others(&wanted(), 6).into_iter().chain([Plan::orders(&wanted()), Plan::relay(&wanted())]);
        for plan in plans {
            assert_eq!(plan.judge(&shape(plan.partitions), &as_planned(&plan)).unwrap(), [], "{}", plan.name);
        }
    }

    #[test]
    fn events_are_kept_for_thirty_days() {
        assert_eq!(as_planned(&Plan::orders(&wanted()))["retention.ms"], "2592000000");
    }

    #[test]
    fn only_a_shorter_retention_is_a_difference() {
        let plan = Plan::orders(&wanted());
        for (found, differences) in [("2592000001", 0), ("-1", 0), ("604800000", 1), ("", 1)] {
            let mut settings = as_planned(&plan);
            settings.insert("retention.ms".to_owned(), found.to_owned());
            assert_eq!(plan.judge(&shape(6), &settings).unwrap().len(), differences, "{found:?}");
        }
        let mut settings = as_planned(&plan);
        settings.insert("retention.bytes".to_owned(), "1073741824".to_owned());
        let differences = plan.judge(&shape(6), &settings).unwrap();
        assert_eq!(differences[0].to_string(), "retention.bytes is 1073741824, expected -1");
    }

    #[test]
    fn too_few_partitions_are_an_error_where_the_pipeline_needs_them() {
        let [notifications, dead_letters] = Plan::others(&wanted(), 6);
        let relay = Plan::relay(&wanted());
        let judge = |plan: &Plan, partitions| plan.judge(&shape(partitions), &as_planned(plan));
        assert!(matches!(judge(&notifications, 5), Err(Error::TooFewPartitions(_))));
        assert!(matches!(judge(&relay, 1), Err(Error::TooFewPartitions(_))));
        assert_eq!(judge(&notifications, 12).unwrap(), []);
        for enough in [2, 3, 26] {
            assert_eq!(judge(&relay, enough).unwrap(), [], "{enough}");
        }
        assert_eq!(judge(&dead_letters, 6).unwrap(), []);
        let differences = judge(&Plan::orders(&wanted()), 3).unwrap();
        assert_eq!(differences[0].to_string(), "partitions is 3, expected 6");
    }

    #[test]
    fn a_progress_record_of_the_largest_batch_fits() {
        let relay = Plan::relay(&wanted());
        let mut settings = as_planned(&relay);
        settings.insert("max.message.bytes".to_owned(), "100000".to_owned());
        let differences = relay.judge(&shape(3), &settings).unwrap();
        assert_eq!(differences[0].to_string(), "max.message.bytes is 100000, expected 262144");
    }

    #[test]
    fn the_replication_factor_is_compared_only_if_one_is_wanted() {
        let plan = Plan::orders(&Wanted { replication_factor: Some(3), ..wanted() });
        let differences = plan.judge(&shape(6), &as_planned(&plan)).unwrap();
        assert_eq!(differences[0].to_string(), "replication.factor is 1, expected 3");
    }
}

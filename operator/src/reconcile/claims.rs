//! Decides which of several resources gets topics that have no recorded owner yet. Kafka records the owner of claimed
//! topics, but not of topics that an earlier version created. So the resources that this operator watches are compared:
//! the one that has the topics keeps them; otherwise the oldest gets them.

use std::collections::BTreeSet;

use kube::ResourceExt;
use orderflow_core::Topics;

use crate::{cache::Stores, crd::OrderFlow, pipeline::Topic};

/// Returns the status entry for the topics that a resource owns: NAME@BROKERS.
pub fn key(topic: &Topic) -> String {
    key_of(&topic.names.orders, &topic.brokers)
}

fn key_of(name: &str, brokers: &str) -> String {
    let brokers: BTreeSet<String> = brokers.split(',').map(str::to_lowercase).collect();
    let brokers: Vec<String> = brokers.into_iter().collect();
    format!("{name}@{}", brokers.join(","))
}

/// Returns another resource, `<namespace>/<name>`, that has the `topic` of `flow` or precedes `flow`. `cluster` is the
/// id of the topic's Kafka cluster, if known. Compares other resources by their specs, which may be invalid.
pub fn rival(stores: &Stores, flow: &OrderFlow, topic: &Topic, cluster: Option<&str>) -> Option<String> {
    let flows = stores.flows.state();
    let others = flows.iter().filter_map(|other| other.0.as_ref().ok());
    let wanted = Wanted { topics: topics(&topic.names.orders), brokers: &topic.brokers, cluster };
    rival_among(others, flow, &wanted)
}

fn rival_among<'a>(
    others: impl Iterator<Item = &'a OrderFlow>,
    flow: &OrderFlow,
    wanted: &Wanted<'_>,
) -> Option<String> {
    others
        .filter(|other| other.metadata.uid != flow.metadata.uid)
        .filter(|other| wanted.is_owned_by(other) || wanted.is_wanted_by(other))
        .filter(|other| wanted.rank(other) < wanted.rank(flow))
        .min_by_key(|other| wanted.rank(other))
        .map(|other| format!("{}/{}", other.namespace().unwrap_or_default(), other.name_any()))
}

/// The topics that a resource wants, and their cluster.
struct Wanted<'a> {
    topics: BTreeSet<String>,
    brokers: &'a str,
    cluster: Option<&'a str>,
}

impl Wanted<'_> {
    /// Returns the rank of a resource. The lowest gets the topics.
    fn rank(&self, flow: &OrderFlow) -> (bool, Option<String>, String) {
        let created = flow.creation_timestamp().map(|time| time.0.to_string());
        (!self.is_owned_by(flow), created, flow.uid().unwrap_or_default())
    }

    /// Returns whether the resource has the topics according to its status. The spec does not count: after a rename the
    /// pods use the old topic until the databases follow. A status of another cluster does not count either.
    fn is_owned_by(&self, flow: &OrderFlow) -> bool {
        let Some(status) = &flow.status else { return false };
        let Some((name, brokers)) = status.topic.as_deref().and_then(|topic| topic.split_once('@')) else {
            return false;
        };
        has_one_of(&self.topics, name) && self.is_in(brokers, status.kafka_cluster_id.as_deref())
    }

    fn is_wanted_by(&self, flow: &OrderFlow) -> bool {
        let topic = &flow.spec.topic;
        // The id in the status belongs to the brokers in the status.
        let status = flow
            .status
            .as_ref()
            .filter(|status| status.topic.as_deref() == Some(&key_of(&topic.name, &topic.bootstrap_servers)));
        let cluster = status.and_then(|status| status.kafka_cluster_id.as_deref());
        has_one_of(&self.topics, &topic.name) && self.is_in(&topic.bootstrap_servers, cluster)
    }

    /// Compares the clusters' ids, because a Kafka cluster has many names. If one is unknown, a common broker means a
    /// common cluster.
    fn is_in(&self, brokers: &str, cluster: Option<&str>) -> bool {
        match (self.cluster, cluster) {
            (Some(one), Some(other)) => one == other,
            _ => {
                brokers.split(',').any(|broker| self.brokers.split(',').any(|other| other.eq_ignore_ascii_case(broker)))
            }
        }
    }
}

/// Returns whether topics of this name include one of the wanted. The prefix is compared first because it is cheap, and
/// every resource is compared with every other.
fn has_one_of(wanted: &BTreeSet<String>, name: &str) -> bool {
    let may = |topic: &String| topic.starts_with(name) || name.starts_with(topic.as_str());
    wanted.iter().any(may) && !topics(name).is_disjoint(wanted)
}

/// Returns all topics of this name. They matter because `orders.dlq` can be a topic's own name as well as the
/// dead-letter topic of `orders`.
fn topics(name: &str) -> BTreeSet<String> {
    let Topics { orders, notifications, dead_letters, relay } = Topics::named(name);
    BTreeSet::from([orders, notifications, dead_letters, relay])
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use serde_json::json;

    use super::*;
    use crate::crd::OrderFlowStatus;

    fn flow(name: &str, age: i64, topic: &str, brokers: &str) -> OrderFlow {
        let spec = json!({
            "shards": [], "bucket": {"name": "b"}, "topic": {"name": topic, "bootstrapServers": brokers},
        });
        let mut flow = OrderFlow::new(name, serde_json::from_value(spec).unwrap());
        flow.metadata.namespace = Some("shop".to_owned());
        flow.metadata.uid = Some(name.to_owned());
        flow.metadata.creation_timestamp = Some(Time(Timestamp::from_second(1_000_000 - age).unwrap()));
        flow
    }

    fn rival_of(others: &[&OrderFlow], flow: &OrderFlow, cluster: Option<&str>) -> Option<String> {
        let topic = &flow.spec.topic;
        let wanted = Wanted { topics: topics(&topic.name), brokers: &topic.bootstrap_servers, cluster };
        rival_among(others.iter().copied(), flow, &wanted)
    }

    fn key_in(flow: &OrderFlow) -> String {
        key_of(&flow.spec.topic.name, &flow.spec.topic.bootstrap_servers)
    }

    #[test]
    fn the_resource_that_has_the_topic_keeps_it_else_the_oldest_gets_it() {
        let (old, young) = (flow("old", 20, "orders", "kafka:9092"), flow("young", 10, "orders", "KAFKA:9092"));
        let rival = |flows: [&OrderFlow; 2], flow: &OrderFlow| rival_of(&flows, flow, None);
        assert_eq!(rival([&old, &young], &young).as_deref(), Some("shop/old"));
        assert_eq!(rival([&old, &young], &old), None);

        let mut holder = young.clone();
        holder.status = Some(OrderFlowStatus { topic: Some(key_in(&young)), ..OrderFlowStatus::default() });
        assert_eq!(rival([&old, &holder], &holder), None);
        assert_eq!(rival([&old, &holder], &old).as_deref(), Some("shop/young"));

        // The topic is renamed in the spec, but the status still names the old one.
        holder.spec.topic.name = "renamed".to_owned();
        assert_eq!(rival([&old, &holder], &old).as_deref(), Some("shop/young"));
    }

    #[test]
    fn any_common_topic_on_a_common_broker_is_a_conflict() {
        let one = flow("one", 20, "orders", "kafka-0:9092,kafka-1:9092");
        for (topic, brokers, shared) in [
            ("orders", "kafka-1:9092", true),
            ("orders.dlq", "kafka-0:9092", true),
            ("orders2", "kafka-0:9092", false),
            ("orders", "elsewhere:9092", false),
        ] {
            let two = flow("two", 10, topic, brokers);
            assert_eq!(rival_of(&[&one], &two, None).is_some(), shared, "{topic} on {brokers}");
        }
    }

    #[test]
    fn clusters_are_compared_by_id_if_both_are_known() {
        let mut holder = flow("holder", 10, "orders", "kafka:9092");
        let status = |cluster: &str, flow: &OrderFlow| OrderFlowStatus {
            topic: Some(key_in(flow)),
            kafka_cluster_id: Some(cluster.to_owned()),
            ..OrderFlowStatus::default()
        };
        holder.status = Some(status("one", &holder));
        let rival = |holder: &OrderFlow, flow: &OrderFlow, cluster| rival_of(&[holder], flow, cluster);
        for topic in ["orders", "orders.dlq"] {
            let alias = flow("alias", 20, topic, "kafka.shop.svc:9092");
            assert_eq!(rival(&holder, &alias, Some("one")).as_deref(), Some("shop/holder"), "{topic}");
            assert_eq!(rival(&holder, &alias, Some("other")), None, "{topic}");
        }
        // The brokers were replaced by others of the same name, and the older resource comes first there.
        let older = flow("older", 20, "orders", "kafka:9092");
        assert_eq!(rival(&holder, &older, Some("one")).as_deref(), Some("shop/holder"));
        assert_eq!(rival(&holder, &older, Some("other")), None);
        // The spec names another Kafka, but the pods have not followed yet.
        holder.spec.topic.bootstrap_servers = "elsewhere:9092".to_owned();
        assert_eq!(rival(&holder, &older, Some("one")).as_deref(), Some("shop/holder"));
    }
}

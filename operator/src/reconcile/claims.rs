//! Which of several resources gets topics that nobody has claimed yet. Kafka itself says whose they are once they are
//! claimed, but only by their name, and nothing of topics that an earlier version made. So the resources that this operator
//! sees are compared: one that has the topics keeps them, else the oldest gets them.

use std::collections::BTreeSet;

use kube::ResourceExt;
use orderflow_core::Topics;

use crate::{cache::Stores, crd::OrderFlow, pipeline::Topic};

/// Returns the text by which a status records that a resource has its topics: NAME@BROKERS.
pub fn key(topic: &Topic) -> String {
    key_of(&topic.names.orders, &topic.brokers)
}

fn key_of(name: &str, brokers: &str) -> String {
    let brokers: BTreeSet<String> = brokers.split(',').map(str::to_lowercase).collect();
    let brokers: Vec<String> = brokers.into_iter().collect();
    format!("{name}@{}", brokers.join(","))
}

/// Returns another resource, `<namespace>/<name>`, that has the `topic` of `flow` or comes before `flow`. `cluster` is the id
/// of the topic's Kafka cluster, if it is known. Other resources are compared by their specs, which may be invalid.
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
        .filter(|other| wanted.is_had_by(other) || wanted.is_wanted_by(other))
        .filter(|other| wanted.rank(other) < wanted.rank(flow))
        .min_by_key(|other| wanted.rank(other))
        .map(|other| format!("{}/{}", other.namespace().unwrap_or_default(), other.name_any()))
}

/// The topics that somebody wants, and the cluster.
struct Wanted<'a> {
    topics: BTreeSet<String>,
    brokers: &'a str,
    cluster: Option<&'a str>,
}

impl Wanted<'_> {
    /// The least comes first.
    fn rank(&self, flow: &OrderFlow) -> (bool, Option<String>, String) {
        let created = flow.creation_timestamp().map(|time| time.0.to_string());
        (!self.is_had_by(flow), created, flow.uid().unwrap_or_default())
    }

    /// By its status, not by its spec: pods of one whose topic was renamed go on with the old one until the databases are
    /// its. A status that names another cluster does not count.
    fn is_had_by(&self, flow: &OrderFlow) -> bool {
        let Some(status) = &flow.status else { return false };
        let Some((name, brokers)) = status.topic.as_deref().and_then(|topic| topic.split_once('@')) else {
            return false;
        };
        has_one_of(&self.topics, name) && self.is_in(brokers, status.kafka_cluster_id.as_deref())
    }

    fn is_wanted_by(&self, flow: &OrderFlow) -> bool {
        let topic = &flow.spec.topic;
        // The id in the status is of the brokers that the status names.
        let status = flow
            .status
            .as_ref()
            .filter(|status| status.topic.as_deref() == Some(&key_of(&topic.name, &topic.bootstrap_servers)));
        let cluster = status.and_then(|status| status.kafka_cluster_id.as_deref());
        has_one_of(&self.topics, &topic.name) && self.is_in(&topic.bootstrap_servers, cluster)
    }

    /// By the clusters' ids, as one Kafka has many names. Where one is unknown, a broker in common is a cluster in common.
    fn is_in(&self, brokers: &str, cluster: Option<&str>) -> bool {
        match (self.cluster, cluster) {
            (Some(one), Some(other)) => one == other,
            _ => {
                brokers.split(',').any(|broker| self.brokers.split(',').any(|other| other.eq_ignore_ascii_case(broker)))
            }
        }
    }
}

/// Whether topics of this name have one of these. All begin with their name; that is asked first, as it is of each resource by each.
fn has_one_of(wanted: &BTreeSet<String>, name: &str) -> bool {
    let may = |topic: &String| topic.starts_with(name) || name.starts_with(topic.as_str());
    wanted.iter().any(may) && !topics(name).is_disjoint(wanted)
}

/// `orders.dlq` is not only what somebody may call a topic, but also what another's `orders` has for its dead letters.
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

        // Renamed in the spec, and not yet let go of.
        holder.spec.topic.name = "renamed".to_owned();
        assert_eq!(rival([&old, &holder], &old).as_deref(), Some("shop/young"));
    }

    #[test]
    fn topics_are_shared_by_any_of_their_names_on_a_common_broker() {
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
    fn one_cluster_by_two_names_is_one_cluster_and_a_status_of_another_does_not_count() {
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
        // Its brokers were replaced by others with the same name, and the older resource is there first.
        let older = flow("older", 20, "orders", "kafka:9092");
        assert_eq!(rival(&holder, &older, Some("one")).as_deref(), Some("shop/holder"));
        assert_eq!(rival(&holder, &older, Some("other")), None);
        // Its spec has moved to another Kafka, and its pods have not yet.
        holder.spec.topic.bootstrap_servers = "elsewhere:9092".to_owned();
        assert_eq!(rival(&holder, &older, Some("one")).as_deref(), Some("shop/holder"));
    }
}

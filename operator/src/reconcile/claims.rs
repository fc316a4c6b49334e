//! Which of several resources has a topic. Databases and buckets say themselves whose they are; Kafka has no such place, so
//! the resources that this operator sees are compared: whoever has the topic keeps it, else the oldest gets it.

use std::collections::BTreeSet;

use kube::ResourceExt;
use orderflow_core::Topics;

use crate::{controller::Live, crd::OrderFlow};

/// How a status says that a resource has its topics.
pub fn key(flow: &OrderFlow) -> String {
    let brokers: BTreeSet<String> = flow.spec.topic.bootstrap_servers.split(',').map(str::to_lowercase).collect();
    let brokers: Vec<String> = brokers.into_iter().collect();
    format!("{}@{}", flow.spec.topic.name, brokers.join(","))
}

/// Another that comes before `flow`, if there is one: `<namespace>/<name>`.
pub fn rival(live: &Live, flow: &OrderFlow) -> Option<String> {
    let flows = live.flows.state();
    let others = flows.iter().filter_map(|other| other.0.as_ref().ok());
    rival_among(others, flow)
}

fn rival_among<'a>(others: impl Iterator<Item = &'a OrderFlow>, flow: &OrderFlow) -> Option<String> {
    let wanted = topics(&flow.spec.topic.name);
    others
        .filter(|other| other.metadata.uid != flow.metadata.uid && brokers_in_common(other, flow))
        .filter(|other| has(other, &wanted) || has_one_of(&wanted, &other.spec.topic.name))
        .filter(|other| rank(other, &wanted) < rank(flow, &wanted))
        .min_by_key(|other| rank(other, &wanted))
        .map(|other| format!("{}/{}", other.namespace().unwrap_or_default(), other.name_any()))
}

/// The least comes first.
fn rank(flow: &OrderFlow, wanted: &BTreeSet<String>) -> (bool, Option<String>, String) {
    let created = flow.creation_timestamp().map(|time| time.0.to_string());
    (!has(flow, wanted), created, flow.uid().unwrap_or_default())
}

/// By its status, not by its spec: pods of one whose topic was renamed go on with the old one until the databases are its.
fn has(flow: &OrderFlow, wanted: &BTreeSet<String>) -> bool {
    let claimed = flow.status.as_ref().and_then(|status| status.topic.as_deref());
    let name = claimed.and_then(|claimed| claimed.split_once('@')).map(|(name, _)| name);
    name.is_some_and(|name| has_one_of(wanted, name))
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

/// One broker in common is one cluster in common.
fn brokers_in_common(one: &OrderFlow, other: &OrderFlow) -> bool {
    let [mut one, other] = [one, other].map(|flow| flow.spec.topic.bootstrap_servers.split(','));
    one.any(|broker| other.clone().any(|other| other.eq_ignore_ascii_case(broker)))
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

    #[test]
    fn whoever_has_the_topic_keeps_it_and_else_the_oldest_gets_it() {
        let (old, young) = (flow("old", 20, "orders", "kafka:9092"), flow("young", 10, "orders", "KAFKA:9092"));
        let rival = |flows: [&OrderFlow; 2], flow: &OrderFlow| rival_among(flows.into_iter(), flow);
        assert_eq!(rival([&old, &young], &young).as_deref(), Some("shop/old"));
        assert_eq!(rival([&old, &young], &old), None);

        let mut holder = young.clone();
        holder.status = Some(OrderFlowStatus { topic: Some(key(&young)), ..OrderFlowStatus::default() });
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
            assert_eq!(rival_among([&one].into_iter(), &two).is_some(), shared, "{topic} on {brokers}");
        }
    }
}

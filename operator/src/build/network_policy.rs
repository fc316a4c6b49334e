//! What the pods may be reached by, and reach: that the consumer can get at nothing but Kafka is a rule of the network, not
//! a habit of its code.
//!
//! Who reads this for a policy that denies too much:
//! - A port is that of the pod or host at the other end, after a Service has translated it.
//! - Kafka's ports are those of `bootstrapServers`. Brokers that name themselves with other ports in their answers (some
//!   load balancers and node ports do) are not reached.
//! - Of the AWS chain only web identity (IRSA) is reached; the metadata services of instances and EKS Pod Identity (port 80)
//!   are not.
//! - Policies add up. Whoever needs more writes another one that selects the same pods.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
        util::intstr::IntOrString,
    },
};

use super::{
    Component,
    pod::{HTTP_PORT, METRICS_PORT},
};
use crate::reconcile::validate::{Peers, Pipeline};

const DNS_PORT: u16 = 53;
const HTTPS_PORT: u16 = 443;

pub fn of_producer(pipeline: &Pipeline, peers: &Peers) -> NetworkPolicy {
    let postgres = pipeline.shards.iter().filter_map(|shard| Some(shard.access.as_ref().ok()?.options.get_port()));
    // Without credentials of its own the producer asks AWS's STS for some. The S3 of AWS has the same port: whoever names
    // peers for S3 has to name STS among them.
    let sts = pipeline.bucket.credentials.is_none().then_some(HTTPS_PORT);
    let s3 = sts.into_iter().chain([pipeline.bucket.port]);
    let egress = [
        reach(postgres.collect(), &peers.postgres),
        reach(pipeline.topic.ports.clone(), &peers.kafka),
        reach(s3.collect(), &peers.s3),
    ];
    policy(pipeline, Component::Producer, &[HTTP_PORT, METRICS_PORT], egress.into_iter().flatten())
}

pub fn of_consumer(pipeline: &Pipeline, peers: &Peers) -> NetworkPolicy {
    let egress = reach(pipeline.topic.ports.clone(), &peers.kafka);
    policy(pipeline, Component::Consumer, &[METRICS_PORT], egress.into_iter())
}

/// Both directions are named, so whatever no rule allows is denied.
fn policy(
    pipeline: &Pipeline,
    component: Component,
    ingress: &[u16],
    egress: impl Iterator<Item = NetworkPolicyEgressRule>,
) -> NetworkPolicy {
    // Who calls the API, or reads the metrics, is not for this to know.
    let ingress = NetworkPolicyIngressRule {
        from: None,
        // By number: not every network knows the ports' names.
        ports: Some(ingress.iter().map(|port| tcp(*port)).collect()),
    };
    let spec = NetworkPolicySpec {
        pod_selector: Some(component.selector(&pipeline.identity)),
        policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
        ingress: Some(vec![ingress]),
        egress: Some([dns()].into_iter().chain(egress).collect()),
    };
    NetworkPolicy { metadata: component.metadata(&pipeline.identity), spec: Some(spec) }
}

/// To anybody: where a cluster's name servers are, in pods, on each node or outside, differs too much.
fn dns() -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule { to: None, ports: Some(vec![port("UDP", DNS_PORT), port("TCP", DNS_PORT)]) }
}

/// `None` without a port: a rule that names no port allows all.
fn reach(ports: BTreeSet<u16>, peers: &[NetworkPolicyPeer]) -> Option<NetworkPolicyEgressRule> {
    let ports: Vec<_> = ports.into_iter().map(tcp).collect();
    (!ports.is_empty()).then(|| NetworkPolicyEgressRule {
        ports: Some(ports),
        to: (!peers.is_empty()).then(|| peers.iter().cloned().map(without_empty_lists).collect()),
    })
}

fn tcp(number: u16) -> NetworkPolicyPort {
    port("TCP", number)
}

fn port(protocol: &str, number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(i32::from(number))),
        end_port: None,
    }
}

/// The API server leaves empty lists out of what it stores, which people may well have written.
fn without_empty_lists(peer: NetworkPolicyPeer) -> NetworkPolicyPeer {
    let selector = |LabelSelector { match_labels, match_expressions }: LabelSelector| LabelSelector {
        match_labels: match_labels.filter(|labels| !labels.is_empty()),
        match_expressions: match_expressions.filter(|expressions| !expressions.is_empty()).map(|expressions| {
            let requirement = |expression: LabelSelectorRequirement| LabelSelectorRequirement {
                values: expression.values.filter(|values| !values.is_empty()),
                ..expression
            };
            expressions.into_iter().map(requirement).collect()
        }),
    };
    NetworkPolicyPeer {
        ip_block: peer
            .ip_block
            .map(|IPBlock { cidr, except }| IPBlock { cidr, except: except.filter(|except| !except.is_empty()) }),
        namespace_selector: peer.namespace_selector.map(selector),
        pod_selector: peer.pod_selector.map(selector),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::build::{
        Children, fixture,
        flow::{Direction, End, Flow, Protocol},
    };
    use Direction::{From, To};
    use Protocol::{Tcp, Udp};

    const CONSUMER: &str = "consumer";
    const PRODUCER: &str = "producer";
    const ALLOWED: bool = true;
    const DENIED: bool = false;

    type Row = (&'static str, Direction, End<'static>, Protocol, u16, bool);

    fn check(changes: &Value, rows: &[Row]) {
        let Children { producer, consumer } = fixture::build(&fixture::pipeline(changes));
        let policies = [producer.network_policy, consumer.network_policy].map(Option::unwrap);
        let labels = |component: &str| {
            let deployment = if component == PRODUCER { &producer.deployment } else { &consumer.deployment };
            deployment.spec.clone().unwrap().template.metadata.unwrap().labels.unwrap()
        };
        for (component, direction, other, protocol, port, expected) in rows {
            let labels = labels(component);
            let flow = Flow {
                namespace: "store",
                labels: &labels,
                direction: *direction,
                other: *other,
                protocol: *protocol,
                port: *port,
            };
            assert_eq!(
                flow.is_allowed(&policies),
                *expected,
                "{component} {direction:?} {other:?} {protocol:?} {port}"
            );
        }
    }

    #[test]
    fn without_peers_each_program_reaches_its_ports_anywhere_and_no_others() {
        let pod = End::Pod { namespace: "store", labels: &[("app", "anything")] };
        let address = End::Address("10.0.0.1");
        check(
            &json!({}),
            &[
                (CONSUMER, To, address, Tcp, 9092, ALLOWED),
                (CONSUMER, To, pod, Tcp, 9092, ALLOWED),
                (CONSUMER, To, address, Udp, 9092, DENIED),
                (CONSUMER, To, address, Udp, 53, ALLOWED),
                (CONSUMER, To, pod, Tcp, 53, ALLOWED),
                (CONSUMER, To, address, Tcp, 5432, DENIED),
                (CONSUMER, To, pod, Tcp, 5432, DENIED),
                (CONSUMER, To, pod, Tcp, 5433, DENIED),
                (CONSUMER, To, address, Tcp, 4566, DENIED),
                (CONSUMER, To, address, Tcp, 443, DENIED),
                (CONSUMER, To, address, Tcp, 80, DENIED),
                (CONSUMER, From, pod, Tcp, 9464, ALLOWED),
                (CONSUMER, From, address, Tcp, 9464, ALLOWED),
                (CONSUMER, From, pod, Tcp, 8080, DENIED),
                (CONSUMER, From, address, Tcp, 22, DENIED),
                (PRODUCER, To, address, Tcp, 5432, ALLOWED),
                (PRODUCER, To, pod, Tcp, 5433, ALLOWED),
                (PRODUCER, To, address, Tcp, 9092, ALLOWED),
                (PRODUCER, To, address, Tcp, 4566, ALLOWED),
                (PRODUCER, To, address, Udp, 53, ALLOWED),
                (PRODUCER, To, address, Tcp, 53, ALLOWED),
                (PRODUCER, To, address, Tcp, 22, DENIED),
                (PRODUCER, To, address, Tcp, 443, DENIED),
                (PRODUCER, To, pod, Tcp, 8080, DENIED),
                (PRODUCER, From, address, Tcp, 8080, ALLOWED),
                (PRODUCER, From, pod, Tcp, 8080, ALLOWED),
                (PRODUCER, From, pod, Tcp, 9464, ALLOWED),
                (PRODUCER, From, pod, Tcp, 22, DENIED),
                (PRODUCER, From, address, Udp, 8080, DENIED),
            ],
        );
    }

    #[test]
    fn with_peers_each_port_is_reached_there_only() {
        const BROKER: &[(&str, &str)] = &[("strimzi.io/cluster", "orderflow"), ("strimzi.io/kind", "Kafka")];
        let broker = End::Pod { namespace: "store", labels: BROKER };
        let elsewhere = End::Pod { namespace: "other", labels: BROKER };
        let another = End::Pod { namespace: "store", labels: &[("strimzi.io/cluster", "payments")] };
        let storage = End::Pod { namespace: "storage", labels: &[("app", "minio")] };
        let not_storage = End::Pod { namespace: "storage", labels: &[("app", "postgres")] };
        let changes = json!({"networkPolicy": {
            "kafka": [{"podSelector": {"matchLabels": {"strimzi.io/cluster": "orderflow"}}}],
            "postgres": [
                {"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.7.0/24"]}},
                {"ipBlock": {"cidr": "2001:db8::/32", "except": []}},
            ],
            "s3": [{
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "storage"}},
                "podSelector": {"matchLabels": {"app": "minio"}, "matchExpressions": []},
            }],
        }});
        let rows: Vec<Row> = [
            (CONSUMER, To, broker, Tcp, 9092, ALLOWED),
            (PRODUCER, To, broker, Tcp, 9092, ALLOWED),
            (CONSUMER, To, elsewhere, Tcp, 9092, DENIED),
            (CONSUMER, To, another, Tcp, 9092, DENIED),
            (PRODUCER, To, another, Tcp, 9092, DENIED),
            (CONSUMER, To, End::Address("10.0.0.1"), Tcp, 9092, DENIED),
            (CONSUMER, To, broker, Tcp, 9093, DENIED),
            (CONSUMER, To, another, Udp, 53, ALLOWED),
            (PRODUCER, To, End::Address("10.1.0.9"), Tcp, 5432, ALLOWED),
            (PRODUCER, To, End::Address("10.1.0.9"), Tcp, 5433, ALLOWED),
            (PRODUCER, To, End::Address("10.1.7.9"), Tcp, 5432, DENIED),
            (PRODUCER, To, End::Address("10.2.0.9"), Tcp, 5432, DENIED),
            (PRODUCER, To, End::Address("2001:db8::1"), Tcp, 5432, ALLOWED),
            (PRODUCER, To, End::Address("2001:db9::1"), Tcp, 5432, DENIED),
            (PRODUCER, To, broker, Tcp, 5432, DENIED),
            (CONSUMER, To, End::Address("10.1.0.9"), Tcp, 5432, DENIED),
            (PRODUCER, To, storage, Tcp, 4566, ALLOWED),
            (PRODUCER, To, not_storage, Tcp, 4566, DENIED),
            (CONSUMER, To, storage, Tcp, 4566, DENIED),
            (PRODUCER, From, another, Tcp, 8080, ALLOWED),
        ]
        .into();
        check(&changes, &rows);
    }

    #[test]
    fn every_broker_and_whoever_gives_credentials_is_reached() {
        let address = End::Address("10.0.0.1");
        let brokers = json!({"bootstrapServers": "kafka-0:9093,kafka-1:9094"});
        let aws = json!({"endpoint": null, "credentialsSecretRef": null});
        check(
            &json!({"topic": brokers, "bucket": aws}),
            &[
                (CONSUMER, To, address, Tcp, 9093, ALLOWED),
                (CONSUMER, To, address, Tcp, 9094, ALLOWED),
                (CONSUMER, To, address, Tcp, 9092, DENIED),
                (CONSUMER, To, address, Tcp, 443, DENIED),
                (PRODUCER, To, address, Tcp, 9094, ALLOWED),
                (PRODUCER, To, address, Tcp, 443, ALLOWED),
                (PRODUCER, To, address, Tcp, 4566, DENIED),
            ],
        );
        // An S3 of another port, and credentials that still come from STS.
        check(
            &json!({"bucket": {"credentialsSecretRef": null}}),
            &[(PRODUCER, To, address, Tcp, 443, ALLOWED), (PRODUCER, To, address, Tcp, 4566, ALLOWED)],
        );
    }

    #[test]
    fn a_port_that_is_not_known_opens_no_others() {
        let pipeline = fixture::pipeline_with(&json!({}), &crate::reconcile::dereference::Secrets::default());
        let policy = of_producer(&pipeline, &Peers::default());
        for rule in policy.spec.unwrap().egress.unwrap() {
            assert!(rule.ports.is_some_and(|ports| !ports.is_empty()));
        }
    }

    #[test]
    fn what_people_left_empty_is_not_sent() {
        let peer = json!({
            "podSelector": {"matchLabels": {}, "matchExpressions": [{"key": "a", "operator": "Exists", "values": []}]},
            "namespaceSelector": {"matchLabels": {}, "matchExpressions": []},
            "ipBlock": {"cidr": "10.0.0.0/8", "except": []},
        });
        let sent = without_empty_lists(serde_json::from_value(peer).unwrap());
        let expected = json!({
            "podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
            "namespaceSelector": {},
            "ipBlock": {"cidr": "10.0.0.0/8"},
        });
        assert_eq!(serde_json::to_value(sent).unwrap(), expected);
    }
}

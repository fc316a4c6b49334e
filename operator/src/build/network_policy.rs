//! NetworkPolicies of the pods. The network, not the code, ensures that the consumer can connect to Kafka only.
//!
//! Limits, for a policy that denies too much:
//! - A port is the one of the pod or host at the other end, after translation by a Service.
//! - Kafka's ports are those of `bootstrapServers`. Brokers that advertise other ports (some load balancers and node
//!   ports) are not reachable.
//! - Of the AWS credential chain only web identity (IRSA) works. The metadata services of instances and EKS Pod
//!   Identity (port 80) are not reachable.
//! - Policies add up: another policy for the same pods can open more ports, but none can close what this one opens. So
//!   each port is open to the named peers only.

use std::collections::{BTreeMap, BTreeSet};

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
    ports::{HTTP_PORT, INTERNAL_PORT, METRICS_PORT},
};
use crate::pipeline::{Peers, Pipeline};

const DNS_PORT: u16 = 53;
const HTTPS_PORT: u16 = 443;

pub fn producer(pipeline: &Pipeline, peers: &Peers) -> NetworkPolicy {
    let postgres = pipeline.shards.iter().filter_map(|shard| Some(shard.access.as_ref().ok()?.options.get_port()));
    // Without credentials in the spec the producer asks AWS STS for some. STS has the same port as the S3 of AWS, so
    // peers for S3 must include STS.
    let sts = pipeline.bucket.credentials.is_none().then_some(HTTPS_PORT);
    let s3 = sts.into_iter().chain([pipeline.bucket.port]);
    let egress = [
        reach(postgres.collect(), &peers.postgres),
        reach(pipeline.topic.ports.clone(), &peers.kafka),
        reach(s3.collect(), &peers.s3),
        reach(traces(pipeline), &peers.traces),
    ];
    // Each port that the pods listen on has its line here. A port without one is closed.
    let ingress = [
        accept(HTTP_PORT, &peers.clients),
        accept(INTERNAL_PORT, &peers.internal),
        accept(METRICS_PORT, &peers.metrics),
    ];
    policy(pipeline, Component::Producer, &peers.dns, ingress.into(), egress.into_iter().flatten())
}

pub fn consumer(pipeline: &Pipeline, peers: &Peers) -> NetworkPolicy {
    let egress = [reach(pipeline.topic.ports.clone(), &peers.kafka), reach(traces(pipeline), &peers.traces)];
    let ingress = vec![accept(METRICS_PORT, &peers.metrics)];
    policy(pipeline, Component::Consumer, &peers.dns, ingress, egress.into_iter().flatten())
}

fn traces(pipeline: &Pipeline) -> BTreeSet<u16> {
    pipeline.traces.iter().map(|traces| traces.port).collect()
}

/// Builds a policy for both directions, so that everything that no rule allows is denied.
fn policy(
    pipeline: &Pipeline,
    component: Component,
    name_servers: &[NetworkPolicyPeer],
    ingress: Vec<NetworkPolicyIngressRule>,
    egress: impl Iterator<Item = NetworkPolicyEgressRule>,
) -> NetworkPolicy {
    let spec = NetworkPolicySpec {
        pod_selector: Some(component.selector(&pipeline.identity)),
        policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
        ingress: Some(ingress),
        egress: Some([dns(name_servers)].into_iter().chain(egress).collect()),
    };
    NetworkPolicy { metadata: component.metadata(&pipeline.identity), spec: Some(spec) }
}

/// Builds a rule for incoming connections. Without peers it allows the pods of the own namespace. Its peers are never
/// empty, because an empty list allows all.
fn accept(number: u16, peers: &[NetworkPolicyPeer]) -> NetworkPolicyIngressRule {
    let own_namespace = NetworkPolicyPeer { pod_selector: Some(LabelSelector::default()), ..Default::default() };
    let peers = if peers.is_empty() { vec![own_namespace] } else { sent(peers) };
    // By number: not every network plugin supports named ports.
    NetworkPolicyIngressRule { from: Some(peers), ports: Some(vec![tcp(number)]) }
}

/// Allows the cluster's name servers, which every distribution labels alike, and those that the spec names. A rule for
/// any address would let a pod send data out in queries to a server of its choice.
fn dns(peers: &[NetworkPolicyPeer]) -> NetworkPolicyEgressRule {
    let selector = |name: &str, value: &str| {
        let labels = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        Some(LabelSelector { match_labels: Some(labels), match_expressions: None })
    };
    let cluster = NetworkPolicyPeer {
        namespace_selector: selector("kubernetes.io/metadata.name", "kube-system"),
        pod_selector: selector("k8s-app", "kube-dns"),
        ip_block: None,
    };
    NetworkPolicyEgressRule {
        to: Some([cluster].into_iter().chain(sent(peers)).collect()),
        ports: Some(vec![port("UDP", DNS_PORT), port("TCP", DNS_PORT)]),
    }
}

/// Builds a rule for outgoing connections, or none without a port, because a rule without ports allows all.
fn reach(ports: BTreeSet<u16>, peers: &[NetworkPolicyPeer]) -> Option<NetworkPolicyEgressRule> {
    let ports: Vec<_> = ports.into_iter().map(tcp).collect();
    (!ports.is_empty())
        .then(|| NetworkPolicyEgressRule { ports: Some(ports), to: (!peers.is_empty()).then(|| sent(peers)) })
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

fn sent(peers: &[NetworkPolicyPeer]) -> Vec<NetworkPolicyPeer> {
    peers.iter().cloned().map(without_empty_lists).collect()
}

/// Removes the empty lists that a user may have written, because the API server does not store them.
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
    const NAME_SERVER: End<'static> =
        End::Pod { namespace: "kube-system", labels: &[("k8s-app", "kube-dns"), ("pod-template-hash", "1")] };

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
    fn without_peers_egress_is_open_by_port_and_ingress_to_the_namespace() {
        let pod = End::Pod { namespace: "store", labels: &[("app", "anything")] };
        let elsewhere = End::Pod { namespace: "other", labels: &[("app", "anything")] };
        let address = End::Address("10.0.0.1");
        check(
            &json!({}),
            &[
                (CONSUMER, To, address, Tcp, 9092, ALLOWED),
                (CONSUMER, To, pod, Tcp, 9092, ALLOWED),
                (CONSUMER, To, address, Udp, 9092, DENIED),
                (CONSUMER, To, NAME_SERVER, Udp, 53, ALLOWED),
                (CONSUMER, To, NAME_SERVER, Tcp, 53, ALLOWED),
                (CONSUMER, To, NAME_SERVER, Udp, 54, DENIED),
                (CONSUMER, To, address, Udp, 53, DENIED),
                (CONSUMER, To, pod, Tcp, 53, DENIED),
                (CONSUMER, To, address, Tcp, 5432, DENIED),
                (CONSUMER, To, pod, Tcp, 5432, DENIED),
                (CONSUMER, To, pod, Tcp, 5433, DENIED),
                (CONSUMER, To, address, Tcp, 4566, DENIED),
                (CONSUMER, To, address, Tcp, 443, DENIED),
                (CONSUMER, To, address, Tcp, 80, DENIED),
                (CONSUMER, From, pod, Tcp, 9464, ALLOWED),
                (CONSUMER, From, elsewhere, Tcp, 9464, DENIED),
                (CONSUMER, From, address, Tcp, 9464, DENIED),
                (CONSUMER, From, pod, Tcp, 8080, DENIED),
                (CONSUMER, From, address, Tcp, 22, DENIED),
                (PRODUCER, To, address, Tcp, 5432, ALLOWED),
                (PRODUCER, To, pod, Tcp, 5433, ALLOWED),
                (PRODUCER, To, address, Tcp, 9092, ALLOWED),
                (PRODUCER, To, address, Tcp, 4566, ALLOWED),
                (PRODUCER, To, NAME_SERVER, Udp, 53, ALLOWED),
                (PRODUCER, To, NAME_SERVER, Tcp, 53, ALLOWED),
                (PRODUCER, To, address, Udp, 53, DENIED),
                (PRODUCER, To, address, Tcp, 53, DENIED),
                (PRODUCER, To, address, Tcp, 22, DENIED),
                (PRODUCER, To, address, Tcp, 443, DENIED),
                (PRODUCER, To, pod, Tcp, 8080, DENIED),
                (PRODUCER, From, pod, Tcp, 8080, ALLOWED),
                (PRODUCER, From, elsewhere, Tcp, 8080, DENIED),
                (PRODUCER, From, address, Tcp, 8080, DENIED),
                (PRODUCER, From, pod, Tcp, 8081, ALLOWED),
                (PRODUCER, From, elsewhere, Tcp, 8081, DENIED),
                (PRODUCER, From, pod, Tcp, 9464, ALLOWED),
                (PRODUCER, From, elsewhere, Tcp, 9464, DENIED),
                (PRODUCER, From, address, Tcp, 9464, DENIED),
                (PRODUCER, From, pod, Tcp, 22, DENIED),
                (PRODUCER, From, address, Udp, 8080, DENIED),
            ],
        );
    }

    #[test]
    fn with_peers_egress_is_open_to_those_peers_only() {
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
            (CONSUMER, To, NAME_SERVER, Udp, 53, ALLOWED),
            (CONSUMER, To, another, Udp, 53, DENIED),
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
    fn with_peers_ingress_is_open_to_those_peers_only() {
        const GATEWAY: &[(&str, &str)] = &[("app", "gateway")];
        let gateway = End::Pod { namespace: "edge", labels: GATEWAY };
        let not_gateway = End::Pod { namespace: "edge", labels: &[("app", "blog")] };
        let prometheus = End::Pod { namespace: "monitoring", labels: &[("app", "prometheus")] };
        let neighbour = End::Pod { namespace: "store", labels: GATEWAY };
        let namespace = |name: &str| json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
        let changes = json!({"networkPolicy": {
            "clients": [
                {"namespaceSelector": namespace("edge"), "podSelector": {"matchLabels": {"app": "gateway"}}},
                {"ipBlock": {"cidr": "10.9.0.0/16", "except": []}},
            ],
            "internal": [{"namespaceSelector": namespace("monitoring")}],
            "metrics": [{"namespaceSelector": namespace("monitoring")}],
        }});
        let rows: Vec<Row> = [
            (PRODUCER, From, gateway, Tcp, 8080, ALLOWED),
            (PRODUCER, From, End::Address("10.9.0.1"), Tcp, 8080, ALLOWED),
            (PRODUCER, From, gateway, Tcp, 8081, DENIED),
            (PRODUCER, From, not_gateway, Tcp, 8080, DENIED),
            (PRODUCER, From, End::Address("10.8.0.1"), Tcp, 8080, DENIED),
            (PRODUCER, From, neighbour, Tcp, 8080, DENIED),
            (PRODUCER, From, prometheus, Tcp, 8080, DENIED),
            (PRODUCER, From, prometheus, Tcp, 8081, ALLOWED),
            (PRODUCER, From, neighbour, Tcp, 8081, DENIED),
            (PRODUCER, From, prometheus, Tcp, 9464, ALLOWED),
            (PRODUCER, From, gateway, Tcp, 9464, DENIED),
            (PRODUCER, From, neighbour, Tcp, 9464, DENIED),
            (CONSUMER, From, prometheus, Tcp, 9464, ALLOWED),
            (CONSUMER, From, gateway, Tcp, 9464, DENIED),
            (CONSUMER, From, neighbour, Tcp, 9464, DENIED),
            (CONSUMER, From, gateway, Tcp, 8080, DENIED),
        ]
        .into();
        check(&changes, &rows);
    }

    #[test]
    fn name_servers_of_the_cluster_and_of_the_spec_are_reachable() {
        let node_local = End::Address("169.254.20.10");
        let like_one = End::Pod { namespace: "store", labels: &[("k8s-app", "kube-dns")] };
        let other_system = End::Pod { namespace: "kube-system", labels: &[("k8s-app", "metrics-server")] };
        let named = json!({"networkPolicy": {"dns": [{"ipBlock": {"cidr": "169.254.20.10/32"}}]}});
        for (changes, expected) in [(json!({}), DENIED), (named, ALLOWED)] {
            let rows: Vec<Row> = [CONSUMER, PRODUCER]
                .into_iter()
                .flat_map(|component| {
                    [
                        (component, To, NAME_SERVER, Udp, 53, ALLOWED),
                        (component, To, NAME_SERVER, Tcp, 53, ALLOWED),
                        (component, To, node_local, Udp, 53, expected),
                        (component, To, node_local, Tcp, 53, expected),
                        (component, To, node_local, Tcp, 80, DENIED),
                        (component, To, like_one, Udp, 53, DENIED),
                        (component, To, other_system, Udp, 53, DENIED),
                        (component, To, End::Address("192.0.2.1"), Udp, 53, DENIED),
                    ]
                })
                .collect();
            check(&changes, &rows);
        }
    }

    #[test]
    fn every_broker_and_sts_are_reachable() {
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
        // An S3 on another port, with credentials from STS.
        check(
            &json!({"bucket": {"credentialsSecretRef": null}}),
            &[(PRODUCER, To, address, Tcp, 443, ALLOWED), (PRODUCER, To, address, Tcp, 4566, ALLOWED)],
        );
    }

    #[test]
    fn an_unknown_port_opens_no_other_port() {
        let pipeline = fixture::pipeline_with(&json!({}), &crate::reconcile::dereference::Secrets::default());
        let policy = producer(&pipeline, &Peers::default());
        for rule in policy.spec.unwrap().egress.unwrap() {
            assert!(rule.ports.is_some_and(|ports| !ports.is_empty()));
        }
    }

    #[test]
    fn empty_lists_of_the_spec_are_not_sent() {
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
